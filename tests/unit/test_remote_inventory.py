"""Inventories of hosts and known_hosts files: what is read, and what is refused with file and line. No network."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from etcdops.errors import SpecError, StateError
from etcdops.remote.inventory import HostSpec, Inventory, load, parse, read_inventory
from etcdops.remote.known_hosts import Shown, known_keys, preferred, record

FULL = """
[hosts.h1]
address = "10.88.0.1"
user = "root"
port = 2222
key = "id"
known_hosts = "~/known"
docker = "sudo -n docker"
context = "rootless"
peer_address = "192.168.7.1"
jump = "you@bastion:22,other"

[hosts."h2.example.com"]
"""


def test_an_inventory_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every field arrives; paths are relative to the file; a host without fields is its name."""
    monkeypatch.setenv("HOME", "/home/you")
    (tmp_path / "id").touch()
    (tmp_path / "hosts.toml").write_text(FULL)
    inventory = load(tmp_path / "hosts.toml")
    assert inventory.names == ("h1", "h2.example.com")
    first = inventory.host("h1")
    assert first == HostSpec(
        name="h1",
        address="10.88.0.1",
        user="root",
        port=2222,
        key=str(tmp_path / "id"),
        known_hosts="/home/you/known",
        docker="sudo -n docker",
        context="rootless",
        peer_address="192.168.7.1",
        jump="you@bastion:22,other",
    )
    assert first.docker_argv == ["sudo", "-n", "docker", "--context", "rootless"]
    assert inventory.hosts[1] == HostSpec(name="h2.example.com")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no host"),
        ("[hosts]", "names no host"),
        ("[hosts.h1", "line 1: no TOML"),
        ("\n[host.h1]", r"line 2: 'host' is not known; did you mean 'hosts'\?"),
        ("hosts = 3", "line 1: hosts is no table"),
        ("[hosts]\nh1 = 3", "line 2: host h1 is no table"),
        ('[hosts.h1]\naddress = "a"\nusr = "x"', r"line 3: host h1 has an unknown field 'usr'; did you mean 'user'\?"),
        ('[hosts.h1]\n\nport = "22"', "line 3: host h1: port: expected int, got str"),
        ("[hosts.h1]\nport = true", "line 2: host h1: port: expected int, got bool"),
        ("[hosts.h1]\nport = 70000", "line 2: host h1: port 70000 is not offered"),
        ("[hosts.h1]\nuser = 3", "line 2: host h1: user: expected str, got int"),
        ('[hosts.h1]\naddress = "-oProxyCommand=x"', "line 2: host h1: address '-oProxyCommand=x' is no address"),
        ('[hosts.h1]\naddress = "a b"', "line 2: host h1: address 'a b' is no address"),
        ('[hosts.h1]\nuser = "-l"', "line 2: host h1: user '-l' cannot be"),
        ('[hosts.h1]\njump = "a;b"', "line 2: host h1: jump 'a;b' is no list"),
        ('[hosts.h1]\ndocker = "it\'s"', "line 2: host h1: docker .* is no command"),
        ('[hosts.h1]\nkey = "/nowhere/id"', "line 2: host h1: there is no key /nowhere/id"),
        ('[hosts."a b"]', "line 1: 'a b' cannot name a host"),
        ('[hosts."-x"]', "line 1: '-x' cannot name a host"),
        (
            '[hosts.h1]\naddress = "a"\n[hosts.h2]\nport = 22\naddress = "a"',
            "line 5: hosts h1 and h2 have the same address: a, port 22",
        ),
        (
            '[hosts.h1]\npeer_address = "p"\n[hosts.h2]\npeer_address = "p"',
            "line 4: hosts h1 and h2 have the same peer_address: p",
        ),
        ('hosts.h1.adress = "x"', "line 1: host h1 has an unknown field 'adress'"),
        ('[hosts]\nh1 = {address = "-x"}', "line 2: host h1: address '-x'"),
    ],
)
def test_mistakes_are_told_with_their_line(text: str, said: str) -> None:
    """Whatever is wrong in an inventory, the message has the file, the line and what would be right."""
    with pytest.raises(SpecError, match=rf"lab/hosts\.toml.*{said}") as refused:
        parse(text, source="lab/hosts.toml")
    assert refused.value.remedy


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, a directory and bytes that are no text are told apart."""
    with pytest.raises(SpecError, match="there is no inventory"):
        read_inventory(str(tmp_path / "no.toml"))
    with pytest.raises(SpecError, match="cannot read the inventory"):
        load(tmp_path)
    (tmp_path / "x.toml").write_bytes(b"[hosts.h1]\n\xff")
    with pytest.raises(SpecError, match="line 2: not UTF-8"):
        load(tmp_path / "x.toml")


def test_names_are_hosts_of_ssh() -> None:
    """Names without a file are left to ~/.ssh/config; what cannot be a name, or comes twice, is refused."""
    assert read_inventory("h1, h2") == Inventory((HostSpec(name="h1"), HostSpec(name="h2")))
    for text, said in (("h1,,h2", "'' cannot name"), ("-x", "'-x' cannot name"), ("h1,h1", "names h1 twice")):
        with pytest.raises(SpecError, match=said):
            read_inventory(text)


def test_keys_are_found_by_every_name(tmp_path: Path) -> None:
    """Lists, patterns, negations, markers and comments are understood; the line number is that of the file."""
    blob = base64.b64encode(b"key").decode()
    file = tmp_path / "known_hosts"
    file.write_text(
        f"# h1 ssh-ed25519 {blob}\nh0,H1 ssh-ed25519 {blob}\n*.example.com,!b.example.com ssh-rsa {blob}\n"
        f"@revoked h1 ssh-rsa {blob}\n@cert-authority h1 ssh-rsa {blob}\nh1 ssh-ed25519 not-base64!\nh1\n\n"
    )
    found = known_keys([str(tmp_path / "missing"), str(file)], "h1")
    assert [(key.line, key.kind, key.revoked) for key in found] == [(2, "ssh-ed25519", False), (4, "ssh-rsa", True)]
    assert preferred(found) == ["ssh-ed25519"]
    assert preferred(known_keys([str(file)], "a.example.com")) == ["rsa-sha2-512", "rsa-sha2-256"]
    assert known_keys([str(file)], "b.example.com") == []
    with pytest.raises(StateError, match="cannot read the host keys"):
        known_keys([str(tmp_path)], "h1")


def test_a_key_is_added_on_a_line_of_its_own(tmp_path: Path) -> None:
    """A file whose last line has no end gets one first, and what was there stays."""
    file = tmp_path / "known_hosts"
    file.write_text("other ssh-ed25519 AAAA")
    record(str(file), "h1", Shown("ssh-ed25519", b"key"))
    assert file.read_text() == f"other ssh-ed25519 AAAA\nh1 ssh-ed25519 {base64.b64encode(b'key').decode()}\n"
