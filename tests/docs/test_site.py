"""The site that is made of the documents: every page is there, every link leads somewhere, and search finds."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest

from tests.browsers import PATIENCE_MS
from tests.docs.markdown import PAGES, ROOT, TRANSLATIONS

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: What a page asks for by itself, as soon as it is opened.
_ASKED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "srcset"}


class _Page(HTMLParser):
    """The anchors of a page, where it links to, and what it asks for."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.asked: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in _ASKED and _ASKED[tag] in found:
            self.asked.append(found[_ASKED[tag]])


def _make(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(ROOT / "scripts" / "docs_site" / "make.py"), *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=110)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of this checkout's documents."""
    made = tmp_path_factory.mktemp("docs") / "site"
    done = _make(made)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{made / 'index.html'}\n"
    return made


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, _Page]:
    """Every page of it, by where it lies."""
    return {path.relative_to(site).as_posix(): _Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_document_is_there(pages: dict[str, _Page]) -> None:
    """As a page, and every one of them leads to it; the first is where a browser looks for it."""
    made = {f"{page.removesuffix('.md')}.html" for page in PAGES}
    assert made <= set(pages)
    assert pages["index.html"].links == pages["README.html"].links
    for name in made:
        led = {_target(name, link)[0] for link in pages[name].links}
        assert made <= led | {name}, name


def _target(page: str, link: str) -> tuple[str, str]:
    """Give the page, or file, that a link leads to, and the anchor in it."""
    parts = urlsplit(link)
    path = (Path("/") / page).parent / unquote(parts.path) if parts.path else Path("/") / page
    return path.resolve().relative_to("/").as_posix(), unquote(parts.fragment)


def test_every_link_leads_somewhere(site: Path, pages: dict[str, _Page]) -> None:
    """To a file that is there, and an anchor in it; those that lead elsewhere do so by https."""
    seen = 0
    for name, page in pages.items():
        for link in page.links:
            if "://" in link:
                assert link.startswith("https://"), (name, link)
                continue
            target, anchor = _target(name, link)
            assert (site / target).is_file(), (name, link)
            if anchor and target in pages:
                assert anchor in pages[target].anchors, (name, link)
            seen += 1
    assert seen > 1000


def test_nothing_is_asked_of_anybody_else(site: Path, pages: dict[str, _Page]) -> None:
    """Scripts, styles, fonts and pictures are files of the site."""
    for name, page in pages.items():
        for asked in page.asked:
            assert "://" not in asked, (name, asked)
            assert not asked.startswith("//"), (name, asked)
            assert (site / _target(name, asked)[0]).is_file(), (name, asked)
    for style in site.rglob("*.css"):
        assert "url(http" not in style.read_text(encoding="utf-8")


def test_both_languages_lead_to_each_other(pages: dict[str, _Page]) -> None:
    """From the top of a page to its translation, and back."""
    assert TRANSLATIONS
    for original, translation in TRANSLATIONS.items():
        one, other = (f"{page.removesuffix('.md')}.html" for page in (original, translation))
        assert other in {_target(one, link)[0] for link in pages[one].links}
        assert one in {_target(other, link)[0] for link in pages[other].links}


@pytest.fixture
def search(browser: Browser, site: Path) -> Iterator[tuple[list[str], list[str]]]:
    """What the site finds for two words, in a browser that may reach nothing: titles of pages."""
    context = browser.new_context(offline=True)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    found = []
    for word in ("fencing", "seguidores"):
        page.goto(f"{(site / 'search.html').as_uri()}?q={word}")
        page.wait_for_selector("#search-results li a")
        page.wait_for_selector(".search-summary:has-text('finished')")
        found.append(page.locator("#search-results li > a").all_inner_texts())
    yield found[0], found[1]
    assert complaints == []
    context.close()


def test_search_finds(search: tuple[list[str], list[str]]) -> None:
    """What is asked for in English, and in Spanish; from disk, without a server."""
    english, spanish = search
    assert "The drill lock-fencing" in english
    assert "La guía" in spanish


def _small(directory: Path) -> Path:
    """Give a checkout of three pages, each with a link that is right."""
    (directory / "docs" / "drills").mkdir(parents=True)
    (directory / "docs" / "es").mkdir()
    (directory / "README.md").write_text("# One\n\n[two](docs/guide.md#a-heading), [a file](LICENSE)\n")
    (directory / "LICENSE").write_text("as you like\n")
    (directory / "docs" / "guide.md").write_text("# Two\n\n## A heading\n\n[one](../README.md)\n")
    (directory / "docs" / "drills" / "more.md").write_text("# Three\n\n[two](../guide.md)\n")
    (directory / "README.es.md").write_text("# Uno\n")
    (directory / "docs" / "es" / "guide.md").write_text("# Dos\n")
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "docs/hosts.md"):
        (directory / name).write_text(f"# {name}\n")
    return directory


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("", ""),
        ("[gone](docs/gone.md)", "docs/gone.md"),
        ("[gone](docs/guide.md#gone)", "gone"),
        ("[gone](#gone)", "gone"),
        ("![gone](docs/gone.png)", "docs/gone.png"),
        ("[gone](GONE)", "GONE"),
    ],
)
def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path, link: str, said: str) -> None:
    """A page, a heading, a picture or a file that is not there: named, with the line, and the exit code is 1."""
    root = _small(tmp_path / "checkout")
    with (root / "README.md").open("a") as file:
        file.write(f"\n{link}\n")
    done = _make(tmp_path / "site", "--root", root)
    assert done.returncode == (1 if link else 0), done.stderr
    assert ("README.md:5" in done.stderr, said in done.stderr) == (bool(link), True), done.stderr


def test_a_directory_of_others_is_left_alone(tmp_path: Path) -> None:
    """It is named, and nothing is written; one that was made before is made again."""
    root = _small(tmp_path / "checkout")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").write_text("mine")
    done = _make(tmp_path / "mine", "--root", root)
    assert (done.returncode, "holds something else" in done.stderr) == (2, True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["kept"]
    shutil.rmtree(tmp_path / "mine")
    assert [_make(tmp_path / "mine", "--root", root).returncode for _ in range(2)] == [0, 0]
