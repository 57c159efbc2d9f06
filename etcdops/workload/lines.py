"""Files of JSON arrays, one a line, under a first line that says what they are: how a run's records are kept.

They are plain while the run goes on, so that a kill loses the last 100 ms at most, and compressed at its end.
"""

from __future__ import annotations

import gc
import gzip
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from etcdops.errors import StateError

__all__ = ["Header", "LineWriter", "bad_line", "compress", "found", "read_header", "read_lines", "uncollected"]

SCHEMA = 1
_FLUSH_AFTER_NS = 100_000_000
# Repetitions are long and near: a higher level takes more time and saves little.
_LEVEL = 3


class Header(msgspec.Struct, frozen=True, omit_defaults=True):
    """The first line: what the lines are ("history", "events"), of which run, and of which member if of one.

    `watch` is for a watch that is not over all keys: its name, the bounds of its range, and its filters.
    """

    schema: int
    kind: str
    run: str
    member: str = ""
    watch: list[str] = []


class LineWriter:
    """Appends lines to a file, at the latest 100 ms after they were given, so that a kill loses no more.

    An append writes whenever the oldest line held back is 100 ms old; who may pause between two appends calls `flush()`
    in between. What was flushed survives the death of the process (not of the machine). Raises StateError when the file
    cannot be created or written.
    """

    def __init__(self, path: str | os.PathLike[str], header: Header) -> None:
        self.path = Path(path)
        self._encoder = msgspec.json.Encoder()
        self._held: list[Any] = []
        self._oldest_ns = 0
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            empty = not os.fstat(self._fd).st_size
        except OSError as error:
            raise _not_writable(self.path, error) from error
        if empty:
            self._held.append(header)
            self.flush()

    def append(self, line: list[Any]) -> None:
        """Write one line."""
        now = time.monotonic_ns()
        if not self._held:
            self._oldest_ns = now
        self._held.append(line)
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


def found(path: str | os.PathLike[str]) -> Path | None:
    """Give where a record lies: at `path`, or compressed beside it; None if neither is there."""
    plain = Path(path)
    packed = plain.with_name(plain.name + ".gz")
    # Both are there when compressing was cut short: then the plain one is whole.
    return plain if plain.exists() else packed if packed.exists() else None


def compress(path: str | os.PathLike[str]) -> Path:
    """Replace the record at `path` by a compressed one beside it, and give where that is. Raises StateError."""
    plain = Path(path)
    packed = plain.with_name(plain.name + ".gz")
    part = plain.with_name(plain.name + ".gz.part")
    try:
        with open(plain, "rb") as source, open(part, "wb") as raw:
            with gzip.GzipFile("", "wb", _LEVEL, raw, mtime=0) as target:
                shutil.copyfileobj(source, target, 1 << 20)
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(part, packed)
        plain.unlink()
    except OSError as error:
        part.unlink(missing_ok=True)
        raise _not_writable(packed, error) from error
    return packed


def read_lines(path: str | os.PathLike[str], kind: str) -> tuple[Header, Iterator[tuple[int, Any]]]:
    """Give the header of a record, and its lines, decoded, with their numbers.

    A last line that a kill has torn is left out. Raises StateError, naming file and line, for a file that cannot be
    read or is no record of that kind, and, while iterating, for any other line that is no JSON.
    """
    lies = found(path)
    if lies is None:
        raise StateError(f"there is no record {path}", remedy="Name a run folder that a drill has written.")
    try:
        data = lies.read_bytes()
        if lies.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StateError(
            f"cannot read the record {lies}: {reason}", remedy="Name a run folder that a drill has written."
        ) from error
    lines = data.split(b"\n")
    header = read_header(lies, lines[0], kind)

    def rest() -> Iterator[tuple[int, Any]]:
        decode = msgspec.json.Decoder().decode
        for number, line in enumerate(lines[1:], start=2):
            last = number == len(lines)
            if last and not line:
                return
            try:
                yield number, decode(line)
            except msgspec.DecodeError as error:
                if last:
                    return
                raise bad_line(lies, number, error) from error

    return header, rest()


def read_header(path: str | os.PathLike[str], line: bytes, kind: str) -> Header:
    """Give what a record's first line says. Raises StateError, naming the file, if it is none of a record of `kind`."""
    try:
        header = msgspec.json.decode(line, type=Header)
    except msgspec.MsgspecError as error:
        raise bad_line(path, 1, error) from error
    if header.schema != SCHEMA or header.kind != kind:
        raise bad_line(path, 1, ValueError(f"a {header.kind} of schema {header.schema}, not a {kind} of {SCHEMA}"))
    return header


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the collector of cycles from looking through a record again and again: it has none, and is large."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def bad_line(path: str | os.PathLike[str], number: int, error: Exception) -> StateError:
    """Give the error for a line that is not what it should be."""
    return StateError(
        f"{path}, line {number}: not a record's line: {error}",
        remedy="The file was changed or damaged after the run; the run cannot be verified from it.",
    )


def _not_writable(path: Path, error: OSError) -> StateError:
    return StateError(
        f"cannot write the record {path}: {error.strerror}",
        remedy="Free some space, or choose another state directory.",
    )
