"""The bed's network: a bridge, a link from it to each host, one filter rule, and what cuts and mends."""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Sequence

from etcdops.errors import Refused
from scripts.lab_hosts.machine import run
from scripts.lab_hosts.record import BedRecord, HostRecord

__all__ = [
    "add_bridge",
    "add_links",
    "cut_between",
    "cuts_of",
    "has_link",
    "link_is_up",
    "mend_between",
    "remove_all",
    "set_link",
    "subnet_user",
]


def subnet_user(subnet: ipaddress.IPv4Network) -> str:
    """Name what uses addresses of a subnet on this machine already, "" if nothing does."""
    _, addresses = run(["ip", "-json", "-4", "address"])
    for link in json.loads(addresses or "[]"):
        for address in link.get("addr_info", ()):
            if "local" in address:
                network = ipaddress.IPv4Interface(f"{address['local']}/{address['prefixlen']}").network
                if network.overlaps(subnet):
                    return f"{link['ifname']} has {address['local']}/{address['prefixlen']}"
    _, routes = run(["ip", "-json", "-4", "route"])
    for route in json.loads(routes or "[]"):
        destination = route["dst"]
        if destination != "default" and ipaddress.IPv4Network(destination, strict=False).overlaps(subnet):
            return f"there is a route to {destination}"
    return ""


def _exists(link: str) -> bool:
    return os.path.isdir(f"/sys/class/net/{link}")


def add_bridge(record: BedRecord) -> None:
    """Make the bridge with this machine's address on it, and the filter rule, whichever is not there."""
    if not _exists(record.bridge):
        run(["ip", "link", "add", record.bridge, "type", "bridge"])
    wanted = f"{record.gateway}/{record.network.prefixlen}"
    run(["ip", "address", "replace", wanted, "dev", record.bridge])
    run(["ip", "link", "set", record.bridge, "up"])
    if not _has_rule(record):
        run(["iptables", "-w", "-I", "FORWARD", *_forward(record)])


def _forward(record: BedRecord) -> list[str]:
    # Where a Docker engine runs on this machine, bridged frames pass its filter, which drops what it does not know.
    comment = ["-m", "comment", "--comment", record.tag]
    return ["-i", record.bridge, "-o", record.bridge, *comment, "-j", "ACCEPT"]


def _has_rule(record: BedRecord) -> bool:
    return run(["iptables", "-w", "-C", "FORWARD", *_forward(record)], check=False)[0] == 0


def add_links(record: BedRecord, inits: Sequence[tuple[HostRecord, int]]) -> None:
    """Make each host's link: this machine's end on the bridge, the other as eth0 in the namespace of that process."""
    lines = []
    for host, pid in inits:
        port = record.port(host)
        if _exists(port):
            # The other end was in the namespace of a host that has gone, and the kernel is about to remove both.
            run(["ip", "link", "delete", port], check=False)
        # The same after a restart of the host, as with a machine: its neighbours remember it.
        mac = f"02:{record.bed[:2]}:{record.bed[2:4]}:{record.bed[4:]}:{host.number >> 8:02x}:{host.number & 255:02x}"
        peer = f"peer name eth0 address {mac} netns {pid}"
        lines.append(f"link add {port} master {record.bridge} up type veth {peer}\n")
    run(["ip", "-batch", "-"], stdin="".join(lines))


def has_link(record: BedRecord, host: HostRecord) -> bool:
    """Whether this machine's end of a host's link is there."""
    return _exists(record.port(host))


def link_is_up(record: BedRecord, host: HostRecord) -> bool:
    """Whether a host's link is up, at this machine's end."""
    try:
        with open(f"/sys/class/net/{record.port(host)}/flags") as file:
            return bool(int(file.read(), 16) & 1)
    except OSError:
        return False


def set_link(record: BedRecord, host: HostRecord, *, up: bool) -> None:
    """Take a host's link down, as if its cable were pulled, or up."""
    run(["ip", "link", "set", record.port(host), "up" if up else "down"])


def _drop(record: BedRecord, other: HostRecord) -> list[str]:
    # Before Docker's own rules and its address translation: it holds for the host and for its containers. What the
    # other host's containers send has that host's address.
    return ["-s", other.address, "-m", "comment", "--comment", f"{record.tag}-{other.name}", "-j", "DROP"]


def _filter(pid: int, act: str, rule: Sequence[str], *, check: bool = True) -> int:
    argv = ["nsenter", f"--target={pid}", "--net", "--mount", "iptables", "-w", "-t", "raw", act, "PREROUTING", *rule]
    return run(argv, check=check)[0]


def cut_between(record: BedRecord, pid: int, other: HostRecord) -> None:
    """Have the host whose process `pid` is drop all that another host sends it."""
    if _filter(pid, "-C", _drop(record, other), check=False):
        _filter(pid, "-I", _drop(record, other))


def mend_between(record: BedRecord, pid: int, other: HostRecord) -> None:
    """Undo `cut_between`."""
    while _filter(pid, "-C", _drop(record, other), check=False) == 0:
        _filter(pid, "-D", _drop(record, other))


def cuts_of(record: BedRecord, pid: int) -> list[str]:
    """Name the hosts from which the host whose process `pid` is drops everything."""
    argv = ["nsenter", f"--target={pid}", "--net", "--mount", "iptables", "-w", "-t", "raw", "-S", "PREROUTING"]
    words = run(argv)[1].split()
    return [
        each.name for each in record.hosts if {f"{record.tag}-{each.name}", f'"{record.tag}-{each.name}"'} & {*words}
    ]


def remove_all(record: BedRecord) -> None:
    """Remove the links, the rule and the bridge, whichever are there."""
    for link in (*(record.port(host) for host in record.hosts), record.bridge):
        if _exists(link) and run(["ip", "link", "delete", link], check=False)[0] and _exists(link):
            raise Refused(f"cannot remove the link {link}", remedy=f"See `ip link show {link}`.")
    while _has_rule(record):
        run(["iptables", "-w", "-D", "FORWARD", *_forward(record)])
