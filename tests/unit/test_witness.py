"""The revision witness: each rule is broken by hand and named, and legal behaviour is not flagged."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from etcdops.answers import DeleteResult, Event, KeyValue, RangeResult, TxnResult
from etcdops.model import Model
from etcdops.ops import Compact, Compare, Delete, Grant, KeepAlive, Put, Range, Revoke, Txn
from etcdops.verify import Check
from etcdops.verify.recorded import Fault, Final, Recorded, State
from etcdops.verify.witness import NAME, check_witness, witness
from etcdops.workload.deliveries import Delivery
from etcdops.workload.history import Operation
from tests.unit.stories import MEMBERS, MS, Story, key, random_story, redelivered, replaced, value

EVERYTHING = (b"\0", b"\0")


def _passes(recorded: Recorded) -> Check:
    check = check_witness(recorded)
    assert (check.name, check.result) == (NAME, "passed"), check.detail
    return check


def _breaks(recorded: Recorded, rule: str, *words: str) -> Check:
    check = check_witness(recorded)
    assert check.result == "failed", check.detail
    assert f"{rule} (" in check.detail, check.detail
    for word in words:
        assert word in check.detail, check.detail
    return check


def _doubts(recorded: Recorded, words: str) -> None:
    check = check_witness(recorded)
    assert check.result == "inconclusive", check.detail
    assert words in check.detail, check.detail


def _swap(story: Story, name: str, revision: int, *reads: str) -> Txn:
    """Give a compare-and-swap of a key that was last modified at `revision`."""
    compares = (Compare(key(name), "mod_revision", "=", revision),)
    return Txn(
        compares,
        (*(Range(key(read)) for read in reads), Put(key(name), value(story.next_id()))),
        (Range(key(name)),),
    )


# Legal histories


@pytest.mark.parametrize("seed", range(60))
def test_legal_histories_pass(seed: int) -> None:
    """Histories of every kind of operation, unknown outcomes, foreign writers and ends of leases are not flagged."""
    _passes(random_story(seed, 60).told())


def test_what_was_checked_is_said() -> None:
    """A check that passed says how much it looked at."""
    story = Story()
    story.put("a")
    story.get("a")
    story.lost(Put(key("b"), value(3)))
    story.lost(Put(key("c"), value(4)), applied=False)
    check = _passes(story.told())
    assert check.detail == (
        "3 answered operations against 3 revisions;"
        " of the unknown writes 1 were applied and 1 were not by the window's end"
    )


def test_transactions_served_locally_may_be_stale() -> None:
    """A transaction of comparisons alone, or of serializable reads alone, is one member's own view: it may be old."""
    story = Story()
    story.put("a")
    old = story.model.copy()
    story.put("a")
    for request in (
        Txn((Compare(key("a"), "version", "=", 1),)),
        Txn((), (Range(key("a"), serializable=True),)),
        Range(key("a"), serializable=True),
    ):
        story.now += 2 * MS
        answer = old.apply(request)
        story.record(request, "ironman", answer=answer, revision=answer.revision, outcome="ok")
    _passes(story.told())


def test_log_that_ends_before_the_last_operation_passes() -> None:
    """What is answered after the tombstone lies outside the window."""
    story = Story()
    story.put("a")
    recorded = story.told()
    story.put("a")
    story.get("a")
    check = _passes(recorded)
    assert "2 beyond the log's end" in check.detail


def test_foreign_and_older_keys_pass() -> None:
    """A cluster in use has keys of its own, and others that write them meanwhile."""
    model = Model()
    for name in (b"registry/x", b"registry/y", key("older")):
        model.apply(Put(name, b"before"))
    story = Story(revision=model.revision, kvs=model.span(*EVERYTHING))
    story.put("a")
    story.silently(Put(b"registry/x", b"by others"))
    story.silently(Txn((), (Delete(b"registry/y"), Put(b"registry/z", b"by others"))))
    story.get("older")
    story.do(Range(*EVERYTHING))
    story.do(Range(*EVERYTHING, revision=story.base.revision))
    assert "2 by others" in _passes(story.told()).detail


