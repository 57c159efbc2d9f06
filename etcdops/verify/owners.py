"""W1: each revision of the log has exactly one owner, and each write owns at most one revision.

An acknowledged write owns the revision that it was answered. What is left belongs to a write of unknown outcome, to the
end of a lease, or to somebody else; anything else breaks the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from etcdops.answers import Event
from etcdops.ops import Delete, Put, Revoke, Txn
from etcdops.verify.columns import FAILED, OK, UNKNOWN, Columns, Ints, puts_of
from etcdops.verify.describing import describe_event, some
from etcdops.verify.findings import Findings
from etcdops.verify.log import Log, View, evaluate
from etcdops.verify.shapes import EFFECT
from etcdops.workload.encoding import key_prefix, value_prefix
from etcdops.workload.history import Operation

__all__ = ["FOREIGN", "LEASE_END", "NOBODY", "Owners", "find_owners", "same_events"]

#: Owners that are no operations of the record.
NOBODY, LEASE_END, FOREIGN = -1, -2, -3


class Owners(NamedTuple):
    """Who owns what. `of` has a row for each revision after the base: an operation's number or one of the above.

    `owned` has a row for each operation: the revision that it owns, or 0. `lost` are acknowledged writes with an effect
    that own no revision, though the log goes as far as theirs. `lease_ends` are leases, with the revisions that ended
    them.
    """

    of: Ints
    owned: Ints
    lost: list[int]
    lease_ends: list[tuple[int, int]]


def find_owners(
    columns: Columns,
    log: Log,
    view: View,
    bound: Callable[[Ints], Ints],
    tell: Callable[[int], str],
    findings: Findings,
    *,
    lenient: bool = False,
) -> Owners:
    """Give each revision's owner and tell `findings` of every breach.

    `bound` gives the newest revision that anybody had been told before each of some instants, `tell` an operation in
    words. `lenient` accepts events without the previous value that they should have.
    """
    search = _Search(columns, log, view, bound, tell, findings, lenient)
    search.acknowledged()
    search.revokes()
    search.others()
    return Owners(search.of, search.owned, search.lost, search.lease_ends)


def same_events(made: Sequence[Event], seen: Sequence[Event], *, lenient: bool = False) -> bool:
    """Tell whether what an operation makes is what was seen, in order; `lenient` as for `find_owners`."""
    if len(made) != len(seen):
        return False
    if not lenient:
        return tuple(made) == tuple(seen)
    return all(
        one == other or (other.prev_kv is None and one[:2] == other[:2]) for one, other in zip(made, seen, strict=True)
    )


class _Search:
    def __init__(
        self,
        columns: Columns,
        log: Log,
        view: View,
        bound: Callable[[Ints], Ints],
        tell: Callable[[int], str],
        findings: Findings,
        lenient: bool,
    ) -> None:
        self.columns, self.log, self.view = columns, log, view
        self.bound, self.tell, self.findings, self.lenient = bound, tell, findings, lenient
        self.of = np.full(max(0, log.end - log.base), NOBODY)
        self.owned = np.zeros(len(columns.operations.id), np.int64)
        self.lost: list[int] = []
        self.lease_ends: list[tuple[int, int]] = []
        self.prefix = key_prefix(columns.run).encode()
        self.value_prefix = value_prefix(columns.run).encode()

    def own(self, revision: int, owner: int) -> None:
        self.of[revision - self.log.base - 1] = owner
        if owner >= 0:
            self.owned[owner] = revision

    def acknowledged(self) -> None:
        """Give each acknowledged write with an effect its revision."""
        ops, log = self.columns.operations, self.log
        writers = np.flatnonzero((ops.flags & EFFECT) != 0)
        inside = writers[(ops.revision[writers] > log.base) & (ops.revision[writers] <= log.end)]
        revision = ops.revision[inside]
        order = np.argsort(revision, kind="stable")
        twice = np.flatnonzero(np.diff(revision[order]) == 0)
        for at in twice.tolist():
            first, second = int(inside[order[at]]), int(inside[order[at + 1]])
            self.findings.add(
                "W1",
                f"revision {int(revision[order[at]])} has two owners: {self.tell(first)} and {self.tell(second)}",
                (int(ops.id[first]), int(ops.id[second])),
                int(revision[order[at]]),
            )
        self.of[revision - log.base - 1] = inside
        self.owned[inside] = revision
        if not log.holes:
            return
        for number in inside[np.isin(revision, log.holes)].tolist():
            at = int(ops.revision[number])
            self.lost.append(number)
            self.findings.add(
                "W1",
                f"the log holds nothing at revision {at}, which was acknowledged to {self.tell(number)}",
                (int(ops.id[number]),),
                at,
            )

    def revokes(self) -> None:
        """Give each acknowledged revoke the revision that it was answered, if it can have made that.

        A revoke of a lease without keys is answered a revision that is another's.
        """
        ops, base = self.columns.operations, self.log.base
        numbers = [n for n, op in self.columns.general.items() if isinstance(op.request, Revoke) and op.outcome == "ok"]
        bounds = self.bound(ops.call[numbers]).tolist() if numbers else []
        for number, bound in zip(numbers, bounds, strict=True):
            op = self.columns.general[number]
            revision = op.revision
            if not max(base, bound) < revision <= self.log.end or self.of[revision - base - 1] != NOBODY:
                continue
            if self._makes(op, revision, self.log.events(revision)):
                self.own(revision, number)
                assert isinstance(op.request, Revoke)
                self.lease_ends.append((op.request.lease, revision))

    def others(self) -> None:
        """Find an owner for every revision that has none yet."""
        left = [
            revision
            for revision in (np.flatnonzero(self.of == NOBODY) + self.log.base + 1).tolist()
            if self.log.events(revision)
        ]
        if not left:
            return
        events = {revision: self.log.events(revision) for revision in left}
        taken = self._match(events)
        for revision in left:
            if revision in taken:
                self.own(revision, taken[revision])
                continue
            owner = self._explain(revision, events[revision])
            if owner == NOBODY:
                self._blame(revision, events[revision])
            if owner == LEASE_END:
                self.lease_ends.append((_lease_of(events[revision], self.view.go(revision - 1)), revision))
            self.own(revision, owner)

    def _match(self, events: dict[int, tuple[Event, ...]]) -> dict[int, int]:
        """Give as many revisions as possible to unknown writes, those first that nothing else explains."""
        unknown = {
            number: op for number, op in self.columns.general.items() if op.outcome == "unknown" and op.may_write
        }
        if not unknown:
            return {}
        numbers = np.fromiter(unknown, np.int64, len(unknown))
        bounds = dict(zip(unknown, self.bound(self.columns.operations.call[numbers]).tolist(), strict=True))
        by_put: dict[tuple[bytes, bytes], list[int]] = {}
        pure: list[int] = []
        for number, op in unknown.items():
            puts = list(puts_of(op.request))
            for put in puts:
                by_put.setdefault((put.key, put.value), []).append(number)
            # A transaction may also do its branch without puts.
            if _may_only_delete(op):
                pure.append(number)
        candidates: dict[int, list[int]] = {}
        for revision, seen in events.items():
            put_events = [event for event in seen if event.kind == "put"]
            likely = (
                by_put.get((put_events[0].kv.key, put_events[0].kv.value), [])
                if put_events
                else [number for number in pure if _touches(unknown[number], seen[0].kv.key)]
            )
            fitting = [
                number
                for number in dict.fromkeys(likely)
                if bounds[number] < revision and self._makes(unknown[number], revision, seen)
            ]
            if fitting:
                candidates[revision] = fitting
        return _assign(candidates, [r for r in candidates if self._explain(r, events[r]) == NOBODY])

    def _makes(self, op: Operation, revision: int, seen: tuple[Event, ...]) -> bool:
        _, made, refused = evaluate(self.view.go(revision - 1), op.request)
        return bool(made) and not refused and same_events(made, seen, lenient=self.lenient)

    def _explain(self, revision: int, events: tuple[Event, ...]) -> int:
        ours = [event.kv.key.startswith(self.prefix) for event in events]
        if all(event.kind == "delete" for event in events):
            before = self.view.go(revision - 1)
            lease = _lease_of(events, before)
            if lease:
                _, made, _ = evaluate(before, Revoke(lease))
                if same_events(made, events, lenient=self.lenient):
                    return LEASE_END
        if not any(ours) and not any(event.kv.value.startswith(self.value_prefix) for event in events):
            return FOREIGN
        return NOBODY

    def _blame(self, revision: int, events: tuple[Event, ...]) -> None:
        """Say of a revision without an owner what can be said."""
        shown = some([describe_event(event) for event in events])
        keys = {event.kv.key for event in events}
        at = revision - self.log.base - 1
        ops, rows = self.columns.operations, self.log.rows
        suspects: dict[int, str] = {}
        for row in range(self.log.start[at], self.log.start[at + 1]):
            if rows.version[row] > 0:
                for number in self.columns.writers(rows.key[row], rows.value[row]):
                    suspects[number] = {
                        OK: f"has its value, and owns revision {int(self.owned[number]) or 'none'}",
                        FAILED: "has its value, and definitely failed",
                        UNKNOWN: "has its value, and cannot have made it there and then",
                    }[int(ops.outcome[number])]
        if not suspects and all(event.kind == "delete" for event in events):
            for number, op in self.columns.general.items():
                if op.outcome == "unknown" and op.may_write and _touches(op, events[0].kv.key):
                    suspects[number] = "cannot have made it"
        named = list(suspects)[:2]
        mixed = len({key.startswith(self.prefix) for key in keys}) > 1
        why = "; ".join(f"{self.tell(number)} {suspects[number]}" for number in named) or (
            "keys of the run and others' share it" if mixed else "no operation of the record wrote it"
        )
        self.findings.add(
            "W1",
            f"revision {revision} ({shown}) has no owner: {why}",
            tuple(int(ops.id[number]) for number in named),
            revision,
        )


def _lease_of(events: Sequence[Event], before: View) -> int:
    old = before.get(events[0].kv.key)
    return old.lease if old else 0


def _may_only_delete(op: Operation) -> bool:
    request = op.request
    if isinstance(request, (Delete, Revoke)):
        return True
    if isinstance(request, Txn):
        return any(
            not any(isinstance(inner, Put) for inner in branch)
            and any(isinstance(inner, (Delete, Txn)) for inner in branch)
            for branch in (request.success, request.failure)
        )
    return False


def _touches(op: Operation, key: bytes) -> bool:
    request = op.request
    if isinstance(request, Delete):
        return request.key == key or bool(request.range_end)
    return True


def _assign(candidates: dict[int, list[int]], first: list[int]) -> dict[int, int]:
    """Give a largest assignment of operations to revisions (Kuhn's augmenting paths), serving `first` first."""
    holder: dict[int, int] = {}
    held: dict[int, int] = {}

    def augment(root: int) -> bool:
        # Iterative: paths can be as long as there are revisions.
        came: dict[int, int] = {}
        stack = [root]
        while stack:
            revision = stack.pop()
            for number in candidates[revision]:
                if number in came:
                    continue
                came[number] = revision
                if number not in holder:
                    while True:
                        revision = came[number]
                        previous = held.get(revision)
                        holder[number], held[revision] = revision, number
                        if previous is None:
                            return True
                        number = previous
                stack.append(holder[number])
        return False

    wanted = dict.fromkeys(first)
    for revision in [*wanted, *(revision for revision in candidates if revision not in wanted)]:
        augment(revision)
    return held
