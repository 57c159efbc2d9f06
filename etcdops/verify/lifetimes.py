"""W2 where the log alone does not tell: what a lease's life and a compaction allow.

A grant and the end of a lease without keys make no revision, nor does a compaction, yet each is answered the revision
at which it was applied. What follows from that is judged here, and only that: what may have been in either order
passes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from etcdops.answers import TxnResult
from etcdops.ops import Compact, Range, Revoke, Txn
from etcdops.verify.columns import OK, Columns
from etcdops.verify.findings import Findings
from etcdops.verify.log import Log
from etcdops.verify.owners import FOREIGN, LEASE_END, Owners
from etcdops.workload.history import Operation

__all__ = ["Compactions", "check_leases"]


class Compactions:
    """The compactions that were acknowledged, in the order of what they compacted."""

    def __init__(self, columns: Columns) -> None:
        found = [
            (op.request.revision, number, op)
            for number, op in columns.general.items()
            if isinstance(op.request, Compact) and op.outcome == "ok"
        ]
        self._all = sorted(found)

    def check(self, tell: Callable[[int], str], findings: Findings) -> None:
        """Tell `findings` of compactions that etcd would have refused: each goes further than those before it."""
        earliest: tuple[int, int, Operation] | None = None
        for to, number, op in reversed(self._all):
            if earliest and (
                to == earliest[0] or op.revision > earliest[2].revision or op.call_ns > earliest[2].return_ns
            ):
                findings.add(
                    "W2",
                    f"{tell(number)} would be refused as compacted after {tell(earliest[1])}",
                    (op.id, earliest[2].id),
                    op.revision,
                )
            if earliest is None or op.return_ns < earliest[2].return_ns or op.revision < earliest[2].revision:
                earliest = to, number, op

    def refuse(self, op: Operation) -> bool:
        """Tell whether a read at an old revision must have been refused since that was compacted."""
        for revision in _old_revisions(op.request, op.answer):
            for to, _, one in self._all:
                before = one.revision < op.revision or (one.return_ns < op.call_ns and not _local(op.request))
                if to > revision and before:
                    return True
        return False


def _old_revisions(request: object, answer: object) -> Iterable[int]:
    if isinstance(request, Range) and request.revision > 0:
        yield request.revision
    elif isinstance(request, Txn) and isinstance(answer, TxnResult):
        for inner, result in zip(
            request.success if answer.succeeded else request.failure, answer.results, strict=False
        ):
            yield from _old_revisions(inner, result)


def _local(request: object) -> bool:
    return not isinstance(request, Range) or request.serializable


class _Life(NamedTuple):
    """What is known of one lease: the operations that granted it, or may have, and its ends: revision and revoke.

    -1 instead of a revoke is an end of which only the log tells.
    """

    grants: list[int]
    ends: list[tuple[int, int]]


def check_leases(columns: Columns, log: Log, owners: Owners, tell: Callable[[int], str], findings: Findings) -> None:
    """Tell `findings` of keys attached to leases that were not alive, and of leases that ended more than once."""
    ops = columns.operations
    lives: dict[int, _Life] = defaultdict(lambda: _Life([], []))
    for number, lease in zip(*(column.tolist() for column in columns.granted), strict=True):
        lives[lease].grants.append(number)
    for number, op in columns.general.items():
        if isinstance(op.request, Revoke) and op.outcome == "ok":
            lives[op.request.lease].ends.append((op.revision, number))
    for lease, revision in owners.lease_ends:
        if owners.of[revision - log.base - 1] == LEASE_END:
            lives[lease].ends.append((revision, -1))

    def words(number: int, revision: int) -> str:
        return tell(number) if number >= 0 else f"its end at revision {revision}"

    for lease, life in lives.items():
        if len(life.ends) > max(1, len(life.grants)):
            findings.add(
                "W2",
                f"lease {lease:x} ended more often than it was granted: "
                + " and ".join(words(number, revision) for revision, number in life.ends[:3]),
                tuple(int(ops.id[number]) for _, number in life.ends[:3] if number >= 0),
                life.ends[-1][0],
            )
        if len(life.grants) != 1 or len(life.ends) != 1 or ops.outcome[life.grants[0]] != OK:
            continue
        (grant,), ((ended, end),) = life.grants, life.ends
        if ended < ops.revision[grant] or (end >= 0 and ops.back[end] < ops.call[grant]):
            findings.add(
                "W2",
                f"{words(end, ended)}: lease {lease:x} was granted later, by {tell(grant)}",
                (int(ops.id[grant]),),
                ended,
            )
    _check_keys(columns, log, owners, lives, tell, findings)


def _check_keys(
    columns: Columns,
    log: Log,
    owners: Owners,
    lives: dict[int, _Life],
    tell: Callable[[int], str],
    findings: Findings,
) -> None:
    ops = columns.operations
    rows = np.arange(log.based, log.start[log.end - log.base] if log.end > log.base else log.based)
    rows = rows[log.rows.lease[rows] != 0]
    older = set(columns.kvs.lease[columns.based].tolist())
    strange: set[int] = set()
    revisions = log.rows.modified[rows]
    leases, owner_of = log.rows.lease[rows].tolist(), owners.of[revisions - log.base - 1].tolist()
    for lease, revision, owner in zip(leases, revisions.tolist(), owner_of, strict=True):
        life = lives.get(lease)
        if life is None or not life.grants:
            if lease not in older and owner != FOREIGN:
                strange.add(lease)
            continue
        if len(life.grants) > 1:
            continue
        grant = life.grants[0]
        granted = int(ops.revision[grant]) if ops.outcome[grant] == OK else 0
        ended = min((at for at, _ in life.ends), default=revision)
        if granted < revision <= ended:
            continue
        who = tell(owner) if owner >= 0 else f"revision {revision}"
        when = f"granted at revision {granted}" if revision <= granted else f"ended by revision {ended}"
        findings.add(
            "W2",
            f"{who} attaches a key to lease {lease:x}, which was {when}",
            (int(ops.id[owner]),) if owner >= 0 else (),
            revision,
        )
    if strange:
        shown = ", ".join(f"{lease:x}" for lease in sorted(strange)[:5])
        findings.doubt(f"nothing tells who granted {len(strange)} of the leases that keys were attached to: {shown}")
