"""Tells whether a small run is legal, by trying every order of its operations: slow, and easy to believe.

It knows the reference model and what etcd promises, and nothing of the checkers. Four questions are kept apart, as
different checks own them: `order` (is there an order of all operations that explains every answer, the log and the
final state?), `watch` (did each member's watch deliver what it should?), `members` (are the hashes equal?) and `leases`
(if there is an order, is there also one in which the leases exist to which keys are attached?).
"unclear" is what the record does not decide, or what no rule has an opinion on: any result of a check will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Literal, NamedTuple

from etcdops.answers import Event, Lease, RangeResult, TxnResult
from etcdops.errors import EtcdError
from etcdops.model import Model
from etcdops.ops import Grant, KeepAlive, Range, Revoke, Txn, served_locally
from etcdops.verify.recorded import Recorded
from etcdops.workload.encoding import key_prefix
from etcdops.workload.history import Operation

Legality = Literal["legal", "illegal", "unclear"]
Log = dict[int, tuple[Event, ...]]

_MOST_STEPS = 200_000


class Judgement(NamedTuple):
    """What the oracle says of a run."""

    order: Legality
    watch: Legality
    members: Legality
    leases: Legality


def judge(recorded: Recorded) -> Judgement:
    """Give the truth about a run of a few operations."""
    log, conflict = merged(recorded)
    order: Legality
    leases: Legality
    if conflict:
        order, leases = "unclear" if conflict == "torn" else "illegal", "unclear"
    else:
        order, leases = _Orders(recorded, log).judge()
    return Judgement(order, _watches(recorded, log), _hashes(recorded), leases)


def merged(recorded: Recorded) -> tuple[Log, str]:
    """Give what all members together delivered, by revision, and how they contradict each other, if they do.

    "torn": one member delivered one revision in two different ways. "differs": members delivered it differently.
    """
    seen: dict[int, dict[str, set[tuple[Event, ...]]]] = {}
    for member, deliveries in recorded.deliveries.items():
        for delivery in deliveries:
            for revision, events in _revisions(delivery.events):
                seen.setdefault(revision, {}).setdefault(member, set()).add(events)
    until = recorded.observed.tombstone or max(seen, default=0)
    inside = [by_member for revision, by_member in seen.items() if revision <= until]
    torn = any(len(ways) > 1 for by_member in inside for ways in by_member.values())
    differs = any(len(set().union(*by_member.values())) > 1 for by_member in inside)
    log = {revision: next(iter(next(iter(by_member.values())))) for revision, by_member in seen.items()}
    return log, "torn" if torn else "differs" if differs else ""


def _revisions(events: Sequence[Event]) -> Iterator[tuple[int, tuple[Event, ...]]]:
    """Part the events of a message where the revision changes."""
    start = 0
    for end in range(1, len(events) + 1):
        if end == len(events) or events[end].kv.mod_revision != events[start].kv.mod_revision:
            yield events[start].kv.mod_revision, tuple(events[start:end])
            start = end


class _AnyLease(Model):
    """A store in which every lease exists."""

    class _Leases(dict[int, int]):
        def __contains__(self, lease: object) -> bool:
            return True

    def __init__(self, *, min_ttl_s: int = 2) -> None:
        super().__init__(min_ttl_s=min_ttl_s)
        self.leases = self._Leases()

    def copy(self) -> Model:
        twin = super().copy()
        twin.__class__ = _AnyLease
        twin.leases = self._Leases(self.leases)
        return twin

    def apply(self, op: Any) -> Any:
        if isinstance(op, Revoke):
            self.leases.setdefault(op.lease, 0)
        return super().apply(op)

    def evaluate(self, op: Any) -> Any:
        if isinstance(op, Grant):
            return Lease(op.lease, op.ttl_s, self.revision), ()
        return super().evaluate(op)


class _Orders:
    """The search through all orders."""

    def __init__(self, recorded: Recorded, log: Log) -> None:
        observed = recorded.observed
        self._recorded = recorded
        self._log = log
        self._end = observed.tombstone
        self._last = max((revision for revision in log if revision <= self._end), default=0)
        self._prefix = key_prefix(observed.run).encode()
        self._steps = 0
        self._doubt = not self._end
        history = recorded.history
        answered = [op for op in history if op.outcome == "ok"]
        self._local = [op for op in answered if isinstance(op.request, KeepAlive) or served_locally(op.request)]
        local = {op.id for op in self._local}
        agreed = [op for op in answered if op.id not in local]
        # Nothing is known of the log after its end, and so no claim is made about what has its revision there.
        self._doubt |= any(op.revision > self._end for op in answered)
        self._ops = {op.id: op for op in agreed if op.revision <= self._end}
        self._ops |= {op.id: op for op in history if op.outcome == "unknown" and not isinstance(op.request, KeepAlive)}
        self._floors = {op.id: self._floor(op) for op in self._ops.values()}

    def _floor(self, op: Operation) -> int:
        """Give the newest revision that somebody was shown before `op` was called."""
        shown = [read.revision for read in self._local if read.return_ns < op.call_ns]
        for deliveries in self._recorded.deliveries.values():
            for delivery in deliveries:
                if delivery.t_ns < op.call_ns:
                    shown += [event.kv.mod_revision for event in delivery.events]
        return max(shown, default=0)

    def judge(self) -> tuple[Legality, Legality]:
        """Give whether there is an order, and whether there is one in which every lease that is used exists."""
        base = self._recorded.base
        if base is None:
            return "unclear", "unclear"
        back = self._goes_back()
        if back == "illegal":
            return back, "unclear"
        leases = {kv.lease: 60 for kv in base.kvs if kv.lease}
        strict = self._judge_from(Model.at(base.revision, base.kvs, leases), back)
        if strict != "illegal":
            return strict, strict
        lenient = self._judge_from(_AnyLease.at(base.revision, base.kvs, leases), back)
        return (strict, "unclear") if lenient == "illegal" else ("unclear", "illegal")

    def _judge_from(self, model: Model, back: Legality) -> Legality:
        required = frozenset(op.id for op in self._ops.values() if op.outcome == "ok")
        optional = frozenset(self._ops) - required
        if not self._local_reads_hold(model):
            return "illegal"
        found = self._search(model, required, optional)
        return "unclear" if found == "legal" and (self._doubt or back == "unclear") else found

    def _search(self, model: Model, required: frozenset[int], optional: frozenset[int]) -> Legality:
        self._steps += 1
        assert self._steps < _MOST_STEPS, "too large a run for the oracle"
        required = self._without_reads(model, required)
        at = model.revision
        if at == self._end and not required:
            return "legal" if self._final_state_holds(model) else "illegal"
        best: Legality = "illegal"
        if at < self._end and at + 1 not in self._log:
            if any(self._ops[number].revision == at + 1 and self._writes(model, number) for number in required):
                # Somebody was told of it, and yet it is not in a log that goes on: it is lost.
                return "illegal" if at < self._last else "unclear"
            best = "unclear"
        for after, gone in self._steps_from(model, required, optional):
            if not self._local_reads_hold(after, since=at):
                continue
            found = self._search(after, required - gone, optional - gone)
            if found == "legal":
                return found
            best = "unclear" if found == "unclear" else best
        return best

    def _writes(self, model: Model, number: int) -> bool:
        op = self._ops[number]
        answer, events = _evaluate(model, op)
        return op.may_write and bool(events) and _same(op.request, answer, op.answer)

    def _ready(self, model: Model, op: Operation, required: frozenset[int]) -> bool:
        """Whether real time lets `op` be next."""
        return model.revision >= self._floors[op.id] and not any(
            self._ops[other].return_ns < op.call_ns for other in required
        )

    def _without_reads(self, model: Model, required: frozenset[int]) -> frozenset[int]:
        """Place whatever can be and changes nothing: to wait with it would never help."""
        again = True
        while again:
            again = False
            for number in required:
                op = self._ops[number]
                if op.revision != model.revision or isinstance(op.request, (Grant, Revoke)):
                    continue
                answer, events = _evaluate(model, op)
                if not events and _same(op.request, answer, op.answer) and self._ready(model, op, required):
                    required -= {number}
                    again = True
                    break
        return required

    def _steps_from(
        self, model: Model, required: frozenset[int], optional: frozenset[int]
    ) -> Iterator[tuple[Model, frozenset[int]]]:
        """Give every state that can be next, and which operation led there, if one did."""
        expected = self._log.get(model.revision + 1)
        for number in sorted(required) + sorted(optional):
            op = self._ops[number]
            if not self._ready(model, op, required):
                continue
            answer, events = _evaluate(model, op)
            if answer is None or (number in required and not _same(op.request, answer, op.answer)):
                continue
            if not events and not isinstance(op.request, (Grant, Revoke)):
                continue
            if events and (model.revision >= self._end or expected is None or events != expected):
                continue
            after = model.copy()
            after.apply(op.request)  # type: ignore[arg-type]
            yield after, frozenset([number])
        if expected is None or model.revision >= self._end:
            return
        for lease in list(model.leases):
            if model.evaluate(Revoke(lease))[1] == expected:
                after = model.copy()
                after.apply(Revoke(lease))
                yield after, frozenset()
        ours = [event.kv.key.startswith(self._prefix) for event in expected]
        if not any(ours) and _consistent(model, expected):
            after = model.copy()
            after.commit(expected)
            yield after, frozenset()

    # -- what is read of a state

    def _final_state_holds(self, model: Model) -> bool:
        states = [self._recorded.final(member) for member in self._recorded.observed.members]
        if any(state is None for state in states):
            self._doubt = True
        return all(state is None or list(state.kvs) == model.span(b"\0", b"\0") for state in states)

    def _local_reads_hold(self, model: Model, since: int = -1) -> bool:
        """Whether what members answered by themselves at this revision is right; looked at once for each."""
        if model.revision == since:
            return True
        for op in self._local:
            if op.revision == model.revision and not isinstance(op.request, KeepAlive):
                answer, _ = _evaluate(model, op)
                if answer is None and isinstance(op.request, Range):
                    self._doubt = True
                elif not _same(op.request, answer, op.answer):
                    return False
        return True

    def _goes_back(self) -> Legality:
        """Whether a member's own answers go back while it lives. Only serializable reads have a rule of their own."""
        found: Legality = "legal"
        base = self._recorded.base
        assert base is not None
        answered = [op for op in self._recorded.history if op.outcome == "ok"]
        faults = self._recorded.observed.faults
        for b in self._local:
            if b.revision < base.revision:
                found = "unclear"
            for a in answered:
                if a.member != b.member or a.revision <= b.revision or a.return_ns >= b.call_ns:
                    continue
                if any(fault.member == a.member for fault in faults):
                    between = [f for f in faults if f.member == a.member and f.injected_ns >= a.call_ns]
                    if between:
                        found = "unclear" if any(f.inject_ns > b.return_ns for f in between) else found
                        continue
                if a in self._local and not isinstance(a.request, KeepAlive) and not isinstance(b.request, KeepAlive):
                    return "illegal"
                found = "unclear"
        return found


