"""`up-env`: a cluster in one command, and what it prints; again, half down, side by side, and when it cannot start."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import CommandLine, Ended, free_from, place
from tests.suite.members import act, docker, etcdctl, has_data, left, lives, put_file, running, shown
from tests.suite.terminal import Terminal

Wait = Callable[..., None]

#: What varies in etcdops alone varies with one runtime.
on_processes = pytest.mark.runtime("process")

NAMES = ["ironman", "thor", "deadpool", "hulk", "wasp"]


class Up(NamedTuple):
    """A place with a running cluster, and what the first up-env printed."""

    line: CommandLine
    first: Ended


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, etcd_cluster_runtime: str) -> Iterator[Up]:
    """A running cluster of three members, shared; each test leaves it running."""
    with place(tmp_path_factory.mktemp("up") / "place", etcd_cluster_runtime) as line:
        ended = line("up-env")
        assert ended.code == 0, ended.err
        yield Up(line, ended)


@pytest.fixture
def lab(up: Up) -> CommandLine:
    """The place with the shared cluster."""
    return up.line


def _shell(line: CommandLine, script: str, *more_path: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([os.path.dirname(line.etcdops), *more_path, line.env["PATH"]])
    return subprocess.run(
        ["sh", "-c", script],
        cwd=line.cwd,
        env={**line.env, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )


def _lives(line: CommandLine, name: str = "lab") -> list[str]:
    return lives(line.store.load(name))


def _revision(line: CommandLine) -> int:
    header = json.loads(line("ctl", "--", "get", "absent", "-w", "json").out)["header"]
    revision: int = header["revision"]
    return revision


def test_says_what_a_person_needs(up: Up) -> None:
    """stdout names members, their URLs, what they run as and where their data is; the export and curl lines follow."""
    (_, out, err), record = up.first, up.line.store.load("lab")
    assert record.runtime == up.line.runtime
    assert list(record.spec.names) == NAMES[:3]
    members, rest = out.split("\n\n")
    assert len(members.splitlines()) == 3
    for line, member in zip(members.splitlines(), record.members, strict=True):
        assert line.split()[:2] == [member.name, member.client_url]
        assert f"{shown(up.line.cluster(), member.name)}," in line
        assert member.data.place in line
        assert has_data(record, member.name)
    urls = ",".join(member.client_url for member in record.members)
    assert rest.splitlines()[0] == f"export ETCDCTL_ENDPOINTS={urls}"
    assert rest.splitlines()[1].startswith("curl ")
    # Prose goes to stderr, each line with its time of day.
    assert re.search(r"^\d\d:\d\d:\d\d lab is up: created and started ironman, thor, deadpool \(etcd 3\.", err, re.M)


@pytest.mark.parametrize("program", ["etcdops", pytest.param("invoke", marks=on_processes)])
def test_export_line_works_when_evaluated(lab: CommandLine, program: str) -> None:
    """`eval "$(up-env | grep export)"`, and a bare etcdctl reaches all members."""
    beside = os.path.dirname(etcdctl(lab.store.load("lab")))
    done = _shell(lab, f'eval "$({program} up-env | grep export)"; etcdctl endpoint health --cluster -w json', beside)
    assert done.returncode == 0, done.stderr
    assert [each["health"] for each in json.loads(done.stdout)] == [True] * 3


def test_curl_line_works_when_pasted(up: Up, lab: CommandLine) -> None:
    """The curl line stores a key through the JSON API, and `ctl` reads it back."""
    import shutil

    if not shutil.which("curl"):
        pytest.skip("there is no curl here")
    curl = next(line for line in up.first.out.splitlines() if line.startswith("curl "))
    done = _shell(lab, curl)
    assert done.returncode == 0, done.stderr
    assert "revision" in json.loads(done.stdout)["header"]
    assert lab("ctl", "--", "get", "hello").out == "hello\nworld\n"


@pytest.mark.parametrize("program", ["etcdops", pytest.param("invoke", marks=on_processes)])
def test_again_changes_nothing_and_says_so(up: Up, lab: CommandLine, program: str) -> None:
    """On a running cluster: the same members and revision, the record untouched, and a word that it was so."""
    record = lab.store.cluster_dir("lab") / "cluster.json"
    before = (_lives(lab), _revision(lab), record.stat().st_mtime_ns, record.stat().st_ino)
    again = lab("up-env", program=program)
    assert again.code == 0, again.err
    assert "lab was up already: nothing was changed" in again.err
    assert again.out == up.first.out
    assert (_lives(lab), _revision(lab), record.stat().st_mtime_ns, record.stat().st_ino) == before


def test_json_is_one_document(lab: CommandLine) -> None:
    """With `-o json`, stdout is one document with a schema, the members and their endpoints."""
    ended = lab("up-env", "-o", "json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert (document["schema"], document["cluster"], document["verdict"]) == (1, "lab", "healthy")
    assert [m["client_url"] for m in document["members"]] == [m.client_url for m in lab.store.load("lab").members]


def test_members_that_are_gone_or_frozen_are_brought_back(lab: CommandLine) -> None:
    """A killed member is started, a frozen one goes on, the third is left alone, and the output says which."""
    assert lab("ctl", "--", "put", "kept", "through all").code == 0
    cluster = lab.cluster()
    before = _lives(lab)
    cluster.member("ironman").kill()
    cluster.member("thor").pause()
    ended = lab("up-env")
    assert ended.code == 0, ended.err
    assert "brought back ironman, thor" in ended.err
    assert [m.state() for m in cluster.members] == ["running"] * 3
    after = _lives(lab)
    assert (after[0] != before[0], after[1:]) == (True, before[1:])
    assert lab("status").code == 0
    assert lab("ctl", "--", "get", "kept", "--print-value-only").out == "through all\n"


def test_all_members_killed_by_hand(lab: CommandLine) -> None:
    """With every member killed by someone else, up-env finds that out, starts them, and the keys are there."""
    assert lab("ctl", "--", "put", "kept", "once more").code == 0
    for member in lab.store.load("lab").members:
        act(lab.runtime, member.ref, "kill")
    ended = lab("up-env", program="invoke")
    assert ended.code == 0, ended.err
    assert "brought back ironman, thor, deadpool" in ended.err
    assert lab("ctl", "--", "get", "kept", "--print-value-only").out == "once more\n"


def test_waits_for_the_holder_of_the_lock(lab: CommandLine, wait_until: Wait) -> None:
    """While another command works on the cluster, up-env waits, and says who holds the lock; then it goes on."""
    log = lab.cwd / "waiting.txt"
    with log.open("w") as file, lab.store.lock("lab", "a test of locks"):
        process = lab.start("up-env", stderr=file)
        wait_until(lambda: "waiting for" in log.read_text(), what="a word about the lock")
        assert process.poll() is None
        assert f"`a test of locks` (process {os.getpid()} on {os.uname().nodename}, since " in log.read_text()
    assert process.wait(30) == 0
    assert "nothing was changed" in log.read_text()


def test_two_clusters_side_by_side(cli: CommandLine) -> None:
    """Two clusters run at once, with ports, members and keys of their own; taking one away leaves the other."""
    assert cli("up-env", "--size", "1").code == 0
    ended = cli("up-env", "--size", "1", "--cluster", "second", program="invoke")
    assert ended.code == 0, ended.err
    assert cli("ctl", "--", "put", "k", "of lab").code == 0
    assert cli("ctl", "--cluster", "second", "--", "put", "k", "of second").code == 0
    assert cli("ctl", "--", "get", "k", "--print-value-only").out == "of lab\n"
    assert cli("down-env", "--cluster", "second", "--purge", "--yes").code == 0
    assert cli("ctl", "--", "get", "k", "--print-value-only").out == "of lab\n"
    assert cli.store.names() == ["lab"]


@on_processes
def test_two_at_the_same_moment(cli: CommandLine) -> None:
    """Two up-env of one new cluster at once: one creates it, the other waits and finds it up. Both succeed."""
    both = [cli.start("up-env", "--size", "1"), cli.start("up-env", "--size", "1")]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert sum("created and started" in err for _, err in said) == 1
    assert sum("was up already: nothing was changed" in err for _, err in said) == 1
    assert len(running(cli.runtime, cli.store.root)) == 1


@on_processes
def test_five_members(cli: CommandLine) -> None:
    """`--size 5` gives five members with the names in order."""
    ended = cli("up-env", "--size", "5", "-o", "json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert ([m["name"] for m in document["members"]], document["quorum"]) == (NAMES, 3)
    assert len({m["id"] for m in document["members"]}) == 5


def test_ports_can_be_pinned(cli: CommandLine) -> None:
    """With --port, the members take the ports from there on, also after a restart."""
    base = free_from(2)
    assert cli("up-env", "--size", "1", "--port", str(base)).code == 0
    member = cli.store.load("lab").members[0]
    assert member.client_url == f"http://127.0.0.1:{base}"
    if cli.runtime == "process":  # peers of containers meet on a network of their own
        assert member.peer_url == f"http://127.0.0.1:{base + 1}"
    assert cli("down-env").code == 0
    assert cli("up-env").code == 0
    again = cli("up-env", "--port", str(base))
    assert (again.code, "nothing was changed" in again.err) == (0, True)
    assert cli("ctl", "--", "get", "k", "--endpoints", f"http://127.0.0.1:{base}").code == 0


@on_processes
def test_configuration_speaks_for_new_clusters(cli: CommandLine) -> None:
    """invoke.yaml and INVOKE_ETCDOPS_… say what a new cluster is, under both programs; flags win over both."""
    (cli.cwd / "invoke.yaml").write_text("etcdops:\n  cluster: from-file\n  size: 1\n  offline: true\n")
    assert cli("up-env").code == 0
    assert len(cli.store.load("from-file").members) == 1
    two = cli("up-env", "--cluster", "two", program="invoke", INVOKE_ETCDOPS_SIZE="2")
    assert two.code == 0, two.err
    assert len(cli.store.load("two").members) == 2
    # An even number of members is allowed, and warned of: on stderr, and with a code in the status.
    assert "warning even-size: 2 voters tolerate the loss of 0, as 1 would" in two.err
    warnings = json.loads(cli("status", "--cluster", "two", "-o", "json").out)["warnings"]
    assert "even-size" in [each["code"] for each in warnings]
    differs = cli("up-env", "--size", "2", INVOKE_ETCDOPS_SIZE="1", program="invoke")
    assert (differs.code, "has 1 members, not 2" in differs.err) == (3, True)
    # An existing cluster is what it is: only a flag is a wish that could differ from it.
    for program in ("etcdops", "invoke"):
        again = cli("up-env", "--cluster", "two", program=program, INVOKE_ETCDOPS_ETCD_VERSION="3.4.1")
        assert (again.code, "nothing was changed" in again.err) == (0, True), again.err


@on_processes
def test_on_a_terminal(cli: CommandLine) -> None:
    """On a terminal it does the same, and asks nothing."""
    with Terminal(cli, "up-env", "--size", "1") as terminal:
        assert terminal.wait() == 0
        assert "export ETCDCTL_ENDPOINTS=" in terminal.text
    assert cli("up-env", stdin=None).code == 0


@pytest.mark.runtime("process")  # no limit of a shell's reaches a container; see test_cluster.py for both runtimes
def test_etcd_that_dies_at_start_leaves_nothing(cli: CommandLine) -> None:
    """Members that die at once: exit 1 with the log lines that matter; no directory and no process is left."""
    # Too little for the write-ahead log, and enough for all that etcdops writes.
    ended = _shell(cli, "ulimit -f 2000; exec etcdops up-env")
    assert ended.returncode == 1, ended.stderr
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert "died:" in ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("    ")]
    assert lines
    assert "file" in " ".join(lines).lower(), ended.stderr
    assert not (cli.store.root / "clusters" / "lab").exists()
    assert left(cli.runtime, cli.store.root) == []
    assert cli("status").code == 3


def test_one_member_that_cannot_start_again(cli: CommandLine) -> None:
    """On an existing cluster, what a failed start had started is stopped again, and the data of all is kept."""
    assert cli("up-env", "--size", "2").code == 0
    assert cli("ctl", "--", "put", "k", "v").code == 0
    assert cli("down-env").code == 0
    _spoil(cli, "thor")
    ended = cli("up-env")
    assert ended.code == 1, ended.err
    assert "member thor died:" in ended.err
    assert "panic: " in ended.err or '"level":"fatal"' in ended.err, ended.err
    assert "stacktrace" not in ended.err
    assert ("thor.log" if cli.runtime == "process" else "`logs --member thor`") in ended.err
    assert running(cli.runtime, cli.store.root) == []
    assert '"level"' in cli("logs", "--member", "thor").out
    _repair(cli, "thor")
    assert cli("up-env").code == 0
    assert cli("ctl", "--", "get", "k", "--print-value-only").out == "v\n"


def _wal(line: CommandLine, member: str) -> Path:
    """Where a stopped member's write-ahead log can be written: for a container, in a copy."""
    recorded = line.store.load("lab").member(member)
    data = Path(recorded.data.place)
    if line.runtime == "compose":
        data = line.cwd / member
        if not data.exists():
            docker("cp", f"{recorded.ref}:/var/lib/etcd/data", str(data))
    return next((data / "member" / "wal").glob("0*.wal"))


