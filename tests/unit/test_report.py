"""What people and programs see of a run: its journal, its verdict, its page, its few lines in a terminal."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from etcdops.drills.engine import _known_bad
from etcdops.errors import StateError
from etcdops.report.journal import Journal, read_journal
from etcdops.report.page import render
from etcdops.report.repeats import distribution, repeats_text, summarise
from etcdops.report.terminal import figure_value, ms, verdict_text
from etcdops.report.verdict import EXIT_CODES, ClusterInfo, Event, FaultInfo, Verdict, worst, write
from etcdops.spec import Timing
from etcdops.verify import Check
from etcdops.verify.acknowledged import Writes
from etcdops.verify.recorded import Figure
from etcdops.workload.gaps import Gap
from etcdops.workload.outage import Outage, StreamOutage
from etcdops.workload.prediction import predict_distribution


def verdict(kind: str = "passed", **changes: object) -> Verdict:
    """A verdict as the engine makes it."""
    made = Verdict(
        schema=1,
        run="r1",
        drill="failed-leader",
        verdict=kind,
        seed=7,
        cluster=ClusterInfo("lab", "process", "3.5.30", ("ironman", "thor", "deadpool")),
        fault=FaultInfo("kill", "thor", 3000.0, 5000.0),
        outage=Outage(
            1312.4, 2400.0, 1320.0, 1300.0, 1280.0, 12.0, 14.0, (1000.0, 1900.0), "ironman", False, 100.0, {}
        ),
        writes=Writes(4210, 0, 130, 12, 3, 0),
        checks=(Check("steady state", "passed", "all well"), Check("logs", "passed", "no panic")),
        timeline=(Event(0.0, "step", "", "find | the <leader>"),),
        report="/runs/r1/verdict.md",
    )
    return msgspec.structs.replace(made, **changes)


#: Of a run whose writes were read back.
READ_BACK = (Check("acknowledged writes", "passed", "all there"),)


def test_the_text_shows_outage_beside_prediction_and_writes() -> None:
    """The few lines in a terminal have the verdict, the outage beside Raft's prediction, resolution, noise, writes."""
    text = verdict_text(verdict(checks=READ_BACK))
    assert text.startswith("failed-leader (kill thor): PASSED\n")
    assert "writes stopped for 1,312 ms through ironman, the worst surviving member" in text
    assert "Raft predicts 1,000 to 1,900 ms" in text
    assert "resolution 14 ms (over 10 ms), noise 12 ms" in text
    assert "unavailable 1,280 ms (not answered within 100 ms); thor: 2,400 ms" in text
    assert "4,210 acknowledged, 0 lost, 130 failed, 12 unknown (3 of them applied)" in text
    assert "4,210 acknowledged, not read back, 130 failed" in verdict_text(verdict())


def _whole_outage() -> Outage:
    """An outage with every figure there is."""
    made = verdict().outage
    assert made is not None
    stream = StreamOutage(
        "pinned.ironman",
        1312.4,
        0,
        1,
        True,
        True,
        1280.0,
        14.0,
        1.0,
        3.0,
        12.0,
        False,
        acknowledged=90,
        failed=0,
        unknown=41,
    )
    return msgspec.structs.replace(
        made,
        streams={"pinned.ironman": stream},
        new_leader_ms=1210.2,
        watch_ms=1333.0,
        lease_ms=1402.0,
        p99_before_ms=3.25,
        p99_back_ms=1450.0,
        errors={
            "failed": {"UNAVAILABLE: etcdserver: a | b": 7},
            "unknown": {"DEADLINE_EXCEEDED": 40, "A": 3, "B": 2, "C": 1, "D": 1},
        },
        watches={
            "thor": Gap(2500.0, 0, 1, True, True, 99.0, False),
            "ironman": Gap(1333.0, 0, 1, True, False, 11.0, True),
        },
        lease=Gap(1402.0, 0, 1, True, True, 50.0, False),
        prediction=predict_distribution(Timing(), 3, "kill"),
    )


