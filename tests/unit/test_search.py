"""The linearizability search: verdicts against a brute-force oracle, its treatment of unknown writes, its budgets."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcdops.errors import SpecError
from etcdops.verify.models import Event, Model, Mutex, Register, State, describe
from etcdops.verify.search import Budget, search, unseen
from etcdops.verify.unknown import CompleteLog, treat


def op(
    process: int | str,
    f: str,
    *arguments: Any,
    at: tuple[int, int | None],
    answer: Any = None,
    outcome: Any = "ok",
    key: Hashable = "k",
) -> Event:
    """An operation that was called and answered at the two instants."""
    return Event(process, f, key, arguments, outcome, answer, *at)


# -- an oracle that knows no rule and no shortcut


def has_order(events: Sequence[Event], model: Model) -> bool:
    """Whether some of the unknown operations and all that were answered have an order: every one is tried."""
    keys = tuple(dict.fromkeys(key for event in events for key in model.keys(event)))
    places = {key: at for at, key in enumerate(keys)}
    alive = [(e, model.rule(e, places)) for e in events if e.outcome != "failed"]
    alive = [(e, rule) for e, rule in alive if e.outcome == "ok" or not model.observes(rule)]

    @cache
    def orders(left: frozenset[int], state: State) -> bool:
        ends = [e.return_ for e, _ in map(alive.__getitem__, left) if e.outcome == "ok" and e.return_ is not None]
        if not ends:
            return True
        for i in left:
            event, rule = alive[i]
            if event.call <= min(ends):
                after = model.step(rule, state)
                if after is not None and orders(left - {i}, after):
                    return True
        return False

    return orders(frozenset(range(len(alive))), model.initial(keys))


# -- histories


def histories(
    seed: int,
    operations: int,
    *,
    kinds: Sequence[str],
    keys: int = 1,
    values: int = 3,
    clients: int = 4,
    lasting: int = 3,
) -> list[Event]:
    """A history of a real register under concurrent clients, some of whose calls get no answer; then often a lie."""
    draw = random.Random(seed)
    store: dict[str, Any] = {}
    now, events, busy = 0, [], dict.fromkeys(range(draw.randint(1, clients)), 0)
    fresh = iter(range(100, 1000))
    for _ in range(operations):
        client = min(busy, key=lambda c: (busy[c], draw.random()))
        call = busy[client]
        # It takes effect in the order in which it is made here, at an instant between call and return.
        now = max(now, call) + draw.randint(0, 2)
        return_ = now + draw.randint(0, lasting)
        busy[client] = return_ + draw.randint(0, 1)
        fate = draw.random()
        outcome: Any = "unknown" if fate < 0.3 else "failed" if fate < 0.35 else "ok"
        applied = outcome == "ok" or (outcome == "unknown" and draw.random() < 0.5)
        key = f"k{draw.randrange(keys)}"
        value = draw.randrange(values) if draw.random() < 0.6 else next(fresh)
        f = draw.choice(kinds)
        arguments, answer = apply(store, f, key, value, draw, [f"k{i}" for i in range(keys)], applied)
        if outcome != "ok":
            answer = None
        elif draw.random() < 0.15:
            answer = lie(f, answer, draw, values)
        events.append(
            Event(f"c{client}", f, key, arguments, outcome, answer, call, return_ if outcome == "ok" else None)
        )
    draw.shuffle(events)
    return events


def apply(
    store: dict[str, Any], f: str, key: str, value: int, draw: random.Random, keys: list[str], applied: bool
) -> tuple[tuple[Any, ...], Any]:
    before = store.get(key)
    if f == "read":
        return (), before
    if f == "range":
        return tuple(keys), tuple(store.get(each) for each in keys)
    if f == "cas":
        old = before if draw.random() < 0.6 else draw.choice([None, 0, 1, 2])
        if applied and before == old:
            store[key] = value
        return (old, value), before == old
    if f == "delete":
        if applied:
            store.pop(key, None)
        return (), draw.choice([None, int(before is not None)])
    if f == "txn":
        other = draw.choice(keys)
        compare = ((key, before if draw.random() < 0.6 else draw.choice([None, 0, 1])),)
        then = (("put", key, value), ("read", other))
        otherwise = draw.choice([(), (("read", key),), (("put", other, value),), (("delete", key),)])
        held = before == compare[0][1]
        work = store if applied else dict(store)
        read = []
        each: Any
        for each in then if held else otherwise:
            if each[0] == "put":
                work[each[1]] = each[2]
            elif each[0] == "delete":
                work.pop(each[1], None)
            else:
                read.append(work.get(each[1]))
        return (compare, then, otherwise), (held, tuple(read))
    if applied:
        store[key] = value
    return (value,), before if f == "swap" else None


def lie(f: str, answer: Any, draw: random.Random, values: int) -> Any:
    wrong = draw.choice([None, *range(values)])
    if f in ("read", "swap"):
        return wrong
    if f == "cas":
        return not answer
    if f == "delete":
        return draw.choice([0, 1])
    if f == "range":
        return (wrong, *answer[1:])
    if f == "txn":
        return (answer[0], tuple(wrong for _ in answer[1]))
    return answer


PLAIN = ["read", "write", "cas"]
ALL = [*PLAIN, "read", "write", "delete", "swap", "txn", "range"]


@pytest.mark.parametrize(
    ("kinds", "keys", "values"),
    [
        (PLAIN, 1, 3),
        (PLAIN, 1, 1),
        (["read", "write"], 1, 2),
        ([*PLAIN, "delete", "swap"], 1, 2),
        (ALL, 2, 2),
        (ALL, 3, 1),
    ],
)
def test_the_search_agrees_with_an_oracle(kinds: list[str], keys: int, values: int) -> None:
    """On thousands of small histories with unknown, failed and lying operations the search finds what is true."""
    verdicts = {"passed": 0, "failed": 0}
    for seed in range(700):
        events = histories(seed, 2 + seed % 7, kinds=kinds, keys=keys, values=values)
        expected = "passed" if has_order(events, Register()) else "failed"
        found = search(events, "register")
        assert found.result == expected, (seed, events, found)
        verdicts[expected] += 1
    assert min(verdicts.values()) > 50


@pytest.mark.parametrize(("kinds", "values"), [(PLAIN, 2), (["read", "write"], 2), ([*PLAIN, "delete", "swap"], 1)])
def test_the_search_agrees_with_an_oracle_where_much_is_concurrent(kinds: list[str], values: int) -> None:
    """The same where calls last long, so that many configurations are alike but for who is the better off."""
    verdicts = {"passed": 0, "failed": 0}
    for seed in range(600):
        events = histories(seed, 14, kinds=kinds, values=values, clients=7, lasting=12)
        expected = "passed" if has_order(events, Register()) else "failed"
        found = search(events, explain=False)
        assert found.result == expected, (seed, events, found)
        verdicts[expected] += 1
    assert min(verdicts.values()) > 20


@given(st.integers(0, 2**32), st.integers(2, 9), st.sampled_from([PLAIN, ["read", "write"], ALL]), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_the_oracle_agrees_on_whatever_is_drawn(seed: int, operations: int, kinds: list[str], keys: int) -> None:
    """The same for histories that Hypothesis draws, and makes small where the two differ."""
    events = histories(seed, operations, kinds=kinds, keys=keys, values=2)
    assert (search(events).result == "passed") == has_order(events, Register())


def test_mutexes_agree_with_an_oracle() -> None:
    """Locks that are acquired and released, some without an answer, get the oracle's verdict."""
    verdicts = {"passed": 0, "failed": 0}
    for seed in range(800):
        draw = random.Random(seed)
        events = []
        for i in range(2 + seed % 6):
            call = draw.randint(0, 12)
            outcome = draw.choice(["ok", "ok", "ok", "unknown", "failed"])
            f = draw.choice(["acquire", "release"])
            events.append(op(i, f, at=(call, call + draw.randint(0, 5)), outcome=outcome))
        expected = "passed" if has_order(events, Mutex()) else "failed"
        assert search(events, "mutex").result == expected, (seed, events)
        verdicts[expected] += 1
    assert min(verdicts.values()) > 50


