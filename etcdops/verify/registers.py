"""The operations of single keys, as the search for a linearization takes them.

A key is a register if every operation that may write it is one that a register has: a put, a delete, or a transaction
on that key alone that compares its value or its absence. Operations that only read, and that no register has a word for
(ranges of several keys, serializable reads, reads of old revisions), are left out: without a read, what had an order
still has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from etcdops.answers import DeleteResult, PutResult, RangeResult, TxnResult
from etcdops.ops import Compare, Delete, Put, Range, Txn, in_range, is_read_only
from etcdops.verify.models import Event
from etcdops.workload.history import Operation

__all__ = ["Registers", "keys_of", "registers_of"]


class Registers(NamedTuple):
    """The registers among some keys: each with its operations in the order of the record, as they are and as events.

    An event's key is text, and values are bytes. `unfit` has the keys that are none, and the id of an operation for
    which they are not.
    """

    found: dict[bytes, list[tuple[Operation, Event]]]
    unfit: dict[bytes, int]


def keys_of(op: Operation) -> Iterator[bytes]:
    """Give the keys that an operation names one by one; a range of several keys names none."""
    request = op.request
    for part in _parts(request) if isinstance(request, Txn) else (request,):
        if isinstance(part, (Put, Range, Delete, Compare)) and not getattr(part, "range_end", b""):
            yield part.key


def registers_of(history: Iterable[Operation], wanted: Callable[[bytes], bool]) -> Registers:
    """Give the registers among the keys that are `wanted`."""
    found: dict[bytes, list[tuple[Operation, Event]]] = {}
    unfit: dict[bytes, int] = {}
    spans: list[tuple[bytes, bytes | None, int]] = []
    for op in history:
        keys = [key for key in dict.fromkeys(keys_of(op)) if wanted(key)]
        if op.outcome != "failed":
            spans += [(*in_range(each.key, each.range_end), op.id) for each in _wide_deletes(op.request)]
        if not keys:
            continue
        event = _event(op)
        if event is not None:
            found.setdefault(keys[0], []).append((op, event))
        elif op.outcome != "failed":
            written = set(_written(op.request))
            unfit.update((key, op.id) for key in keys if key in written)
    for key in found:
        for first, after, number in spans:
            if first <= key and (after is None or key < after):
                unfit[key] = number
    return Registers({key: each for key, each in found.items() if key not in unfit}, unfit)


def _parts(txn: Txn) -> Iterator[Any]:
    yield from txn.compares
    for each in (*txn.success, *txn.failure):
        if isinstance(each, Txn):
            yield from _parts(each)
        else:
            yield each


def _written(request: object) -> Iterator[bytes]:
    for part in _parts(request) if isinstance(request, Txn) else (request,):
        if isinstance(part, (Put, Delete)):
            yield part.key


def _wide_deletes(request: object) -> Iterator[Delete]:
    for part in _parts(request) if isinstance(request, Txn) else (request,):
        if isinstance(part, Delete) and part.range_end:
            yield part


def _event(op: Operation) -> Event | None:
    """Give an operation as an event, None for one that a register does not have."""
    request, answer = op.request, op.answer
    if isinstance(request, Put):
        if request.lease or request.ignore_value or request.ignore_lease:
            return None
        if isinstance(answer, PutResult) and request.prev_kv:
            before = answer.prev_kv.value if answer.prev_kv else None
            return _made(op, "swap", request.key, (request.value,), before)
        return _made(op, "write", request.key, (request.value,))
    if isinstance(request, Range):
        if not _plain(request) or (op.outcome == "ok" and not isinstance(answer, RangeResult)):
            return None
        return _made(op, "read", request.key, (), _value(answer))
    if isinstance(request, Delete):
        if request.range_end:
            return None
        return _made(op, "delete", request.key, (), answer.deleted if isinstance(answer, DeleteResult) else None)
    return _txn(op, request) if isinstance(request, Txn) else None


def _made(op: Operation, f: str, key: bytes, arguments: tuple[Any, ...], answer: Any = None) -> Event:
    known = op.outcome == "ok"
    return Event(
        process=op.process,
        f=f,
        key=_text(key),
        arguments=arguments,
        outcome=op.outcome,
        answer=answer if known else None,
        call=op.call_ns,
        return_=op.return_ns,
    )


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")


def _plain(read: Range) -> bool:
    """Whether it reads one key's newest value from the cluster as a whole."""
    return read == Range(read.key, limit=read.limit, sort_order=read.sort_order, sort_target=read.sort_target)


def _value(answer: object) -> bytes | None:
    return answer.kvs[0].value if isinstance(answer, RangeResult) and answer.kvs else None


def _txn(op: Operation, txn: Txn) -> Event | None:
    keys = set(keys_of(op))
    compares = [_compared(each) for each in txn.compares]
    branches = [_branch(branch) for branch in (txn.success, txn.failure)]
    if len(keys) != 1 or None in compares or None in branches or not _asks_the_cluster(txn):
        return None
    (key,) = keys
    answer: tuple[bool | None, tuple[bytes | None, ...] | None] = (None, None)
    if isinstance(op.answer, TxnResult):
        done, told = txn.success if op.answer.succeeded else txn.failure, op.answer.results
        # An answer that is not whole says no more than which branch it was.
        whole = [isinstance(each, RangeResult) for each in told] == [isinstance(each, Range) for each in done]
        read = tuple(_value(each) for each in told if isinstance(each, RangeResult)) if whole else None
        answer = (op.answer.succeeded, read)
    return _made(op, "txn", key, (tuple(compares), *branches), answer)


def _asks_the_cluster(txn: Txn) -> bool:
    """Whether no member can have answered it from what it had itself (see `ops.served_locally`)."""
    return not is_read_only(txn) or any(isinstance(each, Range) for each in (*txn.success, *txn.failure))


def _compared(compare: Compare) -> tuple[str, bytes | None] | None:
    if compare.range_end or compare.sign != "=":
        return None
    if isinstance(compare.operand, bytes):
        return _text(compare.key), compare.operand
    # A key that does not exist, and no other, has 0 for these.
    absent = compare.target in ("version", "create_revision", "mod_revision") and compare.operand == 0
    return (_text(compare.key), None) if absent else None


def _branch(branch: Sequence[object]) -> tuple[tuple[Any, ...], ...] | None:
    done: list[tuple[Any, ...]] = []
    for each in branch:
        if isinstance(each, Put) and each == Put(each.key, each.value, prev_kv=each.prev_kv):
            done.append(("put", _text(each.key), each.value))
        elif isinstance(each, Delete) and not each.range_end:
            done.append(("delete", _text(each.key)))
        elif isinstance(each, Range) and _plain(each):
            done.append(("read", _text(each.key)))
        else:
            return None
    return tuple(done)
