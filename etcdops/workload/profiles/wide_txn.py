"""Transactions whose comparisons span thousands of keys, which a member takes tens of milliseconds to apply.

etcd 3.5.0 to 3.5.2 noted an entry as applied before they had applied it: a member that is killed in between, and
whose backend commits just then, comes back without that entry (https://github.com/etcd-io/etcd/issues/13766). The
longer an entry takes from the one to the other, the likelier it is; comparisons are evaluated in that time.

Each client waits for its answer before it asks again, and if that took long it rests. With more than that under way,
members would have more to apply than they can, and one that was killed would never catch up.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

from etcdops.model import Answer
from etcdops.ops import MAX_TXN_OPS, Compare, Put, Range, Txn
from etcdops.workload.history import Outcome, Request
from etcdops.workload.profiles.base import Client, Profile, Setting, look, span_of

__all__ = ["make"]

#: All of them hold for every key that exists, so that every comparison is evaluated over all keys.
_HOLD = (("lease", "=", 0), ("version", ">", 0), ("create_revision", ">", 0), ("mod_revision", ">", 0))
_READS = 0.15

#: How long applying one transaction is to take, seconds, so that a kill is likely to hit it; and with how many tries it
#: is found out how long one takes.
_TAKES_S, _TRIES = 0.035, 5

#: How long an answer may take before its client rests for as long as it took more, seconds.
_EASY_S = 0.15


class _WideTxn(Profile):
    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        prefix = setting.key("g/")
        self._span = span_of(prefix)
        self.compares = self._comparing(setting.compares)
        self._tried: range = range(0)
        self._quickest_s = math.inf

    def _comparing(self, times: int) -> tuple[Compare, ...]:
        key, range_end = self._span
        return tuple(
            Compare(key, target, sign, operand, range_end)  # type: ignore[arg-type]
            for target, sign, operand in (_HOLD[i % len(_HOLD)] for i in range(times))
        )

    def prepare(self, first: int) -> Iterable[Txn | Put]:
        setting = self.setting
        step = MAX_TXN_OPS - 1
        for number, at in enumerate(range(0, setting.preload, step), start=first):
            names = range(at, min(at + step, setting.preload))
            puts = [Put(setting.key(f"g/{name:06d}"), setting.value(number, name)) for name in names]
            yield Txn((), (look(puts[0].key), *puts), ())
        first += math.ceil(setting.preload / step)
        self._tried = range(first, first + _TRIES)
        for number in self._tried:
            key = setting.key("w/tried")
            yield Txn(self._comparing(setting.compares), (look(key), Put(key, setting.value(number))), ())

    def prepared(self, number: int, took_s: float) -> None:
        if number not in self._tried:
            return
        self._quickest_s = min(self._quickest_s, took_s)
        times = math.ceil(self.setting.compares * _TAKES_S / self._quickest_s)
        # On a quick machine more comparisons take as long as a few do on a slow one, or a busy one.
        self.compares = self._comparing(min(max(times, 1), MAX_TXN_OPS))

    def client(self, index: int) -> Client:
        return _WideClient(self, index, self.setting.random(index))


class _WideClient(Client):
    closed = True

    def __init__(self, profile: _WideTxn, index: int, chance: random.Random) -> None:
        self._profile = profile
        self._index = index
        self._random = chance
        self._asked_s = self._rests_until_s = 0.0

    def next(self, number: int, at_s: float) -> Request | None:
        if at_s < self._rests_until_s:
            return None
        self._asked_s = at_s
        setting = self._profile.setting
        key = setting.key(f"w/{self._index}/{int(self._random.random() * setting.keys)}")
        if self._random.random() < _READS:
            return Range(key)
        return Txn(self._profile.compares, (look(key), Put(key, setting.value(number))), (look(key),))

    def ended(self, number: int, request: Request, outcome: Outcome, answer: Answer | None, at_s: float) -> None:
        if outcome == "ok":
            self._rests_until_s = at_s + max(0.0, at_s - self._asked_s - _EASY_S)


def make(setting: Setting) -> Profile:
    """Give the profile for a run."""
    return _WideTxn(setting)
