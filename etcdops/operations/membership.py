"""Plans that change who is a member: add, remove, replace, promote, and the way back. Nothing here touches anything.

Each plan is made from what is seen: steps that are done already are not in it, so that the plan of an operation that
was interrupted is what is left of it. A new member joins as a learner, which counts for no quorum, and is promoted
when it has what the others have (https://etcd.io/docs/v3.5/learning/design-learner/).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from etcdops import checks, quorum
from etcdops.answers import MemberInfo, hex_id
from etcdops.errors import Refused, SpecError
from etcdops.facts import Facts
from etcdops.foreign import bring_back
from etcdops.operations.leader import choose_leader, step_to
from etcdops.operations.plan import Plan, Step, by_etcdctl
from etcdops.spec import MEMBER_NAMES, MemberSpec
from etcdops.tls.layout import is_own, with_own_leaf

if TYPE_CHECKING:
    from etcdops.runtimes.base import Runtime
    from etcdops.state import ClusterRecord, MemberRecord

__all__ = [
    "Joining",
    "find_listed",
    "new_member",
    "plan_add",
    "plan_promote",
    "plan_remove",
    "plan_replace",
    "plan_undo",
]


class Joining(NamedTuple):
    """A member that is to join: its specification, where it is placed, and the id of the one that it replaces, or 0."""

    spec: MemberSpec
    member: MemberRecord
    old_id: int = 0

    def recorded_in(self, record: ClusterRecord) -> bool:
        """Whether the record has it, with this very data."""
        return any(member.name == self.spec.name and member.data == self.member.data for member in record.members)

    def added_to(self, record: ClusterRecord) -> ClusterRecord:
        """Give the record with it: in the place of the member of its name, or as one more."""
        if self.spec.name in record.spec.names:
            return record.with_member(self.member)
        return record.joined(self.spec, self.member)


def new_member(record: ClusterRecord, name: str = "", *, cert: str = "", key: str = "") -> MemberSpec:
    """Give the member that is to be added: called `name`, or by the first of the usual names that is free.

    Raises SpecError for a name that is taken or no name, for more than seven members, and where a cluster with TLS has
    no certificate and key for it; one whose certificates etcdops makes needs none, and takes none.
    """
    if len(record.members) >= len(MEMBER_NAMES):
        raise SpecError(
            f"{record.spec.name} has {len(record.members)} members, and more than {len(MEMBER_NAMES)} are not offered",
            remedy="Every write waits for a majority: more members make a cluster slower, and hardly safer.",
        )
    if name in record.spec.names:
        raise SpecError(
            f"{record.spec.name} has a member {name} already",
            remedy=f"`member.promote {name}` if it is a learner, `member.replace {name}` if it is lost.",
        )
    free = [each for each in MEMBER_NAMES if each not in record.spec.names]
    spec = MemberSpec(name or free[0], cert=cert, key=key)
    if record.spec.tls and is_own(record.spec):
        if cert or key:
            raise SpecError(
                f"the certificates of {record.spec.name} are made by etcdops: another authority's is of no use",
                remedy="Leave out --cert and --key.",
            )
        return with_own_leaf(spec, record.spec.tls)
    if record.spec.tls and not (cert and key):
        raise SpecError(
            f"{record.spec.name} has TLS, and {spec.name} has no certificate",
            remedy="Give --cert and --key, PEM files signed by the cluster's CA, for 127.0.0.1 and its peers' name.",
        )
    if (cert or key) and not record.spec.tls:
        raise SpecError(
            f"{record.spec.name} has no TLS: a certificate is of no use", remedy="Leave out --cert and --key."
        )
    return spec


def find_listed(facts: Facts, member: MemberRecord, *, but: int = 0) -> MemberInfo | None:
    """Give the entry of the member list with this member's peer URL, or None; `but` is an id to be left out."""
    listed = quorum.member_list(facts) or ()
    return next((info for info in listed if member.peer_url in info.peer_urls and info.id != but), None)


def plan_add(record: ClusterRecord, runtime: Runtime, facts: Facts, joins: Joining) -> Plan:
    """Give the plan, or what is left of it, by which a placed member joins. Changes nothing.

    Raises Refused where no member list is to be had.
    """
    _need_list(facts)
    name = joins.spec.name
    steps = _join(record, runtime, facts, joins)
    return Plan("member.add", record.spec.name, name, (*steps, _prove(record, facts, name)), notes=_even(facts, 1))


