"""Append cycles: each anomaly of Elle by its name from a history written by hand, and none where there is none."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from etcdops.verify.append import check_append, components
from etcdops.verify.models import Event


def history(*lines: str) -> list[Event]:
    """Transactions, one a line: `PROCESS CALL-RETURN OUTCOME: a x 1, r x [1 2], …`; `CALL-` has no return."""
    events = []
    for number, line in enumerate(lines, start=1):
        head, _, body = line.partition(":")
        process, times, *outcome = head.split()
        call, _, return_ = times.partition("-")
        done: list[tuple[str, Any, Any]] = []
        for each in filter(None, body.split(",")):
            f, key, rest = each.split(maxsplit=2)
            if f == "a":
                done.append(("append", key, int(rest)))
            else:
                done.append(("r", key, tuple(map(int, rest.strip("[] ").split()))))
        called = tuple((f, key, value if f == "append" else None) for f, key, value in done)
        kind: Any = outcome[0] if outcome else "ok"
        ended = int(return_) if return_ else None
        answer = tuple(done) if kind == "ok" else None
        events.append(Event(int(process), "txn", None, called, kind, answer, int(call), ended, number))
    return events


#: Every process for itself and all at the same time, so that time says nothing, unless a line says otherwise.
ANOMALIES = {
    "G0": [
        "1 0-9: a x 1, a y 2",
        "2 0-9: a y 1, a x 2",
        "3 0-9: r x [1 2], r y [1 2]",
    ],
    "G0-process": [
        "1 0-1: a x 2",
        "1 2-9: a x 1",
        "3 0-9: r x [1 2]",
    ],
    "G0-realtime": [
        "1 0-1: a x 2",
        "2 2-9: a x 1",
        "3 0-9: r x [1 2]",
    ],
    "G1a": ["1 0-9 failed: a x 1", "2 0-9: r x [1]"],
    "G1b": ["1 0-9: a x 1, a x 2", "2 0-9: r x [1]", "3 0-9: r x [1 2]"],
    "G1c": ["1 0-9: a x 1, r y [1]", "2 0-9: a y 1, r x [1]"],
    "G1c-process": ["1 0-1: r x [1]", "1 2-9: a x 1"],
    "G1c-realtime": ["1 0-1: r x [1]", "2 2-9: a x 1"],
    "G-single-item": ["1 0-9: a x 1, a y 1", "2 0-9: r x [1], r y []", "3 0-9: r y [1]"],
    "G-single-item-process": ["1 0-1: a x 1", "1 2-9: r x []", "3 0-9: r x [1]"],
    "G-single-item-realtime": ["1 0-1: a x 1", "2 2-9: r x []", "3 0-9: r x [1]"],
    "G-nonadjacent-item": ["1 0-9: a x 1", "2 0-9: r x [1], r y []", "3 0-9: a y 1", "4 0-9: r y [1], r x []"],
    "G2-item": ["1 0-9: r x [], a y 1", "2 0-9: r y [], a x 1", "3 0-9: r x [1], r y [1]"],
    "G2-item-realtime": ["1 0-1: a y 1", "2 0-20: a x 1, r y []", "3 2-9: r x []", "4 0-20: r x [1], r y [1]"],
    "internal": ["1 0-9: r x [1], r x [1 2]", "2 0-9: a x 1", "3 0-9: a x 2"],
    "future-read": ["1 0-9: r x [1], a x 1"],
    "lost-update": ["1 0-9: r x [], a x 1", "2 0-9: r x [], a x 2", "3 0-9: r x [1 2]"],
    "dirty-update": ["1 0-9 failed: a x 1", "2 0-9: a x 2", "3 0-9: r x [1 2]"],
    "duplicate-elements": ["1 0-9: a x 1", "2 0-9: r x [1 1]"],
    "incompatible-order": ["1 0-9: a x 1", "2 0-9: a x 2", "3 0-9: r x [1]", "4 0-9: r x [2]"],
    "unwritten-read": ["1 0-9: a x 1", "2 0-9: r x [1 7]"],
}


@pytest.mark.parametrize("name", ANOMALIES)
def test_each_anomaly_has_its_name(name: str) -> None:
    """Each anomaly is found in a history that has it, under Elle's name, with its transactions."""
    events = history(*ANOMALIES[name])
    found = check_append(events)
    assert found.result == "failed"
    assert name in found.counts, found.counts
    anomaly = next(each for each in found.anomalies if each.name == name)
    assert anomaly.events
    assert all(event in events for event in anomaly.events)
    assert name in found.detail
    if name.startswith(("G0", "G1c", "G-", "G2")):
        assert [each for each in found.counts if each.startswith(("G0", "G1c", "G-", "G2"))] == [name]


