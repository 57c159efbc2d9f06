"""`status`: what the members say, now; as a table and as JSON, with members stopped, frozen or without a quorum."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import CommandLine, Ended, place_with_lab
from tests.suite.terminal import Terminal

Wait = Callable[..., None]

#: The other program has the same tasks, and a terminal is one whatever members run as.
on_processes = pytest.mark.runtime("process")

ESCAPE = "\x1b["
#: A bound for a slow machine. What is promised is two seconds; `scripts/bench` measures.
GENEROUS_S = 30.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, etcd_cluster_runtime: str) -> Iterator[CommandLine]:
    """A place with a cluster of three members, shared."""
    with place_with_lab(tmp_path_factory.mktemp("status"), etcd_cluster_runtime) as line:
        yield line


@pytest.fixture
def lab(home: CommandLine) -> Iterator[CommandLine]:
    """The shared cluster, healthy at first, and again afterwards."""
    yield home
    cluster = home.cluster()
    if any(member.state() != "running" for member in cluster.members):
        cluster.up()


def _timed(line: CommandLine, *args: str) -> Ended:
    start = time.monotonic()
    ended = line("status", *args)
    assert time.monotonic() - start < GENEROUS_S
    return ended


def _json(line: CommandLine, code: int) -> dict[str, Any]:
    ended = _timed(line, "-o", "json")
    assert ended.code == code, ended
    document: dict[str, Any] = json.loads(ended.out)
    return document


def _health(document: dict[str, Any]) -> dict[str, str]:
    return {member["name"]: member["health"] for member in document["members"]}


@pytest.mark.parametrize("program", ["etcdops", pytest.param("invoke", marks=on_processes)])
def test_json_has_the_documented_keys(lab: CommandLine, program: str) -> None:
    """`-o json` is one document with exactly the documented keys; IDs are hex strings."""
    ended = lab("status", "-o", "json", program=program)
    assert (ended.code, ended.err) == (0, "")
    document = json.loads(ended.out)
    assert list(document) == [
        *("schema", "cluster", "runtime", "etcd_version", "verdict", "leader", "term", "quorum", "members", "warnings")
    ]
    keys = {
        *("name", "id", "role", "health", "client_url", "peer_url", "term", "revision", "raft_index", "db_size"),
        *("alarms", "errors"),
    }
    record = lab.store.load("lab")
    for member, recorded in zip(document["members"], record.members, strict=True):
        assert keys <= set(member)
        assert re.fullmatch(r"[0-9a-f]{16}|[0-9a-f]{1,16}", member["id"])
        assert (member["name"], member["client_url"], member["peer_url"]) == (
            recorded.name,
            recorded.client_url,
            recorded.peer_url,
        )
        assert (member["health"], member["alarms"], member["errors"]) == ("healthy", [], [])
        assert member["db_size"] > 0
        assert member["raft_index"] > 0
        assert member["term"] == document["term"]
    assert (document["schema"], document["cluster"], document["runtime"]) == (1, "lab", lab.runtime)
    assert (document["verdict"], document["quorum"]) == ("healthy", 2)
    roles = {member["name"]: member["role"] for member in document["members"]}
    assert sorted(roles.values()) == ["follower", "follower", "leader"]
    assert roles[document["leader"]] == "leader"


def test_ids_are_those_of_etcdctl(lab: CommandLine) -> None:
    """Member IDs are what `etcdctl member list` and `member remove` call them."""
    listed = {line.split(", ")[2]: line.split(", ")[0] for line in lab("ctl", "--", "member", "list").out.splitlines()}
    assert {member["name"]: member["id"] for member in _json(lab, 0)["members"]} == listed


@pytest.mark.parametrize("program", ["etcdops", pytest.param("invoke", marks=on_processes)])
def test_table_in_a_pipe(lab: CommandLine, program: str) -> None:
    """In a pipe: a verdict line, and a row for each member, in plain text that is not cut off."""
    ended = lab("status", program=program)
    assert ended.code == 0
    assert ESCAPE not in ended.out
    lines = ended.out.splitlines()
    assert lines[0].startswith("lab: healthy: 3/3 voters healthy, quorum 2, can lose 1, ")
    assert lines[1].split()[:4] == ["NAME", "ID", "ROLE", "HEALTH"]
    for line, member in zip(lines[2:5], lab.store.load("lab").members, strict=True):
        assert line.split()[0] == member.name
        assert line.split()[-1] == member.client_url


@on_processes
def test_colour_on_a_terminal_only(lab: CommandLine) -> None:
    """On a terminal there is colour, unless NO_COLOR is set or it is a dumb one; JSON never has any."""
    for args, env, coloured in (
        ((), {}, True),
        ((), {"NO_COLOR": "1"}, False),
        ((), {"TERM": "dumb"}, False),
        (("-o", "json"), {}, False),
    ):
        with Terminal(lab, "status", *args, **env) as terminal:
            assert terminal.wait() == 0
            assert (ESCAPE in terminal.text) is coloured, (args, env, terminal.text)
            assert "ironman" in terminal.text


def test_never_writes(lab: CommandLine) -> None:
    """However often it is called, the revision, the Raft log and the record stay as they were."""
    first = _json(lab, 0)
    record = lab.store.cluster_dir("lab") / "cluster.json"
    before = record.stat().st_mtime_ns
    for _ in range(3):
        assert lab("status").code == 0
    second = _json(lab, 0)
    for one, other in zip(first["members"], second["members"], strict=True):
        assert one["revision"] == other["revision"]
        if lab.runtime == "process":  # a container's own health check asks for alarms, which is an entry in the log
            assert one["raft_index"] == other["raft_index"]
    assert record.stat().st_mtime_ns == before


def test_one_member_stopped(lab: CommandLine) -> None:
    """With one of three stopped: degraded, exit 4, and the cluster can lose no more."""
    lab.cluster().member("thor").kill()
    _wait_for_leader(lab)
    document = _json(lab, 4)
    assert (document["verdict"], _health(document)["thor"]) == ("degraded", "stopped")
    thor = next(m for m in document["members"] if m["name"] == "thor")
    assert (thor["id"], thor["role"], thor["term"]) == ("", "", 0)
    table = _timed(lab)
    assert table.code == 4
    assert "degraded: 2/3 voters healthy, quorum 2, can lose 0" in table.out
    assert "stopped" in table.out
    assert lab("status", program="invoke").code == 4


def _wait_for_leader(line: CommandLine) -> None:
    deadline = time.monotonic() + 20
    cluster = line.cluster()
    while cluster.status().verdict == "no-quorum":
        assert time.monotonic() < deadline, "no leader within 20 s"
        time.sleep(0.05)


def test_one_member_frozen(lab: CommandLine) -> None:
    """With one of three frozen: degraded, exit 4, and back in time although that one never answers."""
    cluster = lab.cluster()
    follower = next(m.name for m in cluster.members if m.name != cluster.leader().name)
    cluster.member(follower).pause()
    document = _json(lab, 4)
    assert (document["verdict"], _health(document)[follower]) == ("degraded", "frozen")


def test_frozen_leader(lab: CommandLine) -> None:
    """With the leader frozen the others elect another, and status finds that one."""
    cluster = lab.cluster()
    leader = cluster.leader().name
    cluster.member(leader).pause()
    _wait_for_leader(lab)
    document = _json(lab, 4)
    assert document["leader"] not in (leader, None)
    assert _health(document)[leader] == "frozen"


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_quorum_lost(lab: CommandLine, how: str) -> None:
    """With two of three gone: no quorum, exit 5, back in time, and the one that is left is not called healthy."""
    cluster = lab.cluster()
    for name in ("thor", "deadpool"):
        getattr(cluster.member(name), how)()
    document = _json(lab, 5)
    assert document["verdict"] == "no-quorum"
    gone = "stopped" if how == "kill" else "frozen"
    assert _health(document) == {"ironman": "unhealthy", "thor": gone, "deadpool": gone}
    errors = next(m for m in document["members"] if m["name"] == "ironman")["errors"]
    assert errors
    table = _timed(lab)
    assert table.code == 5
    assert "lab: no-quorum: 0/3 voters healthy" in table.out


def test_everything_stopped(lab: CommandLine) -> None:
    """With every member stopped: down, exit 5."""
    assert lab("down-env").code == 0
    document = _json(lab, 5)
    assert (document["verdict"], document["leader"], document["term"]) == ("down", None, 0)
    assert set(_health(document).values()) == {"stopped"}
    assert "lab: down" in _timed(lab).out


@pytest.mark.parametrize("program", ["etcdops", pytest.param("invoke", marks=on_processes)])
def test_watch_until_ctrl_c(lab: CommandLine, program: str) -> None:
    """`--watch` looks again and again, clears the screen on a terminal, and ends with 130 on Ctrl-C."""
    with Terminal(lab, "status", "--watch", "0.2", program=program) as terminal:
        terminal.expect("lab: ")
        shown = terminal.text.count("\x1b[2J")
        terminal.text = ""
        terminal.expect("\x1b[2J")
        terminal.expect("3/3 voters healthy")
        assert shown >= 1
        terminal.type("\x03")
        assert terminal.wait(20) == 130


@on_processes
def test_watch_sees_what_changes(lab: CommandLine, wait_until: Wait) -> None:
    """Watching in a pipe, a member that is killed is seen; nothing of a terminal's is in the output; signals end it."""
    log = lab.cwd / "watched.txt"
    with log.open("w") as file:
        process = lab.start("status", "--watch", "0.1", stdout=file)
        wait_until(lambda: log.read_text().count("lab: healthy") >= 2, what="two looks")
        lab.cluster().member("deadpool").kill()
        wait_until(lambda: "stopped" in log.read_text(), what="the member that was killed")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "Traceback" not in err
    assert ESCAPE not in log.read_text()


@on_processes
def test_bare_watch_is_every_two_seconds(lab: CommandLine) -> None:
    """A bare `--watch` may be followed by other flags."""
    with Terminal(lab, "status", "--watch", "-o", "json") as terminal:
        terminal.expect('"schema": 1')
        terminal.type("\x03")
        assert terminal.wait(20) == 130


@on_processes
def test_unknown_cluster(lab: CommandLine) -> None:
    """A cluster that is not there is exit 3, and those that are there are named."""
    ended = lab("status", "--cluster", "nosuch", "-o", "json")
    assert (ended.code, ended.out) == (3, "")
    assert "(there is lab)" in ended.err


@on_processes
def test_status_does_not_hide_the_tasks_after_it(lab: CommandLine) -> None:
    """`invoke status down-env …`: on a healthy cluster the next task of the line is run as well."""
    ended = lab("status", "cluster.list", "-o", "json", program="invoke")
    assert ended.code == 0
    assert '"clusters"' in ended.out
