"""A place where snapshots are kept away from here, and what is asked of one; and the simplest, another directory."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from etcdops.errors import Refused
from etcdops.snapshots.addresses import Address
from etcdops.snapshots.places import PartFile, refuse_place

if TYPE_CHECKING:
    from etcdops.state import Store

__all__ = ["Depot", "DirectoryDepot", "Entry", "Upload", "open_depot", "rfc3339"]

#: What is read at once.
PIECE_BYTES = 2**20


class Entry(NamedTuple):
    """A file in a depot: its size in bytes, and when it was written (RFC 3339)."""

    size: int
    written: str


class Upload(Protocol):
    """A file that is on its way into a depot, and not there under its name before it is published."""

    #: Under which name it can be read back before that, "" where it cannot.
    staged: str

    def write(self, data: bytes) -> None:
        """Append to it."""

    def finish(self) -> None:
        """Wait until all of it is there, and, where the depot can do that, on its disk."""

    def publish(self) -> None:
        """Give it its name; raises FileExistsError, or an EtcdopsError, if something has taken that."""


class Depot(ABC):
    """Files in one directory, or under one prefix; methods raise OSError, and whatever the library beneath them does.

    Nothing is connected before it is needed.
    """

    def __init__(self, address: Address) -> None:
        self.address = address

    def where(self, name: str) -> str:
        """Give a file's path or URL."""
        return f"{self.address.text.rstrip('/')}/{name}"

    @abstractmethod
    def check(self) -> None:
        """Raise OSError, or an EtcdopsError, where nothing can be put because there is no such place."""

    @abstractmethod
    def entries(self) -> dict[str, Entry]:
        """Give the files, by name; raises FileNotFoundError where there is no such place."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Give a file's size in bytes, None if there is none of that name."""

    @abstractmethod
    def pieces(self, name: str) -> Iterator[bytes]:
        """Give what is in a file, from its beginning to its end."""

    @abstractmethod
    def upload(self, name: str) -> AbstractContextManager[Upload]:
        """Begin to put a file there; unless it is published, nothing is left of it."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file."""

    @abstractmethod
    def explain(self, error: Exception) -> tuple[str, str]:
        """Give what an error means, in words, and what to do about it."""

    def abort(self) -> None:  # noqa: B027
        """End what is under way, from another thread, as well as that can be done."""

    def close(self) -> None:  # noqa: B027
        """Let go of the connection."""


def open_depot(address: Address, store: Store, *, endpoint_url: str = "", stall_s: float = 30.0) -> Depot:
    """Give the depot at an address; raise Refused when the packages for it are not installed."""
    if address.kind == "path":
        return DirectoryDepot(address, store)
    try:
        if address.kind == "s3":
            from etcdops.snapshots.depot_s3 import S3Depot

            return S3Depot(address, endpoint_url=endpoint_url, stall_s=stall_s)
        from etcdops.snapshots.depot_sftp import SftpDepot

        return SftpDepot(address, stall_s=stall_s)
    except ImportError as error:
        raise Refused(
            f"{address.text} needs packages that are not installed here: {error}",
            remedy="`pip install 'etcdops[remote]'` installs them; directories work without.",
        ) from error


def rfc3339(seconds: float) -> str:
    """Give an instant, in seconds since 1970, as manifests have it."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


class DirectoryDepot(Depot):
    """A directory here: on another disk, or on one that is mounted from elsewhere."""

    def __init__(self, address: Address, store: Store) -> None:
        super().__init__(address)
        self._store = store
        self._directory = Path(address.path)

    def check(self) -> None:
        """Raise Refused where there is no such directory."""
        if not self._directory.is_dir():
            raise Refused(f"there is no directory {self._directory}", remedy=f"`mkdir -p {self._directory}` makes it.")

    def entries(self) -> dict[str, Entry]:
        """Give the files, by name."""
        found = {}
        for path in self._directory.iterdir():
            seen = path.lstat()
            if stat.S_ISREG(seen.st_mode):
                found[path.name] = Entry(seen.st_size, rfc3339(seen.st_mtime))
        return found

    def size(self, name: str) -> int | None:
        """Give a file's size in bytes, None if there is none of that name."""
        try:
            seen = (self._directory / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(seen.st_mode):
            return None
        return seen.st_size

    def pieces(self, name: str) -> Iterator[bytes]:
        """Give what is in a file, from the disk as far as the operating system lets go of what it has in memory."""
        with open(self._directory / name, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while piece := file.read(PIECE_BYTES):
                yield piece

    @contextmanager
    def upload(self, name: str) -> Iterator[Upload]:
        """Begin to put a file there."""
        target = self._directory / name
        if not name.endswith(".json"):
            refuse_place(self._store, target)
        with PartFile(target) as part:
            yield _Part(part, target)

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self._directory / name).unlink(missing_ok=True)

    def explain(self, error: Exception) -> tuple[str, str]:
        """Give what an error means."""
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return text, "See who owns the directory and its permissions, or choose another one."


class _Part:
    def __init__(self, part: PartFile, target: Path) -> None:
        self._part = part
        self._target = target
        self.staged = part.path.name
        self.write = part.write

    def finish(self) -> None:
        self._part.sync()

    def publish(self) -> None:
        self._part.publish(self._target)
