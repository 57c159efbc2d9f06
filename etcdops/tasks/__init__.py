"""The Invoke collection: flags, one library call, and what it says. The library can do it all too."""

from __future__ import annotations

from invoke.collection import Collection

from etcdops.tasks import (
    clusters,
    data,
    drills,
    environment,
    etcd,
    images,
    maintenance,
    members,
    membership,
    restoring,
    snapshots,
)

__all__ = ["namespace"]


def _collection() -> Collection:
    top = Collection()
    for each in (environment.up_env, environment.down_env, environment.status, environment.ctl, environment.logs):
        top.add_task(each)
    for each in (*drills.drill_tasks(), drills.heal):
        top.add_task(each)
    drill = Collection("drill")
    drill.add_task(drills.list_drills, name="list", default=True)
    drill.add_task(drills.run_drill, name="run")
    cluster = Collection("cluster")
    cluster.add_task(clusters.list_clusters, name="list")
    cluster.add_task(clusters.prune, name="prune")
    for upkeep in (maintenance.defrag, maintenance.compact, maintenance.heal_nospace):
        cluster.add_task(upkeep)
    cluster.add_task(clusters.attach_endpoints, name="attach")
    cluster.add_task(restoring.recover, name="recover")
    binaries = Collection("etcd")
    binaries.add_task(etcd.fetch, name="fetch")
    image = Collection("image")
    image.add_task(images.build, name="build")
    image.add_task(images.list_images, name="list")
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
    snapshot.add_task(restoring.restore, name="restore")
    snapshot.add_task(restoring.rollback, name="rollback")
    for each in (drill, cluster, member, kept, binaries, image, snapshot):
        top.add_collection(each)
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
        "output",
        "timeout",
        "offline",
    )
    drill_keys = ("rate", "repeat", "seed", "how")
    top.configure({"etcdops": dict.fromkeys((*keys, *drill_keys))})
    return top


namespace = _collection()