def test_deletes_by_the_end_of_a_lease_pass() -> None:
    """An expiry deletes all keys of its lease at a revision of its own."""
    story = Story()
    story.do(Grant(7, 5))
    for name in ("b", "a"):
        story.do(Put(key(name), value(story.next_id()), 7))
    story.put("c")
    story.silently(Revoke(7))
    story.get("a")
    assert "1 revisions by ends of leases" in _passes(story.told()).detail


def test_every_kind_of_answer_passes() -> None:
    """Absent keys, failed comparisons, deletes of nothing, limits, old revisions, compactions are answers."""
    story = Story()
    story.do(Grant(7, 1))
    for name in "abcd":
        story.put(name)
    story.do(Put(key("a"), value(story.next_id()), 7, prev_kv=True))
    story.do(KeepAlive(7))
    story.get("none")
    story.do(Delete(key("none")))
    story.do(_swap(story, "a", 3))
    story.do(_swap(story, "a", 6, "b"))
    story.do(Txn((), (Txn((), (Put(key("e"), value(story.next_id())), Delete(key("b")))),)))
    story.do(Range(key("a"), key("z"), limit=2))
    story.do(Range(key("a"), key("z"), sort_target="mod_revision", sort_order="descend"))
    story.do(Range(key("a"), key("z"), revision=4, count_only=True))
    story.do(Compact(4))
    story.do(Range(key("a"), key("z"), revision=5, keys_only=True))
    story.do(Delete(key("c"), key("z"), prev_kv=True))
    story.do(Revoke(7))
    _passes(story.told())


def test_keys_that_sort_alike_may_come_in_any_order() -> None:
    """etcd sorts unstably: two keys of one version may change places."""
    story = Story()
    story.put("a")
    story.put("b")
    read = story.do(Range(key("a"), key("z"), sort_target="version", sort_order="descend"))
    recorded = story.told()
    assert isinstance(read.answer, RangeResult)
    kvs = tuple(reversed(read.answer.kvs))
    _passes(replaced(recorded, read.id, answer=read.answer._replace(kvs=kvs)))
    _breaks(replaced(recorded, read.id, answer=read.answer._replace(kvs=(kvs[0], kvs[0]))), "W2")


# Histories that a laxer rule lets through


def test_write_skew_at_one_revision_breaks_w1() -> None:
    """Two compare-and-swaps that each read what the other writes cannot share a revision."""
    story = Story()
    first = story.put("a").revision
    second = story.put("b").revision
    one = story.do(_swap(story, "a", first, "b"), call_ns=100 * MS, return_ns=200 * MS)
    request = _swap(story, "b", second, "a")
    assert isinstance(one.answer, TxnResult)
    assert isinstance(request.success[1], Put)
    at = one.revision
    skewed = KeyValue(key("b"), request.success[1].value, second, at, 2, 0)
    answer = TxnResult(
        at,
        True,
        (
            RangeResult(at - 1, (KeyValue(key("a"), value(1), first, first, 1, 0),), False, 1),
            one.answer.results[1],
        ),
    )
    story.record(request, call_ns=100 * MS, return_ns=200 * MS, answer=answer, revision=at, outcome="ok")
    story.now = 300 * MS
    b = story.model.get(key("b"))
    story.model._store(skewed)
    story.log[-1] = (story.log[-1][0], (*story.log[-1][1], Event("put", skewed, b)))
    _breaks(story.told(), "W1", f"revision {at} has two owners", "operation 3 (", "operation 4 (")


def test_acknowledged_put_applied_twice_breaks_w1() -> None:
    """The second application has no owner: the write owns the revision that it was answered."""
    story = Story()
    put = story.put("a")
    story.put("b")
    story.silently(put.request)
    _breaks(story.told(), "W1", "revision 4 ", "has no owner", "operation 1 (", "owns revision 2")


def test_delete_that_answers_0_although_the_key_exists_breaks_w2() -> None:
    """A delete of nothing is an answer only where there is nothing."""
    story = Story()
    story.put("a")
    delete = Delete(key("a"))
    lie = story.record(delete, answer=DeleteResult(2, 0, ()), revision=2, outcome="ok")
    _breaks(story.told(), "W2", f"operation {lie.id} (", "it owns no revision")


