"""Hosts that no member can run on, one way after the other: who is told what, and that nothing is changed anywhere.

What is wrong is really so wherever it can be. Where it cannot, a command on that host says what it would say.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from etcdops.errors import HostUnreachable
from etcdops.remote import connection
from etcdops.remote.fan_out import Hosts, fan_out
from etcdops.remote.host import SSHHost
from etcdops.remote.inventory import load
from scripts.lab_hosts.bed import Bed
from tests.conftest import CommandLine, place
from tests.remote.beds import inventory_of

#: All that is on a host: containers, volumes, networks, images, and files where somebody might leave some.
_ALL = (
    "docker ps --all --quiet --no-trunc; docker volume ls --quiet; docker network ls --quiet;"
    " docker image ls --quiet --no-trunc; find /root /tmp -xdev ! -path '*/bad/*' | sort"
)

_Fields = dict[str, dict[str, Any]]


class Spoiling(NamedTuple):
    """What a way of spoiling hosts has to work with: the bed, connections, a directory, the inventory's fields."""

    bed: Bed
    hosts: Hosts
    directory: Path
    fields: _Fields

    def command(self, name: str, text: str) -> str:
        """Put a command onto h2, and give its path there."""
        path = f"/tmp/bad/{name}"
        host = self.hosts["h2"]
        host.make_dir("/tmp/bad")
        host.put(iter([f"#!/bin/sh\n{text}\n".encode()]), path, mode=0o755)
        return path


@pytest.fixture(scope="module")
def hosts(bed_to_break: Bed) -> Iterator[Hosts]:
    """Connections to the hosts, for the tests themselves."""
    with Hosts(load(bed_to_break.inventory)) as hosts:
        yield hosts


@pytest.fixture
def line(tmp_path: Path) -> Iterator[CommandLine]:
    """A command line in a directory of its own."""
    with place(tmp_path / "place", "auto") as line:
        yield line


def everything(hosts: Hosts, but: str = "") -> dict[str, bytes]:
    """Give all that there is on the hosts, `but` on one that cannot be asked."""

    def look(host: SSHHost) -> bytes:
        done = host.script(_ALL, timeout_s=60)
        assert done.exit_code == 0, done.stderr
        return done.stdout

    looked = fan_out([host for host in hosts if host.name != but], look, timeout_s=60)
    return {name: outcome.checked() for name, outcome in looked.items()}


def write(path: Path, fields: _Fields) -> str:
    """Write an inventory, and give its path."""
    text = ""
    for name, each in fields.items():
        text += f"[hosts.{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in each.items())
    path.write_text(text)
    return str(path)


# -- ways of spoiling them


@contextmanager
def unreachable(on: Spoiling) -> Iterator[None]:
    """The cable of h3 is pulled."""
    on.bed.cut("h3")
    try:
        yield
    finally:
        on.bed.mend("h3")


@contextmanager
def cut_pair(on: Spoiling) -> Iterator[None]:
    """h1 and h2 drop what the other sends."""
    on.bed.cut("h1", "h2")
    try:
        yield
    finally:
        on.bed.mend("h1", "h2")


def _key(directory: Path, name: str) -> Path:
    path = directory / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=30)
    return path


@contextmanager
def wrong_key(on: Spoiling) -> Iterator[None]:
    """A key that h2 knows nothing of."""
    on.fields["h2"]["key"] = str(_key(on.directory, "other"))
    yield


@contextmanager
def changed_key(on: Spoiling) -> Iterator[None]:
    """A known_hosts file in which h2 has another key."""
    kind, blob, *_ = _key(on.directory, "host").with_suffix(".pub").read_text().split()
    known = on.directory / "known"
    known.write_text(f"{on.fields['h2']['address']} {kind} {blob}\n")
    on.fields["h2"]["known_hosts"] = str(known)
    yield


@contextmanager
def no_docker(on: Spoiling) -> Iterator[None]:
    """There is no such command on h2."""
    on.fields["h2"]["docker"] = "/no/such"
    yield


@contextmanager
def no_engine(on: Spoiling) -> Iterator[None]:
    """Nothing listens where docker looks for the engine of h2."""
    on.fields["h2"]["docker"] = "docker --host unix:///run/no.sock"
    yield


@contextmanager
def no_permission(on: Spoiling) -> Iterator[None]:
    """The engine's socket on h2 is not for this user."""
    on.fields["h2"]["docker"] = "setpriv --reuid=65534 --regid=65534 --clear-groups docker"
    yield


@contextmanager
def old_compose(on: Spoiling) -> Iterator[None]:
    """h2 has a Compose of long ago."""
    script = 'if [ "$1" = compose ]; then echo 1.25.0; else exec docker "$@"; fi'
    on.fields["h2"]["docker"] = on.command("old", script)
    yield


