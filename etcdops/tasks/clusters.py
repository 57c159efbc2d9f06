"""Tasks about all clusters of the machine, and those elsewhere: cluster.list, cluster.prune, cluster.attach."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from invoke.context import Context
from invoke.tasks import task

from etcdops import foreign
from etcdops.tasks.common import HELP, command, confirm, emit, emit_json, emit_table, flag, output_of, say

if TYPE_CHECKING:
    from etcdops.cluster import Cluster

__all__ = ["attach_endpoints", "list_clusters", "prune"]


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
        if each.runtime == foreign.RUNTIME:
            say(f"forgot {each.name} ({each.id}); its members were not touched")
            continue
        say(f"removed {each.name} ({each.id or each.directory})")


@task(
    help={
        "endpoints": "client URLs of its members, separated by commas (default: those of an attached cluster)",
        "hosts": "Docker hosts that have a cluster of etcdops': an inventory file, or names separated by commas;"
        " --cluster is needed where they have several, by name or id",
        "cluster": HELP["cluster"],
        "cacert": "the authority that signed its members' certificates (PEM), for https://",
        "cert": "a client certificate (PEM), where its members ask for one",
        "key": "the key of that certificate (PEM)",
        "purpose": "production, on which no drill runs and no fault is applied, or lab (default: production)",
        "output": HELP["output"],
    }
)
@command
def attach_endpoints(
    c: Context,
    endpoints: str | None = None,
    hosts: str | None = None,
    cluster: str | None = None,
    cacert: str | None = None,
    cert: str | None = None,
    key: str | None = None,
    purpose: str | None = None,
    output: str | None = None,
) -> None:
    """Record a cluster that somebody else runs: cluster.attach --endpoints http://10.0.0.1:2379 --cluster prod

    Each member is recorded with the client URL that works from here, once it has proved by its ID to be that member.
    Then status, ctl, snapshot.save, member.move-leader and more work on it; what needs its processes is refused. Again,
    it refreshes the record; nothing is ever written to the cluster.

    Or take up one that etcdops made on other hosts, from those alone: cluster.attach --hosts hosts.toml

    Record, authority and credentials are read from whichever host has the newest, and everything works then.
    """
    from etcdops.foreign.attaching import attach
    from etcdops.foreign.endpoints import tls_of

    out = output_of(c, output)
    named = flag(c, "hosts", hosts)
    # What is configured speaks for clusters that are not known here; one that is attached already is refreshed.
    if hosts is not None or (named and endpoints is None and not _is_known(flag(c, "cluster", cluster) or "lab")):
        _refuse_beside(named, endpoints=endpoints, cacert=cacert, cert=cert, key=key, purpose=purpose)
        _attach_hosts(named, flag(c, "cluster", cluster), out)
        return
    name = flag(c, "cluster", cluster) or "lab"
    tls = tls_of(*(flag(c, word, value) for word, value in (("cacert", cacert), ("cert", cert), ("key", key))))
    done = attach(flag(c, "endpoints", endpoints), name, tls=tls, purpose=flag(c, "purpose", purpose), progress=say)
    members = done.cluster.record.members
    reached = sum(bool(member.client_url) for member in members)
    what = "attached" if done.created else "was attached before, and is refreshed"
    say(f"{name} {what}: {reached} of {len(members)} members are reached, purpose {done.cluster.record.spec.purpose}")
    if out == "json":
        emit_json(done.cluster.status())
        return
    emit(_attached_text(done.cluster))


def _is_known(name: str) -> bool:
    from etcdops.state import Store

    return Store.find().exists(name)


def _refuse_beside(hosts: str, **others: str | None) -> None:
    from etcdops.errors import SpecError

    if given := [name for name, value in others.items() if value is not None]:
        raise SpecError(
            f"--hosts {hosts} takes up what etcdops made there, and --{given[0]} is for what somebody else made",
            remedy="Leave out one of the two.",
        )


def _attach_hosts(hosts: str, cluster: str, out: str) -> None:
    from etcdops.remote.attaching import attach_hosts
    from etcdops.remote.inventory import read_inventory

    done = attach_hosts(read_inventory(hosts), cluster, progress=say)
    say(f"{done.cluster.name} attached, as {done.by} kept it on {done.written} (version {done.serial})")
    if out == "json":
        emit_json(done.cluster.status())
        return
    emit(_attached_text(done.cluster))


def _attached_text(cluster: Cluster) -> str:
    import shlex

    record = cluster.record
    lines = [cluster.runtime.described(record, member) for member in record.members]
    lines += ["", f"export ETCDCTL_ENDPOINTS={','.join(cluster.endpoints)}"]
    if tls := record.spec.tls:
        named = (("CACERT", tls.ca), ("CERT", tls.client_cert), ("KEY", tls.client_key))
        lines.append("export " + " ".join(f"ETCDCTL_{word}={shlex.quote(path)}" for word, path in named if path))
    return "\n".join(lines)
