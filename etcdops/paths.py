"""Where state and cache directories are. Imports next to nothing: every command passes here, `ctl` most often."""

from __future__ import annotations

import os

from etcdops.errors import StateError

__all__ = ["cache_dir", "find_project_dir", "find_state_dir", "has_configuration", "index_file"]

_CONFIGURATION_KINDS = ("yaml", "yml", "json", "py")


def find_state_dir() -> str:
    """Give the state directory that applies here, whether or not it exists yet.

    ETCDOPS_STATE_DIR if set, else the nearest `.etcdops` from the working directory upwards, else `.etcdops` in the
    working directory. Raises StateError when the working directory has been deleted, or the path is not UTF-8.
    """
    found = os.environ.get("ETCDOPS_STATE_DIR") or _nearest_state_dir()
    try:
        found.encode()
    except UnicodeEncodeError:
        raise StateError(
            f"cannot use {found!a}: a record cannot hold a path that is not UTF-8",
            remedy="Name another place with ETCDOPS_STATE_DIR.",
        ) from None
    return os.path.abspath(found)


def _nearest_state_dir() -> str:
    try:
        start = place = os.getcwd()
    except OSError as error:
        raise StateError(
            f"cannot look for .etcdops: the working directory cannot be found ({error.strerror})",
            remedy="Go to a directory that exists, or name the state directory with ETCDOPS_STATE_DIR.",
        ) from error
    while True:
        candidate = os.path.join(place, ".etcdops")
        if os.path.isdir(candidate):
            return candidate
        parent = os.path.dirname(place)
        if parent == place:
            return os.path.join(start, ".etcdops")
        place = parent


def find_project_dir() -> str | None:
    """Give the nearest directory, from here upwards, with an `invoke.yaml` (or .yml, .json, .py), or None.

    Invoke looks beside the tasks.py that it found upwards; `etcdops` has none, and is to find the same file.
    """
    try:
        place = os.getcwd()
    except OSError:
        return None
    while True:
        if has_configuration(os.path.join(place, "invoke")):
            return place
        parent = os.path.dirname(place)
        if parent == place:
            return None
        place = parent


def has_configuration(prefix: str) -> bool:
    """Whether there is a configuration file of Invoke's whose path is `prefix` and one of its endings."""
    return any(os.path.exists(f"{prefix}.{kind}") for kind in _CONFIGURATION_KINDS)


def cache_dir() -> str:
    """Give the directory for what can be fetched or found out again."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "etcdops")


def index_file() -> str:
    """Give the file that lists this user's state directories, so that `cluster.list` finds stopped clusters too."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "etcdops", "state-dirs")
