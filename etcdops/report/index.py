"""All runs of a state directory as a list: drill, verdict, outage, version, when; with filters, and as a page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec

from etcdops import rendering
from etcdops.errors import SpecError
from etcdops.report.embedding import content_policy, script_hash
from etcdops.report.past import UNFINISHED
from etcdops.state import replace_file

__all__ = ["Listed", "list_runs", "matching", "write_index"]


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A run in the list. `began` is RFC 3339 in UTC, "" where that is not known; `page` is its page's path, or "".

    `write_ms` is the outage's headline, None where none was measured; `predicted_ms` Raft's prediction for it.
    """

    run: str
    drill: str
    verdict: str
    write_ms: float | None
    predicted_ms: tuple[float, float] | None
    acknowledged: int
    lost: int
    unknown: int
    etcd_version: str
    runtime: str
    cluster: str
    members: int
    seed: int
    began: str
    folder: str
    page: str


class _Outage(msgspec.Struct):
    write_ms: float | None = None
    predicted_ms: tuple[float, float] | None = None


class _Writes(msgspec.Struct):
    acknowledged: int = 0
    lost: int = 0
    unknown: int = 0


class _Cluster(msgspec.Struct):
    name: str = ""
    runtime: str = ""
    etcd_version: str = ""
    members: tuple[str, ...] = ()


class _Verdict(msgspec.Struct):
    """The few fields that are needed, from whichever release wrote the rest."""

    verdict: str = UNFINISHED
    drill: str = ""
    seed: int = 0
    cluster: _Cluster = msgspec.field(default_factory=_Cluster)
    outage: _Outage | None = None
    writes: _Writes = msgspec.field(default_factory=_Writes)


class _Info(msgspec.Struct):
    drill: str = ""
    seed: int = 0
    cluster: str = ""
    runtime: str = ""
    etcd_version: str = ""
    members: tuple[str, ...] = ()
    began: str = ""


def list_runs(runs: Path) -> list[Listed]:
    """Give every run in a directory of runs, the newest first.

    What is damaged is listed as far as it can be read, with the verdict UNFINISHED; folders that are no run's are left
    out. Nothing is raised, and nothing changed.
    """
    folders = [each for each in runs.iterdir() if each.is_dir()] if runs.is_dir() else []
    found = [
        _listed(folder) for folder in folders if (folder / "run.json").exists() or (folder / "verdict.json").exists()
    ]
    return sorted(found, key=lambda each: (each.began, each.run), reverse=True)


def _listed(folder: Path) -> Listed:
    from etcdops.report.verdict import PAGE

    ended, info = _Verdict(), _Info()
    try:
        ended = msgspec.json.decode((folder / "verdict.json").read_bytes(), type=_Verdict)
    except (OSError, msgspec.MsgspecError):
        pass
    try:
        info = msgspec.json.decode((folder / "run.json").read_bytes(), type=_Info)
    except (OSError, msgspec.MsgspecError):
        pass
    outage = ended.outage or _Outage()
    page = folder / PAGE
    return Listed(
        run=folder.name,
        drill=ended.drill or info.drill,
        verdict=ended.verdict,
        write_ms=outage.write_ms,
        predicted_ms=outage.predicted_ms,
        acknowledged=ended.writes.acknowledged,
        lost=ended.writes.lost,
        unknown=ended.writes.unknown,
        etcd_version=ended.cluster.etcd_version or info.etcd_version,
        runtime=ended.cluster.runtime or info.runtime,
        cluster=ended.cluster.name or info.cluster,
        members=len(ended.cluster.members or info.members),
        seed=ended.seed or info.seed,
        began=info.began,
        folder=str(folder),
        page=str(page) if page.exists() else "",
    )


def matching(
    runs: Sequence[Listed], *, drill: str = "", verdict: str = "", version: str = "", cluster: str = "", since: str = ""
) -> list[Listed]:
    """Give those of some runs that are of a drill, came to a verdict, and so on; "" lets all pass.

    `version` is a version of etcd or the beginning of one ("3.5"); `since` is an RFC 3339 time or a span ("2h", "7d").
    Raises SpecError for a `since` that is neither, and for a drill or a verdict that none of the runs has.
    """
    from etcdops.logs import parse_since

    for name, wanted, known in (
        ("drill", drill, {each.drill for each in runs}),
        ("verdict", verdict, {each.verdict for each in runs}),
    ):
        if wanted and runs and wanted not in known:
            raise SpecError(f"no run has the {name} {wanted!r}", remedy=f"There are: {', '.join(sorted(known))}.")
    after = parse_since(since) if since else None
    return [
        each
        for each in runs
        if (not drill or each.drill == drill)
        and (not verdict or each.verdict == verdict)
        and (not version or f"{each.etcd_version}.".startswith(f"{version}."))
        and (not cluster or each.cluster == cluster)
        and (after is None or _began(each) >= after)
    ]


def _began(run: Listed) -> datetime:
    try:
        return datetime.fromisoformat(run.began)
    except ValueError:
        # It is as old as can be, in whatever time zone.
        return datetime.min.replace(tzinfo=timezone.utc) + timedelta(days=1)


def write_index(
    runs: Sequence[Listed], path: Path, *, title: str = "Runs", lines: Sequence[str] = (), again: str = ""
) -> Path:
    """Write the list as a page, and give where it is. Runs link to their pages where they have one.

    `lines` stand above it, and `again` is the command that does the same again.
    """
    from etcdops.report.html import FILTERS

    script, style = rendering.source("index.js"), rendering.source("report.css")
    page = rendering.render_html(
        "index.html.j2",
        filters=FILTERS,
        policy=content_policy(script_hash(script)),
        style=style,
        script=script,
        title=title,
        lines=lines,
        again=again,
        runs=[(each, _link(each, path.parent)) for each in runs],
        drills=sorted({each.drill for each in runs}),
        verdicts=sorted({each.verdict for each in runs}),
        versions=sorted({each.etcd_version for each in runs}),
    )
    replace_file(path, page.encode("utf-8", errors="replace"))
    return path


def _link(run: Listed, base: Path) -> str:
    """Give where a run's page is, as a link beside the list's own page; "" without one."""
    from urllib.parse import quote

    if not run.page:
        return ""
    # With steps upwards, so that the state directory can be moved, or sent, as a whole.
    return quote(os.path.relpath(run.page, base))
