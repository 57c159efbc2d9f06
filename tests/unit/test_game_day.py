"""Game days on clusters in memory and on paper: the plan, its order, what ends one, and what its report keeps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from etcdops import drills, game_day
from etcdops.cluster import Cluster
from etcdops.errors import Interrupted, Refused, SpecError
from etcdops.game_day import Planned
from etcdops.report.verdict import Verdict
from etcdops.state import Store
from scripts.big_run import write_big_run
from tests.unit.drilling import QUICK, fake_cluster

NAMES = [each.name for each in drills.all_drills()]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster in memory."""
    with fake_cluster(Store(tmp_path / "state")) as cluster:
        yield cluster


def planned(*names: str) -> list[Planned]:
    """Give a plan of drills as they are."""
    return [Planned(name, {}, 1.0, "") for name in names]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, int]]]:
    """Has drills come to what is said, in turn, without running them; gives which were run, with their seeds."""

    def have(*verdicts: str | BaseException) -> list[tuple[str, int]]:
        run: list[tuple[str, int]] = []

        def play(name: str, cluster: Cluster, *, seed: int, **options: Any) -> Verdict:
            run.append((name, seed))
            came = verdicts[len(run) - 1]
            if isinstance(came, BaseException):
                raise came
            id_ = f"20260102-03040{len(run)}-{name}-1a2b"
            write_big_run(cluster.store.runs / id_, 90, run=id_, seed=seed)
            path = cluster.store.runs / id_ / "verdict.json"
            verdict = msgspec.structs.replace(msgspec.json.decode(path.read_bytes(), type=Verdict), verdict=came)
            path.write_bytes(msgspec.json.encode(verdict))
            return verdict

        monkeypatch.setattr(drills, "run", play)
        return run

    return have


def test_words_name_drills_with_options() -> None:
    """In the order in which they are named; a drill may come twice."""
    chosen = game_day.choose(["reduce-quorum:how=freeze,leader=goes", "no-fault", "reduce-quorum"])
    assert [(drill.name, options) for drill, options in chosen] == [
        ("reduce-quorum", {"how": "freeze", "leader": "goes"}),
        ("no-fault", {}),
        ("reduce-quorum", {}),
    ]
    assert str(Planned("reduce-quorum", chosen[0][1], 1, "")) == "reduce-quorum:how=freeze,leader=goes"


def test_no_words_are_all_drills_and_those_that_destroy_come_last() -> None:
    """So that what they restore is not what the others run on."""
    chosen = [drill for drill, _ in game_day.choose([])]
    assert sorted(drill.name for drill in chosen) == NAMES
    destroying = [drill.destroys for drill in chosen]
    assert destroying == sorted(destroying)
    assert any(destroying)


@pytest.mark.parametrize(
    "word", ["nope", "", "no-fault:", "no-fault:duration", "no-fault:=1", "no-fault:how=kill", "failed-leader:how=x"]
)
def test_what_names_no_drill_is_refused(word: str) -> None:
    """Before anything is started."""
    with pytest.raises(SpecError):
        game_day.choose([word])


def test_the_seed_decides_the_order() -> None:
    """The same seed gives the same order, and others give others."""
    chosen = game_day.choose([])
    orders = [[drill.name for drill, _ in game_day.shuffled(chosen, seed)] for seed in (1, 1, 2, 3)]
    assert orders[0] == orders[1]
    assert len(set(map(tuple, orders))) == 3
    assert all(sorted(order) == NAMES for order in orders)


def test_what_cannot_run_is_left_out_or_refused() -> None:
    """Left out where all were asked for, refused where it was named, and where nothing is left."""
    chosen = game_day.choose(["no-fault", "move-leader"])

    def why_not(drill: drills.Drill, options: dict[str, str]) -> str:
        return "it cannot" if drill.name == "move-leader" else ""

    fit, others = game_day.refuse(chosen, why_not, named=False)
    assert ([drill.name for drill, _ in fit], others) == (["no-fault"], ["move-leader: it cannot"])
    with pytest.raises(Refused, match="move-leader: it cannot"):
        game_day.refuse(chosen, why_not, named=True)
    with pytest.raises(Refused, match="not every drill"):
        game_day.refuse(chosen[1:], why_not, named=False)


def test_a_cluster_that_there_is_says_what_cannot_run(tmp_path: Path) -> None:
    """One voter is too few for a new leader, and enough for the control."""
    with fake_cluster(Store(tmp_path), size=1) as lonely:
        why_not = game_day.why_not_on(lonely)
        (quiet, _), (leader, _) = game_day.choose(["no-fault", "failed-leader"])
        assert why_not(quiet, {}) == ""
        assert "needs 3 voters" in why_not(leader, {})


