"""What the witness proves of all operations at once is what the model says of each, whatever was bent."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from etcdops.answers import DeleteResult, Event, KeyValue, Lease, PutResult, RangeResult, TxnResult
from etcdops.ops import Compare, Delete, Put, Range, Txn
from etcdops.verify import proof
from etcdops.verify import witness as module
from etcdops.verify.columns import OK
from etcdops.verify.findings import Findings
from etcdops.verify.log import Log, View
from etcdops.verify.recorded import Recorded
from etcdops.verify.replay import Replay
from etcdops.verify.shapes import PLAIN
from etcdops.verify.witness import Part, check_witness, witness
from etcdops.workload.history import Operation
from tests.unit.stories import Story, key, random_story, replaced, value


def _bent_kv(chance: random.Random, kv: KeyValue) -> KeyValue:
    fields: list[Any] = list(kv)
    at = chance.randrange(len(fields))
    others = [key("k0"), key("k1"), b"", value(3)]
    fields[at] = chance.choice(others) if at < 2 else fields[at] + chance.choice([-1, 1])
    return KeyValue(*fields)


def _bent_kvs(chance: random.Random, kvs: Sequence[KeyValue]) -> tuple[KeyValue, ...]:
    made = list(kvs)
    pick = chance.random()
    if made and pick < 0.5:
        at = chance.randrange(len(made))
        made[at] = _bent_kv(chance, made[at])
    elif made and pick < 0.7:
        del made[chance.randrange(len(made))]
    elif made and pick < 0.85:
        made.append(chance.choice(made))
    elif len(made) > 1:
        made.reverse()
    else:
        made.append(KeyValue(key("k0"), value(2), 2, 2, 1, 0))
    return tuple(made)


def _bent_answer(chance: random.Random, answer: Any) -> Any:
    pick = chance.random()
    if isinstance(answer, RangeResult):
        if pick < 0.15:
            return answer._replace(count=answer.count + chance.choice([-1, 1]))
        if pick < 0.25:
            return answer._replace(more=not answer.more)
        kvs = _bent_kvs(chance, answer.kvs)
        count = answer.count + len(kvs) - len(answer.kvs) if chance.random() < 0.7 else answer.count
        return answer._replace(kvs=kvs, count=count)
    if isinstance(answer, PutResult):
        other = None if answer.prev_kv and pick < 0.4 else KeyValue(key("k0"), value(2), 2, 2, 1, 0)
        return answer._replace(prev_kv=_bent_kv(chance, answer.prev_kv) if answer.prev_kv and pick > 0.5 else other)
    if isinstance(answer, DeleteResult):
        if pick < 0.5:
            return answer._replace(deleted=max(0, answer.deleted + chance.choice([-1, 1])))
        return answer._replace(prev_kvs=_bent_kvs(chance, answer.prev_kvs))
    if isinstance(answer, TxnResult):
        if not answer.results or pick < 0.2:
            return answer._replace(succeeded=not answer.succeeded)
        results = list(answer.results)
        at = chance.randrange(len(results))
        if pick < 0.3:
            del results[at]
        elif pick < 0.4:
            results[at] = results[at]._replace(revision=results[at].revision + 1)
        else:
            results[at] = _bent_answer(chance, results[at])
        return answer._replace(results=tuple(results))
    if isinstance(answer, Lease):
        return answer._replace(lease_id=answer.lease_id + 1) if pick < 0.5 else answer._replace(ttl_s=0)
    return answer


def _bent_request(chance: random.Random, request: Any) -> Any:
    if isinstance(request, Txn):
        which = chance.choice(["compares", "success", "failure"])
        part = list(getattr(request, which))
        if not part:
            return request
        at = chance.randrange(len(part))
        part[at] = _bent_request(chance, part[at])
        return request._replace(**{which: tuple(part)})
    if isinstance(request, (Put, Range, Delete, Compare)):
        field = chance.choice(request._fields)
        old = getattr(request, field)
        new: Any
        if isinstance(old, bool):
            new = not old
        elif isinstance(old, int):
            new = max(0, old + chance.choice([-1, 1]))
        elif field in ("key", "range_end"):
            new = chance.choice([key("k0"), key("k1"), key("k2"), key("l")])
        elif field in ("value", "operand"):
            new = value(chance.randint(1, 9))
        elif field == "sign":
            new = chance.choice(["=", "!=", "<", ">"])
        else:
            return request
        return request._replace(**{field: new})
    return request


def bent(chance: random.Random, op: Operation) -> Operation:
    """Give an operation of which one thing is otherwise."""
    pick = chance.random()
    if op.outcome != "ok":
        return op
    if pick < 0.5:
        return msgspec.structs.replace(op, answer=_bent_answer(chance, op.answer))
    if pick < 0.9:
        return msgspec.structs.replace(op, request=_bent_request(chance, op.request))
    revision = max(1, op.revision + chance.choice([-1, 1]))
    answer: Any = revision if isinstance(op.answer, int) else op.answer and op.answer._replace(revision=revision)
    return msgspec.structs.replace(op, revision=revision, answer=answer)


def _proven_and_wrong(part: Part) -> list[int]:
    """Give what is proven and wrong by the model, by number."""
    columns, log = part.columns, part.log
    proven = proof.prove(columns, log, part.owners.owned, compacted=False)
    wrong = []
    for number in np.flatnonzero(proven).tolist():
        findings = Findings()
        Replay(columns, log, View(log), part.owners.owned, str, findings).judge(number, columns.operation(number))
        if findings.counts:
            wrong.append(number)
    return wrong


@pytest.mark.parametrize("seed", range(40))
def test_what_is_proven_the_model_confirms(seed: int) -> None:
    """In histories with many operations bent, nothing is proven of which the model says otherwise."""
    chance = random.Random(seed)
    recorded = random_story(seed, 120).told()
    history = [bent(chance, op) if chance.random() < 0.5 else op for op in recorded.history]
    part = witness(recorded._replace(history=history)).part
    assert part is not None
    assert _proven_and_wrong(part) == []


@pytest.mark.parametrize("seed", range(10))
def test_common_shapes_are_proven(seed: int) -> None:
    """Of a legal history every operation of a common shape is proven: the model has only the rest to judge."""
    part = witness(random_story(seed, 120).told()).part
    assert part is not None
    flags, outcome = part.columns.operations.flags, part.columns.operations.outcome
    plain = (flags & PLAIN) != 0
    proven = proof.prove(part.columns, part.log, part.owners.owned, compacted=False)
    assert part.unknowable == 0
    assert proven[plain].all()
    assert plain[outcome == OK].mean() > 0.5


@pytest.mark.parametrize("seed", range(40))
def test_the_verdict_is_the_models(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one operation bent the check says the same, word for word, as when the model alone judges."""
    chance = random.Random(1000 + seed)
    recorded = random_story(seed, 60).told()
    results = []
    for _ in range(5):
        history = list(recorded.history)
        at = chance.randrange(len(history))
        history[at] = bent(chance, history[at])
        changed = recorded._replace(history=history)
        with_proof = check_witness(changed)
        with monkeypatch.context() as patch:
            patch.setattr(module, "prove", _prove_nothing)
            assert check_witness(changed) == with_proof
        results.append(with_proof.result)
    assert results


