"""Runs of our own as Jepsen's histories, so that Knossos, Elle and Porcupine can check what we have recorded.

A register's values are whole numbers: the id of the operation that wrote it, and 0 while the key does not exist.
Knossos takes a read of nil for one that may have found anything, and Porcupine's logs have numbers alone; so a delete
is a write of 0, and every register begins with a write of what it held (0 in a new store). What Jepsen has no word for
and may have written the key takes the key out; what only reads is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from etcdops.answers import KeyValue, RangeResult, TxnResult
from etcdops.errors import Refused, SpecError
from etcdops.histories.jepsen import Form, jepsen_lines
from etcdops.histories.requests import owner_of
from etcdops.ops import Put, Range, Txn
from etcdops.verify.models import Event
from etcdops.verify.registers import registers_of
from etcdops.workload.encoding import key_prefix, value_prefix
from etcdops.workload.history import Operation

__all__ = ["EXPORT_FORMATS", "EXPORT_MODELS", "Exported", "export_history", "write_export"]

#: What a run can be written as: Jepsen's EDN or JSON, or the text log of its etcd tests.
EXPORT_FORMATS: dict[str, Form] = {"edn": "edn", "json": "json", "etcd-log": "log"}
#: What its operations can be taken for.
EXPORT_MODELS = ("register", "append")

ModelName = Literal["register", "append"]

#: Where profiles keep their registers and their lists, under the run's prefix.
_PLACES: dict[str, str] = {"register": "r/", "append": "l/"}
#: The process that writes what there was at first; Jepsen's processes are numbers, and it gets one of its own.
_BEFORE = "before"
#: Values that are not the run's are numbered from here on.
_OTHERS = 1_000_000_000_000


class Exported(msgspec.Struct, frozen=True):
    """Operations as Jepsen's, of one store. `left_out` are keys that are not written, each with the id of the
    operation that no register has.

    Instants are nanoseconds since the first call.
    """

    run: str
    model: ModelName
    form: Form
    events: tuple[Event, ...]
    keys: tuple[str, ...]
    left_out: dict[str, int]

    def lines(self) -> Iterator[str]:
        """Give the lines of the file."""
        return jepsen_lines(self.events, self.form)


def export_history(
    history: Sequence[Operation],
    run: str,
    *,
    format: str = "edn",
    model: str = "",
    key: str = "",
    base: Iterable[KeyValue] = (),
) -> Exported:
    """Give the operations of a run, or of one window of it, as a history of Jepsen's.

    `format` is "edn", "json" or "etcd-log", which has one register. `model` is "register" (the keys of the profile
    register, or any one `key` of the run, with or without the run's prefix) or "append" (the transactions on lists, of
    the profiles append and mixed); without it, what the run has. `base` is what the store held before the first
    operation. Raises SpecError for a choice that there is not, Refused where the run has nothing of the kind.
    """
    if format not in EXPORT_FORMATS:
        raise SpecError(f"the format {format!r} is not known", remedy=f"Choose {', '.join(EXPORT_FORMATS)}.")
    if model and model not in EXPORT_MODELS:
        raise SpecError(f"the model {model!r} is not known", remedy=f"Choose {' or '.join(EXPORT_MODELS)}.")
    prefix = key_prefix(run).encode()
    chosen = model or ("register" if key or _has(history, prefix, "register") else "append")
    if chosen == "append" and (key or format == "etcd-log"):
        what = "--key is for registers" if key else "an etcd log has one register, and no transactions"
        raise SpecError(what, remedy="Leave --key out, and choose the format edn or json.")
    held = {kv.key: kv.value for kv in base}
    form = EXPORT_FORMATS[format]
    if chosen == "append":
        return _appends(history, run, prefix, form, held)
    return _registers(history, run, prefix, form, key, held)


def _has(history: Iterable[Operation], prefix: bytes, model: str) -> bool:
    place = prefix + _PLACES[model].encode()
    return any(_first_key(op).startswith(place) for op in history)


def _first_key(op: Operation) -> bytes:
    request = op.request
    if isinstance(request, Txn):
        return next((each.key for each in (*request.compares, *request.success) if not isinstance(each, Txn)), b"")
    return op.key


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")


def _name(key: bytes, prefix: bytes) -> str:
    """Give a key as it is written: without the run's prefix."""
    return key.removeprefix(prefix).decode(errors="backslashreplace")


