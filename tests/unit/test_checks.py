"""The gate's rules, on facts that are made up: every finding comes from what it says, and from nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcdops.answers import Alarm, MemberInfo, Status
from etcdops.checks import check_change, check_snapshot, findings
from etcdops.facts import Facts, MemberFacts
from etcdops.findings import CODES, Finding, by_severity
from etcdops.quorum import answering, excluded, leader_of_facts, quorum_after, up, voters, why_not_up

NAMES = ("ironman", "thor", "deadpool", "wolverine", "hulk", "wasp", "vision")


def _status(number: int, *, leader: int = 1, term: int = 2, **other: object) -> Status:
    said = Status(number, 99, "3.5.30", 20480, 20480, leader, term, 9, 9, 4, (), False)
    return said._replace(**other)  # type: ignore[arg-type]


def _info(number: int, *, learner: bool = False, started: bool = True, name: str = "") -> MemberInfo:
    shown = (name or NAMES[number - 1]) if started else ""
    return MemberInfo(
        number, shown, (f"http://127.0.0.1:{3000 + number}",), ("http://x:1",) if started else (), learner
    )


def _member(number: int, **other: object) -> MemberFacts:
    made = MemberFacts(
        NAMES[number - 1],
        f"http://127.0.0.1:{2000 + number}",
        f"http://127.0.0.1:{3000 + number}",
        "running",
        "running",
        (_status(number),),
        True,
        True,
    )
    return made._replace(**other)  # type: ignore[arg-type]


def _facts(size: int = 3, *extra: MemberInfo, **changed: dict[str, object]) -> Facts:
    """Give the facts of a cluster in which all is well, but for the members whose fields are given by name."""
    listed = (*(_info(i) for i in range(1, size + 1)), *extra)
    members = tuple(_member(i, **{"listed": listed, **changed.get(NAMES[i - 1], {})}) for i in range(1, size + 1))
    return Facts("lab", "3.5.30", members, auth=False)


def _stopped(**other: object) -> dict[str, object]:
    return {"state": "stopped", "statuses": (None,), "serves": False, "serves_locally": False, "listed": None, **other}


def _silent() -> dict[str, object]:
    return {"statuses": (None,), "serves": False, "serves_locally": False, "listed": None}


def _codes(facts: Facts) -> list[str]:
    return [finding.code for finding in findings(facts)]


def _only(facts: Facts, code: str) -> Finding:
    [found] = [finding for finding in findings(facts) if finding.code == code]
    return found


# -- quorum


@pytest.mark.parametrize(
    ("size", "down", "change", "holds"),
    [
        (1, 0, {"stopping": "ironman"}, False),
        (2, 0, {"stopping": "ironman"}, False),
        (3, 0, {"stopping": "ironman"}, True),
        (3, 1, {"stopping": "ironman"}, False),
        (5, 1, {"stopping": "ironman"}, True),
        (5, 2, {"stopping": "ironman"}, False),
        # A dead member may be removed, which makes the quorum smaller; a living one of two may not.
        (3, 1, {"removing": "deadpool"}, True),
        (3, 1, {"removing": "ironman"}, False),
        (2, 0, {"removing": "thor"}, True),
        (2, 1, {"removing": "thor"}, True),
        (1, 0, {"removing": "ironman"}, False),
        # What is added counts, and is not up yet: 1 + 1 would stop the cluster, and so would 3 + 1 with one down.
        (1, 0, {"adding": "new"}, False),
        (2, 0, {"adding": "new"}, True),
        (3, 0, {"adding": "new"}, True),
        (3, 1, {"adding": "new"}, False),
        (3, 2, {}, False),
        (3, 1, {}, True),
    ],
)
def test_quorum_after(size: int, down: int, change: dict[str, str], holds: bool) -> None:
    """The member that a change is about counts as down, and so does every one that is down already."""
    names = NAMES[:size]
    assert quorum_after(names, names[: size - down], **change).holds is holds


_CHANGES = st.sampled_from(["stopping", "removing", "adding"])


@given(st.integers(1, 7), st.sets(st.sampled_from(NAMES)), _CHANGES, st.sampled_from([*NAMES, "new"]))
def test_no_permitted_change_takes_the_quorum(size: int, there: set[str], kind: str, name: str) -> None:
    """Whatever is up and whatever is changed: if it is permitted, at least a quorum of started voters is left."""
    names = NAMES[:size]
    after = quorum_after(names, there, **{kind: name})
    voters_after = {*names, name} if kind == "adding" else {*names} - ({name} if kind == "removing" else set())
    started = (set(names) & there & voters_after) - {name}
    assert set(after.voters) == voters_after
    assert set(after.up) == started
    assert after.needed == len(voters_after) // 2 + 1
    if after.holds:
        assert len(started) >= len(voters_after) // 2 + 1
    assert set(after.up) | set(after.down) == voters_after


@given(st.integers(1, 7), st.sets(st.sampled_from(NAMES)))
def test_any_sequence_of_permitted_stops_keeps_a_quorum(size: int, there: set[str]) -> None:
    """Stopping one member after the other, as long as that is permitted, never comes below the quorum."""
    names, running = NAMES[:size], {name for name in NAMES[:size] if name in there}
    before = len(running)
    for name in names:
        if name in running and quorum_after(names, running, stopping=name).holds:
            running.discard(name)
    if before >= size // 2 + 1:
        assert len(running) == size // 2 + 1
    else:
        assert len(running) == before


@given(st.integers(1, 7), st.sets(st.sampled_from(NAMES)), st.sampled_from(NAMES))
def test_a_change_is_refused_exactly_when_the_quorum_would_be_lost(size: int, there: set[str], name: str) -> None:
    """`check_change` on facts says the same as the arithmetic, and names every voter that is missing besides."""
    facts = _facts(size, **{each: _stopped() for each in NAMES[:size] if each not in there})
    if len(there & set(NAMES[:size])) == 0:
        facts = facts._replace(members=tuple(m._replace(state="stopped") for m in facts.members))
    found = check_change(facts, stopping=name)
    if name not in NAMES[:size]:
        assert found == ()
        return
    after = quorum_after(NAMES[:size], there, stopping=name)
    assert bool(found) is not after.holds
    for finding in found:
        assert (finding.code, finding.severity, finding.member) == ("quorum-at-risk", "error", name)
        assert all(f"{each} is stopped" in finding.message for each in after.down if each != name)
        assert finding.remedy


def test_a_refusal_says_which_members_are_missing_and_what_to_do() -> None:
    """It counts, names who is down and why, and gives the commands that bring them back."""
    facts = _facts(5, thor=_stopped(), hulk={**_silent(), "state": "paused"})
    [found] = check_change(facts, stopping="ironman")
    assert found.message == (
        "taking ironman away would leave 2 of 5 voters up, and the quorum is 3: thor is stopped and hulk is frozen"
    )
    assert "`member.start thor`, `member.thaw hulk`" in found.remedy
    [alone] = check_change(_facts(1), stopping="ironman")
    assert "0 of 1 voters" in alone.message
    assert "`down-env`" in alone.remedy
    [adding] = check_change(_facts(1), adding="new")
    assert adding.message.startswith("adding new would leave 1 of 2 voters up, and the quorum is 2")


def test_a_learner_may_always_be_stopped() -> None:
    """A learner has no vote, so the quorum does not depend on it."""
    facts = _facts(2, thor={"statuses": (_status(2, is_learner=True),)})
    facts = facts._replace(members=tuple(m._replace(listed=(_info(1), _info(2, learner=True))) for m in facts.members))
    assert voters(facts) == ("ironman",)
    assert check_change(facts, stopping="thor") == ()


# -- who is there


def test_voters_are_those_that_the_cluster_lists() -> None:
    """Voters that were added by hand count, by the record's name where they have one, else by their id."""
    assert voters(_facts(3)) == ("ironman", "thor", "deadpool")
    assert voters(_facts(3, _info(4, started=False))) == ("ironman", "thor", "deadpool", "4")
    assert voters(_facts(3, _info(4, name="stranger"))) == ("ironman", "thor", "deadpool", "stranger")
    assert voters(_facts(3, _info(4, learner=True))) == ("ironman", "thor", "deadpool")
    # etcd lists them in the order of their ids.
    shuffled = _facts(3)
    shuffled = shuffled._replace(members=tuple(m._replace(listed=(m.listed or ())[::-1]) for m in shuffled.members))
    assert voters(shuffled) == ("ironman", "thor", "deadpool")
    # Nobody gave a list: what is recorded, but for those who say that they are learners.
    facts = _facts(3, thor={"statuses": (_status(2, is_learner=True),)})
    assert voters(facts._replace(members=tuple(m._replace(listed=None) for m in facts.members))) == (
        "ironman",
        "deadpool",
    )
    assert up(_facts(3, _info(4, name="stranger"), thor=_stopped())) == ("ironman", "deadpool")


