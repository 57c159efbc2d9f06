"""What the clients of each profile ask: reproducible, of every kind that they should, and with values of their own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import pytest

from etcdops.answers import Lease
from etcdops.errors import EtcdError, SpecError
from etcdops.model import Answer, Model
from etcdops.ops import MAX_TXN_OPS, Delete, Grant, KeepAlive, Put, Range, Revoke, Txn, TxnOp
from etcdops.workload.history import Outcome, Request
from etcdops.workload.profiles import PROFILES, Setting, load
from etcdops.workload.profiles.lists import LENGTH
from etcdops.workload.profiles.lock import counter_key, lock_key
from etcdops.workload.profiles.register import OPERATIONS

CLIENTS = 6
Asked = tuple[int, int, Request, Outcome, Answer | None]


class _Cluster:
    """The reference model, with leases that end when their time is over."""

    def __init__(self) -> None:
        self._model = Model()
        self._ends: dict[int, float] = {}

    def answer(self, request: Request, at_s: float) -> Answer:
        for lease in [lease for lease, end in self._ends.items() if end <= at_s]:
            self._model.apply(Revoke(lease))
            del self._ends[lease]
        if isinstance(request, KeepAlive):
            ttl_s = self._model.leases.get(request.lease, 0)
            if ttl_s:
                self._ends[request.lease] = at_s + ttl_s
            return Lease(request.lease, ttl_s, self._model.revision)
        answer = self._model.apply(request)
        if isinstance(request, Grant):
            self._ends[request.lease] = at_s + self._model.leases[request.lease]
        if isinstance(request, Revoke):
            self._ends.pop(request.lease)
        return answer


def _run(name: str, count: int = 3000, unknown_every: int = 0, **changes: object) -> Iterator[Asked]:
    """Let the clients of a profile ask in turn, each answered at once; some answers may get lost."""
    fields: dict[str, object] = {"run": "run1", "seed": 3, "clients": CLIENTS, "preload": 300, **changes}
    setting = Setting(**fields)  # type: ignore[arg-type]
    profile, cluster = load(name, setting), _Cluster()
    number = 1
    for request in profile.prepare(number):
        yield number, -1, request, "ok", cluster.answer(request, 0.0)
        number += 1
    clients = [profile.client(index) for index in range(CLIENTS)]
    # A client hears of an answer when its next turn comes: meanwhile the others ask.
    due: dict[int, Asked] = {}
    for turn in range(count):
        at_s = turn / 60
        index = turn % CLIENTS
        if index in due:
            was, _, asked_then, ended_so, answered = due.pop(index)
            clients[index].ended(was, asked_then, ended_so, answered, at_s - 0.001)
        asked = clients[index].next(number, at_s)
        if asked is None:
            continue
        outcome, answer = _try(cluster, asked, at_s)
        if unknown_every and number % unknown_every == 0:
            outcome, answer = "unknown", None
        due[index] = number, index, asked, outcome, answer
        yield due[index]
        number += 1


def _try(cluster: _Cluster, request: Request, at_s: float) -> tuple[Outcome, Answer | None]:
    try:
        return "ok", cluster.answer(request, at_s)
    except EtcdError:
        return "failed", None


def _inner(request: Request) -> list[TxnOp]:
    return [*request.success, *request.failure] if isinstance(request, Txn) else [request]  # type: ignore[list-item]


@pytest.mark.parametrize("name", PROFILES)
def test_the_same_seed_gives_the_same_requests(name: str) -> None:
    """A profile depends on its seed and on the answers alone; another seed gives other requests."""
    first = list(_run(name, 600))
    assert list(_run(name, 600)) == first
    assert [asked[2] for asked in _run(name, 600, seed=4)] != [asked[2] for asked in first]


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("unknown_every", [0, 7])
def test_requests_keep_the_rules_of_the_witness(name: str, unknown_every: int) -> None:
    """Values carry run and operation and occur once; every txn has a linearizable range; keys are the run's own."""
    values = set()
    for number, _, request, _, _ in _run(name, unknown_every=unknown_every):
        inner = _inner(request)
        if isinstance(request, Txn):
            for branch in (request.success, request.failure) if request.failure else (request.success,):
                assert any(isinstance(op, Range) and not op.serializable for op in branch), request
            assert max(len(request.compares), len(request.success), len(request.failure)) <= MAX_TXN_OPS
        if isinstance(request, (Grant, KeepAlive, Revoke)):
            assert request.lease > 0
            continue
        for op in inner:
            assert isinstance(op, (Put, Range, Delete))
            assert op.key.startswith(b"etcdops/run1/")
            if not isinstance(op, Put):
                assert op.range_end == b"" or op.key < op.range_end <= b"etcdops/run10"
            else:
                assert not op.ignore_value
                assert not op.ignore_lease
                assert re.fullmatch(rb"run1/%d(:[0-9,]+)?" % number, op.value), op
        values |= {(number, op.key, op.value) for op in inner if isinstance(op, Put)}
    assert values


