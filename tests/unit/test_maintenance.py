"""Defragmenting, compacting and healing a full quota: what the plans make of facts, and what they refuse."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcdops.answers import Alarm, MemberInfo, RangeResult, Status
from etcdops.checks import findings
from etcdops.errors import EtcdError, Refused, SpecError
from etcdops.etcd_flags import etcd_flags
from etcdops.facts import Facts, MemberFacts
from etcdops.operations.compact import KEEP, History, choose, history, plan_compact, refuse_bad_compaction
from etcdops.operations.defrag import order, plan_defrag
from etcdops.operations.fullness import Fullness, live_bytes, plan_heal
from etcdops.operations.gate import refuse_bad_versions
from etcdops.operations.plan import Plan, plan_text
from etcdops.operations.upkeep import patience_s, voter
from etcdops.placement import check_same
from etcdops.remote.inventory import HostSpec
from etcdops.runtimes.fake import FakeRuntime
from etcdops.space import DEFAULT_QUOTA_BYTES, DefragRule, Space, measure
from etcdops.spec import ClusterSpec, Tls
from etcdops.state import SCHEMA, ClusterRecord
from etcdops.units import parse_bytes

MIB = 2**20
NAMES = ("ironman", "thor", "deadpool")


def _record(size: int = 3, **changes: Any) -> ClusterRecord:
    spec = msgspec.structs.replace(ClusterSpec.of_size("lab", size), **changes)
    return ClusterRecord(
        schema=SCHEMA,
        id="0123",
        spec=spec,
        runtime="fake",
        token="t",
        state_dir="/s",
        members=FakeRuntime().place(spec, "0123", "/d"),
        etcd_version="3.5.30",
        created="2026-01-31T12:00:00+00:00",
    )


def _facts(
    size: int = 3, *, leader: int = 2, version: str = "3.5.30", learners: tuple[int, ...] = (), **status: Any
) -> Facts:
    """Give the facts of a healthy cluster; `status` says what all members say, a tuple of it what each says."""
    listed = tuple(
        MemberInfo(i, NAMES[i - 1], (f"http://p:{i}",), (f"http://c:{i}",), i in learners) for i in range(1, size + 1)
    )
    members = []
    for i in range(1, size + 1):
        said = Status(i, 99, version, 20480, 20480, leader, 2, 9, 9, 4, (), i in learners)
        own = {key: value[i - 1] if isinstance(value, tuple) else value for key, value in status.items()}
        serves = i not in learners
        known = (said._replace(**own),)
        members.append(
            MemberFacts(
                NAMES[i - 1], f"http://c:{i}", f"http://p:{i}", "running", "running", known, serves, True, listed
            )
        )
    return Facts("lab", version, tuple(members), auth=False)


def _space(member: str = "thor", role: str = "follower", size: int = 100, used: int = 50, **other: Any) -> Space:
    """Give a database; sizes are in MiB."""
    fields = {"quota": 1024 * MIB, **other}
    return Space(member, role, size * MIB, used * MIB, **fields)


def _three(**other: Any) -> list[Space]:
    roles = ("follower", "leader", "follower")
    return [_space(name, role, **other) for name, role in zip(NAMES, roles, strict=True)]


def _does(plan: Plan) -> list[str]:
    return [f"{step.do} {step.member}" for step in plan.steps]


# -- sizes


@pytest.mark.parametrize(
    ("text", "count"),
    [("32MiB", 32 * MIB), ("2 GiB", 2**31), ("4096", 4096), ("7KiB", 7168), ("12B", 12), (" 1MiB ", MIB)],
)
def test_sizes_are_read(text: str, count: int) -> None:
    """A number, and a binary unit or none."""
    assert parse_bytes(text, "quota") == count


@pytest.mark.parametrize("text", ["", "MiB", "32MB", "32M", "-1", "1.5GiB", "32 MiB x", "1e9", "32mib", "3²", "32iB"])
def test_other_sizes_are_refused(text: str) -> None:
    """Decimal units mean two things, and fractions are not whole bytes: both are refused with an example."""
    with pytest.raises(SpecError, match=r"--quota .* is not a size") as refused:
        parse_bytes(text, "quota")
    assert "32MiB" in refused.value.remedy


def test_quota_of_a_cluster() -> None:
    """It is checked, becomes etcd's flag, is absent where etcd's default is meant, and is fixed at creation."""
    for wrong in (1, MIB - 1, 8 * 2**30 + 1, -1):
        with pytest.raises(SpecError, match=r"is not offered: 1 MiB to 8\.0 GiB are"):
            ClusterSpec.of_size("lab", quota_bytes=wrong)
    record = _record(quota_bytes=16 * MIB)
    where = {"data": "/d", "listen_client": "c", "listen_peer": "p", "tls": ("", "", "")}
    assert f"--quota-backend-bytes={16 * MIB}" in etcd_flags(record, record.members[0], **where)  # type: ignore[arg-type]
    plain = _record()
    assert not [f for f in etcd_flags(plain, plain.members[0], **where) if "quota" in f]  # type: ignore[arg-type]
    wish = ClusterSpec.of_size("lab", quota_bytes=32 * MIB)
    with pytest.raises(Refused, match="has a space quota of 16 MiB, not 32 MiB"):
        check_same(record, runtime="", size=0, spec=wish)
    with pytest.raises(Refused, match="has a space quota of 2 GiB, etcd's default, not 32 MiB"):
        check_same(plain, runtime="", size=0, spec=wish)
    check_same(record, runtime="", size=0, spec=ClusterSpec.of_size("lab"))


def test_hosts_of_a_cluster() -> None:
    """They are fixed at creation, by name and place; how they are reached from here may change."""
    has = (HostSpec("h1", address="10.0.0.1"), HostSpec("h2", address="10.0.0.2"))
    record = msgspec.structs.replace(_record(), hosts=has)

    def same(*hosts: HostSpec) -> None:
        check_same(record, runtime="", size=0, spec=ClusterSpec.of_size("lab"), hosts=hosts)

    same()
    same(has[1], HostSpec("h1", address="10.0.0.1", port=22, key="/k", user="root"))
    with pytest.raises(Refused, match="cluster lab has the hosts h1, h2, not h1, h3: these are fixed"):
        same(has[0], HostSpec("h3"))
    with pytest.raises(Refused, match=r"has host h2 at 10\.0\.0\.2, port 22, not at 10\.0\.0\.9, port 22: these"):
        same(has[0], HostSpec("h2", address="10.0.0.9"))
    with pytest.raises(Refused, match=r"not at 10\.0\.0\.2, port 22 \(for its peers 192\.168\.7\.2\)"):
        same(has[0], HostSpec("h2", address="10.0.0.2", peer_address="192.168.7.2"))


@pytest.mark.parametrize(
    ("version", "told", "created", "metric", "expected"),
    [
        ("3.6.6", 5, 3, 4, (5, "status")),
        # Before 3.6.6 what Status tells is wrong; before 3.6 it tells nothing.
        ("3.6.5", 5, 3, 4, (4, "metrics")),
        ("3.5.30", 0, 3, 4, (4, "metrics")),
        ("3.5.30", 0, 3, None, (3, "spec")),
        ("3.5.30", 0, 0, None, (DEFAULT_QUOTA_BYTES, "default")),
    ],
)
def test_where_a_quota_is_known_from(
    version: str, told: int, created: int, metric: int | None, expected: tuple[int, str]
) -> None:
    """The member's own word counts where it is right, then its metrics, then how it was created, then the default."""
    facts = _facts(1, leader=1, version=version, db_size_quota=told)._replace(quota_bytes=created)
    [space] = measure(facts, {} if metric is None else {"ironman": metric})
    assert (space.quota, space.quota_from) == expected


