"""A recorded run that is verified again gives exactly the verdict that its drill gave, wherever its folder is."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from etcdops import drills
from etcdops.drills import window
from etcdops.errors import StateError
from etcdops.fake.lies import Lies
from etcdops.report.assembling import recheck, stored_verdict
from etcdops.report.finding import find_run
from etcdops.report.html import write_report
from etcdops.report.terminal import verdict_text
from etcdops.report.verdict import Verdict
from etcdops.state import Store
from tests.unit import drilling
from tests.unit.drilling import fake_cluster


def _run(store: Store, drill: str, lies: Lies, **options: str) -> Verdict:
    with fake_cluster(store, lies) as cluster:
        return drills.run(drill, cluster, rate=20, clients=1, profile="watch", baseline_s=0.5, **options)


def assert_same_verdict(verdict: Verdict, elsewhere: Path) -> None:
    """Assert that the run gives its verdict again, down to each text and figure; also when only its folder is left."""
    assert stored_verdict(verdict.folder) == verdict
    before = {path: path.read_bytes() for path in verdict.folder.rglob("*") if path.is_file()}
    assert recheck(verdict.folder) == verdict
    assert {path: path.read_bytes() for path in verdict.folder.rglob("*") if path.is_file()} == before
    shutil.move(verdict.folder, elsewhere)
    moved = recheck(find_run(str(elsewhere), store=Store(elsewhere.parent / "no-store")))
    assert moved == msgspec.structs.replace(verdict, report=str(elsewhere / "verdict.md"))


@pytest.mark.parametrize(
    ("drill", "lies", "expected"),
    [
        ("no-fault", {}, "passed"),
        ("failed-leader", {"lose_every": 10, "after_fault": True}, "deviated"),
        ("reduce-quorum", {"diverges": "ironman"}, "deviated"),
        ("failed-leader", {"two_leaders": True}, "aborted"),
    ],
)
def test_the_verdict_is_the_same_again(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    drill: str,
    lies: dict[str, object],
    expected: str,
) -> None:
    """Whether it passed, deviated in whichever way or was aborted: every check, figure and event is the same."""
    options = {"duration": "1"} if drill == "no-fault" else {}
    if lies:
        # It would be waited for in vain.
        monkeypatch.setattr(drilling, "STEADY", 10)
        monkeypatch.setattr(drilling, "PATIENCE", 15)
        monkeypatch.setattr(window, "_ANSWER_S", 2.0)
    verdict = _run(store, drill, Lies(**lies), **options)  # type: ignore[arg-type]
    assert verdict.verdict == expected
    assert_same_verdict(verdict, tmp_path / "elsewhere")


def test_a_run_that_could_not_be_healed_stays_stuck(store: Store, tmp_path: Path) -> None:
    """What healing came to cannot be told from the record: it is taken from the drill."""
    verdict = _run(store, "failed-leader", Lies(never_back="dead"))
    assert verdict.verdict == "stuck"
    assert_same_verdict(verdict, tmp_path / "elsewhere")


def test_a_run_that_died_lost_nothing_that_is_known(store: Store) -> None:
    """Of writes that nobody read back it is not said that none is lost, and no page is named that is not there."""
    verdict = _run(store, "no-fault", Lies(), duration="1")
    assert "acknowledged, 0 lost, " in verdict_text(verdict)
    assert f"  report   {verdict.report}" in verdict_text(verdict)
    write_report(verdict.folder)
    assert f"  report   {verdict.folder / 'index.html'}" in verdict_text(verdict)
    (verdict.folder / "index.html").unlink()
    for path in (*verdict.folder.glob("verdict.*"), *verdict.folder.rglob("observed.json")):
        path.unlink()
    text = verdict_text(recheck(verdict.folder))
    assert "acknowledged, not read back, " in text
    assert f"  records  {verdict.folder}" in text
    assert "verdict.md" not in text


def test_a_missing_history_is_no_lost_history(store: Store) -> None:
    """A file that is not there any more is named; it is no evidence against etcd."""
    verdict = _run(store, "no-fault", Lies(), duration="1")
    (verdict.folder / "history.jsonl.gz").unlink()
    with pytest.raises(StateError, match=r"history\.jsonl is missing"):
        recheck(verdict.folder)


def test_a_damaged_verdict_is_no_end(store: Store) -> None:
    """Its records are whole all the same: the message says how to go by them alone, and that works."""
    verdict = _run(store, "no-fault", Lies(), duration="1")
    path = verdict.folder / "verdict.json"
    path.write_bytes(path.read_bytes()[:100])
    for look in (stored_verdict, recheck):
        with pytest.raises(StateError, match=r"verdict\.json is damaged") as caught:
            look(verdict.folder)
        assert caught.value.remedy == "Move it away: the run is then verified from its records alone."
    path.rename(path.with_name("damaged.json"))
    again = recheck(verdict.folder)
    assert again.verdict == "inconclusive"
    assert again.check("ran to its end").detail == "the drill died before its verdict"
    assert again.writes == verdict.writes
    assert again.check("revision witness") == verdict.check("revision witness")