def test_the_newest_list_counts() -> None:
    """A member that lags may list what was: the list of the one that has applied most is believed."""
    old = (_info(1), _info(2))
    facts = _facts(3, ironman={"listed": old, "statuses": (_status(1, raft_applied_index=5),)})
    assert len(voters(facts)) == 3


def test_why_a_member_is_not_up() -> None:
    """Each state has words of its own."""
    facts = _facts(
        5,
        ironman=_stopped(),
        thor={**_silent(), "state": "paused"},
        deadpool=_silent(),
        wolverine={"serves": False},
        hulk={"state": "isolated", "serves": False},
    )
    assert [why_not_up(facts, name) for name in (*NAMES[:5], "nobody")] == [
        "is stopped",
        "is frozen",
        "does not answer",
        "serves no linearizable read",
        "is cut off from a network",
        "is unknown to etcdops",
    ]
    assert why_not_up(_facts(), "thor") == "is up"
    assert answering(facts) == ("wolverine",)
    assert answering(_facts(3, thor=_silent())) == ("ironman", "deadpool")


def test_an_isolated_member_is_not_up() -> None:
    """A member that is off a network does not count, even if it still answers a read: it may have just been cut off."""
    assert up(_facts(3, thor={"state": "isolated"})) == ("ironman", "deadpool")


