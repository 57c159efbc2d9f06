"""Random requests of every kind, chosen so that comparisons hold, and keys exist, about as often as not."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import TYPE_CHECKING

from etcdops.ops import Compare, Delete, Grant, KeepAlive, Put, Range, Revoke, Txn, TxnOp
from etcdops.workload.encoding import key_prefix, value_prefix

if TYPE_CHECKING:
    from etcdops.model import Model
    from etcdops.workload.encoding import Request

__all__ = ["MIXED", "REGISTER", "UNIQUE", "Requests", "foreign_request", "owner_of"]

#: Kinds of requests and how often each comes, in proportion.
MIXED: dict[str, float] = {
    "put": 5,
    "get": 5,
    "serializable-get": 2,
    "range": 2,
    "serializable-range": 1,
    "delete": 2,
    "delete-range": 1,
    "cas": 3,
    "txn": 3,
    "read-txn": 1,
    "local-txn": 1,
    "append": 2,
    "grant": 1,
    "lease-put": 2,
    "keep-alive": 1,
    "revoke": 1,
}
#: What the search for a linearization knows: single keys put, read, swapped and deleted.
REGISTER: dict[str, float] = {"put": 4, "get": 5, "value-cas": 4, "delete": 1}
#: Every put has a key of its own, and nothing deletes.
UNIQUE: dict[str, float] = {"unique-put": 4, "get": 1}

_ORDERS = ("none", "ascend", "descend")
_SORT_TARGETS = ("key", "version", "create_revision", "mod_revision", "value")
_TARGETS = ("version", "create_revision", "mod_revision", "value", "lease")


def owner_of(run: str, value: bytes) -> int:
    """Give the id of the operation that a value of a run names, -1 for a value of another origin."""
    prefix = value_prefix(run).encode()
    digits = value[len(prefix) :].partition(b":")[0] if value.startswith(prefix) else b""
    return int(digits) if digits.isdigit() else -1


def foreign_request(rng: Random, run: str, serial: int) -> Put | Delete | Txn:
    """Give a write that is none of the run's: of keys of others, or of a run before it."""
    prefix = rng.choice((b"other/", b"etcdops/before-" + run.encode() + b"/k/", b"zoo/"))
    key, other = prefix + b"%d" % rng.randrange(3), prefix + b"x"
    value = b"foreign %d" % serial
    return rng.choice((Put(key, value), Put(key, value), Txn((), (Put(key, value), Put(other, value))), Delete(key)))