def plan_replace(record: ClusterRecord, runtime: Runtime, facts: Facts, joins: Joining) -> Plan:
    """Give the plan, or what is left of it, by which a new member takes the place of a lost one. Changes nothing.

    The lost one is removed first: to add first would raise the quorum while a voter is missing
    (https://etcd.io/docs/v3.5/faq/). Raises Refused where the quorum would be lost, or no member list is to be had.
    """
    listed = _need_list(facts)
    name, old = joins.spec.name, record.member(joins.spec.name)
    steps: list[Step] = []
    consequence = ""
    if any(info.id == joins.old_id for info in listed):
        _refuse_quorum(facts, name)
        if _state(facts, name) not in ("stopped", "unknown"):
            # Whatever hangs must not come back beside the one in its place. Where its host does not answer nobody can
            # see to that, but etcd does: its peers take nothing from one that was removed.
            steps.append(Step("fence", name, f"kill {name}: it is replaced", runtime.by_hand("kill", record, old)))
        steps.append(_remove(record, facts, name, joins.old_id))
        consequence = (
            f"the member {name} ({hex_id(joins.old_id)}) is removed for ever; its data is kept at"
            f" {old.data.on(old.host)}, and can never join again"
        )
        if _state(facts, name) == "unknown":
            consequence += f"; whatever is on {old.host} stays there, as it does not answer"
    steps += _join(record, runtime, facts, joins)
    return Plan(
        "member.replace",
        record.spec.name,
        name,
        (*steps, _prove(record, facts, name)),
        consequence=consequence,
    )


def plan_remove(record: ClusterRecord, runtime: Runtime, facts: Facts, leaves: MemberRecord, old_id: int) -> Plan:
    """Give the plan, or what is left of it, by which a member leaves for ever. Changes nothing.

    Raises Refused for the last voter, and where the quorum would be lost.
    """
    listed = _need_list(facts)
    name = leaves.name
    steps: list[Step] = []
    consequence = ""
    notes: tuple[str, ...] = ()
    if any(info.id == old_id for info in listed):
        if quorum.voters(facts) == (name,):
            raise Refused(
                f"{name} is the only voter of {record.spec.name}: it cannot be removed",
                remedy="`down-env --purge` deletes the whole cluster.",
            )
        _refuse_quorum(facts, name)
        if quorum.leader_of_facts(facts)[0] == name:
            steps.append(step_to(record, facts, choose_leader(facts, but=name)))
        steps.append(_remove(record, facts, name, old_id))
        consequence = (
            f"{name} is removed for ever; its data is kept at {leaves.data.on(leaves.host)}, and can never join again"
        )
        if name in quorum.voters(facts):
            notes = _even(facts, -1)
            if len(quorum.voters(facts)) == 2:
                consequence += "; the one that is left has nobody to survive its failure"
    if name in record.spec.names:
        steps.append(_retire(record, runtime, leaves))
    steps.append(_prove(record, facts, name))
    return Plan("member.remove", record.spec.name, name, tuple(steps), consequence=consequence, notes=notes)


def plan_promote(record: ClusterRecord, facts: Facts, name: str) -> Plan:
    """Give the plan that makes a learner a voter. Raises SpecError for no member, Refused for one that does not run."""
    member = record.member(name)
    _need_list(facts)
    info = find_listed(facts, member)
    if info is None:
        raise Refused(
            f"{name} is not in the member list of {record.spec.name}",
            remedy=f"`member.replace {name}` puts a new member in its place.",
        )
    if not info.is_learner:
        return Plan("member.promote", record.spec.name, name, already=f"{name} is a voter already")
    if _state(facts, name) != "running":
        raise Refused(
            f"{name} {quorum.why_not_up(facts, name)}, so it cannot be promoted",
            remedy=bring_back(facts.foreign, f"`member.start {name}` brings it back."),
        )
    return Plan(
        "member.promote",
        record.spec.name,
        name,
        (*_promotion(record, facts, name, info.id), _prove(record, facts, name)),
        notes=_even(facts, 1),
    )


