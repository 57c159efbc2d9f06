"""What `scripts/` promise, tried on a small checkout that installs without a package index.

The checkout has the real scripts and a project of its own, whose build backend lies in the tree and whose dependencies
are none. Its `invoke` is the real Invoke of the environment that runs these tests; its other commands write down how
they were called.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
CI_DOCKER = SCRIPTS.parent / ".ci" / "docker"
DEADLINE_S = 120.0

# A first use unpacks pip, which is seconds of work on an idle machine and a minute on a busy one.
pytestmark = pytest.mark.timeout(300)

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "etcdops"
version = "0"
"""

BACKEND = '''
"""Builds the wheel of a project without dependencies. FAKE_GATE holds the build until that file exists."""
import os
import time
import zipfile
from pathlib import Path

COMMANDS = """
import json, os, sys

def invoke():
    os.execv(os.environ["FAKE_PYTHON"], [os.environ["FAKE_PYTHON"], "-m", "invoke", *sys.argv[1:]])

def called():
    name = os.path.basename(sys.argv[0])
    print(json.dumps({"name": name, "args": sys.argv[1:], "cwd": os.getcwd(), "stdin": sys.stdin.read()}))
    failing, _, code = os.environ.get("FAKE_EXIT", "").partition("=")
    sys.exit(int(code) if failing == " ".join([name, *sys.argv[1:]]) else 0)
"""
SCRIPTS = """[console_scripts]
invoke = fake_commands:invoke
pytest = fake_commands:called
ruff = fake_commands:called
mypy = fake_commands:called
"""


def build_editable(directory, config_settings=None, metadata_directory=None):
    with open("builds", "a") as builds:
        builds.write("build\\n")
    if gate := os.environ.get("FAKE_GATE"):
        Path(gate + ".reached").touch()
        deadline = time.monotonic() + 60
        while not os.path.exists(gate):
            if time.monotonic() > deadline:
                raise SystemExit("nobody opened the gate")
            time.sleep(0.02)
    if message := os.environ.get("FAKE_FAILURE"):
        raise SystemExit(message)
    files = {
        "fake_commands.py": COMMANDS,
        "etcdops-0.dist-info/METADATA": "Metadata-Version: 2.1\\nName: etcdops\\nVersion: 0\\nProvides-Extra: dev\\n",
        "etcdops-0.dist-info/WHEEL": "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        "etcdops-0.dist-info/entry_points.txt": SCRIPTS,
    }
    record = "".join(f"{name},,\\n" for name in [*files, "etcdops-0.dist-info/RECORD"])
    with zipfile.ZipFile(os.path.join(directory, "etcdops-0-py3-none-any.whl"), "w") as wheel:
        for name, text in {**files, "etcdops-0.dist-info/RECORD": record}.items():
            wheel.writestr(name, text)
    return "etcdops-0-py3-none-any.whl"
'''

TASKS = '''
import os
import sys

from invoke import task


@task
def where(c):
    """Print the working directory."""
    print(os.getcwd())


@task
def become(c):
    """Become the command after `--`, as `ctl` does."""
    command = sys.argv[sys.argv.index("--") + 1:]
    os.execvp(command[0], command)
'''


