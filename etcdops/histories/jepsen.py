"""Jepsen's histories: read from EDN, JSON and its text logs, and written, so that others can check ours and we theirs.

A history is a sequence of operations, each one line or one element of a vector: `{:type :invoke, :f :read, :value nil,
:process 3}` and later `{:type :ok, :f :read, :value 5, :process 3}`, or in a log `INFO jepsen.util - 3 :ok :read 5`.
`:ok` is answered, `:fail` certainly without effect, `:info` unknown. The order of the file is the order of time, as it
is for Jepsen's own checkers. A `:fail` of a compare-and-swap that names no error says that the value was another one.
"""

from __future__ import annotations

import gzip
import heapq
import json
import re
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from etcdops.errors import Refused, SpecError
from etcdops.histories.edn import EdnError, Keyword, dumps, read_values
from etcdops.verify.models import Event

__all__ = ["Form", "jepsen_lines", "read_jepsen", "write_jepsen"]

Form = Literal["edn", "json", "log"]

_TYPES = ("invoke", "ok", "fail", "info")
_NAMES = {"get": "read", "put": "write"}
_ONE_KEY = ("read", "write", "cas", "delete", "acquire", "release")
#: `0 :invoke :read nil`, alone (history.txt), or after what a logger puts before it.
_LINE = re.compile(
    r"(?P<before>.*?)(?P<process>\d+|:[\w-]+)\s+:(?P<type>invoke|ok|fail|info)\s+:(?P<f>\S+)(?P<rest>.*)"
)
_LOGGED = re.compile(r"(?:.*\s)?jepsen\.(?:util|core)(?: -|:)?\s+$")
_OTHER_LOG_LINE = re.compile(r"\s*$|(?:TRACE|DEBUG|INFO|WARN|ERROR|FATAL)\b|\d{4}-\d\d-\d\d|\s+at |\S*Exception\b")


class _Op(NamedTuple):
    line: int
    type: str
    f: str
    process: Any
    value: Any
    error: Any
    key: Any


def read_jepsen(path: str | Path) -> list[Event]:
    """Give the operations of a history, in the order of their calls; `call` and `return_` count the file's entries.

    Histories over several keys are known by `:key`, or by the `[key value]` of `jepsen.independent`; `[version value]`
    as jepsen.etcd writes it loses its version. What a nemesis did is left out. Raises Refused for a file that cannot be
    read, and SpecError, naming file and line, for one that is no such history.
    """
    text = _read(path)
    try:
        ops = list(_ops(text))
        if not ops:
            raise _Bad(1, "there is no operation in it")
        return _pair(_plain_values(ops))
    except _Bad as bad:
        raise SpecError(
            f"{path}, line {bad.line}: {bad}", remedy="Give a history of Jepsen: EDN, JSON, or its text log."
        ) from None


class _Bad(Exception):
    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line


def _read(path: str | Path) -> str:
    try:
        data = Path(path).read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8")
    except (OSError, EOFError) as error:
        why = getattr(error, "strerror", None) or error
        raise Refused(f"cannot read the history {path}: {why}", remedy="Name a file that can be read.") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SpecError(f"{path}, line {line}: this is no text (UTF-8)") from error


# -- the three forms


def _ops(text: str) -> Iterator[_Op]:
    first = text.lstrip()[:2].replace("\n", " ")
    if re.match(r"\s*\[?\s*\{\s*\"", text):
        yield from _ops_of_maps(text, _json_values(text))
    elif first[:1] in ("{", "[", "(", ";", "#"):
        yield from _ops_of_maps(text, _edn_values(text))
    else:
        yield from _ops_of_log(text)


def _json_values(text: str) -> Iterator[tuple[int, Any]]:
    decode, blank = json.JSONDecoder().raw_decode, re.compile(r"[\s,\[]*").match
    separators = re.compile(r"[\s,\]]*").match
    at = blank(text).end()  # type: ignore[union-attr]
    while at < len(text):
        try:
            value, end = decode(text, at)
        except json.JSONDecodeError as error:
            raise _Bad(text.count("\n", 0, error.pos) + 1, f"this is no JSON: {error.msg}") from None
        yield at, _frozen(value)
        at = separators(text, end).end()  # type: ignore[union-attr]


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return {key: _frozen(each) for key, each in value.items()} if isinstance(value, dict) else value


