"""Tasks about the environment: up-env, down-env, status, ctl, logs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from etcdops.foreign import is_foreign
from etcdops.tasks.common import (
    HELP,
    attach,
    colour,
    command,
    confirm,
    emit,
    flag,
    is_offline,
    is_yes,
    json_text,
    output_of,
    say,
    seconds,
    warn_unhealed,
    whole_number,
)

if TYPE_CHECKING:
    from etcdops.cluster import Cluster, Progress, Started
    from etcdops.runtimes.base import Runtime
    from etcdops.spec import ClusterSpec
    from etcdops.status import ClusterStatus

__all__ = ["FIXED", "ctl", "down_env", "ensure_up", "logs", "start_as_configured", "status", "up_env"]


def _help(*names: str, **own: str) -> dict[str, str]:
    return {**{name: HELP[name] for name in names}, **{key.replace("_", "-"): text for key, text in own.items()}}


@task(
    help=_help(
        "cluster",
        "runtime",
        "hosts",
        "size",
        "etcd-version",
        "etcd-bin",
        "image",
        "tls",
        "offline",
        "output",
        insecure="on other hosts: no TLS, so that whoever reaches them can read and change everything",
        quota="how large a member's database may become, such as 512MiB (fixed when created; default: etcd's, 2GiB)",
        port="first of the ports that members take (default: free ones are chosen)",
        timeout="how many seconds the members may take to acknowledge a write (default: 60)",
    )
)
@command
def up_env(
    c: Context,
    cluster: str | None = None,
    runtime: str | None = None,
    hosts: str | None = None,
    size: str | None = None,
    etcd_version: str | None = None,
    etcd_bin: str | None = None,
    image: str | None = None,
    port: str | None = None,
    quota: str | None = None,
    output: str | None = None,
    timeout: str | None = None,
    offline: bool = False,
    tls: bool = False,
    insecure: bool = False,
) -> None:
    """Create the cluster if needed, start every member, and wait until a write is acknowledged.

    Again on a running cluster it changes nothing; with stopped or frozen members it brings those back. What a dead
    run of a drill left is healed first. Example: up-env --size 5 --cluster five
    """
    out = output_of(c, output)
    name = flag(c, "cluster", cluster) or "lab"
    fixed = {
        "runtime": runtime,
        "hosts": hosts,
        "size": size,
        "port": port,
        "etcd_version": etcd_version,
        "etcd_bin": etcd_bin,
        "image": image,
        "quota": quota,
        "tls": "yes" if tls else None,
        "insecure": "yes" if insecure else None,
    }
    timeout_s = seconds(c, timeout, 60)
    warn_unhealed(name)
    started = ensure_up(c, name, fixed, offline=offline, timeout_s=timeout_s, progress=say)
    up = started.cluster
    if started.created:
        say(f"{name} is up: created and started {', '.join(started.started)} (etcd {up.record.etcd_version})")
    elif started.started:
        say(f"{name} is up: brought back {', '.join(started.started)}")
    else:
        say(f"{name} was up already: nothing was changed")
    _warn_about(up)
    _show_engine(up)
    emit(json_text(up.status()) if out == "json" else _up_text(up))


def start_as_configured(c: Context | None, name: str, *, progress: Progress) -> None:
    """Bring a cluster up as `up-env` without flags would; `c` is None where there is no configuration file."""
    if c is None:
        from invoke.config import Config

        from etcdops.tasks import namespace

        c = Context(Config(defaults=namespace.configuration()))
        c.config.load_shell_env()
    ensure_up(c, name, dict.fromkeys(FIXED), offline=False, timeout_s=seconds(c, None, 60), progress=progress)


#: Flags about what is fixed when a cluster is created.
FIXED = ("runtime", "hosts", "size", "etcd_version", "etcd_bin", "image", "port", "quota", "tls", "insecure")


def ensure_up(
    c: Context,
    name: str,
    fixed: dict[str, str | None],
    *,
    offline: bool,
    timeout_s: float,
    progress: Progress,
    check: Callable[[Runtime], None] = lambda runtime: None,
) -> Started:
    """Bring a cluster up, creating it if needed, with what is given in flags, or else configured.

    `check` is called with the runtime of a cluster that is to be created, and may refuse.
    """
    from etcdops.cluster import Cluster

    wish = wish_for(c, name, fixed, offline=offline, progress=progress, check=check)
    return Cluster.ensure_up(
        wish.spec,
        runtime=wish.runtime,
        size=wish.size,
        tls=wish.tls,
        offline=wish.offline,
        timeout_s=timeout_s,
        progress=progress,
    )


class Wish(NamedTuple):
    """What is asked for of a cluster, by flags or configuration; "" and 0 for what is not."""

    spec: ClusterSpec
    runtime: Runtime | str
    size: int
    offline: bool
    exists: bool
    tls: bool = False


def wish_for(
    c: Context,
    name: str,
    fixed: dict[str, str | None],
    *,
    offline: bool,
    progress: Progress,
    check: Callable[[Runtime], None] = lambda runtime: None,
) -> Wish:
    """Give what is asked for of a cluster that exists, or that is to be created; see `ensure_up`."""
    from etcdops import runtimes
    from etcdops.errors import ClusterNotFound
    from etcdops.spec import ClusterSpec, parse_size
    from etcdops.state import Store
    from etcdops.units import parse_bytes

    # What is fixed at creation is compared with what an existing cluster has; there, only a flag is a wish. The
    # configuration speaks for clusters that are yet to be created.
    configured = {key: flag(c, key, fixed.get(key)) for key in FIXED}
    wish, exists = configured, True
    try:
        Store.find().load(name)
        wish = {key: configured[key] if fixed.get(key) is not None else "" for key in FIXED}
    except ClusterNotFound:
        exists = False
    spec = ClusterSpec.of_size(
        name,
        parse_size(wish["size"] or "3"),
        base_port=whole_number(wish["port"] or "0", "port"),
        etcd_version=wish["etcd_version"],
        etcd_bin=wish["etcd_bin"],
        image=wish["image"],
        quota_bytes=parse_bytes(wish["quota"], "quota") if wish["quota"] else 0,
    )
    offline = is_offline(c, offline)
    kind: Runtime | str = wish["runtime"]
    if wish["hosts"]:
        kind = _on_hosts(wish["runtime"], wish["hosts"])
        check(kind)
    elif not exists:
        kind, reason = runtimes.choose(wish["runtime"], spec, offline=offline, progress=progress)
        if reason:
            progress(reason)
        check(runtimes.get(kind))
    size = parse_size(wish["size"]) if wish["size"] else 0
    # What listens on other machines is open to who reaches them.
    tls = is_yes(wish["tls"]) or (not exists and bool(wish["hosts"]) and not is_yes(wish["insecure"]))
    return Wish(spec, kind, size, offline, exists, tls)


def _on_hosts(runtime: str, hosts: str) -> Runtime:
    from etcdops.errors import SpecError
    from etcdops.remote.inventory import read_inventory
    from etcdops.runtimes.remote import RemoteRuntime

    if runtime not in ("", "auto", RemoteRuntime.name):
        raise SpecError(
            f"--hosts {hosts} means members on those hosts, and the runtime {runtime} runs them on this machine",
            remedy="Leave out one of the two.",
        )
    return RemoteRuntime(read_inventory(hosts).hosts)


def _warn_about(cluster: Cluster) -> None:
    from etcdops import versions
    from etcdops.status import even_size

    count, version = len(cluster.record.members), cluster.record.etcd_version
    if count % 2 == 0:
        sys.stderr.write(f"warning even-size: {even_size(count)}\n")
    if version and versions.is_unsafe(versions.parse_version(version)):
        worst = next(b for b in versions.findings(versions.parse_version(version)) if b.severity == "unsafe")
        sys.stderr.write(
            f"warning known-bad: etcd {version}: {worst.effect} ({worst.source}); fine for a lab."
            " `etcd.fetch` gets a current one for clusters created from then on\n"
        )


def _show_engine(cluster: Cluster) -> None:
    engine = cluster.record.engine
    if not engine:
        return
    say(f"Docker engine: {engine}")
    from etcdops.docker.engine import Engine

    if elsewhere := Engine().elsewhere(engine):
        sys.stderr.write(f"warning engine: the environment leads to {elsewhere}; {cluster.name} stays on {engine}\n")


def _up_text(cluster: Cluster) -> str:
    record = cluster.record
    width = max(len(member.name) for member in record.members)
    lines = [f"{m.name:<{width}}  {m.client_url}  {cluster.runtime.described(record, m)}" for m in record.members]
    first = record.members[0].client_url
    tls = record.spec.tls
    lines += ["", f"export ETCDCTL_ENDPOINTS={','.join(cluster.endpoints)}"]
    certificates = ""
    if tls:
        ca, cert, key = (shlex.quote(path) for path in (tls.ca, tls.client_cert, tls.client_key))
        lines.append(f"export ETCDCTL_CACERT={ca} ETCDCTL_CERT={cert} ETCDCTL_KEY={key}")
        certificates = f"--cacert {ca} --cert {cert} --key {key} "
    # The JSON API takes keys and values in base64: these are "hello" and "world".
    body = '{"key": "aGVsbG8=", "value": "d29ybGQ="}'
    lines.append(f"curl -s {certificates}-X POST {first}/v3/kv/put -d '{body}'")
    return "\n".join(lines)


@task(
    help=_help(
        "cluster",
        "yes",
        purge="also delete the cluster with its data, after naming what goes and asking",
        lost="with --purge: hosts that are lost for good, separated by commas: what is on them is given up",
        timeout="how many seconds a member may take to end before it is killed (default: 30)",
    )
)
@command
def down_env(
    c: Context,
    cluster: str | None = None,
    timeout: str | None = None,
    lost: str | None = None,
    purge: bool = False,
    yes: bool = False,
) -> None:
    """Stop every member and keep the data; up-env finds it again.

    With --purge, delete the cluster and its data as well: what goes is named, and asked about unless --yes is given.
    Where one of several hosts does not answer, it exits 7, and what is there stays on record until it is removed.
    """
    timeout_s = seconds(c, timeout, 30)
    given_up = [name.strip() for name in flag(c, "lost", lost).split(",") if name.strip()]
    if given_up and not purge:
        from etcdops.errors import SpecError

        raise SpecError("--lost is about --purge", remedy="Without --purge nothing is removed from any host.")
    down = attach(c, cluster)
    if purge and is_foreign(down.record):
        confirm(f"Forget {down.name}? Its members and their data are not touched.", yes=yes)
        down.purge(progress=say)
        say(f"{down.name} is forgotten; its members were not touched, and `cluster.attach` records them again")
        return
    if purge:
        sys.stderr.write("This deletes:\n" + "".join(f"  {line}\n" for line in down.contents()))
        confirm(f"Delete cluster {down.name} with all its data?", yes=yes)
        down.purge(lost=given_up, progress=say)
        say(f"{down.name} is gone")
        return
    stopped = down.down(timeout_s=timeout_s, progress=say)
    if stopped:
        say(f"stopped {', '.join(stopped)}; the data is kept, and `up-env` finds it again")
    else:
        say(f"{down.name} was down already: nothing was changed")


@task(
    help=_help(
        "cluster",
        "output",
        watch="look again every so many seconds, until Ctrl-C (default with a bare --watch: 2)",
        gate="look twice, and say whether a change to the cluster would be let through",
    ),
    optional=["watch"],
)
@command
def status(
    c: Context, cluster: str | None = None, output: str | None = None, watch: str | None = None, gate: bool = False
) -> None:
    """Show what every member says, now: one verdict line, one table, and findings with codes.

    Asks every member at once and is back within two seconds, frozen members or not. Never writes. Exit codes: 0 every
    voter serves, 4 degraded but serving, 5 no quorum. With --gate it looks again a second later, which shows members
    that do not catch up, and exits 0 if there is no error, 3 if there is one, 5 without a quorum.
    """
    out = output_of(c, output)
    every_s = _period(watch) if watch is not None else 0.0
    if gate and every_s:
        from etcdops.errors import SpecError

        raise SpecError("--gate is one answer, and --watch goes on", remedy="Leave one of them out.")
    seen = attach(c, cluster, warn=False)
    if gate:
        _gate(seen, out)
    if not every_s:
        now = seen.status(hosts=True)
        emit(_status(now, out))
        if now.exit_code:
            raise Exit(code=now.exit_code)
        return
    _watch(seen, out, every_s)


def _gate(cluster: Cluster, out: str) -> None:
    """Show the whole gate, and end with the code that tells whether it is open."""
    now = cluster.status(gate=True)
    shown = _status(now, out)
    count = len(now.blockers)
    if out == "table":
        shown += f"\ngate: closed: {count} error{'s' * (count > 1)}" if count else "\ngate: open"
    emit(shown)
    raise Exit(code=5 if now.exit_code == 5 else 3 if count else 0)


def _period(watch: str | bool) -> float:
    from etcdops.errors import SpecError

    try:
        period_s = 2.0 if watch is True else float(watch)
    except ValueError:
        raise SpecError(f"--watch {watch!r} is not a number of seconds", remedy="Give 2, or nothing.") from None
    if not 0.1 <= period_s <= 3600:
        raise SpecError(f"--watch {period_s:g} is not offered: 0.1 to 3600 seconds are")
    return period_s


def _watch(cluster: Cluster, out: str, every_s: float) -> None:
    import time

    while True:
        text = _status(cluster.status(), out)
        # Clears the screen only where there is one; elsewhere one status follows the other.
        emit(f"\x1b[H\x1b[2J{text}" if sys.stdout.isatty() else text)
        time.sleep(every_s)


def _status(now: ClusterStatus, out: str) -> str:
    if out == "json":
        return json_text(now)
    from shutil import get_terminal_size

    from etcdops.report.terminal import status_text

    width = max(get_terminal_size((160, 24)).columns, 120)
    return status_text(now, width=width, colour=colour())


@task(help=_help("cluster"))
@command
def ctl(c: Context, cluster: str | None = None) -> None:
    """Run etcdctl with the cluster's endpoints: ctl -- member list -w table

    Everything after `--` is etcdctl's: arguments, stdin, stdout, stderr, signals and the exit code pass untouched.
    Your own --endpoints wins.
    """
    from etcdops.cli import hand_over

    raise Exit(code=hand_over(flag(c, "cluster", cluster) or "lab", sys.argv, c))


@task(
    help=_help(
        "cluster",
        "member",
        follow="go on as the members write, until Ctrl-C",
        since="only from then on: 90s, 10m, 2h, or 2026-01-31T12:00:00Z",
    )
)
@command
def logs(
    c: Context, cluster: str | None = None, member: str | None = None, since: str | None = None, follow: bool = False
) -> None:
    """Show the members' logs, merged by time, each line with its member's name."""
    from etcdops.logs import follow as following
    from etcdops.logs import merged, parse_since

    start = None if since is None else parse_since(since)
    seen = attach(c, cluster)
    asked = seen.record.spec.names if member is None else flag(c, "member", member).split(",")
    names = list(dict.fromkeys(name.strip() for name in asked))
    records = [seen.member(name).record for name in names]
    lines = (following if follow else merged)(seen.runtime, records, since=start)
    width = max(map(len, names))
    for line in lines:
        sys.stdout.write(f"{line.member:<{width}} | {line.text}\n")
        if follow:
            sys.stdout.flush()
    sys.stdout.flush()
