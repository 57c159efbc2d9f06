"""Tasks that change who is a member: member.add, .remove, .replace, .promote and .undo."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from invoke.context import Context
from invoke.tasks import task

from etcdops.tasks.common import HELP, attach, command, confirm, emit, emit_json, flag, output_of, say
from etcdops.tasks.optional import may_take

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.operations.plan import Plan

__all__ = ["ALL"]

_COMMON = {
    "cluster": HELP["cluster"],
    "dry-run": "look, print the plan with the plain commands, and change nothing; exits 3 if it would be refused",
    "output": HELP["output"],
}
_RISK = {"allow-known-bad": "go on although this version of etcd is known to break it"}
_ASKS = {**_COMMON, **_RISK, "yes": HELP["yes"]}


@task(
    klass=may_take("member.add", "member"),
    help={
        **_COMMON,
        **_RISK,
        "member": "what to call it (default: the first usual name that is free)",
        "host": "which of the cluster's hosts it is to run on (default: the one with the fewest members)",
        "cert": "its certificate (PEM), for a cluster with TLS",
        "key": "its key (PEM), for a cluster with TLS",
    },
)
@command
def add(
    c: Context,
    member: str | None = None,
    cluster: str | None = None,
    host: str | None = None,
    cert: str | None = None,
    key: str | None = None,
    allow_known_bad: bool = False,
    dry_run: bool = False,
    output: str | None = None,
) -> None:
    """Add a member, without a moment's outage: member.add hulk; on one of several hosts: member.add hulk --host h4

    It joins as a learner, which counts for no quorum, gets all data from the leader, and is promoted to a voter then.
    Refused (exit 3) while a voter is down. If it is interrupted, the same command goes on, and member.undo takes it
    back.
    """
    target = attach(c, cluster)
    name, pem, own_key = flag(c, "member", member), flag(c, "cert", cert), flag(c, "key", key)
    at = flag(c, "host", host)
    _run(
        c,
        target,
        lambda **how: target.add_member(name, host=at, cert=pem, key=own_key, allow_known_bad=allow_known_bad, **how),
        dry_run=dry_run,
        output=output,
    )


@task(positional=["member"], help={**_ASKS, "member": "which member"})
@command
def remove(
    c: Context,
    member: str,
    cluster: str | None = None,
    allow_known_bad: bool = False,
    dry_run: bool = False,
    yes: bool = False,
    output: str | None = None,
) -> None:
    """Remove a member for ever: member.remove hulk

    Leadership goes first, if it leads. Its data is kept (see data.list), and can never join again. Refused (exit 3)
    where the rest would have no quorum.
    """
    target = attach(c, cluster)
    name = flag(c, "member", member)
    _run(
        c,
        target,
        lambda **how: target.remove_member(name, allow_known_bad=allow_known_bad, **how),
        dry_run=dry_run,
        output=output,
        asking=(f"remove {name} of {target.name} for ever?", yes),
    )


@task(
    positional=["member"],
    help={
        **_ASKS,
        "member": "which member",
        "host": "which of the cluster's hosts the new one is to run on (default: where the lost one was)",
    },
)
@command
def replace(
    c: Context,
    member: str,
    cluster: str | None = None,
    host: str | None = None,
    allow_known_bad: bool = False,
    dry_run: bool = False,
    yes: bool = False,
    output: str | None = None,
) -> None:
    """Put a new member in the place of one that is lost, or whose disk is: member.replace thor

    The lost one is removed first, reached or not; then one of its name joins as a learner, without data, and is
    promoted. The lost one's data is kept (see data.list). Refused (exit 3) for a member that serves. If it is
    interrupted, the same command goes on. Where its host is lost too, it goes to another: --host, or one without a
    member; what is left on the lost one is on record, and `heal` removes it should that host come back.
    """
    target = attach(c, cluster)
    name, at = flag(c, "member", member), flag(c, "host", host)
    _run(
        c,
        target,
        lambda **how: target.replace_member(name, host=at, allow_known_bad=allow_known_bad, **how),
        dry_run=dry_run,
        output=output,
        asking=(f"replace {name} of {target.name}?", yes),
    )


@task(positional=["member"], help={**_COMMON, **_RISK, "member": "which member"})
@command
def promote(
    c: Context,
    member: str,
    cluster: str | None = None,
    allow_known_bad: bool = False,
    dry_run: bool = False,
    output: str | None = None,
) -> None:
    """Make a learner a voter, once it has what the leader has: member.promote hulk"""
    target = attach(c, cluster)
    name = flag(c, "member", member)
    _run(
        c,
        target,
        lambda **how: target.promote_member(name, allow_known_bad=allow_known_bad, **how),
        dry_run=dry_run,
        output=output,
    )


@task(help=_COMMON)
@command
def undo(c: Context, cluster: str | None = None, dry_run: bool = False, output: str | None = None) -> None:
    """Take back an add or a replace that did not come to its end: member.undo

    The learner is removed, and its data kept. A replaced member stays removed.
    """
    target = attach(c, cluster)
    _run(c, target, target.undo, dry_run=dry_run, output=output)


def _run(
    c: Context,
    target: Cluster,
    operation: Callable[..., Plan],
    *,
    dry_run: bool,
    output: str | None,
    asking: tuple[str, bool] | None = None,
) -> None:
    from etcdops.operations.plan import plan_text

    form = output_of(c, output)

    def ask(plan: Plan) -> None:
        sys.stderr.write(f"{plan_text(plan)}\n")
        # What is left of an operation that was asked about when it began has no consequence of its own.
        if asking and plan.consequence:
            question, yes = asking
            confirm(question, yes=yes, name=target.name)

    plan = operation(dry_run=dry_run, confirm=ask, progress=say)
    if form == "json":
        emit_json({"schema": 1, "plan": plan})
    elif dry_run or not plan.steps:
        emit(plan_text(plan))
    if not dry_run and plan.steps:
        seen = target.status()
        voters = sum(member.role != "learner" for member in seen.members)
        say(f"done: {voters} voters, quorum {seen.quorum}, {seen.leader or 'no member'} leads")


#: All tasks of this module.
ALL = (add, remove, replace, promote, undo)
