"""The revision witness: is the whole history what one correct etcd would have answered, at the revisions that it names?

etcd stamps every answer with a revision. Together with the log of all events that names an order of all operations; the
rules W0 to W4 say that in this order each answer is right, that the order agrees with real time, and that the log is
whole. Passing them *is* a linearization of the history. See Gibbons and Korach, "Testing shared memories" (1997), for
why an order makes this cheap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from etcdops.ops import Compact
from etcdops.verify import Check
from etcdops.verify.columns import OK, Columns, Ints
from etcdops.verify.describing import describe, some
from etcdops.verify.findings import Findings
from etcdops.verify.log import Log, Mismatch, View, unite
from etcdops.verify.owners import FOREIGN, LEASE_END, Owners, find_owners
from etcdops.verify.proof import prove
from etcdops.verify.realtime import Told, check_lives, check_real_time
from etcdops.verify.recorded import Fault, Observed, Recorded, State
from etcdops.verify.replay import Replay
from etcdops.verify.shapes import EFFECT, KEEP_ALIVE, LOCAL

__all__ = ["NAME", "Part", "Witness", "check_witness", "conclude", "examine", "witness"]

NAME = "revision witness"


class Part(NamedTuple):
    """What the witness looked at, and what it found. Numbers are of operations in `columns`."""

    columns: Columns
    log: Log
    owners: Owners
    mismatches: tuple[Mismatch, ...]
    judged: int
    outside: int
    unknowable: int
    findings: Findings


class Witness(NamedTuple):
    """The check, and ids of writes for others to use; `part` is None where there was nothing to begin with.

    `lost` were acknowledged and own no revision; `recovered` were unknown and own one; `not_applied` were unknown and
    own none up to the window's end.
    """

    check: Check
    lost: tuple[int, ...] = ()
    recovered: tuple[int, ...] = ()
    not_applied: tuple[int, ...] = ()
    part: Part | None = None

    def state(self, revision: int) -> State | None:
        """Give all keys as they were at a revision; None if the log does not reach it."""
        if self.part is None or not self.part.log.base <= revision <= self.part.log.end:
            return None
        return State(revision, tuple(View(self.part.log).go(revision).span(b"\0", b"\0")))

    def after(self, revision: int) -> tuple[int, ...]:
        """Give the acknowledged writes of the window beyond a revision: what a restore of it undoes."""
        if self.part is None:
            return ()
        ops = self.part.columns.operations
        return tuple(ops.id[((ops.flags & EFFECT) != 0) & (ops.revision > revision)].tolist())


def check_witness(recorded: Recorded) -> Check:
    """Give the check of rules W0 to W4 over a window; on failure its detail names the rules and the operations."""
    return witness(recorded).check


def witness(recorded: Recorded) -> Witness:
    """Give the check, and which writes are lost, recovered and not applied."""
    if recorded.base is None:
        return Witness(Check(NAME, "inconclusive", "the state before the first operation was not read"))
    return conclude(recorded.columns, recorded.observed)


def conclude(columns: Columns, observed: Observed) -> Witness:
    """Give what `witness` gives for a window whose columns are there already."""
    part = examine(columns, tombstone=observed.tombstone, faults=observed.faults)
    _check_final(observed, part)
    return _conclude(part)


def examine(columns: Columns, *, tombstone: int = 0, faults: Sequence[Fault] = ()) -> Part:
    """Apply W0 to W4; without a tombstone its window ends with the log."""
    findings = Findings()
    ops = columns.operations
    origin = int(ops.call.min()) if len(ops.call) else 0

    def tell(number: int) -> str:
        return describe(columns.operation(number), origin)

    # A compaction takes previous values away from watches that are behind it, and old revisions from reads.
    compacted = any(isinstance(op.request, Compact) for op in columns.general.values())
    log, mismatches = unite(columns, tombstone)
    for one in mismatches:
        findings.add("W0", str(one), (), one.revision)
    _check_holes(columns, log, findings)
    if tombstone and log.end < tombstone:
        findings.doubt(f"the log ends at revision {log.end}, before the tombstone at {tombstone}")
    if not len(ops.id):
        findings.doubt("there are no operations")

    view = View(log)
    told = Told(columns)
    owners = find_owners(columns, log, view, told.before, tell, findings, lenient=compacted)
    answered = np.flatnonzero(ops.outcome == OK)
    inside = answered[ops.revision[answered] <= log.end]
    replay = Replay(columns, log, view, owners.owned, tell, findings, lenient=compacted)
    proven = prove(columns, log, owners.owned, compacted=compacted, lenient=compacted)
    proven[owners.lost] = True
    for number in inside[~proven[inside]].tolist():
        replay.judge(number, columns.operation(number))
    replay.check_rest(owners)
    check_real_time(columns, told, owners.owned, tell, findings)
    check_lives(columns, faults, tell, findings)
    return Part(
        columns, log, owners, tuple(mismatches), len(inside), len(answered) - len(inside), replay.unknowable, findings
    )


def _check_holes(columns: Columns, log: Log, findings: Findings) -> None:
    """End the log before the first hole that no answered operation explains; of the others W1 tells."""
    ops = columns.operations
    answered = set(ops.revision[(ops.flags & EFFECT) != 0].tolist()) if log.holes else set()
    for hole in log.holes:
        if hole > log.end:
            break
        if hole not in answered:
            findings.doubt(f"no member delivered revision {hole}, and no operation tells what it was")
            log.end = hole - 1
            break


def _check_final(observed: Observed, part: Part) -> None:
    """The log, replayed, gives exactly what was read through every member at the end."""
    log, findings = part.log, part.findings
    if not observed.tombstone:
        findings.doubt("no write closed the window")
    if not observed.final:
        findings.doubt("the final state was not read")
    agreeing: set[int] = set()
    for member, final in observed.final.items():
        state = observed.states[final.state] if final.state >= 0 else None
        if state is None:
            findings.doubt(f"the final state could not be read through {member}: {final.error}")
        elif not log.base <= state.revision <= log.end:
            findings.doubt(f"the final state through {member} is of revision {state.revision}, where no log is")
        elif final.state not in agreeing and _compare_state(log, state, f"the final state through {member}", findings):
            agreeing.add(final.state)


def _compare_state(log: Log, state: State, what: str, findings: Findings) -> bool:
    """Tell whether a state is what the log gives; if not, say so."""
    kvs = View(log).go(state.revision).span(b"\0", b"\0")
    if tuple(kvs) == tuple(state.kvs):
        return True
    _differences({kv.key: kv for kv in kvs}, {kv.key: kv for kv in state.kvs}, what, findings)
    return False


def _differences(logged: Mapping[bytes, object], read: Mapping[bytes, object], what: str, findings: Findings) -> None:
    wrong = [key for key in sorted({*logged, *read}) if logged.get(key) != read.get(key)]
    if wrong or list(logged) != list(read):
        shown = some(
            [f"{key.decode(errors='backslashreplace')} is {read.get(key)}, not {logged.get(key)}" for key in wrong], 2
        )
        findings.add("W0", f"{what} is not what the log gives: {shown or 'the order of keys differs'}")


def _conclude(part: Part) -> Witness:
    ops, owned, findings = part.columns.operations, part.owners.owned, part.findings
    lost = (*ops.id[part.owners.lost].tolist(), *ops.id[_forgotten(part)].tolist())
    unknown = np.array(
        [n for n, op in part.columns.general.items() if op.outcome == "unknown" and op.may_write], np.int64
    )
    recovered = tuple(ops.id[unknown[owned[unknown] > 0]].tolist())
    left = tuple(ops.id[unknown[owned[unknown] == 0]].tolist())
    said = _count(part, len(left), len(recovered))
    if findings.counts:
        check = Check(NAME, "failed", f"{findings.text()}. ({said})")
    elif findings.doubts:
        check = Check(NAME, "inconclusive", f"{'; '.join(findings.doubts)} ({said})")
    else:
        check = Check(NAME, "passed", said)
    return Witness(check, lost, recovered, left, part)


def _forgotten(part: Part) -> Ints:
    """Give the acknowledged writes beyond the log's end of which somebody who called later was told nothing."""
    ops = part.columns.operations
    judged = np.flatnonzero((ops.outcome == OK) & ((ops.flags & (LOCAL | KEEP_ALIVE)) == 0))
    judged = judged[np.argsort(ops.call[judged], kind="stable")]
    writes = np.flatnonzero(((ops.flags & EFFECT) != 0) & (ops.revision > part.log.end))
    if not len(writes):
        return writes
    least = np.append(np.minimum.accumulate(ops.revision[judged][::-1])[::-1], np.iinfo(np.int64).max)
    after = least[np.searchsorted(ops.call[judged], ops.back[writes], side="right")]
    return writes[after < ops.revision[writes]]


def _count(part: Part, left: int, recovered: int) -> str:
    foreign = int((part.owners.of == FOREIGN).sum())
    ends = int((part.owners.of == LEASE_END).sum())
    keep_alives = int(((part.columns.operations.flags & KEEP_ALIVE) != 0).sum())
    said = [f"{part.judged} answered operations against {part.log.end - part.log.base} revisions"]
    if keep_alives:
        said.append(f"{keep_alives} of them keep-alives")
    if part.outside:
        said.append(f"{part.outside} beyond the log's end")
    if part.unknowable:
        said.append(f"{part.unknowable} about states before the first, which nothing tells")
    if ends:
        said.append(f"{ends} revisions by ends of leases")
    if foreign:
        said.append(f"{foreign} by others")
    if left or recovered:
        said.append(f"of the unknown writes {recovered} were applied and {left} were not by the window's end")
    return "; ".join(said)
