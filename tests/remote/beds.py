"""Beds of Docker hosts for tests: made as users make them, shared by all workers of a run, searched for traces."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from etcdops.hosts import LocalHost, identify
from scripts.lab_hosts import network
from scripts.lab_hosts.bed import Bed
from scripts.lab_hosts.record import parse_subnet
from tests.conftest import ROOT, Ended

__all__ = [
    "bed_of_its_own",
    "inventory_of",
    "lab_hosts",
    "no_traces",
    "own_subnet",
    "processes_of",
    "record_of",
    "shared_bed",
    "ssh",
    "ssh_argv",
    "traces",
]

_PATIENCE_S = 100


def lab_hosts(*args: str, before: tuple[str, ...] = (), **env: str) -> Ended:
    """Run `scripts/lab-hosts`, as an argument of the command `before`, if there is one."""
    argv = [*before, str(ROOT / "scripts/lab-hosts"), *args]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_PATIENCE_S, env={**os.environ, **env})
    assert "Traceback" not in done.stderr, done.stderr
    return Ended(done.returncode, done.stdout, done.stderr)


def _free_subnets() -> Iterator[str]:
    """Give subnets that nothing on this machine uses now."""
    for number in range(256):
        subnet = f"10.88.{number}.0/24"
        if not network.subnet_user(parse_subnet(subnet)):
            yield subnet


def own_subnet() -> str:
    """Give a subnet that no other worker of this test run asks for."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for number in range(worker % 16 * 16, worker % 16 * 16 + 16):
        subnet = f"10.89.{number}.0/24"
        if not network.subnet_user(parse_subnet(subnet)):
            return subnet
    raise AssertionError("no subnet of this worker's is free")


@contextmanager
def bed_of_its_own(directory: Path, *options: str) -> Iterator[Bed]:
    """Give a bed that is there until the block ends; `options` are those of `scripts/lab-hosts up`."""
    try:
        _up(directory, *options)
        yield Bed(directory)
    finally:
        ended = lab_hosts("down", "--dir", str(directory))
        assert ended.code == 0, ended.err


def _up(directory: Path, *options: str) -> None:
    for subnet in _free_subnets():
        ended = lab_hosts("up", "--dir", str(directory), "--subnet", subnet, *options)
        # Others on this machine make theirs at the same time.
        if "is in use on this machine" not in ended.err:
            assert ended.code == 0, ended.err
            assert ended.out == f"{directory}/hosts.toml\n"
            return
    raise AssertionError("no subnet is free")


@contextmanager
def shared_bed(directory: Path) -> Iterator[Bed]:
    """Give the bed of this test run: the first worker that wants it makes it, the last that had it removes it."""
    directory.mkdir(exist_ok=True)
    user = directory / f"user-{os.getpid()}"
    with _locked(directory):
        if not _users(directory):
            with suppress(FileNotFoundError):
                lab_hosts("down", "--dir", str(directory / "bed"))
            _up(directory / "bed")
        user.write_text(identify(os.getpid()))
    try:
        yield Bed(directory / "bed")
    finally:
        with _locked(directory):
            user.unlink()
            if not _users(directory):
                ended = lab_hosts("down", "--dir", str(directory / "bed"))
                assert ended.code == 0, ended.err


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with open(directory / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _users(directory: Path) -> list[Path]:
    """Give those who use the bed; a worker that was killed does not any more."""
    return [path for path in directory.glob("user-*") if LocalHost().process_state(path.read_text()) != "gone"]


# -- what is in a bed


def record_of(bed: Bed) -> dict[str, Any]:
    """Give what is written down of a bed."""
    record: dict[str, Any] = json.loads((bed.directory / "bed.json").read_text())
    return record


def inventory_of(bed: Bed) -> dict[str, dict[str, Any]]:
    """Give the hosts of a bed's inventory."""
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    hosts: dict[str, dict[str, Any]] = toml.loads(bed.inventory.read_text())["hosts"]
    return hosts


def ssh(bed: Bed, name: str, *argv: str, stdin: bytes = b"", timeout_s: float = 60) -> Ended:
    """Run a command on a host with OpenSSH, host key checking on; exit code 255 is ssh's own."""
    done = subprocess.run([*ssh_argv(bed, name), shlex.join(argv)], input=stdin, capture_output=True, timeout=timeout_s)
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


def ssh_argv(bed: Bed, name: str) -> list[str]:
    """Give the beginning of a command that runs something on a host: nothing but what the inventory says."""
    host = inventory_of(bed)[name]
    options = {
        "IdentitiesOnly": "yes",
        "IdentityFile": host["key"],
        "UserKnownHostsFile": host["known_hosts"],
        "GlobalKnownHostsFile": "none",
        "StrictHostKeyChecking": "yes",
        "BatchMode": "yes",
        "ConnectTimeout": "3",
        "LogLevel": "ERROR",
    }
    words = [word for option, value in options.items() for word in ("-o", f"{option}={value}")]
    return ["ssh", "-F", "none", *words, "-p", str(host["port"]), f"{host['user']}@{host['address']}"]


# -- what is left of one


def processes_of(bed: Bed) -> set[str]:
    """Give the processes that a bed's hosts and their containers are made of, by id and start time.

    Those are the descendants of each host's init, to which its orphans go. Namespaces would not do: the kernel gives
    the number of one that has ended to the next that anybody makes.
    """
    inits = [psutil.Process(int(host["init"].partition(":")[0])) for host in record_of(bed)["hosts"] if host["init"]]
    for _ in range(20):
        # psutil lists all processes and then looks at each, and one may have ended in between.
        with suppress(psutil.NoSuchProcess):
            return {identify(each.pid) for init in inits for each in [init, *init.children(recursive=True)]} - {""}
    raise AssertionError("processes come and go too fast to be listed")


def traces(record: dict[str, Any], directory: Path, processes: set[str]) -> list[str]:
    """Give what is left of a bed: processes, mounts of any process, links, rules, cgroups, files.

    What others do on this machine in the meantime is not looked at: everything of a bed has its id in its name, or is
    among its processes or in its directory.
    """
    bed = record["bed"]
    left = [f"the process {ref}" for ref in processes if LocalHost().process_state(ref) != "gone"]
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdigit() and str(directory) in (process / "mountinfo").read_text():
                left.append(f"a mount of process {process.name}")
        with suppress(OSError):
            if process.name.isdigit() and f"{directory}/hosts" in (process / "cmdline").read_text():
                left.append(f"the process {process.name}")
    left += [f"the link {link}" for link in os.listdir("/sys/class/net") if bed in link]
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True, timeout=30).stdout
    left += [f"the rule {rule}" for rule in rules.splitlines() if bed in rule]
    left += [f"the cgroup {path}" for path in Path("/sys/fs/cgroup").glob(f"**/*{bed}*")]
    left += [f"the file {path}" for path in ([directory] if directory.exists() else [])]
    return left


def no_traces(record: dict[str, Any], directory: Path, processes: set[str]) -> bool:
    """Wait until nothing is left of a bed; AssertionError with what is, if something stays."""
    deadline = time.monotonic() + 10
    while left := traces(record, directory, processes):
        # A process whose `up` was killed before it was recorded ends by itself, in a moment.
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    return True
