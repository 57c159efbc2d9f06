"""A real browser for tests of pages: Debian's Chromium without a window, one for all of them."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["PATIENCE_MS", "browser"]

#: How long a page may take until it is drawn, on a machine that has much else to do, ms.
PATIENCE_MS = 60_000

_NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """A browser. Where there is none, tests are skipped, or fail with `--require-browser`."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    lacking = "" if found else f"none of {', '.join(_NAMES)} is installed"
    if importlib.util.find_spec("playwright") is None:
        lacking = "the Python package playwright is not installed"
    if lacking:
        required = request.config.getoption("--require-browser")
        (pytest.fail if required else pytest.skip)(f"no browser: {lacking}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, as CI runs, Chromium has no sandbox of its own; it opens nothing but our own files.
        launched = playwright.chromium.launch(
            executable_path=found,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
            timeout=PATIENCE_MS,
        )
        yield launched
        launched.close()
