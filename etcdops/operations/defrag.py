"""Defragmenting: giving back the space that deleted and compacted data has left in the members' databases.

A member neither reads nor writes while it rewrites its database, so members take turns: followers first, and the leader
last, once leadership has moved to another voter; a leader that defragments stops the whole cluster's writes
(etcd-backup-restore#1052). etcd goes on when the client has stopped waiting (etcd#8260), so nothing is asked twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from etcdops import checks, quorum, wire
from etcdops.errors import EtcdError, EtcdopsError, Refused, WaitTimeout
from etcdops.facts import Facts
from etcdops.operations.gate import refuse_bad_versions
from etcdops.operations.leader import choose_leader, hand_over, step_to
from etcdops.operations.plan import Plan, Step, carry_out
from etcdops.operations.upkeep import (
    by_hand,
    glance,
    heartbeat,
    look,
    pass_gate,
    patience_s,
    resumable,
    settle,
    spaces_of,
    wait_idle,
)
from etcdops.space import DefragRule, Judged, Space
from etcdops.units import size_text

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.state import ClusterRecord

__all__ = [
    "DefragReport",
    "MemberDefrag",
    "acts_of",
    "defrag",
    "order",
    "plan_defrag",
    "prepare",
    "refuse_small_disks",
    "steps_for",
]

#: What the gate lets pass: a full quota is what defragmenting is for, and learners are left out.
_IGNORED = ("alarm-nospace", "learner-pending")

_ANSWER_S = 5.0


class MemberDefrag(msgspec.Struct, frozen=True):
    """One member: whether it was defragmented, why or why not, and its database's size before and after, in bytes."""

    member: str
    role: str
    done: bool
    reason: str
    db_size: int
    in_use: int
    db_size_after: int

    @property
    def reclaimed(self) -> int:
        """How many bytes were given back."""
        return max(self.db_size - self.db_size_after, 0)


class DefragReport(msgspec.Struct, frozen=True):
    """What a defragmentation did, member by member, in the order of creation."""

    cluster: str
    members: tuple[MemberDefrag, ...]

    @property
    def reclaimed(self) -> int:
        """How many bytes were given back in all."""
        return sum(member.reclaimed for member in self.members)


def order(spaces: Sequence[Space], chosen: Sequence[str]) -> list[str]:
    """Give the chosen members in the order in which they take their turns: followers first, the leader last."""
    names = [space.member for space in spaces if space.member in chosen]
    leaders = [space.member for space in spaces if space.role == "leader"]
    return [*(name for name in names if name not in leaders), *(name for name in names if name in leaders)]


def plan_defrag(record: ClusterRecord, facts: Facts, judged: Sequence[Judged], *, only: Sequence[str] = ()) -> Plan:
    """Give the plan that defragments the members that are chosen, followers first, and the leader after another leads.

    `only` leaves out all others. Raises Refused where a member's disk is too full for a second copy of what is in use.
    """
    chosen = [each.space.member for each in judged if each.chosen and (not only or each.space.member in only)]
    spaces = [each.space for each in judged]
    refuse_small_disks([space for space in spaces if space.member in chosen])
    turns = order(spaces, chosen)
    plan = Plan("cluster.defrag", record.spec.name, ", ".join(turns))
    if not turns:
        return msgspec.structs.replace(plan, already=f"no member of {record.spec.name} is worth defragmenting")
    return msgspec.structs.replace(
        plan, steps=tuple(steps_for(record, facts, turns, spaces)), consequence=outage(facts, turns)
    )


def steps_for(record: ClusterRecord, facts: Facts, turns: Sequence[str], spaces: Sequence[Space]) -> list[Step]:
    """Give the steps that defragment members in their turns, the leader after leadership has moved."""
    leader = quorum.leader_of_facts(facts)[0]
    sizes = {space.member: space for space in spaces}
    steps = []
    for name in turns:
        if name == leader and len(quorum.voters(facts)) > 1:
            steps.append(step_to(record, facts, _successor(facts, leader, turns)))
        gain = f"{size_text(sizes[name].free)} of {size_text(sizes[name].db_size)} free"
        steps.append(
            Step(
                "defrag", name, f"defragment {name} ({gain}), and wait until it serves", by_hand(record, name, "defrag")
            )
        )
    return steps


def _successor(facts: Facts, leader: str, done: Sequence[str]) -> str:
    """Give who is to lead: of those that have been defragmented by then, the voter that has applied most."""
    others = facts._replace(members=tuple(m for m in facts.members if m.name in done))
    try:
        return choose_leader(others, but=leader)
    except Refused:
        # Nobody else takes a turn: the others' databases have nothing to give back.
        return choose_leader(facts, but=leader)


def outage(facts: Facts, turns: Sequence[str]) -> str:
    """Say what stops while one of the members does not serve, "" if a quorum is left of the others."""
    for name in turns:
        if checks.check_change(facts, stopping=name):
            if len(quorum.voters(facts)) == 1:
                return f"{name} is the only voter: nothing is served while it rewrites its database"
            return f"the quorum needs {name}: writes may pause while it rewrites its database"
    return ""