def _same(request: Any, answer: Any, told: Any) -> bool:
    if isinstance(answer, Lease) and isinstance(told, Lease):
        # The shortest time to live depends on the cluster's timing.
        return (answer.lease_id, answer.revision) == (told.lease_id, told.revision)
    same: bool = _without_ties(request, answer) == _without_ties(request, told)
    return same


def _without_ties(request: Any, answer: Any) -> Any:
    """Give an answer without the order of keys that are equal in what they are sorted by: etcd's sort is not stable."""
    if isinstance(request, Range) and request.sort_target != "key" and isinstance(answer, RangeResult):
        groups = groupby(answer.kvs, attrgetter(request.sort_target))
        return answer._replace(kvs=tuple(kv for _, kvs in groups for kv in sorted(kvs)))
    if isinstance(request, Txn) and isinstance(answer, TxnResult):
        branch = request.success if answer.succeeded else request.failure
        if len(branch) == len(answer.results):
            return answer._replace(results=tuple(map(_without_ties, branch, answer.results)))
    return answer


def _evaluate(model: Model, op: Operation) -> tuple[object, tuple[Event, ...]]:
    try:
        return model.evaluate(op.request)  # type: ignore[arg-type]
    except EtcdError:
        return None, ()


def _consistent(model: Model, events: Sequence[Event]) -> bool:
    """Whether a write of others can have made these events of the next revision."""
    keys = [event.kv.key for event in events]
    if len(set(keys)) < len(keys):
        return False
    for kind, kv, prev_kv in events:
        old = model.get(kv.key)
        if prev_kv != old or kv.mod_revision != model.revision + 1:
            return False
        if kind == "delete":
            if old is None or kv[1:] != (b"", 0, kv.mod_revision, 0, 0):
                return False
        elif (kv.create_revision, kv.version) != (
            (old.create_revision, old.version + 1) if old else (kv.mod_revision, 1)
        ):
            return False
    return True


