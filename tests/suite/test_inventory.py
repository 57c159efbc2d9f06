"""`cluster.list` and `cluster.prune`: every cluster and leftover on the machine, wherever it was made.

Other clusters may run on this machine, so that no test removes what it has not made: each names its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CommandLine, place
from tests.suite.members import act, below, has_data, left, remove, running, shown
from tests.suite.terminal import Terminal


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, etcd_cluster_runtime: str) -> Iterator[CommandLine]:
    """A running cluster of one member, shared."""
    with place(tmp_path_factory.mktemp("inventory") / "place", etcd_cluster_runtime) as line:
        ended = line("up-env", "--size", "1", "--cluster", "shared")
        assert ended.code == 0, ended.err
        yield line


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path) -> Iterator[None]:
    """Whatever became of a test, nothing of a cluster is left whose state directory was below its own directory."""
    yield
    for runtime, leftover in below(tmp_path):
        remove(runtime, leftover)


def _found(line: CommandLine) -> list[dict[str, Any]]:
    ended = line("cluster.list", "-o", "json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert document["schema"] == 1
    clusters: list[dict[str, Any]] = document["clusters"]
    return clusters


def _here(line: CommandLine, place: Path) -> list[dict[str, Any]]:
    """Give the clusters whose state directory is below `place`."""
    return [each for each in _found(line) if each["state_dir"].startswith(f"{place}{os.sep}")]


def _running(line: CommandLine) -> list[str]:
    return sorted(each.member for each in running(line.runtime, line.store.root))


def _kill(line: CommandLine, name: str, action: str = "kill") -> None:
    """Kill, or pause, the first member behind etcdops' back."""
    act(line.runtime, line.store.load(name).members[0].ref, action)


@pytest.mark.parametrize("program", ["etcdops", "invoke"])
def test_finds_clusters_of_other_state_directories(lab: CommandLine, tmp_path: Path, program: str) -> None:
    """From anywhere, a cluster is listed with its state and its directory; up and, once stopped, down."""
    elsewhere = CommandLine(tmp_path)
    (tmp_path / "tasks.py").write_text("from etcdops.tasks import namespace\n")
    listed = elsewhere("cluster.list", program=program)
    assert listed.code == 0, listed.err
    assert listed.out.splitlines()[0].split() == ["NAME", "ID", "STATE", "RUNTIME", "MEMBERS", "STATE", "DIRECTORY"]
    record = lab.store.load("shared")
    row = next(line for line in listed.out.splitlines() if str(lab.store.root) in line)
    assert row.split() == ["shared", record.id, "up", lab.runtime, "ironman", str(lab.store.root)]
    assert not (tmp_path / ".etcdops").exists()


def test_a_stopped_cluster_and_a_partly_stopped_one(cli: CommandLine, tmp_path: Path) -> None:
    """A cluster is up, partly up, or down, as is seen; a stopped one of another directory is found as well."""
    assert cli("up-env", "--size", "2").code == 0
    elsewhere = CommandLine(tmp_path)
    _kill(cli, "lab")
    assert [(c["name"], c["state"], c["members"]) for c in _here(elsewhere, cli.cwd)] == [
        ("lab", "partly up", ["ironman", "thor"])
    ]
    assert cli("down-env").code == 0
    assert [(c["name"], c["state"]) for c in _here(elsewhere, cli.cwd)] == [("lab", "down")]
    gone = elsewhere("cluster.prune", "--cluster", cli.store.load("lab").id, "--yes")
    assert gone.code == 0, gone.err
    assert _here(elsewhere, cli.cwd) == []
    assert not cli.store.cluster_dir("lab").exists()


