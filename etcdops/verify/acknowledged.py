"""No acknowledged write is lost: every one of them is in the final state, as read through every member.

The set check of Jepsen's etcd tests (https://github.com/jepsen-io/etcd): writes of a stream that has a key for each
write, and that nothing deletes. What was acknowledged must be there, what definitely failed must not, and what is
unknown may be either. Of all other writes the revision witness tells whether they are in the log.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from etcdops.answers import RangeResult
from etcdops.ops import Put, Range, in_range
from etcdops.verify import Check
from etcdops.verify.columns import Columns
from etcdops.verify.describing import instant, some
from etcdops.verify.recorded import Recorded
from etcdops.verify.shapes import ABSENT, EFFECT, LOCAL, OLD
from etcdops.verify.witness import Witness, witness
from etcdops.workload.encoding import key_prefix
from etcdops.workload.history import FAILOVER_WRITE, PINNED, Operation

__all__ = ["NAME", "SET", "Writes", "check_acknowledged"]

NAME = "acknowledged writes"

#: The stream of the profile "set": a key for each write, as the probes' streams have.
SET = "set"

State = Mapping[bytes, bytes]

_LEFT = ("failed", "unknown")
_FAR = np.iinfo(np.int64).max


class Writes(msgspec.Struct, frozen=True):
    """How many writes a run made and what became of them, of every kind that makes a revision.

    `lost` were acknowledged and are missing, or have another value, through at least one member, or own no revision of
    the log. `recovered` are those of the `unknown` that were applied. `not_sent` are part of `failed`.
    """

    acknowledged: int
    lost: int
    failed: int
    unknown: int
    recovered: int
    not_sent: int


def check_acknowledged(recorded: Recorded, found: Witness | None = None) -> tuple[Check, Writes]:
    """Give the check, and the counts for the verdict; `found` saves the witness from being worked out again.

    The check fails for acknowledged writes that are lost, reads that did not see an earlier one, and writes that failed
    and are there. It is inconclusive when the final state could not be read through a member, when nothing was
    acknowledged, and when the streams' keys hold what no record explains.
    """
    found = found or witness(recorded)
    columns = recorded.columns
    ops = columns.operations
    not_ok = columns.not_ok()
    puts = _elements(recorded, not_ok)
    final = {member: recorded.final(member) for member in recorded.observed.final}
    states: dict[str, State] = {
        member: {kv.key: kv.value for kv in state.kvs} for member, state in final.items() if state is not None
    }

    ours = {
        outcome: [op for number, op in not_ok.items() if op.outcome == outcome and number in puts] for outcome in _LEFT
    }
    answered = [put for number, put in puts.items() if number not in not_ok]
    # Beyond the tombstone lies what the final state, which is of its revision, cannot hold.
    until = recorded.observed.tombstone
    acknowledged = [put for put in answered if not 0 < until < int(ops.revision[put.number])]
    acknowledged += _closing(columns, until, puts)
    through_of = {
        put.number: through
        for put in acknowledged
        if (through := [member for member, state in states.items() if state.get(put.key) != put.value])
    }
    missing = {
        op.id: (op, through)
        for op, through in zip(columns.some_operations(through_of), through_of.values(), strict=True)
    }
    not_logged = columns.some_operations(np.flatnonzero(np.isin(ops.id, found.lost)).tolist())
    unowned = [op for op in not_logged if op.may_write and op.id not in missing]
    applied = [op for op in ours["failed"] if any(op.key in state for state in states.values())]
    changed = [
        op for op in ours["unknown"] if any(state.get(op.key, _value(op)) != _value(op) for state in states.values())
    ]
    recovered = {op.id for op in ours["unknown"] if any(op.key in state for state in states.values())}
    recovered |= set(found.recovered)
    stale = _stale(columns, acknowledged)

    writes = _writes(columns, not_ok.values(), len(missing) + len(unowned), len(recovered))
    origin = int(ops.scheduled.min(initial=_FAR)) if len(ops.id) else 0
    problems: list[str] = []
    if missing or unowned:
        told = [_describe_lost(op, through, states, origin) for op, through in missing.values()]
        told += [_describe_unowned(op, origin) for op in unowned]
        problems.append(f"{len(told)} of {writes.acknowledged} acknowledged writes are lost: {some(told)}")
    if stale:
        problems.append(f"{len(stale)} reads did not see a write acknowledged before they were called: {some(stale)}")
    if applied:
        shown = [f"{op.key.decode()} ({op.code}, sent {instant(op.call_ns, origin)})" for op in applied]
        problems.append(f"{len(applied)} writes that definitely failed were applied: {some(shown)}")
    if changed:
        shown = [op.key.decode() for op in changed]
        problems.append(f"{len(changed)} keys hold a value that nobody wrote: {some(shown)}")
    if problems:
        return Check(NAME, "failed", "; ".join(problems)), writes

    doubts = _doubts(recorded, [put.key for put in puts.values()], bool(answered), states, final)
    if doubts:
        return Check(NAME, "inconclusive", "; ".join(doubts)), writes
    there = sum(op.id in recovered for op in ours["unknown"])
    detail = (
        f"all {len(acknowledged)} acknowledged writes with keys of their own are in the final state through"
        f" {', '.join(states)}; of {len(ours['unknown'])} unknown ones {there} are;"
        f" none of {len(ours['failed'])} failed ones is"
    )
    return Check(NAME, "passed", detail), writes


class _Put(NamedTuple):
    """A put of a key, by the operation's number; `rank` is the key's place in the order of keys."""

    number: int
    key: bytes
    value: bytes
    rank: int


def _elements(recorded: Recorded, not_ok: Mapping[int, Operation]) -> dict[int, _Put]:
    """Give the puts of streams that have a key for each write, which nothing deletes, by the operations' numbers."""
    columns = recorded.columns
    ops, keys, values = columns.operations, columns.keys, columns.values
    prefix = f"{key_prefix(recorded.observed.run)}{SET}/".encode()
    low, high = bisect_left(keys, prefix), bisect_left(keys, prefix[:-1] + bytes([prefix[-1] + 1]))
    probes = [name.startswith(PINNED) or name == FAILOVER_WRITE for name in columns.streams]
    probing = np.isin(ops.stream, np.flatnonzero(probes))
    number, _, key, value, _ = columns.rows.events
    wanted = ops.of_kind("put")[number] & (probing[number] | ((key >= low) & (key < high)))
    found = {
        at: _Put(at, keys[of_key], values[of_value], of_key)
        for at, of_key, of_value in zip(*(column[wanted].tolist() for column in (number, key, value)), strict=True)
    }
    for at, op in (*columns.general.items(), *not_ok.items()):
        if isinstance(op.request, Put) and (bool(probing[at]) or op.request.key.startswith(prefix)):
            found[at] = _put(columns, at, op.request)
    return dict(sorted(found.items()))