def test_members_that_told_nothing_are_left_out() -> None:
    """Without a status there is no size; roles come from the statuses."""
    facts = _facts(3, learners=(3,))
    silent = facts.members[0]._replace(statuses=(None,))
    spaces = measure(facts._replace(members=(silent, *facts.members[1:])), disks={"thor": 7})
    assert [(s.member, s.role, s.disk_free) for s in spaces] == [("thor", "leader", 7), ("deadpool", "learner", None)]


# -- what is worth it


@pytest.mark.parametrize(
    ("space", "rule", "chosen", "reason"),
    [
        (_space(size=300, used=100), DefragRule(), True, "200 MiB free: at least 200 MiB"),
        (_space(size=299, used=100), DefragRule(), False, "only 199 MiB free: less than 200 MiB, at 29 % of the quota"),
        (_space(size=900, used=868), DefragRule(), True, "32 MiB free, at 88 % of the quota: at least 32 MiB"),
        (_space(size=900, used=869), DefragRule(), False, "only 31 MiB free at 88 % of the quota: that would gain"),
        # Exactly 80 % is not above it.
        (_space(size=80, used=40, quota=100 * MIB), DefragRule(), False, "only 40 MiB free: less than"),
        (_space(size=81, used=41, quota=100 * MIB), DefragRule(), True, "40 MiB free, at 81 %"),
        # Without a quota nothing can be full.
        (_space(size=900, used=800, quota=0), DefragRule(), False, "only 100 MiB free"),
        (_space(size=1, used=1), DefragRule(everyone=True), True, "all are asked for"),
        (_space(role="learner", size=900, used=1), DefragRule(everyone=True), False, "a learner"),
        (_space(size=20, used=10), DefragRule(free_bytes=10 * MIB), True, "10 MiB free: at least 10 MiB"),
    ],
)
def test_the_rule(space: Space, rule: DefragRule, chosen: bool, reason: str) -> None:
    """Much that is free, or less where the quota is near; never a learner; each with its reason."""
    judged = rule.judge(space)
    assert judged.chosen is chosen
    assert judged.reason.startswith(reason)


