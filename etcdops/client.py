"""The etcd3 client that people know, with its traps removed.

`Client` is an `etcd3.Etcd3Client` and has its whole API (https://python-etcd3.readthedocs.io/). What differs:

- Every call has a deadline, 5 s unless told otherwise: `with client.deadline(0.5): client.put(…)`.
- Every failure is an `EtcdError` that keeps the endpoint, gRPC's code and the server's words.
- `limit`, `revision`, `count_only` and the like are honoured; etcd3 ignores them without a word.
- Prefixes that end in 0xff work, and so does the empty one.
- A watch that breaks raises; it neither spins nor waits for ever. Locks can be waited for.
- User and password work without TLS; an expired token is renewed.
- What etcd3 lacks is there: full status, HashKV, learners, handing over leadership, alarms one by one.

This imports grpc and etcd3, which takes 0.15 s: import it where it is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from etcdops import calls
from etcdops._etcd3fixes import Lock, Stub, Watcher, etcd3, to_bytes
from etcdops.answers import Alarm, HashKV, MemberInfo
from etcdops.errors import EtcdError, SpecError
from etcdops.spec import Tls
from etcdops.wire import Connection, Watch

__all__ = ["Client", "ClientStatus", "WatchTimedOut", "connect", "read_any"]

T = TypeVar("T")

# `etcd3.client` itself is a function.
_KV_METADATA: Any = import_module("etcd3.client").KVMetadata

#: What `watch_once` and its like raise when nothing happened in time: etcd3's own, which knows no endpoint.
WatchTimedOut: Any = etcd3.exceptions.WatchTimedOut

_DEADLINES: ContextVar[Mapping[int, float]] = ContextVar("etcdops_deadlines")
_READ_ONLY: ContextVar[bool] = ContextVar("etcdops_read_only", default=False)

#: What `read_any` may send: calls that change nothing.
_READS = frozenset(
    {
        "/etcdserverpb.KV/Range",
        "/etcdserverpb.Cluster/MemberList",
        "/etcdserverpb.Lease/LeaseTimeToLive",
        "/etcdserverpb.Lease/LeaseLeases",
        "/etcdserverpb.Maintenance/Hash",
        "/etcdserverpb.Maintenance/HashKV",
        "/etcdserverpb.Maintenance/Status",
    }
)


class ClientStatus(NamedTuple):
    """One member's answer about itself: etcd3's five fields first, then the rest. Sizes are in bytes.

    `leader` is etcd3's Member, or None when the member knows of no leader; `leader_id` is 0 then. `db_size_quota` is 0
    where the server does not say (before 3.6).
    """

    version: str
    db_size: int
    leader: Any
    raft_index: int
    raft_term: int
    member_id: int
    cluster_id: int
    leader_id: int
    db_size_in_use: int
    raft_applied_index: int
    revision: int
    errors: tuple[str, ...]
    is_learner: bool
    db_size_quota: int = 0


def connect(
    endpoint_url: str,
    tls: Tls | None = None,
    timeout_s: float = 5.0,
    user: str | None = None,
    password: str | None = None,
) -> Client:
    """Give a client of the member at `endpoint_url`, such as "http://127.0.0.1:2379". https needs `tls`.

    With `user` and `password` it authenticates at once, and raises EtcdError if that fails.
    """
    return Client(endpoint_url, tls, timeout_s=timeout_s, user=user, password=password)


def _prefix(prefix: str | bytes) -> tuple[bytes, bytes]:
    """Give the key range that holds all keys with `prefix`."""
    key = to_bytes(prefix)
    # etcd refuses the empty key; this is the first that there can be.
    return key or b"\0", calls.prefix_end(key)


class Client(etcd3.Etcd3Client):  # type: ignore[misc]  # etcd3 has no types
    """etcd3's client of one member, at `endpoint_url`. Threads may share it.

    `timeout_s` is each call's deadline. `keepalive_s` is how long a member may be silent before it is asked for a sign
    of life; half that time later open watches raise. etcd tolerates 5 s and more. `wire` is the connection below.
    """

    channel: Any
    kvstub: Any
    leasestub: Any

    def __init__(
        self,
        endpoint_url: str,
        tls: Tls | None = None,
        *,
        timeout_s: float = 5.0,
        user: str | None = None,
        password: str | None = None,
        keepalive_s: float = 10.0,
    ) -> None:
        if (user is None) != (password is None):
            raise SpecError("a user needs a password, and a password a user")
        self.wire = Connection(endpoint_url, tls, keepalive_s=keepalive_s)
        url = urlsplit(endpoint_url)
        super().__init__(host=url.hostname, port=url.port, timeout=timeout_s)
        # etcd3's own channel has neither our options nor our error mapping; it was never connected.
        self.channel.close()
        self.channel = self.wire
        self.uses_secure_channel = url.scheme == "https"
        self.kvstub = Stub("KV", self._send, self._stream)
        self.leasestub = Stub("Lease", self._send, self._stream)
        self.clusterstub = Stub("Cluster", self._send, self._stream)
        self.maintenancestub = Stub("Maintenance", self._send, self._stream)
        self.auth_stub = Stub("Auth", self._send, self._stream)
        self.watcher = Watcher(self._open_watch)
        self._user = (user, password) if user is not None and password is not None else None
        if self._user:
            self.wire.login(*self._user, timeout_s=self.timeout)

    @property
    def endpoint(self) -> str:
        """The client URL that this talks to."""
        return self.wire.endpoint

    @property
    def timeout(self) -> float:
        """The deadline in seconds of the next call; setting it changes the client's own."""
        return _DEADLINES.get({}).get(id(self), self._timeout_s)

    @timeout.setter
    def timeout(self, timeout_s: float) -> None:
        self._timeout_s = _positive(timeout_s)

    @contextmanager
    def deadline(self, timeout_s: float) -> Iterator[Client]:
        """Give every call in the block a deadline of `timeout_s`, in this thread or asyncio task only."""
        token = _DEADLINES.set({**_DEADLINES.get({}), id(self): _positive(timeout_s)})
        try:
            yield self
        finally:
            _DEADLINES.reset(token)

    def close(self) -> None:
        """End the connection; open watches raise EtcdError, so that nobody waits for them any longer."""
        self.wire.close()

    # What all of etcd3's methods go through.

    def _as_user(self, path: str, act: Callable[[], T]) -> T:
        """Give what `act` gives; if etcd refuses the token, as it does after a restart, with a new one."""
        if _READ_ONLY.get() and path not in _READS:
            raise SpecError(f"{path} may change something, and `read_any` repeats what it is given: reads only")
        try:
            return act()
        except EtcdError as error:
            # The refusal came before anything was done, so this is no repeated write.
            if not self._user or error.code != "UNAUTHENTICATED" or not error.definite:
                raise
        self.wire.login(*self._user, timeout_s=self.timeout)
        return act()

    def _send(self, path: str, request: Any, timeout_s: float | None) -> Any:
        return self._as_user(path, lambda: self.wire.send(path, request, timeout_s=timeout_s or self.timeout))

    def _stream(self, path: str, request: Any, timeout_s: float | None) -> Iterator[Any]:
        if _READ_ONLY.get():
            raise SpecError(f"{path} streams, and `read_any` repeats what it is given: single answers only")
        return self.wire.stream(path, request, timeout_s=timeout_s or self.timeout)

    def _call(self, call: calls.Call[T]) -> T:
        return self._as_user(call.path, lambda: self.wire.call(call, timeout_s=self.timeout))

    def _open_watch(self, *args: Any, **options: Any) -> Watch:
        path = "/etcdserverpb.Watch/Watch"
        return self._as_user(path, lambda: self.wire.watch(*args, open_timeout_s=self.timeout, **options))

    # Reading keys: etcd3 drops most options, and computes some prefixes wrongly.

    def _build_get_range_request(
        self,
        key: str | bytes,
        range_end: str | bytes | None = None,
        *,
        limit: int | None = None,
        revision: int | None = None,
        count_only: bool | None = None,
        min_mod_revision: int | None = None,
        max_mod_revision: int | None = None,
        min_create_revision: int | None = None,
        max_create_revision: int | None = None,
        **options: Any,
    ) -> Any:
        request = super()._build_get_range_request(key, range_end, **options)
        request.limit = limit or 0
        request.revision = revision or 0
        request.count_only = bool(count_only)
        request.min_mod_revision = min_mod_revision or 0
        request.max_mod_revision = max_mod_revision or 0
        request.min_create_revision = min_create_revision or 0
        request.max_create_revision = max_create_revision or 0
        return request

    def _range(self, key: str | bytes, range_end: str | bytes | None = None, **options: Any) -> Any:
        return self.kvstub.Range(self._build_get_range_request(key, range_end, **options))

    def get_response(self, key: str | bytes, **options: Any) -> Any:
        """Read one key: etcd's own answer. Options: serializable, revision, keys_only, count_only and others."""
        return self._range(key, **options)

    def get(self, key: str | bytes, **options: Any) -> tuple[Any, Any]:
        """Give a key's value and etcd3's KVMetadata, or (None, None) if it does not exist."""
        return next(self._pairs(self.get_response(key, **options), options), (None, None))

    def get_prefix_response(self, key_prefix: str | bytes, **options: Any) -> Any:
        """Read all keys with a prefix: etcd's own answer, with `count` and `more`."""
        return self._range(*_prefix(key_prefix), **options)

    def get_prefix(self, key_prefix: str | bytes, **options: Any) -> Iterator[tuple[Any, Any]]:
        """Give (value, KVMetadata) of all keys with a prefix; limit, revision, sort_order and others are honoured."""
        return self._pairs(self.get_prefix_response(key_prefix, **options), options)

    def get_range_response(self, range_start: str | bytes, range_end: str | bytes, **options: Any) -> Any:
        """Read the keys in `[range_start, range_end)`: etcd's own answer, with `count` and `more`."""
        return self._range(range_start, range_end, **options)

    def get_range(self, range_start: str | bytes, range_end: str | bytes, **options: Any) -> Iterator[tuple[Any, Any]]:
        """Give (value, KVMetadata) of the keys in `[range_start, range_end)`."""
        return self._pairs(self.get_range_response(range_start, range_end, **options), options)

    def get_all_response(self, **options: Any) -> Any:
        """Read all keys: etcd's own answer."""
        return self._range(*_prefix(b""), **options)

    def get_all(self, **options: Any) -> Iterator[tuple[Any, Any]]:
        """Give (value, KVMetadata) of all keys."""
        return self._pairs(self.get_all_response(**options), options)

    def _pairs(self, answer: Any, options: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
        if options.get("count_only"):
            raise SpecError(
                "count_only reads no keys, so there are none to give",
                remedy="Use get_response, get_prefix_response or get_range_response: their answer has `count`.",
            )
        return iter([(kv.value, _KV_METADATA(kv, answer.header)) for kv in answer.kvs])

    def delete_prefix(self, prefix: str | bytes) -> Any:
        """Delete all keys with a prefix; the answer's `deleted` counts them."""
        key, range_end = _prefix(prefix)
        return self.kvstub.DeleteRange(self._build_delete_request(key, range_end=range_end))

    # Watching.

    def add_watch_prefix_callback(
        self, key_prefix: str | bytes, callback: Callable[[Any], object], **options: Any
    ) -> int:
        """Call `callback` with every delivery for a prefix, and once with an EtcdError if the watch breaks."""
        key, range_end = _prefix(key_prefix)
        number: int = self.add_watch_callback(key, callback, range_end=range_end, **options)
        return number

    def watch_prefix_response(self, key_prefix: str | bytes, **options: Any) -> Any:
        """Give an iterator over deliveries for a prefix, and what cancels it."""
        key, range_end = _prefix(key_prefix)
        return self.watch_response(key, range_end=range_end, **options)

    def watch_prefix(self, key_prefix: str | bytes, **options: Any) -> Any:
        """Give an iterator over events for a prefix, and what cancels it."""
        key, range_end = _prefix(key_prefix)
        return self.watch(key, range_end=range_end, **options)

    def watch_once_response(self, key: str | bytes, timeout: float | None = None, **options: Any) -> Any:
        """Give the first delivery with an event; raise WatchTimedOut after `timeout` seconds, if given."""
        deliveries: SimpleQueue[Any] = SimpleQueue()
        end = None if timeout is None else time.monotonic() + timeout
        watch_id = self.add_watch_callback(key, deliveries.put, **options)
        try:
            while True:
                delivery = deliveries.get(timeout=None if end is None else max(end - time.monotonic(), 0.0))
                if isinstance(delivery, Exception):
                    raise delivery
                if delivery.events:
                    return delivery
        except Empty:
            raise WatchTimedOut from None
        finally:
            self.cancel_watch(watch_id)

    def watch_prefix_once_response(self, key_prefix: str | bytes, timeout: float | None = None, **options: Any) -> Any:
        """Give the first delivery with an event for a prefix."""
        key, range_end = _prefix(key_prefix)
        return self.watch_once_response(key, timeout=timeout, range_end=range_end, **options)

    def watch_prefix_once(self, key_prefix: str | bytes, timeout: float | None = None, **options: Any) -> Any:
        """Give the first event for a prefix."""
        return self.watch_prefix_once_response(key_prefix, timeout=timeout, **options).events[0]

    def lock(self, name: str, ttl: int = 60) -> Lock:
        """Give a lock that ends `ttl` seconds after its holder stopped renewing it."""
        return Lock(name, ttl=ttl, etcd_client=self)

    # The member and the cluster.

    @property
    def members(self) -> list[Any]:
        """All members, as etcd3's Member; answered without a quorum."""
        return list(super().members)

    def status(self) -> ClientStatus:
        """Give this member's answer about itself; it needs no quorum."""
        status = self._call(calls.status())
        leader = next((member for member in self.members if member.id == status.leader), None)
        fields = status._asdict()
        return ClientStatus(leader=leader, leader_id=fields.pop("leader"), **fields)

    def hash_kv(self, revision: int = 0) -> HashKV:
        """Give this member's hash over its keys up to `revision`, 0 being its newest."""
        return self._call(calls.hash_kv(revision))

    def move_leader(self, target_id: int) -> None:
        """Ask this member, which must lead, to hand over to the member `target_id`."""
        self._call(calls.move_leader(target_id))

    def add_learner(self, peer_urls: Iterable[str]) -> MemberInfo:
        """Add a member that follows but does not vote."""
        return self._call(calls.member_add(list(peer_urls), learner=True))

    def promote(self, member_id: int) -> tuple[MemberInfo, ...]:
        """Make a learner that is in sync a voter; give all members."""
        return self._call(calls.member_promote(member_id))

    def alarms(self) -> tuple[Alarm, ...]:
        """Give the alarms of all members, of every kind."""
        return self._call(calls.alarms())

    def disarm(self, member_id: int, kind: str) -> tuple[Alarm, ...]:
        """Disarm one alarm of one member; `kind` is "NOSPACE" or "CORRUPT"."""
        return self._call(calls.alarm_disarm(member_id, kind))


def _positive(timeout_s: float | None) -> float:
    if timeout_s is None or not timeout_s > 0:
        raise SpecError(f"a deadline of {timeout_s!r} s is not offered", remedy="Give seconds, more than 0.")
    return float(timeout_s)


def read_any(clients: Iterable[Client], read: Callable[[Client], T]) -> T:
    """Give what `read` gives with the first of `clients` whose member answers.

    It moves on after UNAVAILABLE and after a deadline, and raises the last EtcdError when none answered. `read` may be
    run once for each client, so it may only read: anything else is refused with SpecError, and nothing is sent.

        value, _ = read_any(clients, lambda client: client.get("/app/flag"))
    """
    last: EtcdError | None = None
    for client in clients:
        token = _READ_ONLY.set(True)
        try:
            return read(client)
        except EtcdError as error:
            # etcd itself reports a deadline that passed in its hands as UNKNOWN.
            if error.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED") and error.text != "context deadline exceeded":
                raise
            last = error
        finally:
            _READ_ONLY.reset(token)
    raise last or SpecError("there is no client to read with")
