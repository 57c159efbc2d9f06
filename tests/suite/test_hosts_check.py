"""`hosts.check` against real SSH servers on loopback: what it says of good hosts, and of what is wrong with others.

Docker is this machine's own where there is one; engines that are too old, or closed to the user, are scripts that say
what such an engine says.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etcdops.hosts import LocalHost
from etcdops.ports import free_ports
from etcdops.remote.checking import HostsReport, check_hosts
from etcdops.remote.facts import CODES
from etcdops.remote.inventory import Inventory
from tests.conftest import CommandLine, need_runtime, place
from tests.docs.markdown import ROOT
from tests.suite.storage import SshServer, ssh_server
from tests.suite.test_remote_host import spec_of


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """A host that forwards ports, as sshd does unless it is told otherwise."""
    with ssh_server(tmp_path_factory.mktemp("sshd"), commands=True) as server:
        yield server


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """A host that forwards nothing, and whose clock is an hour ahead."""
    directory = tmp_path_factory.mktemp("strict")
    date = directory / "bin" / "date"
    date.parent.mkdir()
    date.write_text('#!/bin/sh\nexec /bin/date -d "1 hour" "$@"\n')
    date.chmod(0o755)
    path = f"{date.parent}:{os.environ['PATH']}"
    with ssh_server(directory / "ssh", commands=True, AllowTcpForwarding="no", SetEnv=f"PATH={path}") as server:
        yield server


@pytest.fixture
def line(tmp_path: Path) -> Iterator[CommandLine]:
    """A command line in a directory of its own."""
    with place(tmp_path / "place") as line:
        yield line


def _write(line: CommandLine, **hosts: tuple[SshServer, dict[str, Any]]) -> str:
    """Write an inventory, and give its name."""
    text = ""
    for name, (server, fields) in hosts.items():
        spec = spec_of(server, name, **fields)
        text += f"[hosts.{name}]\n"
        for field in ("address", "port", "key", "known_hosts", "docker", "peer_address"):
            if value := getattr(spec, field):
                text += f"{field} = {json.dumps(value)}\n"
    (line.cwd / "hosts.toml").write_text(text)
    return "hosts.toml"


def _check(inventory: Inventory, **asked: Any) -> HostsReport:
    """Look at hosts with time enough for a busy machine: how long that takes is not what is tested."""
    return check_hosts(inventory, timeout_s=100, **asked)


def _codes(report: HostsReport) -> list[tuple[str, str]]:
    return [(finding.host, finding.code) for finding in report.findings]


def test_good_hosts(line: CommandLine, server: SshServer, strict: SshServer, request: pytest.FixtureRequest) -> None:
    """Each host's row is what this machine's own commands say, and each host reaches each other, forwarding or not."""
    need_runtime("compose", request.config)
    hosts = _write(line, h1=(server, {}), h2=(strict, {}))
    done = line("hosts.check", "--hosts", hosts, "-o", "json", "--timeout", "60")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    own = LocalHost().run(["docker", "version", "--format", "{{.Server.Version}} {{.Server.Arch}}"], timeout_s=30)
    version, architecture = own.stdout.decode().split()
    assert [each["name"] for each in told["hosts"]] == ["h1", "h2"]
    for each in told["hosts"]:
        assert each["reachable"]
        assert (each["docker"], each["architecture"]) == (version, architecture)
        assert each["compose"]
        assert each["images"]
        assert each["latency_ms"] > 0
        assert each["disk_free_bytes"] > 0
        assert each["ports_free"] > 0
    assert abs(told["hosts"][0]["clock_offset_ms"]) <= told["hosts"][0]["clock_error_ms"] + 1000
    assert abs(told["hosts"][1]["clock_offset_ms"] - 3_600_000) < 60_000
    assert {(each["source"], each["target"], each["result"]) for each in told["peers"]} == {
        ("h1", "h2", "reachable"),
        ("h2", "h1", "reachable"),
    }
    assert told["verdict"] == "warnings"
    assert {each["code"] for each in told["findings"]} == {"same-engine", "clock", "clocks-differ"}
    table = line("hosts.check", "--hosts", hosts, "--timeout", "60")
    assert table.code == 0
    assert table.out.splitlines()[1].split()[:3] == ["h1", "127.0.0.1", "yes"]
    assert "FROM \\ TO" in table.out
    assert re.search(r"h2: its clock is 3[56]\d\d\.\d s ahead of this machine's", table.out)


def test_a_bad_host_hides_no_other(line: CommandLine, server: SshServer) -> None:
    """A host that is down is named with what to do, the command exits 1, and the other's row is there."""
    [free] = free_ports(LocalHost(), 1, ())
    done = line("hosts.check", "--hosts", _write(line, h1=(server, {}), dead=(server, {"port": free})))
    assert done.code == 1
    rows = [row.split() for row in done.out.splitlines()]
    assert ["h1", "127.0.0.1", "yes"] in [row[:3] for row in rows]
    assert ["dead", "127.0.0.1", "NO"] in [row[:3] for row in rows]
    assert f"error unreachable: cannot connect to host dead (127.0.0.1, port {free}): connection refused" in done.out