def test_the_text_shows_every_figure() -> None:
    """Word for word: what a person reads after a run with watches, leases and errors."""
    text = verdict_text(verdict(outage=_whole_outage(), checks=READ_BACK))
    headline = (
        "writes stopped for 1,312 ms through ironman, the worst surviving member; Raft predicts 1,000 to 1,900 ms"
    )
    assert text.splitlines()[1:15] == [
        f"  outage   {headline}",
        "           predicted mean 1,285 ms, median 1,200 ms, p90 1,600 ms; split vote 10 %",
        "           resolution 14 ms (over 10 ms), noise 12 ms",
        "           failing over: writes 1,320 ms, reads 1,300 ms",
        "           unavailable 1,280 ms (not answered within 100 ms); thor: 2,400 ms",
        "           a new leader after 1,210 ms",
        "           watches silent for at least 1,333 ms (noise 11), no keep-alive for 1,402 ms (noise 50)",
        "           p99 back within twice 3.2 ms: after 1,450 ms",
        "           errors: 40 unknown, DEADLINE_EXCEEDED",
        "                   7 failed, UNAVAILABLE: etcdserver: a | b",
        "                   3 unknown, A",
        "                   2 unknown, B",
        "                   and 2 of other kinds",
        "  writes   4,210 acknowledged, 0 lost, 130 failed, 12 unknown (3 of them applied)",
    ]


def test_what_stays_open_is_said() -> None:
    """An outage that did not end is a lower bound, an outlier stands out, and a p99 that stayed away is told."""
    whole = _whole_outage()
    stream = msgspec.structs.replace(whole.streams["pinned.ironman"], ended=False)
    changed = msgspec.structs.replace(
        whole, streams={"pinned.ironman": stream}, outlier="400 ms longer", p99_back_ms=None, lease_ms=None
    )
    text = verdict_text(verdict(outage=changed))
    assert "writes stopped for at least 1,312 ms" in text
    assert "OUTLIER  400 ms longer" in text
    assert "p99 back within twice 3.2 ms: not seen" in text
    assert "no keep-alive for - ms" not in text
    page = render(verdict(outage=changed), failover_rule="any", rate=100)
    assert "**Outlier:** 400 ms longer." in page
    assert "their figure is a lower bound" in page


def test_a_silence_that_did_not_end_is_a_lower_bound() -> None:
    """Of keep-alives, too, on the terminal and on the page."""
    whole = _whole_outage()
    assert whole.lease
    changed = msgspec.structs.replace(whole, lease=msgspec.structs.replace(whole.lease, ended=False))
    assert "no keep-alive for at least 1,402 ms (noise 50)" in verdict_text(verdict(outage=changed))
    page = render(verdict(outage=changed), failover_rule="any", rate=100)
    assert "| no keep-alive of a lease was acknowledged | at least 1,402 |" in page


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "-"),
        (0.0, "0 s"),
        (3, "3 s"),
        (0.0625, "0.062 s"),
        (1.5, "1.5 s"),
        (24.7174, "24.7 s"),
        (1234.56, "1,235 s"),
        (1_234_567, "1,234,567 s"),
    ],
)
def test_figures_read_as_people_write_them(value: float | None, said: str) -> None:
    """No more places than say something, and never an exponent."""
    assert figure_value(Figure("time", value, "s", "")) == said


def test_the_page_shows_every_figure() -> None:
    """The page has each figure in a row of its own, all streams, all errors, and what the prediction leaves out."""
    page = render(verdict(outage=_whole_outage()), failover_rule="any", rate=100)
    for line in (
        "| its mean, median, 90th percentile | 1,285, 1,200, 1,600 |",
        "| from the fault until a member said that it leads, at a higher term | 1,210 |",
        "| a watch delivered no change, worst surviving member | 1,333 |",
        "| no keep-alive of a lease was acknowledged | 1,402 |",
        "| 99th percentile latency before the fault, through surviving members | 3.2 |",
        "| from the fault until it was back within twice that | 1,450 |",
        "| resolution of these figures: over 10 ms | 14 |",
        "| pinned.ironman | 1,312 | 1,280 | 14 | 12 | 90 | 0 | 41 |",
        "| watch through ironman | at least 1,333 | | | 11 | | | |",
        "| keep-alives of all clients | 1,402 | | | 50 | | | |",
        "| failed | UNAVAILABLE: etcdserver: a \\| b | 7 |",
        "| unknown | D | 1 |",
        "- a further 1,000 to 1,900 ms after a split vote (risk 10 %)",
    ):
        assert line in page.splitlines()
    assert "without a figure" not in page


