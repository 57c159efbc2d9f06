"""Members in memory: a cluster without etcd, for tests of what is built on one.

Each member is served over real gRPC on loopback, so clients, traffic and drills work on it unchanged, in the process
that holds the FakeRuntime and from others. It needs no binary and no disk, elects in 0.2 s, and can lie: a check that
never fails on a lie checks nothing.

    >>> from etcdops import Cluster, FakeRuntime
    >>> with Cluster.create(runtime=FakeRuntime()) as cluster:
    ...     cluster.leader().kill()
    ...     print(cluster.status().verdict)
    degraded
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import msgspec

from etcdops.errors import MemberFailed, Refused, RuntimeUnavailable
from etcdops.fake.lies import Lies
from etcdops.hosts import LocalHost
from etcdops.ports import free_ports, refuse_taken
from etcdops.runtimes.base import Leftover, MembersAlone, MemberState, Prepared
from etcdops.spec import ClusterSpec
from etcdops.state import ClusterRecord, DataRef, MemberRecord

if TYPE_CHECKING:
    from etcdops.fake.cluster import FakeCluster
    from etcdops.fake.member import FakeMember

__all__ = ["RUNTIME", "FakeRuntime", "Lies"]

#: A command line ends, and its memory with it.
ON_COMMAND_LINE = False


#: How long a member that has ended by itself may take to close its port, seconds.
_CLOSING_S = 5.0


class FakeRuntime(MembersAlone):
    """Runs members in memory. Clusters live as long as this object, or until they are destroyed.

    `lies` is what they lie about; its fields may be changed at any time: `runtime.lies.two_leaders = True`.
    `election_s` is how long it takes to replace a lost leader, seconds. `request_timeout_s` is how long a call waits
    for a leader and a quorum before the member answers "etcdserver: request timed out": etcd waits for 5 s + 2 election
    timeouts, which with elections as fast as these would be long. `health_s` is how long members must have been
    connected before etcd lets who is a member be changed, seconds; etcd's own is 5.
    """

    name: ClassVar[str] = "fake"

    def __init__(
        self,
        *,
        lies: Lies | None = None,
        election_s: float = 0.2,
        request_timeout_s: float = 1.0,
        health_s: float = 0.2,
    ) -> None:
        self._host = LocalHost()
        self._lies = lies or Lies()
        self._election_s = election_s
        self._request_timeout_s = request_timeout_s
        self._health_s = health_s
        self._clusters: dict[str, FakeCluster] = {}
        self._records: dict[str, ClusterRecord] = {}
        # Members by where their data is.
        self._members: dict[str, FakeMember] = {}
        # Ports that are spoken for, by cluster and member: members need not have been started yet.
        self._placed: dict[tuple[str, str], set[int]] = {}

    @property
    def lies(self) -> Lies:
        """What members lie about now. All clusters of this object share it."""
        return self._lies

    def unavailable(self) -> RuntimeUnavailable | None:
        """Give None: members in memory need nothing."""
        return None

    # -- planning

    def prepare(self, spec: ClusterSpec, *, offline: bool, progress: Callable[[str], None]) -> Prepared:
        """Give the version that the spec asks for: members in memory need no binaries."""
        return Prepared(spec.etcd_version)

    def place(
        self, spec: ClusterSpec, cluster_id: str, directory: str, *, generation: int = 1
    ) -> tuple[MemberRecord, ...]:
        """Choose free loopback ports for new members.

        Raises Refused when a pinned port is in use, or the cluster is to have TLS, which is not offered here.
        """
        if spec.tls:
            raise Refused(
                "members in memory do not speak TLS", remedy="Use the runtime process for a cluster with TLS."
            )
        placed_again = {(cluster_id, member.name) for member in spec.members}
        spoken_for = set().union(*(ports for other, ports in self._placed.items() if other not in placed_again))
        pinned = {port for m in spec.members for port in (m.client_port, m.peer_port) if port}
        if both := pinned & spoken_for:
            raise Refused(
                f"port {min(both)} is in use by another member in memory, so none can listen there",
                remedy="Give another port, or none.",
            )
        refuse_taken(self._host, pinned)
        fresh = free_ports(self._host, 2 * len(spec.members), spoken_for | pinned)
        members = tuple(
            MemberRecord(
                name=member.name,
                host="local",
                client_url=f"http://127.0.0.1:{member.client_port or fresh.pop()}",
                peer_url=f"http://127.0.0.1:{member.peer_port or fresh.pop()}",
                data=DataRef(f"memory:{cluster_id}/{member.name}-g{generation}", generation),
                log="",
            )
            for member in spec.members
        )
        for m in members:
            self._placed[cluster_id, m.name] = {_port(url) for url in (m.client_url, m.peer_url)}
        return members

    def occupied_ports(self, record: ClusterRecord, names: Sequence[str]) -> dict[str, int]:
        """Give the members that cannot start because something else holds their client port, with that port."""
        ports = {name: _port(record.member(name).client_url) for name in names}
        for found in filter(None, (self._members.get(record.member(name).data.place) for name in names)):
            # A process is gone with its ports; of what ends in a thread of ours they may still be closing.
            found.silent.wait(_CLOSING_S)
        return {name: port for name, port in ports.items() if self._host.port_in_use(port)}

    # -- members

    def start(self, record: ClusterRecord, names: Sequence[str]) -> ClusterRecord:
        """Start the named members, or none of them, and give the record with their new references.

        Raises Refused when something else holds a port, and MemberFailed for a member that runs already.
        """
        cluster = self._cluster(record)
        started: list[FakeMember] = []
        try:
            for name in names:
                recorded = record.member(name)
                if recorded.data.place not in self._members:
                    self._members[recorded.data.place] = cluster.newcomer(name)
                member = self._members[recorded.data.place]
                member.client_url, member.peer_url = recorded.client_url, recorded.peer_url
                member.initial_cluster = tuple(each.peer_url for each in record.members)
                member.start()
                started.append(member)
                changed = msgspec.structs.replace(record.member(name), ref=_ref(member), wanted="running")
                record = record.with_member(changed)
        except BaseException:
            for member in started:
                member.kill()
            raise
        return record

    def _cluster(self, record: ClusterRecord) -> FakeCluster:
        from etcdops.fake.cluster import FakeCluster

        if record.id not in self._clusters:
            cluster = self._clusters[record.id] = FakeCluster(
                record.id,
                {member.name: member.peer_url for member in record.members},
                lies=self._lies,
                election_s=self._election_s,
                request_timeout_s=self._request_timeout_s,
                health_s=self._health_s,
            )
            self._members.update((member.data.place, cluster.members[member.name]) for member in record.members)
        self._records[record.id] = record
        return self._clusters[record.id]

    def _find(self, member: MemberRecord) -> FakeMember | None:
        """Give the member that a record refers to, as it was started then; None if that start is over."""
        found = self._members.get(member.data.place)
        return found if found is not None and _ref(found) == member.ref else None

    def stop(self, record: ClusterRecord, names: Sequence[str], *, timeout_s: float) -> None:
        """Ask the named members to end; a leader hands over first. It takes no time, so `timeout_s` is not needed."""
        for name in names:
            if found := self._find(record.member(name)):
                found.stop()

    def kill(self, member: MemberRecord) -> None:
        """End a member at once, without its handing anything over."""
        if found := self._find(member):
            found.kill()

    def pause(self, member: MemberRecord) -> None:
        """Freeze a member: it accepts connections and answers nothing."""
        self._running(member, "paused").pause()

    def resume(self, member: MemberRecord) -> None:
        """Let a frozen member go on."""
        self._running(member, "resumed").resume()

    def _running(self, member: MemberRecord, wanted: str) -> FakeMember:
        found = self._find(member)
        if found is None or found.state == "stopped":
            raise MemberFailed(f"member {member.name} does not run, so it cannot be {wanted}")
        return found

    def state(self, member: MemberRecord) -> MemberState:
        """Look whether a member runs, now."""
        found = self._find(member)
        return found.state if found else "stopped"

    def adopt(self, record: ClusterRecord) -> ClusterRecord:
        """Give the record with references to members that run without their reference having been recorded."""
        for member in record.members:
            found = self._members.get(member.data.place)
            if found is not None and found.state != "stopped" and _ref(found) != member.ref:
                record = record.with_member(msgspec.structs.replace(member, ref=_ref(found), wanted="running"))
        return record

    def log_bytes(self, member: MemberRecord, offset: int = 0) -> bytes:
        """Give what a member has logged, from `offset` on: JSON lines, like etcd's."""
        found = self._members.get(member.data.place)
        if found is None:
            return b""
        with found.cluster.changed:
            return bytes(found.logged[offset:])

    def lost_data(self, record: ClusterRecord, names: Sequence[str]) -> tuple[str, ...]:
        """Give those that have run before, and whose data was removed: what is in memory is not lost on its own."""
        members = [record.member(name) for name in names]
        return tuple(each.name for each in members if each.ref and each.data.place not in self._members)

    def next_data(self, record: ClusterRecord, name: str) -> DataRef:
        """Give a place for the next generation of data of a member called `name`."""
        generation = record.next_generation(name)
        return DataRef(f"memory:{record.id}/{name}-g{generation}", generation)

    def remove_data(self, record: ClusterRecord, refs: Sequence[DataRef]) -> None:
        """Forget data that no member uses."""
        for ref in refs:
            self._members.pop(ref.place, None)

    def destroy(self, record: ClusterRecord) -> None:
        """Forget the cluster and its data, and end what still runs. Safe to call twice."""
        cluster = self._clusters.pop(record.id, None)
        self._records.pop(record.id, None)
        self._placed = {which: ports for which, ports in self._placed.items() if which[0] != record.id}
        for member in cluster.processes if cluster else ():
            member.kill()
        self._members = {place: member for place, member in self._members.items() if member.cluster is not cluster}

    # -- for people

    def described(self, record: ClusterRecord, member: MemberRecord) -> str:
        """Name, for a person, what a member runs as and where its data is."""
        return f"{member.name}: {self.state(member)}, in memory, data {member.data.place}"

    def by_hand(self, action: str, record: ClusterRecord, member: MemberRecord) -> str:
        """Give the call that does it: there is no command for what is in this process's memory."""
        if action == "wipe":
            return f'cluster.runtime.remove_data(cluster.record, [cluster.member("{member.name}").record.data])'
        return f'cluster.member("{member.name}").{action}()'

    def leftovers(self) -> Iterator[Leftover]:
        """Give every member of any cluster that runs in memory by this object."""
        for cluster_id, cluster in self._clusters.items():
            record = self._records[cluster_id]
            for place, member in self._members.items():
                if member.cluster is cluster and member.state != "stopped":
                    described = f"the running member {member.name}, in memory"
                    yield Leftover(record.spec.name, cluster_id, member.name, record.state_dir, place, described)

    def end_leftover(self, leftover: Leftover) -> None:
        """End such a member, whatever its state."""
        if found := self._members.get(leftover.ref):
            found.kill()


def _ref(member: FakeMember) -> str:
    """Name one start of a member."""
    return f"fake:{member.name}:{member.starts}"


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


RUNTIME = FakeRuntime
