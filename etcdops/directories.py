"""Data of members that run as processes, made from a snapshot: a directory for each, by etcd's own tool."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from etcdops.errors import EtcdopsError, Refused, SnapshotError
from etcdops.etcd_flags import restore_flags
from etcdops.runtimes.base import DataSeen, Restoration
from etcdops.units import size_text

if TYPE_CHECKING:
    from etcdops.hosts import KeepsProcesses
    from etcdops.snapshots.tools import Tool
    from etcdops.state import ClusterRecord, DataRef, MemberRecord

__all__ = ["RestoresDirectories", "refuse_changed"]

#: Marks the tools that make data, so that those of a command that was killed are found.
_MARK = "ETCDOPS_RESTORE_ID"

#: What a member needs beside its database: two log segments of 64 MB, and some more for what it does as it starts.
_ROOM_BESIDES = 160 * 2**20
_ROOM = 1.1

#: How slow a disk may be, in bytes per second, and how long a tool may take besides.
_SLOWEST = 2_000_000
_BESIDES_S = 60.0


class RestoresDirectories:
    """The part of ProcessRuntime that makes and reads data which no member is using."""

    host: KeepsProcesses

    def refuse_full(self, record: ClusterRecord, size: int) -> None:
        """Raise Refused where there is no room for data of every member from a snapshot of `size` bytes."""
        count = len(record.members)
        place = os.path.dirname(record.members[0].data.place)
        free, needed = self.host.free_bytes(place), count * (round(_ROOM * size) + _ROOM_BESIDES)
        if free < needed:
            raise Refused(
                f"{place} has {size_text(free)} of free space on {self.host.name}, and data of {count} members from"
                f" this snapshot needs {size_text(needed)}",
                remedy="Free some space: `data.list` shows data that no member uses any more. Nothing was changed.",
            )

    def restore_data(self, record: ClusterRecord, restoration: Restoration, *, progress: Callable[[str], None]) -> None:
        """Make every member's directory from a snapshot, all at the same time; see CanRestore."""
        from etcdops.snapshots.pace import heartbeat
        from etcdops.snapshots.tools import said

        tool = self._tool(record)
        self.drop_data(record)
        refuse_changed(restoration)
        marked = ["env", "-i", f"{_MARK}={record.id}", "ETCDCTL_API=3"]
        commands = [[*marked, *_argv(tool.path, record, member, restoration)] for member in record.members]
        timeout_s = _BESIDES_S + len(commands) * restoration.size / _SLOWEST
        try:
            for member in record.members:
                self.host.make_dir(os.path.dirname(member.data.place))
            with heartbeat(progress, f"restoring {len(commands)} members with {tool.name}"):
                ended = self.host.run_each(commands, timeout_s=timeout_s)
            for member, done in zip(record.members, ended, strict=True):
                if done.exit_code != 0:
                    raise SnapshotError(f"{tool.name} cannot make the data of {member.name}: {said(done)}")
            # The tool has checked each copy against the trailer that it found: it must be the one that was verified.
            refuse_changed(restoration)
        except BaseException:
            self.drop_data(record)
            raise

    def _tool(self, record: ClusterRecord) -> Tool:
        from etcdops import binaries
        from etcdops.errors import BinaryError
        from etcdops.snapshots.tools import restore_tool

        found = binaries.find(etcd_bin=record.binary, offline=True)
        tool = restore_tool(found)
        if tool is None:
            raise BinaryError(
                f"there is no etcdutl {found.version} to restore with",
                remedy=f"Put it beside etcd in {record.binary}.",
            )
        return tool

    def drop_data(self, record: ClusterRecord) -> None:
        """End tools that still make such data, which a killed command has left, and remove it."""
        for process in self.host.marked(_MARK):
            if process.environment[_MARK] == record.id:
                self.host.send_signal(process.ref, signal.SIGKILL)
                self.host.wait_gone(process.ref, 10.0)
        for member in record.members:
            self.host.remove(member.data.place)

    def restore_by_hand(self, record: ClusterRecord, restoration: Restoration) -> list[str]:
        """Give the plain commands for `restore_data`, one for each member."""
        path = self._tool(record).path
        return [shlex.join(_argv(path, record, member, restoration)) for member in record.members]

    def look_into(self, record: ClusterRecord, names: Sequence[str]) -> dict[str, DataSeen | str]:
        """Give what the data of the named members says, none of which may run, or why it cannot be read."""
        return {name: _look(record.member(name)) for name in names}

    def present_data(self, record: ClusterRecord, refs: Sequence[DataRef]) -> tuple[DataRef, ...]:
        """Give those of these directories that hold anything."""
        return tuple(ref for ref in refs if not self.host.is_empty(ref.place))

    def let_go(self, record: ClusterRecord) -> None:
        """Do nothing: a process that is over is tied to nothing."""

    def copy_database(self, record: ClusterRecord, name: str, target: str) -> None:
        """Copy the database file of a member that does not run to `target`."""
        source = _database(record.member(name))
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            raise EtcdopsError(f"cannot copy {source} to {target}: {error.strerror or error}") from error


def refuse_changed(restoration: Restoration) -> None:
    """Raise SnapshotError if the file is not as it was verified: by its size, and by the hash that it ends with."""
    try:
        with open(restoration.file, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            trailer = os.pread(file.fileno(), 32, max(size - 32, 0)).hex()
    except OSError as error:
        raise SnapshotError(f"cannot read {restoration.file}: {error.strerror or error}") from error
    if (size, trailer) != (restoration.size, restoration.trailer):
        raise SnapshotError(f"{restoration.file} has been changed since it was verified")


def _argv(path: str, record: ClusterRecord, member: MemberRecord, restoration: Restoration) -> list[str]:
    flags = restore_flags(record, member, data=member.data.place, bump=restoration.bump)
    return [path, "snapshot", "restore", restoration.file, *flags]


def _database(member: MemberRecord) -> str:
    return os.path.join(member.data.place, "member", "snap", "db")


def _look(member: MemberRecord) -> DataSeen | str:
    from etcdops.snapshots.bolt import NotBolt, read_contents

    place = member.data.place
    try:
        contents = read_contents(_database(member))
        log = [name for name in os.listdir(os.path.join(place, "member", "wal")) if name.endswith(".wal")]
    except (NotBolt, OSError) as error:
        return f"{place} cannot be read: {error}"
    if not log:
        return f"{place} has no write-ahead log"
    return DataSeen(
        contents.last_revision,
        contents.compact_revision,
        contents.raft_index,
        contents.raft_term,
        tuple(each.name for each in contents.members),
    )
