"""Recovering a cluster whose quorum is lost for good: from the survivor that is furthest, all members are made anew.

etcd's own `--force-new-cluster` is not used: it keeps the old cluster's revisions and, before 3.5.25 and 3.6.6, left
members and learners behind (etcd#20339, etcd#20896); members of before that still live somewhere would bring it down;
and it changes the only data that there is, where this restores a copy and keeps what was there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from etcdops import quorum
from etcdops.errors import EtcdError, MemberFailed, Refused, SpecError
from etcdops.facts import Facts, collect
from etcdops.foreign import refuse_foreign
from etcdops.operations.exchange import restorer
from etcdops.operations.pending import Pending, load, refuse_unfinished
from etcdops.operations.plan import Plan, Step
from etcdops.runtimes.base import DataSeen
from etcdops.snapshots.examining import examine
from etcdops.snapshots.raw import copy_raw
from etcdops.snapshots.restoring import Restored, begin_restore, finish, go_on, plan_restore
from etcdops.snapshots.saving import save_snapshot
from etcdops.snapshots.taking_back import start_survivors

if TYPE_CHECKING:
    from etcdops.cluster import Cluster

__all__ = ["OPERATION", "Survey", "Voter", "may_be_lost", "prepare_recover", "recover", "survey"]

OPERATION = "cluster.recover"

Confirm = Callable[[Plan], None]
Progress = Callable[[str], None]

#: How long a survivor may take to apply what its log holds, once it is started, and to end.
_START_S = 60.0

#: What a member logs when it has waited for a leader in vain.
_ELECTION = b"starting a new election"


class Voter(NamedTuple):
    """A voter of a cluster without a quorum, as far as it can be seen.

    `kind` is "answers"; "returns" (it is stopped, frozen, cut off or silent, and its data is there as far as is known);
    "replayed" (it was started for its log to be applied, and has ended); "database" (it is given up, and its database
    can be read); or "lost". `how` says so after its name. `revision` and
    `applied` (a raft index) are how far it is, -1 where that is not known.
    """

    name: str
    kind: str
    how: str
    revision: int = -1
    applied: int = -1
    term: int = -1


class Survey(NamedTuple):
    """What there is of a cluster's voters."""

    voters: tuple[Voter, ...]

    @property
    def needed(self) -> int:
        """How many make a quorum."""
        return len(self.voters) // 2 + 1

    def of(self, *kinds: str) -> tuple[Voter, ...]:
        """Give those of these kinds."""
        return tuple(voter for voter in self.voters if voter.kind in kinds)

    @property
    def best(self) -> Voter | None:
        """The one that is furthest, of those from which a snapshot can be had; one that answers rather than a file."""
        able = self.of("answers", "returns", "replayed", "database")
        return max(able, key=lambda each: (each.revision, each.kind == "answers", each.applied), default=None)


def survey(cluster: Cluster, facts: Facts, lost: Sequence[str], replayed: Sequence[str] = ()) -> Survey:
    """Look at every voter; `lost` are those that are given up, though something may be there of them.

    `replayed` are those that were started for their logs to be applied, and have ended.
    """
    known = {member.name: member for member in facts.members}
    names = [name for name in quorum.voters(facts) if name in known]
    stopped = [name for name in names if known[name].state == "stopped"]
    data = restorer(cluster).look_into(cluster.record, stopped)
    seen = []
    for name in names:
        status, what = known[name].status, data.get(name)
        if status is not None and name not in lost:
            far = (status.revision, status.raft_applied_index, status.raft_term)
            seen.append(Voter(name, "answers", f"answers, and has applied revision {far[0]}", *far))
        elif isinstance(what, DataSeen):
            kind, how = "returns", f"is stopped, and its database is at revision {what.revision} or later"
            if name in replayed:
                kind, how = (
                    "replayed",
                    f"has applied all that its log says is committed, up to revision {what.revision}",
                )
            elif name in lost:
                kind, how = "database", f"is given up, and its database is at revision {what.revision} or later"
            seen.append(Voter(name, kind, how, what.revision, what.raft_index, what.raft_term))
        elif name in lost or what is not None:
            seen.append(Voter(name, "lost", f"is lost{f': {what}' if what else ''}"))
        else:
            seen.append(Voter(name, "returns", quorum.why_not_up(facts, name)))
    return Survey(tuple(seen))


