"""Healing a full space quota: compact, defragment, and only then disarm NOSPACE, member by member.

A member whose database file has reached the quota raises NOSPACE, and no member accepts a write from then on.
Compacting frees pages within the file, and defragmenting gives them back. To disarm before that is done looks like a
cure: the next write may even be acknowledged, and raises the alarm again (etcd#16779). `etcdctl alarm disarm` takes
every alarm away, CORRUPT among them, which protects what is left of good data; here each one is named.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from etcdops import checks, quorum, wire
from etcdops.answers import hex_id
from etcdops.errors import EtcdError, EtcdopsError
from etcdops.operations import compact, defrag
from etcdops.operations.fullness import ANSWER_S, CORRUPT_TEXT, Fullness, hazard, is_blocked, live_at, plan_heal
from etcdops.operations.gate import refuse_bad_versions
from etcdops.operations.plan import Plan, Step, carry_out
from etcdops.operations.upkeep import glance, look, pass_gate, resumable, settle, spaces_of, voter

if TYPE_CHECKING:
    from etcdops.cluster import Cluster

__all__ = ["Fullness", "MemberHealed", "NospaceReport", "heal_nospace", "plan_heal", "prepare"]

#: NOSPACE is what is being healed, CORRUPT stays as it is, and learners are left out.
_IGNORED = ("alarm-nospace", "alarm-corrupt", "learner-pending")


class MemberHealed(msgspec.Struct, frozen=True):
    """One member: its database before and after, the quota, and whether its NOSPACE was disarmed. Sizes in bytes."""

    member: str
    quota: int
    db_size: int
    in_use: int
    db_size_after: int
    alarmed: bool
    disarmed: bool


class NospaceReport(msgspec.Struct, frozen=True):
    """What healing did. `revision` is the one that was compacted to, 0 for none.

    `corrupt` names the members whose CORRUPT alarm is armed, as it was before, and `hazard` says what follows from that
    where NOSPACE was disarmed beside it. `proof` says what the canary showed.
    """

    cluster: str
    revision: int
    members: tuple[MemberHealed, ...]
    corrupt: tuple[str, ...]
    proof: str
    hazard: str = ""


def prepare(cluster: Cluster, *, keep: int | None = None, allow_known_bad: bool = False) -> tuple[Plan, Fullness]:
    """Look at a cluster, and give the plan that heals its quota, and what was seen.

    Raises Refused at the gate (alarms aside), for a version that breaks this, and as `plan_heal` does.
    """
    plan, seen, _ = _study(cluster, keep, allow_known_bad)
    return plan, seen


def _study(cluster: Cluster, keep: int | None, allow_known_bad: bool) -> tuple[Plan, Fullness, int]:
    record, facts = look(cluster)
    pass_gate(cluster, facts, "healing the quota", ignoring=_IGNORED)
    spaces = spaces_of(cluster, record, facts)
    with wire.Connection(record.member(voter(facts)).client_url, record.spec.tls) as connection:
        alarms = connection.alarms(timeout_s=ANSWER_S)
        known = compact.history(connection)
        full = any(space.full for space in spaces) and any(alarm.kind == "NOSPACE" for alarm in alarms)
        live = live_at(connection, spaces, known, keep) if full else {}
        blocked = any(alarm.kind == "CORRUPT" for alarm in alarms) and is_blocked(connection)
    seen = Fullness(alarms, spaces, known, live, blocked)
    plan, revision = plan_heal(record, facts, seen, keep=keep)
    done = {step.do for step in plan.steps}
    if revision:
        compact.refuse_bad_compaction(facts, known, revision, allow=allow_known_bad)
    if "defrag" in done:
        refuse_bad_versions(facts, "defrag", allow=allow_known_bad)
    return plan, seen, revision


def heal_nospace(
    cluster: Cluster,
    *,
    keep: int | None = None,
    allow_known_bad: bool = False,
    confirm: Callable[[Plan], None] = lambda plan: None,
    progress: Callable[[str], None] = lambda text: None,
) -> NospaceReport:
    """Compact, defragment every voter, disarm NOSPACE where it is cured, prove it by a write, and say what was done.

    `confirm` is called with a plan that has a consequence, and raises ConfirmationNeeded to stop it. It ends at the
    first failure; run again, it does what is left. Raises as `prepare` does before anything is changed; then
    EtcdopsError where a member is not cured or raises the alarm again, EtcdError, MemberFailed and WaitTimeout as
    `defrag` does.
    """
    with cluster.locked(f"heal the quota of {cluster.name}", progress=progress):
        plan, seen, revision = _study(cluster, keep, allow_known_bad)
        healing = _Healing(cluster, seen, revision, progress)
        if plan.steps:
            if plan.consequence:
                confirm(plan)
            with resumable(healing.changed, "cluster.heal-nospace"):
                carry_out(cluster, plan, healing.acts(), progress)
        return healing.report()


class _Healing:
    """One healing under way: what it has done so far."""

    def __init__(self, cluster: Cluster, seen: Fullness, revision: int, progress: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._seen = seen
        self._revision = revision
        self._progress = progress
        self._after: dict[str, int] = {}
        self._compacted = False
        self._disarmed: set[int] = set()
        self._proof = "nothing was done, so nothing was proved"

    def acts(self) -> dict[str, Callable[[Step], None]]:
        """Give what does each step."""
        acts = defrag.acts_of(self._cluster, self._after, self._progress, ignoring=_IGNORED)
        return {**acts, "compact": self._compact, "disarm": self._disarm, "prove": self._prove}

    def changed(self) -> bool:
        """Whether anything has been changed so far."""
        return self._compacted or bool(self._after) or bool(self._disarmed)

    def _compact(self, step: Step) -> None:
        compact.compact_to(self._cluster, step.member, self._revision, self._progress)
        self._compacted = True
        # The others clean their databases at their own pace, and what is not yet free cannot be given back.
        deadline = time.monotonic() + 60.0
        before: list[int] = []
        while time.monotonic() < deadline:
            time.sleep(0.2)
            facts = glance(self._cluster)[1]
            now = [member.status.db_size_in_use for member in facts.members if member.status]
            if now == before:
                break
            before = now

    def _disarm(self, step: Step) -> None:
        record, facts = glance(self._cluster)
        spaces = spaces_of(self._cluster, record, facts)
        full = [space for space in spaces if space.full and space.role != "learner"]
        if full:
            # Any of them would raise the alarm again with the next write through it.
            said = "; ".join(f"{space.member} has {space}" for space in full)
            raise EtcdopsError(
                f"not every member is cured, so NOSPACE of {step.member} stays armed: {said}",
                remedy="Delete keys or keep fewer revisions (--keep), and run it again; or raise the quota.",
            )
        ids = {member.name: member.status.member_id for member in facts.members if member.status}
        # One that is no member any more has left its alarm behind (etcd#14379).
        member_id = ids[step.member] if step.member in ids else int(step.member, 16)
        planned = {alarm.member_id for alarm in self._seen.alarms}
        with wire.Connection(record.member(voter(facts)).client_url, record.spec.tls) as connection:
            armed = {a.member_id for a in connection.alarms(timeout_s=ANSWER_S) if a.kind == "NOSPACE"}
            # Each member raises its own when it comes to a write that it has no room for, some after the plan was made.
            for each in sorted(armed - (planned - {member_id})):
                connection.alarm_disarm(each, "NOSPACE", timeout_s=ANSWER_S)
                self._disarmed.add(each)
        self._disarmed.add(member_id)

    def _prove(self, step: Step) -> None:
        """Write through every voter, each of which looks at its own quota, and see that no alarm comes of it."""
        record, facts = glance(self._cluster)
        names = [name for name in quorum.up(facts) if name in {member.name for member in record.members}]
        key = f"etcdops/canary/{secrets.token_hex(4)}".encode()
        refused = ""
        for name in names:
            with wire.Connection(record.member(name).client_url, record.spec.tls) as connection:
                try:
                    connection.put(key, b"1", timeout_s=ANSWER_S)
                    connection.delete_range(key, timeout_s=ANSWER_S)
                except EtcdError as error:
                    if error.text != CORRUPT_TEXT:
                        raise
                    refused = f"{name} refuses writes because CORRUPT is armed: that space is left was not proved"
        settle(self._cluster, names, checks.findings(facts), ignoring=_IGNORED)
        with wire.Connection(record.member(names[0]).client_url, record.spec.tls) as connection:
            again = [alarm for alarm in connection.alarms(timeout_s=ANSWER_S) if alarm.kind == "NOSPACE"]
        if again:
            raise EtcdopsError(
                f"NOSPACE is raised again by {', '.join(hex_id(alarm.member_id) for alarm in again)} after a write",
                remedy="Run it again; if it comes back, delete keys or raise the quota, and see who writes so much.",
            )
        self._proof = refused or f"writes through {', '.join(names)} are acknowledged, and no alarm came of them"
        self._progress(self._proof)

    def report(self) -> NospaceReport:
        """Say what was done, as it is now."""
        record, facts = glance(self._cluster)
        ids = {member.name: member.status.member_id for member in facts.members if member.status}
        names = {number: name for name, number in ids.items()}
        alarmed = {alarm.member_id for alarm in self._seen.alarms if alarm.kind == "NOSPACE"}
        corrupt = [alarm.member_id for alarm in quorum.newest_alarms(facts) if alarm.kind == "CORRUPT"]
        now = {member.name: member.status.db_size for member in facts.members if member.status}
        rows = [
            MemberHealed(
                member=space.member,
                quota=space.quota,
                db_size=space.db_size,
                in_use=space.in_use,
                db_size_after=now.get(space.member, space.db_size),
                alarmed=ids.get(space.member) in alarmed,
                disarmed=ids.get(space.member) in self._disarmed,
            )
            for space in self._seen.spaces
        ]
        who = tuple(names.get(number, hex_id(number)) for number in corrupt)
        follows = hazard(facts, self._seen) if self._disarmed else ""
        return NospaceReport(record.spec.name, self._revision, tuple(rows), who, self._proof, follows)
