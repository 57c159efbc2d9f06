"""What a runtime must do, and what it may be able to do besides.

A runtime knows processes or containers, files and ports; it knows nothing of etcd's API. Whatever only some runtimes
can do is a capability, a small protocol of its own: a drill names the ones it needs, and is skipped with the reason
where one is missing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from etcdops.errors import ConnectionLost, EtcdopsError, HostUnreachable, RuntimeUnavailable, WaitTimeout
from etcdops.remote.inventory import HostSpec
from etcdops.spec import ClusterSpec
from etcdops.state import ClusterRecord, DataRef, MemberRecord

__all__ = [
    "NO_ANSWER",
    "CanArm",
    "CanFindCuts",
    "CanGiveCertificates",
    "CanIsolate",
    "CanKill",
    "CanLookOnce",
    "CanMovePorts",
    "CanPause",
    "CanRestore",
    "CanSpread",
    "CanTellFileSystems",
    "CanUnplug",
    "DataSeen",
    "Leftover",
    "MemberState",
    "MembersAlone",
    "Prepared",
    "Restoration",
    "Runtime",
    "Timer",
    "looked",
]

#: What is raised where a host, or its engine, does not answer: whatever is there stays there for now.
NO_ANSWER = (ConnectionLost, HostUnreachable, RuntimeUnavailable, WaitTimeout)

#: What a runtime sees of a member: it runs, is frozen, runs but is off a network that it should be on, or is not there.
#: "unknown" is one that somebody else runs, and that accepts no connection from here.
MemberState = Literal["running", "paused", "isolated", "stopped", "unknown"]


class Prepared(NamedTuple):
    """What a new cluster will run: the version of etcd, and the directory of its binaries, or its image and engine.

    `hosts` are those that its members are spread over, where there are several.
    """

    etcd_version: str
    binary: str = ""
    image: str = ""
    image_id: str = ""
    engine: str = ""
    hosts: tuple[HostSpec, ...] = ()


class Leftover(NamedTuple):
    """Something of ours on this machine: which cluster and member it belongs to, what it is, and whether it runs.

    `member` is "" for what belongs to no one member. `ref` is the runtime's own.
    """

    cluster: str
    cluster_id: str
    member: str
    state_dir: str
    ref: str
    described: str
    runs: bool = True


class Restoration(NamedTuple):
    """What members are restored from: a snapshot that was verified, and how.

    `sha256` is the whole file's, `trailer` its last 32 bytes (the SHA-256 of those before), both in hexadecimal; `size`
    is in bytes. `bump` is by how much revisions are moved on, with all before marked as compacted; 0 for neither.
    """

    file: str
    sha256: str
    trailer: str
    size: int
    bump: int = 0


class DataSeen(NamedTuple):
    """What a member's data on the disk says: the revision of its last key, and, where that can be read, the rest.

    `compact_revision`, `raft_index` and `raft_term` are -1, and `members` is None, where the runtime cannot see them.
    What the member had only in its write-ahead log is not in it.
    """

    revision: int
    compact_revision: int = -1
    raft_index: int = -1
    raft_term: int = -1
    members: tuple[str, ...] | None = None


class Runtime(Protocol):
    """Runs members somewhere.

    Methods raise RuntimeUnavailable or Refused before they change anything, and MemberFailed when a member does not
    do what it should.
    """

    name: ClassVar[str]

    def unavailable(self) -> RuntimeUnavailable | None:
        """Give the reason why this machine cannot run members in this way, or None when it can."""

    def prepare(self, spec: ClusterSpec, *, offline: bool, progress: Callable[[str], None]) -> Prepared:
        """Find, or fetch unless `offline`, what a new cluster will run. Raises BinaryError or ImageError without it."""

    def place(
        self, spec: ClusterSpec, cluster_id: str, directory: str, *, generation: int = 1
    ) -> tuple[MemberRecord, ...]:
        """Choose hosts, ports and places for data of new members. Changes nothing yet; may be asked several times."""

    def start(self, record: ClusterRecord, names: Sequence[str]) -> ClusterRecord:
        """Start the named members and give the record with their new references. Does not wait for etcd to serve.

        All of them or, when it raises, none.
        """

    def stop(self, record: ClusterRecord, names: Sequence[str], *, timeout_s: float) -> None:
        """Ask the named members to end (SIGTERM) and wait until they have.

        Those that have not ended after `timeout_s` seconds, in all and not for each, are killed.
        """

    def states(self, record: ClusterRecord) -> dict[str, MemberState]:
        """Look what every member does, now."""

    def adopt(self, record: ClusterRecord) -> ClusterRecord:
        """Give the record with references to members that run without their reference having been recorded."""

    def amiss(self, record: ClusterRecord) -> list[str]:
        """Say what is not as it should be beside the members themselves, for a person. Changes nothing."""

    def mend(self, record: ClusterRecord) -> dict[str, str]:
        """Put right what is not as it should be, except that no member is started or resumed.

        Gives what was done by the name that it was done to: {"thor": "was cut off and is connected again"}.
        """

    def occupied_ports(self, record: ClusterRecord, names: Sequence[str]) -> dict[str, int]:
        """Give the members that cannot start because something else holds a port of theirs, with that port."""

    def log_bytes(self, member: MemberRecord, offset: int = 0) -> bytes:
        """Give what a member has logged, from `offset` on."""

    def lost_data(self, record: ClusterRecord, names: Sequence[str]) -> tuple[str, ...]:
        """Give those of the named members that have run before, and whose data is gone or empty now."""

    def next_data(self, record: ClusterRecord, name: str) -> DataRef:
        """Give a place for the next generation of data of a member called `name`. Nothing is made yet."""

    def remove_data(self, record: ClusterRecord, refs: Sequence[DataRef]) -> None:
        """Remove data that no member uses; what is gone already is no error. There is no way back."""

    def forget(self, record: ClusterRecord, name: str) -> None:
        """Remove what a stopped member ran in, if there is such a thing, and keep its data. Safe to call twice."""

    def destroy(self, record: ClusterRecord) -> None:
        """End the members at once, and remove their data and all else that was made for them. Safe to call twice."""

    def described(self, record: ClusterRecord, member: MemberRecord) -> str:
        """Name, for a person, what a member runs as and where its data is."""

    def belongings(self, record: ClusterRecord) -> list[str]:
        """Name, for a person, everything that `destroy` removes."""

    def by_hand(self, action: str, record: ClusterRecord, member: MemberRecord) -> str:
        """Give the plain command with which a person would do an action to a member.

        Actions are "start", "stop", "kill", "pause", "resume", "isolate", "rejoin", "unplug", "replug" and "wipe" (the
        data of one that is stopped is deleted), as far as they can be done.
        """

    def leftovers(self) -> Iterator[Leftover]:
        """Give all that there is on this machine of any cluster by this runtime, in the order in which it can go."""

    def end_leftover(self, leftover: Leftover) -> None:
        """End or remove it, whatever its state."""


class MembersAlone(ABC):
    """What runtimes share whose clusters are their members and no more: nothing beside those is amiss, or left over."""

    @abstractmethod
    def state(self, member: MemberRecord) -> MemberState:
        """Look whether a member runs, now."""

    @abstractmethod
    def described(self, record: ClusterRecord, member: MemberRecord) -> str:
        """Name, for a person, what a member runs as and where its data is."""

    def states(self, record: ClusterRecord) -> dict[str, MemberState]:
        """Look what every member does, now."""
        return {member.name: self.state(member) for member in record.members}

    def amiss(self, record: ClusterRecord) -> list[str]:
        """Give nothing: there are members alone."""
        return []

    def mend(self, record: ClusterRecord) -> dict[str, str]:
        """Do nothing, as there is nothing to be mended but members."""
        return {}

    def belongings(self, record: ClusterRecord) -> list[str]:
        """Name, for a person, everything that `destroy` removes."""
        kept = [f"{each.member}: data that was {each.why}, {each.data.place}" for each in record.retired]
        return [*(self.described(record, member) for member in record.members), *kept]

    def forget(self, record: ClusterRecord, name: str) -> None:  # noqa: B027  # nothing is what is to be done
        """Do nothing: of a member that has ended nothing is left but its data."""


@runtime_checkable
class CanKill(Protocol):
    """Can end a member at once, without its knowing (SIGKILL): what a crash is to etcd."""

    def kill(self, member: MemberRecord) -> None:
        """Kill a member and wait until it is gone."""


@runtime_checkable
class CanPause(Protocol):
    """Can freeze a member and let it go on: what a stalled machine is to etcd."""

    def pause(self, member: MemberRecord) -> None:
        """Freeze a member, and see that it is."""

    def resume(self, member: MemberRecord) -> None:
        """Let a frozen member go on, and see that it does."""


@runtime_checkable
class CanIsolate(Protocol):
    """Can cut a member off from its peers while clients still reach it: what a network partition is to etcd."""

    def isolate(self, record: ClusterRecord, member: MemberRecord) -> None:
        """Cut a member off from its peers, and see that it is. `Runtime.mend` connects all that are off again."""

    def rejoin(self, record: ClusterRecord, member: MemberRecord) -> None:
        """Connect one member again, while others may stay cut off."""


@runtime_checkable
class CanUnplug(CanIsolate, Protocol):
    """Can take a member off all networks: what a pulled cable is to etcd."""

    def unplug(self, record: ClusterRecord, member: MemberRecord) -> None:
        """Take a member off all networks, and see that it is. `rejoin` and `Runtime.mend` connect it again."""


class Timer(Protocol):
    """A timer, where a member is, that undoes a fault by itself.

    Once it was disarmed, `fired` says whether it had gone off before, and `lost` that nobody there could be asked.
    """

    fired: bool
    lost: bool

    def disarm(self) -> None:
        """End the timer, unless it has gone off."""


@runtime_checkable
class CanArm(Protocol):
    """Can have a fault undone by itself should the operator's machine be heard of no more: see Timer."""

    def arm(self, record: ClusterRecord, member: MemberRecord, how: str) -> Timer:
        """Arm a timer that undoes "kill", "stop", "freeze", "isolate" or "unplug"; MemberFailed where none can be."""


