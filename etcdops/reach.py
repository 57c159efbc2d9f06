"""How a member's client port is reached from here: directly, or by a forward through SSH to its host.

Who may log in to a host is not always let in at the ports of its members. So the first time that a host's member is to
be spoken to, its port is tried, for a second at the longest; where nothing answers although SSH does, a loopback port
here leads there through a connection of its own, as long as this process lives. What was found is remembered for the
process, host by host. An inventory can settle it: `reach = "direct"` or `reach = "forward"`.

A port that refuses answers, so it is spoken to directly: a member that is down refuses, too.
"""

from __future__ import annotations

import atexit
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from etcdops.remote.inventory import HostSpec

__all__ = ["close", "forget_ssh", "know", "settle", "through"]

#: How long a port is waited for before a forward is thought of, and how long SSH may take then, seconds.
_DIRECT_S = 1.0
_SSH_S = 5.0
#: For how long a host that could be reached in neither way is taken for one that is down.
_AGAIN_S = 20.0
#: For how long a port is not tried once more that refused, as one does whose member is down.
_REFUSED_S = 2.0


class _Way:
    """The way to the members of one host."""

    def __init__(self, spec: HostSpec) -> None:
        self.spec = spec
        self._lock = threading.Lock()
        self._forwards = spec.reach == "forward"
        self._settled = spec.reach != "auto"
        self._until = 0.0
        self._tunnel: Any = None
        self._open = ExitStack()
        self._ports: dict[tuple[str, int], int] = {}

    def forwards(self, address: str, port: int) -> bool:
        """Whether its members are reached by a forward; looks, unless that is known."""
        with self._lock:
            if not self._settled and time.monotonic() >= self._until:
                self._look(address, port)
            return self._forwards

    def down(self) -> None:
        """Take note that SSH does not reach it at the moment."""
        if not self._settled:
            self._until = time.monotonic() + _AGAIN_S

    def _look(self, address: str, port: int) -> None:
        import socket

        try:
            socket.create_connection((address, port), timeout=_DIRECT_S).close()
            self._settled = True
        except ConnectionRefusedError:
            self._until = time.monotonic() + _REFUSED_S
        except OSError:
            from etcdops.errors import EtcdopsError

            try:
                self._host().connect()
            except EtcdopsError:
                self._until = time.monotonic() + _AGAIN_S
            else:
                self._forwards = self._settled = True

    def _host(self) -> Any:
        """Give the host, with a connection of its own: what ends a command there must not end what is forwarded."""
        if self._tunnel is None:
            from etcdops.remote.host import SSHHost

            self._tunnel = SSHHost(self.spec, connect_timeout_s=_SSH_S)
            self._open.callback(self._tunnel.close)
        return self._tunnel

    def port(self, address: str, port: int) -> int:
        """Give the loopback port here that leads to a port there."""
        from etcdops.remote.forwarding import forward

        with self._lock:
            if (address, port) not in self._ports:
                # Once, however often it is said: what is still open when Python ends, ends in disorder.
                atexit.unregister(close)
                atexit.register(close)
                host = self._host()
                leads = forward(lambda: host.connect().transport, host.name, port, address)
                self._ports[address, port] = self._open.enter_context(leads)
            return self._ports[address, port]

    def close(self) -> None:
        with self._lock:
            self._open.close()
            self._ports.clear()
            self._tunnel = None


_WAYS: dict[str, _Way] = {}
_CHANGING = threading.Lock()


def know(address: str, spec: HostSpec) -> None:
    """Take note that members at `address` are on a host that SSH reaches as `spec` says."""
    with _CHANGING:
        known = _WAYS.get(address)
        if known is None or known.spec != spec:
            _WAYS[address] = _Way(spec)


def through(url: str) -> str:
    """Give the URL at which `url` is reached from here: itself, or that of a loopback port that leads there.

    Raises HostUnreachable where no port can be had here. It takes no time for addresses that no host of ours has.
    """
    way, parts = _way(url)
    if way is None or not way.forwards(parts.hostname or "", parts.port or 0):
        return url
    return f"{parts.scheme}://127.0.0.1:{way.port(parts.hostname or '', parts.port or 0)}"


def settle(url: str) -> None:
    """Find out how `url` is reached, so that nobody has to wait for that later."""
    way, parts = _way(url)
    if way is not None:
        way.forwards(parts.hostname or "", parts.port or 0)


def forget_ssh(address: str) -> None:
    """Take note that SSH does not reach the host at `address` now, so that nobody tries to forward through it."""
    if way := _WAYS.get(address):
        way.down()


def close() -> None:
    """End all forwards, and forget all that was found."""
    with _CHANGING:
        ways = list(_WAYS.values())
        _WAYS.clear()
    for way in ways:
        with suppress(OSError):
            way.close()


def _way(url: str) -> tuple[_Way | None, Any]:
    if not _WAYS:
        return None, None
    parts = urlsplit(url)
    way = _WAYS.get(parts.hostname or "")
    return (way if parts.port else None), parts