def _write_back(line: CommandLine, member: str) -> None:
    if line.runtime == "compose":
        wal = _wal(line, member)
        ref = line.store.load("lab").member(member).ref
        put_file(ref, f"/var/lib/etcd/data/member/wal/{wal.name}", wal.read_bytes())


def _spoil(line: CommandLine, member: str) -> None:
    """Overwrite the beginning of a stopped member's write-ahead log."""
    wal = _wal(line, member)
    content = wal.read_bytes()
    (line.cwd / "good.wal").write_bytes(content)
    with wal.open("r+b") as file:
        file.write(b"\xff" * 4096)
    _write_back(line, member)


def _repair(line: CommandLine, member: str) -> None:
    with _wal(line, member).open("r+b") as file:
        file.write((line.cwd / "good.wal").read_bytes())
    _write_back(line, member)


def test_start_that_takes_too_long(cli: CommandLine, wait_until: Wait) -> None:
    """When no write is acknowledged in time: exit 6, with the last thing seen, and nothing is left of a new cluster."""
    process = cli.start("up-env", "--timeout", "3")
    wait_until(lambda: len(running(cli.runtime, cli.store.root)) == 3, what="three members")
    for member in running(cli.runtime, cli.store.root)[:2]:
        act(cli.runtime, member.ref, "pause")
    _, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the cluster was up before its members could be frozen")
    assert process.returncode == 6, err
    assert "no write was acknowledged within 3 s; last: " in err
    assert not (cli.store.root / "clusters" / "lab").exists()
    assert left(cli.runtime, cli.store.root) == []


@pytest.mark.parametrize(
    "signum",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=on_processes), pytest.param(signal.SIGHUP, marks=on_processes)],
)
def test_interrupted_while_starting(cli: CommandLine, wait_until: Wait, signum: int) -> None:
    """A signal during the first start: its exit code, and nothing of the new cluster is left."""
    process = cli.start("up-env")
    wait_until(lambda: left(cli.runtime, cli.store.root), what="something of the cluster")
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    if process.returncode == 0:
        pytest.skip("the cluster was up before the signal arrived")
    assert process.returncode == 128 + signum, err
    assert not (cli.store.root / "clusters" / "lab").exists()
    assert left(cli.runtime, cli.store.root) == []