def test_prune_names_and_asks(cli: CommandLine) -> None:
    """What goes is named; without a terminal it is refused (2), on one it is asked; nothing happens before a yes."""
    assert cli("up-env", "--size", "1").code == 0
    record = cli.store.load("lab")
    refused = cli("cluster.prune", "--cluster", record.id, stdin="y\n")
    assert refused.code == 2
    assert record.members[0].data.place in refused.err
    assert "Add --yes" in refused.err
    with Terminal(cli, "cluster.prune", "--cluster", record.id, program="invoke") as terminal:
        terminal.expect("Remove lab? [y/N]")
        assert str(cli.store.root) in terminal.text
        terminal.type("n\n")
        assert terminal.wait() == 2
    assert _running(cli) == ["ironman"]
    with Terminal(cli, "cluster.prune", "--cluster", record.id) as terminal:
        terminal.expect("[y/N]")
        terminal.type("y\n")
        assert terminal.wait() == 0
        assert f"removed lab ({record.id})" in terminal.text
    assert not cli.store.cluster_dir("lab").exists()
    assert left(cli.runtime, cli.store.root) == []
    assert not has_data(record, "ironman")


@pytest.mark.runtime("process")  # about names and ids, whatever has them
def test_ambiguous_and_unknown_names_are_refused(tmp_path: Path, etcd_cluster_runtime: str) -> None:
    """A name that two clusters have is refused, and their ids are named; by id, and by directory, one is removed."""
    here = etcd_cluster_runtime
    with place(tmp_path / "one", here) as one, place(tmp_path / "two", here) as two:
        for line in (one, two):
            assert line("up-env", "--size", "1", "--cluster", "twin").code == 0
        ids = [line.store.load("twin").id for line in (one, two)]
        ended = one("cluster.prune", "--cluster", "twin", "--yes")
        assert (ended.code, ended.out) == (2, "")
        for cluster_id, line in zip(ids, (one, two), strict=True):
            assert f"{cluster_id} in {line.store.cluster_dir('twin')}" in ended.err
        assert one("cluster.prune", "--cluster", "nosuch", "--yes").code == 2
        assert one("cluster.prune", "--cluster", "", "--yes").code == 2
        assert len(_here(one, tmp_path)) == 2
        # Named twice, it is removed once.
        both_ways = ("--cluster", ids[1], "--cluster", str(two.store.cluster_dir("twin")))
        removed = one("cluster.prune", *both_ways, "--yes")
        assert removed.code == 0, removed.err
        assert removed.err.count("removed twin") == 1
        assert [each["id"] for each in _here(one, tmp_path)] == [ids[0]]
        assert one("status", "--cluster", "twin").code == 0


def test_members_whose_state_directory_is_gone(tmp_path: Path, etcd_cluster_runtime: str) -> None:
    """After `rm -rf` of the state directory the members run on: they are leftovers, and prune ends them."""
    with place(tmp_path / "lost", etcd_cluster_runtime) as line:
        assert line("up-env", "--size", "2", "--cluster", "lost").code == 0
        members = [shown(line.cluster("lost"), name) for name in ("ironman", "thor")]
        cluster_id = line.store.load("lost").id
        shutil.rmtree(line.store.root)
        elsewhere = CommandLine(tmp_path)
        found = next(each for each in _found(elsewhere) if each["id"] == cluster_id)
        assert (found["state"], found["members"]) == ("leftover", ["ironman", "thor"])
        assert found["problem"]
        named = elsewhere("cluster.prune", "--cluster", cluster_id)
        assert named.code == 2
        for member in members:
            assert f"({member})" in named.err
        gone = elsewhere("cluster.prune", "--cluster", cluster_id, "--yes")
        assert gone.code == 0, gone.err
        assert left(line.runtime, line.store.root) == []
        assert cluster_id not in [each["id"] for each in _found(elsewhere)]


def test_frozen_leftovers_are_ended_too(tmp_path: Path, etcd_cluster_runtime: str) -> None:
    """A leftover that is frozen goes as well."""
    with place(tmp_path / "frozen", etcd_cluster_runtime) as line:
        assert line("up-env", "--size", "1").code == 0
        cluster_id = line.store.load("lab").id
        _kill(line, "lab", "pause")
        shutil.rmtree(line.store.root)
        assert line("cluster.prune", "--cluster", cluster_id, "--yes").code == 0
        assert left(line.runtime, line.store.root) == []


