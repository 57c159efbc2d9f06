"""Facts about a cluster: every member is asked, all at once, and what it said is kept as it was said.

What follows from the facts is in `etcdops.checks`, whose functions are pure. Collecting never writes: what is asked
is answered from memory or by a linearizable read, and neither is an entry in Raft's log.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from etcdops import calls, wire
from etcdops.answers import Alarm, MemberInfo, Status, hex_id
from etcdops.calls import Call
from etcdops.errors import EtcdError
from etcdops.foreign import is_foreign
from etcdops.runtimes.base import MemberState, Runtime
from etcdops.state import ClusterRecord, MemberRecord
from etcdops.wire import Pending

__all__ = ["ANSWER_S", "GAP_S", "Facts", "MemberFacts", "collect", "refused_by_auth"]

#: How long a member may take to answer. `status` is back within two seconds, frozen members or not.
ANSWER_S = 1.0

#: The time between two looks that shows whether members converge: ten of etcd's heartbeats.
GAP_S = 1.0

#: An alarm among the errors in a member's status, as protobuf writes it: spaces vary, and a member of 0 is left out.
_ALARM = re.compile(r"(?:memberID:\s*(\d+)\s+)?alarm:\s*([A-Z]+)\s*")

#: The first question to each member. The third is for learners, which answer no other read; the fourth is linearizable,
#: so that what two members list can be compared. Before 3.6, etcdctl hangs on it without a quorum; here it has a
#: deadline as all have.
_QUESTIONS: tuple[Call[Any], ...] = (
    calls.status(),
    calls.range(b"health"),
    calls.range(b"health", serializable=True),
    calls.member_list(),
)


class MemberFacts(NamedTuple):
    """What is known of one recorded member.

    `state` is what the runtime sees and `wanted` what is recorded. `statuses` has one entry for each look, None where
    it did not answer. `serves` says that a linearizable read through it succeeded, or was refused only because of who
    asked; `serves_locally` the same of a serializable one. `listed` is the member list as it gave it, or None.
    `data_gone` says of a member that does not run that its data is not where it should be.
    """

    name: str
    client_url: str
    peer_url: str
    state: MemberState
    wanted: str = "running"
    statuses: tuple[Status | None, ...] = ()
    serves: bool = False
    serves_locally: bool = False
    listed: tuple[MemberInfo, ...] | None = None
    alarms: tuple[Alarm, ...] = ()
    errors: tuple[str, ...] = ()
    data_gone: bool = False

    @property
    def status(self) -> Status | None:
        """Its latest answer about itself; None if it did not answer the latest look."""
        return self.statuses[-1] if self.statuses else None


class Facts(NamedTuple):
    """What is known of a cluster at one time; of two looks, if there were two.

    `auth` says whether authentication is on: None where it cannot be told, since a certificate may stand for a user.
    `snapshot_age_s` is the age of the newest verified snapshot in seconds, None if there is none. `quota_bytes` is the
    space quota with which the cluster was created, 0 for etcd's default. `foreign` says that somebody else runs it.
    """

    cluster: str
    etcd_version: str
    members: tuple[MemberFacts, ...]
    auth: bool | None = None
    snapshot_age_s: float | None = None
    quota_bytes: int = 0
    foreign: bool = False


def refused_by_auth(error: EtcdError) -> bool:
    """Whether etcd refused a linearizable call only because of who asked: it had reached a quorum before it said so."""
    return error.code == "PERMISSION_DENIED" or error.text == "etcdserver: user name is empty"


def collect(record: ClusterRecord, runtime: Runtime, *, timeout_s: float = ANSWER_S, gap_s: float = 0.0) -> Facts:
    """Ask every member that runs, all at once, and give what they say. Never writes.

    With `gap_s`, each is asked for its status a second time so many seconds after the first look, which shows whether
    members that differ converge. One look takes `timeout_s` seconds at the longest, however many members are silent.
    """
    states = runtime.states(record)
    # Where a host lets nobody look, what a member answers tells that it runs.
    asked = ("running", "isolated") if is_foreign(record) else ("running", "isolated", "unknown")
    running = [member for member in record.members if states[member.name] in asked]
    stopped = [name for name, state in states.items() if state == "stopped"]
    gone = runtime.lost_data(record, stopped) if stopped and record.bootstrapped else ()
    with ExitStack() as stack:
        connections = {
            member.name: stack.enter_context(wire.Connection(member.client_url, record.spec.tls)) for member in running
        }
        answers = _ask(connections, timeout_s)
        again: dict[str, Status | EtcdError] = {}
        if gap_s:
            time.sleep(gap_s)
            again = wire.ask_all(connections, calls.status(), timeout_s=timeout_s)
    for name in [name for name in answers if states[name] == "unknown"]:
        if any(not isinstance(answer, EtcdError) for answer in answers[name]):
            # Its host does not answer us, and it does.
            states[name] = "running"
        else:
            del answers[name]
    if is_foreign(record):
        strangers = {name for name in answers if _is_another(record.member(name), answers[name][0])}
        for name in strangers:
            answers[name] = [_stranger(record.member(name), answers[name][0])] * len(_QUESTIONS)
            states[name] = "unknown"
            again.pop(name, None)
    looks = 2 if gap_s else 1
    reads = [answers[name][1] for name in answers]
    auth = True if any(isinstance(read, EtcdError) and refused_by_auth(read) for read in reads) else None
    if auth is None and not record.spec.tls and any(not isinstance(read, EtcdError) for read in reads):
        auth = False
    members = []
    for member in record.members:
        known = MemberFacts(
            member.name, member.client_url, member.peer_url, states[member.name], member.wanted, (None,) * looks
        )._replace(data_gone=member.name in gone)
        if member.name in answers:
            known = _heard(known, answers[member.name], again.get(member.name), looks)
        members.append(known)
    return Facts(
        record.spec.name,
        record.etcd_version,
        tuple(members),
        auth,
        quota_bytes=record.spec.quota_bytes,
        foreign=is_foreign(record),
    )


def _ask(connections: dict[str, wire.Connection], timeout_s: float) -> dict[str, list[Any]]:
    """Put every question to every member, all of them at the same time; give answers and errors in that order.

    Alarms are among the errors in the first one's answer. To list them by the call that is meant for that would be a
    proposal to Raft, an entry in every member's log for each look.
    """
    pending: dict[str, list[Pending[Any] | EtcdError]] = {
        name: [_attempt(partial(connection.start, question, timeout_s=timeout_s)) for question in _QUESTIONS]
        for name, connection in connections.items()
    }
    return {
        name: [one if isinstance(one, EtcdError) else _attempt(one.result) for one in started]
        for name, started in pending.items()
    }


def _is_another(member: MemberRecord, status: Status | EtcdError) -> bool:
    """Whether somebody else's member is not the one that was recorded at this address."""
    return isinstance(status, Status) and hex_id(status.member_id) != member.ref


