"""Bad input: each has its own message and exit code, and changes nothing.

Drills refuse in test_failed_leader.py; the validity of specifications as such is a matter of unit tests.

Most of this is refused before any runtime is asked for anything, or has to do with none; it runs with one, whose
clusters are the quickest to make. What a runtime has a part in runs with each.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcdops import runtimes
from tests.conftest import CommandLine, Ended, free_from, place
from tests.suite.members import left

pytestmark = pytest.mark.runtime("process")
with_each_runtime = pytest.mark.runtime(*runtimes.names())

PROGRAMS = ["etcdops", "invoke"]

#: Every task that takes --cluster, with what else it needs to get that far.
TASKS = [
    ("up-env",),
    ("down-env",),
    ("down-env", "--purge", "--yes"),
    ("status",),
    ("logs",),
    ("heal",),
    ("member.stop", "thor"),
    ("member.start", "thor"),
    ("member.move-leader",),
    ("failed-leader",),
    ("snapshot.save",),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, etcd_cluster_runtime: str) -> Iterator[CommandLine]:
    """A running cluster of one member, shared: nothing here changes it."""
    with place(tmp_path_factory.mktemp("bad") / "place", etcd_cluster_runtime) as line:
        ended = line("up-env", "--size", "1")
        assert ended.code == 0, ended.err
        yield line


@pytest.fixture
def nowhere(tmp_path: Path) -> CommandLine:
    """A command line where nothing is, and where nothing may be created."""
    (tmp_path / "tasks.py").write_text("from etcdops.tasks import namespace\n")
    return CommandLine(tmp_path)


def _refused(ended: Ended, code: int, *said: str) -> None:
    """Check that a command was refused with that code, on stderr alone, with a message and a remedy."""
    assert ended.code == code, ended
    assert ended.out == ""
    assert "error: " in ended.err
    # What says which values there are needs no remedy besides.
    assert "\n  -> " in ended.err or "is not offered: " in ended.err, ended.err
    for each in said:
        assert each in ended.err, (each, ended.err)


def _no_cluster(line: CommandLine) -> bool:
    return not (line.cwd / ".etcdops" / "clusters").exists()


@pytest.mark.parametrize("program", PROGRAMS)
def test_sizes_that_are_not_offered(nowhere: CommandLine, program: str) -> None:
    """0, 9, -1 and "three" members are refused."""
    for size in ("0", "9", "-1") if program == "etcdops" else ("9",):
        _refused(nowhere("up-env", f"--size={size}", program=program), 2, f"a cluster of {size} members is not offered")
    for size in ("three", ""):
        _refused(nowhere("up-env", "--size", size, program=program), 2, "--size", size)
    assert _no_cluster(nowhere)


@pytest.mark.parametrize("program", PROGRAMS)
def test_unknown_runtime(nowhere: CommandLine, program: str) -> None:
    """A runtime that does not exist is refused, and those that do are named; the one for tests is no choice."""
    for runtime in ("docker", "fake"):
        ended = nowhere("up-env", "--runtime", runtime, program=program)
        _refused(ended, 2, f"there is no runtime {runtime!r}", "Choose one of auto, compose, process")
    assert _no_cluster(nowhere)


@pytest.mark.parametrize("task", TASKS, ids=" ".join)
def test_cluster_names_that_cannot_be(nowhere: CommandLine, task: tuple[str, ...]) -> None:
    """A slash, a capital, dots, a leading dash, too many letters and none at all are refused by every task."""
    for name in ("a/b",) if task != ("status",) else ("Lab", "..", "-x", "a" * 32, "lab\n", "läb", "a b"):
        _refused(nowhere(*task, f"--cluster={name}"), 2, "cannot name a cluster")
    _refused(nowhere(*task, "--cluster", ""), 2, "--cluster is given without a value")
    assert _no_cluster(nowhere)


@pytest.mark.parametrize("program", PROGRAMS)
def test_cluster_names_that_cannot_be_for_ctl(nowhere: CommandLine, program: str) -> None:
    """`ctl` refuses them before it looks for a record, whatever etcdctl is to do."""
    outside = nowhere.cwd / "outside"
    outside.mkdir()
    (outside / "cluster.json").write_text("{}")
    (nowhere.cwd / ".etcdops" / "clusters").mkdir(parents=True)
    for name in ("../../outside", "Lab"):
        for arguments in (["get", "k"], ["version"]):
            _refused(nowhere("ctl", "--cluster", name, "--", *arguments, program=program), 2, "cannot name a cluster")


def test_values_of_the_wrong_type(lab: CommandLine) -> None:
    """Every flag that takes a number, a time or a choice says what it takes."""
    for args, said in (
        (("up-env", "--port", "high"), "--port 'high' is not a whole number"),
        (("up-env", "--port", "80", "--cluster", "new"), "--port 80 is not offered"),
        (("up-env", "--port", "65531", "--cluster", "new"), "--port 65531 is not offered"),
        (("up-env", "--timeout", "soon"), "--timeout 'soon' is not a whole number"),
        (("up-env", "--timeout", "0"), "--timeout 0 is not offered"),
        (("down-env", "--timeout=-1"), "--timeout -1 is not offered"),
        (("up-env", "-o", "xml"), "-o 'xml' is not known"),
        (("status", "--output", "yaml"), "-o 'yaml' is not known"),
        (("status", "--watch=often"), "--watch 'often' is not a number of seconds"),
        (("cluster.list", "-o", "xml"), "-o 'xml' is not known"),
        (("up-env", "--etcd-version", "latest", "--cluster", "new"), "latest"),
    ):
        _refused(lab(*args), 2, said)
    assert lab("status", "--watch", "0").code == 2
    assert lab("status", "--watch", "nan").code == 2
    assert lab.store.names() == ["lab"]
    assert lab("status").code == 0


@with_each_runtime
@pytest.mark.parametrize("program", PROGRAMS)
def test_flags_that_differ_from_what_the_cluster_has(lab: CommandLine, program: str) -> None:
    """On an existing cluster, a flag that differs is refused, saying what the cluster has; the same is accepted."""
    record = lab.store.load("lab")
    other = "compose" if lab.runtime == "process" else "process"
    for flags, said in (
        (("--runtime", other), f"runtime {lab.runtime}, not {other}"),
        (("--image", "example.org/etcd:1"), "not example.org/etcd:1"),
        (("--size", "3"), "cluster lab has 1 members, not 3"),
        (("--etcd-version", "3.4.1"), f"etcd {record.etcd_version}, not 3.4.1"),
        (("--port", "24000"), "not 24000"),
        (("--etcd-bin", "/nowhere"), f"the etcd in {record.binary}, not /nowhere" if record.binary else "not /nowhere"),
    ):
        _refused(lab("up-env", *flags, program=program), 3, said, "fixed when it is created")
    own = ("--etcd-bin", record.binary) if lab.runtime == "process" else ("--image", record.image)
    same = ("--size", "1", "--runtime", lab.runtime, "--etcd-version", record.etcd_version, *own)
    ended = lab("up-env", *same, program=program)
    assert (ended.code, "nothing was changed" in ended.err) == (0, True), ended.err


@with_each_runtime
def test_port_that_is_in_use(cli: CommandLine) -> None:
    """A pinned port that something listens on is refused, and named."""
    port = free_from(2)
    with socket.create_server(("127.0.0.1", port)):
        ended = cli("up-env", "--size", "1", "--port", str(port))
    _refused(ended, 3, f"port {port} on local is in use")
    assert _no_cluster(cli)
    assert left(cli.runtime, cli.store.root) == []


@with_each_runtime
def test_pinned_port_of_a_stopped_member_that_was_taken(cli: CommandLine) -> None:
    """When something has taken a stopped member's pinned port, up-env names it and starts nothing."""
    port = free_from(2)
    assert cli("up-env", "--size", "1", "--port", str(port)).code == 0
    assert cli("down-env").code == 0
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        _refused(cli("up-env"), 3, "something else listens on port", str(port), "ironman")
        assert {m["health"] for m in json.loads(cli("status", "-o", "json").out)["members"]} == {"stopped"}
    assert cli("up-env").code == 0
    assert cli("ctl", "--", "endpoint", "health", "--endpoints", f"http://127.0.0.1:{port}").code == 0


