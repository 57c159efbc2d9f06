"""Every example of the README and of docs/ is run, in order, in one directory for each document.

They are run as on a machine without Docker, where a reader's first cluster needs nothing but what the document says;
those that are about Docker, with it. The README's commands start from nothing; those of the others are prepared.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from etcdops.inventory import find_clusters, remove
from etcdops.state import Store
from tests.conftest import need_runtime
from tests.docs.console import Command, Shell, commands, differs
from tests.docs.markdown import DOCUMENTS, ROOT, Block, blocks, read
from tests.prepared import Server

#: Commands that are replaced by a smaller one, whose output is not compared. To run the tests from within the tests
#: would never end; that pytest starts in the checkout and finds tests there is what can be shown here.
_INSTEAD = {"./scripts/test": "./scripts/test --collect-only -q tests/docs/test_console.py"}

#: Blocks that are read and not run. What they may hold is checked in test_words.py.
_NOT_RUN = ("sh", "text", "toml")

#: Documents whose reader has Docker, with an image of etcd.
_WITH_DOCKER = ("docs/compose.md",)

#: Documents whose reader ends a drill in its midst, and has a while for that, or looks at all that one has recorded.
_LONG_DRILLS = ("docs/check.md", "docs/troubleshooting.md")

#: Documents that show what several clients do, as many as there are members.
_SEVERAL_CLIENTS = ("docs/drills/failed-leader.md", "docs/drills/lock-fencing.md")

#: The document whose commands start from nothing, as all do for a reader; those of the others are prepared.
_FROM_NOTHING = "README.md"

_BIN = Path(sys.executable).parent
_FILE = re.compile(r"# (\S+\.(?:py|yaml|ini|toml))")


def _checkout(place: Path) -> None:
    """Make a checkout that is this one, save for an environment of its own that needs no installing.

    The scripts take the directory that they are in for the checkout, so they are copies; their environment is the one
    that runs these tests, and is marked as scripts/install marks what it has made.
    """
    place.mkdir()
    for name in ("etcdops", "templates", "tests", "tasks.py", "pyproject.toml", "README.md", "LICENSE"):
        (place / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "scripts", place / "scripts")
    venv = place / ".venv"
    (venv / "bin").mkdir(parents=True)
    for name in ("python", "invoke", "pytest"):
        (venv / "bin" / name).symlink_to(_BIN / name)
    shutil.copy(ROOT / "pyproject.toml", venv / ".pyproject.toml")
    (venv / ".built-for").write_text(f"-\n{place}\n{os.path.realpath(sys.executable)}\n")
    (venv / ".compiled").touch()


def _docker_of_his_own(home: Path) -> Path:
    """Make a `docker` for a reader to whom no clusters are shown but those below his home, which others may have."""
    script = home / ".docker-of-his-own" / "docker"
    script.parent.mkdir()
    script.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = ps ] && shift && set -- ps --filter label=io.etcdops.state-dir={home}/lab/.etcdops "$@"\n'
        f'exec {shutil.which("docker")} "$@"\n'
    )
    script.chmod(0o755)
    return script.parent


def _environment(document: str) -> dict[str, str]:
    # A script that thinks it must install fails at once, and reaches for no package index.
    env = {**os.environ, "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}", "PIP_NO_INDEX": "1", "COLUMNS": "120"}
    # Drills with less traffic than a reader's have as much to say, and cost less.
    env["INVOKE_ETCDOPS_RATE"] = "20"
    if document not in _SEVERAL_CLIENTS:
        env["INVOKE_ETCDOPS_CLIENTS"] = "1"
    if document not in _LONG_DRILLS:
        env["INVOKE_ETCDOPS_BASELINE"] = "0.5"
    return env if document in _WITH_DOCKER else {**env, "DOCKER_HOST": "unix:///nonexistent.sock"}


class _Reader:
    """Somebody who reads a document and does what it says, with `home` for a home."""

    def __init__(self, document: str, home: Path, programs: Path) -> None:
        self.document = document
        self.home = home
        self.cwd = home / ("etcdops" if document == "README.md" else "lab")
        self.env = _environment(document)
        if document != _FROM_NOTHING:
            self.env["PATH"] = f"{programs}{os.pathsep}{self.env['PATH']}"
        self.shell = Shell(self.cwd, self.env)

    def read(self) -> None:
        """Do all of it; AssertionError where it is not as shown. No cluster is left, however it ends."""
        self.home.mkdir()
        if self.document in _WITH_DOCKER:
            self.env["PATH"] = f"{_docker_of_his_own(self.home)}{os.pathsep}{self.env['PATH']}"
        try:
            if self.document == "README.md":
                _checkout(self.cwd)
            else:
                self.cwd.mkdir()
            for block in blocks(read(self.document)):
                self._do(block)
        finally:
            for found in find_clusters(*(Store(state) for state in self.home.rglob(".etcdops"))):
                if Path(found.state_dir).is_relative_to(self.home):
                    remove(found)

    def _do(self, block: Block) -> None:
        where = f"{self.document}:{block.line}"
        if file := _FILE.fullmatch(block.text.partition("\n")[0]):
            (self.cwd / file[1]).write_text(block.text)
        elif block.language == "console":
            for command in commands(block):
                self._type(command)
        elif block.language == "python":
            problem = self._run_python(block)
            assert not problem, f"{where}:\n{problem}"
        else:
            assert block.language in _NOT_RUN, f"{where}: what to do with a block of {block.language!r} is not known"

    def _type(self, command: Command) -> None:
        where = f"{self.document}:{command.line}: $ {command.typed}"
        code, printed = self.shell.run(_INSTEAD.get(command.typed, command.typed))
        assert code == 0, f"{where}\nended with {code} and printed:\n{printed}"
        if command.typed not in _INSTEAD:
            difference = differs(command.shown, printed, self.home)
            assert not difference, f"{where}\n{difference}"

    def _run_python(self, block: Block) -> str:
        """Run a block as the program that it is; give what went wrong, or ""."""
        file = self.cwd / ".example"
        file.write_text(block.text)
        argv = [sys.executable, "-W", "error", file.name]
        done = subprocess.run(argv, cwd=self.cwd, env=self.env, capture_output=True, text=True, timeout=90)
        file.unlink()
        return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.fixture(scope="module")
def read_through(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, prepared_server: Server
) -> Iterator[Callable[[str], None]]:
    """Reads a document and does what it says, once; two at a time, as most of what a drill does is to wait."""
    pool = ThreadPoolExecutor(max_workers=2)
    begun: dict[str, Future[None]] = {}
    programs = tmp_path_factory.mktemp("programs")
    prepared_server.programs(programs)

    def begin(document: str) -> Future[None]:
        if document not in begun:
            begun[document] = pool.submit(_Reader(document, tmp_path_factory.mktemp("home") / "you", programs).read)
        return begun[document]

    try:
        if "PYTEST_XDIST_WORKER" not in os.environ:
            # A worker is told of all tests, and runs some.
            wanted = {item.name for item in request.session.items if item.path == request.path}
            for document in DOCUMENTS:
                if any(document in name for name in wanted):
                    begin(document)
        yield lambda document: begin(document).result()
    finally:
        pool.shutdown(cancel_futures=True)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_examples_do_what_the_document_shows(
    document: str, read_through: Callable[[str], None], request: pytest.FixtureRequest
) -> None:
    """Commands exit 0 and print what is shown; Python blocks run without an error; named files are written."""
    if document in _WITH_DOCKER:
        need_runtime("compose", request.config)
    read_through(document)
