"""A lock's holders take turns, and the counter that it protects counts: what fencing is for.

Two holders at one time, as seen from outside, are expected of any lock that ends with a lease: a holder that was
paused does not know that its time is over. What must not happen is that its late write destroys another's. Without a
fencing token it does; with one (here the lock's create_revision, compared by the write itself) it cannot
(https://etcd.io/docs/v3.5/learning/why/#notes-on-the-usage-of-lock-and-lease).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from etcdops.answers import TxnResult
from etcdops.ops import Delete, Put, Txn
from etcdops.verify import Check
from etcdops.verify.columns import Columns
from etcdops.verify.recorded import Recorded
from etcdops.workload.history import Operation
from etcdops.workload.profiles.lock import counter_key, lock_key

__all__ = ["NAME", "Locks", "Lost", "Section", "check_locks", "is_fenced", "measure_locks"]

NAME = "lock"
_SHOWN = 3
_SECOND = 1_000_000_000


class Section(NamedTuple):
    """A stay in the critical section, as its client knew it: from the lock's acknowledgement to the call that freed it.

    Without such a call it lasts to the last answer that the client got in it.
    """

    stream: str
    acquired: int
    from_ns: int
    until_ns: int


class Lost(NamedTuple):
    """The write of revision `revision` set the counter to `counted` when it was `before`, and not less."""

    revision: int
    counted: int
    before: int


class Locks(NamedTuple):
    """What a run of the lock profile shows.

    `overlaps` are pairs of sections of two clients that overlap in real time. `updates` counts the writes of the
    counter that were applied, `refused` those that the fencing token kept out. `final` is what the counter was set to
    last, `began` what it was before, and `lost` are the writes that set it back.
    """

    sections: tuple[Section, ...]
    overlaps: tuple[tuple[Section, Section], ...]
    updates: int
    refused: int
    final: int
    began: int
    lost: tuple[Lost, ...]

    @property
    def lost_updates(self) -> int:
        """How many updates are gone: each should have raised the counter by one."""
        return max(self.updates - (self.final - self.began), len(self.lost))


def check_locks(recorded: Recorded, *, fenced: bool) -> Check:
    """Give the check of a run of the lock profile.

    Overlaps are told and fail nothing. With fencing, a lost update fails; without, it is told. A run in which nobody
    wrote the counter, or one client alone, is inconclusive.
    """
    seen = measure_locks(recorded)
    clients = {section.stream for section in seen.sections}
    told = (
        f"{len(seen.sections)} critical sections of {len(clients)} clients, {seen.updates} updates of the counter,"
        f" {seen.lost_updates} of them lost"
    )
    if fenced:
        told += f", {seen.refused} late ones refused by the fencing token"
    if seen.overlaps:
        told += f"; {_overlaps(seen.overlaps)}"
    else:
        told += "; no two sections overlapped"
    if seen.lost:
        told += ": " + "; ".join(
            f"at revision {each.revision} the counter was set to {each.counted} when it was {each.before}"
            for each in seen.lost[:_SHOWN]
        )
    if seen.lost and fenced:
        return Check(NAME, "failed", f"updates were lost in spite of the fencing token: {told}")
    if not seen.updates or len(clients) < 2:
        return Check(NAME, "inconclusive", f"too little happened: {told}")
    return Check(NAME, "passed", told if fenced or not seen.lost else f"{told}. That is expected without fencing")


def is_fenced(recorded: Recorded) -> bool | None:
    """Tell whether every write of the counter depended on the lock; None where the run had no lock."""
    run = recorded.observed.run
    lock, counter = lock_key(run), counter_key(run)
    if not _asked_for(recorded.columns, {lock, counter}):
        return None
    writes = [op.request for op in recorded.history if _written(op, counter) is not None]
    if not writes:
        return True if any(_written(op, lock) is not None for op in recorded.history) else None
    return all(
        isinstance(request, Txn) and any(compare.key == lock for compare in request.compares) for request in writes
    )


def _asked_for(columns: Columns, keys: set[bytes]) -> bool:
    """Tell whether any operation can be about one of these keys."""
    if keys.intersection(columns.keys):
        return True
    odd = (*columns.general.values(), *columns.failed.values())
    return any(_written(op, key) is not None for op in odd for key in keys)


def measure_locks(recorded: Recorded) -> Locks:
    """Give what a run of the lock profile shows, from the watches' log of the counter where there is one."""
    run = recorded.observed.run
    counter = counter_key(run)
    operations = sorted((op for op in recorded.history if op.code != "NOT_SENT"), key=lambda op: op.call_ns)
    sections = tuple(sorted(_sections(operations, lock_key(run)), key=lambda section: section.from_ns))
    counts = _logged(recorded, counter) or _acknowledged(operations, counter)
    began = next((_count(kv.value) for kv in recorded.base.kvs if kv.key == counter), 0) if recorded.base else 0
    lost, before = [], began
    for revision, count in sorted(counts.items()):
        if count <= before:
            lost.append(Lost(revision, count, before))
        before = count
    refused = sum(
        isinstance(op.answer, TxnResult) and not op.answer.succeeded and _written(op, counter) is not None
        for op in operations
    )
    return Locks(sections, tuple(_overlapping(sections)), len(counts), refused, before, began, tuple(lost))


