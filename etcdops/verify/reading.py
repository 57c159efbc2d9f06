"""The columns of a run straight from its files, without an object for each operation: quick, and small in memory.

It gives what `building.columns_of` gives for the operations and deliveries of the same files.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from etcdops.verify.blocks import Block
from etcdops.verify.building import Builder
from etcdops.verify.columns import Columns
from etcdops.verify.files import Piece, blocks, decoded, whole
from etcdops.verify.helping import Helper, shared
from etcdops.verify.parts import Part
from etcdops.verify.reads import Reads
from etcdops.verify.recorded import State
from etcdops.verify.shapes import ABSENT, CODES, PLAIN, Ints
from etcdops.verify.taking import Line
from etcdops.workload.calls import OUTCOMES
from etcdops.workload.encoding import Codec, Text
from etcdops.workload.history import Operation, operation_of
from etcdops.workload.lines import bad_line, uncollected

__all__ = ["Reader", "read_columns"]

_ERRORS = (msgspec.MsgspecError, ValueError, TypeError, KeyError, IndexError)


class _Message(msgspec.Struct, array_like=True, gc=False):
    """A line of a member's events; see `workload.deliveries.EventsWriter`."""

    t_ns: int
    watch: int
    what: int
    revision: int
    rest: msgspec.Raw = msgspec.Raw(b"0")


class _Told(msgspec.Struct, array_like=True, gc=False):
    """What an event tells of a key; a delete's has only the key and, in the place of the value, the revision."""

    key: str
    value: str | int
    created: int = 0
    modified: int = 0
    version: int = 0
    lease: int = 0


#: What a key was of which nothing is known, and where.
_NEVER: tuple[_Told | None, int] = (None, ABSENT)

_decode = msgspec.json.Decoder().decode
_lines = msgspec.json.Decoder(Line)
_messages = msgspec.json.Decoder(_Message)
_events = msgspec.json.Decoder(list[list[list[_Told]]])
_parts = msgspec.json.Decoder(list[msgspec.Raw])


def read_columns(
    run: str, members: Sequence[str], base: State, histories: Sequence[Path], events: Mapping[str, Path]
) -> Columns:
    """Give the columns of a run's records, plain or compressed, and of each member's events.

    Operations are in the order in which they ended, as `kept.read_operations` has them.
    Raises StateError, naming file and line, for what cannot be read or is no record; a torn last line is left out.
    """
    reader = Reader(run, members)
    own, rest = shared(histories)
    with uncollected(), ExitStack() as stack:
        helpers = [stack.enter_context(Helper(run, members, pieces)) for pieces in rest]
        text = Text(run).write
        based = [reader.kv(text(kv.key), text(kv.value), *kv[2:]) for kv in base.kvs]
        for member, path in events.items():
            reader.read_events(member, path)
        reader.forget_events()
        reader.read_pieces(own)
        for helper in helpers:
            _join(reader, helper)
        source = _Source(run, histories, [reader.counts[path] for path in histories])
        return reader.finish(base, np.array(based, np.int64), source.operations, ordered=False)


def _join(reader: Reader, helper: Helper) -> None:
    """Let a reader take what a helper has read, of which nothing is kept."""
    part = helper.part()
    if part is None:
        reader.read_pieces(helper.pieces)
    else:
        reader.absorb(part)


