"""A process that knows nothing of its machine: for tests of what is found, fetched and remembered there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def leave_alone(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Give this process a home and a cache below `directory`, an empty PATH, and none of the caller's settings."""
    for name in list(os.environ):
        if name.startswith(("ETCD", "XDG_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(directory / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory / "cache"))
    monkeypatch.setenv("PATH", "")
