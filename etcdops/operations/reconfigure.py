"""Changing who is a member: add, remove, replace, promote, and take back what was interrupted.

Each looks, refuses what is not safe, shows its plan, acts and proves. One that was interrupted, be it by kill -9, goes
on when it is run again: what was chosen is written down before the first step, and which steps are done is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from etcdops import quorum
from etcdops.errors import EtcdopsError, Refused, SpecError
from etcdops.facts import GAP_S
from etcdops.foreign import WHERE_IT_RUNS, refuse_foreign
from etcdops.operations import membership, pending
from etcdops.operations.gate import DOWN, look, refuse_bad_versions, refuse_unhealthy
from etcdops.operations.joining import Reconfiguration
from etcdops.operations.membership import Joining
from etcdops.operations.pending import Pending
from etcdops.operations.plan import Plan, carry_out
from etcdops.placement import place, with_pem_files
from etcdops.runtimes.base import CanSpread
from etcdops.tls.layout import is_own

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.spec import MemberSpec
    from etcdops.state import MemberRecord

__all__ = ["Confirm", "add", "promote", "remove", "replace", "undo"]

#: Called with a plan before it is carried out, to show it; raises ConfirmationNeeded to stop it.
Confirm = Callable[[Plan], None]

Progress = Callable[[str], None]


def _yes(plan: Plan) -> None:
    pass


def _silent(text: str) -> None:
    pass


#: What is said about a voter that is down, where a member is to be added.
_REPLACE = "etcd adds no member while a voter is down; if {name} is lost for good, `member.replace {name}`."

#: What is said where somebody else runs the members.
_JOIN_THERE = (
    f"`ctl -- member add NAME --learner --peer-urls=URL` announces one; start it {WHERE_IT_RUNS}; then"
    " `member.promote NAME` after another `cluster.attach`."
)


def add(
    cluster: Cluster,
    name: str = "",
    *,
    host: str = "",
    cert: str = "",
    key: str = "",
    allow_known_bad: bool = False,
    dry_run: bool = False,
    confirm: Confirm = _yes,
    progress: Progress = _silent,
) -> Plan:
    """Add a member, as a learner that is promoted when it has all data, and give the plan that did it.

    `name` "" means the first usual name that is free, or the one that an interrupted add is about. `cert` and `key` are
    its PEM files, for a cluster whose certificates are somebody else's. `host` is where it is to run, for a cluster
    over several; the one with the fewest members without it. With `dry_run` the plan is only given. Raises SpecError
    and Refused before anything is changed (a voter is down, the gate finds an error, the host is not fit, the version
    is known to break it); PartlyChanged when a step fails, and then the same call goes on, and `undo` takes it back.
    """
    refuse_foreign(cluster.record, f"member.add {name}".rstrip(), remedy=_JOIN_THERE)
    with cluster.locked(f"member.add {name or ''}".rstrip(), progress=progress):
        cluster.save(cluster.runtime.adopt(cluster.record))
        begun = pending.refuse_unfinished(cluster, "member.add", name)
        facts = look(cluster, gap_s=0.0 if begun else GAP_S)
        if begun:
            joins = _at(begun, host)
        else:
            spec = membership.new_member(cluster.record, name, cert=cert, key=key)
            spec = spec if is_own(cluster.record.spec) else with_pem_files(spec)
            refuse_bad_versions(facts, "member.add", allow=allow_known_bad)
            refuse_unhealthy(facts, f"adding {spec.name}", remedies=dict.fromkeys(DOWN, _REPLACE))
            joins = Joining(spec, _placed(cluster, spec, _host_for(cluster, host)))
        plan = membership.plan_add(cluster.record, cluster.runtime, facts, joins)
        if not dry_run:
            confirm(plan)
            begun = begun or _begin(cluster, "member.add", joins)
            _carry_out(cluster, plan, begun, progress)
        return plan


def replace(
    cluster: Cluster,
    name: str,
    *,
    host: str = "",
    allow_known_bad: bool = False,
    dry_run: bool = False,
    confirm: Confirm = _yes,
    progress: Progress = _silent,
) -> Plan:
    """Put a new member with no data in the place of a lost one, of the same name, and give the plan that did it.

    The lost one is removed first, whether or not it can be reached; its data is kept. The new one runs on `host`, for a
    cluster over several; without it where the lost one was, or, if that host does not answer, on one that has no member
    yet. What is left on a host that does not answer is on record. Raises Refused, before anything is changed, for a
    member that serves, where no host is fit, the quorum would be lost, or the gate finds another error; PartlyChanged
    when a step fails: the same call goes on then, and `undo` ends it without the member.
    """
    refuse_foreign(cluster.record, f"member.replace {name}".rstrip(), target=name, remedy=_JOIN_THERE)
    with cluster.locked(f"member.replace {name}", progress=progress):
        old = cluster.record.member(name)
        cluster.save(cluster.runtime.adopt(cluster.record))
        begun = pending.refuse_unfinished(cluster, "member.replace", name)
        facts = look(cluster, gap_s=0.0 if begun else GAP_S)
        if begun:
            joins = _at(begun, host)
        else:
            refuse_bad_versions(facts, "member.add", allow=allow_known_bad)
            if name in quorum.up(facts):
                raise Refused(
                    f"{name} serves, so it is not lost: replacing is for members that are",
                    remedy=f"`member.stop {name}` first, if its data is to be replaced all the same.",
                )
            # Others that are down need not be well, as long as there is a quorum without them.
            refuse_unhealthy(facts, f"replacing {name}", about=name, ignoring={*DOWN, "member-removed"})
            listed = membership.find_listed(facts, old)
            placed = _replacement(cluster, old, _host_for(cluster, host, old))
            joins = Joining(cluster.record.spec.member(name), placed, old_id=listed.id if listed else 0)
        plan = membership.plan_replace(cluster.record, cluster.runtime, facts, joins)
        if not dry_run:
            confirm(plan)
            begun = begun or _begin(cluster, "member.replace", joins)
            _carry_out(cluster, plan, begun, progress)
        return plan


def remove(
    cluster: Cluster,
    name: str,
    *,
    allow_known_bad: bool = False,
    dry_run: bool = False,
    confirm: Confirm = _yes,
    progress: Progress = _silent,
) -> Plan:
    """Remove a member for ever, leadership first, and give the plan that did it; its data is kept.

    Raises Refused, before anything is changed, for the last voter, where the quorum would be lost, or the gate finds an
    error about another member; PartlyChanged when a step fails: the same call goes on then.
    """
    refuse_foreign(
        cluster.record,
        f"member.remove {name}",
        target=name,
        remedy=f"`ctl -- member remove ID` takes it out of the member list; stop it {WHERE_IT_RUNS}; then"
        " `cluster.attach` again.",
    )
    with cluster.locked(f"member.remove {name}", progress=progress):
        begun = pending.refuse_unfinished(cluster, "member.remove", name)
        leaves = begun.member if begun and begun.member else cluster.record.member(name)
        cluster.save(cluster.runtime.adopt(cluster.record))
        facts = look(cluster, gap_s=0.0 if begun else GAP_S)
        old_id = begun.old_id if begun else 0
        if not begun:
            refuse_bad_versions(facts, "member.remove", allow=allow_known_bad)
            refuse_unhealthy(facts, f"removing {name}", about=name, ignoring={*DOWN, "learner-pending"})
            listed = membership.find_listed(facts, leaves)
            old_id = listed.id if listed else 0
        plan = membership.plan_remove(cluster.record, cluster.runtime, facts, leaves, old_id)
        if not dry_run:
            confirm(plan)
            begun = begun or pending.begin(cluster, "member.remove", name, member=leaves, old_id=old_id, back="")
            _carry_out(cluster, plan, begun, progress)
        return plan


def promote(
    cluster: Cluster,
    name: str,
    *,
    allow_known_bad: bool = False,
    dry_run: bool = False,
    confirm: Confirm = _yes,
    progress: Progress = _silent,
) -> Plan:
    """Make a learner a voter once it has what the leader has, and give the plan that did it.

    Raises Refused, before anything is changed, where the gate finds an error about another member; what an unfinished
    add or replace of this member has begun comes to its end by it.
    """
    with cluster.locked(f"member.promote {name}", progress=progress):
        member = cluster.record.member(name)
        cluster.save(cluster.runtime.adopt(cluster.record))
        begun = pending.load(cluster)
        if begun and begun.target != name:
            pending.refuse_unfinished(cluster)
        facts = look(cluster)
        refuse_bad_versions(facts, "member.promote", allow=allow_known_bad)
        refuse_unhealthy(facts, f"promoting {name}", about=name)
        plan = membership.plan_promote(cluster.record, facts, name)
        if plan.steps and not dry_run:
            spec = cluster.record.spec.member(name)
            joins = _of(begun) if begun and begun.spec else Joining(spec, member)
            confirm(plan)
            begun = begun or _begin(cluster, "member.promote", joins, back=f"member.remove {name}")
            _carry_out(cluster, plan, begun, progress)
        return plan


def undo(cluster: Cluster, *, dry_run: bool = False, confirm: Confirm = _yes, progress: Progress = _silent) -> Plan:
    """Take an unfinished add or replace back, and give the plan that did it; without steps where nothing is unfinished.

    The learner is removed, and its data kept. Raises Refused for what can only be ended: a removal, or a member that is
    a voter already.
    """
    with cluster.locked("member.undo", progress=progress):
        begun = pending.load(cluster)
        if begun is None:
            return Plan("member.undo", cluster.name, "", already="no operation is unfinished")
        if begun.operation not in ("member.add", "member.replace"):
            raise Refused(
                f"`{begun}` cannot be taken back by member.undo",
                remedy=f"{begun.ways}.",
            )
        joins = _of(begun)
        cluster.save(cluster.runtime.adopt(cluster.record))
        facts = look(cluster)
        plan = membership.plan_undo(cluster.record, cluster.runtime, facts, joins, begun.operation)
        if not dry_run:
            confirm(plan)
            acts = Reconfiguration(cluster, progress, run=begun.run, joins=joins).acts()
            with pending.going_on(cluster, begun, progress):
                carry_out(cluster, plan, acts, progress, run=begun.run, commands=False)
        return plan


def _host_for(cluster: Cluster, wished: str, old: MemberRecord | None = None) -> str:
    """Give the host for a new member, or for one that takes the place of `old`; "" where there are not several."""
    if isinstance(cluster.runtime, CanSpread):
        return cluster.runtime.host_for(cluster.record, wished, instead_of=old)
    if wished:
        raise SpecError(
            f"the members of {cluster.name} run on this machine, so none can be on {wished}",
            remedy="Leave out --host: it is for clusters that were created with --hosts.",
        )
    return ""


def _placed(cluster: Cluster, spec: MemberSpec, host: str) -> MemberRecord:
    """Choose ports and a place for the data of a new member; nothing is made yet."""
    record = cluster.record
    alone = msgspec.structs.replace(record.spec, members=(msgspec.structs.replace(spec, host=host),))
    [placed] = place(cluster.runtime, alone, record.id, cluster.store, generation=record.next_generation(spec.name))
    return placed


def _replacement(cluster: Cluster, old: MemberRecord, host: str) -> MemberRecord:
    """Choose a place for the data of the member that takes another's place, at the same URLs if it stays there."""
    record = cluster.record
    if host not in ("", old.host):
        old = _placed(cluster, record.spec.member(old.name), host)
    else:
        there = cluster.runtime.states(record)[old.name] != "stopped"
        if not there and cluster.runtime.occupied_ports(record, [old.name]):
            old = _placed(cluster, record.spec.member(old.name), host)
    return msgspec.structs.replace(old, data=cluster.runtime.next_data(record, old.name), ref="", wanted="stopped")


