"""Keys with leases: granted, kept alive, detached, and at last revoked or left to end; and reads of what is left."""

from __future__ import annotations

from etcdops.answers import Lease
from etcdops.model import Answer
from etcdops.ops import Grant, KeepAlive, Put, Range, Revoke
from etcdops.workload.history import Outcome, Request
from etcdops.workload.profiles.base import Client, Profile, Setting, Weighted, span_of

__all__ = ["make"]

_KEYS = 3
_CHOICE = Weighted(put=30, detach=5, read=40, read_serializable=10, renew=15)


class _Leases(Profile):
    def client(self, index: int) -> Client:
        return _LeaseClient(self.setting, index)


class _LeaseClient(Client):
    """Holds one lease at a time, for some of its times to live; it may then leave it to end while it holds the next."""

    closed = True

    def __init__(self, setting: Setting, index: int) -> None:
        self._setting = setting
        self._random = setting.random(index)
        self._prefix = f"e/{index}/"
        self._lease = 0
        self._ttl_s = 0.0
        self._renewed_s = 0.0
        self._until_s = 0.0
        self._serial = 0

    def next(self, number: int, at_s: float) -> Request | None:
        if not self._lease:
            self._serial += 1
            return Grant(self._setting.lease(number), self._setting.ttl_s)
        if at_s >= self._until_s:
            lease, self._lease = self._lease, 0
            if self._random.random() < 0.5:
                return Revoke(lease)
            return self._read(serializable=False)
        if at_s >= self._renewed_s + self._ttl_s / 3:
            return KeepAlive(self._lease)
        what = _CHOICE.pick(self._random)
        if what == "renew":
            return KeepAlive(self._lease)
        if what in ("put", "detach"):
            # A lease's keys are its own until two more were granted: then what is left of them is overwritten.
            key = f"{self._prefix}{self._serial % 3}/{int(self._random.random() * _KEYS)}"
            lease = self._lease if what == "put" else 0
            return Put(self._setting.key(key), self._setting.value(number), lease, prev_kv=True)
        return self._read(what == "read_serializable")

    def _read(self, serializable: bool) -> Request:
        return Range(*span_of(self._setting.key(self._prefix)), serializable=serializable)

    def ended(self, number: int, request: Request, outcome: Outcome, answer: Answer | None, at_s: float) -> None:
        if isinstance(answer, Lease):
            if answer.ttl_s <= 0:
                self._lease = 0
                return
            if isinstance(request, Grant):
                self._lease = answer.lease_id
                self._until_s = at_s + answer.ttl_s * (0.3 + 2 * self._random.random())
            self._ttl_s = answer.ttl_s
            self._renewed_s = at_s
        elif outcome != "ok" and isinstance(request, Put) and request.lease:
            # It may be that the lease has ended.
            self._lease = 0


def make(setting: Setting) -> Profile:
    """Give the profile for a run."""
    return _Leases(setting)
