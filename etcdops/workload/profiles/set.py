"""Every write adds a key that nobody ever deletes or writes again; reads list what was added lately.

What was acknowledged must be in every later list and in the final state: the simplest of Jepsen's checks, and the one
that people understand at once.
"""

from __future__ import annotations

import random

from etcdops.ops import Put, Range
from etcdops.workload.history import Request
from etcdops.workload.profiles.base import Client, Profile, Setting, Weighted, span_of

__all__ = ["make"]

_CHOICE = Weighted(add=70, list=20, list_serializable=10)
#: Operations are numbered together: so many numbers share a part of the keys, and so a list.
_PART = 100


class _Set(Profile):
    def client(self, index: int) -> Client:
        return _SetClient(self.setting, self.setting.random(index))


class _SetClient(Client):
    def __init__(self, setting: Setting, chance: random.Random) -> None:
        self._setting = setting
        self._random = chance

    def next(self, number: int, at_s: float) -> Request | None:
        what = _CHOICE.pick(self._random)
        part = number // _PART
        if what == "add":
            return Put(self._setting.key(f"s/{part}/{number}"), self._setting.value(number))
        part = max(0, part - int(self._random.random() * 3))
        return Range(*span_of(self._setting.key(f"s/{part}/")), serializable=what == "list_serializable")


def make(setting: Setting) -> Profile:
    """Give the profile for a run."""
    return _Set(setting)