class Reader(Builder):
    """Takes records block by block."""

    def __init__(self, run: str, members: Sequence[str]) -> None:
        super().__init__(run, members, read=Text(run).read)
        #: How many operations came of each file.
        self.counts: Counter[Path] = Counter()
        self._codec = Codec(run)
        self._reads = Reads(self.shapes, self.key_of)
        # The first member's messages as they are written, as long as all in them is new, and the first event of each;
        # events by their text, once another's messages are not the same.
        self._order: list[bytes] = []
        self._starts: list[int] = [0]
        self._known: dict[bytes, int] = {}
        self._newest = 0
        # By key, what it was last, and the row of that.
        self._last: dict[str, tuple[_Told, int]] = {}

    def rows(self, kvs: Sequence[tuple[Any, ...]]) -> int:
        """Add rows for what keys were, and give the first."""
        if not kvs:
            return len(self._kvs)
        key, value, *numbers = zip(*kvs, strict=True)
        return self.add_kvs([*map(self.key_of, key)], self.values_of(value), *numbers)

    # -- events

    def read_events(self, member: str, path: Path) -> None:
        """Take what a member delivered."""
        number, place = self.member(member), 0
        for first, block in blocks(whole(path), "events"):
            lines: list[_Message] = decoded(_messages, path, first, block)
            whats = [line.what for line in lines]
            places = np.flatnonzero(np.array(whats) == 1)
            raws = [bytes(line.rest) for line in lines if line.what == 1]
            messages = places + self.messages
            try:
                if raws == self._order[place : place + len(raws)]:
                    self._deliver(messages, place)
                else:
                    self._take_events(messages, raws, place)
                starts: list[int] = (
                    [_decode(line.rest) if line.what == 0 else 0 for line in lines] if 0 in whats else [0] * len(lines)
                )
            except _ERRORS as error:
                raise bad_line(path, first, error) from error
            place += len(raws)
            self.add_messages(
                number,
                whats,
                t_ns=[line.t_ns for line in lines],
                watch=[line.watch for line in lines],
                revision=[line.revision for line in lines],
                start=starts,
            )

    def _take_events(self, messages: Ints, raws: list[bytes], place: int) -> None:
        """Take messages that are not those of the first member at that place."""
        if place == len(self._order) and self._starts[-1] == len(self.events) and not self._known:
            told = _events.decode(b"[" + b",".join(raws) + b"]")
            if self._newer(told):
                self._order += raws
                ends = np.cumsum([len(events) for events in told]) + self._starts[-1]
                self._starts += ends.tolist()
                self._add_events([event for events in told for event in events])
                self._deliver(messages, place)
                return
        known = self._known
        if not known:
            for message, start in zip(self._order, self._starts, strict=False):
                for at, part in enumerate(_parts.decode(message), start=start):
                    known[b"[" + bytes(part) + b"]"] = at
        count = len(self.events)
        delivered: list[tuple[int, int]] = []
        new: list[list[_Told]] = []
        for message, raw in zip(messages.tolist(), raws, strict=True):
            number = known.get(raw)
            if number is not None:
                delivered.append((message, number))
                continue
            for part in _parts.decode(raw):
                # As it would be written if it were alone in its message.
                alone = b"[" + bytes(part) + b"]"
                number = known.get(alone)
                if number is None:
                    number = known[alone] = count + len(new)
                    new += _events.decode(b"[" + alone + b"]")[0]
                delivered.append((message, number))
        self._add_events(new)
        self.delivered.add_all(*zip(*delivered, strict=True))

    def _deliver(self, messages: Ints, place: int) -> None:
        """Take messages that are those of the first member from a place on."""
        starts = np.array(self._starts[place : place + len(messages) + 1])
        self.delivered.add_all(np.repeat(messages, np.diff(starts)), np.arange(starts[0], starts[-1]))

    def _newer(self, told: list[list[list[_Told]]]) -> bool:
        """Tell whether each message is of newer revisions than all before it, and so brings nothing that is known."""
        newest = self._newest
        for events in told:
            if len(events) == 1:
                kv = events[0][0]
                oldest = youngest = kv.modified or _whole(kv.value)
            else:
                # Events of one revision have different keys, in a log that is as it should be.
                keys = {(event[0].modified or _whole(event[0].value), event[0].key) for event in events}
                if len(keys) < len(events) or not keys:
                    return False
                oldest, youngest = min(keys)[0], max(keys)[0]
            if oldest <= newest:
                return False
            newest = youngest
        self._newest = newest
        return True

    def _add_events(self, events: list[list[_Told]]) -> None:
        """Take events that are not known yet; their previous values mostly are."""
        last, row = self._last, len(self._kvs)
        kvs: list[_Told] = []
        rows: list[int] = []
        befores: list[int] = []
        for event in events:
            kv, previous = event[0], ABSENT
            if isinstance(kv.value, int):
                kv = _Told(kv.key, "", 0, kv.value, 0, 0)
            if len(event) > 1:
                known, previous = last.get(kv.key, _NEVER)
                if known != event[1]:
                    previous = row
                    kvs.append(event[1])
                    row += 1
            kvs.append(kv)
            last[kv.key] = kv, row
            rows.append(row)
            befores.append(previous)
            row += 1
        if rows:
            self.add_kvs(
                [*map(self.key_of, [kv.key for kv in kvs])],
                self.values_of([kv.value for kv in kvs]),
                [kv.created for kv in kvs],
                [kv.modified for kv in kvs],
                [kv.version for kv in kvs],
                [kv.lease for kv in kvs],
            )
            self.events.add_all(rows, befores)

    def forget_events(self) -> None:
        """Free what only the reading of events needs."""
        self._order.clear()
        self._known.clear()
        self._last.clear()

    # -- operations

    def read_pieces(self, pieces: Sequence[Piece]) -> None:
        """Take operations from pieces of files, one after the other."""
        for piece in pieces:
            self._read_piece(piece)

    def _read_piece(self, piece: Piece) -> None:
        path = piece.path
        for first, block in blocks(piece, "history"):
            lines: list[Line] = decoded(_lines, path, first, block)
            taking = Block(self, self._reads, lines, self.operations)
            try:
                flags = taking.take()
                numbers = {name: self.member(name) for name in {line.member for line in lines}}
                streams = self.streams
                scheduled = np.array([line.scheduled for line in lines])
                call = scheduled + np.array([line.late for line in lines])
                self.add_operations(
                    flags,
                    [OUTCOMES[line.outcome] for line in lines],
                    id=[line.id for line in lines],
                    stream=[streams[line.stream] for line in lines],
                    member=[numbers[line.member] for line in lines],
                    scheduled=scheduled,
                    call=call,
                    back=call + np.array([line.took for line in lines]),
                    revision=[line.first if line.outcome == "ok" else 0 for line in lines],
                    attempt=[line.attempt for line in lines],
                )
            except _ERRORS as error:
                raise bad_line(path, first + taking.at, error) from error
            self.counts[path] += len(lines)

    def part(self) -> Part:
        """Give all that was taken, for another to `absorb`; this is spent then."""
        return self.give(dict(self.counts))

    def absorb(self, part: Part) -> None:
        """Take what another has taken, after what this has taken."""
        super().absorb(part)
        self.counts.update(part.counts)

    def take_other(self, number: int, line: Line) -> int:
        """Take an operation of whatever kind and outcome, and give its flags."""
        request = _decode(line.request)
        kind = request[0]
        if line.outcome != "ok":
            op = _operation(self._codec, line)
            if line.outcome == "unknown":
                self.general[number] = op
                if kind == "grant":
                    self.granted.add(number, request[1])
            else:
                self.failed[number] = op
                self._fail(number, request)
            return CODES[kind]
        if kind == "grant":
            self.granted.add(number, request[1])
        flags = self.shapes.take(number, request, self._answer(kind, _decode(line.second)), line.first)
        if not flags & PLAIN:
            self.general[number] = _operation(self._codec, line)
        return flags

    def _fail(self, number: int, request: list[Any]) -> None:
        """Take note of what an operation that failed would have put."""
        if request[0] == "put":
            self.attempts.add(number, self.key(request[1]), self.value(request[2]))
        elif request[0] == "txn":
            for inner in (*request[2], *request[3]):
                self._fail(number, inner)

    def _answer(self, kind: str, answer: Any) -> Any:
        """Give an answer with rows for what it tells of keys."""
        if kind == "range":
            return answer[0], answer[1], [self.kv(*kv) for kv in answer[2]]
        if kind == "put":
            return ABSENT if answer is None else self.kv(*answer)
        if kind == "txn":
            return answer[0], [(revision, inner, self._answer(inner, one)) for revision, inner, one in answer[1]]
        if kind == "delete":
            return answer[0], [self.kv(*kv) for kv in answer[1]]
        return answer


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _operation(codec: Codec, line: Line) -> Operation:
    parts: list[Any] = [
        line.id,
        line.stream,
        _decode(line.process),
        line.member,
        _decode(line.request),
        line.scheduled,
        line.late,
        line.took,
        line.outcome,
        line.first,
        _decode(line.second),
    ]
    return operation_of(codec, [*parts, line.attempt])


