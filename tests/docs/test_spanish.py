"""The Spanish pages are in step with the English ones: the same commands, code, figures, tables and links.

Examples are run for the English pages only; as the blocks are the same in both, that proves both.
"""

from __future__ import annotations

import unicodedata

import pytest

from tests.docs.markdown import DOCUMENTS, PAGES, TRANSLATIONS, anchors, original_of, parts, read
from tests.docs.translation import differences

_BOTH = [pytest.param(document, page, id=page) for document, page in TRANSLATIONS.items()]

_ENGLISH = """\
# The page

English | [Español](es/page.md)

Ask every member with `status`, and wait 100 ms; `-o json` is for programs. See [below](#exit-codes).

```console
$ etcdops status
lab: healthy
```

## Exit codes

| code | means |
|---|---|
| `0` | done, after 3 s at most |
| `1` | a check failed: see [members](members.md#one-member) |

- `heal` brings the cluster back, as [the other page](other.md#two) says.
- [Raft](https://raft.github.io/) counts terms.

```sh
etcdops heal
```
"""

_SPANISH = """\
# La página

[English](../page.md) | Español

Pregunta a cada miembro con `status` y espera 100 ms; `-o json` es para programas. Mira [abajo](#códigos-de-salida).

```console
$ etcdops status
lab: healthy
```

## Códigos de salida

| código | significa |
|---|---|
| `0` | hecho, en 3 s como máximo |
| `1` | falló una comprobación: mira [los miembros](../members.md#one-member) |

- `heal` recupera el clúster, como dice [la otra página](other.md#dos).
- [Raft](https://raft.github.io/) cuenta términos.

```sh
etcdops heal
```
"""

_SAMPLES = {
    "docs/page.md": _ENGLISH,
    "docs/es/page.md": _SPANISH,
    "docs/members.md": "# Members\n\n## One member\n",
    "docs/other.md": "# Other\n\n## One\n\n## Two\n",
    "docs/es/other.md": "# Otra\n\n## Uno\n\n## Dos\n",
}


def _compared(spanish: str, english: str = _ENGLISH) -> list[str]:
    texts = {**_SAMPLES, "docs/page.md": english, "docs/es/page.md": spanish}
    pairs = {"docs/page.md": "docs/es/page.md", "docs/other.md": "docs/es/other.md"}
    return differences("docs/page.md", "docs/es/page.md", texts, pairs)


# -- the pages


@pytest.mark.parametrize(("document", "page"), _BOTH)
def test_a_translation_is_in_step(document: str, page: str) -> None:
    """A Spanish page has the blocks, code, figures, tables and links of the English one, in the same order."""
    assert document in DOCUMENTS, f"{page} translates {document}, which there is not"
    assert differences(document, page, {name: read(name) for name in (document, page)}) == []


def test_the_readme_and_the_guide_are_there_in_spanish() -> None:
    """Both pages that a newcomer reads stand in Spanish, where they are looked for."""
    assert TRANSLATIONS["README.md"] == "README.es.md"
    assert TRANSLATIONS["docs/guide.md"] == "docs/es/guide.md"


@pytest.mark.parametrize("page", PAGES)
def test_accents_are_written_in_one_character(page: str) -> None:
    """An accent is part of its letter (NFC), as it is in the links that lead to a heading with one."""
    assert unicodedata.is_normalized("NFC", read(page))


@pytest.mark.parametrize(("document", "page"), _BOTH)
def test_dropping_any_part_of_a_page_is_seen(document: str, page: str) -> None:
    """Whatever block, heading, table, item or paragraph the Spanish page loses, the comparison says so."""
    text = read(page)
    lines = text.splitlines(keepends=True)
    starts = [part.line - 1 for part in parts(text)]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        shorter = "".join([*lines[:start], *lines[end:]])
        assert differences(document, page, {document: read(document), page: shorter}), f"{page}:{start + 1}"


# -- the comparison


