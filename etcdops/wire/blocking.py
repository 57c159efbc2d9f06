"""Blocking calls to one member, and the same call to several at once."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from etcdops import _proto, calls
from etcdops.answers import (
    Alarm,
    DeleteResult,
    HashKV,
    Lease,
    LeaseInfo,
    MemberInfo,
    PutResult,
    RangeResult,
    Status,
    TxnResult,
)
from etcdops.calls import Call
from etcdops.errors import EtcdError
from etcdops.interrupts import deferred
from etcdops.spec import Tls
from etcdops.wire.channel import (
    Stubs,
    answer_of,
    channel_options,
    closed_error,
    grpc,
    read_credentials,
    target_of,
    to_error,
)
from etcdops.wire.watching import Watch

__all__ = ["Connection", "Pending", "ask_all"]

T = TypeVar("T")
K = TypeVar("K")


def _as_it_is(answer: Any) -> Any:
    return answer


class Pending(Generic[T]):
    """A call that is under way. `result()` waits for it, no longer than its deadline."""

    def __init__(self, future: Any, endpoint: str, read: Callable[[Any], T], fail: Callable[[Any], EtcdError]) -> None:
        self._future = future
        self._endpoint = endpoint
        self._read = read
        self._fail = fail

    def result(self) -> T:
        """Give the answer, or raise EtcdError."""
        try:
            answer = self._future.result()
        except grpc.RpcError as error:
            raise self._fail(error) from None
        except grpc.FutureCancelledError:
            raise self._fail(self._future) from None
        return self._read(answer_of(answer, self._endpoint))

    def cancel(self) -> None:
        """Give up waiting; the server may have acted already."""
        self._future.cancel()


class Connection:
    """A connection to one member at `endpoint_url`, made when first used. Threads may share it.

    Every method takes `timeout_s`, the deadline in seconds from now, and raises EtcdError. `https` needs `tls`.
    `connect_timeout_s` bounds one attempt to connect; while one is under way, calls wait for it. After a refusal the
    next call tries anew, at once. With `keepalive_s`, a frozen or cut-off member ends calls and watches after 1.5
    times that long; etcd by default closes connections that are pinged more often than every 5 s. `window_bytes`
    bounds what is in memory of a large answer that comes in pieces, such as a snapshot's.
    """

    def __init__(
        self,
        endpoint_url: str,
        tls: Tls | None = None,
        *,
        connect_timeout_s: float = 2.0,
        keepalive_s: float = 0.0,
        window_bytes: int = 0,
    ) -> None:
        self.endpoint = endpoint_url
        self._target = target_of(endpoint_url)
        self._credentials = read_credentials(endpoint_url, tls)
        self._options = channel_options(connect_timeout_s, keepalive_s, window_bytes)
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._lock = threading.Lock()
        self._busy = 0
        self._refused = False
        self._closed = False
        self._open()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection and all calls on it."""
        with deferred():
            with self._lock:
                self._closed = True
            self._channel.close()

    def _open(self) -> None:
        if self._credentials:
            self._channel = grpc.secure_channel(self._target, self._credentials, options=self._options)
        else:
            self._channel = grpc.insecure_channel(self._target, options=self._options)
        self._stubs = Stubs(self._channel)

    def _take(self, path: str) -> Any:
        """Give what sends the RPC at `path`; `_give_back` must follow when the call has ended."""
        with self._lock:
            if self._closed:
                raise closed_error(self.endpoint)
            if self._refused and not self._busy:
                # A channel that was refused connects again only after a back-off; and until gRPC 1.77 or so only while
                # some call waits on it, which none does: during the back-off they all fail at once.
                self._channel.close()
                self._open()
                self._refused = False
            self._busy += 1
            return self._stubs[path]

    def _give_back(self) -> None:
        with self._lock:
            self._busy -= 1

    def _fail(self, error: Any) -> EtcdError:
        """Give the EtcdError that says what gRPC's `error` says, and take note of a refused connection."""
        mapped = to_error(error, self.endpoint)
        if mapped.code == "UNAVAILABLE" and mapped.definite:
            self._refused = True
        return mapped

    def login(self, user: str, password: str, *, timeout_s: float) -> None:
        """Make all later calls as `user`. etcd forgets simple tokens after 5 minutes without use."""
        self._metadata = (("token", self.call(calls.authenticate(user, password), timeout_s=timeout_s)),)

    def send(self, path: str, request: Any, *, timeout_s: float) -> Any:
        """Give etcd's answer to `request`, one message for one: the layer below `call`."""
        # Begun and waited for apart: a call that a signal breaks off while gRPC sets it up never ends, and neither does
        # the closing of its channel.
        return self.start(Call(path, request, _as_it_is), timeout_s=timeout_s).result()

    def stream(self, path: str, request: Any, *, timeout_s: float) -> Iterator[Any]:
        """Yield the messages of etcd's answer to `request`; the stream ends with the iterator."""
        stub, both = self._take(path), _proto.METHODS[path].streams == "both"
        stream = None
        try:
            with deferred():
                stream = stub(iter([request]) if both else request, timeout=float(timeout_s), metadata=self._metadata)
            yield from stream
        except grpc.RpcError as error:
            raise self._fail(error) from None
        except ValueError:
            raise closed_error(self.endpoint) from None
        finally:
            if stream is not None:
                stream.cancel()
            self._give_back()

    def call(self, call: Call[T], *, timeout_s: float) -> T:
        """Give the answer to `call`."""
        return call.read(self.send(call.path, call.request, timeout_s=timeout_s))

    def start(self, call: Call[T], *, timeout_s: float) -> Pending[T]:
        """Send `call` without waiting for its answer."""
        with deferred():
            stub = self._take(call.path)
            try:
                future = stub.future(call.request, timeout=float(timeout_s), metadata=self._metadata)
            except BaseException as error:
                self._give_back()
                if isinstance(error, ValueError):
                    # What grpc raises for a channel that is closed.
                    raise closed_error(self.endpoint) from None
                raise
            future.add_done_callback(lambda _: self._give_back())
        return Pending(future, self.endpoint, call.read, self._fail)

    def put(self, key: bytes, value: bytes, *, timeout_s: float, lease: int = 0, prev_kv: bool = False) -> PutResult:
        """Set `key`; see `calls.put`."""
        return self.call(calls.put(key, value, lease=lease, prev_kv=prev_kv), timeout_s=timeout_s)

    def range(self, key: bytes, range_end: bytes = b"", *, timeout_s: float, **options: Any) -> RangeResult:
        """Read `key`, or all keys in `[key, range_end)`; options as for `calls.range`."""
        return self.call(calls.range(key, range_end, **options), timeout_s=timeout_s)

    def delete_range(
        self, key: bytes, range_end: bytes = b"", *, timeout_s: float, prev_kv: bool = False
    ) -> DeleteResult:
        """Delete `key`, or all keys in `[key, range_end)`."""
        return self.call(calls.delete_range(key, range_end, prev_kv=prev_kv), timeout_s=timeout_s)

    def txn(
        self,
        compares: Iterable[Any] = (),
        success: Iterable[Any] = (),
        failure: Iterable[Any] = (),
        *,
        timeout_s: float,
    ) -> TxnResult:
        """Do `success` if all comparisons hold and `failure` otherwise; made of `calls.compare` and `calls.op_…`."""
        return self.call(calls.txn(compares, success, failure), timeout_s=timeout_s)

    def compact(self, revision: int, *, timeout_s: float, physical: bool = False) -> int:
        """Forget the history before `revision`."""
        return self.call(calls.compact(revision, physical=physical), timeout_s=timeout_s)

    def status(self, *, timeout_s: float) -> Status:
        """Give the member's answer about itself; it needs no quorum."""
        return self.call(calls.status(), timeout_s=timeout_s)

    def hash_kv(self, revision: int = 0, *, timeout_s: float) -> HashKV:
        """Give the member's hash over its keys up to `revision`, 0 being its newest."""
        return self.call(calls.hash_kv(revision), timeout_s=timeout_s)

    def member_list(self, *, timeout_s: float, linearizable: bool = True) -> tuple[MemberInfo, ...]:
        """Give the cluster's members; not linearizable, it needs no quorum."""
        return self.call(calls.member_list(linearizable=linearizable), timeout_s=timeout_s)

    def member_add(self, peer_urls: Sequence[str], *, learner: bool, timeout_s: float) -> MemberInfo:
        """Add a member."""
        return self.call(calls.member_add(peer_urls, learner=learner), timeout_s=timeout_s)

    def member_promote(self, member_id: int, *, timeout_s: float) -> tuple[MemberInfo, ...]:
        """Make a learner a voter."""
        return self.call(calls.member_promote(member_id), timeout_s=timeout_s)

    def member_remove(self, member_id: int, *, timeout_s: float) -> tuple[MemberInfo, ...]:
        """Remove a member for ever."""
        return self.call(calls.member_remove(member_id), timeout_s=timeout_s)

    def member_update(self, member_id: int, peer_urls: Sequence[str], *, timeout_s: float) -> tuple[MemberInfo, ...]:
        """Change a member's peer URLs."""
        return self.call(calls.member_update(member_id, peer_urls), timeout_s=timeout_s)

    def move_leader(self, target_id: int, *, timeout_s: float) -> None:
        """Ask this member, which must lead, to hand over to the member `target_id`."""
        self.call(calls.move_leader(target_id), timeout_s=timeout_s)

    def alarms(self, *, timeout_s: float) -> tuple[Alarm, ...]:
        """Give the alarms of all members."""
        return self.call(calls.alarms(), timeout_s=timeout_s)

    def alarm_disarm(self, member_id: int, kind: str, *, timeout_s: float) -> tuple[Alarm, ...]:
        """Disarm one alarm of one member; `kind` is "NOSPACE" or "CORRUPT"."""
        return self.call(calls.alarm_disarm(member_id, kind), timeout_s=timeout_s)

    def defragment(self, *, timeout_s: float) -> None:
        """Rewrite this member's database file; it does not serve meanwhile."""
        self.call(calls.defragment(), timeout_s=timeout_s)

    def lease_grant(self, ttl_s: int, lease_id: int = 0, *, timeout_s: float) -> Lease:
        """Make a lease."""
        return self.call(calls.lease_grant(ttl_s, lease_id), timeout_s=timeout_s)

    def lease_revoke(self, lease_id: int, *, timeout_s: float) -> int:
        """End a lease and delete its keys."""
        return self.call(calls.lease_revoke(lease_id), timeout_s=timeout_s)

    def lease_info(self, lease_id: int, *, timeout_s: float) -> LeaseInfo:
        """Ask what remains of a lease, and for its keys."""
        return self.call(calls.lease_info(lease_id), timeout_s=timeout_s)

    def lease_keep_alive(self, lease_id: int, *, timeout_s: float) -> Lease:
        """Renew a lease once."""
        call = calls.lease_keep_alive(lease_id)
        for answer in self.stream(call.path, call.request, timeout_s=timeout_s):
            return call.read(answer)
        raise EtcdError("UNAVAILABLE", "the stream ended without an answer", endpoint=self.endpoint)

    def snapshot(self, *, timeout_s: float) -> Iterator[bytes]:
        """Yield the member's database in pieces; the last 32 bytes of all are the SHA-256 of the rest."""
        for part in self.stream("/etcdserverpb.Maintenance/Snapshot", _proto.SnapshotRequest(), timeout_s=timeout_s):
            yield part.blob

    def watch(
        self,
        key: bytes,
        range_end: bytes = b"",
        *,
        timeout_s: float,
        open_timeout_s: float = 5.0,
        start_revision: int = 0,
        prev_kv: bool = False,
        progress: bool = False,
        filters: Sequence[int | str] = (),
    ) -> Watch:
        """Give a watch that the server has confirmed within `open_timeout_s` and that lives `timeout_s` at most.

        `start_revision` 0 is now. With `progress`, the server tells every 10 minutes how far a quiet watch is.
        """
        request = calls.watch_create(
            key, range_end, start_revision=start_revision, prev_kv=prev_kv, progress=progress, filters=filters
        )
        options = {"timeout": float(timeout_s), "metadata": self._metadata}
        start = functools.partial(self._take("/etcdserverpb.Watch/Watch"), **options)
        return Watch(start, request, self.endpoint, open_s=open_timeout_s, fail=self._fail, on_end=self._give_back)


def ask_all(connections: Mapping[K, Connection], call: Call[T], *, timeout_s: float) -> dict[K, T | EtcdError]:
    """Give every member's answer to `call`, or the EtcdError that came instead; all are asked at once.

    It takes `timeout_s` at most, however many members are silent.
    """
    pending: dict[K, Pending[T] | EtcdError] = {}
    for name, connection in connections.items():
        try:
            pending[name] = connection.start(call, timeout_s=timeout_s)
        except EtcdError as error:
            pending[name] = error
    answers: dict[K, T | EtcdError] = {}
    for name, one in pending.items():
        try:
            answers[name] = one if isinstance(one, EtcdError) else one.result()
        except EtcdError as error:
            answers[name] = error
    return answers
