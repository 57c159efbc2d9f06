"""Where a cluster is remembered: `.etcdops/clusters/NAME/cluster.json`, its lock, and the fault that is still in force.

The directory is searched upwards from the working directory, as git does; ETCDOPS_STATE_DIR names another. What is
written here is what should be, and where to look; what *is* is always observed.

    clusters/NAME/cluster.json     the cluster's record (schema 1), written atomically
    clusters/NAME/unhealed.json    the fault in force, from before it is applied until it is seen to be healed
    clusters/NAME/members/         data of members that run as processes, and their logs
    locks/NAME                     held by the one command that changes the cluster; a crash releases it
    runs/RUN_ID/                   everything about one run of a drill
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from etcdops.errors import ClusterNotFound, EtcdopsError, Locked, SpecError, StateError
from etcdops.paths import find_state_dir
from etcdops.remote.inventory import HostSpec
from etcdops.spec import ClusterSpec, MemberSpec, is_valid_name, valid_name

__all__ = [
    "SCHEMA",
    "ClusterRecord",
    "DataRef",
    "MemberRecord",
    "Retired",
    "Store",
    "Unhealed",
    "remove_tree",
    "replace_file",
]

#: The schema of cluster.json that this release writes, and the newest it reads.
SCHEMA = 1

_T = TypeVar("_T")

_MEND = "Restore it from a copy; or see `cluster.list`, and remove the cluster with `cluster.prune`."

_URL = re.compile(r"https?://([^/:\s\[\]]+|\[[0-9A-Fa-f:.%]+\]):\d{1,5}")

#: A peer URL of somebody else's: etcd takes sockets, too.
_SOCKET = re.compile(r"unixs?://\S+")

#: The locks that this process holds: their files, and the threads that hold them.
_held: set[tuple[str, int, int]] = set()


class DataRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a member's data is: a place that its runtime understands, and which generation of the data it holds.

    Never derived from the member's name: a restore makes the next generation beside this one, the swap is one write
    of cluster.json, and so is the way back.
    """

    place: str
    generation: int = 1

    def on(self, host: str) -> str:
        """Name the place, for a person, with the host that it is on, unless that is this machine ("local", or "")."""
        return self.place if host in ("", "local") else f"{self.place} on {host}"


class MemberRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One member as it was created: where it runs, where it is reached, and its runtime's reference to it.

    `ref` belongs to the runtime (a process and its start time, a container id) and is "" before the first start.
    `wanted` is what should be, and what `heal` and `up` bring back.

    Of a member that somebody else runs, `ref` is its member ID, `client_url` the one that works from here or "",
    `etcd_name` what etcd calls it where that cannot be its name here; data and log are unknown.
    """

    name: str
    host: str
    client_url: str
    peer_url: str
    data: DataRef
    log: str
    ref: str = ""
    wanted: str = "stopped"
    etcd_name: str = ""

    def __post_init__(self) -> None:
        foreign = not self.data.place
        for url in (self.client_url, self.peer_url):
            # Somebody else's member may be out of reach, and its peers may meet it at whatever etcd takes.
            if not (_URL.fullmatch(url) or (foreign and (not url or _SOCKET.fullmatch(url)))):
                raise SpecError(f"{url!r} of member {self.name} is not a URL of the kind http://HOST:PORT")
        if self.wanted not in ("running", "stopped"):
            raise SpecError(f"member {self.name} cannot be wanted {self.wanted!r}: running or stopped")


class Retired(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Data that no member uses any more, and that is kept until somebody removes it by name.

    `why` is "removed", "replaced", "undone" or "restored"; `run` is the operation's run, `since` RFC 3339 in UTC.
    `host` is where the data is. `ref` is the runtime's reference to what the member ran in, where that is there still
    as its host did not answer; "" where nothing is.
    """

    member: str
    data: DataRef
    why: str
    run: str
    since: str
    host: str = ""
    ref: str = ""


class ClusterRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cluster as it was created. Replaced as a whole, never edited."""

    schema: int
    id: str
    spec: ClusterSpec
    runtime: str
    token: str
    #: The state directory it was created in, for finding it from what runs.
    state_dir: str
    members: tuple[MemberRecord, ...]
    #: The directory of etcd's binaries, for members that run as processes.
    binary: str = ""
    #: The container image, its id, and the engine's address, for members that run in containers.
    image: str = ""
    image_id: str = ""
    engine: str = ""
    etcd_version: str = ""
    created: str = ""
    #: The members' first start is over, so a member created from now on joins what exists.
    bootstrapped: bool = False
    #: The process that made it, for a temporary cluster: once that is gone, the cluster is a leftover.
    owner: str = ""
    #: Data of members that were removed, replaced or restored, oldest first.
    retired: tuple[Retired, ...] = ()
    #: The hosts, for members that run on several.
    hosts: tuple[HostSpec, ...] = ()

    def __post_init__(self) -> None:
        names = tuple(member.name for member in self.members)
        if names != self.spec.names:
            raise SpecError(f"its members are {names}, and those of its specification {self.spec.names}")

    def member(self, name: str) -> MemberRecord:
        """Give the record of the member called `name`; raise SpecError if there is none."""
        for member in self.members:
            if member.name == name:
                return member
        names = ", ".join(m.name for m in self.members)
        raise SpecError(f"cluster {self.spec.name} has no member {name!r}", remedy=f"Its members are {names}.")

    def with_member(self, changed: MemberRecord) -> ClusterRecord:
        """Give this record with the member of that name replaced."""
        return msgspec.structs.replace(
            self, members=tuple(changed if m.name == changed.name else m for m in self.members)
        )

    def joined(self, spec: MemberSpec, member: MemberRecord) -> ClusterRecord:
        """Give this record with one more member, the last."""
        grown = msgspec.structs.replace(self.spec, members=(*self.spec.members, spec))
        return msgspec.structs.replace(self, spec=grown, members=(*self.members, member))

    def left(self, name: str, retired: Retired) -> ClusterRecord:
        """Give this record without the member called `name`, whose data is kept."""
        shrunk = msgspec.structs.replace(self.spec, members=tuple(m for m in self.spec.members if m.name != name))
        members = tuple(member for member in self.members if member.name != name)
        return msgspec.structs.replace(self, spec=shrunk, members=members, retired=(*self.retired, retired))

    def next_generation(self, name: str) -> int:
        """Give the number that the next data of a member called `name` has: greater than any that there was."""
        known = [member.data.generation for member in self.members if member.name == name]
        known += [each.data.generation for each in self.retired if each.member == name]
        return max(known, default=0) + 1


class Unhealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fault in force: who applied it (a process and its start time), in which run, to which member.

    `snapshot` is a file from which the members' data is being made anew, or can be when it is gone; "" if none is.
    """

    run: str
    fault: str
    member: str
    owner: str
    since: str
    snapshot: str = ""


