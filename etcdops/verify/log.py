"""The log: every event from the base revision on, as all members' watches delivered it together, and its lookup.

`unite` makes one log of all deliveries; `View` is the reference model on top of it, at whatever revision.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import eq, gt, lt, ne
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from etcdops.answers import Event, KeyValue
from etcdops.errors import EtcdError
from etcdops.model import Model
from etcdops.ops import Compare, in_range, refusal
from etcdops.verify.columns import Columns, Ints
from etcdops.verify.describing import describe_event, some
from etcdops.verify.shapes import ABSENT

__all__ = ["Log", "Mismatch", "Unknowable", "View", "unite"]

_SIGNS: dict[str, Any] = {"=": eq, "!=": ne, "<": lt, ">": gt}
_TARGETS = {"version": "version", "create_revision": "created", "mod_revision": "modified", "lease": "lease"}


#: What comes after so many missing revisions is not looked at: nothing could be said of it.
_GAP = 1_000_000


#: So many rows are compared at a time, so that what that needs stays small.
_AT_ONCE = 1 << 18


class Unknowable(Exception):
    """A state before the base revision was asked for: the log does not go back so far."""


class Mismatch(NamedTuple):
    """A revision for which two members, or one member at two times, delivered different events."""

    revision: int
    members: tuple[str, ...]
    events: tuple[tuple[Event, ...], ...]

    def __str__(self) -> str:
        sides = " and ".join(
            f"{some([describe_event(event) for event in events])} by {member}"
            for member, events in zip(self.members, self.events, strict=True)
        )
        return f"revision {self.revision} was delivered differently: {sides}"


class Log:
    """Every event from `base` (exclusive) to `end` (inclusive), on the keys that existed at `base`.

    Rows are the base's keys, then the events in order; those of revision r are `start[r - base - 1]` to
    `start[r - base]`. `holes` are revisions up to the newest that was delivered, without an event.
    """

    def __init__(self, columns: Columns, chosen: Ints, until: int) -> None:
        self.base = columns.base
        self.keys, self.values = columns.keys, columns.values
        events = columns.events
        modified = columns.kvs.modified[events.kv[chosen]]
        cut = np.flatnonzero(np.diff(modified, prepend=self.base) > _GAP)
        if len(cut):
            chosen, modified = chosen[: cut[0]], modified[: cut[0]]
        self.based = len(columns.based)
        self.kvs = columns.kvs
        # Single cells come out of these several times as quick as out of arrays, and as Python's own numbers.
        self._cells = [column.data for column in columns.kvs]
        self.row_kv = np.concatenate((columns.based, events.kv[chosen]))
        self.previous = events.previous[chosen]
        self.rows = columns.kvs.take(self.row_kv)
        self.newest = int(modified[-1]) if len(modified) else self.base
        self.end = min(self.newest, until) if until else self.newest
        revisions = np.arange(self.base + 1, self.newest + 2)
        self.start = self.based + np.searchsorted(modified, revisions)
        self.holes: list[int] = (revisions[:-1][np.diff(self.start) == 0]).tolist()
        self._index()

    def _index(self) -> None:
        at = np.concatenate((np.zeros(self.based, np.int64), self.rows.modified[self.based :] - self.base))
        self._width = self.newest - self.base + 2
        place = self.rows.key.astype(np.int64) * self._width + at
        self._order = np.argsort(place, kind="stable")
        self._places = place[self._order]
        self._one_place = self._places.data
        key = self.rows.key[self._order]
        before = np.full(len(key), -1)
        before[1:] = np.where(key[1:] == key[:-1], self._order[:-1], -1)
        self._before = np.empty(len(key), np.int64)
        self._before[self._order] = before
        self._attached: dict[int, list[int]] | None = None

    def follows(self, *, lenient: bool = False) -> npt.NDArray[np.bool_]:
        """Tell of each event whether its version, revisions and previous value follow from its key's state before.

        `lenient` accepts an event without the previous value that it should have.
        """
        rows = self.rows
        new = slice(self.based, None)
        before = self._before[new]
        lived = (before >= 0) & (rows.version[before] > 0)
        put = rows.version[new] != 0
        right = np.where(
            put,
            (rows.version[new] == np.where(lived, rows.version[before] + 1, 1))
            & (rows.created[new] == np.where(lived, rows.created[before], rows.modified[new])),
            lived,
        )
        right &= self.kvs.same(np.where(lived, self.row_kv[before], ABSENT), self.previous) | (
            lenient & (self.previous == ABSENT)
        )
        return right

    @property
    def before(self) -> Ints:
        """For each row, the row that was the key's state until then; -1 if there was none, a deletion counts as one."""
        return self._before

    def find(self, key: Any, revision: Any) -> Ints:
        """Give the rows that were keys' states at revisions, each -1 or a deletion's where the key did not exist."""
        if not len(self._order):
            return np.full(np.shape(key), -1)
        # Numbers of keys may come as short ones.
        key = np.asarray(key, np.int64)
        at = np.searchsorted(self._places, key * self._width + (revision - self.base), side="right") - 1
        found = self._order[at]
        return np.where((at >= 0) & (self.rows.key[found] == key), found, -1)

    def row(self, key: int, revision: int) -> int:
        """Give the row that was a key's state at a revision, -1 or a deletion's where the key did not exist."""
        first = key * self._width
        at = bisect_right(self._one_place, first + (revision - self.base)) - 1
        return int(self._order[at]) if at >= 0 and self._one_place[at] >= first else -1

    def number(self, key: bytes) -> int:
        """Give how many known keys are smaller: a key's own number if it is known."""
        return bisect_left(self.keys, key)

    def kv(self, row: int) -> KeyValue:
        """Give a row as a key with what etcd keeps of it."""
        return self.told(int(self.row_kv[row]))

    def told(self, number: int) -> KeyValue:
        """Give a row of the table of keys."""
        key, value, *rest = [column[number] for column in self._cells]
        return KeyValue(self.keys[key], self.values[value], *rest)

    def events(self, revision: int) -> tuple[Event, ...]:
        """Give the events of a revision, as they were delivered."""
        at = revision - self.base - 1
        return tuple(self._event(row) for row in range(self.start[at], self.start[at + 1]))

    def _event(self, row: int) -> Event:
        kv, previous = self.kv(row), int(self.previous[row - self.based])
        return Event("put" if kv.version else "delete", kv, None if previous == ABSENT else self.told(previous))

    def attached(self, lease: int, revision: int) -> list[int]:
        """Give the numbers of the keys that were attached to a lease at a revision, in order."""
        if self._attached is None:
            rows = np.flatnonzero(self.rows.lease)
            rows = rows[np.argsort(self.rows.lease[rows], kind="stable")]
            leases, first = np.unique(self.rows.lease[rows], return_index=True)
            parts = np.split(self.rows.key[rows], first[1:])
            self._attached = {
                one: sorted(set(keys.tolist())) for one, keys in zip(leases.tolist(), parts, strict=False)
            }
        held, state = [], self.rows
        for key in self._attached.get(lease, ()):
            row = self.row(key, revision)
            if row >= 0 and state.lease[row] == lease and state.version[row]:
                held.append(key)
        return held


