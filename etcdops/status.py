"""What a cluster is doing, as observed: every member is asked, at once, and none is believed alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import msgspec

from etcdops import calls, versions, wire
from etcdops.answers import Alarm, Status
from etcdops.calls import Call
from etcdops.errors import EtcdError, NoLeader
from etcdops.runtimes.base import Runtime
from etcdops.state import ClusterRecord, MemberRecord
from etcdops.wire import Pending

__all__ = ["ClusterStatus", "Finding", "MemberStatus", "leader_of", "observe", "refused_by_auth"]

#: How long a member may take to answer. `status` is back within two seconds, frozen members or not.
_ANSWER_S = 1.0

#: An alarm among the errors in a member's status, as protobuf writes it: spaces vary, and a member of 0 is left out.
_ALARM = re.compile(r"(?:memberID:\s*(\d+)\s+)?alarm:\s*([A-Z]+)\s*")

#: What each alarm means (https://etcd.io/docs/v3.5/op-guide/maintenance/#space-quota, …/data_corruption/).
_ALARMS = {
    "NOSPACE": "no write is accepted: the space quota is used up. Compact, `ctl -- defrag --cluster`, then"
    " `ctl -- alarm disarm`",
    "CORRUPT": "its data differs from that of the others, and nothing is served: replace it",
}


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


class Finding(msgspec.Struct, frozen=True):
    """Something that a person should know, with a code that a program can match."""

    code: str
    message: str


class ClusterStatus(msgspec.Struct, frozen=True):
    """A cluster, as observed: what `status -o json` prints.

    `verdict` is "healthy" (every voter serves), "degraded" (a quorum serves), "no-quorum" or "down" (nothing runs).
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

    @property
    def exit_code(self) -> int:
        """0 healthy, 4 degraded but serving, 5 without quorum or down."""
        return {"healthy": 0, "degraded": 4}.get(self.verdict, 5)

    def member(self, name: str) -> MemberStatus:
        """Give the member called `name`; KeyError if there is none."""
        for member in self.members:
            if member.name == name:
                return member
        raise KeyError(name)


class _Answer(NamedTuple):
    status: Status | None
    readable: bool
    alarms: tuple[Alarm, ...]
    errors: tuple[str, ...]


def observe(record: ClusterRecord, runtime: Runtime, *, timeout_s: float = _ANSWER_S) -> ClusterStatus:
    """Ask every member at once and give what they say. Never writes; takes `timeout_s` seconds at the longest."""
    states = runtime.states(record)
    running = [member for member in record.members if states[member.name] in ("running", "isolated")]
    answers = _ask(running, record, timeout_s)
    ids = {answer.status.member_id: name for name, answer in answers.items() if answer.status}
    leader, term = _highest_term({n: a.status for n, a in answers.items() if a.status}, ids)
    alarms = _newest_alarms(answers)
    members = tuple(_member(m, states[m.name], answers.get(m.name), alarms) for m in record.members)
    return ClusterStatus(
        schema=1,
        cluster=record.spec.name,
        runtime=record.runtime,
        etcd_version=record.etcd_version,
        verdict=_verdict(members),
        leader=leader,
        term=term,
        quorum=record.spec.quorum,
        members=members,
        warnings=_warnings(record, members, answers),
    )


def leader_of(statuses: dict[str, Status], names: dict[int, str]) -> tuple[str, int]:
    """Give the leader and its term by the answer with the highest term among all; raise NoLeader if it knows none.

    `names` maps member ids to names. The highest term decides because a leader that was cut off goes on believing in
    itself, at the older term (jepsen.etcd finds its leader in the same way).
    """
    leader, term = _highest_term(statuses, names)
    if leader is None:
        asked = ", ".join(statuses) or "no member"
        raise NoLeader(
            f"no member leads: {asked} answered, and the highest term seen is {term}",
            remedy="Look at `status`: without a quorum of voters there is no leader. `up-env` starts stopped members.",
        )
    return leader, term


def _highest_term(statuses: dict[str, Status], names: dict[int, str]) -> tuple[str | None, int]:
    term = max((status.raft_term for status in statuses.values()), default=0)
    for status in statuses.values():
        if status.raft_term == term and status.leader in names:
            return names[status.leader], term
    return None, term


def _ask(members: list[MemberRecord], record: ClusterRecord, timeout_s: float) -> dict[str, _Answer]:
    """Two questions to each member, all of them at the same time.

    Alarms are among the errors in the first one's answer. To list them by the call that is meant for that would be a
    proposal to Raft, an entry in every member's log for each look.
    """
    questions: tuple[Call[Any], ...] = (calls.status(), calls.range(b"health"))
    with ExitStack() as stack:
        asked: dict[str, list[Pending[Any] | EtcdError]] = {}
        for member in members:
            connection = stack.enter_context(wire.Connection(member.client_url, record.spec.tls))
            asked[member.name] = [_attempt(partial(connection.start, q, timeout_s=timeout_s)) for q in questions]
        return {
            name: _answer(*(p if isinstance(p, EtcdError) else _attempt(p.result) for p in pending))
            for name, pending in asked.items()
        }


