"""Transactions that read lists and append to them, as Elle's list-append: each list's content is its history."""

from __future__ import annotations

import random

from etcdops.answers import TxnResult
from etcdops.model import Answer
from etcdops.ops import Txn
from etcdops.workload.history import Outcome, Request
from etcdops.workload.profiles.base import Client, Profile, Setting
from etcdops.workload.profiles.lists import Lists

__all__ = ["make"]


class _Append(Profile):
    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.lists = Lists(setting, setting.keys)

    def client(self, index: int) -> Client:
        return _AppendClient(self.lists, self.setting.random(index))


class _AppendClient(Client):
    def __init__(self, lists: Lists, chance: random.Random) -> None:
        self._lists = lists
        self._random = chance

    def next(self, number: int, at_s: float) -> Request | None:
        reads = int(self._random.random() * 3)
        if self._random.random() < 0.3:
            return self._lists.read(self._random, 1 + reads)
        return self._lists.append(self._random, number, 1 + int(self._random.random() * 2), reads)

    def ended(self, number: int, request: Request, outcome: Outcome, answer: Answer | None, at_s: float) -> None:
        if isinstance(request, Txn) and isinstance(answer, TxnResult):
            self._lists.see(request, answer)


def make(setting: Setting) -> Profile:
    """Give the profile for a run."""
    return _Append(setting)
