"""What a cluster is doing, as observed: every member is asked, at once, and none is believed alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from etcdops import checks, quorum, wire
from etcdops.answers import Alarm, Status
from etcdops.checks import even_size
from etcdops.errors import NoLeader
from etcdops.facts import ANSWER_S, Facts, MemberFacts, collect, refused_by_auth
from etcdops.findings import Finding, by_severity
from etcdops.runtimes.base import Runtime
from etcdops.state import ClusterRecord

if TYPE_CHECKING:
    from etcdops.tls.expiry import Certificate

__all__ = [
    "ClusterStatus",
    "Finding",
    "MemberStatus",
    "NextExpiry",
    "even_size",
    "leader_of",
    "observe",
    "refused_by_auth",
    "status_of",
]


class MemberStatus(msgspec.Struct, frozen=True):
    """One member, as observed. Numbers are 0 and `id` is "" for a member that did not answer.

    `role` is "leader", "follower", "learner" or "". `health` is "healthy" (a linearizable read through it succeeds),
    "unhealthy" (it answers, but cannot serve such a read), "unreachable" (it runs, and does not answer), "isolated" (it
    runs, but is off the network of its peers or of its clients), "frozen" or "stopped".
    """

    name: str
    id: str
    role: str
    health: str
    client_url: str
    peer_url: str
    version: str = ""
    term: int = 0
    revision: int = 0
    raft_index: int = 0
    db_size: int = 0
    alarms: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


class NextExpiry(msgspec.Struct, frozen=True):
    """Which certificate ends first: a member's, the "operator"'s or the "authority"'s; when, and in how many days."""

    whose: str
    not_after: str
    days_left: float


class ClusterStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """A cluster, as observed: what `status -o json` prints.

    `verdict` is "healthy" (every voter serves), "degraded" (a quorum serves), "no-quorum" or "down" (nothing runs).
    `warnings` are the gate's findings, errors first. `certificate` is the one that ends first of those that are known
    on this machine, and None without TLS; then the JSON has no such field.
    """

    schema: int
    cluster: str
    runtime: str
    etcd_version: str
    verdict: str
    leader: str | None
    term: int
    quorum: int
    members: tuple[MemberStatus, ...]
    warnings: tuple[Finding, ...]
    certificate: NextExpiry | None = None

    @property
    def exit_code(self) -> int:
        """0 healthy, 4 degraded but serving, 5 without quorum or down."""
        return {"healthy": 0, "degraded": 4}.get(self.verdict, 5)

    @property
    def blockers(self) -> tuple[Finding, ...]:
        """The findings for which the gate refuses to let anything be changed."""
        return tuple(finding for finding in self.warnings if finding.severity == "error")

    def with_findings(self, more: Iterable[Finding]) -> ClusterStatus:
        """Give this status with more findings among its own, the gravest first."""
        return msgspec.structs.replace(self, warnings=by_severity([*self.warnings, *more]))

    def with_certificate(self, soonest: Certificate | None) -> ClusterStatus:
        """Give this status with the certificate that ends first."""
        if soonest is None:
            return self
        ends = NextExpiry(soonest.whose, soonest.not_after, soonest.days_left)
        return msgspec.structs.replace(self, certificate=ends)

    def member(self, name: str) -> MemberStatus:
        """Give the member called `name`; KeyError if there is none."""
        for member in self.members:
            if member.name == name:
                return member
        raise KeyError(name)


def observe(
    record: ClusterRecord, runtime: Runtime, *, timeout_s: float = ANSWER_S, gap_s: float = 0.0
) -> ClusterStatus:
    """Ask every member at once and give what they say. Never writes; takes `timeout_s` seconds at the longest.

    With `gap_s`, members are asked once more so many seconds later, to find those that do not catch up.
    """
    return status_of(record, collect(record, runtime, timeout_s=timeout_s, gap_s=gap_s))


def status_of(record: ClusterRecord, facts: Facts) -> ClusterStatus:
    """Give the status that follows from facts."""
    leader, term = quorum.leader_of_facts(facts)
    alarms = quorum.newest_alarms(facts)
    members = tuple(_member(member, alarms) for member in facts.members)
    now = quorum.quorum_after(quorum.voters(facts), quorum.up(facts))
    return ClusterStatus(
        schema=1,
        cluster=record.spec.name,
        runtime=record.runtime,
        etcd_version=record.etcd_version,
        verdict=_verdict(members, now),
        leader=leader,
        term=term,
        quorum=now.needed,
        members=members,
        warnings=checks.findings(facts),
    )


def leader_of(statuses: dict[str, Status], names: dict[int, str]) -> tuple[str, int]:
    """Give the leader and its term by the answer with the highest term among all; raise NoLeader if it knows none.

    `names` maps member ids to names. The highest term decides because a leader that was cut off goes on believing in
    itself, at the older term (jepsen.etcd finds its leader in the same way).
    """
    leader, term = quorum.highest_term(statuses, names)
    if leader is None:
        asked = ", ".join(statuses) or "no member"
        raise NoLeader(
            f"no member leads: {asked} answered, and the highest term seen is {term}",
            remedy="Look at `status`: without a quorum of voters there is no leader. `up-env` starts stopped members.",
        )
    return leader, term


def _member(member: MemberFacts, alarms: tuple[Alarm, ...]) -> MemberStatus:
    health = {"paused": "frozen", "stopped": "stopped", "isolated": "isolated"}.get(member.state, "unreachable")
    status = member.status
    learner = status is not None and status.is_learner
    if (member.serves_locally if learner else member.serves) and member.state == "running":
        # Newer releases tell nobody their status whom they do not know, and serve all the same.
        health = "healthy"
    if status is None:
        return MemberStatus(member.name, "", "", health, member.client_url, member.peer_url, errors=member.errors)
    role = "learner" if learner else "leader" if status.leader == status.member_id else "follower"
    return MemberStatus(
        name=member.name,
        id=wire.hex_id(status.member_id),
        role=role if status.leader or learner else "",
        health="unhealthy" if health == "unreachable" else health,
        client_url=member.client_url,
        peer_url=member.peer_url,
        version=status.version,
        term=status.raft_term,
        revision=status.revision,
        raft_index=status.raft_index,
        db_size=status.db_size,
        alarms=tuple(alarm.kind for alarm in alarms if alarm.member_id in (0, status.member_id)),
        # What a learner refuses, it refuses as it should.
        errors=() if learner and health == "healthy" else member.errors,
    )


def _verdict(members: tuple[MemberStatus, ...], now: quorum.Quorum) -> str:
    if all(member.health == "stopped" for member in members):
        return "down"
    if not now.holds:
        return "no-quorum"
    return "degraded" if now.down or any(member.health != "healthy" for member in members) else "healthy"
