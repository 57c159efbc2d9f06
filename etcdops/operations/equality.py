"""Whether members hold the same keys: their hashes (HashKV) over all keys at one revision that all of them have."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal, NamedTuple

from etcdops import calls, wire
from etcdops.errors import EtcdError
from etcdops.facts import refused_by_auth
from etcdops.verify.members_agree import MemberHash, check_members_agree

if TYPE_CHECKING:
    from etcdops.answers import HashKV
    from etcdops.calls import Call
    from etcdops.cluster import Cluster
    from etcdops.wire import Connection

__all__ = ["Agreement", "hashes_agree"]

#: How often hashes must differ before that is believed: etcd's page on data corruption compares three times.
_LOOKS = 3

#: How long a member may take to say how far it is.
_ANSWER_S = 2.0

_PAUSE_S = 0.1


class Agreement(NamedTuple):
    """What the comparison found; `detail` is a sentence for a person.

    `result` is "equal", "different", or "unknown" where it could not be seen in time: a member did not answer, stayed
    behind, or authentication hides it. `revision` is the one that was hashed, 0 unless they are equal.
    """

    result: Literal["equal", "different", "unknown"]
    detail: str
    revision: int = 0

    @property
    def equal(self) -> bool:
        """Whether all hold the same keys."""
        return self.result == "equal"


def hashes_agree(cluster: Cluster, names: Sequence[str], *, timeout_s: float) -> Agreement:
    """Compare the keys of the named members, which must be voters: a learner answers no HashKV.

    A member that lags is waited for, up to `timeout_s` seconds in all; each is asked for its hash at the newest
    revision that all of them have. Traffic may run. Every member reads all of its keys for it; nothing is written.
    """
    deadline = time.monotonic() + timeout_s
    differed = 0
    record = cluster.record
    with ExitStack() as stack:
        connections = {
            name: stack.enter_context(wire.Connection(record.member(name).client_url, record.spec.tls))
            for name in names
        }
        while True:
            seen = _compare(connections, lambda: max(deadline - time.monotonic(), _ANSWER_S))
            differed += seen.result == "different"
            if seen.equal or differed == _LOOKS or time.monotonic() > deadline:
                return seen
            time.sleep(_PAUSE_S)


def _compare(connections: dict[str, Connection], left_s: Callable[[], float]) -> Agreement:
    statuses = wire.ask_all(connections, calls.status(), timeout_s=_ANSWER_S)
    silent = {name: answer for name, answer in statuses.items() if isinstance(answer, EtcdError)}
    if silent:
        return _unknown(silent)
    at = min(answer.revision for answer in statuses.values() if not isinstance(answer, EtcdError))
    hashes = _ask(connections, calls.hash_kv(at), left_s())
    if any(isinstance(answer, EtcdError) for answer in hashes.values()):
        # Before 3.5 a revision that is the compaction's own is called compacted; so is one that a compaction has
        # overtaken. The newest of each can be compared where all are at the same.
        hashes = _ask(connections, calls.hash_kv(), left_s())
    failed = {name: answer for name, answer in hashes.items() if isinstance(answer, EtcdError)}
    if failed:
        return _unknown(failed)
    told = {
        name: MemberHash(answer.hash, answer.hash_revision, answer.compact_revision)
        for name, answer in hashes.items()
        if not isinstance(answer, EtcdError)
    }
    check = check_members_agree(told)
    if check.result == "passed":
        return Agreement("equal", check.detail, min(each.revision for each in told.values()))
    return Agreement("different" if check.result == "failed" else "unknown", check.detail)


def _ask(connections: dict[str, Connection], call: Call[HashKV], timeout_s: float) -> dict[str, HashKV | EtcdError]:
    return wire.ask_all(connections, call, timeout_s=timeout_s)


def _unknown(errors: dict[str, EtcdError]) -> Agreement:
    said = "; ".join(f"{name}: {error.text}" for name, error in errors.items())
    if any(refused_by_auth(error) for error in errors.values()):
        return Agreement("unknown", f"authentication is on, and members tell their hashes to its root alone: {said}")
    return Agreement("unknown", f"members do not tell their hashes: {said}")
