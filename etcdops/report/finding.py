"""Where a run's folder is, by its id or its path."""

from __future__ import annotations

from pathlib import Path

from etcdops.errors import SpecError
from etcdops.state import Store

__all__ = ["find_run"]


def find_run(name: str, *, store: Store | None = None) -> Path:
    """Give the folder of a run, which is named by its id, or by the path of its folder. Raises SpecError."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    runs = (store or Store.find()).runs
    if name and "/" not in name and name not in (".", "..") and (runs / name).is_dir():
        return runs / name
    newest = sorted((path.name for path in runs.iterdir()), reverse=True)[:3] if runs.is_dir() else []
    raise SpecError(
        f"there is no run {name!r}, neither as a folder nor in {runs}",
        remedy=f"The newest are {', '.join(newest)}." if newest else "No drill has run yet.",
    )