def test_several_faults_and_the_figures_of_a_drill() -> None:
    """Every fault is named, with its member where it has one; so is what the drill itself measured."""
    made = verdict(
        faults=(FaultInfo("kill", "thor", 1000.0, 3000.0), FaultInfo("restore", "", 2000.0, 4000.0)),
        figures=(Figure("recovery point", 1234.0, "writes", "after the | snapshot"), Figure("recovery", None, "ms")),
        profile="mixed",
    )
    text = verdict_text(made)
    assert text.startswith("failed-leader (kill thor, restore): PASSED\n")
    assert "; thor: 2,400 ms\n" in text
    assert "  figures  recovery point: 1,234 writes (after the | snapshot)\n           recovery: -\n" in text
    page = render(made, failover_rule="any", rate=100).splitlines()
    assert "**Fault:** kill of thor, applied at 1000 ms, healed at 3000 ms." in page
    assert "**Fault:** restore, applied at 2000 ms, healed at 4000 ms." in page
    assert "| recovery point | 1,234 writes | after the \\| snapshot |" in page
    assert "runtime process), traffic mixed, seed 7." in "\n".join(page)


def test_the_page_says_what_was_not_checked() -> None:
    """Checks that could not tell and figures that are missing are listed; nothing is claimed of a check not made."""
    page = render(verdict(), failover_rule="any", rate=100)
    assert "without a figure: when a member led at a higher term, what watches delivered" in page
    assert "was checked for every one" not in page
    passed = (Check("acknowledged writes", "passed", "all"), Check("record", "inconclusive", "cut | short"))
    page = render(verdict(checks=passed), failover_rule="any", rate=100)
    assert "That no acknowledged write was lost was checked for every one of them" in page
    assert "- record: cut \\| short" in page.splitlines()
    unread = (Check("acknowledged writes", "inconclusive", "not read back"),)
    assert "was checked for every one" not in render(verdict(checks=unread), failover_rule="any", rate=100)
    assert "no outage was measured" in render(verdict(outage=None), failover_rule="any", rate=100)
    whole = _whole_outage()
    slow = verdict(outage=msgspec.structs.replace(whole, resolution_ms=800.0, noise_ms=101.0))
    assert "resolution and noise, 901 ms together, are more than" in render(slow, failover_rule="any", rate=100)
    other = verdict(outage=msgspec.structs.replace(whole, predicted_ms=None, prediction=None))
    assert "nothing is predicted for such a fault" in render(other, failover_rule="any", rate=100)


def test_repeats_beside_the_prediction() -> None:
    """The distribution of several runs stands beside the predicted one, and outliers are named by their run."""
    whole = _whole_outage()
    runs = [
        verdict(run=f"r{n}", outage=msgspec.structs.replace(whole, write_ms=float(1000 + 100 * n))) for n in range(1, 4)
    ]
    late = msgspec.structs.replace(whole, write_ms=2300.0, outlier="400 ms longer than predicted: likely a split vote")
    repeats = summarise([*runs, verdict(run="r4", outage=late), verdict("aborted", run="r5", outage=None)])
    assert [each.run for each in repeats.outliers] == ["r4"]
    assert repeats_text(repeats).splitlines() == [
        "5 runs: writes stopped for 1,100 ms (min), 1,250 (median), 2,300 (p90), 2,300 (max)",
        "  Raft predicts 1,000 ms (min), 1,200 (median), 1,600 (p90), 1,900 (max), or up to 100 less",
        "  and more after a split vote, in up to 10 % of runs",
        "  outlier: r4: 2,300 ms, 400 ms longer than predicted: likely a split vote",
    ]
    stop = msgspec.structs.replace(whole, prediction=predict_distribution(Timing(), 3, "stop"))
    assert "Raft predicts 0 to 100 ms" in repeats_text(summarise([verdict(outage=stop)]))
    assert repeats_text(summarise([verdict(outage=None)])) == ""


def test_a_member_without_a_stream_of_its_own_has_no_figure() -> None:
    """Members that joined or left meanwhile are not said to have been unavailable for "- ms"."""
    made = verdict()
    assert made.outage is not None
    assert "thor: 2,400 ms" in verdict_text(made)
    joined = msgspec.structs.replace(made.outage, affected_member_ms=None)
    assert "thor:" not in verdict_text(verdict(outage=joined))


def test_a_restore_costs_more_than_the_outage_before_it() -> None:
    """Where service was away for a restore, the outage that is shown is said to be of before."""
    figures = (Figure("RTO without service", 2883.2, "ms"),)
    assert "outage   before the restore, writes stopped for 1,312 ms" in verdict_text(verdict(figures=figures))
    assert "before the restore" not in verdict_text(verdict())


def test_a_failed_check_is_shown_with_what_was_found() -> None:
    """A check that failed stands out, with its detail; those that passed stay short."""
    text = verdict_text(verdict("deviated", checks=(Check("logs", "failed", "thor: panic: boom"),)))
    assert "DEVIATED" in text
    assert "FAILED logs: thor: panic: boom" in text