# -- unknown writes


def left(events: list[Event], log: CompleteLog | None = None) -> tuple[int, int, int]:
    """How many unknown writes are given an end, left out, and open."""
    treated = treat(list(enumerate(events)), Register(), ("k",), log)
    return treated.bounded, treated.dropped, treated.open


def test_a_write_that_only_a_failed_compare_needs_is_not_left_out() -> None:
    """`put a; unknown put b; cas a -> c finds another value; put d` has an order only if b took effect."""
    events = [
        op(1, "write", "a", at=(0, 1)),
        op(2, "write", "b", at=(2, None), outcome="unknown"),
        op(3, "cas", "a", "c", at=(4, 5), answer=False),
        op(1, "write", "d", at=(6, 7)),
    ]
    assert search(events).result == "passed"
    assert left(events) == (0, 0, 1)
    assert search([events[0], *events[2:]]).result == "failed"
    # A compare that had returned by the time of the call has not needed it.
    compare = op(3, "cas", "x", "c", at=(1, 2), answer=False)
    assert left([events[0], compare, op(2, "write", "b", at=(3, None), outcome="unknown")]) == (0, 1, 0)


@pytest.mark.parametrize(
    "needs",
    [
        op(3, "cas", "a", "c", at=(4, 5), answer=False),
        op(3, "delete", at=(4, 5), answer=1),
        op(3, "read", at=(4, 5)),
        op(3, "swap", "c", at=(4, 5), answer="a"),
        op(3, "txn", (("k", "a"),), (), (("put", "k", "c"),), at=(4, None), outcome="unknown"),
    ],
    ids=lambda event: f"{event.f} {event.answer}",
)
def test_what_may_need_an_unknown_write_keeps_it(needs: Event) -> None:
    """A failed compare, a count, an absence, a value before, or another unknown operation keep a write open."""
    write = op(2, "write", "b", at=(2, None), outcome="unknown")
    assert left([op(1, "write", "a", at=(0, 1)), write, needs])[2] >= 1
    assert left([op(1, "write", "a", at=(0, 1)), write, op(3, "read", at=(4, 5), answer="a")]) == (0, 1, 0)
    # An unknown cas is open while it may have left what was found, and may itself need the write; else both go.
    swap = op(3, "cas", "b", "c", at=(4, None), outcome="unknown")
    assert left([op(1, "write", "c", at=(0, 1)), write, swap, op(4, "read", at=(5, 6), answer="c")]) == (0, 0, 2)
    assert left([op(1, "write", "c", at=(0, 1)), write, swap]) == (0, 2, 0)