def _image(name: str, architecture: str) -> bytes:
    """Give an image without a file in it, as `docker save` would."""
    layer = bytes(10240)
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files = {"layer.tar": layer}
    files |= {"config.json": json.dumps(config).encode(), "manifest.json": json.dumps(manifest).encode()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, data in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@contextmanager
def other_architecture(on: Spoiling) -> Iterator[None]:
    """h2 has the image of that name for another architecture, and the others have none."""
    done = on.hosts["h2"].run(["docker", "load"], timeout_s=60, stdin=_image("etcdops/bad:1", "arm64"))
    assert done.exit_code == 0, done.stderr
    try:
        yield
    finally:
        on.hosts["h2"].run(["docker", "image", "rm", "etcdops/bad:1"], timeout_s=60)


@contextmanager
def other_machine(on: Spoiling) -> Iterator[None]:
    """The engine of h2 says that its machine is another."""
    on.fields["h2"]["docker"] = on.command("other", """docker "$@" | sed 's/"Arch":"[a-z0-9]*"/"Arch":"s390x"/g'""")
    yield


@contextmanager
def before_all(on: Spoiling, name: str, script: str) -> Iterator[None]:
    """A command of this name comes before the real one in h2's PATH."""
    on.command(name, script)
    host = on.hosts["h2"]
    before = host.read("/root/.bashrc")
    host.put(iter([b"PATH=/tmp/bad:$PATH\n" + before]), "/root/.bashrc")
    try:
        yield
    finally:
        host.put(iter([before]), "/root/.bashrc") if before else host.remove("/root/.bashrc")
        host.remove(f"/tmp/bad/{name}")


def full_disk(on: Spoiling) -> AbstractContextManager[None]:
    """All file systems of h2 have 50 MB left."""
    return before_all(
        on, "df", "echo 'Filesystem 1024-blocks Used Available Capacity Mounted on'; echo /d 9 9 50000 99% /"
    )


def late_clock(on: Spoiling) -> AbstractContextManager[None]:
    """The clock of h2 is a minute behind."""
    return before_all(on, "date", 'exec /bin/date -d "1 minute ago" "$@"')


@contextmanager
def same_address(on: Spoiling) -> Iterator[None]:
    """h2 is given the address of h1."""
    on.fields["h2"]["address"] = on.fields["h1"]["address"]
    yield


@contextmanager
def unknown_field(on: Spoiling) -> Iterator[None]:
    """A field of h2 has a name that is none."""
    on.fields["h2"]["peer_adress"] = "10.0.0.1"
    yield


UP = ("up-env", "--image", "etcdops/bad:1")
DRILL = ("failed-leader", "--image", "etcdops/bad:1")
PUSH = ("image.push",)

BAD: list[tuple[Callable[[Spoiling], AbstractContextManager[None]], tuple[tuple[str, ...], ...], int, str, str]] = [
    (unreachable, (UP, PUSH), 3, r"cannot connect to host h3 \(10\.[\d.]+, port 22\)", "See whether it is up"),
    (wrong_key, (UP,), 3, r"cannot connect to host h2 .*: user root is not let in with \S+/other", "ssh-copy-id"),
    (changed_key, (UP,), 3, r"the key of host h2 .* has changed: .*/known, line 1", "ssh-keygen -f .*/known -R"),
    (no_docker, (UP, PUSH), 3, "h2: there is no command '/no/such' on h2", "Install Docker there"),
    (no_engine, (UP,), 3, r"h2: no Docker engine answers \(h2\)", "systemctl start docker"),
    (no_permission, (UP,), 3, r"h2: the Docker engine does not let this user in \(h2\)", "usermod -aG docker"),
    (old_compose, (UP,), 3, r"h2: Compose 1\.25\.0 is too old", "Update it"),
    (other_architecture, (UP,), 3, "h2: the image etcdops/bad:1 is for arm64, .* there runs ", "another with --image"),
    (other_machine, (PUSH,), 3, "the Docker engine of h2 runs s390x", "`image.build` on a machine with s390x"),
    (full_disk, (UP, PUSH), 3, r"h2: 49 MiB are free in /\S+, where Docker keeps", "docker system df"),
    (
        cut_pair,
        (UP, DRILL),
        3,
        r"h1 does not reach h2 \([\d.]+, port 22\): .*(\n.*)*h2 does not reach h1 ",
        "firewalls",
    ),
    (same_address, (PUSH,), 2, r"hosts\.toml, line \d+: hosts h1 and h2 have the same address", "Each host is a "),
    (unknown_field, (UP,), 2, r"hosts\.toml, line \d+: host h2 has an unknown field 'peer_adress'", "Known are"),
]


@pytest.mark.parametrize(("spoil", "commands", "code", "said", "todo"), BAD, ids=[each[0].__name__ for each in BAD])
def test_refused(
    bed_to_break: Bed,
    hosts: Hosts,
    line: CommandLine,
    tmp_path: Path,
    spoil: Callable[[Spoiling], AbstractContextManager[None]],
    commands: tuple[tuple[str, ...], ...],
    code: int,
    said: str,
    todo: str,
) -> None:
    """It is refused, with the host or the pair, what was tried, and what to do; nothing is changed anywhere."""
    on = Spoiling(bed_to_break, hosts, tmp_path, inventory_of(bed_to_break))
    files = sorted(os.listdir(line.cwd))
    with spoil(on):
        inventory = write(tmp_path / "hosts.toml", on.fields)
        dead = "h3" if spoil is unreachable else ""
        before = everything(hosts, but=dead)
        for command in commands:
            ended = line(*command, INVOKE_ETCDOPS_HOSTS=inventory)
            assert (ended.code, ended.out) == (code, ""), ended.err
            assert re.search(said, ended.err), ended.err
            assert re.search(f"-> .*{todo}", ended.err), ended.err
        assert everything(hosts, but=dead) == before
    assert line.store.names() == []
    assert [name for name in sorted(os.listdir(line.cwd)) if name != ".etcdops"] == files


def test_all_is_told_at_once(bed_to_break: Bed, hosts: Hosts, line: CommandLine, tmp_path: Path) -> None:
    """What is wrong with several hosts is one answer, each with what to do."""
    on = Spoiling(bed_to_break, hosts, tmp_path, inventory_of(bed_to_break))
    on.fields["h1"]["docker"] = "/no/such"
    with wrong_key(on):
        ended = line("up-env", INVOKE_ETCDOPS_HOSTS=write(tmp_path / "hosts.toml", on.fields))
    assert ended.code == 3
    assert re.search(r"h1: there is no command '/no/such' on h1\n  -> Install Docker", ended.err), ended.err
    assert re.search(r"host h2 .* is not let in .*\n  -> .*ssh-copy-id.* Nothing was changed", ended.err), ended.err


def test_clocks_are_a_warning(bed_to_break: Bed, hosts: Hosts, line: CommandLine, tmp_path: Path) -> None:
    """A clock that is wrong is told, and is no reason to refuse; an image that no host has is, with `image.push`."""
    on = Spoiling(bed_to_break, hosts, tmp_path, inventory_of(bed_to_break))
    with late_clock(on):
        before = everything(hosts)
        ended = line(*UP, INVOKE_ETCDOPS_HOSTS=write(tmp_path / "hosts.toml", on.fields))
        assert everything(hosts) == before
    assert ended.code == 3
    assert re.search(r"warning clock: h2: its clock is [56]\d\.\d s behind this machine's\n  -> Have both", ended.err)
    assert re.search(r"warning clocks-differ: the clocks of h2 and h\d are [56]\d\.\d s apart", ended.err), ended.err
    lacking = [f"the image etcdops/bad:1 is not on the Docker engine (of {name})" for name in hosts.inventory.names]
    assert all(each in ended.err for each in lacking), ended.err
    assert re.search(r"-> `image\.push --hosts …` copies this machine's there", ended.err), ended.err


def test_two_names_of_one_host(bed_to_break: Bed, hosts: Hosts, line: CommandLine, tmp_path: Path) -> None:
    """Names that ~/.ssh/config leads to one address are found out, as a file in which both have it."""
    host = inventory_of(bed_to_break)["h1"]
    config = tmp_path / "home" / ".ssh" / "config"
    config.parent.mkdir(parents=True)
    config.write_text(
        f"Host a b\n  HostName {host['address']}\n  User root\n  IdentityFile {host['key']}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {host['known_hosts']}\n"
    )
    before = everything(hosts)
    ended = line("up-env", "--hosts", "a,b", HOME=str(tmp_path / "home"))
    assert ended.code == 3
    assert f"a and b are the same host: both are at {host['address']}, port 22" in ended.err
    assert everything(hosts) == before


def test_a_dead_host_is_waited_for_once(bed_to_break: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks a host again that did not answer is told so without another attempt; one that is back is noticed."""
    attempts = []
    connect = connection.connect

    def counted(*args: Any, **options: Any) -> Any:
        attempts.append(args)
        return connect(*args, **options)

    monkeypatch.setattr("etcdops.remote.host.connect", counted)
    with SSHHost(load(bed_to_break.inventory).host("h3")) as host:
        bed_to_break.cut("h3")
        try:
            with pytest.raises(HostUnreachable, match="cannot connect to host h3") as first:
                host.connect()
            with pytest.raises(HostUnreachable, match="cannot connect to host h3") as again:
                host.run(["true"], timeout_s=60)
            assert (str(again.value), len(attempts)) == (str(first.value), 1)
        finally:
            bed_to_break.mend("h3")
        assert host.run(["hostname"], timeout_s=60).stdout == b"h3\n"
        assert len(attempts) == 2