WANTED = {
    "register": {"read", "write", "delete", "swapped", "not-swapped"},
    "set": {"write", "list", "list-serializable"},
    "append": {"swapped", "not-swapped", "txn-read"},
    "mixed": {
        *("read", "read-serializable", "read-old", "list", "list-serializable", "limited", "write", "write-leased"),
        *("delete", "delete-range", "swapped", "not-swapped", "grant", "keep-alive", "revoke", "append", "prev-kv"),
    },
    "wide-txn": {"read", "swapped"},
    "lease": {"grant", "keep-alive", "revoke", "write", "write-leased", "list", "list-serializable"},
    "lock": {"grant", "keep-alive", "swapped", "not-swapped", "read"},
}
WANTED["watch"] = WANTED["mixed"]


def _kinds(request: Request, answer: Answer | None) -> Iterator[str]:
    if isinstance(request, Txn):
        if not any(isinstance(op, (Put, Delete)) for op in _inner(request)):
            yield "txn-read"
        else:
            yield "swapped" if getattr(answer, "succeeded", False) else "not-swapped"
        if any(isinstance(op, Put) and b"," in op.value for op in request.success):
            yield "append"
    elif isinstance(request, Range):
        yield ("list" if request.range_end else "read") + ("-serializable" if request.serializable else "")
        if request.limit:
            yield "limited"
        if request.revision:
            yield "read-old"
    elif isinstance(request, Put):
        yield "write-leased" if request.lease else "write"
        if request.prev_kv:
            yield "prev-kv"
    elif isinstance(request, Delete):
        yield "delete-range" if request.range_end else "delete"
    else:
        yield {Grant: "grant", KeepAlive: "keep-alive", Revoke: "revoke"}[type(request)]


@pytest.mark.parametrize("name", PROFILES)
def test_every_kind_occurs(name: str) -> None:
    """Within a few thousand operations a profile asks all that it is for, and most of it succeeds."""
    kinds: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for _, _, request, outcome, answer in _run(name):
        kinds.update(_kinds(request, answer))
        outcomes[outcome] += 1
    assert kinds.keys() >= WANTED[name]
    assert min(kinds[kind] for kind in WANTED[name]) >= 3, kinds
    assert outcomes["failed"] <= outcomes.total() * 0.05, outcomes


def test_lists_are_bounded_and_hold_the_order_of_appends() -> None:
    """A list's elements are the operations that appended, in order; a full one is followed by a new key."""
    lists: dict[bytes, list[int]] = {}
    for number, _, request, _, answer in _run("append"):
        if getattr(answer, "succeeded", False):
            for op in _inner(request):
                if isinstance(op, Put):
                    elements = [int(element) for element in op.value.partition(b":")[2].split(b",")]
                    assert elements == [*lists.get(op.key, []), number]
                    lists[op.key] = elements
    assert len(lists) > 50
    assert max(map(len, lists.values())) <= LENGTH


