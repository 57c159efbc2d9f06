"""Writes the folder of a run of as many operations as are asked for, with an outage: for tests and benchmarks.

`python scripts/big_run.py FOLDER COUNT`. It is made up, and yet all in it agrees: the outage that its verdict tells is
measured from its operations as a drill's is.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import msgspec

from etcdops.answers import KeyValue, PutResult
from etcdops.ops import Put
from etcdops.report.journal import Entry
from etcdops.report.runinfo import RunInfo, write_run
from etcdops.report.verdict import ClusterInfo, Event, FaultInfo, Verdict, write
from etcdops.spec import Timing
from etcdops.verify import Check
from etcdops.verify.acknowledged import Writes
from etcdops.verify.activity import Minimum
from etcdops.verify.members_agree import MemberHash
from etcdops.verify.recorded import OBSERVED, Claim, Fault, Final, Observed, State
from etcdops.workload.history import HistoryWriter, Operation, key_prefix, pinned_stream, value_prefix
from etcdops.workload.lines import compress
from etcdops.workload.outage import measure
from etcdops.workload.prediction import predict_distribution

__all__ = ["MEMBERS", "operations", "write_big_run"]

MEMBERS = ("ironman", "thor", "deadpool")
#: Milliseconds and seconds, in nanoseconds.
MS, S = 1_000_000, 1_000_000_000
BEGAN = 5_000 * S


def operations(
    run: str, count: int, *, seed: int = 1, outage_s: float = 1.6, members: tuple[str, ...] = MEMBERS, error: str = ""
) -> list[Operation]:
    """Give so many writes over ten seconds, through each member in turn; the second one is killed after four.

    While nobody leads, writes through it fail, and those through the others are not answered; what is sent later is.
    """
    chance = random.Random(seed)
    step = 10 * S // max(count, 1)
    dies, leads = BEGAN + 4 * S, BEGAN + 4 * S + int(outage_s * S)
    back = min(leads + S, BEGAN + 9 * S)
    found = []
    revision = 1
    for number in range(1, count + 1):
        member = members[number % len(members)]
        stream = pinned_stream(member)
        scheduled = BEGAN + number * step
        call = scheduled + chance.randrange(5_000, 200_000)
        took = int(MS * chance.lognormvariate(0.8, 0.5))
        key = f"{key_prefix(run)}{stream}/{number:08}".encode()
        value = f"{value_prefix(run)}{number}".encode()
        outcome, code, told = "ok", "", ""
        if member == members[1] and dies <= call + took and call < back:
            outcome, code, told = "failed", "UNAVAILABLE", error or "Connection refused"
        elif call + took >= dies and call < leads:
            if leads - call > S // 3:
                outcome, code, took = "unknown", "DEADLINE_EXCEEDED", S // 3
            else:
                took += leads - call
        good = outcome == "ok"
        revision += good
        fields: dict[str, Any] = {"revision": revision, "answer": PutResult(revision, None)} if good else {}
        if not good:
            fields = {"code": code, "error": told}
        request = Put(key, value)
        found.append(
            Operation(number, stream, number, member, request, scheduled, call, call + took, outcome, **fields)  # type: ignore[arg-type]
        )
    return sorted(found, key=lambda op: op.return_ns)


def write_big_run(
    folder: Path,
    count: int,
    *,
    run: str = "20260102-030405-failed-leader-1a2b",
    seed: int = 1,
    outage_s: float = 1.6,
    members: tuple[str, ...] = MEMBERS,
    checks: tuple[Check, ...] = (),
    lost: int = 0,
    text: str = "",
    etcd_version: str = "3.5.30",
) -> Verdict:
    """Write a run's folder, and give its verdict. `text` stands wherever a user, etcd or a log may say anything."""
    folder.mkdir(parents=True, exist_ok=True)
    history = operations(run, count, seed=seed, outage_s=outage_s, members=members, error=text)
    with HistoryWriter(folder / "history.jsonl", run) as writer:
        for op in history:
            writer.append(op)
    compress(folder / "history.jsonl")
    good = [op for op in history if op.outcome == "ok"]
    end = history[-1].return_ns if history else BEGAN
    dies, healed = BEGAN + 4 * S, BEGAN + int((4 + outage_s + 1) * S)
    leads = BEGAN + int((4 + outage_s) * S)
    fault = Fault(f"kill{text}", members[1], dies, dies + 9 * MS, healed - 200 * MS, healed, "kill")
    kept = good[: len(good) - lost]
    state = State(len(good) + 1, tuple(_kv(op) for op in kept))
    claims = [Claim(BEGAN + 90 * MS, name, 2, 12) for name in members]
    claims += [Claim(leads - 5 * MS, members[2], 3, 13), Claim(leads, members[0], 3, 13)]
    claims += [Claim(healed + 50 * MS, members[1], 3, 13)]
    observed = Observed(
        run=run,
        members=members,
        states=(State(1, ()), state),
        base=0,
        tombstone=len(good) + 1,
        tombstone_ns=end,
        final={name: Final(1) for name in members},
        hashes={name: MemberHash(0xC0FFEE, len(good) + 1, -1, "") for name in members},
        faults=(fault,),
        claims=tuple(claims),
        ids={name: 11 + place for place, name in enumerate(members)},
        until_ns=end,
    )
    (folder / OBSERVED).write_bytes(msgspec.json.encode(observed))
    info = _info(run, seed, members, etcd_version, text)
    write_run(info, folder)
    entries = _entries(members, dies, leads, healed, text)
    (folder / "journal.jsonl").write_bytes(b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))
    for name in members:
        line = {"level": "warn", "ts": "2026-01-02T03:04:10.500000Z", "msg": f"lost leader {text}", "detail": text}
        (folder / f"{name}.log").write_bytes(msgspec.json.encode(line) + b"\n")
    outage = measure(
        history,
        inject_ns=dies,
        heal_ns=healed,
        rate=count / 30,
        affected=(members[1],),
        prediction=predict_distribution(info.timing, len(members), "kill"),
        claims=claims,
        ids=observed.ids,
    )
    failed, unknown = (sum(op.outcome == each for op in history) for each in ("failed", "unknown"))
    told = checks or (Check("steady state", "passed", "all well"), Check("logs", "passed", f"no panic {text}"))
    shown = FaultInfo(fault.kind, fault.member, 4000.0, (healed - BEGAN) / MS)
    verdict = Verdict(
        schema=1,
        run=run,
        drill="failed-leader",
        verdict="deviated" if lost or any(check.result == "failed" for check in told) else "passed",
        seed=seed,
        cluster=ClusterInfo(f"lab{text}", "process", etcd_version, members),
        fault=shown,
        outage=outage,
        writes=Writes(len(good), lost, failed, unknown, 0, 0),
        checks=told,
        timeline=tuple(Event((entry.t_ns - BEGAN) / MS, entry.event, entry.member, entry.detail) for entry in entries),
        report=str(folder / "verdict.md"),
        profile="mixed",
        faults=(shown,),
    )
    write(verdict, folder)
    return verdict


