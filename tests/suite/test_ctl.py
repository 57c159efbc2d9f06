"""`ctl`: etcdctl with the cluster's endpoints, as if nothing stood between it and the caller.

It becomes an etcdctl of this machine, so that what it passes on has nothing to do with how members run; a few tests run
with each runtime all the same. Where there is no etcdctl here: test_ctl_in_container.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from etcdops import etcdctl, runtimes
from tests.conftest import CommandLine, place
from tests.suite.members import etcdctl as etcdctl_of
from tests.suite.terminal import Terminal

Wait = Callable[..., None]

pytestmark = pytest.mark.runtime("process")
with_each_runtime = pytest.mark.runtime(*runtimes.names())

PROGRAMS = ["etcdops", "invoke"]
NASTY = "a  b \"c\" 'd' $(date) `date` $HOME * ~ \\ \\n ; | & > /dev/null --endpoints=x -- é\nsecond line\t"
PROXY = "http://127.0.0.1:9"
PROXIES: dict[str, Any] = dict.fromkeys(
    ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"), PROXY
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, etcd_cluster_runtime: str) -> Iterator[CommandLine]:
    """A running cluster of one member, shared: `ctl` does not change it."""
    with place(tmp_path_factory.mktemp("ctl") / "place", etcd_cluster_runtime) as line:
        ended = line("up-env", "--size", "1")
        assert ended.code == 0, ended.err
        yield line


def _endpoint(line: CommandLine) -> str:
    return line.store.load("lab").members[0].client_url


def _get(line: CommandLine, key: str) -> str:
    return line("ctl", "--", "get", key, "--print-value-only").out


def _shell(line: CommandLine, script: str, **env: str) -> subprocess.CompletedProcess[str]:
    bin_dir = os.path.dirname(line.etcdops)
    path = f"{bin_dir}{os.pathsep}{line.env['PATH']}"
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=line.cwd,
        env={**line.env, "PATH": path, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def _is_etcdctl(pid: int) -> bool:
    return os.path.basename(os.readlink(f"/proc/{pid}/exe")) == "etcdctl"


@with_each_runtime
@pytest.mark.parametrize("program", PROGRAMS)
def test_arguments_reach_etcdctl_as_they_are(lab: CommandLine, program: str) -> None:
    """Spaces, quotes, newlines, `$(date)` and what looks like flags are stored literally; no shell sees them."""
    put = lab("ctl", "--", "put", f"key {program}", "--", NASTY, program=program)
    assert (put.code, put.out, put.err) == (0, "OK\n", "")
    assert _get(lab, f"key {program}") == NASTY + "\n"


def test_empty_and_undecodable_arguments(lab: CommandLine) -> None:
    """An empty value is a value, and bytes that are no UTF-8 arrive as they are."""
    assert lab("ctl", "--", "put", "empty", "").code == 0
    assert json.loads(lab("ctl", "--", "get", "empty", "-w", "json").out)["count"] == 1
    subprocess.run([*lab.argv("ctl", "--", "put", "bytes"), b"\xff\xfe"], cwd=lab.cwd, env=lab.env, check=True)
    raw = subprocess.run(
        lab.argv("ctl", "--", "get", "bytes", "--print-value-only"),
        cwd=lab.cwd,
        env=lab.env,
        check=True,
        capture_output=True,
    )
    assert raw.stdout == b"\xff\xfe\n"


@with_each_runtime
@pytest.mark.parametrize("program", PROGRAMS)
def test_stdin_reaches_etcdctl(lab: CommandLine, program: str) -> None:
    """`echo v | ctl -- put k` stores what is piped in."""
    done = _shell(lab, f"echo 'piped by {program}' | {program} ctl -- put piped")
    assert (done.returncode, done.stdout) == (0, "OK\n"), done.stderr
    assert _get(lab, "piped") == f"piped by {program}\n\n"


@pytest.mark.parametrize("program", PROGRAMS)
def test_while_read_loop_sees_every_line(lab: CommandLine, program: str) -> None:
    """In `while read k; do ctl -- get $k; done < keys`, `ctl` does not swallow the keys that are still to come."""
    (lab.cwd / "keys").write_text("one\ntwo\nthree\n")
    for key in ("one", "two", "three"):
        assert lab("ctl", "--", "put", key, f"value of {key}").code == 0
    done = _shell(lab, f"while read k; do {program} ctl -- get $k --print-value-only; done < keys")
    assert done.stdout == "value of one\nvalue of two\nvalue of three\n", done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["get"], ["nosuchcommand"], ["put", "k", "v", "--lease", "abc"], ["get", "absent"], ["role", "get", "absent"]],
)
def test_output_and_exit_code_are_etcdctls_own(lab: CommandLine, arguments: list[str]) -> None:
    """stdout, stderr and exit code are to the byte those of etcdctl called by hand."""
    binary = etcdctl_of(lab.store.load("lab"))
    env = {**lab.env, "ETCDCTL_ENDPOINTS": _endpoint(lab)}
    bare = subprocess.run(
        [binary, *arguments], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
    )
    ours = lab("ctl", "--", *arguments)
    assert (ours.code, ours.out) == (bare.returncode, bare.stdout)
    assert [line for line in ours.err.splitlines() if '"ts"' not in line] == [
        line for line in bare.stderr.splitlines() if '"ts"' not in line
    ]


def test_exit_code_passes_through_invoke(lab: CommandLine) -> None:
    """Under `invoke`, too, the exit code is etcdctl's."""
    assert lab("ctl", "--", "get", program="invoke").code == 128


