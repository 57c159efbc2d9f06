"""Ports for members on a host: free ones, that outgoing connections do not take either."""

from __future__ import annotations

import os
import random
from collections.abc import Collection
from typing import Protocol

from etcdops.errors import Refused, SpecError

__all__ = ["HasPorts", "candidates", "free_ports", "refuse_taken"]


class HasPorts(Protocol):
    """A host, as far as its ports go."""

    name: str

    def read(self, path: str, offset: int = 0) -> bytes:
        """Give a file's content from `offset` on; b"" if there is none."""

    def port_in_use(self, port: int) -> bool:
        """Whether something listens on a port."""


#: Ports that members get. The kernel gives outgoing connections theirs from a range of its own, by default from 32768
#: on; ports outside of that stay a stopped member's own.
_PORTS = range(20000, 32000)
_EPHEMERAL = "/proc/sys/net/ipv4/ip_local_port_range"


def refuse_taken(host: HasPorts, ports: Collection[int]) -> None:
    """Raise Refused if something listens on one of these loopback ports already."""
    for port in sorted(ports):
        if host.port_in_use(port):
            raise Refused(
                f"port {port} on {host.name} is in use, so no member can listen there",
                remedy=f"See who listens with `ss -ltnp 'sport = :{port}'`, or leave out --port.",
            )


def free_ports(host: HasPorts, count: int, but: Collection[int]) -> list[int]:
    """Give `count` loopback ports on which nothing listens, none of them in `but`; raise Refused with fewer."""
    ports: list[int] = []
    offered = candidates(host)
    for port in random.sample(offered, len(offered)):
        if len(ports) == count:
            break
        if port not in but and not host.port_in_use(port):
            ports.append(port)
    if len(ports) < count:
        raise Refused(
            f"fewer than {count} ports of {len(offered)} that members may have are free on {host.name}",
            remedy="Name ports with --port, or remove clusters that are not needed: see `cluster.list`.",
        )
    return ports


def _chosen() -> list[int]:
    """Give the ports that ETCDOPS_PORTS names ("20000-20999"), for machines that many share; none without it."""
    text = os.environ.get("ETCDOPS_PORTS", "")
    first, _, last = text.partition("-")
    if text and not (first.isdecimal() and last.isdecimal() and 1024 <= int(first) <= int(last) <= 65535):
        raise SpecError(f"ETCDOPS_PORTS={text} is no range of ports", remedy="Give one such as 20000-20999.")
    return list(range(int(first), int(last) + 1)) if text else []


def candidates(host: HasPorts) -> list[int]:
    """Give the ports that members may have: those chosen, or else outside the range of outgoing connections."""
    if chosen := _chosen():
        return chosen
    limits = host.read(_EPHEMERAL).split()
    low, high = (int(limits[0]), int(limits[1])) if len(limits) == 2 else (49152, 65535)
    for ports in (_PORTS, range(10000, 65536)):
        outside = [port for port in ports if not low <= port <= high]
        if len(outside) >= 1000:
            return outside
    return list(_PORTS)
