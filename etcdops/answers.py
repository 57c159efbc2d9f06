"""What etcd answers, as plain tuples, and how each is read from etcd's message.

`revision` is always the answer's outer header revision: the store's when the request was applied. IDs are integers
here; `hex_id` gives what people are shown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from etcdops import _proto

__all__ = [
    "Alarm",
    "DeleteResult",
    "Event",
    "HashKV",
    "KeyValue",
    "Lease",
    "LeaseInfo",
    "MemberInfo",
    "PutResult",
    "RangeResult",
    "Status",
    "TxnResult",
    "WatchBatch",
    "hex_id",
]


def hex_id(number: int) -> str:
    """Give a member, cluster or lease ID as etcdctl prints it: hexadecimal, without leading zeros."""
    return f"{number:x}"


class KeyValue(NamedTuple):
    """A key as etcd keeps it. `lease` 0 means that it has none."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


class RangeResult(NamedTuple):
    """What a range held: `count` is of all keys in it, `more` that a limit cut `kvs` short."""

    revision: int
    kvs: tuple[KeyValue, ...]
    more: bool
    count: int  # type: ignore[assignment]  # etcd's word, though it hides tuple.count


class PutResult(NamedTuple):
    """The revision of a put, and what it replaced if that was asked for."""

    revision: int
    prev_kv: KeyValue | None


class DeleteResult(NamedTuple):
    """The revision of a delete, how many keys went, and which if that was asked for."""

    revision: int
    deleted: int
    prev_kvs: tuple[KeyValue, ...]


class TxnResult(NamedTuple):
    """Whether the comparisons held, and one result for each operation of the branch that ran.

    `revision` is the transaction's own; the results inside carry the revision that etcd put there.
    """

    revision: int
    succeeded: bool
    results: tuple[Any, ...]


class Status(NamedTuple):
    """One member's answer about itself. `leader` 0 means that it knows of none; sizes are in bytes."""

    member_id: int
    cluster_id: int
    version: str
    db_size: int
    db_size_in_use: int
    leader: int
    raft_term: int
    raft_index: int
    raft_applied_index: int
    revision: int
    errors: tuple[str, ...]
    is_learner: bool
    #: The space quota; 0 where the server does not say (before 3.6), and not to be trusted before 3.6.6.
    db_size_quota: int = 0


class HashKV(NamedTuple):
    """A member's hash over its keys. Two members' hashes compare only at equal `hash_revision` and `compact_revision`.

    `revision` is the member's newest. `hash_revision` is the one hashed: servers before 3.6 do not say, then it is the
    revision that was asked for, or the newest.
    """

    revision: int
    hash: int
    compact_revision: int
    hash_revision: int


class MemberInfo(NamedTuple):
    """A member as the cluster knows it. An added member that never started has no name and no client URLs."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    is_learner: bool


class Alarm(NamedTuple):
    """An alarm that a member raised; `kind` is "NOSPACE" or "CORRUPT"."""

    member_id: int
    kind: str


class Lease(NamedTuple):
    """A lease, and its time to live in seconds as the server chose it; 0 or less after it ended."""

    lease_id: int
    ttl_s: int
    revision: int


class LeaseInfo(NamedTuple):
    """What remains of a lease in seconds (-1: it ended), what was granted, and the keys attached to it."""

    lease_id: int
    ttl_s: int
    granted_ttl_s: int
    keys: tuple[bytes, ...]


class Event(NamedTuple):
    """A change that a watch saw; `kind` is "put" or "delete". A delete's `kv` has only key and mod_revision."""

    kind: str
    kv: KeyValue
    prev_kv: KeyValue | None


class WatchBatch(NamedTuple):
    """What a watch delivered at once. Without events it says: everything up to `revision` has been delivered."""

    revision: int
    events: tuple[Event, ...]


Result = RangeResult | PutResult | DeleteResult | TxnResult


def read_kv(kv: Any) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def read_range(answer: Any) -> RangeResult:
    return RangeResult(answer.header.revision, tuple(map(read_kv, answer.kvs)), answer.more, answer.count)


def read_put(answer: Any) -> PutResult:
    return PutResult(answer.header.revision, read_kv(answer.prev_kv) if answer.HasField("prev_kv") else None)


def read_delete(answer: Any) -> DeleteResult:
    return DeleteResult(answer.header.revision, answer.deleted, tuple(map(read_kv, answer.prev_kvs)))


def read_op(answer: Any) -> Result:
    kind = answer.WhichOneof("response")
    result: Result = _OPS[kind](getattr(answer, kind))
    return result


def read_txn(answer: Any) -> TxnResult:
    return TxnResult(answer.header.revision, answer.succeeded, tuple(map(read_op, answer.responses)))


_OPS: dict[str, Callable[[Any], Any]] = {
    "response_range": read_range,
    "response_put": read_put,
    "response_delete_range": read_delete,
    "response_txn": read_txn,
}


def read_revision(answer: Any) -> int:
    revision: int = answer.header.revision
    return revision


def read_nothing(answer: Any) -> None:
    return None


def read_status(answer: Any) -> Status:
    header = answer.header
    return Status(
        member_id=header.member_id,
        cluster_id=header.cluster_id,
        version=answer.version,
        db_size=answer.dbSize,
        db_size_in_use=answer.dbSizeInUse,
        leader=answer.leader,
        raft_term=answer.raftTerm,
        raft_index=answer.raftIndex,
        raft_applied_index=answer.raftAppliedIndex,
        revision=header.revision,
        errors=tuple(answer.errors),
        is_learner=answer.isLearner,
        db_size_quota=answer.dbSizeQuota,
    )


def read_member(member: Any) -> MemberInfo:
    return MemberInfo(member.ID, member.name, tuple(member.peerURLs), tuple(member.clientURLs), member.isLearner)


def read_members(answer: Any) -> tuple[MemberInfo, ...]:
    return tuple(map(read_member, answer.members))


def read_added(answer: Any) -> MemberInfo:
    return read_member(answer.member)


def read_alarms(answer: Any) -> tuple[Alarm, ...]:
    kinds = {number: name for name, number in _proto.ENUMS.items()}
    return tuple(Alarm(alarm.memberID, kinds.get(alarm.alarm, str(alarm.alarm))) for alarm in answer.alarms)


def read_lease(answer: Any) -> Lease:
    return Lease(answer.ID, answer.TTL, answer.header.revision)


def read_lease_info(answer: Any) -> LeaseInfo:
    return LeaseInfo(answer.ID, answer.TTL, answer.grantedTTL, tuple(answer.keys))


def read_events(answer: Any) -> WatchBatch:
    """Give what one message of a watch delivers."""
    events = tuple(
        Event(
            "delete" if event.type else "put",
            read_kv(event.kv),
            read_kv(event.prev_kv) if event.HasField("prev_kv") else None,
        )
        for event in answer.events
    )
    return WatchBatch(answer.header.revision, events)
