"""Clients that take turns to raise a counter under a lock, as etcd's concurrency recipe has it.

Who holds the lock has created a key that is attached to its lease. A holder that rests longer than its lease lives has
lost the lock and does not know it: another may be in the critical section at the same time. That is not etcd's fault,
and no lock service can prevent it; a fencing token, here the lock's create_revision, makes the late write fail
(https://etcd.io/docs/v3.5/learning/why/#notes-on-the-usage-of-lock-and-lease).
"""

from __future__ import annotations

from collections.abc import Callable

from etcdops.answers import Lease, RangeResult, TxnResult
from etcdops.model import Answer
from etcdops.ops import Compare, Delete, Grant, KeepAlive, Put, Range, Revoke, Txn
from etcdops.workload.encoding import key_prefix
from etcdops.workload.history import Outcome, Request
from etcdops.workload.profiles.base import Client, Profile, Setting, look

__all__ = ["counter_key", "lock_key", "make"]

#: How long a holder stays in the critical section, and the others wait before they try again: at most, seconds.
_THINK_S = 0.05
_RETRY_S = 0.1


def lock_key(run: str) -> bytes:
    """Give the key that the lock's holder has created."""
    return (key_prefix(run) + "lock").encode()


def counter_key(run: str) -> bytes:
    """Give the key of the counter that the lock protects; its values are "RUN/ID:COUNT"."""
    return (key_prefix(run) + "counter").encode()


class _Lock(Profile):
    def client(self, index: int) -> Client:
        return _LockClient(self.setting, index)


class _LockClient(Client):
    """Grant, acquire, read, (rest), write, unlock, renew, acquire, and so on; whatever is in doubt begins anew."""

    closed = True

    def __init__(self, setting: Setting, index: int) -> None:
        self._setting = setting
        self._random = setting.random(index)
        self._hold_s = setting.hold_s if index == 0 else 0.0
        self._lock = lock_key(setting.run)
        self._counter = counter_key(setting.run)
        self._lease = 0
        self._ttl_s = 0.0
        self._renewed_s = 0.0
        self._token = 0
        self._count = 0
        self._rest_until_s = 0.0
        self._step: Callable[[int], Request] = self._grant

    def next(self, number: int, at_s: float) -> Request | None:
        if at_s < self._rest_until_s:
            return None
        if self._step == self._acquire and at_s >= self._renewed_s + self._ttl_s / 3:
            return KeepAlive(self._lease)
        return self._step(number)

    def _grant(self, number: int) -> Request:
        return Grant(self._setting.lease(number), self._setting.ttl_s)

    def _acquire(self, number: int) -> Request:
        free = Compare(self._lock, "create_revision", "=", 0)
        mine = Put(self._lock, self._setting.value(number), self._lease)
        return Txn((free,), (mine, look(self._lock)), (look(self._lock),))

    def _read(self, number: int) -> Request:
        return Range(self._counter)

    def _write(self, number: int) -> Request:
        put = Put(self._counter, self._setting.value(number, self._count + 1))
        if not self._setting.fencing:
            return put
        return Txn((self._held,), (put, look(self._counter)), (look(self._lock),))

    def _unlock(self, number: int) -> Request:
        return Txn((self._held,), (Delete(self._lock), look(self._lock)), (look(self._lock),))

    def _leave(self, number: int) -> Request:
        return Revoke(self._lease)

    @property
    def _held(self) -> Compare:
        return Compare(self._lock, "create_revision", "=", self._token)

    def _rest(self, at_s: float, most_s: float) -> None:
        self._rest_until_s = at_s + most_s * self._random.random()

    def ended(self, number: int, request: Request, outcome: Outcome, answer: Answer | None, at_s: float) -> None:
        step = self._step
        if isinstance(answer, Lease):
            self._take_lease(answer, at_s)
        elif step == self._acquire:
            self._acquired(outcome, answer, at_s)
        elif step == self._read:
            if isinstance(answer, RangeResult):
                self._count = int(self._setting.content(answer.kvs[0].value)) if answer.kvs else 0
                self._step = self._write
                self._rest(at_s, _THINK_S)
                if self._hold_s:
                    self._rest_until_s = at_s + self._hold_s
        elif step == self._write:
            # Whether it was written or not, and whether that is known or not: it is never written again.
            self._step = self._unlock
        elif step == self._unlock:
            self._step = self._acquire if outcome == "ok" else self._leave
            self._rest(at_s, _RETRY_S)
        else:
            self._step = self._grant
            self._rest(at_s, _RETRY_S)

    def _take_lease(self, lease: Lease, at_s: float) -> None:
        self._step = self._acquire if lease.ttl_s > 0 else self._grant
        self._lease, self._ttl_s, self._renewed_s = lease.lease_id, lease.ttl_s, at_s

    def _acquired(self, outcome: Outcome, answer: Answer | None, at_s: float) -> None:
        if isinstance(answer, TxnResult):
            if answer.succeeded:
                self._token = answer.revision
                self._step = self._read
            else:
                self._rest(at_s, _RETRY_S)
            return
        # The lease may be gone; or the lock may be held under it, without anybody who knows: then the revoke frees it.
        self._step = self._leave


def make(setting: Setting) -> Profile:
    """Give the profile for a run."""
    return _Lock(setting)
