"""The list of drills: what each needs, how its last run ended, and what `drill.run` makes of a command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from etcdops.drills import Choice, Number, all_drills, listing
from etcdops.drills.listing import needs_text, when_text
from etcdops.report.past import UNFINISHED, PastRun, newest_runs
from etcdops.state import Store
from tests.conftest import CommandLine


def _folder(store: Store, name: str, *, verdict: str = "", began: str = "") -> None:
    folder = store.make_dir(store.runs / name)
    if verdict:
        (folder / "verdict.json").write_text(json.dumps({"schema": 1, "verdict": verdict, "drill": "not read"}))
    if began:
        (folder / "run.json").write_text(json.dumps({"began": began}))


def test_newest_run_of_each_drill(store: Store) -> None:
    """Of each drill the newest run is given, by when it began, also within a second."""
    _folder(store, "20261122-092415-failed-leader-fc65", verdict="passed", began="2026-11-22T09:24:15.100+00:00")
    _folder(store, "20261123-092415-failed-leader-0001", verdict="deviated", began="2026-11-23T09:24:15.900+00:00")
    _folder(store, "20261123-092415-failed-leader-ffff", verdict="passed", began="2026-11-23T09:24:15.100+00:00")
    _folder(store, "20261121-000000-no-fault-abcd", verdict="passed", began="2026-11-21T00:00:00.000+00:00")
    found = newest_runs(store)
    assert set(found) == {"failed-leader", "no-fault"}
    assert found["failed-leader"] == PastRun(
        "20261123-092415-failed-leader-0001", "deviated", "2026-11-23T09:24:15.900+00:00"
    )


def test_runs_without_a_verdict_and_damaged_ones(store: Store) -> None:
    """A run that was killed is unfinished, and so is one whose verdict is damaged; what is no run is left out."""
    _folder(store, "20261122-092415-move-leader-0000", began="2026-11-22T09:24:15.100+00:00")
    _folder(store, "20261122-092415-no-fault-0000")
    (store.runs / "20261122-092415-no-fault-0000" / "verdict.json").write_text("{")
    _folder(store, "20261122-member.add-thor", verdict="passed")
    found = newest_runs(store)
    assert {drill: run.verdict for drill, run in found.items()} == {"move-leader": UNFINISHED, "no-fault": UNFINISHED}
    assert when_text(found["no-fault"]) == UNFINISHED
    assert when_text(found["move-leader"]).startswith(f"{UNFINISHED} 2026-11-2")


def test_no_state_directory_has_no_runs(tmp_path: Path) -> None:
    """Where nothing was ever run, nothing is given, and nothing is made."""
    store = Store(tmp_path / "none")
    assert newest_runs(store) == {}
    assert not store.root.exists()
    assert when_text(None) == "-"


def test_every_drill_is_listed(store: Store) -> None:
    """Each drill is there with its options; what a runtime cannot do is said where it is about one option alone."""
    listed = {each.name: each for each in listing.listing(store)}
    assert list(listed) == [drill.name for drill in all_drills()]
    quorum = listed["reduce-quorum"]
    assert [(lack.runtime, lack.option, lack.value) for lack in quorum.lacks] == [
        ("process", "how", "isolate"),
        ("process", "how", "unplug"),
    ]
    assert needs_text(quorum) == "3 voters, --how isolate not by process, --how unplug not by process"
    assert needs_text(listed["no-fault"]) == "1 voter"
    assert (listed["no-fault"].options[0].least, listed["no-fault"].options[0].most) == (1, 500)


def test_what_a_drill_needs_in_words() -> None:
    """A drill that a runtime lacks altogether, and one that destroys data, say so."""
    choices = (Choice("way", ("one", "two"), "how"), Number("times", 3, 1, 9, "how often"))

    def needs(runtime: object, way: str, times: str) -> str | None:
        return "cannot" if getattr(runtime, "name", "") == "compose" or (way, times) == ("two", "3") else None

    made = all_drills()[0]._replace(choices=choices, needs=needs)
    listed = listing.Listed("made-up", "Do.", 3, True, "mixed", (), tuple(listing._lacks(made)), None)
    assert needs_text(listed) == "3 voters, not by compose, --way two not by process, destroys data"


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        ("drill.run", 0, "LAST VERDICT"),
        ("drill.run -o json", 0, '"min_voters": 3'),
        ("drill.list -o json", 0, '"last": null'),
        ("drill.run --help", 0, "--duration"),
        ("drill.run no-fault --help", 0, "--duration"),
        ("drill.run nope", 2, "there is no drill 'nope'"),
        ("drill.run failed-leader --how nuke", 2, "--how 'nuke' is not known to failed-leader"),
        ("drill.run --how nuke failed-leader", 2, "--how 'nuke' is not known to failed-leader"),
        ("drill.run --name failed-leader --how=nuke", 2, "--how 'nuke' is not known to failed-leader"),
        ("drill.run no-fault --how kill", 2, "no-fault has no option --how"),
        ("drill.run no-fault --duration 0", 2, "1 to 500"),
        ("drill.run failed-leader --baseline 61", 2, "0.1 to 60 seconds are"),
        ("drill.run failed-leader --baseline soon", 2, "--baseline 'soon' is not offered"),
        ("drill.run failed-leader --size 1", 3, "needs 3 voters"),
    ],
)
def test_drill_run_takes_a_name_or_none(tmp_path: Path, typed: str, code: int, said: str) -> None:
    """Without a name it lists; with one it takes the drill's own flags, wherever they stand; it has a help."""
    (tmp_path / "tasks.py").write_text("from etcdops.tasks import namespace\n")
    line = CommandLine(tmp_path)
    for program in ("etcdops", "invoke"):
        ended = line(*typed.split(), program=program)
        assert (ended.code, said in ended.out + ended.err) == (code, True), ended
    assert not (tmp_path / ".etcdops").exists()