def test_half_a_transaction_in_the_log_breaks_w2() -> None:
    """A transaction's events are in the log all together."""
    story = Story()
    story.put("a")
    txn = story.do(Txn((), (Put(key("b"), value(2)), Put(key("c"), value(2)))))
    story.put("a")
    story.model._versions[key("c")].clear()
    del story.model._current[key("c")], story.model._live[story.model._live.index(key("c"))]
    recorded = redelivered(
        story.told(), lambda d: msgspec.structs.replace(d, events=d.events[:1]) if len(d.events) > 1 else d
    )
    _breaks(recorded, "W2", f"operation {txn.id} (", "and the log has put etcdops/run1/b")


# W0


def test_members_that_deliver_different_events_break_w0() -> None:
    """One revision is one thing, whoever tells of it."""
    story = Story()
    put = story.put("a")

    def bend(delivery: Delivery) -> Delivery:
        if delivery.revision != put.revision:
            return delivery
        event = delivery.events[0]
        return msgspec.structs.replace(delivery, events=(event._replace(kv=event.kv._replace(value=b"other")),))

    _breaks(redelivered(story.told(), bend, ["deadpool"]), "W0", "revision 2 ", "by ironman", "by deadpool")


def test_hole_that_an_acknowledged_write_explains_is_its_loss() -> None:
    """A revision that a write was answered and no watch delivered is a lost write."""
    story = Story()
    story.put("a")
    lost = story.put("b")
    story.put("a")
    recorded = redelivered(story.told(), lambda d: None if d.revision == lost.revision else d)
    _breaks(recorded, "W1", "the log holds nothing at revision 3", f"operation {lost.id} (")
    assert witness(recorded).lost == (lost.id,)


def test_hole_that_nothing_explains_is_inconclusive() -> None:
    """Nobody knows what it was, so nothing after it can be replayed; what is before it still counts."""
    story = Story()
    story.put("a")
    unknown = story.lost(Put(key("b"), value(2)))
    read = story.get("a")
    recorded = redelivered(story.told(), lambda d: None if d.revision == 3 else d)
    assert unknown.revision == 0
    _doubts(recorded, "no member delivered revision 3")
    assert isinstance(read.answer, RangeResult)
    early = replaced(recorded, read.id, revision=2, answer=read.answer._replace(revision=2, kvs=()))
    _breaks(early, "W2", f"operation {read.id} (")


def test_log_of_one_member_is_enough() -> None:
    """What one member missed another has delivered."""
    story = Story()
    for name in "abcdef":
        story.put(name)
    recorded = redelivered(story.told(), lambda d: d if d.revision % 2 else None, ["ironman"])
    recorded = redelivered(recorded, lambda d: None if d.revision % 2 else d, ["thor"])
    _passes(redelivered(recorded, lambda d: None, ["deadpool"]))


def test_log_that_ends_before_the_tombstone_is_inconclusive() -> None:
    """The window is not closed by a write that no watch has seen."""
    story = Story()
    story.put("a")
    recorded = story.told()
    last = recorded.observed.tombstone
    _doubts(redelivered(recorded, lambda d: None if d.revision == last else d), "the log ends at revision 2")
    _doubts(redelivered(recorded, lambda d: None), "the log ends at revision 1")


def test_final_state_that_differs_through_one_member_breaks_w0() -> None:
    """The log gives exactly what is there in the end, through every member."""
    story = Story()
    story.put("a")
    recorded = story.told()
    states = recorded.observed.states
    stale = State(states[1].revision, states[1].kvs[1:])
    observed = msgspec.structs.replace(
        recorded.observed, states=(*states, stale), final={**recorded.observed.final, "thor": Final(2)}
    )
    _breaks(recorded._replace(observed=observed), "W0", "the final state through thor", "etcdops/run1/a is None")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"final": {"thor": Final(error="no answer")}}, "could not be read through thor: no answer"),
        ({"final": {}}, "the final state was not read"),
        ({"tombstone": 0}, "no write closed the window"),
        ({"base": -1}, "before the first operation was not read"),
    ],
)
def test_what_was_not_seen_is_inconclusive(changed: dict[str, Any], words: str) -> None:
    """A base, a tombstone and the final state are needed."""
    story = Story()
    story.put("a")
    _doubts(story.told(**changed), words)