class _Source:
    """Finds an operation in its file again, which only a failure asks for."""

    def __init__(self, run: str, histories: Sequence[Path], counts: Sequence[int]) -> None:
        self._codec = Codec(run)
        self._files = list(zip(histories, counts, strict=True))
        self._known: dict[int, Operation] = {}

    def operations(self, numbers: Sequence[int]) -> list[Operation]:
        """Give operations by their numbers, which are in order; they are kept, for several may ask for the same."""
        unread = [number for number in numbers if number not in self._known]
        if unread:
            self._known.update(zip(unread, self._find(unread), strict=True))
        return [self._known[number] for number in numbers]

    def _find(self, numbers: Sequence[int]) -> list[Operation]:
        found: list[Operation] = []
        first = 0
        for path, count in self._files:
            if len(found) < len(numbers) and numbers[len(found)] < first + count:
                for _, block in blocks(whole(path), "history"):
                    after = first + block.count(b"\n")
                    if len(found) == len(numbers):
                        break
                    if numbers[len(found)] < after:
                        lines = block.split(b"\n")
                        upto = bisect_left(numbers, after)
                        for number in numbers[len(found) : upto]:
                            found.append(_operation(self._codec, _lines.decode(lines[number - first])))
                    first = after
            else:
                first += count
        return found
