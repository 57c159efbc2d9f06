"""Leadership changes hands on purpose: what a planned handover costs, beside what a lost leader does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from etcdops.drills import drill
from etcdops.errors import EtcdError

if TYPE_CHECKING:
    from etcdops.drills.scene import Scene

#: How long the leader may take to answer: until the other leads, an election timeout at the longest.
_ANSWER_S = 10.0

_MOVED = "leadership moved"


@drill(min_voters=3, steps=3, takes_s=8)
def move_leader(scene: Scene) -> None:
    """Hand leadership over to a follower: writes pause for about a heartbeat, and nothing is lost.

    The leader waits until the follower has its whole log, and tells it to campaign at once, without an election timeout
    (Raft's leadership transfer, section 3.10 of Ongaro's thesis; etcd's MoveLeader). Meanwhile it takes no proposals.
    Writes pause for less than a heartbeat. It is what etcd does by itself when the leader is stopped in an orderly way.
    """
    from etcdops.operations.leader import prepare

    with scene.step("find the leader, and a follower to take over", "etcdctl endpoint status -w table"):
        leader, successor = scene.leader(), scene.followers()[0]
        scene.say(f"{leader.name} leads in term {scene.term()}")
        plan = prepare(scene.cluster, successor.name)
        # Looked up before, so that nothing but the handover is in the time that is measured.
        target = successor.status().member_id
        connection = scene.own.connection(leader.name)
    label = f"hand leadership over from {leader.name} to {successor.name}"
    with scene.step(label, " ".join(step.by_hand for step in plan.steps)):
        with scene.acting("move-leader", predicts="stop"):
            began_ns = time.monotonic_ns()
            try:
                connection.move_leader(target, timeout_s=_ANSWER_S)
            except EtcdError as error:
                scene.expect(_MOVED, False, str(error))
            leads = scene.wait_new_leader()
            scene.wait_writes(after_ns=time.monotonic_ns())
        claims = [
            claim.t_ns for claim in scene.window.leadership.claims if claim.t_ns > began_ns and claim.leader == target
        ]
        took_ms = (min(claims) - began_ns) / 1e6 if claims else None
        scene.figure("handover", took_ms, "ms", "from asking until a member first named the new leader")
    with scene.step("look who leads", "etcdctl endpoint status -w table"):
        scene.expect(
            _MOVED,
            leads.name == successor.name,
            f"{successor.name} was to lead after {leader.name}, and {leads.name} leads in term {scene.term()}",
        )