@with_each_runtime
@pytest.mark.parametrize("program", PROGRAMS)
def test_process_becomes_etcdctl(lab: CommandLine, wait_until: Wait, program: str) -> None:
    """The process that was started is etcdctl, with the signal dispositions and the environment that it should have.

    The caller's endpoint and TLS variables are replaced; all others, its own of etcdctl among them, are kept.
    """
    lab.env.update(
        ETCDCTL_ENDPOINTS="http://127.0.0.1:1",
        ETCDCTL_CACERT="/nowhere/ca.pem",
        ETCDCTL_CERT="/nowhere/cert.pem",
        ETCDCTL_KEY="/nowhere/key.pem",
        ETCDCTL_INSECURE_SKIP_TLS_VERIFY="true",
        ETCDCTL_DISCOVERY_SRV="example.invalid",
        ETCDCTL_USER="someone:secret",
        ETCDCTL_API="3",
        ETCDCTL_DIAL_TIMEOUT="7s",
        MINE="kept",
    )
    try:
        process = lab.start("ctl", "--", "watch", "watched", program=program)
    finally:
        for name in [name for name in lab.env if name.startswith("ETCDCTL_")]:
            del lab.env[name]
        del lab.env["MINE"]
    wait_until(lambda: _is_etcdctl(process.pid), what="etcdctl")
    environ = Path(f"/proc/{process.pid}/environ")
    # Empty for an instant, while the process is being replaced.
    wait_until(environ.read_bytes, what="its environment")
    content = environ.read_bytes().decode()
    seen = dict(item.partition("=")[::2] for item in content.split("\0") if item)
    assert {name: value for name, value in seen.items() if name.startswith("ETCDCTL_")} == {
        "ETCDCTL_ENDPOINTS": _endpoint(lab),
        "ETCDCTL_USER": "someone:secret",
        "ETCDCTL_API": "3",
        "ETCDCTL_DIAL_TIMEOUT": "7s",
    }
    assert seen["MINE"] == "kept"
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    assert int(status["SigIgn"], 16) == 0
    assert process.stdout is not None

    def event() -> bool:
        lab("ctl", "--", "put", "watched", "seen")
        return bool(_readable(process))

    wait_until(event, what="an event")
    assert process.stdout.readline() == "PUT\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    # Go's runtime ends a program by the signal that it does not handle.
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)


def _readable(process: subprocess.Popen[str]) -> bool:
    import select

    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], 0.2)[0])


