"""Restoring a whole cluster from one snapshot.

The data of every member is made beside that in use, and looked into, before anything stops. Then all members stop, one
write of the record gives them the new data, they start, and what they have is proved. If that fails, the same steps
lead back. The data that they had is kept. This is the order of etcd's own page on recovery
(https://etcd.io/docs/v3.5/op-guide/recovery/), with its destructive steps turned into ones that can be taken back.
"""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from etcdops import versions
from etcdops.errors import ClusterError, EtcdopsError, Refused, SnapshotError
from etcdops.facts import Facts, collect
from etcdops.foreign import refuse_foreign
from etcdops.operations.exchange import (
    before_of,
    by_hand_each,
    put_in_place,
    remember_before,
    restorer,
    start_all,
    start_steps,
    stop_steps,
)
from etcdops.operations.pending import Pending, begin, going_on, now, refuse_unfinished
from etcdops.operations.plan import Plan, Step, carry_out
from etcdops.quorum import excluded
from etcdops.runtimes.base import DataSeen, Restoration
from etcdops.snapshots.examining import Examined, bump_for, examine
from etcdops.snapshots.proving import Expected, prove
from etcdops.snapshots.taking_back import NEW, take_back
from etcdops.units import size_text
from etcdops.verify import Check

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.state import ClusterRecord

__all__ = ["OPERATION", "Restored", "begin_restore", "finish", "go_on", "plan_restore", "prepare", "restore_snapshot"]

OPERATION = "snapshot.restore"


Confirm = Callable[[Plan], None]
Progress = Callable[[str], None]


class Restored(msgspec.Struct, frozen=True):
    """A restore that was proved: what `snapshot.restore -o json` prints.

    `revision` is the snapshot's, `bump` by how much revisions were moved on (0: not at all). `lost_revisions` is how
    many there were after the snapshot's in the cluster that it took the place of, None where that is not known.
    """

    schema: int
    cluster: str
    snapshot: str
    revision: int
    bump: int
    lost_revisions: int | None
    run: str
    checks: tuple[Check, ...]


def restore_snapshot(
    cluster: Cluster,
    path: str | os.PathLike[str],
    *,
    bump: bool = True,
    allow_known_bad: bool = False,
    confirm: Confirm = lambda plan: None,
    progress: Progress = lambda text: None,
) -> Restored:
    """Give every member of a cluster the data of a snapshot, prove that they have it, and say what was proved.

    `bump` False leaves revisions where the snapshot has them. `confirm` is called with the plan before anything is
    touched, and raises ConfirmationNeeded to stop it. The same call goes on with a restore that was interrupted.

    Raises, before anything is touched, Refused for a file that is not sound or of another minor version, where there
    is no room, or another operation has not ended; RuntimeUnavailable for members in memory. When the new members do
    not start or the proof fails, the cluster is taken back to the data that it had, and ClusterError is raised, or
    PartlyChanged if it cannot be.
    """
    target = os.path.abspath(path)
    refuse_foreign(cluster.record, f"snapshot.restore into {cluster.name}")
    with cluster.locked(f"restore {cluster.name}", progress=progress):
        cluster.save(cluster.runtime.adopt(cluster.record))
        if refuse_unfinished(cluster, OPERATION, target):
            return go_on(cluster, target, progress)
        plan, pending, lost = _look(cluster, target, bump, allow_known_bad, progress)
        confirm(plan)
        return finish(cluster, begin_restore(cluster, pending, lost), plan, progress, shown=True)


def go_on(cluster: Cluster, target: str, progress: Progress, *, operation: str = OPERATION) -> Restored:
    """Take the steps that are left of a restore that was interrupted; the caller holds the lock.

    Raises Refused when another operation is under way, or the file is no longer the one that it was begun with.
    """
    cluster.save(cluster.runtime.adopt(cluster.record))
    pending = refuse_unfinished(cluster, operation, target)
    if pending is None:
        raise Refused(f"there is no {operation} of {target} to go on with")
    progress(f"going on with {pending.operation} of {pending.since} (run {pending.run})")
    _refuse_other(cluster, pending, progress)
    return finish(cluster, pending, _plan(cluster, pending, "", ()), progress)


def prepare(
    cluster: Cluster,
    path: str | os.PathLike[str],
    *,
    bump: bool = True,
    allow_known_bad: bool = False,
    progress: Progress = lambda text: None,
) -> Plan:
    """Make all checks that need no change, and give the plan; raises as `restore_snapshot` does."""
    refuse_foreign(cluster.record, f"snapshot.restore into {cluster.name}")
    cluster.save(cluster.runtime.adopt(cluster.record))
    target = os.path.abspath(path)
    pending = refuse_unfinished(cluster, OPERATION, target)
    return (
        _look(cluster, target, bump, allow_known_bad, progress)[0]
        if pending is None
        else _plan(cluster, pending, "", ())
    )


