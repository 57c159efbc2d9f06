"""The members of a cluster on one of several Docker hosts: what Compose does there, and how a member is cut off.

As on one engine, but that peers come from other hosts. Members are published at the address of their host for that; a
network of their own, which one of them could leave, there is not, so packets are dropped instead.
"""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit

from etcdops.docker.compose import ComposeFile, file_of, project_of
from etcdops.docker.engine import LABEL, Container, Engine
from etcdops.docker.files import receive
from etcdops.docker.filters import CUT, Filters
from etcdops.docker.problems import PUSH
from etcdops.docker.restoring import MOUNT
from etcdops.docker.services import DATA, peer_port, published_port, services_of
from etcdops.errors import MemberFailed, Refused
from etcdops.ports import HasPorts
from etcdops.remote.dead_man import FIRED, DeadMan, disarm_all
from etcdops.runtimes.base import MemberState
from etcdops.runtimes.compose import ComposeRuntime, network_of
from etcdops.state import ClusterRecord, MemberRecord

if TYPE_CHECKING:
    from etcdops.remote.host import SSHHost

__all__ = ["HostEngine", "HostRuntime"]


class HostEngine(Engine):
    """The Docker engine of another machine, by the `docker` command that is there."""

    without_image = PUSH

    def __init__(self, host: SSHHost) -> None:
        super().__init__(host)
        self.ssh = host
        self._docker = host.spec.docker_argv

    @property
    def described(self) -> str:
        """Where it is, for a person."""
        return f"of {self.host.name}"

    def argv(self, *arguments: str) -> list[str]:
        """Give the argv of a docker command for this engine, there."""
        return [*self._docker, *arguments]

    def by_hand(self, *arguments: str) -> str:
        """Give the command that a person would type here."""
        return shlex.join(["ssh", self.host.name, shlex.join(self.argv(*arguments))])

    def find_address(self) -> str:
        """Give "": it is found by its host."""
        return ""

    def _address_in(self, told: str) -> str:
        return ""


