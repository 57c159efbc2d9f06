"""Fetches official releases of etcd into the cache.

The archive and its SHA256SUMS come from the release's page on GitHub, or from a mirror of the same layout
(ETCDOPS_ETCD_MIRROR). Nothing is unpacked before its hash is right, and nothing appears in the cache before all of it
is on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time

from etcdops.binaries import Binaries, platform, release_dir, releases_dir
from etcdops.download import NotServed, download
from etcdops.errors import BinaryError, SpecError
from etcdops.executables import ask, is_native
from etcdops.versions import CURRENT, Version, parse_version

TYPE_CHECKING = False  # see etcdops.versions
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["RELEASES_URL", "fetch", "fetch_unasked"]

#: Where releases are published. A mirror has the same layout below: `v3.5.33/etcd-v3.5.33-linux-amd64.tar.gz` and
#: `v3.5.33/SHA256SUMS`.
RELEASES_URL = "https://github.com/etcd-io/etcd/releases/download"

_PLATFORMS = ("linux-amd64", "linux-arm64", "darwin-amd64", "darwin-arm64")

# A fetch that nobody asked for must not delay a start for long where there is no network, nor be tried at every start.
_UNASKED_TIMEOUT_S = 120.0
_UNASKED_CONNECT_TIMEOUT_S = 8.0
_UNASKED_AGAIN_AFTER_S = 6 * 3600

#: A binary of a release has some 25 MB; more than this is something else.
_MOST_BYTES = 256 << 20
#: What the three binaries of a release take, roughly.
_ROOM_BYTES = 80 << 20


def fetch(
    version: str = CURRENT,
    *,
    base_url: str | None = None,
    timeout_s: float = 300.0,
    connect_timeout_s: float = 20.0,
    progress: Callable[[int, int | None], None] | None = None,
) -> Binaries:
    """Give the official release `version` of etcd, fetched into the cache unless it is there.

    `base_url` names a mirror (default: ETCDOPS_ETCD_MIRROR, else GitHub). The whole ends within `timeout_s`, and each
    of the two transfers begins within `connect_timeout_s`. `progress` is called with the bytes of the archive that
    have come and their total, None if the server does not tell. The user's proxy variables are honoured. When several
    processes fetch one release, one does and the others use what it got.

    Raises BinaryError: no such version, no answer, a wrong hash, no room on the disk, no release for this machine.
    SpecError: `version` or `base_url` is not valid.
    """
    wanted = parse_version(version)
    base = _base(base_url)
    if timeout_s <= 0 or connect_timeout_s <= 0:
        raise SpecError(f"a fetch within {min(timeout_s, connect_timeout_s):g} s is not possible")
    deadline = time.monotonic() + timeout_s
    if _complete(wanted):
        return _binaries(wanted, "cache")
    if platform() not in _PLATFORMS:
        raise BinaryError(
            f"there is no official release of etcd for {platform()}: there are some for {', '.join(_PLATFORMS)}",
            remedy="Build etcd or take your distribution's, and put it on PATH or give --etcd-bin.",
        )
    with _locked(wanted, deadline):
        if _complete(wanted):  # another process was faster
            return _binaries(wanted, "cache")
        archive = _verified_archive(wanted, base, deadline, connect_timeout_s, progress)
        with _keeping(wanted):
            _install(wanted, archive)
    _forget_failure(wanted)
    return _binaries(wanted, "fetched")


def fetch_unasked(version: str, say: Callable[[str], None]) -> tuple[Binaries | None, str]:
    """Give the release if it can be had within two minutes; else None, and in words why not.

    A failure is remembered for six hours, in which nothing is tried; `fetch` itself takes no notice of that.
    """
    wanted = parse_version(version)
    base = _base(None)
    failure = _last_failure(wanted, base)
    if failure:
        ago_s, reason = failure
        return None, (
            f"a fetch of etcd {wanted} failed {_minutes(ago_s)} ago ({reason}) and is not tried again for another"
            f" {_minutes(_UNASKED_AGAIN_AFTER_S - ago_s)}: `etcd.fetch` tries at once"
        )
    say(f"fetching etcd {wanted} from {base} (`--offline` leaves that out)")
    told_at = time.monotonic()

    def tell(done: int, total: int | None) -> None:
        nonlocal told_at
        if time.monotonic() - told_at > 5:
            told_at = time.monotonic()
            say(f"fetching etcd {wanted}: {done >> 20}{f' of {total >> 20}' if total else ''} MiB")

    try:
        fetched = fetch(
            version,
            base_url=base,
            timeout_s=_UNASKED_TIMEOUT_S,
            connect_timeout_s=_UNASKED_CONNECT_TIMEOUT_S,
            progress=tell,
        )
    except NotServed as error:
        _remember_failure(wanted, base, str(error))
        return None, f"etcd {wanted} could not be fetched: {error}"
    except BinaryError as error:
        return None, f"etcd {wanted} could not be fetched: {error}"
    say(f"etcd {wanted} is in {fetched.directory}")
    return fetched, ""


def _base(base_url: str | None) -> str:
    base = (base_url or os.environ.get("ETCDOPS_ETCD_MIRROR") or RELEASES_URL).rstrip("/")
    if not base.startswith(("https://", "http://")):
        raise SpecError(
            f"{base!r} cannot be fetched from: https:// or http:// is expected",
            remedy=f"Set ETCDOPS_ETCD_MIRROR to a mirror of {RELEASES_URL}, or unset it.",
        )
    return base


# -- the cache


def _stem(version: Version) -> str:
    return f"etcd-v{version}-{platform()}"


def _complete(version: Version) -> bool:
    return all(is_native(os.path.join(release_dir(str(version)), tool)) for tool in _tools(version))


def _tools(version: Version) -> tuple[str, ...]:
    return ("etcd", "etcdctl", "etcdutl") if version >= (3, 5, 0) else ("etcd", "etcdctl")


def _binaries(version: Version, source: str) -> Binaries:
    directory = release_dir(str(version))
    paths = {tool: os.path.join(directory, tool) for tool in _tools(version)}
    return Binaries(
        etcd=paths["etcd"],
        etcdctl=paths["etcdctl"],
        etcdutl=paths.get("etcdutl"),
        version=str(version),
        source=source,
    )


@contextlib.contextmanager
def _keeping(version: Version) -> Iterator[None]:
    """Tell the user about a cache that cannot be written."""
    try:
        yield
    except OSError as error:
        raise BinaryError(
            f"etcd {version} cannot be kept in {releases_dir()}: {error.strerror or error}",
            remedy="Make room or make it writable (a release needs some 100 MB), or name another directory in"
            " XDG_CACHE_HOME.",
        ) from error


@contextlib.contextmanager
def _locked(version: Version, deadline: float) -> Iterator[None]:
    """Hold the release's lock, which ends with this process, over a cache that has room and no leftovers.

    Where the file system has no locks, two fetches both download, and the rename decides.
    """
    with _keeping(version):
        os.makedirs(releases_dir(), exist_ok=True)
        path = os.path.join(releases_dir(), f".{_stem(version)}.lock")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if _lock(fd, version, deadline):
            _sweep(version)
        with _keeping(version):
            room = os.statvfs(releases_dir())
            if room.f_bavail * room.f_frsize < _ROOM_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
    finally:
        os.close(fd)


def _lock(fd: int, version: Version, deadline: float) -> bool:
    import fcntl

    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EINTR):
                return False
        if time.monotonic() > deadline:
            raise BinaryError(
                f"another process is fetching etcd {version} into {releases_dir()}, and did not end in time",
                remedy="Wait for it to end, and try again.",
            )
        time.sleep(0.05)


def _sweep(version: Version) -> None:
    """Remove what fetches that were killed have left. Only the holder of the lock may."""
    import shutil

    for name in os.listdir(releases_dir()):
        if name.startswith(f".{_stem(version)}.") and name.endswith(".part"):
            shutil.rmtree(os.path.join(releases_dir(), name), ignore_errors=True)


def _install(version: Version, archive: bytes) -> None:
    """Unpack the archive into the cache: there whole, or not at all."""
    import shutil
    import tempfile

    work = tempfile.mkdtemp(prefix=f".{_stem(version)}.", suffix=".part", dir=releases_dir())
    try:
        new = os.path.join(work, "new")
        os.mkdir(new)
        for tool in _tools(version):
            content = _member(archive, version, tool)
            with open(os.path.join(new, tool), "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), 0o755)
                os.fsync(file.fileno())
        answer = ask(os.path.join(new, "etcd"), remember=False)
        if answer.version != version:
            raise NotServed(
                f"the etcd {version} that was fetched does not run as such here:"
                f" {answer.text if answer.version is None else f'it says that it is {answer.version}'}",
                remedy="If the cache is on a file system mounted noexec, name another directory in XDG_CACHE_HOME.",
            )
        _sync(new)
        target = release_dir(str(version))
        try:
            os.rename(new, target)
        except OSError:
            if _complete(version):  # another process was faster
                return
            os.rename(target, os.path.join(work, "old"))
            os.rename(new, target)
        _sync(releases_dir())
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# -- the archive


def _verified_archive(
    version: Version,
    base: str,
    deadline: float,
    connect_timeout_s: float,
    progress: Callable[[int, int | None], None] | None,
) -> bytes:
    """Download the archive, and give it if its hash is the published one."""
    import hashlib

    name = f"{_stem(version)}{_suffix()}"
    sums_url, url = f"{base}/v{version}/SHA256SUMS", f"{base}/v{version}/{name}"
    sums = _download(sums_url, version, deadline, connect_timeout_s, None).decode("ascii", "replace")
    # `HASH  NAME`, or `HASH *NAME` for what was hashed as a binary file; see sha256sum(1).
    lines = (line.split(None, 1) for line in sums.splitlines())
    published = [line[0].lower() for line in lines if len(line) == 2 and line[1].strip().lstrip("*") == name]
    if not published:
        raise NotServed(
            f"{sums_url} has no line for {name}, so that it cannot be checked",
            remedy="Choose another version, or unset ETCDOPS_ETCD_MIRROR if the mirror is not complete.",
        )
    archive = _download(url, version, deadline, connect_timeout_s, progress)
    found = hashlib.sha256(archive).hexdigest()
    if found != published[0]:
        raise NotServed(
            f"{url} is not what was published: its SHA-256 is {found}, and {sums_url} says {published[0]}",
            remedy="Nothing was unpacked. Try again; if it stays so, a proxy or mirror changes the file.",
        )
    return archive


def _download(
    url: str,
    version: Version,
    deadline: float,
    connect_timeout_s: float,
    progress: Callable[[int, int | None], None] | None,
) -> bytes:
    try:
        return download(url, deadline=deadline, connect_timeout_s=connect_timeout_s, progress=progress)
    except NotServed as error:
        if error.status not in (404, 410):
            error.remedy = (
                "Is there a network, and are the proxy variables right? ETCDOPS_ETCD_MIRROR names a mirror,"
                " `--etcd-bin` a binary of your own."
            )
            raise
        raise NotServed(
            f"there is no etcd {version} for {platform()} there: {error}",
            remedy="Choose a version from https://github.com/etcd-io/etcd/releases.",
        ) from error


def _suffix() -> str:
    return ".tar.gz" if platform().startswith("linux") else ".zip"


def _member(archive: bytes, version: Version, tool: str) -> bytes:
    """Give the content of one regular file of the archive, by its exact name: no path in it is ever followed."""
    import io
    import tarfile
    import zipfile
    import zlib

    name = f"{_stem(version)}/{tool}"
    try:
        if _suffix() == ".zip":
            with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
                info = zipped.getinfo(name)
                if not info.is_dir() and info.file_size <= _MOST_BYTES:
                    return zipped.read(info)
        else:
            with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
                for member in tar:
                    if member.name == name and member.isreg() and member.size <= _MOST_BYTES:
                        file = tar.extractfile(member)
                        if file:
                            return file.read()
    except KeyError:
        pass
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise NotServed(f"the archive of etcd {version} cannot be unpacked: {error}") from error
    raise NotServed(f"the archive of etcd {version} has no file {name}", remedy="Choose another version.")


# -- the memory of a failed fetch: `seconds since 1970`, where from, and why


def _failure_file(version: Version) -> str:
    return os.path.join(releases_dir(), f".{_stem(version)}.failed")


def _last_failure(version: Version, base: str) -> tuple[float, str] | None:
    """Give how long ago a fetch from `base` failed, and why; None if none did of late."""
    try:
        with open(_failure_file(version), encoding="utf-8", errors="replace") as file:
            at, where, reason = file.read().split("\n", 2)
        ago_s = time.time() - float(at)
    except (OSError, ValueError):
        return None
    # A time in the future comes from a clock that was set back, and would silence fetches for as long.
    if where != base or not 0 <= ago_s < _UNASKED_AGAIN_AFTER_S:
        return None
    return ago_s, " ".join(reason.split())


def _remember_failure(version: Version, base: str, reason: str) -> None:
    try:
        with open(_failure_file(version), "w", encoding="utf-8", errors="replace") as file:
            file.write(f"{int(time.time())}\n{base}\n{reason}\n")
    except OSError:
        pass


def _forget_failure(version: Version) -> None:
    try:
        os.unlink(_failure_file(version))
    except OSError:
        pass


def _minutes(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} min" if minutes < 90 else f"{round(minutes / 60)} h"