def plan_undo(record: ClusterRecord, runtime: Runtime, facts: Facts, joins: Joining, operation: str) -> Plan:
    """Give the plan that takes an unfinished add or replace back: the learner leaves, and its data is kept.

    Raises Refused where it is a voter already: then there is nothing unfinished about it but the proof.
    """
    _need_list(facts)
    name = joins.spec.name
    info = find_listed(facts, joins.member, but=joins.old_id)
    steps: list[Step] = []
    if info is not None and not info.is_learner:
        raise Refused(
            f"{name} is a voter already: {operation} cannot be taken back",
            remedy=f"`{operation} {name}` proves it; `member.remove {name}` removes it.",
        )
    if info is not None:
        steps.append(_remove(record, facts, name, info.id))
    gone = operation == "member.replace" and not any(i.id == joins.old_id for i in quorum.member_list(facts) or ())
    if joins.recorded_in(record) or gone:
        steps.append(_retire(record, runtime, record.member(name)))
    notes: tuple[str, ...] = ()
    if gone:
        notes = (f"the member that {name} was to replace has been removed, and stays so",)
    return Plan("member.undo", record.spec.name, name, (*steps, _prove(record, facts, name)), notes=notes)


def _join(record: ClusterRecord, runtime: Runtime, facts: Facts, joins: Joining) -> list[Step]:
    name, back = joins.spec.name, "member.undo"
    info = find_listed(facts, joins.member, but=joins.old_id)
    steps = []
    if info is None:
        steps.append(
            Step(
                "add-learner",
                name,
                f"add {name} as a learner, which counts for no quorum",
                by_etcdctl(
                    record,
                    _endpoint(record, facts, name),
                    *("member", "add", name, "--learner", f"--peer-urls={joins.member.peer_url}"),
                ),
                back,
            )
        )
    if not joins.recorded_in(record) or _state(facts, name) != "running":
        by_hand = runtime.by_hand("start", joins.added_to(record), joins.member)
        where = f"{name} on {joins.member.host}" if record.hosts else name
        steps.append(Step("start", name, f"start {where} without data: it gets all from the leader", by_hand, back))
    if info is None or info.is_learner:
        steps += _promotion(record, facts, name, info.id if info else 0)
    return steps


def _promotion(record: ClusterRecord, facts: Facts, name: str, number: int) -> list[Step]:
    endpoint = _endpoint(record, facts, name)
    return [
        Step(
            "catch-up",
            name,
            f"wait until {name} has applied what the leader has",
            by_etcdctl(record, endpoint, "endpoint", "status", "--cluster", "-w", "table"),
            "member.undo",
            waits=True,
        ),
        Step(
            "promote",
            name,
            f"promote {name} to a voter",
            by_etcdctl(record, endpoint, "member", "promote", hex_id(number) if number else "ID"),
            f"member.remove {name}",
        ),
    ]


def _retire(record: ClusterRecord, runtime: Runtime, member: MemberRecord) -> Step:
    return Step(
        "retire",
        member.name,
        f"see that {member.name} has ended, and forget it; its data is kept at {member.data.on(member.host)}",
        runtime.by_hand("stop", record, member),
    )


def _remove(record: ClusterRecord, facts: Facts, name: str, number: int) -> Step:
    return Step(
        "remove-member",
        name,
        f"remove {name} ({hex_id(number)}) from the cluster",
        by_etcdctl(record, _endpoint(record, facts, name), "member", "remove", hex_id(number)),
    )


def _prove(record: ClusterRecord, facts: Facts, about: str) -> Step:
    return Step(
        "prove",
        about,
        "prove it: the member list is as recorded, every member serves, and all have the same data",
        by_etcdctl(record, _endpoint(record, facts, about), "endpoint", "hashkv", "--cluster"),
        waits=True,
    )


def _endpoint(record: ClusterRecord, facts: Facts, but: str) -> str:
    able = [name for name in quorum.up(facts) if name != but and name in record.spec.names]
    leader = quorum.leader_of_facts(facts)[0]
    name = leader if leader in able else able[0] if able else record.spec.names[0]
    return record.member(name).client_url


def _state(facts: Facts, name: str) -> str:
    return next((member.state for member in facts.members if member.name == name), "stopped")


def _even(facts: Facts, more: int) -> tuple[str, ...]:
    after = len(quorum.voters(facts)) + more
    return (checks.even_size(after),) if after % 2 == 0 and after else ()


def _need_list(facts: Facts) -> Sequence[MemberInfo]:
    listed = quorum.member_list(facts)
    if listed is None:
        raise Refused(
            f"no member of {facts.cluster} lists its members: there is no quorum",
            remedy=bring_back(
                facts.foreign, "`up-env` brings members back; `cluster.recover` where most are lost for good."
            )
            + " Nothing was changed.",
        )
    return listed


def _refuse_quorum(facts: Facts, name: str) -> None:
    found = checks.check_change(facts, removing=name)
    if found:
        raise Refused(
            f"{found[0].message}: no write would be acknowledged", remedy=f"{found[0].remedy} Nothing was changed."
        )
