"""The tasks that show runs, as they are typed: what they print, what they write, and what they refuse."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest

from etcdops.report import html
from etcdops.report.verdict import Verdict
from etcdops.tasks import drills, namespace
from etcdops.tasks.program import program
from scripts.big_run import write_big_run

FIRST, SECOND = "20260102-030401-failed-leader-1a2b", "20260102-030402-failed-leader-1a2b"


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with two runs, of which neither has a page."""
    root = tmp_path_factory.mktemp("state")
    for number, name in ((1, FIRST), (2, SECOND)):
        write_big_run(root / "runs" / name, 90, run=name, seed=number)
    return root


@pytest.fixture
def typed(state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Types a command; gives its exit code and what it printed on stdout and stderr."""
    monkeypatch.setenv("ETCDOPS_STATE_DIR", str(state))

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["etcdops", *args])
        kind: Any = type(program)
        code = 0
        try:
            kind(name="etcdops", namespace=copy.deepcopy(namespace)).run(["etcdops", *args])
        except SystemExit as ended:
            code = int(ended.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_open_makes_the_page_and_prints_its_path(typed: Any, state: Path) -> None:
    """Of the run that is named, or of the newest; no browser is opened where nobody sits."""
    code, out, _ = typed("report.open", FIRST)
    page = state / "runs" / FIRST / "index.html"
    assert (code, out) == (0, f"{page}\n")
    assert page.read_text().startswith("<!DOCTYPE html>")
    page.unlink()
    code, out, _ = typed("report.open", "-o", "json")
    assert json.loads(out)["run"] == SECOND
    (state / "runs" / SECOND / "index.html").unlink()


def test_index_lists_runs_and_writes_the_page(typed: Any, state: Path) -> None:
    """As a table and as JSON; with --pages every run gets its own."""
    code, out, err = typed("report.index", "--drill", "failed-leader")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["RUN", SECOND, FIRST]
    assert str(state / "index.html") in err
    assert not list(state.glob("runs/*/index.html"))
    code, out, _ = typed("report.index", "--pages", "-o", "json")
    document = json.loads(out)
    assert [Path(each["page"]).exists() for each in document["runs"]] == [True, True]
    assert "runs/" in Path(document["page"]).read_text()
    code, _, err = typed("report.index", "--verdict", "splendid")
    assert code == 2
    assert "There are: passed." in err


def test_compare_sets_two_side_by_side(typed: Any, tmp_path: Path) -> None:
    """As text, as JSON, and as a page where one is asked for."""
    code, out, _ = typed("report.compare", FIRST, SECOND)
    assert code == 0
    assert FIRST in out
    assert SECOND in out
    target = tmp_path / "both.html"
    code, out, err = typed("report.compare", FIRST, SECOND, "-o", "json", "--to", str(target))
    assert json.loads(out)["b"] == SECOND
    assert target.exists()
    assert str(target) in err
    assert typed("report.compare", FIRST, "nowhere")[0] == 2


def test_junit_and_markdown_of_several_runs(typed: Any, tmp_path: Path) -> None:
    """Runs are separated by commas; what is given is written to a file where one is asked for."""
    code, out, _ = typed("report.junit", f"{FIRST},{SECOND}")
    assert code == 0
    assert len(Xml.fromstring(out.encode()).findall("testsuite")) == 2
    target = tmp_path / "runs.md"
    code, out, _ = typed("report.markdown", f"{FIRST},{SECOND}", "--to", str(target))
    assert (code, out) == (0, "")
    assert target.read_text().count("| failed-leader ") == 2


def test_a_page_that_cannot_be_made_changes_no_verdict(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever goes wrong with the page of a drill is said, and the drill goes on."""
    verdict = write_big_run(state / "runs" / FIRST, 90, run=FIRST)

    def broken(folder: Path) -> Path:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(html, "write_report", broken)
    assert isinstance(verdict, Verdict)
    drills.write_run_page(verdict)
    assert "could not be made (ZeroDivisionError: a bug); its verdict stands" in capsys.readouterr().err
