"""Stopping, starting, killing, freezing, thawing a member, and moving leadership: on every runtime, and as tasks."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from etcdops import binaries, runtimes
from etcdops.cluster import Cluster
from etcdops.errors import (
    ConfirmationNeeded,
    EtcdError,
    EtcdopsError,
    NoLeader,
    QuorumLost,
    Refused,
    SpecError,
    WaitTimeout,
)
from etcdops.fake.cluster import FakeCluster
from etcdops.fake.member import FakeMember
from etcdops.faults.heal import heal
from etcdops.operations.leader import prepare as prepare_move
from etcdops.operations.members import ACTIONS, prepare, run
from etcdops.operations.plan import Plan, plan_text
from etcdops.report.journal import read_journal
from etcdops.runtimes.fake import FakeRuntime
from etcdops.spec import ClusterSpec, Timing
from etcdops.state import Store
from tests.conftest import CommandLine
from tests.suite.shared import RUNTIMES, cluster_by
from tests.suite.terminal import Terminal

Wait = Callable[..., None]


@pytest.fixture(scope="module", params=RUNTIMES)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of three for all tests of a runtime."""
    with cluster_by(request, tmp_path_factory.mktemp("tasks")) as cluster:
        yield cluster


@pytest.fixture
def lab(shared: Cluster) -> Cluster:
    """The shared cluster, healthy."""
    shared.up()
    return shared


def _states(cluster: Cluster) -> dict[str, str]:
    return dict(cluster.runtime.states(cluster.record))


def _followers(cluster: Cluster) -> list[str]:
    leader = cluster.leader().name
    return [member.name for member in cluster.members if member.name != leader]


# -- one member


def test_stop_is_remembered_and_start_takes_it_back(lab: Cluster) -> None:
    """A stopped member stays stopped through `heal`; `start` brings it back; what is done already is not repeated."""
    name = _followers(lab)[0]
    said = run(lab, "stop", name)
    assert said.startswith(f"{name} is stopped; {lab.leader().name} leads in term ")
    assert said.endswith("2 of 3 members serve, can lose 0")
    assert lab.member(name).record.wanted == "stopped"
    assert heal(lab) == []
    assert _states(lab)[name] == "stopped"
    assert run(lab, "stop", name) == f"{name} is stopped already: nothing was changed"
    assert run(lab, "start", name).endswith("3 of 3 members serve, can lose 1")
    assert lab.member(name).record.wanted == "running"
    assert run(lab, "start", name) == f"{name} runs already: nothing was changed"
    run(lab, "stop", name)
    assert lab.up() == [name]


def test_stopping_the_leader_hands_leadership_over_first(lab: Cluster) -> None:
    """Two steps: the voter that has applied most leads before the leader is asked to end; both are on record."""
    leader, term = lab.leader().name, lab.status().term
    said: list[str] = []
    run(lab, "stop", leader, progress=said.append)
    status = lab.status()
    assert status.leader not in (None, leader)
    # One change of leaders, and no election that somebody had to wait for.
    assert status.term == term + 1
    assert said[0].startswith(f"1/2 hand leadership over from {leader} to {status.leader}\n      $ etcdctl ")
    assert said[1].startswith(f"2/2 stop {leader}: SIGTERM, and wait until it has ended\n      $ ")


def test_kill_is_a_fault_that_heal_undoes(lab: Cluster) -> None:
    """A killed leader is replaced before the task ends, and it is still wanted: `heal` starts it."""
    leader = lab.leader().name
    said = run(lab, "kill", leader)
    status = lab.status()
    assert status.leader not in (None, leader)
    assert said == (
        f"{leader} is stopped; {status.leader} leads in term {status.term}; 2 of 3 members serve, can lose 0"
    )
    assert run(lab, "kill", leader) == f"{leader} is stopped already: nothing was changed"
    assert lab.member(leader).record.wanted == "running"
    assert heal(lab) == [f"{leader} was down and was started"]


def test_a_killed_member_that_is_then_stopped_stays_stopped(lab: Cluster) -> None:
    """`stop` on what is dead already only records the wish, so that `heal` leaves it."""
    name = _followers(lab)[0]
    run(lab, "kill", name)
    run(lab, "stop", name)
    assert heal(lab) == []
    assert _states(lab)[name] == "stopped"


def test_freeze_is_a_fault_and_thaw_takes_it_back(lab: Cluster) -> None:
    """A frozen leader is replaced; it is let go on by thaw, by start, by heal or by up, and serves then."""
    leader = lab.leader().name
    assert run(lab, "freeze", leader).startswith(f"{leader} is frozen; ")
    assert _states(lab)[leader] == "paused"
    assert lab.status().leader not in (None, leader)
    assert run(lab, "freeze", leader) == f"{leader} is frozen already: nothing was changed"
    assert run(lab, "thaw", leader).startswith(f"{leader} is healthy; ")
    assert run(lab, "thaw", leader) == f"{leader} runs already: nothing was changed"
    name = _followers(lab)[0]
    run(lab, "freeze", name)
    assert "thaw" in [step.do for step in prepare(lab, "start", name).steps]
    assert run(lab, "start", name).startswith(f"{name} is healthy; ")
    run(lab, "freeze", name)
    assert heal(lab) == [f"{name} was frozen and goes on"]