def _in_time(before: Iterable[Event], events: Sequence[Event]) -> tuple[Event, ...]:
    """Put what there was at first, one write after the other, before all else, and count from the first call."""
    first = [msgspec.structs.replace(event, call=2 * at, return_=2 * at + 1) for at, event in enumerate(before)]
    origin = min((event.call for event in events), default=0) - 2 * len(first)
    return (
        *first,
        *(
            msgspec.structs.replace(
                event, call=event.call - origin, return_=None if event.return_ is None else event.return_ - origin
            )
            for event in events
        ),
    )


# -- registers


class _Numbers:
    """Values as whole numbers: the id of the operation that a value names, others from _OTHERS on, 0 for no value."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._taken: dict[int, bytes] = {}
        self._others: dict[bytes, int] = {}

    def __call__(self, value: bytes | None) -> int:
        if value is None:
            return 0
        number = owner_of(self._run, value)
        if number > 0 and self._taken.setdefault(number, value) == value:
            return number
        return self._others.setdefault(value, _OTHERS + len(self._others))


def _registers(
    history: Sequence[Operation], run: str, prefix: bytes, form: Form, key: str, held: dict[bytes, bytes]
) -> Exported:
    place = prefix + _PLACES["register"].encode()
    one = key.encode() if key.encode().startswith(prefix) else prefix + key.encode()
    wanted: Callable[[bytes], bool] = one.__eq__ if key else lambda each: each.startswith(place)
    registers = registers_of(history, wanted)
    left_out = {_name(each, prefix): number for each, number in registers.unfit.items()}
    number_of = _Numbers(run)
    names: list[str] = []
    before: list[Event] = []
    events: list[Event] = []
    for each, operations in registers.found.items():
        name = _name(each, prefix)
        shown = None if form == "log" else name
        made: list[Event] = []
        for op, event in operations:
            simple = _simple(event, number_of)
            if simple is None:
                left_out[name] = op.id
                break
            made += [msgspec.structs.replace(event, key=shown) for event in simple]
        else:
            names.append(name)
            value = number_of(held.get(each))
            before.append(Event(_BEFORE, "write", shown, (value,), "ok", None, 0, 0))
            # A text log has no word for a write that failed for certain, and that has no effect to be explained.
            events += [event for event in made if form != "log" or event.outcome != "failed" or event.f == "read"]
    _check_found(names, left_out, run, key, form)
    return Exported(run, "register", form, _in_time(before, events), tuple(names), left_out)


def _check_found(names: Sequence[str], left_out: dict[str, int], run: str, key: str, form: Form) -> None:
    if not names and left_out:
        name, number = next(iter(left_out.items()))
        raise Refused(
            f"the key {name} of {run} is no register: operation {number} writes it in a way that registers do not have",
            remedy="The keys of the profile register are registers: drill.run NAME --profile register.",
        )
    if not names:
        raise Refused(
            f"nothing was asked of the key {key} in {run}" if key else f"there are no registers in {run}",
            remedy="The profile register makes some: drill.run NAME --profile register. --key names any other key.",
        )
    if form == "log" and len(names) > 1:
        raise SpecError(
            f"an etcd log has one register, and {run} has {len(names)}",
            remedy=f"Name one, such as --key {names[0]}, or choose the format edn or json.",
        )


def _simple(event: Event, number_of: Callable[[bytes | None], int]) -> list[Event] | None:
    """Give an event as a read, a write or a compare-and-swap of numbers, or nothing; None if it is none of these."""
    known = event.outcome == "ok"
    if event.f in ("write", "swap", "delete"):
        return [_as(event, "write", (number_of(event.arguments[0]) if event.arguments else 0,))]
    if event.f == "read":
        return [_as(event, "read", (), number_of(event.answer) if known else None)]
    compares, then, otherwise = event.arguments
    succeeded, read = event.answer or (None, None)
    writes = [each for each in then if each[0] != "read"]
    if any(each[0] != "read" for each in otherwise) or len(writes) > 1 or len(set(compares)) > 1:
        return None
    if not writes:
        if known and not read:
            return []
        return [_as(event, "read", (), number_of(read[0]) if read else None)]
    new = number_of(writes[0][2]) if writes[0][0] == "put" else 0
    if not compares:
        return [_as(event, "write", (new,))]
    if known and succeeded is None:
        event = msgspec.structs.replace(event, outcome="unknown")
    return [_as(event, "cas", (number_of(compares[0][1]), new), succeeded)]


def _as(event: Event, f: str, arguments: tuple[Any, ...], answer: Any = None) -> Event:
    return msgspec.structs.replace(event, f=f, arguments=arguments, answer=answer)


# -- lists


def _appends(history: Sequence[Operation], run: str, prefix: bytes, form: Form, held: dict[bytes, bytes]) -> Exported:
    place = prefix + _PLACES["append"].encode()
    made = ((op, _transaction(op, run, place, prefix)) for op in history)
    events = [
        Event(
            op.process,
            "txn",
            None,
            asked,
            op.outcome,
            told if op.outcome == "ok" else None,
            op.call_ns,
            op.return_ns,
        )
        for op, (asked, told) in made
        if asked
    ]
    if not events:
        raise Refused(
            f"there are no transactions on lists in {run}",
            remedy="The profile append makes them: drill.run NAME --profile append.",
        )
    keys = dict.fromkeys(key for event in events for _, key, _ in event.arguments)
    lists = {_name(key, prefix): _elements(run, value) for key, value in sorted(held.items())}
    first = [tuple(("append", key, element) for element in lists[key]) for key in keys if lists.get(key)]
    before = [Event(_BEFORE, "txn", None, each, "ok", each, 0, 0) for each in first]
    return Exported(run, "append", form, _in_time(before, events), tuple(keys), {})


Micro = tuple[tuple[str, str, Any], ...]


def _transaction(op: Operation, run: str, place: bytes, prefix: bytes) -> tuple[Micro, Micro]:
    """Give what a transaction asked and was told about lists; of one whose comparisons did not hold, what it read."""
    if not isinstance(op.request, Txn):
        return (), ()
    branch, results = op.request.success, None
    if isinstance(op.answer, TxnResult):
        branch = op.request.success if op.answer.succeeded else op.request.failure
        results = op.answer.results
    asked: list[tuple[str, str, Any]] = []
    told: list[tuple[str, str, Any]] = []
    for at, each in enumerate(branch):
        if not isinstance(each, (Put, Range)) or not each.key.startswith(place):
            continue
        key = _name(each.key, prefix)
        if isinstance(each, Put):
            # The last element is what it adds to what it had seen, and compared with.
            asked.append(("append", key, _elements(run, each.value)[-1]))
            told.append(asked[-1])
            continue
        asked.append(("r", key, None))
        answer = results[at] if results and at < len(results) else None
        read: tuple[Any, ...] | None = None
        if isinstance(answer, RangeResult):
            read = _elements(run, answer.kvs[0].value) if answer.kvs else ()
        told.append(("r", key, read))
    return tuple(asked), tuple(told)


def _elements(run: str, value: bytes) -> tuple[Any, ...]:
    """Give a list's elements, numbers where they are; what no run has written is one element, as it is."""
    ours, colon, rest = value.partition(b":")
    if not colon or not ours.startswith(value_prefix(run).encode()):
        return (_text(value),)
    return tuple(int(each) if each.isdigit() else each for each in rest.decode(errors="backslashreplace").split(","))


def write_export(exported: Exported, path: str | Path) -> None:
    """Write a history to a file of its own. Raises Refused if there is one already, or it cannot be written."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in exported.lines())
    except FileExistsError as error:
        raise Refused(f"{path} is there already, and nothing is overwritten", remedy="Name another file.") from error
    except OSError as error:
        raise Refused(f"cannot write the history {path}: {error.strerror}", remedy="Name another file.") from error