def test_status_warns_of_space() -> None:
    """A database near its quota, and one worth defragmenting, are findings; one that has raised NOSPACE is no news."""
    near = _facts(3, db_size=(90 * MIB, 80 * MIB, 81 * MIB), db_size_in_use=80 * MIB)._replace(quota_bytes=100 * MIB)
    assert [(f.code, f.member, f.severity) for f in findings(near)] == [
        ("quota-high", "ironman", "warning"),
        ("quota-high", "deadpool", "warning"),
    ]
    raised = near.members[0]._replace(alarms=(Alarm(1, "NOSPACE"),))
    codes = [(f.code, f.member) for f in findings(near._replace(members=(raised, *near.members[1:])))]
    assert ("quota-high", "ironman") not in codes
    assert ("quota-high", "deadpool") in codes
    loose = _facts(3, db_size=(300 * MIB, 20480, 20480))
    [found] = findings(loose)
    assert (found.code, found.member) == ("fragmented", "ironman")
    assert "`cluster.defrag`" in found.remedy


def test_a_full_quota_names_its_cure() -> None:
    """The remedy for NOSPACE is our own task, which leaves CORRUPT alone."""
    facts = _facts(3)
    raised = tuple(member._replace(alarms=(Alarm(1, "NOSPACE"),)) for member in facts.members)
    [found] = findings(facts._replace(members=raised))
    assert found.code == "alarm-nospace"
    assert "`cluster.heal-nospace`" in found.remedy


# -- defrag


def test_followers_first_and_the_leader_after_it_has_handed_over() -> None:
    """Members take turns in the order of creation, the leader last; leadership goes to one that is done by then."""
    record, facts = _record(), _facts(3, leader=2, raft_applied_index=(9, 9, 10))
    rule = DefragRule(everyone=True)
    plan = plan_defrag(record, facts, [rule.judge(space) for space in _three()])
    assert _does(plan) == ["defrag ironman", "defrag deadpool", "move-leader deadpool", "defrag thor"]
    assert plan.consequence == ""
    assert plan.steps[0].by_hand == f"etcdctl --endpoints={record.members[0].client_url} defrag"
    assert "50 MiB of 100 MiB free" in plan.steps[0].text
    assert "member.move-leader --to thor" in plan_text(plan)


def test_leadership_goes_to_a_member_that_is_done() -> None:
    """Even if another has applied more: that one's turn may come another day."""
    facts = _facts(3, leader=2, raft_applied_index=(9, 9, 100))
    spaces = [_space("ironman", size=500), _space("thor", "leader", size=500), _space("deadpool", used=100)]
    plan = plan_defrag(_record(), facts, [DefragRule().judge(space) for space in spaces])
    assert _does(plan) == ["defrag ironman", "move-leader ironman", "defrag thor"]
    alone = plan_defrag(_record(), facts, [DefragRule().judge(space) for space in spaces], only=["thor"])
    assert _does(alone) == ["move-leader deadpool", "defrag thor"]


