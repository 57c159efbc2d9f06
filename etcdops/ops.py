"""What can be asked of etcd's KV and lease services, as plain tuples, and what etcd refuses before it looks at a key.

The reference model evaluates these (`etcdops.model`); FakeRuntime makes them of the messages that it receives.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from etcdops.errors import EtcdError

__all__ = [
    "MAX_TXN_OPS",
    "Compact",
    "Compare",
    "Delete",
    "Grant",
    "KeepAlive",
    "Op",
    "Put",
    "Range",
    "Revoke",
    "Txn",
    "TxnOp",
    "check",
    "in_range",
    "is_read_only",
    "refusal",
    "served_locally",
]

#: etcd's `--max-txn-ops` as it is by default: comparisons, or operations of one branch.
MAX_TXN_OPS = 128

#: A range end that stands for "to the last key".
_TO_THE_END = b"\0"

_SERVER = "etcdserver: "
_REFUSALS = {
    "key is not provided": "INVALID_ARGUMENT",
    "key not found": "INVALID_ARGUMENT",
    "value is provided": "INVALID_ARGUMENT",
    "lease is provided": "INVALID_ARGUMENT",
    "too many operations in txn request": "INVALID_ARGUMENT",
    "duplicate key given in txn request": "INVALID_ARGUMENT",
    "mvcc: required revision has been compacted": "OUT_OF_RANGE",
    "mvcc: required revision is a future revision": "OUT_OF_RANGE",
    "requested lease not found": "NOT_FOUND",
    "lease already exists": "FAILED_PRECONDITION",
    "too large lease TTL": "OUT_OF_RANGE",
}


class Put(NamedTuple):
    """Set `key`, attached to `lease` unless that is 0. The `ignore_…` flags keep the old value, or the old lease."""

    key: bytes
    value: bytes
    lease: int = 0
    prev_kv: bool = False
    ignore_value: bool = False
    ignore_lease: bool = False


class Range(NamedTuple):
    """Read `key`, or all keys in `[key, range_end)`; a `range_end` of one zero byte means to the last key.

    `revision` 0 is the newest. Bounds of 0 are none. `sort_order` is none, ascend or descend; `sort_target` key,
    version, create_revision, mod_revision or value.
    """

    key: bytes
    range_end: bytes = b""
    limit: int = 0
    revision: int = 0
    serializable: bool = False
    keys_only: bool = False
    count_only: bool = False
    sort_order: str = "none"
    sort_target: str = "key"
    min_mod_revision: int = 0
    max_mod_revision: int = 0
    min_create_revision: int = 0
    max_create_revision: int = 0


class Delete(NamedTuple):
    """Delete `key`, or all keys in `[key, range_end)`."""

    key: bytes
    range_end: bytes = b""
    prev_kv: bool = False


class Compare(NamedTuple):
    """A condition on `key`, or on each existing key in `[key, range_end)`.

    `target` is version, create_revision, mod_revision, value or lease. A key that does not exist has 0 for each but
    the value, and no comparison with its value holds.
    """

    key: bytes
    target: str
    sign: Literal["=", "!=", "<", ">"]
    operand: int | bytes
    range_end: bytes = b""


class Txn(NamedTuple):
    """Do `success` if every one of `compares` holds, and `failure` otherwise, atomically."""

    compares: tuple[Compare, ...] = ()
    success: tuple[TxnOp, ...] = ()
    failure: tuple[TxnOp, ...] = ()


class Compact(NamedTuple):
    """Forget the history before `revision`."""

    revision: int


class Grant(NamedTuple):
    """Make the lease `lease`, which is not 0: choosing an ID is the server's business."""

    lease: int
    ttl_s: int


class Revoke(NamedTuple):
    """End `lease`, and delete the keys attached to it."""

    lease: int


class KeepAlive(NamedTuple):
    """Renew `lease` once. etcd answers with a Lease, its `ttl_s` 0 if it had ended; the model has no answer."""

    lease: int


TxnOp = Put | Range | Delete | Txn
Op = TxnOp | Compact | Grant | Revoke


def refusal(text: str) -> EtcdError:
    """Give the error with which etcd answers what it refuses; `text` is etcd's own, without "etcdserver: "."""
    return EtcdError(_REFUSALS[text], _SERVER + text, endpoint="the reference model", definite=True)


def is_read_only(txn: Txn) -> bool:
    """Tell whether etcd serves `txn` as a read, without Raft: both branches hold ranges alone, or nothing."""
    return all(isinstance(op, Range) for op in (*txn.success, *txn.failure))


def served_locally(op: Op) -> bool:
    """Tell whether a member answers `op` from its own state, which may be stale.

    Besides serializable ranges, those are transactions in which no range asks for more (etcd's isTxnSerializable), and
    so all that hold comparisons alone.
    """
    if isinstance(op, Range):
        return op.serializable
    return isinstance(op, Txn) and all(
        isinstance(inner, Range) and inner.serializable for inner in (*op.success, *op.failure)
    )


def check(op: Op) -> None:
    """Raise what etcd answers to an `op` that is not well-formed, whatever the keys hold."""
    _check(op)
    if isinstance(op, Txn):
        _changed(op.success)
        _changed(op.failure)


def _check(op: Op, most: int = MAX_TXN_OPS) -> None:
    if isinstance(op, Txn):
        size = max(len(op.compares), len(op.success), len(op.failure))
        if size > most:
            raise refusal("too many operations in txn request")
        if not all(compare.key for compare in op.compares):
            raise refusal("key is not provided")
        for inner in (*op.success, *op.failure):
            _check(inner, most - size)
    elif isinstance(op, (Put, Range, Delete)):
        if not op.key:
            raise refusal("key is not provided")
        if isinstance(op, Put) and op.ignore_value and op.value:
            raise refusal("value is provided")
        if isinstance(op, Put) and op.ignore_lease and op.lease:
            raise refusal("lease is provided")


class _Spans:
    """Key ranges that a branch deletes."""

    def __init__(self, deletes: Iterable[Delete]) -> None:
        self._spans = [(op.key, op.range_end) for op in deletes]

    def __contains__(self, key: bytes) -> bool:
        # As etcd has it: here, and only here, a range end of one zero byte is not "to the last key".
        return any(start <= key < end if end else start == key for start, end in self._spans)

    def add(self, other: _Spans) -> None:
        self._spans += other._spans


def _changed(branch: tuple[TxnOp, ...]) -> tuple[set[bytes], _Spans]:
    """Give what a branch may put and delete; refuse one that might change a key twice (etcd's checkIntervals)."""
    deleted = _Spans(op for op in branch if isinstance(op, Delete))
    put: set[bytes] = set()
    for op in branch:
        if isinstance(op, Txn):
            then_put, then_deleted = _changed(op.success)
            else_put, else_deleted = _changed(op.failure)
            # Only one of the two branches runs, so both may put the same key.
            for key in _once(sorted(then_put | else_put), put, deleted):
                put.add(key)
            deleted.add(then_deleted)
            deleted.add(else_deleted)
    for key in _once((op.key for op in branch if isinstance(op, Put)), put, deleted):
        put.add(key)
    return put, deleted


def _once(keys: Iterable[bytes], put: set[bytes], deleted: _Spans) -> Iterator[bytes]:
    for key in keys:
        if key in put or key in deleted:
            raise refusal("duplicate key given in txn request")
        yield key


def in_range(start: bytes, end: bytes) -> tuple[bytes, bytes | None]:
    """Give the bounds of a range: its first key, and the first key after it or None for "to the last key"."""
    if not end:
        return start, start + b"\0"
    return start, None if end == _TO_THE_END else end
