"""A new cluster from a snapshot: of any size, by any runtime that can make data; its first data is the snapshot's."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable

import msgspec

from etcdops import runtimes
from etcdops.cluster import Cluster
from etcdops.errors import Refused
from etcdops.facts import Facts, MemberFacts
from etcdops.operations.exchange import restorer
from etcdops.operations.pending import Pending, load
from etcdops.operations.plan import Plan, Step
from etcdops.runtimes.base import CanRestore, Runtime
from etcdops.snapshots.examining import examine
from etcdops.snapshots.restoring import OPERATION, Restored, begin_restore, finish, go_on, plan_restore
from etcdops.snapshots.taking_back import NEW
from etcdops.spec import ClusterSpec
from etcdops.state import Store

__all__ = ["found", "prepare_founding"]

Progress = Callable[[str], None]


def found(
    spec: ClusterSpec,
    path: str | os.PathLike[str],
    *,
    runtime: Runtime | str = "process",
    tls: bool = False,
    store: Store | None = None,
    offline: bool = False,
    bump: bool = True,
    allow_known_bad: bool = False,
    progress: Progress = lambda text: None,
) -> tuple[Cluster, Restored]:
    """Create a cluster as `spec` says, with the data of a snapshot, and give it, running and proved.

    `tls` is what it is for `Cluster.create`. The same call goes on with one that was interrupted. Raises Refused where
    there is a cluster of that name, and what `Cluster.create` and `restore_snapshot` raise; nothing of the cluster is
    left then.
    """
    store = store or Store.find()
    target = os.path.abspath(path)
    doing = f"restore {target} into {spec.name}"
    with store.lock(spec.name, doing, on_wait=progress):
        if store.exists(spec.name):
            cluster = Cluster.attach(spec.name, store=store, runtime=None if isinstance(runtime, str) else runtime)
            begun = load(cluster)
            if begun is None or NEW not in begun.arguments:
                raise Refused(
                    f"there already is a cluster {spec.name!r} in {store.root}",
                    remedy=f"Choose another name; or restore into it: `snapshot.restore FILE --cluster {spec.name}`.",
                )
            with cluster.in_turn(doing, progress):
                return cluster, go_on(cluster, target, progress)
        # First, as nothing should be made for a file that is of no use.
        examine(target, spec.etcd_version, beside=spec.etcd_bin, progress=progress)
        cluster = Cluster.create(spec, runtime=runtime, tls=tls, store=store, offline=offline, progress=progress)
        try:
            plan, pending = _look(cluster, target, bump, allow_known_bad, progress)
            pending = begin_restore(cluster, pending, None)
        except BaseException:
            cluster.purge_locked()
            raise
        with cluster.in_turn(doing, progress):
            return cluster, finish(cluster, pending, plan, progress)


def _look(cluster: Cluster, target: str, bump: bool, allow_known_bad: bool, progress: Progress) -> tuple[Plan, Pending]:
    record = cluster.record
    examined = examine(target, record.etcd_version, beside=record.binary, progress=lambda text: None)
    restorer(cluster).refuse_full(record, examined.size)
    members = tuple(MemberFacts(m.name, m.client_url, m.peer_url, "stopped") for m in record.members)
    facts = Facts(cluster.name, record.etcd_version, members)
    plan, pending, _ = plan_restore(
        cluster, examined, facts, bump=bump, allow_known_bad=allow_known_bad, known={NEW: "1"}
    )
    return plan, pending


def prepare_founding(
    spec: ClusterSpec, path: str | os.PathLike[str], *, runtime: Runtime | str = "process", progress: Progress
) -> Plan:
    """Make all checks that can be made before there is such a cluster, and give the plan; raises as `found` does."""
    runner = runtimes.get(runtime) if isinstance(runtime, str) else runtime
    if problem := runner.unavailable():
        raise problem
    if not isinstance(runner, CanRestore):
        raise Refused(f"the runtime {runner.name} cannot make members' data from a snapshot")
    target = os.path.abspath(path)
    prepared = runner.prepare(spec, offline=True, progress=progress)
    examined = examine(target, prepared.etcd_version, beside=prepared.binary, progress=progress)
    file, names = shlex.quote(target), ", ".join(spec.names)
    steps = (
        Step("create", "", f"create {spec.name}: {names}, by the runtime {runner.name}", f"mkdir {spec.name}"),
        Step("make", "", "make the data of every member", f"etcdutl snapshot restore {file} --name=… --data-dir=…"),
        Step("start", "", "start all members, and wait until each serves", "etcd --name=… --data-dir=…"),
        Step("prove", "", "prove that all members have the snapshot's data", "etcdctl endpoint hashkv --cluster"),
    )
    undone = [msgspec.structs.replace(step, undo="snapshot.rollback removes it") for step in steps]
    note = f"the snapshot: revision {examined.contents.revision}, sha256 {examined.sha256[:16]}…"
    return Plan(OPERATION, spec.name, os.path.basename(target), tuple(undone), notes=(note,))
