"""Tasks about members' data: data.list and data.remove."""

from __future__ import annotations

from invoke.context import Context
from invoke.tasks import task

from etcdops.errors import SpecError
from etcdops.tasks.common import HELP, attach, command, confirm, emit_json, emit_table, flag, output_of, say

__all__ = ["list_data", "remove"]


@task(help={"cluster": HELP["cluster"], "output": HELP["output"]})
@command
def list_data(c: Context, cluster: str | None = None, output: str | None = None) -> None:
    """Show the members' data, also what is kept of those that were removed, replaced or restored: data.list"""
    from etcdops.operations.data import generations

    form = output_of(c, output)
    found = generations(attach(c, cluster))
    if form == "json":
        emit_json({"schema": 1, "data": found})
        return
    columns = ("NAME", "STATE", "SINCE", "PLACE", "HOST")[
        : 5 if any(each.host not in ("", "local") for each in found) else 4
    ]
    emit_table([columns, *((g.name, g.state, g.since or "-", g.place, g.host or "-")[: len(columns)] for g in found)])


@task(
    positional=["names"],
    help={
        "names": "which, as data.list names them (thor-g1); several separated by commas",
        "cluster": HELP["cluster"],
        "yes": HELP["yes"],
    },
)
@command
def remove(c: Context, names: str, cluster: str | None = None, yes: bool = False) -> None:
    """Delete data that no member uses any more: data.remove thor-g1

    There is no way back: the name of the cluster is asked for. What a member uses is never deleted by this.
    """
    from etcdops.operations import data

    target = attach(c, cluster)
    wanted = [name for name in flag(c, "names", names).split(",") if name]
    if not wanted:
        raise SpecError("no data is named", remedy="`data.list` shows what there is.")
    doomed = data.to_remove(target, wanted)
    for each in doomed:
        say(f"data of {each.member} that was {each.why} on {each.since}: {each.data.on(each.host)}")
    confirm(f"delete {'this' if len(doomed) == 1 else 'these'} for ever?", yes=yes, name=target.name)
    data.remove(target, wanted)
    say(f"deleted {', '.join(wanted)}")
