"""The journal of a run: every event, written before the next thing is done.

One JSON object a line: `t_ns` (this machine's monotonic clock, the same as in the history), `wall` (RFC 3339),
`event`, and whatever else belongs to it. A run that was killed has its journal up to that instant.
"""

from __future__ import annotations

import os
import time
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

import msgspec

from etcdops.errors import StateError

__all__ = ["Entry", "Journal", "read_journal"]


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event of a run."""

    t_ns: int
    wall: str
    event: str
    member: str = ""
    detail: str = ""


class Journal:
    """Writes a run's events, and remembers them for the verdict's timeline."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab")  # noqa: SIM115  # closed by `close`
        self.entries: list[Entry] = []

    def note(
        self, event: str, member: str = "", detail: str = "", *, t_ns: int | None = None, sync: bool = False
    ) -> Entry:
        """Write an event, now or at `t_ns`; with `sync` it is on the disk when this returns."""
        stamp = time.monotonic_ns() if t_ns is None else t_ns
        entry = Entry(stamp, datetime.now(timezone.utc).isoformat(timespec="milliseconds"), event, member, detail)
        self._file.write(msgspec.json.encode(entry) + b"\n")
        self._file.flush()
        if sync:
            os.fsync(self._file.fileno())
        self.entries.append(entry)
        return entry

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_journal(path: Path) -> list[Entry]:
    """Give a run's events. A last line that a crash cut short is left out; raises StateError for other damage."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}", remedy="Name a run folder of a drill.") from error
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    try:
        return [msgspec.json.decode(line, type=Entry) for line in lines]
    except msgspec.MsgspecError as error:
        raise StateError(f"{path} is damaged: {error}") from error
