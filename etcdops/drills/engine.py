"""The engine of every drill: steady state, traffic, the drill itself, healing, checks, verdict.

The order of Principles of Chaos Engineering (https://principlesofchaos.org) and of Jepsen's tests: nothing is touched
unless the cluster is well, every fault is undone whatever happens, and what was recorded is judged afterwards.
"""

from __future__ import annotations

import os
import platform
import random
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from etcdops import calls, interrupts, versions, wire
from etcdops.drills.leadership import Leadership, check_one_leader
from etcdops.drills.scene import Deviation, Scene
from etcdops.errors import EtcdError, EtcdopsError, HealFailed, Interrupted, Refused
from etcdops.faults.heal import NO_FAULT, dead, describe, forget_keys, mark, put_right
from etcdops.foreign import refuse_foreign
from etcdops.operations.pending import refuse_unfinished
from etcdops.report.journal import Journal
from etcdops.report.verdict import ClusterInfo, Event, FaultInfo, Verdict, write
from etcdops.state import replace_file
from etcdops.verify import Check
from etcdops.verify.acknowledged import Writes, check_acknowledged
from etcdops.verify.activity import check_activity
from etcdops.verify.logs import check_logs
from etcdops.verify.members_agree import MemberHash, check_members_agree
from etcdops.verify.verdict import combine
from etcdops.workload.history import Operation, key_prefix, read_history
from etcdops.workload.outage import Outage, measure, predict
from etcdops.workload.plan import TrafficPlan, failover_rule
from etcdops.workload.traffic import Traffic

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.drills import Drill

__all__ = ["run"]

#: How long the steady state may take to be met, once everything runs, in election timeouts.
_STEADY = 10

#: Fault-free traffic before the fault. As long as an ordinary fault, so that the noise floor comes from equal windows.
_BASELINE_S = 3.0

#: Traffic that goes on after the member has caught up.
_AFTER_S = 0.3

_NO_WRITES = Writes(0, 0, 0, 0, 0, 0)


def run(
    drill: Drill,
    cluster: Cluster,
    *,
    rate: int = 100,
    seed: int | None = None,
    baseline_s: float = _BASELINE_S,
    say: Callable[[str], None] = lambda text: None,
    pause: Callable[[], None] | None = None,
    **options: str | None,
) -> Verdict:
    """Run a drill on a cluster and give its verdict. Brings the cluster up if nothing of it runs, and leaves it up.

    `rate` is in writes per second on each stream, 1 to 10,000. `seed` repeats an earlier run's choices. `baseline_s`
    is the fault-free time before the fault from which the noise floor is taken. `say` gets a line for each step,
    `pause` is called between steps. Further options are the drill's own.

    Raises SpecError or Refused before anything is touched. A steady state that is not met gives the verdict "aborted",
    healing that fails gives "stuck". Interrupted (and KeyboardInterrupt) is raised again once the cluster is healed.
    """
    chosen = drill.options(options)
    _refuse(drill, cluster, chosen)
    seed = secrets.randbelow(2**31) if seed is None else seed
    with cluster.locked(f"drill {drill.name}", progress=say):
        _heal_dead_run(cluster, say)
        if set(cluster.runtime.states(cluster.record).values()) == {"stopped"}:
            say(f"cluster {cluster.name} is down: bringing it up")
            cluster.up_locked(progress=say)
        one = _Run(drill, cluster, chosen, rate=rate, seed=seed, baseline_s=baseline_s, say=say, pause=pause)
        return one.go()


def _refuse(drill: Drill, cluster: Cluster, options: dict[str, str]) -> None:
    spec = cluster.record.spec
    if spec.purpose == "production":
        raise Refused(
            f"cluster {spec.name} is marked as production: no drill runs on it", remedy="Use a cluster of its own."
        )
    refuse_foreign(cluster.record, drill.name, remedy="Use a cluster of your own: `up-env --cluster NAME` makes one.")
    if len(spec.members) < drill.min_voters:
        raise Refused(
            f"{drill.name} needs {drill.min_voters} voters, and {spec.name} has {len(spec.members)}:"
            f" without its leader no quorum would be left, so nothing could be elected",
            remedy=f"`up-env --cluster three --size {drill.min_voters}` makes one with enough.",
        )
    refuse_unfinished(cluster)
    if reason := drill.needs(cluster.runtime, **options):
        raise Refused(f"{drill.name} cannot run here: {reason}")