def test_prune_without_names_removes_leftovers_only(tmp_path: Path, etcd_cluster_runtime: str) -> None:
    """Without --cluster, all leftovers go and no cluster does: a running one and a stopped one stay."""
    here = etcd_cluster_runtime
    with place(tmp_path / "kept", here) as kept, place(tmp_path / "lost", here) as lost:
        assert kept("up-env", "--size", "1", "--cluster", "kept").code == 0
        assert lost("up-env", "--size", "1", "--cluster", "left").code == 0
        shutil.rmtree(lost.store.root)
        others = [each["name"] for each in _found(kept) if each["state"] == "leftover" and each["name"] != "left"]
        with Terminal(kept, "cluster.prune") as terminal:
            terminal.expect("[y/N]")
            question = terminal.text.rpartition("Remove ")[2].partition("?")[0]
            assert "left" in question.split(", ")
            assert "kept" not in question.split(", ")
            if others or question != "left":
                pytest.skip(f"there are leftovers of others on this machine: {question}")
            terminal.type("y\n")
            assert terminal.wait() == 0
        assert left(here, lost.store.root) == []
        assert kept("status", "--cluster", "kept").code == 0


MAKER = """
import os, signal
from etcdops import Cluster
with Cluster.create(size=1, runtime=os.environ["RUNTIME"]) as cluster:
    print(cluster.record.id, cluster.store.root, flush=True)
    signal.pause()
"""


