"""What a full space quota looks like, and the plan that heals it: what is observed, and pure functions over that.

What CORRUPT does to all this was tried out on etcd 3.4.23 and 3.5.30: before 3.6, of two alarms the one that was raised
last decides what is refused, and disarming one lets everything through, until members restart, though the other is
still armed. 3.6 goes by all that are armed.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from etcdops import versions, wire
from etcdops.answers import Alarm, hex_id
from etcdops.errors import EtcdError, Refused
from etcdops.facts import Facts
from etcdops.operations import compact, defrag
from etcdops.operations.plan import Plan, Step
from etcdops.operations.upkeep import by_hand, voter
from etcdops.space import FULL_PERCENT, Space
from etcdops.units import size_text

if TYPE_CHECKING:
    from etcdops.state import ClusterRecord

__all__ = ["ANSWER_S", "CORRUPT_TEXT", "Fullness", "hazard", "is_blocked", "live_at", "live_bytes", "plan_heal"]

#: The part of the quota that compaction should bring a database below, so that members are well below FULL_PERCENT.
_GOAL_PERCENT = 60

#: How long a member may take to answer.
ANSWER_S = 5.0

#: How much of keys and values is read at once to find how much there is.
_PAGE_BYTES = 4 * 2**20

#: What every write is told while CORRUPT decides.
CORRUPT_TEXT = "etcdserver: corrupt cluster"


class Fullness(NamedTuple):
    """What was observed: the alarms, each database, what can be read, and how much is alive.

    `live` has the bytes of all keys and values that there are at a revision, for the newest and for some before it.
    `blocked` says that CORRUPT has etcd refuse compactions as well as writes.
    """

    alarms: tuple[Alarm, ...]
    spaces: tuple[Space, ...]
    history: compact.History
    live: Mapping[int, int]
    blocked: bool = False


def plan_heal(record: ClusterRecord, facts: Facts, seen: Fullness, *, keep: int | None = None) -> tuple[Plan, int]:
    """Give the plan that heals a full quota, and the revision that it compacts to (0: it does not).

    The last `keep` revisions stay readable; by default as many as there is room for, and compact.KEEP at most. Where
    every alarmed member is well below its quota already, alarms are all that is left to be disarmed.

    Raises Refused where that cannot cure it: live data fill the quota, or CORRUPT forbids to compact.
    """
    nospace = [alarm for alarm in seen.alarms if alarm.kind == "NOSPACE"]
    ids = {member.status.member_id: member.name for member in facts.members if member.status}
    names = [ids.get(alarm.member_id, hex_id(alarm.member_id)) for alarm in nospace]
    plan = Plan("cluster.heal-nospace", record.spec.name, ", ".join(names))
    if not nospace:
        return msgspec.structs.replace(plan, already=f"no member of {record.spec.name} has raised NOSPACE"), 0
    through = voter(facts)
    steps: list[Step] = []
    revision = 0
    turns: list[str] = []
    if any(space.full for space in seen.spaces if space.role != "learner"):
        _refuse_live_data(seen)
        revision = _compact_to(seen, keep)
        _refuse_hopeless(seen, revision, keep)
        if revision:
            steps.append(compact.step_to(record, through, revision))
        # With a compaction every database has something to give back; without one, it was done before.
        chosen = [
            s.member for s in seen.spaces if s.role != "learner" and (revision or s.full or s.free > s.db_size / 4)
        ]
        defrag.refuse_small_disks([space for space in seen.spaces if space.member in chosen])
        turns = defrag.order(seen.spaces, chosen)
        steps += defrag.steps_for(record, facts, turns, seen.spaces)
    steps += [_disarm_step(record, through, alarm, name) for alarm, name in zip(nospace, names, strict=True)]
    steps.append(
        Step(
            "prove",
            through,
            "write and delete a key through every voter, and list the alarms again",
            by_hand(record, through, "put", "etcdops/canary", "1"),
        )
    )
    return msgspec.structs.replace(
        plan, steps=tuple(steps), consequence=_consequence(facts, seen, revision, turns)
    ), revision


def _disarm_step(record: ClusterRecord, through: str, alarm: Alarm, name: str) -> Step:
    # etcdctl has no command for one alarm of one member, so the plain command is that of the JSON API.
    url = record.member(through).client_url
    body = f'{{"action": "DEACTIVATE", "memberID": "{alarm.member_id}", "alarm": "NOSPACE"}}'
    tls = record.spec.tls
    pems = f" --cacert {tls.ca} --cert {tls.client_cert} --key {tls.client_key}" if tls else ""
    return Step(
        "disarm",
        name,
        f"disarm NOSPACE of {name}, once every database is below {FULL_PERCENT} % of its quota",
        f"curl -s{pems} -X POST {url}/v3/maintenance/alarm -d '{body}'",
    )


def _consequence(facts: Facts, seen: Fullness, revision: int, turns: Sequence[str]) -> str:
    said = [compact.loses(revision)] if revision else []
    said += [each for each in [defrag.outage(facts, turns)] if each]
    return "; ".join([*said, *([hazard(facts, seen)] if hazard(facts, seen) else [])])


def hazard(facts: Facts, seen: Fullness) -> str:
    """Say what disarming NOSPACE does to a CORRUPT alarm that stays armed, "" if nothing."""
    told = {member.status.version for member in facts.members if member.status}
    old = sorted(version for version in told if not versions.supports(version, "alarms_combine"))
    if not old or not any(alarm.kind == "CORRUPT" for alarm in seen.alarms):
        return ""
    return (
        f"CORRUPT stays armed, and yet etcd {old[0]} accepts writes again once NOSPACE is disarmed, but for members"
        " that restart: those may refuse them, and then their data diverges. Restart none before CORRUPT is dealt with"
    )


def _refuse_live_data(seen: Fullness) -> None:
    """Raise Refused where what is alive fills a quota, which no compaction changes."""
    alive = seen.live.get(seen.history.newest, 0)
    for space in seen.spaces:
        if space.quota > 0 and 100 * alive >= FULL_PERCENT * space.quota:
            raise Refused(
                f"at least {size_text(alive)} of keys and values are alive, of a quota of"
                f" {size_text(space.quota)} on {space.member}: compacting frees no space of those",
                remedy="Delete keys (deletes are accepted while NOSPACE is raised) and run it again; or restart the"
                " members, one at a time, with a greater --quota-backend-bytes (8 GiB at most). Nothing was changed.",
            )


def _compact_to(seen: Fullness, keep: int | None) -> int:
    """Give the revision to compact to, 0 where that is done already."""
    if keep is None:
        keep = next((each for each in _candidates(seen) if _leaves(seen, each, _GOAL_PERCENT)), 0)
    revision = compact.choose(seen.history, keep=keep)
    return revision if revision > seen.history.oldest else 0


def _candidates(seen: Fullness) -> list[int]:
    """Give how many revisions might be kept, the most first: those for which there is something to compact.

    To keep none is the last resort: what was deleted at the newest revision goes only then.
    """
    count = seen.history.newest - seen.history.oldest
    powers = [compact.KEEP // 10**i for i in range(5)]
    return sorted({keep for keep in (*powers, min(_affordable(seen), compact.KEEP)) if keep < count}, reverse=True)


def _affordable(seen: Fullness) -> int:
    """Give how many revisions' history has room within a part of the quota, going by what one took on average."""
    alive, each = seen.live.get(seen.history.newest, 0), _average(seen)
    rooms = [_GOAL_PERCENT * space.quota // 100 - alive for space in seen.spaces if space.quota > 0]
    return int(max(min(rooms), 0) / each) if rooms and each else compact.KEEP


def _average(seen: Fullness) -> float:
    """Give how many bytes the history of one revision takes, on average."""
    count = seen.history.newest - seen.history.oldest
    past = max((space.in_use for space in seen.spaces), default=0) - seen.live.get(seen.history.newest, 0)
    return max(past, 0) / count if count else 0.0


def _leaves(seen: Fullness, keep: int, percent: int) -> bool:
    """Whether, with so many revisions kept, every database would be below a part of its quota, about.

    What stays is all that is alive at the revision that is compacted to, and what was written since.
    """
    alive = seen.live.get(seen.history.newest - keep)
    if alive is None:
        return False
    stays = alive + keep * _average(seen)
    return all(100 * stays < percent * space.quota for space in seen.spaces if space.quota > 0)


def _refuse_hopeless(seen: Fullness, revision: int, keep: int | None) -> None:
    """Raise Refused where too much would stay in use: the history is compacted already, or may not be."""
    if revision and seen.blocked:
        raise Refused(
            "a CORRUPT alarm has etcd refuse to compact (and to write), so the quota cannot be healed before it",
            remedy="Replace the member that raised CORRUPT; see `status`. Nothing was changed.",
        )
    full = [s for s in seen.spaces if s.quota > 0 and 100 * s.in_use >= FULL_PERCENT * s.quota]
    if not full or (revision and (keep is None or _leaves(seen, keep, FULL_PERCENT))):
        return
    known = (
        f"{full[0].member} has {full[0]}, and revisions {seen.history.oldest:,} to {seen.history.newest:,} can be read"
    )
    why = f"--keep {keep:,} keeps too much of that" if keep else "there is no older history to give up"
    helps = "Keep fewer revisions, or delete" if keep else "Delete"
    raise Refused(
        f"{known}: {why}, so too little would be freed",
        remedy=f"{helps} keys (deletes are accepted while NOSPACE is raised) and run it again; or raise the quota of"
        " every member. Nothing was changed.",
    )


def live_at(
    connection: wire.Connection, spaces: Sequence[Space], known: compact.History, keep: int | None
) -> dict[int, int]:
    """Find how much is alive at the newest revision and, going back no further than is of use, at some before it."""
    enough = max((FULL_PERCENT * space.quota // 100 for space in spaces), default=0)
    live = {known.newest: live_bytes(connection, enough, known.newest)}
    seen = Fullness((), tuple(spaces), known, live)
    for each in _candidates(seen) if keep is None else [keep]:
        revision = known.newest - each
        if revision > known.oldest:
            live.setdefault(revision, live_bytes(connection, enough, revision))
            if _leaves(seen, each, _GOAL_PERCENT):
                break
    return live


def live_bytes(connection: wire.Connection, enough: int, revision: int) -> int:
    """Give how many bytes all keys and values take together at a revision; it stops counting at `enough`."""
    total, count, key = 0, 0, b"\0"
    while total < enough:
        # Pages of about the same size, whatever size values have.
        limit = max(1, min(1000, _PAGE_BYTES * count // total)) if total else 16
        page = connection.range(key, b"\0", limit=limit, revision=revision, serializable=True, timeout_s=60.0)
        total += sum(len(kv.key) + len(kv.value) for kv in page.kvs)
        count += len(page.kvs)
        if not page.more:
            break
        key = page.kvs[-1].key + b"\0"
    return total


def is_blocked(connection: wire.Connection) -> bool:
    """Whether CORRUPT has etcd refuse what changes the store; asked by deleting a key that is not there."""
    try:
        connection.delete_range(f"etcdops/canary/{secrets.token_hex(8)}".encode(), timeout_s=ANSWER_S)
    except EtcdError as error:
        if error.text == CORRUPT_TEXT:
            return True
        raise
    return False
