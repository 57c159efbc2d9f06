"""The Invoke collection: flags, one library call, and what it says. The library can do it all too."""

from __future__ import annotations

from invoke.collection import Collection

from etcdops.tasks import (
    checking,
    clusters,
    data,
    drills,
    environment,
    etcd,
    exporting,
    game_days,
    hosts,
    images,
    maintenance,
    members,
    membership,
    remote,
    reports,
    restoring,
    snapshots,
    tls,
)
from etcdops.tasks.optional import show_help

__all__ = ["namespace"]


def _collection() -> Collection:
    top = Collection()
    for each in (environment.up_env, environment.down_env, environment.status, environment.ctl, environment.logs):
        top.add_task(each)
    for each in (*drills.drill_tasks(), drills.heal):
        top.add_task(each)
    top.add_task(game_days.game_day)
    top.add_task(checking.check)
    drill = Collection("drill")
    drill.add_task(drills.list_drills, name="list", default=True)
    drill.add_task(drills.run_task(), name="run")
    cluster = Collection("cluster")
    cluster.add_task(clusters.list_clusters, name="list")
    cluster.add_task(clusters.prune, name="prune")
    for upkeep in (maintenance.defrag, maintenance.compact, maintenance.heal_nospace):
        cluster.add_task(upkeep)
    cluster.add_task(clusters.attach_endpoints, name="attach")
    cluster.add_task(restoring.recover, name="recover")
    recorded = Collection("run")
    recorded.add_task(exporting.export, name="export")
    shown = Collection("report")
    for task in reports.ALL:
        shown.add_task(task)
    binaries = Collection("etcd")
    binaries.add_task(etcd.fetch, name="fetch")
    image = Collection("image")
    image.add_task(images.build, name="build")
    image.add_task(images.list_images, name="list")
    image.add_task(images.push, name="push")
    machines = Collection("hosts")
    machines.add_task(hosts.check, name="check")
    machines.add_task(hosts.list_hosts, name="list")
    machines.add_task(hosts.add, name="add")
    machines.add_task(hosts.remove, name="remove")
    member = Collection("member")
    for task in (*membership.ALL, *members.ALL):
        member.add_task(task)
    kept = Collection("data")
    kept.add_task(data.list_data, name="list")
    kept.add_task(data.remove, name="remove")
    snapshot = Collection("snapshot")
    snapshot.add_task(snapshots.save, name="save")
    snapshot.add_task(snapshots.verify, name="verify")
    snapshot.add_task(snapshots.list_all, name="list")
    snapshot.add_task(snapshots.prune, name="prune")
    snapshot.add_task(remote.push, name="push")
    snapshot.add_task(remote.pull, name="pull")
    snapshot.add_task(restoring.restore, name="restore")
    snapshot.add_task(restoring.rollback, name="rollback")
    certificates = Collection("tls")
    certificates.add_task(tls.show_certificates, name="show")
    certificates.add_task(tls.renew, name="renew")
    for each in (drill, cluster, machines, member, kept, recorded, shown, binaries, image, snapshot, certificates):
        top.add_collection(each)
    show_help(top)
    # Invoke takes INVOKE_ETCDOPS_… from the environment for the keys that are listed here.
    keys = (
        "cluster",
        "runtime",
        "size",
        "etcd_version",
        "etcd_bin",
        "image",
        "port",
        "quota",
        "tls",
        "output",
        "timeout",
        "offline",
        "hosts",
        "insecure",
    )
    drill_keys = ("rate", "baseline", "repeat", "seed", "how")
    top.configure({"etcdops": dict.fromkeys((*keys, *drill_keys))})
    return top


namespace = _collection()
