"""The reference model of etcd's KV and lease services: what a single, correct etcd answers.

One model serves FakeRuntime, the generator of histories and the replay of the revision witness. It is deterministic,
has neither threads nor I/O, and answers whole: every field of etcd's answer, the errors' codes and texts too.

    >>> model = Model()
    >>> model.apply(Put(b"a", b"1")).revision
    2
    >>> answer, events = model.evaluate(Delete(b"a"))
    >>> answer.deleted, len(events), model.revision
    (1, 1, 2)

It follows api/v3rpc/key.go, apply and txn in etcdserver, and mvcc, as etcd 3.5 has them; `tests/suite` holds it against
a real etcd.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter, eq, gt, lt, ne
from typing import Any, overload

from etcdops.answers import DeleteResult, Event, KeyValue, Lease, PutResult, RangeResult, Result, TxnResult
from etcdops.errors import SpecError
from etcdops.ops import (
    Compact,
    Compare,
    Delete,
    Grant,
    Op,
    Put,
    Range,
    Revoke,
    Txn,
    TxnOp,
    check,
    in_range,
    refusal,
)

__all__ = ["Answer", "Model"]

#: What the model answers: as `wire.Connection` does, a bare revision for Compact and Revoke.
Answer = Result | Lease | int

_SIGNS: dict[str, Callable[[Any, Any], bool]] = {"=": eq, "!=": ne, "<": lt, ">": gt}

#: etcd's MaxLeaseTTL, seconds.
_MAX_TTL_S = 9_000_000_000

_mod_revision = attrgetter("mod_revision")


class Model:
    """An etcd in memory. `revision` is its newest, 1 for an empty one; `compacted` the newest compacted, or 0.

    `min_ttl_s` is the shortest lease that it grants: etcd rounds 1.5 election timeouts up to seconds.
    """

    def __init__(self, *, min_ttl_s: int = 2) -> None:
        self.revision = 1
        self.compacted = 0
        self.min_ttl_s = min_ttl_s
        #: Leases and their time to live in seconds. Time itself does not pass here: an end of a lease is a Revoke.
        self.leases: dict[int, int] = {}
        self._current: dict[bytes, KeyValue] = {}
        self._live: list[bytes] = []
        # Every version since the compaction, tombstones (version 0) too, and the keys that have any, sorted.
        self._versions: dict[bytes, list[KeyValue]] = {}
        self._known: list[bytes] = []
        # Events by revision; the first is of revision _first_logged.
        self._log: list[tuple[Event, ...]] = []
        self._first_logged = 2

    @classmethod
    def at(cls, revision: int, kvs: Iterable[KeyValue], leases: dict[int, int] | None = None) -> Model:
        """Give the model of a store that held `kvs`, all of its keys, at `revision`; older history counts as compacted.

        `leases` adds ones without keys; those with keys are known from the keys.
        """
        model = cls()
        model.revision = model.compacted = revision
        model._first_logged = revision + 1
        model.leases.update(leases or {})
        for kv in kvs:
            model._store(kv)
            if kv.lease:
                model.leases.setdefault(kv.lease, model.min_ttl_s)
        return model

    def copy(self) -> Model:
        """Give an independent copy; it takes time in proportion to the revisions kept. See `evaluate` for what-if."""
        twin = Model(min_ttl_s=self.min_ttl_s)
        twin.revision, twin.compacted, twin._first_logged = self.revision, self.compacted, self._first_logged
        twin.leases = dict(self.leases)
        twin._current = dict(self._current)
        twin._live = list(self._live)
        twin._versions = {key: list(versions) for key, versions in self._versions.items()}
        twin._known = list(self._known)
        twin._log = list(self._log)
        return twin

    # -- asking

    @overload
    def apply(self, op: Put) -> PutResult: ...
    @overload
    def apply(self, op: Range) -> RangeResult: ...
    @overload
    def apply(self, op: Delete) -> DeleteResult: ...
    @overload
    def apply(self, op: Txn) -> TxnResult: ...
    @overload
    def apply(self, op: Grant) -> Lease: ...
    @overload
    def apply(self, op: Compact | Revoke) -> int: ...
    @overload
    def apply(self, op: Op) -> Answer: ...

    def apply(self, op: Op) -> Answer:
        """Do `op` and give etcd's answer. Raises EtcdError, with etcd's code and text, for what etcd refuses."""
        answer, events = self.evaluate(op)
        if events:
            self.commit(events)
        if isinstance(op, Compact):
            self._compact(op.revision)
        elif isinstance(op, Grant):
            self.leases[op.lease] = max(op.ttl_s, self.min_ttl_s)
        elif isinstance(op, Revoke):
            del self.leases[op.lease]
        return answer

    def evaluate(self, op: Op) -> tuple[Answer, tuple[Event, ...]]:
        """Give what `apply` would answer, and the events of the revision that it would make; nothing changes.

        Events are in the order of sub-revisions, each with its `prev_kv` as a watch has it: what the key was one
        revision earlier, and None for one that the put creates. Raises as `apply` does.
        """
        check(op)
        if isinstance(op, Compact):
            if op.revision <= self.compacted:
                raise refusal("mvcc: required revision has been compacted")
            if op.revision > self.revision:
                raise refusal("mvcc: required revision is a future revision")
            return self.revision, ()
        if isinstance(op, Grant):
            if op.ttl_s > _MAX_TTL_S:
                raise refusal("too large lease TTL")
            if op.lease in self.leases:
                raise refusal("lease already exists")
            return Lease(op.lease, max(op.ttl_s, self.min_ttl_s), self.revision), ()
        scratch = _Scratch(self)
        if isinstance(op, Revoke):
            if op.lease not in self.leases:
                raise refusal("requested lease not found")
            for key in self.attached(op.lease):
                scratch.delete(key)
            return scratch.revision, tuple(scratch.events)
        path = scratch.path(op)
        scratch.check(op, path)
        return scratch.run(op, path), tuple(scratch.events)

    def commit(self, events: Sequence[Event]) -> None:
        """Take over the events of the next revision, as a watch delivers them. Raises SpecError for another's."""
        for event in events:
            if event.kv.mod_revision != self.revision + 1:
                raise SpecError(
                    f"an event of revision {event.kv.mod_revision} cannot follow revision {self.revision}",
                    remedy="Replay every revision in order, with all of its events at once.",
                )
        for event in events:
            self._store(event.kv)
        self._log.append(tuple(events))
        self.revision += 1

    # -- looking

    def get(self, key: bytes, revision: int = 0) -> KeyValue | None:
        """Give `key` as it is, or as it was at `revision`; None if it does not exist."""
        if not revision:
            return self._current.get(key)
        versions = self._versions.get(key, [])
        at = bisect_right(versions, revision, key=_mod_revision)
        return versions[at - 1] if at and versions[at - 1].version else None

    def span(self, start: bytes, end: bytes = b"", revision: int = 0) -> list[KeyValue]:
        """Give what exists in `[start, end)`, by key, now or at `revision`; range ends are those of Range."""
        if not end:
            kv = self.get(start, revision)
            return [] if kv is None else [kv]
        if not revision:
            return [self._current[key] for key in _within(self._live, start, end)]
        seen = (self.get(key, revision) for key in _within(self._known, start, end))
        return [kv for kv in seen if kv is not None]

    def attached(self, lease: int) -> list[bytes]:
        """Give the keys attached to `lease`, sorted."""
        return [key for key in self._live if self._current[key].lease == lease]

    def kept(self) -> list[KeyValue]:
        """Give every version that is kept, tombstones (version 0) too, by revision, and by key within one."""
        found = [kv for key in self._known for kv in self._versions[key]]
        return sorted(found, key=_mod_revision)

    def events(self, revision: int) -> tuple[Event, ...]:
        """Give the events of `revision`: none if there are not any yet. Raises EtcdError if it was compacted."""
        if revision < max(self._first_logged, self.compacted):
            raise refusal("mvcc: required revision has been compacted")
        return self._log[revision - self._first_logged] if revision <= self.revision else ()

    def hash(self, revision: int = 0) -> int:
        """Give 32 bits over every key that exists at `revision`, 0 being the newest, with all its fields.

        Equal states give equal hashes, whatever way led to them. Raises EtcdError as a read at `revision` does.
        """
        self.check_revision(revision)
        total = zlib.crc32(b"%d" % (revision or self.revision))
        for kv in self.span(b"\0", b"\0", 0 if revision == self.revision else revision):
            total = zlib.crc32(repr(tuple(kv)).encode(), total)
        return total

    def check_revision(self, revision: int) -> None:
        """Raise what etcd answers when it is asked for a `revision` that it no longer has, or not yet."""
        if revision > self.revision:
            raise refusal("mvcc: required revision is a future revision")
        if 0 < revision < self.compacted:
            raise refusal("mvcc: required revision has been compacted")

    def holds(self, compare: Compare) -> bool:
        """Tell whether a comparison holds now."""
        matches = _SIGNS[compare.sign]
        kvs = self.span(compare.key, compare.range_end)
        if not kvs:
            return compare.target != "value" and matches(0, compare.operand)
        return all(matches(getattr(kv, compare.target), compare.operand) for kv in kvs)

    # -- storing

    def _store(self, kv: KeyValue) -> None:
        key = kv.key
        versions = self._versions.get(key)
        if versions is None:
            versions = self._versions[key] = []
            insort(self._known, key)
        versions.append(kv)
        if kv.version:
            if key not in self._current:
                insort(self._live, key)
            self._current[key] = kv
        elif key in self._current:
            del self._current[key]
            del self._live[bisect_left(self._live, key)]

    def _compact(self, revision: int) -> None:
        self.compacted = revision
        for key in list(self._known):
            versions = self._versions[key]
            at = bisect_right(versions, revision, key=_mod_revision)
            # What the key was at the compacted revision can still be read; that it was deleted goes without saying.
            kept = versions[at - 1 :] if at and versions[at - 1].version else versions[at:]
            if kept:
                self._versions[key] = kept
            else:
                del self._versions[key]
                del self._known[bisect_left(self._known, key)]
        if revision > self._first_logged:
            del self._log[: revision - self._first_logged]
            self._first_logged = revision


