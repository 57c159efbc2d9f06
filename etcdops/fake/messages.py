"""etcd's KV messages as operations of the model, and the model's answers as etcd's messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from etcdops import _proto
from etcdops.answers import DeleteResult, KeyValue, PutResult, RangeResult, Result, TxnResult
from etcdops.ops import Compare, Delete, Put, Range, Txn, TxnOp, refusal

__all__ = ["delete_of", "fill", "kv_message", "put_of", "range_of", "txn_of"]

# Each indexed by the number that etcd's enum gives it.
_ORDERS = ("none", "ascend", "descend")
_SORT_TARGETS = ("key", "version", "create_revision", "mod_revision", "value")
_SIGNS = ("=", ">", "<", "!=")
_TARGETS = ("version", "create_revision", "mod_revision", "value", "lease")

_T = TypeVar("_T")


def put_of(request: Any) -> Put:
    """Give the operation that a PutRequest asks for."""
    return _same_fields(Put, request)


def delete_of(request: Any) -> Delete:
    """Give the operation that a DeleteRangeRequest asks for."""
    return _same_fields(Delete, request)


def range_of(request: Any) -> Range:
    """Give the operation that a RangeRequest asks for."""
    op = _same_fields(Range, request)
    return op._replace(sort_order=_ORDERS[request.sort_order], sort_target=_SORT_TARGETS[request.sort_target])


def txn_of(request: Any) -> Txn:
    """Give the operation that a TxnRequest asks for."""
    return Txn(
        tuple(_compare_of(compare) for compare in request.compare),
        tuple(_op_of(inner) for inner in request.success),
        tuple(_op_of(inner) for inner in request.failure),
    )


def _same_fields(kind: Callable[..., _T], request: Any) -> _T:
    """The model's operations have the field names of etcd's messages."""
    return kind(*(getattr(request, field) for field in kind._fields))  # type: ignore[attr-defined]


def _compare_of(compare: Any) -> Compare:
    target = _TARGETS[compare.target]
    return Compare(compare.key, target, _SIGNS[compare.result], getattr(compare, target), compare.range_end)  # type: ignore[arg-type]


def _op_of(inner: Any) -> TxnOp:
    kind = inner.WhichOneof("request")
    if kind is None:
        raise refusal("key not found")
    op: TxnOp = _OPS[kind](getattr(inner, kind))
    return op


_OPS: dict[str, Callable[[Any], Any]] = {
    "request_put": put_of,
    "request_range": range_of,
    "request_delete_range": delete_of,
    "request_txn": txn_of,
}


def kv_message(kv: KeyValue) -> Any:
    """Give the message of a key."""
    return _proto.KeyValue(**kv._asdict())


def fill(answer: Result, header: Any = None) -> Any:
    """Give the message that says `answer`; operations inside a transaction have only the revision in their header."""
    header = header or _proto.ResponseHeader(revision=answer.revision)
    if isinstance(answer, PutResult):
        return _proto.PutResponse(header=header, prev_kv=kv_message(answer.prev_kv) if answer.prev_kv else None)
    if isinstance(answer, RangeResult):
        kvs = map(kv_message, answer.kvs)
        return _proto.RangeResponse(header=header, kvs=kvs, more=answer.more, count=answer.count)
    if isinstance(answer, DeleteResult):
        prev_kvs = map(kv_message, answer.prev_kvs)
        return _proto.DeleteRangeResponse(header=header, deleted=answer.deleted, prev_kvs=prev_kvs)
    responses = [_proto.ResponseOp(**{_FIELDS[type(inner)]: fill(inner)}) for inner in answer.results]
    return _proto.TxnResponse(header=header, succeeded=answer.succeeded, responses=responses)


_FIELDS = {
    PutResult: "response_put",
    RangeResult: "response_range",
    DeleteResult: "response_delete_range",
    TxnResult: "response_txn",
}
