"""Runs an operation in a process of its own that kills itself (SIGKILL) at its n-th entry in the journal.

    python -m tests.suite.killing N STATE_DIR CLUSTER OPERATION [FILE]

Exits 0, having said how many entries there were, if the operation ended before that; with N 0 it never kills itself.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from etcdops.cluster import Cluster
from etcdops.report.journal import Entry, Journal
from etcdops.state import Store


def main() -> None:
    """Do it."""
    at, directory, name, operation, *file = sys.argv[1:]
    written = 0
    note = Journal.note

    def note_and_die(self: Journal, *args: Any, **options: Any) -> Entry:
        nonlocal written
        entry = note(self, *args, **options)
        written += 1
        if written == int(at):
            os.kill(os.getpid(), signal.SIGKILL)
        return entry

    Journal.note = note_and_die  # type: ignore[method-assign]
    cluster = Cluster.attach(name, store=Store(Path(directory)))
    if operation == "restore":
        cluster.restore(file[0])
    elif operation == "recover":
        cluster.recover()
    else:
        cluster.rollback()
    print(written)


if __name__ == "__main__":
    main()
