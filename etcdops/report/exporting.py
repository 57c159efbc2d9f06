"""A recorded run as a history of Jepsen's, from its folder."""

from __future__ import annotations

from pathlib import Path

from etcdops.errors import SpecError
from etcdops.histories.exporting import Exported, export_history
from etcdops.report.judged import is_closed, load_history, load_observed, windows
from etcdops.report.runinfo import read_run

__all__ = ["export_run"]


def export_run(folder: Path, *, format: str = "edn", model: str = "", key: str = "", window: int = 1) -> Exported:
    """Give what one window of a run recorded, for others to check; the other arguments are those of `export_history`.

    Windows count from 1; a restore of a snapshot begins another, since what was true before it need not be after. Also
    a run that was killed can be written, as far as it went. Raises SpecError for a window that there is not, StateError
    for a folder that is no run's, and what `export_history` raises.
    """
    run = read_run(folder).run
    folders = windows(folder)
    if not 1 <= window <= len(folders):
        raise SpecError(f"{run} has no window {window}", remedy=f"It has {len(folders)}, counted from 1.")
    chosen = folders[window - 1]
    base = None
    if is_closed(chosen):
        observed = load_observed(chosen)
        base = observed.states[observed.base] if observed.base >= 0 else None
    return export_history(load_history(chosen), run, format=format, model=model, key=key, base=base.kvs if base else ())
