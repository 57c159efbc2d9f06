"""Docker in trouble: each kind has a message and a remedy of its own, exit 3, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from etcdops import runtimes
from etcdops.spec import ClusterSpec
from tests.conftest import CommandLine, Ended, need_runtime, place
from tests.suite.engines import Inside, OwnEngine, hung_engine, old_engine, own_engine, tools, write_program
from tests.suite.members import docker, left, lives

Wait = Callable[..., None]

SOCKET = "/var/run/docker.sock"


@pytest.fixture(scope="module")
def image(request: pytest.FixtureRequest) -> str:
    """The image that new clusters get."""
    need_runtime("compose", request.config)
    found = runtimes.get("compose").prepare(ClusterSpec.of_size("any"), offline=True, progress=lambda text: None)
    return found.image


@pytest.fixture
def line(tmp_path: Path, image: str) -> Iterator[CommandLine]:
    """A command line where new clusters are containers."""
    with place(tmp_path / "place", "compose") as line:
        yield line
    for each in left("compose", line.store.root):
        runtimes.get("compose").end_leftover(each)


@pytest.fixture(scope="module")
def up(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A command line with a cluster of one in a container."""
    with place(tmp_path_factory.mktemp("trouble"), "compose") as line:
        ended = line("up-env", "--size", "1")
        assert ended.code == 0, ended.err
        yield line


# -- no engine that could be used


class Trouble(NamedTuple):
    """What surrounds the command (from a directory), and what it says then."""

    around: Callable[[Path], AbstractContextManager[dict[str, str]]]
    message: str
    remedy: str


def _environment(make: Callable[[Path], dict[str, str]]) -> Callable[[Path], AbstractContextManager[dict[str, str]]]:
    return lambda directory: nullcontext(make(directory))


@contextmanager
def _nothing(directory: Path) -> Iterator[dict[str, str]]:
    yield {}


@contextmanager
def _old(directory: Path) -> Iterator[dict[str, str]]:
    with old_engine(directory / "sock") as address:
        yield {"DOCKER_HOST": address}


@contextmanager
def _hung(directory: Path) -> Iterator[dict[str, str]]:
    with hung_engine(directory / "sock") as address:
        yield {"DOCKER_HOST": address}


def _not_let_in(directory: Path) -> dict[str, str]:
    """As a user who may not use the socket: for root nothing is forbidden, so docker runs as nobody."""
    if os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("only root can be another user")
    bin_dir = directory / "bin"
    bin_dir.mkdir()
    as_nobody = 'exec setpriv --reuid=65534 --regid=65534 --clear-groups env HOME=/ {} "$@"'
    write_program(bin_dir / "docker", f"#!/bin/sh\n{as_nobody.format(shutil.which('docker'))}\n")
    return {"PATH": f"{bin_dir}:{os.environ['PATH']}", "DOCKER_HOST": f"unix://{SOCKET}"}


TROUBLES = {
    "no docker": Trouble(
        _environment(lambda directory: {"PATH": tools(directory / "bin", docker=False)}),
        "Docker is not installed",
        "Install Docker with Compose",
    ),
    "no compose": Trouble(
        _environment(lambda directory: {"PATH": tools(directory / "bin", plugin=False, v1=False)}),
        "Docker has no Compose: neither `docker compose` nor `docker-compose` answers",
        "Install docker-compose-plugin",
    ),
    "daemon down": Trouble(
        _environment(lambda directory: {"DOCKER_HOST": f"unix://{directory}/nobody"}),
        "no Docker engine answers",
        "sudo systemctl start docker",
    ),
    "no permission": Trouble(
        _environment(_not_let_in), "the Docker engine does not let this user in", "sudo usermod -aG docker"
    ),
    "too old": Trouble(_old, "the Docker engine 17.12.1-ce", "Update it"),
    "hung": Trouble(_hung, "does not answer", "restart the engine"),
    "over ssh": Trouble(
        _environment(lambda directory: {"DOCKER_HOST": "ssh://root@192.0.2.1"}),
        "the Docker engine at ssh://root@192.0.2.1 is on another machine",
        "Unset DOCKER_HOST",
    ),
    "over tcp": Trouble(
        _environment(lambda directory: {"DOCKER_HOST": "tcp://localhost.example.org:2375"}),
        "the Docker engine at tcp://localhost.example.org:2375 is on another machine",
        "Unset DOCKER_HOST",
    ),
    "no such context": Trouble(
        _environment(lambda directory: {"DOCKER_CONTEXT": "nowhere"}), "no Docker engine answers", "docker context ls"
    ),
}


