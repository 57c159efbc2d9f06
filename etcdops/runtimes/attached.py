"""Members that somebody else runs: they are looked at from outside, and whatever needs their processes is refused.

What is recorded of each is the client URL at which it was proved to answer, or none, and its member ID.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from etcdops import foreign
from etcdops.errors import RuntimeUnavailable
from etcdops.etcdctl import listens
from etcdops.runtimes.base import Leftover, MemberState, Prepared
from etcdops.spec import ClusterSpec
from etcdops.state import ClusterRecord, DataRef, MemberRecord

__all__ = ["RUNTIME", "AttachedRuntime"]

#: Nothing is made in this way: `cluster.attach` records what is there.
ON_COMMAND_LINE = False

#: How long to look whether a port accepts connections; what it takes to look up a name counts, too.
_LOOK_S = 1.2


class AttachedRuntime:
    """Looks at members that somebody else runs. What would start, stop, move or delete anything raises Refused."""

    name: ClassVar[str] = foreign.RUNTIME

    def unavailable(self) -> RuntimeUnavailable | None:
        """Give the reason why no cluster can be made in this way."""
        return RuntimeUnavailable(
            "the runtime attached makes no clusters: it is for those that somebody else runs",
            remedy="`cluster.attach --endpoints URL` records one.",
        )

    # -- looking

    def states(self, record: ClusterRecord) -> dict[str, MemberState]:
        """Look which members' ports accept connections, all at once: "running", or else "unknown"."""
        found: dict[str, MemberState] = {member.name: "unknown" for member in record.members}

        def look(member: MemberRecord) -> None:
            if listens(member.client_url):
                found[member.name] = "running"

        looks = [threading.Thread(target=look, args=(m,), daemon=True) for m in record.members if m.client_url]
        for each in looks:
            each.start()
        deadline = time.monotonic() + _LOOK_S
        for each in looks:
            each.join(max(deadline - time.monotonic(), 0.0))
        return dict(found)

    def adopt(self, record: ClusterRecord) -> ClusterRecord:
        """Give the record as it is: nothing was started here."""
        return record

    def amiss(self, record: ClusterRecord) -> list[str]:
        """Give nothing: beside its members, nothing of the cluster is known here."""
        return []

    def described(self, record: ClusterRecord, member: MemberRecord) -> str:
        """Name, for a person, who a member is and where it is reached."""
        called = f" (etcd's name for it: {member.etcd_name!r})" if member.etcd_name else ""
        return f"{member.name}{called}: member {member.ref}, {member.client_url or 'not reached from here'}"

    def belongings(self, record: ClusterRecord) -> list[str]:
        """Say that nothing of the cluster's is removed."""
        return [f"nothing of {record.spec.name} itself: its members and their data are not touched"]

    def lost_data(self, record: ClusterRecord, names: Sequence[str]) -> tuple[str, ...]:
        """Give nothing: where their data is, and whether it is there, is not seen from here."""
        return ()

    def leftovers(self) -> Iterator[Leftover]:
        """Give nothing: whatever runs is somebody else's."""
        return iter(())

    def by_hand(self, action: str, record: ClusterRecord, member: MemberRecord) -> str:
        """Refuse: which command that is depends on what started the member."""
        raise foreign.refused(f"{action} {member.name}", target=member.name)

    # -- what needs no process, and is done by forgetting

    def forget(self, record: ClusterRecord, name: str) -> None:
        """Do nothing: of what a member runs in, nothing is etcdops'."""

    def destroy(self, record: ClusterRecord) -> None:
        """Do nothing: to purge such a cluster is to forget it."""

    def mend(self, record: ClusterRecord) -> dict[str, str]:
        """Do nothing: what is amiss elsewhere is put right there."""
        return {}

    # -- what needs their processes

    def prepare(self, spec: ClusterSpec, *, offline: bool, progress: Callable[[str], None]) -> Prepared:
        """Refuse: nothing is made in this way."""
        raise foreign.refused(f"creating {spec.name}", cluster=spec.name)

    def place(
        self, spec: ClusterSpec, cluster_id: str, directory: str, *, generation: int = 1
    ) -> tuple[MemberRecord, ...]:
        """Refuse: new members are started by whoever runs the cluster."""
        raise foreign.refused(f"placing members of {spec.name}", cluster=spec.name)

    def start(self, record: ClusterRecord, names: Sequence[str]) -> ClusterRecord:
        """Refuse."""
        raise foreign.refused(f"starting {', '.join(names)}", target=", ".join(names))

    def stop(self, record: ClusterRecord, names: Sequence[str], *, timeout_s: float) -> None:
        """Refuse, unless nobody is to be stopped."""
        if names:
            raise foreign.refused(f"stopping {', '.join(names)}", target=", ".join(names))

    def occupied_ports(self, record: ClusterRecord, names: Sequence[str]) -> dict[str, int]:
        """Give nothing: ports there are not etcdops' to give."""
        return {}

    def log_bytes(self, member: MemberRecord, offset: int = 0) -> bytes:
        """Refuse: where a member logs is known to whoever started it."""
        raise foreign.refused(
            f"reading the log of {member.name}",
            target=member.name,
            remedy="Read it where it runs: `journalctl -u etcd`, `kubectl logs` or `docker logs`.",
        )

    def next_data(self, record: ClusterRecord, name: str) -> DataRef:
        """Refuse."""
        raise foreign.refused(f"making data for {name}", target=name)

    def remove_data(self, record: ClusterRecord, refs: Sequence[DataRef]) -> None:
        """Refuse, unless nothing is to be removed."""
        if refs:
            raise foreign.refused(f"removing data of {record.spec.name}", cluster=record.spec.name)

    def end_leftover(self, leftover: Leftover) -> None:
        """Refuse."""
        raise foreign.refused(f"ending {leftover.described}", cluster=leftover.cluster)


RUNTIME = AttachedRuntime
