"""Operations of common shapes as rows of numbers, so that a million of them can be judged at once.

A shape says in rows what must be true of the log for an operation to be answered as it was: a key was such at a
revision, a revision holds such an event, a comparison held, so many keys lived in a range. `proof.py` looks whether
that is so. Whatever has no common shape, or is odd in the least, is left to the model.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from etcdops.workload.encoding import KINDS

if TYPE_CHECKING:
    from etcdops.verify.parts import Part, Translation

__all__ = [
    "ABSENT",
    "CODES",
    "EFFECT",
    "FAILS",
    "HOLDS",
    "KEEP_ALIVE",
    "KIND_BITS",
    "LOCAL",
    "OLD",
    "PLAIN",
    "UNSAID",
    "WRITES",
    "Rows",
    "Shapes",
    "Table",
]

Ints = npt.NDArray[np.int64]

#: Flags of an operation. LOCAL: served from one member's own state. EFFECT: acknowledged, and makes a revision. PLAIN:
#: it has a common shape. OLD: it reads an old revision. HOLDS, FAILS: its comparisons must all hold, or not. WRITES: it
#: is a transaction that may put or delete.
LOCAL, EFFECT, KEEP_ALIVE, PLAIN, OLD, HOLDS, FAILS, WRITES = 1, 2, 4, 8, 16, 32, 64, 128

#: What kind it is stands above these bits, as the number of the kind in the order of KINDS.
KIND_BITS = 8
CODES = {name: number << KIND_BITS for number, name in enumerate(KINDS.values())}

#: Instead of what a key was: it did not exist. Instead of a value: the key was deleted.
ABSENT = -1

#: Comparisons by number.
TARGETS = ("version", "create_revision", "mod_revision", "lease", "value")
SIGNS = ("=", "!=", "<", ">")

#: Instead of a key: that of the row.
UNSAID = -1

#: What a range that is written may leave out, from its limit on.
_DEFAULTS: tuple[Any, ...] = (0, 0, False, False, False, "none", "key", 0, 0, 0, 0)


class Rows(NamedTuple):
    """What must be true, by operation. Each field is a table of columns; numbers of keys are ranks.

    `states`: operation, revision, key, and what it was then: a row of the table of keys, or ABSENT.
    `events`: operation, which event of its revision from 0, key, value, lease: ABSENT as a value means a delete.
    `compares`: operation, revision, key, target, sign, operand.
    `spans`: operation, revision, first key, first key after it, count, number of rows of `states` that list the keys,
    the first of these rows.
    """

    states: list[Ints]
    events: list[Ints]
    compares: list[Ints]
    spans: list[Ints]


class Shapes:
    """Takes operations as they are written (see `workload.encoding`), with keys and values as bytes or as text.

    What an answer says of a key is given as its row in the table of keys, or ABSENT.
    """

    def __init__(self, key: Callable[[Any], int], value: Callable[[Any], int]) -> None:
        self._key, self._value = key, value
        self._bounds: dict[Hashable, int] = {}
        self.states, self.events, self.compares, self.spans = (
            Table("qqqq"),
            Table("qqqqq"),
            Table("qqqqqq"),
            Table("qqqqqqq"),
        )
        self._tables = self.states, self.events, self.compares, self.spans
        self._taken: dict[str, Callable[[int, Sequence[Any], Any, int], int]] = {
            "put": self._put_alone,
            "range": self._range_alone,
            "delete": self._delete_alone,
            "txn": self._txn,
            "grant": self._grant,
            "keep-alive": self._keep_alive,
        }

    def take(self, number: int, request: Sequence[Any], answer: Any, revision: int) -> int:
        """Give the flags of an acknowledged operation, PLAIN among them if its shape was a common one."""
        code = CODES[request[0]]
        take = self._taken.get(request[0])
        if take is None:
            return code
        lengths = [len(rows) for rows in self._tables]
        flags = take(number, request, answer, revision)
        if not flags & PLAIN:
            for rows, length in zip(self._tables, lengths, strict=True):
                rows.cut(length)
        return flags | code

    def finish(self, rank: Ints, keys: Ints, order: Callable[[list[Any]], Ints]) -> Rows:
        """Give the rows. `rank` gives a key's rank by its number, `keys` by its row in the table of keys, `order` how
        many keys are less than each bound.
        """
        states, events, compares, spans = (rows.columns() for rows in self._tables)
        for rows in (events, compares):
            rows[2] = rank[rows[2]]
        listed = states[2] == UNSAID
        states[2][~listed] = rank[states[2][~listed]]
        states[2][listed] = keys[states[3][listed]]
        if len(self._bounds):
            ranks = order(list(self._bounds))
            spans[2], spans[3] = ranks[spans[2]], ranks[spans[3]]
        return Rows(states, events, compares, spans)

    # -- parts of a history

    @property
    def bounds(self) -> list[Any]:
        """The bounds of ranges, in the order of their numbers."""
        return list(self._bounds)

    def bound_of(self, bound: Any) -> int:
        """Give the number of one of another's bounds."""
        return self._bounds.setdefault(bound, len(self._bounds))

    def given(self) -> tuple[list[Ints], list[Ints], list[Ints], list[Ints]]:
        """Give the rows with the numbers that they have while this takes operations; this is spent then."""
        states, events, compares, spans = (rows.columns() for rows in self._tables)
        return states, events, compares, spans

    def absorb(self, part: Part, to: Translation) -> None:
        """Take the rows of a part of a history, which come after all that was taken."""
        number, revision, key, row = part.states
        self.states.add_all(number + to.operations, revision, to.key_said(key), to.row(row))
        number, nth, key, value, lease = part.events
        self.events.add_all(number + to.operations, nth, to.keys[key], to.value(value), lease)
        number, revision, key, target, sign, operand = part.compares
        operand = to.operand(target, operand)
        self.compares.add_all(number + to.operations, revision, to.keys[key], target, sign, operand)
        number, revision, low, high, count, listed, first = part.spans
        self.spans.add_all(
            number + to.operations, revision, to.bounds[low], to.bounds[high], count, listed, first + to.states
        )

    # -- alone

    def _put_alone(self, number: int, request: Sequence[Any], answer: Any, revision: int) -> int:
        return EFFECT | PLAIN if self._put(number, request, answer, revision, 0) else EFFECT

    def _range_alone(self, number: int, request: Sequence[Any], answer: Any, revision: int) -> int:
        flags = LOCAL if len(request) > 5 and request[5] else 0
        if len(request) > 4 and request[4]:
            flags |= OLD
        return flags | PLAIN if self._range(number, request, answer, revision, revision) else flags

    def _delete_alone(self, number: int, request: Sequence[Any], answer: Any, revision: int) -> int:
        flags = EFFECT if answer[0] else 0
        at = revision - 1 if flags else revision
        return flags | PLAIN if self._delete(number, request, answer, at, 0) else flags

    def _grant(self, number: int, request: Sequence[Any], answer: Any, revision: int) -> int:
        return PLAIN if answer[0] == request[1] and answer[1] >= request[2] else 0

    def _keep_alive(self, number: int, request: Sequence[Any], answer: Any, revision: int) -> int:
        return KEEP_ALIVE | (PLAIN if answer[0] == request[1] else 0)

    # -- what operations are made of

    def add_listed(self, owners: Sequence[tuple[int, int]], row: int) -> None:
        """Take what ranges list: for each key an operation and a revision, their rows being together from `row` on."""
        count = len(owners)
        self.states.add_all(*zip(*owners, strict=True), np.full(count, UNSAID), np.arange(row, row + count))

    def _state(self, number: int, at: int, key: Any, kv: int) -> None:
        self.states.add(number, at, self._key(key), kv)

    def _put(self, number: int, request: Sequence[Any], answer: Any, revision: int, nth: int) -> bool:
        _, key, value, *rest = request
        lease = rest[0] if rest else 0
        prev_kv = bool(len(rest) > 1 and rest[1])
        if len(rest) > 2 and any(rest[2:]):
            return False
        self.events.add(number, nth, self._key(key), self._value(value), lease)
        if prev_kv:
            self._state(number, revision - 1, key, answer)
        return prev_kv or answer == ABSENT

    def _range(self, number: int, request: Sequence[Any], answer: Any, at: int, newest: int) -> bool:
        count, more, kvs = answer
        if len(request) <= 2:
            # By far the most frequent: a key, and nothing else asked.
            if more or count != len(kvs) or count > 1:
                return False
            self._state(number, at, request[1], kvs[0] if kvs else ABSENT)
            return True
        _, key, end, limit, old, _, keys_only, count_only, order, target, *bounds = (
            *request,
            *_DEFAULTS[len(request) - 3 :],
        )
        if any(bounds) or keys_only or target != "key" or order == "descend":
            return False
        if old < 0 or old > newest or limit < 0:
            return False
        at = old or at
        if not end:
            if more or count_only or count != len(kvs) or count > 1:
                return False
            self._state(number, at, key, kvs[0] if kvs else ABSENT)
            return True
        cut = 0 < limit < count and not count_only
        wanted = 0 if count_only else limit if cut else count
        if len(kvs) != wanted or bool(more) is not cut:
            return False
        first = len(self.states)
        for kv in kvs:
            self.states.add(number, at, UNSAID, kv)
        self.spans.add(number, at, self.bound(key), self.bound(end, True), count, len(kvs), first)
        return True

    def bound(self, key: Any, end: bool = False) -> int:
        """Give the number of a range's bound; as an end, one zero byte is the end of all keys."""
        return self.bound_of(None if end and key in (b"\0", "\0") else key)

    def _delete(self, number: int, request: Sequence[Any], answer: Any, at: int, nth: int) -> bool:
        """Take a delete of one key; of a range the answer does not tell which keys went."""
        _, key, *rest = request
        deleted, kvs = answer
        prev_kv = len(rest) > 1 and rest[1]
        if (rest and rest[0]) or deleted > 1 or len(kvs) != (deleted if prev_kv else 0):
            return False
        if not deleted:
            self._state(number, at, key, ABSENT)
            return True
        self.events.add(number, nth, self._key(key), ABSENT, 0)
        if kvs:
            self._state(number, at, key, kvs[0])
        return True

    # -- transactions

    def _txn(self, number: int, request: Sequence[Any], answer: Any, revision: int) -> int:
        _, compares, success, failure = request
        succeeded, results = answer
        effect = any(_changed(kind, inner) for _, kind, inner in results)
        flags = EFFECT if effect else 0
        if all(op[0] == "range" and len(op) > 5 and op[5] for op in (*success, *failure)):
            flags |= LOCAL
        if any(op[0] != "range" for op in (*success, *failure)):
            flags |= WRITES
        branch = success if succeeded else failure
        if len(branch) != len(results) or not (_well_formed(success) and _well_formed(failure)):
            return flags
        if len(compares) > _MOST:
            return flags
        at = revision - 1 if effect else revision
        for compare in compares:
            if not self._compare(number, compare, at):
                return flags
        made = 0
        changed: set[Any] = set()
        for op, (told, kind, inner) in zip(branch, results, strict=True):
            if op[0] != kind:
                return flags
            if kind == "range":
                if len(op) > 4 and op[4]:
                    flags |= OLD
                whole = len(op) > 2 and op[2]
                seen = revision if op[1] in changed and not whole else at
                if (made and whole) or not self._range(number, op, inner, seen, at):
                    return flags
            elif kind == "put":
                if not self._put(number, op, inner, revision, made):
                    return flags
                made += 1
                changed.add(op[1])
            elif not self._delete(number, op, inner, at, made):
                return flags
            elif inner[0]:
                made += 1
                changed.add(op[1])
            if told != (revision if made else at):
                return flags
        return flags | PLAIN | (HOLDS if succeeded else FAILS)

    def _compare(self, number: int, compare: Sequence[Any], at: int) -> bool:
        key, target, sign, operand = compare[:4]
        if not key or (len(compare) > 4 and compare[4]):
            return False
        if target == "value":
            if sign not in ("=", "!="):
                return False
            operand = self._value(operand)
        self.compares.add(number, at, self._key(key), TARGETS.index(target), SIGNS.index(sign), operand)
        return True


