"""Compares a page with its translation: all that is not prose is the same in both, and the prose has the same shape."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import PurePosixPath
from posixpath import normpath, relpath
from typing import NamedTuple

from tests.docs.markdown import TRANSLATIONS, Part, anchors, blocks, code_words, links, parts, read

#: Versions, milliseconds, counts: whatever is written with digits, but not the digit of S3.
_FIGURE = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*")
_TARGET = re.compile(r"\]\([^()\s]+\)")
_CELL = re.compile(r"(?<!\\)\|")

#: A sentence of fewer words may well be the same in both languages: a name, a figure, "no".
_FEW_WORDS = 4


class _Section(NamedTuple):
    heading: Part
    parts: list[Part]

    @property
    def text(self) -> str:
        return "\n\n".join(part.text for part in (self.heading, *self.parts) if not part.kind.startswith("```"))


def languages(document: str, translation: str) -> tuple[str, str]:
    """Give the line with which each of the two pages, the original first, leads to the other one."""
    there = relpath(translation, PurePosixPath(document).parent)
    back = relpath(document, PurePosixPath(translation).parent)
    return f"English | [Español]({there})", f"[English]({back}) | Español"


def differences(
    document: str, translation: str, texts: dict[str, str], translations: dict[str, str] = TRANSLATIONS
) -> list[str]:
    """Give in which ways `translation` is not in step with `document`, each with the line of it; nothing if it is.

    `texts` has the text of both pages; those of pages that they link to are read.
    """
    english, spanish = texts[document], texts[translation]
    found = []
    for page, line in zip((document, translation), languages(document, translation), strict=True):
        if line not in _top(texts[page]):
            found.append(f"{page}: {line!r} does not stand by itself near the top")
    for ours, theirs in zip_longest(blocks(english), blocks(spanish)):
        if ours is None or theirs is None or ours[:2] != theirs[:2]:
            at = theirs.line if theirs else "end"
            shown = f"line {ours.line} of {document}" if ours else "none"
            found.append(f"{translation}:{at}: this block is not that of {shown}")
            break
    pair = _sections(english), _sections(spanish)
    levels = [[section.heading.kind for section in sections] for sections in pair]
    if levels[0] != levels[1]:
        index = next(i for i, (a, b) in enumerate(zip_longest(*levels)) if a != b)
        shown, there = (_heading(sections, index) for sections in pair)
        return [*found, f"{translation}: {there} stands where {document} has {shown}"]
    for section, translated in zip(*pair, strict=True):
        where = f"{translation}:{translated.heading.line}: {translated.heading.text}"
        found += [f"{where}: {problem}" for problem in _differences_within(section, translated)]
    return [*found, *_wrong_links(document, translation, texts, translations, pair)]


def _sections(text: str) -> list[_Section]:
    """Give a document's sections; the first is what stands before any heading, with an empty one."""
    found = [_Section(Part("", "", 1), [])]
    for part in parts(text):
        if part.kind.startswith("#"):
            found.append(_Section(part, []))
        else:
            found[-1].parts.append(part)
    return found


def _top(text: str) -> list[str]:
    """Give the paragraphs before the second heading."""
    return [part.text for section in _sections(text)[:2] for part in section.parts]


def _heading(sections: list[_Section], index: int) -> str:
    return repr(sections[index].heading.text) if index < len(sections) else "the end"


def _differences_within(section: _Section, translated: _Section) -> Iterator[str]:
    """Give what differs between two sections, apart from blocks and links."""
    shapes = [[part.kind or "paragraph" for part in each.parts] for each in (section, translated)]
    if shapes[0] != shapes[1]:
        yield f"it consists of {shapes[1]}, and not of {shapes[0]}"
    else:
        for ours, theirs in zip(section.parts, translated.parts, strict=True):
            if ours.kind == "|":
                yield from _differences_of_tables(ours, theirs)
            elif not ours.kind.startswith("```") and _is_untranslated(ours.text, theirs.text):
                yield f"line {theirs.line} is in English: {theirs.text.splitlines()[0]}"
    yield from _unequal("code", _codes(section.text), _codes(translated.text))
    yield from _unequal("figures", _figures(section.text), _figures(translated.text))