def test_who_leads() -> None:
    """The highest term decides; nobody leads where those in it know of nobody."""
    assert leader_of_facts(_facts()) == ("ironman", 2)
    assert leader_of_facts(_facts(3, thor={"statuses": (_status(2, leader=2, term=3),)})) == ("thor", 3)
    assert leader_of_facts(_facts(3, thor={"statuses": (_status(2, leader=0, term=3),)})) == (None, 3)


# -- one look


def test_a_healthy_cluster_has_no_findings() -> None:
    """Nothing is found where nothing is wrong, in one look and in two."""
    assert findings(_facts()) == ()
    assert findings(_facts(1)) == ()
    twice = _facts()._replace(members=tuple(m._replace(statuses=(m.status, m.status)) for m in _facts().members))
    assert findings(twice) == ()


@pytest.mark.parametrize(
    ("facts", "codes"),
    [
        (_facts(3, thor=_stopped()), ["member-stopped"]),
        (_facts(3, thor={**_silent(), "state": "paused"}), ["member-frozen"]),
        (_facts(3, thor={**_silent(), "state": "isolated"}), ["member-isolated"]),
        (_facts(3, thor=_silent()), ["member-unreachable"]),
        (_facts(3, thor={"serves": False}), ["member-not-serving"]),
        (_facts(3, **{name: _stopped() for name in NAMES[:3]}), ["no-quorum"]),
        (
            _facts(3, thor=_stopped(), deadpool=_stopped(), ironman={"serves": False}),
            ["no-quorum", "member-stopped", "member-stopped"],
        ),
        (
            _facts(
                3,
                **{
                    name: {"serves": False, "statuses": (_status(i, leader=0, term=7),)}
                    for i, name in enumerate(NAMES[:3], start=1)
                },
            ),
            ["no-leader"],
        ),
        (_facts(3, thor={"statuses": (_status(2, cluster_id=98),)}), ["cluster-id"]),
        (_facts(3, thor={"listed": (_info(1), _info(2))}), ["member-lists-differ"]),
        (_facts(3, _info(4, started=False, learner=True)), ["member-unstarted"]),
        (_facts(3, _info(4, started=False)), ["member-unstarted", "even-size"]),
        (_facts(3, _info(4, learner=True)), ["learner-pending", "member-unknown"]),
        (_facts(3, _info(4), _info(5)), ["member-unknown", "member-unknown"]),
        (_facts(3, thor={"statuses": (_status(2, leader=2),)}), ["two-leaders"]),
        (_facts(3, thor={"statuses": (_status(2, term=1),)}), ["terms-differ"]),
        (_facts(3, thor={"statuses": (_status(2, version="3.6.14"),)}), ["mixed-minors"]),
        (_facts(3, thor={"statuses": (_status(2, version="3.5.33"),)}), []),
        (_facts(3, ironman={"alarms": (Alarm(2, "NOSPACE"),)}), ["alarm-nospace"]),
        (_facts(3, ironman={"alarms": (Alarm(2, "CORRUPT"),)}), ["alarm-corrupt"]),
        (_facts(3, ironman={"alarms": (Alarm(0, "NOSPACE"),)}), ["alarm-nospace"] * 3),
        (_facts(2), ["even-size"]),
        (_facts(3)._replace(auth=True), ["auth"]),
        (
            _facts(3)._replace(etcd_version="3.5.1"),
            ["known-bad:etcd-13766", "known-bad:etcd-14733", "known-bad:etcd-17780"],
        ),
    ],
)
def test_what_is_found(facts: Facts, codes: list[str]) -> None:
    """Each thing that can be wrong is found under its code, and nothing else is."""
    assert _codes(facts) == codes
    for finding in findings(facts):
        assert finding.severity == CODES[finding.code.partition(":")[0]]
        assert finding.message
        assert finding.member == "" or finding.member in finding.message
        assert finding.remedy or finding.code in ("even-size", "member-unknown")


