"""A disk that is lost: the member on it cannot come back, and a new one takes its place."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from etcdops.drills import Choice, drill
from etcdops.errors import Refused

if TYPE_CHECKING:
    from etcdops.drills.scene import Scene
    from etcdops.member import Member
    from etcdops.runtimes.base import Runtime

_WHO = Choice(
    "who", ("follower", "leader"), "whose disk is lost: a follower's, which one the seed says, or the leader's"
)

#: How long a new member may take to have what the others have, seconds.
_PATIENCE_S = 20.0

#: What our refusal to start a member says whose data is gone, in part.
_GONE = "the data of {name} is gone"


def _needs(runtime: Runtime, who: str) -> str | None:
    from etcdops.faults.member import lacks

    return lacks(runtime, "kill")


@drill(min_voters=3, steps=6, takes_s=25, choices=(_WHO,), needs=_needs)
def replace_member(scene: Scene, who: str) -> None:
    """Lose a member's disk: it is not started without it, a new member takes its place, and no write is lost.

    Nobody's data is destroyed by this: every member holds every key, and one copy of them goes. A member without its
    log has forgotten for whom it voted and what it acknowledged, so it must not come back under its ID: etcd has it
    removed, and a new member added (https://etcd.io/docs/v3.5/op-guide/runtime-configuration/), in this order, as to
    add first would raise the quorum while a voter is missing (https://etcd.io/docs/v3.5/faq/).
    """
    with scene.step("find the leader: the member that the highest term names", "etcdctl endpoint status -w table"):
        leader = scene.leader()
        member = leader if who == "leader" else scene.followers()[0]
        old_id = _id(scene, member)
        scene.say(f"{leader.name} leads in term {scene.term()}; the disk of {member.name} ({old_id}) is to be lost")
    with ExitStack() as stack:
        by_hand = f"{scene.by_hand('kill', member)}; {scene.by_hand('wipe', member)}"
        with scene.step(f"kill {member.name}, and delete its data", by_hand):
            stack.enter_context(scene.wiped(member, leads=who == "leader"))
            lost_ns = scene.note("wiped", member.name)
        with scene.step("wait until writes are acknowledged through every surviving member", "etcdctl put k v"):
            if who == "leader":
                scene.wait_new_leader()
            scene.wait_writes(without=[member.name], after_ns=lost_ns)
        with scene.step(f"start {member.name} plainly, which is refused", f"etcdops member.start {member.name}"):
            _expect_refused(scene, member)
        with scene.step(f"put a new member in its place: {member.name}", f"etcdops member.replace {member.name}"):
            from etcdops.faults.membership import Shown

            shown = Shown(scene.say)
            scene.cluster.replace_member(
                member.name, allow_known_bad=True, confirm=shown.confirm, progress=shown.progress
            )
    back_ns = scene.note("replaced", member.name)
    scene.figure("replaced after", (back_ns - lost_ns) / 1e9, "s", "from the loss of the disk until it was proved")
    with scene.step(f"compare the keys of {member.name} with the others'", "etcdctl endpoint hashkv --cluster"):
        scene.check_rejoined(member, patience_s=_PATIENCE_S)
        new_id = _id(scene, member)
        listed = {each.id for each in scene.cluster.status().members}
        replaced = new_id != old_id and new_id in listed and old_id not in listed
        scene.check("replaced", replaced, f"{member.name} was {old_id} and is {new_id}; listed are {', '.join(listed)}")


def _id(scene: Scene, member: Member) -> str:
    return scene.cluster.status().member(member.name).id


def _expect_refused(scene: Scene, member: Member) -> None:
    """See that etcdops does not start a member without the data that it had; the drill ends if it does."""
    said = "it was started"
    try:
        member.start(wait_s=0)
    except Refused as error:
        said = str(error)
        scene.say(f"refused: {said}")
    scene.expect("plain start refused", _GONE.format(name=member.name) in said, said)
