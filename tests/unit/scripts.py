"""Runs by hand that etcd's promises decide: ILLEGAL ones that a laxer rule lets through, LEGAL ones that look odd."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from etcdops.answers import DeleteResult, RangeResult
from etcdops.model import Model
from etcdops.ops import Compare, Delete, Grant, Put, Range, Revoke, Txn
from etcdops.verify.recorded import Fault, Recorded
from tests.unit.cases import Scripted, key, value

ILLEGAL: dict[str, Callable[[], Recorded]] = {}
LEGAL: dict[str, Callable[[], Recorded]] = {}


def illegal(script: Callable[[], Recorded]) -> Callable[[], Recorded]:
    ILLEGAL[script.__name__] = script
    return script


def legal(script: Callable[[], Recorded]) -> Callable[[], Recorded]:
    LEGAL[script.__name__] = script
    return script


def _swap(name: str, seen: int, number: int, *, other: str) -> Txn:
    """Put `name` if `other` is as it was seen."""
    return Txn((Compare(key(other), "mod_revision", "=", seen),), (Put(key(name), value(number)),))


@illegal
def write_skew_of_two_swaps_that_share_a_revision() -> Recorded:
    run = Scripted()
    run.do(_swap("a", 0, 1, other="b"), 0, 10)
    before = Model()
    answer, events = before.evaluate(_swap("b", 0, 2, other="a"))
    run.say(_swap("b", 0, 2, other="a"), 0, 10, answer)
    at, first = run.log.pop()
    run.log.append((at, first + events))
    for event in events:
        run.model._store(event.kv)
    return run.recorded()


@illegal
def acknowledged_put_applied_twice() -> Recorded:
    run = Scripted()
    run.do(Put(key("a"), value(1)), 0, 10)
    run.happen(Put(key("a"), value(1)), 20)
    return run.recorded()


@illegal
def delete_that_answers_0_although_the_key_exists() -> Recorded:
    run = Scripted()
    run.do(Put(key("a"), value(1)), 0, 10)
    run.say(Delete(key("a")), 20, 30, DeleteResult(2, 0, ()))
    return run.recorded()


@illegal
def txn_half_in_the_log() -> Recorded:
    run = Scripted()
    run.do(Txn((), (Put(key("a"), value(1)), Put(key("b"), value(1)))), 0, 10)
    at, events = run.log.pop()
    run.log.append((at, events[:1]))
    return run.recorded()


@illegal
def unknown_write_in_the_log_before_it_was_called() -> Recorded:
    run = Scripted()
    run.happen(Put(key("a"), value(1)), 10)
    run.say(Put(key("a"), value(1)), 20, 30, None, outcome="unknown")
    return run.recorded()


@illegal
def unknown_write_older_than_what_was_read_before_its_call() -> Recorded:
    run = Scripted()
    run.happen(Put(key("a"), value(2)), 60)
    run.do(Range(key("b")), 0, 10)
    run.say(Put(key("a"), value(2)), 20, 30, None, outcome="unknown")
    return run.recorded()


@illegal
def lease_that_leaves_a_key() -> Recorded:
    run = Scripted()
    run.do(Grant(9, 2), 0, 5)
    run.do(Put(key("a"), value(2), 9), 10, 15)
    run.do(Put(key("b"), value(3), 9), 20, 25)
    run.happen(Delete(key("a")), 5000)
    return run.recorded(6000)


@illegal
def lease_end_that_deletes_a_key_of_nobody_too() -> Recorded:
    run = Scripted()
    run.do(Grant(9, 2), 0, 5)
    run.do(Put(key("a"), value(2), 9), 10, 15)
    run.do(Put(key("b"), value(3)), 20, 25)
    run.happen(Delete(key("a"), key("c")), 5000)
    return run.recorded(6000)


@illegal
def write_of_nobody_under_our_keys() -> Recorded:
    run = Scripted()
    run.happen(Put(key("a"), b"?"), 10)
    return run.recorded()


@illegal
def definite_failure_in_the_log() -> Recorded:
    run = Scripted()
    run.do(Put(key("a"), value(1)), 0, 10, outcome="failed", answer=None, revision=0, code="INVALID_ARGUMENT")
    return run.recorded()


@illegal
def serializable_read_that_goes_back() -> Recorded:
    run = Scripted()
    old = run.model.evaluate(Range(key("a"), serializable=True))[0]
    run.happen(Put(b"other", b""), 10)
    run.do(Range(key("a"), serializable=True), 20, 30)
    run.say(Range(key("a"), serializable=True), 40, 50, old)
    return run.recorded()


@illegal
def serializable_read_from_the_future() -> Recorded:
    """It shows a write that is called after the read has returned."""
    run = Scripted()
    run.do(Put(key("a"), value(1)), 20, 30)
    run.do(Range(key("a"), serializable=True), 0, 10)
    return run.recorded()


@illegal
def stale_read_after_an_acknowledged_write() -> Recorded:
    run = Scripted()
    old = run.model.evaluate(Range(key("a")))[0]
    run.do(Put(key("a"), value(1)), 0, 10)
    run.say(Range(key("a")), 20, 30, old)
    return run.recorded()


@illegal
def stale_read_after_a_delivery() -> Recorded:
    run = Scripted()
    old = run.model.evaluate(Range(key("a")))[0]
    run.unknown(Put(key("a"), value(1)), 0, 10)
    run.say(Range(key("a")), 20, 30, old)
    return run.recorded()


@illegal
def acknowledged_write_missing_in_the_middle_of_the_log() -> Recorded:
    run = Scripted()
    run.do(Put(key("a"), value(1)), 0, 10)
    run.do(Put(key("b"), value(2)), 20, 30)
    del run.log[0]
    return run.recorded()


@legal
def local_txns_that_are_stale() -> Recorded:
    run = Scripted()
    compares = Txn((Compare(key("a"), "version", "=", 0),))
    reads = Txn((), (Range(key("a"), serializable=True),))
    old = [run.model.evaluate(txn)[0] for txn in (compares, reads)]
    run.do(Put(key("a"), value(1)), 0, 10)
    run.say(compares, 20, 30, old[0])
    run.say(reads, 40, 50, old[1])
    return run.recorded()


@legal
def log_that_stops_before_the_last_operation() -> Recorded:
    run = Scripted()
    for number in range(1, 4):
        run.do(Put(key("a"), value(number)), number * 20, number * 20 + 10)
    recorded = run.recorded()
    return recorded._replace(deliveries={"thor": recorded.deliveries["thor"][:2]})


@legal
def writes_of_others_and_of_an_earlier_run() -> Recorded:
    base = Model()
    base.apply(Put(b"theirs", b"old"))
    base.apply(Put(b"etcdops/run0/k/a", b"run0/1"))
    run = Scripted(base)
    run.do(Put(key("a"), value(1)), 0, 10)
    run.happen(Put(b"etcdops/run0/k/a", b"run0/9"), 20)
    run.happen(Txn((), (Put(b"theirs", b"new"), Put(b"theirs/2", b"new"))), 30)
    run.happen(Delete(b"theirs", b"theirs0"), 40)
    run.do(Range(b"\0", b"\0"), 50, 60)
    return run.recorded()


@legal
def keys_of_an_ended_lease() -> Recorded:
    run = Scripted()
    run.do(Grant(9, 2), 0, 5)
    run.do(Put(key("a"), value(2), 9), 10, 15)
    run.do(Put(key("b"), value(3), 9), 20, 25)
    run.do(Put(key("b"), value(4)), 30, 35)
    run.happen(Revoke(9), 5000)
    run.do(Range(key(""), key("z")), 5010, 5020)
    return run.recorded(6000)


@legal
def unknown_writes_of_which_some_are_applied() -> Recorded:
    run = Scripted()
    run.unknown(Put(key("a"), value(1)), 0, 10, applied=False)
    run.unknown(Put(key("a"), value(2)), 0, 10)
    run.unknown(Put(key("b"), value(3)), 0, 1, applied=False)
    run.do(Range(key("a")), 100, 110)
    run.happen(Put(key("b"), value(3)), 200)
    return run.recorded()


@legal
def unknown_deletes_that_could_be_either() -> Recorded:
    run = Scripted()
    run.do(Put(key("a"), value(1)), 0, 5)
    run.say(Delete(key("a")), 10, 20, None, outcome="unknown")
    run.say(Delete(key("a"), key("b")), 10, 20, None, outcome="unknown")
    run.happen(Delete(key("a")), 30)
    run.do(Put(key("a"), value(4)), 40, 50)
    run.happen(Delete(key("a")), 60)
    return run.recorded()


@legal
def unknown_deletes_of_which_only_the_later_called_fits_both() -> Recorded:
    """The wide delete could own the first revision, but then nothing owns the second: greed must not take it."""
    run = Scripted()
    run.do(Txn((), (Put(key("a"), value(1)), Put(key("b"), value(1)))), 0, 5)
    run.say(Delete(key("a"), key("c")), 10, 11, None, outcome="unknown")
    run.say(Delete(key("a")), 10, 12, None, outcome="unknown")
    run.happen(Delete(key("a")), 30)
    run.do(Put(key("a"), value(4)), 40, 50)
    run.happen(Delete(key("a"), key("c")), 60)
    return run.recorded()


@legal
def unknown_delete_or_end_of_a_lease() -> Recorded:
    run = Scripted()
    run.do(Grant(9, 2), 0, 5)
    run.do(Put(key("a"), value(2), 9), 10, 15)
    run.say(Delete(key("a")), 20, 25, None, outcome="unknown")
    run.happen(Revoke(9), 5000)
    run.do(Put(key("a"), value(4)), 5010, 5020)
    run.happen(Delete(key("a")), 5030)
    return run.recorded(6000)


@legal
def equal_stamps_are_concurrent() -> Recorded:
    run = Scripted()
    old = run.model.evaluate(Range(key("a")))[0]
    run.do(Put(key("a"), value(1)), 0, 10)
    run.say(Range(key("a")), 10, 20, old)
    return run.recorded()


@legal
def read_in_a_write_txn_sees_what_was_before_its_put() -> Recorded:
    run = Scripted()
    run.do(Txn((), (Range(key("a")), Put(key("a"), value(1)), Range(key("a")))), 0, 10)
    return run.recorded()


@legal
def read_of_an_old_revision() -> Recorded:
    run = Scripted()
    for number in range(1, 4):
        run.do(Put(key("a"), value(number)), number * 20, number * 20 + 10)
    answer = run.do(Range(key("a"), revision=3), 100, 110)
    assert isinstance(answer, RangeResult)
    assert answer.kvs[0].value == value(2)
    return run.recorded()


@legal
def serializable_read_goes_back_after_a_restart() -> Recorded:
    run = Scripted()
    old = run.model.evaluate(Range(key("a"), serializable=True))[0]
    run.happen(Put(b"other", b""), 10)
    run.do(Range(key("a"), serializable=True), 20, 30)
    run.say(Range(key("a"), serializable=True), 60, 70, old)
    recorded = run.recorded()
    fault = Fault("kill", "thor", 40_000_000, 41_000_000, 49_000_000, 50_000_000)
    return recorded._replace(observed=replace(recorded.observed, faults=(fault,)))


@legal
def put_of_the_same_value_by_another_run_of_the_same_operation_number() -> Recorded:
    run = Scripted()
    run.do(Put(key("a"), value(1)), 0, 10)
    run.happen(Put(b"etcdops/run0/k/a", b"run0/1"), 20)
    return run.recorded()
