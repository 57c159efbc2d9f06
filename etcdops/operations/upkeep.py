"""What defragmenting, compacting and healing a full quota share: the gate, sizes, settling, and plain commands."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from etcdops import checks, quorum, versions
from etcdops.errors import EtcdopsError, PartlyChanged, Refused, WaitTimeout
from etcdops.facts import GAP_S, Facts, collect
from etcdops.findings import Finding
from etcdops.metrics import gauge, metrics_of
from etcdops.operations import gate
from etcdops.operations.pending import refuse_unfinished
from etcdops.operations.plan import by_etcdctl
from etcdops.space import Space, measure

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.state import ClusterRecord

__all__ = [
    "by_hand",
    "errors_in",
    "glance",
    "heartbeat",
    "look",
    "pass_gate",
    "patience_s",
    "resumable",
    "settle",
    "spaces_of",
    "voter",
    "wait_idle",
]

#: How long members may take to agree again after one of them was busy.
_SETTLE_S = 60.0

#: How often a blocking call says that it goes on.
_BEAT_S = 10.0

#: The slowest rate, in bytes a second, at which a disk is expected to rewrite or clean a database, and the least time.
_SLOWEST, _LEAST_S = 4 * 2**20, 120.0

_QUOTA_METRIC = "etcd_server_quota_backend_bytes"


def look(cluster: Cluster) -> tuple[ClusterRecord, Facts]:
    """Look twice at a cluster, a second apart, and give its record and the facts; an election is waited for."""
    return cluster.runtime.adopt(cluster.record), gate.look(cluster, gap_s=GAP_S)


def glance(cluster: Cluster) -> tuple[ClusterRecord, Facts]:
    """Look once, without finding out who catches up; an election is waited for."""
    return cluster.runtime.adopt(cluster.record), gate.look(cluster)


def errors_in(cluster: Cluster, facts: Facts, *, ignoring: Collection[str] = ()) -> tuple[Finding, ...]:
    """Give the gate's errors, but for those with a code in `ignoring`."""
    found = [*checks.findings(facts)]
    from etcdops.faults.heal import dead, describe, is_ours

    fault = cluster.store.unhealed(cluster.name)
    # A drill may do it in the midst of its run.
    if fault is not None and not is_ours(fault):
        remedy = "`heal` undoes it." if dead(fault) else "Wait until it has ended."
        found.append(Finding("unhealed-run", describe(fault), "error", remedy=remedy))
    return tuple(finding for finding in found if finding.severity == "error" and finding.code not in ignoring)


def pass_gate(cluster: Cluster, facts: Facts, doing: str, *, ignoring: Collection[str] = ()) -> None:
    """Raise Refused if the gate finds an error, another operation is unfinished, or authentication keeps us out."""
    refuse_unfinished(cluster)
    if facts.auth:
        raise Refused(
            f"{doing} needs root where authentication is on, and etcdops has no user",
            remedy="`ctl -- --user root …` does it by hand; --dry-run on a cluster without authentication shows how.",
        )
    found = errors_in(cluster, facts, ignoring=ignoring)
    if found:
        remedies = dict.fromkeys(finding.remedy for finding in found if finding.remedy)
        raise Refused(
            f"{doing} is not begun while something is wrong: {'; '.join(finding.message for finding in found)}",
            remedy=" ".join([*remedies, "Nothing was changed; `status --gate` shows when it can be."]),
        )


def spaces_of(cluster: Cluster, record: ClusterRecord, facts: Facts) -> tuple[Space, ...]:
    """Measure every member's database, its quota as the member itself has it where that can be had.

    Quotas come from `/metrics` where Status does not tell them; the free space of disks is looked at where a database
    is a directory of this machine.
    """
    quotas = {}
    for member in facts.members:
        if member.status and not versions.supports(member.status.version, "status_quota_right"):
            text = metrics_of(record, member.client_url)
            quota = gauge(text, _QUOTA_METRIC)
            if quota is not None:
                quotas[member.name] = max(int(quota), 0)
    return measure(facts, quotas, _disks(record))


