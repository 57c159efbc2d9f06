"""Where a run was made, how it is made again, and how each of its members stood at the end."""

from __future__ import annotations

import shlex
from typing import NamedTuple

from etcdops.report.disks import fsync_text, systems_text
from etcdops.report.excerpts import LogFacts
from etcdops.report.lanes import STATES, Segment
from etcdops.report.loading import LoadedRun, members_in
from etcdops.report.runinfo import RunInfo

__all__ = ["Standing", "command_typed", "reproduce", "standings", "surroundings"]

#: What is said where a run's folder has no record of something.
NOT_RECORDED = "not recorded"


class Standing(NamedTuple):
    """A member at the end of a run. `worse` counts its log's lines by level, from warnings on."""

    member: str
    id: str
    state: str
    away: str
    revision: str
    hash: str
    agrees: bool
    worse: str


def standings(run: LoadedRun, lanes: list[Segment], logs: LogFacts) -> list[Standing]:
    """Give how each member stood at the end of a run, as far as that was recorded."""
    last = {each.member: each for each in lanes}
    observed = [each for _, each in run.windows if each]
    hashes = observed[-1].hashes if observed else {}
    ids = {name: number for each in observed for name, number in each.ids.items()}
    known = [each.hash for each in hashes.values() if not each.error]
    common = max(set(known), key=known.count) if known else None
    found = []
    for member in run.members:
        segment, hashed = last.get(member), hashes.get(member)
        away = [
            f"{fault.kind}, {(fault.heal_ns - fault.inject_ns) / 1e9:.1f} s"
            for fault in run.faults
            if member in members_in(fault.member)
        ]
        bad = logs.bad.get(member, {})
        state = STATES[segment.state] if segment else NOT_RECORDED
        if segment and segment.detail and segment.state != "leads":
            state += f" {segment.detail}" if segment.state == "follows" else f" ({segment.detail})"
        if segment and segment.term:
            state += f", term {segment.term}"
        found.append(
            Standing(
                member,
                f"{ids[member]:x}" if member in ids else "-",
                state,
                "; ".join(away) or "-",
                f"{hashed.revision:,}" if hashed and not hashed.error else "-",
                (hashed.error or f"{hashed.hash:08x}") if hashed else "-",
                not hashed or (not hashed.error and hashed.hash == common),
                ", ".join(f"{count:,} {level}" for level, count in bad.items()) or "-",
            )
        )
    return found


def surroundings(run: LoadedRun, logs: LogFacts) -> list[tuple[str, str]]:
    """Give on what a run was made, as (what, which); what its folder has no record of is said to be so."""
    info = run.info
    started = next(iter(logs.started.values()), {})
    server = started.get("etcd-version", "")
    build = ", ".join(
        f"{name} {started[key]}" for name, key in (("git", "git-sha"), ("", "go-version")) if started.get(key)
    ).strip()
    slow = f"; etcd warned of a slow disk {logs.slow_fsyncs:,} times" if logs.slow_fsyncs else ""
    rows = [
        ("etcd", f"{server or info.etcd_version or NOT_RECORDED}{f' ({build})' if build else ''}"),
        ("its binary or image", info.binary),
        ("runtime", info.runtime),
        ("cluster", f"{info.cluster}: {len(info.members)} members ({', '.join(info.members)})" if info.members else ""),
        ("Raft's clocks", f"heartbeat {info.timing.heartbeat_ms} ms, election timeout {info.timing.election_ms} ms"),
        ("kernel", f"{info.kernel}{f', {info.cpus} processors' if info.cpus else ''}" if info.kernel else ""),
        ("file system", systems_text(run.disks)),
        ("fsync, 99th percentile", f"{fsync_text(run.disks) or NOT_RECORDED}{slow}"),
        ("Python", info.python),
        ("traffic", _traffic(info)),
        ("began", info.began),
        ("typed", command_typed(info)),
    ]
    rows += [(f"flags of {member}", facts["flags"]) for member, facts in logs.started.items() if facts.get("flags")]
    return [(what, which or NOT_RECORDED) for what, which in rows]


def _traffic(info: RunInfo) -> str:
    if not info.rate:
        return ""
    streams = f"{info.rate:,} operations/s on each stream"
    clients = f"{info.clients} clients of {info.client_rate}/s each ({info.profile}, {info.client_keys} keys)"
    return f"{streams}; {clients}; {info.baseline_s:g} s without a fault first"


def command_typed(info: RunInfo) -> str:
    """Give the command that the run was started with, "" where that was a program."""
    if not info.command:
        return ""
    program = info.command[0].rpartition("/")[2]
    return shlex.join([program, *info.command[1:]])


def reproduce(info: RunInfo) -> str:
    """Give the command that does a run again with its seed: on the cluster of that name, or on a new one like it.

    "" where too little of the run is known.
    """
    if not info.drill or not info.cluster:
        return ""
    words = ["etcdops", "drill.run", info.drill]
    for name, value in info.options.items():
        if value:
            words += [f"--{name.replace('_', '-')}", value]
    words += ["--cluster", info.cluster, "--runtime", info.runtime, "--size", str(len(info.members))]
    if info.etcd_version:
        words += ["--etcd-version", info.etcd_version]
    words += ["--rate", str(info.rate), "--profile", info.profile, "--clients", str(info.clients)]
    if info.clients:
        words += ["--client-rate", str(info.client_rate), "--client-keys", str(info.client_keys)]
    return shlex.join([*words, "--baseline", f"{info.baseline_s:g}", "--seed", str(info.seed)])
