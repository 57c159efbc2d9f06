"""What stands in a record, as a call to a member: the one place that makes etcd's messages of `etcdops.ops`."""

from __future__ import annotations

from typing import Any

from etcdops import _proto, answers, calls
from etcdops.calls import Call
from etcdops.model import Answer
from etcdops.ops import Compact, Compare, Delete, Grant, KeepAlive, Put, Range, Revoke, Txn, is_read_only
from etcdops.workload.encoding import Request

__all__ = ["call_of", "only_reads"]

_SORTED_BY = {**calls.TARGETS, "key": "KEY"}


def call_of(request: Request) -> Call[Answer]:
    """Give the call that asks what `request` says.

    A KeepAlive's is one message of a stream: `wire.AsyncConnection.lease_keep_alive` sends it.
    """
    if isinstance(request, Put):
        return Call("/etcdserverpb.KV/Put", _put(request), answers.read_put)
    if isinstance(request, Range):
        return Call("/etcdserverpb.KV/Range", _range(request), answers.read_range)
    if isinstance(request, Txn):
        return Call("/etcdserverpb.KV/Txn", _txn(request), answers.read_txn)
    if isinstance(request, Delete):
        return _delete(request)
    return _other(request)


def _other(request: Grant | KeepAlive | Revoke | Compact) -> Call[Any]:
    if isinstance(request, Grant):
        return calls.lease_grant(request.ttl_s, request.lease)
    if isinstance(request, KeepAlive):
        return calls.lease_keep_alive(request.lease)
    if isinstance(request, Revoke):
        return calls.lease_revoke(request.lease)
    return calls.compact(request.revision)


def only_reads(request: Request) -> bool:
    """Tell whether `request` can change nothing: a failure of it is definite, whatever its reason."""
    return isinstance(request, Range) or (isinstance(request, Txn) and is_read_only(request))


def _put(op: Put) -> Any:
    key, value, lease, prev_kv, ignore_value, ignore_lease = op
    return _proto.PutRequest(
        key=key, value=value, lease=lease, prev_kv=prev_kv, ignore_value=ignore_value, ignore_lease=ignore_lease
    )


def _range(op: Range) -> Any:
    if op[7:] == _PLAIN:
        key, range_end, limit, revision, serializable, keys_only, count_only = op[:7]
        return _proto.RangeRequest(
            key=key,
            range_end=range_end,
            limit=limit,
            revision=revision,
            serializable=serializable,
            keys_only=keys_only,
            count_only=count_only,
        )
    fields = op._asdict() | {"sort_order": op.sort_order.upper(), "sort_target": _SORTED_BY[op.sort_target]}
    return _proto.RangeRequest(**fields)


_PLAIN = Range(b"")[7:]


def _delete(op: Delete) -> Call[Any]:
    return calls.delete_range(op.key, op.range_end, prev_kv=op.prev_kv)


def _compare(compare: Compare) -> Any:
    key, target, sign, operand, range_end = compare
    return calls.compare(key, target, sign, operand, range_end=range_end)


def _txn(op: Txn) -> Any:
    return _proto.TxnRequest(
        compare=[_compare(compare) for compare in op.compares],
        success=[_inner(inner) for inner in op.success],
        failure=[_inner(inner) for inner in op.failure],
    )


def _inner(op: Put | Range | Delete | Txn) -> Any:
    if isinstance(op, Put):
        return _proto.RequestOp(request_put=_put(op))
    if isinstance(op, Range):
        return _proto.RequestOp(request_range=_range(op))
    if isinstance(op, Delete):
        return _proto.RequestOp(request_delete_range=_delete(op).request)
    return _proto.RequestOp(request_txn=_txn(op))