def replace_file(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write `path` so that a reader, or a crash, finds the old content or the new one and nothing between.

    Raises StateError when the directory cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _unwritable(path, error) from error


def remove_tree(path: Path) -> None:
    """Remove a directory with all that is in it; a missing one is no error. Raises EtcdopsError if that fails."""
    import shutil

    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise EtcdopsError(f"cannot remove {path}: {error.strerror or error}") from error


def _unreadable(path: Path, error: OSError) -> StateError:
    return StateError(
        f"cannot read {path}: {error.strerror or error}",
        remedy="See who owns it and its permissions, or name another place with ETCDOPS_STATE_DIR.",
    )


def _unwritable(path: Path, error: OSError) -> StateError:
    return StateError(
        f"cannot write {path}: {error.strerror or error}",
        remedy="Free some space, make it writable, or name another place with ETCDOPS_STATE_DIR.",
    )


class Store:
    """A state directory, and the clusters in it.

    `Store.find()` is what every command uses; `Store(path)` is for a directory of your own. Nothing is created
    before something is written.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(os.path.abspath(root))

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    @classmethod
    def find(cls) -> Store:
        """Give the state directory that applies here: ETCDOPS_STATE_DIR, the nearest `.etcdops`, or a new one."""
        return cls(find_state_dir())

    # -- places

    def cluster_dir(self, name: str) -> Path:
        """The directory of the cluster called `name`, which must be a valid name."""
        return self.root / "clusters" / valid_name(name)

    @property
    def runs(self) -> Path:
        """The directory of all runs."""
        return self.root / "runs"

    def make_dir(self, path: Path, *, mode: int = 0o755) -> Path:
        """Make `path` and its parents, and give it back; raise StateError if that cannot be done."""
        try:
            path.mkdir(mode=mode, parents=True, exist_ok=True)
            self._ignore_in_git()
        except OSError as error:
            raise _unwritable(path, error) from error
        return path

    def _ignore_in_git(self) -> None:
        ignore = self.root / ".gitignore"
        if self.root.is_dir() and not ignore.exists():
            ignore.write_text("*\n")

    # -- records

    def names(self) -> list[str]:
        """Names of the clusters in this directory, sorted."""
        try:
            entries = list((self.root / "clusters").glob("*/cluster.json"))
        except OSError as error:
            raise _unreadable(self.root, error) from error
        return sorted(entry.parent.name for entry in entries if is_valid_name(entry.parent.name))

    def exists(self, name: str) -> bool:
        """Whether there is a cluster called `name` here."""
        path = self.cluster_dir(name) / "cluster.json"
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise _unreadable(path, error) from error
        return True

    def load(self, name: str) -> ClusterRecord:
        """Give the record of the cluster called `name`.

        Raises ClusterNotFound, or StateError for a record that cannot be read, is damaged, was written by a newer
        release, or was moved or copied here: its members' data and logs are elsewhere, and may be another's.
        """
        path = self.cluster_dir(name) / "cluster.json"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            others = self.names()
            raise ClusterNotFound(
                f"there is no cluster {name!r} in {self.root}" + (f" (there is {', '.join(others)})" if others else ""),
                remedy=f"Type `up-env{'' if name == 'lab' else ' --cluster ' + name}` to create it.",
            ) from None
        except OSError as error:
            raise _unreadable(path, error) from error
        schema = self._decode(path, content, _Schema).schema
        if schema > SCHEMA:
            raise StateError(
                f"{path} has schema {schema}, and this release of etcdops reads up to {SCHEMA}",
                remedy="Use the newer release of etcdops that wrote it.",
            )
        if schema < 1:
            raise StateError(f"{path} is damaged: there is no schema {schema}", remedy=_MEND)
        record = self._decode(path, content, ClusterRecord)
        made_in = Store(record.state_dir).cluster_dir(record.spec.name)
        if os.path.realpath(made_in) != os.path.realpath(path.parent):
            raise StateError(
                f"{path} is the record of the cluster in {made_in}: it was moved or copied here",
                remedy="Move it back, for its data and its members belong there; a copy cannot be used beside it.",
            )
        return record

    def stamp(self, name: str) -> tuple[int, int]:
        """Give what changes whenever the cluster's record is written; (0, 0) when there is none."""
        try:
            status = os.stat(self.cluster_dir(name) / "cluster.json")
        except OSError:
            return 0, 0
        return status.st_mtime_ns, status.st_ino

    def save(self, record: ClusterRecord) -> None:
        """Write a cluster's record; raise StateError if that cannot be done."""
        directory = self.make_dir(self.cluster_dir(record.spec.name))
        replace_file(directory / "cluster.json", _pretty(record))

    def unhealed(self, name: str) -> Unhealed | None:
        """Give the fault that is in force on the cluster called `name`, or None."""
        path = self.cluster_dir(name) / "unhealed.json"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error) from error
        return self._decode(path, content, Unhealed, remedy="Delete it, then type `up-env`: it lets frozen members go.")

    def mark_unhealed(self, name: str, fault: Unhealed) -> None:
        """Record a fault, before it is applied."""
        replace_file(self.cluster_dir(name) / "unhealed.json", _pretty(fault))

    def clear_unhealed(self, name: str) -> None:
        """Record that no fault is in force any more."""
        path = self.cluster_dir(name) / "unhealed.json"
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(path, error) from error

    @staticmethod
    def _decode(path: Path, content: bytes, kind: type[_T], *, remedy: str = _MEND) -> _T:
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, SpecError) as error:
            raise StateError(f"{path} is damaged: {error}", remedy=remedy) from error

    # -- one writer at a time

    @contextmanager
    def lock(
        self, name: str, doing: str, *, wait_s: float = 120.0, on_wait: Callable[[str], None] | None = None
    ) -> Iterator[None]:
        """Hold the cluster's lock while `doing` something to it.

        Waits up to `wait_s` seconds for another command to finish, calling `on_wait(message)` once, then raises
        Locked, naming the holder. A thread that holds it already goes on at once. A crash releases the lock: it
        belongs to the open file, and no member inherits it.
        """
        path = self.root / "locks" / valid_name(name)
        mine = (str(path), os.getpid(), threading.get_ident())
        if mine in _held:
            yield
            return
        self.make_dir(path.parent)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            self._acquire(descriptor, name, wait_s, on_wait)
            _held.add(mine)
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            _inscribe(descriptor, f"`{doing}` (process {os.getpid()} on {os.uname().nodename}, since {stamp})")
            try:
                yield
            finally:
                _inscribe(descriptor, "")
        finally:
            _held.discard(mine)
            os.close(descriptor)

    @staticmethod
    def _acquire(descriptor: int, name: str, wait_s: float, on_wait: Callable[[str], None] | None) -> None:
        deadline = time.monotonic() + wait_s
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                holder = os.pread(descriptor, 400, 0).decode(errors="replace") or "another command"
            except OSError as error:
                raise StateError(
                    f"cannot lock cluster {name}: {error.strerror or error}",
                    remedy="Name a place on a file system that knows locks with ETCDOPS_STATE_DIR.",
                ) from error
            if time.monotonic() >= deadline:
                raise Locked(
                    f"cluster {name} is being worked on by {holder}; waited {wait_s:.0f} s",
                    remedy="Wait for it to end, or end it with Ctrl-C: it heals what it broke.",
                )
            if on_wait and not told:
                on_wait(f"waiting for cluster {name}: {holder} is working on it")
                told = True
            time.sleep(0.02)


def _inscribe(descriptor: int, holder: str) -> None:
    """Write down who holds a lock. The lock itself does not depend on it, so a full disk is no reason to fail."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
    except OSError:
        pass


class _Schema(msgspec.Struct):
    schema: int


def _pretty(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
