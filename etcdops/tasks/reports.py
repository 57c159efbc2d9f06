"""Tasks that show runs: report.open, report.index, report.compare, report.junit, report.markdown."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from invoke.context import Context
from invoke.tasks import task

from etcdops.errors import SpecError
from etcdops.tasks.common import HELP, command, emit, emit_json, emit_table, flag, output_of, say
from etcdops.tasks.optional import may_take

if TYPE_CHECKING:
    from etcdops.report.index import Listed

__all__ = ["ALL"]

_RUNS = "a run's id or its folder; several separated by commas"
_TO = "a file to write (default: stdout)"


@task(
    name="open",
    klass=may_take("report.open", "run"),
    help={"run": "a run's id or its folder (default: the newest)", "output": "table (the page's path) or json"},
)
@command
def open_report(c: Context, run: str | None = None, output: str | None = None) -> None:
    """Make a run's page and open it in a browser: report.open 20260102-030405-failed-leader-1a2b

    The page is `index.html` in the run's folder: one file that needs no network. It is made anew from what the run
    recorded, also of a run that was killed. Its path is printed; a browser is only opened from a terminal with a
    screen. Needs no cluster.
    """
    from etcdops.report.finding import find_run
    from etcdops.report.html import write_report

    out = output_of(c, output)
    page = write_report(find_run(run) if run else _newest())
    if out == "json":
        emit_json({"schema": 1, "run": page.parent.name, "page": str(page.absolute())})
    else:
        emit(str(page.absolute()))
    _open(page)


def _newest() -> Path:
    from etcdops.report.index import list_runs
    from etcdops.state import Store

    runs = list_runs(Store.find().runs)
    if not runs:
        raise SpecError("there is no run yet", remedy="Run a drill first: `failed-leader` is one.")
    return Path(runs[0].folder)


def _open(page: Path) -> None:
    """Open a page where somebody can see it."""
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or os.environ.get("BROWSER")
    if not (sys.stdout.isatty() and (screen or sys.platform == "darwin")):
        return
    import webbrowser

    if not webbrowser.open(page.absolute().as_uri()):
        say("no browser could be opened; the page is where the path says")


@task(
    name="index",
    help={
        "drill": "only runs of this drill",
        "verdict": "only those with this verdict: passed, deviated, inconclusive, aborted, stuck or unfinished",
        "etcd-version": "only those on this version of etcd, or on one that begins so, such as 3.5",
        "since": "only those begun since then: 2h, 7d, or a time such as 2026-01-31T12:00:00Z",
        "pages": "also make the page of each run that has none",
        "output": HELP["output"],
    },
)
@command
def index(
    c: Context,
    drill: str | None = None,
    verdict: str | None = None,
    etcd_version: str | None = None,
    since: str | None = None,
    pages: bool = False,
    output: str | None = None,
) -> None:
    """List all runs with verdict, outage and version, newest first: report.index --drill failed-leader --since 7d

    Writes the list of all as a page as well, `.etcdops/index.html`, where it can be filtered. Needs no
    cluster.
    """
    from etcdops.errors import EtcdopsError
    from etcdops.report.html import write_report
    from etcdops.report.index import list_runs, matching, write_index
    from etcdops.report.verdict import PAGE
    from etcdops.state import Store

    out = output_of(c, output)
    store = Store.find()
    found = list_runs(store.runs)
    chosen = matching(
        found,
        drill=drill or "",
        verdict=verdict or "",
        version=etcd_version or "",
        since=since or "",
    )
    if pages:
        for each in chosen:
            if not each.page:
                try:
                    write_report(Path(each.folder))
                except EtcdopsError as error:
                    say(f"{each.run} has no page: {error}")
        found = list_runs(store.runs)
        kept = {each.run for each in chosen}
        chosen = [each for each in found if each.run in kept]
    page = write_index(found, store.root / PAGE) if found else None
    if out == "json":
        emit_json({"schema": 1, "page": str(page.absolute()) if page else "", "runs": chosen})
        return
    emit_table([["RUN", "DRILL", "VERDICT", "OUTAGE", "PREDICTED", "LOST", "ETCD", "BEGAN (UTC)"], *map(_row, chosen)])
    if page:
        say(f"as a page: {page.absolute()}")


def _row(run: Listed) -> list[str]:
    from etcdops.report.terminal import ms

    predicted = f"{ms(run.predicted_ms[0])} to {ms(run.predicted_ms[1])} ms" if run.predicted_ms else "-"
    outage = f"{ms(run.write_ms)} ms" if run.write_ms is not None else "-"
    began = run.began[:19].replace("T", " ") or "-"
    return [run.run, run.drill or "-", run.verdict, outage, predicted, f"{run.lost:,}", run.etcd_version or "-", began]


@task(
    name="compare",
    positional=["first", "second"],
    help={
        "first": "a run's id or its folder",
        "second": "another's",
        "to": "also write it as a page, to this file",
        "output": HELP["output"],
    },
)
@command
def compare(c: Context, first: str, second: str, to: str | None = None, output: str | None = None) -> None:
    """Set two runs side by side: report.compare 20260102-030405-failed-leader-1a2b 20260103-030405-failed-leader-3c4d

    Shows what was different about them, and of each figure whether it differs by more than resolution and noise of
    both. Needs no cluster.
    """
    from etcdops.report.compare import compare as comparing
    from etcdops.report.compare import comparison_text, write_comparison
    from etcdops.report.finding import find_run

    out = output_of(c, output)
    for given, name in ((first, "first"), (second, "second")):
        if not given:
            raise SpecError(f"the {name} run is not given", remedy="Name two runs: report.compare A B.")
    found = comparing(find_run(first), find_run(second))
    if out == "json":
        emit_json(found)
    else:
        emit(comparison_text(found))
    target = flag(c, "to", to)
    if target:
        say(f"as a page: {write_comparison(found, Path(target)).absolute()}")


@task(name="junit", positional=["run"], help={"run": _RUNS, "to": _TO})
@command
def junit(c: Context, run: str, to: str | None = None) -> None:
    """Give runs as JUnit XML, for CI: report.junit 20260102-030405-failed-leader-1a2b --to report.xml

    Each run is a test suite, each check a test case. One that could not tell is an error: it never looks like passed.
    """
    from etcdops.report.junit import junit as made

    _give(made(_folders(run)), flag(c, "to", to))


@task(name="markdown", positional=["run"], help={"run": _RUNS, "to": _TO})
@command
def markdown(c: Context, run: str, to: str | None = None) -> None:
    """Give runs in short as Markdown, for a pull request: report.markdown 20260102-030405-failed-leader-1a2b

    A row for each run, what did not pass, and, folded up, what was checked, what was not, and how to do it again.
    """
    from etcdops.report.markdown import markdown as made

    _give(made(_folders(run)), flag(c, "to", to))


def _folders(names: str) -> list[Path]:
    from etcdops.report.finding import find_run

    if not names:
        raise SpecError("no run is given", remedy="Name a run; `report.index` lists them.")
    return [find_run(name) for name in names.split(",")]


def _give(text: str, target: str) -> None:
    if not target:
        emit(text)
        return
    from etcdops.state import replace_file

    replace_file(Path(target), text.encode("utf-8", errors="replace"))
    say(f"written to {Path(target).absolute()}")


ALL = (open_report, index, compare, junit, markdown)
