"""What a restore brought back, and what it undid: one window's record held against the next one's.

A restore starts a new epoch: what was acknowledged before at a higher revision than the snapshot's is gone (that is
its RPO, counted in writes), and everything up to that revision is there, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from etcdops.answers import KeyValue
from etcdops.ops import Delete, Put, Txn
from etcdops.verify import Check
from etcdops.verify.columns import OK
from etcdops.verify.describing import some
from etcdops.verify.recorded import Figure, Recorded
from etcdops.verify.witness import Witness
from etcdops.workload.encoding import key_prefix
from etcdops.workload.history import Operation

__all__ = ["STATE", "Epoch", "compare_epochs"]

STATE = "restored state"


class Epoch(NamedTuple):
    """What holds of a restore: whether it gave the snapshot's state, and the acknowledged writes that it undid.

    `undone` is in the order of revisions. `unknown` counts the writes of which nobody knew whether they were applied,
    and that were, after the snapshot.
    """

    check: Check
    undone: tuple[Operation, ...]
    unknown: int
    figures: tuple[Figure, ...]


def compare_epochs(before: Recorded, found: Witness, after: Recorded, between: Sequence[Operation] = ()) -> Epoch:
    """Hold the window before a restore, with what the witness found in it, against the state after it.

    `between` is what the drill itself wrote after the restore and before the second window opened. The check fails for
    a key of the snapshot that is missing or differs, through whichever member, and for one that is newer than the
    snapshot. Only keys of a lease may be gone, since that may have ended meanwhile: all of a lease or none.
    """
    restored = after.observed.restored
    assert restored is not None
    columns = before.columns
    undone = np.flatnonzero(np.isin(columns.operations.id, found.after(restored.revision)))
    lost = sorted(columns.some_operations(undone.tolist()), key=lambda op: op.revision)
    unknown = _unknown(before, found, restored.revision)
    return Epoch(
        _check(before, found, after, between), tuple(lost), unknown, _figures(before, lost, unknown, restored.revision)
    )


def _unknown(before: Recorded, found: Witness, revision: int) -> int:
    """Count the unknown writes that the log has after a revision."""
    if found.part is None or not found.recovered:
        return 0
    ops, owned = found.part.columns.operations, found.part.owners.owned
    recovered = set(found.recovered)
    return sum(
        number in recovered and at > revision for number, at in zip(ops.id.tolist(), owned.tolist(), strict=True)
    )


def _figures(before: Recorded, lost: Sequence[Operation], unknown: int, revision: int) -> tuple[Figure, ...]:
    ops = before.columns.operations
    kept = ops.back[(ops.outcome == OK) & ops.may_write() & (ops.revision <= revision)]
    last_kept = int(kept.max(initial=0))
    last_lost = max((op.return_ns for op in lost), default=0)
    shown = some([_describe(op) for op in lost], 2)
    told = f"the acknowledged writes after revision {revision}" + (f": {shown}" if lost else "")
    if unknown:
        told += f"; {unknown} more were applied whose clients did not know"
    span_ms = (last_lost - last_kept) / 1e6 if lost and len(kept) else 0.0
    return (
        Figure("RPO", len(lost), "writes", told),
        Figure(
            "RPO, time",
            round(max(span_ms, 0.0), 1),
            "ms",
            "from the last acknowledged write that is in the snapshot to the last one that is undone",
        ),
    )


def _describe(op: Operation) -> str:
    return f"{op.kind} {_text(op.key)} at revision {op.revision}" if op.key else f"{op.kind} at revision {op.revision}"


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")


def _check(before: Recorded, found: Witness, after: Recorded, between: Sequence[Operation]) -> Check:
    restored = after.observed.restored
    assert restored is not None
    wanted = found.state(restored.revision)
    if wanted is None:
        why = f"the record of the window before does not tell what revision {restored.revision} was"
        return Check(STATE, "inconclusive", why)
    states = {
        name: after.observed.states[each.state] for name, each in after.observed.opened.items() if each.state >= 0
    }
    unread = [f"{name}: {each.error}" for name, each in after.observed.opened.items() if each.state < 0]
    if after.base is not None:
        states.setdefault("the first read", after.base)
    if not states or not after.observed.opened:
        return Check(STATE, "inconclusive", "the state after the restore was not read through any member")
    snapshot = {kv.key: kv for kv in wanted.kvs}
    newer = _newer(found, restored.revision)
    written = {key for op in between for key in _keys(op)}
    prefix = key_prefix(before.observed.run).encode()
    problems: list[str] = []
    ended: set[bytes] = set()
    foreign: set[bytes] = set()
    for member, state in states.items():
        there = {kv.key: kv for kv in state.kvs}
        gone = [kv for key, kv in snapshot.items() if key not in there]
        leased = {kv.key for kv in gone if kv.lease and _ended(kv.lease, there.values())}
        ended |= leased
        missing = {kv.key for kv in gone} - leased
        wrong = {key for key, kv in there.items() if snapshot.get(key) != kv and key not in written}
        old = {key for key in wrong if (key, there[key].value) in newer}
        others = {key for key in wrong - old if not key.startswith(prefix) and _is_later(there[key], snapshot.get(key))}
        foreign |= others
        strange = wrong - old - others
        for keys, what in (
            (missing, "keys of the snapshot are missing"),
            (old, "keys are newer than the snapshot"),
            (strange, "keys are not as they were at the snapshot's revision"),
        ):
            if keys:
                problems.append(f"through {member} {len(keys)} {what}: {some([_text(key) for key in sorted(keys)])}")
    said = (
        f"all {len(snapshot) - len(ended)} keys that there were at revision {restored.revision} are back through"
        f" {', '.join(after.observed.opened)}, each with its value and revisions, and none that is newer"
    )
    if ended:
        said += f"; {len(ended)} more had a lease, which has ended since"
    if foreign:
        said += f"; {len(foreign)} keys were written by others since"
    if problems:
        return Check(STATE, "failed", "; ".join(problems))
    if unread:
        return Check(STATE, "inconclusive", f"not all was read back: {'; '.join(unread)}")
    return Check(STATE, "passed", said)


def _newer(found: Witness, revision: int) -> set[tuple[bytes, bytes]]:
    """Give every key with each value that it was given after a revision, in the window before."""
    assert found.part is not None
    log = found.part.log
    return {
        (event.kv.key, event.kv.value)
        for at in range(revision + 1, log.end + 1)
        for event in log.events(at)
        if event.kind == "put"
    }


def _is_later(kv: KeyValue, before: KeyValue | None) -> bool:
    """Whether a key can have been written since: somebody else may have, when the restored cluster served again."""
    return before is None or kv.mod_revision > before.mod_revision


def _ended(lease: int, there: Iterable[KeyValue]) -> bool:
    return all(kv.lease != lease for kv in there)


def _keys(op: Operation) -> Iterable[bytes]:
    requests: Sequence[object] = (op.request,)
    if isinstance(op.request, Txn):
        requests = (*op.request.success, *op.request.failure)
    return (each.key for each in requests if isinstance(each, (Put, Delete)))
