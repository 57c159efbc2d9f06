"""Reads, writes, compare-and-swaps and deletes of single keys, for the search for a linearization.

A key gets at most 200 operations, from a few clients that each wait for their answers, and none any more after an
unknown outcome: what the search costs grows with length, and most of all with open operations (Jepsen's etcd tests
and etcd's own robustness tests have the same limits).
"""

from __future__ import annotations

import random

from etcdops.answers import RangeResult, TxnResult
from etcdops.model import Answer
from etcdops.ops import Compare, Delete, Put, Range, Txn
from etcdops.workload.history import Outcome, Request
from etcdops.workload.profiles.base import Client, Profile, Setting, Weighted, look

__all__ = ["OPERATIONS", "make"]

#: So many operations a key gets.
OPERATIONS = 200
#: So many clients share one.
_SHARING = 4

_CHOICE = Weighted(read=40, write=30, swap=25, delete=5)


class _Register:
    """The key that some clients use at a time."""

    def __init__(self, profile: _Registers) -> None:
        self._profile = profile
        self._renew()

    def _renew(self) -> None:
        self.key = self._profile.new_key()
        self.value: bytes | None = None
        self._asked = 0

    def take(self) -> bytes:
        """Give the key for one more operation."""
        if self._asked >= OPERATIONS:
            self._renew()
        self._asked += 1
        return self.key

    def lose(self, key: bytes) -> None:
        """Ask nothing more of `key`."""
        if key == self.key:
            self._renew()

    def see(self, key: bytes, value: bytes | None) -> None:
        """Take note of what was seen last."""
        if key == self.key:
            self.value = value


class _Registers(Profile):
    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._made = 0
        count = max(1, min(setting.keys, setting.clients // _SHARING))
        self._registers = [_Register(self) for _ in range(count)]

    def new_key(self) -> bytes:
        self._made += 1
        return self.setting.key(f"r/{self._made}")

    def client(self, index: int) -> Client:
        # Neighbours share a key, for they are pinned to different members.
        at = index * len(self._registers) // max(self.setting.clients, 1)
        return _RegisterClient(self.setting, self._registers[at], self.setting.random(index))


class _RegisterClient(Client):
    closed = True

    def __init__(self, setting: Setting, register: _Register, chance: random.Random) -> None:
        self._setting = setting
        self._register = register
        self._random = chance

    def next(self, number: int, at_s: float) -> Request | None:
        what = _CHOICE.pick(self._random)
        seen = self._register.value
        key = self._register.take()
        if what == "read":
            return Range(key)
        if what == "delete":
            return Delete(key)
        put = Put(key, self._setting.value(number))
        if what == "write":
            return put
        expected = Compare(key, "create_revision", "=", 0) if seen is None else Compare(key, "value", "=", seen)
        return Txn((expected,), (put, look(key)), (look(key),))

    def ended(self, number: int, request: Request, outcome: Outcome, answer: Answer | None, at_s: float) -> None:
        key = request.compares[0].key if isinstance(request, Txn) else request[0]
        assert isinstance(key, bytes)
        if outcome == "unknown":
            self._register.lose(key)
        elif isinstance(request, Put) and outcome == "ok":
            self._register.see(key, request.value)
        elif isinstance(request, Delete) and outcome == "ok":
            self._register.see(key, None)
        elif isinstance(answer, (RangeResult, TxnResult)):
            kvs = answer.kvs if isinstance(answer, RangeResult) else answer.results[-1].kvs
            self._register.see(key, kvs[0].value if kvs else None)


def make(setting: Setting) -> Profile:
    """Give the profile for a run."""
    return _Registers(setting)
