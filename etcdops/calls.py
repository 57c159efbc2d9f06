"""etcd's RPCs as values: what to send, and how to read the answer.

A `Call` is made here and can be sent in three ways: by `wire.Connection.call` (blocking), by `wire.Connection.start`
or `wire.ask_all` (in parallel), by `wire.AsyncConnection.call` (asyncio). What comes back is a tuple of
`etcdops.answers`, never a protobuf message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from etcdops import _proto, answers
from etcdops.answers import (
    Alarm,
    DeleteResult,
    HashKV,
    Lease,
    LeaseInfo,
    MemberInfo,
    PutResult,
    RangeResult,
    Status,
    TxnResult,
    hex_id,
)
from etcdops.errors import SpecError

__all__ = [
    "TARGETS",
    "Call",
    "alarm_disarm",
    "alarms",
    "authenticate",
    "compact",
    "compare",
    "defragment",
    "delete_range",
    "hash_kv",
    "lease_grant",
    "lease_info",
    "lease_keep_alive",
    "lease_revoke",
    "member_add",
    "member_list",
    "member_promote",
    "member_remove",
    "member_update",
    "move_leader",
    "op_delete",
    "op_put",
    "op_range",
    "op_txn",
    "prefix_end",
    "put",
    "range",
    "status",
    "txn",
    "watch_create",
]

T = TypeVar("T")

#: A range end that stands for "to the last key".
TO_THE_END = b"\0"


def prefix_end(prefix: bytes) -> bytes:
    """Give the range end that makes `[prefix, end)` hold exactly the keys that begin with `prefix`.

    >>> prefix_end(b"a/"), prefix_end(b"a\\xff"), prefix_end(b"\\xff\\xff")
    (b'a0', b'b', b'\\x00')
    """
    stripped = prefix.rstrip(b"\xff")
    # Nothing sorts after a run of 0xff: every key from the prefix on begins with it.
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else TO_THE_END


class Call(Generic[T]):
    """A request to etcd: the RPC's path, its message, and how to read the answer."""

    __slots__ = ("path", "read", "request")

    def __init__(self, path: str, request: Any, read: Callable[[Any], T]) -> None:
        self.path = path
        self.request = request
        self.read = read


def _put(key: bytes, value: bytes, lease: int, prev_kv: bool) -> Any:
    return _proto.PutRequest(key=key, value=value, lease=lease, prev_kv=prev_kv)


def put(key: bytes, value: bytes, *, lease: int = 0, prev_kv: bool = False) -> Call[PutResult]:
    """Give the call that sets `key`, attached to `lease` unless that is 0."""
    return Call("/etcdserverpb.KV/Put", _put(key, value, lease, prev_kv), answers.read_put)


def range(
    key: bytes,
    range_end: bytes = b"",
    *,
    limit: int = 0,
    revision: int = 0,
    serializable: bool = False,
    keys_only: bool = False,
    count_only: bool = False,
) -> Call[RangeResult]:
    """Give the call that reads `key`, or all keys in `[key, range_end)`, in the order of keys.

    `revision` 0 is the newest. A `serializable` read is answered by the member alone and may be stale.
    """
    request = _proto.RangeRequest(
        key=key,
        range_end=range_end,
        limit=limit,
        revision=revision,
        serializable=serializable,
        keys_only=keys_only,
        count_only=count_only,
    )
    return Call("/etcdserverpb.KV/Range", request, answers.read_range)


def delete_range(key: bytes, range_end: bytes = b"", *, prev_kv: bool = False) -> Call[DeleteResult]:
    """Give the call that deletes `key`, or all keys in `[key, range_end)`."""
    request = _proto.DeleteRangeRequest(key=key, range_end=range_end, prev_kv=prev_kv)
    return Call("/etcdserverpb.KV/DeleteRange", request, answers.read_delete)


_SIGNS = {"=": "EQUAL", ">": "GREATER", "<": "LESS", "!=": "NOT_EQUAL"}
#: What a comparison can be of, by etcd's name for it.
TARGETS = {
    "version": "VERSION",
    "create_revision": "CREATE",
    "mod_revision": "MOD",
    "value": "VALUE",
    "lease": "LEASE",
}