def _watches(recorded: Recorded, log: Log) -> Legality:
    """Whether each member's watches kept their promises, given the log."""
    base = recorded.base
    if base is None:
        return "unclear"
    until = recorded.observed.tombstone or max(log, default=0)
    # What is delivered after the tombstone is outside the window.
    log = {revision: events for revision, events in log.items() if revision <= until}
    found: Legality = "legal"
    for deliveries in recorded.deliveries.values():
        reached, watch, next_ = base.revision, 0, 0
        for delivery in deliveries:
            if delivery.what == "opened":
                if delivery.start_revision > reached + 1 or delivery.watch <= watch:
                    found = "unclear"
                watch, next_ = delivery.watch, delivery.start_revision
                continue
            if delivery.watch != watch:
                found = "unclear"
            if delivery.what == "progress":
                if any(next_ <= revision <= delivery.revision for revision in log):
                    return "illegal"
                if delivery.revision < next_ - 1:
                    found = "unclear"
                reached, next_ = max(reached, delivery.revision), max(next_, delivery.revision + 1)
            for revision, events in _revisions(delivery.events):
                if revision > until:
                    reached = max(reached, revision)
                    continue
                if revision < next_ or any(next_ <= between < revision for between in log) or events != log[revision]:
                    return "illegal"
                next_, reached = revision + 1, max(reached, revision)
                if delivery.revision < revision:
                    found = "unclear"
    return found


def _hashes(recorded: Recorded) -> Legality:
    hashes = recorded.observed.hashes.values()
    if len({(hash_.revision, hash_.compact_revision) for hash_ in hashes}) > 1 or any(hash_.error for hash_ in hashes):
        return "unclear"
    return "legal" if len({hash_.hash for hash_ in hashes}) <= 1 else "illegal"