class _Scratch:
    """One operation at work on a model that stays as it is: what it changes is kept here."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._changed: dict[bytes, KeyValue | None] = {}
        self.events: list[Event] = []

    @property
    def revision(self) -> int:
        """The store's revision as this operation sees it: from its first change on, the one that it makes."""
        return self._model.revision + bool(self.events)

    def path(self, op: TxnOp) -> list[bool]:
        """Give the outcome of every transaction inside `op` that will run, outermost first.

        etcd decides them all before it applies anything: a nested comparison does not see its siblings' puts.
        """
        if not isinstance(op, Txn):
            return []
        succeeded = all(self._model.holds(compare) for compare in op.compares)
        path = [succeeded]
        for inner in op.success if succeeded else op.failure:
            path += self.path(inner)
        return path

    def check(self, op: TxnOp, path: list[bool]) -> None:
        """Raise what etcd refuses when it sees the keys, before it applies anything."""
        flat = list(_flat(op, iter(path).__next__))
        for inner in flat:
            if isinstance(inner, Put):
                self._check_put(inner, lease_first=inner is op)
        for inner in flat:
            if isinstance(inner, Range):
                self._model.check_revision(inner.revision)

    def _check_put(self, op: Put, *, lease_first: bool) -> None:
        """Where both the lease and the key are missing, etcd names the lease for a put alone, and the key in a txn."""
        no_key = (op.ignore_value or op.ignore_lease) and self._model.get(op.key) is None
        no_lease = op.lease and op.lease not in self._model.leases
        if no_lease and (lease_first or not no_key):
            raise refusal("requested lease not found")
        if no_key:
            raise refusal("key not found")

    def run(self, op: TxnOp, path: list[bool]) -> Result:
        """Do `op`, and give etcd's answer."""
        return self._run(op, iter(path).__next__)

    def _run(self, op: TxnOp, decided: Callable[[], bool], *, nested: bool = False) -> Result:
        if isinstance(op, Put):
            return self._put(op)
        if isinstance(op, Range):
            return self._range(op)
        if isinstance(op, Delete):
            deleted = tuple(self.delete(kv.key) for kv in self._span(op.key, op.range_end))
            return DeleteResult(self.revision, len(deleted), deleted if op.prev_kv else ())
        succeeded = decided()
        branch = op.success if succeeded else op.failure
        results = tuple(self._run(inner, decided, nested=True) for inner in branch)
        # etcd gives a nested transaction a header with nothing in it.
        return TxnResult(0 if nested else self.revision, succeeded, results)

    def _get(self, key: bytes) -> KeyValue | None:
        return self._changed[key] if key in self._changed else self._model.get(key)

    def _span(self, start: bytes, end: bytes) -> list[KeyValue]:
        if not end:
            kv = self._get(start)
            return [] if kv is None else [kv]
        kvs = self._model.span(start, end)
        touched = _within(sorted(self._changed), start, end)
        if touched:
            merged = {kv.key: kv for kv in kvs} | {key: self._changed[key] for key in touched}
            kvs = [kv for _, kv in sorted(merged.items()) if kv is not None]
        return kvs

    def _put(self, op: Put) -> PutResult:
        old = self._get(op.key)
        value, lease = op.value, op.lease
        if old is not None and op.ignore_value:
            value = old.value
        if old is not None and op.ignore_lease:
            lease = old.lease
        revision = self._model.revision + 1
        created, version = (old.create_revision, old.version) if old else (revision, 0)
        new = KeyValue(op.key, value, created, revision, version + 1, lease)
        self._changed[op.key] = new
        self.events.append(Event("put", new, self._model.get(op.key) if version else None))
        return PutResult(revision, old if op.prev_kv else None)

    def delete(self, key: bytes) -> KeyValue:
        """Delete `key`, which exists, and give what it was."""
        old = self._get(key)
        assert old is not None
        tombstone = KeyValue(key, b"", 0, self._model.revision + 1, 0, 0)
        before = self._model.get(key) if key in self._changed else old
        self._changed[key] = None
        self.events.append(Event("delete", tombstone, before))
        return old

    def _range(self, op: Range) -> RangeResult:
        if op.revision > 0:
            kvs = self._model.span(op.key, op.range_end, op.revision)
        else:
            kvs = self._span(op.key, op.range_end)
        count = len(kvs)
        if op.count_only:
            return RangeResult(self.revision, (), False, count)
        more = 0 < op.limit < count
        bounds = op.min_mod_revision, op.max_mod_revision, op.min_create_revision, op.max_create_revision
        if more and op.sort_order == "none" and not any(bounds):
            # etcd fetches one more than asked for, and would sort these alone.
            kvs = kvs[: op.limit + 1]
        kvs = [kv for kv in kvs if _bounded(kv, *bounds)] if any(bounds) else kvs
        if op.sort_order == "descend" or op.sort_target != "key":
            kvs = sorted(kvs, key=attrgetter(op.sort_target), reverse=op.sort_order == "descend")
        more = 0 < op.limit < len(kvs)
        kvs = kvs[: op.limit] if more else kvs
        if op.keys_only:
            kvs = [kv._replace(value=b"") for kv in kvs]
        return RangeResult(self.revision, tuple(kvs), more, count)


def _flat(op: TxnOp, decided: Callable[[], bool]) -> Iterable[TxnOp]:
    """Give the operations inside `op` that will run, in order."""
    if isinstance(op, Txn):
        for inner in op.success if decided() else op.failure:
            yield from _flat(inner, decided)
    else:
        yield op


def _within(keys: list[bytes], start: bytes, end: bytes) -> list[bytes]:
    """Give those of the sorted `keys` that are in a range."""
    first, after = in_range(start, end)
    return keys[bisect_left(keys, first) : len(keys) if after is None else bisect_left(keys, after)]


def _bounded(kv: KeyValue, min_mod: int, max_mod: int, min_create: int, max_create: int) -> bool:
    return (
        min_mod <= kv.mod_revision
        and (not max_mod or kv.mod_revision <= max_mod)
        and min_create <= kv.create_revision
        and (not max_create or kv.create_revision <= max_create)
    )
