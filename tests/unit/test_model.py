"""The reference model, case by case. `tests/suite/test_model_differential.py` holds it against a real etcd."""

from __future__ import annotations

import pytest

from etcdops.answers import Event, KeyValue, RangeResult
from etcdops.errors import EtcdError, SpecError
from etcdops.model import Model
from etcdops.ops import Compact, Compare, Delete, Grant, Op, Put, Range, Revoke, Txn, served_locally

EVERYTHING = (b"\0", b"\0")


def _filled(*keys: bytes) -> Model:
    model = Model()
    for key in keys:
        model.apply(Put(key, b"old-" + key))
    return model


def _refusal(model: Model, op: Op) -> tuple[str, str]:
    before = model.hash()
    with pytest.raises(EtcdError) as caught:
        model.apply(op)
    assert caught.value.definite
    assert model.hash() == before
    return caught.value.code, caught.value.text.removeprefix("etcdserver: ")


def test_each_put_makes_a_revision_also_of_the_same_value() -> None:
    """A put of the value that is there already bumps the revision and the key's version."""
    model = Model()
    assert model.apply(Put(b"a", b"1")).revision == 2
    answer = model.apply(Put(b"a", b"1", prev_kv=True))
    assert answer == (3, KeyValue(b"a", b"1", 2, 2, 1, 0))
    assert model.get(b"a") == KeyValue(b"a", b"1", 2, 3, 2, 0)


def test_deleting_nothing_makes_no_revision() -> None:
    """A delete of an absent key answers 0 at the current revision, and leaves no event."""
    model = _filled(b"a")
    assert model.apply(Delete(b"b", prev_kv=True)) == (2, 0, ())
    assert model.revision == 2


def test_deleting_a_range_makes_one_revision_and_a_later_put_starts_anew() -> None:
    """All keys of a range go at one revision; a key that is put again has version 1 and a new create revision."""
    model = _filled(b"a", b"b", b"c")
    answer = model.apply(Delete(b"a", b"c", prev_kv=True))
    assert (answer.revision, answer.deleted, [kv.key for kv in answer.prev_kvs]) == (5, 2, [b"a", b"b"])
    assert [event.kv for event in model.events(5)] == [KeyValue(k, b"", 0, 5, 0, 0) for k in (b"a", b"b")]
    model.apply(Put(b"a", b"new"))
    assert model.get(b"a") == KeyValue(b"a", b"new", 6, 6, 1, 0)


def test_a_failed_compare_without_writes_makes_no_revision() -> None:
    """A transaction whose branch writes nothing carries the current revision."""
    model = _filled(b"a")
    swap = Txn((Compare(b"a", "value", "=", b"other"),), (Put(b"a", b"new"),))
    assert model.apply(swap) == (2, False, ())
    assert model.revision == 2


def test_all_operations_of_a_transaction_share_a_revision() -> None:
    """One transaction is one revision; its events keep the order of the operations."""
    model = _filled(b"a", b"b")
    model.apply(Txn((), (Put(b"z", b"1"), Delete(b"a"), Put(b"b", b"2"))))
    assert model.revision == 4
    assert [(event.kind, event.kv.key, event.kv.mod_revision) for event in model.events(4)] == [
        ("put", b"z", 4),
        ("delete", b"a", 4),
        ("put", b"b", 4),
    ]


def test_a_range_in_a_write_transaction_sees_what_was_put_before_it_only() -> None:
    """A read before the put shows the old state at the old revision, one after it the new; the outer header decides."""
    model = _filled(b"a")
    answer = model.apply(Txn((), (Range(b"a", b"c"), Put(b"b", b"1"), Range(b"a", b"c"), Put(b"c", b"2"))))
    before, _, after, _ = answer.results
    assert answer.revision == 3
    assert (before.revision, [kv.key for kv in before.kvs]) == (2, [b"a"])
    assert (after.revision, [kv.key for kv in after.kvs]) == (3, [b"a", b"b"])


def test_a_nested_compare_does_not_see_its_siblings() -> None:
    """etcd decides all comparisons on the state before the transaction, nested ones too."""
    nested = Txn((Compare(b"a", "version", "=", 0),), (Put(b"saw-nothing", b""),), (Put(b"saw-a", b""),))
    answer = Model().apply(Txn((), (Put(b"a", b"1"), nested)))
    assert answer.results[1] == (0, True, (answer.results[0]._replace(prev_kv=None),))


@pytest.mark.parametrize(
    "branch",
    [
        (Put(b"a", b"1"), Put(b"a", b"2")),
        (Put(b"b", b"1"), Delete(b"a", b"c")),
        (Delete(b"b"), Put(b"b", b"1")),
        (Put(b"a", b"1"), Txn((), (), (Put(b"a", b"2"),))),
        (Delete(b"a"), Txn((), (Put(b"a", b"2"),))),
    ],
)
def test_a_key_may_be_changed_once_in_a_transaction(branch: tuple[Put | Delete | Txn, ...]) -> None:
    """Two puts, or a put and a delete, of one key are refused, even in a branch that would not run."""
    assert _refusal(Model(), Txn((), (), branch)) == ("INVALID_ARGUMENT", "duplicate key given in txn request")


