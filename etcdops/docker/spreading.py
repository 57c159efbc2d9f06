"""Which of several Docker hosts gets a member, and what members leave on a host: the part of the runtime about that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import msgspec

from etcdops.docker.engine import Container
from etcdops.docker.on_host import HostRuntime
from etcdops.errors import EtcdopsError, ImageError, PartlyChanged, Refused, SpecError
from etcdops.remote.fan_out import Outcome
from etcdops.remote.locking import ROLE as LOCK
from etcdops.runtimes.base import NO_ANSWER
from etcdops.state import ClusterRecord, DataRef, MemberRecord

__all__ = ["LOOK_S", "SpreadsMembers"]

_T = TypeVar("_T")

#: How long a look on a host may take. What is run there has limits of its own.
LOOK_S = 45.0


class SpreadsMembers(ABC):
    """The part of RemoteRuntime that chooses hosts for members, and clears them."""

    _on: dict[str, HostRuntime]
    _given_up: frozenset[str] = frozenset()

    @abstractmethod
    def _each(
        self, hosts: Sequence[str], what: Callable[[HostRuntime], _T], timeout_s: float = ...
    ) -> dict[str, Outcome[_T]]:
        """Do something on hosts, all at the same time."""

    def used(self, record: ClusterRecord) -> list[str]:
        """Give the hosts that have members, or anything of members that have left."""
        known = [*(member.host for member in record.members), *(each.host for each in record.retired)]
        return list(dict.fromkeys(name for name in known if name in self._on))

    def holding(self, record: ClusterRecord, refs: Sequence[DataRef]) -> list[str]:
        """Give the hosts on which these volumes are, if they are anywhere."""
        known = {each.data.place: each.host for each in record.retired}
        known |= {member.data.place: member.host for member in record.members}
        found = list(dict.fromkeys(known.get(ref.place, "") for ref in refs))
        return found if all(name in self._on for name in found) else self.used(record)

    def host_for(self, record: ClusterRecord, wished: str = "", *, instead_of: MemberRecord | None = None) -> str:
        """Give the host for a new member; see CanSpread. Raises what is amiss with the one that is wished."""
        if wished and wished not in self._on:
            raise Refused(
                f"{record.spec.name} has no host {wished!r}",
                remedy=f"Its hosts are {', '.join(self._on)}; `hosts.add` adds one. Nothing was changed.",
            )
        names = [wished] if wished else list(self._on)
        ended = self._each(names, lambda host: _refuse_unfit(record, host), LOOK_S)
        fit = [name for name in names if ended[name].error is None]
        if wished or not fit:
            ended[names[0]].checked()
            return wished
        counts = Counter(member.host for member in record.members)
        if instead_of is None:
            return min(fit, key=lambda name: counts[name])
        if instead_of.host in fit:
            return instead_of.host
        if spare := [name for name in fit if not counts[name]]:
            return spare[0]
        said = ", ".join(f"{name} ({counts[name]})" for name in fit)
        raise Refused(
            f"{instead_of.name} was on {instead_of.host}, which cannot have it: {ended[instead_of.host].error}",
            remedy="Add a host with `hosts.add`, or choose one with --host, although two members go with it then if it"
            f" is lost: there are, with so many members, {said}. Nothing was changed.",
        )

    def clear_left(self, record: ClusterRecord) -> ClusterRecord:
        """Remove the containers that are left of members on hosts that answer now; give the record without them."""
        left = {each.host for each in record.retired if each.ref and each.host in self._on}
        ended = self._each(list(left), lambda host: clear(record, host), LOOK_S)
        done = {name for name, outcome in ended.items() if outcome.error is None}
        retired = (msgspec.structs.replace(each, ref="") if each.host in done else each for each in record.retired)
        return msgspec.structs.replace(record, retired=tuple(retired))

    def belongings_on(self, record: ClusterRecord, name: str) -> list[str]:
        """Name what there is on a host; of members that have left, only what they have left there."""
        kept = tuple(each for each in record.retired if each.host in ("", name))
        return self._on[name].belongings(msgspec.structs.replace(record, retired=kept))

    def leave(self, record: ClusterRecord, names: Collection[str]) -> dict[str, EtcdopsError]:
        """Remove all of the cluster's from these hosts, and give what failed, by host."""
        ended = self._each(list(names), lambda host: _strip(record, host), LOOK_S)
        return {name: outcome.error for name, outcome in ended.items() if outcome.error is not None}

    def give_up(self, names: Collection[str]) -> None:
        """Have it that these hosts are lost: what is on those that do not answer stays there."""
        if unknown := [name for name in names if name not in self._on]:
            raise SpecError(f"there is no host {unknown[0]!r}", remedy=f"The hosts are {', '.join(self._on)}.")
        self._given_up = frozenset(names)

    def destroy(self, record: ClusterRecord) -> None:
        """Remove the cluster's containers, networks and volumes on every host. Safe to call twice.

        Raises PartlyChanged, once all is gone elsewhere, where a host that has, or had, a member does not answer.
        """
        used = self.used(record)
        ended = self._each(list(self._on), lambda host: host.destroy(record))
        silent = [name for name in used if isinstance(ended[name].error, NO_ANSWER)]
        for name in used:
            if name not in silent:
                ended[name].checked()
        if silent := [name for name in silent if name not in self._given_up]:
            there = "; ".join(each for name in silent for each in self.belongings_on(record, name))
            why = "; ".join(str(ended[name].error) for name in silent)
            raise PartlyChanged(
                f"{record.spec.name} is gone, but for what is on {' and '.join(silent)} ({there}): {why}",
                remedy="`down-env --purge` again removes that once the host is back, and until then the cluster is on"
                f" record; `down-env --purge --lost {','.join(silent)}` gives it up.",
            )


def _refuse_unfit(record: ClusterRecord, host: HostRuntime) -> None:
    """Raise what is amiss, where a member of the cluster could not run on a host: Docker, Compose, the image."""
    if problem := host.unavailable():
        raise problem
    if host.engine.try_run("image", "inspect", "--format", "{{.Id}}", record.image_id or record.image).exit_code != 0:
        raise ImageError(
            f"{host.engine.host.name} has not the image of {record.spec.name}: {record.image}, {record.image_id[:19]}",
            remedy=f"`image.push --image {record.image}` with --hosts puts it there. Nothing was changed.",
        )


def clear(record: ClusterRecord, host: HostRuntime, *, but: str = "") -> None:
    """Remove the containers on a host of members that are there no more (nor is `but`), and keep their volumes.

    With the last member, what is beside it goes, too: the client, and the network.
    """
    here = {member.name for member in host.here(record)} - {but}
    found = _besides_lock(record, host)
    host.engine.remove([each.id for each in found if not here or (each.member and each.member not in here)])
    if not here and (networks := host.engine.named("network", cluster_id=record.id)):
        host.engine.run("network", "rm", *networks)


def _besides_lock(record: ClusterRecord, host: HostRuntime) -> list[Container]:
    """Give the cluster's containers on a host, but for the lock, which whoever clears it may hold."""
    return [each for each in host.engine.containers(cluster_id=record.id) if each.labels.get("role") != LOCK]


def _strip(record: ClusterRecord, host: HostRuntime) -> None:
    """Remove all of a cluster's from a host, what is kept there for other operators too, but for the lock."""
    host.engine.remove([each.id for each in _besides_lock(record, host)])
    for kind in ("network", "volume"):
        if names := host.engine.named(kind, cluster_id=record.id):
            host.engine.run(kind, "rm", *names)