def _kv(op: Operation) -> KeyValue:
    assert isinstance(op.request, Put)
    return KeyValue(op.request.key, op.request.value, op.revision, op.revision, 1, 0)


def _info(run: str, seed: int, members: tuple[str, ...], version: str, text: str) -> RunInfo:
    return RunInfo(
        schema=1,
        run=run,
        drill="failed-leader",
        options={"how": "kill"},
        seed=seed,
        rate=100,
        profile="mixed",
        clients=3,
        client_rate=20,
        baseline_s=3.0,
        minimum=Minimum(10, 1, 10),
        failover_rule=f"the next member in order {text}",
        cluster=f"lab{text}",
        runtime="process",
        etcd_version=version,
        binary=f"/usr/bin/etcd{text}",
        known_bad=(),
        timing=Timing(),
        members=members,
        command=("/usr/bin/etcdops", "failed-leader", text),
        python="3.11.7",
        kernel=f"Linux 6.1 {text}",
        cpus=2,
        began="2026-01-02T03:04:05.000+00:00",
        began_ns=BEGAN,
    )


def _entries(members: tuple[str, ...], dies: int, leads: int, healed: int, text: str) -> list[Entry]:
    def note(t_ns: int, event: str, member: str = "", detail: str = "") -> Entry:
        second = 5 + (t_ns - BEGAN) / S
        return Entry(t_ns, f"2026-01-02T03:04:{second:06.3f}+00:00", event, member, detail)

    return [
        note(BEGAN + 100 * MS, "traffic"),
        note(dies - MS, "step", detail=f"take {members[1]} away: kill {text}"),
        note(dies, "inject", members[1], "kill (SIGKILL)"),
        note(dies + 9 * MS, "injected", members[1], "seen to be stopped"),
        note(leads, "new-leader", members[2], "term 3"),
        note(healed - 200 * MS, "heal", members[1], "start"),
        note(healed, "healed", members[1]),
        note(BEGAN + 10 * S, "traffic-ended"),
    ]


if __name__ == "__main__":
    write_big_run(Path(sys.argv[1]), int(sys.argv[2]))