def compare(key: bytes, target: str, sign: str, operand: int | bytes, *, range_end: bytes = b"") -> Any:
    """Give a comparison for `txn`: `compare(b"k", "version", "=", 0)` holds when the key does not exist.

    `target` is version, create_revision, mod_revision, value or lease; `sign` is =, !=, < or >.
    """
    fields: dict[str, Any] = {target: operand}
    return _proto.Compare(key=key, range_end=range_end, target=TARGETS[target], result=_SIGNS[sign], **fields)


def op_put(key: bytes, value: bytes, *, lease: int = 0, prev_kv: bool = False) -> Any:
    """Give a put for a branch of `txn`."""
    return _proto.RequestOp(request_put=_put(key, value, lease, prev_kv))


def op_range(key: bytes, range_end: bytes = b"", **options: Any) -> Any:
    """Give a read for a branch of `txn`; options as for `range`."""
    return _proto.RequestOp(request_range=range(key, range_end, **options).request)


def op_delete(key: bytes, range_end: bytes = b"", *, prev_kv: bool = False) -> Any:
    """Give a delete for a branch of `txn`."""
    return _proto.RequestOp(request_delete_range=delete_range(key, range_end, prev_kv=prev_kv).request)


def op_txn(compares: Iterable[Any] = (), success: Iterable[Any] = (), failure: Iterable[Any] = ()) -> Any:
    """Give a transaction for a branch of `txn`."""
    return _proto.RequestOp(request_txn=txn(compares, success, failure).request)


def txn(compares: Iterable[Any] = (), success: Iterable[Any] = (), failure: Iterable[Any] = ()) -> Call[TxnResult]:
    """Give the call that does `success` if all comparisons hold and `failure` otherwise, atomically."""
    request = _proto.TxnRequest(compare=compares, success=success, failure=failure)
    return Call("/etcdserverpb.KV/Txn", request, answers.read_txn)


def compact(revision: int, *, physical: bool = False) -> Call[int]:
    """Give the call that forgets history before `revision`; `physical` waits until it is gone from the database."""
    request = _proto.CompactionRequest(revision=revision, physical=physical)
    return Call("/etcdserverpb.KV/Compact", request, answers.read_revision)


def status() -> Call[Status]:
    """Give the call that asks a member about itself; it is answered without a quorum."""
    return Call("/etcdserverpb.Maintenance/Status", _proto.StatusRequest(), answers.read_status)


def hash_kv(revision: int = 0) -> Call[HashKV]:
    """Give the call that asks a member for the hash of its keys up to `revision`, 0 being its newest."""

    def read(answer: Any) -> HashKV:
        newest = answer.header.revision
        return HashKV(newest, answer.hash, answer.compact_revision, answer.hash_revision or revision or newest)

    return Call("/etcdserverpb.Maintenance/HashKV", _proto.HashKVRequest(revision=revision), read)


def member_list(*, linearizable: bool = True) -> Call[tuple[MemberInfo, ...]]:
    """Give the call that lists members; not linearizable, it needs no quorum and may be stale.

    Servers before 3.5 ignore the option and always answer from what they know.
    """
    request = _proto.MemberListRequest(linearizable=linearizable)
    return Call("/etcdserverpb.Cluster/MemberList", request, answers.read_members)


def member_add(peer_urls: Sequence[str], *, learner: bool) -> Call[MemberInfo]:
    """Give the call that adds a member; the answer has the ID that it got."""
    request = _proto.MemberAddRequest(peerURLs=peer_urls, isLearner=learner)
    return Call("/etcdserverpb.Cluster/MemberAdd", request, answers.read_added)


def member_promote(member_id: int) -> Call[tuple[MemberInfo, ...]]:
    """Give the call that makes a learner a voter."""
    return Call("/etcdserverpb.Cluster/MemberPromote", _proto.MemberPromoteRequest(ID=member_id), answers.read_members)


def member_remove(member_id: int) -> Call[tuple[MemberInfo, ...]]:
    """Give the call that removes a member for ever."""
    return Call("/etcdserverpb.Cluster/MemberRemove", _proto.MemberRemoveRequest(ID=member_id), answers.read_members)


