"""Words for what a check found: operations, revisions and instants, as the details of all checks show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from etcdops.answers import DeleteResult, Event, KeyValue, Lease, PutResult, RangeResult, TxnResult
from etcdops.ops import Compact, Compare, Delete, Grant, KeepAlive, Put, Range, Revoke, Txn
from etcdops.workload.history import Operation

__all__ = ["describe", "describe_answer", "describe_event", "describe_request", "instant", "some"]

_SHOWN = 5
_KVS = 4
_CUT = 48
_SECOND = 1_000_000_000


def instant(t_ns: int, origin_ns: int) -> str:
    """Give an instant in seconds after the run's first."""
    return f"{(t_ns - origin_ns) / _SECOND:+.6f} s"


def some(texts: Sequence[str], shown: int = _SHOWN) -> str:
    """Give the first few, and how many more there are."""
    more = f" and {len(texts) - shown} more" if len(texts) > shown else ""
    return ", ".join(texts[:shown]) + more


def describe(op: Operation, origin_ns: int = 0) -> str:
    """Give an operation with its stream, member, request, answer, revision and times."""
    ended = {
        "ok": f"answered {describe_answer(op.answer)} at revision {op.revision}",
        "failed": f"failed with {op.code}",
        "unknown": f"unknown after {op.code}",
    }[op.outcome]
    return (
        f"operation {op.id} ({op.stream} through {op.member}: {describe_request(op.request)}; {ended};"
        f" called {instant(op.call_ns, origin_ns)}, returned {instant(op.return_ns, origin_ns)})"
    )


def describe_request(request: object) -> str:
    """Give a request in a few words."""
    if isinstance(request, Put):
        lease = f" with lease {request.lease:x}" if request.lease else ""
        return f"put {_key(request.key)}={_value(request.value)}{lease}"
    if isinstance(request, Range):
        extra = "".join(
            f" {name} {getattr(request, name)}"
            for name in request._fields[2:]
            if getattr(request, name) != request._field_defaults[name]
        )
        return f"{'range' if request.range_end else 'get'} {_span(request.key, request.range_end)}{extra}"
    if isinstance(request, Delete):
        return f"delete {_span(request.key, request.range_end)}"
    if isinstance(request, Txn):
        branches = [
            f"{word} {_few([describe_request(op) for op in branch])}"
            for word, branch in (("then", request.success), ("else", request.failure))
            if branch
        ]
        return " ".join(["txn if", _few([_compare(compare) for compare in request.compares]) or "always", *branches])
    if isinstance(request, Compact):
        return f"compact to {request.revision}"
    if isinstance(request, Grant):
        return f"grant lease {request.lease:x} for {request.ttl_s} s"
    if isinstance(request, Revoke):
        return f"revoke lease {request.lease:x}"
    assert isinstance(request, KeepAlive)
    return f"keep lease {request.lease:x} alive"


def describe_answer(answer: object) -> str:
    """Give an answer in a few words."""
    if isinstance(answer, PutResult):
        return f"previous {_kv(answer.prev_kv)}" if answer.prev_kv else "done"
    if isinstance(answer, RangeResult):
        return f"count {answer.count}{' and more' if answer.more else ''} {_kvs(answer.kvs)}"
    if isinstance(answer, DeleteResult):
        return f"deleted {answer.deleted}" + (f" {_kvs(answer.prev_kvs)}" if answer.prev_kvs else "")
    if isinstance(answer, TxnResult):
        return f"{'then' if answer.succeeded else 'else'} {_few([describe_answer(one) for one in answer.results])}"
    if isinstance(answer, Lease):
        return f"lease {answer.lease_id:x} for {answer.ttl_s} s"
    return "done" if isinstance(answer, int) else "nothing"


def describe_event(event: Event) -> str:
    """Give an event in a few words."""
    if event.kind == "delete":
        return f"delete {_key(event.kv.key)}"
    return f"put {_kv(event.kv)}"


def _few(texts: Iterable[str]) -> str:
    made = list(texts)
    more = [f"({len(made) - _KVS} more)"] if len(made) > _KVS else []
    return "; ".join(made[:_KVS] + more)


def _compare(compare: Compare) -> str:
    operand = _value(compare.operand) if isinstance(compare.operand, bytes) else compare.operand
    return f"{compare.target} of {_span(compare.key, compare.range_end)} {compare.sign} {operand}"


def _span(start: bytes, end: bytes) -> str:
    if not end:
        return _key(start)
    return f"[{_key(start)}, {'the last]' if end == bytes(1) else _key(end) + ')'}"


def _kvs(kvs: Sequence[KeyValue]) -> str:
    return f"[{_few(map(_kv, kvs))}]"


def _kv(kv: KeyValue | None) -> str:
    if kv is None:
        return "absent"
    lease = f", lease {kv.lease:x}" if kv.lease else ""
    return (
        f"{_key(kv.key)}={_value(kv.value)} (version {kv.version}, created {kv.create_revision},"
        f" modified {kv.mod_revision}{lease})"
    )


def _key(key: bytes) -> str:
    return key.decode(errors="backslashreplace")


def _value(value: bytes) -> str:
    text = value.decode(errors="backslashreplace")
    return repr(text if len(text) <= _CUT else f"{text[:_CUT]}…")
