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
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from etcdops import interrupts, reach, versions, wire
from etcdops.drills.disks import disks_of, fsyncs
from etcdops.drills.member_logs import MemberLogs
from etcdops.drills.scene import Deviation, Scene
from etcdops.drills.window import Window
from etcdops.errors import EtcdopsError, HealFailed, Interrupted, Refused, SpecError
from etcdops.faults.heal import NO_FAULT, dead, forget_keys, late_s, mark, put_right
from etcdops.foreign import refuse_foreign
from etcdops.operations.pending import refuse_unfinished
from etcdops.report.assembling import assemble
from etcdops.report.disks import write_disks
from etcdops.report.journal import Journal
from etcdops.report.judged import UNDONE, Judged, judge_folder
from etcdops.report.page import write_page
from etcdops.report.runinfo import RunInfo, promised_kinds, write_run
from etcdops.report.verdict import Verdict, write
from etcdops.verify import Check
from etcdops.verify.activity import Minimum
from etcdops.verify.recorded import Restored
from etcdops.verify.verdict import combine
from etcdops.workload.history import FAILOVER_WRITE, PINNED, HistoryWriter, read_history
from etcdops.workload.plan import TrafficPlan, failover_rule
from etcdops.workload.profiles import PROFILES, pace_of

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.drills import Drill

__all__ = ["refuse", "run"]

#: How long the steady state may take to be met, once everything runs, in election timeouts.
_STEADY = 10

#: Fault-free traffic before the fault. As long as an ordinary fault, so that the noise floor comes from equal windows.
BASELINE_S = 3.0
#: How much longer it may take until enough has been acknowledged, on a machine that has much else to do.
_BASELINE_MORE_S = 10.0

#: Traffic that goes on after the member has caught up, at least; and at most, until enough has been acknowledged.
_AFTER_S = 0.3
_AFTER_MOST_S = 5.0

#: Keys that clients share: so few that they meet.
_KEYS = 20

#: Keys that begin so are ours, and go when we do.
OURS = b"etcdops/"


def run(
    drill: Drill,
    cluster: Cluster,
    *,
    rate: int | None = None,
    profile: str | None = None,
    clients: int | None = None,
    client_rate: int | None = None,
    client_keys: int | None = None,
    seed: int | None = None,
    baseline_s: float | None = None,
    destroy_data: str = "",
    say: Callable[[str], None] = lambda text: None,
    pause: Callable[[], None] | None = None,
    show: Callable[[Scene], AbstractContextManager[None]] = lambda scene: nullcontext(),
    **options: str | None,
) -> Verdict:
    """Run a drill on a cluster and give its verdict. Brings the cluster up if nothing of it runs, and leaves it up.

    `rate` is in writes per second on each of the streams that measure the outage, 1 to 10,000. `profile` is what
    further `clients` do (the drill's own if None; one client a member), each `client_rate` operations per second,
    on `client_keys` keys that they share (20 if None). Rates that are None are the profile's: 100 and 20 for most (see
    `etcdops.workload.profiles.pace_of`).

    `seed` repeats an earlier run's choices. `baseline_s` is the fault-free time before the fault from which the noise
    floor is taken (3 s if None); it ends once as much has been acknowledged as a verdict needs. `destroy_data` names
    the cluster, for a drill that destroys the data of others in it. `say` gets a line for each step, `pause` is called
    between steps. `show` is entered with the scene once traffic runs, and left before anything is checked (see
    `etcdops.report.live`). Further options are the drill's own.

    Raises SpecError or Refused before anything is touched. A steady state that is not met gives the verdict "aborted",
    healing that fails gives "stuck". Interrupted (and KeyboardInterrupt) is raised again once the cluster is healed.
    """
    chosen = drill.options(options)
    refuse(drill, cluster, chosen)
    if profile is not None and profile not in PROFILES:
        raise SpecError(f"there is no profile {profile!r}", remedy=f"Choose one of {', '.join(PROFILES)}.")
    seed = secrets.randbelow(2**31) if seed is None else seed
    pace = pace_of(profile or drill.profile)
    asked = _Asked(
        pace.rate if rate is None else rate,
        profile or drill.profile,
        len(cluster.record.members) if clients is None else clients,
        pace.client_rate if client_rate is None else client_rate,
        _KEYS if client_keys is None else client_keys,
        pace.deadline_s,
    )
    with cluster.locked(f"drill {drill.name}", progress=say):
        _heal_dead_run(cluster, say)
        refuse_unfinished(cluster)
        if set(cluster.runtime.states(cluster.record).values()) == {"stopped"}:
            say(f"cluster {cluster.name} is down: bringing it up")
            cluster.up_locked(progress=say)
        if drill.destroys and destroy_data != cluster.name:
            _refuse_foreign_keys(drill, cluster)
        baseline_s = BASELINE_S if baseline_s is None else baseline_s
        run = _Run(drill, cluster, chosen, asked, seed=seed, baseline_s=baseline_s, say=say, pause=pause, show=show)
        return run.go()


