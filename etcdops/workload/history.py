"""The record of a run: one operation a line, in the order in which the operations ended.

A record is written by the process that sends the traffic (`etcdops.workload.sender`) and read by everything that
judges a run: the outage, the checks, and a later `check RUN`.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import msgspec

from etcdops.model import Answer
from etcdops.ops import Delete, Put, Revoke, Txn, is_read_only
from etcdops.workload.encoding import KINDS, Codec, Request, key_prefix, value_prefix
from etcdops.workload.lines import SCHEMA, Header, LineWriter, bad_line, read_lines

__all__ = [
    "CLIENT",
    "DRILL",
    "FAILOVER_READ",
    "FAILOVER_WRITE",
    "PINNED",
    "PREPARE",
    "HistoryWriter",
    "Operation",
    "Outcome",
    "Request",
    "key_prefix",
    "pinned_stream",
    "read_history",
    "value_prefix",
]

#: "ok": acknowledged. "failed": certainly without effect. "unknown": a write that may be applied, now or later.
Outcome = Literal["ok", "failed", "unknown"]

#: The stream of a member is this and the member's name. A dot, which no member's name can hold, parts the two.
PINNED = "pinned."
#: The write stream that moves on to the next member when one fails.
FAILOVER_WRITE = "failover-write"
#: The linearizable-read stream that does the same.
FAILOVER_READ = "failover-read"
#: The stream of a profile's client is this and its number, from 0.
CLIENT = "client."
#: The stream of what a drill does itself.
DRILL = "drill"
#: What a profile writes before its clients begin.
PREPARE = "prepare"

KIND = "history"


def pinned_stream(member: str) -> str:
    """Give the name of the write stream that calls only `member`."""
    return PINNED + member


class Operation(msgspec.Struct, frozen=True, gc=False):
    """One call to one member and how it ended. Instants are nanoseconds of one host's CLOCK_MONOTONIC.

    `id` is unique in the run. `process` is a client that does one thing at a time, as Jepsen has it; after an unknown
    outcome it is never used again. `scheduled_ns` is when the schedule wanted the operation sent, `call_ns` when it was
    handed to gRPC, `return_ns` when the answer was in hand. `attempt` counts from 1; only a stream that fails over goes
    further, and its attempts share `scheduled_ns` but have values of their own. `member` is the member that was called.

    `answer` is etcd's, whole, and `revision` its outer `header.revision`; None and 0 unless the outcome is ok. A
    comparison that does not hold and a key that is not there are answers, and ok. `code` and `error` say why an
    operation is not ok: gRPC's status name and text, or NOT_SENT (the bound of calls in flight was reached, nothing was
    sent: failed) or ABANDONED (the traffic was ended before the answer came: unknown for a write). A read that is not
    ok is failed, whatever the reason.
    """

    id: int
    stream: str
    process: int
    member: str
    request: Request
    scheduled_ns: int
    call_ns: int
    return_ns: int
    outcome: Outcome
    revision: int = 0
    answer: Answer | None = None
    attempt: int = 1
    code: str = ""
    error: str = ""

    @property
    def kind(self) -> str:
        """put, range, delete, txn, grant, keep-alive, revoke or compact."""
        return KINDS[type(self.request)]

    @property
    def may_write(self) -> bool:
        """Whether the request can make a revision: a put, delete or revoke, or a transaction that may put or delete."""
        request = self.request
        return isinstance(request, (Put, Delete, Revoke)) or (isinstance(request, Txn) and not is_read_only(request))

    @property
    def key(self) -> bytes:
        """The key that a put, range or delete is about, or the first one; empty for others."""
        return getattr(self.request, "key", b"")


class HistoryWriter:
    """Appends operations to a record; see LineWriter for when they are on the disk, and for the errors raised."""

    def __init__(self, path: str | os.PathLike[str], run: str) -> None:
        self._lines = LineWriter(path, Header(SCHEMA, KIND, run))
        self.path = self._lines.path
        self._codec = Codec(run)

    def append(self, op: Operation) -> None:
        """Record one operation."""
        self._lines.append(line_of(self._codec, op))

    def flush(self) -> None:
        """Write what is held back."""
        self._lines.flush()

    def close(self) -> None:
        """Flush and close; a second time does nothing."""
        self._lines.close()

    def __enter__(self) -> HistoryWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def line_of(codec: Codec, op: Operation) -> list[Any]:
    """Give an operation as it stands in a record.

    Its fields in order: id, stream, process, member, request, when it was scheduled, ns from there to the call, ns from
    the call to the return, outcome; of an ok one also revision and answer, of others code and error; attempt unless 1.
    """
    line: list[Any] = [
        op.id,
        op.stream,
        op.process,
        op.member,
        codec.request(op.request),
        op.scheduled_ns,
        op.call_ns - op.scheduled_ns,
        op.return_ns - op.call_ns,
        op.outcome,
    ]
    line += [op.revision, codec.answer(op.answer)] if op.outcome == "ok" else [op.code, op.error]
    if op.attempt != 1:
        line.append(op.attempt)
    return line


def operation_of(codec: Codec, line: list[Any]) -> Operation:
    """Give the operation that a line holds; raises as Codec does."""
    number, stream, process, member, request, scheduled, late, took, outcome, first, second = line[:11]
    asked = codec.read_request(request)
    call = scheduled + late
    attempt = line[11] if len(line) > 11 else 1
    if outcome == "ok":
        answer = codec.read_answer(asked, first, second)
        return Operation(
            number, stream, process, member, asked, scheduled, call, call + took, outcome, first, answer, attempt
        )
    if outcome not in ("failed", "unknown"):
        raise ValueError(f"{outcome!r} is no outcome")
    return Operation(
        number, stream, process, member, asked, scheduled, call, call + took, outcome, 0, None, attempt, first, second
    )


def read_history(path: str | os.PathLike[str]) -> list[Operation]:
    """Give all operations of a record, plain or compressed, in the order of the file.

    A last line that a kill has torn is left out. Raises StateError, naming file and line, for a file that cannot be
    read and for any other line that is not an operation.
    """
    header, lines = read_lines(path, KIND)
    codec = Codec(header.run)
    history = []
    for number, line in lines:
        try:
            history.append(operation_of(codec, line))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise bad_line(path, number, error) from error
    return history
