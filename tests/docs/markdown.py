"""Reads what the tests need of Markdown: fenced blocks, headings' anchors, links, and words set as code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

_SPANISH = re.compile(r"(?P<root>[^/]+)\.es\.md|docs/es/(?P<docs>.+)\.md")


def original_of(page: str) -> str | None:
    """Give the English page whose translation `page` is by its name, or None if it is no translation."""
    named = _SPANISH.fullmatch(page)
    if named is None:
        return None
    return f"{named['root']}.md" if named["root"] else f"docs/{named['docs']}.md"


#: Every page that users read, in whichever language, the README first.
PAGES = sorted(
    (path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]),
    key=lambda name: (name != "README.md", name),
)

#: Those in English. Only these are run and checked word by word: their translations hold the same code, which
#: test_spanish.py sees to.
DOCUMENTS = [page for page in PAGES if original_of(page) is None]

#: The Spanish page of each English one that has one.
TRANSLATIONS = {original: page for page in PAGES if (original := original_of(page)) is not None}

_FENCE = re.compile(r"```(\S*)\s*")
_LINK = re.compile(r"""\]\(([^()\s]+)\)|\b(?:href|src|srcset)="([^"\s]+)""")
_CODE = re.compile(r"`([^`]+)`")
_PART = re.compile(r"#{1,6}(?= )|```\S*|\||-(?= )|\d+\.(?= )|>")


class Block(NamedTuple):
    """A fenced block: what stands after its opening fence, its text, and the line of the document it begins on."""

    language: str
    text: str
    line: int


class Part(NamedTuple):
    """A piece of a document: a heading, a fenced block, a table, an item of a list, or a paragraph.

    `kind` is what it begins with: `##`, "```console", `|`, `-`, `1.`, `>`, or nothing for a paragraph.
    """

    kind: str
    text: str
    line: int


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    """Give all fenced blocks, in order; a fence that is never closed is an error."""
    found: list[Block] = []
    opened: tuple[str, int] | None = None
    inside: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        fence = _FENCE.fullmatch(line)
        if opened is None and fence:
            opened, inside = (fence[1], number + 1), []
        elif opened and line == "```":
            found.append(Block(opened[0], "".join(f"{each}\n" for each in inside), opened[1]))
            opened = None
        elif opened:
            inside.append(line)
    assert opened is None, f"the block that begins on line {opened and opened[1]} is never closed"
    return found


def prose(text: str) -> str:
    """Give a document without its fenced blocks; they leave empty lines, so that line numbers stay."""
    lines, fenced = [], False
    for line in text.splitlines():
        edge = line.startswith("```")
        fenced = fenced != edge
        lines.append("" if fenced or edge else line)
    return "\n".join(lines)


def code_words(text: str) -> list[str]:
    """Give everything that is set as code within the prose."""
    return [match[1] for match in _CODE.finditer(prose(text))]


def anchors(text: str) -> list[str]:
    """Give the anchors of a document's headings, in order, as GitHub makes them: accents stay, punctuation goes."""
    found: list[str] = []
    for line in prose(text).splitlines():
        if heading := re.fullmatch(r"#{1,6} +(.+?)", line):
            words = re.sub(r"[^\w\- ]", "", heading[1].lower())
            anchor = base = words.replace(" ", "-")
            count = 0
            while anchor in found:
                count += 1
                anchor = f"{base}-{count}"
            found.append(anchor)
    return found


def links(text: str) -> list[tuple[int, str]]:
    """Give (line, target) of every link and picture in the prose; what is set as code holds none."""
    return [
        (number, match[1] or match[2])
        for number, line in enumerate(prose(text).splitlines(), start=1)
        for match in _LINK.finditer(_CODE.sub("", line))
    ]


def parts(text: str) -> list[Part]:
    """Give all that a document consists of, in order, headings included."""
    found: list[Part] = []
    kind: str | None = None  # of the part that the next line may belong to
    for number, line in enumerate(text.splitlines(), start=1):
        fenced = kind is not None and kind.startswith("```")
        if line == "```" if fenced else not line.strip():
            kind = None
            continue
        begins = None if fenced else _PART.match(line)
        marker = begins[0] if begins else None
        if kind is not None and (marker is None or marker == kind == "|"):
            found[-1] = found[-1]._replace(text=f"{found[-1].text}\n{line}")
            continue
        kind = marker or ""
        found.append(Part(kind, "" if kind.startswith("```") else line, number))
        if kind.startswith("#"):
            kind = None
    return found
