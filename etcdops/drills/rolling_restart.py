"""What an upgrade or a change of configuration does: every member is restarted, and nobody is to notice."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from etcdops.drills import drill
from etcdops.errors import WaitTimeout

if TYPE_CHECKING:
    from etcdops.drills.scene import Scene
    from etcdops.member import Member

#: How long a member may take to serve again, and the others to agree, seconds.
_BACK_S = 30.0

#: How long writes go on while a member is away, and between two members, seconds.
_HOLD_S = 0.3

_SERVICE = "service throughout"


@drill(min_voters=3, steps=0, takes_s=60)
def rolling_restart(scene: Scene) -> None:
    """Restart every member in turn, the leader last and its leadership moved first: service goes on throughout.

    One member at a time is away, so there is a quorum all the time. A follower that goes costs those who use another
    member nothing. Leadership is handed over before the leader goes, so there is one election at most, and it does not
    wait for an election timeout: writes pause for about a heartbeat. After each member the gate is asked, as after any
    operation: to stop one more while the last one is not back yet would take the quorum away
    (https://etcd.io/docs/v3.5/upgrades/upgrade_3_5/ restarts members so).
    """
    with scene.step("find the leader, which is to be the last", "etcdctl endpoint status -w table"):
        leader = scene.leader()
        before = scene.term()
        scene.say(f"{leader.name} leads in term {before}")
    left = [*scene.followers(), leader]
    done: list[Member] = []
    while left:
        leads = scene.leader()
        member = next((each for each in left if each.name != leads.name), left[0])
        if member.name == leads.name:
            _hand_over(scene, leads, done[0])
        left.remove(member)
        done.append(member)
        _restart(scene, member, f"{len(done)} of {len(left) + len(done)}")
    leads = scene.leader()
    said = f"term {before} before, {scene.term()} after, in which {leads.name} leads"
    scene.check("one election at most", scene.term() - before <= 1, said)
    others = "writes were acknowledged through all other members while each was away, and through all once it was back"
    scene.check(_SERVICE, True, others)


def _hand_over(scene: Scene, leader: Member, successor: Member) -> None:
    from etcdops.operations.leader import hand_over, prepare

    plan = prepare(scene.cluster, successor.name)
    label = f"hand leadership over from {leader.name} to {successor.name}, which was restarted already"
    by_hand = " ".join(step.by_hand for step in plan.steps)
    with scene.step(label, by_hand), scene.acting("move-leader", predicts="stop"):
        hand_over(scene.cluster, successor.name)
        _wait_writes(scene, time.monotonic_ns())
    # So that the outage of the restart that follows is none of the handover's.
    _wait_writes(scene, time.monotonic_ns())


def _restart(scene: Scene, member: Member, which: str) -> None:
    from etcdops.operations.gate import settled

    with ExitStack() as stack:
        with scene.step(f"stop {member.name}, {which}: SIGTERM", scene.by_hand("stop", member)):
            away = stack.enter_context(scene.taken_away(member, "stop"))
            _wait_writes(scene, away.injected_ns, without=member.name)
        with scene.step(f"start {member.name}", scene.by_hand("start", member)):
            away.heal()
    scene.figure(f"{member.name} away", (away.heal_ns - away.inject_ns) / 1e6, "ms", "until it served again")
    with scene.step(f"wait until {member.name} has caught up, and the gate finds nothing", "etcdops status --gate"):
        scene.check_rejoined(member)
        _wait_writes(scene, away.heal_ns)
        try:
            settled(scene.cluster, timeout_s=_BACK_S)
        except WaitTimeout as error:
            scene.expect("gate", False, str(error))


def _wait_writes(scene: Scene, after_ns: int, *, without: str = "") -> None:
    """Wait until a write is acknowledged through each member but `without`, and one that fails over; else deviate."""
    streams = [name for name in scene.traffic.plan.streams if not without or name != f"pinned.{without}"]
    try:
        scene.traffic.wait_acknowledged(after_ns, scene.patience_s, streams)
    except WaitTimeout as error:
        scene.expect(_SERVICE, False, str(error))
    scene.hold(_HOLD_S)
