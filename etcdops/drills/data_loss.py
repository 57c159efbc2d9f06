"""The original lab's last drill, which could not work as it was written: data is deleted, and restored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etcdops.drills import Number, drill

if TYPE_CHECKING:
    from etcdops.drills.scene import Scene
    from etcdops.runtimes.base import Runtime

_KEYS = Number("keys", 100, 1, 10_000, "how many keys are written, deleted, and expected back")

_AGE = Number(
    "age", 1.0, 0.1, 300.0, "for how many seconds writes go on after the snapshot: what they write is what it costs"
)


def _needs(runtime: Runtime, keys: str, age: str) -> str | None:
    from etcdops.drills.restores import lacks_restore

    return lacks_restore(runtime)


@drill(min_voters=1, steps=0, takes_s=35, choices=(_KEYS, _AGE), needs=_needs, destroys=True)
def data_loss(scene: Scene, keys: str, age: str) -> None:
    """Delete data and restore it from a snapshot: what comes back, what is lost for good, and how long it takes.

    A delete is replicated like any other write: all members have it at once, and no number of members protects from it
    (https://etcd.io/docs/v3.5/faq/). What protects is a snapshot that was saved before. A restore makes a new cluster
    of the same members out of it, all of them from the same file
    (https://etcd.io/docs/v3.5/op-guide/recovery/): everything up to the snapshot's revision is back, and every
    acknowledged write after it is undone, also those that had nothing to do with the mistake.
    """
    from etcdops.drills.restores import DataSet, Restore, prove_back, tidy

    with scene.step(f"write {keys} keys whose values are known", "etcdctl put k v"):
        data = DataSet(scene, int(keys))
    restore = Restore(scene, data)
    with scene.step(f"go on writing for {float(age):g} s: nothing of that is in the snapshot"):
        scene.hold(float(age))
    through = scene.leader().name
    prefix = data.start.decode()
    with scene.acting("delete"):
        with scene.step(f"delete the data set, by one request to {through}", f"etcdctl del --prefix {prefix}"):
            data.delete(through)
        with scene.step("look for it on every member", f"etcdctl get --prefix {prefix} --count-only"):
            data.check_gone()
        scene.hold()
    scene.hold()
    scene.close_window()
    command = f"etcdops snapshot.restore {restore.path}"
    with scene.step(f"restore it on every member of {scene.cluster.name}", command):
        restore.carry_out()
    prove_back(scene, data)
    tidy(scene, restore)
