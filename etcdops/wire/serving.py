"""A gRPC server that speaks etcd's API, for members that live in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import Any

from etcdops import _proto
from etcdops.errors import Refused
from etcdops.wire.channel import grpc, serialize

__all__ = ["Server", "ServerError", "ServerStream", "serve"]


class ServerError(Exception):
    """What a handler of `serve` raises to answer with an error: gRPC's code, such as "UNAVAILABLE", and a text."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class ServerStream:
    """What a streaming handler of `serve` gets: iterate over the requests; `active` turns False when the call ends."""

    def __init__(self, requests: Iterator[Any], context: Any) -> None:
        self._requests = requests
        self._context = context

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._requests
        except Exception:
            # grpc ends a cancelled call's requests with a bare Exception.
            if self._context.is_active():
                raise

    @property
    def active(self) -> bool:
        """Whether the client still waits for answers."""
        is_active: bool = self._context.is_active()
        return is_active

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, in some thread, when the call ends."""
        if not self._context.add_callback(callback):
            callback()


class Server:
    """A gRPC server on loopback, made by `serve`. `port` is where it listens."""

    def __init__(self, server: Any, pool: futures.ThreadPoolExecutor, port: int) -> None:
        self._server = server
        self._pool = pool
        self.port = port

    def stop(self, grace_s: float | None = None) -> None:
        """Stop listening and break all calls off, as a killed process would; return when that is done.

        With `grace_s`, answers that are on their way may take so many seconds.
        """
        self._server.stop(grace_s).wait()
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Finds the handler for a call."""

    def __init__(self, handlers: Mapping[str, Callable[[Any], Any]]) -> None:
        self._methods = {path: self._method(path, handler) for path, handler in handlers.items()}

    @staticmethod
    def _method(path: str, handler: Callable[[Any], Any]) -> Any:
        method = _proto.METHODS[path]

        def answer(request: Any, context: Any) -> Any:
            try:
                return handler(request)
            except ServerError as error:
                context.abort(grpc.StatusCode[error.code], error.text)

        def answers(request: Any, context: Any) -> Iterator[Any]:
            try:
                yield from handler(ServerStream(request, context) if method.streams == "both" else request)
            except ServerError as error:
                context.abort(grpc.StatusCode[error.code], error.text)

        if method.streams == "unary":
            return grpc.unary_unary_rpc_method_handler(answer, method.request.FromString, serialize)
        if method.streams == "server":
            return grpc.unary_stream_rpc_method_handler(answers, method.request.FromString, serialize)
        return grpc.stream_stream_rpc_method_handler(answers, method.request.FromString, serialize)

    def service(self, handler_call_details: Any) -> Any:
        return self._methods.get(handler_call_details.method)


def serve(handlers: Mapping[str, Callable[[Any], Any]], address: str = "127.0.0.1:0", *, threads: int = 16) -> Server:
    """Give a running server that answers with `handlers`, keyed by path, such as "/etcdserverpb.KV/Put".

    A handler takes etcd's request message and gives its response message; one that streams answers yields them, and
    the handler of Watch or LeaseKeepAlive takes a ServerStream. Each open stream, and each handler that blocks, holds
    one of the `threads`. Raises Refused when `address` cannot be had.
    """
    pool = futures.ThreadPoolExecutor(threads, thread_name_prefix="etcdops-server")
    # Without SO_REUSEPORT, so that two servers cannot share a port unawares.
    server = grpc.server(pool, handlers=[_Handlers(handlers)], options=[("grpc.so_reuseport", 0)])
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if not port:
        pool.shutdown(wait=False)
        raise Refused(f"cannot listen on {address}: the address is in use, or not this machine's")
    server.start()
    return Server(server, pool, port)
