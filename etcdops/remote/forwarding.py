"""A loopback port here that leads to a port of a remote host, through its SSH connection."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from etcdops.errors import EtcdopsError, HostUnreachable

__all__ = ["forward"]

_PIECE_BYTES = 2**16
_OPENS_S = 10.0
#: How long connections are refused at once after the host could not be reached, and how long one waits for its turn.
_DEAD_S = 2.0


@contextmanager
def forward(transport: Callable[[], Any], name: str, port: int, address: str = "127.0.0.1") -> Iterator[int]:
    """Give a free port of 127.0.0.1 whose connections end at `address` and `port` as the host `name` sees them.

    `transport` gives the connection to the host, made anew where it has ended. With the block, the port and its
    connections end. Where nothing listens there, or the host is not reached, a connection here is closed.
    Raises HostUnreachable when no port can be had here.
    """
    try:
        listening = socket.create_server(("127.0.0.1", 0))
    except OSError as error:
        raise HostUnreachable(
            f"cannot forward a port to host {name}: {error.strerror or error}", host=name, kind="configuration"
        ) from error
    tunnel = _Tunnel(transport, (address, port), listening)
    accepting = threading.Thread(target=tunnel.accept, daemon=True)
    accepting.start()
    try:
        yield listening.getsockname()[1]
    finally:
        tunnel.close()
        accepting.join(5)


class _Tunnel:
    def __init__(self, transport: Callable[[], Any], target: tuple[str, int], listening: socket.socket) -> None:
        self._transport = transport
        self._target = target
        self._listening = listening
        self._lock = threading.Lock()
        self._open: set[Any] = set()
        self._closed = False
        self._turn = threading.Lock()
        self._dead_until = 0.0

    def _connected(self) -> Any:
        """Give the connection to the host; raises OSError where there is none, without a queue of those who wait."""
        if not self._turn.acquire(timeout=_DEAD_S):
            raise TimeoutError
        try:
            if time.monotonic() < self._dead_until:
                raise ConnectionError
            try:
                return self._transport()
            except EtcdopsError as error:
                self._dead_until = time.monotonic() + _DEAD_S
                raise ConnectionError from error
        finally:
            self._turn.release()

    def accept(self) -> None:
        """Take connections until the tunnel is closed."""
        with suppress(OSError):
            while True:
                near, source = self._listening.accept()
                threading.Thread(target=self._serve, args=(near, source), daemon=True).start()

    def _serve(self, near: socket.socket, source: tuple[str, int]) -> None:
        from paramiko.ssh_exception import SSHException

        far: Any = None
        try:
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            far = self._connected().open_channel("direct-tcpip", self._target, source, timeout=_OPENS_S)
            with self._lock:
                if self._closed:
                    return
                self._open |= {near, far}
            back = threading.Thread(target=_pass, args=(far, near), daemon=True)
            back.start()
            _pass(near, far)
            back.join()
        except (OSError, EOFError, SSHException):
            # Whoever connected sees it closed, as with a member that is not there.
            return
        finally:
            with self._lock:
                self._open -= {near, far}
            for each in (near, far):
                if each is not None:
                    with suppress(OSError, EOFError):
                        each.close()

    def close(self) -> None:
        """End the port and all that goes through it."""
        with self._lock:
            self._closed = True
            ends = [self._listening, *self._open]
        for each in ends:
            # A close alone would not wake up who waits for it.
            with suppress(OSError, EOFError):
                each.shutdown(socket.SHUT_RDWR)
        self._listening.close()


def _pass(source: Any, sink: Any) -> None:
    """Pass on what comes until its end, and then that end: the other direction may have more to say."""
    with suppress(OSError, EOFError):
        while data := source.recv(_PIECE_BYTES):
            sink.sendall(data)
    with suppress(OSError, EOFError):
        sink.shutdown(socket.SHUT_WR)