def test_a_key_may_be_put_in_both_branches_and_deleted_twice() -> None:
    """Branches exclude each other, and deletes do not clash with deletes."""
    model = _filled(b"a", b"b")
    both = Txn((), (Put(b"x", b"1"),), (Put(b"x", b"2"),))
    answer = model.apply(Txn((), (both, Delete(b"a", b"c"), Delete(b"a"))))
    assert [result.deleted for result in answer.results[1:]] == [2, 0]


@pytest.mark.parametrize(
    ("target", "equal"), [("version", 2), ("create_revision", 2), ("mod_revision", 3), ("value", b"m"), ("lease", 7)]
)
def test_comparisons(target: str, equal: int | bytes) -> None:
    """Each target compares with each sign; on an absent key all but the value count as 0."""
    model = Model()
    model.apply(Grant(7, 10))
    model.apply(Put(b"k", b"l"))
    model.apply(Put(b"k", b"m", lease=7))
    less, more = (b"l", b"n") if isinstance(equal, bytes) else (equal - 1, equal + 1)

    def holds(sign: str, operand: int | bytes, key: bytes = b"k") -> bool:
        return model.apply(Txn((Compare(key, target, sign, operand),))).succeeded  # type: ignore[arg-type]

    assert holds("=", equal)
    assert not holds("=", more)
    assert holds("!=", more)
    assert not holds("!=", equal)
    assert holds("<", more)
    assert not holds("<", equal)
    assert holds(">", less)
    assert not holds(">", equal)
    if target == "value":
        assert not holds("=", b"", b"absent")
        assert not holds("!=", b"x", b"absent")
    else:
        assert holds("=", 0, b"absent")


def test_a_comparison_of_a_range_must_hold_for_every_key() -> None:
    """A range without keys counts as one absent key."""
    model = _filled(b"a", b"b")
    assert model.apply(Txn((Compare(b"a", "version", "=", 1, b"c"),))).succeeded
    model.apply(Put(b"b", b"2"))
    assert not model.apply(Txn((Compare(b"a", "version", "=", 1, b"c"),))).succeeded
    assert model.apply(Txn((Compare(b"x", "version", "=", 0, b"z"),))).succeeded


def test_ranges() -> None:
    """Limit, order, count and keys only, as etcd has them: `count` is of all keys, `more` says that some are cut."""
    model = _filled(b"a", b"b", b"c", b"d")
    model.apply(Put(b"a", b"again"))

    def keys(answer: RangeResult) -> str:
        return b"".join(kv.key for kv in answer.kvs).decode()

    every = Range(*EVERYTHING)
    answer = model.apply(every)
    assert (answer.revision, keys(answer), answer.more, answer.count) == (6, "abcd", False, 4)
    answer = model.apply(every._replace(limit=2))
    assert (keys(answer), answer.more, answer.count) == ("ab", True, 4)
    assert model.apply(every._replace(count_only=True, limit=2)) == (6, (), False, 4)
    assert [kv.value for kv in model.apply(every._replace(keys_only=True)).kvs] == [b""] * 4
    answer = model.apply(every._replace(sort_order="descend", sort_target="mod_revision", limit=3))
    assert (keys(answer), answer.more) == ("adc", True)
    # Without an order etcd sorts what it fetched, which is one key more than the limit.
    assert keys(model.apply(every._replace(sort_target="mod_revision", limit=2))) == "bc"
    assert keys(model.apply(every._replace(sort_target="mod_revision", limit=1))) == "b"
    answer = model.apply(every._replace(min_mod_revision=4, max_mod_revision=5))
    assert (keys(answer), answer.more, answer.count) == ("cd", False, 4)
    assert keys(model.apply(Range(b"b", b"d"))) == "bc"
    assert keys(model.apply(Range(b"c", b"\0"))) == "cd"
    assert keys(model.apply(Range(b"d", b"b"))) == ""


def test_the_past_can_be_read_until_it_is_compacted() -> None:
    """A read at an old revision shows that state; before the compacted revision, or in the future, it is refused."""
    model = _filled(b"a", b"b")
    model.apply(Delete(b"a"))
    assert model.apply(Range(*EVERYTHING, revision=2)) == (4, (KeyValue(b"a", b"old-a", 2, 2, 1, 0),), False, 1)
    assert model.apply(Compact(3)) == 4
    assert [kv.key for kv in model.apply(Range(*EVERYTHING, revision=3)).kvs] == [b"a", b"b"]
    compacted = ("OUT_OF_RANGE", "mvcc: required revision has been compacted")
    future = ("OUT_OF_RANGE", "mvcc: required revision is a future revision")
    assert _refusal(model, Range(b"a", revision=2)) == compacted
    assert _refusal(model, Range(b"a", revision=5)) == future
    assert _refusal(model, Txn((), (Put(b"c", b"1"), Range(b"a", revision=5)))) == future
    assert _refusal(model, Compact(3)) == compacted
    assert _refusal(model, Compact(5)) == future
    assert model.apply(Compact(4)) == 4
    assert model.get(b"a", 4) is None
    with pytest.raises(EtcdError, match="compacted"):
        model.events(3)


