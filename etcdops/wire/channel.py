"""The channel to a member: the only module that imports grpc.

The other modules of this package take `grpc` and `aio` from here, so that what has to be set before gRPC is imported
is set, whoever comes first.
"""

from __future__ import annotations

import os
from typing import Any, Literal
from urllib.parse import urlsplit

# gRPC's fork handlers crash children that are forked beside an open channel (by `sh`, or with a pty): up to 60 of 300
# were lost. Its own advice to programs that always exec after a fork is this variable, which it reads when imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# What gRPC has to say arrives as an EtcdError; its C core would also print it to stderr, amid our output.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from grpc import aio

from etcdops import _proto, reach
from etcdops.errors import EtcdError, SpecError
from etcdops.hints import remedy_for
from etcdops.outcomes import is_definite
from etcdops.spec import Tls

__all__ = ["aio", "channel_options", "grpc", "outcome_of"]

#: Options of every channel.
_OPTIONS = (
    # gRPC's own back-off (1 s to 120 s) shows a member that came back only 2.5 to 3.8 s later.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Members are reached directly, whatever http_proxy or https_proxy says.
    ("grpc.enable_http_proxy", 0),
    # gRPC would send a call again by itself where it thinks that safe; a caller who counts outcomes must know.
    ("grpc.enable_retries", 0),
    # By default channels of one process share connections, and with them a back-off that another one has earned.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)


def channel_options(
    connect_timeout_s: float, keepalive_s: float = 0.0, window_bytes: int = 0
) -> tuple[tuple[str, int], ...]:
    """Give a channel's options.

    `connect_timeout_s` is for one attempt to connect: TCP, TLS and etcd's first word. With `keepalive_s`, a member from
    which nothing came for so long is asked for a sign of life while calls wait; half that time later they fail. With
    `window_bytes`, a member may have sent no more than that which we have not read.
    """
    # In spite of its name, this is gRPC's option for the least time that an attempt to connect is given.
    connecting: tuple[tuple[str, int], ...] = (("grpc.min_reconnect_backoff_ms", round(connect_timeout_s * 1000)),)
    if window_bytes:
        # gRPC's own guess at the network's capacity grows to tens of megabytes on loopback, and is slower.
        connecting += (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", window_bytes))
        # Answers in pieces are read by the thread that waits for them: half the processor time of handing each over.
        connecting += (("SingleThreadedUnaryStream", 1),)
    if not keepalive_s:
        return (*_OPTIONS, *connecting)
    return (
        *_OPTIONS,
        *connecting,
        ("grpc.keepalive_time_ms", round(keepalive_s * 1000)),
        # Both: which of them counts depends on gRPC's version.
        ("grpc.keepalive_timeout_ms", round(keepalive_s * 500)),
        ("grpc.http2.ping_timeout_ms", round(keepalive_s * 500)),
    )


def outcome_of(error: BaseException) -> Literal["failed", "unknown"]:
    """Tell what a write that ended in `error` did: "failed", certainly nothing, or "unknown", it may yet be applied."""
    return "failed" if isinstance(error, EtcdError) and error.definite else "unknown"


def to_error(error: Any, endpoint: str) -> EtcdError:
    """Give the EtcdError that says what the RpcError `error` says."""
    code = error.code()
    name = code.name if code is not None else "UNKNOWN"
    text = error.details() or ""
    return EtcdError(name, text, endpoint=endpoint, definite=is_definite(name, text), remedy=remedy_for(text))


def closed_error(endpoint: str) -> EtcdError:
    return EtcdError("CANCELLED", "the connection has been closed", endpoint=endpoint, definite=True)


def answer_of(answer: Any, endpoint: str) -> Any:
    """Give `answer`, or raise EtcdError where gRPC says OK of a call and has no message for it.

    It does when a connection ends as the member, or what is between, is being taken away; the call may have been done.
    """
    if answer is None:
        raise EtcdError("UNAVAILABLE", "the call ended without an answer", endpoint=endpoint)
    return answer


def split_url(endpoint_url: str) -> tuple[str, bool]:
    """Give gRPC's target for a client URL, and whether it wants TLS."""
    parts = urlsplit(endpoint_url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/"):
        raise SpecError(f"{endpoint_url!r} is not a client URL", remedy="Give http://HOST:PORT or https://HOST:PORT.")
    return parts.netloc, parts.scheme == "https"


def target_of(endpoint_url: str) -> str:
    """Give what gRPC is to connect to for a client URL: what it says, or what leads there from here."""
    split_url(endpoint_url)
    return split_url(reach.through(endpoint_url))[0]


def read_credentials(endpoint_url: str, tls: Tls | None) -> Any:
    """Give the channel's credentials, or None for plaintext."""
    if not split_url(endpoint_url)[1]:
        return None
    if tls is None:
        raise SpecError(f"{endpoint_url} needs TLS, and no certificates were given")
    try:
        # Without a certificate of its own, a client is served where none is asked for.
        ca, key, cert = (_read_file(path) if path else None for path in (tls.ca, tls.client_key, tls.client_cert))
    except OSError as error:
        raise SpecError(
            f"the TLS file {error.filename} for {endpoint_url} cannot be read: {error.strerror}",
            remedy="Put it back from a copy; a certificate that etcdops made, `tls.renew` makes anew.",
        ) from error
    return grpc.ssl_channel_credentials(ca, key, cert)


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


class Stubs(dict[str, Any]):
    """What sends each RPC over a channel, by path; each is made when first used."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def __missing__(self, path: str) -> Any:
        channel, method = self._channel, _proto.METHODS[path]
        makers = {"unary": channel.unary_unary, "server": channel.unary_stream, "both": channel.stream_stream}
        stub = self[path] = makers[method.streams](path, serialize, method.response.FromString)
        return stub