def test_a_plan_knows_what_runs_took(tmp_path: Path) -> None:
    """The newest that came to its end; without one, what the drill takes as a rule."""
    store = Store(tmp_path)
    for number, verdict in ((1, "passed"), (2, "passed"), (3, "aborted")):
        id_ = f"20260102-03040{number}-failed-leader-1a2b"
        write_big_run(store.runs / id_, 90, run=id_, seed=number)
        for name, changes in (("verdict.json", {"verdict": verdict}), ("run.json", {})):
            path = store.runs / id_ / name
            told = json.loads(path.read_text()) | changes
            if name == "verdict.json":
                told["timeline"] = [{"t_ms": 1000.0 * number, "event": "x", "member": "", "detail": ""}]
            else:
                told["began"] = f"2026-01-02T03:04:0{number}.000Z"
            path.write_text(json.dumps(told))
    plan = game_day.estimate(game_day.choose(["failed-leader", "no-fault"]), store)
    assert [(each.takes_s, each.known) for each in plan] == [(2.0, "its last run here"), (8, "on processes, as a rule")]


def test_the_worst_counts_and_each_has_its_seed(lab: Cluster, answers: Any) -> None:
    """It goes on after what deviates; the report names each run in order and how to do the same again."""
    run = answers("passed", "deviated", "inconclusive")
    day = game_day.play(lab, planned("no-fault", "failed-leader", "move-leader"), seed=7, command="etcdops game-day …")
    assert run == [("no-fault", 7), ("failed-leader", 8), ("move-leader", 9)]
    assert (day.verdict, day.exit_code, day.left_out) == ("deviated", 1, ())
    assert [each.verdict for each in day.played] == ["passed", "deviated", "inconclusive"]
    kept = json.loads((Path(day.report).parent / "game-day.json").read_text())
    assert kept == json.loads(msgspec.json.encode(day))
    page = Path(day.report).read_text()
    places = [page.index(each.run) for each in day.played]
    assert places == sorted(places)
    assert "etcdops game-day …" in page


def test_it_stops_at_the_first_that_is_stuck(lab: Cluster, answers: Any) -> None:
    """What comes after would be about a cluster that is not whole."""
    run = answers("passed", "stuck", "passed")
    day = game_day.play(lab, planned("no-fault", "failed-leader", "move-leader"), seed=1)
    assert [name for name, _ in run] == ["no-fault", "failed-leader"]
    assert (day.verdict, day.exit_code, day.left_out) == ("stuck", 7, ("move-leader",))
    assert "failed-leader is stuck" in day.why
    assert "Not come to: move-leader" in Path(day.report).read_text()


def test_one_that_is_refused_does_not_end_it(lab: Cluster, answers: Any) -> None:
    """It counts as one that was aborted, and the reason is in the report."""
    answers(Refused("keys of <others> would go"), "passed")
    day = game_day.play(lab, planned("data-loss", "no-fault"), seed=1)
    assert (day.verdict, day.exit_code) == ("aborted", 3)
    assert [(each.verdict, each.run != "") for each in day.played] == [("aborted", False), ("passed", True)]
    assert "keys of &lt;others&gt; would go" in Path(day.report).read_text()


@pytest.mark.parametrize("error", [Interrupted(15), KeyboardInterrupt()], ids=["SIGTERM", "Ctrl-C"])
def test_what_was_seen_before_an_interrupt_is_kept(lab: Cluster, answers: Any, error: BaseException) -> None:
    """The report has the drills before, and says which one did not come to its end."""
    answers("passed", error)
    with pytest.raises(type(error)):
        game_day.play(lab, planned("no-fault", "failed-leader", "move-leader"), seed=1)
    [folder] = (lab.store.root / "game-days").iterdir()
    kept = json.loads((folder / "game-day.json").read_text())
    assert [each["drill"] for each in kept["played"]] == ["no-fault"]
    assert kept["left_out"] == ["failed-leader", "move-leader"]
    assert "failed-leader did not come to its end" in kept["why"]


def test_a_plan_without_drills_is_refused(lab: Cluster) -> None:
    """Nothing is written."""
    with pytest.raises(SpecError):
        game_day.play(lab, [])
    assert not (lab.store.root / "game-days").exists()


def test_drills_really_run(lab: Cluster) -> None:
    """In memory, two of them; the report links to their folders from where it is."""
    day = game_day.play(lab, [Planned("no-fault", {"duration": "1"}, 1, ""), *planned("move-leader")], seed=3, **QUICK)
    assert day.verdict == "passed", day
    assert [json.loads((lab.store.runs / each.run / "run.json").read_text())["seed"] for each in day.played] == [3, 4]
