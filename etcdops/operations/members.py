"""What can be done to one member that is there: stop, start, kill, freeze and thaw it.

`stop` is orderly and remembered: the member stays stopped until it is started, and `heal` leaves it alone. `kill` and
`freeze` are faults by hand, a crash and a hang: the member is still wanted, and `heal` and `up-env` bring it back.
None of them takes the quorum away unless that is asked for by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from etcdops import checks, quorum
from etcdops.errors import Refused, SpecError
from etcdops.facts import Facts, collect
from etcdops.foreign import refuse_foreign
from etcdops.operations import pending
from etcdops.operations.gate import PATIENCE_S, settled, without_data
from etcdops.operations.leader import choose_leader, hand_over, step_to
from etcdops.operations.plan import Plan, Step, carry_out

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.runtimes.base import Runtime
    from etcdops.state import ClusterRecord
    from etcdops.status import ClusterStatus

__all__ = ["ACTIONS", "plan_action", "prepare", "run"]


class _Action(NamedTuple):
    """An action: the runtime's name for it, what the step says, the state that it leaves, and what takes it back."""

    by_hand: str
    text: str
    leaves: str
    back: str


#: What can be done to a member, by the name of its task.
ACTIONS = {
    "stop": _Action("stop", "stop {}: SIGTERM, and wait until it has ended", "stopped", "member.start"),
    "start": _Action("start", "start {}, and wait until it serves", "running", "member.stop"),
    "kill": _Action("kill", "kill {}: SIGKILL, as a crash would", "stopped", "member.start"),
    "freeze": _Action("pause", "freeze {}: SIGSTOP, as a machine that hangs", "paused", "member.thaw"),
    "thaw": _Action("resume", "let {} go on: SIGCONT, and wait until it serves", "running", "member.freeze"),
}

_TAKES_AWAY = ("stop", "kill", "freeze")

_STATES = {"running": "runs", "paused": "is frozen", "stopped": "is stopped", "isolated": "runs, off a network"}


def plan_action(
    record: ClusterRecord, runtime: Runtime, facts: Facts, action: str, name: str, *, lose_quorum: bool = False
) -> Plan:
    """Give the plan that does an action (a name of ACTIONS) to a member. Changes nothing.

    Raises SpecError for what is no member or no action, Refused where the quorum would be lost (unless `lose_quorum`),
    where a member in its state cannot have it done, or for a fault on a cluster that is marked as production.
    """
    if action not in ACTIONS:
        raise SpecError(f"there is no action {action!r}", remedy=f"There are {', '.join(ACTIONS)}.")
    member = record.member(name)
    refuse_foreign(record, f"member.{action} {name}", target=name)
    state = next(m.state for m in facts.members if m.name == name)
    done = Plan(f"member.{action}", record.spec.name, name)
    if state == ACTIONS[action].leaves or (state == "isolated" and action in ("start", "thaw")):
        return _with(done, already=f"{name} {_STATES[state]} already")
    if state == "stopped" and action != "start":
        raise Refused(f"{name} is stopped, so {action} does nothing to it", remedy=f"`member.start {name}` starts it.")
    if action in ("kill", "freeze") and record.spec.purpose == "production":
        raise Refused(
            f"cluster {record.spec.name} is marked as production: no fault is applied to it",
            remedy=f"`member.stop {name}` stops a member in an orderly way.",
        )
    if action == "start" and any(each.name == name and each.data_gone for each in facts.members):
        raise without_data([name])
    steps: list[Step] = []
    consequence = ""
    if action in _TAKES_AWAY:
        consequence = _consequence(facts, name, lose_quorum)
        if action == "stop" and not consequence and quorum.leader_of_facts(facts)[0] == name:
            # A leader hands over by itself when it ends, to the best of its knowledge; here it is seen to.
            steps.append(step_to(record, facts, choose_leader(facts, but=name)))
    # A frozen member is started by letting it go on.
    does = "thaw" if action == "start" and state == "paused" else action
    way = ACTIONS[does]
    vain = "" if action in _TAKES_AWAY or _serves_then(facts, name) else " (which needs a quorum, and there is none)"
    steps.append(
        Step(
            does,
            name,
            way.text.format(name) + vain,
            runtime.by_hand(way.by_hand, record, member),
            f"{way.back} {name}",
        )
    )
    return _with(done, steps=tuple(steps), consequence=consequence)