def test_keys_are_recorded_on_demand(line: CommandLine, server: SshServer) -> None:
    """An unknown host key is a finding; with the flag it is recorded, and the host is looked at."""
    known = line.cwd / "known"
    hosts = _write(line, h1=(server, {"known_hosts": str(known)}))
    done = line("hosts.check", "--hosts", hosts)
    assert done.code == 1
    assert "is not known: it shows ssh-ed25519 SHA256:" in done.out
    assert not known.exists()
    done = line("hosts.check", "--hosts", hosts, "--accept-new-host-keys")
    assert "is not known" not in done.out
    assert server.host_key in known.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "needs to know which hosts"),
        (["--hosts", ""], "--hosts is given without a value"),
        (["--hosts", "no.toml"], "there is no inventory no.toml"),
        (["--hosts", "h1", "--ports", "x"], "--ports 'x' is not a whole number"),
        (["--hosts", "h1", "--ports", "0"], "--ports 0 is not offered"),
        (["--hosts", "h1", "--timeout", "0"], "--timeout 0 is not offered"),
        (["--hosts", "h1", "-o", "xml"], "-o 'xml' is not known"),
    ],
)
def test_usage(line: CommandLine, arguments: list[str], said: str) -> None:
    """What cannot be meant is refused before any host is asked."""
    done = line("hosts.check", *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_hosts_come_from_the_configuration(line: CommandLine) -> None:
    """`hosts` in invoke.yaml, or in the environment, is what no flag needs to say again."""
    done = line("hosts.check", INVOKE_ETCDOPS_HOSTS="elsewhere.toml")
    assert "there is no inventory elsewhere.toml" in done.err


_GOOD = '{"Version": "24.0.1", "ApiVersion": "1.43", "Arch": "amd64"}'
_INFO = "ABCD /"


def _docker(directory: Path, **answers: str) -> str:
    """Make a docker command that says what it is told; one that is not told exits 1."""
    told = {"version": _GOOD, "info": _INFO, "compose": "2.26.1", "kind": "amd64"}
    told = {**told, "ls": "etcdops/etcd:3.5.30", **answers}
    cases = {"version": "version", "info": "info", "compose": "compose", "image ls": "ls", "image inspect": "kind"}
    script = '#!/bin/sh\ncase "$1 $2" in\n'
    for words, name in cases.items():
        text = told[name]
        act = f"printf '%s\\n' {shlex.quote(text)}" + (" >&2; exit 1" if text.startswith("!") else "")
        script += f"{shlex.quote(words)}*) {act} ;;\n"
    path = directory / "docker"
    # One that is not there has no name that an engine gives.
    script = script.replace("case ", 'case "$*" in *9.9.9*) exit 1 ;; esac\ncase ', 1)
    path.write_text(script.replace("'!", "'") + "*) exit 1 ;;\nesac\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ({}, ""),
        ({"version": '{"Version": "19.03", "ApiVersion": "1.40", "Arch": "amd64"}'}, "docker-too-old"),
        ({"version": "!permission denied while trying to connect to the Docker daemon socket"}, "docker-silent"),
        (
            {"version": "!Cannot connect to the Docker daemon at unix:///x"},
            "docker-silent",
        ),
        ({"compose": "1.25.0"}, "compose-too-old"),
        ({"compose": "v1.29.2"}, ""),
        ({"ls": "nginx:1"}, "image-missing"),
        ({"kind": "arm64"}, "image-architecture"),
    ],
)
def test_engines(server: SshServer, tmp_path: Path, answers: dict[str, str], code: str) -> None:
    """An engine that is too old, closed or lacks what it needs is found, and one that is good is not."""
    report = _check(Inventory((spec_of(server, docker=_docker(tmp_path, **answers)),)))
    assert _codes(report) == ([("h1", code)] if code else []), report.findings
    for finding in report.findings:
        assert finding.message.startswith("h1: ")
        assert finding.remedy
    assert report.verdict == ("fit" if not code else "unfit" if CODES[code] == "error" else "warnings")


