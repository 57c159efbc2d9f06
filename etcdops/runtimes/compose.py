"""Members as containers: the original lab's home.

Compose creates what a rendered file says; all else is done with `docker`, by container id. Members are published on
loopback alone. Two networks: `client`, and `peer`, on which alone a member is known as NAME.peer. Peer URLs go there,
so that leaving it cuts a member off from its peers while its clients still reach it: a service's own name resolves on
both, and a member that is cut off would come back over the other.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from typing import ClassVar

import msgspec

from etcdops.docker import compose, leftovers
from etcdops.docker.compose import ComposeFile, file_of, project_of
from etcdops.docker.engine import ALIVE, Container, Engine
from etcdops.docker.logs import ContainerLogs
from etcdops.docker.restoring import RestoresVolumes
from etcdops.docker.services import published_port, services_of
from etcdops.docker.tls import give
from etcdops.errors import EtcdopsError, MemberFailed, Refused, RuntimeUnavailable, SpecError
from etcdops.ports import HasPorts, free_ports, refuse_taken
from etcdops.runtimes.base import Leftover, MemberState, Prepared
from etcdops.spec import ClusterSpec
from etcdops.state import ClusterRecord, DataRef, MemberRecord

__all__ = ["RUNTIME", "ComposeRuntime", "for_record", "network_of", "why_not"]

_CLIENT = "client"

_NETWORK_GONE = re.compile(r"network \S+ not found")

#: How long `auto` waits for an image.
_AUTO_PULL_S = 60.0


class ComposeRuntime(RestoresVolumes):
    """Runs members as containers of a Docker engine: the one that the environment leads to, unless one is given."""

    name: ClassVar[str] = "compose"

    #: Where members are published on their host, and whether they are for their peers, too.
    published_at = "127.0.0.1"
    publishes_peers: ClassVar[bool] = False

    def __init__(self, engine: Engine | None = None) -> None:
        self.engine = engine or Engine()
        self._logs = ContainerLogs(self.engine)
        self._listed: list[Container] | None = None

    def unavailable(self) -> RuntimeUnavailable | None:
        """Give the reason why this machine cannot run members in this way, or None when it can."""
        try:
            return compose.compose_missing(self.engine)
        except RuntimeUnavailable as error:
            return error

    def here(self, record: ClusterRecord) -> list[MemberRecord]:
        """Give the members that run, or are to run, on this engine."""
        return [member for member in record.members if member.host == self.engine.host.name]

    # -- planning

    def prepare(self, spec: ClusterSpec, *, offline: bool, progress: Callable[[str], None]) -> Prepared:
        """Find the image that the spec asks for, or pull it unless `offline`.

        Raises ImageError when it is neither here nor to be had, SpecError for a spec that names a binary.
        """
        if spec.etcd_bin:
            raise SpecError(
                f"--etcd-bin {spec.etcd_bin} means members as processes, and the runtime is compose",
                remedy="`image.build --etcd-bin PATH` makes an image of it; or use --runtime process.",
            )
        _refuse_reserved(spec)
        from etcdops.docker import images

        image = images.find(
            self.engine, image=spec.image, version=spec.etcd_version, offline=offline, progress=progress
        )
        address = self.engine.find_address()
        progress(f"image {image.reference}")
        return Prepared(image.etcd_version, image=image.reference, image_id=image.id, engine=address)

    def place(
        self, spec: ClusterSpec, cluster_id: str, directory: str, *, generation: int = 1
    ) -> tuple[MemberRecord, ...]:
        """Choose the ports at which members are published on their host, and their volumes. Changes nothing yet.

        Raises Refused when a pinned port is in use, or too few are free.
        """
        _refuse_reserved(spec)
        host = self._ports_there()
        asked = [
            (member.client_port, member.peer_port) if self.publishes_peers else (member.client_port,)
            for member in spec.members
        ]
        pinned = {port for ports in asked for port in ports if port}
        refuse_taken(host, pinned)
        fresh = free_ports(host, sum(map(len, asked)), pinned)
        scheme = "https" if spec.tls else "http"
        project = project_of(spec.name, cluster_id)
        return tuple(
            MemberRecord(
                name=member.name,
                host=host.name,
                client_url=f"{scheme}://{self.published_at}:{member.client_port or fresh.pop()}",
                peer_url=f"{scheme}://{self.published_at}:{member.peer_port or fresh.pop()}"
                if self.publishes_peers
                else f"{scheme}://{member.name}.peer:2380",
                data=DataRef(f"{project}_{member.name}-g{generation}", generation),
                log="",
            )
            for member in spec.members
        )

    def _ports_there(self) -> HasPorts:
        """Give what tells which ports of the host are in use."""
        return self.engine.host

    def occupied_ports(self, record: ClusterRecord, names: Sequence[str]) -> dict[str, int]:
        """Give the members that cannot start because something else holds their published port, with that port."""
        ports = {name: published_port(record.member(name)) for name in names}
        return {name: port for name, port in ports.items() if self.engine.host.port_in_use(port)}

    def move_ports(self, record: ClusterRecord, names: Sequence[str]) -> ClusterRecord:
        """Give the record with free ports for the named members, which must be stopped.

        A container's ports are fixed when it is created, so theirs are removed, and created anew when they start; the
        data is in the volume. Raises Refused where a port is pinned.
        """
        for name in names:
            if pinned := record.spec.member(name).client_port:
                raise Refused(
                    f"cannot start {name}: something else listens on port {pinned}, which was pinned with --port",
                    remedy=f"Find it with `ss -ltnp 'sport = :{pinned}'` and end it; nothing was started.",
                )
        taken = {published_port(member) for member in record.members}
        fresh = free_ports(self.engine.host, len(names), taken)
        found = self._containers(record)
        self.engine.remove([found[name].id for name in names if name in found])
        for name in names:
            member = record.member(name)
            url = f"{member.client_url.rpartition(':')[0]}:{fresh.pop()}"
            record = record.with_member(msgspec.structs.replace(member, client_url=url, ref=""))
        return record

    # -- members

    def start(self, record: ClusterRecord, names: Sequence[str]) -> ClusterRecord:
        """Start the named members, creating the containers that are not there, and the client with them.

        Gives the record with their ids. Raises what `etcdops.docker.problems` knows; the members that this call
        started are ended then.
        """
        found = self._containers(record)
        absent = [name for name in (*names, _CLIENT) if name not in found]
        if absent:
            compose.create(self.engine, self._file(record), absent)
            found = self._containers(record)
        idle = [found[name] for name in (*names, _CLIENT) if found[name].state not in ALIVE]
        for container in idle:
            if record.spec.tls and container.state == "created":
                give(self.engine, record, container.id, container.member, new=(container.member or _CLIENT) in absent)
        # Compose v1 leaves a second network to its own `start`.
        self._connect(record, idle)
        try:
            self._start(record, idle)
        except BaseException:
            self.engine.try_run("kill", *(container.id for container in idle))
            raise
        for name in names:
            record = record.with_member(
                msgspec.structs.replace(record.member(name), ref=found[name].id, wanted="running")
            )
        return record

    def _start(self, record: ClusterRecord, containers: Sequence[Container]) -> None:
        ids = [container.id for container in containers]
        try:
            self.engine.start(ids)
        except EtcdopsError as error:
            if not _NETWORK_GONE.search(str(error)):
                raise
            # `docker network prune` takes the networks of containers that do not run, which go on naming them.
            self._make_networks(record)
            for container in containers:
                for network in self._networks_of(container):
                    self.engine.try_run("network", "disconnect", network_of(record, network), container.id)
            self._connect(record, [container._replace(networks=()) for container in containers])
            self.engine.start(ids)

    def _file(self, record: ClusterRecord) -> ComposeFile:
        image = record.image
        if record.bootstrapped:
            # The name may have gone over to another image since the cluster was created.
            now = self.engine.try_run("image", "inspect", "--format", "{{.Id}}", image).stdout.decode().strip()
            image = image if now == record.image_id else record.image_id
        return self._rendered(record, image)

    def _rendered(self, record: ClusterRecord, image: str) -> ComposeFile:
        endpoints = [f"{member.name}:2379" for member in record.members]
        return ComposeFile(record, image, services_of(record, record.members), endpoints)

    def give_certificates(self, record: ClusterRecord, name: str) -> None:
        """Put a member's certificate and key into its container, or for "" the operator's into the client's."""
        container = self._containers(record).get(name or _CLIENT)
        if container is not None:
            give(self.engine, record, container.id, container.member)

    def peer_address(self, record: ClusterRecord, member: MemberRecord) -> tuple[str, int] | None:
        """Give where this machine reaches the port that a member's peers connect to, None if it is not on the network.

        The network has no way out, and this machine is on it.
        """
        networks = "{{range $name, $each := .NetworkSettings.Networks}}{{$name}} {{$each.IPAddress}}\n{{end}}"
        done = self.engine.try_run("inspect", "--format", networks, member.ref or "none")
        pairs = [line.split() for line in done.stdout.decode().splitlines()]
        found = dict(pair for pair in pairs if len(pair) == 2).get(network_of(record, "peer"))
        return (found, int(member.peer_url.rpartition(":")[2])) if found else None

    def stop(self, record: ClusterRecord, names: Sequence[str], *, timeout_s: float) -> None:
        """Ask the named members to end (SIGTERM) and wait until they have; those that have not in time are killed.

        With the last member, the client goes too.
        """
        found = self._containers(record)
        ids = [found[name].id for name in names if name in found and found[name].state in ("running", "paused")]
        frozen = [found[name].id for name in names if name in found and found[name].state == "paused"]
        if frozen:
            # A frozen process cannot act on SIGTERM.
            self.engine.run("unpause", *frozen)
        if ids:
            self.engine.run("stop", "-t", str(max(round(timeout_s), 1)), *ids, timeout_s=timeout_s + 30.0)
        left = [name for name, each in found.items() if each.state in ("running", "paused") and name not in names]
        if left == [_CLIENT]:
            self.engine.run("kill", found[_CLIENT].id)

    def kill(self, member: MemberRecord) -> None:
        """Kill a member (SIGKILL) and wait until it is gone."""
        if not member.ref:
            return
        done = self.engine.try_run("kill", member.ref)
        if done.exit_code != 0 and b"is not running" not in done.stderr and b"No such container" not in done.stderr:
            self.engine.checked(["kill", member.name], done)
        self._wait(member, ("exited", "dead", "created", ""), "stopped")

    def pause(self, member: MemberRecord) -> None:
        """Freeze a member, and see that it is."""
        self._must_run(member, "frozen", self._state_of(member))
        self.engine.run("pause", member.ref)
        self._wait(member, ("paused",), "frozen")

    def resume(self, member: MemberRecord) -> None:
        """Let a frozen member go on, and see that it does."""
        state = self._state_of(member)
        self._must_run(member, "let go on", state)
        if state == "paused":
            self.engine.run("unpause", member.ref)
        self._wait(member, ("running",), "running")

    @staticmethod
    def _must_run(member: MemberRecord, wanted: str, state: str) -> None:
        if state not in ("running", "paused"):
            raise MemberFailed(f"member {member.name} does not run, so it cannot be {wanted}")

    def _wait(self, member: MemberRecord, states: tuple[str, ...], wanted: str) -> None:
        deadline = time.monotonic() + 10.0
        while (seen := self._state_of(member)) not in states:
            if time.monotonic() > deadline:
                raise MemberFailed(
                    f"member {member.name} (container {member.ref[:12]}) is {seen or 'gone'}, not {wanted}",
                    remedy=f"Look with `docker inspect {member.ref[:12]}`.",
                )
            time.sleep(0.02)

    def _state_of(self, member: MemberRecord) -> str:
        done = self.engine.try_run("inspect", "--format", "{{.State.Status}}", member.ref or "none")
        if done.exit_code != 0 and b"o such object" not in done.stderr:
            self.engine.checked(["inspect", member.name], done)
        return done.stdout.decode().strip()

    def states(self, record: ClusterRecord) -> dict[str, MemberState]:
        """Look what every member does, now."""
        found = self._containers(record)
        return {member.name: self._seen(record, found.get(member.name)) for member in self.here(record)}

    def _seen(self, record: ClusterRecord, container: Container | None) -> MemberState:
        if container is None or container.state not in ALIVE:
            return "stopped"
        if container.state == "paused":
            return "paused"
        return "isolated" if self._lacking(record, container) else "running"

    def looked(self, record: ClusterRecord) -> ComposeRuntime:
        """Give this runtime as it is for questions alone: `docker ps` is run once."""
        once = copy(self)
        once._listed = self._list(record)
        return once

    def _list(self, record: ClusterRecord) -> list[Container]:
        """Give all containers of the cluster, whatever they are for."""
        return self.engine.containers(cluster_id=record.id) if self._listed is None else self._listed

    def _containers(self, record: ClusterRecord) -> dict[str, Container]:
        """Give the cluster's containers by member, and the client under its own name; of two, the one that runs."""
        found: dict[str, Container] = {}
        for container in self._list(record):
            name = container.member or _CLIENT
            if container.labels.get("role") not in ("member", "client"):
                continue
            if name not in found or container.state in ("running", "paused"):
                found[name] = container
        return found

    def adopt(self, record: ClusterRecord) -> ClusterRecord:
        """Give the record with the ids of the containers that there are now, whoever created them."""
        for name, container in self._containers(record).items():
            if name not in record.spec.names or record.member(name).ref == container.id:
                continue
            member = msgspec.structs.replace(record.member(name), ref=container.id)
            if container.state in ("running", "paused"):
                member = msgspec.structs.replace(member, wanted="running")
            record = record.with_member(member)
        return record

    # -- networks and the client

    def isolate(self, record: ClusterRecord, member: MemberRecord) -> None:
        """Disconnect a member from the network of its peers, and see that it is."""
        self.engine.run("network", "disconnect", network_of(record, "peer"), member.ref)
        if "peer" not in self._lacking(record, self._containers(record).get(member.name)):
            raise MemberFailed(f"member {member.name} is still on the network {network_of(record, 'peer')}")

    def unplug(self, record: ClusterRecord, member: MemberRecord) -> None:
        """Disconnect a member from all networks, and see that it is: what was published is refused then."""
        container = self._containers(record).get(member.name)
        if container is None or container.state not in ALIVE:
            raise MemberFailed(f"member {member.name} does not run, so it cannot be unplugged")
        # Its peers' network first: a leader that lost its clients alone would go on leading.
        for name in reversed(self._networks_of(container)):
            if network_of(record, name) in container.networks:
                self.engine.run("network", "disconnect", network_of(record, name), container.id)
        left = self._containers(record).get(member.name)
        if left is None or len(self._lacking(record, left)) < len(self._networks_of(left)):
            raise MemberFailed(f"member {member.name} is still on {', '.join(left.networks) if left else 'a network'}")

    def rejoin(self, record: ClusterRecord, member: MemberRecord) -> None:
        """Connect a member to the networks that it is off again, while others may stay off them."""
        found = self._containers(record)
        off = [each.member for each in found.values() if each.member and self._lacking(record, each)]
        container = found.get(member.name)
        if container is None or member.name not in off:
            return
        self._connect(record, [container])
        if len(off) > 1:
            # As in `mend`: it may have got the address of another that is off.
            self.engine.run("restart", "-t", "2", container.id)

    def _networks_of(self, container: Container) -> tuple[str, ...]:
        return ("client", "peer") if container.member else ("client",)

    def _lacking(self, record: ClusterRecord, container: Container | None) -> list[str]:
        """Give the networks that a container should be on and is not."""
        if container is None:
            return []
        return [name for name in self._networks_of(container) if network_of(record, name) not in container.networks]

    def _readdressed(self, record: ClusterRecord, container: Container) -> bool:
        """Whether a member is off the network over which its peers reach it, where it may have got another address."""
        return bool(container.member) and self._networks_of(container)[-1] in self._lacking(record, container)

    def amiss(self, record: ClusterRecord) -> list[str]:
        """Say what is amiss beside the members: the client, and networks that members should be on."""
        found = self._containers(record)
        said = [
            f"{name} is off the network {network_of(record, network)}"
            for name, container in found.items()
            for network in self._lacking(record, container)
        ]
        client = found.get(_CLIENT)
        some_run = any(each.state == "running" for name, each in found.items() if name != _CLIENT)
        if some_run and (client is None or client.state != "running"):
            said.append(f"the client container is {client.state if client else 'gone'}")
        return said

    def mend(self, record: ClusterRecord) -> dict[str, str]:
        """Connect what is off a network, and bring the client back; gives what was done."""
        found = self._containers(record)
        off = [each for each in found.values() if each.state == "running" and self._readdressed(record, each)]
        there = [each for each in found.values() if each.member and each.state in ALIVE]
        here = self.here(record)
        done = dict.fromkeys(self._connect(record, found.values()), "was cut off and is connected again")
        if len(off) > 1 or (off and len(there) < len(here)):
            # One member that all others miss gets its address back. Of several, each may get another's, and it takes
            # etcd minutes to give up connections that lead nowhere.
            self.engine.run_each([["restart", "-t", "2", each.id] for each in off], timeout_s=60.0)
        client = found.get(_CLIENT)
        if found and (client is None or client.state != "running"):
            self._revive(record, client)
            done[_CLIENT] = "was down and was started"
        return done

    def _connect(self, record: ClusterRecord, containers: Iterable[Container]) -> list[str]:
        """Connect containers to the networks that they are off; gives the names of those that were."""
        off = [(each, network) for each in containers for network in self._lacking(record, each)]
        if off:
            self._make_networks(record)
        for each, network in off:
            alias = f"{each.member}.peer" if network == "peer" else each.member or _CLIENT
            self.engine.run("network", "connect", "--alias", alias, network_of(record, network), each.id)
        return list(dict.fromkeys(each.member or _CLIENT for each, _ in off))

    def _make_networks(self, record: ClusterRecord) -> None:
        """Make the networks that are gone."""
        there = self.engine.named("network", cluster_id=record.id)
        found = self._containers(record)
        wanted = {name for each in found.values() for name in self._networks_of(each)}
        if not all(network_of(record, name) in there for name in wanted):
            compose.create(self.engine, self._file(record), list(found))

    def _revive(self, record: ClusterRecord, client: Container | None) -> None:
        if client is None:
            compose.create(self.engine, self._file(record), [_CLIENT])
            client = self._containers(record)[_CLIENT]
            if record.spec.tls:
                give(self.engine, record, client.id, "")
        if client.state == "paused":
            self.engine.run("unpause", client.id)
        else:
            self._start(record, [client])

    # -- what it is made of

    def log_bytes(self, member: MemberRecord, offset: int = 0) -> bytes:
        """Give what a member's container has logged, from `offset` on."""
        return self._logs.read(member.ref, offset)

    def lost_data(self, record: ClusterRecord, names: Sequence[str]) -> tuple[str, ...]:
        """Give those of the named members that have run before, and whose volume is gone now."""
        ran = [record.member(name) for name in names if record.member(name).ref]
        there = self.engine.named("volume", cluster_id=record.id) if ran else []
        return tuple(member.name for member in ran if member.data.place not in there)

    def file_systems(self, record: ClusterRecord) -> dict[str, str]:
        """Give the type of the file system that Docker keeps volumes on, for each member."""
        kind = self.engine.host.file_system(self.engine.storage())
        return {member.name: kind for member in self.here(record) if kind}

    def next_data(self, record: ClusterRecord, name: str) -> DataRef:
        """Give a volume for the next generation of data of a member called `name`. Nothing is made yet."""
        generation = record.next_generation(name)
        return DataRef(f"{project_of(record.spec.name, record.id)}_{name}-g{generation}", generation)

    def remove_data(self, record: ClusterRecord, refs: Sequence[DataRef]) -> None:
        """Remove volumes that no member uses; one that is gone already is no error. There is no way back."""
        there = self.engine.named("volume", cluster_id=record.id)
        if doomed := [ref.place for ref in refs if ref.place in there]:
            self.engine.run("volume", "rm", *doomed)

    def forget(self, record: ClusterRecord, name: str) -> None:
        """Remove a stopped member's container, and keep its volume. Safe to call twice."""
        found = self._containers(record)
        if name in found:
            self.engine.remove([found[name].id])

    def destroy(self, record: ClusterRecord) -> None:
        """Remove the cluster's containers, networks and volumes. Safe to call twice."""
        self.engine.remove([container.id for container in self.engine.containers(cluster_id=record.id)])
        for kind in ("network", "volume"):
            if names := self.engine.named(kind, cluster_id=record.id):
                self.engine.run(kind, "rm", *names)

    def described(self, record: ClusterRecord, member: MemberRecord) -> str:
        """Name, for a person, what a member runs as and where its data is."""
        return f"{member.name}: container {member.ref[:12] or 'not yet created'}, data in volume {member.data.place}"

    def belongings(self, record: ClusterRecord) -> list[str]:
        """Name, for a person, everything that `destroy` removes."""
        members = [self.described(record, member) for member in self.here(record)]
        members += [f"{each.member}: data that was {each.why}, in volume {each.data.place}" for each in record.retired]
        # Between hosts, peers come by the published ports.
        names = ("client",) if self.publishes_peers else ("client", "peer")
        networks = " and ".join(network_of(record, name) for name in names)
        return [*members, f"the client container, and the network{'s' * (len(names) > 1)} {networks}"]

    def by_hand(self, action: str, record: ClusterRecord, member: MemberRecord) -> str:
        """Give the plain docker command for an action."""
        container, peer = member.ref[:12], network_of(record, "peer")
        if action == "start" and not container:
            project = project_of(record.spec.name, record.id)
            return self.engine.by_hand("compose", "-p", project, "-f", file_of(record), "up", "-d", member.name)
        if action == "wipe":
            volume = self.engine.by_hand("volume", "rm", member.data.place)
            return f"{self.engine.by_hand('rm', container)}; {volume}"
        client = network_of(record, "client")
        leave = ["network", "disconnect", peer, container]
        join = ["network", "connect", "--alias", f"{member.name}.peer", peer, container]
        commands = {
            "resume": [["unpause", container]],
            "isolate": [leave],
            "rejoin": [join],
            "unplug": [leave, ["network", "disconnect", client, container]],
            "replug": [join, ["network", "connect", "--alias", member.name, client, container]],
        }
        return "; ".join(self.engine.by_hand(*each) for each in commands.get(action, [[action, container]]))

    # -- what is left on the machine

    def leftovers(self) -> Iterator[Leftover]:
        """Give every container, network and volume of this user's clusters; nothing where no engine answers."""
        return leftovers.find(self.engine)

    def end_leftover(self, leftover: Leftover) -> None:
        """Remove it, whatever its state."""
        leftovers.remove(self.engine, leftover)