class Requests:
    """Makes requests for one run, of the kinds in `mix`, over `keys` keys of it.

    It looks at the state of the store that it is given, so that it can choose what a comparison compares with.
    """

    def __init__(self, rng: Random, run: str, mix: Mapping[str, float], keys: int) -> None:
        self._rng = rng
        self._run = run
        self._kinds = list(mix)
        self._weights = list(mix.values())
        self._prefix = key_prefix(run).encode()
        self._keys = [self._prefix + b"k/%d" % number for number in range(keys)]
        self._lists = [self._prefix + b"list/%d" % number for number in range(max(1, keys // 2))]
        self._leases: list[int] = []
        self._value = b""
        self._model: Model

    def make(self, number: int, model: Model) -> Request:
        """Give the request of the operation `number`, in a store that is as `model`."""
        self._model = model
        self._value = (value_prefix(self._run) + str(number)).encode()
        kind = self._rng.choices(self._kinds, self._weights)[0]
        made: Request = getattr(self, "_" + kind.replace("-", "_"))(number)
        return made

    def _key(self) -> bytes:
        return self._rng.choice(self._keys)

    def _span(self) -> tuple[bytes, bytes]:
        """Give a range: a few keys, all of the run, all that there are, or one that holds nothing."""
        first, last = sorted((self._key(), self._key()))
        return self._rng.choice(
            ((first, last + b"\0"), (first, last + b"\0"), (self._prefix, self._prefix + b"\xff"), (b"\0", b"\0"))
        )

    def _revision(self) -> int:
        """Give an old revision, or 0."""
        low = max(1, self._model.compacted)
        return self._rng.randint(low, self._model.revision) if self._rng.random() < 0.2 else 0

    # -- reads

    def _get(self, _: int) -> Range:
        return Range(self._key(), revision=self._revision())

    def _serializable_get(self, number: int) -> Range:
        return self._get(number)._replace(serializable=True)

    def _range(self, _: int) -> Range:
        rng = self._rng
        read = Range(*self._span(), revision=self._revision())
        if rng.random() < 0.5:
            read = read._replace(limit=rng.randint(1, 3))
        if rng.random() < 0.4:
            read = read._replace(sort_order=rng.choice(_ORDERS), sort_target=rng.choice(_SORT_TARGETS))
        if rng.random() < 0.15:
            read = read._replace(count_only=True)
        elif rng.random() < 0.15:
            read = read._replace(keys_only=True)
        if rng.random() < 0.15:
            low = rng.randint(1, self._model.revision)
            read = rng.choice(
                (
                    read._replace(min_mod_revision=low),
                    read._replace(max_mod_revision=low),
                    read._replace(min_create_revision=low),
                    read._replace(max_create_revision=low),
                )
            )
        return read

    def _serializable_range(self, number: int) -> Range:
        return self._range(number)._replace(serializable=True)

    # -- writes

    def _put(self, _: int) -> Put:
        return Put(self._key(), self._value, prev_kv=self._rng.random() < 0.4)

    def _unique_put(self, number: int) -> Put:
        return Put(self._prefix + b"unique/%08d" % number, self._value)

    def _delete(self, _: int) -> Delete:
        return Delete(self._key(), prev_kv=self._rng.random() < 0.4)

    def _delete_range(self, _: int) -> Delete:
        first, last = sorted((self._key(), self._key()))
        return Delete(first, last + b"\0", prev_kv=self._rng.random() < 0.4)

    # -- transactions

    def _compare(self) -> Compare:
        rng, model = self._rng, self._model
        key = self._key()
        target = rng.choice(_TARGETS)
        found = model.get(key)
        operand = getattr(found, target) if found else b"" if target == "value" else 0
        if rng.random() < 0.3:
            operand = operand + b"?" if isinstance(operand, bytes) else operand + rng.choice((-1, 1))
        end = key + b"\0" if rng.random() < 0.1 else b""
        return Compare(key, target, rng.choices(("=", "!=", "<", ">"), (6, 1, 1, 1))[0], operand, end)

    def _cas(self, _: int) -> Txn:
        """A compare-and-swap by mod revision, which reads the key when it does not hold."""
        key = self._key()
        found = self._model.get(key)
        seen = found.mod_revision if found else 0
        if self._rng.random() < 0.3:
            seen = max(0, seen - 1)
        return Txn((Compare(key, "mod_revision", "=", seen),), (Put(key, self._value),), (Range(key),))

    def _value_cas(self, _: int) -> Txn:
        key = self._key()
        found = self._model.get(key)
        seen = found.value if found and self._rng.random() < 0.7 else self._run.encode() + b"/0"
        return Txn((Compare(key, "value", "=", seen),), (Put(key, self._value),), (Range(key),))

    def _branch(self, most: int, depth: int) -> tuple[TxnOp, ...]:
        rng = self._rng
        keys = rng.sample(self._keys, min(len(self._keys), most))
        ops: list[TxnOp] = []
        for key in keys[: rng.randint(0, most)]:
            ops.append(rng.choice((Put(key, self._value, prev_kv=rng.random() < 0.4), Delete(key, prev_kv=True))))
        if rng.random() < 0.5:
            ops.insert(rng.randint(0, len(ops)), Range(*self._span()))
        if depth and rng.random() < 0.2:
            ops.append(self._txn(0, depth=depth - 1))
        return tuple(ops)

    def _txn(self, _: int, depth: int = 1) -> Txn:
        compares = tuple(self._compare() for _ in range(self._rng.choice((0, 1, 1, 2))))
        return Txn(compares, (*self._branch(3, depth), Range(self._key())), self._branch(2, depth))

    def _read_txn(self, _: int) -> Txn:
        return Txn((self._compare(),), (Range(self._key()),), (Range(*self._span()), Range(self._key())))

    def _local_txn(self, _: int) -> Txn:
        """One that a member serves by itself: serializable ranges alone, or comparisons alone."""
        read = (Range(self._key(), serializable=True),) if self._rng.random() < 0.5 else ()
        return Txn((self._compare(),), read, ())

    def _append(self, number: int) -> Txn:
        """Add the operation's number to a list, if that is still as it was last seen."""
        key = self._rng.choice(self._lists)
        found = self._model.get(key)
        elements = found.value.partition(b":")[2].split(b",") if found else []
        value = self._value + b":" + b",".join([*elements, b"%d" % number])
        seen = found.mod_revision if found else 0
        return Txn((Compare(key, "mod_revision", "=", seen),), (Put(key, value),), (Range(key),))

    # -- leases

    def _lease(self) -> int:
        return self._rng.choice(self._leases[-4:]) if self._leases else 1

    def _grant(self, number: int) -> Grant:
        self._leases.append(1000 + number)
        return Grant(1000 + number, self._rng.randint(1, 4))

    def _lease_put(self, number: int) -> Put | Grant:
        if not self._leases:
            return self._grant(number)
        return Put(self._key(), self._value, self._lease())

    def _keep_alive(self, _: int) -> KeepAlive:
        return KeepAlive(self._lease())

    def _revoke(self, _: int) -> Revoke:
        return Revoke(self._lease())
