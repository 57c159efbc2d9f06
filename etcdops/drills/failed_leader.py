"""The original lab's first drill, with proof."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from etcdops.drills import Choice, drill

if TYPE_CHECKING:
    from etcdops.drills.scene import Scene
    from etcdops.runtimes.base import Runtime

_HOW = Choice(
    "how",
    ("kill", "freeze", "stop", "isolate", "unplug"),
    "kill (SIGKILL: a crash), freeze (SIGSTOP: a hang), stop (SIGTERM: leadership is handed over, so no failure),"
    " isolate (a network partition) or unplug (off all networks: its clients lose it too; both for containers only)",
)


def _needs(runtime: Runtime, how: str) -> str | None:
    from etcdops.faults.member import lacks

    return lacks(runtime, how)


@drill(min_voters=3, steps=6, takes_s=12, choices=(_HOW,), needs=_needs)
def failed_leader(scene: Scene, how: str) -> None:
    """Take the leader away: another member is elected, and no acknowledged write is lost.

    With three members at etcd's default timing, Raft predicts that writes stop for 1.0 to 1.9 s when the leader is
    killed, frozen, isolated or unplugged: the followers wait for an election timeout, drawn at random from 1.0 to 1.9
    s, before they campaign. With `stop` the leader hands over before it goes, and writes stop for less than a
    heartbeat.
    """
    from etcdops.faults.member import HOWS

    with scene.step("find the leader: the member that the highest term names", "etcdctl endpoint status -w table"):
        leader = scene.leader()
        scene.say(f"{leader.name} leads in term {scene.term()}")
    fault, back = HOWS[how].fault, HOWS[how].undo
    with ExitStack() as away:
        with scene.step(f"take {leader.name} away: {how}", scene.by_hand(fault, leader)):
            away.enter_context(scene.taken_away(leader, how, leads=True))
        with scene.step("wait for another leader, at a higher term", "etcdctl endpoint status -w table"):
            successor = scene.wait_new_leader()
            scene.say(f"{successor.name} leads in term {scene.term()}")
        with scene.step("wait until writes are acknowledged through every surviving member", "etcdctl put k v"):
            scene.wait_writes(without=[leader.name])
        with scene.step(f"bring {leader.name} back: {back}", scene.by_hand(back, leader)):
            away.close()
    with scene.step(f"wait until {leader.name} has caught up", "etcdctl endpoint status -w table"):
        scene.check_rejoined(leader)
