"""Whether a write that failed may still be applied: which errors prove that it was not.

An error is *definite* only when etcd returns it before it proposes the request to Raft, or instead of applying it, or
when no connection existed on which to send. Everything else is *unknown*: a deadline, a lost connection, a changed
leader, "raft stopped", a full database (NOSPACE is checked before the proposal and again when it is applied, on each
member by its own size). Calling an unknown outcome definite makes a checker accuse etcd falsely; the reverse costs
nothing, so a code with any other text than the one listed is unknown too.

Sources: etcd's api/v3rpc/rpctypes/error.go (3.4 to 3.6) for codes and texts; Jepsen's etcd client
(https://github.com/jepsen-io/etcd, client.clj) for the split.
"""

from __future__ import annotations

__all__ = ["DEFINITE", "DEFINITE_PREFIXES", "is_definite"]

#: Server errors, (gRPC code, text after "etcdserver: "), after which the request certainly had no effect.
DEFINITE = frozenset(
    {
        # The request itself is refused.
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
        # Leases.
        ("NOT_FOUND", "requested lease not found"),
        ("FAILED_PRECONDITION", "lease already exists"),
        ("OUT_OF_RANGE", "too large lease TTL"),
        # Membership and leadership.
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
        # Authentication.
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
        # Downgrades.
        ("INVALID_ARGUMENT", "wrong downgrade target version format"),
        ("INVALID_ARGUMENT", "invalid downgrade target version"),
        ("FAILED_PRECONDITION", "cluster has a downgrade job in progress"),
        ("FAILED_PRECONDITION", "no inflight downgrade job"),
    }
)

#: Errors of the transport, (gRPC code, beginning of the text), after which no handler of the server has run.
DEFINITE_PREFIXES = (
    # No connection existed on which to send: gRPC's own words for "connection refused" and its relatives.
    ("UNAVAILABLE", "failed to connect to all addresses"),
    # gRPC servers answer these two before they call a handler: an unknown method, a message over the size limit.
    ("UNIMPLEMENTED", ""),
    ("RESOURCE_EXHAUSTED", "grpc: received message larger than max"),
)


def is_definite(code: str, text: str) -> bool:
    """Tell whether an error with this gRPC code and text proves that the request had no effect.

    >>> is_definite("RESOURCE_EXHAUSTED", "etcdserver: too many requests")
    True
    >>> is_definite("DEADLINE_EXCEEDED", "Deadline Exceeded")
    False
    """
    if text.startswith("etcdserver: "):
        return (code, text[len("etcdserver: ") :]) in DEFINITE
    return any(code == known and text.startswith(prefix) for known, prefix in DEFINITE_PREFIXES)
