"""W3 and the second half of W4: revisions against the clock.

Whoever calls after somebody has been told of a revision must be answered at least that, and more if he writes. All
instants are of one host's CLOCK_MONOTONIC, and equal ones are concurrent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from etcdops.verify.columns import OK, Columns, Ints
from etcdops.verify.findings import Findings
from etcdops.verify.recorded import Fault
from etcdops.verify.shapes import KEEP_ALIVE, LOCAL

__all__ = ["RESTARTLESS", "Told", "check_lives", "check_real_time"]

#: Faults after which a member goes on with the process that it had.
RESTARTLESS = frozenset({"freeze", "pause", "isolate", "unplug", "partition", "move-leader"})


class Told:
    """Who was told of which revision when: answers of every kind, and deliveries of watches."""

    def __init__(self, columns: Columns) -> None:
        ops, messages = columns.operations, columns.events.messages
        self._answered = np.flatnonzero((ops.outcome == OK) & (ops.revision > 0))
        self._columns = columns
        # One after the other, for there may be millions, and here a check needs the most memory.
        t_ns = np.concatenate((ops.back[self._answered], messages.t_ns[messages.newest > 0]))
        self._order = np.argsort(t_ns, kind="stable").astype(np.int32)
        self._t_ns = t_ns[self._order]
        del t_ns
        self._newest = self._revisions()[self._order]
        np.maximum.accumulate(self._newest, out=self._newest)

    def _revisions(self) -> Ints:
        """Give what was told, answers first."""
        ops, messages = self._columns.operations, self._columns.events.messages
        return np.concatenate((ops.revision[self._answered], messages.newest[messages.newest > 0]))

    def before(self, t_ns: Ints) -> Ints:
        """Give the newest revision that was told before each instant; the base revision if none was."""
        at = np.searchsorted(self._t_ns, t_ns, side="left")
        base = self._columns.base
        if not len(self._newest):
            return np.full(len(t_ns), base)
        return np.where(at > 0, np.maximum(self._newest[np.maximum(at - 1, 0)], base), base)

    def who(self, revision: int, t_ns: int) -> int | None:
        """Give the operation that was told `revision` before `t_ns`; None if it was a watch's delivery."""
        until = int(np.searchsorted(self._t_ns, t_ns, side="left"))
        places = self._order[:until]
        found = places[self._revisions()[places] == revision]
        answers = found[found < len(self._answered)]
        return int(self._answered[answers[0]]) if len(answers) else None


def check_real_time(columns: Columns, told: Told, owned: Ints, tell: Callable[[int], str], findings: Findings) -> None:
    """Tell `findings` of every operation that was answered less than was known before it was called (W3)."""
    ops = columns.operations
    judged = np.flatnonzero((ops.outcome == OK) & ((ops.flags & (LOCAL | KEEP_ALIVE)) == 0) & (ops.revision > 0))
    bound = told.before(ops.call[judged])
    late = ops.revision[judged] < bound + (owned[judged] > 0)
    for at in np.flatnonzero(late).tolist():
        if findings.full("W3"):
            findings.counts["W3"] += int(late.sum()) - 5
            return
        number, newest = int(judged[at]), int(bound[at])
        source = told.who(newest, int(ops.call[number])) if newest > columns.base else None
        before = (
            f"after {tell(source)} had returned revision {newest}"
            if source is not None
            else f"after a watch had delivered revision {newest}"
            if newest > columns.base
            else f"after the base state had been read at revision {newest}"
        )
        ids = (int(ops.id[number]),) if source is None else (int(ops.id[source]), int(ops.id[number]))
        findings.add("W3", f"{tell(number)} was called {before}", ids, int(ops.revision[number]))


def check_lives(columns: Columns, faults: Sequence[Fault], tell: Callable[[int], str], findings: Findings) -> None:
    """Tell `findings` of every serializable read that went back within one process life of its member (W4)."""
    ops = columns.operations
    local = np.flatnonzero((ops.outcome == OK) & ((ops.flags & LOCAL) != 0) & (ops.revision > 0))
    for member, name in enumerate(columns.members):
        mine = local[ops.member[local] == member]
        if not len(mine):
            continue
        restarts = np.unique(
            [
                at_ns
                for fault in faults
                if fault.member == name and fault.kind not in RESTARTLESS
                # Between two of these it may be the old process that answers, or the new one.
                for at_ns in (fault.inject_ns, fault.injected_ns, fault.healing_ns, fault.heal_ns)
            ]
        )
        # A read belongs to the life in which it was answered; one that a restart overlaps to none.
        begun, ended = (np.searchsorted(restarts, at[mine], side="right") for at in (ops.call, ops.back))
        for life in range(len(restarts) + 1):
            _check_life(columns, mine[(begun == life) & (ended == life)], tell, findings)


def _check_life(columns: Columns, mine: Ints, tell: Callable[[int], str], findings: Findings) -> None:
    ops = columns.operations
    if not len(mine):
        return
    ended = mine[np.argsort(ops.back[mine], kind="stable")]
    newest = np.maximum.accumulate(ops.revision[ended])
    at = np.searchsorted(ops.back[ended], ops.call[mine], side="left")
    bound = np.where(at > 0, newest[np.maximum(at - 1, 0)], 0)
    for place in np.flatnonzero(ops.revision[mine] < bound).tolist():
        number = int(mine[place])
        earlier = ended[: at[place]]
        other = int(earlier[ops.revision[earlier] == bound[place]][0])
        findings.add(
            "W4",
            f"{tell(number)} went back: {tell(other)} had returned before it was called",
            (int(ops.id[other]), int(ops.id[number])),
            int(ops.revision[number]),
        )
