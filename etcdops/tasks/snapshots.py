"""Tasks about snapshots: snapshot.save, snapshot.verify, snapshot.list, snapshot.prune."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from etcdops.errors import SpecError
from etcdops.tasks.common import (
    HELP,
    attach,
    command,
    confirm,
    emit,
    emit_json,
    emit_table,
    flag,
    json_text,
    output_of,
    say,
    whole_number,
)
from etcdops.tasks.optional import may_take

if TYPE_CHECKING:
    from etcdops.snapshots.manifest import Snapshot
    from etcdops.snapshots.pruning import PrunePlan
    from etcdops.snapshots.verifying import SnapshotReport

__all__ = ["list_all", "prune", "save", "verify"]

_MARKS = {"passed": "ok", "failed": "FAILED", "skipped": "-"}
_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@task(
    klass=may_take("snapshot.save", "file"),
    help={
        "cluster": HELP["cluster"],
        "file": "where to (default: TIME-rREVISION.db in the state directory); a directory gets a file of such a name",
        "member": "from this member (default: the voter that has applied most)",
        "stall": "give up when nothing has come for so many seconds (default: 30)",
        "output": HELP["output"],
    },
)
@command
def save(
    c: Context,
    cluster: str | None = None,
    file: str | None = None,
    member: str | None = None,
    stall: str | None = None,
    output: str | None = None,
) -> None:
    """Save a snapshot, while traffic runs, with or without a quorum: snapshot.save /backup/lab.db

    It is streamed to a partial file, verified by its hash, and only then given its name; nothing is ever overwritten.
    Beside it is a manifest, FILE.json. Prints the file's path.
    """
    from etcdops.snapshots.saving import save_snapshot

    out = output_of(c, output)
    path = flag(c, "file", file)
    stall_s = whole_number(flag(c, "stall", stall) or "30", "stall")
    if not 1 <= stall_s <= 86_400:
        raise SpecError(f"--stall {stall_s} is not offered: 1 to 86400 seconds are")
    saved = save_snapshot(
        attach(c, cluster), path, member=flag(c, "member", member), stall_s=float(stall_s), progress=say
    )
    emit(json_text({"schema": 1, "snapshot": saved}) if out == "json" else saved.path)


@task(
    positional=["file"],
    help={
        "file": "which: a path, or a name that `snapshot.list` shows",
        "deep": "also restore it into a directory of its own, start a member from it, and read its keys",
        "output": HELP["output"],
    },
)
@command
def verify(c: Context, file: str, output: str | None = None, deep: bool = False) -> None:
    """Verify a snapshot, and change nothing but its manifest: snapshot.verify FILE

    Its hash, what its manifest says, and every page of its database. Exits 0 when it passes, 1 when it fails.
    """
    from etcdops.snapshots.catalog import find_snapshot
    from etcdops.snapshots.verifying import verify_snapshot

    out = output_of(c, output)
    if not file:
        raise SpecError("no file is given", remedy="See `snapshot.list` for the snapshots that there are.")
    path = find_snapshot(file)
    report = verify_snapshot(path, deep=deep, beside=_binaries_of(path), progress=say)
    emit(json_text(report) if out == "json" else _report_text(report))
    if report.exit_code:
        raise Exit(
            f"error: {report.path} is not sound\n"
            "  -> Do not restore from it; see `snapshot.list` for others, and save a new one with `snapshot.save`.",
            report.exit_code,
        )


def _binaries_of(path: str) -> str:
    """Give the directory of the binaries that the snapshot's cluster runs, "" where that is not known."""
    from etcdops.errors import EtcdopsError
    from etcdops.snapshots.manifest import read_manifest
    from etcdops.state import Store

    try:
        manifest = read_manifest(path)
        record = Store.find().load(manifest.cluster) if manifest else None
    except EtcdopsError:
        return ""
    return record.binary if record and manifest and record.id == manifest.cluster_id else ""


def _report_text(report: SnapshotReport) -> str:
    lines = [f"{report.path}: {report.result.upper()}" + (f" (level: {report.level})" if report.level else "")]
    lines += [f"  {_MARKS[check.result]:<6} {check.name:<8}  {check.detail}" for check in report.checks]
    return "\n".join(lines)


