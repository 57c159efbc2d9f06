"""Which hosts a cluster over several has: more of them, or fewer. Nothing is started or stopped by this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from etcdops.errors import HostUnreachable, Refused, SpecError
from etcdops.operations import pending
from etcdops.runtimes.base import CanSpread
from etcdops.state import ClusterRecord, Retired

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.remote.checking import HostsReport
    from etcdops.remote.inventory import HostSpec

__all__ = ["HostUse", "add_hosts", "remove_hosts", "uses"]

Progress = Callable[[str], None]


class HostUse(NamedTuple):
    """A host of a cluster: its address, the members on it, and what members that have left have left on it."""

    name: str
    address: str
    members: tuple[str, ...]
    left: tuple[str, ...] = ()


def _silent(text: str) -> None:
    pass


def uses(record: ClusterRecord) -> tuple[HostUse, ...]:
    """Give the hosts of a cluster as they are recorded, with what is on each. No host is asked."""
    return tuple(
        HostUse(
            host.name,
            host.peer_address or host.address or host.name,
            tuple(member.name for member in record.members if member.host == host.name),
            tuple(_described(each) for each in record.retired if each.host == host.name),
        )
        for host in record.hosts
    )


def _described(left: Retired) -> str:
    return f"{left.member}-g{left.data.generation} ({'container and data' if left.ref else 'data'})"


def add_hosts(cluster: Cluster, hosts: Sequence[HostSpec], *, progress: Progress = _silent) -> tuple[str, ...]:
    """Let members be placed on more hosts, and give the names of those that are new; none where all are known.

    Each is looked at first: reached, Docker and Compose, the cluster's image (pulled where that can be), and that it
    and every other host that answers reach each other. Raises Refused with all that is amiss, and then nothing was
    recorded; SpecError for a cluster that is not on other hosts.
    """
    _must_spread(cluster)
    with cluster.locked(f"hosts.add {' '.join(host.name for host in hosts)}", progress=progress):
        record = cluster.record
        known = {host.name: host for host in record.hosts}
        for host in hosts:
            if host.name in known and host != known[host.name]:
                progress(f"{host.name} is known, and stays recorded as it was: {known[host.name].address or host.name}")
        new = tuple(host for host in hosts if host.name not in known)
        if new:
            _look(record, new, progress)
            _take(cluster, msgspec.structs.replace(record, hosts=(*record.hosts, *new)))
        return tuple(host.name for host in new)


def _look(record: ClusterRecord, new: Sequence[HostSpec], progress: Progress) -> None:
    from etcdops.remote.checking import check_hosts
    from etcdops.remote.inventory import Inventory

    names = {host.name for host in new}
    there = [host for host in record.hosts if _answers(host, progress)]
    report = check_hosts(Inventory((*there, *new)))
    said = [str(finding) for finding in report.findings if finding.host in names and finding.severity != "error"]
    for each in said:
        progress(each)
    wrong = _wrong(report, names)
    if wrong:
        raise Refused(
            f"{' and '.join(sorted(names))} cannot be added to {record.spec.name}: {'; '.join(wrong)}",
            remedy="`hosts.check` shows all of it. Nothing was changed.",
        )
    _find_image(record, new, progress)


def _answers(host: HostSpec, progress: Progress) -> bool:
    from etcdops.remote.host import SSHHost

    try:
        with SSHHost(host) as opened:
            opened.connect()
    except HostUnreachable as error:
        progress(f"{error}: whether it reaches the others is not looked at")
        return False
    return True


def _wrong(report: HostsReport, names: set[str]) -> list[str]:
    """Give the errors that are about new hosts, and what is between them and others."""
    ours = [
        finding.message
        for finding in report.findings
        if finding.host in names
        and (finding.severity == "error" or finding.code == "same-engine")
        and finding.code != "peer-unreachable"
    ]
    cut = [
        f"{link.source} does not reach {link.target} ({link.address}, port {link.port}): {link.detail}"
        for link in report.peers
        if link.result == "unreachable" and names & {link.source, link.target}
    ]
    return [*ours, *cut]


def _find_image(record: ClusterRecord, new: Sequence[HostSpec], progress: Progress) -> None:
    """See that new hosts have the cluster's image, or get it; raises ImageError for one that does not."""
    from etcdops.errors import ImageError
    from etcdops.runtimes.remote import RemoteRuntime

    spec = msgspec.structs.replace(record.spec, image=record.image, etcd_bin="")
    push = f"`image.push --image {record.image} --hosts …` puts it there, the names of the new hosts after --hosts."
    try:
        found = RemoteRuntime(new).prepare(spec, offline=False, progress=progress)
    except ImageError as error:
        raise ImageError(str(error), remedy=f"{push} Nothing was changed.") from error
    if record.image_id and found.image_id != record.image_id:
        raise ImageError(
            f"{record.image} is {found.image_id[:19]} there, and {record.spec.name} runs {record.image_id[:19]}",
            remedy=f"{push} Nothing was changed.",
        )


def remove_hosts(
    cluster: Cluster, names: Sequence[str], *, lost: bool = False, progress: Progress = _silent
) -> tuple[Retired, ...]:
    """Forget hosts that have no member, and give what is kept of members that have left and is given up by it.

    What is kept there for other operators is removed. Nothing is given up unless they are `lost`, which is for hosts
    that do not come back. Raises SpecError for a host that the cluster does not have, Refused for one that has a
    member, on which something is kept, or that does not answer.
    """
    _must_spread(cluster)
    with cluster.locked(f"hosts.remove {' '.join(names)}", progress=progress):
        pending.refuse_unfinished(cluster)
        record = cluster.record
        known = {use.name: use for use in uses(record)}
        for name in names:
            if name not in known:
                raise SpecError(f"{record.spec.name} has no host {name!r}", remedy=f"Its hosts are {', '.join(known)}.")
            if held := known[name].members:
                way = "member.replace" if lost else "member.remove"
                raise Refused(
                    f"{name} has a member of {record.spec.name}: {', '.join(held)}",
                    remedy=f"`{way} {held[0]}` first. Nothing was changed.",
                )
            if known[name].left and not lost:
                raise Refused(
                    f"on {name} something is kept of {record.spec.name}: {', '.join(known[name].left)}",
                    remedy="`heal` removes containers and `data.remove` data, if it answers; --lost gives them up."
                    " Nothing was changed.",
                )
        assert isinstance(cluster.runtime, CanSpread)
        # What is kept there for other operators holds keys.
        failed = cluster.runtime.leave(record, names)
        if failed and not lost:
            name, error = next(iter(failed.items()))
            raise Refused(
                f"what {record.spec.name} keeps on {name} for other operators cannot be removed: {error}",
                remedy="--lost leaves it there: for a host that does not come back. It is recorded still.",
            )
        given_up = tuple(each for each in record.retired if each.host in names)
        hosts = tuple(host for host in record.hosts if host.name not in names)
        kept = tuple(each for each in record.retired if each not in given_up)
        _take(cluster, msgspec.structs.replace(record, hosts=hosts, retired=kept))
        return given_up


def _take(cluster: Cluster, record: ClusterRecord) -> None:
    if isinstance(cluster.runtime, CanSpread):
        # First, as what is written down is kept on the hosts that there are, for other operators.
        cluster.runtime.take_up(record.hosts)
    cluster.save(record)


def _must_spread(cluster: Cluster) -> None:
    if not isinstance(cluster.runtime, CanSpread):
        raise SpecError(
            f"the members of {cluster.name} run on this machine",
            remedy="`up-env --hosts hosts.toml --cluster NAME` makes a cluster over several hosts.",
        )
