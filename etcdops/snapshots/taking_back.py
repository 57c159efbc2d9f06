"""Taking a restore back: one that has not come to its end, or the last one that has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from etcdops.errors import Refused
from etcdops.facts import collect
from etcdops.foreign import refuse_foreign
from etcdops.operations.exchange import (
    Before,
    before_of,
    last_before,
    put_in_place,
    read_before,
    refuse_gone,
    restorer,
    settle,
    start_all,
    start_steps,
    stop_steps,
)
from etcdops.operations.pending import Pending, begin, end, going_on, load, refuse_unfinished
from etcdops.operations.plan import Plan, Step, carry_out

if TYPE_CHECKING:
    from etcdops.cluster import Cluster

__all__ = ["NEW", "OPERATION", "RESTORES", "prepare_rollback", "rollback", "start_survivors", "take_back"]

OPERATION = "snapshot.rollback"

#: Among an operation's arguments: it made the cluster, which is removed when it is taken back.
NEW = "new"

#: The operations that can be taken back so. Before a recovery there was no quorum, nor is there one afterwards.
RECOVER = "cluster.recover"
RESTORES = ("snapshot.restore", RECOVER)

Confirm = Callable[[Plan], None]
Progress = Callable[[str], None]


def take_back(cluster: Cluster, pending: Pending, progress: Progress) -> None:
    """Undo a restore that has not come to its end: the cluster has the data that it had before, and runs if it ran."""
    assert pending.record
    if NEW in pending.arguments:
        progress(f"removing {cluster.name}, which the restore had made")
        cluster.purge_locked()
        return
    before = before_of(cluster, pending)
    plan = _back_plan(cluster, pending, before)
    names = [name for name in pending.arguments.get("ran", "").split(",") if name]

    def start(step: Step) -> None:
        if pending.operation == RECOVER:
            start_survivors(cluster, names)
        elif names:
            start_all(cluster, int(pending.arguments["size"]), progress)
            settle(cluster)

    acts: Mapping[str, Callable[[Step], None]] = {
        "drop": lambda step: _drop(cluster, pending),
        "stop": lambda step: _stop(cluster),
        "exchange": lambda step: put_in_place(cluster, before.record, "undone", pending.run),
        "start": start,
    }
    carry_out(cluster, plan, acts, progress, run=pending.run)
    end(cluster)


def start_survivors(cluster: Cluster, names: Sequence[str]) -> None:
    """Start what ran before a recovery; there was no quorum, so nothing can be waited for."""
    states = cluster.runtime.states(cluster.record)
    if stopped := [name for name in names if states[name] == "stopped"]:
        cluster.start_members(stopped)


def _stop(cluster: Cluster) -> None:
    cluster.down_locked()


def _drop(cluster: Cluster, pending: Pending) -> None:
    assert pending.record
    in_use = {member.data.place for member in cluster.record.members}
    if in_use.isdisjoint(member.data.place for member in pending.record.members):
        restorer(cluster).drop_data(pending.record)


def _back_plan(cluster: Cluster, pending: Pending, before: Before) -> Plan:
    """Give the steps that lead back, as it looks now."""
    assert pending.record
    steps: list[Step] = []
    if cluster.record.token == pending.record.token:
        steps += stop_steps(cluster, "")
        text = "have the members use the data that they had before, by one write of the record"
        steps.append(Step("exchange", "", text, f"# clusters/{cluster.name}/before/{before.run}.json"))
    else:
        places = ", ".join(member.data.place for member in pending.record.members)
        steps.append(Step("drop", "", "remove the data that was being made", f"# {places}"))
    steps += start_steps(cluster, before.record, "")
    return Plan(OPERATION, cluster.name, before.operation, tuple(steps))


def prepare_rollback(cluster: Cluster) -> Plan:
    """Give the plan that takes the last restore back, or one that has not ended; raises as `rollback` does."""
    refuse_foreign(cluster.record, f"snapshot.rollback of {cluster.name}")
    return _prepare(cluster)[0]


def _prepare(cluster: Cluster) -> tuple[Plan, Pending | None, Before | None]:
    pending = load(cluster)
    if pending is not None and pending.operation in RESTORES:
        if NEW in pending.arguments:
            step = Step("purge", "", f"remove {cluster.name}, which the restore made", "down-env --purge")
            return Plan(OPERATION, cluster.name, str(pending), (step,)), pending, None
        before = before_of(cluster, pending)
        return _back_plan(cluster, pending, before), pending, before
    pending = refuse_unfinished(cluster, OPERATION)
    found = read_before(cluster, pending.arguments["undoes"]) if pending else last_before(cluster)
    if found is None:
        raise Refused(
            f"{cluster.name} has the data that it always had: there is no restore to take back",
            remedy="`snapshot.list` shows what can be restored from.",
        )
    if found.operation != RECOVER:
        refuse_gone(cluster, found.record)
    return _rollback_plan(cluster, found), pending, found


def _rollback_plan(cluster: Cluster, before: Before) -> Plan:
    steps: list[Step] = []
    if cluster.record.token != before.record.token:
        steps += stop_steps(cluster, "up-env")
        text = "have the members use the data that they had before, by one write of the record; today's is kept"
        steps.append(Step("exchange", "", text, f"# clusters/{cluster.name}/before/{before.run}.json"))
    steps += start_steps(cluster, before.record, "")
    known = max(
        (member.status.revision for member in collect(cluster.record, cluster.runtime).members if member.status),
        default=0,
    )
    at = f", up to revision {known}" if known else ""
    return Plan(
        OPERATION,
        cluster.name,
        f"{before.operation} {before.target}",
        tuple(steps),
        consequence=f"what was written since the restore of {before.since}{at} is lost: {cluster.name} has again"
        f" what it had then{f', revision {before.revision}' if before.revision else ''}",
        notes=("restart clients that watch or cache: revisions are those of before the restore again",),
    )


def rollback(cluster: Cluster, *, confirm: Confirm = lambda plan: None, progress: Progress = lambda text: None) -> str:
    """Take back a restore that has not ended, or else the last one that has, and say how things are then.

    `confirm` is called with a plan by which something is lost, and raises ConfirmationNeeded to stop it. The data that
    is given up is kept, as retired. The same call goes on with a rollback that was interrupted. Raises Refused where
    there is nothing to take back, another operation has not ended, or the data of before has been removed.
    """
    refuse_foreign(cluster.record, f"snapshot.rollback of {cluster.name}")
    with cluster.locked(f"roll {cluster.name} back", progress=progress):
        cluster.save(cluster.runtime.adopt(cluster.record))
        plan, pending, before = _prepare(cluster)
        if pending is not None and pending.operation in RESTORES:
            with going_on(cluster, pending, progress):
                take_back(cluster, pending, progress)
            if NEW in pending.arguments:
                return f"{pending} is taken back: there is no cluster {cluster.name} any more"
            return f"{pending} is taken back: {cluster.name} has the data that it had before"
        assert before
        shown = pending is None
        if pending is None:
            confirm(plan)
            pending = _begin(cluster, before)
        _go_back(cluster, pending, before, plan, progress, shown=shown)
        return f"{cluster.name} has again the data that it had before {before.operation} of {before.since}"


def _begin(cluster: Cluster, before: Before) -> Pending:
    named = "" if cluster.name == "lab" else f" --cluster {cluster.name}"
    return begin(
        cluster,
        OPERATION,
        "",
        again=f"{OPERATION}{named}",
        back=f"{OPERATION}{named}",
        record=before.record,
        arguments={"undoes": before.run},
    )


def _go_back(
    cluster: Cluster, pending: Pending, before: Before, plan: Plan, progress: Progress, *, shown: bool
) -> None:
    def start(step: Step) -> None:
        if before.operation == RECOVER:
            refs = {member.data: member.name for member in cluster.record.members}
            there = restorer(cluster).present_data(cluster.record, list(refs))
            start_survivors(cluster, [refs[ref] for ref in there])
            return
        start_all(cluster, 0, progress)
        settle(cluster)

    acts: Mapping[str, Callable[[Step], None]] = {
        "stop": lambda step: _stop(cluster),
        "exchange": lambda step: put_in_place(cluster, before.record, "undone", pending.run),
        "start": start,
    }
    with going_on(cluster, pending, progress):
        carry_out(cluster, plan, acts, progress, run=pending.run, commands=not shown)