class _AnyLease(dict[int, int]):
    """Takes every lease for granted: `leases.py` judges whether one could be alive."""

    def __contains__(self, lease: object) -> bool:
        return True


class View(Model):
    """The reference model at one revision of a log, on which operations are evaluated and nothing is applied."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._of = log
        self.leases = _AnyLease()

    def go(self, revision: int) -> View:
        """Go to a revision. Raises Unknowable for one before the base."""
        if revision < self._of.base:
            raise Unknowable
        self.revision = revision
        return self

    def get(self, key: bytes, revision: int = 0) -> KeyValue | None:
        """As Model does, at the view's revision by default."""
        number = self._of.number(key)
        if number == len(self._of.keys) or self._of.keys[number] != key:
            return None
        row = self._of.row(number, self._asked(revision))
        return self._of.kv(row) if row >= 0 and self._of.rows.version[row] else None

    def span(self, start: bytes, end: bytes = b"", revision: int = 0) -> list[KeyValue]:
        """As Model does, at the view's revision by default."""
        return [self._of.kv(row) for row in self._rows(start, end, revision)]

    def attached(self, lease: int) -> list[bytes]:
        """As Model does."""
        return [self._of.keys[number] for number in self._of.attached(lease, self.revision)]

    def holds(self, compare: Compare) -> bool:
        """As Model does, without making a tuple of each key that is compared."""
        if not compare.range_end or compare.target == "value":
            return super().holds(compare)
        rows = self._rows(compare.key, compare.range_end, 0)
        if not len(rows):
            return bool(_SIGNS[compare.sign](0, compare.operand))
        column = getattr(self._of.rows, _TARGETS[compare.target])
        return bool(np.all(_SIGNS[compare.sign](column[rows], compare.operand)))

    def check_revision(self, revision: int) -> None:
        """As Model does, for the future alone: what a compaction left is judged where compactions are."""
        if revision > self.revision:
            raise refusal("mvcc: required revision is a future revision")

    def _asked(self, revision: int) -> int:
        if 0 < revision < self._of.base:
            raise Unknowable
        return revision or self.revision

    def _rows(self, start: bytes, end: bytes, revision: int) -> Any:
        first, after = in_range(start, end)
        low = self._of.number(first)
        high = len(self._of.keys) if after is None else self._of.number(after)
        found = self._of.find(np.arange(low, max(low, high)), self._asked(revision))
        found = found[found >= 0]
        return found[self._of.rows.version[found] > 0]