@pytest.mark.parametrize("action", ["stop", "kill", "freeze"])
def test_the_quorum_is_not_taken_unasked(lab: Cluster, action: str) -> None:
    """With one away, taking another is refused before anything is done, with who is missing and what to do."""
    first, second = _followers(lab)
    run(lab, "freeze" if action == "freeze" else "kill", first)
    before = _states(lab)
    with pytest.raises(Refused) as refused:
        run(lab, action, second)
    away = f"{first} is frozen" if action == "freeze" else f"{first} is stopped"
    assert f"would leave 1 of 3 voters up, and the quorum is 2: {away}: no write" in str(refused.value)
    assert f"`member.{'thaw' if action == 'freeze' else 'start'} {first}`" in refused.value.remedy
    assert "--lose-quorum" in refused.value.remedy
    assert refused.value.exit_code == 3
    assert _states(lab) == before
    assert lab.status().verdict == "degraded"


def test_the_quorum_can_be_taken_by_name(lab: Cluster) -> None:
    """With `lose_quorum` the consequence is put to `confirm`, whose no changes nothing; its yes does it."""
    first, second = _followers(lab)
    run(lab, "kill", first)
    asked: list[Plan] = []

    def no(plan: Plan) -> None:
        asked.append(plan)
        raise ConfirmationNeeded("no")

    with pytest.raises(ConfirmationNeeded):
        run(lab, "kill", second, lose_quorum=True, confirm=no)
    assert _states(lab)[second] == "running"
    assert "no write is acknowledged until a quorum is back" in asked[0].consequence
    assert "This means: " in plan_text(asked[0])
    said = run(lab, "kill", second, lose_quorum=True, confirm=asked.append)
    assert said.startswith(f"{second} is stopped; ")
    assert said.endswith("0 of 3 members serve, 2 more must serve before a write is acknowledged")
    assert len(asked) == 2
    # Whoever comes back first restores the quorum, and is waited for.
    assert "and there is none" not in prepare(lab, "start", second).steps[0].text
    assert run(lab, "start", second).endswith("2 of 3 members serve, can lose 0")


def test_what_cannot_be_done_is_refused(lab: Cluster) -> None:
    """Unknown members and actions are bad input; freezing or thawing what is stopped says how to start it."""
    with pytest.raises(SpecError, match="no member 'hulk'"):
        run(lab, "stop", "hulk")
    with pytest.raises(SpecError, match="no action 'explode'"):
        run(lab, "explode", "thor")
    name = _followers(lab)[0]
    run(lab, "stop", name)
    for action in ("freeze", "thaw"):
        with pytest.raises(Refused, match=f"{name} is stopped") as refused:
            run(lab, action, name)
        assert f"`member.start {name}`" in refused.value.remedy


def test_plans_change_nothing_and_name_the_plain_commands(lab: Cluster) -> None:
    """Every plan has a plain command for each step, and the way back; making it leaves everything as it is."""
    leader, before = lab.leader().name, _states(lab)
    runs = set(lab.store.runs.glob("*"))
    for action in ACTIONS:
        plan = prepare(lab, action, leader)
        text = plan_text(plan)
        if not plan.steps:
            assert text == f"{leader} runs already: nothing is to be done"
            continue
        assert text.startswith(f"member.{action} {leader} (cluster lab):\n  1. ")
        assert all(f"      $ {step.by_hand}\n" in text + "\n" for step in plan.steps)
        assert f"      back: {plan.steps[-1].undo}" in text
    assert prepare_move(lab, leader).already == f"{leader} leads already"
    assert _states(lab) == before
    assert lab.leader().name == leader
    assert set(lab.store.runs.glob("*")) == runs


def test_what_is_done_is_on_record(lab: Cluster) -> None:
    """The run's folder has the plan, and each step in the journal before it is begun and when it is done."""
    leader = lab.leader().name
    runs = set(lab.store.runs.glob("*"))
    run(lab, "stop", leader)
    [folder] = set(lab.store.runs.glob("*")) - runs
    assert "-member-stop-" in folder.name
    plan = json.loads((folder / "plan.json").read_text())
    assert (plan["operation"], plan["member"]) == ("member.stop", leader)
    assert [step["do"] for step in plan["steps"]] == ["move-leader", "stop"]
    noted = [(entry.event, entry.detail) for entry in read_journal(folder / "journal.jsonl")]
    assert noted == [("step", "1 move-leader"), ("done", "1 move-leader"), ("step", "2 stop"), ("done", "2 stop")]