def test_findings_of_members_name_them() -> None:
    """What is about one member says so in a field, so that an operation on that very member can go on."""
    facts = _facts(3, _info(4, started=False), thor=_stopped(), ironman={"alarms": (Alarm(3, "CORRUPT"),)})
    assert {f.code: f.member for f in findings(facts) if f.member} == {
        "member-stopped": "thor",
        "member-unstarted": "4",
        "alarm-corrupt": "deadpool",
    }


def test_a_member_that_was_stopped_on_purpose_is_said_to_be() -> None:
    """`member.stop` is remembered: the finding says that it was asked for."""
    assert _only(_facts(3, thor=_stopped(wanted="stopped")), "member-stopped").message == (
        "thor is stopped, as was asked for"
    )
    assert _only(_facts(3, thor=_stopped()), "member-stopped").message == "thor is stopped"


def test_a_removed_member_is_found() -> None:
    """A member that is recorded and that the cluster no longer lists was removed by hand."""
    facts = _facts(3)
    listed = (_info(1), _info(3))
    facts = facts._replace(members=tuple(m._replace(listed=listed) for m in facts.members))
    assert _only(facts, "member-removed").member == "thor"


def test_a_started_learner_answers_what_learners_answer() -> None:
    """A learner is not asked for a linearizable read; that it serves a serializable one is enough."""
    listed = (_info(1), _info(2), _info(3), _info(4, learner=True))
    learner = {"serves": False, "statuses": (_status(4, is_learner=True),), "listed": None}
    facts = _facts(4, wolverine=learner)
    facts = facts._replace(
        members=tuple(m._replace(listed=listed if m.listed is not None else None) for m in facts.members)
    )
    assert _codes(facts) == ["learner-pending"]
    mute = facts._replace(members=tuple(m._replace(serves_locally=m.name != "wolverine") for m in facts.members))
    assert _codes(mute) == ["member-not-serving", "learner-pending"]


def test_errors_come_first() -> None:
    """A person who reads one line reads the gravest."""
    found = [Finding("c", "3", "info"), Finding("b", "2"), Finding("a", "1", "error"), Finding("z", "4", "error")]
    assert [finding.code for finding in by_severity(found)] == ["a", "z", "b", "c"]
    assert str(Finding("a", "said", "error", remedy="Do it.")) == "error a: said -> Do it."


def test_a_code_that_is_not_listed_is_an_error_of_ours() -> None:
    """Codes are a promise to programs, so none is made up by the way."""
    with pytest.raises(KeyError):
        Finding.of("surprise", "said")
    assert Finding.of("known-bad:etcd-1", "said").severity == "warning"


# -- two looks


def _looks(*pairs: tuple[tuple[int, int], tuple[int, int]]) -> Facts:
    """Give facts of two looks: for each member (index, revision) at the first and at the second."""
    changed: dict[str, dict[str, object]] = {}
    for i, looks in enumerate(pairs):
        statuses = tuple(_status(i + 1, raft_applied_index=index, revision=revision) for index, revision in looks)
        changed[NAMES[i]] = {"statuses": statuses}
    return _facts(len(pairs), **changed)