def test_nothing_is_worth_it() -> None:
    """Then there are no steps, and the plan says so."""
    plan = plan_defrag(_record(), _facts(), [DefragRule().judge(space) for space in _three()])
    assert plan.steps == ()
    assert plan.already == "no member of lab is worth defragmenting"


def test_learners_are_left_out() -> None:
    """A learner takes no turn and never leads."""
    facts = _facts(3, leader=1, learners=(3,))
    spaces = [_space("ironman", "leader"), _space("thor"), _space("deadpool", "learner")]
    plan = plan_defrag(_record(), facts, [DefragRule(everyone=True).judge(space) for space in spaces])
    assert _does(plan) == ["defrag thor", "move-leader thor", "defrag ironman"]


@pytest.mark.parametrize(
    ("size", "said"),
    [(1, "ironman is the only voter: nothing is served"), (2, "the quorum needs ironman: writes may pause")],
)
def test_an_outage_is_said(size: int, said: str) -> None:
    """Where no quorum is left of the others, the plan has a consequence, and so it is asked about."""
    spaces = [_space(name, "leader" if i == 1 else "follower") for i, name in enumerate(NAMES[:size])]
    roles = [space._replace(role="leader") for space in spaces] if size == 1 else spaces
    facts = _facts(size, leader=size)
    plan = plan_defrag(_record(size), facts, [DefragRule(everyone=True).judge(space) for space in roles])
    assert plan.consequence.startswith(said)
    assert _does(plan)[-1] == f"defrag {NAMES[size - 1]}"
    assert ("move-leader ironman" in _does(plan)) is (size == 2)


def test_a_disk_without_room_is_refused() -> None:
    """The new copy is written beside the old one, so what is in use must be free; unknown is not refused."""
    rule = DefragRule(everyone=True)
    spaces = _three()
    spaces[2] = spaces[2]._replace(disk_free=50 * MIB - 1)
    with pytest.raises(Refused, match="deadpool needs 50 MiB for a new copy of its database, and its disk has 50 MiB"):
        plan_defrag(_record(), _facts(), [rule.judge(space) for space in spaces])
    spaces[2] = spaces[2]._replace(disk_free=50 * MIB)
    assert plan_defrag(_record(), _facts(), [rule.judge(space) for space in spaces]).steps
    # Who takes no turn needs no room.
    spaces[2] = spaces[2]._replace(disk_free=0)
    assert plan_defrag(_record(), _facts(), [rule.judge(space) for space in spaces], only=["thor"]).steps


@given(st.permutations(["leader", "follower", "follower"]), st.sets(st.sampled_from(NAMES)))
def test_the_leader_is_always_last(roles: list[str], chosen: set[str]) -> None:
    """Whoever leads and whoever is chosen: all that are chosen, once each, and no leader before a follower."""
    spaces = [_space(name, role) for name, role in zip(NAMES, roles, strict=True)]
    turns = order(spaces, sorted(chosen))
    assert sorted(turns) == sorted(chosen)
    leader = NAMES[roles.index("leader")]
    assert leader not in turns[:-1]


def test_patience_grows_with_the_database() -> None:
    """Minutes, and more for a larger one: 8 GiB at 4 MiB/s."""
    assert patience_s(0) == 120
    assert patience_s(8 * 2**30) == 120 + 2048


# -- versions


@pytest.mark.parametrize(
    ("version", "refused"),
    [
        ("3.4.23", True),
        ("3.4.38", False),
        ("3.5.1", True),
        ("3.5.22", True),
        ("3.5.23", False),
        ("3.5.30", False),
        ("3.6.4", True),
        ("3.6.5", False),
    ],
)
def test_versions_that_spoil_defragmenting(version: str, refused: bool) -> None:
    """What the members themselves say counts, not what is recorded; --allow-known-bad goes on."""
    facts = _facts(version=version)._replace(etcd_version="3.5.33")
    refuse_bad_versions(facts, "defrag", allow=True)
    if refused:
        with pytest.raises(Refused, match=f"defrag is not safe on etcd {version}"):
            refuse_bad_versions(facts, "defrag", allow=False)
    else:
        refuse_bad_versions(facts, "defrag", allow=False)


