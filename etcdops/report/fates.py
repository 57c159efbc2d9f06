"""What became of the writes that nobody was told the end of, and which acknowledged ones are gone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from etcdops.answers import KeyValue
from etcdops.errors import EtcdopsError
from etcdops.ops import Put
from etcdops.report.judged import UNDONE, load
from etcdops.report.loading import LoadedRun
from etcdops.report.points import NotOk
from etcdops.verify.acknowledged import SET
from etcdops.verify.describing import describe
from etcdops.verify.recorded import Observed
from etcdops.workload.encoding import key_prefix, value_prefix
from etcdops.workload.history import FAILOVER_WRITE, PINNED, read_history

__all__ = ["Fates", "Gone", "find_fates"]


class Gone(NamedTuple):
    """An acknowledged write that is gone: lost, or undone by a restore, and how it is told."""

    id: int
    restored: bool
    text: str


class Fates(NamedTuple):
    """`applied` and `not_applied` are ids of writes of unknown outcome; of all others the final state does not tell."""

    gone: tuple[Gone, ...]
    applied: frozenset[int]
    not_applied: frozenset[int]

    def of(self, number: int) -> str:
        """Tell what became of a write of unknown outcome."""
        if number in self.applied:
            return "was applied"
        return "not applied by the end" if number in self.not_applied else "the final state does not tell"


def find_fates(run: LoadedRun, not_ok: Sequence[NotOk], problems: list[str]) -> Fates:
    """Give what the run's folder tells of its unknown and lost writes.

    Every value has the id of the operation that wrote it, so that what is in the final state says which were applied.
    What a write with a key of its own has not left there was not applied by then.
    """
    written: set[int] = set()
    closed = [each for _, each in run.windows if each and each.final]
    for observed in closed:
        written |= _writers(observed)
    unknown = [op for op in not_ok if op.outcome == "unknown"]
    whole = bool(closed) and len(closed) == len(run.windows) == 1
    own = (PINNED, FAILOVER_WRITE)
    alone = [op.id for op in unknown if op.stream.startswith(own) or f'"@{SET}/' in op.request]
    return Fates(
        gone=tuple(_gone(run, problems)),
        applied=frozenset(op.id for op in unknown if op.id in written),
        not_applied=frozenset(number for number in alone if whole and number not in written),
    )


def _writers(observed: Observed) -> set[int]:
    """Give the operations whose values are in a final state."""
    prefix = value_prefix(observed.run).encode()
    found = set()
    for index in {final.state for final in observed.final.values() if final.state >= 0}:
        for kv in observed.states[index].kvs:
            number = kv.value.removeprefix(prefix)
            if kv.value.startswith(prefix) and number.isdigit():
                found.add(int(number))
    return found


def _gone(run: LoadedRun, problems: list[str]) -> list[Gone]:
    found: list[Gone] = []
    origin = run.info.began_ns
    undone = run.folder / UNDONE
    try:
        if undone.exists():
            found += [Gone(op.id, True, describe(op, origin)) for op in read_history(undone)]
        if run.verdict.writes.lost:
            for window, observed in run.windows:
                if observed:
                    found += _lost(window, observed, origin)
    except EtcdopsError as error:
        problems.append(str(error))
    return found


def _lost(window: Path, observed: Observed, origin_ns: int) -> list[Gone]:
    """Find the lost writes of a window again: the verdict has their number alone."""
    from etcdops.verify.witness import witness

    recorded = load(window)
    lost = set(witness(recorded).lost)
    own = (PINNED, FAILOVER_WRITE)
    prefix = f"{key_prefix(observed.run)}{SET}/".encode()
    states: list[dict[bytes, KeyValue]] = [
        {kv.key: kv for kv in observed.states[final.state].kvs} for final in observed.final.values() if final.state >= 0
    ]
    found = []
    for op in recorded.history:
        if op.outcome != "ok" or not op.may_write:
            continue
        missing = False
        if isinstance(op.request, Put) and (op.stream.startswith(own) or op.key.startswith(prefix)):
            beyond = 0 < observed.tombstone < op.revision
            missing = not beyond and any(
                op.key not in state or state[op.key].value != op.request.value for state in states
            )
        if missing or op.id in lost:
            found.append(Gone(op.id, False, describe(op, origin_ns)))
    return found
