"""Healing: bring a cluster back to what it should be, whatever happened to it.

It works from what should be (the member runs, and is not frozen), and from what is seen; the journal only explains.
So it heals after a success, a failure, Ctrl-C, and after etcdops itself was killed, and healing twice is healing once.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from etcdops.errors import EtcdError, EtcdopsError, HealFailed, MemberFailed, WaitTimeout
from etcdops.faults.membership import put_members_right
from etcdops.foreign import refuse_foreign
from etcdops.hosts import identify
from etcdops.interrupts import deferred
from etcdops.operations import pending
from etcdops.runtimes.base import CanSpread, looked
from etcdops.state import Unhealed

if TYPE_CHECKING:
    from etcdops.cluster import Cluster

__all__ = ["NO_FAULT", "dead", "describe", "forget_keys", "heal", "is_ours", "late_s", "mark", "put_right"]

#: The mark of a run that has broken nothing at the moment, but has traffic and keys of its own.
NO_FAULT = "traffic"

#: How long members may take to serve, seconds. Peers of one that was off its network for long have connections to it
#: that lead nowhere, and notice it by TCP's keep-alive: after up to 30 s, which was also measured.
_SERVE_S = 75.0

#: How soon is looked whether more keys of a run have come, and for how long they may, seconds.
_AGAIN_S = 0.2
_MORE_S = 15.0

#: How long after a fault was healed writes may still come that were under way, seconds: in a network, where TCP sends
#: again what was lost after 3.2 s, or an attempt to connect outlasts the time that nobody was there.
_LATE_S = 5.0

#: The same on loopback, where nothing is sent again: what a member was sent it finds when it goes on, and what others
#: had for one that ended is gone with their connections to it.
_LATE_ON_LOOPBACK_S = 1.0
_ON_LOOPBACK = ("process", "fake")

#: What drills call their runs, which is the second part of their keys.
_RUN = re.compile(rb"[0-9]{8}-[0-9]{6}-[a-z-]+-[0-9a-f]{4}")


def mark(cluster: Cluster, run: str, fault: str, member: str, *, snapshot: str = "") -> None:
    """Record that a run of this process has `fault` in force, before it is applied.

    `snapshot` is a file from which healing makes the members' data anew, should it be gone.
    """
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    cluster.store.mark_unhealed(cluster.name, Unhealed(run, fault, member, identify(os.getpid()), since, snapshot))


def dead(fault: Unhealed) -> bool:
    """Whether the process that applied this fault is gone, so that nobody but us will heal it."""
    pid = int(fault.owner.partition(":")[0] or 0)
    return identify(pid) != fault.owner


def is_ours(fault: Unhealed) -> bool:
    """Whether this process applied this fault."""
    return fault.owner == identify(os.getpid())


def describe(fault: Unhealed) -> str:
    """Say, for a person, what is in force and what to do about it."""
    of = f" of {fault.member}" if fault.member else ""
    what = f"run {fault.run} ({fault.fault}{of}, since {fault.since})"
    if dead(fault):
        return f"{what} died without healing: type `heal`; `up-env` and every drill heal first"
    return f"{what} is in progress"


def heal(cluster: Cluster, *, progress: Callable[[str], None] = lambda message: None) -> list[str]:
    """Undo what a dead run left on a cluster, and give what was done, for a person; an empty list if nothing was amiss.

    Waits for the cluster's lock first, so a run that is alive heals itself. Raises HealFailed with what is still
    broken.
    """
    refuse_foreign(cluster.record, f"heal of {cluster.name}")
    with cluster.locked(f"heal {cluster.name}", progress=progress):
        fault = cluster.store.unhealed(cluster.name)
        done = put_right(cluster, progress=progress)
        if fault is not None:
            progress(f"deleting the keys of run {fault.run}, until no more come")
            if forget_keys(cluster, fault.run):
                cluster.store.clear_unhealed(cluster.name)
                done.append(f"run {fault.run} is closed: its keys are deleted")
            else:
                done.append(f"{cluster.name} is down: the keys of run {fault.run} go when `up-env` brings it up")
        # Who has the lock on the hosts knows that nobody has a drill there: what drills have left is of the dead.
        for run in _runs_with_keys(cluster) if cluster.record.hosts else ():
            progress(f"deleting the keys of run {run}, until no more come")
            forget_keys(cluster, run)
            done.append(f"run {run} was another operator's, and ended without healing: its keys are deleted")
        return done


def put_right(cluster: Cluster, *, progress: Callable[[str], None] = lambda message: None) -> list[str]:
    """Resume every frozen member, start every one that should run, connect those cut off, and wait until they serve.

    Then what a run has done to who is a member is undone (see `etcdops.faults.membership`). The caller holds the
    cluster's lock. Gives what was done; raises HealFailed with what is still broken.
    """
    done: list[str] = []
    with deferred():
        cluster.save(cluster.runtime.adopt(cluster.record))
        fault = cluster.store.unhealed(cluster.name)
        if fault is not None and fault.snapshot:
            from etcdops.faults.data import put_data_right

            done += put_data_right(cluster, fault.snapshot, progress=progress)
        runtime = looked(cluster.runtime, cluster.record)
        states = runtime.states(cluster.record)
        for member in cluster.members:
            if states[member.name] == "paused":
                progress(f"letting {member.name} go on")
                member.resume()
                done.append(f"{member.name} was frozen and goes on")
        # The member that an unfinished operation is about is left to that operation.
        begun = pending.load(cluster)
        wanted = [
            m.name for m in cluster.members if m.record.wanted == "running" and not (begun and begun.target == m.name)
        ]
        unreached = [name for name in wanted if states[name] == "unknown"]
        wanted = [name for name in wanted if name not in unreached]
        stopped = [name for name in wanted if states[name] == "stopped"]
        lost = cluster.runtime.lost_data(cluster.record, stopped) if stopped and cluster.record.bootstrapped else ()
        wanted, stopped = ([name for name in names if name not in lost] for names in (wanted, stopped))
        try:
            if stopped:
                progress(f"starting {', '.join(stopped)}")
                cluster.start_members(stopped)
                done += [f"{name} was down and was started" for name in stopped]
            if wanted:
                done += [f"{name} {what}" for name, what in cluster.runtime.mend(cluster.record).items()]
            # With fewer than a quorum wanted, nobody can serve, and that is as it was asked for.
            if len(wanted) >= cluster.record.spec.quorum:
                cluster.wait_serving(wanted, timeout_s=_SERVE_S)
            if fault is not None and unreached:
                unreached = _await_timers(cluster, unreached, progress)
            done += put_members_right(cluster, progress=progress)
            done += _clear_left(cluster, progress)
        except HealFailed:
            raise
        except EtcdopsError as error:
            raise HealFailed(
                f"cluster {cluster.name} could not be healed: {error}",
                remedy=f"{error.remedy} Then type `heal` again.".strip(),
            ) from error
    if unreached:
        where = " and ".join(f"{name} on {cluster.record.member(name).host}" for name in unreached)
        raise HealFailed(
            f"cluster {cluster.name} could not be healed: {where} cannot be seen: no answer from there",
            remedy="Type `heal` again once it is back; if it is lost, "
            + ", ".join(f"`member.replace {name}`" for name in unreached)
            + " puts a new member on another.",
        )
    lost = cluster.runtime.lost_data(cluster.record, lost)
    if lost:
        raise HealFailed(
            f"cluster {cluster.name} could not be healed: the data of {' and '.join(lost)} is gone",
            remedy=" ".join(f"`member.replace {name}` puts a new member in its place." for name in lost),
        )
    return done


def late_s(cluster: Cluster) -> float:
    """Give how long after a fault was healed writes may still come that were under way, seconds."""
    return _LATE_ON_LOOPBACK_S if cluster.record.runtime in _ON_LOOPBACK else _LATE_S


def _await_timers(cluster: Cluster, names: Sequence[str], progress: Callable[[str], None]) -> list[str]:
    """Wait for members on hosts that do not answer us, as timers there undo what was done; give those still away."""
    progress(f"the host of {' and '.join(names)} does not answer: a timer there undoes what was done to it")
    try:
        cluster.wait_serving(names, timeout_s=_SERVE_S)
    except (MemberFailed, WaitTimeout):
        return list(names)
    return []


def _clear_left(cluster: Cluster, progress: Callable[[str], None]) -> list[str]:
    """Remove what members that have left ran in, on hosts that did not answer then, and tell which still do not."""
    record = cluster.record
    if not any(each.ref for each in record.retired) or not isinstance(cluster.runtime, CanSpread):
        return []
    now = cluster.runtime.clear_left(record)
    cluster.save(now)
    done = []
    for before, after in zip(record.retired, now.retired, strict=True):
        if before.ref and not after.ref:
            done.append(
                f"the container of {before.member} that was left on {before.host} was removed; its data is kept"
            )
        elif after.ref:
            progress(f"{after.host} does not answer: the container of {after.member} is left there still")
    return done


def _runs_with_keys(cluster: Cluster) -> list[str]:
    """Give the drills' runs of which there are keys; none where that cannot be asked."""
    from etcdops import wire

    states = cluster.runtime.states(cluster.record)
    endpoints = [member.client_url for member in cluster.record.members if states[member.name] == "running"]
    found: list[str] = []
    if not endpoints:
        return found
    first, end = b"etcdops/", wire.prefix_end(b"etcdops/")
    with wire.Connection(endpoints[0], cluster.record.spec.tls) as connection:
        try:
            while kvs := connection.range(first, end, limit=1, keys_only=True, timeout_s=10.0).kvs:
                run, slash, _ = kvs[0].key.removeprefix(b"etcdops/").partition(b"/")
                if slash and _RUN.fullmatch(run):
                    found.append(run.decode())
                first = wire.prefix_end(b"etcdops/" + run + b"/") if slash else kvs[0].key + b"\0"
        except EtcdError:
            # Without a quorum, or with authentication on: they stay until the next time.
            return []
    return found


