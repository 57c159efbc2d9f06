"""Members that join, leave and are replaced on real etcd: proved, refused where it is not safe, and resumed."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from etcdops import drills, runtimes
from etcdops.cluster import Cluster
from etcdops.errors import PartlyChanged, Refused, SpecError
from etcdops.operations import data, joining, pending, reconfigure
from etcdops.operations.plan import Plan
from etcdops.report.journal import read_journal
from etcdops.report.terminal import status_text
from etcdops.spec import ClusterSpec, Timing
from etcdops.state import Store
from tests.conftest import CommandLine, need_runtime, place
from tests.suite.killed import killed
from tests.suite.shared import NAMED, cluster_by


@pytest.fixture(scope="module", params=runtimes.names())
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of three for all tests of a runtime."""
    with cluster_by(request, tmp_path_factory.mktemp("membership")) as cluster:
        yield cluster


@pytest.fixture
def lab(shared: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The shared cluster, healthy, and of the original three again afterwards."""
    monkeypatch.setattr(reconfigure, "GAP_S", 0.0)
    shared.up()
    yield shared
    if pending.load(shared):
        shared.undo()
    for name in shared.record.spec.names[3:]:
        shared.remove_member(name)


def _voters(cluster: Cluster) -> list[str]:
    return sorted(member.name for member in cluster.status().members if member.role in ("leader", "follower"))


def _put(cluster: Cluster, key: str) -> None:
    """Write through the leader, once there is one."""
    deadline = time.monotonic() + 10.0
    while (leader := cluster.status().leader) is None:
        assert time.monotonic() < deadline, "nobody leads"
    cluster.client(leader).put(key, "x" * 200)


def _keys(cluster: Cluster, member: str, prefix: str) -> int:
    return len(list(cluster.client(member).get_prefix(prefix, serializable=True, keys_only=True)))


def _steps(cluster: Cluster, operation: str) -> list[str]:
    """The steps that the newest run of an operation has taken to their end."""
    runs = [path for path in cluster.store.runs.iterdir() if operation.replace(".", "-") in path.name]
    run = max(runs, key=lambda path: path.stat().st_mtime_ns)
    return [entry.detail.split()[1] for entry in read_journal(run / "journal.jsonl") if entry.event == "done"]


# -- what they do


def test_a_member_joins_with_all_data_and_leaves_again(lab: Cluster) -> None:
    """3 to 4: a learner that is promoted and has every key; 4 to 3: leadership goes first, and the data is kept."""
    for i in range(20):
        _put(lab, f"join/{i}")
    plan = lab.add_member()
    assert plan.member == "hulk"
    assert plan.notes == (
        "4 voters tolerate the loss of 1, as 3 would, and one more must agree to each write: 3 or 5 are better",
    )
    assert _steps(lab, "member.add") == ["add-learner", "start", "catch-up", "promote", "prove"]
    assert _voters(lab) == ["deadpool", "hulk", "ironman", "thor"]
    assert _keys(lab, "hulk", "join/") == 20
    assert pending.load(lab) is None
    assert lab.status().verdict == "healthy"

    lab.move_leader("hulk")
    place = lab.member("hulk").record.data.place
    plan = lab.remove_member("hulk")
    assert plan.consequence == f"hulk is removed for ever; its data is kept at {place}, and can never join again"
    assert _steps(lab, "member.remove") == ["move-leader", "remove-member", "retire", "prove"]
    assert _voters(lab) == ["deadpool", "ironman", "thor"]
    assert [each.place for each in data.generations(lab) if each.state == "removed"][-1] == place
    assert any(place in line for line in lab.contents())
    if lab.runtime.name == "process":
        assert Path(place, "member").is_dir()
    kept = [each.name for each in data.generations(lab) if each.state != "in use"]
    data.remove(lab, kept)
    assert not any(place in line for line in lab.contents())
    if lab.runtime.name == "process":
        assert not Path(place).exists()


def test_a_lost_member_is_replaced(lab: Cluster) -> None:
    """The dead one is removed first; the new one has its name and a new id, and has every key in the end."""
    for i in range(10):
        _put(lab, f"lost/{i}")
    old, data_before = lab.member("thor").status().member_id, lab.member("thor").record.data
    lab.member("thor").kill()
    if lab.runtime.name == "process":
        shutil.rmtree(Path(data_before.place, "member"))
    _put(lab, "lost/10")
    lab.replace_member("thor")
    assert _steps(lab, "member.replace") == ["remove-member", "add-learner", "start", "catch-up", "promote", "prove"]
    assert lab.member("thor").status().member_id != old
    assert lab.member("thor").record.data.generation == data_before.generation + 1
    assert _keys(lab, "thor", "lost/") == 11
    assert _voters(lab) == ["deadpool", "ironman", "thor"]
    [*_, retired] = lab.record.retired
    assert (retired.member, retired.data, retired.why) == ("thor", data_before, "replaced")
    # A restart brings the new one back, not the old.
    lab.member("thor").stop()
    lab.up()
    assert lab.status().verdict == "healthy"


def test_a_frozen_member_is_fenced_before_it_is_replaced(lab: Cluster) -> None:
    """What hangs is killed first, so that it never comes back beside the one in its place."""
    lab.member("thor").pause()
    if lab.leader().name == "thor":
        pytest.fail("a frozen member is said to lead")
    lab.replace_member("thor")
    assert _steps(lab, "member.replace")[:2] == ["fence", "remove-member"]
    assert lab.status().verdict == "healthy"


# -- what they refuse


def _unchanged(cluster: Cluster) -> tuple[object, ...]:
    return cluster.record, pending.load(cluster), sorted(path.name for path in cluster.store.runs.glob("*"))


def test_add_is_refused_with_a_voter_down(lab: Cluster) -> None:
    """It names the voter, how to bring it back, and member.replace; nothing is changed."""
    lab.member("thor").kill()
    before = _unchanged(lab)
    with pytest.raises(Refused, match="adding hulk of lab is refused: thor is stopped") as caught:
        lab.add_member()
    assert "`member.start thor`" in caught.value.remedy
    assert "`member.replace thor`" in caught.value.remedy
    assert caught.value.remedy.endswith("Nothing was changed.")
    assert _unchanged(lab) == before


def test_what_would_cost_the_quorum_is_refused(lab: Cluster) -> None:
    """With one of three down, removing another, or replacing what serves, is refused and says who is missing."""
    lab.member("thor").kill()
    before = _unchanged(lab)
    with pytest.raises(Refused, match=r"removing deadpool would leave 1 of 2 voters up, and the quorum is 2: thor is"):
        lab.remove_member("deadpool")
    with pytest.raises(Refused, match="deadpool serves, so it is not lost"):
        lab.replace_member("deadpool")
    with pytest.raises(SpecError, match="no member 'hulk'"):
        lab.replace_member("hulk")
    with pytest.raises(SpecError, match="lab has a member thor already"):
        lab.add_member("thor")
    with pytest.raises(SpecError, match="has no TLS"):
        lab.add_member("hulk", cert="a", key="b")
    lab.member("deadpool").kill()
    with pytest.raises(Refused):
        lab.replace_member("thor")
    assert _unchanged(lab) == before


@pytest.mark.parametrize("shared", ["process"], indirect=True)
def test_what_etcd_refuses_has_changed_nothing(lab: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A voter that dies between the gate and the request: etcd says no, and the operation is over."""
    begin = pending.begin

    def lose_a_voter(cluster: Cluster, *args: object, **known: object) -> pending.Pending:
        cluster.member("thor").kill()
        return begin(cluster, *args, **known)  # type: ignore[arg-type]

    monkeypatch.setattr(pending, "begin", lose_a_voter)
    monkeypatch.setattr(joining, "_REFUSED_S", 3.0)
    said: list[str] = []
    with pytest.raises(Refused, match=r"member.add hulk: .*unhealthy cluster") as caught:
        lab.add_member(progress=said.append)
    assert "Nothing was changed." in caught.value.remedy
    assert any("not yet (etcdserver: unhealthy cluster)" in line for line in said)
    assert pending.load(lab) is None
    assert "hulk" not in lab.record.spec.names


@pytest.mark.parametrize("shared", ["process"], indirect=True)
def test_the_last_voter_stays(tmp_path: Path, lab: Cluster) -> None:
    """From two to one is said to leave nobody; from one to none is refused."""
    spec = ClusterSpec.of_size("pair", 2, timing=Timing(50, 500))
    with Cluster.create(spec, store=Store(tmp_path), temporary=True) as pair:
        plans: list[Plan] = []
        pair.remove_member("thor", confirm=plans.append)
        assert plans[0].consequence.endswith("; the one that is left has nobody to survive its failure")
        with pytest.raises(Refused, match="ironman is the only voter of pair: it cannot be removed"):
            pair.remove_member("ironman")
        assert pair.status().verdict == "healthy"


# -- interrupted


def _kill_everywhere(cluster: Cluster, operation: str, *args: str) -> Iterator[int]:
    """Kill an operation at every other instant until it comes to its end; `scripts/soak kills-process` has them all."""
    for instant in range(1, 40, 2):
        _put(cluster, f"{operation}/{instant}")
        if not killed(cluster.store.root, instant, cluster.name, operation, *args):
            assert instant > 5, "so few instants cannot be all"
            return
        # The rest serves, whatever there was.
        _put(cluster, f"{operation}/{instant}-after")
        yield instant
    pytest.fail("it never came to its end")


@pytest.mark.parametrize("shared", ["process"], indirect=True)
@pytest.mark.timeout(240)
def test_an_add_killed_anywhere_goes_on_or_is_taken_back(lab: Cluster) -> None:
    """Killed at entries of its journal and writes of state: by turns run again, and undone."""
    for turn, _ in enumerate(_kill_everywhere(lab, "add_member", "hulk"), start=1):
        begun = pending.load(lab)
        assert begun is not None
        assert [f.code for f in lab.status().warnings if f.code == "operation-unfinished"] == ["operation-unfinished"]
        with pytest.raises(Refused, match=r"`member.add hulk` of .* has not come to its end"):
            lab.remove_member("thor")
        with pytest.raises(Refused, match=r"`member.add hulk` of .* has not come to its end"):
            drills.run("failed-leader", lab)
        # Whoever brings the cluster up meanwhile leaves the member alone.
        lab.up()
        promoted = "hulk" in _voters(lab)
        if turn % 2 and not promoted:
            lab.undo()
            assert _voters(lab) == ["deadpool", "ironman", "thor"]
        else:
            lab.add_member()
            assert "hulk" in _voters(lab)
            assert _keys(lab, "hulk", "add_member/") == 2 * turn
            lab.remove_member("hulk")
        assert pending.load(lab) is None
        assert lab.status().verdict == "healthy"
        assert lab.record.spec.names == ("ironman", "thor", "deadpool")
    assert lab.status().verdict == "healthy"


@pytest.mark.parametrize("shared", ["process"], indirect=True)
@pytest.mark.timeout(240)
def test_a_replacement_killed_anywhere_goes_on(lab: Cluster) -> None:
    """Killed at entries of its journal and writes of state, it comes to its end when it is run again."""
    lab.member("thor").kill()
    for turn, _ in enumerate(_kill_everywhere(lab, "replace_member", "thor"), start=1):
        lab.up()
        lab.replace_member("thor")
        assert pending.load(lab) is None
        assert lab.status().verdict == "healthy"
        assert _voters(lab) == ["deadpool", "ironman", "thor"]
        assert _keys(lab, "thor", "replace_member/") == 2 * turn
        lab.member("thor").kill()
    assert lab.status().verdict == "healthy"


@pytest.mark.parametrize("shared", ["compose"], indirect=True)
def test_an_add_killed_in_containers_goes_on(lab: Cluster) -> None:
    """Killed as the container has been created and before that is on record; run again, it is taken up."""
    assert killed(lab.store.root, 4, "lab", "add_member", "hulk")
    lab.add_member("hulk")
    assert "hulk" in _voters(lab)
    assert lab.status().verdict == "healthy"


def test_undo_after_a_replacement_leaves_the_rest(lab: Cluster) -> None:
    """The old member has been removed for good: what is left is two voters, and the place can be filled again."""
    lab.member("thor").kill()
    # Killed once the learner has been added: 1 and 2 are the removal, 3 and 4 the addition.
    assert killed(lab.store.root, 4, "lab", "replace_member", "thor")
    plan = lab.undo()
    assert plan.notes == ("the member that thor was to replace has been removed, and stays so",)
    assert _voters(lab) == ["deadpool", "ironman"]
    assert lab.record.spec.names == ("ironman", "deadpool")
    assert lab.undo().already == "no operation is unfinished"
    lab.add_member("thor")
    assert lab.status().verdict == "healthy"


@pytest.mark.parametrize("shared", ["process"], indirect=True)
def test_a_step_that_fails_says_how_to_go_on(lab: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 7: the add has begun, the message names the step's error, and both ways from there."""
    monkeypatch.setattr(joining, "_STILL_S", 1.0)
    monkeypatch.setattr(joining, "_NEAR", -1)
    with pytest.raises(
        PartlyChanged, match=r"member.add hulk has not come to its end: hulk has not come nearer"
    ) as caught:
        lab.add_member()
    assert caught.value.exit_code == 7
    assert "`member.add hulk` goes on; `member.undo` takes it back." in caught.value.remedy
    [learner] = [member for member in lab.status().members if member.role == "learner"]
    assert learner.name == "hulk"
    assert "3/3 voters healthy, quorum 2, can lose 1" in status_text(lab.status())
    monkeypatch.undo()
    lab.promote_member("hulk")
    assert "hulk" in _voters(lab)
    assert pending.load(lab) is None
    assert lab.promote_member("hulk").already == "hulk is a voter already"


# -- versions


@pytest.mark.parametrize("etcd", NAMED.values(), ids=list(NAMED))
def test_every_version_replaces_a_member(etcd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each etcd at hand removes a lost member, and adds and promotes the one in its place."""
    monkeypatch.setattr(reconfigure, "GAP_S", 0.0)
    spec = ClusterSpec.of_size("lab", 3, etcd_bin=f"{etcd}/etcd", timing=Timing(50, 500))
    with Cluster.create(spec, store=Store(tmp_path), temporary=True) as lab:
        lab.member("thor").kill()
        lab.replace_member("thor", allow_known_bad=True)
        assert _voters(lab) == ["deadpool", "ironman", "thor"]
        assert lab.status().verdict == "healthy"


# -- as tasks


@pytest.fixture
def line(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[CommandLine]:
    """A command line with a cluster of one; what is printed is the same on every runtime."""
    need_runtime("process", request.config)
    with place(tmp_path / "place") as line:
        assert line("up-env", "--size", "1").code == 0
        yield line


def test_tasks_show_the_plan_and_ask(line: CommandLine) -> None:
    """--dry-run changes nothing; a removal asks for the cluster's name; JSON is the plan that was carried out."""
    dry = line("member.add", "--dry-run")
    assert dry.code == 0
    assert dry.out.startswith(
        "member.add thor (cluster lab):\n  1. add thor as a learner, which counts for no quorum\n      $ etcdctl "
    )
    assert " member add thor --learner --peer-urls=http://127.0.0.1:" in dry.out
    assert not list(line.store.runs.glob("*member-add*"))
    assert len(json.loads(line("status", "-o", "json").out)["members"]) == 1

    added = line("member.add", "-o", "json")
    assert added.code == 0, added.err
    assert [step["do"] for step in json.loads(added.out)["plan"]["steps"]] == [
        "add-learner",
        "start",
        "catch-up",
        "promote",
        "prove",
    ]
    assert added.err.rstrip().splitlines()[-1].endswith("done: 2 voters, quorum 2, ironman leads")

    asked = line("member.remove", "thor")
    assert asked.code == 2
    assert "remove thor of lab for ever? Nobody can be asked: stdin is no terminal" in asked.err
    assert line("member.remove", "thor", "--dry-run").code == 0
    assert len(json.loads(line("status", "-o", "json").out)["members"]) == 2
    assert line("member.remove", "thor", "--yes").code == 0

    listed = line("data.list")
    assert [row.split()[:2] for row in listed.out.splitlines()[1:]] == [["ironman-g1", "in"], ["thor-g1", "removed"]]
    assert line("data.remove", "thor-g1").code == 2
    assert line("data.remove", "ironman-g1", "--yes").code == 2
    assert line("data.remove", "thor-g1", "--yes").code == 0
    assert [each["name"] for each in json.loads(line("data.list", "-o", "json").out)["data"]] == ["ironman-g1"]

    assert line("member.undo").out == "no operation is unfinished: nothing is to be done\n"
    assert line("member.promote", "ironman").out == "ironman is a voter already: nothing is to be done\n"
    refused = line("member.remove", "ironman", "--dry-run")
    assert refused.code == 3
    assert "ironman is the only voter of lab" in refused.err


def test_ctrl_c_while_it_waits_says_how_to_go_on(line: CommandLine, wait_until: Callable[..., None]) -> None:
    """Interrupted while the learner catches up: exit code 130, both ways on are named, and status names them too."""
    # A learner that cannot run never catches up.
    assert line("member.add", "--dry-run").code == 0
    begun = line.start("member.add")
    lab = line.cluster()
    wait_until(lambda: "thor" in lab.record.spec.names, what="the learner's start")
    begun.send_signal(signal.SIGINT)
    _, err = begun.communicate(timeout=30)
    if begun.returncode == 0:
        pytest.skip("it was faster than the signal")
    assert begun.returncode == 130, err
    assert "member.add thor has not come to its end: `member.add thor` goes on; `member.undo` takes it back" in err
    told = line("status")
    assert "operation-unfinished" in told.out + told.err
    assert line("member.add").code == 0
    assert len(json.loads(line("status", "-o", "json").out)["members"]) == 2
