"""One member in memory: whether it runs, what it has applied, and its log."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from etcdops.errors import EtcdError, MemberFailed
from etcdops.fake.membership import Change
from etcdops.model import Answer, Model
from etcdops.ops import Op, Put, Txn, TxnOp
from etcdops.runtimes.base import MemberState
from etcdops.wire import Server, ServerError, hex_id, serve

if TYPE_CHECKING:
    from etcdops.fake.cluster import FakeCluster
    from etcdops.fake.membership import Membership

__all__ = ["FakeMember"]

#: For each call that waits (see MOST_WAITING), with some left for streams and for calls that never wait.
_THREADS = 240


class FakeMember:
    """A member of a FakeCluster, which is what has its data. `there` tells whether others hear it.

    `id` is 0 before it has joined. `view` is the member list as it knows it, by what it has applied.
    """

    def __init__(self, cluster: FakeCluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.id = 0
        self.view: Membership = cluster.membership.copy()
        #: Changes of members that are older than that are in the list with which it joined.
        self.joined_at = 0
        #: Since when others hear it, by the monotonic clock.
        self.there_since = 0.0
        #: The peer URLs of all members, its own among them, as it is told them when it starts.
        self.initial_cluster: tuple[str, ...] = ()
        self.client_url = self.peer_url = ""
        self.state: MemberState = "stopped"
        self.starts = 0
        self.model = Model()
        self.applied = 0
        self.last_answer: Answer | EtcdError = 0
        #: Comes from `Lies.never_catches_up`.
        self.stuck = False
        self.waiting = 0
        #: How many calls it is answering.
        self.answering = 0
        self.logged = bytearray()
        self._killed = False
        self._mute = False
        self._leaving = False
        self._server: Server | None = None
        #: Whether nothing of it listens any more, which may be a moment after it has ended by itself.
        self.silent = threading.Event()
        self.silent.set()

    @property
    def there(self) -> bool:
        """Whether the others hear it: it is a member, it runs, is not frozen, and is not mute."""
        return self.state == "running" and not self._mute and self.id in self.cluster.membership

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
            if not self.id and (reason := cluster.admit(self, self.initial_cluster)):
                if reason.startswith("tocommit"):
                    self._say_panic(reason)
                else:
                    self.say("fatal", "discovery failed", error=reason)
                return
            if cluster.is_told(self):
                self._say_removed()
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
        from etcdops.fake.cluster import out_of_range

        self._say_panic(out_of_range(len(self.cluster.log), len(self.cluster.log) - 1))

    def _say_panic(self, said: str) -> None:
        self.say("panic", said, logger="raft")
        self.logged += f"panic: {said}\n\ngoroutine 1 [running]:\n".encode()

    def _come_back(self, *, first: bool = False) -> None:
        self.stuck = bool(self.cluster.lies.never_catches_up) and not first
        self.there_since = time.monotonic()
        self.cluster.presence_changed(fault=False)

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

    def leave(self) -> None:
        """End it by itself, as it has been removed from the cluster. Holds the lock, and does not wait for the end."""
        if not self._leaving:
            self._leaving = True
            self._say_removed()
            threading.Thread(target=self._leave, args=(self.starts,), name="etcdops-fake-leave", daemon=True).start()

    def _say_removed(self) -> None:
        self.say("warn", "server error", error="the member has been permanently removed from the cluster")
        self.say("warn", "data-dir used by this member must be removed")

    def _leave(self, start: int) -> None:
        with self.cluster.changed:
            # It may be what it was asked itself, and etcd answers that first.
            self.cluster.changed.wait_for(lambda: not self.answering or self.state != "running", timeout=1.0)
            self._leaving = False
            if self.state != "running" or self.starts != start:
                return
        self._end(fault=False, grace_s=0.1)

    def _end(self, *, fault: bool = True, grace_s: float | None = None) -> None:
        with self.cluster.changed:
            server, self._server = self._server, None
            if server is not None:
                self.silent.clear()
            self.state = "stopped"
            self.cluster.presence_changed(fault=fault)
        try:
            if server is not None:
                # Without the lock: calls that it breaks off need it to end.
                server.stop(grace_s)
        finally:
            self.silent.set()

    def pause(self) -> None:
        """Freeze it: it accepts connections, and answers nothing."""
        with self.cluster.changed:
            self.cluster.advance()
            if self.state == "running":
                self.state = "paused"
                self.cluster.presence_changed(fault=True)

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

    def catch_up(self, log: Sequence[Op | Change | None]) -> None:
        """Apply what it has not applied yet. Holds the cluster's lock."""
        for op in log[self.applied :]:
            self.applied += 1
            if isinstance(op, Change) and self.applied > self.joined_at:
                self.view.apply(op)
            if op is None or isinstance(op, Change):
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
