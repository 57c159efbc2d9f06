"""Leases end when they should, and their keys with them.

- Never early: no key of a lease goes by the lease's end before the time to live is over that an acknowledged grant or
  keep-alive promised, counted from when that was sent.
- Together: a lease that ends takes all of its keys, in one revision.
- For good: nothing is attached to a lease that has ended, and no later keep-alive finds it alive.
- Gone is gone: once a revoke was acknowledged, or a keep-alive answered that there is no such lease, its keys are not
  there for anybody who asks later.

A lease that ends late is no failure: etcd promises a lower bound only, and a new leader extends them all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from etcdops.answers import Lease
from etcdops.ops import Delete, Grant, KeepAlive, Revoke, Txn, in_range
from etcdops.verify import Check
from etcdops.verify.columns import OK
from etcdops.verify.recorded import Recorded
from etcdops.verify.shapes import EFFECT, LOCAL, OLD
from etcdops.workload.history import Operation

__all__ = ["NAME", "check_leases"]

NAME = "lease"
_SHOWN = 3
_SECOND = 1_000_000_000


def check_leases(recorded: Recorded) -> Check:
    """Give the check over the leases that the run itself has granted.

    It needs the watches' log without a hole; without that, or without an acknowledged grant, it is inconclusive.
    Deletes that the run asked for, or may have, are nobody's end of a lease.
    """
    log = _Log(recorded)
    columns = recorded.columns
    told = np.flatnonzero(columns.operations.of_kind("grant", "keep-alive", "revoke"))
    leases = _leases(columns.some_operations(told.tolist()))
    if not leases:
        return Check(NAME, "inconclusive", "no lease was granted")
    if log.problem:
        return Check(NAME, "inconclusive", log.problem)
    judge = _Judge(recorded, log, leases)
    judge.replay()
    judge.ask_the_gone()
    if judge.problems:
        more = f"; and {len(judge.problems) - _SHOWN} more" if len(judge.problems) > _SHOWN else ""
        return Check(NAME, "failed", "; ".join(judge.problems[:_SHOWN]) + more)
    renewals = sum(len(each.promises) for each in leases.values()) - len(leases)
    said = (
        f"{len(leases)} leases were granted and {renewals} times kept alive; {judge.ended} with keys ended by"
        f" themselves, none early"
    )
    if judge.margin_ns is not None:
        said += f" (the soonest {judge.margin_ns / _SECOND:.3f} s after its time), each with all of its keys"
    if judge.unclear:
        said += f"; {judge.unclear} more may have been deleted by an operation without an answer"
    return Check(NAME, "passed", said)


class _Leased:
    """What the run knows of one of its leases."""

    def __init__(self) -> None:
        #: When a grant or keep-alive was sent that was acknowledged, its answer was in, and until when it promised.
        self.promises: list[tuple[int, int, int]] = []
        #: When a revoke was sent, whatever became of it.
        self.revoked_ns: list[int] = []
        #: When somebody knew that there is no such lease any more.
        self.gone_ns: list[int] = []


def _leases(history: Sequence[Operation]) -> dict[int, _Leased]:
    leases = {op.request.lease: _Leased() for op in history if isinstance(op.request, Grant) and op.outcome == "ok"}
    for op in history:
        request, answer = op.request, op.answer
        if not isinstance(request, (Grant, KeepAlive, Revoke)) or request.lease not in leases:
            continue
        one = leases[request.lease]
        if isinstance(request, Revoke):
            if op.code != "NOT_SENT":
                one.revoked_ns.append(op.call_ns)
            if op.outcome == "ok":
                one.gone_ns.append(op.return_ns)
        elif isinstance(answer, Lease):
            if answer.ttl_s > 0:
                one.promises.append((op.call_ns, op.return_ns, op.call_ns + answer.ttl_s * _SECOND))
            else:
                one.gone_ns.append(op.return_ns)
    return leases


class _Log:
    """The revisions that were delivered, and when any watch delivered them first; events of those about leased keys."""

    def __init__(self, recorded: Recorded) -> None:
        columns = recorded.columns
        events, kvs = columns.events, columns.kvs
        row = events.kv[events.event]
        revision = kvs.modified[row]
        self.revisions, place = np.unique(revision, return_inverse=True)
        self.seen_ns = np.full(len(self.revisions), np.iinfo(np.int64).max)
        np.minimum.at(self.seen_ns, place, events.messages.t_ns[events.message])
        leased = np.unique(
            np.append(kvs.key[row][kvs.lease[row] != 0], kvs.key[columns.based][kvs.lease[columns.based] != 0])
        )
        concerned = np.zeros(len(self.revisions), bool)
        concerned[place[np.isin(kvs.key[row], leased)]] = True
        #: By revision, as the first message that had any of it brought them.
        self.events: dict[int, list[_Event]] = {}
        brought: dict[int, int] = {}
        for at in np.flatnonzero(concerned[place]).tolist():
            of, message = int(revision[at]), int(events.message[at])
            if brought.setdefault(of, message) == message:
                kv = int(row[at])
                put = int(kvs.version[kv]) != 0
                event = _Event(columns.keys[kvs.key[kv]], put, int(kvs.lease[kv]) if put else 0)
                self.events.setdefault(of, []).append(event)
        self.problem = self._problem(recorded)

    def seen(self, revision: int) -> int:
        """Give when a revision was first seen."""
        return int(self.seen_ns[np.searchsorted(self.revisions, revision)])

    def _problem(self, recorded: Recorded) -> str:
        if not len(self.revisions):
            return "no watch has delivered anything"
        base = recorded.base
        if base is None:
            return "the state before the run was not read"
        later = self.revisions[self.revisions > base.revision]
        holes = np.flatnonzero(later != base.revision + 1 + np.arange(len(later)))
        if len(holes):
            return f"no watch has delivered revision {base.revision + 1 + int(holes[0])}"
        return ""


class _Event(NamedTuple):
    """What an event did to a key: whether it put it, and with which lease."""

    key: bytes
    put: bool
    lease: int


class _Judge:
    """Replays the log, and holds every end of a lease against what was promised."""

    def __init__(self, recorded: Recorded, log: _Log, leases: Mapping[int, _Leased]) -> None:
        self._recorded = recorded
        self._log = log
        self._leases = leases
        ops = recorded.columns.operations
        self._asked = set(ops.revision[(ops.flags & EFFECT) != 0].tolist())
        self._open = [op for op in recorded.columns.general.values() if op.outcome == "unknown" and _may_delete(op)]
        #: From which revision on a lease has no keys, by lease; those that have some at the end are not in it.
        self._empty_from: dict[int, int] = {}
        self._over: dict[int, int] = {}
        self.problems: list[str] = []
        self.ended = 0
        self.unclear = 0
        self.margin_ns: int | None = None

    def replay(self) -> None:
        """Go through the log, revision by revision."""
        attached: dict[int, set[bytes]] = {}
        lease_of: dict[bytes, int] = {}
        base = self._recorded.base
        assert base is not None
        for kv in base.kvs:
            if kv.lease:
                lease_of[kv.key] = kv.lease
                attached.setdefault(kv.lease, set()).add(kv.key)
        # A revision that says nothing of a key that ever had a lease neither attaches nor ends anything.
        for revision, events in sorted(self._log.events.items()):
            self._ends(revision, events, attached, lease_of)
            for event in events:
                key = event.key
                before, after = lease_of.pop(key, 0), event.lease
                if before:
                    attached[before].discard(key)
                    if not attached[before]:
                        self._empty_from[before] = revision
                if after:
                    lease_of[key] = after
                    attached.setdefault(after, set()).add(key)
                    self._empty_from.pop(after, None)
                    if after in self._over:
                        self.problems.append(
                            f"at revision {revision} a key was attached to lease {after:x}, which had ended at"
                            f" revision {self._over[after]}"
                        )
        self._attached = attached

    def _ends(
        self, revision: int, events: Sequence[_Event], attached: Mapping[int, set[bytes]], lease_of: Mapping[bytes, int]
    ) -> None:
        """Judge a revision that nobody asked for, if it ends a lease of ours."""
        if revision in self._asked or any(event.put for event in events):
            return
        keys = {event.key for event in events}
        for lease in {lease_of.get(key, 0) for key in keys} & self._leases.keys():
            seen_ns = self._log.seen(revision)
            one = self._leases[lease]
            whole = attached[lease] == keys
            deleted = any(op.call_ns < seen_ns and _covers(op, keys) for op in self._open)
            if any(sent_ns < seen_ns for sent_ns in one.revoked_ns):
                # A delete without an answer may have taken all of its keys, and the revoke comes after it.
                if whole and not deleted:
                    self._over[lease] = revision
                continue
            if deleted:
                self.unclear += 1
                continue
            self._over[lease] = revision
            self._judge_end(revision, lease, one, seen_ns)
            if not whole:
                left = sorted(attached[lease] - keys) or sorted(keys - attached[lease])
                self.problems.append(
                    f"lease {lease:x} ended at revision {revision}, and its keys did not go together:"
                    f" {left[0].decode(errors='replace')}"
                )

    def _judge_end(self, revision: int, lease: int, one: _Leased, seen_ns: int) -> None:
        self.ended += 1
        sent_ns, _, until_ns = max(
            (promise for promise in one.promises if promise[0] < seen_ns), key=lambda promise: promise[2]
        )
        if seen_ns < until_ns:
            self.problems.append(
                f"lease {lease:x} ended early, at revision {revision}: its keys were seen to go"
                f" {(seen_ns - sent_ns) / _SECOND:.3f} s after a grant or keep-alive was sent that promised"
                f" {(until_ns - sent_ns) / _SECOND:g} s"
            )
        else:
            margin_ns = seen_ns - until_ns
            self.margin_ns = margin_ns if self.margin_ns is None else min(margin_ns, self.margin_ns)
        alive = [promise for promise in one.promises if promise[0] > seen_ns]
        if alive:
            self.problems.append(
                f"lease {lease:x} ended at revision {revision}, and a keep-alive sent"
                f" {(alive[0][0] - seen_ns) / _SECOND:.3f} s later found it alive"
            )

    def ask_the_gone(self) -> None:
        """Hold what was asked after a lease was known to be gone against when its keys went."""
        ops = self._recorded.columns.operations
        # Answers whose revision is that of the whole cluster's state when they were asked for, or later.
        exact = (ops.outcome == OK) & ops.of_kind("put", "delete", "range", "txn") & ((ops.flags & LOCAL) == 0)
        exact &= ~(ops.of_kind("range") & ((ops.flags & OLD) != 0))
        order = np.flatnonzero(exact)[np.argsort(ops.call[exact], kind="stable")]
        calls = ops.call[order].tolist()
        least = np.minimum.accumulate(ops.revision[order][::-1])[::-1].tolist()
        newest = int(self._log.revisions[-1])
        for lease, one in self._leases.items():
            if not one.gone_ns or not (self._attached.get(lease) or lease in self._empty_from):
                continue
            later = bisect_right(calls, min(one.gone_ns))
            empty_from = newest + 1 if self._attached.get(lease) else self._empty_from[lease]
            if later < len(least) and least[later] < empty_from and least[later] <= newest:
                self.problems.append(
                    f"lease {lease:x} was known to be gone, and still had keys at revision {least[later]},"
                    f" which was answered to somebody who asked later"
                )


def _may_delete(op: Operation) -> bool:
    return isinstance(op.request, Delete) or (
        isinstance(op.request, Txn)
        and any(isinstance(inner, (Delete, Txn)) for inner in (*op.request.success, *op.request.failure))
    )


def _covers(op: Operation, keys: set[bytes]) -> bool:
    request = op.request
    inner = (*request.success, *request.failure) if isinstance(request, Txn) else (request,)
    for one in inner:
        if isinstance(one, Txn):
            return True
        if isinstance(one, Delete):
            first, after = in_range(one.key, one.range_end)
            if any(first <= key and (after is None or key < after) for key in keys):
                return True
    return False