def _differences_of_tables(ours: Part, theirs: Part) -> Iterator[str]:
    tables = [[_cells(line) for line in part.text.splitlines()] for part in (ours, theirs)]
    if len(tables[0]) != len(tables[1]):
        yield f"its table has {len(tables[1]) - 2} rows, and not {len(tables[0]) - 2}"
        return
    for line, (row, translated) in enumerate(zip(*tables, strict=True), start=theirs.line):
        if len(row) != len(translated):
            yield f"line {line}: the row has {len(translated)} columns, and not {len(row)}"
        elif code_words(row[0]) != code_words(translated[0]):
            yield f"line {line}: the first column has {code_words(translated[0])}, and not {code_words(row[0])}"
        else:
            for cell, other in zip(row, translated, strict=True):
                yield from (f"line {line}: {problem}" for problem in _unequal("code", _codes(cell), _codes(other)))
                yield from (
                    f"line {line}: {problem}" for problem in _unequal("figures", _figures(cell), _figures(other))
                )
                if _is_untranslated(cell, other):
                    yield f"line {line} is in English: {other}"


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in _CELL.split(row.strip().strip("|"))]


def _codes(text: str) -> Counter[str]:
    return Counter(" ".join(code.split()) for code in code_words(text))


def _figures(text: str) -> Counter[str]:
    without_code = re.sub(r"`[^`]+`", "`", text)
    return Counter(_FIGURE.findall(_TARGET.sub("]", without_code)))


def _is_untranslated(ours: str, theirs: str) -> bool:
    plain = re.sub(r"`[^`]+`|<[^>]+>", "", _TARGET.sub("", ours))
    return ours == theirs and len(re.findall(r"[a-z]{2,}", plain)) >= _FEW_WORDS


def _unequal(what: str, ours: Counter[str], theirs: Counter[str]) -> Iterator[str]:
    if missing := ours - theirs:
        yield f"{what} missing: {sorted(missing.elements())}"
    if added := theirs - ours:
        yield f"{what} that the original has not: {sorted(added.elements())}"


def _wrong_links(
    document: str,
    translation: str,
    texts: dict[str, str],
    translations: dict[str, str],
    pair: tuple[list[_Section], list[_Section]],
) -> Iterator[str]:
    """Give each link that leads elsewhere than the original's, or to a page of which there is a Spanish one."""
    back_and_forth = set(languages(document, translation))

    def targets(section: _Section) -> list[str]:
        return [
            target
            for part in (section.heading, *section.parts)
            if not part.kind.startswith("```") and part.text not in back_and_forth
            for _, target in links(part.text)
        ]

    for section, translated in zip(*pair, strict=True):
        where = f"{translation}:{translated.heading.line}: {translated.heading.text}"
        for ours, theirs in zip_longest(targets(section), targets(translated)):
            if ours is None or theirs is None:
                yield f"{where}: the link to {ours or theirs} is in one of the two only"
                break
            expected = _counterpart(document, translation, ours, texts, translations)
            if theirs != expected:
                yield f"{where}: a link leads to {theirs}, and not to {expected}"


def _counterpart(
    document: str, translation: str, target: str, texts: dict[str, str], translations: dict[str, str]
) -> str:
    """Give what a link of the original is in the translation: to the Spanish page, and the same heading of it."""
    if "://" in target:
        return target
    path, _, anchor = target.partition("#")
    page = normpath(PurePosixPath(document).parent / path) if path else document
    other = translations.get(page, page)
    if anchor and other != page:
        there = [anchors(texts[name] if name in texts else read(name)) for name in (page, other)]
        anchor = dict(zip(*there, strict=False)).get(anchor, f"{anchor} (which {page} has not)")
    shown = relpath(other, PurePosixPath(translation).parent) if path else ""
    return f"{shown}#{anchor}" if anchor else shown
