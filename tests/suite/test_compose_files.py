"""The Compose files, rendered and by hand, and both versions of Compose."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from etcdops import wire
from etcdops.docker import compose
from etcdops.errors import EtcdError
from etcdops.hosts import LocalHost
from etcdops.ports import free_ports
from tests.conftest import ROOT, CommandLine, need_runtime, place
from tests.suite.engines import tools
from tests.suite.members import docker, end, lives

Wait = Callable[..., None]

BY_HAND = ROOT / "compose" / "docker-compose.yaml"
NAMES = ("ironman", "thor", "deadpool")


@pytest.fixture(scope="module")
def line(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A command line with a new cluster of three, "lab"."""
    need_runtime("compose", request.config)
    with place(tmp_path_factory.mktemp("files"), "compose") as line:
        try:
            ended = line("up-env")
            assert ended.code == 0, ended.err
            yield line
        finally:
            end("compose", line.store.root)


# -- what the two files say


def _config(file: Path, project: str) -> str:
    """Give what Compose makes of a file, as JSON: anchors are resolved, and short forms are spelt out."""
    argv = ["docker", "compose", "-p", project, "-f", str(file), "config", "--format", "json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _normal(config: str, project: str) -> dict[str, Any]:
    """Give what remains of it without ports, project, token, labels, image and the volumes' names."""
    for name in NAMES:
        port = json.loads(config)["services"][name]["ports"][0]["published"]
        config = re.sub(rf"\b{port}\b", f"<port of {name}>", config)
    config = config.replace(project, "<project>")
    config = re.sub(r"(--initial-cluster-token=)[^\"]+", r"\1<token>", config)
    told: dict[str, Any] = {key: value for key, value in json.loads(config).items() if not key.startswith("x-")}
    for kind in ("services", "networks", "volumes"):
        for each in told[kind].values():
            each.pop("labels", None)
    for service in told["services"].values():
        del service["image"]
    for volume in told["volumes"].values():
        del volume["name"]
    return told


@pytest.fixture(scope="module")
def rendered(line: CommandLine) -> dict[str, Any]:
    """The rendered file of a new cluster, as far as the one by hand must agree with it."""
    record = line.store.load("lab")
    project = compose.project_of("lab", record.id)
    return _normal(_config(Path(compose.file_of(record)), project), project)


def test_the_file_by_hand_agrees_with_the_rendered_one(rendered: dict[str, Any]) -> None:
    """But for ports, project, token, labels, image and volumes' names, both say the same."""
    by_hand = _normal(_config(BY_HAND, "by-hand"), "by-hand")
    assert by_hand == rendered
    # That there is something left to agree on.
    assert set(rendered["services"]) == {*NAMES, "client"}
    thor = rendered["services"]["thor"]
    assert thor["networks"]["peer"]["aliases"] == ["thor.peer"]
    assert "--advertise-client-urls=http://127.0.0.1:<port of thor>" in thor["command"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--heartbeat-interval=100", "--heartbeat-interval=200"),
        ("      - --logger=zap\n", ""),
        ("--initial-cluster=ironman=http://ironman.peer:2380,", "--initial-cluster=ironman=http://ironman:2380,"),
        ("--advertise-client-urls=http://127.0.0.1:23791", "--advertise-client-urls=http://127.0.0.1:23792"),
        ("aliases: [thor.peer]", "aliases: [thor]"),
        (
            "    networks:\n      client: {}\n\nnetworks:",
            "    networks:\n      client: {}\n      peer: {}\n\nnetworks:",
        ),
        ("    internal: true\n", ""),
        ('restart: "no"', "restart: always"),
        ("driver: json-file", "driver: local"),
        ('http_proxy: "", ', ""),
        ('all_proxy: ""', 'all_proxy: "http://proxy"'),
        ('"endpoint", "health"', '"endpoint", "status"'),
        ("interval: 15s", "interval: 30s"),
        ("stop_grace_period: 30s", "stop_grace_period: 10s"),
        ('"127.0.0.1:23793:2379"', '"23793:2379"'),
        ("deadpool:/var/lib/etcd", "deadpool:/var/lib"),
        ("hostname: client", "hostname: gateway"),
        ("      - --retry-delay=1s\n", ""),
        ('entrypoint: ["etcd"]', 'entrypoint: ["/usr/local/bin/etcd"]'),
    ],
)
def test_a_difference_between_the_files_is_noticed(
    rendered: dict[str, Any], tmp_path: Path, old: str, new: str
) -> None:
    """The comparison above would fail for any of these changes to the file by hand."""
    text = BY_HAND.read_text()
    assert old in text
    (tmp_path / "changed.yaml").write_text(text.replace(old, new, 1))
    assert _normal(_config(tmp_path / "changed.yaml", "changed"), "changed") != rendered


