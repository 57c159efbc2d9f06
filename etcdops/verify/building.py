"""What builds a history's columns, whatever they are built from; here from operations and deliveries."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from etcdops.answers import DeleteResult, Event, KeyValue, PutResult, RangeResult, TxnResult
from etcdops.model import Answer
from etcdops.ops import Grant, Txn
from etcdops.verify.columns import HAPPENINGS, Columns, Events, Fetch, Kvs, Messages, Operations, puts_of
from etcdops.verify.numbering import Numbers, OwnNumbers, Texts
from etcdops.verify.parts import Part, Translation
from etcdops.verify.shapes import ABSENT, CODES, PLAIN, Ints, Shapes, Table
from etcdops.workload.calls import OUTCOMES
from etcdops.workload.deliveries import Delivery
from etcdops.workload.encoding import KINDS
from etcdops.workload.history import Operation, Request

if TYPE_CHECKING:
    from pathlib import Path

    from etcdops.verify.recorded import State

__all__ = ["Builder", "columns_of"]


class Builder:
    """Takes what a history is made of and gives the columns.

    Keys and values may be bytes or, with `read` to make bytes of it, text.
    """

    def __init__(self, run: str, members: Sequence[str], *, read: Callable[[Any], bytes] | None = None) -> None:
        self.run = run
        self.members = list(members)
        self.general: dict[int, Operation] = {}
        self.failed: dict[int, Operation] = {}
        self.streams = Numbers()
        self.shapes = Shapes(self.key, self.value)
        self.granted, self.attempts = Table("iq"), Table("iiq")
        self.events, self.delivered = Table("ii"), Table("ii")
        # Members' and watches' numbers, kinds, outcomes and flags are small.
        self._messages, self._operations = Table("qhibqqq"), Table("qhhqqqqbih")
        self._read = read
        self._numbers = {name: number for number, name in enumerate(members)}
        self._keys, self._values = Numbers(), OwnNumbers() if read else Numbers()
        #: Numbers by key and by value, for a lookup by `map`, and those of many values.
        self.key_of, self.value_of = self._keys.__getitem__, self._values.__getitem__
        self.values_of: Callable[[Sequence[Any]], list[int]] = self._values.of
        self._kvs = Table("iqqqqq")

    def member(self, name: str) -> int:
        """Give a member's number."""
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self.members)
            self.members.append(name)
        return number

    def key(self, key: Any) -> int:
        """Give the number that a key has while this builds."""
        return self._keys[key]

    def value(self, value: Any) -> int:
        """Give a value's number."""
        return self._values[value]

    def kv(self, key: Any, value: Any, created: int, modified: int, version: int, lease: int) -> int:
        """Give a new row for what a key was."""
        self._kvs.add(self.key(key), self.value(value), created, modified, version, lease)
        return len(self._kvs) - 1

    def add_kvs(self, *columns: Sequence[int]) -> int:
        """Take many such rows, with keys' and values' numbers, and give the first."""
        self._kvs.add_all(*columns)
        return len(self._kvs) - len(columns[0])

    def add_messages(self, member: int, what: list[int], **columns: list[int]) -> int:
        """Take messages of one member, and give the number of the first."""
        first = len(self._messages)
        zeros = np.zeros(len(what), np.int64)
        made = Messages(member=zeros + member, what=np.array(what), newest=zeros, **columns)  # type: ignore[arg-type]
        self._messages.add_all(*made)
        return first

    def add_operations(self, flags: list[int], outcome: list[int], **columns: Sequence[int] | Ints) -> None:
        """Take operations."""
        self._operations.add_all(*Operations(flags=flags, outcome=outcome, **columns))  # type: ignore[arg-type]

    @property
    def messages(self) -> int:
        """How many messages were taken."""
        return len(self._messages)

    @property
    def operations(self) -> int:
        """How many operations were taken."""
        return len(self._operations)

    def fail(self, number: int, request: object) -> None:
        """Take note of what an operation that failed would have put."""
        for put in puts_of(request):
            self.attempts.add(number, self.key(put.key), self.value(put.value))

    def give(self, counts: dict[Path, int]) -> Part:
        """Give the operations that were taken as a part of a history; the builder is spent. It has taken no events."""
        return Part(
            list(self._keys),
            list(self._values),
            self.members,
            list(self.streams),
            self.shapes.bounds,
            self._kvs.columns(),
            self._operations.columns(),
            *self.shapes.given(),
            self.granted.columns(),
            self.attempts.columns(),
            self.general,
            self.failed,
            counts,
        )

    def absorb(self, part: Part) -> None:
        """Take the operations of a part, which come after all that was taken."""
        shapes = self.shapes
        to = Translation(
            keys=_numbers(self.key, part.keys),
            values=_numbers(self.value, part.values),
            members=_numbers(self.member, part.members),
            streams=_numbers(self.streams.__getitem__, part.streams),
            bounds=_numbers(shapes.bound_of, part.bounds),
            kvs=len(self._kvs),
            operations=self.operations,
            states=len(shapes.states),
        )
        key, value, *numbers = part.kvs
        self._kvs.add_all(to.keys[key], to.value(value), *numbers)
        done = Operations(*part.operations)
        self._operations.add_all(*done._replace(stream=to.streams[done.stream], member=to.members[done.member]))
        shapes.absorb(part, to)
        number, lease = part.granted
        self.granted.add_all(number + to.operations, lease)
        number, key, value = part.attempts
        self.attempts.add_all(number + to.operations, to.keys[key], to.value(value))
        for own, others in ((self.general, part.general), (self.failed, part.failed)):
            own.update((number + to.operations, op) for number, op in others.items())

    def finish(self, base: State, based: Ints, fetch: Fetch, *, ordered: bool = True) -> Columns:
        """Give the columns; the builder is spent. `fetch` gives operations by their numbers, which are in order.

        Operations that are not `ordered` are put into the order in which they ended.
        """
        read = self._read or (lambda key: key)
        told = [read(key) for key in self._keys]
        self._keys.clear()
        keys = sorted(set(told))
        place = {key: number for number, key in enumerate(keys)}
        rank = np.fromiter((place[key] for key in told), np.int64, len(told))
        kvs = Kvs(*self._kvs.columns())
        kvs = kvs._replace(key=rank[kvs.key])
        attempts = self.attempts.columns()
        attempts[1] = rank[attempts[1]]

        def order(bounds: list[Any]) -> Ints:
            return np.array([len(keys) if b is None else bisect_left(keys, read(b)) for b in bounds], np.int64)

        messages = Messages(*self._messages.columns())
        (message, event), (kv, previous) = self.delivered.columns(), self.events.columns()
        if len(message):
            # The rows of one message are together.
            first = np.flatnonzero(np.diff(message, prepend=-1))
            messages.newest[message[first]] = np.maximum.reduceat(kvs.modified[kv[event]], first)
        values = list(self._values)
        self._values.clear()
        operations, rows = self._operations.columns(), self.shapes.finish(rank, kvs.key, order)
        granted = self.granted.columns()
        if not ordered:
            fetch = self._put_in_order(operations, [*rows, granted, attempts], fetch)
        return Columns(
            self.run,
            tuple(self.members),
            base.revision,
            based,
            keys,
            Texts(values, self._read) if self._read else values,
            kvs,
            Operations(*operations),
            Events(kv, previous, message, event, messages),
            rows,
            granted,
            attempts,
            self.general,
            self.failed,
            fetch,
            tuple(self.streams),
        )

    def _put_in_order(self, operations: list[Ints], tables: Sequence[list[Ints]], fetch: Fetch) -> Fetch:
        """Put operations into the order in which they ended, in place, and give what fetches them then."""
        back = operations[Operations._fields.index("back")]
        if not np.any(back[1:] < back[:-1]):
            return fetch
        order = np.argsort(back, kind="stable").astype(np.int32)
        place: Any = np.empty_like(order)
        place[order] = np.arange(len(order), dtype=np.int32)
        for at in range(len(operations)):
            # One after the other, for there may be millions.
            operations[at] = operations[at][order]
        for table in tables:
            table[0] = place[table[0]]
        for some in (self.general, self.failed):
            moved = sorted(((int(place[number]), op) for number, op in some.items()), key=lambda one: one[0])
            some.clear()
            some.update(moved)

        def fetch_moved(numbers: Sequence[int]) -> list[Operation]:
            lie = order[np.array(numbers, np.int64)].tolist()
            found = dict(zip(sorted(lie), fetch(sorted(lie)), strict=True))
            return [found[number] for number in lie]

        return fetch_moved


