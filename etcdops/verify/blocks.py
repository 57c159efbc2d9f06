"""The operations of a block of lines as columns: those of the most frequent shapes many at a time, by their text.

What is common to all of a kind is decoded at once, and nothing is made an object of that a number can stand for.
Whatever is not of the plainest kind is taken one by one, by `Shapes`.
"""

from __future__ import annotations

import re
from itertools import compress
from typing import Any

import msgspec
import numpy as np

from etcdops.verify.reads import Reads
from etcdops.verify.shapes import ABSENT, CODES, EFFECT, FAILS, HOLDS, PLAIN, SIGNS, TARGETS, WRITES
from etcdops.verify.swaps import take_swaps
from etcdops.verify.taking import Kv, Line, Taker

__all__ = ["Block"]


class _Put(msgspec.Struct, array_like=True, gc=False):
    kind: str
    key: str
    value: str
    lease: int = 0
    prev_kv: bool = False
    ignore_value: bool = False
    ignore_lease: bool = False


class _Delete(msgspec.Struct, array_like=True, gc=False):
    kind: str
    key: str
    range_end: str = ""
    prev_kv: bool = False


class _Op(msgspec.Struct, array_like=True, gc=False):
    """What a transaction does: of a put, `first` is the value. `second` stands where there is more to it."""

    kind: str
    key: Any
    first: Any = None
    second: Any = None


class _Compare(msgspec.Struct, array_like=True, gc=False):
    key: str
    target: str
    sign: str
    operand: Any
    range_end: str = ""


class _Txn(msgspec.Struct, array_like=True, gc=False):
    kind: str
    compares: list[_Compare]
    success: list[_Op]
    failure: list[_Op]


_decode = msgspec.json.Decoder().decode
_kvs = msgspec.json.Decoder(list[Kv])
_puts = msgspec.json.Decoder(list[_Put])
_deletes = msgspec.json.Decoder(list[_Delete])
_deleted = msgspec.json.Decoder(list[tuple[int, list[Kv]]])
_ranged = msgspec.json.Decoder(list[tuple[int, int, list[Kv]]])
_txns = msgspec.json.Decoder(list[_Txn])
_answers = msgspec.json.Decoder(list[tuple[int, list[tuple[int, str, tuple[int, int, list[Kv]] | None]]]])

#: Comparisons by number, but for those with values.
_TARGETS = {name: number for number, name in enumerate(TARGETS) if name != "value"}
_SIGNS = {name: number for number, name in enumerate(SIGNS)}

#: How an answer begins that holds no key, and one key.
_NOTHING, _ONE = b"[0,0,[]]", b"[1,0,[["

#: What transactions hold that are taken one by one: their answers may have another form.
_APART = re.compile(rb'"delete"|true|.\["txn"')

#: How requests begin that are taken together, with what takes them.
_GROUPS = {b'["put"': "_puts", b'["txn"': "_txns", b'["dele': "_deletes"}


_PUT = CODES["put"] | EFFECT | PLAIN
_DELETE = CODES["delete"] | PLAIN
_TXN = CODES["txn"] | PLAIN