def _proven(recorded: Recorded, op: Operation) -> bool:
    """Tell whether an operation, its place being its id, is proven."""
    part = witness(recorded).part
    assert part is not None
    return bool(proof.prove(part.columns, part.log, part.owners.owned, compacted=False)[op.id - 1])


def test_limited_range_lists_the_first_keys() -> None:
    """A range that a limit cuts short lists the first keys that exist, and leaves none out."""
    story = Story()
    for name in "abcd":
        story.put(name)
    read = story.do(Range(key("a"), key("z"), limit=2))
    recorded = story.told()
    assert _proven(recorded, read)
    assert isinstance(read.answer, RangeResult)
    kvs = (story.model.span(key("a"))[0], story.model.span(key("c"))[0])
    changed = replaced(recorded, read.id, answer=read.answer._replace(kvs=kvs))
    assert not _proven(changed, read)
    assert check_witness(changed).result == "failed"


def test_revision_holds_nothing_but_what_its_owner_makes() -> None:
    """An event more at a put's revision is nobody's."""
    story = Story()
    put = story.put("a")
    more = KeyValue(key("b"), value(9), put.revision, put.revision, 1, 0)
    story.log[-1] = (story.log[-1][0], (*story.log[-1][1], Event("put", more, None)))
    story.model._store(more)
    recorded = story.told()
    assert not _proven(recorded, put)
    assert f"operation {put.id} (" in check_witness(recorded).detail


def test_transactions_that_read_what_they_wrote_are_proven() -> None:
    """From a put or a delete on, a transaction sees what it made of the key, and of others what was there before."""
    story = Story()
    story.put("b")
    for wrote in (Put(key("a"), value(2)), Delete(key("b"))):
        op = story.do(Txn((), (Range(key("a")), Range(key("b")), wrote, Range(key("a")), Range(key("b")))))
        assert _proven(story.told(), op)


def _prove_nothing(columns: Any, log: Log, owned: Any, **options: bool) -> Any:
    return np.zeros(len(owned), bool)


def _counted(story: Story) -> Part:
    recorded: Recorded = story.told()
    part = witness(recorded).part
    assert part is not None
    return part


@pytest.mark.parametrize("seed", range(5))
def test_living_keys_are_counted(seed: int) -> None:
    """How many keys of a range existed at a revision is what the model's own range says, for every one of them."""
    part = _counted(random_story(seed, 80, keys=9))
    log = part.log
    keys = len(log.keys)
    asked = [
        (at, low, high)
        for at in range(log.base, log.end + 1)
        for low in range(0, keys + 1, 2)
        for high in range(low, keys + 1)
    ]
    at, low, high = (np.array(column) for column in zip(*asked, strict=True))
    counted = proof.count_live(log, at, low, high)
    view = View(log)
    for (revision, first, after), count in list(zip(asked, counted.tolist(), strict=True))[::7]:
        alive = [view.go(revision).get(name) for name in log.keys[first:after]]
        assert sum(kv is not None for kv in alive) == count
