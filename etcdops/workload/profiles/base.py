"""What every profile is made of."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Sequence

import msgspec

from etcdops.calls import prefix_end
from etcdops.model import Answer
from etcdops.ops import Put, Range, Txn
from etcdops.workload.deliveries import ExtraWatch
from etcdops.workload.encoding import Request, key_prefix, value_prefix
from etcdops.workload.history import Outcome

__all__ = ["Client", "ExtraWatch", "Profile", "Setting", "Weighted"]


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What a profile is told: the run's id, its seed, how many clients there are and how many keys they share.

    `ttl_s` is the time to live of leases (whole seconds; etcd makes it 1.5 election timeouts at least). For lock:
    `fencing` makes every write of the counter depend on the lock, and `hold_s` is for how long the first client rests
    between its read and its write. For wide-txn: `preload` keys are there before, and each transaction has `compares`
    comparisons over them.
    """

    run: str
    seed: int = 0
    clients: int = 1
    keys: int = 20
    ttl_s: int = 3
    fencing: bool = True
    hold_s: float = 0.0
    preload: int = 4000
    compares: int = 4

    def key(self, rest: str) -> bytes:
        """Give a key of the run."""
        return (key_prefix(self.run) + rest).encode()

    def value(self, number: int, rest: object = None) -> bytes:
        """Give a value that the operation `number` alone writes; `rest` follows a colon."""
        value = f"{value_prefix(self.run)}{number}"
        return (value if rest is None else f"{value}:{rest}").encode()

    def content(self, value: bytes) -> str:
        """Give what follows the colon in a value, "" if nothing does."""
        return value.partition(b":")[2].decode()

    def lease(self, number: int) -> int:
        """Give the ID of the lease that the operation `number` makes; no other run's is equal, but by bad luck."""
        return (zlib.crc32(self.run.encode()) & 0x7FFFFFFF) << 24 | number

    def random(self, index: int) -> random.Random:
        """Give a client's own random numbers."""
        return random.Random(f"{self.seed}/{index}")


class Client:
    """One client of a profile. `closed` says that it waits for each answer before it asks again."""

    closed = False

    def next(self, number: int, at_s: float) -> Request | None:
        """Give what the operation `number` asks, `at_s` seconds after the schedule began; None if it has to wait.

        A number that was answered with None may be given again.
        """
        raise NotImplementedError

    def ended(self, number: int, request: Request, outcome: Outcome, answer: Answer | None, at_s: float) -> None:
        """Take note of how an operation ended; `answer` is None unless it is ok."""


class Profile:
    """A profile for one run; its clients may share what it knows."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def prepare(self, first: int) -> Iterable[Txn | Put]:
        """Give what must be written before the clients begin, by the operations `first` and those that follow it."""
        return ()

    def prepared(self, number: int, took_s: float) -> None:
        """Take note that what `prepare` gave for the operation `number` was acknowledged, after `took_s` seconds."""

    def client(self, index: int) -> Client:
        """Give the client `index`, from 0."""
        raise NotImplementedError

    def watches(self) -> Sequence[ExtraWatch]:
        """Give the watches to have besides those over all keys, through the members in turn."""
        return ()


class Weighted:
    """A choice among names, each with its weight."""

    def __init__(self, **weights: int) -> None:
        self._names = [name for name, weight in weights.items() for _ in range(weight)]

    def pick(self, chance: random.Random) -> str:
        """Give one."""
        return self._names[int(chance.random() * len(self._names))]


def span_of(prefix: bytes) -> tuple[bytes, bytes]:
    """Give the range of the keys that begin with `prefix`."""
    return prefix, prefix_end(prefix)


def look(key: bytes, range_end: bytes = b"", limit: int = 0) -> Range:
    """Give the linearizable read that every transaction carries: without one, a member would serve it alone."""
    return Range(key, range_end, limit)
