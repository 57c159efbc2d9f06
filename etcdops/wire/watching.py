"""Watches: blocking and with asyncio. Neither ever resumes by itself, and neither ever hangs."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from etcdops import _proto, answers
from etcdops.answers import WatchBatch
from etcdops.errors import EtcdError
from etcdops.wire.channel import aio, closed_error, grpc, to_error

__all__ = ["AsyncWatch", "Compacted", "Watch"]


class Compacted(EtcdError):
    """A watch cannot start, or go on, where it should: history before `compact_revision` is gone."""

    def __init__(self, compact_revision: int, *, endpoint: str) -> None:
        super().__init__(
            "OUT_OF_RANGE",
            f"etcdserver: mvcc: required revision has been compacted, up to {compact_revision}",
            endpoint=endpoint,
            definite=True,
            remedy=f"Read the keys anew, then watch from revision {compact_revision} or later.",
        )
        self.compact_revision = compact_revision


def _cancelled(answer: Any, endpoint: str) -> EtcdError:
    """Give the error that says why the server cancelled a watch."""
    if answer.compact_revision:
        return Compacted(answer.compact_revision, endpoint=endpoint)
    return EtcdError("CANCELLED", answer.cancel_reason or "the server cancelled the watch", endpoint=endpoint)


def _unconfirmed(endpoint: str) -> EtcdError:
    return EtcdError("DEADLINE_EXCEEDED", "the server did not confirm the watch in time", endpoint=endpoint)


def _ended(endpoint: str) -> EtcdError:
    return EtcdError("UNAVAILABLE", "the server ended the watch", endpoint=endpoint)


def _progress_request() -> Any:
    return _proto.WatchRequest(progress_request=_proto.WatchProgressRequest())


class Watch:
    """A watch: iterate over its batches in any one thread; `cancel()` from any other ends the iteration.

    When the stream breaks, its deadline passes or the server cancels it, the iteration raises EtcdError; a start before
    the compacted revision is the EtcdError Compacted.
    """

    def __init__(
        self,
        start: Callable[[Iterator[Any]], Any],
        create: Any,
        endpoint: str,
        *,
        open_s: float,
        fail: Callable[[Any], EtcdError],
        on_end: Callable[[], None],
    ) -> None:
        self.endpoint = endpoint
        self._fail = fail
        self._on_end = on_end
        self._cancelled = False
        self._late = False
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._requests.put(create)
        try:
            self._stream = start(iter(self._requests.get, None))
        except ValueError:
            on_end()
            raise closed_error(endpoint) from None
        # The end lets go of the thread in which gRPC waits for our next request.
        if not self._stream.add_callback(self._let_go):
            self._let_go()
        timer = threading.Timer(open_s, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            #: The store's revision when the server opened the watch.
            self.revision: int = self.next_message().header.revision
        except BaseException:
            self._stream.cancel()
            raise
        finally:
            timer.cancel()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[WatchBatch]:
        return self

    def __next__(self) -> WatchBatch:
        return answers.read_events(self.next_message())

    def cancel(self) -> None:
        """End the watch, and the iteration over it."""
        self._cancelled = True
        self._stream.cancel()

    def request_progress(self) -> None:
        """Ask how far the watch is: a batch without events follows when all before its revision was delivered.

        Servers before 3.4.25 and 3.5.8 may answer too early (https://github.com/etcd-io/etcd/issues/15220).
        """
        self._requests.put(_progress_request())

    def _let_go(self) -> None:
        self._requests.put(None)
        self._on_end()

    def _give_up(self) -> None:
        self._late = True
        self._stream.cancel()

    def next_message(self) -> Any:
        """Give etcd's next message as it is; raise StopIteration after `cancel()`, EtcdError if none comes."""
        try:
            answer = next(self._stream)
        except StopIteration:
            if self._cancelled:
                raise
            raise _ended(self.endpoint) from None
        except grpc.RpcError as error:
            if self._cancelled:
                raise StopIteration from None
            raise (_unconfirmed(self.endpoint) if self._late else self._fail(error)) from None
        if answer.canceled:
            self._stream.cancel()
            raise _cancelled(answer, self.endpoint)
        return answer


class AsyncWatch:
    """A watch on an asyncio loop: `async for batch in watch`. It behaves as `Watch` does."""

    def __init__(self, stream: Any, endpoint: str) -> None:
        self.endpoint = endpoint
        self.revision = 0
        self._cancelled = False
        self._stream = stream

    async def open(self, create: Any, *, open_s: float) -> None:
        """Send the request and wait for the server's confirmation."""
        try:
            await self._write(create)
            self.revision = (await asyncio.wait_for(self._next(), open_s)).header.revision
        except BaseException as error:
            self._stream.cancel()
            if isinstance(error, asyncio.TimeoutError):
                raise _unconfirmed(self.endpoint) from None
            raise

    async def __aenter__(self) -> AsyncWatch:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.cancel()

    def __aiter__(self) -> AsyncWatch:
        return self

    async def __anext__(self) -> WatchBatch:
        return answers.read_events(await self._next())

    def cancel(self) -> None:
        """End the watch, and the iteration over it."""
        self._cancelled = True
        self._stream.cancel()

    async def request_progress(self) -> None:
        """Ask how far the watch is; see `Watch.request_progress`."""
        await self._write(_progress_request())

    async def _write(self, request: Any) -> None:
        try:
            await self._stream.write(request)
        except grpc.RpcError as error:
            raise to_error(error, self.endpoint) from None
        except asyncio.InvalidStateError:
            raise _ended(self.endpoint) from None

    async def _next(self) -> Any:
        try:
            answer = await self._stream.read()
        except grpc.RpcError as error:
            if self._cancelled:
                raise StopAsyncIteration from None
            raise to_error(error, self.endpoint) from None
        except asyncio.CancelledError:
            # grpc raises this for a stream that was cancelled, as asyncio does for a task.
            if self._cancelled:
                raise StopAsyncIteration from None
            raise
        if answer is aio.EOF:
            if self._cancelled:
                raise StopAsyncIteration
            raise _ended(self.endpoint)
        if answer.canceled:
            self._stream.cancel()
            raise _cancelled(answer, self.endpoint)
        return answer
