"""Prepared commands are what commands are that start from nothing: the same output, exit code, streams and end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import psutil
import pytest

from tests.conftest import CommandLine
from tests.prepared import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of this module's own, gone afterwards with all that it has started."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def line(tmp_path: Path) -> CommandLine:
    """A command line where nothing is."""
    (tmp_path / "tasks.py").write_text("from etcdops.tasks import namespace\n")
    return CommandLine(tmp_path)


@pytest.mark.parametrize("program", ["etcdops", "invoke"])
@pytest.mark.parametrize(
    "args", [["--version"], ["--list"], ["status"], ["nosuch"], ["up-env", "--size", "x"], ["ctl", "--", "get", "k"]]
)
def test_says_and_gives_what_a_real_start_does(
    server: Server, line: CommandLine, program: str, args: list[str]
) -> None:
    """stdout, stderr and the exit code are those of the same command, started from nothing."""
    argv = line.argv(*args, program=program)
    done = server.run(argv, str(line.cwd), line.env, "", 60)
    real = subprocess.run(argv, cwd=line.cwd, env=line.env, input="", capture_output=True, text=True, timeout=60)
    assert done
    assert (done.returncode, done.stdout, done.stderr) == (real.returncode, real.stdout, real.stderr)


def test_stdin_and_environment_are_the_commands_own(server: Server, line: CommandLine) -> None:
    """What is written to it is read, however much; its environment has nothing of the server's; both are gone then."""
    config = "etcdops: {cluster: from-stdin}\n" + "# filling\n" * 50_000
    argv = line.argv("--config", "/dev/stdin", "status")
    for env, name in ((line.env, "lab"), ({**line.env, "INVOKE_ETCDOPS_CLUSTER": "other"}, "other")):
        done = server.run(line.argv("status"), str(line.cwd), env, "", 60)
        assert done
        assert f"there is no cluster {name!r}" in done.stderr
    link = line.cwd / "stdin.yaml"
    link.symlink_to("/dev/stdin")
    done = server.run([*argv[:2], str(link), argv[3]], str(line.cwd), line.env, config, 60)
    assert done
    assert "there is no cluster 'from-stdin'" in done.stderr


def test_what_python_reads_when_it_starts_needs_a_real_start(server: Server, line: CommandLine) -> None:
    """With another locale, or settings of Python's, it is not run here."""
    for name in ("PYTHONIOENCODING", "LC_ALL"):
        env = {**line.env, name: "ascii" if line.env.get(name) != "ascii" else "utf-8"}
        assert server.run(line.argv("--version"), str(line.cwd), env, "", 60) is None


def test_one_that_takes_too_long_is_killed(server: Server, line: CommandLine, wait_until: Callable[..., None]) -> None:
    """As subprocess.run does, with what it had said; no process of it is left, and the next command is served."""
    assert server.run(line.argv("--version"), str(line.cwd), line.env, "", 60)
    known = {child.pid for child in psutil.Process().children(recursive=True)}
    argv = line.argv("down-env", "--cluster", "lab")
    (line.cwd / ".etcdops" / "clusters" / "lab").mkdir(parents=True)
    os.mkfifo(line.cwd / ".etcdops" / "clusters" / "lab" / "cluster.json")
    with pytest.raises(subprocess.TimeoutExpired):
        # Nobody ever writes what it wants to read.
        server.run(argv, str(line.cwd), line.env, "", 3)
    wait_until(lambda: {child.pid for child in psutil.Process().children(recursive=True)} <= known)
    after = server.run(line.argv("--version"), str(line.cwd), line.env, "", 60)
    assert after
    assert after.returncode == 0


def test_several_at_the_same_time(server: Server, line: CommandLine) -> None:
    """Threads that run commands at once each get the answer to their own."""
    said: dict[str, str] = {}

    def ask(name: str) -> None:
        done = server.run(line.argv("status", "--cluster", name), str(line.cwd), line.env, None, 60)
        said[name] = done.stderr if done else ""

    threads = [Thread(target=ask, args=(f"lab-{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(said) == 4
    assert all(f"there is no cluster {name!r}" in text for name, text in said.items())


def test_a_shell_runs_them_by_name(
    server: Server, line: CommandLine, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    """Programs that stand in for etcdops and invoke have the shell's streams, directory, environment and exit code; one
    that is killed takes its command with it."""
    programs = tmp_path / "programs"
    programs.mkdir()
    server.programs(programs)
    known = {child.pid for child in psutil.Process().children(recursive=True)}
    (line.cwd / ".etcdops" / "clusters" / "lab").mkdir(parents=True)
    os.mkfifo(line.cwd / ".etcdops" / "clusters" / "lab" / "cluster.json")
    script = (
        "etcdops --version | tr a-z A-Z\n"
        "cd / && INVOKE_ETCDOPS_CLUSTER=one etcdops status; echo $?\n"
        "LC_ALL=POSIX invoke --version | grep -c Invoke\n"
        "cd - && timeout -s KILL 2 etcdops down-env; echo $?\n"
    )
    env = {**line.env, "PATH": f"{programs}{os.pathsep}{line.env['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=line.cwd, env=env, capture_output=True, text=True, timeout=60)
    assert "there is no cluster 'one'" in done.stderr
    version, *others = done.stdout.splitlines()
    assert version.startswith("ETCDOPS ")
    assert others == ["3", "1", str(line.cwd), "137"]
    wait_until(lambda: {child.pid for child in psutil.Process().children(recursive=True)} <= known)


def test_it_ends_with_who_started_it() -> None:
    """Nothing is left of a server whose user is killed."""
    script = (
        "import os, sys\nfrom tests.prepared import Server\nserver = Server()\n"
        "server.run([sys.argv[1], '--version'], '/', dict(os.environ), '', 60)\n"
        "print(server._process.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    root = Path(__file__).resolve().parents[2]
    argv = [sys.executable, "-c", script, str(Path(sys.executable).with_name("etcdops"))]
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(argv, cwd=root, env=env, stdout=subprocess.PIPE, text=True, timeout=60)
    try:
        psutil.Process(int(done.stdout)).wait(20)
    except psutil.NoSuchProcess:
        pass