# A container's port that is not pinned moves: see test_compose_runtime.py.
def test_port_of_a_stopped_member_that_was_taken(cli: CommandLine) -> None:
    """When something has taken a stopped member's port, up-env names it and starts nothing."""
    assert cli("up-env", "--size", "1").code == 0
    assert cli("down-env").code == 0
    record = cli.store.load("lab")
    port = int(record.members[0].peer_url.rpartition(":")[2])
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        _refused(cli("up-env"), 3, f"something else listens on port {port} of ironman")
        assert {m["health"] for m in json.loads(cli("status", "-o", "json").out)["members"]} == {"stopped"}
    assert cli("up-env").code == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is damaged"),
        ("{", "is damaged"),
        ('{"schema": 1}', "is damaged"),
        ('{"schema": "one"}', "is damaged"),
        ('{"schema": 2, "new": "things"}', "has schema 2, and this release of etcdops reads up to 1"),
    ],
)
def test_record_that_cannot_be_used(nowhere: CommandLine, content: str, said: str) -> None:
    """A corrupt or newer cluster.json is refused by all that would use it, and is left as it is."""
    directory = nowhere.cwd / ".etcdops" / "clusters" / "lab"
    directory.mkdir(parents=True)
    record = directory / "cluster.json"
    record.write_text(content)
    for task in TASKS if content == "{" else [("up-env",)]:
        _refused(nowhere(*task), 3, said, str(record))
    _refused(nowhere("ctl", "--", "get", "k"), 3, str(record))
    assert record.read_text() == content
    assert sorted(path.name for path in directory.iterdir()) == ["cluster.json"]


