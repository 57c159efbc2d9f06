"""Why a lock alone does not protect anything: its holder pauses, and does not know that its time is over."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from etcdops.drills import Choice, Number, drill
from etcdops.errors import SpecError

if TYPE_CHECKING:
    from etcdops.drills.scene import Scene
    from etcdops.verify.lock import Locks
    from etcdops.workload.history import Operation

_FENCING = Choice(
    "fencing",
    ("both", "off", "on"),
    "both (first without, then with), off (the holder writes whatever it thinks is right) or on (every write says for"
    " which lock it is meant)",
)

_PAUSES = Number("pauses", 1, 1, 50, "how often the holder pauses, with and without fencing each")

#: How long the lock's lease lives, and how long its holder pauses: until it has ended, and others had their turns.
_TTL_S = 2
_PAUSE_S = 5.0

#: How long it may take, besides, until the holder has its turn again, seconds.
_TURN_S = 20.0
_LOOK_S = 0.3

#: Traffic of the second window before anything is waited for, seconds.
_BEFORE_S = 1.0

_PAUSED = (
    f"etcdctl lock counter --ttl {_TTL_S} & kill -STOP $!; sleep {_PAUSE_S:g}; kill -CONT $!;"
    " etcdctl put counter COUNT+1"
)


def _traffic(fencing: str, pauses: str) -> dict[str, Any]:
    return {"fencing": fencing == "on", "ttl_s": _TTL_S, "hold_s": _PAUSE_S}


@drill(min_voters=1, steps=0, takes_s=20, choices=(_FENCING, _PAUSES), profile="lock", traffic=_traffic)
def lock_fencing(scene: Scene, fencing: str, pauses: str) -> None:
    """Have a lock's holder pause for longer than its lease lives: updates are lost unless it has a fencing token.

    Clients take turns to read a counter under a lock, and to write it one higher, as etcd's own recipe has it. A holder
    that pauses (for a garbage collection, a swapped page, a slow disk) loses its lease, and with it the lock, without
    knowing; the next one works, and then the first one writes what it had read long ago. No lock service can prevent
    that: only the store that is written to can, by refusing a write whose token is not that of the lock's holder
    (https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html). etcd says so of its own locks
    (https://etcd.io/docs/v3.5/learning/why/#notes-on-the-usage-of-lock-and-lease), since Jepsen found it
    (https://github.com/etcd-io/etcd/issues/11456). The token here is the create_revision of the lock's key, which the
    write itself compares.
    """
    if scene.window.plan.clients < 2:
        raise SpecError(
            f"lock-fencing needs two clients that want the lock, and there is {scene.window.plan.clients}",
            remedy="Give --clients 3.",
        )
    if fencing != "on":
        _unfenced(scene, int(pauses))
    if fencing == "both":
        scene.close_window()
        scene.open_window(fencing=True)
        scene.hold(_BEFORE_S)
    if fencing != "off":
        _fenced(scene, int(pauses))


def _unfenced(scene: Scene, pauses: int) -> None:
    label = f"let the holder pause {_PAUSE_S:g} s, with a lease of {_TTL_S} s, and then write what it had in mind"
    with scene.step(label, _PAUSED):
        seen = _see(scene, pauses)
    with scene.step("count the updates, and what the counter says", "etcdctl get counter"):
        _tell(scene, seen, "without fencing")
        back = "; ".join(f"set to {each.counted} when it was {each.before}" for each in seen.lost[:3])
        scene.check(
            "without fencing, updates are lost",
            seen.lost_updates > 0,
            f"{seen.updates} updates were acknowledged, and the counter has risen by {seen.final - seen.began}: {back}",
        )


def _fenced(scene: Scene, pauses: int) -> None:
    label = "the same with a fencing token: the write itself compares the create_revision of the lock's key"
    by_hand = """printf 'create("LOCK") = "TOKEN"\\n\\nput counter COUNT+1\\n\\n\\n' | etcdctl txn"""
    with scene.step(label, by_hand):
        seen = _see(scene, pauses)
    with scene.step("count the updates, and what the counter says", "etcdctl get counter"):
        _tell(scene, seen, "with fencing")
        scene.figure("late writes refused", seen.refused, "", "their token was not that of the lock's holder any more")
        rose = seen.final - seen.began
        scene.check(
            "with fencing, none is lost",
            seen.lost_updates == 0 and seen.refused > 0,
            f"{seen.updates} updates were acknowledged, the counter has risen by {rose}, and {seen.refused} late"
            " writes were refused",
        )


def _see(scene: Scene, pauses: int) -> Locks:
    """Wait until the first client has paused so often; give what happened up to then, as far as it was acknowledged."""
    from etcdops.verify.lock import measure_locks
    from etcdops.verify.recorded import Observed, Recorded

    window = scene.window
    observed = Observed(run=scene.run, members=tuple(window.plan.endpoints), states=(window.base,), base=0)
    deadline = time.monotonic() + pauses * (_PAUSE_S + _TURN_S) + scene.patience_s
    with scene.acting("paused holder"):
        while True:
            scene.hold(_LOOK_S)
            history = scene.recorded()
            late = _late(history, scene.run)
            if late >= pauses or time.monotonic() > deadline:
                break
    scene.hold()
    scene.expect("the holder paused", late >= pauses, f"it has written {late} times after a pause, of {pauses}")
    return measure_locks(Recorded(observed, scene.recorded(), {}))


def _late(history: list[Operation], run: str) -> int:
    """Count the writes of the counter with which the client that pauses was done."""
    from etcdops.ops import Put, Txn
    from etcdops.workload.history import CLIENT
    from etcdops.workload.profiles.lock import counter_key

    key = counter_key(run)
    return sum(
        op.stream == f"{CLIENT}0" and any(isinstance(one, Put) and one.key == key for one in asked)
        for op in history
        for asked in ((op.request.success if isinstance(op.request, Txn) else (op.request,)),)
    )


def _tell(scene: Scene, seen: Locks, how: str) -> None:
    """Put the figures of one way in the verdict, and see that the lock itself did not prevent it."""
    clients = len({section.stream for section in seen.sections})
    scene.figure(f"updates {how}", seen.updates, "", f"acknowledged, by {clients} clients that took turns")
    scene.figure(f"lost {how}", seen.lost_updates, "", "updates that the counter does not show")
    together_ms = sum(min(a.until_ns, b.until_ns) - b.from_ns for a, b in seen.overlaps) / 1e6
    told = f"{len(seen.overlaps)} times two clients had the lock at once"
    scene.figure(f"two holders {how}", together_ms, "ms", f"{told}, so long in sum")
    said = f"{told}, for {together_ms / 1000:.1f} s in sum: a lease cannot prevent it, whether fenced or not"
    scene.check(f"two holders at once, {how}", bool(seen.overlaps), said)
