"""The search over a run of our own: what it adds where the revision witness has failed, and nowhere else."""

from __future__ import annotations

from collections import Counter
from random import Random

import msgspec
import pytest

from etcdops.answers import PutResult, RangeResult
from etcdops.histories.generated import Settings, generate
from etcdops.histories.requests import REGISTER
from etcdops.ops import Compare, Delete, Put, Range, Txn
from etcdops.verify import Check
from etcdops.verify.judging import judge
from etcdops.verify.linearizability import NAME, check_search
from etcdops.verify.models import Event
from etcdops.verify.recorded import Recorded
from etcdops.verify.registers import registers_of
from etcdops.verify.search import Budget, search
from etcdops.verify.witness import witness
from etcdops.workload.history import Operation
from tests.unit.cases import SCALE, Scripted, key, small, value
from tests.unit.faulty import FAULTS
from tests.unit.mutations import MUTATIONS

#: Faults that show in what clients are told of single keys.
_SHOWS = [
    "loses_writes",
    "forgets_to_compare",
    "keeps_the_old_value",
    "answers_from_the_past",
    "writes_what_it_refuses",
]


def _settings(seed: int) -> Settings:
    return small(seed, operations=14, mix=REGISTER, keys=1 + seed % 2, base_keys=0, foreign=0.02, fault=0.0)


def _checked(recorded: Recorded, budget: Budget | None = None) -> Check | None:
    found = witness(recorded)
    return check_search(recorded, found, budget=budget) if budget else check_search(recorded, found)


def _events(recorded: Recorded) -> list[Event]:
    return [event for each in registers_of(recorded.history, lambda _: True).found.values() for _, event in each]


def test_legal_runs_have_no_such_check() -> None:
    """Where the witness passes, there is nothing to classify."""
    for seed in range(40 * SCALE):
        recorded = generate(_settings(seed))
        assert witness(recorded).check.result == "passed"
        assert _checked(recorded) is None


@pytest.mark.parametrize("name", _SHOWS)
def test_faults_of_the_store_have_a_counterexample(name: str) -> None:
    """A store that is wrong is shown by operations of one key that have no order, at least at times."""
    said: Counter[str] = Counter()
    for seed in range(25):
        check = _checked(generate(_settings(seed), FAULTS[name]))
        said[check.result if check else "absent"] += 1
        if check and check.result == "failed":
            assert check.name == NAME
            assert "These have none even by themselves, " in check.detail
            assert "had been answered, the state could only be " in check.detail
    assert said["failed"], said
    assert not said["passed"]


def test_nothing_is_missed_that_a_search_of_everything_finds() -> None:
    """If the registers of a changed run have no order, the check says so, though it looks at the named keys alone."""
    compared: Counter[str] = Counter()
    for seed in range(60 * SCALE):
        recorded = generate(_settings(seed))
        for number, name in enumerate(Random(seed).sample(sorted(MUTATIONS), 4)):
            changed = MUTATIONS[name](recorded, Random(seed * 1009 + number))
            if changed is None:
                continue
            check, full = _checked(changed), search(_events(changed))
            compared[full.result] += 1
            if full.result == "failed":
                assert check is not None, f"{name}, seed {seed}: {full.detail}"
                assert check.result == "failed", f"{name}, seed {seed}: {check.detail}"
    assert compared["failed"] > 5 * SCALE
    assert compared["passed"]


def _stale(*, complete: bool = True) -> Recorded:
    """A write without an answer is delivered to a watch, and a read that begins later still finds the value before."""
    run = Scripted()
    run.do(Put(key("a"), value(1)), 0, 10)
    old = run.model.evaluate(Range(key("a")))[0]
    assert isinstance(old, RangeResult)
    run.unknown(Put(key("a"), value(2)), 20, 30)
    run.say(Range(key("a")), 40, 50, old)
    if not complete:
        # A revision that no member has delivered.
        run.do(Put(key("b"), value(4)), 60, 70)
        run.log.pop()
    return run.recorded()


def test_complete_log_makes_the_search_stronger() -> None:
    """What the log tells of a write without an answer counts; without a whole log that write may yet take effect."""
    check = _checked(_stale())
    assert check is not None
    assert check.result == "failed"
    assert "unknown writes by the complete log: 1 took effect" in check.detail
    assert "explains operation 3 (" in check.detail
    assert "operation 3 (s through thor: get k/a; answered count 1 [k/a='1' " in check.detail
    assert "When operation 3 had been answered, the state could only be b'2'." in check.detail
    assert "Keys are shown without etcdops/run1/, values without run1/." in check.detail

    check = _checked(_stale(complete=False))
    assert check is not None
    assert check.result == "inconclusive"
    assert f"{key('a').decode()}" in check.detail
    assert "have an order, each key by itself" in check.detail


def test_what_the_log_does_not_have_took_no_effect() -> None:
    """A write without an answer that is not in the log cannot be what a failed compare found."""
    run = Scripted()
    run.do(Put(key("a"), value(1)), 0, 10)
    run.unknown(Put(key("a"), value(2)), 20, 30, applied=False)
    cas = Txn((Compare(key("a"), "value", "=", value(1)),), (Put(key("a"), value(3)),), ())
    refused = run.model.evaluate(Txn((Compare(key("a"), "value", "=", b"another"),), (), ()))[0]
    run.say(cas, 40, 50, refused)
    check = _checked(run.recorded())
    assert check is not None
    assert check.result == "failed"
    assert "unknown writes by the complete log: 0 took effect, 1 did not" in check.detail