def _refused(ended: Ended, trouble: Trouble) -> None:
    assert ended.code == 3, ended
    [error] = [text for text in ended.err.splitlines() if text.startswith("error: ")]
    [remedy] = [text for text in ended.err.splitlines() if text.startswith("  -> ")]
    assert trouble.message in error
    assert trouble.remedy in remedy
    assert ended.out == ""


@pytest.mark.parametrize("kind", TROUBLES)
def test_each_trouble_says_what_it_is_and_changes_nothing(line: CommandLine, tmp_path: Path, kind: str) -> None:
    """A new cluster is refused with exit 3, the message and the remedy; there is no record and no container, and
    clusters can be listed all the same."""
    trouble = TROUBLES[kind]
    with trouble.around(tmp_path) as environment:
        line.env |= environment
        _refused(line("up-env", timeout_s=60), trouble)
        assert line.store.names() == []
        assert left("compose", line.store.root) == []
        listed = line("cluster.list")
        assert listed.code == 0, listed.err


@pytest.mark.parametrize("kind", ["no docker", "daemon down", "no permission", "hung"])
def test_a_cluster_whose_engine_is_in_trouble(up: CommandLine, tmp_path: Path, kind: str) -> None:
    """Tasks are refused with the same words, the record stays as it is, and `cluster.list` calls the cluster unknown;
    without the trouble everything is as it was."""
    record = up.cluster().record
    before = lives(record)
    path = up.store.cluster_dir("lab") / "cluster.json"
    usual, saved = dict(up.env), path.read_text()
    trouble = TROUBLES[kind]
    try:
        with trouble.around(tmp_path) as environment:
            up.env |= environment
            if address := environment.get("DOCKER_HOST"):
                path.write_text(saved.replace(record.engine, address))
            recorded = path.read_text()
            tasks = [["status"], ["up-env"], ["down-env", "--purge", "--yes"], ["heal"]]
            for task in tasks[:1] if kind == "hung" else tasks:
                _refused(up(*task)._replace(out=""), trouble)
            listed = up("cluster.list", "-o", "json")
            [found] = [each for each in json.loads(listed.out)["clusters"] if each["id"] == record.id]
            assert found["state"] == "unknown"
            assert trouble.message in found["problem"]
            assert path.read_text() == recorded
    finally:
        path.write_text(saved)
        up.env = usual
    assert up("status").code == 0
    assert lives(up.cluster().record) == before


# -- an engine of our own, which can be stopped and filled


@pytest.fixture(scope="module")
def engine(image: str) -> Iterator[OwnEngine]:
    """A Docker engine that nothing else uses, with the image."""
    with own_engine(image) as engine:
        yield engine


@pytest.fixture
def inside(engine: OwnEngine, tmp_path: Path) -> Iterator[Inside]:
    """A command line that reaches the members of that engine."""
    yield Inside(tmp_path / "inside", engine)
    engine.clear()


def test_a_full_disk(engine: OwnEngine, inside: Inside) -> None:
    """Where the engine cannot write, a new cluster is refused, with nothing left of it, and one that runs goes on."""
    assert inside("up-env", "--size", "1", "--cluster", "old").code == 0
    before = engine.everything()
    with engine.full():
        _refused(inside("up-env"), Trouble(_nothing, "the disk of the Docker engine is full", "docker system df"))
        assert inside("status", "--cluster", "old").code == 0
    assert engine.everything() == before
    assert inside.store.names() == ["old"]


def test_no_addresses_left_for_another_network(engine: OwnEngine, inside: Inside) -> None:
    """With room for one network of two, a new cluster is refused, and the one network is gone again."""
    made = 0
    while made < 20:
        try:
            engine.docker("network", "create", f"filler-{made}")
        except AssertionError:
            break
        made += 1
    assert made > 2
    engine.docker("network", "rm", "filler-0")
    before = engine.everything()
    trouble = Trouble(_nothing, "has no address range left", "docker network prune")
    _refused(inside("up-env"), trouble)
    assert engine.everything() == before
    assert inside.store.names() == []
    engine.docker("network", "rm", "filler-1")
    assert inside("up-env", "--size", "1").code == 0


