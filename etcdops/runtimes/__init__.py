"""HOW members run. A runtime is one file here; the registry finds it by its module's name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from etcdops.errors import SpecError

if TYPE_CHECKING:
    from etcdops.runtimes.base import Runtime
    from etcdops.spec import ClusterSpec
    from etcdops.state import ClusterRecord

__all__ = ["choose", "get", "names", "of"]

_NOT_RUNTIMES = ("base",)


def names() -> list[str]:
    """Give the names of all runtimes that a command line can ask for, sorted."""
    return [name for name in _modules() if getattr(_load(name), "ON_COMMAND_LINE", True)]


def get(name: str) -> Runtime:
    """Give a runtime by its name, on this machine; raise SpecError for a name that is not known (see `choose`)."""
    if name not in _modules():
        raise SpecError(f"there is no runtime {name!r}", remedy=f"Choose one of {', '.join(['auto', *names()])}.")
    runtime: Runtime = _load(name).RUNTIME()
    return runtime


def of(record: ClusterRecord) -> Runtime:
    """Give the runtime of a cluster, where it was made: a Docker engine, for members in containers.

    Raises SpecError for one that is not known.
    """
    if record.runtime in _modules():
        module = _load(record.runtime)
        if hasattr(module, "for_record"):
            runtime: Runtime = module.for_record(record)
            return runtime
    return get(record.runtime)


def _modules() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _NOT_RUNTIMES)


def _load(name: str):  # type: ignore[no-untyped-def]  # a module, whose attributes are checked where they are used
    return importlib.import_module(f"{__name__}.{name}")


def choose(
    name: str, spec: ClusterSpec, *, offline: bool = False, progress: Callable[[str], None] = lambda text: None
) -> tuple[str, str]:
    """Give the runtime that "auto" (or "") stands for, for a new cluster, and why; any other name as it is.

    That is compose when a Docker engine and Compose answer and the image is here, or is pulled within a minute; else
    process. Raises SpecError for a name that is not known.
    """
    if name in ("", "auto"):
        if spec.etcd_bin:
            return "process", "members run as processes, since --etcd-bin names a binary"
        if spec.image:
            return "compose", "members run in containers, since --image names what they run"
        from etcdops.runtimes.compose import why_not

        if reason := why_not(spec, offline=offline, progress=progress):
            return "process", f"members run as processes: {reason}"
        return "compose", "members run in containers: Docker and the image are here (--runtime process does without)"
    if name not in names():
        raise SpecError(f"there is no runtime {name!r}", remedy=f"Choose one of {', '.join(['auto', *names()])}.")
    return name, ""
