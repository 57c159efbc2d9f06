"""Reads what the tests need of Markdown: fenced blocks, headings' anchors, links, and words set as code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

#: Every document that users read, the README first.
DOCUMENTS = sorted(
    (path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]),
    key=lambda name: (name != "README.md", name),
)

_FENCE = re.compile(r"```(\S*)\s*")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")
_CODE = re.compile(r"`([^`]+)`")


class Block(NamedTuple):
    """A fenced block: what stands after its opening fence, its text, and the line of the document it begins on."""

    language: str
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


def anchors(text: str) -> set[str]:
    """Give the anchors of a document's headings, as GitHub makes them."""
    found: set[str] = set()
    for line in prose(text).splitlines():
        if heading := re.fullmatch(r"#{1,6} +(.+?)", line):
            words = re.sub(r"[^\w\- ]", "", heading[1].lower())
            anchor = base = words.replace(" ", "-")
            count = 0
            while anchor in found:
                count += 1
                anchor = f"{base}-{count}"
            found.add(anchor)
    return found


def links(text: str) -> list[tuple[int, str]]:
    """Give (line, target) of every link in the prose; what is set as code holds none."""
    return [
        (number, match[1])
        for number, line in enumerate(prose(text).splitlines(), start=1)
        for match in _LINK.finditer(_CODE.sub("", line))
    ]