def _put(columns: Columns, number: int, request: Put) -> _Put:
    return _Put(number, request.key, request.value, bisect_left(columns.keys, request.key))


def _closing(columns: Columns, until: int, puts: Collection[int]) -> list[_Put]:
    """Give the puts of the tombstone's revision that are none of those known."""
    ops = columns.operations
    if until <= 0:
        return []
    numbers = np.flatnonzero((ops.revision == until) & ops.of_kind("put")).tolist()
    closing = [number for number in numbers if number not in puts]
    found = zip(closing, columns.some_operations(closing), strict=True)
    return [_put(columns, number, op.request) for number, op in found if isinstance(op.request, Put)]


def _writes(columns: Columns, not_ok: Iterable[Operation], lost: int, recovered: int) -> Writes:
    counts = {"failed": 0, "unknown": 0}
    not_sent = 0
    for op in not_ok:
        if op.may_write:
            counts[op.outcome] += 1
            not_sent += op.code == "NOT_SENT"
    acknowledged = int(((columns.operations.flags & EFFECT) != 0).sum())
    return Writes(acknowledged, lost, counts["failed"], counts["unknown"], recovered, not_sent)


def _doubts(
    recorded: Recorded,
    written: Collection[bytes],
    acknowledged: bool,
    states: Mapping[str, State],
    final: Mapping[str, object],
) -> list[str]:
    doubts: list[str] = []
    unread = sorted(member for member, state in final.items() if state is None)
    if unread:
        doubts.append(f"the final state could not be read through {', '.join(unread)}")
    if not final:
        doubts.append("the final state was not read")
    if not acknowledged:
        doubts.append("no write was acknowledged")
    before = {kv.key for kv in recorded.base.kvs} if recorded.base else set()
    unexplained = _unexplained(set(written), states.values(), before)
    if unexplained:
        doubts.append(f"{len(unexplained)} keys have no record of their write: {some(unexplained)}")
    return doubts