def refuse_small_disks(spaces: Sequence[Space]) -> None:
    """Raise Refused if a member's disk has no room for the new copy that is written beside its database."""
    for space in spaces:
        if space.disk_free is not None and space.disk_free < space.in_use:
            raise Refused(
                f"{space.member} needs {size_text(space.in_use)} for a new copy of its database, and its disk has"
                f" {size_text(space.disk_free)} free",
                remedy="Free space there first. Nothing was changed.",
            )


def prepare(
    cluster: Cluster,
    *,
    rule: DefragRule | None = None,
    only: Sequence[str] = (),
    allow_known_bad: bool = False,
) -> tuple[Plan, tuple[Judged, ...]]:
    """Look at a cluster, and give the plan that defragments it, and what the rule says of each member.

    Raises SpecError for what is no member, Refused at the gate, for a version that breaks this, and as `plan_defrag`.
    """
    for name in only:
        cluster.record.member(name)
    record, facts = look(cluster)
    pass_gate(cluster, facts, "defragmenting", ignoring=_IGNORED)
    judged = tuple((rule or DefragRule()).judge(space) for space in spaces_of(cluster, record, facts))
    plan = plan_defrag(record, facts, judged, only=only)
    if plan.steps:
        refuse_bad_versions(facts, "defrag", allow=allow_known_bad)
    return plan, judged


def defrag(
    cluster: Cluster,
    *,
    rule: DefragRule | None = None,
    only: Sequence[str] = (),
    allow_known_bad: bool = False,
    confirm: Callable[[Plan], None] = lambda plan: None,
    progress: Callable[[str], None] = lambda text: None,
) -> DefragReport:
    """Defragment the members for which the rule says that it is worth it, one at a time, and say what was given back.

    `confirm` is called with a plan that has a consequence (an outage), and raises ConfirmationNeeded to stop it. It
    ends at the first failure; run again, it does what is left. Raises as `prepare` does before anything is changed;
    then EtcdError when a member refuses, MemberFailed when it dies, WaitTimeout when it does not serve again in time.
    """
    with cluster.locked(f"defrag {cluster.name}", progress=progress):
        plan, judged = prepare(cluster, rule=rule, only=only, allow_known_bad=allow_known_bad)
        after: dict[str, int] = {}
        if plan.steps:
            if plan.consequence:
                confirm(plan)
            with resumable(lambda: bool(after), "cluster.defrag"):
                carry_out(cluster, plan, acts_of(cluster, after, progress), progress)
        return _report(cluster, judged, after, only)


def _report(cluster: Cluster, judged: Sequence[Judged], after: dict[str, int], only: Sequence[str]) -> DefragReport:
    rows = []
    for space, _, reason in judged:
        done = space.member in after
        why = reason if not only or space.member in only else "not asked for"
        now = after.get(space.member, space.db_size)
        rows.append(MemberDefrag(space.member, space.role, done, why, space.db_size, space.in_use, now))
    return DefragReport(cluster.name, tuple(rows))


def acts_of(
    cluster: Cluster, after: dict[str, int], progress: Callable[[str], None], *, ignoring: Sequence[str] = _IGNORED
) -> dict[str, Callable[[Step], None]]:
    """Give what does the steps of `steps_for`; sizes afterwards are noted in `after`, by member."""

    def rewrite(step: Step) -> None:
        try:
            after[step.member] = _rewrite(cluster, step.member, tuple(after), progress, ignoring)
        except EtcdopsError as error:
            done = f"done: {', '.join(after)}" if after else "no member is done"
            error.remedy = f"{error.remedy} Stopped at {step.member}; {done}.".strip()
            raise

    return {"move-leader": lambda step: hand_over(cluster, step.member), "defrag": rewrite}


def _rewrite(
    cluster: Cluster, name: str, done: Sequence[str], progress: Callable[[str], None], ignoring: Sequence[str]
) -> int:
    """Defragment one member that does not lead, wait until all is well again, and give its database's size then."""
    record, facts = glance(cluster)
    pass_gate(cluster, facts, f"defragmenting {name}", ignoring=ignoring)
    if quorum.leader_of_facts(facts)[0] == name and len(quorum.voters(facts)) > 1:
        # There was an election since the plan was made.
        to = _successor(facts, name, done)
        progress(f"{name} leads now: handing leadership over to {to} first")
        hand_over(cluster, to)
    status = cluster.member(name).status(timeout_s=_ANSWER_S)
    wait_s = patience_s(status.db_size)
    member = record.member(name)
    late: EtcdError | None = None
    with wire.Connection(member.client_url, record.spec.tls) as connection, heartbeat(progress, f"{name} defragments"):
        try:
            connection.defragment(timeout_s=wait_s)
        except EtcdError as error:
            if error.code != "DEADLINE_EXCEEDED":
                raise
            # The member goes on, whoever waits: it is looked at until it serves, and never asked again.
            progress(f"{name} takes longer than {wait_s:.0f} s: waiting until it serves again")
            wait_idle(cluster, name, wait_s)
            late = error
    settle(cluster, [name], checks.findings(facts), ignoring=ignoring)
    now = cluster.member(name).status(timeout_s=_ANSWER_S).db_size
    if late is not None and now >= status.db_size:
        raise WaitTimeout(
            f"{name} was asked to defragment, and did not answer: its database is as large as before ({late.text})",
            remedy=f"See in `logs --member {name}` whether it did, before it is asked again.",
        )
    progress(f"{name}: {size_text(status.db_size)} -> {size_text(now)}")
    return now
