"""One thing done on many hosts at the same time: each with a time limit of its own, none waiting for a dead one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from etcdops.errors import EtcdopsError, WaitTimeout
from etcdops.remote.host import SSHHost
from etcdops.remote.inventory import Inventory

__all__ = ["Hosts", "Outcome", "fan_out", "told_together"]

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What came of it on one host: a `value`, or the `error` for which there is none; and how long that took."""

    value: T | None
    error: EtcdopsError | None
    took_s: float

    def checked(self) -> T:
        """Give the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # without an error there is one, and it may well be None


def fan_out(hosts: Sequence[SSHHost], work: Callable[[SSHHost], T], *, timeout_s: float) -> dict[str, Outcome[T]]:
    """Do `work` on every host at the same time, and give what came of it, by the host's name.

    An EtcdopsError is that host's outcome, and the others go on. So is WaitTimeout after `timeout_s` seconds; the
    connection to that host is closed then. Any other exception is raised once every host is done.
    """
    jobs = [_Job(host, work) for host in hosts]
    deadline = time.monotonic() + timeout_s
    try:
        for job in jobs:
            job.thread.start()
        for job in jobs:
            job.thread.join(max(deadline - time.monotonic(), 0.0))
    except BaseException:
        for job in jobs:
            job.host.abort()
        raise
    outcomes = {job.host.name: job.outcome(timeout_s) for job in jobs}
    for job in jobs:
        if job.failed is not None:
            raise job.failed
    return outcomes


def told_together(said: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """Give several messages with their remedies as one message and one remedy: each remedy is below its message.

    What is to be done about all of them is said once, at the end.
    """
    pairs = list(dict.fromkeys(said))
    *first, (message, remedy) = pairs
    alike = len({each for _, each in pairs}) == 1
    lines = [text if alike or not todo else f"{text}\n  -> {todo}" for text, todo in first]
    return "\n".join([*lines, message]), remedy


class _Job(Generic[T]):
    def __init__(self, host: SSHHost, work: Callable[[SSHHost], T]) -> None:
        self.host = host
        self.failed: BaseException | None = None
        self._work = work
        self._outcome: Outcome[T] | None = None
        # A thread that waits for what never comes, an answer of a name server, say, must not keep us from ending.
        self.thread = threading.Thread(target=self._run, daemon=True, name=f"host-{host.name}")

    def _run(self) -> None:
        began = time.monotonic()
        try:
            value = self._work(self.host)
            self._outcome = Outcome(value, None, time.monotonic() - began)
        except EtcdopsError as error:
            self._outcome = Outcome(None, error, time.monotonic() - began)
        except BaseException as error:
            self.failed = error

    def outcome(self, timeout_s: float) -> Outcome[T]:
        """Give what came of it; the time limit is over."""
        if self._outcome is not None:
            return self._outcome
        self.host.abort()
        late = WaitTimeout(
            f"host {self.host.name} was not done within {timeout_s:.0f} s",
            remedy="See whether it answers: `hosts.check`.",
        )
        return Outcome(None, late, timeout_s)


class Hosts:
    """The hosts of an inventory, with their connections, which end with the block."""

    def __init__(
        self, inventory: Inventory, *, connect_timeout_s: float | None = None, accept_new_host_keys: bool = False
    ) -> None:
        self.inventory = inventory
        self._hosts = {
            spec.name: SSHHost(spec, connect_timeout_s=connect_timeout_s, accept_new_host_keys=accept_new_host_keys)
            for spec in inventory.hosts
        }

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[SSHHost]:
        return iter(self._hosts.values())

    def __len__(self) -> int:
        return len(self._hosts)

    def __getitem__(self, name: str) -> SSHHost:
        """Give a host by its name; raises SpecError for one that is not there."""
        return self._hosts[self.inventory.host(name).name]

    def each(self, work: Callable[[SSHHost], T], *, timeout_s: float) -> dict[str, Outcome[T]]:
        """Do `work` on every host at the same time; see `fan_out`."""
        return fan_out(list(self), work, timeout_s=timeout_s)

    def close(self) -> None:
        """Let go of all connections."""
        for host in self:
            host.close()
