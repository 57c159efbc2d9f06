"""Tasks about all clusters of the machine: cluster.list, cluster.prune."""

from __future__ import annotations

import sys

from invoke.context import Context
from invoke.tasks import task

from etcdops.tasks.common import HELP, command, confirm, emit_json, emit_table, output_of, say

__all__ = ["list_clusters", "prune"]


@task(name="list", help={"output": HELP["output"]})
@command
def list_clusters(c: Context, output: str | None = None) -> None:
    """List every cluster and leftover of yours on this machine, wherever its state directory is, or was."""
    from etcdops.inventory import find_clusters
    from etcdops.state import Store

    out = output_of(c, output)
    found = find_clusters(Store.find())
    if out == "json":
        emit_json({"schema": 1, "clusters": found})
        return
    if not found:
        say("there is no cluster on this machine; `up-env` makes one")
        return
    rows = [("NAME", "ID", "STATE", "RUNTIME", "MEMBERS", "STATE DIRECTORY")]
    rows += [(f.name, f.id or "-", f.state, f.runtime or "-", ",".join(f.members) or "-", f.state_dir) for f in found]
    for each in found:
        if each.problem:
            sys.stderr.write(f"warning {each.state}: {each.name} in {each.state_dir}: {each.problem}\n")
    emit_table(rows)


@task(
    iterable=["cluster"],
    help={
        "cluster": "name, id or directory of one to remove (default: all leftovers); may be repeated",
        "yes": HELP["yes"],
    },
)
@command
def prune(c: Context, cluster: list[str], yes: bool = False) -> None:
    """Remove leftovers, or the clusters named with --cluster, with all their data.

    Leftovers are members and data whose record is gone, and temporary clusters whose maker is dead. What goes is named,
    and asked about unless --yes is given.
    """
    from etcdops.inventory import find_clusters, remove, select
    from etcdops.state import Store

    found = find_clusters(Store.find())
    chosen = select(found, cluster) if cluster else [each for each in found if each.state == "leftover"]
    if not chosen:
        say("there are no leftovers; name a cluster with --cluster to remove it")
        return
    for each in chosen:
        sys.stderr.write(f"{each.name} ({each.state}, id {each.id or 'unknown'}, in {each.state_dir or '?'}):\n")
        sys.stderr.write("".join(f"  {line}\n" for line in each.deletes))
    confirm(f"Remove {', '.join(each.name for each in chosen)}?", yes=yes)
    for each in chosen:
        remove(each)
        say(f"removed {each.name} ({each.id or each.directory})")