def forget_keys(cluster: Cluster, run: str, *, quiet_s: float | None = None) -> bool:
    """Delete the keys that a run wrote, until none has come for `quiet_s` seconds; False if no member runs.

    For as long as they may come if that is None (`late_s`).

    What a frozen member was asked before it reads, and may apply, only when it goes on; and a member that lost its
    leader keeps what it was asked in the queue for it, which passes it on once it is back and they are connected again.
    Raises HealFailed when it cannot be done.
    """
    from etcdops import wire

    quiet_s = late_s(cluster) if quiet_s is None else quiet_s
    prefix = f"etcdops/{run}/".encode()
    states = cluster.runtime.states(cluster.record)
    running = [member for member in cluster.record.members if states[member.name] == "running"]
    if not running:
        return False
    with wire.Connection(running[0].client_url, cluster.record.spec.tls) as connection:
        try:
            last = time.monotonic()
            deadline = last + _MORE_S
            while True:
                deleted = connection.delete_range(prefix, wire.prefix_end(prefix), timeout_s=10.0).deleted
                now = time.monotonic()
                if deleted:
                    last = now
                elif now - last >= quiet_s:
                    break
                if now > deadline:
                    break
                time.sleep(_AGAIN_S)
        except EtcdError as error:
            raise HealFailed(
                f"cluster {cluster.name} serves again, but the keys of run {run} could not be deleted: {error}",
                remedy=f"Type `ctl -- del --prefix {prefix.decode()}`.",
            ) from error
    return True
