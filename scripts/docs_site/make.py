"""Makes a site of the documents, with search, and checks every link within it."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
ROOT = _HERE.parents[1]

#: What a directory holds that this has made: no other is written into.
_OURS = ".buildinfo"


def main(arguments: list[str]) -> int:
    """Give the exit code: 0, 1 where a link leads nowhere or anything else is wrong, 2 for a directory of others."""
    parser = argparse.ArgumentParser(prog="scripts/docs", description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "build" / "site", help="default: build/site")
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout's documents")
    parser.add_argument("--external", action="store_true", help="ask the pages of others that are linked to, as well")
    asked = parser.parse_args(arguments)
    site, root = asked.directory.absolute(), asked.root.absolute()
    if site.exists() and (not site.is_dir() or (any(site.iterdir()) and not (site / _OURS).exists())):
        print(f"error: {site} holds something else: name a directory that is empty or not there", file=sys.stderr)
        return 2
    environment = {**os.environ, "ETCDOPS_DOCS_ROOT": str(root)}
    known = str(site / ".doctrees")
    for builder, out in {"html": site, **({"linkcheck": site / ".links"} if asked.external else {})}.items():
        argv = ["-m", "sphinx", "-q", "-W", "--keep-going", "-b", builder, "-c", str(_HERE), "-d", known]
        done = subprocess.run([sys.executable, *argv, str(root), str(out)], env=environment)
        if done.returncode:
            return 1
    print(site / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
