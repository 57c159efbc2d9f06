"""`down-env`: stops and keeps the data; `--purge` names what goes, and asks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import CommandLine, place_with_lab
from tests.suite.members import has_data, left
from tests.suite.terminal import Terminal

#: The other program has the same tasks, and a terminal is one whatever members run as.
on_processes = pytest.mark.runtime("process")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, etcd_cluster_runtime: str) -> Iterator[CommandLine]:
    """A place with a cluster of three members, shared; each test says itself whether it has to run."""
    with place_with_lab(tmp_path_factory.mktemp("down"), etcd_cluster_runtime) as line:
        yield line


def _states(line: CommandLine) -> list[str]:
    return [member.state() for member in line.cluster().members]


def test_data_is_kept(lab: CommandLine) -> None:
    """down-env stops every member, says that the data is kept, and up-env finds the same keys again."""
    assert lab("up-env").code == 0
    assert lab("ctl", "--", "put", "kept", "here").code == 0
    before = lab.store.load("lab")
    down = lab("down-env", program="invoke")
    assert (down.code, down.out) == (0, ""), down.err
    assert "stopped ironman, thor, deadpool; the data is kept" in down.err
    assert _states(lab) == ["stopped"] * 3
    again = lab("down-env")
    assert (again.code, "lab was down already: nothing was changed" in again.err) == (0, True)
    up = lab("up-env", program="invoke")
    assert up.code == 0, up.err
    assert lab("ctl", "--", "get", "kept", "--print-value-only").out == "here\n"
    after = lab.store.load("lab")
    assert (after.id, after.token, [m.client_url for m in after.members]) == (
        before.id,
        before.token,
        [m.client_url for m in before.members],
    )


def test_frozen_and_killed_members_are_stopped(lab: CommandLine) -> None:
    """A frozen member is stopped as well, one that is gone is no error, and only those that ran are named."""
    assert lab("up-env").code == 0
    cluster = lab.cluster()
    cluster.member("thor").pause()
    cluster.member("deadpool").kill()
    down = lab("down-env")
    assert down.code == 0, down.err
    assert "stopped ironman, thor; the data" in down.err
    assert _states(lab) == ["stopped"] * 3


@pytest.mark.parametrize("program", ["etcdops", pytest.param("invoke", marks=on_processes)])
def test_purge_is_refused_where_nobody_can_be_asked(lab: CommandLine, program: str) -> None:
    """Without a terminal and without --yes, --purge names what would go, exits 2, and changes nothing."""
    assert lab("up-env").code == 0
    ended = lab("down-env", "--purge", stdin="y\n", program=program)
    assert (ended.code, ended.out) == (2, "")
    for member in lab.store.load("lab").members:
        assert member.data.place in ended.err
    assert "Add --yes" in ended.err
    assert _states(lab) == ["running"] * 3


def test_purge_asks_on_a_terminal(lab: CommandLine) -> None:
    """On a terminal, --purge names what goes and asks; anything but yes leaves all as it was."""
    assert lab("up-env").code == 0
    record = lab.store.load("lab")
    for answer, code in (("n\n", 2), ("\n", 2), ("\x04", 2), ("\x03", 130)):
        with Terminal(lab, "down-env", "--purge") as terminal:
            terminal.expect("Delete cluster lab with all its data? [y/N]")
            terminal.type(answer)
            assert terminal.wait() == code, terminal.text
            assert _states(lab) == ["running"] * 3
    assert record.members[0].data.place in terminal.text
    with Terminal(lab, "down-env", "--purge", program="invoke") as terminal:
        terminal.expect("[y/N]")
        terminal.type("y\n")
        assert terminal.wait() == 0
        assert "lab is gone" in terminal.text
    assert not lab.store.exists("lab")
    assert not has_data(record, "ironman")
    assert left(lab.runtime, lab.store.root) == []
    assert not lab.store.cluster_dir("lab").exists()
    assert lab("down-env").code == 3


def test_purge_with_yes(cli: CommandLine) -> None:
    """With --yes nothing is asked; a cluster made afterwards is a new one, without the old keys."""
    assert cli("up-env", "--size", "1").code == 0
    assert cli("ctl", "--", "put", "k", "old").code == 0
    first = cli.store.load("lab")
    ended = cli("down-env", "--purge", "--yes", program="invoke")
    assert (ended.code, ended.out) == (0, ""), ended.err
    assert first.members[0].data.place in ended.err
    assert cli("up-env", "--size", "1").code == 0
    assert cli.store.load("lab").id != first.id
    assert cli("ctl", "--", "get", "k").out == ""


def test_unknown_cluster(cli: CommandLine) -> None:
    """A cluster that is not there is refused with exit 3, and nothing is created."""
    for flags in ((), ("--purge", "--yes")):
        ended = cli("down-env", "--cluster", "nosuch", *flags)
        assert (ended.code, ended.out) == (3, "")
        assert "there is no cluster 'nosuch'" in ended.err
        assert "up-env --cluster nosuch" in ended.err
    assert not cli.store.cluster_dir("nosuch").exists()
