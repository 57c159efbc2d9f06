"""The reference model against a real etcd: random operations on both, and every answer compared whole.

`-k` with a seed repeats one sequence; ETCDOPS_SEEDS=N runs N of them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from etcdops import answers, ops, wire
from etcdops.cluster import Cluster
from etcdops.errors import EtcdError
from etcdops.model import Model
from etcdops.ops import Compact, Compare, Delete, Grant, Op, Put, Range, Revoke, Txn
from etcdops.runtimes.base import Runtime
from etcdops.runtimes.fake import FakeRuntime
from etcdops.runtimes.process import ProcessRuntime
from etcdops.state import Store
from etcdops.workload.requests import call_of

SEEDS = range(int(os.environ.get("ETCDOPS_SEEDS", "6")))
OPERATIONS = 400

#: Few, so that they meet; beside each other, and one the other's prefix.
KEYS = [b"a", b"a\0", b"aa", b"ab", b"b", b"c", b"c\xff"]
ENDS = [b"", b"", b"a\0", b"aa", b"b", b"c", b"d", b"\0"]
VALUES = [b"", b"0", b"1", b"2"]

_SORT_TARGETS = ["key", "version", "create_revision", "mod_revision", "value"]


@pytest.fixture(scope="module", params=["process", "fake"])
def endpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The client URL of a cluster of one member which nobody else uses: a real etcd, and the model behind a wire.

    The first shows that the model is right, the second that FakeRuntime passes on all that it says.
    """
    store = Store(tmp_path_factory.mktemp("state"))
    runtime: Runtime = FakeRuntime() if request.param == "fake" else ProcessRuntime()
    cluster = Cluster.create("differential", size=1, runtime=runtime, store=store, offline=True)
    cluster.up()
    yield cluster.endpoints[0]
    cluster.purge()


# -- what is sent


def _send(etcd: wire.Connection, op: Op) -> object:
    """Give etcd's answer, or the code and text of its error."""
    try:
        return etcd.call(call_of(op), timeout_s=10)
    except EtcdError as error:
        return error.code, error.text


def _predict(model: Model, op: Op) -> object:
    try:
        return model.apply(op)
    except EtcdError as error:
        return error.code, error.text


# -- what is asked