def test_a_write_that_was_found_took_effect_before_the_first_that_found_it() -> None:
    """Found values are given the earliest return of those that found them as an end; also through an unknown cas."""
    write = op(1, "write", "b", at=(0, None), outcome="unknown")
    reads = [op(2, "read", at=(4, 9), answer="b"), op(3, "read", at=(5, 7), answer="b")]
    [action, *_] = treat(list(enumerate([write, *reads])), Register(), ("k",)).actions
    assert (action.required, action.return_) == (True, 7)
    swap = op(4, "cas", "b", "c", at=(1, None), outcome="unknown")
    [first, second, _] = treat(
        list(enumerate([write, swap, op(2, "read", at=(4, 9), answer="c")])), Register(), ("k",)
    ).actions
    assert (first.return_, second.return_, first.required, second.required) == (9, 9, True, True)
    # Two that wrote the same value: nobody can say which was found.
    assert left([write, op(4, "write", "b", at=(1, 2)), *reads]) == (0, 0, 1)
    # What was found before it was called has no explanation.
    late = op(1, "write", "b", at=(10, None), outcome="unknown")
    assert search([late, *reads]).result == "failed"


def test_equal_unknown_writes_are_interchangeable() -> None:
    """Twenty unknown writes of one value are no more work than twenty, where each could be any other."""
    events = [op(i, "write", "a", at=(i, None), outcome="unknown") for i in range(20)]
    events += [op("r", "write", "b", at=(30 + 4 * i, 31 + 4 * i)) for i in range(19)]
    events += [op("r", "cas", "b", "x", at=(32 + 4 * i, 33 + 4 * i), answer=False) for i in range(19)]
    found = search([*events, op("r", "read", at=(200, 201), answer="c")])
    assert found.result == "failed"
    assert found.states < 500


