"""Runs in short as Markdown, for a pull request: a row for each, and beneath it what did not pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from etcdops.report.loading import LoadedRun, load_run
from etcdops.report.page import cell, not_checked
from etcdops.report.standing import reproduce
from etcdops.report.terminal import ms

__all__ = ["markdown"]

_MARKS = {"passed": "✅", "deviated": "❌", "inconclusive": "❔", "aborted": "⏹", "stuck": "🛑"}


def markdown(folders: Sequence[Path]) -> str:
    """Give some runs as Markdown; raises SpecError for a folder that is no run's."""
    runs = [load_run(folder) for folder in folders]
    lines = [
        "| drill | verdict | writes stopped, ms | Raft predicts | acknowledged | lost | unknown | etcd | run |",
        "|---|---|---:|---:|---:|---:|---:|---|---|",
        *map(_row, runs),
    ]
    for run in runs:
        lines += ["", *_details(run)]
    return "\n".join(lines) + "\n"


def _row(run: LoadedRun) -> str:
    verdict = run.verdict
    outage, writes = verdict.outage, verdict.writes
    fault = ", ".join(f"{each.kind} {each.member}".strip() for each in run.faults)
    predicted = (
        f"{ms(outage.predicted_ms[0])} to {ms(outage.predicted_ms[1])}" if outage and outage.predicted_ms else "-"
    )
    cells = [
        verdict.drill + (f" ({fault})" if fault else ""),
        f"{_MARKS.get(verdict.verdict, '❔')} {verdict.verdict}",
        ms(outage.write_ms if outage else None),
        predicted,
        f"{writes.acknowledged:,}",
        f"**{writes.lost:,}**" if writes.lost else "0",
        f"{writes.unknown:,}",
        f"{verdict.cluster.etcd_version}, {verdict.cluster.runtime}",
        verdict.run,
    ]
    return f"| {' | '.join(cell(each) for each in cells)} |"


def _details(run: LoadedRun) -> list[str]:
    verdict = run.verdict
    bad = [check for check in verdict.checks if check.result != "passed"]
    passed = [check.name for check in verdict.checks if check.result == "passed"]
    lines = [f"- **{cell(check.name)}** {check.result}: {cell(check.detail)}" for check in bad]
    lines += [f"- {cell(problem)}" for problem in run.problems]
    told = [
        f"Passed: {', '.join(map(cell, passed))}." if passed else "No check passed.",
        "",
        "Not checked:",
        "",
        *(f"- {cell(each)}" for each in not_checked(verdict)),
        "- anything beyond this one run and the traffic that it sent",
    ]
    command = reproduce(run.info).replace("`", "'")
    if command:
        told += ["", "```sh", command, "```"]
    summary = f"<summary>{cell(verdict.run)}: {len(passed)} of {len(verdict.checks)} checks passed</summary>"
    return [*lines, *([""] if lines else []), "<details>", summary, "", *told, "", "</details>"]