# -- leadership


def test_leadership_goes_where_it_is_asked_to(lab: Cluster) -> None:
    """To the member that is named, or to another healthy voter; where it is already, nothing is done."""
    for name in _followers(lab):
        assert lab.move_leader(name).name == name
        assert lab.leader().name == name
    term = lab.status().term
    assert lab.move_leader(name).name == name
    assert lab.status().term == term
    other = lab.move_leader()
    assert other.name != name
    assert lab.leader().name == other.name


def test_leadership_does_not_go_to_who_cannot_lead(lab: Cluster) -> None:
    """A stopped or frozen voter, and one that is none, are refused; by default it goes to the one that serves."""
    first, second = _followers(lab)
    run(lab, "kill", first)
    with pytest.raises(Refused, match=f"{first} is stopped, so it cannot take leadership over"):
        lab.move_leader(first)
    with pytest.raises(SpecError, match="no member 'hulk'"):
        lab.move_leader("hulk")
    assert lab.move_leader().name == second


def test_without_a_quorum_nobody_can_hand_over(lab: Cluster) -> None:
    """Where too few serve, that is said, with the count."""
    for name in _followers(lab):
        lab.member(name).kill()
    with pytest.raises((QuorumLost, NoLeader)):
        lab.move_leader()


def test_a_cluster_of_one_has_nobody_to_lead(tmp_path: Path) -> None:
    """There is no other voter; and to stop the only one is to lose the quorum."""
    with Cluster.create(ClusterSpec.of_size("one", 1), runtime=FakeRuntime(), store=Store(tmp_path)) as cluster:
        with pytest.raises(Refused, match="no voter but ironman serves"):
            cluster.move_leader()
        assert cluster.move_leader("ironman").name == "ironman"
        with pytest.raises(Refused, match="would leave 0 of 1 voters up") as refused:
            run(cluster, "stop", "ironman")
        assert "`down-env`" in refused.value.remedy


def test_that_it_was_asked_is_not_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who leads afterwards is looked at: a leader that stays, and another that takes over, are errors."""
    spec = ClusterSpec.of_size("lab", timing=Timing(10, 100))
    with Cluster.create(spec, runtime=FakeRuntime(), store=Store(tmp_path), temporary=True) as cluster:
        leader, first, second = cluster.leader().name, *_followers(cluster)
        monkeypatch.setattr(FakeCluster, "transfer", lambda self, member, target: None)
        with pytest.raises(WaitTimeout, match=f"{leader} still leads lab, though it was asked to hand over to {first}"):
            cluster.move_leader(first)

        def elsewhere(self: FakeCluster, member: FakeMember, target: int) -> None:
            with self.changed:
                self._lead(self.members[second])

        monkeypatch.setattr(FakeCluster, "transfer", elsewhere)
        with pytest.raises(EtcdopsError, match=f"from {leader} to {first}, and {second} leads"):
            cluster.move_leader(first)


def test_no_fault_by_hand_on_production(tmp_path: Path) -> None:
    """A cluster that is marked as production is stopped and started in an orderly way, and never killed or frozen."""
    spec = msgspec.structs.replace(ClusterSpec.of_size("prod"), purpose="production")
    with Cluster.create(spec, runtime=FakeRuntime(), store=Store(tmp_path)) as cluster:
        for action in ("kill", "freeze"):
            with pytest.raises(Refused, match="marked as production"):
                run(cluster, action, "thor")
        run(cluster, "stop", "thor")
        run(cluster, "start", "thor")


# -- what only real members show


@pytest.mark.runtime("process")  # about a data directory and its permissions
def test_a_member_that_cannot_come_back_says_what_to_do(cli: CommandLine) -> None:
    """A member whose data is damaged dies when it is started; the error quotes its log. Without any it is refused."""
    assert cli("up-env", "--runtime", "process").code == 0
    cluster = Cluster.attach("lab", store=cli.store)
    name = _followers(cluster)[0]
    assert cli("member.stop", name).code == 0
    data = Path(cluster.member(name).record.data.place)
    shutil.rmtree(data)
    refused = cli("member.start", name)
    assert refused.code == 3
    assert f"the data of {name} is gone" in refused.err
    assert f"`member.replace {name}` puts a new member in its place. Nothing was started." in refused.err
    assert f"error member-data-gone: {name} is stopped, and its data is gone" in cli("status").out
    # All that can be started is.
    up = cli("up-env")
    assert (up.code, f"{name} stays stopped: its data is gone" in up.err) == (0, True), up.err
    data.mkdir()
    (data / "member").write_text("a file where etcd wants a directory")
    ended = cli("member.start", name)
    assert ended.code == 1
    assert f"error: member {name} died:" in ended.err
    assert "Its whole log is " in ended.err


def test_the_leader_says_why_it_does_not_hand_over(lab: Cluster) -> None:
    """An error of etcd's own arrives with what to do about it."""
    from etcdops import wire

    with wire.Connection(lab.leader().client_url) as etcd, pytest.raises(EtcdError) as refused:
        etcd.move_leader(1, timeout_s=20)
    assert refused.value.remedy