def _stranger(member: MemberRecord, status: Status) -> EtcdError:
    text = f"member {hex_id(status.member_id)} answers there, and {member.ref} is recorded"
    return EtcdError("FAILED_PRECONDITION", text, endpoint=member.client_url, definite=True)


def _attempt(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except EtcdError as error:
        return error


def _heard(member: MemberFacts, answers: list[Any], again: Status | EtcdError | None, looks: int) -> MemberFacts:
    status, read, local, listed = answers
    errors = [f"{e.code}: {e.text}" for e in (status, read) if isinstance(e, EtcdError)]
    statuses = [None if isinstance(each, EtcdError) else each for each in (status, again)][:looks]
    latest = statuses[-1]
    said = [(_ALARM.fullmatch(text), text) for text in (latest.errors if latest else ())]
    return member._replace(
        statuses=tuple(statuses),
        serves=not isinstance(read, EtcdError) or refused_by_auth(read),
        serves_locally=not isinstance(local, EtcdError) or refused_by_auth(local),
        listed=None if isinstance(listed, EtcdError) else listed,
        alarms=tuple(Alarm(int(alarm[1] or 0), alarm[2]) for alarm, _ in said if alarm),
        errors=tuple(dict.fromkeys([*(text for alarm, text in said if not alarm), *errors])),
    )
