"""What an outage is measured by, of the operations of a record: when each was scheduled, called and answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from etcdops.ops import KeepAlive, Put, Range, Txn, is_read_only, served_locally
from etcdops.workload.deliveries import Delivery
from etcdops.workload.history import Operation

__all__ = [
    "FAILED",
    "OK",
    "OUTCOMES",
    "SERVICES",
    "UNKNOWN",
    "Arrivals",
    "Calls",
    "arrivals_of",
    "calls_of",
    "service_of",
]

Ints = npt.NDArray[np.int64]

#: Outcomes as numbers.
OK, FAILED, UNKNOWN = 0, 1, 2
OUTCOMES = {"ok": OK, "failed": FAILED, "unknown": UNKNOWN}

#: How an operation is served: each of these may go on while others stop.
SERVICES = ("writes", "reads", "serializable-reads", "keep-alives")


class Calls(NamedTuple):
    """Operations in columns, in the order of the record; `stream`, `service` and `outcome` are numbers.

    `not_ok` are those that are not ok by their numbers, `keep_alives` all keep-alives.
    """

    streams: tuple[str, ...]
    not_ok: Mapping[int, Operation]
    keep_alives: Sequence[Operation]
    stream: Ints
    service: Ints
    scheduled: Ints
    call: Ints
    back: Ints
    outcome: Ints
    attempt: Ints

    def take(self, numbers: Ints) -> Calls:
        """Give some of the calls, with neither operations nor keep-alives."""
        columns: Sequence[Ints] = self[3:]
        return Calls(self.streams, {}, (), *(column[numbers] for column in columns))


class Arrivals(NamedTuple):
    """When a member's watches delivered: the first message of any kind, and those that brought changes, in order."""

    first_ns: int | None
    changes_ns: Ints


def service_of(operation: Operation) -> str:
    """Tell how an operation is served."""
    request = operation.request
    if isinstance(request, Put):
        return "writes"
    if isinstance(request, KeepAlive):
        return "keep-alives"
    if served_locally(request):
        return "serializable-reads"
    if isinstance(request, Range) or (isinstance(request, Txn) and is_read_only(request)):
        return "reads"
    return "writes"


def calls_of(history: Sequence[Operation]) -> Calls:
    """Give the calls of some operations."""
    streams = {name: number for number, name in enumerate(dict.fromkeys(op.stream for op in history))}

    def column(values: list[int]) -> Ints:
        return np.array(values, np.int64)

    return Calls(
        streams=tuple(streams),
        stream=column([streams[op.stream] for op in history]),
        service=column([SERVICES.index(service_of(op)) for op in history]),
        scheduled=column([op.scheduled_ns for op in history]),
        call=column([op.call_ns for op in history]),
        back=column([op.return_ns for op in history]),
        outcome=column([OUTCOMES[op.outcome] for op in history]),
        attempt=column([op.attempt for op in history]),
        not_ok={number: op for number, op in enumerate(history) if op.outcome != "ok"},
        keep_alives=[op for op in history if isinstance(op.request, KeepAlive)],
    )


def arrivals_of(deliveries: Sequence[Delivery]) -> Arrivals:
    """Give when some deliveries of one member came."""
    first = min((delivery.t_ns for delivery in deliveries), default=None)
    return Arrivals(first, np.array(sorted(d.t_ns for d in deliveries if d.what == "events"), np.int64))
