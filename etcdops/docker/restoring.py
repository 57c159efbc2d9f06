"""Data of members in containers, made from a snapshot: a volume for each, by etcd's own tool in a one-shot container.

Neither a shell nor root is needed in the image. The file is sent into a volume of its own, owned by the image's user,
so that it need not be readable for anybody else here.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from etcdops import versions
from etcdops.docker.compose import project_of
from etcdops.docker.engine import LABEL
from etcdops.docker.services import DATA
from etcdops.errors import EtcdopsError, Refused, SnapshotError
from etcdops.etcd_flags import restore_flags
from etcdops.remote.files import pieces_of
from etcdops.runtimes.base import DataSeen, Restoration
from etcdops.units import size_text

if TYPE_CHECKING:
    from etcdops.docker.engine import Container, Engine
    from etcdops.state import ClusterRecord, DataRef, MemberRecord

__all__ = ["MOUNT", "ROLE", "RestoresVolumes"]

#: What the label says of containers that make data: they are no members.
ROLE = "restore"

#: Where the snapshot's volume is mounted, and where a member's.
_SNAPSHOT = "/snapshot"
_FILE = f"{_SNAPSHOT}/snapshot.db"
MOUNT = os.path.dirname(DATA)

_ROOM_BESIDES = 160 * 2**20
_ROOM = 1.1

#: How slow a disk may be, in bytes per second, and how long a container may take besides.
_SLOWEST = 2_000_000
_BESIDES_S = 120.0


class RestoresVolumes(ABC):
    """The part of ComposeRuntime that makes and reads data which no member is using."""

    engine: Engine

    @abstractmethod
    def here(self, record: ClusterRecord) -> list[MemberRecord]:
        """Give the members that run, or are to run, on this engine."""

    def refuse_full(self, record: ClusterRecord, size: int) -> None:
        """Raise Refused where the engine's disk has no room for a copy of the snapshot, and data of every member."""
        place = self.engine.storage()
        count = len(self.here(record))
        free, needed = self.engine.host.free_bytes(place), size + count * (round(_ROOM * size) + _ROOM_BESIDES)
        if free < needed:
            raise Refused(
                f"{place}, where the Docker engine keeps volumes, has {size_text(free)} of free space, and data of"
                f" {count} members from this snapshot needs {size_text(needed)}",
                remedy="Free some space: `data.list` shows data that no member uses any more. Nothing was changed.",
            )

    def restore_data(self, record: ClusterRecord, restoration: Restoration, *, progress: Callable[[str], None]) -> None:
        """Make every member's volume from a snapshot, all at the same time; see CanRestore."""
        from etcdops.snapshots.pace import heartbeat

        self.drop_data(record)
        here = self.here(record)
        timeout_s = _BESIDES_S + len(here) * restoration.size / _SLOWEST
        try:
            with heartbeat(progress, f"sending {os.path.basename(restoration.file)} to the Docker engine"):
                self._send(record, restoration, timeout_s)
            for member in here:
                self.engine.run("volume", "create", *_labels(record, member.name), member.data.place)
            tool = _tool(record)
            with heartbeat(progress, f"restoring {len(here)} members with {tool} {record.etcd_version}"):
                commands = [self._restore(record, member, restoration) for member in here]
                self.engine.run_each(commands, timeout_s=timeout_s)
        except BaseException as error:
            self.drop_data(record)
            if isinstance(error, EtcdopsError) and not isinstance(error, (Refused, SnapshotError)):
                raise SnapshotError(f"the members' data cannot be made: {error}", remedy=error.remedy) from error
            raise
        finally:
            self._drop_snapshot(record)

    def _send(self, record: ClusterRecord, restoration: Restoration, timeout_s: float) -> None:
        """Copy the snapshot into a volume of its own, for the image's user alone to read."""
        volume = _snapshot_volume(record)
        self.engine.run("volume", "create", *_labels(record), volume)
        helper = self._helper(record, f"{volume}:{_SNAPSHOT}")
        user = self.engine.run("inspect", "--format", "{{.Config.User}}", helper).strip()
        sent = _Sent(restoration, user)
        self.engine.run("cp", "-", f"{helper}:/", stdin=iter(sent), timeout_s=timeout_s)
        if sent.problem:
            raise SnapshotError(sent.problem)

    def _helper(self, record: ClusterRecord, mount: str) -> str:
        """Create a container that is never started, but through which files of a volume can be copied; give its id."""
        argv = ["create", "--network", "none", *_labels(record), "--volume", mount, _image(record), "never", "started"]
        return self.engine.run(*argv).strip()

    def _restore(self, record: ClusterRecord, member: MemberRecord, restoration: Restoration) -> list[str]:
        flags = restore_flags(record, member, data=DATA, bump=restoration.bump)
        mounts = ["--volume", f"{_snapshot_volume(record)}:{_SNAPSHOT}:ro", "--volume", f"{member.data.place}:{MOUNT}"]
        # Some releases (3.5.1) look the member's own name up, though what they compare is the same text.
        named = ["--add-host", f"{urlsplit(member.peer_url).hostname}:127.0.0.1"]
        return [*_run(record, [*mounts, *named]), "snapshot", "restore", _FILE, *flags]

    def drop_data(self, record: ClusterRecord) -> None:
        """End containers that still make such data, which a killed command has left, and remove the volumes."""
        self._drop_snapshot(record)
        there = self.engine.named("volume", cluster_id=record.id)
        for member in self.here(record):
            if member.data.place in there:
                self.engine.remove_volume(member.data.place)

    def _drop_snapshot(self, record: ClusterRecord) -> None:
        self.engine.remove([each.id for each in self._helpers(record)])
        if _snapshot_volume(record) in self.engine.named("volume", cluster_id=record.id):
            self.engine.run("volume", "rm", _snapshot_volume(record))

    def _helpers(self, record: ClusterRecord) -> list[Container]:
        return self.engine.containers(cluster_id=record.id, role=ROLE)

    def restore_by_hand(self, record: ClusterRecord, restoration: Restoration) -> list[str]:
        """Give the plain commands for `restore_data`: the snapshot into a volume, and one for each member."""
        volume = _snapshot_volume(record)
        image = record.image or record.image_id
        user = self.engine.try_run("image", "inspect", "--format", "{{.Config.User}}", _image(record)).stdout
        owner = user.decode().strip().partition(":")[0] or "0"
        file = shlex.quote(restoration.file)
        archive = f"tar -cPf - --owner={owner} --mode=0400 --transform='s,.*,{_FILE[1:]},' {file}"
        helper = ["--name", volume, "--volume", f"{volume}:{_SNAPSHOT}", image, "never", "started"]
        return [
            self.engine.by_hand("volume", "create", volume),
            self.engine.by_hand("create", *helper),
            f"{archive} | {self.engine.by_hand('cp', '-', f'{volume}:/')}",
            *(self.engine.by_hand(*_plain(self._restore(record, each, restoration))) for each in self.here(record)),
        ]

    def look_into(self, record: ClusterRecord, names: Sequence[str]) -> dict[str, DataSeen | str]:
        """Give what the data of the named members says, none of which may run, or why it cannot be read.

        All pages are read for it: without a shell, and from a volume, that is what can be had.
        """
        refs = {name: record.member(name).data for name in names}
        there = self.present_data(record, list(refs.values()))
        seen: dict[str, DataSeen | str] = {
            name: f"there is no volume {ref.place}" for name, ref in refs.items() if ref not in there
        }
        asked = [name for name in names if name not in seen]
        commands = [
            [
                *_run(record, ["--volume", f"{refs[name].place}:{MOUNT}:ro"]),
                *("snapshot", "status", f"{DATA}/member/snap/db", "-w", "json"),
            ]
            for name in asked
        ]
        ended = self.engine.host.run_each([self.engine.argv(*each) for each in commands], timeout_s=3600.0)
        for name, done in zip(asked, ended, strict=True):
            try:
                seen[name] = DataSeen(msgspec.json.decode(done.stdout, type=_Status).revision)
            except msgspec.MsgspecError:
                said = " ".join((done.stderr or done.stdout).decode(errors="replace").split())
                seen[name] = f"{refs[name].place} cannot be read: {said[:300]}"
        return {name: seen[name] for name in names}

    def present_data(self, record: ClusterRecord, refs: Sequence[DataRef]) -> tuple[DataRef, ...]:
        """Give those of these volumes that there are."""
        there = self.engine.named("volume", cluster_id=record.id)
        return tuple(ref for ref in refs if ref.place in there)

    def let_go(self, record: ClusterRecord) -> None:
        """Remove the members' containers, none of which may run: a container's volume is fixed when it is created."""
        names = record.spec.names
        self.engine.remove([each.id for each in self.engine.containers(cluster_id=record.id) if each.member in names])

    def copy_database(self, record: ClusterRecord, name: str, target: str) -> None:
        """Copy the database file of a member that does not run to `target`."""
        helper = self._helper(record, f"{record.member(name).data.place}:{MOUNT}:ro")
        try:
            self.engine.run("cp", f"{helper}:{DATA}/member/snap/db", target, timeout_s=3600.0)
        finally:
            self.engine.remove([helper])


