"""Exchanging the data of a whole cluster: stop, one write of the record, start; and the way back, by the same steps.

What was there is kept. Before the write the record as it was goes to `clusters/NAME/before/RUN.json`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from etcdops.errors import ClusterError, EtcdopsError, Refused, RuntimeUnavailable, StateError, WaitTimeout
from etcdops.operations.pending import Pending, now
from etcdops.operations.plan import Step
from etcdops.runtimes.base import CanRestore
from etcdops.state import ClusterRecord, Retired, replace_file

if TYPE_CHECKING:
    from etcdops.cluster import Cluster

__all__ = [
    "Before",
    "before_of",
    "by_hand_each",
    "exchanged",
    "last_before",
    "put_in_place",
    "read_before",
    "refuse_gone",
    "remember_before",
    "restorer",
    "settle",
    "start_all",
    "start_steps",
    "stop_steps",
]

#: How long members may take until a write is acknowledged, and how many bytes of database a second they read.
_START_S = 60.0
_SLOWEST = 5_000_000

_SETTLE_S = 30.0

#: Codes of findings that are no reason to wait.
_EXPECTED = ("operation-unfinished", "unhealed-run", "alarm-")


class Before(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record as it was before an operation exchanged it, and the token of the cluster that took its place.

    `revision` is the newest that was known of the cluster then.
    """

    run: str
    operation: str
    target: str
    since: str
    record: ClusterRecord
    token: str
    revision: int = 0


def restorer(cluster: Cluster) -> CanRestore:
    """Give the cluster's runtime, if it can make members' data; raise RuntimeUnavailable otherwise."""
    if not isinstance(cluster.runtime, CanRestore):
        raise RuntimeUnavailable(
            f"the runtime {cluster.runtime.name} cannot make members' data from a snapshot",
            remedy="Restore into a cluster of its own: `--cluster NEW --runtime process`.",
        )
    return cluster.runtime


# -- the record as it was


def _directory(cluster: Cluster) -> Path:
    return cluster.store.cluster_dir(cluster.name) / "before"


def remember_before(cluster: Cluster, before: Before) -> None:
    """Write down the record as it is, before it is exchanged."""
    directory = cluster.store.make_dir(_directory(cluster))
    replace_file(directory / f"{before.run}.json", msgspec.json.format(msgspec.json.encode(before), indent=2) + b"\n")


def read_before(cluster: Cluster, run: str) -> Before:
    """Give the record as it was before a run; raises StateError when it cannot be read."""
    return _read(_directory(cluster) / f"{run}.json")


def before_of(cluster: Cluster, pending: Pending) -> Before:
    """Give the record as it was before an operation that has not ended exchanged it, or as it is if it has not yet."""
    assert pending.record
    if cluster.record.token == pending.record.token:
        return read_before(cluster, pending.run)
    revision = int(pending.arguments.get("known_revision", "0"))
    return Before(
        pending.run,
        pending.operation,
        pending.target,
        pending.since,
        cluster.record,
        pending.record.token,
        revision,
    )


def last_before(cluster: Cluster) -> Before | None:
    """Give the record as it was before the cluster got the data that it has now; None if it never got other data."""
    found = [_read(path) for path in _directory(cluster).glob("*.json")]
    now_in_use = [each for each in found if each.token == cluster.record.token]
    return max(now_in_use, key=lambda each: (each.since, each.run), default=None)


def _read(path: Path) -> Before:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Before)
    except (OSError, msgspec.MsgspecError, EtcdopsError) as error:
        raise StateError(
            f"{path}, which says how the cluster was before, cannot be used: {error}",
            remedy="Restore it from a copy. The cluster itself is as `status` says.",
        ) from error


# -- the exchange