def unite(columns: Columns, until: int) -> tuple[Log, list[Mismatch]]:
    """Give the one log up to a revision (0: up to the newest), and the revisions on which deliveries differ.

    The events of a revision are those that the first member to have any was given together.
    """
    events = columns.events
    modified = columns.kvs.modified[events.kv[events.event]]
    kept = modified > columns.base
    if until:
        kept &= modified <= until
    message, event, modified = events.message[kept], events.event[kept], modified[kept]
    if not len(event):
        return Log(columns, event, until), []
    # Runs: the events of one revision in one message.
    begins = np.ones(len(event), bool)
    begins[1:] = (message[1:] != message[:-1]) | (modified[1:] != modified[:-1])
    run = np.flatnonzero(begins)
    length = np.diff(np.append(run, len(event)))
    order = np.argsort(modified[run], kind="stable")
    first = np.ones(len(run), bool)
    first[1:] = modified[run][order][1:] != modified[run][order][:-1]
    reference = np.empty(len(run), np.int64)
    reference[order] = order[np.flatnonzero(first)][np.cumsum(first) - 1]
    chosen = order[first]

    differs = _differing(columns, event, begins, run, length, reference)

    member = events.messages.member

    def text(number: int) -> tuple[Event, ...]:
        chosen = event[run[number] : run[number] + length[number]]
        one = Log(columns, chosen, 0)
        return tuple(one._event(row) for row in range(one.based, one.based + len(chosen)))

    mismatches = [
        Mismatch(
            int(modified[run[number]]),
            tuple(columns.members[member[message[run[at]]]] for at in (reference[number], number)),
            (text(int(reference[number])), text(number)),
        )
        for number in np.flatnonzero(differs)[:5].tolist()
    ]
    flat = np.repeat(run[chosen], length[chosen]) + _within(length[chosen])
    return Log(columns, event[flat], until), mismatches


def _differing(
    columns: Columns, event: Ints, begins: npt.NDArray[np.bool_], run: Ints, length: Ints, reference: Ints
) -> npt.NDArray[np.bool_]:
    """Tell of each run whether it is not as its reference: as long, and every event the same."""
    differs: npt.NDArray[np.bool_] = length != length[reference]
    of_run = np.cumsum(begins, dtype=np.int32) - 1
    events = columns.events
    for part in range(0, len(event), _AT_ONCE):
        runs = of_run[part : part + _AT_ONCE]
        one = np.arange(part, part + len(runs))
        other = np.minimum(run[reference[runs]] + one - run[runs], len(event) - 1)
        alike = columns.kvs.same(events.kv[event[one]], events.kv[event[other]])
        alike &= columns.kvs.same(events.previous[event[one]], events.previous[event[other]])
        differs[runs[~alike]] = True
    return differs


def _within(length: Ints) -> Ints:
    """Give 0, 1, … up to each length, one after the other."""
    total = np.arange(int(length.sum()))
    return total - np.repeat(np.cumsum(length) - length, length)


def evaluate(view: View, request: Any) -> tuple[Any, tuple[Event, ...], str]:
    """Give what the model answers and the events it makes, or why it refuses."""
    try:
        answer, events = view.evaluate(request)
    except EtcdError as error:
        return None, (), error.text
    return answer, events, ""
