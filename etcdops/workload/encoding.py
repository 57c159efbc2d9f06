"""How a record's operations and deliveries are written: one JSON array a line, short, and yet legible.

Keys and values are text where they can be. What a run wrote itself is abbreviated, for it stands in nearly every line:

    >>> text = Text("run1")
    >>> text.write(b"etcdops/run1/k/7"), text.write(b"run1/42"), text.write(b"plain"), text.write(b"\\xff")
    ('@k/7', '=42', 'plain', '!/w==')
    >>> text.read("=42")
    b'run1/42'
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

from etcdops.answers import DeleteResult, Event, KeyValue, Lease, PutResult, RangeResult, TxnResult
from etcdops.model import Answer
from etcdops.ops import Compact, Compare, Delete, Grant, KeepAlive, Op, Put, Range, Revoke, Txn

__all__ = ["KINDS", "Codec", "Request", "Text", "key_prefix", "value_prefix"]

#: What can be asked of etcd and stands in a record.
Request = Op | KeepAlive

#: The name of every kind of request.
KINDS: dict[type, str] = {
    Put: "put",
    Range: "range",
    Delete: "delete",
    Txn: "txn",
    Grant: "grant",
    KeepAlive: "keep-alive",
    Revoke: "revoke",
    Compact: "compact",
}
_CLASSES = {name: kind for kind, name in KINDS.items()}

_MARKS = ("@", "=", "~", "!")


def key_prefix(run: str, stream: str = "") -> str:
    """Give what every key of a run begins with, or every key of one stream of it."""
    return f"etcdops/{run}/{stream}/" if stream else f"etcdops/{run}/"


def value_prefix(run: str) -> str:
    """Give what every value that a run writes begins with; the id of the operation that writes it follows."""
    return f"{run}/"


class Text:
    """Bytes as text and back, for one run.

    "@rest" is a key of the run, "=rest" a value of it, "!rest" base64 of what is not UTF-8; all else stands for itself,
    after "~" if it begins with one of these four.
    """

    def __init__(self, run: str) -> None:
        self._key = key_prefix(run).encode()
        self._value = value_prefix(run).encode()
        self._known: dict[str, bytes] = {}

    def write(self, data: bytes) -> str:
        """Give `data` as text."""
        try:
            if data.startswith(self._key):
                return "@" + data[len(self._key) :].decode()
            if data.startswith(self._value):
                return "=" + data[len(self._value) :].decode()
            text = data.decode()
        except UnicodeDecodeError:
            return "!" + base64.b64encode(data).decode()
        return "~" + text if text.startswith(_MARKS) else text

    def read(self, text: str) -> bytes:
        """Give the bytes that `text` stands for; equal texts give one object."""
        data = self._known.get(text)
        if data is None:
            data = self._known[text] = self._read(text)
        return data

    def _read(self, text: str) -> bytes:
        mark, rest = text[:1], text[1:]
        if mark == "@":
            return self._key + rest.encode()
        if mark == "=":
            return self._value + rest.encode()
        if mark == "!":
            return base64.b64decode(rest, validate=True)
        return (rest if mark == "~" else text).encode()


class Codec:
    """Requests, answers and events as JSON arrays, for one run.

    A request is its kind and its fields, those at the end left out that have their defaults. Reading raises ValueError,
    TypeError, KeyError or IndexError for what is none.
    """

    def __init__(self, run: str) -> None:
        text = Text(run)
        self._text, self._bytes = text.write, text.read

    # -- requests

    def request(self, request: Request) -> list[Any]:
        """Give a request as an array."""
        kind = KINDS[type(request)]
        if isinstance(request, Txn):
            compares = [self._compare(compare) for compare in request.compares]
            return [
                kind,
                compares,
                [self.request(op) for op in request.success],
                [self.request(op) for op in request.failure],
            ]
        return [kind, *self._fields(request)]

    def _fields(self, of: Any) -> list[Any]:
        values = [self._text(value) if isinstance(value, bytes) else value for value in of]
        defaults = of._field_defaults
        fields = of._fields
        while (
            len(values) > 1
            and fields[len(values) - 1] in defaults
            and of[len(values) - 1] == defaults[fields[len(values) - 1]]
        ):
            values.pop()
        return values

    def _compare(self, compare: Compare) -> list[Any]:
        return self._fields(compare)

    def read_request(self, data: list[Any]) -> Request:
        """Give the request that an array stands for."""
        kind = data[0]
        if kind == "txn":
            return Txn(
                tuple(self._read_compare(compare) for compare in data[1]),
                tuple(self.read_request(op) for op in data[2]),  # type: ignore[misc]  # what a branch holds
                tuple(self.read_request(op) for op in data[3]),  # type: ignore[misc]
            )
        made = _CLASSES[kind]
        if kind == "put":
            return Put(self._bytes(data[1]), self._bytes(data[2]), *data[3:])
        if kind in ("range", "delete"):
            return made(*(self._bytes(value) for value in data[1:3]), *data[3:])  # type: ignore[no-any-return]
        return made(*data[1:])  # type: ignore[no-any-return]

    def _read_compare(self, data: list[Any]) -> Compare:
        key, target, sign, operand = data[:4]
        return Compare(
            self._bytes(key),
            target,
            sign,
            self._bytes(operand) if target == "value" else operand,
            *(self._bytes(end) for end in data[4:]),
        )

    # -- answers

    def answer(self, answer: Answer | None) -> Any:
        """Give an answer as an array, or what else JSON has for it. Its own revision is not in it."""
        if isinstance(answer, PutResult):
            return self.kv(answer.prev_kv)
        if isinstance(answer, RangeResult):
            return [answer.count, int(answer.more), [self.kv(kv) for kv in answer.kvs]]
        if isinstance(answer, DeleteResult):
            return [answer.deleted, [self.kv(kv) for kv in answer.prev_kvs]]
        if isinstance(answer, TxnResult):
            return [int(answer.succeeded), [[r.revision, _ANSWERS[type(r)], self.answer(r)] for r in answer.results]]
        if isinstance(answer, Lease):
            return [answer.lease_id, answer.ttl_s]
        return None

    def read_answer(self, request: Request, revision: int, data: Any) -> Answer:
        """Give the answer to `request` that an array stands for."""
        return self._read_answer(KINDS[type(request)], revision, data)

    def _read_answer(self, kind: str, revision: int, data: Any) -> Answer:
        if kind == "range":
            return RangeResult(revision, tuple(self.read_kvs(data[2])), bool(data[1]), data[0])
        if kind == "put":
            return PutResult(revision, self.read_kv(data))
        if kind == "delete":
            return DeleteResult(revision, data[0], tuple(self.read_kvs(data[1])))
        if kind == "txn":
            results = tuple(self._read_answer(inner, at, answer) for at, inner, answer in data[1])
            return TxnResult(revision, bool(data[0]), results)
        if kind in ("grant", "keep-alive"):
            return Lease(data[0], data[1], revision)
        return revision

    # -- keys and events

    def kv(self, kv: KeyValue | None) -> list[Any] | None:
        """Give a key and what etcd keeps of it as an array; None for None."""
        if kv is None:
            return None
        return [self._text(kv[0]), self._text(kv[1]), *kv[2:]]

    def read_kv(self, data: list[Any] | None) -> KeyValue | None:
        """Give what `kv` made an array of."""
        return None if data is None else self._read_kv(data)

    def read_kvs(self, data: Iterable[list[Any]]) -> Iterable[KeyValue]:
        """Give what `kv` made arrays of."""
        return map(self._read_kv, data)

    def _read_kv(self, data: list[Any]) -> KeyValue:
        key, value, created, modified, version, lease = data
        return KeyValue(self._bytes(key), self._bytes(value), created, modified, version, lease)

    def event(self, event: Event) -> list[Any]:
        """Give an event as an array: a delete has its key and revision alone, besides what it deleted."""
        kv = [self._text(event.kv.key), event.kv.mod_revision] if event.kind == "delete" else self.kv(event.kv)
        return [kv] if event.prev_kv is None else [kv, self.kv(event.prev_kv)]

    def read_event(self, data: list[Any]) -> Event:
        """Give the event that an array stands for."""
        kv, prev = data[0], self.read_kv(data[1]) if len(data) > 1 else None
        if len(kv) == 2:
            return Event("delete", KeyValue(self._bytes(kv[0]), b"", 0, kv[1], 0, 0), prev)
        return Event("put", self._read_kv(kv), prev)


_ANSWERS: dict[type, str] = {PutResult: "put", RangeResult: "range", DeleteResult: "delete", TxnResult: "txn"}