def _edn_values(text: str) -> Iterator[tuple[int, Any]]:
    opened = re.match(r"(?:\s|;[^\n]*\n)*[\[(]", text)
    if opened:
        # One vector of all: its elements, each where it stands.
        end = max(text.rfind("]"), text.rfind(")"))
        if end > opened.end():
            text = f"{' ' * opened.end()}{text[opened.end() : end]}{text[end + 1 :]}"
    try:
        yield from read_values(text)
    except EdnError as error:
        raise _Bad(text.count("\n", 0, error.at) + 1, f"this is no EDN: {error}") from None


def _ops_of_maps(text: str, values: Iterator[tuple[int, Any]]) -> Iterator[_Op]:
    line, counted = 1, 0
    for at, value in values:
        line += text.count("\n", counted, at)
        counted = at
        if not isinstance(value, dict):
            raise _Bad(line, f"{str(value)[:40]!r} is no operation: a map with :type, :f, :value and :process is one")
        kind = value.get("type")
        if kind not in _TYPES:
            raise _Bad(line, f"the :type of an operation is {kind!r}, not one of {', '.join(_TYPES)}")
        yield _Op(
            line, kind, str(value.get("f", "txn")), value.get("process"), value.get("value"), value.get("error"),
            value.get("key"),
        )  # fmt: skip


def _ops_of_log(text: str) -> Iterator[_Op]:
    for number, line in enumerate(text.splitlines(), start=1):
        found = _LINE.fullmatch(line)
        if found is None or (found["before"].strip() and not _LOGGED.fullmatch(found["before"])):
            if _OTHER_LOG_LINE.match(line):
                continue
            raise _Bad(number, f"{line[:60]!r} is neither an operation nor a line of a log")
        try:
            rest = [value for _, value in read_values(found["rest"])]
        except EdnError as bad:
            raise _Bad(number, f"{found['rest'].strip()[:40]!r} is no value: {bad}") from None
        value, error = [*rest, None, None][:2]
        if found["type"] in ("fail", "info") and isinstance(value, Keyword):
            value, error = None, value
        process: Any = found["process"]
        yield _Op(number, found["type"], found["f"], int(process) if process.isdigit() else process, value, error, None)


# -- what the values mean


def _plain_values(ops: Sequence[_Op]) -> list[_Op]:
    """Give the operations with their key apart, and without versions; what no client did is left out."""
    ops = [op._replace(f=_NAMES.get(op.f, op.f)) for op in ops if not isinstance(op.process, str)]
    calls = [op for op in ops if op.type == "invoke"]
    if _independent(calls):
        ops = [op._replace(key=op.value[0], value=op.value[1]) if _is_pair(op.value) else op for op in ops]
        calls = [op for op in ops if op.type == "invoke"]
    if any(_is_pair(op.value) and op.value[0] is None for op in calls if op.f in ("read", "write")):
        # jepsen.etcd's [version value]: called with [nil value].
        ops = [op._replace(value=op.value[1]) if _is_pair(op.value) else op for op in ops]
    return ops


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _independent(calls: Sequence[_Op]) -> bool:
    """Whether the values are `[key value]`: a read is called with one, or else every compare-and-swap."""
    calls = [op for op in calls if op.f in _ONE_KEY]
    if any(op.key is not None for op in calls) or not all(_is_pair(op.value) for op in calls):
        return False
    reads = [op for op in calls if op.f == "read"]
    swaps = [op for op in calls if op.f == "cas"]
    if reads:
        return all(op.value[1] is None or _is_pair(op.value[1]) for op in reads)
    return bool(swaps) and all(_is_pair(op.value[1]) for op in swaps)