def test_a_known_bad_etcd_is_named_in_the_verdict() -> None:
    """With a version that is known to lose data when killed, the verdict says so, in the terminal and on the page."""
    bad = ClusterInfo("lab", "process", "3.5.1", ("ironman",), ("members diverge silently (etcd#13766)",))
    made = verdict(cluster=bad)
    assert "3.5.1 is known-bad" in verdict_text(made)
    assert "etcd#13766" in verdict_text(made)
    assert "etcd#13766" in render(made, failover_rule="any", rate=100)


def test_a_failure_of_a_known_bad_etcd_is_told_with_all_that_it_may_be() -> None:
    """When a check failed, everything that this version is known for is named; otherwise one line will do."""
    effects = ("members diverge silently (etcd#13766)", "Bookmarkable is broken (etcd#15220)")
    bad = ClusterInfo("lab", "process", "3.5.1", ("ironman",), effects)
    assert "etcd#15220" not in verdict_text(verdict(cluster=bad))
    broken = verdict("deviated", cluster=bad, checks=(Check("watch", "failed", "Bookmarkable is broken: thor"),))
    assert all(effect in verdict_text(broken) for effect in effects)
    assert all(effect in render(broken, failover_rule="any", rate=100) for effect in effects)


@pytest.mark.parametrize(("version", "named"), [("3.4.23", True), ("3.5.7", True), ("3.4.25", False), ("3.5.8", False)])
def test_a_drill_knows_of_early_progress_notifications(version: str, named: bool) -> None:
    """What a run's checks may find of a release that is not "unsafe" is in its verdict, too."""
    assert any("Bookmarkable" in effect and "etcd#15220" in effect for effect in _known_bad(version)) is named


def test_the_page_has_every_part_and_is_safe_from_what_members_say() -> None:
    """The page has checks, writes, outage and timeline; text from members cannot break its tables or add markup."""
    page = render(verdict(), failover_rule="next member after 333 ms", rate=100)
    for part in ("# failed-leader: passed", "## Checks", "## Writes", "## Outage", "## Timeline", "next member after"):
        assert part in page
    assert "find \\| the &lt;leader>" in page
    assert render(verdict("aborted", outage=None, fault=None), failover_rule="", rate=1).count("## Outage") == 0


def test_the_worst_of_several_verdicts_decides() -> None:
    """Stuck is worse than deviated, then inconclusive, aborted, passed; each has its exit code."""
    order = ["passed", "aborted", "inconclusive", "deviated", "stuck"]
    for i, kind in enumerate(order):
        assert worst([verdict(each) for each in order[: i + 1]]).verdict == kind
    assert EXIT_CODES == {"passed": 0, "deviated": 1, "aborted": 3, "inconclusive": 6, "stuck": 7}


def test_the_distribution_of_repeats() -> None:
    """Minimum, median, 90th percentile and maximum of the outages; nothing of none."""
    spread = distribution([float(n) for n in range(10, 0, -1)])
    assert spread is not None
    assert (spread.n, spread.min_ms, spread.median_ms, spread.p90_ms, spread.max_ms) == (10, 1.0, 5.5, 9.0, 10.0)
    assert distribution([]) is None
    single = distribution([3.0])
    assert single is not None
    assert (single.min_ms, single.p90_ms, single.max_ms) == (3.0, 3.0, 3.0)


def test_milliseconds_for_people() -> None:
    """Thousands are grouped, and what was not measured is a dash, not a zero."""
    assert (ms(1234.5), ms(0.0), ms(None)) == ("1,234", "0", "-")


def test_verdict_json_reads_back(tmp_path: Path) -> None:
    """What is written can be read back as the same verdict."""
    made = verdict()
    write(made, tmp_path)
    assert msgspec.json.decode((tmp_path / "verdict.json").read_bytes(), type=Verdict) == made


def test_a_journal_that_was_cut_short_is_read_up_to_there(tmp_path: Path) -> None:
    """A crash in the middle of a line costs that line alone; damage elsewhere is told, with the file's name."""
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.note("inject", "thor", "kill", sync=True)
        journal.note("healed", "thor")
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert [entry.event for entry in read_journal(path)] == ["inject"]
    path.write_bytes(b"{nonsense\n" + whole)
    with pytest.raises(StateError, match=r"journal\.jsonl is damaged"):
        read_journal(path)
