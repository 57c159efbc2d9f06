"""The parts of etcd3 0.12.0 that `etcdops.client` replaces: its stubs, its watcher and its lock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etcdops import _etcd3compat, _proto
from etcdops.errors import EtcdError, WaitTimeout
from etcdops.wire import Watch

__all__ = ["Lock", "Stub", "Watcher", "to_bytes"]

etcd3: Any = _etcd3compat.install()

#: A watch is meant to live as long as its user, but no call is without a deadline.
_WATCH_LIFE_S = 365 * 86_400.0


def to_bytes(text: str | bytes) -> bytes:
    """Give a key or value as etcd has it; text is UTF-8."""
    return text.encode() if isinstance(text, str) else text


class Stub:
    """One service's methods as etcd3 calls them, but with a deadline always, and raising EtcdError.

    `send` and `stream` take a path, a request and a deadline in seconds, or None for the client's own.
    """

    def __init__(self, service: str, send: Callable[..., Any], stream: Callable[..., Iterator[Any]]) -> None:
        for path, method in _proto.METHODS.items():
            _, owner, name = path.split("/")
            if owner == f"etcdserverpb.{service}":
                setattr(self, name, self._method(path, send if method.streams == "unary" else stream, method.streams))

    @staticmethod
    def _method(path: str, act: Callable[..., Any], streams: str) -> Callable[..., Any]:
        def method(request: Any, timeout: float | None = None, credentials: Any = None, metadata: Any = None) -> Any:
            # etcd3 streams requests only to renew a lease, one at a time.
            return act(path, next(iter(request)) if streams == "both" else request, timeout)

        return method


class Watcher:
    """Watches for etcd3, each on a stream and a thread of its own.

    etcd3's own shares one thread, which spins while the member is away, forgets `filters` and can wait for ever. A
    callback gets etcd3's WatchResponse for every delivery, and once an EtcdError if the watch breaks; that is the end.
    """

    def __init__(self, open_watch: Callable[..., Watch]) -> None:
        self._open_watch = open_watch
        self._lock = threading.Lock()
        self._watches: dict[int, Watch] = {}
        self._last_id = 0

    def add_callback(
        self,
        key: str | bytes,
        callback: Callable[[Any], object],
        range_end: str | bytes | None = None,
        start_revision: int | None = None,
        progress_notify: bool = False,
        filters: Sequence[int | str] | None = None,
        prev_kv: bool = False,
    ) -> int:
        """Give the number of a watch that the server has confirmed."""
        watch = self._open_watch(
            to_bytes(key),
            to_bytes(range_end or b""),
            timeout_s=_WATCH_LIFE_S,
            start_revision=start_revision or 0,
            prev_kv=prev_kv,
            progress=progress_notify,
            filters=filters or (),
        )
        with self._lock:
            self._last_id += 1
            number = self._last_id
            self._watches[number] = watch
        name = f"etcdops-watch-{number}"
        threading.Thread(target=self._run, args=(number, watch, callback), name=name, daemon=True).start()
        return number

    def cancel(self, watch_id: int) -> None:
        """End a watch; nothing happens if it has ended."""
        with self._lock:
            watch = self._watches.pop(watch_id, None)
        if watch:
            watch.cancel()

    def _run(self, number: int, watch: Watch, callback: Callable[[Any], object]) -> None:
        """Deliver what the watch brings until it ends; the callback's own errors go to threading.excepthook."""
        try:
            while True:
                try:
                    answer = watch.next_message()
                except StopIteration:
                    return
                except EtcdError as error:
                    callback(error)
                    return
                events = [etcd3.events.new_event(event) for event in answer.events]
                callback(etcd3.watch.WatchResponse(answer.header, events))
        finally:
            self.cancel(number)


class Lock(etcd3.Lock):  # type: ignore[misc]  # etcd3 has no types
    """etcd3's lock, able to wait: its own raises TypeError with tenacity 5 and later when another holds the lock."""

    def __enter__(self) -> Lock:
        """Acquire the lock; raise WaitTimeout when that fails, where etcd3 goes on without it."""
        if not self.acquire():
            raise WaitTimeout(
                f"the lock {self.key!r} was not free within 10 s",
                remedy="Find out who holds it, or use acquire(timeout=…).",
            )
        return self

    def acquire(self, timeout: float | None = 10) -> bool:
        """Tell whether the lock was acquired within `timeout` seconds; None waits as long as it takes."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            lease = self.etcd_client.lease(self.ttl)
            held_at = None
            try:
                held_at = self._try(lease)
            finally:
                if self.lease is not lease:
                    self._drop(lease)
            if held_at is None:
                return True
            left = None if end is None else max(end - time.monotonic(), 0.0)
            try:
                self.etcd_client.watch_once(self.key, left, start_revision=held_at + 1, filters=("NOPUT",))
            except etcd3.exceptions.WatchTimedOut:
                return False

    def _try(self, lease: Any) -> int | None:
        """Take the lock if it is free; give the revision at which it was seen held otherwise."""
        client, transactions = self.etcd_client, self.etcd_client.transactions
        free, answers = client.transaction(
            compare=[transactions.create(self.key) == 0],
            success=[transactions.put(self.key, self.uuid, lease=lease)],
            failure=[transactions.get(self.key)],
        )
        if free:
            self.lease = lease
            return None
        [(_, holder)] = answers[0]
        revision: int = holder.response_header.revision
        return revision

    def _drop(self, lease: Any) -> None:
        """Revoke a lease that guards nothing; if its put was applied unknown to us, that goes with it."""
        try:
            lease.revoke()
        except EtcdError:
            # It ends by itself after its time to live.
            pass
