"""Compacting: giving up history that nobody reads, so that its space can be used again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from etcdops import wire
from etcdops.errors import EtcdError, SpecError, WaitTimeout
from etcdops.facts import Facts
from etcdops.operations.gate import refuse_bad_versions
from etcdops.operations.plan import Plan, Step, carry_out
from etcdops.operations.upkeep import by_hand, heartbeat, look, pass_gate, patience_s, voter

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.state import ClusterRecord

__all__ = [
    "KEEP",
    "Compacted",
    "History",
    "choose",
    "compact",
    "compact_to",
    "history",
    "loses",
    "plan_compact",
    "prepare",
    "refuse_bad_compaction",
    "step_to",
]

#: How many revisions stay readable where nothing else is asked for (the default of Kubernetes' and others' practice is
#: minutes of history; etcd-defrag compacts to the newest, which breaks whoever reads history at that instant).
KEEP = 10_000

#: What a read or a watch below the compacted revision is told.
_GONE = "etcdserver: mvcc: required revision has been compacted"

_ANSWER_S = 5.0


class History(NamedTuple):
    """The oldest revision that can be read, and the newest."""

    oldest: int
    newest: int


class Compacted(NamedTuple):
    """What a compaction did: the revision that it went to (0: none), and the oldest and newest that can be read now."""

    revision: int
    oldest: int
    newest: int


def history(connection: wire.Connection) -> History:
    """Find which revisions a member can read, by reading one key at some of them. Never writes.

    No call tells the compacted revision; a read below it is refused, so it is found in about log2(newest) reads.
    """
    newest = connection.range(b"etcdops/", serializable=True, count_only=True, timeout_s=_ANSWER_S).revision
    low, high = 1, newest
    while low < high:
        middle = (low + high) // 2
        try:
            connection.range(b"etcdops/", serializable=True, count_only=True, revision=middle, timeout_s=_ANSWER_S)
            high = middle
        except EtcdError as error:
            if error.text != _GONE:
                raise
            low = middle + 1
    return History(high, newest)


def plan_compact(
    record: ClusterRecord, facts: Facts, known: History, *, keep: int | None = None, revision: int = 0
) -> Plan:
    """Give the plan that gives up the history before `revision`, or before the newest less `keep` (default: KEEP).

    Raises SpecError for both, for less than no revision, or for one that is yet to come.
    """
    target = choose(known, keep=keep, revision=revision)
    through = voter(facts)
    plan = Plan("cluster.compact", record.spec.name, through)
    if target <= known.oldest:
        said = f"revisions {known.oldest:,} to {known.newest:,} can be read"
        if revision:
            why = f"{said}, so {revision:,} is compacted already"
        else:
            why = f"{said}, and the newest {known.newest - target:,} are to stay"
        return Plan(plan.operation, plan.cluster, plan.member, already=why)
    return Plan(plan.operation, plan.cluster, plan.member, (step_to(record, through, target),), "", loses(target))


def choose(known: History, *, keep: int | None = None, revision: int = 0) -> int:
    """Give the revision to compact to; raises as `plan_compact` does."""
    if keep is not None and revision:
        raise SpecError("--keep and --revision both say where to compact", remedy="Give one of them.")
    if revision < 0 or (keep is not None and keep < 0):
        raise SpecError(f"there is no revision {revision}" if revision < 0 else f"{keep} revisions cannot be kept")
    if revision > known.newest:
        raise SpecError(f"revision {revision:,} is yet to come: the newest is {known.newest:,}")
    return revision or max(known.newest - (KEEP if keep is None else keep), 0)


def step_to(record: ClusterRecord, through: str, target: int) -> Step:
    """Give the step that compacts to `target`."""
    return Step(
        "compact",
        through,
        f"compact to revision {target}, and wait until {through} has cleaned its database",
        by_hand(record, through, "compact", str(target), "--physical"),
    )


def loses(target: int) -> str:
    """Say what is lost by a compaction to `target`."""
    return (
        f"the history before revision {target:,} is gone for good: reads at those revisions, and watches that start"
        ' there, end with "required revision has been compacted". The newest value of every key stays'
    )


def prepare(cluster: Cluster, *, keep: int | None = None, revision: int = 0, allow_known_bad: bool = False) -> Plan:
    """Look at a cluster, and give the plan that compacts it. Raises as `plan_compact` does, and Refused at the gate."""
    return _study(cluster, keep, revision, allow_known_bad)[0]


def _study(cluster: Cluster, keep: int | None, revision: int, allow_known_bad: bool) -> tuple[Plan, int]:
    """Give the plan, and the revision that it compacts to."""
    record, facts = look(cluster)
    # A full quota is no obstacle: to compact is allowed then, and is half of the cure.
    pass_gate(cluster, facts, "compacting", ignoring=("alarm-nospace", "learner-pending"))
    with wire.Connection(record.member(voter(facts)).client_url, record.spec.tls) as connection:
        known = history(connection)
    plan = plan_compact(record, facts, known, keep=keep, revision=revision)
    target = choose(known, keep=keep, revision=revision)
    if plan.steps:
        refuse_bad_compaction(facts, known, target, allow=allow_known_bad)
    return plan, target


def refuse_bad_compaction(facts: Facts, known: History, target: int, *, allow: bool) -> None:
    """Raise Refused if compacting to `target` is not safe on the members' versions, unless that is allowed."""
    # Only where the newest revision itself is compacted can it be a tombstone that goes with it (etcd#17780).
    ruled_out = () if target >= known.newest else ("compact-to-newest",)
    refuse_bad_versions(facts, "compact", allow=allow, ruled_out=ruled_out)