def _serves_then(facts: Facts, name: str) -> bool:
    """Whether there is a quorum once a member is back. Without one now, whoever answers will serve then."""
    return quorum.quorum_after(quorum.voters(facts), {*quorum.answering(facts), name}).holds


def _with(plan: Plan, *, steps: tuple[Step, ...] = (), already: str = "", consequence: str = "") -> Plan:
    return Plan(plan.operation, plan.cluster, plan.member, steps, already, consequence)


def _consequence(facts: Facts, name: str, lose_quorum: bool) -> str:
    """Give what is lost when a member goes, "" if the quorum holds; raise Refused unless that may be lost."""
    found = checks.check_change(facts, stopping=name)
    if not found:
        return ""
    said = found[0].message
    if not lose_quorum:
        raise Refused(
            f"{said}: no write would be acknowledged",
            remedy=f"{found[0].remedy} --lose-quorum goes on all the same. Nothing was changed.",
        )
    return f"{said}: no write is acknowledged until a quorum is back"


def prepare(cluster: Cluster, action: str, name: str, *, lose_quorum: bool = False) -> Plan:
    """Look at a cluster, and give the plan that does an action to a member; raises as `plan_action` does."""
    record = cluster.runtime.adopt(cluster.record)
    facts = collect(record, cluster.runtime)
    return plan_action(record, cluster.runtime, facts, action, name, lose_quorum=lose_quorum)


def run(
    cluster: Cluster,
    action: str,
    name: str,
    *,
    lose_quorum: bool = False,
    confirm: Callable[[Plan], None] = lambda plan: None,
    progress: Callable[[str], None] = lambda text: None,
) -> str:
    """Do an action (a name of ACTIONS) to a member, look again, and say how things are then.

    `confirm` is called with a plan that has a consequence, and raises ConfirmationNeeded to stop it. Raises as
    `plan_action` does before anything is changed; afterwards MemberFailed when the member does not do what it should,
    WaitTimeout when it does not serve, or the others do not agree again, in time.
    """
    with cluster.locked(f"{action} {name} of {cluster.name}", progress=progress):
        begun = pending.load(cluster)
        if begun and begun.target == name and action in ("start", "thaw"):
            raise Refused(f"{name} is left to `{begun}`, which has not come to its end", remedy=f"{begun.ways}.")
        cluster.save(cluster.runtime.adopt(cluster.record))
        before = collect(cluster.record, cluster.runtime)
        plan = plan_action(cluster.record, cluster.runtime, before, action, name, lose_quorum=lose_quorum)
        member = cluster.member(name)
        if not plan.steps:
            if action == "stop":
                # It may have been killed: from now on it is to stay stopped.
                member.stop()
            return f"{plan.already}: nothing was changed"
        if plan.consequence:
            confirm(plan)
        wait_s = PATIENCE_S if _serves_then(before, name) else 0.0

        def thaw(step: Step) -> None:
            member.resume()
            if wait_s:
                cluster.wait_serving([name], timeout_s=wait_s)

        carry_out(
            cluster,
            plan,
            {
                "move-leader": lambda step: hand_over(cluster, step.member),
                "stop": lambda step: member.stop(),
                "start": lambda step: member.start(wait_s=wait_s),
                "kill": lambda step: member.kill(),
                "freeze": lambda step: member.pause(),
                "thaw": thaw,
            },
            progress,
        )
        # A learner, or a member too many, may go without a quorum to be lost: there is none to settle then, either.
        held = quorum.quorum_after(quorum.voters(before), quorum.up(before)).holds
        lost = bool(plan.consequence) or not (held if action in _TAKES_AWAY else wait_s)
        return _said(name, cluster.status() if lost else settled(cluster, checks.findings(before), about=name))


def _said(name: str, status: ClusterStatus) -> str:
    health = status.member(name).health
    leads = f"{status.leader} leads in term {status.term}" if status.leader else "no member leads"
    healthy = sum(member.health == "healthy" for member in status.members)
    short = status.quorum - healthy
    can = f"{short} more must serve before a write is acknowledged" if short > 0 else f"can lose {-short}"
    return f"{name} is {health}; {leads}; {healthy} of {len(status.members)} members serve, {can}"