def _at(begun: Pending, host: str) -> Joining:
    """Give the member that an unfinished operation is about; Refused where another host is wished than it has."""
    joins = _of(begun)
    if host and host != joins.member.host:
        raise Refused(f"`{begun}` has begun with {joins.member.host}, not {host}", remedy=f"{begun.ways}.")
    return joins


def _of(begun: Pending) -> Joining:
    if begun.spec is None or begun.member is None:
        raise SpecError(f"what is written down about `{begun}` does not say which member joins")
    return Joining(begun.spec, begun.member, begun.old_id)


def _begin(cluster: Cluster, operation: str, joins: Joining, *, back: str = "member.undo") -> Pending:
    spec, member, old_id = joins
    return pending.begin(cluster, operation, spec.name, spec=spec, member=member, old_id=old_id, back=back)


def _carry_out(cluster: Cluster, plan: Plan, begun: Pending, progress: Progress) -> None:
    joins = _of(begun) if begun.spec else None
    acts = Reconfiguration(cluster, progress, run=begun.run, joins=joins, old_id=begun.old_id).acts()
    try:
        with pending.going_on(cluster, begun, progress):
            carry_out(cluster, plan, acts, progress, run=begun.run, commands=False)
    except EtcdopsError as error:
        if _nothing_done(cluster, begun):
            pending.end(cluster)
            cause = error.__cause__ if isinstance(error.__cause__, EtcdopsError) else error
            raise Refused(f"{begun}: {cause}", remedy=f"{cause.remedy} Nothing was changed.".strip()) from error
        raise


def _nothing_done(cluster: Cluster, begun: Pending) -> bool:
    """Whether an add has failed before etcd granted anything: seen in the member list, not believed."""
    if begun.operation != "member.add" or begun.spec is None:
        return False
    joins = _of(begun)
    if joins.recorded_in(cluster.record):
        return False
    facts = look(cluster)
    return quorum.member_list(facts) is not None and membership.find_listed(facts, joins.member) is None