class _Chooser:
    """Random operations, all of them possible, some of them refused."""

    def __init__(self, seed: int, model: Model) -> None:
        self._random = random.Random(seed)
        self._model = model
        self._base = model.revision
        self._leases = [1000 * seed + 1000 + i for i in range(4)]

    def next(self) -> Op:
        pick = self._random.random()
        if pick < 0.03:
            return Compact(
                self._random.randint(max(self._base + 1, self._model.revision - 12), self._model.revision + 1)
            )
        if pick < 0.07:
            # Long ones: of an end that it was not told of, the model knows nothing.
            return Grant(self._random.choice(self._leases), self._random.choice([600, 600, 9_000_000_001]))
        if pick < 0.10:
            return Revoke(self._random.choice(self._leases))
        if pick < 0.55:
            return self._txn(2)
        return self._simple()

    def _revision(self) -> int:
        return self._random.randint(max(self._base, self._model.revision - 12), self._model.revision + 1)

    def _key(self) -> bytes:
        return b"" if self._random.random() < 0.005 else self._random.choice(KEYS)

    def _flag(self, chance: float = 0.3) -> bool:
        return self._random.random() < chance

    def _simple(self) -> Put | Range | Delete:
        pick = self._random.random()
        return self._put() if pick < 0.4 else self._range() if pick < 0.8 else self._delete()

    def _put(self) -> Put:
        lease = self._random.choice(self._leases) if self._flag(0.15) else 0
        value = self._random.choice(VALUES)
        if self._flag(0.1):
            return Put(self._key(), b"", lease, prev_kv=self._flag(), ignore_value=True)
        return Put(self._key(), value, lease, prev_kv=self._flag(), ignore_lease=self._flag(0.1))

    def _delete(self) -> Delete:
        return Delete(self._key(), self._random.choice(ENDS), prev_kv=self._flag())

    def _range(self) -> Range:
        op = Range(
            self._key(),
            self._random.choice(ENDS),
            limit=self._random.choice([0, 0, 1, 2, 3, 9]),
            revision=self._revision() if self._flag(0.2) else 0,
            serializable=self._flag(0.2),
            keys_only=self._flag(0.1),
            count_only=self._flag(0.1),
        )
        if self._flag(0.3):
            # Only what cannot tie: Go's sort is not stable.
            target = self._random.choice([target for target in _SORT_TARGETS if self._unique(op, target)])
            op = op._replace(sort_order=self._random.choice(["none", "ascend", "descend"]), sort_target=target)
        if self._flag(0.1):
            bounds = sorted(self._revision() for _ in range(2))
            op = op._replace(min_mod_revision=bounds[0], max_mod_revision=bounds[1])
        if self._flag(0.1):
            bounds = sorted(self._revision() for _ in range(2))
            op = op._replace(min_create_revision=bounds[0], max_create_revision=bounds[1])
        return op

    def _unique(self, op: Range, target: str) -> bool:
        kvs = self._model.span(op.key, op.range_end, op.revision)
        return len({getattr(kv, target) for kv in kvs}) == len(kvs)

    def _txn(self, depth: int) -> Txn:
        return Txn(
            tuple(self._compare() for _ in range(self._random.choice([0, 1, 1, 2]))),
            self._branch(depth),
            self._branch(depth),
        )

    def _branch(self, depth: int) -> tuple[ops.TxnOp, ...]:
        branch: list[ops.TxnOp] = []
        for _ in range(self._random.choice([0, 1, 2, 3, 4])):
            inner = self._txn(depth - 1) if depth > 1 and self._flag(0.2) else self._simple()
            if isinstance(inner, Range) and inner.sort_target != "key":
                inner = inner._replace(sort_target="key")
            if isinstance(inner, Delete) and inner.range_end == b"\0":
                # etcd lets a put of a key that this deletes pass, unlike any other; that corner is left alone.
                inner = inner._replace(range_end=b"z")
            branch.append(inner)
        return tuple(branch)

    def _compare(self) -> Compare:
        target = self._random.choice(["version", "create_revision", "mod_revision", "value", "lease"])
        operand: int | bytes
        if target == "value":
            operand = self._random.choice(VALUES)
        elif target == "version":
            operand = self._random.randint(0, 3)
        elif target == "lease":
            operand = self._random.choice([0, *self._leases])
        else:
            operand = self._revision() - self._random.choice([0, 0, self._base])
        end = self._random.choice(ENDS) if self._flag(0.2) else b""
        return Compare(self._key(), target, self._random.choice(["=", "!=", "<", ">"]), operand, end)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_model_answers_as_etcd_does(endpoint: str, seed: int) -> None:
    """Every answer and every refusal of a random sequence is equal, field by field; so is what all keys are at the end.

    The model starts from a range over what the earlier sequences left.
    """
    with wire.Connection(endpoint) as etcd, etcd.watch(b"\0", b"\0", timeout_s=60, prev_kv=True) as watch:
        start = etcd.range(b"\0", b"\0", timeout_s=10)
        model = Model.at(start.revision, start.kvs)
        chooser = _Chooser(seed, model)
        refused = 0
        logged: list[answers.Event] = []
        seen: list[answers.Event] = []
        for number in range(OPERATIONS):
            op = chooser.next()
            revision = model.revision
            if isinstance(op, Compact):
                # A watch that is still behind a compaction gets no prev_kv for what was before it.
                _catch_up(watch, seen, len(logged))
            predicted = _predict(model, op)
            answer = _send(etcd, op)
            assert answer == predicted, f"operation {number} of seed {seed} at revision {revision}: {op}"
            refused += isinstance(answer, tuple) and isinstance(answer[0], str)
            if model.revision > revision:
                logged += model.events(model.revision)
        _catch_up(watch, seen, len(logged))
        assert seen == logged
        assert etcd.range(b"\0", b"\0", timeout_s=10).kvs == tuple(model.span(b"\0", b"\0"))
        assert 0 < refused < OPERATIONS // 2
        assert len(logged) > OPERATIONS // 4


def _catch_up(watch: wire.Watch, seen: list[answers.Event], count: int) -> None:
    while len(seen) < count:
        seen += next(watch).events


def test_short_leases_are_lengthened_alike(endpoint: str) -> None:
    """etcd grants no lease shorter than 1.5 election timeouts, in whole seconds."""
    with wire.Connection(endpoint) as etcd:
        revision = etcd.range(b"\0", timeout_s=10).revision
        model = Model.at(revision, ())
        for op in (Grant(7, 1), Revoke(7), Grant(8, 2), Revoke(8), Grant(9, 3), Revoke(9)):
            assert _send(etcd, op) == _predict(model, op)