def compact(
    cluster: Cluster,
    *,
    keep: int | None = None,
    revision: int = 0,
    allow_known_bad: bool = False,
    confirm: Callable[[Plan], None] = lambda plan: None,
    progress: Callable[[str], None] = lambda text: None,
) -> Compacted:
    """Give up old history, and say what can be read then.

    `confirm` is called with the plan, whose consequence is what is lost, and raises ConfirmationNeeded to stop it.
    Nothing is done where that history is gone already. Raises as `prepare` does; EtcdError when etcd refuses,
    WaitTimeout when it does not end in time.
    """
    with cluster.locked(f"compact {cluster.name}", progress=progress):
        plan, target = _study(cluster, keep, revision, allow_known_bad)
        if plan.steps:
            confirm(plan)
            carry_out(
                cluster, plan, {"compact": lambda step: compact_to(cluster, step.member, target, progress)}, progress
            )
        through = cluster.record.member(plan.member)
        with wire.Connection(through.client_url, cluster.record.spec.tls) as connection:
            known = history(connection)
        return Compacted(target if plan.steps else 0, known.oldest, known.newest)


def compact_to(cluster: Cluster, through: str, target: int, progress: Callable[[str], None]) -> None:
    """Compact to `target` through a member, and wait until that member has cleaned its database.

    It is well if that revision is compacted already. Raises EtcdError when etcd refuses, WaitTimeout when it does not
    come to be compacted in time.
    """
    with wire.Connection(cluster.record.member(through).client_url, cluster.record.spec.tls) as connection:
        wait_s = patience_s(connection.status(timeout_s=_ANSWER_S).db_size)
        try:
            with heartbeat(progress, f"{through} cleans its database"):
                connection.compact(target, physical=True, timeout_s=wait_s)
        except EtcdError as error:
            if error.text == _GONE:
                return
            if error.code != "DEADLINE_EXCEEDED":
                raise
            if history(connection).oldest < target:
                raise WaitTimeout(
                    f"{through} has not compacted to revision {target:,} within {wait_s:.0f} s: {error.text}",
                    remedy=f"Look at `status` and `logs --member {through}`, then run it again: it finds what is done.",
                ) from error
            progress(f"compacted; {through} still cleans its database, and goes on by itself")
