"""Where a snapshot may be written, and how: beside its name first, and there only once it is whole."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from etcdops.errors import Refused, SnapshotError, StateError
from etcdops.snapshots.bolt import is_bolt
from etcdops.snapshots.manifest import manifest_path

if TYPE_CHECKING:
    from etcdops.state import Store

__all__ = ["PARTIAL", "PartFile", "is_being_written", "refuse_place", "snapshots_dir", "sync_dir", "time_stamp"]

#: How the name of a snapshot ends that is not whole yet.
PARTIAL = ".part"

#: `snapshot.list` looks whether a partial file is locked by locking it for an instant.
_LOCK_S = 0.5


def snapshots_dir(store: Store, cluster: str = "") -> Path:
    """Give the directory of a cluster's snapshots in a state directory, or of all clusters'."""
    return store.root / "snapshots" / cluster


def refuse_place(store: Store, target: Path) -> None:
    """Raise Refused where no snapshot may be written: over anything, among members' data, where no directory is."""
    for taken in (target, manifest_path(target)):
        if os.path.lexists(taken):
            raise Refused(f"{taken} exists already, and is not overwritten", remedy="Choose another name, or move it.")
    parent = Path(os.path.realpath(target.parent))
    if not parent.is_dir():
        raise Refused(f"there is no directory {target.parent}", remedy=f"`mkdir -p {target.parent}` makes it.")
    elsewhere = "Choose a place that is not on the same disk, or leave out the name."
    clusters = Path(os.path.realpath(store.root)) / "clusters"
    if parent == clusters or clusters in parent.parents:
        raise Refused(f"{target} would be among the clusters' own files, and be deleted with them", remedy=elsewhere)
    data = _places_of_data(store)
    for directory in map(str, (parent, *parent.parents)):
        # Any etcd's, and not only one of ours.
        if directory in data or os.path.isdir(os.path.join(directory, "member", "wal")):
            raise Refused(f"{target} would be in the data directory of a member, {directory}", remedy=elsewhere)


def _places_of_data(store: Store) -> set[str]:
    places = []
    for name in store.names():
        try:
            places += [member.data.place for member in store.load(name).members]
        except StateError:
            continue
    return {os.path.realpath(place) for place in places if os.path.isabs(place)}


def sync_dir(directory: Path) -> None:
    """See that what was created and renamed in a directory outlives a crash."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems know no such thing.
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


class PartFile:
    """A snapshot that is being written: `NAME.part`, readable for its owner alone, gone unless it is published.

    While it is open it is locked, so a leftover of a save that was killed is told from one that goes on; a leftover is
    written anew. Raises Refused when the file cannot be had, SnapshotError when it cannot be written.
    """

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{target.name}{PARTIAL}")
        self._wrote = 0
        self._published = False
        try:
            self._descriptor = self._open()
        except OSError as error:
            raise Refused(
                f"cannot write {self.path}: {error.strerror or error}",
                remedy="See who owns the directory and its permissions, or choose another one.",
            ) from error

    def _open(self) -> int:
        deadline = time.monotonic() + _LOCK_S
        while True:
            # Neither emptied nor followed before it is known to be ours.
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Between the two, the save that held it may have ended and taken the name away.
                if os.path.samestat(os.fstat(descriptor), os.lstat(self.path)):
                    self._clear(descriptor)
                    return descriptor
            except (BlockingIOError, FileNotFoundError):
                if time.monotonic() > deadline:
                    os.close(descriptor)
                    raise Refused(
                        f"another save is writing {self.path}", remedy="Wait for it, or choose another name."
                    ) from None
                time.sleep(0.02)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _clear(self, descriptor: int) -> None:
        if os.fstat(descriptor).st_size and not is_bolt(self.path):
            raise Refused(f"{self.path} is in the way: it is no leftover of a save", remedy="Move it away.")
        os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, 0)

    def write(self, data: bytes) -> None:
        """Append to it."""
        left = memoryview(data)
        try:
            while left:
                count = os.write(self._descriptor, left)
                self._wrote += count
                left = left[count:]
        except OSError as error:
            raise self._failed(error) from error

    def publish(self, target: Path) -> None:
        """Give it its name, once all of it is on the disk; raise SnapshotError if something has taken that name."""
        taken = f"{target} has appeared meanwhile, and is not overwritten"
        try:
            os.link(self.path, target)
        except FileExistsError:
            raise SnapshotError(taken, remedy="Choose another name.") from None
        except OSError:
            # File systems without hard links: what comes in the next instant would be overwritten there.
            if os.path.lexists(target):
                raise SnapshotError(taken, remedy="Choose another name.") from None
            os.rename(self.path, target)
        self._published = True
        self.path.unlink(missing_ok=True)
        sync_dir(target.parent)

    def sync(self) -> int:
        """Wait until all is on the disk, and give its size there."""
        try:
            os.fsync(self._descriptor)
            return os.fstat(self._descriptor).st_size
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> PartFile:
        return self

    def __exit__(self, *exception: object) -> None:
        # Once it has its name, a file of the first one may be another save's.
        if not self._published:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _failed(self, error: OSError) -> SnapshotError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return SnapshotError(
            f"cannot write {self.path} after {self._wrote} bytes: {error.strerror or error}",
            remedy="Free some space, or choose a place with more." if full else "Choose another place.",
        )


def is_being_written(path: Path) -> bool:
    """Whether a save holds the partial file at `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def time_stamp() -> str:
    """Give the time as names of snapshots have it."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