def may_be_lost(found: Survey, source: Voter, revision: int) -> str:
    """Say exactly what may be lost when a cluster is made anew from one voter's data at a revision.

    A write is acknowledged once it is in the logs of a quorum, and applied by a member once it has heard so.
    """
    count, needed = len(found.voters), found.needed
    gone = [voter.name for voter in found.of("lost")]
    there = count - len(gone)
    said = [f"{voter.name} {voter.how}" for voter in found.voters]
    lines = [
        f"{count} voters, quorum {needed}: {'; '.join(said)}",
        f"all members are made anew from {source.name}, at revision {revision}"
        + (f" (applied index {source.applied}, term {source.term})" if source.applied > 0 else ""),
    ]
    if len(gone) >= needed:
        lines.append(
            f"every acknowledged write was in the logs of {needed} of {count}, and {_enumerate(gone)} are as many:"
            f" writes acknowledged after revision {revision} may be lost, and nothing here can tell how many there were"
        )
    else:
        lines.append(
            f"every acknowledged write was in the logs of {needed} of {count}, so at least one of the {there} that are"
            f" still there has it in its log; but {source.name} may not have applied the last of them: writes"
            f" acknowledged after revision {revision} may be lost"
        )
    if source.kind == "replayed":
        lines.append(f"what the log of {source.name} holds, and it never heard to be committed, is lost")
    elif source.kind != "answers":
        lines.append(
            f"{source.name} does not run, so only its database is taken: what it had in its write-ahead log alone, the"
            " writes of its last moments, is lost"
        )
    ahead = [voter.name for voter in found.voters if voter.revision > revision]
    if ahead:
        lines.append(f"{_enumerate(ahead)} had been seen further: that is lost for certain")
    return ". ".join(lines)


