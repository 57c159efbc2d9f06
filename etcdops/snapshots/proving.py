"""The proof that a cluster has been restored: looked at on every member, after it was started from its new data."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from etcdops import calls, checks, quorum, wire
from etcdops.answers import hex_id
from etcdops.errors import ClusterError, EtcdError
from etcdops.facts import GAP_S, Facts, collect
from etcdops.operations.equality import hashes_agree
from etcdops.verify import Check

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.wire import Connection

__all__ = ["Expected", "ProofFailed", "auth_is_on", "prove"]

#: How long members may take to agree on who leads and on what they have.
_PATIENCE_S = 15.0
_ANSWER_S = 5.0

#: How fast members hash their keys, in bytes per second, at the least.
_SLOWEST = 5_000_000

#: Findings of two looks that stay.
_HOPELESS = frozenset({"diverged", "cluster-id", "member-removed"})

#: What etcd answers to a login while authentication is off, and to one that is none while it is on, in part.
_AUTH_IS_OFF, _NO_LOGIN = "authentication is not enabled", "authentication failed"

_HIDDEN = "authentication is on, and etcdops has no user"


class ProofFailed(ClusterError):
    """A restored cluster is not as it should be."""


class Expected(NamedTuple):
    """How a restored cluster should be.

    `revision` is the least that every member is at. `compacted` is a revision that is marked as compacted, 0 if none
    is. `not_cluster_id` is etcd's id of the cluster before, 0 where that is not known. `size` (bytes) is the file's.
    `alarms` are those that the snapshot has.
    """

    revision: int
    compacted: int
    auth: bool
    not_cluster_id: int
    size: int
    alarms: tuple[str, ...] = ()


def prove(cluster: Cluster, expected: Expected, run: str, *, progress: Callable[[str], None]) -> tuple[Check, ...]:
    """Look whether a cluster is as it should be, and give what was looked at; raises ProofFailed for what is not.

    Writes one key, under `etcdops/`, and deletes it. What authentication hides is "inconclusive".
    """
    record = cluster.record
    facts = _settled(cluster, expected)
    if facts.auth is None:
        facts = facts._replace(auth=auth_is_on(cluster))
    found = [_gate(facts, expected), _new_id(facts, expected), _auth(facts, expected)]
    with ExitStack() as stack:
        connections = {
            member.name: stack.enter_context(wire.Connection(member.client_url, record.spec.tls))
            for member in record.members
        }
        if expected.auth and facts.auth:
            found += [Check(name, "inconclusive", _HIDDEN) for name in ("hashes", "compacted", "canary", "alarms")]
        else:
            found.append(_hashes(cluster, expected))
            found.append(_compacted(connections, expected.compacted))
            if "NOSPACE" in expected.alarms:
                found.append(
                    Check("canary", "inconclusive", "the snapshot has the alarm NOSPACE: nothing can be written")
                )
            else:
                found.append(_canary(connections, f"etcdops/restore/{run}".encode()))
            found.append(_alarms(connections, expected))
        found.append(_members(cluster, facts))
        found.append(_revision(facts, expected))
    for check in found:
        progress(f"{ {'passed': 'ok', 'failed': 'FAILED'}.get(check.result, '-'):<7}{check.name}: {check.detail}")
    wrong = [f"{check.name}: {check.detail}" for check in found if check.result == "failed"]
    if wrong:
        raise ProofFailed(f"the restored cluster is not as it should be: {'; '.join(wrong)}")
    return tuple(found)


def _settled(cluster: Cluster, expected: Expected) -> Facts:
    """Look at the cluster twice, again and again until the gate finds nothing, or it takes too long."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        facts = collect(cluster.record, cluster.runtime)
        if not _errors(facts, expected):
            facts = collect(cluster.record, cluster.runtime, gap_s=GAP_S)
        if not _errors(facts, expected) or _is_settled(facts) or time.monotonic() > deadline:
            return facts
        time.sleep(0.1)


def _is_settled(facts: Facts) -> bool:
    """Whether something is found that no patience puts right."""
    return not _HOPELESS.isdisjoint(finding.code for finding in checks.findings(facts))


def _errors(facts: Facts, expected: Expected) -> list[str]:
    known = {f"alarm-{kind.lower()}" for kind in expected.alarms}
    errors = [finding for finding in checks.findings(facts) if finding.severity == "error"]
    found = [finding.message for finding in errors if finding.code not in known]
    if quorum.leader_of_facts(facts)[0] is None and not facts.auth:
        found.append("no member leads")
    return found


def _gate(facts: Facts, expected: Expected) -> Check:
    errors = _errors(facts, expected)
    leader, term = quorum.leader_of_facts(facts)
    led = f", {leader} leads in term {term}" if leader else ""
    return Check("gate", "failed" if errors else "passed", "; ".join(errors) or f"every member serves{led}")


def _new_id(facts: Facts, expected: Expected) -> Check:
    ids = {member.status.cluster_id for member in facts.members if member.status}
    said = ", ".join(map(hex_id, sorted(ids)))
    if not ids:
        return Check("cluster id", "inconclusive", _HIDDEN)
    if expected.not_cluster_id in ids:
        return Check("cluster id", "failed", f"it is still {said}, so members run from their old data")
    return Check("cluster id", "passed" if len(ids) == 1 else "failed", f"it is a new one, {said}")


