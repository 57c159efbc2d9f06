"""The task collection: names, flags and help texts, and how errors, signals and answers become exit codes."""

from __future__ import annotations

import copy
import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invoke.config import Config
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import Task

import etcdops.errors
from etcdops import drills, etcdctl, paths
from etcdops.cli import _fast_ctl
from etcdops.errors import ConfirmationNeeded, EtcdError, EtcdopsError, Interrupted, QuorumLost, SpecError, StateError
from etcdops.spec import valid_name
from etcdops.tasks import common, namespace
from etcdops.tasks.program import program

NAMES = sorted(namespace.task_names)
DOCUMENTED = {
    *("up-env", "down-env", "status", "ctl", "logs", "failed-leader", "heal"),
    *("drill.list", "drill.run", "cluster.list", "cluster.prune", "etcd.fetch"),
}


def _printed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    # A copy, since Invoke uses the help texts up as it makes its parser.
    kind: Any = type(program)
    kind(name="etcdops", namespace=copy.deepcopy(namespace)).run(["etcdops", *args], exit=False)
    return capsys.readouterr().out


def _arguments(name: str) -> list[Any]:
    task: Task[Any] = copy.deepcopy(namespace)[name]
    return list(task.get_arguments())


def test_names_are_those_of_the_design() -> None:
    """The commands of the design are there, under these names."""
    assert set(NAMES) >= DOCUMENTED


def test_every_drill_is_a_command() -> None:
    """Each drill of the registry is a command of its own, with its options as flags and their choices in the help."""
    for drill in drills.all_drills():
        assert drill.name in NAMES
        flags = {argument.name: argument for argument in _arguments(drill.name)}
        for choice in drill.choices:
            assert flags[choice.name].help.endswith(f"(default: {choice.values[0]})")


def test_list_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`--list` shows every command of the collection with what it does, and nothing else."""
    # Another name for the same command stands in brackets.
    listed = re.findall(r"^  ([a-z]\S*)(?: \(.*\))?   *(\S.*)$", _printed(capsys, "--list"), re.MULTILINE)
    assert sorted(name for name, _ in listed) == NAMES
    for name, about in listed:
        assert about[0].isupper(), (name, about)


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_has_help(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Each flag of each command says what it is; each command has a first line that is a sentence."""
    doc = namespace[name].__doc__ or ""
    assert doc.splitlines()[0].rstrip()
    text = _printed(capsys, "--help", name)
    for argument in _arguments(name):
        assert argument.help, f"{name} --{argument.name} has no help"
        assert not argument.help.endswith("."), f"{name} --{argument.name}: flags' help texts are no sentences"
        flag = argument.name.replace("_", "-")
        assert f"--{flag}" in text
    # Values are checked by us: Invoke's own parser raises a traceback for what is no integer.
    for argument in _arguments(name):
        assert argument.kind in (str, bool, list), f"{name} --{argument.name} is parsed by Invoke"
        if argument.kind is str:
            assert argument.default in (None, ""), f"{name} --{argument.name} hides what is configured"


@pytest.mark.parametrize(
    "line",
    [
        *(f"{name} --help" for name in NAMES),
        "check -h",
        "check --output json --help",
        "check RUN --help",
        "member.kill -c lab -h",
        "snapshot.pull URL --help",
    ],
)
def test_help_can_follow_the_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """`NAME --help` shows the help of NAME, whatever words and flags it wants."""
    words = line.split()
    monkeypatch.setattr(sys, "argv", ["etcdops", *words])
    shown = _printed(capsys, *words)
    assert shown.startswith(f"Usage: etcdops [--core-opts] {words[0]} ")
    assert (namespace[words[0]].__doc__ or "").splitlines()[0].strip()[:60] in shown


def test_help_of_another_task_leaves_words_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A word that has to be there has to be there, unless it is this task's help that is asked for."""
    for line in ("check", "check RUN", "status --help", "check -- --help", "check --model --help"):
        monkeypatch.setattr(sys, "argv", ["etcdops", *line.split()])
        assert [each.name for each in _arguments("check") if each.positional] == ["run"], line


def test_same_flag_same_meaning() -> None:
    """A flag that several commands have is spelled the same way in all of them: cluster, output, yes."""
    for name in NAMES:
        for argument in _arguments(name):
            if argument.name == "cluster" and name not in ("cluster.prune", "snapshot.list", "snapshot.restore"):
                assert argument.help == common.HELP["cluster"]
                assert argument.nicknames == ("c",)
            if argument.name == "output":
                assert argument.nicknames == ("o",)