def test_state_directory_that_cannot_be_written(nowhere: CommandLine) -> None:
    """A state directory that cannot be made or written is refused, and named."""
    file = nowhere.cwd / "file"
    file.write_text("I am a file.\n")
    # Not even root makes a directory in these.
    for where in (f"{file}/state", str(file), "/proc/etcdops"):
        for task in (["up-env", "--size", "1"], ["status"], ["ctl", "--", "get", "k"]):
            ended = nowhere(*task, ETCDOPS_STATE_DIR=where)
            assert (ended.code, ended.out, where in ended.err) == (3, "", True), (task, ended)
    _refused(nowhere("failed-leader", ETCDOPS_STATE_DIR="/proc/etcdops"), 3, "cannot write /proc/etcdops")
    assert nowhere("cluster.list", ETCDOPS_STATE_DIR=str(file)).code == 0
    assert file.read_text() == "I am a file.\n"
    assert _no_cluster(nowhere)


@with_each_runtime
def test_state_directory_without_permission(lab: CommandLine) -> None:
    """Where one may not write, what needs no writing works, and the rest is refused; where one may not read, all is."""
    # Root is bound by permissions, too, without these two capabilities.
    bound = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if bound and subprocess.run([*bound, "true"], capture_output=True).returncode:
        pytest.skip("root's capabilities cannot be dropped here")

    def run(*args: str) -> Ended:
        return lab.run(*bound, *lab.argv(*args))

    root = lab.store.root
    places = [root, root / "clusters", root / "clusters" / "lab", root / "locks"]
    try:
        for each in places:
            each.chmod(0o500)
        for task in (("status",), ("ctl", "--", "get", "k"), ("logs",), ("cluster.list",)):
            assert run(*task).code == 0, task
        _refused(run("up-env", "--cluster", "new"), 3, "Permission denied", str(root))
        _refused(run("down-env"), 3, "Permission denied", str(root))
        root.chmod(0)
        for task in (("status",), ("up-env",), ("ctl", "--", "get", "k"), ("down-env",), ("failed-leader",)):
            ended = run(*task)
            assert (ended.code, "Permission denied" in ended.err) == (3, True), (task, ended)
    finally:
        for each in places:
            each.chmod(0o755)
    assert lab("status").code == 0


def test_binary_that_is_not_etcd(nowhere: CommandLine) -> None:
    """What is no etcd, is a script, cannot be executed, or is not there, is refused before anything is created."""
    true = shutil.which("true")
    assert true is not None
    script = nowhere.cwd / "etcd"
    script.write_text("#!/bin/sh\necho 'etcd Version: 3.5.9'\n")
    _refused(nowhere("up-env", "--etcd-bin", true), 3, f"{os.path.abspath(true)} is not etcd")
    _refused(nowhere("up-env", "--etcd-bin", str(script)), 3, "cannot be executed")
    script.chmod(0o755)
    _refused(nowhere("up-env", "--etcd-bin", str(script)), 3, "is a script")
    _refused(nowhere("up-env", "--etcd-bin", str(nowhere.cwd)), 3, "is a script")
    _refused(nowhere("up-env", "--etcd-bin", "/nowhere/etcd"), 3, "there is no file /nowhere/etcd")
    _refused(nowhere("up-env", "--etcd-version", "3.4.1"), 3, "etcd 3.4.1 is not here", "etcd.fetch --version 3.4.1")
    assert _no_cluster(nowhere)