def _auth(facts: Facts, expected: Expected) -> Check:
    said = f"authentication is {'on' if expected.auth else 'off'}, as in the snapshot"
    if facts.auth is None:
        return Check("auth", "inconclusive", "whether it is on cannot be seen: a certificate may stand for a user")
    if facts.auth != expected.auth:
        return Check("auth", "failed", f"it is {'on' if facts.auth else 'off'}, and in the snapshot it is not so")
    return Check("auth", "passed", said)


def auth_is_on(cluster: Cluster) -> bool | None:
    """Whether authentication is on, asked for by a login that is none; None where nobody says. Nothing is written.

    A read does not tell where there are certificates, as one may stand for a user who may read. A member logs it if a
    login fails, so `status` does not ask in this way.
    """
    for member in cluster.record.members:
        with wire.Connection(member.client_url, cluster.record.spec.tls) as connection:
            try:
                connection.call(calls.authenticate("etcdops", ""), timeout_s=_ANSWER_S)
            except EtcdError as error:
                if _AUTH_IS_OFF in error.text:
                    return False
                if _NO_LOGIN in error.text:
                    return True
    return None


def _hashes(cluster: Cluster, expected: Expected) -> Check:
    names = cluster.record.spec.names
    seen = hashes_agree(cluster, names, timeout_s=_PATIENCE_S + expected.size * len(names) / _SLOWEST)
    return Check("hashes", "passed" if seen.equal else "failed", seen.detail)


def _compacted(connections: dict[str, Connection], revision: int) -> Check:
    if not revision:
        return Check("compacted", "inconclusive", "this etcd's restore does not mark revisions as compacted")
    wrong = []
    for name, connection in connections.items():
        try:
            connection.range(b"etcdops", revision=revision, timeout_s=_ANSWER_S)
            wrong.append(f"{name} still gives revision {revision}")
        except EtcdError as error:
            if "compacted" not in error.text:
                wrong.append(f"{name} answers for revision {revision}: {error.text}")
    told = f"revision {revision} is compacted, so that watchers and caches read anew"
    return Check("compacted", "failed" if wrong else "passed", "; ".join(wrong) or told)


def _canary(connections: dict[str, Connection], key: bytes) -> Check:
    names = list(connections)
    wrong = ""
    try:
        connections[names[0]].put(key, b"restored", timeout_s=_ANSWER_S)
        try:
            for name, connection in connections.items():
                if [kv.value for kv in connection.range(key, timeout_s=_ANSWER_S).kvs] != [b"restored"]:
                    wrong = f"{name} does not have what was written to {names[0]}"
        finally:
            connections[names[-1]].delete_range(key, timeout_s=_ANSWER_S)
    except EtcdError as error:
        wrong = f"{error.endpoint}: {error.text}"
    told = f"a key written to {names[0]} was read from every member, and deleted"
    return Check("canary", "failed" if wrong else "passed", wrong or told)


def _alarms(connections: dict[str, Connection], expected: Expected) -> Check:
    [(name, connection), *_] = connections.items()
    try:
        alarms = connection.call(calls.alarms(), timeout_s=_ANSWER_S)
    except EtcdError as error:
        return Check("alarms", "failed", f"{name} does not list them: {error.text}")
    said = ", ".join(f"{alarm.kind} of {hex_id(alarm.member_id)}" for alarm in alarms)
    if {alarm.kind for alarm in alarms} == set(expected.alarms) and alarms:
        return Check("alarms", "inconclusive", f"{said}, as in the snapshot")
    return Check("alarms", "failed" if alarms else "passed", said or "there is none")


def _members(cluster: Cluster, facts: Facts) -> Check:
    wanted = {(member.name, member.peer_url) for member in cluster.record.members}
    listed = quorum.member_list(facts)
    if listed is None:
        return Check("members", "inconclusive", _HIDDEN if facts.auth else "no member gave its list")
    there = {(info.name, url) for info in listed for url in info.peer_urls}
    learners = [info.name for info in listed if info.is_learner]
    if there == wanted and not learners:
        return Check("members", "passed", f"exactly {', '.join(cluster.record.spec.names)}, all of them voters")
    said = ", ".join(f"{name or '(unstarted)'} at {url}" for name, url in sorted(there))
    return Check("members", "failed", f"they are {said}{'; learners: ' + ', '.join(learners) if learners else ''}")


def _revision(facts: Facts, expected: Expected) -> Check:
    told = {member.name: member.status.revision for member in facts.members if member.status}
    if len(told) < len(facts.members):
        return Check("revision", "inconclusive" if facts.auth else "failed", _HIDDEN if facts.auth else str(told))
    low = {name: revision for name, revision in told.items() if revision < expected.revision}
    said = ", ".join(f"{name} {revision}" for name, revision in (low or told).items())
    if low:
        return Check("revision", "failed", f"it should be {expected.revision} or more: {said}")
    return Check("revision", "passed", f"{expected.revision} or more on all: {said}")