def test_a_complete_log_decides() -> None:
    """What is not in the log did not happen; what is did before anybody was told of that revision or a later."""
    events = [
        op(1, "write", "a", at=(0, 1)),
        op(2, "write", "b", at=(2, None), outcome="unknown"),
        op(3, "cas", "a", "c", at=(4, 5), answer=False),
    ]
    absent = CompleteLog(revisions={}, told=[(2, 1)])
    assert left(events, absent) == (0, 1, 0)
    found = search(events, log=absent)
    assert found.result == "failed"
    assert "complete log: 0 took effect, 1 did not" in found.mode
    present = CompleteLog(revisions={1: 3}, told=[(2, 1), (4, 3), (3, 9)])
    assert search(events, log=present).result == "passed"
    [_, action, _] = treat(list(enumerate(events)), Register(), ("k",), present).actions
    assert (action.required, action.return_) == (True, 3)
    # Told of by 3, it is not there any more for who finds the value before it, from 4 on.
    stale = [*events, op(4, "read", at=(6, 7), answer="a")]
    assert search(stale, log=present).result == "failed"
    assert search(stale).result == "failed"
    assert search([*events[:2], stale[-1]], log=present).result == "failed"
    assert search([*events[:2], stale[-1]]).result == "passed"


# -- verdicts


def test_a_stale_read_is_told_in_words() -> None:
    """The counterexample holds the writes and the read, nothing later and no other read, and the words say why."""
    events = [
        op(1, "write", 1, at=(0, 1)),
        op(3, "read", at=(1, 2), answer=1),
        op(1, "write", 2, at=(3, 4)),
        op(2, "read", at=(5, 6), answer=1),
        op(3, "read", at=(5, 7), answer=2),
        op(1, "write", 3, at=(8, 9)),
        op(2, "write", 4, at=(6, None), outcome="unknown"),
    ]
    found = search(events)
    assert found.result == "failed"
    assert found.minimal
    assert found.counterexample == (events[0], events[2], events[3])
    rest = "no order of what was called before explains it: the state could only be 2."
    assert found.explanation.splitlines()[1:] == [
        "  0 to 1               process 1: write 1 of k",
        "  3 to 4               process 1: write 2 of k",
        "  5 to 6               process 2: read of k found 1",
        f"When process 2's read had been answered, {rest}",
    ]
    assert describe(events[3]) in found.detail


def test_a_stale_read_among_many_writes_is_told_with_three_operations() -> None:
    """With `fewest`, of a hundred writes the one that was read and one after it are left."""
    events = [op(n % 3, "write", n, at=(2 * n, 2 * n + 1)) for n in range(100)]
    events.append(op(7, "read", at=(300, 301), answer=20))
    found = search(events, fewest=True)
    assert (found.result, found.minimal) == ("failed", True)
    read, wrote = events[-1], events[20]
    assert len(found.counterexample) == 3
    assert {read, wrote} < set(found.counterexample)
    [other] = set(found.counterexample) - {read, wrote}
    assert other.call > (wrote.return_ or 0)
    assert len(search(events).counterexample) > 3


def test_to_leave_out_writes_that_nobody_saw_makes_nothing_wrong() -> None:
    """Where the whole has an order, so has what is left of it; and a counterexample without them fails by itself."""
    failed = left_out = 0
    for seed in range(600):
        events = histories(seed, 12, kinds=ALL, keys=2, values=4)
        found = search(events, fewest=True)
        if found.result == "failed":
            failed += 1
            assert found.minimal
            assert not has_order(found.counterexample, Register()), seed
            continue
        model = Register()
        keys = tuple(dict.fromkeys(key for event in events for key in model.keys(event)))
        places = {key: at for at, key in enumerate(keys)}
        alive = [event for event in events if event.outcome != "failed"]
        rules = [model.rule(event, places) for event in alive]
        facts = {number: model.facts(rule, keys) for number, rule in enumerate(rules)}
        writes = {number for number, rule in enumerate(rules) if not model.observes(rule)}
        gone = unseen(facts, set(facts) - writes, writes)
        left_out += len(gone)
        assert has_order([event for number, event in enumerate(alive) if number not in gone], Register()), seed
    assert failed > 50
    assert left_out > 100


