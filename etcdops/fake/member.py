"""One member in memory: whether it runs, what it has applied, and its log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from etcdops.errors import EtcdError, MemberFailed
from etcdops.model import Answer, Model
from etcdops.ops import Op, Put, Txn, TxnOp
from etcdops.runtimes.base import MemberState
from etcdops.wire import Server, ServerError, hex_id, serve

if TYPE_CHECKING:
    from etcdops.fake.cluster import FakeCluster

__all__ = ["FakeMember"]

#: For each call that waits (see MOST_WAITING), with some left for streams and for calls that never wait.
_THREADS = 240


class FakeMember:
    """A member of a FakeCluster. `there` tells whether others hear it: it runs, is not frozen, and is not mute."""

    def __init__(self, cluster: FakeCluster, name: str, member_id: int) -> None:
        self.cluster = cluster
        self.name = name
        self.id = member_id
        self.client_url = self.peer_url = ""
        self.state: MemberState = "stopped"
        self.starts = 0
        self.model = Model()
        self.applied = 0
        self.last_answer: Answer | EtcdError = 0
        #: Comes from `Lies.never_catches_up`.
        self.stuck = False
        self.waiting = 0
        self.logged = bytearray()
        self._killed = False
        self._mute = False
        self._server: Server | None = None

    @property
    def there(self) -> bool:
        """Whether the others hear it."""
        return self.state == "running" and not self._mute

    def say(self, level: str, message: str, **fields: object) -> None:
        """Write a line to the log, as etcd would. Holds the cluster's lock."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"level": level, "ts": now, "caller": "fake/member.go:1", "msg": message, **fields}
        self.logged += json.dumps(line).encode() + b"\n"

    # -- its life

    def start(self) -> None:
        """Start it, and serve at its client URL.

        Raises Refused if something else listens there, and MemberFailed if it runs already.
        """
        from etcdops.fake.service import handlers

        cluster, lies = self.cluster, self.cluster.lies
        with cluster.changed:
            if self.state != "stopped":
                raise MemberFailed(f"member {self.name} runs already, so a second start of it would fail")
            returns_from_kill, self._killed = self._killed, False
            self.starts += 1
            self.say("info", "starting etcd server", name=self.name, **{"local-member-id": hex_id(self.id)})
            if returns_from_kill and lies.never_back == "dead":
                self._killed = True
                self.say("fatal", "discovery failed", error="the member never comes back")
                return
            if returns_from_kill and lies.panics:
                self._panic()
            self._mute = returns_from_kill and lies.never_back == "mute"
            cluster.advance()
            self.state = "running"
            self._come_back(first=self.starts == 1)
        if not self._mute:
            try:
                self._server = serve(handlers(self), self.client_url.rpartition("://")[2], threads=_THREADS)
            except BaseException:
                self._end()
                raise

    def _panic(self) -> None:
        last = len(self.cluster.log)
        said = (
            f"tocommit({last}) is out of range [lastIndex({last - 1})]. Was the raft log corrupted, truncated, or lost?"
        )
        self.say("panic", said, logger="raft")
        self.logged += f"panic: {said}\n\ngoroutine 1 [running]:\n".encode()

    def _come_back(self, *, first: bool = False) -> None:
        self.stuck = bool(self.cluster.lies.never_catches_up) and not first
        self.cluster.membership_changed(fault=False)

    def stop(self) -> None:
        """End it as SIGTERM would: another member leads before it is gone."""
        with self.cluster.changed:
            if self.state == "stopped":
                return
            self.cluster.advance()
            self.say("info", "received signal; shutting down", signal="terminated")
            if self.state == "running":
                self.cluster.hand_over(self)
        self._end()

    def kill(self) -> None:
        """End it as SIGKILL would: nobody is told."""
        with self.cluster.changed:
            if self.state == "stopped":
                return
            self.cluster.advance()
            self._killed = True
        self._end()

    def _end(self) -> None:
        with self.cluster.changed:
            self.state = "stopped"
            server, self._server = self._server, None
            self.cluster.membership_changed(fault=True)
        if server is not None:
            # Without the lock: calls that it breaks off need it to end.
            server.stop()

    def pause(self) -> None:
        """Freeze it: it accepts connections, and answers nothing."""
        with self.cluster.changed:
            self.cluster.advance()
            if self.state == "running":
                self.state = "paused"
                self.cluster.membership_changed(fault=True)

    def resume(self) -> None:
        """Let it go on: calls that came meanwhile are answered now."""
        with self.cluster.changed:
            self.cluster.advance()
            if self.state == "paused":
                self.state = "running"
                self._come_back()

    def check_alive(self, start: int) -> None:
        """Raise what a call gets that a stop or a kill overtakes. `start` is the count of starts when it came."""
        if self.state == "stopped" or self.starts != start:
            raise ServerError("UNAVAILABLE", "etcdserver: server stopped")

    def wait_thawed(self, start: int) -> None:
        """Wait for as long as it is frozen. Holds the lock, and gives it up meanwhile."""
        self.check_alive(start)
        while self.state == "paused":
            self.cluster.changed.wait()
            self.check_alive(start)

    # -- its data

    def catch_up(self, log: Sequence[Op | None]) -> None:
        """Apply what it has not applied yet. Holds the cluster's lock."""
        for op in log[self.applied :]:
            self.applied += 1
            if op is None:
                continue
            if self.cluster.lies.diverges == self.name:
                op = _altered(op) if isinstance(op, (Put, Txn)) else op
            try:
                self.last_answer = self.model.apply(op)
            except EtcdError as error:
                self.last_answer = error


def _altered(op: TxnOp) -> TxnOp:
    """Give `op` with other values in its puts."""
    if isinstance(op, Put):
        return op._replace(value=op.value + b"?")
    if isinstance(op, Txn):
        return Txn(op.compares, tuple(map(_altered, op.success)), tuple(map(_altered, op.failure)))
    return op
