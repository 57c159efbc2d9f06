"""The nine guarantees of a watch, over what each member delivered, against the one log of all.

They are those of etcd's API guarantees (https://etcd.io/docs/v3.5/learning/api_guarantees/, "Watch APIs") and of etcd's
robustness tests (tests/robustness/validate/watch.go): filterable, ordered, unique, atomic, bookmarkable, resumable,
reliable, and what prev_kv, IsCreate and IsModify say.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from etcdops.answers import Event, KeyValue
from etcdops.ops import Compact, in_range
from etcdops.verify import Check
from etcdops.verify.columns import HAPPENINGS, Ints, Messages
from etcdops.verify.describing import instant, some
from etcdops.verify.recorded import Recorded
from etcdops.verify.shapes import ABSENT
from etcdops.verify.witness import Part, Witness, witness
from etcdops.workload.deliveries import ExtraDeliveries

__all__ = ["GUARANTEES", "NAME", "check_watch"]

NAME = "watch"
_SHOWN = 3

Flags = npt.NDArray[np.bool_]

#: The guarantees by name, in the order in which breaches are told.
GUARANTEES = (
    "Filterable",
    "Ordered",
    "Unique",
    "Atomic",
    "Bookmarkable",
    "Resumable",
    "Reliable",
    "PrevKV",
    "IsCreate/IsModify",
)


def check_watch(recorded: Recorded, found: Witness | None = None) -> Check:
    """Give the check over every member's deliveries; `found` saves the witness from being worked out again.

    Watches on parts of the keys (`recorded.extra`) are held to the same, of what is in their range and not filtered
    out. It fails naming the guarantee, the member and the revision. It is inconclusive when a member that served at the
    end had not delivered everything up to the tombstone, or was not watched in between.
    """
    part = (found or witness(recorded)).part
    broken: dict[str, list[str]] = {name: [] for name in GUARANTEES}
    doubts: list[str] = []
    if part is None:
        return Check(NAME, "inconclusive", "there is no log to compare with")
    whole: list[_Stream] = [_Member(part, name, broken, doubts) for name in part.columns.members]
    extra = [_Extra(part, each, broken, doubts) for each in recorded.extra]
    for one in (*whole, *extra):
        one.check()
    until = min(recorded.observed.tombstone or part.log.end, part.log.end)
    served = [member for member, final in recorded.observed.final.items() if not final.error]
    _check_ends(served, part, until, doubts)
    for watch in extra:
        if watch.member in served:
            watch.check_end(until)
    said = [f"{name} is broken: {some(texts, _SHOWN)}" for name, texts in broken.items() if texts]
    if said:
        return Check(NAME, "failed", "; ".join(said))
    if doubts:
        return Check(NAME, "inconclusive", some(doubts))
    return Check(NAME, "passed", _passed(part, whole, extra))


def _passed(part: Part, whole: Sequence[_Stream], extra: Sequence[_Extra]) -> str:
    members = ", ".join(part.columns.members)
    events = sum(len(one.revision) for one in whole)
    said = f"{events} events delivered by {members} keep all {len(GUARANTEES)} guarantees"
    if not extra:
        return said
    names = ", ".join(one.name for one in extra)
    events = sum(len(one.revision) for one in extra)
    of = "1 watch on a part" if len(extra) == 1 else f"{len(extra)} watches on parts"
    return f"{said}; so do {events} events of {of} of the keys ({names})"


def _check_ends(served: Sequence[str], part: Part, until: int, doubts: list[str]) -> None:
    """Whoever served at the end has delivered everything up to there."""
    messages = part.columns.events.messages
    for member in served:
        number = part.columns.members.index(member) if member in part.columns.members else -1
        newest = int(messages.newest[messages.member == number].max(initial=0))
        if newest < until:
            doubts.append(f"{member} delivered nothing after revision {newest}, of {until}")


class _Stream:
    """What one record of deliveries holds, flat: a row for each event that belongs to the log.

    `message` is the row's message in `messages`, `key` the key's number in `keys`, which are the log's and what it has
    not. `logged` are the revisions of the log, one for each event that the watch should deliver; `before` is the
    revision after which it owes something.
    """

    messages: Messages
    message: Ints
    revision: Ints
    key: Ints
    version: Ints
    created: Ints
    logged: Ints
    keys: Sequence[bytes]

    def __init__(self, part: Part, name: str, broken: dict[str, list[str]], doubts: list[str]) -> None:
        self.columns, self.log = part.columns, part.log
        self.name, self.broken, self.doubts = name, broken, doubts
        self.before = self.log.base
        calls = self.columns.operations.call
        self.origin = int(calls.min()) if len(calls) else 0

    def unwanted(self) -> Flags:
        """Tell of each event whether it is not what was asked for."""
        raise NotImplementedError

    def known(self, row: Ints) -> Flags:
        """Tell of each event whether it is the one in a row of the log; -1 is none."""
        raise NotImplementedError

    def previous(self, row: Ints) -> tuple[Flags, Flags]:
        """Tell of each event whether its previous value is a row of the log (-1: none), and whether it has any."""
        raise NotImplementedError

    def check(self) -> None:
        """Look for what is broken, and for what cannot be told."""
        self.watch = self.messages.watch[self.message]
        self._break("Filterable", np.flatnonzero(self.unwanted()), "of no key that was watched")
        self._ordered_unique_atomic()
        for watch in np.unique(self.messages.watch).tolist():
            self._watch(watch)
        self._contents()

    def _break(self, guarantee: str, rows: Ints, words: str) -> None:
        for row in rows[:_SHOWN].tolist():
            at = instant(int(self.messages.t_ns[self.message[row]]), self.origin)
            key = self.keys[self.key[row]].decode(errors="backslashreplace")
            self.broken[guarantee].append(
                f"{self.name} delivered revision {int(self.revision[row])} ({key}) {words} at {at}"
            )
        self.broken[guarantee] += ["more"] * (len(rows) - _SHOWN)

    def _ordered_unique_atomic(self) -> None:
        same = self.watch[1:] == self.watch[:-1]
        self._break("Ordered", 1 + np.flatnonzero(same & (self.revision[1:] < self.revision[:-1])), "after a newer one")
        order = np.lexsort((self.revision, self.key, self.watch))
        twice = np.ones(max(0, len(order) - 1), bool)
        for column in (self.watch, self.key, self.revision):
            twice &= column[order][1:] == column[order][:-1]
        self._break("Unique", np.sort(order[1:][twice]), "twice")
        split = same & (self.revision[1:] == self.revision[:-1]) & (self.message[1:] != self.message[:-1])
        self._break("Atomic", 1 + np.flatnonzero(split), "in more than one message")
        # As many events of a revision as the log has for this watch, in each message that has any.
        begins = np.ones(len(self.revision), bool)
        begins[1:] = (self.revision[1:] != self.revision[:-1]) | (self.message[1:] != self.message[:-1])
        run = np.flatnonzero(begins)
        length = np.diff(np.append(run, len(self.revision)))
        first, after = (np.searchsorted(self.logged, self.revision[run], side=side) for side in ("left", "right"))
        whole = after - first
        self._break("Atomic", run[length < whole], "in part")

    def _watch(self, watch: int) -> None:
        messages = self.messages
        of_watch = np.flatnonzero(messages.watch == watch)
        opened = of_watch[messages.what[of_watch] == HAPPENINGS.index("opened")]
        begin = max(int(messages.start[opened[0]]) if len(opened) else 0, self.log.base + 1)
        rows = np.flatnonzero(self.watch == watch)
        delivered = self.revision[rows]
        # etcd#15271 and etcd#20221 are of this kind: a watch that resumes delivers what lies before it.
        self._break("Resumable", rows[delivered < begin], f"on watch {watch}, which began at revision {begin},")
        if len(rows):
            last = int(delivered.max())
            between = np.unique(self.logged[(self.logged >= begin) & (self.logged <= last)])
            missing = between[~np.isin(between, delivered)]
            first = int(delivered.min())
            if len(opened):
                self._miss("Resumable", missing[missing < first], f"watch {watch} from revision {begin} on skipped")
            self._miss("Reliable", missing[missing > first], f"watch {watch} dropped")
        self._bookmarks(watch, begin, of_watch, rows)
        if len(opened):
            self._gap(watch, begin)

    def _miss(self, guarantee: str, revisions: Ints, words: str) -> None:
        if len(revisions):
            shown = some([str(revision) for revision in revisions.tolist()])
            self.broken[guarantee].append(f"{self.name}: {words} revision {shown}")

    def _gap(self, watch: int, begin: int) -> None:
        """A watch that began after what the earlier ones had delivered left something unwatched."""
        earlier = self.revision[self.watch < watch]
        until = int(earlier.max(initial=self.before))
        between = self.logged[(self.logged > until) & (self.logged < begin)]
        if len(between):
            self.doubts.append(f"{self.name} was not watched between revisions {until} and {begin}")

    def _bookmarks(self, watch: int, begin: int, of_watch: Ints, rows: Ints) -> None:
        messages = self.messages
        marks = of_watch[messages.what[of_watch] == HAPPENINGS.index("progress")]
        if not len(marks):
            return
        # What had been delivered before each mark, and the newest that there was up to the mark's revision.
        before = np.searchsorted(self.message[rows], marks)
        newest = np.maximum.accumulate(np.append(0, self.revision[rows]))[before]
        due = np.searchsorted(self.logged, messages.revision[marks], side="right")
        owed = np.append(0, self.logged)[due]
        for mark in marks[(owed > newest) & (owed >= begin)].tolist():
            self.broken["Bookmarkable"].append(
                f"{self.name}: watch {watch} said that all up to revision {int(messages.revision[mark])} was delivered,"
                f" before it was"
            )
        promised = np.maximum.accumulate(np.append(0, messages.revision[marks]))
        said = promised[np.searchsorted(marks, self.message[rows])]
        self._break("Bookmarkable", rows[self.revision[rows] <= said], "after a progress notification of it")

    def _contents(self) -> None:
        """Each event against the log's own, and against the state before it."""
        log = self.log
        if not len(self.revision):
            return
        here = log.find(self.key, self.revision)
        known = self.known(np.where(here >= log.based, here, -1))
        self._break("Reliable", np.flatnonzero(~known), "otherwise than the log has it")
        before = log.find(self.key, self.revision - 1)
        lived = (before >= 0) & (log.rows.version[before] > 0)
        same, told = self.previous(np.where(lived, before, -1))
        # A compaction takes the previous value away from whoever is behind it.
        compacted = any(isinstance(op.request, Compact) for op in self.columns.general.values())
        self._break(
            "PrevKV", np.flatnonzero(~same & (told | (not compacted))), "with another previous value than the key had"
        )
        put = self.version > 0
        creates = self.created == self.revision
        wrong = put & ((creates == lived) | ((self.version == 1) == lived))
        self._break("IsCreate/IsModify", np.flatnonzero(wrong), "as what it was not: created, or modified")


