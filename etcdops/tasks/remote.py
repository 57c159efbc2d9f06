"""Tasks about snapshots elsewhere: snapshot.push, snapshot.pull."""

from __future__ import annotations

from invoke.context import Context
from invoke.tasks import task

from etcdops.errors import Refused, SpecError
from etcdops.tasks.common import HELP, command, emit, emit_json, flag, json_text, output_of, say, whole_number
from etcdops.tasks.optional import may_take

__all__ = ["pull", "push"]

_ENDPOINT = "where the store is, for s3:// that is not AWS (default: AWS_ENDPOINT_URL)"
_STALL = "give up when nothing has moved for so many seconds (default: 30)"


@task(
    positional=["url"],
    help={
        "url": "the directory to put it in: a path, s3://BUCKET/PREFIX or sftp://USER@HOST/DIR",
        "file": "which: a path, or a name that `snapshot.list` shows (default: the newest verified one)",
        "cluster": HELP["cluster"],
        "endpoint-url": _ENDPOINT,
        "stall": _STALL,
        "output": HELP["output"],
    },
)
@command
def push(
    c: Context,
    url: str,
    file: str | None = None,
    cluster: str | None = None,
    endpoint_url: str | None = None,
    stall: str | None = None,
    output: str | None = None,
) -> None:
    """Put a snapshot and its manifest elsewhere, and read it back: snapshot.push s3://backups/lab

    Nothing is overwritten; what is there already with the same content counts as done. Credentials come from where
    `aws` and `ssh` take them, and a host whose key is not known is refused. Prints where it is.
    """
    from etcdops.snapshots.catalog import find_snapshot
    from etcdops.snapshots.remote import push_snapshot

    out = output_of(c, output)
    named = flag(c, "file", file)
    path = find_snapshot(named) if named else _newest(flag(c, "cluster", cluster) or "lab")
    endpoint = flag(c, "endpoint_url", endpoint_url)
    pushed = push_snapshot(path, url, endpoint_url=endpoint, stall_s=_stall_s(c, stall), progress=say)
    emit_json(pushed) if out == "json" else emit(pushed.url)


def _newest(cluster: str) -> str:
    """Give the newest snapshot of a cluster that is verified."""
    from etcdops.snapshots.catalog import list_snapshots

    for each in list_snapshots(cluster=cluster):
        if each.level:
            return each.path
    raise Refused(
        f"there is no verified snapshot of {cluster} here",
        remedy="`snapshot.save` makes one; --file names one that is elsewhere.",
    )


@task(
    klass=may_take("snapshot.pull", "file", after=1),
    positional=["url"],
    help={
        "url": "which: its path, s3://BUCKET/PREFIX/NAME or sftp://USER@HOST/DIR/NAME; with --newest, the directory",
        "file": "where to (default: among its cluster's in the state directory); a directory gets a file of its name",
        "newest": "take the newest of the cluster that is in the directory",
        "cluster": HELP["cluster"],
        "endpoint-url": _ENDPOINT,
        "stall": _STALL,
        "output": HELP["output"],
    },
)
@command
def pull(
    c: Context,
    url: str,
    file: str | None = None,
    cluster: str | None = None,
    endpoint_url: str | None = None,
    stall: str | None = None,
    output: str | None = None,
    newest: bool = False,
) -> None:
    """Get a snapshot and its manifest from elsewhere: snapshot.pull s3://backups/lab --newest

    It is written to a partial file, verified by its hash and its manifest, and only then given its name; nothing is
    ever overwritten. `snapshot.list --dir URL` shows which there are. Prints the file's path.
    """
    from etcdops.snapshots.remote import pull_snapshot

    out = output_of(c, output)
    pulled = pull_snapshot(
        url,
        flag(c, "file", file),
        newest=newest,
        cluster=flag(c, "cluster", cluster) or "lab",
        endpoint_url=flag(c, "endpoint_url", endpoint_url),
        stall_s=_stall_s(c, stall),
        progress=say,
    )
    emit(json_text({"schema": 1, "snapshot": pulled}) if out == "json" else pulled.path)


def _stall_s(c: Context, given: str | None) -> float:
    chosen = whole_number(flag(c, "stall", given) or "30", "stall")
    if not 1 <= chosen <= 86_400:
        raise SpecError(f"--stall {chosen} is not offered: 1 to 86400 seconds are")
    return float(chosen)
