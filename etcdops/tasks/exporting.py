"""The task `run.export`: a recorded run as others check it."""

from __future__ import annotations

from invoke.context import Context
from invoke.tasks import task

from etcdops.tasks.common import command, emit, flag, say, whole_number

__all__ = ["export"]


@task(
    positional=["run"],
    help={
        "run": "a run's id or its folder",
        "format": "edn (the default) or json, as Jepsen's tests store histories, or etcd-log, as porcupine reads them",
        "model": "register, or append for transactions on lists (default: what the run has)",
        "key": "only this key, such as r/1; an etcd log has one",
        "window": "which part of a run that restored a snapshot, counted from 1 (default: 1)",
        "to": "a file to write, which must not be there yet (default: stdout)",
    },
)
@command
def export(
    c: Context,
    run: str,
    format: str | None = None,
    model: str | None = None,
    key: str | None = None,
    window: str | None = None,
    to: str | None = None,
) -> None:
    """Write a recorded run for Knossos, Elle or Porcupine: run.export 20260102-030405-no-fault-1a2b --to history.edn

    The run's registers (profile register, or any one key) become reads, writes and compare-and-swaps, its lists
    (profiles append and mixed) become transactions. Needs no cluster, and changes nothing.
    """
    from etcdops.histories.exporting import write_export
    from etcdops.report.exporting import export_run
    from etcdops.report.finding import find_run

    folder = find_run(run)
    exported = export_run(
        folder,
        format=flag(c, "format", format) or "edn",
        model=flag(c, "model", model),
        key=flag(c, "key", key),
        window=whole_number(flag(c, "window", window) or "1", "window"),
    )
    target = flag(c, "to", to)
    if target:
        write_export(exported, target)
    else:
        emit("\n".join(exported.lines()))
    what = "transactions" if exported.model == "append" else "operations"
    keys = f"{len(exported.keys):,} keys" if len(exported.keys) != 1 else exported.keys[0]
    say(f"{len(exported.events):,} {what} on {keys} of {exported.run}")
    for name, number in exported.left_out.items():
        say(f"left out {name}, which is no register: see operation {number}")