def test_leases() -> None:
    """A revoke deletes what is attached at that moment, at one revision; without keys it makes none."""
    model = Model()
    assert model.apply(Grant(5, 1)) == (5, 2, 1)
    assert _refusal(model, Grant(5, 60)) == ("FAILED_PRECONDITION", "lease already exists")
    assert _refusal(model, Grant(6, 9_000_000_001)) == ("OUT_OF_RANGE", "too large lease TTL")
    assert _refusal(model, Put(b"a", b"1", lease=9)) == ("NOT_FOUND", "requested lease not found")
    assert _refusal(model, Txn((), (Put(b"a", b"1", lease=9),)))[1] == "requested lease not found"
    model.apply(Grant(6, 60))
    for key, lease in ((b"b", 5), (b"a", 5), (b"c", 6), (b"d", 5)):
        model.apply(Put(key, b"1", lease=lease))
    model.apply(Put(b"b", b"2"))
    model.apply(Put(b"c", b"2", ignore_lease=True))
    assert model.attached(6) == [b"c"]
    assert model.apply(Revoke(5)) == 8
    assert [event.kv.key for event in model.events(8)] == [b"a", b"d"]
    model.apply(Delete(b"c"))
    assert model.apply(Revoke(6)) == 9
    assert model.revision == 9
    assert _refusal(model, Revoke(6)) == ("NOT_FOUND", "requested lease not found")


def test_what_is_not_well_formed_is_refused() -> None:
    """Empty keys, contradicting flags and oversized transactions are refused before anything is looked at."""
    model = Model()
    for op in (Put(b"", b""), Range(b""), Delete(b""), Txn((Compare(b"", "version", "=", 0),)), Txn((), (Range(b""),))):
        assert _refusal(model, op) == ("INVALID_ARGUMENT", "key is not provided")
    assert _refusal(model, Put(b"a", b"1", ignore_value=True))[1] == "value is provided"
    assert _refusal(model, Put(b"a", b"", lease=1, ignore_lease=True))[1] == "lease is provided"
    assert _refusal(model, Put(b"a", b"", ignore_value=True))[1] == "key not found"
    many = tuple(Put(b"%d" % i, b"") for i in range(129))
    assert _refusal(model, Txn((), many))[1] == "too many operations in txn request"
    assert model.apply(Txn((), many[:128])).revision == 2


def test_evaluating_changes_nothing_and_committing_its_events_does_the_same_as_applying() -> None:
    """The witness replays events, and asks on a scratch: both ways lead to the same state."""
    applied, replayed = Model(), Model()
    for op in (
        Grant(3, 60),
        Put(b"a", b"1", lease=3),
        Txn((), (Put(b"b", b"2"), Delete(b"a"))),
        Put(b"c", b"3", lease=3),
        Revoke(3),
    ):
        before = replayed.hash()
        evaluated, events = applied.evaluate(op)
        assert evaluated == applied.apply(op)
        assert replayed.hash() == before
        if events:
            replayed.commit(events)
        assert replayed.hash() == applied.hash()
    assert replayed.events(4) == applied.events(4) != ()
    gap = Event("put", KeyValue(b"x", b"", 9, 9, 1, 0), None)
    with pytest.raises(SpecError, match="an event of revision 9 cannot follow revision 5"):
        replayed.commit([gap])


def test_equal_states_have_equal_hashes() -> None:
    """The hash covers every field of every key at one revision, and nothing else."""
    model = _filled(b"a", b"b")
    twin = model.copy()
    other = _filled(b"a")
    other.apply(Put(b"b", b"x"))
    assert model.hash() == twin.hash() != other.hash()
    twin.apply(Put(b"c", b"1"))
    assert model.get(b"c") is None
    assert twin.hash() != model.hash() == twin.hash(3)
    twin.apply(Compact(3))
    assert twin.hash(3) == model.hash()


def test_a_model_can_start_from_what_a_range_showed() -> None:
    """`Model.at` goes on from a store's keys; what was before counts as compacted."""
    model = _filled(b"a", b"b")
    model.apply(Grant(9, 60))
    model.apply(Put(b"a", b"2", lease=9))
    seen = model.apply(Range(*EVERYTHING))
    later = Model.at(seen.revision, seen.kvs)
    assert later.hash() == model.hash()
    assert later.apply(Put(b"a", b"3", lease=9, prev_kv=True)) == model.apply(Put(b"a", b"3", lease=9, prev_kv=True))
    assert _refusal(later, Range(b"a", revision=3))[1] == "mvcc: required revision has been compacted"
    assert later.events(5) == model.events(5)


def test_what_a_member_answers_by_itself() -> None:
    """Serializable reads, and transactions that hold nothing else, need no leader."""
    stale = Range(b"a", serializable=True)
    assert served_locally(stale)
    assert served_locally(Txn((Compare(b"a", "version", "=", 0),)))
    assert served_locally(Txn((), (stale,), (stale,)))
    assert not served_locally(Txn((), (stale,), (Range(b"a"),)))
    assert not served_locally(Range(b"a"))
    assert not served_locally(Put(b"a", b""))