def _look(
    cluster: Cluster, target: str, bump: bool, allow_known_bad: bool, progress: Progress
) -> tuple[Plan, Pending, int | None]:
    record = cluster.record
    can = restorer(cluster)
    examined = examine(target, record.etcd_version, beside=record.binary, progress=progress)
    facts = collect(record, cluster.runtime)
    can.refuse_full(record, examined.size)
    return plan_restore(cluster, examined, facts, bump=bump, allow_known_bad=allow_known_bad)


def _refuse_known_bad(record: ClusterRecord, facts: Facts, examined: Examined, allow: bool) -> None:
    ruled_out = excluded(facts) - {"auth"} if examined.contents.auth else excluded(facts) | {"auth"}
    versions.refuse_known_bad(record.etcd_version, OPERATION, allow=allow, excluded=ruled_out)


def plan_restore(
    cluster: Cluster,
    examined: Examined,
    facts: Facts,
    *,
    bump: bool = True,
    allow_known_bad: bool = False,
    operation: str = OPERATION,
    known: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Plan, Pending, int | None]:
    """Give the plan, the operation as it will be written down, and how many revisions are lost. Changes nothing.

    `known` is what is written down besides. Raises Refused for a version of etcd that spoils it.
    """
    record = cluster.record
    _refuse_known_bad(record, facts, examined, allow_known_bad)
    revision, index = _last_known(cluster, facts)
    offered = versions.supports(record.etcd_version, "bump_revision")
    contents = examined.contents
    moved = bump_for(max(index, contents.raft_index), max(revision, contents.revision)) if bump and offered else 0
    new = record if NEW in known else _next_record(cluster, record)
    ids = [member.status.cluster_id for member in facts.members if member.status]
    arguments = {
        **known,
        **_known(examined, moved),
        "etcd_cluster_id": str(ids[0] if ids else 0),
        "ran": ",".join(member.name for member in facts.members if member.state != "stopped"),
        "known_revision": str(revision),
    }
    named = "" if cluster.name == "lab" else f" --cluster {cluster.name}"
    pending = Pending(
        operation,
        examined.path,
        "",
        now(),
        "",
        again=f"{operation} {shlex.quote(examined.path)}{named}",
        back=f"snapshot.rollback{named}",
        record=new,
        arguments=arguments,
    )
    lost = max(revision - contents.revision, 0) if revision and _same_cluster(examined, record) else None
    plan = _plan(cluster, pending, _consequence(cluster, examined, revision), _notes(record, examined, bump, moved))
    return plan, pending, lost


def _last_known(cluster: Cluster, facts: Facts) -> tuple[int, int]:
    """Give the newest revision and raft index that any member tells, or its data does if it is stopped."""
    statuses = [member.status for member in facts.members if member.status]
    stopped = [member.name for member in facts.members if member.state == "stopped"]
    seen = [
        each for each in restorer(cluster).look_into(cluster.record, stopped).values() if isinstance(each, DataSeen)
    ]
    revision = max((*(s.revision for s in statuses), *(each.revision for each in seen)), default=0)
    return revision, max((*(s.raft_index for s in statuses), *(each.raft_index for each in seen)), default=0)


def _next_record(cluster: Cluster, record: ClusterRecord) -> ClusterRecord:
    members = tuple(
        msgspec.structs.replace(each, data=cluster.runtime.next_data(record, each.name)) for each in record.members
    )
    # A token of its own, or members that were forgotten somewhere could join it.
    return msgspec.structs.replace(record, members=members, token=f"etcdops-{record.id}-{secrets.token_hex(4)}")


def _known(examined: Examined, bump: int) -> dict[str, str]:
    contents = examined.contents
    return {
        "sha256": examined.sha256,
        "trailer": examined.trailer,
        "size": str(examined.size),
        "revision": str(contents.revision),
        "last_revision": str(contents.last_revision),
        "auth": str(int(contents.auth)),
        "alarms": ",".join(contents.alarms),
        "bump": str(bump),
    }


def _same_cluster(examined: Examined, record: ClusterRecord) -> bool:
    return examined.manifest is None or examined.manifest.cluster_id == record.id