def test_temporary_cluster_whose_maker_was_killed(cli: CommandLine) -> None:
    """A temporary cluster is up while its maker lives, a leftover once that was killed, and prune removes all of it."""
    env = {**cli.env, "TMPDIR": str(cli.cwd), "RUNTIME": cli.runtime}
    maker = subprocess.Popen([sys.executable, "-c", MAKER], env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert maker.stdout is not None
        cluster_id, root = maker.stdout.readline().split()
        assert root.startswith(str(cli.cwd))
        alive = next(each for each in _found(cli) if each["id"] == cluster_id)
        assert alive["state"] == "up"
    finally:
        maker.kill()
        maker.communicate()
    assert [each.member for each in running(cli.runtime, Path(root))] == ["ironman"]
    assert next(each for each in _found(cli) if each["id"] == cluster_id)["state"] == "leftover"
    ended = cli("cluster.prune", "--cluster", cluster_id, "--yes")
    assert ended.code == 0, ended.err
    assert left(cli.runtime, Path(root)) == []
    assert not Path(root).exists()


@pytest.mark.parametrize("content", ["{", '{"schema": 99}', "\xff"])
def test_damaged_record(tmp_path: Path, content: str) -> None:
    """A record that cannot be read is listed as damaged, with the reason; nothing is pruned unless it is named."""
    store = tmp_path / ".etcdops"
    directory = store / "clusters" / "broken"
    directory.mkdir(parents=True)
    (directory / "cluster.json").write_bytes(content.encode("latin-1"))
    line = CommandLine(tmp_path)
    found = next(each for each in _found(line) if each["state_dir"] == str(store))
    assert (found["name"], found["id"], found["state"]) == ("broken", "", "damaged")
    assert found["problem"]
    table = line("cluster.list")
    assert (table.code, "warning damaged: broken" in table.err) == (0, True)
    asked = line("cluster.prune")
    assert "broken" not in asked.err
    ended = line("cluster.prune", "--cluster", "broken", "--yes")
    assert ended.code == 0, ended.err
    assert not directory.exists()


def test_damaged_record_of_a_running_cluster(cli: CommandLine) -> None:
    """Members beside a damaged or newer record are no leftovers: prune spares them until the cluster is named."""
    assert cli("up-env", "--size", "1").code == 0
    record = cli.store.cluster_dir("lab") / "cluster.json"
    record.write_text(record.read_text().replace('"schema": 1', '"schema": 2', 1))
    found = _here(cli, cli.cwd)
    assert [(each["state"], each["members"]) for each in found] == [("damaged", ["ironman"])]
    assert str(cli.store.root) not in cli("cluster.prune").err
    assert _running(cli) == ["ironman"]
    ended = cli("cluster.prune", "--cluster", str(cli.store.cluster_dir("lab")), "--yes")
    assert ended.code == 0, ended.err
    assert left(cli.runtime, cli.store.root) == []
    assert _here(cli, cli.cwd) == []


def test_data_without_a_record(cli: CommandLine) -> None:
    """A cluster's directory without a record is a leftover: it is listed, and goes with the members that run there."""
    assert cli("up-env", "--size", "1").code == 0
    (cli.store.cluster_dir("lab") / "cluster.json").unlink()
    assert [(each["name"], each["state"], each["members"]) for each in _here(cli, cli.cwd)] == [
        ("lab", "leftover", ["ironman"])
    ]
    directory = str(cli.store.cluster_dir("lab"))
    assert cli("cluster.prune", "--cluster", directory, "--yes").code == 0
    assert left(cli.runtime, cli.store.root) == []
    assert not Path(directory).exists()


@pytest.mark.runtime("process")  # about lists of clusters, whatever they are made of
def test_nothing_to_list_and_nothing_to_prune(cli: CommandLine) -> None:
    """Where there is nothing, both say so and exit 0; JSON stays a document. Stray files are passed over."""
    clusters = cli.store.root / "clusters"
    clusters.mkdir(parents=True)
    (clusters / "stray.txt").write_text("x")
    (clusters / "Not A Name").mkdir()
    index = Path(cli.env["HOME"]) / ".local" / "state" / "etcdops"
    index.mkdir(parents=True, exist_ok=True)
    with (index / "state-dirs").open("ab") as file:
        file.write(b"/nowhere/at/all\n\xff\xfe\n")
    assert _here(cli, cli.cwd) == []
    with Terminal(cli, "cluster.prune") as terminal:
        # Somebody else's leftovers are not ours to remove.
        terminal.type("n\n")
        assert terminal.wait() in (0, 2)
    # A list with nonsense in it keeps nobody from making a cluster, or from removing one.
    assert cli("up-env", "--size", "1", "--cluster", "beside").code == 0
    assert [each["name"] for each in _here(cli, cli.cwd)] == ["beside"]
    assert cli("cluster.prune", "--yes", "--cluster", cli.store.load("beside").id).code == 0


def test_interrupted_prune(lab: CommandLine) -> None:
    """Ctrl-C at the question removes nothing, and exits 130."""
    with Terminal(lab, "cluster.prune", "--cluster", lab.store.load("shared").id) as terminal:
        terminal.expect("[y/N]")
        terminal.type("\x03")
        assert terminal.wait() == 130
    assert lab("status", "--cluster", "shared").code == 0


@pytest.mark.runtime("process")  # a container's id is never another's
def test_signals_are_not_sent_to_a_process_that_took_over_the_id(lab: CommandLine) -> None:
    """A record that names another process's id does not make that process a member, nor prune end it."""
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        record = lab.store.load("shared")
        store = lab.store
        import msgspec

        ref = record.members[0].ref
        stolen = f"{bystander.pid}:{ref.partition(':')[2]}"
        member = msgspec.structs.replace(record.members[0], name="ironman", ref=stolen)
        spec = msgspec.structs.replace(record.spec, name="stolen")
        store.save(msgspec.structs.replace(record, id="0" * 16, spec=spec, members=(member,)))
        found = next(each for each in _found(lab) if each["name"] == "stolen")
        assert found["state"] == "down"
        assert lab("cluster.prune", "--cluster", "stolen", "--yes").code == 0
        assert bystander.poll() is None
    finally:
        bystander.send_signal(signal.SIGKILL)
        bystander.wait()