def _sections(operations: Sequence[Operation], lock: bytes) -> Iterable[Section]:
    inside: dict[str, list[int]] = {}

    def left(stream: str) -> Iterable[Section]:
        if stream in inside:
            yield Section(stream, *inside.pop(stream))

    for op in operations:
        acquires = _written(op, lock) is not None
        if acquires and isinstance(op.answer, TxnResult) and op.answer.succeeded:
            yield from left(op.stream)
            inside[op.stream] = [op.id, op.return_ns, op.return_ns]
        elif op.stream in inside:
            frees = isinstance(op.request, Txn) and any(
                isinstance(inner, Delete) and inner.key == lock for inner in op.request.success
            )
            inside[op.stream][2] = op.call_ns if frees else op.return_ns
            if frees:
                yield from left(op.stream)
    for stream in list(inside):
        yield from left(stream)


def _overlapping(sections: Sequence[Section]) -> Iterable[tuple[Section, Section]]:
    open_: list[Section] = []
    for section in sections:
        open_ = [earlier for earlier in open_ if earlier.until_ns > section.from_ns]
        for earlier in open_:
            if earlier.stream != section.stream:
                yield earlier, section
        open_.append(section)


def _written(op: Operation, key: bytes) -> bytes | None:
    """Give the value that an operation writes, or would write, to `key`."""
    inner = op.request.success if isinstance(op.request, Txn) else (op.request,)
    return next((one.value for one in inner if isinstance(one, Put) and one.key == key), None)


def _logged(recorded: Recorded, counter: bytes) -> dict[int, int]:
    columns = recorded.columns
    if counter not in columns.keys:
        return {}
    row = columns.events.kv[columns.events.event]
    events = columns.kvs.take(row[columns.kvs.key[row] == columns.keys.index(counter)])
    puts = events.version != 0
    found = zip(events.modified[puts].tolist(), events.value[puts].tolist(), strict=True)
    return {revision: _count(columns.values[value]) for revision, value in found}


def _acknowledged(operations: Sequence[Operation], counter: bytes) -> dict[int, int]:
    """Give the counts by revision, of the acknowledged writes alone: a write that nobody heard of leaves no trace."""
    counts = {}
    for op in operations:
        value = _written(op, counter)
        if value is not None and op.outcome == "ok" and getattr(op.answer, "succeeded", True):
            counts[op.revision] = _count(value)
    return counts


def _count(value: bytes) -> int:
    return int(value.rpartition(b":")[2])


def _overlaps(overlaps: Sequence[tuple[Section, Section]]) -> str:
    longest = max((min(a.until_ns, b.until_ns) - b.from_ns for a, b in overlaps), default=0)
    first, second = overlaps[0]
    return (
        f"{len(overlaps)} times two clients held the lock at once, as seen from outside, for {longest / _SECOND:.3f} s"
        f" at most (first {first.stream} and {second.stream}), which a lease cannot prevent"
    )
