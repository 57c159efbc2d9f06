"""What a runtime must do, and what it may be able to do besides.

A runtime knows processes or containers, files and ports; it knows nothing of etcd's API. Whatever only some runtimes
can do is a capability, a small protocol of its own: a drill names the ones it needs, and is skipped with the reason
where one is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from etcdops.spec import ClusterSpec
from etcdops.state import ClusterRecord, MemberRecord

__all__ = ["CanKill", "CanPause", "Leftover", "MemberState", "Runtime"]

#: What a runtime sees of a member: its process runs, is frozen, or is not there.
MemberState = Literal["running", "paused", "stopped"]


class Leftover(NamedTuple):
    """Something of ours that still runs: which cluster and member it belonged to, and how it is referred to."""

    cluster: str
    cluster_id: str
    member: str
    state_dir: str
    ref: str


class Runtime(Protocol):
    """Runs members somewhere.

    Methods raise RuntimeUnavailable or Refused before they change anything, and MemberFailed when a member does not
    do what it should.
    """

    name: ClassVar[str]

    def unavailable(self) -> str | None:
        """Give the reason why this machine cannot run members in this way, or None when it can."""

    def place(self, spec: ClusterSpec, cluster_id: str, directory: str) -> tuple[MemberRecord, ...]:
        """Choose hosts, ports and places for data of new members. Changes nothing yet; may be asked several times."""

    def start(self, record: ClusterRecord, names: Sequence[str]) -> ClusterRecord:
        """Start the named members and give the record with their new references. Does not wait for etcd to serve.

        All of them or, when it raises, none.
        """

    def stop(self, record: ClusterRecord, names: Sequence[str], *, timeout_s: float) -> None:
        """Ask the named members to end (SIGTERM) and wait until they have.

        Those that have not ended after `timeout_s` seconds, in all and not for each, are killed.
        """

    def state(self, member: MemberRecord) -> MemberState:
        """Look whether a member runs, now."""

    def adopt(self, record: ClusterRecord) -> ClusterRecord:
        """Give the record with references to members that run without their reference having been recorded."""

    def occupied_ports(self, record: ClusterRecord, names: Sequence[str]) -> dict[str, int]:
        """Give the members that cannot start because something else holds a port of theirs, with that port."""

    def log_bytes(self, member: MemberRecord, offset: int = 0) -> bytes:
        """Give what a member has logged, from `offset` on."""

    def destroy(self, record: ClusterRecord) -> None:
        """Remove the members' data. They must be stopped. Safe to call twice."""

    def described(self, record: ClusterRecord, member: MemberRecord) -> str:
        """Name, for a person, what a member runs as and where its data is."""

    def by_hand(self, action: str, record: ClusterRecord, member: MemberRecord) -> str:
        """Give the plain command with which a person would "start", "stop", "kill", "pause" or "resume" a member."""

    def leftovers(self) -> Iterator[Leftover]:
        """Give every member of any cluster that runs on this machine by this runtime."""

    def end_leftover(self, leftover: Leftover) -> None:
        """End such a member, whatever its state."""


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