class _Member(_Stream):
    """What a member delivered of all keys: rows of the columns that the log is made of."""

    def __init__(self, part: Part, name: str, broken: dict[str, list[str]], doubts: list[str]) -> None:
        super().__init__(part, name, broken, doubts)
        events = self.columns.events
        number = self.columns.members.index(name)
        modified = self.columns.kvs.modified[events.kv[events.event]]
        mine = events.messages.member[events.message] == number
        mine &= (modified > self.log.base) & (modified <= self.log.end)
        own = np.flatnonzero(events.messages.member == number)
        # Each member's messages are together.
        self.messages = Messages(*(column[own] for column in events.messages))
        self.message = events.message[mine] - (own[0] if len(own) else 0)
        self.event = events.event[mine]
        self.revision = modified[mine]
        self.row = events.kv[self.event]
        self.key, _, self.created, _, self.version, _ = self.columns.kvs.take(self.row)
        self.keys = self.columns.keys
        starts = self.log.start - self.log.based
        self.logged = np.repeat(np.arange(self.log.base + 1, self.log.newest + 1), np.diff(starts))

    def unwanted(self) -> Flags:
        nameless = [number for number, key in enumerate(self.keys) if not key]
        return np.isin(self.key, nameless)

    def known(self, row: Ints) -> Flags:
        known: Flags = (row >= 0) & self.columns.kvs.same(self.log.row_kv[row], self.row)
        return known

    def previous(self, row: Ints) -> tuple[Flags, Flags]:
        previous = self.columns.events.previous[self.event]
        return self.columns.kvs.same(np.where(row >= 0, self.log.row_kv[row], ABSENT), previous), previous != ABSENT


