"""Tasks about the space that a cluster takes: cluster.defrag, cluster.compact, cluster.heal-nospace."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from invoke.context import Context
from invoke.tasks import task

from etcdops.errors import SpecError
from etcdops.tasks.common import HELP, attach, command, confirm, emit, flag, output_of, say, whole_number

if TYPE_CHECKING:
    from etcdops.operations.defrag import DefragReport
    from etcdops.operations.nospace import NospaceReport
    from etcdops.operations.plan import Plan
    from etcdops.space import DefragRule, Judged, Space

__all__ = ["compact", "defrag", "heal_nospace"]

_COMMON = {
    "cluster": HELP["cluster"],
    "dry-run": "look, print the plan with the plain commands, and change nothing; exits 3 if it would be refused",
    "allow-known-bad": "go on although this version of etcd is known to spoil it",
    "yes": HELP["yes"],
    "output": HELP["output"],
}


@task(
    help={
        **_COMMON,
        "member": HELP["member"],
        "all": "every voter, whatever there is to gain",
        "min-free": "worth it from so much free space on (default: 200MiB)",
        "min-free-when-full": "worth it from so much on, above 80 % of the quota (default: 32MiB)",
    }
)
@command
def defrag(
    c: Context,
    cluster: str | None = None,
    member: str | None = None,
    all: bool = False,
    min_free: str | None = None,
    min_free_when_full: str | None = None,
    allow_known_bad: bool = False,
    output: str | None = None,
    dry_run: bool = False,
    yes: bool = False,
) -> None:
    """Give back the free space in members' databases, one member at a time: cluster.defrag --min-free 50MiB

    Followers first; leadership moves before the leader takes its turn. Learners are left out, and members that have
    too little to give back. Prints what each member gave back.
    """
    from etcdops.operations import defrag as operation
    from etcdops.operations.plan import plan_text

    out = output_of(c, output)
    target = attach(c, cluster)
    rule = _rule(flag(c, "min_free", min_free), flag(c, "min_free_when_full", min_free_when_full), all)
    chosen = flag(c, "member", member)
    only = [name.strip() for name in chosen.split(",")] if chosen else []
    if dry_run:
        plan, judged = operation.prepare(target, rule=rule, only=only, allow_known_bad=allow_known_bad)
        emit(_plan_json(plan) if out == "json" else f"{_judged_text(judged)}\n\n{plan_text(plan)}")
        return
    report = operation.defrag(
        target, rule=rule, only=only, allow_known_bad=allow_known_bad, confirm=_asking(yes), progress=say
    )
    emit(_json({"schema": 1, **_fields(report)}) if out == "json" else _defrag_text(report))
    if not any(row.done for row in report.members):
        say(f"no member of {target.name} was worth defragmenting: nothing was changed")


@task(
    help={
        **_COMMON,
        "keep": "so many of the newest revisions stay readable (default: 10000)",
        "revision": "compact to this revision instead",
    }
)
@command
def compact(
    c: Context,
    cluster: str | None = None,
    keep: str | None = None,
    revision: str | None = None,
    allow_known_bad: bool = False,
    output: str | None = None,
    dry_run: bool = False,
    yes: bool = False,
) -> None:
    """Give up old history, so that its space can be used again: cluster.compact --keep 1000

    The newest value of every key stays. What is lost is named, and asked about unless --yes is given. The space goes
    back to the disk by `cluster.defrag` only.
    """
    from etcdops.operations import compact as operation
    from etcdops.operations.plan import plan_text

    out = output_of(c, output)
    target = attach(c, cluster)
    count, at = flag(c, "keep", keep), flag(c, "revision", revision)
    kept = whole_number(count, "keep") if count else None
    to = whole_number(at, "revision") if at else 0
    if at and to < 1:
        raise SpecError(f"--revision {to} is none: revisions begin at 1")
    if dry_run:
        plan = operation.prepare(target, keep=kept, revision=to, allow_known_bad=allow_known_bad)
        emit(_plan_json(plan) if out == "json" else plan_text(plan))
        return
    done = operation.compact(
        target, keep=kept, revision=to, allow_known_bad=allow_known_bad, confirm=_asking(yes), progress=say
    )
    if not done.revision:
        say(f"revisions {done.oldest:,} to {done.newest:,} can be read: nothing was changed")
    if out == "json":
        emit(_json({"schema": 1, "cluster": target.name, **done._asdict()}))
    elif done.revision:
        emit(f"compacted to revision {done.revision}; revisions {done.oldest} to {done.newest} can be read")


@task(
    help={
        **_COMMON,
        "keep": "so many of the newest revisions stay readable (default: as many as fit, 10000 at most)",
    }
)
@command
def heal_nospace(
    c: Context,
    cluster: str | None = None,
    keep: str | None = None,
    allow_known_bad: bool = False,
    output: str | None = None,
    dry_run: bool = False,
    yes: bool = False,
) -> None:
    """Make a cluster write again whose space quota is used up: cluster.heal-nospace --dry-run

    Compacts, defragments every voter in turn, disarms NOSPACE where it is cured, and proves it by a write. Other
    alarms stay armed. Stop whoever writes so much first, or it is full again soon.
    """
    from etcdops.operations import nospace as operation
    from etcdops.operations.plan import plan_text

    out = output_of(c, output)
    target = attach(c, cluster)
    count = flag(c, "keep", keep)
    kept = whole_number(count, "keep") if count else None
    if dry_run:
        plan, seen = operation.prepare(target, keep=kept, allow_known_bad=allow_known_bad)
        emit(_plan_json(plan) if out == "json" else f"{_spaces_text(seen.spaces)}\n\n{plan_text(plan)}")
        return
    report = operation.heal_nospace(
        target, keep=kept, allow_known_bad=allow_known_bad, confirm=_asking(yes), progress=say
    )
    if not any(row.alarmed for row in report.members) and not report.revision:
        say(f"no member of {target.name} has raised NOSPACE: nothing was changed")
    for name in report.corrupt:
        sys.stderr.write(f"warning alarm-corrupt: CORRUPT of {name} is armed, as it was: see `status`\n")
    if report.hazard:
        sys.stderr.write(f"warning alarm-corrupt: {report.hazard}\n")
    emit(_json({"schema": 1, **_fields(report)}) if out == "json" else _healed_text(report))


def _rule(free: str, least: str, everyone: bool) -> DefragRule:
    from etcdops.space import DefragRule
    from etcdops.units import parse_bytes

    rule = DefragRule(everyone=everyone)
    if free:
        # Who asks for less than is asked for in need means that as well.
        wanted = parse_bytes(free, "min-free")
        rule = rule._replace(free_bytes=wanted, least_bytes=min(rule.least_bytes, wanted))
    return rule._replace(least_bytes=parse_bytes(least, "min-free-when-full")) if least else rule


def _asking(yes: bool) -> Callable[[Plan], None]:
    def ask(plan: Plan) -> None:
        from etcdops.operations.plan import plan_text

        sys.stderr.write(f"{plan_text(plan)}\n")
        confirm(f"{plan.operation} on {plan.cluster}?", yes=yes)

    return ask


def _judged_text(judged: Sequence[Judged]) -> str:
    rows = [("MEMBER", "ROLE", "SIZE", "IN USE", "QUOTA", "DEFRAG", "WHY")]
    rows += [(*_sizes(space), "yes" if chosen else "no", reason) for space, chosen, reason in judged]
    return _table(rows)


def _spaces_text(spaces: Sequence[Space]) -> str:
    rows = [("MEMBER", "ROLE", "SIZE", "IN USE", "QUOTA", "USED")]
    return _table([*rows, *((*_sizes(space), f"{space.used_percent:.0f} %") for space in spaces)])


def _sizes(space: Space) -> tuple[str, str, str, str, str]:
    from etcdops.units import size_text

    quota = size_text(space.quota) if space.quota > 0 else "none"
    return space.member, space.role, size_text(space.db_size), size_text(space.in_use), quota


def _defrag_text(report: DefragReport) -> str:
    from etcdops.units import size_text

    rows = [("MEMBER", "ROLE", "BEFORE", "AFTER", "RECLAIMED", "DONE", "WHY")]
    for row in report.members:
        sizes = [size_text(size) for size in (row.db_size, row.db_size_after, row.reclaimed)]
        rows.append((row.member, row.role, sizes[0], sizes[1], sizes[2], "yes" if row.done else "no", row.reason))
    return _table(rows)


def _healed_text(report: NospaceReport) -> str:
    from etcdops.units import size_text

    rows = [("MEMBER", "QUOTA", "BEFORE", "AFTER", "NOSPACE")]
    for row in report.members:
        alarm = "disarmed" if row.disarmed else "ARMED" if row.alarmed else "-"
        rows.append((row.member, size_text(row.quota), size_text(row.db_size), size_text(row.db_size_after), alarm))
    return f"{_table(rows)}\n{report.proof}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _plan_json(plan: Plan) -> str:
    return _json({"schema": 1, "plan": plan})


def _fields(report: object) -> dict[str, object]:
    import msgspec

    fields: dict[str, object] = msgspec.to_builtins(report)
    return fields


def _json(document: object) -> str:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