@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_on_a_terminal_ends_watch(lab: CommandLine, wait_until: Wait, program: str) -> None:
    """Ctrl-C, typed, ends `watch`, and the shell sees 130."""
    with Terminal(lab, "ctl", "--", "watch", "typed", program=program) as terminal:
        wait_until(lambda: _is_etcdctl(terminal.process.pid), what="etcdctl")

        def event() -> bool:
            lab("ctl", "--", "put", "typed", "x")
            terminal._read(0.2)
            return "PUT" in terminal.text

        wait_until(event, what="an event")
        terminal.type("\x03")
        assert terminal.wait(20) == 130


@pytest.mark.parametrize("program", PROGRAMS)
def test_reader_that_leaves_early(lab: CommandLine, program: str) -> None:
    """`ctl -- get … | head -1` ends quietly."""
    for i in range(4):
        assert lab("ctl", "--", "put", f"many/{i}", "x" * 100_000).code == 0
    done = _shell(lab, f"{program} ctl -- get --prefix many/ | head -1")
    assert (done.stdout, done.stderr) == ("many/0\n", "")


def test_endpoints_of_the_caller_win(lab: CommandLine, tmp_path: Path) -> None:
    """`--endpoints` wins over ours and over the environment, without etcdctl's "shadowed" error; no cluster needed."""
    wrong = lab(
        "ctl", "--", "--endpoints=http://127.0.0.1:1", "--command-timeout=500ms", "--dial-timeout=300ms", "get", "k"
    )
    assert wrong.code not in (0, 3)
    assert "127.0.0.1:1" in wrong.err
    assert "shadowed" not in wrong.err
    right = lab("ctl", "--", "get", "nothing", "--endpoints", _endpoint(lab), ETCDCTL_ENDPOINTS="http://127.0.0.1:1")
    assert (right.code, right.err) == (0, "")
    elsewhere = CommandLine(tmp_path)
    assert elsewhere("ctl", "--", "--endpoints", _endpoint(lab), "put", "from", "elsewhere").code == 0
    assert not (tmp_path / ".etcdops").exists()


def test_value_that_looks_like_a_flag_is_no_flag(lab: CommandLine) -> None:
    """What follows etcdctl's own `--` is a key or value: our endpoints are set all the same."""
    assert lab("ctl", "--", "put", "flaglike", "--", "--endpoints").code == 0
    assert _get(lab, "flaglike") == "--endpoints\n"


@with_each_runtime
@pytest.mark.parametrize("program", PROGRAMS)
def test_proxies_of_the_environment_are_harmless(lab: CommandLine, program: str) -> None:
    """Proxy variables that point nowhere change nothing for ctl, status and up-env."""
    assert lab("ctl", "--", "put", "through", "no proxy", program=program, **PROXIES).code == 0
    if program == "etcdops":
        assert lab("status", **PROXIES).code == 0
        again = lab("up-env", **PROXIES)
        assert (again.code, "nothing was changed" in again.err) == (0, True)


@pytest.mark.parametrize("program", PROGRAMS)
def test_works_from_a_subdirectory(lab: CommandLine, program: str) -> None:
    """The state directory is searched upwards, as git's is."""
    deep = lab.cwd / "a" / "b"
    deep.mkdir(parents=True, exist_ok=True)
    assert CommandLine(deep)("ctl", "--", "put", "deep", "down", program=program).code == 0


def test_state_directory_can_be_named(lab: CommandLine, tmp_path: Path) -> None:
    """ETCDOPS_STATE_DIR names the state directory, from anywhere."""
    elsewhere = CommandLine(tmp_path)
    assert elsewhere("ctl", "--", "member", "list").code == 3
    assert elsewhere("ctl", "--", "member", "list", ETCDOPS_STATE_DIR=str(lab.store.root)).code == 0


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("words", [["status"], ["down-env"], ["--cluster", "lab", "down-env"], []])
def test_without_dashes_is_refused_with_a_hint(lab: CommandLine, program: str, words: list[str]) -> None:
    """`ctl status` is not run as two tasks: it is refused, says what to type, and the other task does not run."""
    ended = lab("ctl", *words, program=program)
    assert (ended.code, ended.out) == (2, "")
    said = next((word for word in words if word in ("status", "down-env")), "member list -w table")
    assert f"Type `ctl -- {said}`" in ended.err
    assert lab("ctl", "--", "endpoint", "health").code == 0