def _consequence(cluster: Cluster, examined: Examined, revision: int) -> str:
    name, at = cluster.name, examined.contents.revision
    manifest = examined.manifest
    if not _same_cluster(examined, cluster.record) and manifest:
        return f"all that {name} has is replaced by what cluster {manifest.cluster} had at revision {at}"
    if not revision:
        return (
            f"all that was written after revision {at} is lost; how much that is cannot be seen, as no member answers"
        )
    if revision <= at:
        return f"nothing later than revision {at} is known to be lost; clients are cut off until the members are back"
    return f"what was written after revision {at} is lost: {name} is at {revision}, {revision - at} revisions later"


def _notes(record: ClusterRecord, examined: Examined, bump: bool, moved: int) -> tuple[str, ...]:
    contents, manifest = examined.contents, examined.manifest
    of = f"cluster {manifest.cluster}, from {manifest.source}" if manifest else "it has no manifest"
    told = f"etcd {examined.version}" if examined.version else "an unknown version of etcd"
    told = f"{told}, {of}, sha256 {examined.sha256[:16]}…"
    said = [
        f"the snapshot: revision {contents.revision}, {_age(examined.age_s)} old, {size_text(examined.size)}, {told}",
        *(f"not checked: {each}" for each in examined.unchecked),
    ]
    if moved:
        said.append(f"revisions move on by {moved}, and those before are marked as compacted: watchers read anew")
    elif bump:
        said.append(
            f"etcd {record.etcd_version} cannot move revisions on: they go back, so restart clients that watch or cache"
        )
    else:
        said.append("revisions go back, as was asked for: restart clients that watch or cache")
    if contents.auth:
        said.append("authentication was on: the passwords of that time are needed, and keys cannot be compared")
    if contents.alarms:
        said.append(
            f"the snapshot has the alarm {', '.join(contents.alarms)}: nothing can be written before"
            " `cluster.heal-nospace`"
        )
    if any(member.learner for member in contents.members):
        said.append("the snapshot has learners; restored members are voters, all of them")
    if not versions.supports(record.etcd_version, "restore_trims_members"):
        said.append("etcd 3.4 leaves the members of before in the database: upgrade to 3.5.26 or later before 3.6")
    return (*said, "clients should stop writing: nothing that they write from now on is kept")


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _restoration(pending: Pending) -> Restoration:
    known = pending.arguments
    return Restoration(pending.target, known["sha256"], known["trailer"], int(known["size"]), int(known["bump"]))


def _plan(cluster: Cluster, pending: Pending, consequence: str, notes: tuple[str, ...]) -> Plan:
    """Give the steps that are still to be taken, as it looks now."""
    assert pending.record
    can, new = restorer(cluster), pending.record
    steps: list[Step] = []
    back = pending.back
    if _unmade(cluster, pending):
        places = ", ".join(member.data.place for member in new.members)
        steps.append(
            Step(
                "make",
                "",
                f"make the next data of every member, and look into it: {places}",
                by_hand_each(can.restore_by_hand(new, _restoration(pending))),
                "what was made is removed; nothing else has changed yet",
                waits=True,
            )
        )
    if cluster.record.token != new.token:
        steps += stop_steps(cluster, back)
        record = cluster.store.cluster_dir(cluster.name) / "cluster.json"
        text = "have the members use the new data, by one write of the record; the old data is kept"
        steps.append(Step("exchange", "", text, f"$EDITOR {shlex.quote(str(record))}  # token, data.place", back))
    steps += start_steps(cluster, new, back)
    look = f"etcdctl --endpoints={','.join(cluster.endpoints)} endpoint hashkv"
    steps.append(Step("prove", "", "prove that all members have the snapshot's data", look, back, waits=True))
    return Plan(pending.operation, cluster.name, os.path.basename(pending.target), tuple(steps), "", consequence, notes)


def _unmade(cluster: Cluster, pending: Pending) -> bool:
    """Whether the new data is still to be made: half of it may be there, and is made anew."""
    assert pending.record
    if cluster.record.token != pending.record.token:
        return True
    states = cluster.runtime.states(cluster.record).values()
    return NEW in pending.arguments and not cluster.record.bootstrapped and set(states) == {"stopped"}


def begin_restore(cluster: Cluster, pending: Pending, lost: int | None) -> Pending:
    """Write down that a restore begins, as it was planned; `lost` is how many revisions are lost by it."""
    assert pending.record
    known = {**pending.arguments, **({} if lost is None else {"lost": str(lost)})}
    return begin(
        cluster,
        pending.operation,
        pending.target,
        again=pending.again,
        back=pending.back,
        record=pending.record,
        arguments=known,
    )