def _heal_dead_run(cluster: Cluster, say: Callable[[str], None]) -> None:
    fault = cluster.store.unhealed(cluster.name)
    if fault is not None and dead(fault):
        say(f"healing first: {describe(fault)}")
        put_right(cluster, progress=say)
        forget_keys(cluster, fault.run)
        cluster.store.clear_unhealed(cluster.name)


class _Run:
    """One run of a drill, from its folder to its verdict."""

    def __init__(
        self,
        drill: Drill,
        cluster: Cluster,
        options: dict[str, str],
        *,
        rate: int,
        seed: int,
        baseline_s: float,
        say: Callable[[str], None],
        pause: Callable[[], None] | None,
    ) -> None:
        self.drill = drill
        self.cluster = cluster
        self.options = options
        self.rate = rate
        self.seed = seed
        self.random = random.Random(seed)
        self.baseline_s = baseline_s
        self.say = say
        self.pause = pause
        self.id = f"{datetime.now():%Y%m%d-%H%M%S}-{drill.name}-{secrets.token_hex(2)}"
        self.folder: Path = cluster.store.make_dir(cluster.store.runs / self.id)
        self.plan = TrafficPlan(
            run=self.id,
            endpoints={m.name: m.client_url for m in cluster.record.members},
            output=str(self.folder / "history.jsonl"),
            tls=cluster.record.spec.tls,
            rate=rate,
            max_s=3600.0 if pause else 300.0,
        )
        self.began_ns = time.monotonic_ns()
        self.journal = Journal(self.folder / "journal.jsonl")
        self.scene: Scene | None = None
        self.leadership: Leadership | None = None
        self.checks: list[Check] = []
        self.log_offsets = {m.name: len(cluster.runtime.log_bytes(m)) for m in cluster.record.members}

    def go(self) -> Verdict:
        """Run it. Whatever happens, the cluster is healed and the folder holds a verdict."""
        self._write_run()
        for choice in self.drill.choices:
            self.say(f"--{choice.name} {self.options[choice.name]}, of: {choice.help}")
        with self.journal:
            problem = self._steady_state()
            if problem:
                self.journal.note("aborted", detail=problem)
                self.checks.append(Check("steady state", "failed", problem))
                return self._verdict("aborted", [], None)
            self.checks.append(Check("steady state", "passed", "every voter served and one member led, before"))
            interrupts.set_note(self._healing_note)
            try:
                self.cluster.want_running()
                mark(self.cluster, self.id, NO_FAULT, "")
                return self._judged()
            except KeyboardInterrupt as error:
                name = f"signal {error.signum}" if isinstance(error, Interrupted) else "Ctrl-C"
                self.journal.note("interrupted", detail=name)
                verdict = self._unfinished(f"interrupted by {name}")
                if verdict.verdict == "stuck":
                    return verdict
                raise
            except HealFailed as error:
                return self._stuck(error)
            except EtcdopsError as error:
                self.journal.note("failed", detail=str(error))
                return self._unfinished(str(error))

    def _healing_note(self) -> str:
        return f"healing {self.cluster.name}: up to 30 s for its members to serve again; nothing is left frozen"

    def _unfinished(self, why: str) -> Verdict:
        """Heal once more, and judge a run that did not come to its end.

        A fault heals itself on the way here, unless the one signal that is ever raised came just as it began to.
        """
        try:
            put_right(self.cluster, progress=self.say)
            forget_keys(self.cluster, self.id)
        except HealFailed as error:
            return self._stuck(error)
        self.cluster.store.clear_unhealed(self.cluster.name)
        self.say(f"{why}; {self.cluster.name} is healed: every member runs and serves")
        self.checks.append(Check("ran to its end", "inconclusive", f"{why}; healed"))
        return self._verdict("inconclusive", self._history(), None)

    def _stuck(self, error: HealFailed) -> Verdict:
        self.journal.note("stuck", detail=str(error))
        self.checks.append(Check("healed", "failed", f"{error} {error.remedy}".strip()))
        return self._verdict("stuck", self._history(), None)

    # -- before

    def _steady_state(self) -> str:
        """Wait for the steady state; give what is wrong when it is not met, "" when it is."""
        self.say("steady state: every voter serves, one leads, no alarm")
        deadline = time.monotonic() + _STEADY * self.cluster.record.spec.timing.election_ms / 1000
        while True:
            status = self.cluster.status()
            wrong = [f"{member.name} is {member.health}" for member in status.members if member.health != "healthy"] + [
                f"{member.name} has the alarm {alarm}" for member in status.members for alarm in member.alarms
            ]
            wrong += [finding.message for finding in status.warnings if finding.code == "two-leaders"]
            if status.leader is None:
                wrong.append("no member leads")
            if not wrong:
                return ""
            absent = any(member.health in ("stopped", "frozen") for member in status.members)
            if absent or time.monotonic() > deadline:
                there = sum(member.health not in ("stopped", "frozen") for member in status.members)
                quorum = " (quorum is lost)" if there < status.quorum else ""
                return f"{'; '.join(wrong)}{quorum}. `up-env` starts what is stopped or frozen"
            time.sleep(0.05)

    def _write_run(self) -> None:
        record = self.cluster.record
        facts = {
            "schema": 1,
            "run": self.id,
            "drill": self.drill.name,
            "options": self.options,
            "rate": self.rate,
            "seed": self.seed,
            "baseline_s": self.baseline_s,
            "failover_rule": failover_rule(self.plan),
            "cluster": record.spec.name,
            "runtime": record.runtime,
            "etcd_version": record.etcd_version,
            "binary": record.binary,
            "timing": record.spec.timing,
            "members": [m.name for m in record.members],
            "command": sys.argv,
            "python": platform.python_version(),
            "kernel": f"{platform.system()} {platform.release()}",
            "cpus": os.cpu_count(),
            "began": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "began_ns": self.began_ns,
        }
        replace_file(self.folder / "run.json", msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n")

    # -- the run itself

    def _judged(self) -> Verdict:
        with ExitStack() as stack:
            self.leadership = stack.enter_context(Leadership(self.cluster, self.journal))
            traffic = stack.enter_context(Traffic.start(self.plan, self.folder / "traffic.log"))
            self.say(
                f"traffic: {len(self.plan.streams)} streams of {self.rate}/s each (a write stream for each member,"
                f" a write and a read stream that fail over); {self.baseline_s:g} s without a fault first"
            )
            traffic.wait_running(timeout_s=20.0)
            self.journal.note("traffic")
            # A phase of its own within the heartbeat, so that repeated runs do not all hit the same instant.
            phase_s = self.random.random() * self.cluster.record.spec.timing.heartbeat_ms / 1000
            time.sleep(self.baseline_s + phase_s)
            scene = self.scene = Scene(
                self.cluster,
                self.id,
                self.journal,
                traffic,
                self.leadership,
                steps=self.drill.steps,
                say=self.say,
                pause=self.pause,
            )
            try:
                self.drill.body(scene, **self.options)
            except Deviation as deviation:
                scene.checks.append(deviation.check)
            time.sleep(_AFTER_S)
            summary = traffic.stop(timeout_s=10.0)
            self.journal.note("traffic-ended")
        self.say("checking")
        history = self._history()
        self.checks += scene.checks
        if not summary.complete:
            self.checks.append(Check("record", "inconclusive", "some operations were abandoned without an answer"))
        check, writes = check_acknowledged(history, self._read_back())
        self.checks.append(check)
        self.checks.append(check_members_agree(self._hashes()))
        patience_ns = 2 * self.cluster.record.spec.timing.election_ms * 1_000_000
        self.checks.append(
            check_one_leader(self.leadership.claims, until_ns=time.monotonic_ns(), patience_ns=patience_ns)
        )
        self.checks.append(check_logs(self._log_lines()))
        outage = None
        if scene.inject_ns:
            self.checks.append(check_activity(history, inject_ns=scene.inject_ns, heal_ns=scene.heal_ns))
            outage = self._outage(history, scene)
        self.checks.append(self._steady_again())
        forget_keys(self.cluster, self.id)
        self.cluster.store.clear_unhealed(self.cluster.name)
        return self._verdict(combine(self.checks), history, outage, writes)

    def _steady_again(self) -> Check:
        problem = self._steady_state()
        if problem:
            return Check("steady state again", "failed", problem)
        return Check("steady state again", "passed", "every voter serves and one member leads, afterwards")

    def _outage(self, history: list[Operation], scene: Scene) -> Outage:
        how, member = scene.fault or ("", "")
        spec = self.cluster.record.spec
        # Only the loss of a leader has a prediction.
        predicted = predict(spec.timing, len(spec.members), how)
        return measure(
            history,
            inject_ns=scene.inject_ns,
            heal_ns=scene.heal_ns,
            rate=self.rate,
            affected=(member,),
            predicted_ms=predicted,
        )

    def _history(self) -> list[Operation]:
        path = Path(self.plan.output)
        return read_history(path) if path.exists() else []

    def _read_back(self) -> dict[str, dict[str, str] | None]:
        """Read every key of the run, linearizably, through every member."""
        prefix = key_prefix(self.id).encode()
        final: dict[str, dict[str, str] | None] = {}
        for member in self.cluster.record.members:
            with wire.Connection(member.client_url, self.cluster.record.spec.tls) as connection:
                try:
                    found = connection.range(prefix, wire.prefix_end(prefix), timeout_s=30.0)
                except EtcdError as error:
                    self.journal.note("not-read-back", member.name, str(error))
                    final[member.name] = None
                else:
                    final[member.name] = {kv.key.decode(): kv.value.decode() for kv in found.kvs}
        return final

    def _hashes(self) -> dict[str, MemberHash]:
        """Ask every member for its hash at one revision; each has served a linearizable read, so it has that one."""
        record = self.cluster.record
        with ExitStack() as stack:
            connections = {
                m.name: stack.enter_context(wire.Connection(m.client_url, record.spec.tls)) for m in record.members
            }
            statuses = wire.ask_all(connections, calls.status(), timeout_s=5.0)
            revision = min((s.revision for s in statuses.values() if not isinstance(s, EtcdError)), default=0)
            hashes = wire.ask_all(connections, calls.hash_kv(revision), timeout_s=30.0)
        return {
            name: MemberHash(error=str(answer))
            if isinstance(answer, EtcdError)
            else MemberHash(hash=answer.hash, revision=revision, compact_revision=answer.compact_revision)
            for name, answer in hashes.items()
        }

    def _log_lines(self) -> dict[str, list[str] | None]:
        runtime, lines = self.cluster.runtime, {}
        for member in self.cluster.record.members:
            content = runtime.log_bytes(member, self.log_offsets[member.name])
            (self.folder / f"{member.name}.log").write_bytes(content)
            lines[member.name] = content.decode(errors="replace").splitlines()
        return lines  # type: ignore[return-value]  # dict is invariant

    # -- after

    def _verdict(
        self, verdict: str, history: list[Operation], outage: Outage | None, writes: Writes = _NO_WRITES
    ) -> Verdict:
        record, scene = self.cluster.record, self.scene
        if writes is _NO_WRITES and history:
            puts = [op for op in history if op.op == "put"]
            count = {outcome: sum(op.outcome == outcome for op in puts) for outcome in ("ok", "failed", "unknown")}
            writes = Writes(count["ok"], 0, count["failed"], count["unknown"], 0, 0)
        fault = None
        if scene and scene.fault and scene.inject_ns:
            fault = FaultInfo(*scene.fault, self._ms(scene.inject_ns), self._ms(scene.heal_ns))
        made = Verdict(
            schema=1,
            run=self.id,
            drill=self.drill.name,
            verdict=verdict,
            seed=self.seed,
            cluster=ClusterInfo(
                record.spec.name,
                record.runtime,
                record.etcd_version,
                tuple(m.name for m in record.members),
                _known_bad(record.etcd_version),
            ),
            fault=fault,
            outage=outage,
            writes=writes,
            checks=tuple(self.checks),
            timeline=tuple(
                Event(self._ms(e.t_ns), e.event, e.member, e.detail)
                for e in sorted(self.journal.entries, key=lambda entry: entry.t_ns)
            ),
            report=str(self.folder / "verdict.md"),
        )
        write(made, self.folder)
        self._write_page(made)
        return made

    def _write_page(self, made: Verdict) -> None:
        from etcdops.report.page import render

        page: Any = render(made, failover_rule=failover_rule(self.plan), rate=self.rate)
        try:
            Path(made.report).write_text(page, encoding="utf-8")
        except OSError as error:
            raise EtcdopsError(f"cannot write {made.report}: {error.strerror or error}") from error

    def _ms(self, t_ns: int) -> float:
        return round((t_ns - self.began_ns) / 1e6, 3)


def _known_bad(version: str) -> tuple[str, ...]:
    if not version:
        return ()
    bad = versions.findings(versions.parse_version(version))
    return tuple(f"{one.effect} ({one.source})" for one in bad if one.severity == "unsafe")
