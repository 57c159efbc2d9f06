"""The site that is made of the documents: every page is there, every link leads somewhere, and search finds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest

from tests.browsers import PATIENCE_MS
from tests.docs.markdown import PAGES, ROOT, TRANSLATIONS, anchors, read

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
        self.language = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "html":
            self.language = found["lang"]
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


def test_a_link_to_a_heading_on_github_serves_here(pages: dict[str, _Page]) -> None:
    """Each heading has the anchor that it has there, accents and all."""
    for page in PAGES:
        assert set(anchors(read(page))) <= pages[f"{page.removesuffix('.md')}.html"].anchors, page


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
        assert (pages[one].language, pages[other].language) == ("en", "es")


def test_the_index_of_search_holds_both_languages(site: Path) -> None:
    """It is a script, which a page opened from disk may read; it knows the words of the guide."""
    script = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(script.removeprefix("Search.setIndex(").rstrip(";\n").removesuffix(")"))

    def found(word: str) -> set[str]:
        pages = [index[part].get(word, []) for part in ("terms", "titleterms")]
        return {index["docnames"][each] for some in pages for each in (some if isinstance(some, list) else [some])}

    assert "docs/guide" in found("quorum") - found("seguidor")
    assert "docs/es/guide" in found("seguidor")


@pytest.fixture
def search(browser: Browser, site: Path) -> Iterator[Callable[[str], list[str]]]:
    """Searches for a word, from disk, in a browser that may reach nothing, and gives the titles that are found."""
    context = browser.new_context(offline=True)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))

    def searching(word: str) -> list[str]:
        page.goto(f"{(site / 'search.html').as_uri()}?q={word}")
        page.wait_for_selector("#search-results li a")
        page.wait_for_selector(".search-summary:has-text('finished')")
        return page.locator("#search-results li > a").all_inner_texts()

    yield searching
    context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(f"{site.as_uri()}/")] == []


def test_search_finds(search: Callable[[str], list[str]]) -> None:
    """What is asked for in English, and in Spanish; from disk, without a server, asking for files of the site alone."""
    assert "The guide" in search("quorum")
    assert "The drill lock-fencing" in search("fencing")
    assert "La guía" in search("seguidores")


# -- what is wrong fails


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose pages are hardly more than a title, and the site that was made of it."""
    place = tmp_path_factory.mktemp("small")
    root = place / "checkout"
    for page in [*PAGES, "docs/new.md"]:
        (root / page).parent.mkdir(parents=True, exist_ok=True)
        (root / page).write_text(f"# {page}\n")
    (root / "LICENSE").write_text("as you like\n")
    (root / "docs" / "new.md").write_text("# Título\n\n% is a sign\n")
    (root / "docs" / "guide.md").write_text("# Two\n\n[new](new.md#título), [a file](../LICENSE)\n")
    done = _make(place / "site", "--root", root)
    assert (done.returncode, done.stderr) == (0, "")
    assert "% is a sign" in (place / "site" / "docs" / "new.html").read_text()
    return place


@pytest.fixture
def copied(small: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of both, to be spoiled."""
    shutil.copytree(small, tmp_path / "copied")
    return tmp_path / "copied" / "checkout", tmp_path / "copied" / "site"


#: What is not right in a page, and what is said of it.
_MISTAKES = {
    "[gone](docs/gone.md)": "'docs/gone.md'",
    "[gone](docs/guide.md#gone)": "'docs/guide': 'gone'",
    "[gone](#gone)": "not found: 'gone'",
    "[gone](GONE)": "'GONE'",
    "![gone](docs/gone.png)": "not readable: docs/gone.png",
    '<img src="docs/lost.png" width="9">': "not readable: docs/lost.png",
    '<p><a href="docs/gone.md">gone</a></p>': "in HTML, it is not seen where this leads",
    "![theirs](https://example.com/x.png)": "has to be a file of ours: https://example.com/x.png",
    "[unsafe](http://example.com/)": "no https://HOST/ address: http://example.com/",
    "<http://example.org>": "no https://HOST/ address: http://example.org",
    "[no host](https:///x)": "no https://HOST/ address: https:///x",
    "[no address](https:example.com)": "no https://HOST/ address: https:example.com",
}


def test_what_is_wrong_is_an_error(copied: tuple[Path, Path]) -> None:
    """Whatever leads nowhere, and a page that nothing leads to, is named with its line; the site stays as it was.

    So is what leads to a page that has gone since the site was made.
    """
    root, site = copied
    (root / "README.md").write_text("# One\n\n" + "\n\n".join(_MISTAKES) + "\n")
    (root / "docs" / "new.md").unlink()
    (root / "docs" / "new").mkdir()
    (root / "docs" / "new" / "page.md").write_text("# Nothing leads here\n")
    before = {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}
    done = _make(site, "--root", root)
    assert (done.returncode, done.stdout) == (1, "")
    assert {path: path.read_bytes() for path in site.rglob("*") if path.is_file()} == before
    # Of a picture in HTML, older releases do not know the line.
    lines = ["" if mistake.startswith("<img") else 3 + 2 * each for each, mistake in enumerate(_MISTAKES)]
    said = [(f"README.md:{line}", text) for line, text in zip(lines, _MISTAKES.values(), strict=True)]
    said.append(("guide.md:3: WARNING: ", "new.md#título"))
    said.append(("page.md: WARNING: ", "document isn't included in any toctree"))
    complaints = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert [each for each in said if not any(each[0] in line and each[1] in line for line in complaints)] == []
    assert len(complaints) == len(said), done.stderr


def test_a_site_is_made_again_in_its_place(copied: tuple[Path, Path]) -> None:
    """Of the one before nothing stays. What others have put beside it does, and nothing is put in its place."""
    root, site = copied
    (root / "docs" / "new.md").rename(root / "docs" / "late.md")
    (root / "docs" / "guide.md").write_text("# Guide\n")
    (site / "docs" / "late.html").write_text("mine")
    (site / "kept").write_text("mine")
    done = _make(site, "--root", root)
    assert (done.returncode, (site / "docs" / "late.html").read_text()) == (2, "mine")
    assert f"{site / 'docs' / 'late.html'} is not of our making" in done.stderr
    (site / "docs" / "late.html").unlink()
    assert _make(site, "--root", root).returncode == 0
    there = [(site / name).exists() for name in ("docs/new.html", "docs/late.html", "kept")]
    assert there == [False, True, True]


def test_a_directory_of_others_is_left_alone(tmp_path: Path) -> None:
    """It is named, and nothing is written."""
    (tmp_path / "kept").write_text("mine")
    done = _make(tmp_path)
    assert (done.returncode, [path.name for path in tmp_path.iterdir()]) == (2, ["kept"])
    assert f"{tmp_path} is not of our making" in done.stderr