def test_a_cycle_is_told_in_words() -> None:
    """Every step of a cycle says which transaction came before which, and by what that is known."""
    found = check_append(history(*ANOMALIES["G-single-item-realtime"]))
    assert found.anomalies[0].explanation.splitlines() == [
        "T2 (process 2, ok): r x []",
        "T1 (process 1, ok): append x 1",
        "T2 came before T1: T2 read x without 1, which T1 appended (rw)",
        "T1 came before T2: T1 had returned at 1, before T2 was called at 2 (realtime)",
    ]


@pytest.mark.parametrize(
    "lines",
    [
        ["1 0-5: a x 1", "2 5-9: r x []", "3 10-11: r x [1]"],  # equal instants are concurrent
        ["1 0- unknown: a x 1", "2 2-3: r x []", "3 4-5: r x [1]", "4 6-7: r x [1]"],
        ["1 0- unknown: a x 1", "2 2-3: r x []", "3 4-5: r x []"],
        ["1 0-1 failed: a x 1", "2 2-3: r x []"],
        ["1 0-9: r x [], a x 1, r x [1], a x 2, r x [1 2]", "2 10-11: r x [1 2]"],
        ["1 0-1: a x 1", "2 2-3: r x [1], a x 2"],
        ["1 0-9: a x 1", "2 0-9: a x 2", "3 0-9: r y []"],  # nobody has read their order
    ],
)
def test_what_is_legal_is_not_flagged(lines: list[str]) -> None:
    """Concurrency, unknown outcomes, a transaction's own appends and unread ones are no anomalies."""
    assert check_append(history(*lines)).result == "passed"


def test_an_acknowledged_append_that_nobody_sees_is_found() -> None:
    """An append that was acknowledged, and is in no later list, is an anomaly though no list tells its place."""
    found = check_append(history("1 0-1: a x 1", "2 2-3: a x 2", "3 4-5: r x [1]"))
    assert set(found.counts) == {"G-single-item-realtime"}


def test_what_appends_after_its_own_read_is_no_cycle_with_itself() -> None:
    """Who reads a list and appends to it, unread, is not before itself; two that do so have lost an update."""
    assert check_append(history("1 0-9: a x 1", "2 0-9: r x [1], a x 2, a x 3")).result == "passed"
    both = history("1 0-9: a x 1", "2 0-9: r x [1], a x 2", "3 0-9: r x [1], a x 3")
    assert set(check_append(both).counts) == {"lost-update", "G2-item"}


def test_elements_that_nothing_tells_apart_are_inconclusive() -> None:
    """An element that two transactions append makes no verdict, and neither does a history that read nothing."""
    assert check_append(history("1 0-9: a x 1", "2 0-9: a x 1")).result == "inconclusive"
    assert check_append(history("1 0-9: a x 1")).result == "inconclusive"
    assert check_append([]).result == "inconclusive"


def executed(seed: int, transactions: int, keys: int = 4) -> list[Event]:
    """A history of a store that does one transaction at a time, under concurrent clients, some without answers."""
    draw = random.Random(seed)
    lists: dict[int, list[int]] = {}
    busy = dict.fromkeys(range(6), 0)
    now, element, events = 0, 0, []
    for number in range(transactions):
        client = min(busy, key=lambda c: (busy[c], draw.random()))
        call = busy[client]
        now = max(now, call) + draw.randint(0, 2)
        busy[client] = return_ = now + draw.randint(0, 4)
        fate = draw.random()
        outcome: Any = "unknown" if fate < 0.1 else "failed" if fate < 0.15 else "ok"
        called: list[Any] = []
        for _ in range(draw.randint(1, 4)):
            key = draw.randrange(keys)
            element += 1
            called.append(("append", key, element) if draw.random() < 0.5 else ("r", key, None))
        answer = []
        for f, key, value in called:
            applied = outcome == "ok" or (outcome == "unknown" and number % 2)
            if f == "append" and applied:
                lists.setdefault(key, []).append(value)
            answer.append((f, key, value if f == "append" else tuple(lists.get(key, ()))))
        events.append(
            Event(
                client,
                "txn",
                None,
                tuple(called),
                outcome,
                tuple(answer) if outcome == "ok" else None,
                call,
                return_ if outcome == "ok" else None,
                number + 1,
            )
        )
    return events


