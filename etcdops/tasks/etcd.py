"""Tasks about etcd's own binaries: etcd.fetch."""

from __future__ import annotations

from invoke.context import Context
from invoke.tasks import task

from etcdops.tasks.common import command, emit, flag, say, seconds

__all__ = ["fetch"]


@task(
    help={
        "version": "which release, such as 3.5.16 (default: a current one)",
        "timeout": "give up after so many seconds (default: 300)",
    }
)
@command
def fetch(c: Context, version: str | None = None, timeout: str | None = None) -> None:
    """Fetch an official etcd release into the cache, after checking its SHA-256.

    Clusters that are created from then on use it. ETCDOPS_ETCD_MIRROR names another place with the same files.
    Prints the directory of the binaries.
    """
    from etcdops import fetch as fetching
    from etcdops import versions

    wanted = flag(c, "etcd_version", version) or versions.CURRENT
    binaries = fetching.fetch(wanted, timeout_s=seconds(c, timeout, 300), progress=_Progress())
    say(f"etcd {binaries.version} is at hand")
    emit(binaries.directory)


class _Progress:
    """Says every two seconds how far a download is."""

    def __init__(self) -> None:
        self._said = 0.0

    def __call__(self, done: int, total: int | None) -> None:
        import time

        if time.monotonic() - self._said >= 2.0:
            self._said = time.monotonic()
            of = f" of {total / 1e6:.1f}" if total else ""
            say(f"fetched {done / 1e6:.1f}{of} MB")
