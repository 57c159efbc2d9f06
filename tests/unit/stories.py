"""Histories made by hand or by chance, for the tests of the checks: told by the reference model, then bent."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from etcdops.answers import Event, Lease
from etcdops.model import Answer, Model
from etcdops.ops import Compact, Compare, Delete, Grant, KeepAlive, Put, Range, Revoke, Txn, served_locally
from etcdops.verify.members_agree import MemberHash
from etcdops.verify.recorded import Final, Observed, Recorded, State
from etcdops.workload.deliveries import Delivery
from etcdops.workload.history import Operation, Request

RUN = "run1"
MEMBERS = ("ironman", "thor", "deadpool")
MS = 1_000_000


def key(name: str) -> bytes:
    """Give a key of the run."""
    return f"etcdops/{RUN}/{name}".encode()


def value(number: int) -> bytes:
    """Give the value that operation `number` writes."""
    return f"{RUN}/{number}".encode()


class Story:
    """A legal history, told one operation after another: each takes 2 ms, and they do not overlap unless told so."""

    def __init__(self, *, revision: int = 1, kvs: Sequence[Any] = ()) -> None:
        self.model = Model.at(revision, kvs) if revision > 1 else Model()
        self.base = State(revision, tuple(self.model.span(b"\0", b"\0")))
        self.history: list[Operation] = []
        self.log: list[tuple[int, tuple[Event, ...]]] = []
        self.now = 0

    def next_id(self) -> int:
        """Give the id that the next operation will have."""
        return len(self.history) + 1

    def do(
        self,
        request: Request,
        member: str = "thor",
        *,
        stream: str = "mixed",
        call_ns: int | None = None,
        return_ns: int | None = None,
        **changed: Any,
    ) -> Operation:
        """Apply a request and record what the model answers. `changed` fields say otherwise than the model."""
        before = self.model.revision
        answer: Answer
        if isinstance(request, KeepAlive):
            answer = Lease(request.lease, self.model.leases.get(request.lease, 0), before)
        else:
            answer = self.model.apply(request)
        self.now += 2 * MS
        if before < self.model.revision:
            self._logged()
        revision = answer if isinstance(answer, int) else answer.revision
        fields = {"answer": answer, "revision": revision, "outcome": "ok"} | changed
        return self.record(request, member, stream=stream, call_ns=call_ns, return_ns=return_ns, **fields)

    def silently(self, request: Any) -> None:
        """Apply a request of which the record knows nothing: somebody else's, or the end of a lease."""
        before = self.model.revision
        self.model.apply(request)
        self.now += 2 * MS
        if self.model.revision > before:
            self._logged()

    def _logged(self) -> None:
        self.log.append((self.now - MS // 2, self.model.events(self.model.revision)))

    def record(
        self,
        request: Request,
        member: str = "thor",
        *,
        stream: str = "mixed",
        call_ns: int | None = None,
        return_ns: int | None = None,
        **fields: Any,
    ) -> Operation:
        """Record an operation that changes nothing."""
        if not fields.get("answer") and fields.get("outcome") != "ok":
            self.now += 2 * MS
        call = self.now - 2 * MS + 1 if call_ns is None else call_ns
        op = Operation(
            id=self.next_id(),
            stream=stream,
            process=1,
            member=member,
            request=request,
            scheduled_ns=call,
            call_ns=call,
            return_ns=self.now if return_ns is None else return_ns,
            **fields,
        )
        self.history.append(op)
        return op

    def put(self, name: str, member: str = "thor", **options: Any) -> Operation:
        """Put a key to the value of its own that the operation has."""
        return self.do(Put(key(name), value(self.next_id())), member, **options)

    def get(self, name: str, member: str = "thor", *, serializable: bool = False, **options: Any) -> Operation:
        """Read a key."""
        return self.do(Range(key(name), serializable=serializable), member, **options)

    def lost(self, request: Request, *, applied: bool = True, outcome: str = "unknown", **options: Any) -> Operation:
        """Record a request of unknown outcome."""
        if applied:
            self.model.apply(request)  # type: ignore[arg-type]  # no keep-alive is lost here
            self.now += 2 * MS
            self._logged()
            self.now -= 2 * MS
        code = "DEADLINE_EXCEEDED" if outcome == "unknown" else "INVALID_ARGUMENT"
        return self.record(request, outcome=outcome, code=code, **options)

    def told(self, **changed: Any) -> Recorded:
        """Close the window with a tombstone, and give the whole."""
        self.do(Put(key("tombstone"), value(self.next_id())), stream="tombstone")
        last = self.model.revision
        final = State(last, tuple(self.model.span(b"\0", b"\0")))
        observed: dict[str, Any] = {
            "run": RUN,
            "members": MEMBERS,
            "states": (self.base, final),
            "base": 0,
            "tombstone": last,
            "tombstone_ns": self.now,
            "final": {member: Final(1) for member in MEMBERS},
            "hashes": {member: MemberHash(7, last) for member in MEMBERS},
        } | changed
        return Recorded(Observed(**observed), self.history, {member: self.deliveries() for member in MEMBERS})

    def deliveries(self) -> list[Delivery]:
        """Give what a member's watch delivered: a message for each revision."""
        opened = Delivery(0, 1, "opened", self.base.revision, self.base.revision + 1)
        return [
            opened,
            *(Delivery(t_ns, 1, "events", events[0].kv.mod_revision, events=events) for t_ns, events in self.log),
        ]


def replaced(recorded: Recorded, number: int, **changed: Any) -> Recorded:
    """Give a history in which one operation, by its id, is another."""
    history = [msgspec.structs.replace(op, **changed) if op.id == number else op for op in recorded.history]
    return recorded._replace(history=history)


def redelivered(
    recorded: Recorded, bend: Callable[[Delivery], Delivery | None], members: Sequence[str] = MEMBERS
) -> Recorded:
    """Give a history in which the members' deliveries are bent one by one; None drops one."""
    deliveries = dict(recorded.deliveries)
    for member in members:
        bent = (bend(one) if one.events else one for one in recorded.deliveries[member])
        deliveries[member] = [one for one in bent if one is not None]
    return recorded._replace(deliveries=deliveries)


def random_story(seed: int, operations: int, keys: int = 6) -> Story:
    """Give a legal history of every kind of operation, sequential, with serializable reads of older states."""
    chance = random.Random(seed)
    story = Story()
    names = [f"k{number}" for number in range(keys)]
    leases: list[int] = []
    snapshots: dict[str, Model] = {member: story.model.copy() for member in MEMBERS}

    def some_key() -> bytes:
        return key(chance.choice(names))

    def ends() -> bytes:
        return chance.choice([b"", b"", b"", key("k3"), key("l"), b"\0"])

    def number_() -> int:
        return story.next_id()

    def simple() -> Put | Range | Delete:
        pick = chance.random()
        if pick < 0.4:
            lease = chance.choice(leases) if leases and chance.random() < 0.3 else 0
            return Put(some_key(), value(number_()), lease, prev_kv=chance.random() < 0.4)
        if pick < 0.7:
            revision = chance.randint(1, story.model.revision) if chance.random() < 0.2 else 0
            return Range(
                some_key(),
                ends(),
                limit=chance.choice([0, 0, 1, 2]),
                revision=revision,
                keys_only=chance.random() < 0.1,
                count_only=chance.random() < 0.1,
                sort_order=chance.choice(["none", "none", "ascend", "descend"]),
                sort_target=chance.choice(["key", "key", "mod_revision"]),
            )
        end = chance.choice([b"", b"", key("k2")])
        return Delete(some_key(), end, prev_kv=chance.random() < 0.4)

    def compare() -> Compare:
        name = some_key()
        kv = story.model.get(name)
        target = chance.choice(["version", "create_revision", "mod_revision", "value", "lease"])
        wrong: Any = b"other" if target == "value" else 1
        operand = getattr(kv, target) if kv and chance.random() < 0.7 else wrong
        end = key("l") if chance.random() < 0.1 else b""
        return Compare(name, target, chance.choice(["=", "=", "!=", "<", ">"]), operand, end)

    def branch(depth: int) -> tuple[Any, ...]:
        made: list[Any] = []
        for _ in range(chance.choice([0, 1, 1, 2, 3])):
            made.append(txn(depth - 1) if depth and chance.random() < 0.15 else simple())
        return tuple(made)

    def txn(depth: int) -> Txn:
        return Txn(tuple(compare() for _ in range(chance.choice([0, 1, 1, 2]))), branch(depth), branch(depth))

    while len(story.history) < operations:
        member = chance.choice(MEMBERS)
        pick = chance.random()
        request: Any
        if pick < 0.06:
            leases.append(1000 + number_())
            request = Grant(leases[-1], chance.choice([1, 5, 60]))
        elif pick < 0.09 and leases:
            request = KeepAlive(chance.choice(leases))
        elif pick < 0.12 and leases:
            request = Revoke(leases.pop(chance.randrange(len(leases))))
            if chance.random() < 0.4:
                story.silently(request)
                continue
        elif pick < 0.14:
            story.silently(Put(b"foreign/" + some_key(), b"x"))
            continue
        elif pick < 0.22:
            if chance.random() < 0.5:
                snapshots[member] = story.model.copy()
            request = Range(some_key(), ends(), serializable=True)
            answer = snapshots[member].apply(request)
            story.now += 2 * MS
            story.record(request, member, answer=answer, revision=answer.revision, outcome="ok")
            continue
        elif pick < 0.5:
            request = txn(1)
        else:
            request = simple()
        try:
            answer_, events = story.model.evaluate(request) if not isinstance(request, KeepAlive) else (None, ())
        except Exception:
            continue
        del answer_
        if events and chance.random() < 0.08:
            story.lost(request, applied=chance.random() < 0.6)
        elif isinstance(request, Compact) or not (isinstance(request, Txn) and served_locally(request)):
            story.do(request, member)
    return story
