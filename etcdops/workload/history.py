"""The record of a run: one operation a line, in the order in which the operations ended.

A record is written by the process that sends the traffic (`etcdops.workload.sender`) and read by everything that
judges a run: the outage, the checks, and a later `check RUN`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal

import msgspec

from etcdops.errors import StateError

__all__ = [
    "FAILOVER_READ",
    "FAILOVER_WRITE",
    "PINNED",
    "HistoryWriter",
    "Op",
    "Operation",
    "Outcome",
    "key_prefix",
    "pinned_stream",
    "read_history",
]

Op = Literal["put", "get"]

#: "ok": acknowledged. "failed": certainly without effect. "unknown": a write that may be applied, now or later.
Outcome = Literal["ok", "failed", "unknown"]

#: The stream of a member is this and the member's name. A dot, which no member's name can hold, parts the two.
PINNED = "pinned."
#: The write stream that moves on to the next member when one fails.
FAILOVER_WRITE = "failover-write"
#: The linearizable-read stream that does the same.
FAILOVER_READ = "failover-read"

_FLUSH_AFTER_NS = 100_000_000


def pinned_stream(member: str) -> str:
    """Give the name of the write stream that calls only `member`."""
    return PINNED + member


def key_prefix(run: str, stream: str = "") -> str:
    """Give what every key of a run begins with, or every key of one stream of it."""
    return f"etcdops/{run}/{stream}/" if stream else f"etcdops/{run}/"


class Operation(msgspec.Struct, frozen=True, gc=False):
    """One call to one member and how it ended. Instants are nanoseconds of one host's CLOCK_MONOTONIC.

    `id` is unique in the run. `scheduled_ns` is when the schedule wanted it sent, `call_ns` when it was handed to gRPC,
    `return_ns` when the answer was in hand. `attempt` counts from 1; only a stream that fails over goes further, and
    its attempts share `scheduled_ns` but have keys and values of their own. `member` is the member that was called.
    `value` is what a put wrote, or what a get read ("" for an absent key). `revision` is the answer's
    `header.revision`, 0 without one. `code` and `error` say why an operation is not ok: gRPC's status name and text, or
    NOT_SENT (the bound of calls in flight was reached, nothing was sent: failed) or ABANDONED (the traffic was ended
    before the answer came: unknown for a write).
    """

    id: int
    stream: str
    member: str
    op: Op
    key: str
    value: str
    scheduled_ns: int
    call_ns: int
    return_ns: int
    outcome: Outcome
    revision: int = 0
    attempt: int = 1
    code: str = ""
    error: str = ""


class HistoryWriter:
    """Appends operations to a file, at the latest 100 ms after they were given, so that a kill loses no more.

    An append writes whenever the oldest record held back is 100 ms old; who may pause between two appends calls
    `flush()` in between. Data that was flushed survives the death of the process (not of the machine). Raises
    StateError when the file cannot be created or written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._encoder = msgspec.json.Encoder()
        self._held: list[Operation] = []
        self._oldest_ns = 0
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _not_writable(self.path, error) from error

    def append(self, operation: Operation) -> None:
        """Record one operation."""
        now = time.monotonic_ns()
        if not self._held:
            self._oldest_ns = now
        self._held.append(operation)
        if now - self._oldest_ns >= _FLUSH_AFTER_NS:
            self.flush()

    def flush(self) -> None:
        """Write what is held back."""
        if not self._held:
            return
        left = memoryview(self._encoder.encode_lines(self._held))
        self._held.clear()
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            raise _not_writable(self.path, error) from error

    def close(self) -> None:
        """Flush and close; a second time does nothing."""
        if self._fd < 0:
            return
        try:
            self.flush()
        finally:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> HistoryWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_history(path: str | os.PathLike[str]) -> list[Operation]:
    """Give all operations of a record, in the order of the file.

    A last line that a kill has torn is left out. Raises StateError, naming file and line, for a file that cannot be
    read and for any other line that is not an operation.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise StateError(
            f"cannot read the history {path}: {error.strerror}", remedy="Name a run folder that a drill has written."
        ) from error
    lines = data.split(b"\n")
    decode = msgspec.json.Decoder(Operation).decode
    history: list[Operation] = []
    for number, line in enumerate(lines, start=1):
        last = number == len(lines)
        if last and not line:
            break
        try:
            history.append(decode(line))
        except msgspec.ValidationError as error:
            raise _bad_line(path, number, error) from error
        except msgspec.DecodeError as error:
            if last:
                break
            raise _bad_line(path, number, error) from error
    return history


def _bad_line(path: str | os.PathLike[str], number: int, error: Exception) -> StateError:
    return StateError(
        f"{path}, line {number}: not an operation: {error}",
        remedy="The file was changed or damaged after the run; the run cannot be verified from it.",
    )


def _not_writable(path: Path, error: OSError) -> StateError:
    return StateError(
        f"cannot write the history {path}: {error.strerror}",
        remedy="Free some space, or choose another state directory.",
    )