def _attempt(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except EtcdError as error:
        return error


def _answer(status: Status | EtcdError, read: object) -> _Answer:
    errors = [f"{e.code}: {e.text}" for e in (status, read) if isinstance(e, EtcdError)]
    known = None if isinstance(status, EtcdError) else status
    said = [(_ALARM.fullmatch(text), text) for text in (known.errors if known else ())]
    return _Answer(
        known,
        not isinstance(read, EtcdError) or refused_by_auth(read),
        tuple(Alarm(int(alarm[1] or 0), alarm[2]) for alarm, _ in said if alarm),
        tuple(dict.fromkeys([*(text for alarm, text in said if not alarm), *errors])),
    )


def refused_by_auth(error: EtcdError) -> bool:
    """Whether etcd refused a linearizable call only because of who asked: it had reached a quorum before it said so."""
    return error.code == "PERMISSION_DENIED" or error.text == "etcdserver: user name is empty"


def _newest_alarms(answers: dict[str, _Answer]) -> tuple[Alarm, ...]:
    """Give the alarms of all members, as told by the one that has applied most: they are replicated as keys are."""
    known = [(answer.status.raft_applied_index, answer.alarms) for answer in answers.values() if answer.status]
    return max(known, default=(0, ()), key=lambda each: each[0])[1]


def _member(member: MemberRecord, state: str, answer: _Answer | None, alarms: tuple[Alarm, ...]) -> MemberStatus:
    health = {"paused": "frozen", "stopped": "stopped", "isolated": "isolated"}.get(state, "unreachable")
    status = answer.status if answer else None
    if answer and answer.readable and state == "running":
        # Newer releases tell nobody their status whom they do not know, and serve all the same.
        health = "healthy"
    if answer is None or status is None:
        return MemberStatus(
            member.name, "", "", health, member.client_url, member.peer_url, errors=answer.errors if answer else ()
        )
    role = "learner" if status.is_learner else "leader" if status.leader == status.member_id else "follower"
    return MemberStatus(
        name=member.name,
        id=wire.hex_id(status.member_id),
        role=role if status.leader or status.is_learner else "",
        health="unhealthy" if health == "unreachable" else health,
        client_url=member.client_url,
        peer_url=member.peer_url,
        version=status.version,
        term=status.raft_term,
        revision=status.revision,
        raft_index=status.raft_index,
        db_size=status.db_size,
        alarms=tuple(alarm.kind for alarm in alarms if alarm.member_id in (0, status.member_id)),
        errors=answer.errors,
    )


def _verdict(members: tuple[MemberStatus, ...]) -> str:
    if all(member.health == "stopped" for member in members):
        return "down"
    healthy = sum(member.health == "healthy" for member in members)
    if healthy == len(members):
        return "healthy"
    return "degraded" if healthy >= len(members) // 2 + 1 else "no-quorum"


def _warnings(
    record: ClusterRecord, members: tuple[MemberStatus, ...], answers: dict[str, _Answer]
) -> tuple[Finding, ...]:
    found = []
    if len(members) % 2 == 0:
        found.append(Finding("even-size", even_size(len(members))))
    if record.etcd_version:
        found += [
            Finding(f"known-bad:{bad.code}", f"etcd {record.etcd_version}: {bad.effect} ({bad.source})")
            for bad in versions.findings(versions.parse_version(record.etcd_version))
            if bad.severity == "unsafe"
        ]
    found += [
        Finding(f"alarm-{kind.lower()}", f"{member.name} has raised {kind}: {_ALARMS.get(kind, 'see etcd')}")
        for member in members
        for kind in member.alarms
    ]
    if any("etcdserver: user name is empty" in error for answer in answers.values() for error in answer.errors):
        found.append(
            Finding("auth", "authentication is on, and etcdops has no user: what members tell only to users is missing")
        )
    leaders: dict[int, set[int]] = {}
    for answer in answers.values():
        if answer.status and answer.status.leader:
            leaders.setdefault(answer.status.raft_term, set()).add(answer.status.leader)
    for term, claimed in leaders.items():
        if len(claimed) > 1:
            ids = ", ".join(map(wire.hex_id, sorted(claimed)))
            found.append(Finding("two-leaders", f"members name different leaders in term {term}: {ids}"))
    return tuple(found)


def even_size(size: int) -> str:
    """Say why an even number of voters is a poor choice."""
    return (
        f"{size} voters tolerate the loss of {(size - 1) // 2}, as {size - 1} would, and one more must agree to each"
        f" write: {size - 1} or {size + 1} are better"
    )