def test_compaction_is_spoiled_at_the_newest_revision_alone() -> None:
    """etcd#17780 needs the newest revision to be a tombstone that is compacted away; a step before, it stays."""
    facts = _facts(version="3.5.13")
    with pytest.raises(Refused, match="etcd-17780"):
        refuse_bad_compaction(facts, History(1, 100), 100, allow=False)
    refuse_bad_compaction(facts, History(1, 100), 99, allow=False)
    refuse_bad_compaction(facts, History(1, 100), 100, allow=True)
    refuse_bad_compaction(_facts(version="3.5.14"), History(1, 100), 100, allow=False)


# -- compact


class _Store:
    """A member that can read from one revision to another."""

    def __init__(self, oldest: int, newest: int, values: dict[bytes, bytes] | None = None) -> None:
        self.oldest, self.newest = oldest, newest
        self.values = values or {}
        self.reads = 0

    def range(self, key: bytes, range_end: bytes = b"", *, revision: int = 0, limit: int = 0, **_: Any) -> Any:
        self.reads += 1
        if revision and revision < self.oldest:
            text = "etcdserver: mvcc: required revision has been compacted"
            raise EtcdError("OUT_OF_RANGE", text, endpoint="http://x")
        found = [_KV(k, v) for k, v in sorted(self.values.items()) if k >= key]
        return RangeResult(self.newest, tuple(found[:limit]), len(found) > limit, len(found))  # type: ignore[arg-type]


class _KV:
    def __init__(self, key: bytes, value: bytes) -> None:
        self.key, self.value = key, value


@given(st.integers(1, 10**9), st.integers(0, 10**9))
def test_history_is_found(oldest: int, more: int) -> None:
    """The oldest readable revision is found, in about as many reads as the newest has binary digits."""
    store = _Store(oldest, oldest + more)
    assert history(store) == (oldest, oldest + more)  # type: ignore[arg-type]
    assert store.reads <= (oldest + more).bit_length() + 1


@pytest.mark.parametrize(
    ("known", "wish", "target"),
    [
        (History(1, 50_000), {}, 40_000),
        (History(1, 50_000), {"keep": 100}, 49_900),
        (History(1, 50_000), {"keep": 0}, 50_000),
        (History(1, 50_000), {"revision": 7}, 7),
        (History(1, 50_000), {"revision": 50_000}, 50_000),
        (History(1, 500), {}, 0),
    ],
)
def test_where_to_compact(known: History, wish: dict[str, int], target: int) -> None:
    """To the newest less what is kept, never to the newest unless that is asked for; or to a revision."""
    assert choose(known, **wish) == target


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"keep": 5, "revision": 5}, "--keep and --revision both"),
        ({"keep": -1}, "-1 revisions cannot be kept"),
        ({"revision": -3}, "there is no revision -3"),
        ({"revision": 501}, "revision 501 is yet to come: the newest is 500"),
    ],
)
def test_no_such_compaction(wish: dict[str, int], said: str) -> None:
    """What cannot be meant is refused."""
    with pytest.raises(SpecError, match=said):
        choose(History(1, 500), **wish)


def test_a_compaction_says_what_is_lost() -> None:
    """One step through the leader, physical, with the loss for readers and watchers; so it is asked about."""
    record = _record()
    plan = plan_compact(record, _facts(leader=2), History(1, 50_000))
    assert _does(plan) == ["compact thor"]
    assert plan.steps[0].by_hand == f"etcdctl --endpoints={record.members[1].client_url} compact 40000 --physical"
    assert "the history before revision 40,000 is gone for good" in plan.consequence
    assert "watches that start there" in plan.consequence


@pytest.mark.parametrize(
    ("known", "wish", "said"),
    [
        (History(400, 500), {"revision": 400}, "revisions 400 to 500 can be read, so 400 is compacted already"),
        (History(400, 500), {"revision": 3}, "so 3 is compacted already"),
        (History(400, 500), {"keep": 100}, "and the newest 100 are to stay"),
        (History(1, 500), {}, "revisions 1 to 500 can be read, and the newest 500 are to stay"),
    ],
)
def test_compacted_already(known: History, wish: dict[str, int], said: str) -> None:
    """A compaction that was done, or is not needed, is no step."""
    plan = plan_compact(_record(), _facts(), known, **wish)
    assert plan.steps == ()
    assert plan.already.endswith(said)


