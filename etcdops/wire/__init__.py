"""Talking to one etcd member: blocking, in parallel, or with asyncio. The only package that imports grpc.

Every call has a deadline and is sent once, never again; every failure is an `EtcdError` that keeps the endpoint, gRPC's
code and the server's own words, and says whether the call certainly had no effect (see `etcdops.outcomes`).

    >>> with Connection("http://127.0.0.1:2379") as etcd:  # doctest: +SKIP
    ...     etcd.put(b"k", b"v", timeout_s=1.0).revision
    2
"""

from etcdops.answers import hex_id
from etcdops.calls import prefix_end
from etcdops.wire.asynchronous import AsyncConnection
from etcdops.wire.blocking import Connection, Pending, ask_all
from etcdops.wire.channel import outcome_of
from etcdops.wire.serving import Server, ServerError, ServerStream, serve
from etcdops.wire.watching import AsyncWatch, Compacted, Watch

__all__ = [
    "AsyncConnection",
    "AsyncWatch",
    "Compacted",
    "Connection",
    "Pending",
    "Server",
    "ServerError",
    "ServerStream",
    "Watch",
    "ask_all",
    "hex_id",
    "outcome_of",
    "prefix_end",
    "serve",
]
