"""The revision witness and the search for a linearization on the same runs: neither fails what the other has passed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from etcdops.answers import DeleteResult, PutResult, RangeResult, TxnResult
from etcdops.histories.generated import Settings, generate
from etcdops.histories.requests import REGISTER, owner_of
from etcdops.ops import Delete, Put, Range, Txn
from etcdops.verify.models import Event
from etcdops.verify.recorded import Recorded
from etcdops.verify.search import search
from etcdops.verify.unknown import CompleteLog
from etcdops.verify.witness import check_witness
from etcdops.workload.history import Operation
from tests.unit.cases import SCALE, small
from tests.unit.faulty import FAULTS
from tests.unit.mutations import MUTATIONS

#: What the search has no word for: histories of registers know neither revisions nor versions.
_STORES = ["loses_writes", "applies_twice", "deletes_nothing", "forgets_to_compare", "keeps_the_old_value"]
_STORES += ["answers_from_the_past", "compares_the_other_way", "writes_what_it_refuses", "logs_without_applying"]


def _value(answer: RangeResult) -> bytes | None:
    return answer.kvs[0].value if answer.kvs else None


def _event(op: Operation) -> Event:
    request, answer = op.request, op.answer
    ok = op.outcome == "ok"
    arguments: tuple[Any, ...] = ()
    told: Any = None
    if isinstance(request, Put):
        f, key, arguments = "write", request.key, (request.value,)
    elif isinstance(request, Range):
        f, key = "read", request.key
        told = _value(answer) if isinstance(answer, RangeResult) else None
    elif isinstance(request, Delete):
        f, key = "delete", request.key
        told = answer.deleted if isinstance(answer, DeleteResult) else None
    else:
        assert isinstance(request, Txn)
        (compare,), (put,) = request.compares, request.success
        assert isinstance(put, Put)
        f, key = "txn", compare.key
        arguments = (((key, compare.operand),), (("put", key, put.value),), (("read", key),))
        if isinstance(answer, TxnResult):
            told = answer.succeeded, tuple(_value(inner) for inner in answer.results if isinstance(inner, RangeResult))
    return Event(op.process, f, key, arguments, op.outcome, told, op.call_ns, op.return_ns if ok else None)


def searched(recorded: Recorded) -> list[Operation]:
    """Give what a search can take of a history: no serializable reads, no reads of the past, no malformed answers."""
    return [
        op
        for op in recorded.history
        if not (isinstance(op.request, Range) and (op.request.serializable or op.request.revision)) and _whole(op)
    ]


def _whole(op: Operation) -> bool:
    """Whether an answer has the results that its operations must have: without them there is nothing to search for."""
    if not isinstance(op.request, Txn) or not isinstance(op.answer, TxnResult):
        return True
    branch = op.request.success if op.answer.succeeded else op.request.failure
    wanted = [RangeResult if isinstance(inner, Range) else PutResult for inner in branch]
    return [type(result) for result in op.answer.results] == wanted


def events_of(recorded: Recorded) -> list[Event]:
    """Give a history of single keys as the search takes it."""
    return [_event(op) for op in searched(recorded)]


def log_of(recorded: Recorded) -> CompleteLog | None:
    """Give what the log says of the unknown writes, None if there are unknown deletes: they have no value to know."""
    if any(op.outcome == "unknown" and isinstance(op.request, Delete) for op in recorded.history):
        return None
    owned: dict[int, int] = {}
    told: list[tuple[int, int]] = []
    for deliveries in recorded.deliveries.values():
        for delivery in deliveries:
            for event in delivery.events:
                owned.setdefault(owner_of(recorded.observed.run, event.kv.value), event.kv.mod_revision)
                told.append((event.kv.mod_revision, delivery.t_ns))
    told += [(op.revision, op.return_ns) for op in recorded.history if op.outcome == "ok"]
    places = {
        place: owned[op.id] for place, op in enumerate(searched(recorded)) if op.outcome == "unknown" and op.id in owned
    }
    return CompleteLog(places, told)


def _settings(seed: int) -> Settings:
    return small(seed, operations=12 + seed % 5, mix=REGISTER, keys=1 + seed % 2, base_keys=0, foreign=0.02, fault=0.0)


def _runs(seeds: range) -> Iterator[tuple[str, Recorded]]:
    for seed in seeds:
        recorded = generate(_settings(seed))
        yield f"legal, seed {seed}", recorded
        for number, name in enumerate(Random(seed).sample(list(MUTATIONS), 3)):
            changed = MUTATIONS[name](recorded, Random(seed * 1009 + number))
            if changed is not None:
                yield f"{name}, seed {seed}", changed
        name = _STORES[seed % len(_STORES)]
        yield f"{name}, seed {seed}", generate(_settings(seed), FAULTS[name])


def test_what_the_witness_passes_has_an_order_that_the_search_finds() -> None:
    """The witness passes: the search passes. The search fails: the witness fails, or could not look."""
    said: Counter[tuple[str, str]] = Counter()
    for name, recorded in _runs(range(60 * SCALE)):
        witness = check_witness(recorded)
        found = search(events_of(recorded))
        said[witness.result, found.result] += 1
        assert found.result != "inconclusive", f"{name}: {found.detail}"
        assert not (witness.result == "passed" and found.result == "failed"), f"{name}: {found.detail}"
    assert said["passed", "passed"]
    assert said["failed", "failed"]


def test_the_log_lets_the_search_decide_no_more_than_the_witness() -> None:
    """With the complete log of a legal run the search passes, too."""
    compared = 0
    for seed in range(60 * SCALE):
        recorded = generate(_settings(seed))
        log = log_of(recorded)
        if log is not None:
            found = search(events_of(recorded), log=log)
            assert found.result == "passed", f"seed {seed}: {found.detail}"
            compared += 1
    assert compared


@pytest.mark.parametrize("name", _STORES)
def test_the_search_finds_what_faulty_stores_do(name: str) -> None:
    """Each of these faults shows in values alone, at least at times."""
    assert any(
        search(events_of(generate(_settings(seed), FAULTS[name]))).result == "failed" for seed in range(60)
    ) or name in ("applies_twice", "deletes_nothing")
