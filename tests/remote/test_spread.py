"""Members that go to other hosts: a host that is added, a member there, and one that replaces what a dead host had."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcdops.cluster import Cluster
from etcdops.tls.serving import prove
from scripts.lab_hosts.bed import Bed
from tests.conftest import CommandLine, need_runtime, place
from tests.remote.beds import bed_of_its_own, inventory_of, ssh

HOSTS = ("h1", "h2", "h3", "h4")


@pytest.fixture(scope="module")
def four(can_make_hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """Four hosts for this module alone; each of its tests leaves them running."""
    with bed_of_its_own(tmp_path_factory.mktemp("beds") / "bed", "--hosts", "4") as own:
        yield own


@pytest.fixture(scope="module")
def line(four: Bed, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A command line for clusters on those hosts."""
    need_runtime("compose", request.config)
    with place(tmp_path_factory.mktemp("spread") / "place", "auto") as line:
        pushed = line("image.push", "--hosts", _inventory(four, line.cwd, HOSTS[:3]))
        assert pushed.code == 0, pushed.err
        yield line


@pytest.fixture
def lab(line: CommandLine, four: Bed) -> Iterator[Cluster]:
    """A cluster of three on the first three hosts, with a key; and nothing of it on any host afterwards."""
    up = line("up-env", "--hosts", _inventory(four, line.cwd, HOSTS[:3]))
    assert up.code == 0, up.err
    assert line("ctl", "--", "put", "k", "kept").code == 0
    cluster = line.cluster()
    yield cluster
    if cluster.store.exists("lab"):
        purged = line("down-env", "--purge", "--yes")
        assert purged.code == 0, purged.err


def _inventory(bed: Bed, directory: Path, names: tuple[str, ...]) -> str:
    """Write an inventory of some hosts of a bed, and give its path."""
    path = directory / f"{'-'.join(names)}.toml"
    tables = [
        "\n".join([f"[hosts.{name}]", *(f"{field} = {json.dumps(value)}" for field, value in host.items())])
        for name, host in inventory_of(bed).items()
        if name in names
    ]
    path.write_text("\n\n".join(tables) + "\n")
    return str(path)


def _there(bed: Bed, name: str) -> dict[str, list[str]]:
    """Give what there is of clusters on a host, as its own docker says: members that run, containers, volumes."""
    script = """
        only="--filter label=io.etcdops.cluster-id"
        docker ps $only --format 'members {{.Label "io.etcdops.member"}}'
        docker ps --all $only --format 'containers {{.ID}}'
        docker network ls $only --format 'networks {{.Name}}'
        docker volume ls $only --format 'volumes {{.Name}}'
    """
    told = ssh(bed, name, "sh", "-ec", script)
    assert told.code == 0, told
    rows = [row.split() for row in told.out.splitlines()]
    return {what: [row[1] for row in rows if row[0] == what and row[1:]] for what in NOTHING}


def _data(bed: Bed, name: str) -> list[str]:
    """Give the volumes with members' data on a host; another has what a second operator needs."""
    return [volume for volume in _there(bed, name)["volumes"] if "_operators." not in volume]


NOTHING: dict[str, list[str]] = {"members": [], "containers": [], "networks": [], "volumes": []}


def _hosts(line: CommandLine) -> dict[str, tuple[list[str], list[str]]]:
    """Give the recorded hosts, with their members and what is kept there."""
    told = line("hosts.list", "-o", "json")
    assert told.code == 0, told.err
    return {each["name"]: (each["members"], each["left"]) for each in json.loads(told.out)["hosts"]}


