"""The watches of a run: one through each member over the whole key space, recorded until they are told to end."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from etcdops.answers import WatchBatch
from etcdops.errors import EtcdError
from etcdops.spec import Tls
from etcdops.wire import AsyncConnection, AsyncWatch, Compacted
from etcdops.workload.deliveries import Delivery, EventsWriter
from etcdops.workload.plan import Watched

__all__ = ["ALL_KEYS", "MemberWatch", "keep_all", "until_reached"]

#: The range of all keys that there can be.
ALL_KEYS = (b"\0", b"\0")
_OPEN_S = 1.0
_BACK_OFF_S = 0.05
#: How often a watch is asked how far it is, and after how long without an answer it is opened anew: a connection that
#: was cut without a word looks like a member that has nothing to say.
_ASK_S = 0.2
_SILENT_NS = 5_000_000_000
#: Servers with https://github.com/etcd-io/etcd/issues/15220 may confirm a progress before its events.
_CONFIRMED = 3


class MemberWatch:
    """A watch through one member, opened anew from where it broke, until `end`. It never resumes from elsewhere."""

    def __init__(
        self,
        url: str,
        tls: Tls | None,
        writer: EventsWriter,
        start_revision: int,
        *,
        life_s: float,
        span: tuple[bytes, bytes] = ALL_KEYS,
        filters: tuple[str, ...] = (),
    ) -> None:
        self._url = url
        self._tls = tls
        self._writer = writer
        self._span = span
        self._filters = filters
        self._end_at = time.monotonic() + life_s
        self._next_revision = start_revision
        self._watch: AsyncWatch | None = None
        self._heard_ns = 0
        self._asking: asyncio.Task[None] | None = None
        self._confirmations: list[int] = []
        self._lost = False
        self._number = 0
        self.seen = Watched(start_revision - 1)

    async def run(self) -> None:
        """Watch until cancelled, or until what comes next has been compacted."""
        async with AsyncConnection(self._url, self._tls) as connection:
            while not self._lost:
                try:
                    await self._watch_once(connection)
                except EtcdError as error:
                    self.seen.error = str(error)
                    self._lost = isinstance(error, Compacted)
                await asyncio.sleep(_BACK_OFF_S)

    async def _watch_once(self, connection: AsyncConnection) -> None:
        start = self._next_revision
        try:
            watch = await connection.watch(
                *self._span,
                timeout_s=max(1.0, self._end_at - time.monotonic()),
                open_timeout_s=_OPEN_S,
                start_revision=start,
                prev_kv=True,
                progress=True,
                filters=self._filters,
            )
        except Compacted as error:
            self._number += 1
            self._write(Delivery(time.monotonic_ns(), self._number, "ended", error=error.text))
            raise
        self._number += 1
        self.seen.opened += 1
        self._confirmations.clear()
        why = ""
        try:
            self._write(Delivery(time.monotonic_ns(), self._number, "opened", watch.revision, start_revision=start))
            self._heard_ns = time.monotonic_ns()
            self._watch = watch
            async for batch in watch:
                self._take(batch)
            why = f"nothing was heard for {_SILENT_NS // 1_000_000_000} s"
        except EtcdError as error:
            why = error.text
            raise
        except asyncio.CancelledError:
            why = "closed"
            raise
        finally:
            self._watch = None
            watch.cancel()
            self._write(Delivery(time.monotonic_ns(), self._number, "ended", error=why))

    def _write(self, delivery: Delivery) -> None:
        self._writer.append(delivery)

    def _take(self, batch: WatchBatch) -> None:
        self._heard_ns = now_ns = time.monotonic_ns()
        if batch.events:
            self._writer.append(Delivery(now_ns, self._number, "events", batch.revision, events=batch.events))
            # Resumed after the last event, never after a revision that was only confirmed: see _CONFIRMED.
            self.seen.revision = batch.events[-1].kv.mod_revision
            self._next_revision = self.seen.revision + 1
        else:
            self._writer.append(Delivery(now_ns, self._number, "progress", batch.revision))
            self._confirmations = [*self._confirmations[1 - _CONFIRMED :], batch.revision]

    def has_reached(self, revision: int) -> bool:
        """Tell whether all up to `revision` has been delivered: an event of it or a later one, or repeated words."""
        confirmed = len(self._confirmations) == _CONFIRMED and min(self._confirmations) >= revision
        return self.seen.revision >= revision or confirmed

    def ask(self) -> None:
        """Ask the member how far the watch is; give up a watch that has not answered for long."""
        watch = self._watch
        if watch is None:
            return
        if time.monotonic_ns() - self._heard_ns > _SILENT_NS:
            watch.cancel()
        elif self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask(watch))

    async def _ask(self, watch: AsyncWatch) -> None:
        try:
            await watch.request_progress()
        except EtcdError:
            # The one who reads from the watch hears of it too.
            pass

    @property
    def lost(self) -> bool:
        """Whether it can never go on: what comes next has been compacted."""
        return self._lost


async def keep_all(watches: dict[str, MemberWatch]) -> None:
    """Run watches, asking them regularly how far they are, until cancelled. An error of one ends all."""
    running: list[asyncio.Task[Any]] = [asyncio.create_task(watch.run()) for watch in watches.values()]
    try:
        while True:
            await asyncio.sleep(_ASK_S)
            for watch in watches.values():
                watch.ask()
            for task in running:
                if task.done():
                    task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def until_reached(watches: dict[str, MemberWatch], revision: int, timeout_s: float) -> None:
    """Wait until every watch has delivered all up to `revision`, or can never, or the time is over."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if all(watch.lost or watch.has_reached(revision) for watch in watches.values()):
            break
        await asyncio.sleep(0.01)
    for watch in watches.values():
        watch.seen.reached = watch.has_reached(revision)
