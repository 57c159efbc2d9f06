"""What a power cut does to one machine after the other: a member is killed, and killed again while it catches up."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from etcdops.drills import Number, drill

if TYPE_CHECKING:
    from etcdops.drills.scene import Scene
    from etcdops.member import Member
    from etcdops.runtimes.base import Runtime

_ROUNDS = Number(
    "rounds", 6, 1, 100, "how often a member is killed, each in turn; it ends early when a check has failed"
)

#: How long a member stays away, so that it has missed something, and writes go on between two rounds, seconds.
_AWAY_S = _BETWEEN_S = 0.5

#: The span from which the instant of a kill is drawn, seconds: first, and after a start. In the second one a member has
#: read its log, and applies what it finds there and what it has missed.
_PHASE_S = 0.2
_APPLYING_S = (0.3, 0.8)

#: A member that applies much is behind for some seconds, seconds.
_PATIENCE_S = 20.0


def _needs(runtime: Runtime, rounds: str) -> str | None:
    from etcdops.faults.member import lacks

    return lacks(runtime, "kill")


@drill(min_voters=3, steps=0, takes_s=25, choices=(_ROUNDS,), needs=_needs)
def kill_restart(scene: Scene, rounds: str) -> None:
    """Kill members in turn, each once more while it catches up: it comes back with all that it had acknowledged.

    etcd writes every entry to its log, and that to the disk, before it acknowledges it
    (https://etcd.io/docs/v3.5/learning/persistent-storage-files/). Its database is written ten times a second, with the
    index of the last entry that is in it, so that after a crash a member applies again what the database lacks, and
    nothing twice. etcd 3.5.0 to 3.5.2 noted the index before the entry was in the database: a member that was killed in
    between came back without it, silently (https://github.com/etcd-io/etcd/issues/13766). With `--profile wide-txn`
    entries take long to apply, and this drill finds it.
    """
    order = [member.name for member in scene.cluster.members]
    scene.random.shuffle(order)
    done = 0
    while done < int(rounds) and not scene.failed:
        member = scene.cluster.member(order[done % len(order)])
        done += 1
        _kill_twice(scene, member, f"round {done} of {rounds}")
        scene.hold(_BETWEEN_S)
    scene.figure("kills", 2 * done, "", f"in {done} of {rounds} rounds, every member in turn")
    if done < int(rounds):
        scene.say("a check has failed, so there are no more rounds")


def _kill_twice(scene: Scene, member: Member, which: str) -> None:
    scene.hold(scene.random.random() * _PHASE_S)
    with ExitStack() as stack:
        with scene.step(f"kill {member.name} at a random instant, {which}", scene.by_hand("kill", member)):
            away = stack.enter_context(scene.taken_away(member, "kill"))
            scene.hold(_AWAY_S)
        with scene.step(f"start {member.name}, and do not wait for it", scene.by_hand("start", member)):
            away.start()
            scene.hold(scene.random.uniform(*_APPLYING_S))
        with scene.step(f"kill {member.name} again, while it catches up", scene.by_hand("kill", member)):
            away.kill()
        with scene.step(f"start {member.name} again: it is to stay", scene.by_hand("start", member)):
            away.heal()
    with scene.step(
        f"wait until {member.name} has caught up, and compare its keys", "etcdctl endpoint hashkv --cluster"
    ):
        scene.check_rejoined(member, patience_s=_PATIENCE_S)