def _refuse_other(cluster: Cluster, pending: Pending, progress: Progress) -> None:
    """Refuse to go on with another file than the one that was begun with, as long as it is needed."""
    if not _unmade(cluster, pending):
        return
    examined = examine(pending.target, cluster.record.etcd_version, beside=cluster.record.binary, progress=progress)
    if examined.sha256 != pending.arguments["sha256"]:
        raise Refused(
            f"{pending.target} is not the file that the restore was begun with: its SHA-256 is another",
            remedy=f"Put that one back; or `{pending.back}` takes the restore back.",
        )


def finish(cluster: Cluster, pending: Pending, plan: Plan, progress: Progress, *, shown: bool = False) -> Restored:
    """Take the steps that are left of a restore that was begun; take it back when one of them fails.

    `shown` says that the plan has been shown already, with its commands.
    """
    checks: list[Check] = []
    known = pending.arguments

    def proof(step: Step) -> None:
        checks.extend(prove(cluster, _expected(pending), pending.run, progress=progress))

    acts: Mapping[str, Callable[[Step], None]] = {
        "make": lambda step: _make(cluster, pending, progress),
        "stop": lambda step: _void(cluster.down_locked()),
        "exchange": lambda step: _exchange(cluster, pending),
        "start": lambda step: start_all(cluster, int(known["size"]), progress),
        "prove": proof,
    }
    with going_on(cluster, pending, progress):
        try:
            carry_out(cluster, plan, acts, progress, run=pending.run, commands=not shown)
        except KeyboardInterrupt:
            if _is_untouched(cluster, pending):
                take_back(cluster, pending, progress)
                progress("nothing was changed")
            raise
        except EtcdopsError as error:
            progress(f"{error}")
            take_back(cluster, pending, progress)
            now_is = "there is no cluster of that name" if NEW in known else f"{cluster.name} is as it was before"
            raise ClusterError(f"{pending} did not succeed, and {now_is}: {error}", remedy=error.remedy) from error
    return Restored(
        schema=1,
        cluster=cluster.name,
        snapshot=pending.target,
        revision=int(known["revision"]),
        bump=int(known["bump"]),
        lost_revisions=int(known["lost"]) if "lost" in known else None,
        run=pending.run,
        checks=tuple(checks),
    )


def _is_untouched(cluster: Cluster, pending: Pending) -> bool:
    """Whether data was being made at the most: all that ran when the restore began still runs from its old data."""
    assert pending.record
    if NEW in pending.arguments or cluster.record.token == pending.record.token:
        return False
    states = cluster.runtime.states(cluster.record)
    return all(states.get(name) != "stopped" for name in pending.arguments["ran"].split(",") if name)


def _void(value: object) -> None:
    """Give nothing."""


def _expected(pending: Pending) -> Expected:
    known = pending.arguments
    revision, bump = int(known["revision"]), int(known["bump"])
    return Expected(
        revision=revision + bump,
        compacted=revision if bump else 0,
        auth=known["auth"] == "1",
        alarms=tuple(kind for kind in known["alarms"].split(",") if kind),
        not_cluster_id=int(known["etcd_cluster_id"]),
        size=int(known["size"]),
    )


def _make(cluster: Cluster, pending: Pending, progress: Progress) -> None:
    """Make the data of every member, and see that all of it is what it should be."""
    assert pending.record
    can, new, known = restorer(cluster), pending.record, pending.arguments
    in_use = {member.data.place for member in cluster.record.members}
    assert NEW in known or in_use.isdisjoint(member.data.place for member in new.members)
    can.restore_data(new, _restoration(pending), progress=progress)
    seen = can.look_into(new, new.spec.names)
    wanted = int(known["last_revision"]) + int(known["bump"])
    wrong = []
    for name, data in seen.items():
        if isinstance(data, str):
            wrong.append(data)
        elif data.revision != wanted:
            wrong.append(f"the data of {name} is at revision {data.revision}, and should be at {wanted}")
        elif data.members is not None and not set(new.spec.names) <= set(data.members):
            wrong.append(f"the data of {name} knows of {', '.join(data.members)}")
    if wrong:
        raise SnapshotError(f"what was made is not what it should be: {'; '.join(wrong)}")
    progress(f"the data of {len(seen)} members is made, and all of it is at revision {wanted}")


def _exchange(cluster: Cluster, pending: Pending) -> None:
    """Have the members use the new data, once it is written down which they had."""
    assert pending.record
    remember_before(cluster, before_of(cluster, pending))
    put_in_place(cluster, pending.record, "restored", pending.run)
