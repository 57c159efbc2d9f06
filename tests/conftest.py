"""What all tests share: a clean environment, a command line to drive, and every runtime that this machine offers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# gRPC must learn that we fork before it is imported, whichever test comes first.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from etcdops import binaries, runtimes
from etcdops.cluster import Cluster
from etcdops.errors import EtcdopsError
from etcdops.hosts import LocalHost
from etcdops.report.verdict import Verdict
from etcdops.spec import ClusterSpec
from etcdops.state import Store
from etcdops.versions import parse_version
from scripts.lab_hosts.machine import demand
from tests import prepared
from tests.browsers import browser as browser
from tests.suite import members

ROOT = Path(__file__).resolve().parent.parent
pytest_plugins = ["pytester"]

#: What `--require-runtime` calls the hosts that `scripts/lab-hosts` makes.
REMOTE = "remote"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-runtime",
        default="",
        metavar="NAME,...",
        help="fail, instead of skipping, where one of these runtimes is absent",
    )
    parser.addoption(
        "--require-browser", action="store_true", help="fail, instead of skipping, where no browser is installed"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "runtime(name, ...): run it with these runtimes alone, instead of with each; say why beside it"
    )
    # Who runs us in the background of a shell script makes us ignore Ctrl-C, and every command that we start as well.
    for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)
    unknown = set(_required(config)) - {*runtimes.names(), REMOTE}
    if unknown:
        raise pytest.UsageError(f"--require-runtime: there is no runtime {', '.join(sorted(unknown))}")


def _required(config: pytest.Config) -> list[str]:
    return [name for name in config.getoption("--require-runtime").split(",") if name]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run whatever makes a cluster once with each runtime, or with those that its marker names."""
    if "etcd_cluster_runtime" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("runtime")
        names = marker.args if marker else runtimes.names()
        metafunc.parametrize("etcd_cluster_runtime", names, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what the marker of a single parameter (`pytest.param(…, marks=…)`) rules out."""
    items[:] = [item for item in items if _wanted(item)]


def _wanted(item: pytest.Item) -> bool:
    callspec, marker = getattr(item, "callspec", None), item.get_closest_marker("runtime")
    name = callspec.params.get("etcd_cluster_runtime") if callspec else None
    return name is None or marker is None or name in marker.args


def own_ports() -> range:
    """Give the ports of this process's tests: those that run at the same time have others, up to six of them.

    Nothing listens on those of a stopped member, so that whoever looks for a free one would find them.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    first = 20000 + 2000 * (int(worker) % 6)
    return range(first, first + 2000)


def free_from(count: int) -> int:
    """Give the first of `count` free ports in a row among `own_ports`, for `--port`."""
    host = LocalHost()
    return next(p for p in own_ports()[::10] if not any(host.port_in_use(p + i) for i in range(count)))


@pytest.fixture(autouse=True, scope="session")
def _clean_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees this machine's configuration, caches, clusters or proxies, or goes beyond loopback.

    But for one thing: an etcd in the cache that is better than what the tests would find is put on their PATH.
    """
    found = binaries.find(offline=True)
    home = tmp_path_factory.mktemp("home")
    patch = pytest.MonkeyPatch()
    for name in list(os.environ):
        if name.startswith(("ETCD", "INVOKE_", "XDG_")) or name.lower().endswith("_proxy"):
            patch.delenv(name)
    patch.setenv("HOME", str(home))
    patch.setenv("ETCDOPS_OFFLINE", "1")
    patch.setenv("ETCDOPS_PORTS", f"{own_ports()[0]}-{own_ports()[-1]}")
    if found.source in ("cache", "PATH"):
        patch.setenv("PATH", f"{found.directory}{os.pathsep}{os.environ['PATH']}")
    # With PYTHONUNBUFFERED, a flush that is missing would not be missed.
    for name in ("NO_COLOR", "PYTHONUNBUFFERED"):
        patch.delenv(name, raising=False)
    yield
    patch.undo()


#: Runs the commands of every CommandLine; it starts with the first of them, in the environment that the tests have.
_SERVER = prepared.Server()


@pytest.fixture(autouse=True, scope="session")
def prepared_server(_clean_home: None) -> Iterator[prepared.Server]:
    """The server of prepared commands; it ends before the environment that it was started in."""
    yield _SERVER
    _SERVER.close()


@pytest.fixture(autouse=True, scope="session")
def _nothing_left(_clean_home: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of all clusters that the tests have made, nothing is left: no process, container, network or volume."""
    yield
    left = members.below(tmp_path_factory.getbasetemp())
    for runtime, leftover in left:
        members.remove(runtime, leftover)
    said = [f"{each.described} of {each.cluster} in {each.state_dir}" for _, each in left]
    assert not said, "the tests left, and what now is removed:\n" + "\n".join(said)


@cache
def _lacking(runtime: str) -> str:
    """Give what this machine lacks to run members in that way, "" if nothing: an etcd, or an image of one, as well."""
    try:
        if runtime == REMOTE:
            demand(with_engine=True)
            return ""
        runner = runtimes.get(runtime)
        problem: EtcdopsError | None = runner.unavailable()
        if problem is None:
            runner.prepare(ClusterSpec.of_size("any"), offline=True, progress=lambda text: None)
    except EtcdopsError as error:
        problem = error
    return str(problem or "")


def need_runtime(runtime: str, config: pytest.Config) -> None:
    """Skip the test where this machine lacks a runtime, with the reason, or fail it if that runtime is required."""
    if reason := _lacking(runtime):
        required = runtime in _required(config)
        (pytest.fail if required else pytest.skip)(f"{runtime}: {reason}")


@pytest.fixture(scope="module")
def etcd_cluster_runtime(request: pytest.FixtureRequest) -> str:
    """Every runtime in turn (see pytest_generate_tests); one that this machine lacks is skipped, or fails."""
    name: str = request.param
    need_runtime(name, request.config)
    return name


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A state directory of the test's own."""
    return Store(tmp_path / "state")


def assert_passed(verdict: Verdict) -> None:
    """Assert that a run passed; say which checks did not.

    Some releases of etcd lose consistency when a member is killed under load (3.5.0 to 3.5.2: etcd#13766), and the
    checks find that: on those, that finding alone is no failure of ours.
    """
    bad = {check.name: check for check in verdict.checks if check.result != "passed"}
    if verdict.cluster.known_bad and verdict.fault and verdict.fault.kind == "kill":
        theirs = (
            "members agree",
            "acknowledged writes",
            "revision witness",
            "watch",
            "rejoined",
            "linearizability search",
        )
        bad = {name: check for name, check in bad.items() if not name.startswith(theirs)}
    early = "Bookmarkable" in bad["watch"].detail if "watch" in bad else False
    if early and parse_version(verdict.cluster.etcd_version) < parse_version("3.5.8"):
        # Progress notifications ahead of events: https://github.com/etcd-io/etcd/issues/15220, mended in 3.4.25, 3.5.8.
        del bad["watch"]
    assert not bad, bad


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class CommandLine:
    """Runs `etcdops` (or `invoke`) in a directory of its own, and leaves nothing running there.

    New clusters have `runtime`, as INVOKE_ETCDOPS_RUNTIME says.
    """

    def __init__(self, cwd: Path, runtime: str = "process") -> None:
        self.cwd = cwd
        self.runtime = runtime
        # Half a second of traffic before a fault is enough where nobody reads what is noise.
        self.env = {**os.environ, "INVOKE_ETCDOPS_RUNTIME": runtime, "INVOKE_ETCDOPS_BASELINE": "0.5"}
        bin_dir = Path(sys.executable).parent
        self.etcdops = str(bin_dir / "etcdops")
        self.invoke = str(bin_dir / "invoke")
        self._started: list[subprocess.Popen[str]] = []

    def argv(self, *args: str, program: str = "etcdops") -> list[str]:
        """Give the argv of a command."""
        return [getattr(self, program), *args]

    def __call__(
        self, *args: str, program: str = "etcdops", stdin: str | None = "", timeout_s: float = 90, **env: str
    ) -> Ended:
        """Run a command to its end and give how it ended: in a process of its own, with the modules imported before.

        One that is started through another program starts from nothing.
        """
        argv, env = self.argv(*args, program=program), {**self.env, **env}
        done = (
            _SERVER.run(argv, str(self.cwd), env, stdin, timeout_s) if argv[0] in (self.etcdops, self.invoke) else None
        )
        done = done or subprocess.run(
            argv, cwd=self.cwd, env=env, input=stdin, capture_output=True, text=True, timeout=timeout_s
        )
        assert "Traceback (most recent call last)" not in done.stderr, done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    def run(self, *argv: str) -> Ended:
        """Run any program as a command of this place is run, in a process that starts from nothing, without input."""
        done = subprocess.run(
            argv, cwd=self.cwd, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
        assert "Traceback (most recent call last)" not in done.stderr, done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    def start(self, *args: str, program: str = "etcdops", **popen: Any) -> subprocess.Popen[str]:
        """Start a command and give its process."""
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            self.argv(*args, program=program), cwd=self.cwd, env=self.env, text=True, **{**options, **popen}
        )
        self._started.append(process)
        return process

    @property
    def store(self) -> Store:
        """The state directory of this place."""
        return Store(self.cwd / ".etcdops")

    def cluster(self, name: str = "lab") -> Cluster:
        """A cluster of this place."""
        return Cluster.attach(name, store=self.store)

    def purge(self) -> None:
        """End what was started, then stop and delete every cluster of this place."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for name in self.store.names():
            self("down-env", "--purge", "--yes", "--cluster", name)


@contextmanager
def place(directory: Path, runtime: str = "process") -> Iterator[CommandLine]:
    """Give a command line in `directory`, with the project's tasks.py; its clusters are gone afterwards."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tasks.py").write_text((ROOT / "tasks.py").read_text())
    line = CommandLine(directory, runtime)
    try:
        yield line
    finally:
        line.purge()


@contextmanager
def place_with_lab(directory: Path, runtime: str) -> Iterator[CommandLine]:
    """Give such a place with a cluster of three, "lab", that is up."""
    with place(directory / "place", runtime) as line:
        ended = line("up-env")
        assert ended.code == 0, ended.err
        yield line


@pytest.fixture
def cli(tmp_path: Path, etcd_cluster_runtime: str) -> Iterator[CommandLine]:
    """A command line in a fresh directory, where new clusters have the runtime whose turn it is."""
    with place(tmp_path / "place", etcd_cluster_runtime) as line:
        yield line


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Wait for a condition, with a deadline."""
    import time

    def wait(condition: Callable[[], object], timeout_s: float = 40.0, what: str = "the condition") -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"{what} was not met within {timeout_s:.0f} s"
            time.sleep(0.02)

    return wait
