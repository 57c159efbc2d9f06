"""What is written down of a bed: enough to find everything of it again, before it is made."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import secrets
from pathlib import Path
from typing import Any

from etcdops.errors import Refused, SpecError

__all__ = ["BedRecord", "HostRecord", "Places", "write_file"]

_SCHEMA = 1


@dataclasses.dataclass
class HostRecord:
    """One host: its place in the bed, and the processes that make it one, as references of etcdops.hosts."""

    number: int
    address: str
    init: str = ""
    engine: str = ""
    sshd: str = ""

    @property
    def name(self) -> str:
        """What the host is called, in the inventory and by itself."""
        return f"h{self.number}"


@dataclasses.dataclass
class BedRecord:
    """A bed: the id that everything of it is named by, its subnet, whether its hosts have engines, and the hosts."""

    bed: str
    subnet: str
    with_engine: bool
    made_directory: bool
    hosts: list[HostRecord]

    @classmethod
    def new(cls, hosts: int, subnet: str, *, with_engine: bool) -> BedRecord:
        """Give a bed that is yet to be made; SpecError if the subnet is none, or too small."""
        network = parse_subnet(subnet)
        room = network.num_addresses - 3  # its own, the broadcast's and this machine's
        if not 1 <= hosts <= room:
            raise SpecError(f"--hosts {hosts}: {network} has room for 1 to {max(room, 0)} hosts")
        each = [HostRecord(number, str(network[number])) for number in range(1, hosts + 1)]
        return cls(secrets.token_hex(3), str(network), with_engine, False, each)

    @property
    def network(self) -> ipaddress.IPv4Network:
        """The subnet."""
        return ipaddress.IPv4Network(self.subnet)

    @property
    def gateway(self) -> str:
        """This machine's own address in the bed: the last of the subnet."""
        return str(self.network[-2])

    @property
    def bridge(self) -> str:
        """The bridge that all hosts hang on (names of links have 15 characters at most)."""
        return f"lh{self.bed}"

    def port(self, host: HostRecord) -> str:
        """Give this machine's end of a host's link."""
        return f"lh{self.bed}-{host.number}"

    @property
    def tag(self) -> str:
        """What filter rules and cgroups of the bed are named by."""
        return f"etcdops-lab-{self.bed}"

    def host(self, name: str) -> HostRecord:
        """Give a host by its name; SpecError if there is none of that name."""
        for each in self.hosts:
            if each.name == name:
                return each
        raise SpecError(f"there is no host {name!r} in this bed: there are {', '.join(h.name for h in self.hosts)}")


def parse_subnet(text: str) -> ipaddress.IPv4Network:
    """Give the subnet that is meant; SpecError if it is none."""
    try:
        return ipaddress.IPv4Network(text)
    except ValueError as error:
        raise SpecError(f"--subnet {text}: {error}", remedy="Give an IPv4 network, such as 10.88.0.0/24.") from None


class Places:
    """Where things of a bed are kept, below its directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.record = directory / "bed.json"
        self.inventory = directory / "hosts.toml"
        self.key = directory / "id_ed25519"
        self.known_hosts = directory / "known_hosts"
        self.hosts = directory / "hosts"
        self.image = directory / "image.tar"

    def files(self) -> list[Path]:
        """Give every file that a bed may have in its directory, beside what is in `hosts`; the record last."""
        mine = [self.inventory, self.key, self.key.with_suffix(".pub"), self.known_hosts, self.image]
        return [path for each in (*mine, self.record) for path in (each, each.with_name(f"{each.name}.new"))]

    def host(self, host: HostRecord) -> Path:
        """Give the directory that a host has as /run/host."""
        return self.hosts / host.name

    def load(self) -> BedRecord | None:
        """Give the record of the bed that is here; None if there is none."""
        try:
            text = self.record.read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            fields: dict[str, Any] = json.loads(text)
            if fields.pop("schema") != _SCHEMA:
                raise ValueError("it is of another version of lab-hosts")
            return BedRecord(**{**fields, "hosts": [HostRecord(**host) for host in fields["hosts"]]})
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(f"{self.record} cannot be understood: {error}", remedy="See what it says.") from error

    def save(self, record: BedRecord) -> None:
        """Write the record, so that either the old one or the new one is there."""
        text = json.dumps({"schema": _SCHEMA, **dataclasses.asdict(record)}, indent=1)
        write_file(self.record, f"{text}\n", 0o644)

    def write_inventory(self, record: BedRecord) -> None:
        """Write the inventory that etcdops reads."""
        entries = [
            f"[hosts.{host.name}]\n"
            f'address = "{host.address}"\n'
            'user = "root"\n'
            "port = 22\n"
            f"key = {json.dumps(str(self.key))}\n"
            f"known_hosts = {json.dumps(str(self.known_hosts))}\n"
            for host in record.hosts
        ]
        write_file(self.inventory, "\n".join(entries), 0o644)


def write_file(path: Path, text: str, mode: int) -> None:
    """Write a file as a whole, with that mode from its beginning."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
