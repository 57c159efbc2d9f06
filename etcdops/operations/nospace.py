"""Healing a full space quota: compact, defragment, and only then disarm NOSPACE, member by member.

A member whose database file has reached the quota raises NOSPACE, and no member accepts a write from then on.
Compacting frees pages within the file, and defragmenting gives them back. To disarm before that is done looks like a
cure: the next write may even be acknowledged, and raises the alarm again (etcd#16779). `etcdctl alarm disarm` takes
every alarm away, CORRUPT among them, which protects what is left of good data; here each one is named.

What CORRUPT does to all this was tried out on etcd 3.4.23 and 3.5.30: before 3.6, of two alarms the one that was raised
last decides what is refused, and disarming one lets everything through, until members restart, though the other is
still armed. 3.6 goes by all that are armed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from etcdops import checks, quorum, versions, wire
from etcdops.answers import Alarm, hex_id
from etcdops.errors import EtcdError, EtcdopsError, Refused
from etcdops.facts import Facts
from etcdops.operations import compact, defrag
from etcdops.operations.plan import Plan, Step, carry_out
from etcdops.operations.upkeep import by_hand, glance, look, pass_gate, refuse_bad_versions, settle, spaces_of, voter
from etcdops.space import FULL_PERCENT, Space
from etcdops.units import size_text

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.state import ClusterRecord

__all__ = ["Fullness", "MemberHealed", "NospaceReport", "heal_nospace", "plan_heal", "prepare"]

#: NOSPACE is what is being healed, CORRUPT stays as it is, and learners are left out.
_IGNORED = ("alarm-nospace", "alarm-corrupt", "learner-pending")

#: The part of the quota that compaction should bring a database below, so that members are well below FULL_PERCENT.
_GOAL_PERCENT = 60

_ANSWER_S = 5.0

#: How much of keys and values is read at once to find how much there is.
_PAGE_BYTES = 4 * 2**20

#: What every write is told while CORRUPT decides.
_CORRUPT = "etcdserver: corrupt cluster"


class Fullness(NamedTuple):
    """What was observed: the alarms, each database, what can be read, and how many bytes live keys and values take.

    `blocked` says that CORRUPT has etcd refuse compactions as well as writes.
    """

    alarms: tuple[Alarm, ...]
    spaces: tuple[Space, ...]
    history: compact.History
    live_bytes: int
    blocked: bool = False


class MemberHealed(msgspec.Struct, frozen=True):
    """One member: its database before and after, the quota, and whether its NOSPACE was disarmed. Sizes in bytes."""

    member: str
    quota: int
    db_size: int
    in_use: int
    db_size_after: int
    alarmed: bool
    disarmed: bool


class NospaceReport(msgspec.Struct, frozen=True):
    """What healing did. `revision` is the one that was compacted to, 0 for none.

    `corrupt` names the members whose CORRUPT alarm is armed, as it was before. `proof` says what the canary showed.
    """

    cluster: str
    revision: int
    members: tuple[MemberHealed, ...]
    corrupt: tuple[str, ...]
    proof: str


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
    old = [m.status.version for m in facts.members if m.status and versions.parse_version(m.status.version) < (3, 6, 0)]
    if old and any(alarm.kind == "CORRUPT" for alarm in seen.alarms):
        said.append(
            f"a CORRUPT alarm is armed and stays so, but etcd {old[0]} accepts writes again once NOSPACE is disarmed,"
            " until its members restart"
        )
    return "; ".join(said)


def _refuse_live_data(seen: Fullness) -> None:
    """Raise Refused where what is alive fills a quota, which no compaction changes."""
    for space in seen.spaces:
        if space.quota > 0 and 100 * seen.live_bytes >= FULL_PERCENT * space.quota:
            raise Refused(
                f"at least {size_text(seen.live_bytes)} of keys and values are alive, of a quota of"
                f" {size_text(space.quota)} on {space.member}: compacting frees no space of those",
                remedy="Delete keys (deletes are accepted while NOSPACE is raised) and run it again; or restart the"
                " members, one at a time, with a greater --quota-backend-bytes (8 GiB at most). Nothing was changed.",
            )


def _compact_to(seen: Fullness, keep: int | None) -> int:
    """Give the revision to compact to, 0 where that is done already."""
    if keep is None:
        # Never to the newest revision: that is what breaks history's readers, and older etcds (etcd#17780).
        keep = min(compact.KEEP, max(_affordable(seen), 1))
    revision = compact.choose(seen.history, keep=keep)
    return revision if revision > seen.history.oldest else 0


def _affordable(seen: Fullness) -> int:
    """Give how many revisions' history has room within a part of the quota, going by what one took on average."""
    count = seen.history.newest - seen.history.oldest
    rooms = []
    for space in seen.spaces:
        past = max(space.in_use - seen.live_bytes, 0)
        if space.quota > 0 and past and count:
            room = _GOAL_PERCENT * space.quota // 100 - seen.live_bytes
            rooms.append(max(room, 0) * count // past)
    return min(rooms, default=compact.KEEP)


def _refuse_hopeless(seen: Fullness, revision: int, keep: int | None) -> None:
    """Raise Refused where too much would stay in use: the history is compacted already, or may not be."""
    if revision and seen.blocked:
        raise Refused(
            "a CORRUPT alarm has etcd refuse to compact (and to write), so the quota cannot be healed before it",
            remedy="Replace the member that raised CORRUPT; see `status`. Nothing was changed.",
        )
    full = [s for s in seen.spaces if s.quota > 0 and 100 * s.in_use >= FULL_PERCENT * s.quota]
    if full and not revision:
        said = f"{full[0].member} has {full[0]}, and revisions {seen.history.oldest:,} to {seen.history.newest:,}"
        held = f"--keep {keep:,} keeps them all" if keep else "there is no older history to give up"
        fewer = "Keep fewer revisions. Or delete" if keep else "Delete"
        raise Refused(
            f"{said} can be read: {held}, so nothing would be freed",
            remedy=f"{fewer} keys (deletes are accepted while NOSPACE is raised) and run it again; or raise the"
            " quota of every member. Nothing was changed.",
        )


def prepare(cluster: Cluster, *, keep: int | None = None, allow_known_bad: bool = False) -> tuple[Plan, Fullness]:
    """Look at a cluster, and give the plan that heals its quota, and what was seen.

    Raises Refused at the gate (alarms aside), for a version that breaks this, and as `plan_heal` does.
    """
    plan, seen, _ = _study(cluster, keep, allow_known_bad)
    return plan, seen


def _study(cluster: Cluster, keep: int | None, allow_known_bad: bool) -> tuple[Plan, Fullness, int]:
    record, facts = look(cluster)
    pass_gate(cluster, facts, "healing the quota", ignoring=_IGNORED)
    spaces = spaces_of(cluster, record, facts)
    with wire.Connection(record.member(voter(facts)).client_url, record.spec.tls) as connection:
        alarms = connection.alarms(timeout_s=_ANSWER_S)
        known = compact.history(connection)
        full = any(space.full for space in spaces) and any(alarm.kind == "NOSPACE" for alarm in alarms)
        enough = max((FULL_PERCENT * space.quota // 100 for space in spaces), default=0)
        live = _live_bytes(connection, enough) if full else 0
        blocked = any(alarm.kind == "CORRUPT" for alarm in alarms) and _blocked(connection)
    seen = Fullness(alarms, spaces, known, live, blocked)
    plan, revision = plan_heal(record, facts, seen, keep=keep)
    done = {step.do for step in plan.steps}
    if revision:
        compact.refuse_bad_compaction(facts, known, revision, allow=allow_known_bad)
    if "defrag" in done:
        refuse_bad_versions(facts, "defrag", allow=allow_known_bad)
    return plan, seen, revision


def _live_bytes(connection: wire.Connection, enough: int) -> int:
    """Give how many bytes all keys and values take together; it stops counting at `enough`."""
    total, count, key = 0, 0, b"\0"
    while total < enough:
        # Pages of about the same size, whatever size values have.
        limit = max(1, min(1000, _PAGE_BYTES * count // total)) if total else 16
        page = connection.range(key, b"\0", limit=limit, serializable=True, timeout_s=60.0)
        total += sum(len(kv.key) + len(kv.value) for kv in page.kvs)
        count += len(page.kvs)
        if not page.more:
            break
        key = page.kvs[-1].key + b"\0"
    return total


def _blocked(connection: wire.Connection) -> bool:
    """Whether CORRUPT has etcd refuse what changes the store; asked by deleting a key that is not there."""
    try:
        connection.delete_range(f"etcdops/canary/{secrets.token_hex(8)}".encode(), timeout_s=_ANSWER_S)
    except EtcdError as error:
        if error.text == _CORRUPT:
            return True
        raise
    return False


def heal_nospace(
    cluster: Cluster,
    *,
    keep: int | None = None,
    allow_known_bad: bool = False,
    confirm: Callable[[Plan], None] = lambda plan: None,
    progress: Callable[[str], None] = lambda text: None,
) -> NospaceReport:
    """Compact, defragment every voter, disarm NOSPACE where it is cured, prove it by a write, and say what was done.

    `confirm` is called with a plan that has a consequence, and raises ConfirmationNeeded to stop it. It ends at the
    first failure; run again, it does what is left. Raises as `prepare` does before anything is changed; then
    EtcdopsError where a member is not cured or raises the alarm again, EtcdError, MemberFailed and WaitTimeout as
    `defrag` does.
    """
    with cluster.locked(f"heal the quota of {cluster.name}", progress=progress):
        plan, seen, revision = _study(cluster, keep, allow_known_bad)
        healing = _Healing(cluster, seen, revision, progress)
        if plan.steps:
            if plan.consequence:
                confirm(plan)
            carry_out(cluster, plan, healing.acts(), progress)
        return healing.report()


class _Healing:
    """One healing under way: what it has done so far."""

    def __init__(self, cluster: Cluster, seen: Fullness, revision: int, progress: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._seen = seen
        self._revision = revision
        self._progress = progress
        self._after: dict[str, int] = {}
        self._disarmed: set[int] = set()
        self._proof = "nothing was done, so nothing was proved"

    def acts(self) -> dict[str, Callable[[Step], None]]:
        """Give what does each step."""
        acts = defrag.acts_of(self._cluster, self._after, self._progress, ignoring=_IGNORED)
        return {**acts, "compact": self._compact, "disarm": self._disarm, "prove": self._prove}

    def _compact(self, step: Step) -> None:
        compact.compact_to(self._cluster, step.member, self._revision, self._progress)
        # The others clean their databases at their own pace, and what is not yet free cannot be given back.
        deadline = time.monotonic() + 60.0
        before: list[int] = []
        while time.monotonic() < deadline:
            time.sleep(0.2)
            facts = glance(self._cluster)[1]
            now = [member.status.db_size_in_use for member in facts.members if member.status]
            if now == before:
                break
            before = now

    def _disarm(self, step: Step) -> None:
        record, facts = glance(self._cluster)
        spaces = spaces_of(self._cluster, record, facts)
        full = [space for space in spaces if space.full and space.role != "learner"]
        if full:
            # Any of them would raise the alarm again with the next write through it.
            said = "; ".join(f"{space.member} has {space}" for space in full)
            raise EtcdopsError(
                f"not every member is cured, so NOSPACE of {step.member} stays armed: {said}",
                remedy="Delete keys or keep fewer revisions (--keep), and run it again; or raise the quota.",
            )
        ids = {member.name: member.status.member_id for member in facts.members if member.status}
        # One that is no member any more has left its alarm behind (etcd#14379).
        member_id = ids[step.member] if step.member in ids else int(step.member, 16)
        with wire.Connection(record.member(voter(facts)).client_url, record.spec.tls) as connection:
            connection.alarm_disarm(member_id, "NOSPACE", timeout_s=_ANSWER_S)
        self._disarmed.add(member_id)

    def _prove(self, step: Step) -> None:
        """Write through every voter, each of which looks at its own quota, and see that no alarm comes of it."""
        record, facts = glance(self._cluster)
        names = [name for name in quorum.up(facts) if name in {member.name for member in record.members}]
        key = f"etcdops/canary/{secrets.token_hex(4)}".encode()
        refused = ""
        for name in names:
            with wire.Connection(record.member(name).client_url, record.spec.tls) as connection:
                try:
                    connection.put(key, b"1", timeout_s=_ANSWER_S)
                    connection.delete_range(key, timeout_s=_ANSWER_S)
                except EtcdError as error:
                    if error.text != _CORRUPT:
                        raise
                    refused = f"{name} refuses writes because CORRUPT is armed: that space is left was not proved"
        settle(self._cluster, names, checks.findings(facts), ignoring=_IGNORED)
        with wire.Connection(record.member(names[0]).client_url, record.spec.tls) as connection:
            again = [alarm for alarm in connection.alarms(timeout_s=_ANSWER_S) if alarm.kind == "NOSPACE"]
        if again:
            raise EtcdopsError(
                f"NOSPACE is raised again by {', '.join(hex_id(alarm.member_id) for alarm in again)} after a write",
                remedy="Run it again; if it comes back, delete keys or raise the quota, and see who writes so much.",
            )
        self._proof = refused or f"writes through {', '.join(names)} are acknowledged, and no alarm came of them"
        self._progress(self._proof)

    def report(self) -> NospaceReport:
        """Say what was done, as it is now."""
        record, facts = glance(self._cluster)
        ids = {member.name: member.status.member_id for member in facts.members if member.status}
        names = {number: name for name, number in ids.items()}
        alarmed = {alarm.member_id for alarm in self._seen.alarms if alarm.kind == "NOSPACE"}
        corrupt = [alarm.member_id for alarm in quorum.newest_alarms(facts) if alarm.kind == "CORRUPT"]
        now = {member.name: member.status.db_size for member in facts.members if member.status}
        rows = [
            MemberHealed(
                member=space.member,
                quota=space.quota,
                db_size=space.db_size,
                in_use=space.in_use,
                db_size_after=now.get(space.member, space.db_size),
                alarmed=ids.get(space.member) in alarmed,
                disarmed=ids.get(space.member) in self._disarmed,
            )
            for space in self._seen.spaces
        ]
        who = tuple(names.get(number, hex_id(number)) for number in corrupt)
        return NospaceReport(record.spec.name, self._revision, tuple(rows), who, self._proof)
