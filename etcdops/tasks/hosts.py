"""Tasks about remote Docker hosts: hosts.check; and about those of a cluster: hosts.list, hosts.add, hosts.remove."""

from __future__ import annotations

from typing import TYPE_CHECKING

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from etcdops.errors import SpecError
from etcdops.tasks.common import (
    HELP,
    attach,
    command,
    confirm,
    emit,
    emit_json,
    emit_table,
    flag,
    output_of,
    say,
    seconds,
    whole_number,
)

if TYPE_CHECKING:
    from etcdops.remote.checking import HostsReport

__all__ = ["HOSTS_HELP", "add", "check", "list_hosts", "remove"]

#: Help of the flag that names hosts.
HOSTS_HELP = "which hosts: an inventory file (hosts.toml), or names of ~/.ssh/config, separated by commas"

_UNFIT = 1

_HEADINGS = (
    "HOST",
    "ADDRESS",
    "REACHED",
    "LATENCY",
    "DOCKER",
    "COMPOSE",
    "FOR",
    "DISK FREE",
    "CLOCK",
    "PORTS",
    "IMAGE",
)


@task(
    help={
        "hosts": HOSTS_HELP,
        "image": "the image that has to be there (default: any of etcd)",
        "ports": "ports that have to be free there, separated by commas",
        "accept-new-host-keys": "record the keys of hosts of which nothing is known; a changed key is refused still",
        "timeout": "wait no longer for a host than so many seconds (default: 30)",
        "output": HELP["output"],
    }
)
@command
def check(
    c: Context,
    hosts: str | None = None,
    image: str | None = None,
    ports: str | None = None,
    output: str | None = None,
    accept_new_host_keys: bool = False,
    timeout: str | None = None,
) -> None:
    """Say whether hosts are fit for members, and reach each other: `hosts.check --hosts hosts.toml`; changes nothing.

    Looks at all of them at the same time: connection, Docker, Compose, image, disk, clock and ports; then each tries to
    connect to every other. Exits 1 when one is not fit; the others are shown all the same.
    """
    from etcdops.remote.checking import check_hosts

    out = output_of(c, output)
    wanted = flag(c, "hosts", hosts)
    if not wanted:
        raise SpecError(
            "hosts.check needs to know which hosts", remedy="Name them: --hosts hosts.toml, or --hosts h1,h2."
        )
    report = check_hosts(
        wanted,
        image=flag(c, "image", image),
        ports=_ports(flag(c, "ports", ports)),
        timeout_s=seconds(c, timeout, 30),
        accept_new_host_keys=accept_new_host_keys,
    )
    if out == "json":
        emit_json(report)
    else:
        _show(report)
    if report.verdict == "unfit":
        raise Exit(code=_UNFIT)


def _ports(text: str) -> tuple[int, ...]:
    ports = tuple(whole_number(each.strip(), "ports") for each in text.split(",")) if text else ()
    for port in ports:
        if not 1 <= port <= 65535:
            raise SpecError(f"--ports {port} is not offered: 1 to 65535 are")
    return ports


def _show(report: HostsReport) -> None:
    from etcdops.units import size_text

    rows = [_HEADINGS]
    for each in report.hosts:
        ports = "-" if each.ports_free is None else f"{each.ports_free} free"
        more = f" +{len(each.images) - 1}" if len(each.images) > 1 else ""
        rows.append(
            (
                each.name,
                each.address,
                "yes" if each.reachable else "NO",
                "-" if each.latency_ms is None else f"{each.latency_ms:.1f} ms",
                each.docker or "-",
                each.compose or "-",
                each.architecture or "-",
                "-" if each.disk_free_bytes is None else size_text(each.disk_free_bytes),
                _clock(each.clock_offset_ms, each.clock_error_ms),
                f"{','.join(map(str, each.ports_taken))} TAKEN" if each.ports_taken else ports,
                f"{each.images[0]}{more}" if each.images else "-",
            )
        )
    emit_table(rows)
    if len(report.hosts) > 1:
        emit("")
        emit_table(_matrix(report))
    if report.findings:
        emit("")
    for finding in report.findings:
        emit(str(finding))


