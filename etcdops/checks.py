"""The gate: what is wrong with a cluster, from collected facts, and whether a change to it would be safe.

All functions here are pure. Every operation that changes a cluster looks through the gate before it acts and again
afterwards, and `status` shows what it finds. The rules are those of etcd's own guides for runtime reconfiguration and
for data corruption (https://etcd.io/docs/v3.5/op-guide/runtime-configuration/, …/data_corruption/), and of the
postmortem of 3.5's data inconsistency, by which etcd's own checks can miss members whose revisions have diverged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from etcdops import versions
from etcdops.answers import hex_id
from etcdops.findings import CODES, Finding, by_severity
from etcdops.foreign.remedies import elsewhere
from etcdops.quorum import (
    DOWN,
    answering,
    excluded,
    leader_of_facts,
    member_list,
    name_of,
    newest_alarms,
    quorum_after,
    up,
    voters,
    why_not_up,
)
from etcdops.space import FULL_PERCENT, DefragRule, measure
from etcdops.units import size_text

if TYPE_CHECKING:
    from etcdops.facts import Facts

__all__ = ["check_change", "check_snapshot", "even_size", "findings"]

#: What each alarm means, and its cure (etcd's pages on maintenance, "space quota", and on data corruption).
_ALARMS = {
    "NOSPACE": (
        "no write is accepted: the space quota is used up",
        "`cluster.heal-nospace` compacts, defragments and disarms it; `ctl -- alarm disarm` would disarm CORRUPT too.",
    ),
    "CORRUPT": ("its data differs from that of the others, and writes are refused", "Replace it; do not disarm this."),
}

#: The code of a member that is not there, and what brings it back, by what the runtime sees of it.
_AWAY = {
    "stopped": ("member-stopped", "`member.start {name}` starts it; `up-env` starts all."),
    "paused": ("member-frozen", "`member.thaw {name}` lets it go on; so do `heal` and `up-env`."),
    "isolated": ("member-isolated", "`heal` connects it again."),
    "unknown": (
        "member-unreachable",
        "`hosts.check` looks at its host; if that is lost, `member.replace {name}` puts a new member on another.",
    ),
}


def findings(facts: Facts) -> tuple[Finding, ...]:
    """Give all that is wrong, errors first. What needs two looks is only found in facts of two."""
    found = [
        *_quorum(facts),
        *_members(facts),
        *_membership(facts),
        *_leadership(facts),
        *_progress(facts),
        *_alarms(facts),
        *_space(facts),
        *_versions(facts),
    ]
    if facts.auth:
        said = "authentication is on, and etcdops has no user: what members tell only to users is missing"
        found.append(Finding.of("auth", said, remedy="`ctl -- --user NAME endpoint status --cluster` shows it."))
    return by_severity(map(elsewhere, found) if facts.foreign else found)


def check_change(facts: Facts, *, stopping: str = "", removing: str = "", adding: str = "") -> tuple[Finding, ...]:
    """Give the finding that forbids a change: too few voters would be up, the member that it is about counted as down.

    Nothing is found where the quorum holds afterwards, or where the member is none of the voters (a learner).
    """
    everyone = voters(facts)
    target = stopping or removing
    if target and target not in everyone:
        return ()
    after = quorum_after(everyone, up(facts), stopping=stopping, removing=removing, adding=adding)
    if after.holds:
        return ()
    missing = [name for name in after.down if name not in (stopping, adding)]
    why = {name: why_not_up(facts, name) for name in missing}
    counts = f"{len(after.up)} of {len(after.voters)} voters up"
    what = f"adding {adding}" if adding else f"removing {removing}" if removing else f"taking {stopping} away"
    found = Finding.of(
        "quorum-at-risk",
        f"{what} would leave {counts}, and the quorum is {after.needed}{': ' if why else ''}{_say(why, why)}",
        member=target or adding,
        remedy=_bring_up(facts, missing) if missing else "`down-env` stops a whole cluster and keeps its data.",
    )
    return (elsewhere(found) if facts.foreign else found,)


def check_snapshot(facts: Facts, *, max_age_s: float = 86_400.0) -> tuple[Finding, ...]:
    """Give the finding that there is no verified snapshot that is at most `max_age_s` seconds old."""
    age_s = facts.snapshot_age_s
    if age_s is not None and age_s <= max_age_s:
        return ()
    newest = "there is none" if age_s is None else f"the newest is {age_s / 3600:.0f} h old"
    said = f"a verified snapshot of the last {max_age_s / 3600:.0f} h is wanted, and {newest}"
    return (Finding.of("no-snapshot", said, remedy="Save one first: `snapshot.save`."),)


def even_size(size: int) -> str:
    """Say why an even number of voters is a poor choice."""
    return (
        f"{size} voters tolerate the loss of {(size - 1) // 2}, as {size - 1} would, and one more must agree to each"
        f" write: {size - 1} or {size + 1} are better"
    )


def _quorum(facts: Facts) -> list[Finding]:
    everyone = voters(facts)
    now = quorum_after(everyone, up(facts))
    found = []
    if not now.holds:
        why = {name: why_not_up(facts, name) for name in now.down}
        there = answering(facts)
        absent = [name for name in now.down if name not in there]
        if len(there) < now.needed:
            said = f"{len(there)} of {len(everyone)} voters answer, and the quorum is {now.needed}: {_say(why, absent)}"
            found.append(Finding.of("no-quorum", said, remedy=_bring_up(facts, absent)))
        elif leader_of_facts(facts)[0] is None and not facts.auth:
            said = f"{len(there)} of {len(everyone)} voters answer, and none of them leads"
            found.append(Finding.of("no-leader", said, remedy="An election takes one to two election timeouts."))
        else:
            said = f"{len(now.up)} of {len(everyone)} voters serve, and the quorum is {now.needed}: {_say(why, why)}"
            found.append(Finding.of("no-quorum", said, remedy=_bring_up(facts, why)))
    if len(everyone) % 2 == 0:
        found.append(Finding.of("even-size", even_size(len(everyone))))
    return found


def _members(facts: Facts) -> list[Finding]:
    if all(member.state == "stopped" for member in facts.members):
        return []
    lost = not quorum_after(voters(facts), up(facts)).holds
    found = []
    for member in facts.members:
        if member.data_gone:
            said = f"{member.name} is stopped, and its data is gone"
            remedy = f"`member.replace {member.name}` puts a new member in its place; its data cannot be had back."
            found.append(Finding.of("member-data-gone", said, member=member.name, remedy=remedy))
        elif member.state in _AWAY:
            code, remedy = _AWAY[member.state]
            why = f" ({member.errors[0]})" if member.errors else ""
            asked_for = ", as was asked for" if member.state == "stopped" and member.wanted == "stopped" else ""
            found.append(
                Finding.of(
                    code,
                    f"{member.name} {DOWN[member.state]}{asked_for}{why}",
                    member=member.name,
                    remedy=remedy.format(name=member.name),
                )
            )
        elif member.status is None and not member.serves:
            said = f"{member.name} runs, and does not answer"
            logs = f"Look at `logs --member {member.name}`."
            found.append(Finding.of("member-unreachable", said, member=member.name, remedy=logs))
        elif member.status and member.status.is_learner:
            if not member.serves_locally:
                said = f"the learner {member.name} serves no serializable read"
                found.append(Finding.of("member-not-serving", said, member=member.name))
        elif not member.serves and not lost:
            # Without a quorum nobody serves, and that has been said.
            said = f"{member.name} answers, and serves no linearizable read, although there is a quorum"
            logs = f"It may not reach its peers: look at `logs --member {member.name}`."
            found.append(Finding.of("member-not-serving", said, member=member.name, remedy=logs))
    return found


def _membership(facts: Facts) -> list[Finding]:
    found = []
    ids: dict[int, list[str]] = {}
    for member in facts.members:
        if member.status:
            ids.setdefault(member.status.cluster_id, []).append(member.name)
    if len(ids) > 1:
        said = "; ".join(f"{_enumerate(names)} in {hex_id(cluster_id)}" for cluster_id, names in ids.items())
        found.append(
            Finding.of(
                "cluster-id",
                f"members belong to different clusters: {said}",
                remedy="Stop those that do not belong here: a data directory of another cluster was used, or an old"
                " member lives on the same ports.",
            )
        )
    lists: dict[frozenset[tuple[int, bool]], list[str]] = {}
    for member in facts.members:
        if member.listed is not None:
            lists.setdefault(frozenset((i.id, i.is_learner) for i in member.listed), []).append(member.name)
    if len(lists) > 1:
        said = "; ".join(
            f"{_enumerate(names)}: {', '.join(sorted(hex_id(number) for number, _ in seen))}"
            for seen, names in lists.items()
        )
        found.append(
            Finding.of(
                "member-lists-differ",
                f"members do not list the same members: {said}",
                remedy="Look again, as a change may be under way; if it stays, see `logs` of the minority.",
            )
        )
    return found + _listed_members(facts)


def _listed_members(facts: Facts) -> list[Finding]:
    listed = member_list(facts)
    if listed is None:
        return []
    found = []
    recorded = {member.name for member in facts.members}
    for info in listed:
        name, number = name_of(info, facts), hex_id(info.id)
        if not info.name:
            kind = "learner" if info.is_learner else "voter"
            found.append(
                Finding.of(
                    "member-unstarted",
                    f"{name} was added as a {kind} ({number}), and has never started",
                    member=name,
                    remedy="Run again what added it, or take it back: `member.undo`, or"
                    f" `ctl -- member remove {number}`.",
                )
            )
        elif info.is_learner:
            found.append(
                Finding.of(
                    "learner-pending",
                    f"{name} ({number}) is a learner, and waits to be promoted",
                    member=name,
                    remedy=f"`member.promote {name}`, or take it back: `member.undo` or `member.remove {name}`."
                    if name in recorded
                    else f"`ctl -- member promote {number}`, or take it back: `ctl -- member remove {number}`.",
                )
            )
        if info.name and name not in recorded:
            said = f"{name} ({number}) is a member, and etcdops has no record of it: whether it is up is not looked at"
            found.append(Finding.of("member-unknown", said, member=name))
    there = {name_of(info, facts) for info in listed}
    for member in facts.members:
        if member.name not in there:
            found.append(
                Finding.of(
                    "member-removed",
                    f"{member.name} is recorded, and was removed from the cluster",
                    member=member.name,
                    remedy="Its data can never join again; a member in its place needs an empty directory.",
                )
            )
    return found


def _leadership(facts: Facts) -> list[Finding]:
    found = []
    leaders: dict[int, set[int]] = {}
    terms: dict[int, list[str]] = {}
    for member in facts.members:
        if member.status:
            terms.setdefault(member.status.raft_term, []).append(member.name)
            if member.status.leader:
                leaders.setdefault(member.status.raft_term, set()).add(member.status.leader)
    for term, claimed in leaders.items():
        if len(claimed) > 1:
            ids = ", ".join(map(hex_id, sorted(claimed)))
            said = f"members name different leaders in term {term}: {ids}"
            found.append(Finding.of("two-leaders", said, remedy="Raft rules that out: keep the logs, and report it."))
    if len(terms) > 1:
        said = "; ".join(f"{_enumerate(names)} in {term}" for term, names in sorted(terms.items()))
        found.append(
            Finding.of(
                "terms-differ",
                f"members are in different terms: {said}",
                remedy="Look again after an election timeout; who stays in an older term does not hear the leader.",
            )
        )
    return found


def _progress(facts: Facts) -> list[Finding]:
    """Find members that stay behind, and those that differ at the same place of the log, by two looks.

    Who has reached by the second look what anybody had at the first is not behind, whatever traffic there is.
    """
    looks = {
        member.name: (member.statuses[0], member.statuses[1])
        for member in facts.members
        if len(member.statuses) > 1 and member.statuses[0] and member.statuses[1]
    }
    found: list[Finding] = []
    applied = {name: (a.raft_applied_index, b.raft_applied_index) for name, (a, b) in looks.items() if a and b}
    before, after = (max((pair[i] for pair in applied.values()), default=0) for i in (0, 1))
    for name, (first, second) in applied.items():
        if second < before and before - first <= after - second:
            found.append(
                Finding.of(
                    "behind",
                    f"{name} does not catch up: it has applied {second:,} of {after:,} entries, and a look earlier"
                    f" {first:,} of {before:,}",
                    member=name,
                    remedy=f"See its disk and its network, and `logs --member {name}`.",
                )
            )
    # A member reads its index first and its revision then. Only where nothing was applied from one look to the next do
    # the first look's two belong together.
    still: dict[int, dict[str, int]] = {}
    for name, (a, b) in looks.items():
        if a and b and a.raft_applied_index == b.raft_applied_index:
            still.setdefault(a.raft_applied_index, {})[name] = a.revision
    for index, revisions in still.items():
        if len(set(revisions.values())) > 1:
            said = ", ".join(f"{name} {revision:,}" for name, revision in revisions.items())
            found.append(
                Finding.of(
                    "diverged",
                    f"members have applied the same {index:,} entries, and are at different revisions: {said}",
                    remedy="Their data differs. Compare `ctl -- endpoint hashkv --cluster`, save snapshots of all, and"
                    " replace the minority.",
                )
            )
    return found


def _alarms(facts: Facts) -> list[Finding]:
    ids = {member.status.member_id: member.name for member in facts.members if member.status}
    found = []
    for alarm in newest_alarms(facts):
        means, cure = _ALARMS.get(alarm.kind, ("see etcd's documentation", ""))
        # One that names nobody is everybody's.
        for name in ids.values() if not alarm.member_id else [ids.get(alarm.member_id, hex_id(alarm.member_id))]:
            said = f"{name} has raised {alarm.kind}: {means}"
            code = f"alarm-{alarm.kind.lower()}"
            found.append(Finding(code, said, CODES.get(code, "error"), name, cure))
    return found


def _space(facts: Facts) -> list[Finding]:
    """Find databases that near their quota, and those that would give much back, by what Status tells alone."""
    found = []
    full = {alarm.member_id for alarm in newest_alarms(facts) if alarm.kind == "NOSPACE"}
    ids = {member.name: member.status.member_id for member in facts.members if member.status}
    for space in measure(facts):
        if space.used_percent > FULL_PERCENT and not full & {0, ids[space.member]}:
            said = f"{space.member}'s database takes {space.used_percent:.0f} % of its space quota: {space}"
            cure = "`cluster.compact` and `cluster.defrag` give space back; at 100 % no write is accepted."
            found.append(Finding.of("quota-high", said, member=space.member, remedy=cure))
        if DefragRule().judge(space).chosen:
            said = f"{space.member}'s database has {size_text(space.free)} of {size_text(space.db_size)} free"
            cure = "`cluster.defrag` gives that back to the disk."
            found.append(Finding.of("fragmented", said, member=space.member, remedy=cure))
    return found


def _versions(facts: Facts) -> list[Finding]:
    told: dict[str, list[str]] = {}
    for member in facts.members:
        if member.status:
            told.setdefault(str(versions.parse_version(member.status.version)), []).append(member.name)
    found = []
    if len({versions.parse_version(version).series for version in told}) > 1:
        said = "; ".join(f"{_enumerate(names)} {version}" for version, names in told.items())
        found.append(
            Finding.of(
                "mixed-minors",
                f"members run different minors of etcd: {said}",
                remedy="Bring all to the same one before anything else is changed.",
            )
        )
    version = facts.etcd_version
    for bad in versions.findings(version, excluded=excluded(facts)) if version else ():
        if bad.severity == "unsafe":
            said = f"etcd {version}: {bad.effect} ({bad.source})"
            remedy = f"etcd {versions.recommended(version)} is without it."
            found.append(Finding.of(f"known-bad:{bad.code}", said, remedy=remedy))
    return found


def _bring_up(facts: Facts, names: Iterable[str]) -> str:
    """Say how to bring members back."""
    wanted, remedies = set(names), []
    for member in facts.members:
        if member.name in wanted:
            verb = {"stopped": "member.start", "paused": "member.thaw"}.get(member.state)
            remedies.append(f"`{verb} {member.name}`" if verb else f"see `logs --member {member.name}`")
    return f"Bring back who is missing: {', '.join(remedies)}; or all with `up-env`." if remedies else "See `logs`."


def _say(why: dict[str, str], names: Iterable[str]) -> str:
    """Say of members why they are not up: "thor is stopped and hulk is frozen"."""
    return _enumerate(f"{name} {why[name]}" for name in names)


def _enumerate(names: Iterable[str]) -> str:
    """Give names as a sentence has them: "a, b and c"."""
    *rest, last = [*names] or [""]
    return f"{', '.join(rest)} and {last}" if rest else last