def _pair(ops: Sequence[_Op]) -> list[Event]:
    """Join calls and answers; calls that nothing answers are unknown."""
    pending: dict[Any, tuple[int, _Op]] = {}
    events: list[Event] = []
    for at, op in enumerate(ops):
        if op.type == "invoke":
            if op.process in pending:
                earlier = pending[op.process][1].line
                raise _Bad(op.line, f"process {op.process} calls again, and that of line {earlier} has no answer")
            pending[op.process] = (at, op)
        elif op.process not in pending:
            raise _Bad(op.line, f"process {op.process} has an answer without a call")
        else:
            events.append(_event(*pending.pop(op.process), at, op))
    events.extend(_event(at, op, None, None) for at, op in pending.values())
    return sorted(events, key=lambda event: event.call)


def _event(called: int, call: _Op, ended: int | None, end: _Op | None) -> Event:
    if end is not None and end.f != call.f:
        raise _Bad(end.line, f"process {end.process} called {call.f} (line {call.line}), and {end.f} is answered")
    process = -1 if call.process is None else call.process
    arguments = _arguments(call)
    outcome: Any = {"ok": "ok", "fail": "failed"}.get(end.type if end else "", "unknown")
    answer: Any = None
    if end is not None and outcome == "ok":
        answer = _answer(call, end)
    elif end is not None and outcome == "failed" and call.f == "cas" and end.error is None:
        outcome, answer = "ok", False
    return Event(process, call.f, call.key, arguments, outcome, answer, called, ended, call.line)


def _arguments(call: _Op) -> tuple[Any, ...]:
    if call.f == "cas":
        if not _is_pair(call.value):
            raise _Bad(call.line, f"a cas has an old and a new value, and not {dumps(call.value)}")
        return tuple(call.value)
    if call.f == "write":
        return (_hashable(call),)
    if call.f in ("read", "delete", "acquire", "release"):
        return ()
    if call.f == "txn":
        return _micro_operations(call)
    raise _Bad(call.line, f"the operation {call.f} is not known: there are {', '.join(_ONE_KEY)} and txn")


def _hashable(op: _Op) -> Hashable:
    try:
        hash(op.value)
    except TypeError:
        raise _Bad(op.line, f"the value {dumps(op.value)[:60]} is a map, which no register holds here") from None
    return op.value  # type: ignore[no-any-return]


def _answer(call: _Op, end: _Op) -> Any:
    if call.f == "read":
        return _hashable(end)
    if call.f in ("write", "cas"):
        if end.value is not None and end.value != call.value:
            said = f"called with {dumps(call.value)} and answered with {dumps(end.value)}"
            raise _Bad(end.line, f"process {end.process}'s {call.f} was {said}: this is no plain register")
        return True if call.f == "cas" else None
    if call.f == "delete":
        return end.value if end.value in (0, 1) else None
    return _micro_operations(end) if call.f == "txn" else None


def _micro_operations(op: _Op) -> tuple[Any, ...]:
    found = []
    for each in op.value or ():
        if not (isinstance(each, tuple) and len(each) == 3 and each[0] in ("append", "r")):
            raise _Bad(op.line, f"{dumps(each)} is neither [:append key element] nor [:r key elements]")
        f, key, value = each
        if f == "r" and not (value is None or isinstance(value, tuple)):
            raise _Bad(op.line, f"{dumps(each)} reads no list of elements")
        try:
            hash((key, value))
        except TypeError:
            raise _Bad(op.line, f"{dumps(each)} holds a map, which is no key and no element here") from None
        found.append((str(f), key, value))
    return tuple(found)


# -- writing


def write_jepsen(events: Sequence[Event], path: str | Path, *, form: Form = "edn") -> None:
    """Write operations to a file as Jepsen would; see `jepsen_lines`.

    Raises SpecError as that does, and Refused if the file cannot be written.
    """
    text = "".join(f"{line}\n" for line in jepsen_lines(events, form))
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise Refused(f"cannot write the history {path}: {error.strerror}", remedy="Name another file.") from error


