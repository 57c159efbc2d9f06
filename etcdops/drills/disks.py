"""What disks members write to during a run, and how fast those are: recorded for the run's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from etcdops import metrics
from etcdops.errors import EtcdopsError
from etcdops.report.disks import Disk, Disks, p99
from etcdops.runtimes.base import CanTellFileSystems

if TYPE_CHECKING:
    from etcdops.cluster import Cluster

__all__ = ["Fsyncs", "disks_of", "fsyncs"]

#: A histogram, in seconds, that etcd has had since its first release with metrics.
_FSYNC = "etcd_disk_wal_fsync_duration_seconds"


class Fsyncs(NamedTuple):
    """When a member was started, and how often its log was on the disk within how many seconds, since then."""

    started: float | None
    buckets: dict[float, int]


def fsyncs(cluster: Cluster) -> dict[str, Fsyncs]:
    """Ask every member; those that do not tell have counted nothing."""
    record = cluster.record
    told = {member.name: metrics.metrics_of(record, member.client_url) for member in record.members}
    return {
        name: Fsyncs(metrics.gauge(text, "process_start_time_seconds"), metrics.histogram(text, _FSYNC))
        for name, text in told.items()
    }


def disks_of(cluster: Cluster, before: Mapping[str, Fsyncs]) -> Disks:
    """Give the disk of each member, with what it did since `before`."""
    runtime, kinds = cluster.runtime, {}
    if isinstance(runtime, CanTellFileSystems):
        try:
            kinds = runtime.file_systems(cluster.record)
        except EtcdopsError:
            # The page says that it is not known: no run fails for that.
            kinds = {}
    found = {}
    for name, now in fsyncs(cluster).items():
        then = before.get(name)
        earlier = then.buckets if then and then.started == now.started else {}
        since = {bound: count - earlier.get(bound, 0) for bound, count in now.buckets.items()}
        bound = p99(since)
        slowest_ms = None if bound is None or bound == float("inf") else 1000 * bound
        found[name] = Disk(kinds.get(name, ""), max(since.values(), default=0), slowest_ms)
    return Disks(found)
