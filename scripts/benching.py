"""What the benchmarks have in common: how they print, what they time, and a place for their clusters."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from etcdops.cluster import Cluster
from etcdops.state import Store

__all__ = ["BIN", "NOOP", "POLL", "ROOT", "median", "place", "row", "say", "timed"]

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent

NOOP = """
from invoke import task
@task
def noop(c): pass
"""

#: Write with etcdctl ($1) to endpoints ($2) until it succeeds.
POLL = """
until "$1" --endpoints="$2" --command-timeout=500ms --dial-timeout=500ms put bench ok >/dev/null 2>&1; do :; done
"""


def say(text: str) -> None:
    """Tell a person what goes on."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def row(what: str, figure: str, budget: str, met: bool) -> None:
    """Print a result."""
    print(f"{what:<46} {figure:<44} {budget:<34} {'met' if met else 'MISSED'}", flush=True)


def timed(argv: list[str], **options: object) -> float:
    """Run a command and give how many milliseconds it took; its failure, or 120 s, end the benchmark."""
    began = time.perf_counter()
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, **options)  # type: ignore[call-overload]
    return (time.perf_counter() - began) * 1000


@contextmanager
def place() -> Iterator[Path]:
    """A fresh directory with the project's tasks, whose clusters are removed at the end."""
    with tempfile.TemporaryDirectory(prefix="etcdops-bench-", dir=ROOT / ".etcdops-bench") as name:
        path = Path(name)
        (path / "tasks.py").write_text((ROOT / "tasks.py").read_text() + NOOP)
        try:
            yield path
        finally:
            store = Store(path / ".etcdops")
            for cluster in store.names():
                Cluster.attach(cluster, store=store).purge()


def median(values: list[float]) -> str:
    """Give the median as text."""
    return f"{statistics.median(values):.0f}"
