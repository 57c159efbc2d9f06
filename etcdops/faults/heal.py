"""Healing: bring a cluster back to what it should be, whatever happened to it.

It works from what should be (the member runs, and is not frozen), and from what is seen; the journal only explains.
So it heals after a success, a failure, Ctrl-C, and after etcdops itself was killed, and healing twice is healing once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from etcdops.errors import EtcdError, EtcdopsError, HealFailed
from etcdops.foreign import refuse_foreign
from etcdops.hosts import identify
from etcdops.interrupts import deferred
from etcdops.operations import pending
from etcdops.state import Unhealed

if TYPE_CHECKING:
    from etcdops.cluster import Cluster

__all__ = ["NO_FAULT", "dead", "describe", "forget_keys", "heal", "mark", "put_right"]

#: The mark of a run that has broken nothing at the moment, but has traffic and keys of its own.
NO_FAULT = "traffic"


def mark(cluster: Cluster, run: str, fault: str, member: str) -> None:
    """Record that a run of this process has `fault` in force, before it is applied."""
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    cluster.store.mark_unhealed(cluster.name, Unhealed(run, fault, member, identify(os.getpid()), since))


def dead(fault: Unhealed) -> bool:
    """Whether the process that applied this fault is gone, so that nobody but us will heal it."""
    pid = int(fault.owner.partition(":")[0] or 0)
    return identify(pid) != fault.owner


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
            if forget_keys(cluster, fault.run):
                cluster.store.clear_unhealed(cluster.name)
                done.append(f"run {fault.run} is closed: its keys are deleted")
            else:
                done.append(f"{cluster.name} is down: the keys of run {fault.run} go when `up-env` brings it up")
        return done


def put_right(cluster: Cluster, *, progress: Callable[[str], None] = lambda message: None) -> list[str]:
    """Resume every frozen member, start every one that should run, connect those cut off, and wait until they serve.

    The caller holds the cluster's lock. Gives what was done; raises HealFailed with what is still broken.
    """
    done = []
    with deferred():
        cluster.save(cluster.runtime.adopt(cluster.record))
        states = cluster.runtime.states(cluster.record)
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
                cluster.wait_serving(wanted, timeout_s=30.0)
        except EtcdopsError as error:
            raise HealFailed(
                f"cluster {cluster.name} could not be healed: {error}",
                remedy=f"{error.remedy} Then type `heal` again.".strip(),
            ) from error
    if lost:
        raise HealFailed(
            f"cluster {cluster.name} could not be healed: the data of {' and '.join(lost)} is gone",
            remedy=" ".join(f"`member.replace {name}` puts a new member in its place." for name in lost),
        )
    return done


def forget_keys(cluster: Cluster, run: str) -> bool:
    """Delete the keys that a run wrote; False if no member runs. Raises HealFailed when it cannot be done."""
    from etcdops import wire

    prefix = f"etcdops/{run}/".encode()
    states = cluster.runtime.states(cluster.record)
    running = [member for member in cluster.record.members if states[member.name] == "running"]
    if not running:
        return False
    with wire.Connection(running[0].client_url, cluster.record.spec.tls) as connection:
        try:
            connection.delete_range(prefix, wire.prefix_end(prefix), timeout_s=10.0)
        except EtcdError as error:
            raise HealFailed(
                f"cluster {cluster.name} serves again, but the keys of run {run} could not be deleted: {error}",
                remedy=f"Type `ctl -- del --prefix {prefix.decode()}`.",
            ) from error
    return True
