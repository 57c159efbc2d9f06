"""Tasks about certificates: tls.show, tls.renew."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from etcdops.tasks.common import HELP, attach, command, emit, emit_json, emit_table, flag, output_of, say

if TYPE_CHECKING:
    from etcdops.operations.plan import Plan
    from etcdops.tls.showing import Shown

__all__ = ["renew", "show_certificates"]

#: So many hexadecimal digits of a fingerprint are shown in a table; the JSON has all.
_DIGITS = 16


@task(name="show", help={"cluster": HELP["cluster"], "output": HELP["output"]})
@command
def show_certificates(c: Context, cluster: str | None = None, output: str | None = None) -> None:
    """List the cluster's certificates, what members really serve, and whom they turn away: tls.show -o json

    Both are found by connecting to the members' ports, for clients and for peers. Exits 1 if a port serves a stranger,
    or another certificate than the one that is here. Never writes.
    """
    from etcdops.tls.showing import show

    out = output_of(c, output)
    shown = show(attach(c, cluster))
    if out == "json":
        emit_json(shown)
    else:
        _show(shown)
    if shown.proof.wrong or any(each.result == "another" for each in shown.served):
        raise Exit(code=1)


@task(
    help={
        "cluster": HELP["cluster"],
        "member": HELP["member"],
        "dry-run": "look, print the plan with the plain commands, and change nothing; exits 3 if it would be refused",
        "output": HELP["output"],
    }
)
@command
def renew(
    c: Context,
    cluster: str | None = None,
    member: str | None = None,
    dry_run: bool = False,
    output: str | None = None,
) -> None:
    """Give members new certificates and keys, without a restart: tls.renew --member thor

    Without --member it is all members and the operator. Every member that runs is proved to serve its new certificate,
    and to turn strangers away. If it is interrupted, the same command goes on.
    """
    from etcdops.operations.plan import plan_text

    out = output_of(c, output)
    target = attach(c, cluster)
    chosen = flag(c, "member", member)
    names = [name.strip() for name in chosen.split(",")] if chosen else []

    def ask(plan: Plan) -> None:
        sys.stderr.write(f"{plan_text(plan)}\n")

    plan = target.renew_certificates(names, dry_run=dry_run, confirm=ask, progress=say)
    if out == "json":
        emit_json({"schema": 1, "plan": plan})
    elif dry_run:
        emit(plan_text(plan))
    if not dry_run:
        ends = target.status().certificate
        say(f"done: the first certificate ends on {ends.not_after[:10]}, {ends.whose}'s" if ends else "done")


def _show(shown: Shown) -> None:
    rows: list[tuple[str, ...]] = []
    rows.append(("WHOSE", "SUBJECT", "NOT AFTER", "DAYS", "SHA-256", "CLIENT PORT", "PEER PORT", "FOR", "NAMES"))
    served = {(each.member, each.port): each.result for each in shown.served}
    for each in shown.certificates:
        ports = [served.get((each.whose, port), "-") for port in ("client", "peer")]
        cells = (each.whose, each.subject, each.not_after[:10], f"{each.days_left:.0f}", each.fingerprint[:_DIGITS])
        rows.append((*cells, *ports, ",".join(each.purposes) or "-", ",".join(each.names) or "-"))
    emit_table(rows)
    lines = [f"missing: {path}" for path in shown.missing]
    for port in shown.served:
        if port.result != "as here":
            lines.append(f"{port.member}, {port.port} port: {port.result} ({port.detail})")
    met = shown.proof.encounters
    right = sum(each.is_right for each in met)
    lines.append(
        f"strangers and the operator: {shown.proof.result}, {right} of {len(met)} connections are as they should be"
    )
    for meeting in met:
        if not meeting.is_right:
            lines.append(f"{meeting.member}, {meeting.port} port: {meeting.who}: {meeting.result} ({meeting.detail})")
    emit("\n".join(lines))