def test_who_is_asked() -> None:
    """The leader, else a voter that serves; without one it is refused."""
    facts = _facts(3, leader=2)
    assert voter(facts) == "thor"
    gone = facts.members[1]._replace(serves=False)
    assert voter(facts._replace(members=(facts.members[0], gone, facts.members[2]))) == "ironman"
    silent = tuple(member._replace(serves=False) for member in facts.members)
    with pytest.raises(Refused, match="no voter of lab serves"):
        voter(facts._replace(members=silent))


# -- a full quota


def _full(
    *alarms: Alarm, live: int = 1, oldest: int = 1, newest: int = 100, blocked: bool = False, **sizes: Any
) -> Fullness:
    """Give a cluster that is full; `live` MiB are alive at every revision."""
    spaces = _three(**{"size": 17, "used": 16, "quota": 16 * MIB, **sizes})
    live_at = dict.fromkeys(range(max(newest - 20_000, 1), newest + 1), live * MIB)
    return Fullness(alarms or (Alarm(1, "NOSPACE"),), tuple(spaces), History(oldest, newest), live_at, blocked)


def _healed(
    seen: Fullness, *, keep: int | None = None, version: str = "3.5.30", record: ClusterRecord | None = None
) -> Plan:
    return plan_heal(record or _record(), _facts(version=version), seen, keep=keep)[0]


def test_no_alarm_nothing_to_heal() -> None:
    """A CORRUPT alarm alone is none of its business."""
    plan, revision = plan_heal(_record(), _facts(), _full(Alarm(2, "CORRUPT")))
    assert (plan.steps, revision) == ((), 0)
    assert plan.already == "no member of lab has raised NOSPACE"


def test_the_way_to_heal() -> None:
    """Compact, defragment everybody with the leader last, disarm each by name, and prove it."""
    seen = _full(Alarm(1, "NOSPACE"), Alarm(3, "NOSPACE"))
    plan, revision = plan_heal(_record(), _facts(), seen, keep=10)
    assert revision == 90
    assert _does(plan) == [
        "compact thor",
        "defrag ironman",
        "defrag deadpool",
        "move-leader ironman",
        "defrag thor",
        "disarm ironman",
        "disarm deadpool",
        "prove thor",
    ]
    assert plan.member == "ironman, deadpool"
    assert "gone for good" in plan.consequence
    disarm = plan.steps[5].by_hand
    assert '"action": "DEACTIVATE", "memberID": "1", "alarm": "NOSPACE"' in disarm
    assert "CORRUPT" not in plan_text(plan)


def test_what_is_cured_is_only_disarmed() -> None:
    """After a healing that was cut short, or a greater quota: no history is given up for nothing."""
    plan = _healed(_full(size=12, used=10))
    assert _does(plan) == ["disarm ironman", "prove thor"]
    assert plan.consequence == ""


def test_what_is_compacted_is_not_compacted_again() -> None:
    """Cut short in the middle, it goes on there: whoever is small already takes no turn."""
    seen = _full(oldest=90, newest=100, used=3)
    seen = seen._replace(spaces=(seen.spaces[0]._replace(db_size=3 * MIB), *seen.spaces[1:]))
    assert _does(_healed(seen, keep=10)) == [
        "defrag deadpool",
        "move-leader deadpool",
        "defrag thor",
        "disarm ironman",
        "prove thor",
    ]


def test_live_data_cannot_be_compacted_away() -> None:
    """What is alive fills the quota: refused before anything, with what helps."""
    with pytest.raises(Refused, match="at least 13 MiB of keys and values are alive, of a quota of 16 MiB") as refused:
        _healed(_full(live=13))
    assert "Delete keys" in refused.value.remedy
    assert "quota" in refused.value.remedy
    assert "Nothing was changed" in refused.value.remedy


def test_history_that_is_kept_cannot_be_compacted_away() -> None:
    """Asked to keep it all, or after it is gone, nothing would be freed: refused, with the reason."""
    with pytest.raises(Refused, match="revisions 1 to 100 can be read: --keep 5,000 keeps too much"):
        _healed(_full(), keep=5000)
    with pytest.raises(Refused, match="there is no older history to give up"):
        _healed(_full(oldest=100, newest=100))
    # 99 revisions take 15 MiB.
    with pytest.raises(Refused, match="--keep 90 keeps too much"):
        _healed(_full(), keep=90)
    assert _healed(_full(), keep=70).steps


