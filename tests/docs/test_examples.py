"""Every example of the README and of docs/ is run, in order, in one directory for each document."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcdops.inventory import find_clusters, remove
from etcdops.state import Store
from tests.docs.console import Shell, commands, differs
from tests.docs.markdown import DOCUMENTS, ROOT, Block, blocks, read

#: Commands that are replaced by a smaller one, whose output is not compared. To run the tests from within the tests
#: would never end; that pytest starts in the checkout and finds tests there is what can be shown here.
_INSTEAD = {"./scripts/test": "./scripts/test --collect-only -q tests/docs"}

#: Blocks that are read and not run. What they may hold is checked in test_words.py.
_NOT_RUN = ("sh", "text", "json", "markdown")

_BIN = Path(sys.executable).parent
_FILE = re.compile(r"# (\S+\.(?:py|yaml|ini))")


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


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A reader's home. Every cluster below it is gone afterwards, however the test ends."""
    home = tmp_path / "you"
    home.mkdir()
    yield home
    for found in find_clusters(*(Store(state) for state in home.rglob(".etcdops"))):
        if Path(found.state_dir).is_relative_to(home):
            remove(found)


def _environment() -> dict[str, str]:
    # A script that thinks it must install fails at once, and reaches for no package index.
    return {**os.environ, "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}", "PIP_NO_INDEX": "1", "COLUMNS": "120"}


def _run_python(block: Block, cwd: Path) -> str:
    """Run a block as the program that it is; with prompts, its answers are compared. Give what went wrong, or ""."""
    interactive = block.text.startswith(">>> ")
    file = cwd / ".example"
    file.write_text(block.text)
    argv = [sys.executable, "-W", "error"]
    argv += ["-m", "doctest", "-o", "ELLIPSIS", file.name] if interactive else [file.name]
    done = subprocess.run(argv, cwd=cwd, env=_environment(), capture_output=True, text=True, timeout=90)
    file.unlink()
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.timeout(300)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_examples_do_what_the_document_shows(document: str, place: Path, tmp_path: Path) -> None:
    """Commands exit 0 and print what is shown; Python blocks run without an error; named files are written."""
    cwd = place / ("etcdops" if document == "README.md" else "lab")
    if document == "README.md":
        _checkout(cwd)
    else:
        cwd.mkdir()
    shell = Shell(cwd, _environment(), tmp_path)
    for block in blocks(read(document)):
        where = f"{document}:{block.line}"
        if file := _FILE.fullmatch(block.text.partition("\n")[0]):
            (cwd / file[1]).write_text(block.text)
        elif block.language == "console":
            for command in commands(block):
                where = f"{document}:{command.line}: $ {command.typed}"
                code, printed = shell.run(_INSTEAD.get(command.typed, command.typed))
                assert code == 0, f"{where}\nended with {code} and printed:\n{printed}"
                if command.typed not in _INSTEAD:
                    difference = differs(command.shown, printed, place)
                    assert not difference, f"{where}\n{difference}"
        elif block.language == "python":
            problem = _run_python(block, cwd)
            assert not problem, f"{where}:\n{problem}"
        else:
            assert block.language in _NOT_RUN, f"{where}: what to do with a block of {block.language!r} is not known"
