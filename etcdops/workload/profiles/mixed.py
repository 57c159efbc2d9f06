"""Everything at once, on one set of keys: what etcd promises is promised of all of it together."""

from __future__ import annotations

from collections.abc import Callable

from etcdops.answers import KeyValue, Lease, PutResult, RangeResult, TxnResult
from etcdops.model import Answer
from etcdops.ops import Compare, Delete, Grant, KeepAlive, Put, Range, Revoke, Txn
from etcdops.workload.history import Outcome, Request
from etcdops.workload.profiles.base import Client, Profile, Setting, Weighted, look, span_of
from etcdops.workload.profiles.lists import Lists

__all__ = ["make"]

_CHOICE = Weighted(
    put=24,
    get=16,
    get_serializable=8,
    range=8,
    range_old=2,
    delete=5,
    delete_range=1,
    swap=16,
    swap_value=4,
    append=8,
    grant=1,
    keep_alive=3,
    put_leased=3,
    revoke=1,
)
#: A client's leases at one time; the oldest is then left to end by itself.
_LEASES = 3


class _Mixed(Profile):
    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.keys = [setting.key(f"k/{i:02d}") for i in range(setting.keys)]
        self.all = span_of(setting.key("k/"))
        self.lists = Lists(setting, max(2, setting.keys // 4))

    def client(self, index: int) -> Client:
        return _MixedClient(self, index)


class _MixedClient(Client):
    def __init__(self, profile: _Mixed, index: int) -> None:
        self._setting = profile.setting
        self._profile = profile
        self._random = profile.setting.random(index)
        # What it saw last of each key: the revision and the value, 0 and nothing for an absent one.
        self._seen: dict[bytes, tuple[int, bytes]] = {}
        self._newest = 0
        self._leases: list[int] = []
        self._made: dict[str, Callable[[int], Request]] = {
            name: getattr(self, f"_{name}") for name in sorted(set(_CHOICE._names))
        }

    def next(self, number: int, at_s: float) -> Request | None:
        return self._made[_CHOICE.pick(self._random)](number)

    def _key(self) -> bytes:
        keys = self._profile.keys
        return keys[int(self._random.random() * len(keys))]

    def _flag(self, chance: float = 0.3) -> bool:
        return self._random.random() < chance

    def _put(self, number: int, lease: int = 0) -> Request:
        return Put(self._key(), self._setting.value(number), lease, prev_kv=self._flag())

    def _get(self, number: int) -> Request:
        return Range(self._key())

    def _get_serializable(self, number: int) -> Request:
        return Range(self._key(), serializable=True)

    def _range(self, number: int) -> Request:
        limit = 1 + int(self._random.random() * 4)
        if self._flag(0.5):
            return Range(*self._profile.all, limit, serializable=self._flag())
        return Range(self._key(), self._profile.all[1], limit, keys_only=self._flag(), count_only=self._flag(0.2))

    def _range_old(self, number: int) -> Request:
        # Not older than the run, nor than what this client knows to be there.
        oldest = min((revision for revision, _ in self._seen.values() if revision), default=0)
        if not oldest:
            return self._get(number)
        return Range(self._key(), self._profile.all[1], 3, revision=self._random.randint(oldest, self._newest))

    def _delete(self, number: int) -> Request:
        return Delete(self._key(), prev_kv=self._flag())

    def _delete_range(self, number: int) -> Request:
        keys = self._profile.keys
        first = int(self._random.random() * len(keys))
        return Delete(keys[first], keys[min(first + 3, len(keys) - 1)] + b"\0", prev_kv=self._flag())

    def _swap(self, number: int) -> Request:
        """Write if the key is as it was seen, and else read it."""
        key = self._key()
        revision, _ = self._seen.get(key, (0, b""))
        put = Put(key, self._setting.value(number))
        other = self._key()
        return Txn((Compare(key, "mod_revision", "=", revision),), (look(other), put), (look(key),))

    def _swap_value(self, number: int) -> Request:
        """The same by value; one that was seen absent is deleted instead, if that is not so."""
        key = self._key()
        revision, value = self._seen.get(key, (0, b""))
        if not revision:
            there = Compare(key, "create_revision", ">", 0)
            return Txn((there,), (Delete(key), look(key)), (look(key), Put(key, self._setting.value(number))))
        swap = Put(key, self._setting.value(number), prev_kv=True)
        return Txn((Compare(key, "value", "=", value),), (swap, look(key)), (look(key),))

    def _append(self, number: int) -> Request:
        return self._profile.lists.append(self._random, number, 1)

    def _grant(self, number: int) -> Request:
        del self._leases[: max(0, len(self._leases) - _LEASES + 1)]
        return Grant(self._setting.lease(number), self._setting.ttl_s + int(self._random.random() * 3))

    def _lease(self) -> int:
        return self._leases[int(self._random.random() * len(self._leases))]

    def _keep_alive(self, number: int) -> Request:
        return KeepAlive(self._lease()) if self._leases else self._grant(number)

    def _put_leased(self, number: int) -> Request:
        return self._put(number, self._lease()) if self._leases else self._grant(number)

    def _revoke(self, number: int) -> Request:
        return Revoke(self._leases.pop(0)) if self._leases else self._grant(number)

    def ended(self, number: int, request: Request, outcome: Outcome, answer: Answer | None, at_s: float) -> None:
        if outcome != "ok":
            if isinstance(request, (Put, KeepAlive)):
                # It may be the lease that is gone.
                lease = request.lease
                self._leases = [kept for kept in self._leases if kept != lease]
            return
        if isinstance(answer, Lease):
            if isinstance(request, Grant):
                self._leases.append(answer.lease_id)
            elif answer.ttl_s <= 0 and answer.lease_id in self._leases:
                self._leases.remove(answer.lease_id)
        elif isinstance(answer, RangeResult) and isinstance(request, Range):
            self._newest = max(self._newest, answer.revision)
            if not request.range_end:
                self._see(request.key, answer.kvs)
        elif isinstance(answer, PutResult) and isinstance(request, Put):
            self._newest = max(self._newest, answer.revision)
            self._seen[request.key] = answer.revision, request.value
        elif isinstance(answer, TxnResult) and isinstance(request, Txn):
            self._newest = max(self._newest, answer.revision)
            self._profile.lists.see(request, answer)
            branch = request.success if answer.succeeded else request.failure
            for op, result in zip(branch, answer.results, strict=True):
                if isinstance(op, Range) and not op.range_end:
                    self._see(op.key, result.kvs)
            for op in branch:
                if isinstance(op, Put):
                    self._seen[op.key] = answer.revision, op.value

    def _see(self, key: bytes, kvs: tuple[KeyValue, ...]) -> None:
        self._seen[key] = (kvs[0].mod_revision, kvs[0].value) if kvs else (0, b"")


def make(setting: Setting) -> Profile:
    """Give the profile for a run."""
    return _Mixed(setting)