class _Status(msgspec.Struct):
    revision: int


class _Sent:
    """A snapshot as the archive that `docker cp -` takes, in pieces; `problem` says what was not as it should be."""

    def __init__(self, restoration: Restoration, user: str) -> None:
        self._restoration = restoration
        uid, _, gid = user.partition(":")
        if not (uid or "0").isdigit() or not (gid or "0").isdigit():
            raise Refused(
                f"the image runs etcd as {user!r}, a name; a file that only it may read needs its number",
                remedy="Use an image whose USER is a number, such as one from `image.build`.",
            )
        self._entry = tarfile.TarInfo(_FILE[1:])
        self._entry.uid, self._entry.gid, self._entry.mode = int(uid or 0), int(gid or 0), 0o400
        self._entry.size = restoration.size
        self.problem = ""

    def __iter__(self) -> Iterator[bytes]:
        digest, left = hashlib.sha256(), self._restoration.size
        yield self._entry.tobuf(tarfile.GNU_FORMAT)
        try:
            for piece in pieces_of(self._restoration.file, left):
                digest.update(piece)
                left -= len(piece)
                yield piece
        except OSError as error:
            self.problem = f"cannot read {self._restoration.file}: {error.strerror or error}"
        if not self.problem and (left or digest.hexdigest() != self._restoration.sha256):
            self.problem = f"{self._restoration.file} has been changed since it was verified"
        # The archive has to be whole, or docker says what is beside the point.
        yield bytes(left + -self._restoration.size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)