def _numbers(number_of: Callable[[Any], int], some: Sequence[Any]) -> Ints:
    return np.array([*map(number_of, some)], np.int64)


class _Objects(Builder):
    """Takes operations and deliveries as they are read from a record."""

    def __init__(self, run: str, members: Sequence[str]) -> None:
        super().__init__(run, members)
        self._known_kvs: dict[KeyValue, int] = {}
        self._known_events: dict[Event, int] = {}

    def row(self, kv: KeyValue | None) -> int:
        if kv is None:
            return ABSENT
        row = self._known_kvs.get(kv)
        if row is None:
            row = self._known_kvs[kv] = self.kv(*kv)
        return row

    def take_history(self, history: Sequence[Operation]) -> None:
        flags = [self._take(number, op) for number, op in enumerate(history)]
        self.add_operations(
            flags,
            [OUTCOMES[op.outcome] for op in history],
            id=[op.id for op in history],
            stream=[self.streams[op.stream] for op in history],
            member=[self.member(op.member) for op in history],
            scheduled=[op.scheduled_ns for op in history],
            call=[op.call_ns for op in history],
            back=[op.return_ns for op in history],
            revision=[op.revision for op in history],
            attempt=[op.attempt for op in history],
        )

    def _take(self, number: int, op: Operation) -> int:
        request = op.request
        flags = CODES[op.kind]
        if op.outcome == "ok":
            flags = self.shapes.take(number, _plain_request(request), self._plain_answer(op.answer), op.revision)
            if not flags & PLAIN:
                self.general[number] = op
        elif op.outcome == "unknown":
            self.general[number] = op
        else:
            self.failed[number] = op
            self.fail(number, request)
        if isinstance(request, Grant) and op.outcome != "failed":
            self.granted.add(number, request.lease)
        return flags

    def _plain_answer(self, answer: Answer | None) -> Any:
        if answer is None or isinstance(answer, PutResult):
            return self.row(answer and answer.prev_kv)
        if isinstance(answer, RangeResult):
            return answer.count, answer.more, [*map(self.row, answer.kvs)]
        if isinstance(answer, DeleteResult):
            return answer.deleted, [*map(self.row, answer.prev_kvs)]
        if isinstance(answer, TxnResult):
            results = [(one.revision, _ANSWERS[type(one)], self._plain_answer(one)) for one in answer.results]
            return answer.succeeded, results
        return answer

    def take_deliveries(self, member: str, deliveries: Sequence[Delivery]) -> None:
        first = self.add_messages(
            self.member(member),
            [HAPPENINGS.index(one.what) for one in deliveries],
            t_ns=[one.t_ns for one in deliveries],
            watch=[one.watch for one in deliveries],
            revision=[one.revision for one in deliveries],
            start=[one.start_revision for one in deliveries],
        )
        for message, delivery in enumerate(deliveries, start=first):
            for event in delivery.events:
                number = self._known_events.get(event)
                if number is None:
                    number = self._known_events[event] = len(self._known_events)
                    # A delete's event tells only what key went, and when.
                    kv = event.kv if event.kind == "put" else KeyValue(event.kv[0], b"", 0, event.kv[3], 0, 0)
                    if event.kind == "put" and not kv.version:
                        # Only a delete has no version: what claims to be a put of none must not pass for one.
                        kv = kv._replace(version=-1)
                    self.events.add(self.row(kv), self.row(event.prev_kv))
                self.delivered.add(message, number)


_ANSWERS = {PutResult: "put", RangeResult: "range", DeleteResult: "delete", TxnResult: "txn"}


def _plain_request(request: Request) -> tuple[Any, ...]:
    """Give a request as it would be written, but with bytes, and with its defaults."""
    if isinstance(request, Txn):
        return ("txn", request.compares, *(tuple(map(_plain_request, ops)) for ops in request[1:]))
    return (KINDS[type(request)], *request)


def columns_of(
    run: str,
    members: Sequence[str],
    base: State,
    history: Sequence[Operation],
    deliveries: Mapping[str, Sequence[Delivery]],
) -> Columns:
    """Give the columns of operations and of each member's deliveries, from a base state on."""
    builder = _Objects(run, members)
    based = np.array([builder.row(kv) for kv in base.kvs], np.int64)
    for member, messages in deliveries.items():
        builder.take_deliveries(member, messages)
    builder.take_history(history)
    return builder.finish(base, based, lambda numbers: [history[number] for number in numbers])
