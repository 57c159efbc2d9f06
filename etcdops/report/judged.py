"""The verdict of a run from its folder alone: at the end of a drill and, the same, at any time later."""

from __future__ import annotations

from collections.abc import Sequence
from operator import add
from pathlib import Path
from typing import NamedTuple

import msgspec

from etcdops.errors import SpecError, StateError
from etcdops.report.runinfo import RunInfo, promised_kinds
from etcdops.verify import Check
from etcdops.verify.acknowledged import Writes
from etcdops.verify.epochs import compare_epochs
from etcdops.verify.judging import judge
from etcdops.verify.kept import read_operations, read_recorded
from etcdops.verify.one_leader import check_one_leader
from etcdops.verify.recorded import OBSERVED, Fault, Figure, Observed, Recorded
from etcdops.verify.witness import Witness
from etcdops.workload.calls import Calls
from etcdops.workload.deliveries import events_file, read_extra
from etcdops.workload.history import DRILL, Operation, pinned_stream, read_history
from etcdops.workload.lines import found, uncollected
from etcdops.workload.outage import Outage, fault_window, measure
from etcdops.workload.prediction import Prediction, predict_distribution

__all__ = [
    "BETWEEN",
    "UNDONE",
    "Judged",
    "is_closed",
    "judge_folder",
    "load",
    "load_history",
    "load_observed",
    "windows",
]

_TRAFFIC = "traffic"

#: In a run's folder: the acknowledged writes that a restore undid, and what a drill wrote before it had a new window.
UNDONE = "undone-by-restore.jsonl"
BETWEEN = "between"


class Judged(NamedTuple):
    """What a run's records say: its checks, what became of its writes, its outage, and what a restore undid."""

    checks: tuple[Check, ...]
    writes: Writes
    outage: Outage | None
    faults: tuple[Fault, ...]
    figures: tuple[Figure, ...]
    undone: tuple[Operation, ...] = ()


def windows(folder: Path) -> list[Path]:
    """Give the folders of a run's windows, in order: the run's own, and one for each store after it."""
    return [folder, *sorted(each for each in folder.glob("window-*") if each.is_dir())]


def is_closed(folder: Path) -> bool:
    """Whether every window of a run came to its end."""
    return all((window / OBSERVED).exists() for window in windows(folder))


def load(folder: Path) -> Recorded:
    """Give what a window's folder holds. Raises StateError for what is missing or damaged, when it is looked at."""
    observed = load_observed(folder)
    if not found(folder / "history.jsonl"):
        raise StateError(
            f"{folder / 'history.jsonl'} is missing, and without it nothing can be verified",
            remedy="It was written before the window was closed: get it from where the run was made.",
        )
    events = {member: events_file(folder, member) for member in observed.members}
    there = {member: path for member, path in events.items() if found(path)}
    return read_recorded(observed, _histories(folder), there, read_extra(folder))


def _histories(folder: Path) -> list[Path]:
    """Give where a window's operations lie: the traffic's, and the drill's own."""
    return [folder / name for name in ("history.jsonl", "own.jsonl") if found(folder / name)]


def load_observed(folder: Path) -> Observed:
    """Give what a drill saw by itself in a window. Raises StateError if that is missing or damaged."""
    path = folder / OBSERVED
    try:
        return msgspec.json.decode(path.read_bytes(), type=Observed)
    except OSError as error:
        raise StateError(
            f"cannot read {path}: {error.strerror}",
            remedy="The run was ended before its window was closed; its record cannot be verified.",
        ) from error
    except msgspec.MsgspecError as error:
        raise StateError(f"{path} is damaged: {error}") from error


def load_history(folder: Path) -> list[Operation]:
    """Give all operations of a window, the traffic's and the drill's own, in the order in which they ended."""
    return read_operations(_histories(folder))


def judge_folder(folder: Path, info: RunInfo) -> Judged:
    """Verify a run: every check over every window, its writes in sum, and its outage. Raises StateError."""
    with uncollected():
        return _judge(folder, info)


def _judge(folder: Path, info: RunInfo) -> Judged:
    checks: list[Check] = []
    total = Writes(0, 0, 0, 0, 0, 0)
    outages: list[Outage] = []
    faults: list[Fault] = []
    figures: list[Figure] = []
    undone: list[Operation] = []
    last: tuple[Recorded, Witness] | None = None
    for number, window in enumerate(windows(folder), start=1):
        recorded = load(window)
        observed = recorded.observed
        found_checks, writes, witness = _judge_window(window, recorded, info)
        suffix = f" (window {number})" if number > 1 else ""
        checks += [Check(check.name + suffix, check.result, check.detail) for check in found_checks]
        total = _sum(total, writes)
        faults += observed.faults
        figures += observed.figures
        if observed.restored and last:
            epoch = compare_epochs(*last, recorded, _between(folder))
            checks.append(epoch.check)
            figures += epoch.figures
            undone += epoch.undone
        last = recorded, witness
        if outage := _outage(recorded, info):
            outages.append(outage)
    # A drill lists them as they end.
    faults.sort(key=lambda fault: fault.inject_ns)
    return Judged(tuple(checks), total, outages[0] if outages else None, tuple(faults), tuple(figures), tuple(undone))