@runtime_checkable
class CanFindCuts(Protocol):
    """Can tell which of the hosts that members are on do not reach each other."""

    def cuts(self, record: ClusterRecord, names: Sequence[str]) -> list[str]:
        """Say, for a person, which host does not reach which, at these members' ports for peers; takes seconds."""


@runtime_checkable
class CanTellFileSystems(Protocol):
    """Can tell which file systems members write to."""

    def file_systems(self, record: ClusterRecord) -> dict[str, str]:
        """Give the type of the file system that each member's data is on; without those that cannot be asked."""


@runtime_checkable
class CanMovePorts(Protocol):
    """Can give a stopped member another port, where something else has taken its own."""

    def move_ports(self, record: ClusterRecord, names: Sequence[str]) -> ClusterRecord:
        """Give the record with free ports for the named members; raises Refused where one is pinned."""


@runtime_checkable
class CanLookOnce(Protocol):
    """Can answer several questions about a cluster from one look, where each look is dear."""

    def looked(self, record: ClusterRecord) -> Runtime:
        """Give this runtime as it is for questions alone: what the cluster's members do is as it was just now."""


def looked(runtime: Runtime, record: ClusterRecord) -> Runtime:
    """Give a runtime for several questions about one moment; it is not for acts, and of no use a moment later."""
    return runtime.looked(record) if isinstance(runtime, CanLookOnce) else runtime