class _Extra(_Stream):
    """What a watch on a part of the keys delivered, against that part of the log."""

    def __init__(self, part: Part, found: ExtraDeliveries, broken: dict[str, list[str]], doubts: list[str]) -> None:
        super().__init__(part, f"{found.member}/{found.watch.name}", broken, doubts)
        self.member, log = found.member, self.log
        deliveries = found.deliveries
        zeros = np.zeros(len(deliveries), np.int64)
        self.messages = Messages(
            t_ns=np.array([one.t_ns for one in deliveries], np.int64),
            member=zeros,
            watch=np.array([one.watch for one in deliveries], np.int64),
            what=np.array([HAPPENINGS.index(one.what) for one in deliveries], np.int64),
            newest=zeros,
            revision=np.array([one.revision for one in deliveries], np.int64),
            start=np.array([one.start_revision for one in deliveries], np.int64),
        )
        rows = [
            (number, event)
            for number, one in enumerate(deliveries)
            for event in one.events
            if log.base < event.kv.mod_revision <= log.end
        ]
        opened = [one.start_revision for one in deliveries if one.what == "opened"]
        self.before = max(log.base, opened[0] - 1) if opened else log.base
        self.events = [event for _, event in rows]
        self.message = np.array([number for number, _ in rows], np.int64)
        place = {key: number for number, key in enumerate(log.keys)}
        self.key = np.array([place.setdefault(event.kv.key, len(place)) for event in self.events], np.int64)
        self.keys = list(place)
        self.revision, self.version, self.created = (
            np.array([getattr(event.kv, name) for event in self.events], np.int64)
            for name in ("mod_revision", "version", "create_revision")
        )
        first, after = in_range(found.watch.key, found.watch.range_end)
        self.wanted = np.array([first <= key and (after is None or key < after) for key in self.keys], bool)
        self.puts, self.deletes = (name not in found.watch.filters for name in ("NOPUT", "NODELETE"))
        of = log.rows.take(np.arange(log.based, len(log.rows.key)))
        mine = self.wanted[of.key] & np.where(of.version > 0, self.puts, self.deletes)
        self.logged = of.modified[mine]

    def unwanted(self) -> Flags:
        puts = np.array([event.kind == "put" for event in self.events], bool)
        unwanted: Flags = ~self.wanted[self.key] | ~np.where(puts, self.puts, self.deletes)
        return unwanted

    def known(self, row: Ints) -> Flags:
        told = (_told(event) == self._kv(at) for event, at in zip(self.events, row.tolist(), strict=True))
        return np.fromiter(told, bool, len(row))

    def previous(self, row: Ints) -> tuple[Flags, Flags]:
        same = (event.prev_kv == self._kv(at) for event, at in zip(self.events, row.tolist(), strict=True))
        told = (event.prev_kv is not None for event in self.events)
        return np.fromiter(same, bool, len(row)), np.fromiter(told, bool, len(row))

    def _kv(self, row: int) -> KeyValue | None:
        return self.log.kv(row) if row >= 0 else None

    def check_end(self, until: int) -> None:
        """Doubt a watch that has not delivered all up to the end, though its member served."""
        newest = int(self.revision.max(initial=self.before))
        owed = self.logged[(self.logged > newest) & (self.logged <= until)]
        if len(owed):
            self.doubts.append(f"{self.name} delivered nothing after revision {newest}, of {int(owed[-1])}")


def _told(event: Event) -> KeyValue:
    """Give what an event tells of its key as the log has it: a delete's has no version, and nothing else has none."""
    if event.kind == "delete":
        return KeyValue(event.kv.key, b"", 0, event.kv.mod_revision, 0, 0)
    return event.kv if event.kv.version else event.kv._replace(version=-1)