# W1


def test_definite_failure_that_was_applied_breaks_w1() -> None:
    """What the server said that it refused owns no revision."""
    story = Story()
    story.put("a")
    failed = story.lost(Put(key("b"), value(2)), outcome="failed")
    _breaks(story.told(), "W1", "revision 3 ", f"operation {failed.id} (", "definitely failed")


def test_unknown_write_applied_twice_breaks_w1() -> None:
    """An unknown write owns one revision at most."""
    story = Story()
    unknown = story.lost(Put(key("a"), value(1)))
    story.silently(unknown.request)
    _breaks(story.told(), "W1", "has no owner", "operation 1 (", "cannot have made it")


def test_unknown_write_before_its_call_breaks_w1() -> None:
    """An unknown write comes after every revision that was told before it was called."""
    story = Story()
    unknown = story.lost(Put(key("a"), value(1)))
    story.get("b")
    recorded = story.told()
    _passes(recorded)
    late = replaced(recorded, unknown.id, call_ns=100 * MS, return_ns=101 * MS)
    _breaks(late, "W1", "revision 2 ", f"operation {unknown.id} (")


def _deletes(*, again: bool) -> Recorded:
    """Give two unknown deletes, of which the wide one would fit either of two revisions."""
    story = Story()
    story.put("a")
    story.record(Delete(key("a"), key("c")), outcome="unknown", code="DEADLINE_EXCEEDED")
    story.lost(Delete(key("a")))
    story.put("b")
    story.silently(Delete(key("b")))
    if again:
        story.put("b")
        story.silently(Delete(key("b")))
    return story.told()


def test_unknown_deletes_are_matched_to_revisions() -> None:
    """Deletes bear no value: some assignment must exist in which each makes what is in the log."""
    result = witness(_deletes(again=False))
    assert result.check.result == "passed", result.check.detail
    assert result.recovered == (2, 3)
    _breaks(_deletes(again=True), "W1", "revision 7 (delete etcdops/run1/b) has no owner", "operation 2 (")


def test_revision_of_ours_and_others_keys_breaks_w1() -> None:
    """Nobody else writes keys of the run, and no operation of the run writes others'."""
    story = Story()
    story.put("a")
    story.silently(Txn((), (Put(key("b"), b"x"), Put(b"registry/x", b"x"))))
    _breaks(story.told(), "W1", "keys of the run and others' share it")


def test_end_of_a_lease_that_leaves_a_key_breaks_w1() -> None:
    """The end of a lease deletes all of its keys, not some."""
    story = Story()
    story.do(Grant(7, 5))
    for name in "ab":
        story.do(Put(key(name), value(story.next_id()), 7))
    story.silently(Delete(key("a")))
    _breaks(story.told(), "W1", "delete etcdops/run1/a", "has no owner")


def test_revoke_that_leaves_a_key_breaks_w2() -> None:
    """A revoke that was acknowledged has deleted what its lease held."""
    story = Story()
    story.do(Grant(7, 5))
    story.do(Put(key("a"), value(2), 7))
    revoke = story.record(Revoke(7), answer=2, revision=2, outcome="ok")
    _breaks(story.told(), "W2", f"operation {revoke.id} (", "its lease still had keys")


def test_events_of_another_runs_value_are_foreign() -> None:
    """A write of an earlier run can be applied late; it bears another run's prefix."""
    story = Story()
    story.put("a")
    story.silently(Put(b"etcdops/run0/pinned.thor/1", b"run0/1"))
    _passes(story.told())


# W2


def _bent(answer: Any, **changed: Any) -> Any:
    kv = answer.kvs[0]._replace(**changed)
    return answer._replace(kvs=(kv, *answer.kvs[1:]))