def _unexplained(written: set[bytes], states: Iterable[State], before: Collection[bytes]) -> list[str]:
    """Give the keys under the streams' prefixes that no put has `written`, and that were not there `before`.

    Other keys of the run (those that a drill writes itself) are none of this check's business.
    """
    known = written.union(before)
    prefixes = tuple({key.rpartition(b"/")[0] + b"/" for key in written})
    found = {key for state in states for key in state if key not in known and key.startswith(prefixes)}
    return sorted(key.decode(errors="replace") for key in found)


def _stale(columns: Columns, acknowledged: Sequence[_Put]) -> list[str]:
    """Give the linearizable reads of what is there now that miss a write which had been acknowledged."""
    if not acknowledged or len({put.key for put in acknowledged}) < len(acknowledged):
        return []
    back = columns.operations.back
    by_key = sorted(acknowledged, key=lambda put: put.key)
    keys = [put.key for put in by_key]
    found = []
    for op in columns.some_operations(_suspects(columns, acknowledged)):
        request, answer = op.request, op.answer
        if not isinstance(request, Range) or not isinstance(answer, RangeResult) or request.serializable:
            continue
        if request.revision or request.count_only or answer.more or any(request[9:]):
            continue
        first, after = in_range(request.key, request.range_end)
        low, high = bisect_left(keys, first), len(keys) if after is None else bisect_left(keys, after)
        seen = {kv.key for kv in answer.kvs}
        for put in by_key[low:high]:
            if back[put.number] < op.call_ns and put.key not in seen:
                writer = int(columns.operations.id[put.number])
                found.append(
                    f"operation {op.id} through {op.member} did not see {put.key.decode()} of operation {writer}"
                )
                break
    return found


def _suspects(columns: Columns, acknowledged: Sequence[_Put]) -> list[int]:
    """Give the reads that may have missed one of these writes: all that surely did not are left out."""
    ops = columns.operations
    written_ns = np.full(len(columns.keys) + 1, _FAR)
    written_ns[[put.rank for put in acknowledged]] = ops.back[[put.number for put in acknowledged]]
    reads = ops.of_kind("range") & ((ops.flags & (LOCAL | OLD)) == 0)
    number, _, key, row = columns.rows.states
    span_of, _, first, after, count, length, start = columns.rows.spans
    wide = np.zeros(len(ops.id), bool)
    wide[span_of] = True
    unseen = (row == ABSENT) | (columns.kvs.key[row] != key)
    missed = reads[number] & ~wide[number] & unseen & (written_ns[key] < ops.call[number])
    suspects = [*number[missed].tolist(), *(at for at, op in columns.general.items() if isinstance(op.request, Range))]
    known = np.append(0, np.cumsum(written_ns < _FAR))
    concerned = reads[span_of] & (count == length) & (known[after] > known[first])
    for at in np.flatnonzero(concerned).tolist():
        there = first[at] + np.flatnonzero(written_ns[first[at] : after[at]] < ops.call[span_of[at]])
        if not np.isin(there, key[start[at] : start[at] + length[at]]).all():
            suspects.append(int(span_of[at]))
    return sorted(suspects)


def _value(op: Operation) -> bytes:
    assert isinstance(op.request, Put)
    return op.request.value


def _describe_lost(op: Operation, through: list[str], states: Mapping[str, State], origin_ns: int) -> str:
    values = {states[member].get(op.key) for member in through}
    what = (
        "absent"
        if values == {None}
        else f"value {next(value for value in values if value is not None).decode(errors='replace')!r}"
    )
    return (
        f"{op.key.decode()} ({what} through {', '.join(through)}; acknowledged by {op.member} at"
        f" {instant(op.return_ns, origin_ns)}, revision {op.revision})"
    )


def _describe_unowned(op: Operation, origin_ns: int) -> str:
    where = op.key.decode(errors="backslashreplace") or op.kind
    return (
        f"{where} (not in the log; operation {op.id}, acknowledged by {op.member} at"
        f" {instant(op.return_ns, origin_ns)}, revision {op.revision})"
    )