def _disks(record: ClusterRecord) -> dict[str, int]:
    import os
    import shutil

    found = {}
    for member in record.members:
        # A volume has a name there, and no path.
        if os.path.isabs(member.data.place) and os.path.isdir(member.data.place):
            found[member.name] = shutil.disk_usage(member.data.place).free
    return found


def wait_idle(cluster: Cluster, name: str, timeout_s: float) -> None:
    """Wait until a member that defragments has ended that: it serves again, and its metrics say so where they can.

    The metric `etcd_disk_defrag_inflight` is told by newer releases. Raises MemberFailed when the member dies,
    WaitTimeout when it is still at it after `timeout_s` seconds.
    """
    record, deadline = cluster.record, time.monotonic() + timeout_s
    while gauge(metrics_of(record, record.member(name).client_url), "etcd_disk_defrag_inflight"):
        if time.monotonic() > deadline:
            raise WaitTimeout(
                f"{name} still defragments after {timeout_s:.0f} s more",
                remedy=f"Wait, and do not ask it again: look at `logs --member {name}`.",
            )
        time.sleep(0.5)
    cluster.wait_serving([name], timeout_s=timeout_s)


def voter(facts: Facts) -> str:
    """Give the voter that requests to the whole cluster go to: the leader, or else one that serves."""
    leader, able = quorum.leader_of_facts(facts)[0], quorum.up(facts)
    if leader in able and leader is not None:
        return leader
    if not able:
        raise Refused(f"no voter of {facts.cluster} serves", remedy="Look at `status`. Nothing was changed.")
    return able[0]


def by_hand(record: ClusterRecord, name: str, *words: str) -> str:
    """Give the plain etcdctl command that does something through one member."""
    return by_etcdctl(record, record.member(name).client_url, *words)


def patience_s(size: int) -> float:
    """Give how many seconds a call may take that goes through a database of `size` bytes."""
    return _LEAST_S + size / _SLOWEST


@contextmanager
def heartbeat(progress: Callable[[str], None], text: str) -> Iterator[None]:
    """Say every ten seconds that something goes on, until the block ends."""
    import threading

    ended = threading.Event()
    started = time.monotonic()

    def beat() -> None:
        while not ended.wait(_BEAT_S):
            progress(f"{text}: {time.monotonic() - started:.0f} s")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def settle(
    cluster: Cluster, names: Iterable[str], known: Iterable[Finding], *, ignoring: Collection[str] = ()
) -> Facts:
    """Wait until members serve, have applied what others had when this began, and the gate finds no new error.

    Gives the facts of then. Raises MemberFailed when one of them dies, WaitTimeout when it does not come to that.
    """
    names = tuple(names)
    deadline = time.monotonic() + _SETTLE_S
    cluster.wait_serving(names, timeout_s=_SETTLE_S)
    before = {(finding.code, finding.member) for finding in known}
    facts = collect(cluster.record, cluster.runtime)
    goal = max((member.status.raft_applied_index for member in facts.members if member.status), default=0)
    while True:
        found = [f for f in errors_in(cluster, facts, ignoring=ignoring) if (f.code, f.member) not in before]
        applied = {m.name: m.status.raft_applied_index for m in facts.members if m.status}
        late = [name for name in names if applied.get(name, 0) < goal]
        if not found and not late and quorum.leader_of_facts(facts)[0] is not None:
            return facts
        if time.monotonic() > deadline:
            said = [finding.message for finding in found]
            said += [f"{name} has applied {applied.get(name, 0):,} of {goal:,} entries" for name in late]
            raise WaitTimeout(
                f"{cluster.name} has not settled within {_SETTLE_S:.0f} s: {'; '.join(said) or 'no member leads'}",
                remedy="Look at `status --gate`; run it again once that is well: what is done is not done twice.",
            )
        time.sleep(0.05)
        facts = collect(cluster.record, cluster.runtime)


@contextmanager
def resumable(changed: Callable[[], bool], command: str) -> Iterator[None]:
    """Raise PartlyChanged instead of an error of the block, where something has been changed by then."""
    try:
        yield
    except EtcdopsError as error:
        if not changed():
            raise
        remedy = f"{error.remedy} `{command}` again does what is left.".strip()
        raise PartlyChanged(str(error), remedy=remedy) from error