@pytest.mark.parametrize(
    "changed",
    [
        {"value": b"run1/9"},
        {"version": 2},
        {"create_revision": 3},
        {"mod_revision": 3},
        {"lease": 7},
        {"key": key("b")},
    ],
)
def test_every_field_of_a_read_key_counts(changed: dict[str, Any]) -> None:
    """A read gives the key as it is, with its value, version, revisions and lease."""
    story = Story()
    story.put("a")
    read = story.get("a")
    recorded = story.told()
    _breaks(replaced(recorded, read.id, answer=_bent(read.answer, **changed)), "W2", f"operation {read.id} (")


@pytest.mark.parametrize("bend", ["count", "more", "order", "short", "long", "limit"])
def test_the_whole_range_counts(bend: str) -> None:
    """A range's count, order, limit and completeness are part of its answer."""
    story = Story()
    for name in "abc":
        story.put(name)
    read = story.do(Range(key("a"), key("z"), limit=2 if bend == "limit" else 0))
    recorded = story.told()
    answer = read.answer
    assert isinstance(answer, RangeResult)
    bent = {
        "count": answer._replace(count=2),
        "more": answer._replace(more=True),
        "order": answer._replace(kvs=answer.kvs[::-1]),
        "short": answer._replace(kvs=answer.kvs[:1], count=1),
        "long": answer._replace(kvs=(*answer.kvs, answer.kvs[-1]), count=4),
        "limit": answer._replace(kvs=answer.kvs[:1]),
    }[bend]
    _breaks(replaced(recorded, read.id, answer=bent), "W2", f"operation {read.id} (")


def test_previous_values_count() -> None:
    """What a put replaced and what a delete took away are part of the answer."""
    story = Story()
    story.put("a")
    put = story.do(Put(key("a"), value(2), prev_kv=True))
    delete = story.do(Delete(key("a"), prev_kv=True))
    recorded = story.told()
    for op, field in ((put, "prev_kv"), (delete, "prev_kvs")):
        none: Any = None if field == "prev_kv" else ()
        answer: Any = op.answer
        _breaks(replaced(recorded, op.id, answer=answer._replace(**{field: none})), "W2", f"operation {op.id} (")
    lie = DeleteResult(delete.revision, 2, ())
    _breaks(replaced(recorded, delete.id, answer=lie), "W2", f"operation {delete.id} (")


def test_transactions_are_replayed_whole() -> None:
    """The branch that ran, and every answer inside, are as the model has them."""
    story = Story()
    first = story.put("a").revision
    swap = story.do(_swap(story, "a", first, "a"))
    failed = story.do(_swap(story, "a", first))
    recorded = story.told()
    for op in (swap, failed):
        answer = op.answer
        assert isinstance(answer, TxnResult)
        read = answer.results[0]
        for bent in (
            answer._replace(succeeded=not answer.succeeded),
            answer._replace(results=answer.results[1:]),
            answer._replace(results=(_bent(read, value=b"run1/9"), *answer.results[1:])),
        ):
            _breaks(replaced(recorded, op.id, answer=bent), "W2", f"operation {op.id} (")


def test_reads_of_old_revisions_are_of_those() -> None:
    """A read at an old revision gives the old state, and none at a revision that is still to come is answered."""
    story = Story()
    story.put("a")
    story.put("a")
    read = story.do(Range(key("a"), revision=2))
    now = story.get("a")
    recorded = story.told()
    _breaks(replaced(recorded, read.id, request=Range(key("a"), revision=3)), "W2", f"operation {read.id} (")
    _breaks(replaced(recorded, now.id, request=Range(key("a"), revision=4)), "W2", "future revision")


def test_reads_of_states_before_the_base_are_not_judged() -> None:
    """Nothing tells what they should give."""
    model = Model()
    for _ in range(5):
        model.apply(Put(key("a"), b"x"))
    story = Story(revision=model.revision, kvs=model.span(*EVERYTHING))
    answer = RangeResult(6, (KeyValue(key("a"), b"?", 2, 3, 2, 0),), False, 1)
    story.record(Range(key("a"), revision=3), answer=answer, revision=6, outcome="ok")
    assert "1 about states before the first" in _passes(story.told()).detail