def _refuse_reserved(spec: ClusterSpec) -> None:
    if _CLIENT in spec.names:
        raise SpecError(
            f"a member in a container cannot be called {_CLIENT!r}: the container beside the members is",
            remedy="Choose another name.",
        )


def network_of(record: ClusterRecord, name: str) -> str:
    """Give the name of a cluster's network: "client" or "peer"."""
    return f"{project_of(record.spec.name, record.id)}_{name}"


def for_record(record: ClusterRecord) -> ComposeRuntime:
    """Give the runtime on the engine where a cluster was made, whichever the environment leads to now."""
    return ComposeRuntime(Engine(address=record.engine))


def why_not(spec: ClusterSpec, *, offline: bool, progress: Callable[[str], None]) -> str:
    """Give the reason why "auto" does not choose containers for a new cluster, "" when it does."""
    if shutil.which("docker") is None:
        return "Docker is not installed"
    from etcdops.docker import images

    runtime = ComposeRuntime()
    try:
        if problem := runtime.unavailable():
            return str(problem)
        images.find(
            runtime.engine,
            image=spec.image,
            version=spec.etcd_version,
            offline=offline,
            progress=progress,
            timeout_s=_AUTO_PULL_S,
        )
    except EtcdopsError as error:
        return str(error)
    return ""


RUNTIME = ComposeRuntime