def test_serial_executions_have_no_anomaly() -> None:
    """No anomaly is seen in what a store that is strictly serializable has answered."""
    for seed in range(100):
        found = check_append(executed(seed, 60))
        assert found.result == "passed", (seed, found)


def test_a_read_that_misses_what_was_acknowledged_is_found() -> None:
    """A list without its last element, given to a read of a serial execution, is found if that was acknowledged."""
    draw, tried = random.Random(1), 0
    for seed in range(60):
        events = executed(seed, 60)
        writers = {(m[1], m[2]): e for e in events for m in e.arguments if m[0] == "append" and e.outcome == "ok"}
        choices = []
        for i, event in enumerate(events):
            keys = [m[1] for m in event.answer or ()]
            for j, (f, key, value) in enumerate(event.answer or ()):
                writer = writers.get((key, value[-1])) if f == "r" and value and keys.count(key) == 1 else None
                if writer is not None and (writer.return_ or 0) < event.call:
                    choices.append((i, j))
        if not choices:
            continue
        i, j = draw.choice(choices)
        answer = list(events[i].answer)
        answer[j] = (*answer[j][:2], answer[j][2][:-1])
        events[i] = msgspec.structs.replace(events[i], answer=tuple(answer))
        found = check_append(events)
        assert found.result == "failed", (seed, events[i])
        assert any(name.startswith("G") for name in found.counts)
        tried += 1
    assert tried > 50


def serializable(events: list[Event]) -> bool:
    """Whether the transactions have an order that explains every read and keeps real time: all orders are tried."""
    alive = [event for event in events if event.outcome != "failed"]

    def orders(left: list[Event], lists: dict[Any, tuple[Any, ...]]) -> bool:
        ends = [event.return_ for event in left if event.return_ is not None]
        if not ends:
            return True
        for i, event in enumerate(left):
            if event.call > min(ends):
                continue
            after, right = dict(lists), True
            for f, key, value in event.answer or event.arguments:
                if f == "append":
                    after[key] = (*after.get(key, ()), value)
                elif event.outcome == "ok":
                    right = right and after.get(key, ()) == value
            if right and orders(left[:i] + left[i + 1 :], after):
                return True
        return False

    return orders(alive, {})


def test_no_anomaly_is_seen_that_an_oracle_does_not_confirm() -> None:
    """What is flagged has no order, and of what has none nearly all is: lists that nobody reads hide the rest."""
    draw, flagged, missed = random.Random(3), 0, 0
    for seed in range(1500):
        events = executed(seed, 6, keys=2)
        for i, event in enumerate(events):
            answer = list(event.answer or ())
            reads = [j for j, (f, _, value) in enumerate(answer) if f == "r" and value]
            if reads and draw.random() < 0.5:
                j = draw.choice(reads)
                f, key, value = answer[j]
                answer[j] = (
                    f,
                    key,
                    draw.choice([value[:-1], value[::-1], value[1:], (*value, 99), (*value, value[0])]),
                )
                events[i] = msgspec.structs.replace(event, answer=tuple(answer))
        legal, found = serializable(events), check_append(events)
        if found.result == "failed":
            assert not legal, (seed, found)
            flagged += 1
        elif not legal:
            missed += 1
    assert flagged > 300
    assert missed < flagged / 20


def test_components_are_those_of_the_definition() -> None:
    """Two nodes are in one component when each is reached from the other; no depth of a graph is too much."""
    draw = random.Random(2)
    for _ in range(200):
        size = draw.randint(1, 9)
        edges = [[draw.randrange(size) for _ in range(draw.randint(0, 2))] for _ in range(size)]
        reach = [{i} for i in range(size)]
        for _ in range(size):
            for i in range(size):
                reach[i] |= {k for j in edges[i] for k in reach[j]}
        expected = {frozenset(j for j in range(size) if i in reach[j] and j in reach[i]) for i in range(size)}
        assert {frozenset(part) for part in components(edges)} == {part for part in expected if len(part) > 1}
    deep = [[i + 1] for i in range(100_000)] + [[0]]
    assert [len(part) for part in components(deep)] == [100_001]
