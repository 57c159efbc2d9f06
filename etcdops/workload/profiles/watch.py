"""Mixed traffic, with more watches on parts of the keys: on prefixes, on one key, and without puts or deletes."""

from __future__ import annotations

from collections.abc import Sequence

from etcdops.workload.deliveries import ExtraWatch
from etcdops.workload.profiles import mixed
from etcdops.workload.profiles.base import Client, Profile, Setting, span_of

__all__ = ["make"]


class _Watch(Profile):
    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._mixed = mixed.make(setting)

    def client(self, index: int) -> Client:
        return self._mixed.client(index)

    def watches(self) -> Sequence[ExtraWatch]:
        key = self.setting.key
        return (
            ExtraWatch("prefix", *span_of(key("k/0"))),
            ExtraWatch("lists", *span_of(key("l/"))),
            ExtraWatch("one-key", key("k/00"), b""),
            ExtraWatch("no-puts", *span_of(key("k/")), ("NOPUT",)),
            ExtraWatch("no-deletes", key("k/"), key("k/1"), ("NODELETE",)),
        )


def make(setting: Setting) -> Profile:
    """Give the profile for a run."""
    return _Watch(setting)