def test_no_docker_at_all(server: SshServer) -> None:
    """A host without the docker command is told apart from one whose engine is down."""
    report = _check(Inventory((spec_of(server, docker="no-such-docker"),)))
    assert _codes(report) == [("h1", "docker-missing")]


def test_ports_and_images_that_were_asked_for(server: SshServer, tmp_path: Path) -> None:
    """A port in use and an image that is not there are findings; others are not."""
    [free] = free_ports(LocalHost(), 1, ())
    inventory = Inventory((spec_of(server, docker=_docker(tmp_path)),))
    report = _check(inventory, ports=(server.port, free), image="etcdops/etcd:9.9.9")
    assert sorted(_codes(report)) == [("h1", "image-missing"), ("h1", "ports-taken")]
    assert report.hosts[0].ports_taken == [server.port]
    assert _check(inventory, ports=(free,), image="etcdops/etcd:3.5.30").verdict == "fit"


def test_peers_that_do_not_reach_each_other(server: SshServer, strict: SshServer, tmp_path: Path) -> None:
    """The pair is named, in the direction that fails, whichever way the connection was tried."""
    docker = _docker(tmp_path)
    hosts = Inventory(
        (
            # No packet leaves for this address.
            spec_of(server, "h1", docker=docker, peer_address="255.255.255.255"),
            spec_of(strict, "h2", docker=docker),
            spec_of(server, "h3", docker=docker, known_hosts=str(server.home / ".ssh" / "known_hosts")),
        )
    )
    report = _check(hosts)
    bad = {(link.source, link.target) for link in report.peers if link.result == "unreachable"}
    assert bad == {("h2", "h1"), ("h3", "h1")}
    said = [finding.message for finding in report.findings if finding.code == "peer-unreachable"]
    assert [each.partition(":")[0] for each in sorted(said)] == [
        f"{source} does not reach h1 (255.255.255.255, port {server.port})" for source in ("h2", "h3")
    ]


def test_a_shell_that_talks(tmp_path: Path) -> None:
    """What start-up files print is a finding, and is taken for no answer."""
    noisy = tmp_path / "noisy"
    noisy.write_text('#!/bin/sh\necho "Welcome!"\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    noisy.chmod(0o755)
    with ssh_server(tmp_path / "ssh", commands=True, ForceCommand=noisy) as server:
        report = _check(Inventory((spec_of(server, docker="no-such-docker"),)))
    assert ("h1", "shell-noise") in _codes(report)
    assert report.hosts[0].clock_offset_ms is not None


def test_every_code_is_documented() -> None:
    """The page has a row for each code, with its severity, and no other."""
    text = (ROOT / "docs" / "hosts.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `") and line.count("|") == 4]
    said = {code.strip(" `"): severity.strip() for code, severity in rows if severity.strip() in ("error", "warning")}
    assert said == CODES
