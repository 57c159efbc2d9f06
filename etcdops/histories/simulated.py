"""A member of a simulated cluster: what it has applied, and what its watch has delivered."""

from __future__ import annotations

from random import Random

from etcdops.model import Model
from etcdops.verify.recorded import State
from etcdops.workload.deliveries import Delivery

__all__ = ["SimulatedMember"]


class SimulatedMember:
    """It applies what is agreed when it is told to. `applying` and `delivering` say that it will be."""

    def __init__(self, name: str, base: State, rng: Random, lag_ns: float, reopen: float) -> None:
        self.name = name
        self.model = Model.at(base.revision, base.kvs)
        self.lag_ms = lag_ns / 1e6
        self.dead = self.applying = self.delivering = self.watching = False
        #: How often it has been started.
        self.lives = 1
        self.deliveries: list[Delivery] = []
        self._base = base
        self._rng = rng
        self._reopen = reopen
        self._watches = 0
        # All up to it has been delivered.
        self._delivered = base.revision

    def catch_up(self, leader: Model, most: int = 0) -> None:
        """Apply what the leader has: all of it, or `most` revisions."""
        last = min(leader.revision, self.model.revision + most) if most else leader.revision
        for revision in range(self.model.revision + 1, last + 1):
            self.model.commit(leader.events(revision))

    def kill(self, t_ns: int) -> None:
        """End it; its watch breaks."""
        self.dead = True
        self._break(t_ns, "Socket closed")

    def restart(self, leader: Model) -> None:
        """Start it again. It may have to apply again what it had applied before."""
        self.dead = False
        self.lives += 1
        revision = max(self._base.revision, self.model.revision - self._rng.randrange(4))
        self.model = Model.at(self._base.revision, self._base.kvs)
        if revision > self._base.revision:
            self.catch_up(leader, revision - self._base.revision)

    def open_watch(self, t_ns: int) -> None:
        """Begin to watch where the watch before it ended."""
        self._watches += 1
        self.watching = True
        opened = Delivery(t_ns, self._watches, "opened", self.model.revision, self._delivered + 1)
        self.deliveries.append(opened)

    def deliver(self, t_ns: int) -> bool:
        """Deliver what is new, in one message or several; tell whether the watch broke and is to be opened again."""
        rng = self._rng
        while self.watching and self._delivered < self.model.revision:
            first, newest = self._delivered + 1, self.model.revision
            last = rng.randint(first, newest) if rng.random() < 0.5 else first
            events = tuple(event for r in range(first, last + 1) for event in self.model.events(r))
            revision = rng.choice((last, newest))
            self.deliveries.append(Delivery(t_ns, self._watches, "events", revision, events=events))
            self._delivered = last
            if rng.random() < self._reopen:
                self._break(t_ns, "RST_STREAM")
                return True
        if self.watching and rng.random() < 0.1 and self._delivered == self.model.revision:
            self.deliveries.append(Delivery(t_ns, self._watches, "progress", self._delivered))
        return False

    def _break(self, t_ns: int, error: str) -> None:
        if self.watching:
            self.deliveries.append(Delivery(t_ns, self._watches, "ended", error=error))
            self.watching = False
