"""Stores that are wrong in one way each: the reference model with a fault, for runs that are consistent but for it.

Each fault is a function of the store, an operation, and what the store would answer and log; it does the wrong thing
and gives the answer, or None for an operation that cannot go wrong this way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etcdops.answers import DeleteResult, Event, RangeResult
from etcdops.histories.requests import MIXED
from etcdops.model import Model
from etcdops.ops import Delete, Put, Range, Revoke, Txn

Wrong = Callable[["FaultyStore", Any, Any, Sequence[Event]], Any]


class FaultyStore(Model):
    """A model that goes wrong with every `every`-th chance; `mix` is of the requests that give it chances."""

    every = 2
    mix: Mapping[str, float] = MIXED
    wrong: Wrong

    def __init__(self, *, min_ttl_s: int = 2) -> None:
        super().__init__(min_ttl_s=min_ttl_s)
        self.before: Model | None = None
        self._chances = 0

    def apply(self, op: Any) -> Any:
        """Do `op`, rightly or not."""
        answer, events = self.evaluate(op)
        self._chances += 1
        if self._chances % self.every == 0:
            told = type(self).wrong(self, op, answer, events)
            if told is not None:
                return told
            self._chances -= 1
        before = self.copy() if events else self.before
        answer = super().apply(op)
        self.before = before
        return answer

    def rightly(self, op: Any) -> Any:
        """Do `op` as the model does."""
        return super().apply(op)

    def log_only(self, events: Sequence[Event]) -> None:
        """Make a revision that is in the log, and changes nothing."""
        self._log.append(tuple(events))
        self.revision += 1

    def apply_only(self, events: Sequence[Event]) -> None:
        """Make a revision that is not in the log."""
        self.commit(events)
        self._log[-1] = ()

    def join(self, events: Sequence[Event]) -> None:
        """Put more into the newest revision."""
        self._log[-1] += tuple(events)
        for event in events:
            self._store(event.kv)


FAULTS: dict[str, type[FaultyStore]] = {}


def fault(mix: Mapping[str, float] = MIXED, every: int = 2) -> Callable[[Wrong], Wrong]:
    def registered(wrong: Wrong) -> Wrong:
        name = wrong.__name__
        FAULTS[name] = type(name, (FaultyStore,), {"wrong": wrong, "mix": mix, "every": every})
        return wrong

    return registered


_TXNS = {"put": 2, "txn": 5, "get": 1, "range": 1}
_CASES = {"put": 2, "cas": 4, "txn": 2, "get": 1}
_DELETES = {"put": 3, "delete": 2, "delete-range": 2, "get": 1, "range": 1}
_READS = {"put": 4, "get": 3, "range": 4}
_LEASES = {"grant": 1, "lease-put": 5, "revoke": 2, "get": 1}


def _moved(events: Sequence[Event], by: int) -> list[Event]:
    return [
        event._replace(
            kv=event.kv._replace(
                mod_revision=event.kv.mod_revision + by,
                create_revision=event.kv.create_revision + by * (event.kv.version == 1),
            )
        )
        for event in events
    ]


@fault()
def loses_writes(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    return answer if events and not isinstance(op, Revoke) else None


@fault()
def applies_twice(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    if not events or isinstance(op, Revoke):
        return None
    store.rightly(op)
    store.rightly(op)
    return answer


@fault(_TXNS)
def applies_half_a_transaction(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    if len(events) < 2 or isinstance(op, Revoke):
        return None
    store.commit(events[:-1])
    return answer


@fault(_TXNS)
def splits_a_transaction(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    if len(events) < 2 or isinstance(op, Revoke):
        return None
    store.commit(events[:-1])
    store.commit(_moved(events[-1:], 1))
    return answer


@fault(_CASES)
def shares_a_revision(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    """Write skew: two transactions look at one state, and share the revision that they make."""
    before = store.before
    if before is None or not isinstance(op, Txn) or before.revision != store.revision - 1:
        return None
    answer, events = before.evaluate(op)
    if not events or {e.kv.key for e in events} & {e.kv.key for e in store.events(store.revision)}:
        return None
    store.join(events)
    return answer


@fault(_DELETES)
def deletes_nothing(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    return DeleteResult(store.revision, 0, ()) if isinstance(op, Delete) and events else None


@fault(_DELETES)
def says_it_deleted_nothing(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    if not isinstance(op, Delete) or not events:
        return None
    return store.rightly(op)._replace(deleted=0, prev_kvs=())


@fault(_CASES)
def forgets_to_compare(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    return store.rightly(Txn((), op.success)) if isinstance(op, Txn) and not answer.succeeded else None


@fault(_CASES)
def compares_the_other_way(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    if not isinstance(op, Txn):
        return None
    other = store.rightly(Txn((), op.failure if answer.succeeded else op.success))
    return other._replace(succeeded=not answer.succeeded)


@fault({"put": 5, "get": 2})
def counts_versions_anew(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    if not isinstance(op, Put) or events[0].kv.version == 1:
        return None
    kv = events[0].kv
    store.commit([events[0]._replace(kv=kv._replace(version=1, create_revision=kv.mod_revision))])
    return answer


@fault({"put": 5, "get": 2})
def keeps_the_old_value(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    old = store.get(op.key) if isinstance(op, Put) else None
    if old is None:
        return None
    store.commit([events[0]._replace(kv=events[0].kv._replace(value=old.value))])
    return answer


@fault(_LEASES, every=1)
def leaves_a_key_of_a_lease(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    if not isinstance(op, Revoke) or len(events) < 2:
        return None
    store.commit(events[:-1])
    del store.leases[op.lease]
    return answer


@fault(_LEASES, every=1)
def ends_a_lease_in_two_revisions(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    if not isinstance(op, Revoke) or len(events) < 2:
        return None
    store.commit(events[:-1])
    store.commit(_moved(events[-1:], 1))
    del store.leases[op.lease]
    return answer


@fault(_LEASES)
def detaches_a_key(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    if not isinstance(op, Put) or not op.lease:
        return None
    store.commit([events[0]._replace(kv=events[0].kv._replace(lease=0))])
    return answer


@fault()
def skips_a_revision(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    if not events:
        return None
    store.commit(())
    return store.rightly(op)


@fault()
def logs_without_applying(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    if not events or isinstance(op, Revoke):
        return None
    store.log_only(events)
    return answer


@fault()
def applies_without_logging(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    if not events or isinstance(op, Revoke):
        return None
    store.apply_only(events)
    return answer


@fault(_READS)
def answers_from_the_past(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    earlier = store.revision - 1
    if not isinstance(op, Range) or op.revision or earlier <= store.compacted:
        return None
    told = store.evaluate(op._replace(revision=earlier))[0]
    assert isinstance(told, RangeResult)
    return told._replace(revision=earlier)


@fault(_READS)
def reads_beyond_the_limit(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    return store.evaluate(op._replace(limit=0))[0] if isinstance(op, Range) and answer.more else None


@fault()
def answers_the_next_revision(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    if not isinstance(op, (Put, Delete)) or not events:
        return None
    told = store.rightly(op)
    return told._replace(revision=told.revision + 1)


@fault(_CASES)
def writes_what_it_refuses(store: FaultyStore, op: Any, answer: Any, events: Sequence[Event]) -> Any:
    """A comparison that does not hold is answered so, and the other branch is done all the same."""
    if not isinstance(op, Txn) or answer.succeeded or events:
        return None
    store.rightly(Txn((), op.success))
    return answer