def test_corrupt_may_forbid_it() -> None:
    """Where etcd refuses to compact because of CORRUPT, that comes first; where nothing is to compact it may go on."""
    alarms = (Alarm(1, "NOSPACE"), Alarm(3, "CORRUPT"))
    with pytest.raises(Refused, match="CORRUPT alarm has etcd refuse to compact"):
        _healed(_full(*alarms, blocked=True))
    assert _does(_healed(_full(*alarms, blocked=True, size=10, used=9))) == ["disarm ironman", "prove thor"]


@pytest.mark.parametrize(("version", "warned"), [("3.4.23", True), ("3.5.33", True), ("3.6.0", False)])
def test_corrupt_beside_it_is_a_hazard(version: str, warned: bool) -> None:
    """Before 3.6, disarming NOSPACE lifts what CORRUPT forbids, save on members that restart: so it is asked about."""
    plan = _healed(_full(Alarm(1, "NOSPACE"), Alarm(3, "CORRUPT"), size=12, used=10), version=version)
    assert ("Restart none before CORRUPT is dealt with" in plan.consequence) is warned
    assert [step.member for step in plan.steps if step.do == "disarm"] == ["ironman"]


def test_a_removed_member_has_left_its_alarm() -> None:
    """An alarm outlives its member (etcd#14379): it is disarmed by the member's id."""
    plan = _healed(_full(Alarm(0xABC, "NOSPACE"), size=12, used=10))
    assert _does(plan) == ["disarm abc", "prove thor"]
    assert f'"memberID": "{0xABC}"' in plan.steps[0].by_hand


@pytest.mark.parametrize(
    ("newest", "used", "live", "kept"),
    [
        # 15 MiB for 99 revisions; 60 % of 16 MiB less 1 MiB of live data has room for 56 of them.
        (100, 16, 1, 56),
        # Small revisions: the usual number fits easily.
        (1_000_000, 16, 1, KEEP),
        # Hardly any room beside live data.
        (100, 16, 9, 8),
        (100, 16, 10, 0),
    ],
)
def test_how_much_history_is_kept_by_itself(newest: int, used: int, live: int, kept: int) -> None:
    """As much as there is room for, by what a revision takes on average; no more than usual, and never none."""
    _, revision = plan_heal(_record(), _facts(), _full(newest=newest, used=used, live=live))
    assert revision == newest - kept


def test_what_was_deleted_last_is_given_up() -> None:
    """What is alive at the revision that is compacted to stays: a great deletion goes only with its own revision."""
    seen = _full(live=14)._replace(live={100: MIB, 99: 14 * MIB, 90: 14 * MIB, 44: 14 * MIB})
    assert plan_heal(_record(), _facts(), seen)[1] == 100
    with pytest.raises(Refused, match="--keep 1 keeps too much of that"):
        plan_heal(_record(), _facts(), seen, keep=1)
    with_others = seen._replace(live={**seen.live, 99: MIB})
    assert plan_heal(_record(), _facts(), with_others)[1] == 99


def test_commands_have_certificates() -> None:
    """With TLS every plain command names the files."""
    tls = Tls("/ca.pem", "/me.pem", "/me.key")
    record = _record()
    members = tuple(msgspec.structs.replace(m, cert="/c", key="/k") for m in record.spec.members)
    record = msgspec.structs.replace(record, spec=msgspec.structs.replace(record.spec, members=members, tls=tls))
    plan = _healed(_full(), keep=10, record=record)
    assert all("/ca.pem" in step.by_hand and "/me.key" in step.by_hand for step in plan.steps)


@given(st.dictionaries(st.binary(min_size=1, max_size=8), st.binary(max_size=200), max_size=60), st.integers(1, 4000))
def test_live_data_are_counted(values: dict[bytes, bytes], enough: int) -> None:
    """Every key and value once, page after page; counting ends soon after it is enough."""
    store = _Store(1, 10, values)
    everything = sum(len(key) + len(value) for key, value in values.items())
    assert live_bytes(store, 10**9, 10) == everything  # type: ignore[arg-type]
    counted = live_bytes(store, enough, 10)  # type: ignore[arg-type]
    assert counted == everything or counted >= enough
