"""A bed: several Docker hosts on this machine, made, looked at, damaged, mended and removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from etcdops.errors import Refused, SpecError
from scripts.lab_hosts import host as hosts
from scripts.lab_hosts import network
from scripts.lab_hosts.images import check_image, has_image, load, saved
from scripts.lab_hosts.machine import demand, remove_cgroups
from scripts.lab_hosts.record import BedRecord, HostRecord, Places, write_file

__all__ = ["DIRECTORY", "SUBNET", "Bed", "HostStatus"]

DIRECTORY = "/var/lib/etcdops-lab-hosts"
SUBNET = "10.88.0.0/24"

Progress = Callable[[str], None]

_T = TypeVar("_T")


class HostStatus(NamedTuple):
    """What a host is seen to be.

    `link` is "up", "cut", or "cut from h2, h3"; `engine` its version, "stopped", or "-" in a bed without engines;
    `containers` is how many run, None where no engine answers.
    """

    name: str
    address: str
    on: bool
    link: str
    sshd: bool
    engine: str
    containers: int | None

    @property
    def well(self) -> bool:
        """Whether nothing of the host is switched off, stopped or cut."""
        return self.on and self.link == "up" and self.sshd and self.engine != "stopped"


class Bed:
    """The bed in a directory, whether or not there is one yet.

    >>> bed = Bed(Path("/var/lib/etcdops-lab-hosts"))
    >>> inventory = bed.up(hosts=3)
    >>> bed.cut("h1", "h2")
    >>> bed.down()

    Raises Refused where this machine cannot have one, SpecError for names and numbers that are none, and EtcdopsError
    for what did not work.
    """

    def __init__(self, directory: str | Path = DIRECTORY, progress: Progress = lambda text: None) -> None:
        self.directory = Path(os.path.abspath(directory))
        self._places = Places(self.directory)
        self._say = progress

    @property
    def inventory(self) -> Path:
        """The inventory file."""
        return self._places.inventory

    # -- made and removed

    def up(self, hosts: int = 3, *, subnet: str = SUBNET, with_engine: bool = True, images: Sequence[str] = ()) -> Path:
        """Make the bed, or bring back what is off, stopped or cut in it; give the path of its inventory.

        Each image is copied from this machine's engine to the hosts. A bed that cannot be made is removed again.
        """
        record = BedRecord.new(hosts, subnet, with_engine=with_engine)
        demand(with_engine=with_engine)
        record.made_directory = not self.directory.exists()
        for image in images:
            check_image(image, with_engine=with_engine)
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        with self._locked():
            there = self._places.load()
            if there is not None:
                _check_same(there, record)
            try:
                if there is None:
                    self._claim(record)
                self._make(there or record)
                for image in images:
                    self._copy(there or record, image)
            except BaseException:
                if there is None and self._places.record.exists():
                    self._say("it did not work: removing what was made")
                    self._remove(record)
                raise
        return self.inventory

    def down(self) -> bool:
        """Remove the bed with all that is in it, whatever state it is in; False if there is none."""
        demand(with_engine=False)
        if not self._places.record.exists():
            if str(self.directory) == DIRECTORY:  # one that was made just before `up` was killed
                with contextlib.suppress(OSError):
                    self.directory.rmdir()
            return False
        with self._locked():
            record = self._places.load()
            if record is None:
                return False
            self._remove(record)
        return True

    def _claim(self, record: BedRecord) -> None:
        """Take the subnet, if nobody has it; others who make a bed at the same time see it taken."""
        # The directory is locked, and nothing in it: so nothing is left of that.
        descriptor = os.open("/run", os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._check_room(record)
            self._places.save(record)
            network.add_bridge(record)
        finally:
            os.close(descriptor)

    def _make(self, record: BedRecord) -> None:
        self._places.save(record)
        hosts.new_key(self._places.key, record.tag)
        network.add_bridge(record)
        self._places.hosts.mkdir(mode=0o700, exist_ok=True)
        self._each(record.hosts, lambda host: hosts.prepare(record, host, self._places))
        self._write_known_hosts(record)
        self._places.write_inventory(record)
        self._give_to_caller()
        self._switch_on(record, [host for host in record.hosts if not hosts.is_running(host.init)])
        self._start(record, record.hosts)
        for host in record.hosts:
            if not network.link_is_up(record, host):
                network.set_link(record, host, up=True)
            for other in network.cuts_of(record, hosts.pid_of(host)):
                network.mend_between(record, hosts.pid_of(host), record.host(other))
        self._wait(record, record.hosts)

    def _switch_on(self, record: BedRecord, which: Sequence[HostRecord]) -> None:
        if not which:
            return
        self._say(f"switching on {', '.join(host.name for host in which)}")
        with contextlib.ExitStack() as stack:
            begun = []
            for host in which:
                host.engine = host.sshd = ""
                begun.append(hosts.begin(record, host, self._places))
                stack.callback(begun[-1].close)
            # Recorded first: whatever happens from here on, `down` finds it.
            self._places.save(record)
            network.add_links(record, [(each.host, each.pid) for each in begun])
            for each in begun:
                each.go()
            for each in begun:
                each.wait()

    def _start(self, record: BedRecord, which: Sequence[HostRecord]) -> None:
        what = "dockerd and sshd" if record.with_engine else "sshd"
        if not all(hosts.is_running(host.sshd) for host in which):
            self._say(f"starting {what} on {', '.join(host.name for host in which)}")
        if record.with_engine:
            self._each(which, hosts.start_engine)
        self._each(which, hosts.start_sshd)
        self._places.save(record)

    def _wait(self, record: BedRecord, which: Sequence[HostRecord]) -> None:
        self._each(which, lambda host: hosts.wait_ready(host, engine=record.with_engine, sshd=True))

    def _copy(self, record: BedRecord, image: str) -> None:
        if lacking := [host for host in record.hosts if not has_image(host, image)]:
            self._say(f"copying {image} to {', '.join(host.name for host in lacking)}")
            with saved(image, self._places.image) as archive:
                self._each(lacking, lambda host: load(host, archive))

    def _remove(self, record: BedRecord) -> None:
        self._say(f"removing {', '.join(host.name for host in record.hosts)}")
        self._each(record.hosts, lambda host: hosts.switch_off(record, host))
        network.remove_all(record)
        remove_cgroups(record.tag)
        if self._places.hosts.exists():
            shutil.rmtree(self._places.hosts)
        for path in self._places.files():
            path.unlink(missing_ok=True)
        if record.made_directory:
            with contextlib.suppress(OSError):  # somebody has put something of his own into it
                self.directory.rmdir()

    # -- looked at

    def status(self) -> list[HostStatus]:
        """Look at every host; Refused if there is no bed."""
        record = self._record()
        return self._each(record.hosts, lambda host: _look(record, host))

    # -- damaged and mended

    def cut(self, name: str, other: str = "") -> None:
        """Pull a host's cable, or have two hosts drop all that the other sends."""
        with self._changing() as record:
            host = record.host(name)
            if not other:
                network.set_link(record, self._on(host), up=False)
            for one, two in _pairs(record, host, other):
                network.cut_between(record, hosts.pid_of(one), two)

    def mend(self, name: str, other: str = "") -> None:
        """Undo `cut` with the same names."""
        with self._changing() as record:
            host = record.host(name)
            if not other:
                network.set_link(record, self._on(host), up=True)
            for one, two in _pairs(record, host, other):
                network.mend_between(record, hosts.pid_of(one), two)

    def stop_engine(self, name: str) -> None:
        """Stop a host's engine in an orderly way, and its containers with it."""
        with self._changing() as record:
            hosts.stop_engine(self._on(self._with_engine(record, name)))

    def start_engine(self, name: str) -> None:
        """Start a host's engine, and wait until it answers."""
        with self._changing() as record:
            host = self._on(self._with_engine(record, name))
            hosts.start_engine(host)
            self._places.save(record)
            hosts.wait_ready(host, engine=True, sshd=False)

    def stop_sshd(self, name: str) -> None:
        """End a host's sshd with all sessions; containers and what is detached go on."""
        with self._changing() as record:
            hosts.stop_sshd(self._on(record.host(name)))

    def start_sshd(self, name: str) -> None:
        """Start a host's sshd, and wait until it answers, unless the host's link is cut."""
        with self._changing() as record:
            host = self._on(record.host(name))
            hosts.start_sshd(host)
            self._places.save(record)
            hosts.wait_ready(host, engine=False, sshd=network.link_is_up(record, host))

    def power_off(self, name: str) -> None:
        """End everything on a host at once; its disk stays."""
        with self._changing() as record:
            hosts.switch_off(record, record.host(name))

    def power_on(self, name: str) -> None:
        """Switch a host on again, with its disk as it was, and wait until its engine and its sshd answer."""
        with self._changing() as record:
            host = record.host(name)
            if not hosts.is_running(host.init):
                self._switch_on(record, [host])
                self._start(record, [host])
                self._wait(record, [host])

    # -- how

    def _record(self) -> BedRecord:
        demand(with_engine=False)
        record = self._places.load()
        if record is None:
            raise Refused(f"there is no bed in {self.directory}", remedy="Make one: scripts/lab-hosts up")
        return record

    @contextlib.contextmanager
    def _changing(self) -> Iterator[BedRecord]:
        self._record()
        with self._locked():
            record = self._record()
            yield record
            self._places.save(record)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the directory: that of the directory itself, so that no file is left of it."""
        try:
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise Refused(f"cannot use {self.directory}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused(
                    f"another lab-hosts works on {self.directory}", remedy="Wait until it has ended, and try again."
                ) from None
            yield
        finally:
            os.close(descriptor)

    def _each(self, which: Sequence[HostRecord], act: Callable[[HostRecord], _T]) -> list[_T]:
        """Do something to every host, at the same time; the first failure is raised once all have ended."""
        with ThreadPoolExecutor(max_workers=max(1, min(len(which), 16))) as pool:
            return list(pool.map(act, which))

    def _on(self, host: HostRecord) -> HostRecord:
        hosts.pid_of(host)
        return host

    def _with_engine(self, record: BedRecord, name: str) -> HostRecord:
        if not record.with_engine:
            raise Refused("this bed was made without engines", remedy="Take it down, and make one without --no-engine.")
        return record.host(name)

    def _check_room(self, record: BedRecord) -> None:
        if found := [name for name in sorted(os.listdir(self.directory)) if not record.made_directory]:
            raise Refused(f"{self.directory} is not empty: {found[0]} is in it", remedy="Name another with --dir.")
        try:
            if user := network.subnet_user(record.network):
                raise Refused(
                    f"the subnet {record.subnet} is in use on this machine: {user}",
                    remedy="Name another with --subnet; if that is a bed, take it down first: scripts/lab-hosts down",
                )
        except Refused:
            if record.made_directory:
                self.directory.rmdir()
            raise

    def _write_known_hosts(self, record: BedRecord) -> None:
        lines = []
        for host in record.hosts:
            kind, key, *_ = (self._places.host(host) / "host_key.pub").read_text().split()
            lines.append(f"{host.address} {kind} {key}\n")
        write_file(self._places.known_hosts, "".join(lines), 0o644)

    def _give_to_caller(self) -> None:
        """Let whoever called us through sudo use the key: ssh takes none that others can read."""
        if owner := os.environ.get("SUDO_UID", ""):
            for path in (self._places.key, self._places.known_hosts, self._places.inventory):
                os.chown(path, int(owner), int(os.environ.get("SUDO_GID", "-1")))


def _check_same(there: BedRecord, wanted: BedRecord) -> None:
    for what, has, asked in (
        ("hosts", len(there.hosts), len(wanted.hosts)),
        ("subnet", there.subnet, wanted.subnet),
        ("engines", there.with_engine, wanted.with_engine),
    ):
        if has != asked:
            raise Refused(
                f"there is another bed already: its {what}: {has}; asked for: {asked}",
                remedy="Take it down first: scripts/lab-hosts down; or name another directory and subnet.",
            )


def _pairs(record: BedRecord, host: HostRecord, other: str) -> Iterator[tuple[HostRecord, HostRecord]]:
    """Give both directions between two hosts of which at least one is on; nothing without another."""
    if not other:
        return
    two = record.host(other)
    if two is host:
        raise SpecError(f"{host.name} cannot be cut from itself")
    for one, its in ((host, two), (two, host)):
        # What is off answers nobody, and what it dropped is forgotten.
        if hosts.is_running(one.init):
            yield one, its


def _look(record: BedRecord, host: HostRecord) -> HostStatus:
    on = hosts.is_running(host.init)
    link = "cut"
    if on and network.link_is_up(record, host):
        drops = network.cuts_of(record, hosts.pid_of(host))
        link = f"cut from {', '.join(drops)}" if drops else "up"
    sshd = on and hosts.is_running(host.sshd)
    version = hosts.ask_engine(host, "/version") if on and record.with_engine else None
    running = hosts.ask_engine(host, "/containers/json") if version else None
    engine = version["Version"] if version else ("stopped" if record.with_engine else "-")
    return HostStatus(host.name, host.address, on, link, sshd, engine, None if running is None else len(running))