def member_update(member_id: int, peer_urls: Sequence[str]) -> Call[tuple[MemberInfo, ...]]:
    """Give the call that changes a member's peer URLs."""
    request = _proto.MemberUpdateRequest(ID=member_id, peerURLs=peer_urls)
    return Call("/etcdserverpb.Cluster/MemberUpdate", request, answers.read_members)


def move_leader(target_id: int) -> Call[None]:
    """Give the call that asks the leader to hand over to the member `target_id`; only the leader takes it."""
    request = _proto.MoveLeaderRequest(targetID=target_id)
    return Call("/etcdserverpb.Maintenance/MoveLeader", request, answers.read_nothing)


def _alarm(action: str, member_id: int, kind: str) -> Call[tuple[Alarm, ...]]:
    request = _proto.AlarmRequest(action=action, memberID=member_id, alarm=kind)
    return Call("/etcdserverpb.Maintenance/Alarm", request, answers.read_alarms)


def alarms() -> Call[tuple[Alarm, ...]]:
    """Give the call that lists the alarms of all members."""
    return _alarm("GET", 0, "NONE")


def alarm_disarm(member_id: int, kind: str) -> Call[tuple[Alarm, ...]]:
    """Give the call that disarms one alarm of one member, `kind` being "NOSPACE" or "CORRUPT".

    Disarming all at once is not offered: it also clears CORRUPT, which protects data that is already damaged.
    """
    if kind not in ("NOSPACE", "CORRUPT") or not member_id:
        raise SpecError(f"no one alarm is named by kind {kind!r} and member {hex_id(member_id)}")
    return _alarm("DEACTIVATE", member_id, kind)


def defragment() -> Call[None]:
    """Give the call that rewrites a member's database file; the member does not serve meanwhile."""
    return Call("/etcdserverpb.Maintenance/Defragment", _proto.DefragmentRequest(), answers.read_nothing)


def lease_grant(ttl_s: int, lease_id: int = 0) -> Call[Lease]:
    """Give the call that makes a lease of `ttl_s` whole seconds; the server chooses the ID if it is 0."""
    return Call("/etcdserverpb.Lease/LeaseGrant", _proto.LeaseGrantRequest(TTL=ttl_s, ID=lease_id), answers.read_lease)


def lease_revoke(lease_id: int) -> Call[int]:
    """Give the call that ends a lease and deletes its keys; the answer is the revision."""
    return Call("/etcdserverpb.Lease/LeaseRevoke", _proto.LeaseRevokeRequest(ID=lease_id), answers.read_revision)


def lease_keep_alive(lease_id: int) -> Call[Lease]:
    """Give the call that renews a lease once; the answer's `ttl_s` is 0 if it had ended."""
    return Call("/etcdserverpb.Lease/LeaseKeepAlive", _proto.LeaseKeepAliveRequest(ID=lease_id), answers.read_lease)


def lease_info(lease_id: int) -> Call[LeaseInfo]:
    """Give the call that asks what remains of a lease, and for its keys."""
    request = _proto.LeaseTimeToLiveRequest(ID=lease_id, keys=True)
    return Call("/etcdserverpb.Lease/LeaseTimeToLive", request, answers.read_lease_info)


def authenticate(user: str, password: str) -> Call[str]:
    """Give the call that exchanges a password for a token."""

    def read(answer: Any) -> str:
        token: str = answer.token
        return token

    return Call("/etcdserverpb.Auth/Authenticate", _proto.AuthenticateRequest(name=user, password=password), read)


def watch_create(
    key: bytes,
    range_end: bytes = b"",
    *,
    start_revision: int = 0,
    prev_kv: bool = False,
    progress: bool = False,
    filters: Sequence[int | str] = (),
) -> Any:
    """Give the message that opens a watch on `key`, or on all keys in `[key, range_end)`.

    `filters` leave out what is named: "NOPUT", "NODELETE".
    """
    create = _proto.WatchCreateRequest(
        key=key,
        range_end=range_end,
        start_revision=start_revision,
        prev_kv=prev_kv,
        progress_notify=progress,
        filters=filters,
    )
    return _proto.WatchRequest(create_request=create)