def _writes(port: int) -> bool:
    try:
        with wire.Connection(f"http://127.0.0.1:{port}", None) as connection:
            connection.put(b"k", str(port).encode(), timeout_s=5.0)
    except EtcdError:
        return False
    return True


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_file_by_hand_runs(line: CommandLine, tmp_path: Path, wait_until: Wait, version: str) -> None:
    """With plain Compose it makes a cluster that is written to from outside, and whose client lists the members
    without any flag; `down --volumes` leaves nothing."""
    text = BY_HAND.read_text()
    ports = free_ports(LocalHost(), 3, ())
    for i, port in enumerate(ports, start=1):
        text = text.replace(f"2379{i}", str(port))
    (tmp_path / "docker-compose.yaml").write_text(text)
    project = f"by-hand-{secrets.token_hex(3)}"
    program = ["docker-compose"] if version == "v1" else ["docker", "compose"]
    environment = {**line.env, "ETCD_IMAGE": line.store.load("lab").image}
    if version == "v1":
        environment["PATH"] = f"{tools(tmp_path / 'bin')}:{environment['PATH']}"

    def run(*arguments: str) -> str:
        argv = [*program, "-p", project, "-f", str(tmp_path / "docker-compose.yaml"), *arguments]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        return done.stdout

    mine = ["--filter", f"label=com.docker.compose.project={project}"]
    try:
        run("up", "-d")
        for port in ports:
            wait_until(lambda port=port: _writes(port), timeout_s=40, what=f"a write at port {port}")
        listed = run("exec", "-T", "client", "etcdctl", "member", "list")
        for name, port in zip(NAMES, ports, strict=True):
            assert f", started, {name}, http://{name}.peer:2380, http://127.0.0.1:{port}, " in listed
        assert run("exec", "-T", "client", "etcdctl", "get", "k", "--print-value-only").strip() == str(ports[-1])
    finally:
        run("down", "--volumes", "--timeout", "5")
    for kind in (["ps", "--all"], ["network", "ls"], ["volume", "ls"]):
        assert docker(*kind, "--quiet", *mine) == ""


# -- both versions of Compose

PROGRAMS = {"v1": {"plugin": False}, "v2": {"v1": False}}


def _made_by(line: CommandLine) -> dict[str, str]:
    """Give the major version of the Compose that made each member's container."""
    label = '{{index .Config.Labels "com.docker.compose.version"}}'
    return {
        member.name: docker("inspect", "--format", label, member.ref).lstrip("v")[0]
        for member in line.cluster().record.members
    }


@pytest.mark.parametrize(("first", "second"), [("v1", "v2"), ("v2", "v1")])
def test_made_with_one_version_and_brought_up_with_the_other(
    line: CommandLine, tmp_path: Path, first: str, second: str
) -> None:
    """Whichever Compose answers creates what is lacking, from whatever directory, and touches nothing else: the other
    containers are the same, and were not restarted."""
    paths = {name: tools(tmp_path / name, **PROGRAMS[name]) for name in PROGRAMS}
    with place(tmp_path / "here", "compose") as here, place(tmp_path / "there", "compose") as there:
        created = here("up-env", "--size", "2", PATH=paths[first])
        assert created.code == 0, created.err
        assert "cut off" not in created.err
        before = lives(here.cluster().record)
        assert set(_made_by(here).values()) == {first[1]}

        docker("rm", "--force", here.cluster().record.member("thor").ref)
        there.env |= {"PATH": paths[second], "ETCDOPS_STATE_DIR": str(here.store.root)}
        ended = there("up-env")
        assert ended.code == 0, ended.err
        assert "brought back thor" in ended.err
        assert _made_by(here) == {"ironman": first[1], "thor": second[1]}
        after = lives(here.cluster().record)
        assert after[0] == before[0]

        assert "was up already: nothing was changed" in there("up-env").err
        assert lives(here.cluster().record) == after
        assert not there.store.root.exists()


def test_another_cluster_of_the_same_name_stands_beside_it(line: CommandLine, tmp_path: Path) -> None:
    """From another directory, with a state of its own, the same name means another cluster; neither touches the other,
    not even when it is purged. A `.env` there that Compose could not read, a compose.yaml, and Compose's variables in
    the environment are no concern of ours."""
    before = lives(line.cluster().record)
    with place(tmp_path / "there", "compose") as there:
        (there.cwd / ".env").write_text('COMPOSE_PROJECT_NAME=other\nthis is not = "closed\n$%&\n')
        (there.cwd / "compose.yaml").write_text("services: {other: {image: none}}\n")
        there.env |= {"COMPOSE_PROJECT_NAME": "foreign", "COMPOSE_FILE": "/nonexistent", "COMPOSE_REMOVE_ORPHANS": "1"}
        ended = there("up-env", "--size", "1")
        assert ended.code == 0, ended.err
        assert there.cluster().record.id != line.cluster().record.id
        assert (there("status").code, line("status").code) == (0, 0)
        assert there("down-env", "--purge", "--yes").code == 0
    assert lives(line.cluster().record) == before
    assert line("status").code == 0
