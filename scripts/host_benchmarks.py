"""The benchmarks of clusters on several hosts: a bed of `scripts/lab-hosts`, or SSH servers of their own.

All hosts of a bed share this machine's processors and disk, which real ones do not.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from etcdops import binaries
from etcdops.cluster import Cluster
from etcdops.docker import images
from etcdops.docker.engine import Engine
from etcdops.hosts import LocalHost
from etcdops.ports import free_ports
from etcdops.remote.fan_out import Hosts, fan_out
from etcdops.remote.host import SSHHost
from etcdops.remote.inventory import HostSpec, Inventory, load
from etcdops.state import Store
from scripts.benching import BIN, POLL, median, place, row, say, timed
from scripts.lab_hosts.bed import Bed

__all__ = ["BENCHMARKS"]


#: What a person would write: ssh to all in the background, and wait for each.
_SSH_BY_HAND = """
pids=
for port in $4; do
    ssh -F none -o BatchMode=yes -o IdentitiesOnly=yes -o UserKnownHostsFile="$1" -i "$2" -p "$port" "$3@127.0.0.1" \\
        true &
    pids="$pids $!"
done
for pid in $pids; do wait "$pid" || exit 1; done
"""


@contextmanager
def _ssh_servers(count: int) -> Iterator[tuple[Path, list[int]]]:
    """Run so many SSH servers on loopback ports; gives the directory with `id` and `known_hosts`, and the ports."""
    with tempfile.TemporaryDirectory(prefix="etcdops-bench-") as name:
        path = Path(name)
        for key in ("id", "host"):
            timed(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path / key)])
        ports = free_ports(LocalHost(), count, ())
        shown = (path / "host.pub").read_text().rsplit(" ", 1)[0]
        (path / "known_hosts").write_text("".join(f"[127.0.0.1]:{port} {shown}\n" for port in ports))
        options = [f"HostKey={path}/host", f"AuthorizedKeysFile={path}/id.pub", "PidFile=none", "StrictModes=no"]
        # An empty home: what a login shell reads at its start would take longer than all else.
        options += ["UsePAM=no", "PasswordAuthentication=no", f"SetEnv=HOME={path}"]
        flags = [word for option in options for word in ("-o", option)]
        sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin") or "sshd"
        servers = [
            subprocess.Popen(
                [sshd, "-D", "-f", "/dev/null", *flags, "-o", f"ListenAddress=127.0.0.1:{port}"],
                stderr=subprocess.DEVNULL,
            )
            for port in ports
        ]
        try:
            deadline = time.monotonic() + 30
            for port in ports:
                while not _answers(port):
                    if time.monotonic() > deadline:
                        raise SystemExit("sshd does not answer")
                    time.sleep(0.05)
            yield path, ports
        finally:
            for server in servers:
                server.terminate()
                server.wait()


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def no_ops() -> None:
    """A command that does nothing on 20 hosts at once, connections included, against OpenSSH in the background."""

    def no_op(host: SSHHost) -> int:
        return host.run(["true"], timeout_s=60).exit_code

    with _ssh_servers(20) as (path, ports):
        user = getpass.getuser()
        files = {"key": str(path / "id"), "known_hosts": str(path / "known_hosts")}
        inventory = Inventory(
            tuple(HostSpec(f"h{port}", address="127.0.0.1", port=port, user=user, **files) for port in ports)
        )
        argv = ["sh", "-c", _SSH_BY_HAND, "sh", files["known_hosts"], files["key"], user, " ".join(map(str, ports))]
        ours, again, by_hand = [], [], []
        for attempt in range(8):
            by_hand.append(timed(argv))
            began = time.perf_counter()
            with Hosts(inventory, connect_timeout_s=60) as hosts:
                done = hosts.each(no_op, timeout_s=60)
                ours.append((time.perf_counter() - began) * 1000)
                assert all(outcome.checked() == 0 for outcome in done.values())
                began = time.perf_counter()
                hosts.each(no_op, timeout_s=60)
                again.append((time.perf_counter() - began) * 1000)
            if attempt == 0:
                # The first time is that of importing Fabric.
                say(f"fan-out: {ours.pop():.0f} ms the first time, imports included; by hand {by_hand.pop():.0f} ms")
                again.pop()
                continue
            say(f"fan-out {attempt}/7: {ours[-1]:.0f} ms, again {again[-1]:.0f} ms, by hand {by_hand[-1]:.0f} ms")
    figure = f"{min(ours):.0f} ms, by hand {min(by_hand):.0f} ms (fastest of {len(ours)})"
    row("fan-out of a no-op over 20 hosts", figure, "<= 1.2 x by hand", min(ours) <= 1.2 * min(by_hand))
    figure = f"{statistics.median(ours):.0f} ms, by hand {statistics.median(by_hand):.0f} ms"
    row("the same, medians", figure, "<= 1.2 x by hand", statistics.median(ours) <= 1.2 * statistics.median(by_hand))
    row("the same, once connected", f"{min(again):.0f} ms", "less", min(again) < min(ours))


@contextmanager
def _bed(image: str) -> Iterator[tuple[Bed, dict[str, Path]]]:
    """Three Docker hosts that have an image; gives inventories of all ("3") and of the first alone ("1")."""
    with tempfile.TemporaryDirectory(prefix="etcdops-bench-", dir="/var/tmp") as name:
        bed = Bed(Path(name) / "bed")
        try:
            bed.up(subnet=_SUBNET, images=[image])
            first = Path(name) / "first.toml"
            first.write_text(_first_of(bed.inventory.read_text()))
            yield bed, {"3": bed.inventory, "1": first}
        finally:
            bed.down()


def _first_of(inventory: str) -> str:
    """Give an inventory with its first host only."""
    before, table, rest = inventory.partition("[hosts.")
    return before + table + rest.partition("[hosts.")[0]


#: Written by hand: on each of three hosts a member and, as in the lab that this replaces, a client beside it.
_HAND_SERVICE = """
services:
  etcd:
    image: {image}
    entrypoint: [etcd]
    ports: ["{address}:{client}:{client}", "{address}:{peer}:{peer}"]
    volumes: ["data:/var/lib/etcd"]
    command: --name={name} --data-dir=/var/lib/etcd/data --logger=zap --listen-client-urls=http://0.0.0.0:{client}
      --advertise-client-urls=http://{address}:{client} --listen-peer-urls=http://0.0.0.0:{peer}
      --initial-advertise-peer-urls=http://{address}:{peer} --initial-cluster={initial}
  client:
    image: {image}
    entrypoint: [etcd]
    command: gateway start --listen-addr=0.0.0.0:2379 --endpoints={endpoints}