def test_counterexamples_have_no_order_and_need_all_their_reads() -> None:
    """On generated failures the counterexample fails by itself, and passes without any one of its reads."""
    tried = 0
    for seed in range(200):
        events = histories(seed, 12, kinds=ALL, keys=2, values=2)
        found = search(events)
        if found.result != "failed":
            continue
        tried += 1
        assert found.minimal
        kept = list(found.counterexample)
        assert search(kept).result == "failed", seed
        for event in kept:
            if event.f in ("read", "range") and event.outcome == "ok":
                assert search([each for each in kept if each is not event]).result == "passed", seed
    assert tried > 30


def test_over_budget_is_inconclusive() -> None:
    """A search that runs out of states or of time says so, with what it had, and never passes."""
    events = [op(i, "write", i, at=(0, 99)) for i in range(12)]
    events += [op(i, "read", at=(0, 99), answer=i) for i in range(12)]
    events.append(op(99, "read", at=(0, 100), answer="never"))
    found = search(events, budget=Budget(states=50))
    assert found.result == "inconclusive"
    assert 0 < found.states <= 50
    assert "50 states" in found.detail
    ticks = iter(range(10**6))
    slow = search(events, budget=Budget(seconds=3), clock=lambda: float(next(ticks)))
    assert slow.result == "inconclusive"
    assert "3 s" in slow.detail
    # A violation elsewhere is found all the same.
    wrong = op(1, "read", at=(0, 1), answer="x", key="other")
    assert search([*events, wrong], budget=Budget(seconds=5, states=5000)).result in ("failed", "inconclusive")


def test_keys_that_nothing_joins_are_searched_apart() -> None:
    """Histories are parted by the keys that operations touch together; one range over two keys joins them."""
    events = [op(1, "write", 1, at=(0, 9), key="a"), op(2, "write", 1, at=(0, 9), key="b")]
    assert "2 independent parts" in search(events).detail
    joined = [
        *events,
        Event(3, "range", None, ("a", "b"), "ok", (1, None), 1, 2),
        Event(4, "range", None, ("a", "b"), "ok", (None, 1), 1, 2),
    ]
    assert "parts" not in search(joined[:3]).detail
    assert search(joined).result == "failed"


def test_equal_instants_are_concurrent() -> None:
    """Who is called at the instant at which another returned may have gone first."""
    write = op(1, "write", 1, at=(0, 5))
    assert search([write, op(2, "read", at=(5, 6))]).result == "passed"
    assert search([write, op(2, "read", at=(6, 7))]).result == "failed"


def test_values_are_told_apart_by_their_type() -> None:
    """1, True and 1.0 are equal in Python, and different values in a store."""
    for value in (True, 1.0, "1"):
        assert search([op(1, "write", 1, at=(0, 1)), op(2, "read", at=(2, 3), answer=value)]).result == "failed"


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (op(1, "push", 1, at=(0, 1)), "no operation 'push 1'"),
        (op(1, "cas", 1, at=(0, 1)), "no operation 'cas 1'"),
        (op(1, "read", at=(3, 1)), "called at 3, answered at 1"),
        (op(1, "read", at=(3, None)), "answered at None"),
        (op(1, "write", [1], at=(0, 1)), "not hashable"),
    ],
)
def test_what_is_no_operation_is_refused(event: Event, says: str) -> None:
    """An operation that the model does not have, or that returned before its call, is an error and no verdict."""
    with pytest.raises(SpecError, match=says):
        search([event])


def test_an_unknown_model_is_refused() -> None:
    """A model that is not there is named with those that are."""
    with pytest.raises(SpecError, match="'queue' is not known"):
        search([], "queue")


def test_long_histories_need_no_recursion() -> None:
    """Thousands of operations on one key are searched without recursion, and quickly if they have an order."""
    events = [op(i % 5, "write", i, at=(3 * i, 3 * i + 20)) for i in range(3000)]
    events += [op(9, "read", at=(3 * i + 21, 3 * i + 21), answer=i) for i in range(0, 3000, 7)]
    assert search(events).states < 100_000