class Checkout:
    """A checkout with the real scripts, and the environment in which its user calls them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(root.parent),
            "LC_ALL": "C.UTF-8",
            "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "ETCDOPS_PYTHON": sys.executable,
            "FAKE_PYTHON": sys.executable,
        }

    @classmethod
    def create(cls, root: Path) -> Checkout:
        """A checkout at `root` that was never used."""
        shutil.copytree(SCRIPTS, root / "scripts")
        (root / "etcdops").mkdir()
        (root / "etcdops" / "__init__.py").write_text('"""Nothing."""\n')
        (root / "pyproject.toml").write_text(PYPROJECT)
        (root / "backend.py").write_text(BACKEND)
        (root / "tasks.py").write_text(TASKS)
        return cls(root)

    def run(
        self, script: str, *args: str, stdin: str = "", cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """What `script` (a name in scripts/, or a path) did, once it has ended."""
        return subprocess.run(
            [self.root / "scripts" / script, *args],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=cwd or self.root,
            env={**self.env, **env},
            timeout=DEADLINE_S,
            check=False,
        )

    @contextlib.contextmanager
    def running(self, script: str, *args: str, **env: str) -> Iterator[subprocess.Popen[str]]:
        """The script as a process group of its own, which is killed at the end if it still runs."""
        process = subprocess.Popen(
            [self.root / "scripts" / script, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**self.env, **env},
            start_new_session=True,
        )
        try:
            with process:
                try:
                    yield process
                finally:
                    if process.poll() is None:
                        os.killpg(process.pid, signal.SIGKILL)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def builds(self) -> int:
        """How many times pip has built the project."""
        log = self.root / "builds"
        return len(log.read_text().splitlines()) if log.exists() else 0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE_S:.0f} s for {what}"
        time.sleep(0.02)


@pytest.fixture
def fresh(tmp_path: Path) -> Checkout:
    """A checkout that was never used, at a path with a space in it."""
    return Checkout.create(tmp_path / "a checkout")


@pytest.fixture(scope="module")
def first_use(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, subprocess.CompletedProcess[str]]:
    """A checkout and what its first use was: `scripts/test` with an argument and a line on stdin."""
    checkout = Checkout.create(tmp_path_factory.mktemp("used") / "a checkout")
    return checkout, checkout.run("test", "-k", "a b", stdin="for pytest\n")


@pytest.fixture
def used(first_use: tuple[Checkout, subprocess.CompletedProcess[str]]) -> Checkout:
    """A checkout in which everything is ready. Tests share it, and leave it ready."""
    assert first_use[1].returncode == 0, first_use[1].stderr
    return first_use[0]


def path_with(directory: Path, **commands: str) -> str:
    """A PATH on which there are the ordinary tools, no Python but the named ones, and no git but a named one.

    Each command is the text of a shell script.
    """
    directory.mkdir()
    for tool in ("cat", "cmp", "cp", "date", "find", "grep", "mkdir", "mv", "readlink", "rm", "tail", "touch"):
        found = shutil.which(tool)
        assert found, f"these tests need {tool}"
        (directory / tool).symlink_to(found)
    for name, text in commands.items():
        script = directory / name.replace("_", ".")
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
    return str(directory)


def python_that(lie: str) -> str:
    """The text of a command that is this Python after it has run the statements `lie`; it takes `-c CODE` only."""
    return f"""exec '{sys.executable}' -c "import sys; {lie}; exec(sys.argv[1])" "$2" """


GIT = "exit 0"
OLD = python_that("sys.version_info = (3, 9, 2)")
BARE = python_that("sys.modules['ensurepip'] = None")
REAL = f"exec '{sys.executable}' \"$@\""
# Looks like any Python until it is asked for a virtual environment, and is quick to fail then.
NO_ROOM = f"""
case $1 in
-m) echo no room left && exit 1 ;;
-I) shift ;;
esac
exec '{sys.executable}' -c "import sys; sys.executable = '$0'; exec(sys.argv[1])" "$2"
"""


def test_first_use_speaks_on_stderr_and_leaves_stdin_to_the_command(
    first_use: tuple[Checkout, subprocess.CompletedProcess[str]],
) -> None:
    """The first `scripts/test` installs, tells of it on stderr alone, and pytest then gets the caller's stdin."""
    checkout, result = first_use

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "name": "pytest",
        "args": ["-k", "a b"],
        "cwd": str(checkout.root),
        "stdin": "for pytest\n",
    }
    assert "first use: making" in result.stderr
    assert "ready after" in result.stderr


def test_a_second_use_does_nothing_and_says_nothing(used: Checkout) -> None:
    """With everything in place, `scripts/install` is silent and builds nothing."""
    builds = used.builds()

    result = used.run("install")

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert used.builds() == builds