def _between(folder: Path) -> list[Operation]:
    """Give what the drill wrote by itself after a restore, before the next window was opened."""
    return [op for path in sorted((folder / BETWEEN).glob("*.jsonl")) for op in read_history(path)]


def _judge_window(folder: Path, recorded: Recorded, info: RunInfo) -> tuple[list[Check], Writes, Witness]:
    observed = recorded.observed
    checks = list(observed.checks) + list(observed.rejoined)
    if not observed.complete:
        checks.append(Check("record", "inconclusive", "some operations were abandoned without an answer"))
    judgement = judge(recorded, logs=_logs(folder, observed), minimum=info.minimum, kinds=promised_kinds(info))
    checks += judgement.checks
    patience_ns = 2 * info.timing.election_ms * 1_000_000
    checks.append(check_one_leader(observed.claims, until_ns=observed.until_ns, patience_ns=patience_ns))
    return checks, judgement.writes, judgement.witness


def _sum(first: Writes, second: Writes) -> Writes:
    return Writes(*map(add, msgspec.structs.astuple(first), msgspec.structs.astuple(second)))


def _logs(folder: Path, observed: Observed) -> dict[str, list[str] | None]:
    lines: dict[str, list[str] | None] = {}
    # Members that were there for a while have logs, too.
    for member in (*observed.members, *sorted(path.stem for path in folder.glob("*.log"))):
        if member == _TRAFFIC or member in lines:
            continue
        try:
            lines[member] = (folder / f"{member}.log").read_text(errors="replace").splitlines()
        except OSError:
            lines[member] = None
    return lines


def _outage(recorded: Recorded, info: RunInfo) -> Outage | None:
    """Measure the outage over all faults of a window, from the first that began to the last that was healed.

    Where every member was hit at some time, as in a restart of one after the other, none has survived it all. Then the
    headline and what goes with it are the worst that was measured over any one of the faults alone.
    """
    faults = recorded.observed.faults
    calls = recorded.columns.calls(without=DRILL)
    if not faults or not len(calls.stream):
        return None
    how = next((fault.predicts for fault in faults if fault.predicts), "")
    try:
        prediction = predict_distribution(info.timing, len(info.members), how) if how else None
        whole = _measure(recorded, calls, faults, info, prediction)
        if whole.write_ms is not None:
            return whole
        each = [_measure(recorded, calls, _meanwhile(fault, faults), info, prediction) for fault in faults]
    except SpecError:
        # Nothing was sent while it acted, which is for the check of activity to say.
        return None
    worst = max(each, key=lambda outage: outage.write_ms or 0.0)
    elected = next((outage for outage, fault in zip(each, faults, strict=True) if fault.predicts), whole)
    # What is known of the time without any fault is known of all streams alike.
    pinned = [stream for name, stream in whole.streams.items() if name in map(pinned_stream, info.members)]
    return msgspec.structs.replace(
        whole,
        write_ms=worst.write_ms,
        write_gap=worst.write_gap,
        worst_member=worst.worst_member,
        unavailable_ms=worst.unavailable_ms,
        watch_ms=worst.watch_ms,
        new_leader_ms=elected.new_leader_ms,
        noise_ms=max((stream.noise_ms for stream in pinned if stream.noise_ms is not None), default=None),
        noise_short=any(stream.noise_short for stream in pinned),
        resolution_ms=max((stream.resolution_ms for stream in pinned), default=None),
    )


def _meanwhile(fault: Fault, faults: Sequence[Fault]) -> list[Fault]:
    """Give the faults that acted while `fault` did, cut to that time."""
    return [
        msgspec.structs.replace(
            other, inject_ns=max(fault.inject_ns, other.inject_ns), heal_ns=min(fault.heal_ns, other.heal_ns)
        )
        for other in faults
        if other.inject_ns <= fault.heal_ns and other.heal_ns >= fault.inject_ns
    ]


def _measure(
    recorded: Recorded,
    calls: Calls,
    faults: Sequence[Fault],
    info: RunInfo,
    prediction: Prediction | None,
) -> Outage:
    inject_ns, heal_ns, affected = fault_window(faults)
    return measure(
        calls,
        inject_ns=inject_ns,
        heal_ns=heal_ns,
        rate=info.rate,
        affected=affected,
        prediction=prediction,
        deliveries=recorded.columns.arrivals(),
        claims=recorded.observed.claims,
        ids=recorded.observed.ids,
    )
