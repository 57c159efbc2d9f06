"""One member of a cluster: start, stop, kill, pause and resume it, and read its log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from etcdops.errors import MemberFailed, RuntimeUnavailable, SpecError
from etcdops.foreign import refuse_foreign
from etcdops.logs import LogLine, read_log
from etcdops.runtimes.base import CanKill, CanPause, MemberState

if TYPE_CHECKING:
    from etcdops.answers import Status
    from etcdops.cluster import Cluster
    from etcdops.state import MemberRecord

__all__ = ["Member"]

#: More than etcd's own limit for one request (5 s + 2 election timeouts), so a leader has time to hand over.
_STOP_S = 30.0


class Member:
    """One member of a cluster, as `cluster.member("thor")` gives it.

    >>> with Cluster.create() as cluster:
    ...     thor = cluster.member("thor")
    ...     thor.kill()
    ...     print(thor.state())
    ...     thor.start()
    ...     print(thor.state())
    stopped
    running
    """

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name

    def __repr__(self) -> str:
        return f"<Member {self.name} of {self.cluster.name}>"

    @property
    def record(self) -> MemberRecord:
        """What is recorded about this member."""
        return self.cluster.record.member(self.name)

    @property
    def client_url(self) -> str:
        """The URL at which clients on this machine reach it."""
        return self.record.client_url

    def state(self) -> MemberState:
        """Look what it does: "running", "paused", "isolated" (it runs, but is off a network) or "stopped"."""
        return self.cluster.runtime.states(self.cluster.record)[self.name]

    def status(self, *, timeout_s: float = 1.0) -> Status:
        """Ask it for its status; raises EtcdError when it does not answer within `timeout_s` seconds."""
        from etcdops import wire

        with wire.Connection(self.client_url, self.cluster.record.spec.tls) as connection:
            return connection.status(timeout_s=timeout_s)

    def start(self, *, wait_s: float = 30.0) -> None:
        """Start it if it does not run, let it go on if it is frozen, and wait until it serves linearizable reads.

        Without a quorum no member serves them: with `wait_s` 0 nothing is waited for. Raises Refused when something
        else listens on a port of its, MemberFailed with the log lines that matter when it dies, WaitTimeout when it
        does not serve in time.
        """
        cluster = self.cluster
        self._refuse_foreign("start")
        with self._lock("start"):
            cluster.save(cluster.runtime.adopt(cluster.record))
            state = self.state()
            if state == "stopped":
                cluster.start_members([self.name])
            elif state == "paused":
                self.resume()
        if wait_s:
            cluster.wait_serving([self.name], timeout_s=wait_s)

    def stop(self, *, timeout_s: float = _STOP_S) -> None:
        """Ask it to end (SIGTERM) and wait until it has; kill it after `timeout_s` seconds.

        A leader hands its leadership over first, so this is no failure: see `kill`. It is wanted stopped from then on:
        `heal` leaves it alone, and `start` or `up` bring it back.
        """
        self._refuse_foreign("stop")
        with self._lock("stop"):
            self._wanted("stopped")
            self.cluster.runtime.stop(self.cluster.record, [self.name], timeout_s=timeout_s)

    def kill(self) -> None:
        """Kill it (SIGKILL), as a crash would, and wait until it is gone. That is a fault: `heal` brings it back."""
        self._refuse_foreign("kill")
        runtime = self.cluster.runtime
        if not isinstance(runtime, CanKill):
            raise RuntimeUnavailable(f"the runtime {runtime.name} cannot kill a member")
        with self._lock("kill"):
            runtime.kill(self.record)

    def pause(self) -> None:
        """Freeze it: it keeps its memory and its connections, and does nothing."""
        self._refuse_foreign("freeze")
        self._pauser().pause(self.record)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._refuse_foreign("thaw")
        self._pauser().resume(self.record)

    def _refuse_foreign(self, act: str) -> None:
        refuse_foreign(self.cluster.record, f"member.{act} {self.name}", target=self.name)

    def _pauser(self) -> CanPause:
        runtime = self.cluster.runtime
        if not isinstance(runtime, CanPause):
            raise RuntimeUnavailable(f"the runtime {runtime.name} cannot freeze a member")
        if self.state() == "stopped":
            raise MemberFailed(f"member {self.name} does not run", remedy="Start it first.")
        return runtime

    def logs(self, *, since: datetime | None = None, last: int | None = None) -> Iterator[LogLine]:
        """Give what it has logged, oldest first: lines from `since` on, and of those the `last` ones.

        A `since` without a time zone is in this machine's. Raises SpecError for a negative `last`.
        """
        if last is not None and last < 0:
            raise SpecError(f"{last} lines cannot be given")
        start = since.astimezone() if since else None
        lines = [line for line in read_log(self.cluster.runtime, self.record) if start is None or line.time >= start]
        return iter(lines[len(lines) - last :] if last is not None and last < len(lines) else lines)

    def _lock(self, act: str) -> AbstractContextManager[None]:
        return self.cluster.locked(f"{act} {self.name} of {self.cluster.name}")

    def _wanted(self, wanted: str) -> None:
        self.cluster.save(
            self.cluster.record.with_member(msgspec.structs.replace(self.record, wanted=wanted)),
        )