def _enumerate(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def recover(
    cluster: Cluster,
    *,
    lost: Sequence[str] = (),
    bump: bool = True,
    allow_known_bad: bool = False,
    confirm: Confirm = lambda plan: None,
    progress: Progress = lambda text: None,
) -> Restored:
    """Make all members of a cluster without a quorum anew from the survivor that is furthest, and say what was proved.

    Survivors that do not answer are started first, and stopped again: a member applies what its log says is committed,
    and then its database is further. `lost` names members that are given up, though their data can be read. A snapshot
    is saved, also if it is not gone on with. `confirm` is called with the plan, whose consequence says what may be
    lost. The data that members had is kept.

    Raises Refused where there is a quorum, or one can be brought back, or nothing is left to recover from; otherwise as
    `restore_snapshot`. The same call goes on with a recovery that was interrupted.
    """
    refuse_foreign(cluster.record, f"cluster.recover of {cluster.name}")
    with cluster.locked(f"recover {cluster.name}", progress=progress):
        cluster.save(cluster.runtime.adopt(cluster.record))
        begun = load(cluster)
        if begun is not None and begun.operation == OPERATION:
            return go_on(cluster, begun.target, progress, operation=OPERATION)
        refuse_unfinished(cluster, OPERATION)
        found = _survey(cluster, lost)
        states = cluster.runtime.states(cluster.record)
        ran = [name for name, state in states.items() if state != "stopped"]
        try:
            if back := [voter.name for voter in found.of("returns")]:
                found = _survey(cluster, lost, _replay(cluster, back, progress))
            plan, pending = _plan(cluster, found, bump, allow_known_bad, progress)
            confirm(plan)
        except BaseException:
            start_survivors(cluster, ran)
            raise
        known = {**pending.arguments, "ran": ",".join(ran)}
        pending = begin_restore(cluster, msgspec.structs.replace(pending, arguments=known), None)
        return finish(cluster, pending, plan, progress, shown=True)


def _plan(
    cluster: Cluster, found: Survey, bump: bool, allow_known_bad: bool, progress: Progress
) -> tuple[Plan, Pending]:
    """Save what the best survivor has, and give the plan that makes all members anew from it."""
    source = _source(cluster, found)
    if source.kind == "answers":
        path = _save(cluster, source.name, progress)
    else:
        path = copy_raw(cluster, source.name, progress)
    record = cluster.record
    examined = examine(path, record.etcd_version, beside=record.binary, progress=progress)
    restorer(cluster).refuse_full(record, examined.size)
    facts = collect(record, cluster.runtime)
    plan, pending, _ = plan_restore(
        cluster, examined, facts, bump=bump, allow_known_bad=allow_known_bad, operation=OPERATION
    )
    named = "" if cluster.name == "lab" else f" --cluster {cluster.name}"
    said = may_be_lost(found, source, examined.contents.revision)
    return msgspec.structs.replace(plan, consequence=said), msgspec.structs.replace(
        pending, again=f"{OPERATION}{named}"
    )


def prepare_recover(cluster: Cluster, *, lost: Sequence[str] = ()) -> Plan:
    """Make all checks that need no change, and give the plan; raises as `recover` does.

    Nothing is started for it, so survivors that are stopped may turn out to be further than it says.
    """
    refuse_foreign(cluster.record, f"cluster.recover of {cluster.name}")
    refuse_unfinished(cluster, OPERATION)
    found = _survey(cluster, lost)
    source = _source(cluster, found)
    url = cluster.record.member(source.name).client_url
    back = [voter.name for voter in found.of("returns")]
    steps: list[Step] = []
    if back:
        runtime, record = cluster.runtime, cluster.record
        commands = [runtime.by_hand("start", record, record.member(name)) for name in back]
        text = f"start {', '.join(back)}, for what their logs hold to be applied, and stop them again"
        steps.append(Step("replay", "", text, "\n      $ ".join(commands)))
    save = f"etcdctl --endpoints={url} snapshot save FILE"
    if source.kind != "answers":
        save = f"cp {cluster.record.member(source.name).data.place}/member/snap/db FILE"
    steps += [
        Step("save", source.name, f"save what {source.name} has as a snapshot", save),
        Step("restore", "", "restore all members from it, and prove it", "snapshot.restore FILE", "snapshot.rollback"),
    ]
    return Plan(OPERATION, cluster.name, "", tuple(steps), "", may_be_lost(found, source, source.revision))


def _survey(cluster: Cluster, lost: Sequence[str], replayed: Sequence[str] = ()) -> Survey:
    """Look at the voters; raise Refused where there is a quorum, or one can be brought back."""
    record = cluster.record
    unknown = [name for name in lost if name not in record.spec.names]
    if unknown:
        raise SpecError(f"{cluster.name} has no member {', '.join(unknown)}", remedy="See `status`.")
    facts = collect(record, cluster.runtime)
    found = survey(cluster, facts, lost, replayed)
    answering = found.of("answers")
    if len(answering) >= found.needed:
        raise Refused(
            f"{len(answering)} of {len(found.voters)} voters of {cluster.name} answer, and the quorum is"
            f" {found.needed}: it is not lost",
            remedy="Nothing was changed. `up-env` brings back who is missing; `status --gate` says what is wrong.",
        )
    back = found.of("answers", "returns", "replayed")
    if len(back) >= found.needed:
        away = found.of("returns")
        raise Refused(
            f"{cluster.name} has no quorum, and it can be had: {'; '.join(f'{v.name} {v.how}' for v in away)}",
            remedy="Nothing was changed. `up-env` starts and thaws all, and `heal` connects them again. If one of them"
            f" cannot be brought back, because it dies or its disk is gone, give it up: --lost {away[0].name}.",
        )
    return found


def _source(cluster: Cluster, found: Survey) -> Voter:
    best = found.best
    if best is None or best.revision < 0:
        said = "; ".join(f"{voter.name} {voter.how}" for voter in found.voters)
        raise Refused(
            f"nothing is left of {cluster.name} to recover from: {said}",
            remedy=f"`snapshot.list` shows what can be restored: `snapshot.restore FILE --cluster {cluster.name}`.",
        )
    return best


def _replay(cluster: Cluster, names: Sequence[str], progress: Progress) -> list[str]:
    """Have members apply what their logs hold; give those that did, and have ended. Who dies, or answers, is left so.

    Without a quorum a member that is started does not serve its clients: before etcd 3.6 it waits for one for ever. But
    it applies all that it knows to be committed before it first calls for an election, and that is in its database
    once it has ended.
    """
    done = []
    for name in names:
        progress(f"starting {name}, for what its log holds to be applied: without a quorum it serves nobody")
        try:
            if _has_replayed(cluster, name):
                cluster.runtime.stop(cluster.record, [name], timeout_s=_START_S)
                done.append(name)
        except MemberFailed as error:
            progress(f"{error}")
    return done


def _has_replayed(cluster: Cluster, name: str) -> bool:
    """Start a member, or let it go on, and wait: True once it calls for an election, False if it answers."""
    from etcdops.waiting import fail_if_dead

    state = cluster.member(name).state()
    if state == "paused":
        cluster.member(name).resume()
    logged = 0
    if state == "stopped":
        logged = len(cluster.runtime.log_bytes(cluster.record.member(name)))
        cluster.start_members([name])
    deadline = time.monotonic() + _START_S
    while True:
        try:
            cluster.member(name).status(timeout_s=0.5)
            return False
        except EtcdError:
            fail_if_dead(cluster, [name])
        if _ELECTION in cluster.runtime.log_bytes(cluster.record.member(name), logged):
            return True
        if time.monotonic() > deadline:
            raise MemberFailed(f"{name} neither answers nor calls for an election after {_START_S:.0f} s")
        time.sleep(0.05)


def _save(cluster: Cluster, name: str, progress: Progress) -> str:
    try:
        return save_snapshot(cluster, member=name, progress=progress).path
    except Refused as error:
        raise Refused(
            f"{error}",
            remedy=f"Its database file can be taken instead: `member.stop {name} --lose-quorum`, then"
            f" `{OPERATION} --lost {name}`.",
        ) from error
