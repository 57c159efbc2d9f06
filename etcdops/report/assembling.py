"""A run's verdict, put together: at the end of a drill, and again from its folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from etcdops.errors import StateError
from etcdops.report.journal import Entry, read_journal
from etcdops.report.judged import Judged, is_closed, judge_folder, load_history
from etcdops.report.runinfo import RunInfo, read_run
from etcdops.report.verdict import ClusterInfo, Event, FaultInfo, Verdict
from etcdops.verify import Check
from etcdops.verify.acknowledged import Writes
from etcdops.verify.verdict import combine

__all__ = ["assemble", "recheck", "recheck_beside", "stored_verdict"]


def assemble(
    info: RunInfo,
    folder: Path,
    verdict: str,
    checks: Sequence[Check],
    judged: Judged | None,
    entries: Sequence[Entry],
) -> Verdict:
    """Give the verdict document of a run. Without `judged` the writes are counted as far as they were recorded."""

    def ms(t_ns: int) -> float:
        return round((t_ns - info.began_ns) / 1e6, 3)

    faults = tuple(
        FaultInfo(fault.kind, fault.member, ms(fault.inject_ns), ms(fault.heal_ns))
        for fault in (judged.faults if judged else ())
    )
    return Verdict(
        schema=1,
        run=info.run,
        drill=info.drill,
        verdict=verdict,
        seed=info.seed,
        cluster=ClusterInfo(info.cluster, info.runtime, info.etcd_version, info.members, info.known_bad),
        fault=faults[0] if faults else None,
        outage=judged.outage if judged else None,
        writes=judged.writes if judged else _counted(folder),
        checks=tuple(checks),
        timeline=tuple(
            Event(ms(entry.t_ns), entry.event, entry.member, entry.detail)
            for entry in sorted(entries, key=lambda entry: entry.t_ns)
        ),
        report=_page(folder),
        profile=info.profile,
        faults=faults,
        figures=judged.figures if judged else (),
    )


def _page(folder: Path) -> str:
    return str(folder / "verdict.md")


def _counted(folder: Path) -> Writes:
    puts = [operation for operation in load_history(folder) if operation.may_write]
    count = {outcome: sum(op.outcome == outcome for op in puts) for outcome in ("ok", "failed", "unknown")}
    return Writes(count["ok"], 0, count["failed"], count["unknown"], 0, 0)


def stored_verdict(folder: Path) -> Verdict | None:
    """Give the verdict that the drill itself came to, None if it never did. Raises StateError for a damaged one."""
    path = folder / "verdict.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Verdict)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise StateError(
            f"{path} is damaged: {error}", remedy="Move it away: the run is then verified from its records alone."
        ) from error


def recheck(folder: Path) -> Verdict:
    """Verify a recorded run again, offline; nothing in its folder is changed.

    Whatever can be computed from its records is computed anew. What only a living cluster could answer (that it was
    well before and after) is taken from the drill's own verdict; without one the run is inconclusive at best. Raises
    StateError for a folder that is not a run's, or is damaged.
    """
    return recheck_beside(folder, stored_verdict(folder))


def recheck_beside(folder: Path, before: Verdict | None) -> Verdict:
    """Do what `recheck` does, with the drill's own verdict read already (None: it never came to one)."""
    info = read_run(folder)
    entries = read_journal(folder / "journal.jsonl")
    if before is not None and before.verdict in ("aborted", "stuck"):
        # The folder may have been moved, or come from another machine.
        return msgspec.structs.replace(before, report=_page(folder))
    if not is_closed(folder):
        kept = list(before.checks) if before else []
        why = "the run was ended before its window was closed, so that there is no state to hold its record against"
        checks = [*kept, Check("record", "inconclusive", why)]
        return assemble(info, folder, "inconclusive", checks, None, entries)
    judged = judge_folder(folder, info)
    anew = {check.name for check in judged.checks}
    live = [check for check in before.checks if check.name not in anew] if before else []
    if before is None:
        live = [Check("ran to its end", "inconclusive", "the drill died before its verdict")]
    checks = [*live[:1], *judged.checks, *live[1:]]
    return assemble(info, folder, combine(checks), checks, judged, entries)