def test_sources_are_compiled_once_and_again_after_a_change(used: Checkout) -> None:
    """Our package and tasks.py have bytecode after an installation, and again after a source has changed."""
    caches = [used.root / "etcdops" / "__pycache__", used.root / "__pycache__"]
    assert list(caches[0].glob("__init__.*.pyc"))
    assert list(caches[1].glob("tasks.*.pyc"))
    (used.root / "etcdops" / "later.py").write_text("LATER = True\n")
    later = time.time() + 2
    os.utime(used.root / "etcdops" / "later.py", (later, later))

    assert used.run("install").returncode == 0

    assert list(caches[0].glob("later.*.pyc"))


def test_a_changed_pyproject_is_installed_again_in_the_same_environment(used: Checkout, tmp_path: Path) -> None:
    """After an edit of pyproject.toml the next use installs once more, and keeps the virtual environment."""
    kept = used.root / ".venv" / "kept"
    kept.touch()
    builds = used.builds()
    with (used.root / "pyproject.toml").open("a") as pyproject:
        pyproject.write("# edited\n")

    first, second = used.run("install"), used.run("install")

    assert "installing again" in first.stderr
    assert (first.returncode, second.returncode, second.stderr) == (0, 0, "")
    assert used.builds() == builds + 1
    assert kept.exists()


def test_a_moved_checkout_makes_a_new_environment(used: Checkout, tmp_path: Path) -> None:
    """A virtual environment names its own path, so the one of a checkout that was moved or copied is not used."""
    moved = tmp_path / "moved"
    shutil.copytree(used.root, moved, symlinks=True)
    path = path_with(tmp_path / "bin", git=GIT, python3=NO_ROOM)

    result = Checkout(moved).run("test", PATH=path, ETCDOPS_PYTHON="")

    assert (result.returncode, result.stdout) == (1, "")
    assert f"first use: making {moved}/.venv" in result.stderr


def test_another_python_makes_a_new_environment(used: Checkout, tmp_path: Path) -> None:
    """ETCDOPS_PYTHON with another Python than before makes the environment anew; without it, the last choice holds."""
    other = used.root / "other-python"
    other.symlink_to(sys.executable)
    builds = used.builds()
    used.env["ETCDOPS_PYTHON"] = str(other)

    named, unnamed = used.run("install"), used.run("install", ETCDOPS_PYTHON="")

    assert "first use: making" in named.stderr
    assert (unnamed.returncode, unnamed.stderr) == (0, "")
    assert used.builds() == builds + 1


def test_two_first_uses_at_once_install_once(fresh: Checkout, tmp_path: Path) -> None:
    """The second first use says that it waits, finds everything ready and runs its own command."""
    gate = tmp_path / "gate"
    with fresh.running("test", "first", FAKE_GATE=str(gate)) as first:
        wait_until(Path(f"{gate}.reached").exists, "the first to build")
        with fresh.running("test", "second") as second:
            assert second.stderr is not None
            waiting = second.stderr.readline()
            gate.touch()
            outputs = [json.loads(process.communicate(timeout=DEADLINE_S)[0]) for process in (first, second)]

    assert "waiting for it" in waiting
    assert [output["args"] for output in outputs] == [["first"], ["second"]]
    assert (first.returncode, second.returncode, fresh.builds()) == (0, 0, 1)


def test_a_killed_first_use_is_done_again(fresh: Checkout, tmp_path: Path) -> None:
    """After SIGKILL in the middle the next use waits for a pip that outlived its parent, and then starts over."""
    gate = tmp_path / "gate"
    with fresh.running("install", FAKE_GATE=str(gate)) as first:
        wait_until(Path(f"{gate}.reached").exists, "pip to build")
        first.kill()
        first.wait(DEADLINE_S)
        half_made = fresh.root / ".venv" / "half-made"
        half_made.touch()
        with fresh.running("test") as second:
            assert second.stderr is not None
            waiting = second.stderr.readline()
            gate.touch()
            output, said = second.communicate(timeout=DEADLINE_S)

    assert "waiting for it" in waiting
    assert "first use: making" in said
    assert not half_made.exists()
    assert json.loads(output)["name"] == "pytest"
    assert (second.returncode, fresh.builds()) == (0, 2)