def jepsen_lines(events: Sequence[Event], form: Form = "edn") -> Iterator[str]:
    """Give operations as Jepsen writes them: registers, mutexes, and transactions that append to lists.

    A process that leaves a call without an answer, or makes another one meanwhile, goes on under another number, as
    Jepsen's do. Keys are written as `jepsen.independent` does. Raises SpecError for an operation that Jepsen has no
    word for (swap, range, and transactions with compares).
    """
    keyed = any(event.key is not None for event in events if event.f != "txn")
    for at, (stamp, process, kind, event) in enumerate(_entries(events)):
        value, error = _exported(event, kind, keyed)
        if form == "log":
            shown = error if error is not None and kind == "info" else value
            fields = [f"INFO  jepsen.util - {process}", f":{kind}", f":{event.f}", dumps(shown)]
            if event.f == "read" and kind == "fail":
                # As the logs have it from which porcupine's tests read; nothing may follow.
                fields[-1] = ":timed-out"
            elif error is not None and kind != "info":
                fields.append(dumps(error))
            yield "\t".join(fields)
            continue
        op: dict[str, Any] = {"index": at, "time": stamp, "type": Keyword(kind), "process": process}
        op |= {"f": Keyword(event.f), "value": value}
        if error is not None:
            op["error"] = error
        yield json.dumps(op) if form == "json" else dumps({Keyword(k): v for k, v in op.items()})


def _entries(events: Sequence[Event]) -> Iterator[tuple[int, int, str, Event]]:
    """Give calls and answers in the order of time, equal instants so that they are concurrent, with process numbers."""
    stamps: list[tuple[int, int, int]] = []
    for i, event in enumerate(events):
        stamps.append((event.call, 0, i))
        if event.return_ is not None or event.outcome == "failed":
            stamps.append((event.call if event.return_ is None else event.return_, 1, i))
    taken = {event.process for event in events if isinstance(event.process, int) and event.process >= 0}
    following = max(taken, default=-1) + 1
    free: dict[int | str, list[int]] = {process: [process] for process in taken}
    numbers: dict[int, int] = {}
    for stamp, is_answer, i in sorted(stamps):
        event = events[i]
        idle = free.setdefault(event.process, [])
        if not is_answer:
            if not idle:
                idle.append(following)
                following += 1
            numbers[i] = heapq.heappop(idle)
            yield stamp, numbers[i], "invoke", event
            continue
        if event.outcome != "unknown":
            heapq.heappush(idle, numbers[i])
        refused = event.outcome == "failed" or (event.f == "cas" and event.outcome == "ok" and not event.answer)
        kind = "info" if event.outcome == "unknown" else "fail" if refused else "ok"
        yield stamp, numbers[i], kind, event


def _exported(event: Event, kind: str, keyed: bool) -> tuple[Any, Any]:
    value: Any
    if event.f == "txn":
        value = _exported_txn(event, kind)
    elif event.f in ("write", "cas"):
        value = event.arguments[0] if event.f == "write" else list(event.arguments)
    elif event.f in ("read", "delete"):
        value = event.answer if kind == "ok" else None
    elif event.f in ("acquire", "release"):
        value = None
    else:
        raise SpecError(f"Jepsen's histories have no {event.f}", remedy=f"Write {', '.join(_ONE_KEY)} and appends.")
    error = None
    if kind == "info":
        error = Keyword("unknown")
    elif kind == "fail" and event.outcome == "failed":
        error = Keyword("failed")
    return ([event.key, value] if keyed and event.f != "txn" else value), error


def _exported_txn(event: Event, kind: str) -> Any:
    operations = event.answer if kind == "ok" else event.arguments
    if not all(len(each) == 3 and each[0] in ("append", "r") for each in operations):
        raise SpecError("Jepsen's histories have no txn with compares", remedy="Write appends and reads of lists.")
    return [[Keyword(f), key, list(value) if isinstance(value, tuple) else value] for f, key, value in operations]
