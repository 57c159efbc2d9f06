"""A history as columns: what the checks work on.

Keys and values are numbers here; a key's number is its rank in the order of keys. What a key was at some time, as an
event or an answer tells it, is a row of one table. What has a common shape is kept in columns alone; the rest keeps its
`Operation`, and only the model can judge it. `building.py` builds them from objects, `reading.py` from a run's files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from etcdops.ops import Put, Txn
from etcdops.verify.shapes import CODES, KIND_BITS, LOCAL, WRITES, Ints, Rows
from etcdops.workload.calls import FAILED, OK, SERVICES, UNKNOWN, Arrivals, Calls, service_of
from etcdops.workload.history import Operation

__all__ = [
    "FAILED",
    "HAPPENINGS",
    "OK",
    "UNKNOWN",
    "Columns",
    "Events",
    "Fetch",
    "Ints",
    "Kvs",
    "Messages",
    "Operations",
    "puts_of",
]

#: What a message can be, by number.
HAPPENINGS = ("opened", "events", "progress", "ended")

#: Gives operations by their numbers, which are in order.
Fetch = Callable[[Sequence[int]], list[Operation]]


class Kvs(NamedTuple):
    """Keys as etcd keeps them, in columns. A version of 0 is a deletion."""

    key: Ints
    value: Ints
    created: Ints
    modified: Ints
    version: Ints
    lease: Ints

    def take(self, rows: Ints) -> Kvs:
        """Give the columns of some rows."""
        return Kvs(*(column[rows] for column in self))

    def same(self, one: Ints, other: Ints) -> npt.NDArray[np.bool_]:
        """Tell of pairs of rows whether they are equal; ABSENT equals itself alone."""
        equal = one == other
        # Rows are seldom equal that are not the same: a record may write one thing in two ways.
        rest = np.flatnonzero(~equal & (one >= 0) & (other >= 0))
        if len(rest):
            first, second = one[rest], other[rest]
            equal[rest] = np.logical_and.reduce([column[first] == column[second] for column in self])
        same: npt.NDArray[np.bool_] = equal
        return same


class Operations(NamedTuple):
    """Operations in columns, in the order of the record. `stream` and `member` are numbers of names."""

    id: Ints
    stream: Ints
    member: Ints
    scheduled: Ints
    call: Ints
    back: Ints
    revision: Ints
    outcome: Ints
    attempt: Ints
    flags: Ints

    def may_write(self) -> npt.NDArray[np.bool_]:
        """Tell of each that is ok whether it can make a revision, as `Operation.may_write` has it."""
        found: npt.NDArray[np.bool_] = self.of_kind("put", "delete", "revoke") | ((self.flags & WRITES) != 0)
        return found

    def of_kind(self, *names: str) -> npt.NDArray[np.bool_]:
        """Tell of each whether it is of one of these kinds."""
        found: npt.NDArray[np.bool_] = np.isin(
            self.flags >> KIND_BITS, [CODES[name] >> KIND_BITS for name in names if name in CODES]
        )
        return found


class Messages(NamedTuple):
    """What watches sent: when it came, through whom, on which watch, and what it was (see Delivery).

    `newest` is the newest revision of an event in it, 0 without any; `revision` the header's; `start` where an opened
    watch was to begin.
    """

    t_ns: Ints
    member: Ints
    watch: Ints
    what: Ints
    newest: Ints
    revision: Ints
    start: Ints


class Events(NamedTuple):
    """What was delivered: the different events, and which of them each message brought.

    `kv` and `previous` are rows of the table of keys, `previous` ABSENT where the watch gave none. `message` and
    `event` have a row for each event of each message, in order; each member's messages are together.
    """

    kv: Ints
    previous: Ints
    message: Ints
    event: Ints
    messages: Messages


class Columns(NamedTuple):
    """A window: operations, events and the state before the first of them.

    `kvs` has all that events and answers tell of keys, `based` its rows of the state before. `general` has the
    operations that no row of `rows` stands for, by their numbers: those of rare shapes and those of unknown outcome;
    `failed` has those that failed, and `fetch` gives the others. `granted` has a row for each lease that was granted,
    or may have been: the operation and the lease. `attempts` has one for each put of an operation that failed: the
    operation, key and value. `streams` are the names of streams, by number.
    """

    run: str
    members: tuple[str, ...]
    base: int
    based: Ints
    keys: list[bytes]
    values: Sequence[bytes]
    kvs: Kvs
    operations: Operations
    events: Events
    rows: Rows
    granted: list[Ints]
    attempts: list[Ints]
    general: dict[int, Operation]
    failed: dict[int, Operation]
    fetch: Fetch
    streams: tuple[str, ...]

    def operation(self, number: int) -> Operation:
        """Give an operation by its number: one that is not general may have to be fetched from its file."""
        return self.some_operations([number])[0]

    def some_operations(self, numbers: Iterable[int]) -> list[Operation]:
        """Give operations by their numbers, in the order of these; together it is quicker than one by one."""
        wanted = list(numbers)
        known = {number: op for number in wanted if (op := self.general.get(number) or self.failed.get(number))}
        rest = sorted({number for number in wanted if number not in known})
        if rest:
            known.update(zip(rest, self.fetch(rest), strict=True))
        return [known[number] for number in wanted]

    def not_ok(self) -> dict[int, Operation]:
        """Give the operations that are not ok, by their numbers and in the order of these."""
        unknown = {number: op for number, op in self.general.items() if op.outcome == "unknown"}
        return dict(sorted({**unknown, **self.failed}.items()))

    def calls(self, *, without: str) -> Calls:
        """Give what an outage is measured by, without what one stream sent."""
        ops, not_ok = self.operations, self.not_ok()
        reads = ops.of_kind("range") | (ops.of_kind("txn") & ((ops.flags & WRITES) == 0))
        service = np.select(
            [ops.of_kind("keep-alive"), (ops.flags & LOCAL) != 0, reads],
            [SERVICES.index(name) for name in ("keep-alives", "serializable-reads", "reads")],
            SERVICES.index("writes"),
        )
        for number, op in not_ok.items():
            service[number] = SERVICES.index(service_of(op))
        sent = ops.stream != (self.streams.index(without) if without in self.streams else -1)
        renewals = self.some_operations(np.flatnonzero(sent & ops.of_kind("keep-alive")).tolist())
        columns = (ops.stream, service, ops.scheduled, ops.call, ops.back, ops.outcome, ops.attempt)
        place = np.cumsum(sent) - 1
        return Calls(
            self.streams,
            {int(place[number]): op for number, op in not_ok.items() if sent[number]},
            renewals,
            *(column[sent] for column in columns),
        )

    def arrivals(self) -> dict[str, Arrivals]:
        """Give when each member's watches delivered; those are left out that delivered nothing at all."""
        messages, found = self.events.messages, {}
        for number, member in enumerate(self.members):
            mine = messages.member == number
            if mine.any():
                changes = np.sort(messages.t_ns[mine & (messages.what == HAPPENINGS.index("events"))])
                found[member] = Arrivals(int(messages.t_ns[mine].min()), changes)
        return found

    def writers(self, key: int, value: int) -> list[int]:
        """Give the operations that have put a value to a key, or tried to."""
        found: list[int] = []
        for numbers, of_key, of_value in ([self.rows.events[at] for at in (0, 2, 3)], self.attempts):
            found += numbers[(of_key == key) & (of_value == value)].tolist()
        for number, op in self.general.items():
            if any(put.key == self.keys[key] and put.value == self.values[value] for put in puts_of(op.request)):
                found.append(number)
        return found


def puts_of(request: object) -> Iterable[Put]:
    """Give every put that a request may do, in whichever branch."""
    if isinstance(request, Put):
        yield request
    elif isinstance(request, Txn):
        for op in (*request.success, *request.failure):
            yield from puts_of(op)