def test_a_failed_installation_shows_the_cause_and_is_tried_again(used: Checkout) -> None:
    """When pip fails its last lines are shown, the exit code is 1, the command does not run, and a retry works."""
    with (used.root / "pyproject.toml").open("a") as pyproject:
        pyproject.write("# edited, and not installed at once\n")
    failed = used.run("test", FAKE_FAILURE="no etcd in this wheel")
    retried = used.run("test")

    assert (failed.returncode, failed.stdout) == (1, "")
    assert "no etcd in this wheel" in failed.stderr
    assert "PIP_INDEX_URL" in failed.stderr
    assert json.loads(retried.stdout)["name"] == "pytest"


@pytest.mark.parametrize(
    ("commands", "said", "packages"),
    [
        ({"git": GIT}, "found none of python3 python3.13", "python3 python3-venv"),
        ({"git": GIT, "python3": BARE}, "has no venv", "python3-venv"),
        ({"git": GIT, "python3": OLD}, "python3 is Python 3.9", "python3 python3-venv"),
        ({"python3": REAL}, "git is not installed", "git"),
        ({"python3": BARE, "python3_12": REAL}, "git is not installed", "git"),
        ({"python3": OLD, "python3_12": BARE}, "git is not installed", "git python3-venv"),
    ],
    ids=["no-python", "no-venv", "old-python", "no-git", "no-git-but-a-later-python", "everything"],
)
def test_what_is_missing_is_named(
    fresh: Checkout, tmp_path: Path, commands: dict[str, str], said: str, packages: str
) -> None:
    """Without a usable Python or git the exit code is 3, nothing is made, and the Debian command is given."""
    result = fresh.run("invoke", "where", PATH=path_with(tmp_path / "bin", **commands), ETCDOPS_PYTHON="")

    assert (result.returncode, result.stdout) == (3, "")
    assert said in result.stderr
    assert f"apt-get install {packages}\n" in result.stderr
    assert not (fresh.root / ".venv").exists()


def test_the_first_usable_python_is_chosen(fresh: Checkout, tmp_path: Path) -> None:
    """A python3 that is too old and a python3.12 without venv are passed over for python3.11; its failure is shown."""
    path = path_with(tmp_path / "bin", git=GIT, python3=OLD, python3_12=BARE, python3_11=NO_ROOM)

    result = fresh.run("install", PATH=path, ETCDOPS_PYTHON="")

    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert result.returncode == 1
    assert f"with Python {version} ({path}/python3.11)" in result.stderr
    assert "no room left" in result.stderr


def test_invoke_finds_the_tasks_from_another_directory_and_stays_there(used: Checkout, tmp_path: Path) -> None:
    """`scripts/invoke` works through a symlink, from anywhere, and leaves the working directory as it was."""
    link = tmp_path / "link"
    link.symlink_to(used.root / "scripts" / "invoke")

    result = used.run(str(link), "where", cwd=tmp_path)

    assert (result.returncode, result.stdout) == (0, f"{tmp_path}\n"), result.stderr


def test_invoke_passes_arguments_stdin_and_exit_code_through(used: Checkout) -> None:
    """What stands after `--` arrives as it was typed, with the caller's stdin, and the exit code comes back."""
    program = "import sys; print(sys.argv[1:], sys.stdin.read()); sys.exit(42)"
    args = ["put", "k", "a b", "$(date)", "", "--from-key", "-r", "-w=json", "--"]

    result = used.run("invoke", "become", "--", sys.executable, "-c", program, *args, stdin="value")

    assert (result.returncode, result.stdout) == (42, f"{args} value\n"), result.stderr