# -- as tasks


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A place with a running cluster, shared."""
    line = CommandLine(tmp_path_factory.mktemp("members"))
    try:
        runtime = "compose" if runtimes.get("compose").unavailable() is None else "process"
        ended = line("up-env", "--runtime", runtime)
        assert ended.code == 0, ended.err
        yield line
    finally:
        line.purge()


@pytest.fixture
def line(place: CommandLine) -> CommandLine:
    """The shared place, its cluster healthy."""
    assert place("up-env").code == 0
    return place


def test_the_tasks(line: CommandLine) -> None:
    """Each task says on stderr what it does, with the plain command, and how things are then; stdout stays empty."""
    cluster = Cluster.attach("lab", store=line.store)
    name = _followers(cluster)[0]
    for words, last in (
        (("member.stop", name), f"{name} is stopped; "),
        (("member.stop", name), f"{name} is stopped already: nothing was changed"),
        (("member.start", "--member", name), f"{name} is healthy; "),
        (("member.kill", name), f"{name} is stopped; "),
        (("member.start", name), f"{name} is healthy; "),
        (("member.freeze", name), f"{name} is frozen; "),
        (("member.thaw", name), f"{name} is healthy; "),
        (("member.move-leader", "--to", name), f"{name} leads, and "),
        (("member.move-leader", "--to", name), f"{name} leads already: nothing was changed"),
    ):
        ended = line(*words)
        assert (ended.code, ended.out) == (0, ""), (words, ended.err)
        assert last in ended.err.splitlines()[-1], words
        if "nothing" not in last:
            assert "1/1 " in ended.err
            assert "      $ " in ended.err


def test_refusals_and_questions(line: CommandLine) -> None:
    """Exit 3 where the quorum would go, 2 where somebody must be asked and nobody can, 2 for what is no member."""
    cluster = Cluster.attach("lab", store=line.store)
    first, second = _followers(cluster)
    assert line("member.kill", first).code == 0
    refused = line("member.kill", second)
    assert (refused.code, refused.out) == (3, "")
    assert f"{first} is stopped" in refused.err
    assert "--lose-quorum" in refused.err
    assert line("member.stop", second, "--dry-run").code == 3
    unasked = line("member.kill", second, "--lose-quorum")
    assert unasked.code == 2
    assert "Add --yes to go on." in unasked.err
    assert _states(cluster)[second] == "running"
    with Terminal(line, "member.kill", second, "--lose-quorum") as terminal:
        terminal.expect("Type lab to go on:")
        terminal.type("yes\n")
        assert terminal.wait() == 2
    assert _states(cluster)[second] == "running"
    with Terminal(line, "member.kill", second, "--lose-quorum") as terminal:
        terminal.expect("Type lab to go on:")
        terminal.type("lab\n")
        assert terminal.wait() == 0
    assert _states(cluster)[second] == "stopped"
    for words in (("member.stop", "hulk"), ("member.stop", ""), ("member.stop",), ("member.move-leader", "--to", "x")):
        assert line(*words).code in (2, 5), words


def test_dry_runs_print_commands_that_work(line: CommandLine, wait_until: Wait) -> None:
    """`--dry-run` prints the plan on stdout and changes nothing; what it prints does the same when typed."""
    cluster = Cluster.attach("lab", store=line.store)
    leader, before = cluster.leader().name, _states(cluster)
    shown = line("member.move-leader", "--dry-run")
    assert (shown.code, cluster.leader().name) == (0, leader)
    [command] = [text.strip()[2:] for text in shown.out.splitlines() if text.strip().startswith("$ ")]
    argv = shlex.split(command)
    # Any etcdctl will do; the one beside the binary that is at hand is always there.
    argv[0] = str(Path(binaries.find(offline=True).etcd).with_name("etcdctl"))
    subprocess.run(argv, check=True, capture_output=True, timeout=30)
    assert cluster.leader().name != leader
    name = _followers(cluster)[0]
    shown = line("member.stop", name, "--dry-run")
    assert (shown.code, shown.err) == (0, "")
    assert _states(cluster) == before
    [command] = [text.strip()[2:] for text in shown.out.splitlines() if text.strip().startswith("$ ")]
    subprocess.run(["sh", "-c", command], check=True, capture_output=True, timeout=60)
    wait_until(lambda: _states(cluster)[name] == "stopped", what="the member's end")