volumes:
  data:
"""

_HAND_UP = """
pids=
for name in $5; do
    ssh -F none -o BatchMode=yes -o IdentitiesOnly=yes -o UserKnownHostsFile="$4/known_hosts" -i "$4/id_ed25519" \\
        "root@$(cat "$name.address")" "docker compose -p $3 -f - $6" <"$name.yaml" &
    pids="$pids $!"
done
for pid in $pids; do wait "$pid" || exit 1; done
"""


def _by_hand(folder: Path, image: str, hosts: dict[str, str]) -> str:
    """Write the files that a person would write, and give the endpoints."""
    folder.mkdir()
    ports = free_ports(LocalHost(), 2, ())
    client, peer = ports[0], ports[1]
    initial = ",".join(f"{name}=http://{address}:{peer}" for name, address in hosts.items())
    told = {"image": image, "client": client, "peer": peer, "initial": initial}
    told["endpoints"] = ",".join(f"{address}:{client}" for address in hosts.values())
    for name, address in hosts.items():
        (folder / f"{name}.yaml").write_text(_HAND_SERVICE.format(name=name, address=address, **told))
        (folder / f"{name}.address").write_text(address)
    return ",".join(f"http://{address}:{client}" for address in hosts.values())


def up_env() -> None:
    """`up-env --hosts` over three hosts against `docker compose up` by ssh on each and polling for a write."""
    image = images.find(Engine(), offline=True).reference
    etcdctl = str(binaries.find(offline=True).etcdctl)
    took: dict[str, list[float]] = {"by hand": [], "ours": [], "ours, --insecure": []}
    with _bed(image) as (bed, inventories), place() as path:
        addresses = {spec.name: str(spec.address) for spec in load(inventories["3"]).hosts}
        keys = str(bed.directory)
        for i in range(5):
            endpoints = _by_hand(path / f"hand{i}", image, addresses)
            told = ["sh", etcdctl, endpoints, f"bench{i}", keys, " ".join(addresses)]
            try:
                took["by hand"].append(timed(["sh", "-c", _HAND_UP + POLL, *told, "up -d"], cwd=path / f"hand{i}"))
            finally:
                timed(["sh", "-c", _HAND_UP, *told, "down --volumes"], cwd=path / f"hand{i}")
            for what, options in (("ours", []), ("ours, --insecure", ["--insecure"])):
                name = f"b{i}" + "-insecure" * bool(options)
                argv = [str(BIN / "etcdops"), "up-env", "--hosts", str(inventories["3"]), "--image", image]
                took[what].append(timed([*argv, "--cluster", name, *options], cwd=path))
                Cluster.attach(name, store=Store(path / ".etcdops")).purge()
            say(f"hosts-up-env {i + 1}/5: {', '.join(f'{what} {ms[-1]:.0f} ms' for what, ms in took.items())}")
    hand = took.pop("by hand")
    for what, ms in took.items():
        ratio = min(ms) / min(hand)
        figure = f"{min(ms):.0f} / {min(hand):.0f} ms = {ratio:.2f} (medians {median(ms)} / {median(hand)})"
        row(f"up-env over 3 hosts, {what}", figure, "<= 1.2 x by hand", ratio <= 1.2)


def status() -> None:
    """`status` of three members on three hosts against the same on one host."""
    image = images.find(Engine(), offline=True).reference
    took: dict[str, list[float]] = {"1": [], "3": []}
    with _bed(image) as (_, inventories), place() as path:
        for count, inventory in inventories.items():
            argv = [str(BIN / "etcdops"), "up-env", "--hosts", str(inventory), "--cluster", f"on{count}"]
            timed([*argv, "--image", image], cwd=path)
        for _attempt in range(15):
            for count, each in took.items():
                each.append(timed([str(BIN / "etcdops"), "status", "--cluster", f"on{count}"], cwd=path))
    one, three = (statistics.median(took[count]) for count in ("1", "3"))
    row("status over 3 hosts / over 1, medians of 15", f"{three:.0f} / {one:.0f} ms", "<= 2", three <= 2 * one)


def image_push() -> None:
    """`image.push` to three hosts against the same to one, all of which lack the image.

    What unpacking and loading take longer on three hosts than on one, because they share this machine's processors, is
    measured apart: real hosts have their own.
    """
    image = images.find(Engine(), offline=True).reference
    took: dict[str, list[float]] = {"1": [], "3": []}
    loading: dict[str, list[float]] = {"1": [], "3": []}
    with _bed(image) as (_, inventories), place() as path:
        hosts = [SSHHost(spec) for spec in load(inventories["3"]).hosts]

        def on(chosen: list[SSHHost], command: str) -> float:
            argv = ["sh", "-c", command, "sh", image]
            began = time.perf_counter()
            done = fan_out(chosen, lambda host: host.run(argv, timeout_s=60).exit_code, timeout_s=60)
            assert all(outcome.checked() == 0 for outcome in done.values())
            return (time.perf_counter() - began) * 1000

        on(hosts, 'docker save "$1" | zstd -q >/root/image.tar.zst')
        for attempt in range(5):
            for count, each in took.items():
                on(hosts, 'docker image rm --force "$1"')
                loading[count].append(on(hosts[: int(count)], "zstd -dcq /root/image.tar.zst | docker load --quiet"))
                on(hosts, 'docker image rm --force "$1"')
                argv = [str(BIN / "etcdops"), "image.push", "--image", image, "--hosts", str(inventories[count])]
                each.append(timed(argv, cwd=path))
            said = ", ".join(
                f"to {count} {ms[-1]:.0f} ms (loading {loading[count][-1]:.0f})" for count, ms in took.items()
            )
            say(f"image-push {attempt + 1}/5: {said}")
    one, three = (min(took[count]) for count in ("1", "3"))
    row("image.push to 3 hosts / to 1, fastest of 5", f"{three:.0f} / {one:.0f} ms", "<= 1.3", three <= 1.3 * one)
    three -= min(loading["3"]) - min(loading["1"])
    row("the same, would each load as if alone", f"{three:.0f} / {one:.0f} ms", "<= 1.3", three <= 1.3 * one)


#: A network that a bed of a person's own does not have.
_SUBNET = "10.88.201.0/24"

BENCHMARKS: dict[str, Callable[[], None]] = {
    "fan-out": no_ops,
    "hosts-up-env": up_env,
    "hosts-status": status,
    "image-push": image_push,
}
