"""Members as child processes: no Docker, no root.

Each member is an etcd process in a session of its own that outlives the command which started it. It listens on
loopback only, and writes to its own log file from its first instant.
"""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import msgspec

from etcdops.directories import RestoresDirectories
from etcdops.errors import BinaryError, EtcdopsError, MemberFailed, Refused, RuntimeUnavailable, SpecError
from etcdops.etcd_flags import etcd_flags
from etcdops.hosts import KeepsProcesses, LocalHost
from etcdops.ports import free_ports, refuse_taken
from etcdops.runtimes.base import Leftover, MembersAlone, MemberState, Prepared
from etcdops.spec import ClusterSpec
from etcdops.state import ClusterRecord, DataRef, MemberRecord

__all__ = ["RUNTIME", "ProcessRuntime"]

#: etcd allocates a write-ahead log segment of 64 MB and a spare one as it starts, and its database grows from there.
_ROOM_PER_MEMBER = 160 * 2**20

_MARK = "ETCDOPS_CLUSTER_ID"


class ProcessRuntime(MembersAlone, RestoresDirectories):
    """Runs members as processes of a host."""

    name: ClassVar[str] = "process"

    def __init__(self, host: KeepsProcesses | None = None) -> None:
        self.host = host or LocalHost()

    def unavailable(self) -> RuntimeUnavailable | None:
        """Give the reason why this machine cannot run members in this way, or None when it can."""
        return None if os.name == "posix" else RuntimeUnavailable("members as processes need Linux or macOS")

    # -- planning

    def prepare(self, spec: ClusterSpec, *, offline: bool, progress: Callable[[str], None]) -> Prepared:
        """Find, or fetch unless `offline`, the etcd that the spec asks for.

        Raises BinaryError when there is none that fits, SpecError for a spec that names an image.
        """
        if spec.image:
            raise SpecError(
                f"--image {spec.image} means members in containers, and the runtime is process",
                remedy="Add --runtime compose, or leave --image out.",
            )
        from etcdops import binaries

        found = binaries.find(etcd_bin=spec.etcd_bin, version=spec.etcd_version, offline=offline, progress=progress)
        return Prepared(str(found.version), binary=os.path.dirname(found.etcd))

    def place(
        self, spec: ClusterSpec, cluster_id: str, directory: str, *, generation: int = 1
    ) -> tuple[MemberRecord, ...]:
        """Choose ports and places for data of new members. Changes nothing yet.

        Raises Refused when a pinned port is in use, the disk has no room for the members' logs, or something already
        is where a member's data would be.
        """
        free, needed = self.host.free_bytes(directory), _ROOM_PER_MEMBER * len(spec.members)
        if free < needed:
            raise Refused(
                f"{directory} has {free // 2**20} MiB of free space on {self.host.name}, and the members need"
                f" {needed // 2**20} MiB (etcd allocates two log segments of 64 MB each as it starts)",
                remedy="Free some space, or name a place with room with ETCDOPS_STATE_DIR.",
            )
        pinned = {port for m in spec.members for port in (m.client_port, m.peer_port) if port}
        refuse_taken(self.host, pinned)
        fresh = free_ports(self.host, 2 * len(spec.members), pinned)
        scheme = "https" if spec.tls else "http"
        members = tuple(
            MemberRecord(
                name=member.name,
                host=self.host.name,
                client_url=f"{scheme}://127.0.0.1:{member.client_port or fresh.pop()}",
                peer_url=f"{scheme}://127.0.0.1:{member.peer_port or fresh.pop()}",
                data=DataRef(os.path.join(directory, "members", f"{member.name}-g{generation}"), generation),
                log=os.path.join(directory, "members", f"{member.name}.log"),
            )
            for member in spec.members
        )
        for placed in members:
            if not self.host.is_empty(placed.data.place):
                raise Refused(
                    f"{placed.data.place} on {self.host.name} is not empty: it holds the data of an earlier cluster",
                    remedy="Move it away, or delete it.",
                )
        return members

    def occupied_ports(self, record: ClusterRecord, names: Sequence[str]) -> dict[str, int]:
        """Give the members that cannot start because something else holds a port of theirs, with that port."""
        occupied = {}
        for name in names:
            member = record.member(name)
            for port in (_port(member.client_url), _port(member.peer_url)):
                if self.host.port_in_use(port):
                    occupied[name] = port
        return occupied

    # -- members

    def start(self, record: ClusterRecord, names: Sequence[str]) -> ClusterRecord:
        """Start the named members and give the record with their new references. Does not wait for etcd to serve.

        Raises BinaryError when etcd cannot be run, StateError when a member's data or log cannot be written; the
        members that this call started are ended then.
        """
        started: list[str] = []
        try:
            for name in names:
                ref = self._spawn(record, record.member(name))
                started.append(ref)
                record = record.with_member(msgspec.structs.replace(record.member(name), ref=ref, wanted="running"))
        except BaseException:
            for ref in started:
                self.host.send_signal(ref, signal.SIGKILL)
                self.host.wait_gone(ref, 10.0)
            raise
        return record

    def _spawn(self, record: ClusterRecord, member: MemberRecord) -> str:
        self.host.make_dir(member.data.place)
        try:
            return self.host.spawn(self.command(record, member), log=member.log, env=self._environment(record, member))
        except Refused:
            raise
        except EtcdopsError as error:
            raise BinaryError(
                f"cannot start {member.name}: {error}",
                remedy=f"Cluster {record.spec.name} was created with the etcd {record.etcd_version} in {record.binary}:"
                " put it back there.",
            ) from error

    def command(self, record: ClusterRecord, member: MemberRecord) -> list[str]:
        """Give the argv that runs a member."""
        own, tls = record.spec.member(member.name), record.spec.tls
        flags = etcd_flags(
            record,
            member,
            data=member.data.place,
            listen_client=member.client_url,
            listen_peer=member.peer_url,
            tls=(tls.ca, own.cert, own.key) if tls else ("", "", ""),
        )
        return [os.path.join(record.binary, "etcd"), *flags]

    @staticmethod
    def _environment(record: ClusterRecord, member: MemberRecord) -> dict[str, str]:
        """The caller's environment, less what would change etcd or its traffic, plus our mark."""
        environment = {
            key: value
            for key, value in os.environ.items()
            if not (key.startswith(("ETCD_", "ETCDOPS_")) or key.lower().endswith("_proxy"))
            or key == "ETCD_UNSUPPORTED_ARCH"
        }
        environment[_MARK] = record.id
        environment["ETCDOPS_CLUSTER"] = record.spec.name
        environment["ETCDOPS_MEMBER"] = member.name
        environment["ETCDOPS_STATE"] = record.state_dir
        return environment

    def stop(self, record: ClusterRecord, names: Sequence[str], *, timeout_s: float) -> None:
        """Ask the named members to end (SIGTERM) and wait until they have.

        Those that have not ended after `timeout_s` seconds, in all and not for each, are killed.
        """
        for name in names:
            ref = record.member(name).ref
            self.host.send_signal(ref, signal.SIGTERM)
            # A frozen process cannot act on SIGTERM.
            self.host.send_signal(ref, signal.SIGCONT)
        deadline = time.monotonic() + timeout_s
        for name in names:
            member = record.member(name)
            if not self.host.wait_gone(member.ref, max(deadline - time.monotonic(), 0.0)):
                self.kill(member)

    def kill(self, member: MemberRecord) -> None:
        """Kill a member (SIGKILL) and wait until it is gone."""
        self.host.send_signal(member.ref, signal.SIGKILL)
        if not self.host.wait_gone(member.ref, 10.0):
            raise MemberFailed(
                f"member {member.name} (process {_pid(member)}) is still there 10 s after SIGKILL",
                remedy="Its disk may be stuck: look with `ps -o pid,stat,wchan -p PID`.",
            )

    def pause(self, member: MemberRecord) -> None:
        """Freeze a member (SIGSTOP), and see that it is."""
        self._signal_until(member, signal.SIGSTOP, "paused")

    def resume(self, member: MemberRecord) -> None:
        """Let a frozen member go on (SIGCONT), and see that it does."""
        self._signal_until(member, signal.SIGCONT, "running")

    def _signal_until(self, member: MemberRecord, signum: int, wanted: str) -> None:
        if not self.host.send_signal(member.ref, signum):
            raise MemberFailed(f"member {member.name} does not run, so it cannot be {wanted}")
        deadline = time.monotonic() + 5.0
        while (seen := self.host.process_state(member.ref)) != wanted:
            if seen == "gone" or time.monotonic() > deadline:
                raise MemberFailed(f"member {member.name} (process {_pid(member)}) is {seen}, not {wanted}")
            time.sleep(0.001)

    def state(self, member: MemberRecord) -> MemberState:
        """Look whether a member runs, now."""
        seen = self.host.process_state(member.ref)
        if seen == "gone":
            return "stopped"
        return "paused" if seen == "paused" else "running"

    def adopt(self, record: ClusterRecord) -> ClusterRecord:
        """Give the record with references to members that run without their reference having been recorded.

        That is what a command leaves which was killed between starting a member and writing so down.
        """
        if all(self.state(member) != "stopped" for member in record.members):
            return record
        for process in self.host.marked(_MARK):
            name = process.environment.get("ETCDOPS_MEMBER", "")
            if process.environment[_MARK] == record.id and name in record.spec.names:
                member = record.member(name)
                if self.state(member) == "stopped":
                    record = record.with_member(msgspec.structs.replace(member, ref=process.ref, wanted="running"))
        return record

    def log_bytes(self, member: MemberRecord, offset: int = 0) -> bytes:
        """Give what a member has logged, from `offset` on."""
        return self.host.read(member.log, offset)

    def lost_data(self, record: ClusterRecord, names: Sequence[str]) -> tuple[str, ...]:
        """Give those of the named members that have run before, and whose directory is gone or empty now."""
        members = [record.member(name) for name in names]
        return tuple(member.name for member in members if member.ref and self.host.is_empty(member.data.place))

    def next_data(self, record: ClusterRecord, name: str) -> DataRef:
        """Give a directory for the next generation of data of a member called `name`. Nothing is made yet."""
        generation = record.next_generation(name)
        directory = os.path.dirname(record.members[0].data.place)
        return DataRef(os.path.join(directory, f"{name}-g{generation}"), generation)

    def remove_data(self, record: ClusterRecord, refs: Sequence[DataRef]) -> None:
        """Remove directories that no member uses; one that is gone already is no error. There is no way back."""
        for ref in refs:
            self.host.remove(ref.place)

    def destroy(self, record: ClusterRecord) -> None:
        """Kill the members and remove their data. Safe to call twice."""
        for member in record.members:
            self.kill(member)
        self.remove_data(record, [member.data for member in record.members])
        self.remove_data(record, [each.data for each in record.retired])

    def described(self, record: ClusterRecord, member: MemberRecord) -> str:
        """Name, for a person, what a member runs as and where its data is."""
        running = f"process {_pid(member)}" if self.state(member) != "stopped" else "stopped"
        return f"{member.name}: {running}, data {member.data.place}"

    def by_hand(self, action: str, record: ClusterRecord, member: MemberRecord) -> str:
        """Give the plain command for "start", "stop", "kill", "pause", "resume", or "wipe" (its data is deleted)."""
        if action == "start":
            return shlex.join(self.command(record, member))
        if action == "wipe":
            return shlex.join(["rm", "-r", member.data.place])
        signals = {"stop": "TERM", "kill": "KILL", "pause": "STOP", "resume": "CONT"}
        return f"kill -{signals[action]} {_pid(member)}"

    def file_systems(self, record: ClusterRecord) -> dict[str, str]:
        """Give the type of the file system that each member's data is on."""
        return {member.name: kind for member in record.members if (kind := self.host.file_system(member.data.place))}

    # -- what is left on the machine

    def leftovers(self) -> Iterator[Leftover]:
        """Give every member of any cluster that runs on this machine as a process."""
        for process in self.host.marked(_MARK):
            environment, pid = process.environment, process.ref.partition(":")[0]
            yield Leftover(
                environment.get("ETCDOPS_CLUSTER", "?"),
                environment[_MARK],
                environment.get("ETCDOPS_MEMBER", "?"),
                environment.get("ETCDOPS_STATE", ""),
                process.ref,
                f"the running member {environment.get('ETCDOPS_MEMBER', '?')} (process {pid})",
            )

    def end_leftover(self, leftover: Leftover) -> None:
        """End such a member, whatever its state."""
        self.host.send_signal(leftover.ref, signal.SIGKILL)
        self.host.wait_gone(leftover.ref, 10.0)


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _pid(member: MemberRecord) -> str:
    return member.ref.partition(":")[0] or "none"


RUNTIME = ProcessRuntime