#: Larger transactions are left to the model, which knows etcd's limit.
_MOST = 64


def _changed(kind: str, answer: Any) -> bool:
    if kind == "txn":
        return any(_changed(inner, one) for _, inner, one in answer[1])
    return kind == "put" or (kind == "delete" and answer[0] > 0)


def _well_formed(branch: Sequence[Any]) -> bool:
    """Tell whether etcd would surely let a branch pass: single keys written, each once, and nothing nested."""
    written = []
    for op in branch:
        kind = op[0]
        if kind == "txn" or not op[1]:
            return False
        if kind == "range":
            continue
        if (kind == "delete" and len(op) > 2 and op[2]) or (kind == "put" and any(op[5:])):
            return False
        written.append(op[1])
    return len(branch) <= _MOST and (len(written) < 2 or len(set(written)) == len(written))


class Table:
    """Rows of whole numbers, taken one by one or many at once, and given as columns.

    `types` has a letter for each column, as `array` has them; columns grow in place, and are given without a copy.
    """

    def __init__(self, types: str) -> None:
        self._columns = [array(letter) for letter in types]
        self._last = array("q")

    def __len__(self) -> int:
        return len(self._columns[0]) + len(self._last) // len(self._columns)

    def add(self, *row: int) -> None:
        """Take a row."""
        self._last.extend(row)

    def add_all(self, *columns: Sequence[int] | Ints) -> None:
        """Take many rows, by columns."""
        self._settle()
        for column, more in zip(self._columns, columns, strict=True):
            column.frombytes(np.asarray(more, column.typecode).tobytes())

    def cut(self, length: int) -> None:
        """Forget the rows from the one numbered `length` on, which were taken one by one."""
        del self._last[(length - len(self._columns[0])) * len(self._columns) :]

    def columns(self) -> list[Ints]:
        """Give the columns; the table is spent."""
        self._settle()
        columns, self._columns = self._columns, [array(column.typecode) for column in self._columns]
        return [
            np.frombuffer(column, column.typecode) if column else np.empty(0, column.typecode) for column in columns
        ]

    def _settle(self) -> None:
        if self._last:
            rows = np.frombuffer(self._last, np.int64).reshape(-1, len(self._columns))
            self._last = array("q")
            self.add_all(*rows.T)
