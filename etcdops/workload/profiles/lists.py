"""Lists that transactions append to: what their values hold is the order of the appends, as Elle wants to see it."""

from __future__ import annotations

import random

from etcdops.answers import TxnResult
from etcdops.ops import Compare, Put, Range, Txn, TxnOp
from etcdops.workload.profiles.base import Setting, look

__all__ = ["LENGTH", "Lists"]

#: So many elements a list gets; then another key takes its place.
LENGTH = 12


class Lists:
    """Some lists that all clients share, each a key whose value is "RUN/ID:1,5,9,ID", ID being the last appended."""

    def __init__(self, setting: Setting, count: int) -> None:
        self._setting = setting
        self._next = 0
        self._keys = [self._new_key() for _ in range(count)]
        # What was seen last of each list, by any client: its mod_revision and its elements.
        self._seen: dict[bytes, tuple[int, str]] = {}

    def _new_key(self) -> bytes:
        self._next += 1
        return self._setting.key(f"l/{self._next}")

    def _pick(self, chance: random.Random, count: int) -> list[bytes]:
        found = []
        for at in chance.sample(range(len(self._keys)), min(count, len(self._keys))):
            _, elements = self._seen.get(self._keys[at], (0, ""))
            if elements.count(",") + 1 >= LENGTH:
                self._keys[at] = self._new_key()
            found.append(self._keys[at])
        return found

    def append(self, chance: random.Random, number: int, count: int, reads: int = 0) -> Txn:
        """Give a transaction that appends `number` to `count` lists, and reads them and `reads` others.

        It reads first; if a list is not as it was seen, it only reads.
        """
        keys = self._pick(chance, count + reads)
        compares = []
        puts: list[TxnOp] = []
        for key in keys[:count]:
            revision, elements = self._seen.get(key, (0, ""))
            compares.append(Compare(key, "mod_revision", "=", revision))
            puts.append(Put(key, self._setting.value(number, f"{elements},{number}" if elements else number)))
        looks: tuple[TxnOp, ...] = tuple(look(key) for key in keys)
        return Txn(tuple(compares), (*looks, *puts), looks)

    def read(self, chance: random.Random, count: int) -> Txn:
        """Give a transaction that reads `count` lists."""
        return Txn((), tuple(look(key) for key in self._pick(chance, count)), ())

    def see(self, request: Txn, answer: TxnResult) -> None:
        """Take note of what a transaction has shown, if it was one on lists."""
        prefix = self._setting.key("l/")
        for op, result in zip(request.success if answer.succeeded else request.failure, answer.results, strict=True):
            if not op[0] or not isinstance(op, (Range, Put)) or not op.key.startswith(prefix):
                continue
            if isinstance(op, Put):
                self._note(op.key, answer.revision, op.value)
            elif result.kvs:
                self._note(op.key, result.kvs[0].mod_revision, result.kvs[0].value)

    def _note(self, key: bytes, revision: int, value: bytes) -> None:
        # Answers may come out of order: the newest counts.
        if revision >= self._seen.get(key, (0, ""))[0]:
            self._seen[key] = revision, self._setting.content(value)
