"""Takes the pictures of the documents, each from a real run of a drill: see scripts/pictures."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from etcdops import drills

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FloatRect, Page

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"

#: As wide as a document's column is, about.
_WIDTH = 1000
_PATIENCE_MS = 60_000

#: What a drill is told beyond its defaults, so that all of it is in sight.
_OPTIONS = {
    "no-fault": ["--duration", "6"],
    "kill-restart": ["--rounds", "3"],
}

#: The run whose page is shown from its head down to the timeline, in both schemes.
_FIRST = "failed-leader"


def main() -> int:
    """Take the pictures that are asked for; exit code 1 if a drill did not pass, whose picture is not taken then."""
    names = sorted(drill.name for drill in drills.all_drills())
    parser = argparse.ArgumentParser(prog="scripts/pictures", description=__doc__)
    parser.add_argument(
        "drill", nargs="*", metavar="DRILL", help=f"of {', '.join(names)}; all of them, if none is named"
    )
    parser.add_argument("--runtime", default="process")
    asked = parser.parse_args()
    if strange := set(asked.drill) - set(names):
        parser.error(f"there is no drill {', '.join(sorted(strange))}")
    from playwright.sync_api import sync_playwright

    bad = []
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in asked.drill or names:
            with tempfile.TemporaryDirectory(prefix="etcdops-pictures-") as directory:
                page = _run(name, Path(directory), asked.runtime)
                if page is None:
                    bad.append(name)
                else:
                    _take(browser, page, name)
        browser.close()
    if bad:
        print(f"no picture of {', '.join(bad)}: the drill did not pass")
    return 1 if bad else 0


def _run(name: str, directory: Path, runtime: str) -> Path | None:
    """Run a drill on a new cluster, which is gone afterwards; give the page of the run if it passed."""
    etcdops = str(Path(sys.executable).with_name("etcdops"))
    try:
        argv = [etcdops, "drill.run", name, "--runtime", runtime, *_OPTIONS.get(name, [])]
        print(f"{name} …", flush=True)
        done = subprocess.run(argv, cwd=directory, capture_output=True, text=True)
        if done.returncode:
            print(done.stdout, done.stderr)
            return None
        return next(directory.glob(".etcdops/runs/*/index.html"))
    finally:
        subprocess.run([etcdops, "down-env", "--purge", "--yes"], cwd=directory, capture_output=True)


def _take(browser: Browser, path: Path, name: str) -> None:
    for scheme in ("light", "dark") if name == _FIRST else ("light",):
        page = _opened(browser, path, scheme)
        taken = []
        if name == _FIRST:
            taken.append(IMAGES / f"page-{scheme}.png")
            page.screenshot(path=taken[-1], clip=_head(page))
        if scheme == "light":
            taken.append(IMAGES / f"{name}.png")
            page.locator(".chart").screenshot(path=taken[-1])
        for kept in taken:
            print(f"{kept.relative_to(ROOT)}: {kept.stat().st_size // 1000} kB")
        page.context.close()


def _opened(browser: Browser, path: Path, scheme: str) -> Page:
    context = browser.new_context(
        color_scheme="dark" if scheme == "dark" else "light",
        viewport={"width": _WIDTH, "height": 1400},
        offline=True,
    )
    context.set_default_timeout(_PATIENCE_MS)
    page = context.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector("#timeline[data-ready]")
    return page


def _head(page: Page) -> FloatRect:
    """Give where the page's head and its timeline are."""
    box = page.locator(".chart").bounding_box()
    assert box
    return {"x": 0, "y": 0, "width": _WIDTH, "height": box["y"] + box["height"] + 12}


if __name__ == "__main__":
    sys.exit(main())