def exchanged(current: ClusterRecord, target: ClusterRecord, why: str, run: str) -> ClusterRecord:
    """Give the record with the members, the data and the token of `target`; what was in use before is retired."""
    places = {member.data.place for member in target.members}
    urls = {member.name: member.client_url for member in current.members}
    members = tuple(
        msgspec.structs.replace(each, client_url=urls.get(each.name, each.client_url), ref="", wanted="running")
        for each in target.members
    )
    at = now()
    retired = (
        *(each for each in current.retired if each.data.place not in places),
        *(Retired(m.name, m.data, why, run, at, m.host) for m in current.members if m.data.place not in places),
    )
    return msgspec.structs.replace(
        current,
        spec=msgspec.structs.replace(current.spec, members=target.spec.members),
        token=target.token,
        members=members,
        retired=retired,
        bootstrapped=True,
    )


def put_in_place(cluster: Cluster, target: ClusterRecord, why: str, run: str) -> None:
    """Have stopped members use the data of `target`: by one write of the record.

    Raises ClusterError when a member still runs.
    """
    running = [name for name, state in cluster.runtime.states(cluster.record).items() if state != "stopped"]
    if running:
        raise ClusterError(f"{', '.join(running)} of {cluster.name} should be stopped, and still runs")
    # First, so that nothing can start a member of the new record from old data.
    restorer(cluster).let_go(cluster.record)
    cluster.save(exchanged(cluster.record, target, why, run))


def start_all(cluster: Cluster, size: int, progress: Callable[[str], None]) -> None:
    """Start every member, and wait until each serves linearizable reads; `size` is that of the database, in bytes.

    Not for a write, as `Cluster.up` does: where the space quota is used up none is accepted. Raises MemberFailed for a
    member that dies, WaitTimeout for one that does not serve in time.
    """
    states = cluster.runtime.states(cluster.record)
    for name, state in states.items():
        if state == "paused":
            cluster.member(name).resume()
    if stopped := [name for name, state in states.items() if state == "stopped"]:
        progress(f"starting {', '.join(stopped)}")
        cluster.start_members(stopped)
    cluster.wait_serving(cluster.record.spec.names, timeout_s=_START_S + size / _SLOWEST)
    cluster.save(msgspec.structs.replace(cluster.record, bootstrapped=True))


def settle(cluster: Cluster) -> None:
    """Wait until the gate finds nothing that is wrong; raises WaitTimeout when it still does in the end."""
    deadline = time.monotonic() + _SETTLE_S
    while True:
        # Our own operation has not come to its end yet, nor the healing that it may be part of; and an alarm is in the
        # data, before and after.
        errors = [finding for finding in cluster.status().blockers if not finding.code.startswith(_EXPECTED)]
        if not errors:
            return
        if time.monotonic() > deadline:
            said = "; ".join(finding.message for finding in errors)
            raise WaitTimeout(f"{cluster.name} is not as it should be: {said}", remedy="Look at `status`.")
        time.sleep(0.1)


# -- what a plan says of it


def by_hand_each(commands: list[str]) -> str:
    """Give several commands as a plan shows them: one a line."""
    return "\n      $ ".join(commands)


def stop_steps(cluster: Cluster, undo: str) -> list[Step]:
    """Give the step that stops all members that run; none if none does."""
    record, runtime = cluster.record, cluster.runtime
    states = runtime.states(record)
    running = [member for member in record.members if states[member.name] != "stopped"]
    if not running:
        return []
    commands = by_hand_each([runtime.by_hand("stop", record, member) for member in running])
    return [Step("stop", "", "stop all members, followers first", commands, undo)]


def start_steps(cluster: Cluster, target: ClusterRecord, undo: str) -> list[Step]:
    """Give the step that starts all members from the data of `target`."""
    fresh = exchanged(cluster.record, target, "restored", "")
    commands = by_hand_each([cluster.runtime.by_hand("start", fresh, member) for member in fresh.members])
    return [Step("start", "", "start all members, and wait until each serves", commands, undo, waits=True)]


def refuse_gone(cluster: Cluster, target: ClusterRecord) -> None:
    """Raise Refused if data that members are to use again has been removed."""
    refs = [member.data for member in target.members]
    there = restorer(cluster).present_data(cluster.record, refs)
    gone = [ref.place for ref in refs if ref not in there]
    if gone:
        raise Refused(
            f"the data that {cluster.name} had before is no longer there: {', '.join(gone)}",
            remedy="Nothing was changed. `snapshot.list` shows what can be restored from.",
        )
