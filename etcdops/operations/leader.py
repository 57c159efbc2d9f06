"""Moving leadership from one voter to another, which costs next to nothing while both are well."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from etcdops import quorum, wire
from etcdops.answers import hex_id
from etcdops.errors import EtcdopsError, NoLeader, QuorumLost, Refused, WaitTimeout
from etcdops.facts import Facts, collect
from etcdops.foreign import bring_back
from etcdops.operations.plan import Plan, Step, by_etcdctl, carry_out

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.member import Member
    from etcdops.state import ClusterRecord

__all__ = ["choose_leader", "hand_over", "move_leader", "plan_move", "prepare", "step_to"]

#: How long a leader may take to answer; it waits itself until the other leads, an election timeout at the longest.
_ANSWER_S = 10.0

#: How long the new leader may take to be seen, in election timeouts.
_PATIENCE = 10


def choose_leader(facts: Facts, *, but: str = "") -> str:
    """Give the voter that should lead: of those that serve, the one that has applied most, in the order of creation.

    Raises Refused where none but `but` serves.
    """
    applied = {m.name: m.status.raft_applied_index for m in facts.members if m.status and not m.status.is_learner}
    able = [name for name in quorum.up(facts) if name != but and name in applied]
    if not able:
        raise Refused(
            f"no voter but {but or 'none'} serves, so none can take leadership over", remedy="Look at `status`."
        )
    order = [member.name for member in facts.members]
    return max(able, key=lambda name: (applied[name], -order.index(name)))


def plan_move(record: ClusterRecord, facts: Facts, to: str = "") -> Plan:
    """Give the plan that makes `to` lead, or the most advanced healthy voter for "".

    Raises SpecError for what is no member, Refused for a learner or a member that does not serve, NoLeader or
    QuorumLost where nobody leads.
    """
    name = record.member(to).name if to else ""
    leader = _leader(facts)
    if to == leader:
        return Plan("member.move-leader", record.spec.name, leader, already=f"{leader} leads already")
    if name:
        _refuse_unfit(facts, name)
    return Plan(
        "member.move-leader",
        record.spec.name,
        name or choose_leader(facts, but=leader),
        (step_to(record, facts, name or choose_leader(facts, but=leader)),),
    )


def _leader(facts: Facts) -> str:
    everyone, there = quorum.voters(facts), quorum.up(facts)
    leader, term = quorum.leader_of_facts(facts)
    if not quorum.quorum_after(everyone, there).holds:
        remedy = bring_back(facts.foreign, "Start the stopped members: `up-env`.")
        raise QuorumLost(healthy=len(there), voters=len(everyone), remedy=remedy)
    if leader is None:
        remedy = "An election takes one to two election timeouts. Look at `status`."
        if facts.auth:
            remedy = "Authentication is on, and etcdops has no user: `ctl -- --user NAME move-leader ID` does it."
        raise NoLeader(f"no member of {facts.cluster} says who leads (term {term})", remedy=remedy)
    return leader


def _refuse_unfit(facts: Facts, name: str) -> None:
    if name not in quorum.voters(facts):
        raise Refused(
            f"{name} is no voter, so it cannot lead", remedy="A learner must be promoted first; see `status`."
        )
    if name not in quorum.up(facts):
        raise Refused(
            f"{name} {quorum.why_not_up(facts, name)}, so it cannot take leadership over",
            remedy=bring_back(facts.foreign, f"`member.start {name}` or `member.thaw {name}` brings it back.")
            + " Or leave out --to.",
        )


def step_to(record: ClusterRecord, facts: Facts, to: str) -> Step:
    """Give the step that hands leadership over to `to`."""
    leader = _leader(facts)
    ids = {member.name: member.status.member_id for member in facts.members if member.status}
    return Step(
        "move-leader",
        to,
        f"hand leadership over from {leader} to {to}",
        by_etcdctl(record, record.member(leader).client_url, "move-leader", hex_id(ids[to])),
        f"member.move-leader --to {leader}",
    )


def prepare(cluster: Cluster, to: str = "") -> Plan:
    """Look at a cluster, and give the plan that makes `to` lead; raises as `plan_move` does."""
    record = cluster.runtime.adopt(cluster.record)
    return plan_move(record, collect(record, cluster.runtime), to)


def move_leader(cluster: Cluster, to: str = "", *, progress: Callable[[str], None] = lambda text: None) -> Member:
    """Make `to` lead, or the most advanced healthy voter for "", and give the member that leads then.

    Nothing is done where it leads already. Raises as `plan_move` and `hand_over` do.
    """
    with cluster.locked(f"move leadership of {cluster.name}", progress=progress):
        plan = prepare(cluster, to)
        if plan.steps:
            carry_out(cluster, plan, {"move-leader": lambda step: hand_over(cluster, step.member)}, progress)
        return cluster.member(plan.member)


def hand_over(cluster: Cluster, to: str) -> None:
    """Ask the leader to hand over to `to`, and wait until that is seen to lead.

    Raises EtcdError when the leader refuses, EtcdopsError when another member leads in the end, WaitTimeout when none
    is seen to lead in time.
    """
    target = cluster.member(to).status(timeout_s=1.0).member_id
    leader = cluster.leader()
    # Only the leader takes this request.
    with wire.Connection(leader.client_url, cluster.record.spec.tls) as connection:
        connection.move_leader(target, timeout_s=_ANSWER_S)
    deadline = time.monotonic() + _PATIENCE * cluster.record.spec.timing.election_ms / 1000
    seen = leader.name
    while seen != to:
        if time.monotonic() > deadline:
            if seen == leader.name:
                raise WaitTimeout(
                    f"{leader.name} still leads {cluster.name}, though it was asked to hand over to {to}",
                    remedy="Look at `status --gate`, and try again.",
                )
            raise EtcdopsError(
                f"leadership was to go from {leader.name} to {to}, and {seen} leads", remedy="Try again; see `logs`."
            )
        time.sleep(0.02)
        try:
            seen = cluster.leader().name
        except (NoLeader, QuorumLost):
            seen = leader.name
