"""Calls to one member on an asyncio loop, for traffic: the thinnest path there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from etcdops import calls
from etcdops.answers import Lease, PutResult, RangeResult
from etcdops.calls import Call
from etcdops.errors import EtcdError
from etcdops.spec import Tls
from etcdops.wire.channel import (
    Stubs,
    aio,
    answer_of,
    channel_options,
    closed_error,
    grpc,
    read_credentials,
    split_url,
    to_error,
)
from etcdops.wire.watching import AsyncWatch

__all__ = ["AsyncConnection"]

T = TypeVar("T")


class AsyncConnection:
    """A connection to one member for traffic, on the running asyncio loop; make it inside a coroutine.

    Like Connection, it sends every call once, with a deadline, and raises EtcdError. Cancelling the task cancels the
    call. The short `connect_timeout_s` of one attempt makes calls to a silent member fail for certain instead of
    waiting; an attempt that follows a failed one is given up to 0.5 s. Give more where a handshake takes longer.
    """

    def __init__(self, endpoint_url: str, tls: Tls | None = None, *, connect_timeout_s: float = 0.1) -> None:
        target, _ = split_url(endpoint_url)
        credentials = read_credentials(endpoint_url, tls)
        options = channel_options(connect_timeout_s)
        self.endpoint = endpoint_url
        self._channel = (
            aio.secure_channel(target, credentials, options=options)
            if credentials
            else aio.insecure_channel(target, options=options)
        )
        self._stubs = Stubs(self._channel)

    async def __aenter__(self) -> AsyncConnection:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection and all calls on it."""
        await self._channel.close()

    async def call(self, call: Call[T], *, timeout_s: float) -> T:
        """Give the answer to `call`."""
        try:
            answer = await self._stubs[call.path](call.request, timeout=float(timeout_s))
        except grpc.RpcError as error:
            raise to_error(error, self.endpoint) from None
        except aio.UsageError:
            raise closed_error(self.endpoint) from None
        return call.read(answer_of(answer, self.endpoint))

    async def put(self, key: bytes, value: bytes, *, timeout_s: float, lease: int = 0) -> PutResult:
        """Set `key`."""
        return await self.call(calls.put(key, value, lease=lease), timeout_s=timeout_s)

    async def range(self, key: bytes, range_end: bytes = b"", *, timeout_s: float, **options: Any) -> RangeResult:
        """Read `key`, or all keys in `[key, range_end)`; options as for `calls.range`."""
        return await self.call(calls.range(key, range_end, **options), timeout_s=timeout_s)

    async def lease_keep_alive(self, lease_id: int, *, timeout_s: float) -> Lease:
        """Renew a lease once."""
        call = calls.lease_keep_alive(lease_id)
        try:
            stream = self._stubs[call.path](timeout=float(timeout_s))
            try:
                await stream.write(call.request)
                answer = await stream.read()
            finally:
                stream.cancel()
        except grpc.RpcError as error:
            raise to_error(error, self.endpoint) from None
        except aio.UsageError:
            raise closed_error(self.endpoint) from None
        if answer is aio.EOF:
            raise EtcdError("UNAVAILABLE", "the stream ended without an answer", endpoint=self.endpoint)
        return call.read(answer)

    async def watch(
        self,
        key: bytes,
        range_end: bytes = b"",
        *,
        timeout_s: float,
        open_timeout_s: float = 5.0,
        start_revision: int = 0,
        prev_kv: bool = False,
        progress: bool = False,
        filters: Sequence[str] = (),
    ) -> AsyncWatch:
        """Give a watch that the server has confirmed; see `Connection.watch`."""
        request = calls.watch_create(
            key, range_end, start_revision=start_revision, prev_kv=prev_kv, progress=progress, filters=filters
        )
        try:
            stream = self._stubs["/etcdserverpb.Watch/Watch"](timeout=float(timeout_s))
        except aio.UsageError:
            raise closed_error(self.endpoint) from None
        watch = AsyncWatch(stream, self.endpoint)
        await watch.open(request, open_s=open_timeout_s)
        return watch