def test_a_loop_over_stdin_keeps_its_lines(used: Checkout) -> None:
    """`while read k; do scripts/invoke …; done` sees every line: nothing on the way reads stdin."""
    loop = f"while read k; do '{used.root}/scripts/invoke' become -- echo got $k; done"

    result = subprocess.run(
        ["sh", "-c", loop],
        input="a\nb\nc\n",
        capture_output=True,
        text=True,
        env=used.env,
        timeout=DEADLINE_S,
        check=False,
    )

    assert result.stdout == "got a\ngot b\ngot c\n", result.stderr


def test_a_signal_reaches_the_command_itself(used: Checkout) -> None:
    """The script becomes the command: a signal to the script's pid is the command's to handle."""
    program = "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True); signal.pause()"
    with used.running("invoke", "become", "--", sys.executable, "-c", program) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.wait(DEADLINE_S) == 7


@pytest.mark.parametrize("failing", ["", "ruff format --check", "ruff check", "mypy"])
def test_check_runs_all_and_fails_if_any_does(used: Checkout, tmp_path: Path, failing: str) -> None:
    """`scripts/check` runs format, lint and types at the checkout's root, whichever of them fails."""
    result = used.run("check", cwd=tmp_path, FAKE_EXIT=f"{failing}=1")

    calls = [json.loads(line) for line in result.stdout.splitlines()]
    commands = [" ".join([call["name"], *call["args"]]) for call in calls]
    assert commands == ["ruff format --check", "ruff check", "mypy"]
    assert {call["cwd"] for call in calls} == {str(used.root)}
    assert result.returncode == (1 if failing else 0)


def test_the_exit_code_of_pytest_comes_back(used: Checkout) -> None:
    """`scripts/test` exits with pytest's own code."""
    assert used.run("test", FAKE_EXIT="pytest=5").returncode == 5


def ci_docker(*args: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What `.ci/docker` did; the commands in `path` stand in for `docker` and `dockerd`."""
    env = {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}" if path else os.environ["PATH"]}
    env.pop("DOCKER_HOST", None)
    return subprocess.run(
        ["bash", CI_DOCKER, *args], capture_output=True, text=True, env=env, timeout=DEADLINE_S, check=False
    )


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(("later", "ends"), [(0, True), (1, False)], ids=["ours", "a-later-process-with-its-pid"])
def test_ci_stops_the_engine_that_it_started_and_no_other(tmp_path: Path, later: int, ends: bool) -> None:
    """`.ci/docker stop` ends the process whose pid and start were recorded; without a record it does nothing."""
    assert ci_docker("stop", tmp_path).returncode == 0
    with subprocess.Popen(["sleep", "60"]) as engine:
        try:
            started = int(Path(f"/proc/{engine.pid}/stat").read_text().rpartition(")")[2].split()[19])
            (tmp_path / "engine").write_text(f"{engine.pid} {started - later} unix://{tmp_path}/none.sock\n")

            result = ci_docker("stop", tmp_path)

            assert (result.returncode, result.stderr) == (0, "")
            assert (engine.poll() == -signal.SIGTERM) is ends
        finally:
            engine.kill()


def test_ci_shows_why_an_engine_did_not_come_up(tmp_path: Path) -> None:
    """When dockerd ends before it answers, `.ci/docker start` fails with the last lines of its log."""
    path = tmp_path / "bin"
    path_with(path, docker="exit 1", dockerd="echo no room for $*; exit 1")

    result = ci_docker("start", tmp_path / "engine", "--mtu", "9", path=path)

    assert result.returncode == 1
    assert "no room for --host unix:///var/run/docker.sock" in result.stderr
    assert "--mtu 9" in result.stderr


def test_ci_leaves_an_engine_that_answers_as_it_is(tmp_path: Path) -> None:
    """Where `docker info` answers, `.ci/docker start` starts nothing and records nothing to stop."""
    path = tmp_path / "bin"
    path_with(path, docker="echo 20.10", dockerd=f"touch '{tmp_path}/started'")

    result = ci_docker("start", tmp_path / "engine", path=path)

    assert (result.returncode, result.stdout) == (0, "an engine answers already: 20.10\n")
    assert list((tmp_path / "engine").iterdir()) == []
    assert not (tmp_path / "started").exists()
