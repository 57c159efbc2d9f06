"""What people and programs see of a run: its journal, its verdict, its page, its few lines in a terminal."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from etcdops.errors import StateError
from etcdops.report.journal import Journal, read_journal
from etcdops.report.page import render
from etcdops.report.terminal import distribution, ms, verdict_text
from etcdops.report.verdict import EXIT_CODES, ClusterInfo, Event, FaultInfo, Verdict, worst, write
from etcdops.verify import Check
from etcdops.verify.acknowledged import Writes
from etcdops.workload.outage import Outage


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


def test_the_text_shows_outage_beside_prediction_and_writes() -> None:
    """The few lines in a terminal have the verdict, the outage beside Raft's prediction, resolution, noise, writes."""
    text = verdict_text(verdict())
    assert text.startswith("failed-leader (kill thor): PASSED\n")
    assert "writes stopped for 1,312 ms through ironman, the worst surviving member" in text
    assert "Raft predicts 1,000 to 1,900 ms" in text
    assert "resolution 14 ms, noise 12 ms" in text
    assert "4,210 acknowledged, 0 lost, 130 failed, 12 unknown (3 of them applied)" in text


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
