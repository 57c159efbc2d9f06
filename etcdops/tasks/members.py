"""Tasks about one member: member.stop, .start, .kill, .freeze, .thaw, .move-leader."""

from __future__ import annotations

import sys

from invoke.context import Context
from invoke.tasks import task

from etcdops.tasks.common import HELP, attach, command, confirm, emit, flag, say

__all__ = ["ALL"]

_COMMON = {
    "cluster": HELP["cluster"],
    "dry-run": "look, print the plan with the plain commands, and change nothing; exits 3 if it would be refused",
}
_HELP = {"member": "which member", **_COMMON}
_LOSES = {
    **_HELP,
    "lose-quorum": "go on although too few voters would be left, and no write be acknowledged",
    "yes": HELP["yes"],
}


@task(positional=["member"], help=_LOSES)
@command
def stop(
    c: Context,
    member: str,
    cluster: str | None = None,
    lose_quorum: bool = False,
    dry_run: bool = False,
    yes: bool = False,
) -> None:
    """Stop a member in an orderly way: member.stop thor

    A leader hands leadership over first. The member stays stopped until `member.start` or `up-env`; `heal` leaves it.
    Refused (exit 3) where too few voters would be left, unless --lose-quorum asks for that.
    """
    _act(c, "stop", member, cluster, lose_quorum=lose_quorum, dry_run=dry_run, yes=yes)


@task(positional=["member"], help=_HELP)
@command
def start(c: Context, member: str, cluster: str | None = None, dry_run: bool = False) -> None:
    """Start a member, or let it go on if it is frozen, and wait until it serves: member.start thor

    Without a quorum nobody serves; then it is started, and that is said.
    """
    _act(c, "start", member, cluster, dry_run=dry_run)


@task(positional=["member"], help=_LOSES)
@command
def kill(
    c: Context,
    member: str,
    cluster: str | None = None,
    lose_quorum: bool = False,
    dry_run: bool = False,
    yes: bool = False,
) -> None:
    """Kill a member (SIGKILL), as a crash would: member.kill thor

    A fault by hand: `heal`, `up-env` and `member.start` bring it back. Refused (exit 3) where too few voters would be
    left, unless --lose-quorum asks for that.
    """
    _act(c, "kill", member, cluster, lose_quorum=lose_quorum, dry_run=dry_run, yes=yes)


@task(positional=["member"], help=_LOSES)
@command
def freeze(
    c: Context,
    member: str,
    cluster: str | None = None,
    lose_quorum: bool = False,
    dry_run: bool = False,
    yes: bool = False,
) -> None:
    """Freeze a member (SIGSTOP), as a machine that hangs: member.freeze thor

    A fault by hand: its connections stay open and nothing answers. `member.thaw`, `heal` and `up-env` let it go on.
    Refused (exit 3) where too few voters would be left, unless --lose-quorum asks for that.
    """
    _act(c, "freeze", member, cluster, lose_quorum=lose_quorum, dry_run=dry_run, yes=yes)


@task(positional=["member"], help=_HELP)
@command
def thaw(c: Context, member: str, cluster: str | None = None, dry_run: bool = False) -> None:
    """Let a frozen member go on, and wait until it serves: member.thaw thor"""
    _act(c, "thaw", member, cluster, dry_run=dry_run)


@task(help={**_COMMON, "to": "which voter is to lead (default: of those that serve, the one that has applied most)"})
@command
def move_leader(c: Context, to: str | None = None, cluster: str | None = None, dry_run: bool = False) -> None:
    """Hand leadership over to another voter: member.move-leader --to thor

    The leader is asked, and who leads then is looked at. A learner cannot lead.
    """
    from etcdops.operations import leader
    from etcdops.operations.plan import plan_text

    target = attach(c, cluster)
    name = flag(c, "to", to)
    if dry_run:
        emit(plan_text(leader.prepare(target, name)))
        return
    before = target.leader().name
    now = target.move_leader(name, progress=say).name
    say(f"{now} leads already: nothing was changed" if now == before else f"{now} leads, and {before} follows")


def _act(
    c: Context,
    action: str,
    member: str,
    cluster: str | None,
    *,
    dry_run: bool,
    lose_quorum: bool = False,
    yes: bool = False,
) -> None:
    from etcdops.operations import members
    from etcdops.operations.plan import Plan, plan_text

    target = attach(c, cluster)
    name = flag(c, "member", member)
    if dry_run:
        emit(plan_text(members.prepare(target, action, name, lose_quorum=lose_quorum)))
        return

    def ask(plan: Plan) -> None:
        sys.stderr.write(f"{plan_text(plan)}\n")
        confirm(f"{action} {name} of {target.name}?", yes=yes, name=target.name)

    say(members.run(target, action, name, lose_quorum=lose_quorum, confirm=ask, progress=say))


#: All tasks of this module.
ALL = (stop, start, kill, freeze, thaw, move_leader)