def _snapshot_volume(record: ClusterRecord) -> str:
    return f"{project_of(record.spec.name, record.id)}_snapshot"


def _image(record: ClusterRecord) -> str:
    return record.image_id or record.image


def _tool(record: ClusterRecord) -> str:
    return "etcdutl" if versions.supports(record.etcd_version, "etcdutl") else "etcdctl"


def _labels(record: ClusterRecord, member: str = "") -> list[str]:
    """Give the flags for our labels: of a member's volume, or of what is only there to make one."""
    known = {
        "cluster": record.spec.name,
        "cluster-id": record.id,
        **({"member": member} if member else {"role": ROLE}),
        "state-dir": record.state_dir,
        "uid": str(os.getuid()),
    }
    return [word for name, value in known.items() for word in ("--label", f"{LABEL}{name}={value}")]


def _run(record: ClusterRecord, mounts: list[str]) -> list[str]:
    once = ["run", "--rm", "--network", "none", *_labels(record), "--env", "ETCDCTL_API=3", *mounts]
    return [*once, "--entrypoint", _tool(record), _image(record)]


def _plain(argv: list[str]) -> list[str]:
    """Leave our labels out of what a person would type."""
    words = iter(argv)
    kept = []
    for word in words:
        if word == "--label":
            next(words)
            continue
        kept.append(word)
    return kept
