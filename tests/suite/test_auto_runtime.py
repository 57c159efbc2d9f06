"""`--runtime auto`, the default: containers where Docker and the image are here, else processes; said with the reason.

What Docker lacks here is arranged by the environment: a PATH without it, an address where no engine listens, and a
`docker` in front of the real one that knows no image.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etcdops import binaries, runtimes
from etcdops.spec import ClusterSpec
from tests.conftest import CommandLine, Ended, need_runtime, place
from tests.suite.members import running
from tests.suite.terminal import Terminal

NO_ENGINE = "unix:///nonexistent.sock"


@pytest.fixture
def auto(tmp_path: Path) -> Iterator[CommandLine]:
    """A command line for which nothing says how new clusters run."""
    with place(tmp_path / "place") as line:
        del line.env["INVOKE_ETCDOPS_RUNTIME"]
        yield line


@pytest.fixture
def with_docker(request: pytest.FixtureRequest) -> None:
    """Docker, Compose and an image are here."""
    need_runtime("compose", request.config)


@pytest.fixture
def no_docker() -> dict[str, Any]:
    """An environment in which there is no docker command, but an etcd."""
    return {"PATH": binaries.find(offline=True).directory}


@pytest.fixture
def no_image(with_docker: None, tmp_path: Path) -> dict[str, Any]:
    """An environment in whose Docker there is no image, and none to be pulled."""
    script = tmp_path / "bin" / "docker"
    script.parent.mkdir()
    script.write_text(
        '#!/bin/sh\ncase "$1 $2" in\n'
        '"image inspect") echo "Error: No such image: $3" >&2; exit 1 ;;\n'
        '"image ls") exit 0 ;;\n'
        '"pull "*) echo "Error response from daemon: no route to the registry" >&2; exit 1 ;;\n'
        f'esac\nexec {shutil.which("docker")} "$@"\n'
    )
    script.chmod(0o755)
    return {"PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}"}


def _chose(line: CommandLine, ended: Ended, runtime: str, *reasons: str) -> None:
    """Check that a new cluster came up with that runtime, and that this and the reason were said on stderr alone."""
    assert ended.code == 0, ended.err
    assert line.store.load("lab").runtime == runtime
    assert [each.member for each in running(runtime, line.store.root) if each.cluster == "lab"] == ["ironman"]
    way = {"process": "members run as processes", "compose": "members run in containers"}[runtime]
    [said] = [text for text in ended.err.splitlines() if "members run" in text]
    for each in (way, *reasons):
        assert each in said, (each, ended.err)
    assert "members run" not in ended.out


@pytest.mark.parametrize("program", ["etcdops", "invoke"])
def test_with_docker_and_an_image(auto: CommandLine, with_docker: None, program: str) -> None:
    """Where Docker, Compose and the image are here, members run in containers, and how to do without is said."""
    flags = [] if program == "etcdops" else ["--runtime", "auto"]
    _chose(auto, auto("up-env", "--size", "1", *flags, program=program), "compose", "--runtime process")


@pytest.mark.parametrize("program", ["etcdops", "invoke"])
def test_without_a_docker_command(auto: CommandLine, no_docker: dict[str, Any], program: str) -> None:
    """Without a docker command members run as processes."""
    ended = auto("up-env", "--size", "1", program=program, **no_docker)
    _chose(auto, ended, "process", "Docker is not installed")


def test_without_an_engine(auto: CommandLine, with_docker: None) -> None:
    """Where no engine answers, members run as processes, and the address that was tried is said."""
    ended = auto("up-env", "--size", "1", DOCKER_HOST=NO_ENGINE)
    _chose(auto, ended, "process", "no Docker engine answers", NO_ENGINE)


def test_with_an_engine_on_another_machine(auto: CommandLine, with_docker: None) -> None:
    """An engine on another machine is none, as what it publishes on its loopback cannot be reached; it is not asked."""
    ended = auto("up-env", "--size", "1", DOCKER_HOST="tcp://192.0.2.1:2375")
    _chose(auto, ended, "process", "tcp://192.0.2.1:2375", "another machine")


def test_without_an_image(auto: CommandLine, no_image: dict[str, Any]) -> None:
    """Where the image is neither here nor can be pulled, members run as processes, and which image is said."""
    _chose(auto, auto("up-env", "--size", "1", **no_image), "process", "/etcd:v3.")


def test_an_image_of_the_version_that_is_asked_for(auto: CommandLine, with_docker: None) -> None:
    """Only an image of the version that is asked for counts; where nothing has that, the etcd is what is missing."""
    ended = auto("up-env", "--size", "1", "--etcd-version", "3.4.1")
    assert (ended.code, ended.out) == (3, "")
    assert "3.4.1" in ended.err
    assert auto.store.names() == []


def test_a_binary_means_processes(auto: CommandLine) -> None:
    """--etcd-bin names what runs as a process, wherever Docker is; a configured one does as well."""
    directory = binaries.find(offline=True).directory
    _chose(auto, auto("up-env", "--size", "1", "--etcd-bin", directory), "process", "--etcd-bin")
    assert auto("down-env", "--purge", "--yes").code == 0
    _chose(auto, auto("up-env", "--size", "1", INVOKE_ETCDOPS_ETCD_BIN=directory), "process", "--etcd-bin")


def test_an_image_means_containers(auto: CommandLine, no_docker: dict[str, Any], with_docker: None) -> None:
    """--image means containers: where they cannot be had that is an error, and members never are processes instead."""
    for flags, env, said in (
        (["--image", "nosuch.invalid/etcd:1"], {}, "nosuch.invalid/etcd:1"),
        (["--image", "nosuch.invalid/etcd:1"], {"DOCKER_HOST": NO_ENGINE}, "no Docker engine answers"),
        (["--image", "nosuch.invalid/etcd:1"], no_docker, "Docker is not installed"),
    ):
        ended = auto("up-env", "--size", "1", *flags, **env)
        assert (ended.code, ended.out) == (3, ""), ended
        assert said in ended.err
        assert "\n  -> " in ended.err
        assert "here" not in ended.err.partition("error:")[0], "it is not"
        assert auto.store.names() == []
    found = runtimes.get("compose").prepare(ClusterSpec.of_size("any"), offline=True, progress=lambda text: None)
    image = found.image
    _chose(auto, auto("up-env", "--size", "1", "--image", image), "compose", "--image")
    both = auto("up-env", "--size", "1", "--cluster", "both", "--image", image, "--etcd-bin", "/usr/bin")
    assert both.code in (2, 3), both


def test_an_existing_cluster_is_not_chosen_for_again(
    auto: CommandLine, no_docker: dict[str, Any], with_docker: None
) -> None:
    """A cluster keeps the way in which it was made, whatever is here later, and nothing is said about a choice."""
    assert auto("up-env", "--size", "1", **no_docker).code == 0
    for flags in ((), ("--runtime", "auto")):
        assert auto("down-env").code == 0
        again = auto("up-env", *flags)
        assert (again.code, auto.store.load("lab").runtime) == (0, "process"), again.err
        assert "members run" not in again.err
    assert auto("up-env", "--size", "1", "--cluster", "other", "--runtime", "auto").code == 0
    record = auto.store.load("other")
    assert record.runtime == "compose"
    for task in ("up-env", "status", "down-env"):
        gone = auto(task, "--cluster", "other", **no_docker)
        assert (gone.code, gone.out) == (3, ""), gone
        assert "Docker is not installed" in gone.err
    assert auto.store.load("other") == record
    assert auto("status", "--cluster", "other").code == 0


def test_everything_that_creates_a_cluster_chooses(auto: CommandLine, no_docker: dict[str, Any]) -> None:
    """The drill and, on a terminal, `ctl` create a cluster as `up-env` does, and say what was chosen."""
    with Terminal(auto, "ctl", "--", "put", "k", "v", INVOKE_ETCDOPS_SIZE="1", **no_docker) as terminal:
        terminal.expect("[y/N]")
        terminal.type("y\n")
        assert terminal.wait() == 0
    assert "members run as processes: Docker is not installed" in terminal.text
    assert auto("down-env", "--purge", "--yes").code == 0
    drill = auto("no-fault", "--duration", "1", "--rate", "20", "--size", "1", **no_docker)
    assert drill.code == 0, drill.err
    assert "members run as processes: Docker is not installed" in drill.err