class Block:
    """One block of operations, of which the first has the number `first`."""

    def __init__(self, taker: Taker, reads: Reads, lines: list[Line], first: int) -> None:
        self._taker, self._reads, self._lines, self._first = taker, reads, lines, first
        self._flags: list[int] = []
        self.at = 0

    def take(self) -> list[int]:
        """Take all, and give their flags; `at` is the one under way when an error is raised."""
        first, flags, take_other = self._first, self._flags, self._taker.take_other
        gets, spans = self._reads.gets, self._reads.spans
        absent: list[tuple[int, int, int]] = []
        single: list[tuple[int, int, int]] = []
        told: list[bytes] = []
        ranges: list[tuple[int, tuple[int, int, int, int]]] = []
        groups: dict[bytes, tuple[list[int], list[bytes]]] = {start: ([], []) for start in _GROUPS}
        for at, line in enumerate(self._lines):
            if line.outcome == "ok":
                raw = bytes(line.request)
                get = gets.get(raw)
                if get is None:
                    group = groups.get(raw[:6])
                    if group is not None:
                        group[0].append(at)
                        group[1].append(raw)
                        flags.append(0)
                        continue
                    if raw[:8] == b'["range"':
                        if raw not in spans:
                            self.at = at
                            self._reads.learn(raw)
                            get = gets.get(raw)
                        span = spans.get(raw)
                        if span is not None:
                            ranges.append((at, span))
                            flags.append(0)
                            continue
                if get is not None:
                    second = bytes(line.second)
                    if second == _NOTHING:
                        absent.append((first + at, line.first, get[0]))
                        flags.append(get[1])
                        continue
                    if second[:7] == _ONE:
                        single.append((first + at, line.first, get[0]))
                        told.append(second[6:-2])
                        flags.append(get[1])
                        continue
            self.at = at
            flags.append(take_other(first + at, line))
        self._gets(absent, single, told)
        if ranges:
            self._ranges(ranges)
        for start, (places, raws) in groups.items():
            if places:
                getattr(self, _GROUPS[start])(places, raws)
        return flags

    def _other(self, at: int) -> None:
        self.at = at
        self._flags[at] = self._taker.take_other(self._first + at, self._lines[at])

    def _seconds(self, places: list[int]) -> bytes:
        lines = self._lines
        return b"[" + b",".join([bytes(lines[at].second) for at in places]) + b"]"

    def _gets(self, absent: list[tuple[int, int, int]], single: list[tuple[int, int, int]], told: list[bytes]) -> None:
        states = self._taker.shapes.states
        if absent:
            states.add_all(*zip(*absent, strict=True), np.full(len(absent), ABSENT))
        if not single:
            return
        kvs = _kvs.decode(b"[" + b",".join(told) + b"]")
        if len(kvs) != len(single):
            # An answer says one key and has two.
            for number, _, _ in single:
                self._other(number - self._first)
            return
        row = self._taker.rows(kvs)
        states.add_all(*zip(*single, strict=True), np.arange(row, row + len(kvs)))

    def _ranges(self, ranges: list[tuple[int, tuple[int, int, int, int]]]) -> None:
        first, lines, shapes = self._first, self._lines, self._taker.shapes
        told = _ranged.decode(self._seconds([at for at, _ in ranges]))
        listed: list[Kv] = []
        owners: list[tuple[int, int]] = []
        spans: list[tuple[int, int, int, int, int, int, int]] = []
        states = len(shapes.states)
        for (at, (low, high, limit, flags)), (count, more, kvs) in zip(ranges, told, strict=True):
            cut = 0 < limit < count
            if len(kvs) != (limit if cut else count) or bool(more) is not cut:
                continue
            number, revision = first + at, lines[at].first
            spans.append((number, revision, low, high, count, len(kvs), states + len(listed)))
            owners += [(number, revision)] * len(kvs)
            listed += kvs
            self._flags[at] = flags
        if listed:
            row = self._taker.rows(listed)
            shapes.add_listed(owners, row)
        if spans:
            shapes.spans.add_all(*zip(*spans, strict=True))
        for at, _ in ranges:
            if not self._flags[at]:
                self._other(at)

    def _puts(self, places: list[int], raws: list[bytes]) -> None:
        lines, first, taker, flags = self._lines, self._first, self._taker, self._flags
        puts = _puts.decode(b"[" + b",".join(raws) + b"]")
        seconds = [bytes(lines[at].second) for at in places]
        odd = [
            put.ignore_value or put.ignore_lease or not (put.prev_kv or second == b"null")
            for put, second in zip(puts, seconds, strict=True)
        ]
        if True in odd:
            for at, strange in zip(places, odd, strict=True):
                if strange:
                    self._other(at)
            kept = [not strange for strange in odd]
            places, puts, seconds = [*compress(places, kept)], [*compress(puts, kept)], [*compress(seconds, kept)]
        for at in places:
            flags[at] = _PUT
        keys = [*map(taker.key_of, [put.key for put in puts])]
        values = taker.values_of([put.value for put in puts])
        number = np.array(places, np.int64) + first
        taker.shapes.events.add_all(number, np.zeros(len(puts), np.int64), keys, values, [put.lease for put in puts])
        absent: list[tuple[int, int, int]] = []
        states: list[tuple[int, int, int]] = []
        told: list[bytes] = []
        for at, put, key, second in zip(places, puts, keys, seconds, strict=True):
            if put.prev_kv:
                if second == b"null":
                    absent.append((first + at, lines[at].first - 1, key))
                else:
                    states.append((first + at, lines[at].first - 1, key))
                    told.append(second)
        self._gets(absent, states, told)

    def _deletes(self, places: list[int], raws: list[bytes]) -> None:
        lines, first, key = self._lines, self._first, self._taker.key_of
        events: list[tuple[int, int, int, int, int]] = []
        absent: list[tuple[int, int, int]] = []
        single: list[tuple[int, int, int]] = []
        told: list[Kv] = []
        requests = _deletes.decode(b"[" + b",".join(raws) + b"]")
        for at, request, (deleted, kvs) in zip(places, requests, _deleted.decode(self._seconds(places)), strict=True):
            if request.range_end or deleted > 1 or len(kvs) != (deleted if request.prev_kv else 0):
                self._other(at)
                continue
            number, revision = key(request.key), lines[at].first
            if deleted:
                events.append((first + at, 0, number, ABSENT, 0))
                if kvs:
                    single.append((first + at, revision - 1, number))
                    told += kvs
                self._flags[at] = _DELETE | EFFECT
            else:
                absent.append((first + at, revision, number))
                self._flags[at] = _DELETE
        if events:
            self._taker.shapes.events.add_all(*zip(*events, strict=True))
        self._gets(absent, [], [])
        if single:
            row = self._taker.rows(told)
            self._taker.shapes.states.add_all(*zip(*single, strict=True), np.arange(row, row + len(told)))

    def _txns(self, places: list[int], raws: list[bytes]) -> None:
        rest = take_swaps(self._taker, self._lines, self._first, self._flags, places, raws)
        if not rest[0]:
            return
        try:
            self._txns_but_swaps(*rest)
        except msgspec.MsgspecError:
            # What is wrong is told by its place among all transactions.
            self._txns_but_swaps(places, raws)
            raise

    def _txns_but_swaps(self, places: list[int], raws: list[bytes]) -> None:
        """Take transactions that compare single keys, read some, and put one at most; the others one by one."""
        lines, first = self._lines, self._first
        key, value = self._taker.key_of, self._taker.value_of
        compares: list[tuple[int, int, int, int, int, int]] = []
        events: list[tuple[int, int, int, int, int]] = []
        states: list[tuple[int, int, int, int]] = []
        told: list[Kv] = []
        kept = [_APART.search(raw) is None for raw in raws]
        try:
            answers = _answers.decode(self._seconds([*compress(places, kept)]))
        except msgspec.ValidationError:
            # One of them has something in its answer that was not asked for.
            kept = [good and self._has_plain_answer(at) for at, good in zip(places, kept, strict=True)]
            answers = _answers.decode(self._seconds([*compress(places, kept)]))
        if False in kept:
            for at, good in zip(places, kept, strict=True):
                if not good:
                    self._other(at)
            places, raws = [*compress(places, kept)], [*compress(raws, kept)]
        requests = _txns.decode(b"[" + b",".join(raws) + b"]")
        for at, txn, (succeeded, results) in zip(places, requests, answers, strict=True):
            branch, other = (txn.success, txn.failure) if succeeded else (txn.failure, txn.success)
            put, not_done = _only_put(branch), _only_put(other)
            if put is None or not_done is None or len(branch) != len(results) or len(txn.compares) > 64:
                self._other(at)
                continue
            number, revision = first + at, lines[at].first
            before = now = revision - 1 if put.key else revision
            had = len(compares), len(events), len(states), len(told)
            good = True
            for compare in txn.compares:
                target = _TARGETS.get(compare.target)
                good = good and target is not None and not compare.range_end and bool(compare.key)
                compares.append((number, before, key(compare.key), target or 0, _SIGNS[compare.sign], compare.operand))
            for op, (shown, kind, answer) in zip(branch, results, strict=True):
                if kind != op.kind:
                    good = False
                elif op is put:
                    now = revision
                    events.append((number, 0, key(op.key), value(op.first), 0))
                    good = good and answer is None
                elif answer is None:
                    good = False
                else:
                    count, more, kvs = answer
                    good = good and count == len(kvs) <= 1 and not more
                    seen = now if op.key == put.key else before
                    states.append((number, seen, key(op.key), len(told) if kvs else ABSENT))
                    told += kvs
                good = good and shown == now
            if good:
                flags = _TXN | (HOLDS if succeeded else FAILS) | (EFFECT if put.key else 0)
                self._flags[at] = flags | (WRITES if put.key or not_done.key else 0)
            else:
                del compares[had[0] :], events[had[1] :], states[had[2] :], told[had[3] :]
                self._other(at)
        shapes = self._taker.shapes
        if compares:
            shapes.compares.add_all(*zip(*compares, strict=True))
        if events:
            shapes.events.add_all(*zip(*events, strict=True))
        if states:
            row = self._taker.rows(told)
            *columns, found = zip(*states, strict=True)
            rows = np.array(found)
            shapes.states.add_all(*columns, np.where(rows == ABSENT, ABSENT, rows + row))

    def _has_plain_answer(self, at: int) -> bool:
        try:
            _answers.decode(self._seconds([at]))
        except msgspec.ValidationError:
            return False
        return True


_NO_PUT = _Op("", "")


def _only_put(branch: list[_Op]) -> _Op | None:
    """Give the put of a branch that has one at most besides reads of single keys; None if it has anything else."""
    found = _NO_PUT
    for op in branch:
        if op.second is not None or not op.key or (op.first is None) is not (op.kind == "range"):
            return None
        if op.kind == "put":
            if found is not _NO_PUT:
                return None
            found = op
        elif op.kind != "range":
            return None
    return found if 0 < len(branch) <= 64 else None
