"""Members as containers of several Docker hosts, reached over SSH: one Compose project on each.

What is to be done on a host, a runtime of its own does (`etcdops.docker.on_host`); here it is told which host that is,
and all are asked at the same time. A host that does not answer is said to be so, and keeps none of the others waiting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, TypeVar
from urllib.parse import urlsplit

import msgspec

from etcdops import reach
from etcdops.docker.on_host import HostEngine, HostRuntime
from etcdops.docker.spreading import LOOK_S, SpreadsMembers, clear
from etcdops.errors import EtcdopsError, ImageError, Refused, RuntimeUnavailable
from etcdops.remote.checking import demand_fit
from etcdops.remote.fan_out import Outcome, fan_out, told_together
from etcdops.remote.host import SSHHost
from etcdops.remote.inventory import HostSpec
from etcdops.runtimes.base import DataSeen, Leftover, MemberState, Prepared, Restoration, Timer
from etcdops.spec import ClusterSpec
from etcdops.state import ClusterRecord, DataRef, MemberRecord

__all__ = ["RUNTIME", "RemoteRuntime", "for_record"]

_T = TypeVar("_T")

#: How long what is done on a host may take. What is run there has limits of its own.
_ACT_S = 3600.0


class RemoteRuntime(SpreadsMembers):
    """Runs members as containers of several machines' Docker engines."""

    name: ClassVar[str] = "remote"

    def __init__(self, hosts: Sequence[HostSpec] = ()) -> None:
        self.hosts: tuple[HostSpec, ...] = ()
        self._ssh: dict[str, SSHHost] = {}
        self._on: dict[str, HostRuntime] = {}
        self.take_up(hosts)

    def take_up(self, hosts: Sequence[HostSpec]) -> None:
        """Have these hosts from now on; what is connected stays so."""
        known = {spec.name: spec for spec in self.hosts}
        self.hosts = tuple(hosts)
        for name in [name for name in self._on if name not in {spec.name for spec in hosts}]:
            self._ssh.pop(name).close()
            del self._on[name]
        for spec in hosts:
            if known.get(spec.name) != spec:
                self._ssh[spec.name] = SSHHost(spec)
                self._on[spec.name] = HostRuntime(self._ssh[spec.name])
                reach.know(self._on[spec.name].address, spec)

    @property
    def engines(self) -> dict[str, HostEngine]:
        """The hosts' Docker engines, by the hosts' names."""
        return {name: host.on for name, host in self._on.items()}

    # -- telling which host does what

    def _host_of(self, member: MemberRecord) -> HostRuntime:
        found = self._on.get(member.host)
        if found is None:
            raise Refused(
                f"member {member.name} is on {member.host}, which the cluster's hosts do not name",
                remedy=f"Its hosts are {', '.join(self._on) or 'none'}.",
            )
        return found

    def _by_host(self, record: ClusterRecord, names: Sequence[str]) -> dict[str, list[str]]:
        """Give the named members by their hosts."""
        spread: dict[str, list[str]] = {}
        for name in names:
            member = record.member(name)
            self._host_of(member)
            spread.setdefault(member.host, []).append(name)
        return spread

    def _of(self, record: ClusterRecord) -> list[str]:
        """Give the hosts that have members."""
        return list(dict.fromkeys(member.host for member in record.members if member.host in self._on))

    def _each(
        self, hosts: Sequence[str], what: Callable[[HostRuntime], _T], timeout_s: float = _ACT_S
    ) -> dict[str, Outcome[_T]]:
        """Do something on hosts, all at the same time."""
        return fan_out([self._ssh[name] for name in hosts], lambda ssh: what(self._on[ssh.name]), timeout_s=timeout_s)

    def _ask(self, hosts: Sequence[str], what: Callable[[HostRuntime], _T]) -> dict[str, _T]:
        """Do something on hosts; raises what the first that failed did, once all have ended."""
        return {name: outcome.checked() for name, outcome in self._each(hosts, what).items()}

    def _ask_those_that_answer(self, hosts: Sequence[str], what: Callable[[HostRuntime], _T]) -> dict[str, _T]:
        """Do something on hosts, and leave out those where it fails."""
        ended = self._each(hosts, what, LOOK_S)
        return {name: outcome.checked() for name, outcome in ended.items() if outcome.error is None}

    # -- planning

    def unavailable(self) -> RuntimeUnavailable | None:
        """Give the reason why there is nothing to run members on, or None; the hosts are asked by `prepare`."""
        if not self.hosts:
            return RuntimeUnavailable(
                "the runtime remote needs hosts, and none is named",
                remedy="Name them with `--hosts FILE` or `--hosts NAME,NAME`: see docs/hosts.md.",
            )
        return None

    def prepare(self, spec: ClusterSpec, *, offline: bool, progress: Callable[[str], None]) -> Prepared:
        """See that members can run on every host, and find the image that the spec asks for there.

        Raises RuntimeUnavailable where they cannot, ImageError where a host lacks the image.
        """
        for name, facts in demand_fit(list(self._ssh.values()), image=spec.image, progress=progress).items():
            self._on[name].engine.learn(facts.docker, facts.architecture)
        ended = self._each(
            list(self._on), lambda host: host.prepare(spec, offline=offline, progress=lambda message: None)
        )
        errors = [outcome.error for outcome in ended.values() if outcome.error is not None]
        if len(errors) > 1 and all(isinstance(error, ImageError) for error in errors):
            message, remedy = told_together((str(error), error.remedy) for error in errors)
            raise ImageError(message, remedy=remedy)
        found = {name: outcome.checked() for name, outcome in ended.items()}
        kinds = {(each.image_id, each.etcd_version) for each in found.values()}
        first = next(iter(found.values()))
        if len(kinds) > 1:
            said = ", ".join(f"{name} {each.image} ({each.image_id[:19]})" for name, each in found.items())
            raise ImageError(
                f"the hosts have different images: {said}",
                remedy=f"`image.push --image {first.image}` puts the one of this machine onto all of them.",
            )
        progress(f"image {first.image} on {', '.join(found)}")
        return first._replace(engine="", hosts=self.hosts)

    def place(
        self, spec: ClusterSpec, cluster_id: str, directory: str, *, generation: int = 1
    ) -> tuple[MemberRecord, ...]:
        """Give each new member the host that has the fewest, and choose ports there. Changes nothing yet."""
        taken: Counter[str] = Counter()
        spread: dict[str, list[str]] = {}
        for member in spec.members:
            name = member.host or min(self._on, key=lambda each: taken[each])
            if name not in self._on:
                raise Refused(
                    f"member {member.name} cannot be placed on {name}: there is no such host",
                    remedy=f"The hosts are {', '.join(self._on)}.",
                )
            taken[name] += 1
            spread.setdefault(name, []).append(member.name)

        def there(host: HostRuntime) -> tuple[MemberRecord, ...]:
            own = tuple(each for each in spec.members if each.name in spread[host.engine.host.name])
            part = msgspec.structs.replace(spec, members=own)
            return host.place(part, cluster_id, directory, generation=generation)

        placed = {m.name: m for members in self._ask(list(spread), there).values() for m in members}
        return tuple(placed[member.name] for member in spec.members)

    def occupied_ports(self, record: ClusterRecord, names: Sequence[str]) -> dict[str, int]:
        """Give the members that cannot start because something else holds a port of theirs, with that port."""
        spread = self._by_host(record, names)
        found = self._ask(list(spread), lambda host: host.occupied_ports(record, spread[host.engine.host.name]))
        return {name: port for each in found.values() for name, port in each.items()}

    # -- members

    def start(self, record: ClusterRecord, names: Sequence[str]) -> ClusterRecord:
        """Start the named members on their hosts, and give the record with their ids; all of them or none."""
        spread = self._by_host(record, names)
        given = record
        ended = self._each(list(spread), lambda host: host.start(given, spread[host.engine.host.name]))
        begun = [name for host, outcome in ended.items() if outcome.error is None for name in spread[host]]
        for name in begun:
            record = record.with_member(ended[record.member(name).host].checked().member(name))
        for outcome in ended.values():
            if outcome.error is not None:
                for name in begun:
                    self.kill(record.member(name))
                raise outcome.error
        return record

    def stop(self, record: ClusterRecord, names: Sequence[str], *, timeout_s: float) -> None:
        """Ask the named members to end and wait until they have, on all hosts at the same time."""
        spread = self._by_host(record, names)
        self._ask(list(spread), lambda host: host.stop(record, spread[host.engine.host.name], timeout_s=timeout_s))

    def kill(self, member: MemberRecord) -> None:
        """Kill a member (SIGKILL) and wait until it is gone."""
        self._host_of(member).kill(member)

    def pause(self, member: MemberRecord) -> None:
        """Freeze a member, and see that it is."""
        self._host_of(member).pause(member)

    def resume(self, member: MemberRecord) -> None:
        """Let a frozen member go on, and see that it does."""
        self._host_of(member).resume(member)

    def isolate(self, record: ClusterRecord, member: MemberRecord) -> None:
        """Cut a member off from its peers, and see that it is."""
        self._host_of(member).isolate(record, member)

    def unplug(self, record: ClusterRecord, member: MemberRecord) -> None:
        """Take a member off its network, and see that it is."""
        self._host_of(member).unplug(record, member)

    def arm(self, record: ClusterRecord, member: MemberRecord, how: str) -> Timer:
        """Arm a timer on the member's host that undoes what is done to it, should we be heard of no more."""
        return self._host_of(member).arm(record, member, how)

    def rejoin(self, record: ClusterRecord, member: MemberRecord) -> None:
        """Connect one member again, while others may stay cut off."""
        others = [name for name, state in self.states(record).items() if state == "isolated" and name != member.name]
        self._host_of(member).rejoin(record, member)
        if others:
            self._restart(record, [member.name])

    def _restart(self, record: ClusterRecord, names: Sequence[str]) -> None:
        """Restart members that were off together: each waits for up to half a minute on connections that lead nowhere.

        etcd's peers notice those by TCP's keep-alive alone, and without a quorum nobody sends anything sooner.
        """
        spread = self._by_host(record, names)
        self._ask(list(spread), lambda host: host.restart(record, spread[host.engine.host.name]))

    def states(self, record: ClusterRecord) -> dict[str, MemberState]:
        """Look what every member does, now; "unknown" for those whose host does not answer."""
        seen: dict[str, MemberState] = {}

        def look(host: HostRuntime) -> dict[str, MemberState]:
            states = host.states(record)
            for member in host.here(record):
                reach.settle(member.client_url)
            return states

        for name, outcome in self._each(self._of(record), look, LOOK_S).items():
            if outcome.error is None:
                seen |= outcome.checked()
            else:
                reach.forget_ssh(self._on[name].address)
        return {member.name: seen.get(member.name, "unknown") for member in record.members}

    def adopt(self, record: ClusterRecord) -> ClusterRecord:
        """Give the record with the ids of the containers that there are now, whoever created them."""
        found = self._ask_those_that_answer(self._of(record), lambda host: host.adopt(record))
        for host, answer in found.items():
            for member in answer.members:
                if member.host == host:
                    record = record.with_member(member)
        return record

    def amiss(self, record: ClusterRecord) -> list[str]:
        """Say what is amiss beside the members: hosts that do not answer, and what is amiss on the others.

        So is what members that have left have left on hosts, which are not asked.
        """
        said = [
            f"the container of {each.member} is left on {each.host}, which did not answer when it was {each.why}"
            for each in record.retired
            if each.ref
        ]
        for name, outcome in self._each(self._of(record), lambda host: host.amiss(record), LOOK_S).items():
            said += [str(outcome.error)] if outcome.error else [f"{name}: {each}" for each in outcome.checked()]
        return said

    def cuts(self, record: ClusterRecord, names: Sequence[str]) -> list[str]:
        """Say which host does not reach which, at the ports for the peers of these members."""
        from etcdops.remote.peers import Peer, PeerLink, try_peers

        peers = []
        for member in map(record.member, names):
            place = urlsplit(member.peer_url)
            peers.append(Peer(member.host, place.hostname or "", place.port or 0))

        def tried(host: HostRuntime) -> list[PeerLink]:
            ssh = self._ssh[host.engine.host.name]
            return try_peers(ssh, [peer for peer in peers if peer.name != ssh.name])

        links = [link for each in self._ask_those_that_answer(self._of(record), tried).values() for link in each]
        bad = {(link.source, link.target): link for link in links if link.result == "unreachable"}
        said = []
        for (source, target), link in bad.items():
            at = f"{link.address}:{link.port}: {link.detail}"
            if (target, source) not in bad:
                said.append(f"{source} does not reach {target} ({at})")
            elif source < target:
                said.append(f"{source} and {target} do not reach each other ({at})")
        return said

    def mend(self, record: ClusterRecord) -> dict[str, str]:
        """Put right what is not as it should be on the hosts that answer; gives what was done."""
        found = self._ask_those_that_answer(self._of(record), lambda host: host.mend(record))
        connected = [name for each in found.values() for name in each if name in record.spec.names]
        if len(connected) > 1:
            self._restart(record, connected)
        done: dict[str, str] = {}
        for host, each in found.items():
            done |= {name if name in record.spec.names else f"{name} on {host}": what for name, what in each.items()}
        return done

    # -- certificates

    def give_certificates(self, record: ClusterRecord, name: str) -> None:
        """Put a member's certificate and key into its container, or for "" the operator's into each host's client."""
        if name:
            self._host_of(record.member(name)).give_certificates(record, name)
        else:
            self._ask(self._of(record), lambda host: host.give_certificates(record, ""))

    def peer_address(self, record: ClusterRecord, member: MemberRecord) -> tuple[str, int] | None:
        """Give where this machine reaches a member's port for its peers: where they do, or by a forward of SSH."""
        parts = urlsplit(reach.through(member.peer_url))
        return (parts.hostname, parts.port) if parts.hostname and parts.port else None

    # -- what they are made of

    def log_bytes(self, member: MemberRecord, offset: int = 0) -> bytes:
        """Give what a member's container has logged, from `offset` on."""
        return self._host_of(member).log_bytes(member, offset)

    def lost_data(self, record: ClusterRecord, names: Sequence[str]) -> tuple[str, ...]:
        """Give those of the named members that have run before, and whose volume is gone now."""
        spread = self._by_host(record, names)
        found = self._ask(list(spread), lambda host: host.lost_data(record, spread[host.engine.host.name]))
        lost = {name for each in found.values() for name in each}
        return tuple(name for name in names if name in lost)

    def file_systems(self, record: ClusterRecord) -> dict[str, str]:
        """Give the type of the file system that each member's data is on; without those whose host does not answer."""
        told = self._ask_those_that_answer(self._of(record), lambda host: host.file_systems(record))
        return {name: kind for there in told.values() for name, kind in there.items()}

    def next_data(self, record: ClusterRecord, name: str) -> DataRef:
        """Give a volume for the next generation of data of a member called `name`. Nothing is made yet."""
        return next(iter(self._on.values())).next_data(record, name)

    def remove_data(self, record: ClusterRecord, refs: Sequence[DataRef]) -> None:
        """Remove volumes that no member uses, on whichever host they are. There is no way back."""
        self._ask(self.holding(record, refs), lambda host: host.remove_data(record, refs))

    def forget(self, record: ClusterRecord, name: str) -> None:
        """Remove a stopped member's container, and keep its volume; with the last, what is beside it there, too."""
        host = self._host_of(record.member(name))
        host.forget(record, name)
        if len(host.here(record)) == 1:
            clear(record, host, but=name)

    def described(self, record: ClusterRecord, member: MemberRecord) -> str:
        """Name, for a person, what a member runs as and where its data is."""
        return self._host_of(member).described(record, member)

    def belongings(self, record: ClusterRecord) -> list[str]:
        """Name, for a person, everything that `destroy` removes."""
        return [
            *(f"{name}: {each}" for name in self.used(record) for each in self.belongings_on(record, name)),
            *(f"{name}: the record and the keys that are kept for a second operator" for name in self._on),
        ]

    def by_hand(self, action: str, record: ClusterRecord, member: MemberRecord) -> str:
        """Give the plain command for an action, as a person would type it here."""
        return self._host_of(member).by_hand(action, record, member)

    def leftovers(self) -> Iterator[Leftover]:
        """Give all that there is of this user's clusters on these hosts."""
        found = self._ask_those_that_answer(list(self._on), lambda host: list(host.leftovers()))
        for name, each in found.items():
            for leftover in each:
                yield leftover._replace(ref=f"{name} {leftover.ref}", described=f"{leftover.described} on {name}")

    def end_leftover(self, leftover: Leftover) -> None:
        """Remove it, whatever its state."""
        name, _, ref = leftover.ref.partition(" ")
        self._on[name].end_leftover(leftover._replace(ref=ref))

    # -- data from snapshots

    def refuse_full(self, record: ClusterRecord, size: int) -> None:
        """Raise Refused where a host has no room for data from a snapshot of `size` bytes."""
        self._ask(self._of(record), lambda host: host.refuse_full(record, size))

    def restore_data(self, record: ClusterRecord, restoration: Restoration, *, progress: Callable[[str], None]) -> None:
        """Make every member's volume from a snapshot, on all hosts at the same time; see CanRestore."""
        try:
            self._ask(self._of(record), lambda host: host.restore_data(record, restoration, progress=progress))
        except EtcdopsError:
            self.drop_data(record)
            raise

    def drop_data(self, record: ClusterRecord) -> None:
        """Remove the data of every member of `record`, which none of them may ever have used, and what makes it."""
        self._ask(self._of(record), lambda host: host.drop_data(record))

    def restore_by_hand(self, record: ClusterRecord, restoration: Restoration) -> list[str]:
        """Give the plain commands for `restore_data`."""
        return [line for name in self._of(record) for line in self._on[name].restore_by_hand(record, restoration)]

    def look_into(self, record: ClusterRecord, names: Sequence[str]) -> dict[str, DataSeen | str]:
        """Give what the data of the named members says, none of which may run, or why it cannot be read."""
        spread = self._by_host(record, names)
        found = self._ask(list(spread), lambda host: host.look_into(record, spread[host.engine.host.name]))
        seen = {name: what for each in found.values() for name, what in each.items()}
        return {name: seen[name] for name in names}

    def present_data(self, record: ClusterRecord, refs: Sequence[DataRef]) -> tuple[DataRef, ...]:
        """Give those of these volumes that there are, on whichever host."""
        found = self._ask(self.holding(record, refs), lambda host: host.present_data(record, refs))
        there = {ref for each in found.values() for ref in each}
        return tuple(ref for ref in refs if ref in there)

    def let_go(self, record: ClusterRecord) -> None:
        """Remove the members' containers, none of which may run."""
        self._ask(self._of(record), lambda host: host.let_go(record))

    def copy_database(self, record: ClusterRecord, name: str, target: str) -> None:
        """Copy the database file of a member that does not run to a file of this machine."""
        self._host_of(record.member(name)).copy_database(record, name, target)


def for_record(record: ClusterRecord) -> RemoteRuntime:
    """Give the runtime on the hosts where a cluster was made."""
    return RemoteRuntime(record.hosts)


#: It is asked for with `--hosts`, which names them.
ON_COMMAND_LINE = False

RUNTIME = RemoteRuntime