def test_a_host_is_added_and_gets_a_member(line: CommandLine, lab: Cluster, four: Bed) -> None:
    """A host is added once it is fit; a member there is served by TLS like all; with it goes all but its data."""
    every = _inventory(four, line.cwd, HOSTS)
    without = line("hosts.add", "--hosts", every)
    assert (without.code, "image.push" in without.err, list(_hosts(line))) == (3, True, ["h1", "h2", "h3"]), without
    # A machine without zstd, as many are.
    (few := line.cwd / "few").mkdir()
    for program in ("docker", "sh", "ssh"):
        (few / program).symlink_to(shutil.which(program) or program)
    pushed = line("image.push", "--hosts", every, PATH=str(few))
    assert (pushed.code, "with gzip\n" in pushed.err) == (0, True), pushed
    four.cut("h1", "h4")
    try:
        cut = line("hosts.add", "--hosts", every)
    finally:
        four.mend("h1", "h4")
    assert (cut.code, "h4 does not reach h1" in cut.err, "h4" in _hosts(line)) == (3, True, False), cut
    added = line("hosts.add", "--hosts", every)
    assert (added.code, _hosts(line)["h4"]) == (0, ([], [])), added.err
    joined = line("member.add", "--host", "h4")
    assert (joined.code, _hosts(line)["h4"]) == (0, (["hulk"], [])), joined.err
    assert _there(four, "h4")["members"] == ["hulk"]
    proof = prove(lab, ["hulk"])
    assert (proof.result, len(proof.encounters)) == ("passed", 6), proof
    removed = line("member.remove", "hulk", "--yes")
    assert (removed.code, _hosts(line)["h4"]) == (0, ([], ["hulk-g1 (data)"])), removed.err
    assert {**_there(four, "h4"), "volumes": _data(four, "h4")} == {
        **NOTHING,
        "volumes": [lab.record.retired[0].data.place],
    }
    kept = line("hosts.remove", "h4")
    assert (kept.code, "hulk-g1 (data)" in kept.err) == (3, True), kept
    assert line("data.remove", "hulk-g1", "--yes").code == 0
    assert (line("hosts.remove", "h4").code, _there(four, "h4"), "h4" in _hosts(line)) == (0, NOTHING, False)


def test_a_host_dies_for_good(line: CommandLine, lab: Cluster, four: Bed) -> None:
    """Its member is replaced on a host that has none; what is left there is on record until it is removed."""
    assert line("image.push", "--hosts", _inventory(four, line.cwd, HOSTS)).code == 0
    assert line("hosts.add", "--hosts", _inventory(four, line.cwd, HOSTS)).code == 0
    old = lab.record.member("thor")
    # What a host is whose power is off costs a time limit for each command; one that refuses is as lost.
    four.stop_engine("h2")
    four.stop_sshd("h2")
    try:
        again = line("up-env", "-o", "json")
        assert (again.code, "thor (on h2) stays as it is" in again.err) == (0, True), again
        assert json.loads(again.out)["members"][1]["health"] == "unreachable"
        replaced = line("member.replace", "thor", "--yes")
        assert replaced.code == 0, replaced.err
        assert "left on h2" in replaced.err
        hosts = _hosts(line)
        assert hosts["h2"] == ([], ["thor-g1 (container and data)"])
        assert hosts["h4"] == (["thor"], [])
        assert line("status").code == 0
        [url] = [row.split(", ")[4] for row in line("ctl", "--", "member", "list").out.splitlines() if ", thor," in row]
        assert url == lab.record.member("thor").client_url != old.client_url
        assert line("ctl", "--", "get", "k", "--print-value-only").out == "kept\n"
        partly = line("down-env", "--purge", "--yes")
        assert (partly.code, old.data.place in partly.err, lab.store.exists("lab")) == (7, True, True), partly
        for name in ("h1", "h3", "h4"):
            assert {**_there(four, name), "volumes": _data(four, name)} == NOTHING
    finally:
        four.start_sshd("h2")
        four.start_engine("h2")
    assert (_there(four, "h2")["members"], _data(four, "h2")) == ([], [old.data.place])
    purged = line("down-env", "--purge", "--yes")
    assert (purged.code, _there(four, "h2"), lab.store.exists("lab")) == (0, NOTHING, False), purged
    assert [_there(four, name) for name in HOSTS] == [NOTHING] * 4
