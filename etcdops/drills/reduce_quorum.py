"""The original lab's second drill, which was text only: what a cluster does with fewer and fewer members."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from etcdops.drills import Choice, drill
from etcdops.errors import EtcdError, EtcdopsError, MemberFailed, WaitTimeout
from etcdops.ops import Put, Range, Txn, served_locally

if TYPE_CHECKING:
    from etcdops.drills.scene import Scene
    from etcdops.faults.member import Away
    from etcdops.member import Member
    from etcdops.runtimes.base import Runtime
    from etcdops.workload.history import Operation

_HOW = Choice(
    "how",
    ("kill", "freeze", "stop", "isolate", "unplug"),
    "kill (SIGKILL: a crash), freeze (SIGSTOP: a hang), stop (SIGTERM: an orderly end), isolate (a network"
    " partition) or unplug (off all networks: their clients lose them too; both for containers only)",
)

_LEADER = Choice(
    "leader",
    ("stays", "goes"),
    "stays (followers go, and the leader finds itself alone) or goes (it is the first to go, which costs an election)",
)

#: How long a member that was brought back may take to serve, seconds.
_BACK_S = 75.0

#: How long what needs no quorum may take, seconds.
_ANSWER_S = 5.0


def _needs(runtime: Runtime, how: str, leader: str) -> str | None:
    from etcdops.faults.member import lacks

    return lacks(runtime, how)


@drill(min_voters=3, steps=0, takes_s=25, choices=(_HOW, _LEADER), needs=_needs)
def reduce_quorum(scene: Scene, how: str, leader: str) -> None:
    """Take members away until no quorum is left, then bring them back: what goes on, what stops, and what still works.

    A quorum is more than half of the voters. While one is there, writes and linearizable reads go on through every
    surviving member. Without one, etcd acknowledges no write and answers no linearizable read, through any member: the
    leader steps down once it has not heard a quorum for an election timeout (Raft's CheckQuorum), and nobody can be
    elected. Serializable reads, a member's own status and snapshots need no quorum, and still work. With the first
    member that makes a quorum again one is elected, and what was acknowledged before is there
    (https://etcd.io/docs/v3.5/op-guide/failures/#majority-failure).
    """
    from etcdops.faults.member import HOWS

    cluster = scene.cluster
    spare = len(cluster.members) - cluster.record.spec.quorum
    with scene.step("find the leader: the member that the highest term names", "etcdctl endpoint status -w table"):
        leads = scene.leader()
        scene.say(
            f"{leads.name} leads in term {scene.term()}; of {len(cluster.members)} members {spare} can be spared, as"
            f" {cluster.record.spec.quorum} are a quorum"
        )
    with ExitStack() as stack:
        gone: list[Away] = []
        while len(gone) < spare:
            goes = leads if leader == "goes" and not gone else _follower(scene, gone)
            can = spare - len(gone) - 1
            label = f"take {goes.name} away: {how}; the cluster can lose {can} more after that"
            with scene.step(label, scene.by_hand(HOWS[how].fault, goes)):
                gone.append(stack.enter_context(scene.taken_away(goes, how)))
            if goes is leads:
                _elect(scene, gone[0])
        with scene.step("wait until writes are acknowledged through every surviving member", "etcdctl put k v"):
            scene.wait_writes(without=_names(gone))
        marks = _mark(scene, gone)
        last = _follower(scene, gone)
        label = f"take {last.name} away as well: {how}; what is left is no quorum"
        with scene.step(label, scene.by_hand(HOWS[how].fault, last)):
            lost = stack.enter_context(scene.taken_away(last, how))
            gone.append(lost)
        marks.pop(last.name)
        _without_quorum(scene, marks, lost)
        _return(scene, gone, lost)
    for away in gone:
        with scene.step(f"wait until {away.member.name} has caught up", "etcdctl endpoint status -w table"):
            scene.check_rejoined(away.member)


def _names(gone: list[Away]) -> list[str]:
    return [away.member.name for away in gone]


def _follower(scene: Scene, gone: list[Away]) -> Member:
    """Give one that is there and does not lead, by the seed."""
    return next(member for member in scene.followers() if member.name not in _names(gone))


def _elect(scene: Scene, away: Away) -> None:
    """See that another leads now that the leader is gone."""
    with scene.step("wait for another leader, at a higher term", "etcdctl endpoint status -w table"):
        successor = scene.wait_new_leader()
        took_ms = (time.monotonic_ns() - away.inject_ns) / 1e6
        scene.figure("new leader", took_ms, "ms", f"{successor.name} led so long after {away.member.name} went")
        scene.say(f"{successor.name} leads in term {scene.term()}")


def _mark(scene: Scene, gone: list[Away]) -> dict[str, Operation]:
    """Write a key through each member that is there, which has it then; give the writes by member."""
    marks = {}
    for member in scene.cluster.members:
        if member.name not in _names(gone):
            key = scene.own.key(f"before/{member.name}")
            marks[member.name] = scene.own.put(key, through=member.name, timeout_s=_ANSWER_S)
    bad = [f"{name}: {put.code} {put.error}" for name, put in marks.items() if put.outcome != "ok"]
    said = f"a write was acknowledged through {', '.join(marks)}, without {', '.join(_names(gone))}"
    scene.expect("service with a minority away", not bad, "; ".join(bad) or said)
    return marks


# -- without a quorum


def _without_quorum(scene: Scene, marks: dict[str, Operation], lost: Away) -> None:
    """See what every surviving member does and does not do; `marks` are what each of them acknowledged before."""
    survivors = ", ".join(marks)
    with scene.step(f"wait until nobody leads any more, as {survivors} sees it", "etcdctl endpoint status -w table"):
        _wait_leaderless(scene, marks, lost)
    # Longer than the longest election, so that an answer that is only late is not taken for none.
    silent_s = max(0.5, 2 * scene.cluster.record.spec.timing.election_ms / 1000)
    with scene.step(
        f"write and read, linearizably, through {survivors}: nothing is answered within {silent_s:g} s",
        f"etcdctl --command-timeout={silent_s:g}s put k v; etcdctl --command-timeout={silent_s:g}s get k",
    ):
        own = scene.own
        puts = {name: own.put(put.key, through=name, timeout_s=silent_s) for name, put in marks.items()}
        reads = {name: own.get(put.key, through=name, timeout_s=silent_s) for name, put in marks.items()}
        for kind, asked in (("no write without a quorum", puts), ("no linearizable read without a quorum", reads)):
            scene.check(kind, all(each.outcome != "ok" for each in asked.values()), _told(asked))
    with scene.step(f"read serializably through {survivors}: what it had is there", "etcdctl get k --consistency=s"):
        stale = {
            name: own.get(put.key, through=name, timeout_s=_ANSWER_S, serializable=True) for name, put in marks.items()
        }
        scene.check(
            "serializable reads without a quorum",
            all(each.outcome == "ok" and _value(each) == _written(marks[name]) for name, each in stale.items()),
            _told(stale),
        )
    with scene.step("look at the status: it is told, and says that there is no quorum", "etcdops status"):
        _look(scene)
    with scene.step(f"save a snapshot through {survivors.partition(',')[0]}", "etcdctl snapshot save FILE"):
        name, mark = next(iter(marks.items()))
        _save(scene, name, mark.revision)


def _wait_leaderless(scene: Scene, marks: dict[str, Operation], lost: Away) -> None:
    """Wait until every survivor answers its own Status RPC with no leader in it."""
    deadline = time.monotonic() + scene.patience_s
    seen = dict.fromkeys(marks, "")
    while True:
        for name in seen:
            try:
                status = scene.own.connection(name).status(timeout_s=1.0)
            except EtcdError as error:
                seen[name] = f"does not answer: {error}"
            else:
                seen[name] = f"still takes {status.leader:x} for the leader" if status.leader else ""
        if not any(seen.values()) or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    bad = "; ".join(f"{name} {said}" for name, said in seen.items() if said)
    took_ms = (scene.note("leaderless" if not bad else "not-leaderless") - lost.inject_ns) / 1e6
    if not bad:
        scene.figure("no leader", took_ms, "ms", "from the loss of the quorum until no member knew of a leader")
    said = f"{', '.join(seen)} answered the Status RPC, and knew of no leader {took_ms:,.0f} ms after the quorum went"
    scene.check("members answer and know of no leader", not bad, bad or said)


def _told(asked: dict[str, Operation]) -> str:
    """Say how each of some operations ended, and after how long."""
    return "; ".join(
        f"{name}: {f'ok at revision {op.revision}' if op.outcome == 'ok' else f'{op.outcome} ({op.code} {op.error})'}"
        f" after {(op.return_ns - op.call_ns) / 1e6:,.0f} ms"
        for name, op in asked.items()
    )


def _value(read: Operation) -> bytes | None:
    from etcdops.answers import RangeResult

    answer = read.answer
    return answer.kvs[0].value if isinstance(answer, RangeResult) and answer.kvs else None


def _written(put: Operation) -> bytes:
    assert isinstance(put.request, Put)
    return put.request.value


def _look(scene: Scene) -> None:
    """See that `etcdops status` says what it should."""
    status = scene.cluster.status()
    leads = f"{status.leader} leads" if status.leader else "no leader"
    health = ", ".join(f"{member.name} {member.health}" for member in status.members)
    scene.say(f"{status.verdict}, exit code {status.exit_code}, {leads}: {health}")
    scene.check(
        "status says no quorum",
        (status.verdict, status.exit_code, status.leader) == ("no-quorum", 5, None),
        f"verdict {status.verdict}, exit code {status.exit_code}, {leads}; {health}",
    )


def _save(scene: Scene, name: str, revision: int) -> None:
    """Save a snapshot through a survivor into the run's folder, and see that it is sound and has what was there."""
    from etcdops.snapshots.saving import save_snapshot
    from etcdops.snapshots.verifying import verify_snapshot

    check = "snapshot without a quorum"
    try:
        saved = save_snapshot(scene.cluster, scene.folder / "without-quorum.db", member=name, progress=scene.say)
        report = verify_snapshot(saved.path, beside=scene.cluster.record.binary)
    except EtcdopsError as error:
        scene.check(check, False, f"through {name}: {error}")
        return
    bad = "; ".join(f"{each.name}: {each.detail}" for each in report.checks if each.result == "failed")
    has = saved.manifest.revision if saved.manifest else 0
    said = f"{saved.path} from {name}: revision {has}, verified ({', '.join(report.levels)}); {revision} was there"
    scene.check(check, not bad and has >= revision, f"{said}{'; ' * bool(bad)}{bad}")


# -- the way back


def _return(scene: Scene, gone: list[Away], lost: Away) -> None:
    """Bring members back, one by one, those that went first first: what they lack the others have."""
    from etcdops.faults.member import HOWS

    first = gone[0]
    for away in gone:
        member, back = away.member, HOWS[away.how].undo
        label = f"bring {member.name} back: {back}" + "; that makes a quorum" * (away is first)
        with scene.step(label, scene.by_hand(back, member)):
            away.heal()
        if away is first:
            with scene.step("wait for acknowledged writes through every member that is there", "etcdctl put k v"):
                _wait_served(scene, first)
                scene.wait_writes(without=_names(gone[1:]), after_ns=first.heal_ns)
                scene.say(f"{scene.leader().name} leads in term {scene.term()}")
            _judge(scene, lost, first)


def _wait_served(scene: Scene, back: Away) -> None:
    """Wait until the member that makes the quorum serves."""
    name = back.member.name
    try:
        scene.cluster.wait_serving([name], timeout_s=_BACK_S)
    except (MemberFailed, WaitTimeout) as error:
        scene.expect("service with a quorum back", False, str(error))
    scene.check("service with a quorum back", True, f"{name} answered a linearizable read")


def _judge(scene: Scene, lost: Away, back: Away) -> None:
    """See in the traffic's record that nothing was acknowledged in between, and how long each change took."""
    acked = [op for op in scene.recorded() if op.outcome == "ok" and _needs_quorum(op)]
    writes = [op.return_ns for op in acked if op.may_write]
    before = max((at for at in writes if at < back.healing_ns), default=None)
    after = min((at for at in writes if at >= back.healing_ns), default=None)
    meanwhile = [op for op in acked if op.call_ns > lost.injected_ns and op.return_ns < back.healing_ns]
    without_ms = (back.healing_ns - lost.injected_ns) / 1e6
    said = f"of what was asked in the {without_ms:,.0f} ms without a quorum, nothing was answered meanwhile"
    if meanwhile:
        said = (
            f"{len(meanwhile)} operations were answered that were asked without a quorum, the first a"
            f" {meanwhile[0].kind} through {meanwhile[0].member}"
        )
    scene.check("no traffic without a quorum", not meanwhile, said)
    scene.figure("without a quorum", without_ms, "ms", "from the last member that went to the first that came back")
    scene.figure(
        "last write after the loss",
        None if before is None else (before - lost.inject_ns) / 1e6,
        "ms",
        f"its acknowledgement, from when {lost.member.name} was to go ({lost.how}); it was gone"
        f" {(lost.injected_ns - lost.inject_ns) / 1e6:,.0f} ms after that",
    )
    scene.figure(
        "first write after the return",
        None if after is None else max(0.0, (after - back.heal_ns) / 1e6),
        "ms",
        f"its acknowledgement, from when {back.member.name} was seen to run,"
        f" {(back.heal_ns - back.healing_ns) / 1e6:,.0f} ms after it was to come back",
    )


def _needs_quorum(op: Operation) -> bool:
    """Whether etcd must not answer an operation without a quorum: a write, or a read that is linearizable."""
    request = op.request
    return op.may_write or (isinstance(request, (Range, Txn)) and not served_locally(request))