@pytest.mark.parametrize(
    "changed", [{"version": 3}, {"create_revision": 3}, {"value": b"run1/9"}, {"lease": 7}, {"key": key("b")}]
)
def test_a_puts_event_is_as_the_model_makes_it(changed: dict[str, Any]) -> None:
    """The log's event of a put has the version, revisions and lease that follow from the state before."""
    story = Story()
    story.put("a")
    put = story.put("a")

    def bend(delivery: Delivery) -> Delivery:
        if delivery.revision != put.revision:
            return delivery
        event = delivery.events[0]
        return msgspec.structs.replace(delivery, events=(event._replace(kv=event.kv._replace(**changed)),))

    _breaks(redelivered(story.told(), bend), "W2", f"operation {put.id} (", "and the log has")


def test_foreign_revisions_must_follow_from_the_state_too() -> None:
    """Whoever wrote it: a version that jumps is no etcd's."""
    story = Story()
    story.put("a")
    story.silently(Put(b"registry/x", b"1"))
    story.silently(Put(b"registry/x", b"2"))

    def bend(delivery: Delivery) -> Delivery:
        event = delivery.events[0]
        if event.kv.key != b"registry/x" or event.kv.version != 2:
            return delivery
        return msgspec.structs.replace(delivery, events=(event._replace(kv=event.kv._replace(version=5)),))

    _breaks(redelivered(story.told(), bend), "W2", "revision 4")


def test_compaction_of_the_future_breaks_w2() -> None:
    """A compaction is acknowledged only of what exists, and a read of what is compacted is refused."""
    story = Story()
    story.put("a")
    story.put("a")
    story.do(Compact(3))
    recorded = story.told()
    _breaks(replaced(recorded, 3, request=Compact(4)), "W2", "operation 3 (")
    stale = story.record(
        Range(key("a"), revision=2),
        answer=RangeResult(4, (KeyValue(key("a"), value(1), 2, 2, 1, 0),), False, 1),
        revision=4,
        outcome="ok",
        call_ns=story.now + MS,
        return_ns=story.now + 2 * MS,
    )
    _breaks(recorded, "W2", f"operation {stale.id} (", "compacted")


def test_leases_that_cannot_be_alive_break_w2() -> None:
    """A key is attached to a lease only between the lease's grant and its end."""
    story = Story()
    story.do(Grant(7, 5))
    story.do(Put(key("a"), value(2), 7))
    story.do(Revoke(7))
    late = Put(key("b"), value(4), 7)
    story.model.leases[7] = 5
    story.do(late)
    _breaks(story.told(), "W2", "operation 4 (", "lease 7")
    story = Story()
    story.model.leases[7] = 5
    story.do(Put(key("a"), value(1), 7))
    story.do(Put(key("b"), value(2)))
    del story.model.leases[7]
    story.do(Grant(7, 5))
    _breaks(story.told(), "W2", "operation 1 (", "lease 7")
    story = Story()
    story.do(Grant(7, 5))
    story.do(Revoke(7))
    story.model.leases[7] = 5
    story.do(Revoke(7))
    _breaks(story.told(), "W2", "operation 3 (", "lease 7")


# W3


def _read_at(story: Story, revision: int, state: Model, call_ns: int, return_ns: int, **options: Any) -> Operation:
    answer = state.apply(Range(key("a"), **options))
    assert answer.revision == revision
    return story.record(
        Range(key("a"), **options), answer=answer, revision=revision, outcome="ok", call_ns=call_ns, return_ns=return_ns
    )


def test_stale_linearizable_read_breaks_w3() -> None:
    """A read called after a write has returned sees it; one called before, or at the same instant, need not."""
    story = Story()
    story.put("a")
    old = story.model.copy()
    put = story.put("a", call_ns=20 * MS, return_ns=30 * MS)
    story.log[-1] = (60 * MS, story.log[-1][1])
    story.now = 100 * MS
    read = _read_at(story, 2, old, 30 * MS, 40 * MS)
    recorded = story.told()
    _passes(recorded)
    late = replaced(recorded, read.id, call_ns=30 * MS + 1)
    _breaks(late, "W3", f"operation {read.id} (", f"operation {put.id} (", "had returned revision 3")
    # The same read, asked for as serializable, is one member's own view.
    _passes(replaced(late, read.id, request=Range(key("a"), serializable=True)))


