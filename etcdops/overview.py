"""What `status` says of a cluster: what its members answer, and what else a person should know about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etcdops.facts import GAP_S
from etcdops.operations import pending
from etcdops.runtimes.base import CanFindCuts, looked
from etcdops.status import ClusterStatus, Finding, observe

if TYPE_CHECKING:
    from etcdops.cluster import Cluster

__all__ = ["overview"]


def overview(cluster: Cluster, *, timeout_s: float, gate: bool, hosts: bool) -> ClusterStatus:
    """Ask every member at once and give what they say, with what else was found; see `Cluster.status`. Never writes."""
    kept, runtime, found = cluster.record, cluster.runtime, list[Finding]()
    while True:
        looking = looked(runtime, kept)
        # Members whose start nobody lived to record are seen too.
        record = looking.adopt(kept)
        status = observe(record, looking, timeout_s=timeout_s, gap_s=GAP_S if gate else 0.0)
        # Who has the lock knows what others have done; and where all is well nobody needs to.
        if found or status.verdict == "healthy" or not record.hosts or cluster.turn is not None:
            break
        from etcdops.remote.turns import as_others_left_it

        theirs = as_others_left_it(cluster)
        if theirs is None:
            break
        kept, runtime, said = theirs
        remedy = "The next command that changes something takes that up."
        found.append(Finding.of("changed-elsewhere", said, remedy=remedy))
    mending = "`up-env` and `heal` put right what they reach."
    found += [Finding.of("amiss", said, remedy=mending) for said in looking.amiss(kept)]
    if (gate or hosts) and status.verdict not in ("healthy", "down") and isinstance(runtime, CanFindCuts):
        # That nobody reaches a member that is off its network says nothing of the way to its host.
        off = {member.name for member in status.members if member.health == "isolated"}
        cuts = runtime.cuts(record, [name for name in record.spec.names if name not in off])
        found += [Finding.of("hosts-cut", said, remedy="`hosts.check` shows all.") for said in cuts]
    begun = pending.load(cluster)
    if begun is not None:
        said = f"`{begun}` has not come to its end"
        found.append(Finding.of("operation-unfinished", said, remedy=f"{begun.ways}."))
    fault = cluster.store.unhealed(cluster.name)
    if fault is not None:
        from etcdops.faults.heal import dead, describe

        found.append(Finding.of("unhealed-run" if dead(fault) else "run-in-progress", describe(fault)))
    if record.spec.tls:
        from etcdops.tls import expiry

        certificates = expiry.certificates(record)
        found += expiry.findings(record, certificates)
        status = status.with_certificate(expiry.soonest(certificates))
    return status.with_findings(found)
