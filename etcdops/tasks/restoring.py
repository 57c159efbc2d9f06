"""Tasks that give a whole cluster other data: snapshot.restore, snapshot.rollback, cluster.recover."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from invoke.context import Context
from invoke.tasks import task

from etcdops.errors import SpecError
from etcdops.tasks.common import HELP, attach, command, confirm, emit, flag, output_of, say

if TYPE_CHECKING:
    from etcdops.operations.plan import Plan
    from etcdops.snapshots.restoring import Restored

__all__ = ["recover", "restore", "rollback"]

_DRY_RUN = "look, print the plan with the plain commands, and change nothing; exits 3 if it would be refused"
_NO_BUMP = "leave revisions where the snapshot has them: clients that watch or cache must be restarted then"
_ALLOW = "go on although this version of etcd is known to spoil it"


@task(
    positional=["file"],
    help={
        "file": "which: a path, or a name that `snapshot.list` shows",
        "cluster": HELP["cluster"],
        "size": "how many members a cluster that is created has: 1, 3, 5 or 7 (default: 3)",
        "runtime": HELP["runtime"],
        "etcd-version": HELP["etcd-version"],
        "etcd-bin": HELP["etcd-bin"],
        "image": HELP["image"],
        "tls": HELP["tls"],
        "offline": HELP["offline"],
        "no-bump": _NO_BUMP,
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
    size: str | None = None,
    runtime: str | None = None,
    etcd_version: str | None = None,
    etcd_bin: str | None = None,
    image: str | None = None,
    output: str | None = None,
    offline: bool = False,
    no_bump: bool = False,
    allow_known_bad: bool = False,
    dry_run: bool = False,
    yes: bool = False,
    tls: bool = False,
) -> None:
    """Restore a whole cluster from one snapshot, and prove it: snapshot.restore FILE

    The data of every member is made and looked into before anything stops. What the members had is kept;
    `snapshot.rollback` takes it back, and so does the command itself if the proof fails. A cluster that there is not
    yet is created: snapshot.restore FILE --cluster copy --size 1
    """
    from etcdops.placement import check_same
    from etcdops.snapshots import founding, restoring
    from etcdops.snapshots.catalog import find_snapshot
    from etcdops.tasks.environment import wish_for

    out = output_of(c, output)
    if not file:
        raise SpecError("no file is given", remedy="See `snapshot.list` for the snapshots that there are.")
    name = flag(c, "cluster", cluster) or "lab"
    fixed = {"runtime": runtime, "size": size, "etcd_version": etcd_version, "etcd_bin": etcd_bin, "image": image}
    fixed["tls"] = "yes" if tls else None
    wish = wish_for(c, name, {**fixed, "port": None}, offline=offline, progress=say)
    path = find_snapshot(file)
    if not wish.exists or _is_being_made(name):
        if dry_run:
            _show(founding.prepare_founding(wish.spec, path, runtime=wish.runtime, progress=say))
            return
        _, done = founding.found(
            wish.spec,
            path,
            runtime=wish.runtime or "process",
            tls=wish.tls,
            offline=wish.offline,
            bump=not no_bump,
            allow_known_bad=allow_known_bad,
            progress=say,
        )
        _report(done, out)
        return
    target = attach(c, cluster)
    asked = wish.runtime if isinstance(wish.runtime, str) else wish.runtime.name
    check_same(target.record, runtime=asked, size=wish.size, spec=wish.spec, tls=wish.tls)
    if dry_run:
        plan = restoring.prepare(target, path, bump=not no_bump, allow_known_bad=allow_known_bad, progress=say)
        _show(plan)
        return
    done = restoring.restore_snapshot(
        target,
        path,
        bump=not no_bump,
        allow_known_bad=allow_known_bad,
        confirm=_asking(target.name, yes),
        progress=say,
    )
    _report(done, out)


def _is_being_made(name: str) -> bool:
    """Whether there is a cluster of that name only because a restore was to make it, and has not ended."""
    from etcdops.cluster import Cluster
    from etcdops.operations.pending import load
    from etcdops.snapshots.taking_back import NEW

    pending = load(Cluster.attach(name))
    return pending is not None and NEW in pending.arguments


def _show(plan: Plan) -> None:
    from etcdops.operations.plan import plan_text

    emit(plan_text(plan))


def _asking(name: str, yes: bool) -> Callable[[Plan], None]:
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
    say(f"{done.cluster} is restored from {done.snapshot}, revision {done.revision}")


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


@task(
    help={
        "cluster": HELP["cluster"],
        "lost": "members that are given up, though something of them is still there; separated by commas",
        "no-bump": _NO_BUMP,
        "allow-known-bad": _ALLOW,
        "dry-run": _DRY_RUN,
        "yes": HELP["yes"],
        "output": HELP["output"],
    }
)
@command
def recover(
    c: Context,
    cluster: str | None = None,
    lost: str | None = None,
    output: str | None = None,
    no_bump: bool = False,
    allow_known_bad: bool = False,
    dry_run: bool = False,
    yes: bool = False,
) -> None:
    """Make a cluster anew whose quorum is lost for good, from the survivor that is furthest: cluster.recover

    Refused (exit 3) as long as there is a quorum, or one can be brought back. Says exactly what may be lost, and asks
    for the cluster's name. What the members had is kept.
    """
    from etcdops.snapshots import recovering

    out = output_of(c, output)
    target = attach(c, cluster)
    given_up = [name for name in flag(c, "lost", lost).split(",") if name]
    if dry_run:
        _show(recovering.prepare_recover(target, lost=given_up))
        return
    done = recovering.recover(
        target,
        lost=given_up,
        bump=not no_bump,
        allow_known_bad=allow_known_bad,
        confirm=_asking(target.name, yes),
        progress=say,
    )
    _report(done, out)