def _clock(offset_ms: float | None, error_ms: float | None) -> str:
    if offset_ms is None or error_ms is None:
        return "-"
    if abs(offset_ms) <= error_ms:
        return f"within {error_ms:.0f} ms"
    return f"{offset_ms / 1000:+.1f} s" if abs(offset_ms) >= 1000 else f"{offset_ms:+.0f} ms"


def _matrix(report: HostsReport) -> list[tuple[str, ...]]:
    names = [each.name for each in report.hosts]
    links = {(link.source, link.target): link for link in report.peers}
    rows = [("FROM \\ TO", *names)]
    for source in names:
        cells = []
        for target in names:
            link = links.get((source, target))
            if link is None:
                cells.append("-" if source == target else "?")
            elif link.result == "reachable":
                cells.append("yes" if link.took_ms is None else f"{link.took_ms:.1f} ms")
            else:
                cells.append("NO" if link.result == "unreachable" else "?")
        rows.append((source, *cells))
    return rows


@task(name="list", help={"cluster": HELP["cluster"], "output": HELP["output"]})
@command
def list_hosts(c: Context, cluster: str | None = None, output: str | None = None) -> None:
    """Show the hosts of a cluster as they are recorded, with the members on each: hosts.list

    KEPT is what is left of members that were removed or replaced. No host is asked; hosts.check does that.
    """
    from etcdops.operations.hosts import uses

    out = output_of(c, output)
    found = uses(attach(c, cluster).record)
    if out == "json":
        emit_json({"schema": 1, "hosts": [use._asdict() for use in found]})
        return
    if not found:
        say("its members run on this machine")
        return
    rows = [(use.name, use.address, ", ".join(use.members) or "-", ", ".join(use.left) or "-") for use in found]
    emit_table([("HOST", "ADDRESS", "MEMBERS", "KEPT"), *rows])


@task(help={"hosts": HOSTS_HELP, "cluster": HELP["cluster"]})
@command
def add(c: Context, hosts: str | None = None, cluster: str | None = None) -> None:
    """Let members of a cluster be placed on more hosts: hosts.add --hosts hosts.toml

    Those of the inventory that the cluster does not have are looked at: reached, Docker, Compose, the image, and that
    they and the other hosts reach each other. Nothing runs on them before `member.add --host NAME`.
    """
    from etcdops.operations.hosts import add_hosts
    from etcdops.remote.inventory import read_inventory

    # Configured hosts are those of new clusters, and they are an inventory as well.
    named = flag(c, "hosts", hosts)
    if not named:
        raise SpecError("hosts.add needs hosts", remedy="Name them: --hosts hosts.toml, or --hosts h4.")
    target = attach(c, cluster)
    added = add_hosts(target, read_inventory(named).hosts, progress=say)
    if added:
        say(f"{target.name} has {' and '.join(added)} as well: `member.add --host {added[0]}` puts a member there")
    else:
        say(f"{target.name} has all of them already: nothing was changed")


@task(
    positional=["names"],
    help={
        "names": "which, separated by commas; none of them may have a member",
        "lost": "they do not come back: what is kept there is given up",
        "cluster": HELP["cluster"],
        "yes": HELP["yes"],
    },
)
@command
def remove(c: Context, names: str, cluster: str | None = None, lost: bool = False, yes: bool = False) -> None:
    """Forget hosts of a cluster that have no member any more: hosts.remove h2

    Refused (exit 3) while something is kept there of members that have left, unless the host is --lost for good.
    """
    from etcdops.operations.hosts import remove_hosts, uses

    target = attach(c, cluster)
    wanted = [name.strip() for name in flag(c, "names", names).split(",") if name.strip()]
    left = [f"{use.name}: {each}" for use in uses(target.record) if use.name in wanted for each in use.left]
    if lost and left:
        say(f"given up is {'; '.join(left)}")
        confirm("give that up?", yes=yes)
    remove_hosts(target, wanted, lost=lost, progress=say)
    say(f"{target.name} has {', '.join(use.name for use in uses(target.record))}")
