"""Where state and cache directories are. Imports next to nothing: every command passes here, `ctl` most often."""

from __future__ import annotations

import os

__all__ = ["cache_dir", "find_state_dir", "index_file"]


def find_state_dir() -> str:
    """Give the state directory that applies here, whether or not it exists yet.

    ETCDOPS_STATE_DIR if set, else the nearest `.etcdops` from the working directory upwards, else `.etcdops` in the
    working directory.
    """
    named = os.environ.get("ETCDOPS_STATE_DIR")
    if named:
        return os.path.abspath(named)
    start = place = os.getcwd()
    while True:
        candidate = os.path.join(place, ".etcdops")
        if os.path.isdir(candidate):
            return candidate
        parent = os.path.dirname(place)
        if parent == place:
            return os.path.join(start, ".etcdops")
        place = parent


def cache_dir() -> str:
    """Give the directory for what can be fetched or found out again."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "etcdops")


def index_file() -> str:
    """Give the file that lists this user's state directories, so that `cluster.list` finds stopped clusters too."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "etcdops", "state-dirs")
