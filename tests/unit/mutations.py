"""Single changes of a run, each with a name: what a faulty etcd, or a faulty recorder, might have made of it.

Each is a function of a run and of random numbers, and gives the changed run, or None where it finds nothing to change.
Whether the outcome is illegal is not known here: the oracle says. HARMLESS are those that keep a legal run legal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeVar

from msgspec.structs import replace

from etcdops.answers import DeleteResult, Event, KeyValue, PutResult, RangeResult, TxnResult
from etcdops.model import Model
from etcdops.ops import KeepAlive, Put, Range, served_locally
from etcdops.verify.recorded import Recorded
from etcdops.workload.history import Operation

Mutation = Callable[[Recorded, Random], "Recorded | None"]

MUTATIONS: dict[str, Mutation] = {}
HARMLESS: set[str] = set()

_T = TypeVar("_T")


def mutation(change: Mutation) -> Mutation:
    MUTATIONS[change.__name__] = change
    return change


def harmless(change: Mutation) -> Mutation:
    HARMLESS.add(change.__name__)
    return mutation(change)


# -- changing one operation


def _change_op(
    recorded: Recorded, rng: Random, which: Callable[[Operation], bool], how: Callable[[Operation], Operation | None]
) -> Recorded | None:
    able = [at for at, op in enumerate(recorded.history) if which(op)]
    if not able:
        return None
    at = rng.choice(able)
    history = list(recorded.history)
    changed = how(history[at])
    if changed is None or changed == history[at]:
        return None
    history[at] = changed
    return recorded._replace(history=sorted(history, key=lambda op: op.return_ns))


def _ok(op: Operation) -> bool:
    return op.outcome == "ok"


def _linearizable_read(op: Operation) -> bool:
    return _ok(op) and isinstance(op.request, Range) and not op.request.serializable


def _with_revision(op: Operation, revision: int) -> Operation:
    answer: Any = op.answer
    answer = revision if isinstance(answer, int) else answer._replace(revision=revision)
    return replace(op, revision=revision, answer=answer)


@mutation
def revision_of_an_answer_changed(recorded: Recorded, rng: Random) -> Recorded | None:
    return _change_op(
        recorded, rng, _ok, lambda op: _with_revision(op, max(1, op.revision + rng.choice((-2, -1, 1, 2))))
    )


@mutation
def revisions_of_two_answers_swapped(recorded: Recorded, rng: Random) -> Recorded | None:
    answered = [op for op in recorded.history if _ok(op)]
    if len(answered) < 2:
        return None
    a, b = rng.sample(answered, 2)
    swapped = {a.id: _with_revision(a, b.revision), b.id: _with_revision(b, a.revision)}
    return recorded._replace(history=[swapped.get(op.id, op) for op in recorded.history])


def truth(recorded: Recorded) -> Model:
    """Give the store as the deliveries of all members tell it."""
    assert recorded.base is not None
    model = Model.at(recorded.base.revision, recorded.base.kvs)
    log: dict[int, list[Event]] = {}
    for deliveries in recorded.deliveries.values():
        own: dict[int, list[Event]] = {}
        for delivery in deliveries:
            for event in delivery.events:
                own.setdefault(event.kv.mod_revision, []).append(event)
        log.update(own)
    while model.revision + 1 in log:
        model.commit(log[model.revision + 1])
    return model


def _stale(
    recorded: Recorded, rng: Random, *, header: bool, which: Callable[[Operation], bool] = _linearizable_read
) -> Recorded | None:
    model = truth(recorded)

    def older(op: Operation) -> Operation | None:
        assert isinstance(op.request, Range)
        revision = op.revision - rng.randint(1, 2)
        if op.request.revision or not model.compacted <= revision <= model.revision:
            return None
        answer, _ = model.evaluate(op.request._replace(revision=revision))
        assert isinstance(answer, RangeResult)
        shown = revision if header else op.revision
        return replace(op, answer=answer._replace(revision=shown), revision=shown)

    return _change_op(recorded, rng, which, older)


@mutation
def stale_read(recorded: Recorded, rng: Random) -> Recorded | None:
    return _stale(recorded, rng, header=True)


@mutation
def stale_read_with_the_newest_header(recorded: Recorded, rng: Random) -> Recorded | None:
    return _stale(recorded, rng, header=False)


@mutation
def serializable_read_of_an_earlier_state(recorded: Recorded, rng: Random) -> Recorded | None:
    """Legal, unless the member had answered with a later state before."""
    return _stale(
        recorded,
        rng,
        header=True,
        which=lambda op: _ok(op) and isinstance(op.request, Range) and op.request.serializable,
    )


@mutation
def serializable_read_shown_as_linearizable(recorded: Recorded, rng: Random) -> Recorded | None:
    def honest(op: Operation) -> Operation:
        assert isinstance(op.request, Range)
        return replace(op, request=op.request._replace(serializable=False))

    return _change_op(
        recorded, rng, lambda op: _ok(op) and isinstance(op.request, Range) and op.request.serializable, honest
    )


# -- changing what an answer holds


def _change_answer(
    recorded: Recorded, rng: Random, kind: type, how: Callable[[Any], Any], *, deep: bool = True
) -> Recorded | None:
    """Change one answer of that kind, of an operation or inside that of a transaction."""

    def paths(answer: Any) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = [()] if isinstance(answer, kind) and how(answer) not in (None, answer) else []
        if deep and isinstance(answer, TxnResult):
            found += [(at, *path) for at, inner in enumerate(answer.results) for path in paths(inner)]
        return found

    def changed(answer: Any, path: Sequence[int]) -> Any:
        if not path:
            return how(answer)
        results = list(answer.results)
        results[path[0]] = changed(results[path[0]], path[1:])
        return answer._replace(results=tuple(results))

    return _change_op(
        recorded,
        rng,
        lambda op: _ok(op) and bool(paths(op.answer)),
        lambda op: replace(op, answer=changed(op.answer, rng.choice(paths(op.answer)))),
    )


def field_changer(field: str) -> Callable[[KeyValue], KeyValue]:
    if field == "key":
        return lambda kv: kv._replace(key=kv.key + b"?")
    if field == "value":
        return lambda kv: kv._replace(value=kv.value + b"?")
    return lambda kv: kv._replace(**{field: getattr(kv, field) + 1})


def in_tuple(items: tuple[_T, ...], rng: Random, how: Callable[[_T], _T]) -> tuple[_T, ...] | None:
    if not items:
        return None
    at = rng.randrange(len(items))
    return (*items[:at], how(items[at]), *items[at + 1 :])


def _kv_of_an_answer(field: str) -> Mutation:
    def change(recorded: Recorded, rng: Random) -> Recorded | None:
        how = field_changer(field)

        def changed(answer: Any) -> Any:
            if isinstance(answer, RangeResult):
                kvs = in_tuple(answer.kvs, rng, how)
                return kvs and answer._replace(kvs=kvs)
            if isinstance(answer, PutResult):
                return answer.prev_kv and answer._replace(prev_kv=how(answer.prev_kv))
            kvs = in_tuple(answer.prev_kvs, rng, how)
            return kvs and answer._replace(prev_kvs=kvs)

        return _change_answer(recorded, rng, (RangeResult, PutResult, DeleteResult), changed)  # type: ignore[arg-type]

    change.__name__ = f"{field}_of_an_answer_changed"
    return change


for _field in KeyValue._fields:
    mutation(_kv_of_an_answer(_field))


@mutation
def key_missing_in_a_range(recorded: Recorded, rng: Random) -> Recorded | None:
    def less(answer: RangeResult) -> RangeResult | None:
        at = rng.randrange(len(answer.kvs)) if answer.kvs else 0
        return (
            answer._replace(kvs=answer.kvs[:at] + answer.kvs[at + 1 :], count=answer.count - 1) if answer.kvs else None
        )

    return _change_answer(recorded, rng, RangeResult, less)


@mutation
def order_of_a_range_reversed(recorded: Recorded, rng: Random) -> Recorded | None:
    return _change_answer(recorded, rng, RangeResult, lambda answer: answer._replace(kvs=answer.kvs[::-1]))


@mutation
def count_of_a_range_changed(recorded: Recorded, rng: Random) -> Recorded | None:
    return _change_answer(recorded, rng, RangeResult, lambda answer: answer._replace(count=answer.count + 1))


@mutation
def more_flipped(recorded: Recorded, rng: Random) -> Recorded | None:
    return _change_answer(recorded, rng, RangeResult, lambda answer: answer._replace(more=not answer.more))


@mutation
def deleted_changed(recorded: Recorded, rng: Random) -> Recorded | None:
    by = rng.choice((-1, 1))
    return _change_answer(recorded, rng, DeleteResult, lambda answer: answer._replace(deleted=abs(answer.deleted + by)))


@mutation
def delete_answers_nothing(recorded: Recorded, rng: Random) -> Recorded | None:
    return _change_answer(recorded, rng, DeleteResult, lambda answer: answer._replace(deleted=0, prev_kvs=()))


@mutation
def prev_kv_left_out(recorded: Recorded, rng: Random) -> Recorded | None:
    def less(answer: Any) -> Any:
        return answer._replace(prev_kv=None) if isinstance(answer, PutResult) else answer._replace(prev_kvs=())

    return _change_answer(recorded, rng, (PutResult, DeleteResult), less)  # type: ignore[arg-type]


@mutation
def succeeded_flipped(recorded: Recorded, rng: Random) -> Recorded | None:
    return _change_answer(recorded, rng, TxnResult, lambda answer: answer._replace(succeeded=not answer.succeeded))


@mutation
def result_of_a_txn_left_out(recorded: Recorded, rng: Random) -> Recorded | None:
    return _change_answer(recorded, rng, TxnResult, lambda answer: answer._replace(results=answer.results[:-1]))


@mutation
def inner_revision_of_a_txn_changed(recorded: Recorded, rng: Random) -> Recorded | None:
    def later(result: Any) -> Any:
        return result._replace(revision=result.revision + rng.choice((-1, 1)))

    return _change_answer(
        recorded,
        rng,
        TxnResult,
        lambda answer: (inner := in_tuple(answer.results, rng, later)) and answer._replace(results=inner),
    )


# -- changing what is known of an operation


@mutation
def request_of_a_put_changed(recorded: Recorded, rng: Random) -> Recorded | None:
    def other(op: Operation) -> Operation:
        assert isinstance(op.request, Put)
        how = rng.choice(({"value": op.request.value + b"0"}, {"key": op.request.key + b"?"}, {"lease": 1001}))
        return replace(op, request=op.request._replace(**how))

    return _change_op(recorded, rng, lambda op: _ok(op) and isinstance(op.request, Put), other)


def _as(outcome: str, code: str) -> Callable[[Operation], Operation]:
    return lambda op: replace(op, outcome=outcome, answer=None, revision=0, code=code)


@mutation
def unknown_called_failed(recorded: Recorded, rng: Random) -> Recorded | None:
    return _change_op(recorded, rng, lambda op: op.outcome == "unknown", _as("failed", "INVALID_ARGUMENT"))


@mutation
def answered_called_failed(recorded: Recorded, rng: Random) -> Recorded | None:
    return _change_op(recorded, rng, lambda op: _ok(op) and op.may_write, _as("failed", "INVALID_ARGUMENT"))


@harmless
def answered_called_unknown(recorded: Recorded, rng: Random) -> Recorded | None:
    return _change_op(recorded, rng, lambda op: _ok(op) and op.may_write, _as("unknown", "UNAVAILABLE"))


@harmless
def failed_called_unknown(recorded: Recorded, rng: Random) -> Recorded | None:
    return _change_op(recorded, rng, lambda op: op.outcome == "failed" and op.may_write, _as("unknown", "UNAVAILABLE"))


@harmless
def read_forgotten(recorded: Recorded, rng: Random) -> Recorded | None:
    reads = [op for op in recorded.history if isinstance(op.request, (Range, KeepAlive))]
    gone = rng.choice(reads).id if reads else 0
    return recorded._replace(history=[op for op in recorded.history if op.id != gone]) if reads else None


@mutation
def write_forgotten(recorded: Recorded, rng: Random) -> Recorded | None:
    writes = [op for op in recorded.history if op.may_write and op.outcome != "failed"]
    gone = rng.choice(writes).id if writes else 0
    return recorded._replace(history=[op for op in recorded.history if op.id != gone]) if writes else None


@mutation
def call_stamped_late(recorded: Recorded, rng: Random) -> Recorded | None:
    """As a recorder does that takes the time of the call when the answer is there."""
    return _change_op(recorded, rng, _ok, lambda op: replace(op, call_ns=op.return_ns))


@mutation
def return_stamped_early(recorded: Recorded, rng: Random) -> Recorded | None:
    """As a recorder does that takes a time it has remembered."""
    return _change_op(recorded, rng, _ok, lambda op: replace(op, return_ns=op.call_ns))


@mutation
def operation_moved_in_time(recorded: Recorded, rng: Random) -> Recorded | None:
    others = [op.call_ns for op in recorded.history] + [op.return_ns for op in recorded.history]

    def moved(op: Operation) -> Operation:
        by = rng.choice(others) - op.call_ns
        return replace(op, call_ns=op.call_ns + by, return_ns=op.return_ns + by)

    return _change_op(recorded, rng, _ok, moved)


@harmless
def call_stamped_early(recorded: Recorded, rng: Random) -> Recorded | None:
    return _change_op(
        recorded, rng, lambda op: not served_locally_(op), lambda op: replace(op, call_ns=op.call_ns - 10_000_000)
    )


@harmless
def return_stamped_late(recorded: Recorded, rng: Random) -> Recorded | None:
    return _change_op(recorded, rng, _ok, lambda op: replace(op, return_ns=op.return_ns + 10_000_000))


def served_locally_(op: Operation) -> bool:
    return isinstance(op.request, KeepAlive) or served_locally(op.request)
