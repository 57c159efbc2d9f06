"""The page about versions lists what the data say: every row and every feature, and nothing else.

`python -m tests.docs.test_versions` writes the page's two tables anew.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "versions.md"


def _data() -> Any:
    # By name, because the type checker, which looks at the oldest Python that we support, knows neither module.
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return toml.loads((ROOT / "etcdops" / "versions.toml").read_text())


def _range(first: str, below: str) -> str:
    """Give a half-open range by its first and its last release; what begins at 3.0.0 began before anybody knew."""
    series, _, patch = below.rpartition(".")
    if patch == "0":
        return f"before {below}"
    last = f"{series}.{int(patch) - 1}"
    if first == "3.0.0":
        return f"to {last}"
    return last if first == last else f"{first} to {last}"


def _known_bad() -> list[str]:
    lines = ["| code | releases | when | what happens | fixed in | spoils | source |", "|---|---|---|---|---|---|---|"]
    for row in _data()["known_bad"]:
        ranges = ", ".join(_range(first, below) for first, below in row["affected"])
        code = f"**`{row['code']}`**" if row["severity"] == "unsafe" else f"`{row['code']}`"
        spoils = ", ".join(f"`{name}`" for name in row["operations"]) or "-"
        cells = (code, ranges, row["condition"], row["effect"], ", ".join(row["fixed_in"]), spoils, row["source"])
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _features() -> list[str]:
    lines = ["| feature | from | no longer in | what it is |", "|---|---|---|---|"]
    for name, row in _data()["features"].items():
        cells = (f"`{name}`", ", ".join(row["since"]), row.get("until", "-"), row.get("note", "-"))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _tables(text: str) -> list[list[str]]:
    return [table.splitlines() for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]


def test_the_page_lists_what_the_data_say() -> None:
    """Both tables are those that the data make; `python -m tests.docs.test_versions` writes them."""
    assert _tables(PAGE.read_text()) == [_known_bad(), _features()]


def _write() -> None:
    tables = iter(["\n".join(lines) + "\n" for lines in (_known_bad(), _features())])
    PAGE.write_text(re.sub(r"(?:^\|.*\n)+", lambda _: next(tables), PAGE.read_text(), flags=re.MULTILINE))


if __name__ == "__main__":
    _write()