def test_word_before_the_dashes_is_refused(lab: CommandLine) -> None:
    """A task between `ctl` and `--` is not run, and neither is etcdctl."""
    for program in PROGRAMS:
        ended = lab("ctl", "down-env", "--", "put", "must", "not", program=program)
        assert (ended.code, ended.out) == (2, "")
        assert "stands before it" in ended.err
    assert _get(lab, "must") == ""


def test_etcdctls_word_without_dashes(lab: CommandLine) -> None:
    """`ctl get k` gets the hint as well; under `invoke`, Invoke's own parser refuses it, with its own exit code."""
    ours = lab("ctl", "get", "a b")
    assert ours.code == 2
    assert "Type `ctl -- get 'a b'`" in ours.err
    theirs = lab("ctl", "get", "k", program="invoke")
    assert (theirs.code, theirs.out) == (1, "")
    assert "get" in theirs.err


def test_nothing_after_the_dashes_is_etcdctls_help(lab: CommandLine, tmp_path: Path) -> None:
    """`ctl --` shows etcdctl's help; that and `ctl -- version` need no cluster."""
    assert "USAGE:\n\tetcdctl" in lab("ctl", "--").out
    nowhere = CommandLine(tmp_path)
    assert nowhere("ctl", "--", "version").out.startswith("etcdctl version: 3.")
    assert "USAGE:" in nowhere("ctl", "--", "get", "--help").out
    assert not (tmp_path / ".etcdops").exists()


def test_help_after_a_key_does_not_make_it_local(tmp_path: Path) -> None:
    """`ctl -- put k -- -h` is a write: without a cluster it is refused, not sent to etcdctl's default endpoint."""
    ended = CommandLine(tmp_path)("ctl", "--", "put", "k", "--", "-h")
    assert ended.code == 3, ended


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_cluster_is_exit_3_with_the_command_to_type(tmp_path: Path, program: str) -> None:
    """Without a cluster and without a terminal: exit 3, the command to type, and nothing is created."""
    (tmp_path / "tasks.py").write_text("from etcdops.tasks import namespace\n")
    ended = CommandLine(tmp_path)("ctl", "--cluster", "other", "--", "get", "k", program=program)
    assert (ended.code, ended.out) == (3, "")
    assert f"Type `{program} up-env --cluster other`" in ended.err
    assert not (tmp_path / ".etcdops").exists()


@with_each_runtime
def test_cluster_that_is_down_is_offered_on_a_terminal(cli: CommandLine) -> None:
    """On a terminal a cluster is offered, as in the original: "n" is exit 3, "y" starts it and runs the command."""
    with Terminal(cli, "ctl", "--", "put", "k", "v", program="invoke") as terminal:
        terminal.expect("[y/N]")
        terminal.type("n\n")
        assert terminal.wait() == 3
    assert not (cli.cwd / ".etcdops").exists()
    with Terminal(cli, "ctl", "--", "put", "k", "v", INVOKE_ETCDOPS_SIZE="1") as terminal:
        terminal.expect("[y/N]")
        terminal.type("y\n")
        assert terminal.wait() == 0
        assert terminal.text.rstrip().endswith("OK")
    # The configuration says how large a new cluster is.
    assert len(cli.store.load("lab").members) == 1
    assert cli("down-env").code == 0
    down = cli("ctl", "--", "get", "k")
    assert down.code == 3
    assert "is not up: no member accepts connections" in down.err
    with Terminal(cli, "ctl", "--", "get", "k", "--print-value-only") as terminal:
        terminal.expect("[y/N]")
        terminal.type("\x03")
        assert terminal.wait() == 130
    (cli.cwd / "invoke.yaml").write_text("etcdops:\n  size: 3\n")
    with Terminal(cli, "ctl", "--", "get", "k", "--print-value-only") as terminal:
        terminal.expect("[y/N]")
        terminal.type("yes\n")
        assert terminal.wait() == 0
        assert terminal.text.rstrip().endswith("v")


