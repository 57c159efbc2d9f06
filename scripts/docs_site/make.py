"""Makes a site of the documents, with search, and checks every link within it."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).resolve().parent
ROOT = _HERE.parents[1]

#: Where a site lists the files that this has made: these are replaced, and no others.
_OURS = ".made-by-scripts-docs"


def _files(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}


def _in_the_way(site: Path, made: Path) -> str:
    """Give what belongs to others and would be lost, "" if nothing does."""
    if site.exists() and not site.is_dir():
        return str(site)
    if not (site / _OURS).exists():
        return str(site) if site.exists() and any(site.iterdir()) else ""
    ours = set((site / _OURS).read_text().splitlines())
    return next((str(site / name) for name in sorted(_files(made) - ours) if os.path.lexists(site / name)), "")


def _put(site: Path, made: Path) -> None:
    """Put what was made in the place of what was made there before. Cut short, it can be done again."""
    now, ours = _files(made), site / _OURS
    before = set(ours.read_text().splitlines()) if ours.exists() else set()
    site.mkdir(parents=True, exist_ok=True)
    ours.write_text("".join(f"{name}\n" for name in sorted(before | now)))
    shutil.copytree(made, site, dirs_exist_ok=True)
    for name in before - now:
        (site / name).unlink(missing_ok=True)
    ours.write_text("".join(f"{name}\n" for name in sorted(now)))


def main(arguments: list[str]) -> int:
    """Give the exit code: 0, 1 where a link leads nowhere or anything else is wrong, 2 for a directory of others.

    Whatever is not 0 has changed nothing. The site is made from nothing each time: Sphinx, when it goes on from what it
    has made before, says nothing of a link in an old page to one that has gone.
    """
    parser = argparse.ArgumentParser(prog="scripts/docs", description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "build" / "site", help="default: build/site")
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout's documents")
    parser.add_argument("--external", action="store_true", help="ask the pages of others that are linked to, as well")
    asked = parser.parse_args(arguments)
    site, root = asked.directory.absolute(), asked.root.absolute()
    environment = {**os.environ, "ETCDOPS_DOCS_ROOT": str(root)}
    with tempfile.TemporaryDirectory(prefix="etcdops-docs-") as scratch:
        made = Path(scratch) / "html"
        made.mkdir()
        if not (others := _in_the_way(site, made)):
            for builder in ("html", "linkcheck") if asked.external else ("html",):
                argv = ["-m", "sphinx", "-q", "-W", "--keep-going", "-b", builder, "-c", str(_HERE)]
                argv += ["-d", f"{scratch}/known", str(root), f"{scratch}/{builder}"]
                if subprocess.run([sys.executable, *argv], env=environment).returncode:
                    return 1
            others = _in_the_way(site, made)
        if others:
            print(f"error: {others} is not of our making: name a directory that is empty or not there", file=sys.stderr)
            return 2
        _put(site, made)
    print(site / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