def test_a_register_is_left_after_an_unknown_outcome_and_after_its_share() -> None:
    """No key gets more than its share of operations, nor any once a client has heard that one may be open."""
    used: Counter[bytes] = Counter()
    since: dict[bytes, int] = {}
    for _, _, request, outcome, _ in _run("register", unknown_every=300):
        (key,) = {op[0] for op in _inner(request)}
        assert isinstance(key, bytes)
        used[key] += 1
        if key in since:
            since[key] += 1
        if outcome == "unknown":
            since[key] = 0
    assert len(since) >= 5
    # A client hears of an outcome only after each of the others has asked once more.
    assert max(since.values()) < CLIENTS
    assert OPERATIONS // 2 < max(used.values()) <= OPERATIONS


@pytest.mark.parametrize(("fencing", "lost"), [(True, False), (False, True)])
def test_a_resting_lock_holder_loses_updates_without_fencing(fencing: bool, lost: bool) -> None:
    """With a holder that rests longer than its lease lives, the counter misses writes; a fencing token prevents it."""
    writes, newest, holders = 0, 0, set()
    for _, index, request, _, answer in _run("lock", 20_000, fencing=fencing, hold_s=6.0, ttl_s=3):
        for op in _inner(request):
            if isinstance(op, Put) and op.key == counter_key("run1") and getattr(answer, "succeeded", True):
                writes += 1
                newest = int(op.value.partition(b":")[2])
            if isinstance(op, Put) and op.key == lock_key("run1") and getattr(answer, "succeeded", True):
                holders.add(index)
    assert writes > 50
    assert holders == set(range(CLIENTS))
    assert (newest < writes) == lost


def test_wide_comparisons_span_the_preloaded_keys() -> None:
    """Every wide transaction compares all keys that were there before, with as many comparisons as asked for."""
    setting = Setting(run="run1", clients=1, preload=300, compares=6)
    profile = load("wide-txn", setting)
    puts = [op for txn in profile.prepare(1) for op in _inner(txn) if isinstance(op, Put)]
    made = {op.key for op in puts if op.key.startswith(b"etcdops/run1/g/")}
    assert len(made) == 300
    asked = (profile.client(0).next(number, 0.0) for number in range(20))
    for compare in next(txn for txn in asked if isinstance(txn, Txn)).compares:
        assert all(compare.key <= key < compare.range_end for key in made)
    assert len({op.value for op in puts}) == len(puts)


def test_wide_transactions_take_as_long_on_a_quick_machine() -> None:
    """Where the first ones are quick, later ones have more comparisons, up to etcd's most; where slow, fewer."""
    profile = load("wide-txn", Setting(run="run1", clients=1, preload=300))
    made = list(enumerate(profile.prepare(7), start=7))
    tried = [number for number, txn in made if isinstance(txn, Txn) and txn.compares]
    assert tried[-1] == made[-1][0]
    for took_s, compares in ((0.07, 2), (0.018, 8), (0.03, 8), (1e-6, 128)):
        profile.prepared(7, 1e-9)  # that one writes keys, and compares none
        profile.prepared(tried[-1], took_s)
        asked = (profile.client(0).next(number, 0.0) for number in range(20))
        assert {len(txn.compares) for txn in asked if isinstance(txn, Txn)} == {compares}


def test_watch_has_more_watches() -> None:
    """The watch profile watches parts of the keys too, with and without filters."""
    watches = load("watch", Setting(run="run1")).watches()
    assert len({watch.name for watch in watches}) == len(watches) >= 4
    assert {watch.filters for watch in watches} == {(), ("NOPUT",), ("NODELETE",)}
    assert all(watch.key.startswith(b"etcdops/run1/") for watch in watches)


def test_an_unknown_profile_is_refused() -> None:
    """The refusal names those that there are."""
    with pytest.raises(SpecError, match="there is no profile 'nope'") as refused:
        load("nope", Setting(run="r"))
    assert "wide-txn" in refused.value.remedy