def test_a_translation_in_step_has_no_differences() -> None:
    """Words may differ, and links may lead to Spanish pages."""
    assert _compared(_SPANISH) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        pytest.param("```sh\netcdops heal\n```\n", "", "this block is not that of line 23", id="block gone"),
        pytest.param("lab: healthy", "lab: sano", "this block is not that of line 8", id="output translated"),
        pytest.param("```sh", "```text", "this block is not that of", id="other kind of block"),
        pytest.param("```sh\n", "```sh\netcdops up-env\n", "this block is not that of", id="line added to a block"),
        pytest.param("`-o json`", "`-o text`", "code missing: ['-o json']", id="other flag"),
        pytest.param("`-o json`", "-o json", "code missing: ['-o json']", id="flag not set as code"),
        pytest.param("es para programas", "`es`", "code that the original has not: ['es']", id="code added"),
        pytest.param("100 ms", "1,000 ms", "figures missing: ['100']", id="other figure"),
        pytest.param("| `0` | hecho, en 3 s como máximo |\n", "", "1 rows, and not 2", id="row gone"),
        pytest.param("| `1` |", "| `2` |", "the first column has ['2'], and not ['1']", id="other first column"),
        pytest.param("en 3 s", "en 5 s", "line 16: figures missing: ['3']", id="other figure in a table"),
        pytest.param("| `0` | hecho", "| `0` | sí | hecho", "the row has 3 columns", id="column added"),
        pytest.param("## Códigos", "### Códigos", "stands where docs/page.md has", id="other level"),
        pytest.param("## Códigos de salida\n", "", "the end stands where", id="heading gone"),
        pytest.param("- [Raft]", "[Raft]", "it consists of", id="item no longer one"),
        pytest.param("- [Raft](https://raft.github.io/) cuenta términos.\n", "", "it consists of", id="item gone"),
        pytest.param("../members.md", "members.md", "and not to ../members.md#one-member", id="link as in English"),
        pytest.param("other.md#dos", "../other.md#two", "and not to other.md#dos", id="link to the English page"),
        pytest.param("other.md#dos", "other.md#uno", "and not to other.md#dos", id="other heading"),
        pytest.param("other.md#dos", "other.md", "and not to other.md#dos", id="heading of a link gone"),
        pytest.param("#códigos-de-salida", "#exit-codes", "and not to #códigos-de-salida", id="anchor in English"),
        pytest.param("#códigos-de-salida", "#codigos-de-salida", "and not to #códigos", id="anchor without accent"),
        pytest.param("[abajo](#códigos-de-salida)", "abajo", "is in one of the two only", id="link gone"),
        pytest.param("https://raft.github.io/", "https://example.com/", "and not to https://raft", id="other site"),
        pytest.param("[English](../page.md) | Español", "Español", "near the top", id="no way back"),
        pytest.param("(../page.md)", "(../members.md)", "near the top", id="wrong way back"),
        pytest.param(
            "Pregunta a cada miembro con `status` y espera 100 ms; `-o json` es para programas. "
            "Mira [abajo](#códigos-de-salida).",
            "Ask every member with `status`, and wait 100 ms; `-o json` is for programs. See [below](#exit-codes).",
            "line 5 is in English",
            id="paragraph in English",
        ),
        pytest.param("hecho, en 3 s como máximo", "done, after 3 s at most", "is in English", id="cell in English"),
    ],
)
def test_what_is_not_in_step_is_found(old: str, new: str, said: str) -> None:
    """Each change to one page alone is told, with what it is."""
    assert _SPANISH.count(old) == 1
    found = _compared(_SPANISH.replace(old, new))
    assert any(said in each for each in found), found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("etcdops heal\n```\n", "etcdops heal\n```\n\nA new paragraph.\n", id="paragraph"),
        pytest.param("- [Raft]", "- A new item.\n- [Raft]", id="item"),
        pytest.param("| `1` |", "| `9` | new |\n| `1` |", id="row"),
        pytest.param("## Exit codes", "![The page](page.png)\n\n## Exit codes", id="picture"),
        pytest.param("# The page", "A line before.\n\n# The page", id="paragraph before the title"),
        pytest.param("## Exit codes", '<img src="page.png">\n\n## Exit codes', id="picture in HTML"),
    ],
)
def test_what_is_new_in_english_is_found(old: str, new: str) -> None:
    """What was added to the English page alone is told."""
    assert _ENGLISH.count(old) == 1
    assert _compared(_SPANISH, _ENGLISH.replace(old, new))


def test_prose_may_be_wrapped_otherwise() -> None:
    """Where a line ends is the translator's choice, also within code and before a link."""
    assert _compared(_SPANISH.replace("`-o json`", "`-o\njson`").replace("con `status`", "con\n`status`")) == []
    assert _compared(_SPANISH.replace("[la otra página]", "[la\n  otra página]")) == []


# -- how pages are found and read


@pytest.mark.parametrize(
    ("page", "document"),
    [
        ("README.es.md", "README.md"),
        ("docs/es/guide.md", "docs/guide.md"),
        ("docs/es/drills/scale-out.md", "docs/drills/scale-out.md"),
        ("README.md", None),
        ("docs/guide.md", None),
        ("docs/estimates.md", None),
    ],
)
def test_a_translation_is_known_by_its_name(page: str, document: str | None) -> None:
    """`NAME.es.md` at the top, and what is in docs/es/, are translations; nothing else is."""
    assert original_of(page) == document


def test_anchors_keep_accents() -> None:
    """GitHub's rule for headings in Spanish: lower case, accents and ñ stay, signs go, spaces become hyphens."""
    text = "# ¿Qué significa?\n\n## Códigos de salida: `heal`\n\n## Año, término\n\n## Año, término\n"
    assert anchors(text) == ["qué-significa", "códigos-de-salida-heal", "año-término", "año-término-1"]


def test_parts_of_a_page() -> None:
    """A page is read as headings, paragraphs, items, tables and blocks; lines that go on belong to what they go on."""
    text = "# A\n\nb\nc\n- d\n  e\n1. f\n\n| g |\n|---|\n\n```sh\n\n# h\n```\nSee:\n## i\nj\n"
    assert [(part.kind, part.text) for part in parts(text)] == [
        ("#", "# A"),
        ("", "b\nc"),
        ("-", "- d\n  e"),
        ("1.", "1. f"),
        ("|", "| g |\n|---|"),
        ("```sh", "\n\n# h"),
        ("", "See:"),
        ("##", "## i"),
        ("", "j"),
    ]