def test_what_lies_beyond_the_log_is_searched_too() -> None:
    """A write that is acknowledged at a revision beyond the log, and not found by a later read, is not passed over."""
    run = Scripted()
    run.do(Put(key("a"), value(1)), 0, 10)
    old = run.model.evaluate(Range(key("a")))[0]
    assert isinstance(old, RangeResult)
    run.unknown(Put(key("a"), value(2)), 20, 30, applied=False)
    run.say(Put(key("a"), value(3)), 40, 50, PutResult(99, None))
    run.say(Range(key("a")), 60, 70, old)
    check = _checked(run.recorded())
    assert check is not None
    assert check.result == "failed"
    assert "the state could only be b'3'" in check.detail


def test_counterexample_begins_where_the_value_was_known() -> None:
    """What came before the last instant at which nothing was under way is told as the value that it left."""
    run = Scripted()
    for number in range(1, 20):
        run.do(Put(key("a"), value(number)), 10 * number, 10 * number + 5)
    old = run.model.evaluate(Range(key("a")))[0]
    assert isinstance(old, RangeResult)
    # Two writes at a time: either may have been the last, so that nothing is known after them.
    run.do(Put(key("a"), value(20)), 300, 320)
    run.do(Put(key("a"), value(21)), 310, 330)
    run.say(Range(key("a")), 340, 350, old)
    check = _checked(run.recorded())
    assert check is not None
    assert "These have none even by themselves, once operation 19 (s through thor: put k/a='19'; " in check.detail
    assert "was the last to write it: operation 20 (" in check.detail
    assert not any(f"operation {number} " in check.detail for number in range(1, 19))
    assert "the state could only be b'20' or b'21'" in check.detail


def test_search_says_when_it_has_not_looked() -> None:
    """A budget that is too small, and keys that are no registers, are inconclusive, and say so."""
    check = _checked(_stale(), Budget(seconds=0.0, states=0))
    assert check is not None
    assert check.result == "inconclusive"
    assert "ran out of its budget" in check.detail

    recorded = _stale()
    history = [*recorded.history]
    swap = Txn((Compare(key("a"), "version", ">", 5),), (Put(key("a"), value(9)),), ())
    history[0] = msgspec.structs.replace(history[0], id=9, request=swap, outcome="unknown", answer=None, revision=0)
    check = _checked(recorded._replace(history=history))
    assert check is not None
    assert check.result == "inconclusive"
    assert f"{key('a').decode()} is no register: see operation 9" in check.detail


def test_judge_shows_it_beside_the_witness() -> None:
    """It comes right after the check that it explains."""
    names = [check.name for check in judge(_stale(), logs={"thor": []}).checks]
    assert names[:3] == ["acknowledged writes", "revision witness", NAME]


# -- what a register is


def _op(request: object, number: int = 1, outcome: str = "ok") -> Operation:
    return Operation(number, "s", 0, "thor", request, 0, 0, 1, outcome)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "request_",
    [
        Put(b"k", b"1", lease=7),
        Put(b"k", b"", ignore_value=True),
        Delete(b"a", b"z"),
        Txn((), (Put(b"k", b"1"), Put(b"l", b"1")), ()),
        Txn((Compare(b"k", "mod_revision", "=", 5),), (Put(b"k", b"1"),), ()),
        Txn((Compare(b"k", "value", "!=", b"1"),), (Put(b"k", b"1"),), ()),
        Txn((Compare(b"k", "value", "=", b"1", b"l"),), (Put(b"k", b"1"),), ()),
        Txn((), (Txn((), (Put(b"k", b"1"),), ()),), ()),
        Txn((), (Delete(b"k", b"l"), Range(b"a")), ()),
    ],
    ids=str,
)
def test_key_that_is_written_otherwise_is_no_register(request_: object) -> None:
    """What a register has no word for, and may write the key, takes it out; one that failed for certain does not."""
    plain = _op(Put(b"k", b"0"))
    for outcome in ("ok", "unknown"):
        found = registers_of([plain, _op(request_, 2, outcome)], lambda k: k == b"k")
        assert (found.found, found.unfit) == ({}, {b"k": 2})
    found = registers_of([plain, _op(request_, 2, "failed")], lambda k: k == b"k")
    assert list(found.found) == [b"k"]


@pytest.mark.parametrize(
    "request_",
    [
        Range(b"a", b"z"),
        Range(b"k", serializable=True),
        Range(b"k", revision=3),
        Range(b"k", keys_only=True),
        Txn((Compare(b"k", "value", "=", b"1"),), (), ()),
        Txn((), (Range(b"k"), Range(b"l")), ()),
        Txn((Compare(b"k", "lease", "=", 0),), (Put(b"l", b"1"), Range(b"k")), ()),
    ],
    ids=str,
)
def test_reads_that_a_register_does_not_have_are_left_out(request_: object) -> None:
    """They can be left out, and the key stays a register."""
    found = registers_of([_op(Put(b"k", b"0")), _op(request_, 2)], lambda k: k == b"k")
    assert [event.f for _, event in found.found[b"k"]] == ["write"]
    assert not found.unfit
