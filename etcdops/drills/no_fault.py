"""The control: what all the figures are when nothing is broken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etcdops.drills import Number, drill

if TYPE_CHECKING:
    from etcdops.drills.scene import Scene

#: The traffic ends by itself after 600 s.
_DURATION = Number("duration", 10, 1, 500, "how many seconds of traffic")


@drill(min_voters=1, steps=3, takes_s=8, choices=(_DURATION,))
def no_fault(scene: Scene, duration: str) -> None:
    """Break nothing: the same traffic and the same checks, for the noise of this machine and against false alarms.

    What is called the outage is the longest time between two acknowledged writes without any fault. A drill's outage
    that is no longer than that says nothing. A check that fails here is wrong, or the cluster was not well before.
    """
    with scene.step("find the leader: the member that the highest term names", "etcdctl endpoint status -w table"):
        scene.say(f"{scene.leader().name} leads in term {scene.term()}")
    before = scene.term()
    with scene.step(f"do nothing for {duration} s"), scene.acting("no-fault"):
        scene.hold(float(duration))
    with scene.step("look who leads: a machine that is too busy costs elections", "etcdctl endpoint status -w table"):
        scene.say(f"{scene.leader().name} leads in term {scene.term()}")
        scene.figure("elections", scene.term() - before, "", "terms that began meanwhile, though nothing was broken")
