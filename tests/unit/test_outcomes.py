"""Which errors prove that a write was not applied: one row each, sent by a real gRPC server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from etcdops import outcomes, wire
from etcdops.errors import EtcdError

_FAILED = [
    ("INVALID_ARGUMENT", "key is not provided"),
    ("INVALID_ARGUMENT", "key not found"),
    ("INVALID_ARGUMENT", "value is provided"),
    ("INVALID_ARGUMENT", "lease is provided"),
    ("INVALID_ARGUMENT", "too many operations in txn request"),
    ("INVALID_ARGUMENT", "duplicate key given in txn request"),
    ("INVALID_ARGUMENT", "request is too large"),
    ("OUT_OF_RANGE", "mvcc: required revision has been compacted"),
    ("OUT_OF_RANGE", "mvcc: required revision is a future revision"),
    ("RESOURCE_EXHAUSTED", "too many requests"),
    ("NOT_FOUND", "requested lease not found"),
    ("FAILED_PRECONDITION", "lease already exists"),
    ("OUT_OF_RANGE", "too large lease TTL"),
    ("FAILED_PRECONDITION", "member ID already exist"),
    ("FAILED_PRECONDITION", "Peer URLs already exists"),
    ("FAILED_PRECONDITION", "re-configuration failed due to not enough started members"),
    ("INVALID_ARGUMENT", "given member URLs are invalid"),
    ("NOT_FOUND", "member not found"),
    ("FAILED_PRECONDITION", "can only promote a learner member"),
    ("FAILED_PRECONDITION", "can only promote a learner member which is in sync with leader"),
    ("FAILED_PRECONDITION", "too many learner members in cluster"),
    ("UNAVAILABLE", "unhealthy cluster"),
    ("UNAVAILABLE", "rpc not supported for learner"),
    ("FAILED_PRECONDITION", "rpc not supported for learner"),
    ("FAILED_PRECONDITION", "not leader"),
    ("FAILED_PRECONDITION", "bad leader transferee"),
    ("FAILED_PRECONDITION", "root user does not exist"),
    ("FAILED_PRECONDITION", "root user does not have root role"),
    ("FAILED_PRECONDITION", "user name already exists"),
    ("INVALID_ARGUMENT", "user name is empty"),
    ("FAILED_PRECONDITION", "user name not found"),
    ("FAILED_PRECONDITION", "role name already exists"),
    ("FAILED_PRECONDITION", "role name not found"),
    ("INVALID_ARGUMENT", "role name is empty"),
    ("INVALID_ARGUMENT", "authentication failed, invalid user ID or password"),
    ("PERMISSION_DENIED", "permission denied"),
    ("FAILED_PRECONDITION", "role is not granted to the user"),
    ("FAILED_PRECONDITION", "permission is not granted to the role"),
    ("FAILED_PRECONDITION", "authentication is not enabled"),
    ("UNAUTHENTICATED", "invalid auth token"),
    ("INVALID_ARGUMENT", "invalid auth management"),
    ("INVALID_ARGUMENT", "wrong downgrade target version format"),
    ("INVALID_ARGUMENT", "invalid downgrade target version"),
    ("FAILED_PRECONDITION", "cluster has a downgrade job in progress"),
    ("FAILED_PRECONDITION", "no inflight downgrade job"),
]

_FAILED_IN_TRANSPORT = [
    ("UNAVAILABLE", "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Connection refused"),
    ("UNIMPLEMENTED", "unknown method MemberPromote for service etcdserverpb.Cluster"),
    ("UNIMPLEMENTED", "Method not found!"),
    ("RESOURCE_EXHAUSTED", "grpc: received message larger than max (3145741 vs. 2097152)"),
]

_UNKNOWN = [
    ("UNAVAILABLE", "etcdserver: no leader"),
    ("UNAVAILABLE", "etcdserver: leader changed"),
    ("UNAVAILABLE", "etcdserver: request timed out"),
    ("UNAVAILABLE", "etcdserver: request timed out, possibly due to previous leader failure"),
    ("UNAVAILABLE", "etcdserver: request timed out, possibly due to connection lost"),
    ("UNAVAILABLE", "etcdserver: server stopped"),
    ("UNAVAILABLE", "etcdserver: not capable"),
    ("UNKNOWN", "raft: stopped"),
    ("UNKNOWN", "etcdserver: raft stopped"),
    ("UNAVAILABLE", "raft: stopped"),
    ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded"),
    ("DATA_LOSS", "etcdserver: corrupt cluster"),
    ("DEADLINE_EXCEEDED", "Deadline Exceeded"),
    ("UNKNOWN", "context deadline exceeded"),
    ("CANCELLED", "context canceled"),
    ("UNAVAILABLE", "Socket closed"),
    ("UNAVAILABLE", "Connection reset by peer"),
    ("UNAVAILABLE", "error reading from server: EOF"),
    ("UNAVAILABLE", "GOAWAY received"),
    ("UNAVAILABLE", "Stream removed"),
    ("INTERNAL", "Received RST_STREAM with error code 2"),
    ("UNAVAILABLE", ""),
    # The right words under another code, and more words than the ones listed.
    ("UNKNOWN", "etcdserver: too many requests"),
    ("RESOURCE_EXHAUSTED", "etcdserver: too many requests, or not"),
    ("UNAVAILABLE", "too many requests"),
]


@pytest.fixture(scope="module")
def refusing() -> Iterator[wire.Connection]:
    """A server that answers a put of key CODE, value TEXT with that error."""

    def put(request: Any) -> Any:
        raise wire.ServerError(request.key.decode(), request.value.decode())

    server = wire.serve({"/etcdserverpb.KV/Put": put})
    with wire.Connection(f"http://127.0.0.1:{server.port}") as connection:
        yield connection
    server.stop()


def _refusal(connection: wire.Connection, code: str, text: str) -> EtcdError:
    with pytest.raises(EtcdError) as caught:
        connection.put(code.encode(), text.encode(), timeout_s=5)
    assert (caught.value.code, caught.value.text) == (code, text)
    return caught.value


@pytest.mark.parametrize(("code", "text"), _FAILED)
def test_listed_server_errors_are_definite(refusing: wire.Connection, code: str, text: str) -> None:
    """An error that etcd returns before it proposes, or instead of applying, is a definite failure."""
    error = _refusal(refusing, code, f"etcdserver: {text}")
    assert wire.outcome_of(error) == "failed"


@pytest.mark.parametrize(("code", "text"), _FAILED_IN_TRANSPORT)
def test_unsent_or_unhandled_is_definite(code: str, text: str) -> None:
    """A request that no connection carried, or that no handler got, is a definite failure."""
    assert outcomes.is_definite(code, text)


@pytest.mark.parametrize(("code", "text"), _UNKNOWN)
def test_everything_else_is_unknown(refusing: wire.Connection, code: str, text: str) -> None:
    """After any other error the write may be applied, now or later."""
    error = _refusal(refusing, code, text)
    assert wire.outcome_of(error) == "unknown"


def test_every_listed_error_has_its_row() -> None:
    """The table has no entry that no test names."""
    assert set(_FAILED) == set(outcomes.DEFINITE)
    for code, prefix in outcomes.DEFINITE_PREFIXES:
        assert any(code == known and text.startswith(prefix) for known, text in _FAILED_IN_TRANSPORT)


def test_refused_connection_is_definite() -> None:
    """gRPC's real words for a refused connection, not only those we know of, count as definite."""
    server = wire.serve({})
    server.stop()
    with wire.Connection(f"http://127.0.0.1:{server.port}") as connection, pytest.raises(EtcdError) as caught:
        connection.put(b"k", b"v", timeout_s=5)
    assert wire.outcome_of(caught.value) == "failed"


def test_other_exceptions_are_unknown() -> None:
    """An exception that is no EtcdError proves nothing."""
    assert wire.outcome_of(ValueError("?")) == "unknown"
