"""Files to a remote host and back: in pieces, whole or not at all, and proved by their SHA-256.

They go through commands that every machine has (`cat`, `mv`), since not every SSH server offers SFTP.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from etcdops.errors import EtcdopsError, StateError
from etcdops.hosts import Completed

if TYPE_CHECKING:
    from etcdops.remote.host import SSHHost

__all__ = ["get", "pieces_of", "put"]

_PIECE_BYTES = 2**18
_QUICK_S = 30.0

_HASH = 'if command -v sha256sum >/dev/null; then sha256sum <"$1"; else echo none; fi'
_PUT = f'set -C; umask 077; cat >"$1" && chmod -- "$2" "$1" && {_HASH}'
_PUBLISH = 'if [ -d "$2" ]; then echo "it is a directory" >&2; exit 21; fi; exec mv -f -- "$1" "$2"'
_GET = f'if [ -d "$1" ]; then echo "it is a directory" >&2; exit 21; fi; {_HASH} >&2 || exit; exec cat <"$1"'

_TOLD = re.compile(rb"\A(none|[0-9a-f]{64})\b")


class _Meter:
    """Hashes and counts what passes."""

    def __init__(self, total: int | None, progress: Callable[[int, int | None], None] | None) -> None:
        self._hash = hashlib.sha256()
        self._done = 0
        self._total = total
        self._progress = progress

    def take(self, piece: bytes) -> None:
        self._hash.update(piece)
        self._done += len(piece)
        if self._progress:
            self._progress(self._done, self._total)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def put(
    host: SSHHost,
    source: str | Path | Iterator[bytes],
    path: str,
    *,
    mode: int = 0o600,
    timeout_s: float = 3600.0,
    progress: Callable[[int, int | None], None] | None = None,
) -> str:
    """Copy a local file, or pieces of bytes, to `path` on a host, and give its SHA-256 in hex.

    It is written under another name beside `path`, compared with what was sent, and renamed: whoever looks at `path`
    sees what was there before, or all of it. `mode` is its permissions. `progress` is called with how many bytes have
    gone, and how many there are if that is known, in another thread. Raises StateError for what cannot be read here or
    written there.
    """
    path = _no_flag(path)
    part = posixpath.join(posixpath.dirname(path), f".{posixpath.basename(path)[:200]}.{secrets.token_hex(4)}.part")
    deadline = time.monotonic() + timeout_s
    size = None if isinstance(source, Iterator) else _size(source)
    meter = _Meter(size, progress)
    try:
        done = host.run(["sh", "-c", _PUT, "sh", part, f"{mode:o}"], timeout_s=timeout_s, stdin=_sent(source, meter))
        if done.exit_code:
            raise _failed(done, f"cannot write {path} on {host.name}")
        there = _told(done.stdout) or _read_back(host, part, max(deadline - time.monotonic(), 1.0))
        if there != meter.sha256:
            raise StateError(
                f"{path} did not arrive on {host.name} as it was sent: SHA-256 {there} there, {meter.sha256} here",
                remedy="Try again; if it happens again, suspect that host's disk or memory.",
            )
        done = host.script(_PUBLISH, part, path, timeout_s=_QUICK_S)
        if done.exit_code:
            raise _failed(done, f"cannot write {path} on {host.name}")
    except BaseException:
        # Where the connection is what failed, the part stays: its name says that it is one.
        with suppress(EtcdopsError):
            host.run(["rm", "-f", "--", part], timeout_s=_QUICK_S)
        raise
    return meter.sha256


def _size(source: str | Path) -> int:
    try:
        return os.stat(source).st_size
    except OSError as error:
        raise StateError(f"cannot read {source}: {error.strerror or error}") from error


def pieces_of(path: str | Path, most: int | None = None) -> Iterator[bytes]:
    """Give the content of a local file, or its first `most` bytes, in pieces; raises OSError."""
    with open(path, "rb", buffering=0) as file:
        left = sys.maxsize if most is None else most
        while left and (piece := file.read(min(_PIECE_BYTES, left))):
            left -= len(piece)
            yield piece


def _sent(source: str | Path | Iterator[bytes], meter: _Meter) -> Iterator[bytes]:
    if isinstance(source, Iterator):
        for piece in source:
            meter.take(piece)
            yield piece
        return
    try:
        for piece in pieces_of(source):
            meter.take(piece)
            yield piece
    except OSError as error:
        raise StateError(f"cannot read {source}: {error.strerror or error}") from error


def get(
    host: SSHHost,
    path: str,
    target: str | Path,
    *,
    timeout_s: float = 3600.0,
    progress: Callable[[int, int | None], None] | None = None,
) -> str:
    """Copy a file from a host to `target` here, and give its SHA-256 in hex.

    As `put`: in pieces, compared, and under its name only when all of it is on the disk. Readable for its owner alone.
    Raises StateError for what cannot be read there or written here.
    """
    path = _no_flag(path)
    target = Path(target)
    part = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part")
    deadline = time.monotonic() + timeout_s
    meter = _Meter(None, progress)
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            done = host.stream(["sh", "-c", _GET, "sh", path], on_data=_both(meter, file), timeout_s=timeout_s)
            if done.exit_code:
                raise _failed(done, f"cannot read {path} on {host.name}")
            file.flush()
            os.fsync(file.fileno())
        there = _told(done.stderr) or _read_back(host, path, max(deadline - time.monotonic(), 1.0))
        if there != meter.sha256:
            raise StateError(
                f"{path} on {host.name} did not arrive as it is there: SHA-256 {there} there, {meter.sha256} here",
                remedy="Something may be writing to it: try again when nothing does.",
            )
        os.replace(part, target)
    except OSError as error:
        raise StateError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return meter.sha256


def _both(meter: _Meter, file: IO[bytes]) -> Callable[[bytes], None]:
    def take(piece: bytes) -> None:
        file.write(piece)
        meter.take(piece)

    return take


def _told(text: bytes) -> str:
    """Give the hash that the host has told, "" for one that has no `sha256sum`."""
    found = _TOLD.match(text.strip())
    return "" if not found or found[1] == b"none" else found[1].decode()


def _read_back(host: SSHHost, path: str, timeout_s: float) -> str:
    meter = _Meter(None, None)
    done = host.stream(["cat", "--", path], on_data=meter.take, timeout_s=timeout_s)
    if done.exit_code:
        raise _failed(done, f"cannot read {path} back on {host.name}")
    return meter.sha256


def _no_flag(path: str) -> str:
    """Give a path that no command takes for a flag."""
    return f"./{path}" if path.startswith("-") else path


def _failed(done: Completed, what: str) -> StateError:
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return StateError(
        f"{what}: {lines[-1] if lines else f'exit code {done.exit_code}'}",
        remedy="See whether its directory is there, whose it is, and whether there is space.",
    )