@task(
    name="list",
    help={
        "cluster": HELP["cluster"].replace("lab", "all"),
        "dir": "look in this directory instead of the state directory",
        "output": HELP["output"],
    },
)
@command
def list_all(c: Context, cluster: str | None = None, dir: str | None = None, output: str | None = None) -> None:
    """List the snapshots that there are, newest first, and what is not as it should be."""
    from etcdops.snapshots.catalog import list_snapshots

    out = output_of(c, output)
    found = list_snapshots(cluster=flag(c, "cluster", cluster), directory=flag(c, "dir", dir))
    if out == "json":
        emit_json({"schema": 1, "snapshots": found})
        return
    if not found:
        say("there is no snapshot here; `snapshot.save` makes one")
        return
    for each in found:
        if each.problem:
            sys.stderr.write(f"warning {each.state}: {each.path}: {each.problem}\n")
    emit_table(_rows(found))


def _rows(found: Sequence[Snapshot]) -> list[tuple[str, ...]]:
    from etcdops.units import size_text

    rows: list[tuple[str, ...]] = [("CLUSTER", "AGE", "SIZE", "REVISION", "ETCD", "STATE", "VERIFIED", "FILE")]
    for each in found:
        manifest = each.manifest
        rows.append(
            (
                manifest.cluster if manifest else "?",
                _age(each.age_s()),
                size_text(each.size),
                str(manifest.revision) if manifest else "?",
                manifest.etcd_version if manifest else "?",
                each.state,
                each.level or "-",
                each.path,
            )
        )
    return rows


def _age(seconds: float) -> str:
    for unit, least, length in (("d", 2 * 86_400, 86_400), ("h", 2 * 3600, 3600), ("m", 120, 60)):
        if seconds >= least:
            return f"{seconds // length:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


@task(
    help={
        "cluster": HELP["cluster"],
        "keep": "keep so many of the newest that are verified",
        "older-than": "only what is older: 12h, 30d, 8w",
        "dir": "look in this directory instead of the state directory",
        "dry-run": "show what would go, and remove nothing",
        "yes": HELP["yes"],
        "output": HELP["output"],
    },
)
@command
def prune(
    c: Context,
    cluster: str | None = None,
    keep: str | None = None,
    output: str | None = None,
    older_than: str | None = None,
    dir: str | None = None,
    dry_run: bool = False,
    yes: bool = False,
) -> None:
    """Remove old snapshots of a cluster, after naming them and asking: snapshot.prune --keep 7 --older-than 30d

    With both flags, what is beyond the number and also older goes. The last verified one always stays, and nothing goes
    before the hash of a newer one was looked at again. Files without a manifest are left alone.
    """
    from etcdops.snapshots.catalog import list_snapshots
    from etcdops.snapshots.pruning import plan_prune, prune_snapshots

    out = output_of(c, output)
    count, span = flag(c, "keep", keep), flag(c, "older_than", older_than)
    name = flag(c, "cluster", cluster) or "lab"
    plan = plan_prune(
        list_snapshots(cluster=name, directory=flag(c, "dir", dir)),
        keep=whole_number(count, "keep") if count else None,
        older_than_s=_span_s(span) if span else None,
    )
    _show(plan)
    gone: list[str] = []
    if plan.remove and not dry_run:
        confirm(f"Remove {len(plan.remove)} of the snapshots of {name}?", yes=yes)
        gone = prune_snapshots(plan, progress=say)
        say(f"removed {len(gone)}")
    if out == "json":
        emit_json({"schema": 1, "would_remove": [each.path for each in plan.remove], "removed": gone})
    elif gone:
        emit("\n".join(gone))


def _show(plan: PrunePlan) -> None:
    from etcdops.units import size_text

    if not plan.remove:
        say("there is nothing to remove")
        return
    sys.stderr.write("This removes, with their manifests:\n")
    for each in plan.remove:
        sys.stderr.write(f"  {each.path} ({_age(each.age_s())}, {size_text(each.size)}, {each.level or each.state})\n")
    for each in plan.relies_on:
        sys.stderr.write(f"The newest that is verified is {each.path} ({_age(each.age_s())}, {each.level})\n")


def _span_s(text: str) -> float:
    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdigit() and len(number) <= 6 and unit in _SPANS):
        raise SpecError(f"--older-than {text!r} is no span of time", remedy="Give 12h, 30d or 8w.")
    return float(int(number) * _SPANS[unit])