def test_a_restart_of_the_engine(engine: OwnEngine, inside: Inside) -> None:
    """While it is down, tasks say so and change nothing. Afterwards up-env brings the members back, as the same
    containers with the same data at the same ports."""
    assert inside("up-env").code == 0
    assert inside("ctl", "--", "put", "k", "kept").code == 0
    before = inside.store.load("lab")
    engine.stop()
    trouble = TROUBLES["daemon down"]
    try:
        for task in (["status"], ["up-env"], ["down-env", "--purge", "--yes"]):
            _refused(inside(*task)._replace(out=""), trouble)
        listed = inside("cluster.list", "-o", "json")
        assert [each["state"] for each in json.loads(listed.out)["clusters"] if each["id"] == before.id] == ["unknown"]
    finally:
        engine.start()
    assert inside("status").code == 5
    ended = inside("up-env")
    assert ended.code == 0, ended.err
    assert "brought back ironman, thor, deadpool" in ended.err
    after = inside.store.load("lab")
    assert [(m.ref, m.client_url) for m in after.members] == [(m.ref, m.client_url) for m in before.members]
    assert inside("ctl", "--", "get", "k", "--print-value-only").out == "kept\n"


# -- which engine


def test_a_cluster_stays_on_the_engine_where_it_was_made(engine: OwnEngine, inside: Inside, tmp_path: Path) -> None:
    """Made on that of a context, it is found, repaired and removed there, wherever the environment leads to later, by
    either Compose, and without the context; up-env shows the engine, and warns of one that is not meant."""
    usual = inside.env.pop("DOCKER_HOST")
    inside.env["DOCKER_CONFIG"] = str(tmp_path / "config")
    name = f"test-{secrets.token_hex(3)}"
    docker("--config", str(tmp_path / "config"), "context", "create", name, "--docker", f"host={usual}")
    created = inside("up-env", "--size", "1", DOCKER_CONTEXT=name)
    assert created.code == 0, created.err
    assert f"Docker engine: {usual}" in created.err
    assert "warning engine" not in created.err
    assert engine.all_of("container")
    assert left("compose", inside.store.root) == []
    member = inside.store.load("lab").members[0].ref

    for env, named in [
        ({}, ""),
        ({"DOCKER_HOST": usual}, ""),
        ({"DOCKER_CONTEXT": name}, ""),
        ({"DOCKER_HOST": f"unix://{SOCKET}"}, f"unix://{SOCKET}"),
        ({"DOCKER_HOST": "ssh://root@192.0.2.1"}, "ssh://root@192.0.2.1"),
        ({"DOCKER_CONTEXT": "nowhere"}, "nowhere"),
    ]:
        inside.env |= env
        again = inside("up-env")
        assert again.code == 0, again.err
        warned = [text for text in again.err.splitlines() if text.startswith("warning engine")]
        said = f"warning engine: the environment leads to {named}; lab stays on {usual}"
        assert warned == ([said] if named else []), env
        for key in env:
            del inside.env[key]

    docker("--config", str(tmp_path / "config"), "context", "rm", name)
    engine.docker("rm", "--force", *engine.docker("ps", "-q", "--filter", "label=io.etcdops.role=client").split())
    revived = inside("up-env", PATH=tools(tmp_path / "v1", plugin=False), DOCKER_HOST=f"unix://{SOCKET}")
    assert revived.code == 0, revived.err
    assert "brought back client" in revived.err
    assert inside("ctl", "--", "put", "k", "v", DOCKER_HOST=f"unix://{SOCKET}").code == 0
    assert inside.store.load("lab").members[0].ref == member
    assert inside("down-env", "--purge", "--yes").code == 0
    assert engine.everything() == set()


def test_the_context_that_is_in_use_is_respected(engine: OwnEngine, inside: Inside, tmp_path: Path) -> None:
    """What `docker context use` has chosen is where a new cluster goes, and what is shown."""
    usual = inside.env.pop("DOCKER_HOST")
    config = str(tmp_path / "config")
    inside.env["DOCKER_CONFIG"] = config
    docker("--config", config, "context", "create", "ours", "--docker", f"host={usual}")
    docker("--config", config, "context", "use", "ours")
    created = inside("up-env", "--size", "1")
    assert (created.code, f"Docker engine: {usual}" in created.err) == (0, True), created.err
    assert engine.all_of("container")
    docker("--config", config, "context", "use", "default")
    assert inside("status").code == 0


# -- hostile paths, and leftovers

HOSTILE = "a b $HOME ${X} $$ \"q' , io.etcdops.uid=1,b=c # üñ\\t"