class HostRuntime(ComposeRuntime):
    """Runs members as containers of another machine's Docker engine."""

    name: ClassVar[str] = "remote"

    publishes_peers: ClassVar[bool] = True

    def __init__(self, host: SSHHost) -> None:
        self.on = HostEngine(host)
        super().__init__(self.on)
        self._ssh = host
        self.address = host.spec.peer_address or host.spec.address or host.name
        self.published_at = f"[{self.address}]" if ":" in self.address else self.address
        self._filters = Filters(self.engine)

    def _ports_there(self) -> HasPorts:
        return _Listening(self._ssh)

    def occupied_ports(self, record: ClusterRecord, names: Sequence[str]) -> dict[str, int]:
        """Give those of the named members that are here, and cannot start because something else holds their port."""
        listening = _Listening(self._ssh)
        members = [member for member in self.here(record) if member.name in names]
        taken = {
            member.name: [port for port in (published_port(member), peer_port(member)) if listening.port_in_use(port)]
            for member in members
        }
        return {name: ports[0] for name, ports in taken.items() if ports}

    def move_ports(self, record: ClusterRecord, names: Sequence[str]) -> ClusterRecord:
        """Refuse it: the peers know a member by its port."""
        raise Refused(
            f"cannot start {' and '.join(names)} on {self._ssh.name}: something else listens on a port of theirs",
            remedy="See who listens with `ss -ltnp` there, and end it; nothing was started.",
        )

    def _rendered(self, record: ClusterRecord, image: str) -> ComposeFile:
        endpoints = [urlsplit(member.client_url).netloc for member in record.members]
        services = services_of(record, self.here(record), self._bound())
        return ComposeFile(record, image, services, endpoints, self.engine.host.name)

    def _bound(self) -> str:
        """Give the address at which members are published: the host's, or all where only its name is known."""
        try:
            address = ipaddress.ip_address(self.address)
        except ValueError:
            return "0.0.0.0"
        return f"[{address}]" if address.version == 6 else str(address)

    def _networks_of(self, container: Container) -> tuple[str, ...]:
        return ("client",)

    # -- cutting off

    def _marks(self, record: ClusterRecord, name: str = "") -> list[Container]:
        listed = [each for each in self._list(record) if each.labels.get("role") == CUT]
        return [each for each in listed if name in ("", each.member)]

    def states(self, record: ClusterRecord) -> dict[str, MemberState]:
        """Look what every member here does, now."""
        once = self.looked(record)
        states = super(HostRuntime, once).states(record)
        for mark in once._marks(record):
            if states.get(mark.member) == "running" and self._filters.in_force(mark):
                states[mark.member] = "isolated"
        return states

    def looked(self, record: ClusterRecord) -> HostRuntime:
        """Give this runtime as it is for questions alone: `docker ps` is run once."""
        once = super().looked(record)
        assert isinstance(once, HostRuntime)
        return once

    def isolate(self, record: ClusterRecord, member: MemberRecord) -> None:
        """Drop what a member sends to its peers and gets from them, and see that it is."""
        self._filters.cut(self._container(record, member), "peers")

    def _container(self, record: ClusterRecord, member: MemberRecord) -> Container:
        found = self._containers(record).get(member.name)
        if found is None or found.state != "running":
            raise MemberFailed(f"member {member.name} does not run, so it cannot be cut off")
        return found

    def rejoin(self, record: ClusterRecord, member: MemberRecord) -> None:
        """Let a member's packets through again, and connect it to the network that it is off."""
        self._filters.open(self._marks(record, member.name))
        container = self._containers(record).get(member.name)
        if container is not None:
            self._connect(record, [container])

    def restart(self, record: ClusterRecord, names: Sequence[str]) -> None:
        """Restart members, which lets go of connections that lead nowhere."""
        found = self._containers(record)
        self.engine.run_each([["restart", "-t", "2", found[name].id] for name in names], timeout_s=60.0)

    def _readdressed(self, record: ClusterRecord, container: Container) -> bool:
        # Peers come by the host's address, which stays; how many are off on other hosts is not known here.
        return False

    def arm(self, record: ClusterRecord, member: MemberRecord, how: str) -> DeadMan:
        """Arm a timer on this host that undoes what is done to a member, should we be heard of no more."""
        back = {"kill": ["start", member.ref], "stop": ["start", member.ref], "freeze": ["unpause", member.ref]}
        back["unplug"] = self._plugging(record, member)
        undo = self.engine.argv(*back[how]) if how in back else self._open_by_hand(record, member)
        timer = DeadMan(self._ssh, record.id, member.name, undo)
        timer.arm()
        return timer

    def _plugging(self, record: ClusterRecord, member: MemberRecord) -> list[str]:
        """Give the words after `docker` that connect a member again to the only network that there is here."""
        return ["network", "connect", "--alias", member.name, network_of(record, "client"), member.ref]

    def _open_by_hand(self, record: ClusterRecord, member: MemberRecord) -> list[str]:
        """Give the command that lets a member's packets through again, and removes what says that they are not."""
        labels = {"cluster-id": record.id, "role": CUT, "member": member.name}
        filters = [word for name, value in labels.items() for word in ("--filter", f"label={LABEL}{name}={value}")]
        marks = shlex.join(self.engine.argv("ps", "--all", "--quiet", *filters))
        remove = shlex.join(self.engine.argv("rm", "--force"))
        each = [shlex.join(self.engine.argv(*words)) for words in self._filters.all_by_hand("none", member.ref)]
        return ["sh", "-c", "; ".join([*each, f"for mark in $({marks}); do {remove} $mark; done"])]

    def amiss(self, record: ClusterRecord) -> list[str]:
        """Say what is amiss beside the members: what is cut off, and the client."""
        cut = [mark.member for mark in self._marks(record) if self._filters.in_force(mark)]
        return [*super().amiss(record), *(f"{name} is cut off from its peers" for name in cut)]

    def mend(self, record: ClusterRecord) -> dict[str, str]:
        """Let all packets through again, and bring the client back; gives what was done."""
        opened = self._filters.open(self._marks(record))
        mended = super().mend(record)
        # Only now, when whatever a timer is there for is undone: should we be cut off before, it has to go off.
        fired = [name.removesuffix(FIRED) for name in disarm_all(self._ssh, record.id) if name.endswith(FIRED)]
        done = dict.fromkeys(fired, "was brought back before by the timer on its host")
        return done | mended | dict.fromkeys(opened, "was cut off and is connected again")

    def copy_database(self, record: ClusterRecord, name: str, target: str) -> None:
        """Copy the database file of a member that does not run to `target`, a file of this machine."""
        helper = self._helper(record, f"{record.member(name).data.place}:{MOUNT}:ro")
        try:
            receive(self._ssh, self.engine.argv("cp", f"{helper}:{DATA}/member/snap/db", "-"), target)
        finally:
            self.engine.remove([helper])

    def by_hand(self, action: str, record: ClusterRecord, member: MemberRecord) -> str:
        """Give the plain command for an action, as it is typed here."""
        name = self.engine.host.name
        if action == "start" and not member.ref:
            project = project_of(record.spec.name, record.id)
            up = self.engine.argv("compose", "-p", project, "-f", "-", "up", "-d", member.name)
            return f"{shlex.join(['ssh', name, shlex.join(up)])} < {shlex.quote(file_of(record, name))}"
        if action == "unplug":
            return self.engine.by_hand("network", "disconnect", network_of(record, "client"), member.ref)
        if action == "replug":
            return self.engine.by_hand(*self._plugging(record, member))
        if action in ("isolate", "rejoin"):
            return self.engine.by_hand(*self._filters.by_hand("peers" if action == "isolate" else "none", member.ref))
        return super().by_hand(action, record, member)

    def described(self, record: ClusterRecord, member: MemberRecord) -> str:
        """Name, for a person, what a member runs as and where its data is."""
        return f"{super().described(record, member)} on {member.host}"


class _Listening:
    """The ports of a host on which something listens, from one look."""

    def __init__(self, host: SSHHost) -> None:
        self.name = host.name
        self._host = host
        self._ports = host.listening_ports()

    def read(self, path: str, offset: int = 0) -> bytes:
        return self._host.read(path, offset)

    def port_in_use(self, port: int) -> bool:
        return port in self._ports
