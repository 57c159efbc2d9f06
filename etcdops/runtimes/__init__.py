"""HOW members run. A runtime is one file here; the registry finds it by its module's name."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from etcdops.errors import RuntimeUnavailable, SpecError

if TYPE_CHECKING:
    from etcdops.runtimes.base import Runtime

__all__ = ["choose", "get", "names"]

_NOT_RUNTIMES = ("base",)


def names() -> list[str]:
    """Give the names of all runtimes that a command line can ask for, sorted."""
    return [name for name in _modules() if getattr(_load(name), "ON_COMMAND_LINE", True)]


def get(name: str) -> Runtime:
    """Give a runtime by its name, on this machine; "auto" and "" are what `choose` gives for them.

    Raises SpecError for a name that is not known.
    """
    if name in ("", "auto"):
        name, _ = choose(name)
    if name not in _modules():
        raise SpecError(f"there is no runtime {name!r}", remedy=f"Choose one of {', '.join(['auto', *names()])}.")
    runtime: Runtime = _load(name).RUNTIME()
    return runtime


def _modules() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _NOT_RUNTIMES)


def _load(name: str):  # type: ignore[no-untyped-def]  # a module, whose attributes are checked where they are used
    return importlib.import_module(f"{__name__}.{name}")


def choose(name: str) -> tuple[str, str]:
    """Give the runtime that "auto" (or "") stands for on this machine, and why; any other name as it is.

    Raises SpecError for a name that is not known, RuntimeUnavailable for a runtime that this machine lacks.
    """
    if name in ("", "auto"):
        return "process", ""
    if name not in names():
        raise SpecError(f"there is no runtime {name!r}", remedy=f"Choose one of {', '.join(['auto', *names()])}.")
    if reason := get(name).unavailable():
        raise RuntimeUnavailable(f"the runtime {name} cannot be used here: {reason}")
    return name, ""