def _found(line: CommandLine, id_: str) -> list[dict[str, Any]]:
    listed = line("cluster.list", "-o", "json")
    assert listed.code == 0, listed.err
    return [each for each in json.loads(listed.out)["clusters"] if each["id"] == id_]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_state_directory_with_a_hostile_path(tmp_path: Path, image: str, version: str) -> None:
    """Blanks, quotes, dollar signs, commas, what looks like labels: the path is in the labels as it is, the cluster is
    listed with it, and found as a leftover by it once it is gone."""
    directory = tmp_path / HOSTILE
    path = tools(tmp_path / "bin", plugin=version == "v2", v1=version == "v1")
    with place(directory, "compose") as line:
        line.env["PATH"] = path
        created = line("up-env", "--size", "1")
        assert created.code == 0, created.err
        record, root = line.store.load("lab"), str(line.store.root)
        labels = json.loads(docker("inspect", record.members[0].ref))[0]["Config"]["Labels"]
        assert labels["io.etcdops.state-dir"] == root
        [found] = _found(line, record.id)
        assert (found["state"], found["state_dir"]) == ("up", root)
        shutil.rmtree(root)
        elsewhere = CommandLine(tmp_path)
        [lost] = _found(elsewhere, record.id)
        assert (lost["state"], lost["state_dir"], lost["members"]) == ("leftover", root, ["ironman"])
        pruned = elsewhere("cluster.prune", "--cluster", f"{root}/clusters/lab", "--yes")
        assert pruned.code == 0, pruned.err
        assert _found(elsewhere, record.id) == []


@pytest.mark.parametrize("remains", ["all of it, running", "all of it, stopped", "volumes"])
def test_what_is_left_of_a_cluster_without_its_record(line: CommandLine, remains: str) -> None:
    """Containers, networks and volumes whose state directory was deleted are listed as a leftover, each named, and
    `cluster.prune` removes them all, running or not."""
    assert line("up-env", "--size", "1").code == 0
    record = line.store.load("lab")
    mine = ["--filter", f"label=io.etcdops.cluster-id={record.id}"]
    kinds = {"container": ["ps", "--all"], "network": ["network", "ls"], "volume": ["volume", "ls"]}
    if remains != "all of it, running":
        assert line("down-env").code == 0
    if remains == "volumes":
        docker("rm", *docker("ps", "--all", "--quiet", *mine).split())
        docker("network", "rm", *docker("network", "ls", "--quiet", *mine).split())
    shutil.rmtree(line.store.root)
    [found] = _found(line, record.id)
    assert (found["state"], found["runtime"], found["members"]) == ("leftover", "compose", ["ironman"])
    assert len(found["deletes"]) == (1 if remains == "volumes" else 5)
    assert any(record.members[0].data.place in each for each in found["deletes"])
    assert ("running" in "".join(found["deletes"])) == (remains == "all of it, running")
    pruned = line("cluster.prune", "--cluster", record.id, "--yes")
    assert pruned.code == 0, pruned.err
    assert {name: docker(*list_, "--quiet", *mine) for name, list_ in kinds.items()} == dict.fromkeys(kinds, "")
    assert _found(line, record.id) == []


def test_what_belongs_to_another_user_is_left_alone(line: CommandLine, image: str) -> None:
    """Containers, networks and volumes that another user's etcdops has made are not listed, and cannot be removed."""
    id_ = secrets.token_hex(8)
    # By a name that no test beside this one has, as all clusters of this machine are found.
    cluster = f"theirs-{id_}"
    own = {
        "cluster": cluster,
        "cluster-id": id_,
        "member": "thor",
        "state-dir": "/theirs",
        "uid": str(os.getuid() + 1),
    }
    labels = [word for key, value in own.items() for word in ("--label", f"io.etcdops.{key}={value}")]
    container = docker("create", *labels, image, "etcd")
    network = docker("network", "create", *labels, f"theirs-{id_}")
    volume = docker("volume", "create", *labels, f"theirs-{id_}")
    try:
        assert _found(line, id_) == []
        for name in (id_, cluster):
            refused = line("cluster.prune", "--cluster", name, "--yes")
            assert (refused.code, f"there is no cluster {name!r}" in refused.err) == (2, True)
        assert not [each for each in runtimes.get("compose").leftovers() if each.cluster_id == id_]
        docker("inspect", container, network, volume)
    finally:
        docker("rm", container)
        docker("network", "rm", network)
        docker("volume", "rm", volume)