@pytest.mark.parametrize(
    ("facts", "codes"),
    [
        # Nothing happens, and all are equal.
        (_looks(((9, 4), (9, 4)), ((9, 4), (9, 4)), ((9, 4), (9, 4))), []),
        # Traffic: whoever has reached what anybody had a second ago is not behind.
        (_looks(((100, 90), (300, 290)), ((95, 85), (290, 280)), ((90, 80), (100, 90))), []),
        # One catches up: it is behind, but by less than before.
        (_looks(((1000, 900), (1010, 910)), ((1000, 900), (1010, 910)), ((10, 5), (600, 500))), []),
        # One stands still, and one goes ever slower.
        (_looks(((100, 90), (100, 90)), ((100, 90), (100, 90)), ((80, 70), (80, 70))), ["behind"]),
        (_looks(((100, 90), (900, 890)), ((100, 90), (900, 890)), ((50, 40), (60, 50))), ["behind"]),
        # The same entries, and other revisions: they have diverged (etcd's postmortem of 3.5).
        (_looks(((9, 4), (9, 4)), ((9, 4), (9, 4)), ((9, 3), (9, 3))), ["diverged"]),
        # While entries come in, index and revision of one answer need not belong together.
        (_looks(((9, 4), (12, 7)), ((9, 5), (12, 7)), ((9, 4), (12, 7))), []),
        (_looks(((9, 4), (9, 5)), ((9, 4), (9, 4)), ((9, 4), (9, 4))), []),
    ],
)
def test_convergence(facts: Facts, codes: list[str]) -> None:
    """Members that are equal or converge are well; one that stays behind or has another revision is found."""
    assert _codes(facts) == codes


def test_one_look_says_nothing_about_convergence() -> None:
    """Lag in one look may be gone in the next."""
    facts = _facts(3, thor={"statuses": (_status(2, raft_applied_index=1, revision=1),)})
    assert findings(facts) == ()


def test_a_member_that_answers_only_once_is_unreachable_in_the_second_look() -> None:
    """The latest look counts, and a member of which there are not two is not compared."""
    facts = _facts(3, thor={"statuses": (_status(2, raft_applied_index=1), None), "serves": False})
    assert _codes(facts) == ["member-unreachable"]


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=7))
def test_who_is_most_advanced_is_never_behind(members: list[tuple[int, int]]) -> None:
    """Of any two looks, those that have applied most in the second are not behind, and who gains is not either."""
    facts = _looks(*(((first, 1), (first + more, 1)) for first, more in members))
    most = max(first + more for first, more in members)
    before = max(first for first, _ in members)
    behind = {finding.member for finding in findings(facts) if finding.code == "behind"}
    for name, (first, more) in zip(NAMES, members, strict=False):
        second = first + more
        assert (name in behind) is (second < before and most - second >= before - first)


# -- operations


def test_snapshots_that_are_too_old() -> None:
    """No verified snapshot, and one that is too old, are errors; a recent one is not."""
    facts = _facts()
    assert "there is none" in check_snapshot(facts)[0].message
    assert "the newest is 30 h old" in check_snapshot(facts._replace(snapshot_age_s=108_000.0))[0].message
    assert check_snapshot(facts._replace(snapshot_age_s=108_000.0), max_age_s=200_000.0) == ()
    assert check_snapshot(facts._replace(snapshot_age_s=60.0)) == ()


@pytest.mark.parametrize(
    ("facts", "out"),
    [
        (_facts(3), {"auth", "tls", "single-member", "voter-down", "unstarted-learner"}),
        (_facts(1), {"auth", "tls", "voter-down", "unstarted-learner"}),
        (_facts(3)._replace(auth=None), {"tls", "single-member", "voter-down", "unstarted-learner"}),
        (_facts(3)._replace(auth=True), {"tls", "single-member", "voter-down", "unstarted-learner"}),
        (_facts(3, thor={"client_url": "https://x:1"}), {"auth", "single-member", "voter-down", "unstarted-learner"}),
        (_facts(3, thor=_stopped()), {"auth", "tls", "single-member", "unstarted-learner"}),
        (_facts(3, _info(4, learner=True, started=False)), {"auth", "tls", "single-member", "voter-down"}),
        # Nobody gave a list: what is not known is not ruled out.
        (_facts(3, **{name: _stopped() for name in NAMES[:3]}), {"auth", "tls", "single-member"}),
    ],
)
def test_what_facts_rule_out(facts: Facts, out: set[str]) -> None:
    """A condition is ruled out only where the facts show that it does not hold."""
    assert excluded(facts) == out