def _ended(error: BaseException) -> Exit:
    @common.command
    def body() -> None:
        raise error

    with pytest.raises(Exit) as raised:
        body()
    return raised.value


def test_errors_become_messages_and_exit_codes() -> None:
    """Every error of ours ends a command with its message, its remedy and its own exit code."""
    for name in etcdops.errors.__all__:
        kind = getattr(etcdops.errors, name)
        if not issubclass(kind, EtcdopsError):
            continue
        error: EtcdopsError
        if kind is QuorumLost:
            error = QuorumLost(healthy=1, voters=3, remedy="do this")
        elif kind is EtcdError:
            error = EtcdError("UNAVAILABLE", "gone", endpoint="http://a", remedy="do this")
        else:
            error = kind("what happened", remedy="do this")
        exit_ = _ended(error)
        assert (exit_.code, exit_.message) == (kind.exit_code, f"error: {error}\n  -> do this")
        assert exit_.code in (1, 2, 3, 5, 6, 7)
    assert _ended(EtcdopsError("no remedy")).message == "error: no remedy"


def test_signals_become_their_exit_codes() -> None:
    """SIGINT, SIGTERM and SIGHUP end a command with 130, 143 and 129."""
    for signum, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        assert _ended(Interrupted(signum)).code == code
    assert _ended(KeyboardInterrupt()).code == 130


def test_signal_that_arrives_ends_the_command() -> None:
    """A signal to the process, while a command runs, ends it; what handled signals before handles them afterwards."""
    before = signal.getsignal(signal.SIGTERM)

    @common.command
    def body() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    with pytest.raises(Exit) as raised:
        body()
    assert raised.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_operating_systems_errors_are_messages() -> None:
    """What the operating system refuses is a message, and a bug stays a bug."""
    exit_ = _ended(OSError(errno.EIO, "Input/output error", "/somewhere"))
    assert exit_.code == 1
    assert "/somewhere" in (exit_.message or "")

    @common.command
    def bug() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bug()


def _context(**configured: Any) -> Context:
    return Context(Config(defaults={"etcdops": configured}))


def test_flag_wins_over_configuration() -> None:
    """A flag as it is given; else what is configured, as text; else nothing."""
    assert common.flag(_context(size=5), "size", "3") == "3"
    assert common.flag(_context(size=5), "size", None) == "5"
    assert common.flag(_context(offline=True), "offline", None) == "True"
    assert common.flag(_context(size=None), "size", None) == ""
    assert common.flag(Context(Config()), "size", None) == ""


def test_flag_without_a_value_is_refused() -> None:
    """`--cluster "$UNSET"` must not act on the default cluster."""
    with pytest.raises(SpecError, match="--etcd-version is given without a value"):
        common.flag(_context(etcd_version="3.5.9"), "etcd_version", "")


def test_timeouts_have_bounds() -> None:
    """A timeout is a whole number of seconds from 1 to a day."""
    assert common.seconds(_context(), None, 60) == 60.0
    assert common.seconds(_context(timeout=7), None, 60) == 7.0
    assert common.seconds(_context(), "86400", 60) == 86_400.0
    for wrong in ("0", "-1", "86401", "1.5", "soon", "1e3"):
        with pytest.raises(SpecError, match="timeout"):
            common.seconds(_context(), wrong, 60)


def test_output_is_table_or_json() -> None:
    """Table unless json is asked for, by flag or configuration."""
    assert common.output_of(_context(), None) == "table"
    assert common.output_of(_context(output="json"), None) == "json"
    assert common.output_of(_context(output="json"), "table") == "table"
    with pytest.raises(SpecError, match="'xml'"):
        common.output_of(_context(), "xml")