def test_disk_without_room(nowhere: CommandLine) -> None:
    """Where the members' logs would not fit, nothing is created, and the room that is needed is named."""
    small = nowhere.cwd / "small"
    small.mkdir()
    # In a namespace of its own, the mount ends with the command.
    script = 'mount -t tmpfs -o size=64m none "$1" || exit 77; exec "$2" up-env --size 1'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(small), nowhere.etcdops],
        cwd=nowhere.cwd,
        env={**nowhere.env, "ETCDOPS_STATE_DIR": str(small / "state")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode in (1, 77) and "error:" not in done.stderr:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    _refused(Ended(done.returncode, done.stdout, done.stderr), 3, "MiB of free space", "160 MiB")


@pytest.mark.parametrize(
    "args", [["nosuchtask"], ["status", "--nosuch"], ["--help", "nosuch"], ["status", "--cluster"]]
)
def test_command_line_that_cannot_be_parsed(nowhere: CommandLine, args: list[str]) -> None:
    """An unknown task or flag, or one without its value: 2 under etcdops, with a hint; Invoke's own 1 under invoke."""
    ours = nowhere(*args)
    assert (ours.code, ours.out) == (2, "")
    assert "etcdops --list" in ours.err
    assert "<Argument" not in ours.err
    theirs = nowhere(*args, program="invoke")
    assert (theirs.code, theirs.out) == (1, "")
    assert theirs.err


@pytest.mark.parametrize(
    "content",
    [
        "etcdops: [\n",
        "- a list\n",
        "etcdops: 5\n",
        "etcdops:\n",
        "etcdops:\n  size:\n    a: 3\n",
        "etcdops: {size: 3}\n",
    ],
)
def test_configuration_that_cannot_be_used(nowhere: CommandLine, content: str) -> None:
    """An invoke.yaml that is not understood is exit 2 under etcdops, and says where to look."""
    (nowhere.cwd / "invoke.yaml").write_text(content)
    ended = nowhere("up-env", INVOKE_ETCDOPS_SIZE="five")
    _refused(ended, 2, "Invoke's configuration cannot be used", "invoke.yaml")
    assert _no_cluster(nowhere)


@pytest.mark.parametrize("program", PROGRAMS)
def test_configured_values_are_checked_as_flags_are(nowhere: CommandLine, program: str) -> None:
    """What a file or the environment gives is checked in the same way."""
    (nowhere.cwd / "invoke.yaml").write_text("etcdops:\n  size: three\n  output: table\n")
    _refused(nowhere("up-env", program=program), 2, "--size 'three' is not a number")
    _refused(nowhere("up-env", program=program, INVOKE_ETCDOPS_SIZE="0"), 2, "a cluster of 0 members")
    _refused(nowhere("status", program=program, INVOKE_ETCDOPS_CLUSTER="A/B"), 2, "'A/B' cannot name a cluster")
    assert _no_cluster(nowhere)


def test_configuration_file_that_is_not_there(nowhere: CommandLine) -> None:
    """`--config` and INVOKE_RUNTIME_CONFIG must name a file that is there."""
    _refused(nowhere("--config", "/nowhere.yaml", "status"), 2, "there is no file /nowhere.yaml")
    _refused(nowhere("status", INVOKE_RUNTIME_CONFIG="/nowhere.yaml"), 2, "there is no file /nowhere.yaml")
    _refused(nowhere("ctl", "--", "version", INVOKE_RUNTIME_CONFIG="/nowhere.yaml"), 2, "/nowhere.yaml")


def test_working_directory_that_is_gone(nowhere: CommandLine) -> None:
    """In a directory that has been deleted, commands say so."""
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    for args in (["status"], ["ctl", "--", "get", "k"], ["up-env"]):
        ended = nowhere.run("sh", "-c", script, "sh", *nowhere.argv(*args))
        _refused(ended, 3, "the working directory cannot be found")


def test_paths_that_not_every_encoding_knows(nowhere: CommandLine, lab: CommandLine) -> None:
    """A path that is not UTF-8 is refused; a letter that stdout's encoding lacks is written as an escape."""
    undecodable = nowhere.cwd / os.fsdecode(b"\xff")
    undecodable.mkdir()
    line = CommandLine(undecodable)
    for task in (("up-env",), ("status",), ("ctl", "--", "get", "k")):
        _refused(line(*task), 3, "is not UTF-8")
    assert list(undecodable.iterdir()) == []
    umlaut = nowhere.cwd / "pl\u00e4ce"
    umlaut.symlink_to(lab.store.root)
    ended = lab("logs", "--since", "0s", PYTHONIOENCODING="ascii", ETCDOPS_STATE_DIR=str(umlaut))
    assert ended.code == 0, ended.err
    record = lab.store.load("lab")
    with Path(record.members[0].log).open("a") as file:
        file.write("l\u00e4st words\n")
    assert "l\\xe4st words" in lab("logs", PYTHONIOENCODING="ascii").out


def test_output_that_cannot_be_written(lab: CommandLine) -> None:
    """A full disk behind stdout is an error with its reason, and a reader that has left is none; no tracebacks."""
    for args, reader, code in (
        (["status"], "> /dev/full", 1),
        (["cluster.list"], "> /dev/full", 1),
        (["up-env"], "> /dev/full", 1),
        (["status"], "| true", 0),
        (["--list"], "| true", 0),
        (["--help"], "| true", 0),
        (["status"], "<&- >&- 2>&-", 0),
    ):
        done = subprocess.run(
            ["sh", "-c", f'"$@" {reader}', "sh", *lab.argv(*args)],
            cwd=lab.cwd,
            env=lab.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Traceback" not in done.stderr, (args, reader, done.stderr)
        assert "Exception ignored" not in done.stderr, (args, reader, done.stderr)
        assert done.returncode == code, (args, reader, done)
        if "full" in reader:
            assert "No space left on device" in done.stderr