def test_which_cluster_flags_then_environment_then_file(lab: CommandLine, tmp_path: Path) -> None:
    """A flag wins over INVOKE_ETCDOPS_CLUSTER, and that over invoke.yaml, under both programs, from below too."""
    (tmp_path / "tasks.py").write_text("from etcdops.tasks import namespace\n")
    (tmp_path / "sub").mkdir()
    line = CommandLine(tmp_path / "sub")
    line.env["ETCDOPS_STATE_DIR"] = str(lab.store.root)
    asked = ("ctl", "--", "member", "list")
    for program in PROGRAMS:
        assert line(*asked, program=program).code == 0
        assert "'from-env'" in line(*asked, program=program, INVOKE_ETCDOPS_CLUSTER="from-env").err
        flagged = line("ctl", "--cluster", "lab", *asked[1:], program=program, INVOKE_ETCDOPS_CLUSTER="from-env")
        assert flagged.code == 0
    (tmp_path / "invoke.yaml").write_text("etcdops:\n  cluster: from-file\n")
    for program in PROGRAMS:
        assert "'from-file'" in line(*asked, program=program).err
        assert "'from-env'" in line(*asked, program=program, INVOKE_ETCDOPS_CLUSTER="from-env").err
        assert line("ctl", "-c", "lab", *asked[1:], program=program).code == 0


def test_spellings_of_the_cluster_flag(lab: CommandLine) -> None:
    """`--cluster NAME`, `--cluster=NAME` and `-c NAME` are the same; an empty name is refused, not taken for lab."""
    for flag in (["--cluster=lab"], ["-c", "lab"], ["--cluster", "lab"]):
        assert lab("ctl", *flag, "--", "endpoint", "health").code == 0
    assert lab("ctl", "--cluster", "", "--", "endpoint", "health").code == 2
    assert lab("ctl", "--cluster=", "--", "endpoint", "health", program="invoke").code == 2
    assert lab("ctl", "--", "endpoint", "health", INVOKE_ETCDOPS_CLUSTER="").code == 0


def test_stdin_that_is_closed(tmp_path: Path) -> None:
    """Even with its standard streams closed, `ctl` ends with a code and no traceback."""
    line = CommandLine(tmp_path)
    assert _shell(line, "etcdops ctl -- get k <&-").returncode == 3
    assert _shell(line, "etcdops ctl -- get k <&- >&- 2>&-").returncode == 3


class TestEnvironment:
    """What etcdctl's environment is made of."""

    TLS = {"ca": "/ca", "client_cert": "/cert", "client_key": "/key"}  # noqa: RUF012

    def test_files_of_the_cluster_replace_the_callers(self) -> None:
        """With TLS, the cluster's files are set; a flag of the caller's leaves its variable out."""
        base = {"ETCDCTL_CACERT": "/mine", "ETCDCTL_PASSWORD": "kept", "PATH": "/bin"}
        assert etcdctl.environment(base, ["https://a", "https://b"], self.TLS, ["get", "k"]) == {
            "PATH": "/bin",
            "ETCDCTL_PASSWORD": "kept",
            "ETCDCTL_ENDPOINTS": "https://a,https://b",
            "ETCDCTL_CACERT": "/ca",
            "ETCDCTL_CERT": "/cert",
            "ETCDCTL_KEY": "/key",
        }
        given = etcdctl.environment(base, ["https://a"], self.TLS, ["--cacert", "/other", "--key=/k", "get", "k"])
        assert set(given) == {"PATH", "ETCDCTL_PASSWORD", "ETCDCTL_ENDPOINTS", "ETCDCTL_CERT"}

    def test_no_variable_is_empty(self) -> None:
        """Without endpoints or TLS nothing is set: etcdctl takes an empty variable for a value."""
        assert etcdctl.environment({"ETCDCTL_ENDPOINTS": "x"}, [], None, ["version"]) == {}
