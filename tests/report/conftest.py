"""A run's pages in a real browser, and what they ask for and complain of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from etcdops.report.html import write_report
from scripts.big_run import write_big_run
from tests.browsers import PATIENCE_MS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


class Opened:
    """A page in a browser, and what it has asked for and complained of: `at_first`, and since it was last reset."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.stopped: list[str] = []
        self.complaints: list[str] = []
        self.at_first: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("requestfailed", lambda request: self.stopped.append(f"{request.url}: {request.failure}"))
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def range(self) -> list[float]:
        """The part of the run that the timeline shows, s."""
        return [float(each) for each in self.figure("t.dataset.range").split()]

    def figure(self, expression: str) -> Any:
        """Give what an expression over the timeline's element `t` comes to."""
        return self.page.evaluate(
            f"(() => {{ const t = document.getElementById('timeline'); return {expression}; }})()"
        )

    def until(self, expression: str) -> None:
        """Wait until such an expression is true. Asked from outside: the page's policy lets nothing in that asks."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while not self.figure(expression):
            assert time.monotonic() < deadline, f"never came true: {expression}"
            self.page.wait_for_timeout(30)

    def reset(self) -> Opened:
        """Show the whole run again, in light, whatever was done before; forget what was complained of."""
        self.page.emulate_media(color_scheme="light")
        self.page.mouse.move(1, 1)
        self.page.click("#whole")
        self.until("t.layout.paper_bgcolor === '#ffffff'")
        self.complaints.clear()
        return self


def _opened(browser: Browser, path: Path, *, scheme: str = "light", width: int = 1280, ready: bool = True) -> Opened:
    """Open a file from disk in a context that may reach nothing."""
    context = browser.new_context(
        color_scheme=scheme,  # type: ignore[arg-type]
        viewport={"width": width, "height": 900},
        offline=True,
    )
    context.set_default_timeout(PATIENCE_MS)
    opened = Opened(context.new_page())
    opened.page.goto(path.absolute().as_uri())
    if ready:
        opened.page.wait_for_selector("#timeline[data-ready]")
    opened.at_first = list(opened.complaints)
    return opened


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Opened]]:
    """Opens a file, with a colour scheme and a width."""
    known = []

    def opening(path: Path, **options: Any) -> Opened:
        known.append(_opened(browser, path, **options))
        return known[-1]

    yield opening
    for each in known:
        each.page.context.close()


@pytest.fixture(scope="session")
def _kept(browser: Browser, page: Path) -> Iterator[Opened]:
    opened = _opened(browser, page)
    yield opened
    opened.page.context.close()


@pytest.fixture
def opened(_kept: Opened) -> Opened:
    """The page of the run, wide and light: one for all tests, since to open it takes a second or more."""
    return _kept.reset()


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with an outage and a lost write, beside runs that were made alike."""
    runs = tmp_path_factory.mktemp("runs")
    for number in range(3):
        name = f"20260102-03040{number}-failed-leader-1a2b"
        write_big_run(runs / name, 900, run=name, seed=number, lost=number % 2)
    return write_report(runs / "20260102-030401-failed-leader-1a2b")
