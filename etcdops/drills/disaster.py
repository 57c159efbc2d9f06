"""The day on which everything is gone but a snapshot."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from etcdops.drills import Number, drill

if TYPE_CHECKING:
    from etcdops.drills.scene import Scene
    from etcdops.runtimes.base import Runtime

_KEYS = Number("keys", 100, 1, 10_000, "how many keys are written, and expected back")

_AGE = Number(
    "age", 1.0, 0.1, 300.0, "for how many seconds writes go on after the snapshot: what they write is what it costs"
)


def _needs(runtime: Runtime, keys: str, age: str) -> str | None:
    from etcdops.drills.restores import lacks_restore
    from etcdops.faults.member import lacks

    return lacks(runtime, "kill") or lacks_restore(runtime)


@drill(min_voters=1, steps=0, takes_s=25, choices=(_KEYS, _AGE), needs=_needs, destroys=True)
def disaster(scene: Scene, keys: str, age: str) -> None:
    """Kill every member and remove all of their data, and bring the cluster back from the last verified snapshot.

    Without its data a member has forgotten what it voted for and acknowledged, so it must not start as itself. All of
    them together would make a new cluster, empty, that answers as if nothing had ever been written. A snapshot that was
    verified, and is kept somewhere else, is what is left; all members are made anew from it
    (https://etcd.io/docs/v3.5/op-guide/recovery/). What was acknowledged after it is gone.
    """
    from etcdops.drills.restores import DataSet, Restore, prove_back, tidy
    from etcdops.faults.data import erase
    from etcdops.interrupts import deferred
    from etcdops.runtimes.base import CanKill
    from etcdops.snapshots.recovering import prepare_recover

    cluster = scene.cluster
    runtime, names = cluster.runtime, ", ".join(member.name for member in cluster.members)
    assert isinstance(runtime, CanKill)
    with scene.step(f"write {keys} keys whose values are known", "etcdctl put k v"):
        data = DataSet(scene, int(keys))
    restore = Restore(scene, data)
    with scene.step(f"go on writing for {float(age):g} s: nothing of that is in the snapshot"):
        scene.hold(float(age))
    scene.close_window()
    by_hand = "\n      $ ".join(scene.by_hand("kill", member) for member in cluster.members)
    with scene.step(f"kill every member: {names}", by_hand), deferred():
        restore.mark("disaster")
        since_ns = scene.note("inject", names, "kill (SIGKILL)")
        for member in cluster.record.members:
            runtime.kill(member)
        scene.note("injected", names)
    by_hand = "\n      $ ".join(scene.by_hand("wipe", member) for member in cluster.members)
    with scene.step("remove the data of every one of them", by_hand), deferred():
        erase(cluster)
        scene.note("erased", names)
    with scene.step("try to start it all the same, and to recover it from a survivor", "etcdops up-env"):
        refusals = {
            "plain start is refused": _refused(scene, cluster.up_locked),
            "recovery from a survivor is refused": _refused(scene, lambda: prepare_recover(cluster)),
        }
    with scene.step("restore every member from the snapshot", f"etcdops snapshot.restore {restore.path}"):
        restore.carry_out(since_ns=since_ns)
    for name, refusal in refusals.items():
        scene.check(name, bool(refusal), refusal or "it was not refused")
    prove_back(scene, data)
    tidy(scene, restore, gone=True)


def _refused(scene: Scene, attempt: Callable[[], object]) -> str:
    """Give with which words something is refused, "" if it is not."""
    from etcdops.errors import Refused

    try:
        attempt()
    except Refused as error:
        said = f"{error}".partition(":")[0]
        scene.say(f"refused: {said}")
        return said
    return ""