def test_confirming_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --yes nothing is asked; without a terminal, or without stdin at all, it is refused."""
    common.confirm("Remove it?", yes=True)
    for stdin in (open(os.devnull), None):  # noqa: SIM115
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(ConfirmationNeeded, match=r"Remove it\?") as raised:
            common.confirm("Remove it?", yes=False)
        assert "--yes" in raised.value.remedy
        if stdin:
            stdin.close()


@given(st.text(alphabet="abz09-AZ_./ \né", max_size=33))
def test_quick_check_of_names_agrees_with_the_full_one(name: str) -> None:
    """`ctl` checks a cluster's name without loading what the full check needs, and accepts exactly the same ones."""

    def accepted(check: Any) -> bool:
        try:
            check(name)
        except SpecError:
            return False
        return True

    assert accepted(etcdctl.check_name) == accepted(valid_name)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ctl -- get k", []),
        ("ctl --cluster lab -- get k", []),
        ("ctl --cluster=lab -- get k", []),
        ("ctl -c lab", []),
        ("ctl --help", []),
        ("ctl", []),
        ("status", []),
        ("status -- ctl", []),
        ("ctl status", ["status"]),
        ("ctl -c lab get k --prefix", ["get", "k", "--prefix"]),
        ("ctl --write-out table -- get", ["--write-out", "table"]),
        ("ctl down-env -- get k", ["down-env"]),
        ("status ctl down-env", ["down-env"]),
        ("lab.ctl status", ["status"]),
    ],
)
def test_words_that_stand_before_the_dashes(line: str, words: list[str]) -> None:
    """What Invoke would take for further tasks is told from `ctl`'s own flags."""
    assert etcdctl.misplaced(["etcdops", *line.split()]) == words


@pytest.mark.parametrize(
    ("line", "cluster"),
    [
        ("ctl -- get k", "lab"),
        ("ctl --", "lab"),
        ("ctl --cluster x -- get k", "x"),
        ("ctl --cluster=x -- get k", "x"),
        ("ctl -c x -- get k", "x"),
        ("ctl --cluster -- get k", None),
        ("ctl status -- get k", None),
        ("ctl get k", None),
        ("ctl", None),
        ("status -- x", None),
        ("--debug ctl -- get k", None),
    ],
)
def test_plain_ctl_is_served_before_invoke(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, cluster: str | None
) -> None:
    """What is plain is served at once; where Invoke's configuration may have a say, Invoke is asked."""
    monkeypatch.chdir(tmp_path)
    argv = ["etcdops", *line.split()]
    assert _fast_ctl(argv) == cluster
    monkeypatch.setenv("INVOKE_ETCDOPS_CLUSTER", "from-env")
    assert _fast_ctl(argv) == ("from-env" if cluster == "lab" else cluster)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".invoke.yaml").write_text("")
    assert _fast_ctl(argv) is None
    (tmp_path / "home" / ".invoke.yaml").unlink()
    assert _fast_ctl(argv) == ("from-env" if cluster == "lab" else cluster)
    (tmp_path / "invoke.yml").write_text("")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert _fast_ctl(argv) is None


@pytest.mark.parametrize("kind", ["yaml", "yml", "json", "py"])
def test_project_directory_is_searched_upwards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    """The nearest directory with a configuration file of Invoke's, from here upwards."""
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    outer = paths.find_project_dir()
    (tmp_path / f"invoke.{kind}").write_text("")
    assert outer != str(tmp_path)
    assert paths.find_project_dir() == str(tmp_path)
    (deep / "invoke.yaml").write_text("")
    assert paths.find_project_dir() == str(deep)


def test_state_directory_where_the_working_directory_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a working directory there is nowhere to look, unless a state directory is named."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(StateError, match="working directory"):
        paths.find_state_dir()
    assert paths.find_project_dir() is None
    monkeypatch.setenv("ETCDOPS_STATE_DIR", "/named")
    assert paths.find_state_dir() == "/named"


def test_ctl_imports_next_to_nothing(tmp_path: Path) -> None:
    """On the way of `ctl`, nothing heavy is imported: it would take longer than etcdctl does."""
    script = (
        "import sys\n"
        "from etcdops import cli, etcdctl\n"
        "cli._fast_ctl(['etcdops', 'ctl', '--', 'version'])\n"
        "etcdctl.plan('lab', ['version'])\n"
        "heavy = {'invoke', 'grpc', 'google', 'msgspec', 'rich', 'jinja2', 'sh', 'fabric', 'psutil', 'asyncio',\n"
        "         'typing', 'logging', 'importlib.metadata', 'pathlib'}\n"
        "print(*sorted(heavy & set(sys.modules)))\n"
    )
    # Without site packages' own .pth files, which import what they like.
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