class _Asked(NamedTuple):
    """What traffic was asked for."""

    rate: int
    profile: str
    clients: int
    client_rate: int
    keys: int
    deadline_s: float


def refuse(drill: Drill, cluster: Cluster, options: dict[str, str]) -> None:
    """Raise Refused where a drill, with all of its options, cannot or must not run on a cluster. Changes nothing."""
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
    if reason := drill.needs(cluster.runtime, **options) or drill.fits(cluster.record):
        raise Refused(f"{drill.name} cannot run here: {reason}")


def _refuse_foreign_keys(drill: Drill, cluster: Cluster) -> None:
    """Refuse a drill that destroys data while keys exist that are not ours."""
    name = cluster.name
    with wire.Connection(cluster.record.members[0].client_url, cluster.record.spec.tls) as connection:
        there = [
            connection.range(start, end, timeout_s=10.0, count_only=True).count
            for start, end in ((b"\0", OURS), (wire.prefix_end(OURS), b"\0"))
        ]
    if sum(there):
        raise Refused(
            f"{drill.name} destroys data, and {name} holds {sum(there)} keys outside of {OURS.decode()}",
            remedy=f"Use another cluster, or say that they may go: --destroy-data {name}",
        )


def _heal_dead_run(cluster: Cluster, say: Callable[[str], None]) -> None:
    fault = cluster.store.unhealed(cluster.name)
    if fault is not None and dead(fault):
        say(f"healing first what run {fault.run} has left")
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
        asked: _Asked,
        *,
        seed: int,
        baseline_s: float,
        say: Callable[[str], None],
        pause: Callable[[], None] | None,
        show: Callable[[Scene], AbstractContextManager[None]],
    ) -> None:
        self.drill = drill
        self.show = show
        self.cluster = cluster
        self.options = options
        self.asked = asked
        self.seed = seed
        self.baseline_s = baseline_s
        self.say = say
        self.id = f"{datetime.now():%Y%m%d-%H%M%S}-{drill.name}-{secrets.token_hex(2)}"
        self.folder: Path = cluster.store.make_dir(cluster.store.runs / self.id)
        self.max_s = 3600.0 if pause else 600.0
        self.began_ns = time.monotonic_ns()
        self.journal = Journal(self.folder / "journal.jsonl")
        self.checks: list[Check] = []
        self.windows = 0
        self.logs = MemberLogs(cluster)
        self.window_folder = self.folder
        self.traffic: dict[str, object] = {}
        self.last_id = 0
        self.info = self._info()
        self.scene = Scene(
            cluster,
            self.id,
            self.folder,
            self.journal,
            steps=drill.steps,
            seed=seed,
            say=say,
            pause=pause,
            open_window=self._open,
            window_closed=self._closed,
            keep_log=self.logs.keep_aside,
        )

    def go(self) -> Verdict:
        """Run it. Whatever happens, the cluster is healed and the folder holds a verdict."""
        write_run(self.info, self.folder)
        for choice in self.drill.choices:
            self.say(choice.tell(self.options[choice.name]))
        with self.journal:
            problem = self._steady_state()
            if problem:
                self.journal.note("aborted", detail=problem)
                self.checks.append(Check("steady state", "failed", problem))
                return self._verdict("aborted")
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
                return self._unfinished(error.in_full)

    def _forget_late(self, judged: Judged) -> None:
        """Delete what writes of unknown outcome have left since, if some may still be under way."""
        if judged.writes.unknown > judged.writes.recovered and judged.faults:
            since_s = (time.monotonic_ns() - max(fault.heal_ns for fault in judged.faults)) / 1e9
            forget_keys(self.cluster, self.id, quiet_s=max(late_s(self.cluster) - since_s, 0.0))

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
        why = why.rstrip(".")
        self.say(f"{why}; {self.cluster.name} is healed: every member runs and serves")
        self.checks.append(Check("ran to its end", "inconclusive", f"{why}; healed"))
        return self._verdict("inconclusive")

    def _stuck(self, error: HealFailed) -> Verdict:
        self.journal.note("stuck", detail=str(error))
        self.checks.append(Check("healed", "failed", error.in_full))
        return self._verdict("stuck")

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

    def _info(self) -> RunInfo:
        record = self.cluster.record
        return RunInfo(
            schema=1,
            run=self.id,
            drill=self.drill.name,
            options=self.options,
            seed=self.seed,
            rate=self.asked.rate,
            profile=self.asked.profile,
            clients=self.asked.clients,
            client_rate=self.asked.client_rate,
            client_keys=self.asked.keys,
            baseline_s=self.baseline_s,
            minimum=Minimum(*self.drill.minimum),
            failover_rule=failover_rule(self._plan(self.folder, 0)),
            cluster=record.spec.name,
            runtime=record.runtime,
            etcd_version=record.etcd_version,
            binary=record.binary or record.image,
            known_bad=_known_bad(record.etcd_version),
            timing=record.spec.timing,
            members=tuple(m.name for m in record.members),
            command=tuple(sys.argv),
            python=platform.python_version(),
            kernel=f"{platform.system()} {platform.release()}",
            cpus=os.cpu_count() or 0,
            began=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            began_ns=self.began_ns,
        )

    def _plan(self, folder: Path, watch_from: int) -> TrafficPlan:
        record = self.cluster.record
        return TrafficPlan(
            run=self.id,
            # The traffic's process has no forwards of its own: these live as long as the drill.
            endpoints={m.name: reach.through(m.client_url) for m in record.members},
            output=str(folder / "history.jsonl"),
            tls=record.spec.tls,
            rate=self.asked.rate,
            max_s=self.max_s,
            profile=self.asked.profile,
            clients=self.asked.clients,
            client_rate=self.asked.client_rate,
            keys=self.asked.keys,
            seed=self.seed,
            watch_from=watch_from,
            first_id=self.last_id + 1,
            **{"deadline_s": self.asked.deadline_s, **self.drill.traffic(**self.options), **self.traffic},
        )

    def _open(self, restored: Restored | None, traffic: Mapping[str, object]) -> Window:
        """Open the next window; after the first one, in a folder of its own, and with ids that were not used before."""
        self.windows += 1
        folder = self.folder
        if self.windows > 1:
            self.logs.window_opened()
            self.last_id = max((op.id for op in read_history(self.window_folder / "history.jsonl")), default=0)
            folder = self.cluster.store.make_dir(self.folder / f"window-{self.windows}")
        self.window_folder = folder
        self.traffic = dict(traffic)
        return Window(self.cluster, self.id, folder, self.journal, self._plan, number=self.windows, restored=restored)

    # -- the run itself

    def _judged(self) -> Verdict:
        scene = self.scene
        before = fsyncs(self.cluster)
        with ExitStack() as stack:
            stack.callback(scene.abandon)
            scene.open_window()
            stack.enter_context(self.show(scene))
            plan = scene.window.plan
            self.say(
                f"traffic: {len(plan.streams)} streams of {plan.rate}/s each (a write stream for each member, a write"
                f" and a read stream that fail over), {plan.clients} clients of {plan.client_rate}/s each"
                f" ({plan.profile}), a watch through each member; {self.baseline_s:g} s without a fault first"
            )
            self._wait_baseline()
            try:
                self.drill.body(scene, **self.options)
            except Deviation as deviation:
                self.journal.note("deviated", detail=deviation.check.detail)
                (scene.window.checks if scene.is_open else self.checks).append(deviation.check)
            if scene.is_open:
                self._go_on()
                # Now already, for a member that is gone by the end.
                self.logs.keep(self.window_folder)
                scene.close_window()
        self.say("checking")
        self.logs.keep(self.window_folder)
        self.checks.append(self._steady_again())
        write_disks(disks_of(self.cluster, before), self.folder)
        forget_keys(self.cluster, self.id, quiet_s=0.0)
        judged = judge_folder(self.folder, self.info)
        self._keep_lost(judged)
        self._forget_late(judged)
        self.cluster.store.clear_unhealed(self.cluster.name)
        self.checks = [self.checks[0], *judged.checks, *self.checks[1:]]
        return self._verdict(combine(self.checks), judged)

    def _wait_baseline(self) -> None:
        """Let the traffic run without a fault, until as much has been acknowledged as a verdict needs."""
        # A phase of its own within the heartbeat, so that repeated runs do not all hit the same instant.
        phase_s = random.Random(self.seed).random() * self.cluster.record.spec.timing.heartbeat_ms / 1000
        time.sleep(self.baseline_s + phase_s)
        deadline = time.monotonic() + _BASELINE_MORE_S
        while time.monotonic() < deadline:
            writes, kinds = self._acknowledged()
            if writes >= self.info.minimum.before and all(kinds.values()):
                return
            time.sleep(0.05 + phase_s)

    def _go_on(self) -> None:
        """Let the traffic go on for a while, until twice as much has been acknowledged as a verdict needs."""
        deadline = time.monotonic() + _AFTER_MOST_S
        writes, kinds = self._acknowledged()
        wanted = writes + 2 * self.info.minimum.after
        # What is answered next may have been asked before.
        asked = 1 + self.info.clients
        time.sleep(_AFTER_S)
        while time.monotonic() < deadline:
            writes, now = self._acknowledged()
            if writes >= wanted and all(now[kind] >= before + asked for kind, before in kinds.items()):
                return
            time.sleep(0.05)

    def _acknowledged(self) -> tuple[int, dict[str, int]]:
        """Give how many writes of the probes have been acknowledged, and operations of each kind that must occur."""
        progress = self.scene.traffic.progress()
        probes = (PINNED, FAILOVER_WRITE)
        writes = sum(counts.ok for name, counts in progress.streams.items() if name.startswith(probes))
        promised = promised_kinds(self.info)
        return writes, {kind: progress.kinds[kind].ok if kind in progress.kinds else 0 for kind in promised}

    def _steady_again(self) -> Check:
        problem = self._steady_state()
        if problem:
            return Check("steady state again", "failed", problem)
        return Check("steady state again", "passed", "every voter serves and one member leads, afterwards")

    def _keep_lost(self, judged: Judged) -> None:
        """List the acknowledged writes that a restore undid, in the format of the history."""
        if judged.undone:
            with HistoryWriter(self.folder / UNDONE, self.id) as writer:
                for operation in judged.undone:
                    writer.append(operation)

    def _closed(self) -> None:
        self.logs.keep(self.window_folder)
        self.logs.window_closed()

    # -- after

    def _verdict(self, verdict: str, judged: Judged | None = None) -> Verdict:
        made = assemble(self.info, self.folder, verdict, self.checks, judged, self.journal.entries)
        write(made, self.folder)
        write_page(made, self.info)
        return made


def _known_bad(version: str) -> tuple[str, ...]:
    """Give what the checks may find on a version that is etcd's own doing."""
    if not version:
        return ()
    bad = versions.findings(versions.parse_version(version))
    return tuple(f"{one.effect} ({one.source})" for one in bad if one.severity == "unsafe" or one.seen_as)
