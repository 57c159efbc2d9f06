"""The watches on one stream of a member in memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from etcdops import _proto
from etcdops.answers import Event
from etcdops.errors import EtcdError
from etcdops.fake.messages import kv_message
from etcdops.ops import in_range
from etcdops.wire import ServerStream

if TYPE_CHECKING:
    from etcdops.fake.member import FakeMember

__all__ = ["WatchStream"]

_PUT, _DELETE = 0, 1


class _Watch(NamedTuple):
    """A watch, and the next revision that it has to look at."""

    first: bytes
    after: bytes | None
    next_revision: int
    prev_kv: bool
    without: frozenset[str]

    def wants(self, event: Event) -> bool:
        key = event.kv.key
        return self.first <= key and (self.after is None or key < self.after) and event.kind not in self.without

    @property
    def is_partial(self) -> bool:
        return self.first > b"\0" or self.after is not None or bool(self.without)


class WatchStream:
    """Iterate over it for the messages of one call to Watch, which may hold many watches."""

    def __init__(self, member: FakeMember, stream: ServerStream, start: int, header: Callable[..., Any]) -> None:
        self._member = member
        self._changed = member.cluster.changed
        self._stream = stream
        self._start = start
        self._header = header
        self._watches: dict[int, _Watch] = {}
        self._requests: deque[Any] = deque()
        self._next_id = 0
        self._sent = 0
        stream.on_end(self._wake)
        threading.Thread(target=self._read, name="etcdops-fake-watch", daemon=True).start()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _read(self) -> None:
        for request in self._stream:
            with self._changed:
                self._requests.append(request)
                self._changed.notify_all()

    def __iter__(self) -> Iterator[Any]:
        while True:
            with self._changed:
                while not (messages := self._messages()):
                    if not self._stream.active:
                        return
                    self._member.cluster.nap(60.0)
                    self._member.cluster.advance()
            yield from messages

    def _messages(self) -> list[Any]:
        """Give what is to be sent now, in order. Holds the lock."""
        self._member.wait_thawed(self._start)
        messages = []
        while self._requests:
            messages += self._handle(self._requests.popleft())
        for watch_id, watch in list(self._watches.items()):
            messages += self._fresh(watch_id, watch)
        return messages

    def _handle(self, request: Any) -> list[Any]:
        kind = request.WhichOneof("request_union")
        if kind == "create_request":
            return self._create(request.create_request)
        if kind == "cancel_request":
            watch_id = request.cancel_request.watch_id
            if self._watches.pop(watch_id, None) is None:
                return []
            return [_proto.WatchResponse(header=self._header(), watch_id=watch_id, canceled=True)]
        # Progress is told once every watch is up to date. -1 stands for all of them.
        fresh = [message for item in list(self._watches.items()) for message in self._fresh(*item)]
        return [*fresh, _proto.WatchResponse(header=self._header(), watch_id=-1)]

    def _create(self, create: Any) -> list[Any]:
        watch_id = create.watch_id
        while not create.watch_id and (watch_id := self._next_id) in self._watches:
            self._next_id += 1
        created = _proto.WatchResponse(header=self._header(), watch_id=watch_id, created=True)
        if watch_id in self._watches:
            created.canceled = True
            created.cancel_reason = "mvcc: duplicate watch ID provided on the WatchStream"
            return [created]
        self._watches[watch_id] = _Watch(
            *in_range(create.key or b"\0", create.range_end),
            next_revision=create.start_revision or self._member.model.revision + 1,
            prev_kv=create.prev_kv,
            without=frozenset({_PUT: "put", _DELETE: "delete"}[kind] for kind in create.filters),
        )
        return [created]

    def _fresh(self, watch_id: int, watch: _Watch) -> list[Any]:
        """Give the messages, one a revision, that bring a watch up to date; the last may be that it is cancelled."""
        model = self._member.model
        messages: list[Any] = []
        for revision in range(watch.next_revision, model.revision + 1):
            try:
                wanted = [event for event in model.events(revision) if watch.wants(event)]
            except EtcdError:
                del self._watches[watch_id]
                cancelled = _proto.WatchResponse(
                    header=self._header(), watch_id=watch_id, canceled=True, compact_revision=model.compacted
                )
                return [*messages, cancelled]
            events = [self._event(event, watch) for event in wanted if not self._is_dropped(watch)]
            if events:
                header = self._header(revision)
                messages.append(_proto.WatchResponse(header=header, watch_id=watch_id, events=events))
        self._watches[watch_id] = watch._replace(next_revision=max(watch.next_revision, model.revision + 1))
        return messages

    def _is_dropped(self, watch: _Watch) -> bool:
        every = self._member.cluster.lies.drop_every
        if not (every and watch.is_partial):
            return False
        self._sent += 1
        return self._sent % every == 0

    @staticmethod
    def _event(event: Event, watch: _Watch) -> Any:
        kv = kv_message(event.kv)
        if event.kind == "delete":
            kv = _proto.KeyValue(key=event.kv.key, mod_revision=event.kv.mod_revision)
        prev_kv = kv_message(event.prev_kv) if watch.prev_kv and event.prev_kv else None
        return _proto.Event(type=_DELETE if event.kind == "delete" else _PUT, kv=kv, prev_kv=prev_kv)
