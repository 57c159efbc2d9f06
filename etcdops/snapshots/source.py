"""Which member a snapshot is taken from: the one that has applied most, of those that serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from etcdops.errors import EtcdError, Refused
from etcdops.foreign import WHERE_THEY_RUN, is_foreign

if TYPE_CHECKING:
    from collections.abc import Callable

    from etcdops.answers import Status
    from etcdops.cluster import Cluster
    from etcdops.state import MemberRecord
    from etcdops.status import ClusterStatus

__all__ = ["Source", "auth_refusal", "choose_source"]

#: How long a member may take to say how far it is.
_ANSWER_S = 2.0


class Source(NamedTuple):
    """The member that a snapshot is taken from, what it says of itself, and whether it serves."""

    member: MemberRecord
    status: Status
    quorum: bool


def choose_source(cluster: Cluster, member: str, progress: Callable[[str], None]) -> Source:
    """Give the member called `member`, or the best one: a voter that serves, or without a quorum one that answers.

    Of several, the one that has applied most: what is applied is committed, and so no other can have something that it
    lacks. (A higher term says less: before etcd 3.5 a member that is cut off raises its own without end.) Raises
    Refused when there is none, or the named one is a learner or does not answer.
    """
    from etcdops import calls, wire

    record = cluster.record
    named = record.member(member).name if member else ""
    seen = cluster.status(timeout_s=_ANSWER_S)
    if any(finding.code == "auth" for finding in seen.warnings):
        raise auth_refusal(cluster)
    voters = [each for each in seen.members if each.id and each.role != "learner"]
    serving = [each.name for each in voters if each.health == "healthy"]
    able = [named] if named else serving or [each.name for each in voters]
    if not able or named not in ("", *(each.name for each in voters)):
        raise _nobody(cluster, seen, named)
    connections = {name: wire.Connection(record.member(name).client_url, record.spec.tls) for name in able}
    try:
        asked = wire.ask_all(connections, calls.status(), timeout_s=_ANSWER_S)
    finally:
        for connection in connections.values():
            connection.close()
    answers = {name: answer for name, answer in asked.items() if not isinstance(answer, EtcdError)}
    if not answers:
        raise next(answer for answer in asked.values() if isinstance(answer, EtcdError))
    best = max(answers, key=lambda name: (answers[name].raft_applied_index, answers[name].raft_term))
    if not serving:
        progress(f"there is no quorum: {best} has what it has applied, and later writes may be missing")
    elif best not in serving:
        progress(f"{best} does not serve: writes that it has not heard of will be missing")
    return Source(record.member(best), answers[best], best in serving)


def _nobody(cluster: Cluster, seen: ClusterStatus, named: str) -> Refused:
    told = [
        f"{each.name} is {'a learner' if each.role == 'learner' else each.health}"
        for each in seen.members
        if named in ("", each.name)
    ]
    start = f"Start them {WHERE_THEY_RUN}." if is_foreign(cluster.record) else "`up-env` starts what is stopped."
    return Refused(
        f"no snapshot of {cluster.name} can be taken{f' from {named}' if named else ''}: {', '.join(told)}",
        remedy="Leave out --member for the best one that answers." if named else start,
    )


def auth_refusal(cluster: Cluster) -> Refused:
    """Give the refusal where etcd has authentication on: a snapshot is for its user root alone."""
    return Refused(
        f"authentication is on in {cluster.name}, and etcdops has no user: etcd gives snapshots to root alone",
        remedy=f"`ctl -- --endpoints {cluster.endpoints[0]} --user root snapshot save FILE` asks for the password.",
    )
