"""Tasks that give a whole cluster other data: snapshot.restore, snapshot.rollback."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from invoke.context import Context
from invoke.tasks import task

from etcdops.errors import SpecError
from etcdops.tasks.common import HELP, attach, command, confirm, emit, output_of, say

if TYPE_CHECKING:
    from etcdops.operations.plan import Plan
    from etcdops.snapshots.restoring import Restored

__all__ = ["restore", "rollback"]

_DRY_RUN = "look, print the plan with the plain commands, and change nothing; exits 3 if it would be refused"
_ALLOW = "go on although this version of etcd is known to spoil it"


@task(
    positional=["file"],
    help={
        "file": "which: a path, or a name that `snapshot.list` shows",
        "cluster": HELP["cluster"],
        "no-bump": "leave revisions where the snapshot has them: clients that watch or cache must be restarted then",
        "allow-known-bad": _ALLOW,
        "dry-run": _DRY_RUN,
        "yes": HELP["yes"],
        "output": HELP["output"],
    },
)
@command
def restore(
    c: Context,
    file: str,
    cluster: str | None = None,
    output: str | None = None,
    no_bump: bool = False,
    allow_known_bad: bool = False,
    dry_run: bool = False,
    yes: bool = False,
) -> None:
    """Restore a whole cluster from one snapshot, and prove it: snapshot.restore FILE"""
    from etcdops.snapshots import restoring
    from etcdops.snapshots.catalog import find_snapshot

    out = output_of(c, output)
    if not file:
        raise SpecError("no file is given", remedy="See `snapshot.list` for the snapshots that there are.")
    target = attach(c, cluster)
    path = find_snapshot(file, target.store)
    options = {"bump": not no_bump, "allow_known_bad": allow_known_bad}
    if dry_run:
        _show(restoring.prepare(target, path, progress=say, **options))
        return
    done = restoring.restore_snapshot(target, path, confirm=_asking(target.name, yes), progress=say, **options)
    _report(done, out)


def _show(plan: Plan) -> None:
    from etcdops.operations.plan import plan_text

    emit(plan_text(plan))


def _asking(name: str, yes: bool):  # type: ignore[no-untyped-def]
    def ask(plan: Plan) -> None:
        from etcdops.operations.plan import plan_text

        sys.stderr.write(f"{plan_text(plan)}\n")
        if plan.consequence:
            confirm(f"{plan.operation} {plan.member} into {name}?", yes=yes, name=name)

    return ask


def _report(done: Restored, out: str) -> None:
    import msgspec

    if out == "json":
        emit(msgspec.json.format(msgspec.json.encode(done), indent=2).decode())
        return
    say(f"{done.cluster} is restored from {done.snapshot}, revision {done.revision}; `snapshot.rollback` takes it back")


@task(help={"cluster": HELP["cluster"], "dry-run": _DRY_RUN, "yes": HELP["yes"]})
@command
def rollback(c: Context, cluster: str | None = None, dry_run: bool = False, yes: bool = False) -> None:
    """Take the last restore back, or one that was interrupted: snapshot.rollback"""
    from etcdops.snapshots import taking_back

    target = attach(c, cluster)
    if dry_run:
        _show(taking_back.prepare_rollback(target))
        return
    say(taking_back.rollback(target, confirm=_asking(target.name, yes), progress=say))