@runtime_checkable
class CanGiveCertificates(Protocol):
    """Keeps what its members need to speak TLS where they run, and gives it to them anew, while they run."""

    def give_certificates(self, record: ClusterRecord, name: str) -> None:
        """Give a member its certificate and key, as they are here; for "" the operator's to what works beside them."""

    def peer_address(self, record: ClusterRecord, member: MemberRecord) -> tuple[str, int] | None:
        """Give the address and port at which this machine reaches the port for a member's peers, None for nowhere."""


@runtime_checkable
class CanSpread(Protocol):
    """Runs members on several hosts, of which one may be out of reach while the others are not."""

    def host_for(self, record: ClusterRecord, wished: str = "", *, instead_of: MemberRecord | None = None) -> str:
        """Give the host for a new member: the one that is wished, or of those that are fit the one with the fewest.

        A member that is replaced stays where it was, or goes to a host that has none. Raises Refused where there is no
        such host, or it is not fit.
        """

    def take_up(self, hosts: Sequence[HostSpec]) -> None:
        """Have these hosts from now on, and no others."""

    def leave(self, record: ClusterRecord, names: Collection[str]) -> dict[str, EtcdopsError]:
        """Remove all of the cluster's from these hosts, and give what failed, by host."""

    def give_up(self, names: Collection[str]) -> None:
        """Have it that these hosts are lost: `destroy` leaves what is on those that do not answer."""

    def clear_left(self, record: ClusterRecord) -> ClusterRecord:
        """Remove what members that have left ran in, on hosts that did not answer then; give the record without it."""


@runtime_checkable
class CanRestore(Protocol):
    """Can make members' data from a snapshot, and look into data that no member is using."""

    def refuse_full(self, record: ClusterRecord, size: int) -> None:
        """Raise Refused where there is no room for data of every member from a snapshot of `size` bytes."""

    def restore_data(self, record: ClusterRecord, restoration: Restoration, *, progress: Callable[[str], None]) -> None:
        """Make the data that every member of `record` is to have from a snapshot, all at the same time.

        What an earlier attempt has left there goes first, and what still runs of it. Raises SnapshotError when the
        file is no longer what was verified, or etcd's tool fails; nothing is left of the data then.
        """

    def drop_data(self, record: ClusterRecord) -> None:
        """Remove the data of every member of `record`, which none of them may ever have used, and what makes it."""

    def restore_by_hand(self, record: ClusterRecord, restoration: Restoration) -> list[str]:
        """Give the plain commands for `restore_data`, one for each member."""

    def look_into(self, record: ClusterRecord, names: Sequence[str]) -> dict[str, DataSeen | str]:
        """Give what the data of the named members says, none of which may run, or why it cannot be read."""

    def present_data(self, record: ClusterRecord, refs: Sequence[DataRef]) -> tuple[DataRef, ...]:
        """Give those of these places for data that are there."""

    def let_go(self, record: ClusterRecord) -> None:
        """Forget what ties stopped members to the data that they have, so that they can be started from other data."""

    def copy_database(self, record: ClusterRecord, name: str, target: str) -> None:
        """Copy the database file of a member that does not run, `member/snap/db`, to a file of this machine."""