def test_what_a_watch_or_a_serializable_read_has_shown_counts() -> None:
    """Whatever told of a revision: who calls later is not answered less."""
    story = Story()
    story.put("a")
    old = story.model.copy()
    story.put("a", call_ns=20 * MS, return_ns=90 * MS)
    story.log[-1] = (40 * MS, story.log[-1][1])
    story.now = 100 * MS
    read = _read_at(story, 2, old, 50 * MS, 60 * MS)
    recorded = story.told()
    _breaks(recorded, "W3", f"operation {read.id} (", "after a watch had delivered revision 3")
    story.log[1] = (70 * MS, story.log[1][1])
    recorded = recorded._replace(deliveries={member: story.deliveries() for member in MEMBERS})
    _passes(recorded)
    seen = _read_at(story, 3, Model.at(3, story.model.span(key("a"), revision=3)), 30 * MS, 45 * MS, serializable=True)
    recorded = recorded._replace(history=story.history)
    _breaks(recorded, "W3", f"operation {read.id} (", f"operation {seen.id} (")


def test_write_that_owns_what_was_told_before_it_was_called_breaks_w3() -> None:
    """A revision cannot be known before the write that makes it is called."""
    story = Story()
    put = story.put("a")
    story.get("a", call_ns=0, return_ns=MS // 2)
    recorded = story.told()
    _breaks(replaced(recorded, put.id, call_ns=MS), "W3", f"operation {put.id} (")


def test_nothing_is_answered_less_than_the_base() -> None:
    """The base state was read before the first operation."""
    model = Model()
    model.apply(Put(key("a"), b"x"))
    early = model.copy()
    model.apply(Put(key("a"), b"y"))
    story = Story(revision=model.revision, kvs=model.span(*EVERYTHING))
    _read_at(story, 2, early, MS, 2 * MS)
    _breaks(story.told(), "W3", "the base state had been read at revision 3")


def test_keep_alives_are_never_late() -> None:
    """The revision of a keep-alive's answer is not exact."""
    story = Story()
    story.do(Grant(7, 5))
    story.put("a")
    keep = story.do(KeepAlive(7))
    recorded = story.told()
    _passes(replaced(recorded, keep.id, revision=1))


# W4


def test_serializable_read_of_no_state_breaks_w4() -> None:
    """It may be old, but it is what was at its revision."""
    story = Story()
    story.put("a")
    story.put("a")
    read = story.get("a", serializable=True)
    recorded = story.told()
    answer = read.answer
    assert isinstance(answer, RangeResult)
    _breaks(replaced(recorded, read.id, answer=answer._replace(revision=2), revision=2), "W4", f"operation {read.id} (")


def test_serializable_reads_go_back_only_after_a_restart() -> None:
    """One process of a member never shows less than before; a new one may, until it has caught up."""
    story = Story()
    story.put("a")
    old = story.model.copy()
    story.put("a")
    first = story.get("a", "thor", serializable=True)
    answer = old.apply(Range(key("a"), serializable=True))
    story.now += 4 * MS
    second = story.record(
        Range(key("a"), serializable=True), "thor", answer=answer, revision=answer.revision, outcome="ok"
    )
    recorded = story.told()
    _breaks(recorded, "W4", "went back", f"operation {first.id} (", f"operation {second.id} (")
    _passes(replaced(recorded, second.id, member="ironman"))
    for kind, passes in (("kill", True), ("freeze", False)):
        at = first.return_ns + 1
        observed = msgspec.structs.replace(recorded.observed, faults=(Fault(kind, "thor", at, at, at + 1, at + 1),))
        assert (check_witness(recorded._replace(observed=observed)).result == "passed") is passes


# Restores


def test_state_and_writes_after_a_revision_can_be_asked_for() -> None:
    """What a restore of a snapshot brings back is the log's state at its revision; what was acknowledged later goes."""
    story = Story()
    for name in "aab":
        story.put(name)
    found = witness(story.told())
    assert found.after(2) == (2, 3, 4)
    state = found.state(3)
    assert state is not None
    assert [(kv.key, kv.version) for kv in state.kvs] == [(key("a"), 2)]
    assert found.state(99) is None
