"""The parts of a run's page, and what else shows runs: lanes, histogram, pictures, logs, lists, JUnit and Markdown."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree as Xml

import msgspec
import pytest

from etcdops.answers import PutResult, RangeResult
from etcdops.errors import SpecError
from etcdops.ops import Put, Range
from etcdops.report.compare import compare, comparison_text, write_comparison
from etcdops.report.counterexample import draw, fetch_operations, named_operations
from etcdops.report.excerpts import read_logs
from etcdops.report.histogram import histogram, predicted_shares
from etcdops.report.index import list_runs, matching, write_index
from etcdops.report.junit import junit
from etcdops.report.lanes import Segment, lanes
from etcdops.report.loading import load_run
from etcdops.report.markdown import markdown
from etcdops.report.standing import command_typed, reproduce, standings, surroundings
from etcdops.spec import Timing
from etcdops.verify import Check
from etcdops.verify.recorded import Claim, Fault
from etcdops.workload.history import Operation
from etcdops.workload.prediction import predict_distribution, predicted_mean_ms
from scripts.big_run import BEGAN, MS, S, write_big_run

RUN = "20260102-030405-failed-leader-1a2b"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with an outage."""
    folder = tmp_path_factory.mktemp("runs") / RUN
    write_big_run(folder, 300)
    return folder


# -- lanes


def test_lanes_say_who_led_and_who_was_away(told: Path) -> None:
    """Without holes, from what members said and what was broken; what is not known is told as such."""
    found = lanes(load_run(told), BEGAN, BEGAN + 10 * S)
    by_member = {name: [each for each in found if each.member == name] for name in ("ironman", "thor", "deadpool")}
    for segments in by_member.values():
        assert segments[0].from_ns == BEGAN
        assert segments[-1].until_ns == BEGAN + 10 * S
        assert all(a.until_ns == b.from_ns for a, b in itertools.pairwise(segments))
    assert [(each.state, each.term) for each in by_member["thor"]] == [
        ("unknown", 0),
        ("leads", 2),
        ("away", 0),
        ("unknown", 0),
        ("follows", 3),
    ]
    assert [each.state for each in by_member["deadpool"]] == ["unknown", "follows", "leads"]


def test_a_member_that_speaks_while_it_is_healed_is_back(told: Path) -> None:
    """What it says before the drill has seen it healed counts; what is told of a time when it was away does not."""
    run = load_run(told)
    observed = run.windows[0][1]
    assert observed
    fault = observed.faults[0]
    early = Claim(fault.healing_ns + MS, "thor", 3, 13)
    ghost = Claim(fault.inject_ns + MS, "thor", 2, 12)
    changed = msgspec.structs.replace(observed, claims=(*observed.claims[:3], ghost, early))
    found = lanes(run._replace(windows=((told, changed),)), BEGAN, BEGAN + 10 * S)
    thor = [each for each in found if each.member == "thor"]
    assert thor[2:] == [
        Segment("thor", "away", 0, "kill", fault.inject_ns, early.t_ns),
        Segment("thor", "follows", 3, "deadpool", early.t_ns, BEGAN + 10 * S),
    ]


def test_a_fault_of_several_members_is_one_of_each(told: Path) -> None:
    """Its name is no member's."""
    run = load_run(told)
    observed = run.windows[0][1]
    assert observed
    both = msgspec.structs.replace(observed.faults[0], member="thor, deadpool")
    entries = [msgspec.structs.replace(each, member="thor, deadpool") for each in run.entries if each.event == "inject"]
    run = run._replace(
        windows=((told, msgspec.structs.replace(observed, faults=(both,))),), entries=(*run.entries, *entries)
    )
    assert run.members == ("ironman", "thor", "deadpool")
    away = [each.member for each in lanes(run, BEGAN, BEGAN + 10 * S) if each.state == "away"]
    assert away == ["thor", "deadpool"]


def test_a_member_that_speaks_in_a_later_window_is_back(told: Path) -> None:
    """A fault that a restore has undone is noted as healed once all is proved; who serves again is shown before."""
    run = load_run(told)
    observed = run.windows[0][1]
    assert observed
    long = msgspec.structs.replace(observed.faults[0], member="thor", healing_ns=BEGAN + 9 * S, heal_ns=BEGAN + 9 * S)
    first = msgspec.structs.replace(observed, faults=(long,), claims=observed.claims[:3], until_ns=BEGAN + 3 * S)
    second = msgspec.structs.replace(observed, faults=(), claims=(Claim(BEGAN + 6 * S, "thor", 2, 12),))
    found = lanes(run._replace(windows=((told, first), (told, second)), entries=()), BEGAN, BEGAN + 10 * S)
    assert [each[1:] for each in found if each.member == "thor"][-2:] == [
        ("away", 0, "kill", long.inject_ns, BEGAN + 6 * S),
        ("leads", 2, "", BEGAN + 6 * S, BEGAN + 10 * S),
    ]


def test_between_two_windows_nobody_is_asked(told: Path) -> None:
    """What members said holds until their window was closed, and after a restore only what they say then."""
    run = load_run(told)
    observed = run.windows[0][1]
    assert observed
    closed = msgspec.structs.replace(observed, faults=(), claims=observed.claims[:3], until_ns=BEGAN + 5 * S)
    again = tuple(Claim(BEGAN + 8 * S, name, 2, 12) for name in ("ironman", "thor", "deadpool"))
    opened = msgspec.structs.replace(observed, faults=(), claims=again, until_ns=BEGAN + 9 * S)
    found = lanes(run._replace(windows=((told, closed), (told, opened)), entries=()), BEGAN, BEGAN + 10 * S)
    assert [each[1:] for each in found if each.member == "thor"][1:] == [
        ("leads", 2, "", observed.claims[1].t_ns, BEGAN + 5 * S),
        ("unknown", 0, "", BEGAN + 5 * S, BEGAN + 8 * S),
        ("leads", 2, "", BEGAN + 8 * S, BEGAN + 10 * S),
    ]


def test_a_killed_run_has_the_faults_of_its_journal(told: Path) -> None:
    """Of one that was never healed it is told that it lasted to the end."""
    run = load_run(told)
    cut = [entry for entry in run.entries if entry.event not in ("heal", "healed")]
    killed = run._replace(windows=((told, None),), entries=tuple(cut))
    assert killed.faults == [Fault("kill", "thor", BEGAN + 4 * S, BEGAN + 4 * S, BEGAN + 10 * S, BEGAN + 10 * S)]


# -- histogram


@pytest.mark.parametrize("voters", [3, 5, 7])
def test_predicted_shares_are_the_prediction(voters: int) -> None:
    """They sum up to one; at the upper edges their mean is the predicted one, and so is their 90th percentile."""
    timing = Timing()
    shares = predicted_shares(timing, voters)
    assert sum(share for _, _, share in shares) == pytest.approx(1.0)
    assert sum(until * share for _, until, share in shares) == pytest.approx(predicted_mean_ms(timing, voters))
    model = predict_distribution(timing, voters, "kill")
    assert (shares[0][1], shares[-1][1]) == (model.low_ms, model.high_ms)
    total = 0.0
    for _, until, share in shares:
        total += share
        if total >= 0.9:
            assert until == model.p90_ms
            break


def test_a_histogram_counts_every_run() -> None:
    """The bars' titles add up to the runs; the one that is pointed at has its figure."""
    values = [1010.0, 1090.0, 1150.0, 1460.0, 3900.0]
    svg = histogram(values, predict_distribution(Timing(), 3, "kill"), Timing(), mark=1150.0)
    assert sum(int(count) for count in re.findall(r"<title>(\d+) runs", svg)) == len(values)
    assert "this run: 1,150 ms" in svg
    assert 'class="predicted"' in svg
    handed_over = histogram([40.0, 60.0], predict_distribution(Timing(), 3, "stop"), Timing())
    assert 'class="predicted-range"' in handed_over
    assert "Raft" not in histogram([5.0, 5.0], None, Timing())
    assert histogram([], None, Timing()) == ""


# -- pictures


def _operation(number: int, call: int, back: int, outcome: str = "ok", **more: object) -> Operation:
    return Operation(
        number,
        "client.0",
        1,
        "thor<b>",
        Put(b"k", b"<i>v</i>"),
        call,
        call,
        back,
        outcome,  # type: ignore[arg-type]
        **{"revision": 5, "answer": PutResult(5, None), **more},  # type: ignore[arg-type]
    )


def test_a_picture_has_each_operation() -> None:
    """One bar each; what nothing explains is marked, what has no answer has no end; text is escaped."""
    read = _operation(3, 30, 40)
    read = msgspec.structs.replace(read, request=Range(b"k"), answer=RangeResult(5, (), False, 0))
    made = draw([_operation(1, 0, 10), _operation(2, 5, 50, "unknown", code="X"), read], 0, "r", culprit=3)
    svg = Xml.fromstring(made)
    assert [group.get("class") for group in svg.iter("g")] == ["ok", "unknown", "culprit"]
    assert len(list(svg.iter("rect"))) == 3
    assert "<b>" not in made
    assert "✗ 3" in made


def test_operations_are_found_by_their_numbers(told: Path) -> None:
    """Those that a detail names, in its order, are read from the record."""
    assert named_operations("operation 12 (…) and operations 5, then operation 12; 7") == [12, 5]
    found = fetch_operations([told], {12, 5, 99999}, RUN)
    assert sorted(found) == [5, 12]
    assert found[5].key.endswith(b"/00000005")


# -- logs, members, the command


def test_logs_around_the_fault_are_told(told: Path, tmp_path: Path) -> None:
    """What matters and is near; like lines are put together, slow requests counted, panics kept; on the run's clock."""
    folder = tmp_path / RUN
    shutil.copytree(told, folder)

    def line(second: float, level: str, message: str, **more: object) -> str:
        return json.dumps({"level": level, "ts": f"2026-01-02T03:04:{second:09.6f}Z", "msg": message, **more})

    lines = [
        line(5.1, "warn", "long before the fault"),
        line(9.2, "info", "etcd-version here", **{"etcd-version": "3.5.30", "git-sha": "abc"}),
        *[line(9.3, "warn", "prober detected unhealthy status")] * 7,
        line(9.4, "info", "became leader at term 3", term=3),
        line(9.5, "info", "compacted something"),
        line(9.6, "warn", "apply request took too long"),
        line(9.7, "warn", "slow fdatasync", took="2s"),
        "panic: <b>",
        "not JSON at all",
        line(15.9, "error", "long after"),
    ]
    (folder / "thor.log").write_text("\n".join(lines))
    found = read_logs(load_run(folder), [])
    thor = [each for each in found.excerpts if each.member == "thor"]
    assert [(each.text, each.times) for each in thor] == [
        ("prober detected unhealthy status", 7),
        ("became leader at term 3", 1),
        ("slow fdatasync", 1),
        ("panic: <b>", 1),
    ]
    assert thor[0].t_s == pytest.approx(4.3, abs=0.01)
    assert (found.slow_fsyncs, found.slow_requests) == (1, 1)
    assert found.bad["thor"] == {"warn": 10, "error": 1}
    assert dict(surroundings(load_run(folder), found))["etcd"] == "3.5.30 (git abc)"


def test_members_that_differ_are_told(told: Path) -> None:
    """One whose hash is not the others' stands out, and so does one that could not be asked."""
    run = load_run(told)
    observed = run.windows[0][1]
    assert observed
    hashes = dict(observed.hashes)
    hashes["thor"] = msgspec.structs.replace(hashes["thor"], hash=1)
    other = msgspec.structs.replace(observed, hashes=hashes)
    changed = run._replace(windows=((told, other),))
    found = standings(changed, lanes(changed, BEGAN, BEGAN + 10 * S), read_logs(run, []))
    assert [(each.member, each.agrees) for each in found] == [("ironman", True), ("thor", False), ("deadpool", True)]


def test_the_command_to_repeat_a_run_is_whole(told: Path) -> None:
    """Every choice and the seed, quoted for a shell; nothing where too little is known."""
    info = load_run(told).info
    assert reproduce(info) == (
        "etcdops drill.run failed-leader --how kill --cluster lab --runtime process --size 3 --etcd-version 3.5.30"
        " --rate 100 --profile mixed --clients 3 --client-rate 20 --client-keys 20 --baseline 3 --seed 1"
    )
    assert "'a b; rm'" in reproduce(msgspec.structs.replace(info, cluster="a b; rm"))
    assert reproduce(msgspec.structs.replace(info, drill="")) == ""
    assert command_typed(info) == "etcdops failed-leader ''"


# -- JUnit, Markdown


def test_junit_has_a_case_for_each_check(told: Path, tmp_path: Path) -> None:
    """A failed check is a failure, one that could not tell an error and never skipped; the totals are right."""
    folder = tmp_path / "other"
    checks = (
        Check("a", "passed", "fine"),
        Check("b <x>", "failed", "lost & gone \x00 ]]>"),
        Check("c", "inconclusive", "too little"),
    )
    write_big_run(folder, 60, checks=checks)
    root = Xml.fromstring(junit([told, folder]).encode())
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("5", "1", "1")
    suite = root.findall("testsuite")[1]
    ended = {case.get("name"): [child.tag for child in case] for case in suite.findall("testcase")}
    assert ended == {"a": [], "b <x>": ["failure"], "c": ["error"]}
    assert suite.find("testcase/failure").text == "lost & gone \ufffd ]]>"  # type: ignore[union-attr]
    properties = {each.get("name"): each.get("value") for each in suite.findall("properties/property")}
    assert properties["seed"] == "1"
    assert root.find("testsuite/skipped") is None


def test_junit_of_a_killed_run_is_no_success(told: Path, tmp_path: Path) -> None:
    """A run without a verdict has a case that is an error."""
    folder = tmp_path / RUN
    shutil.copytree(told, folder)
    (folder / "verdict.json").unlink()
    (folder / "observed.json").unlink()
    root = Xml.fromstring(junit([folder]).encode())
    assert int(root.get("errors", "0")) >= 1


def test_markdown_is_a_table_that_nothing_breaks_out_of(told: Path, tmp_path: Path) -> None:
    """A row for each run; what did not pass is told, and hostile text makes no element and no further column."""
    folder = tmp_path / "other"
    write_big_run(folder, 60, text="|</summary><script>x", checks=(Check("b|", "failed", "<img src=x>"),))
    text = markdown([told, folder])
    lines = text.splitlines()
    assert lines[2].startswith("| failed-leader (kill thor) | ✅ passed | ")
    assert "❌ deviated" in lines[3]
    assert len(re.findall(r"(?<!\\)\|", lines[3])) == len(re.findall(r"\|", lines[2]))
    assert "- **b\\|** failed: &lt;img src=x>" in text
    assert "<script" not in text.replace("drill.run", "").partition("```sh")[0]
    assert text.count("<details>") == text.count("</details>") == 2


# -- lists and comparisons


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of runs: two that ended, one that was killed, and what is no run."""
    directory = tmp_path_factory.mktemp("state") / "runs"
    for number, version in ((1, "3.5.30"), (2, "3.4.23"), (3, "3.5.1")):
        name = f"20260102-03040{number}-failed-leader-1a2b"
        write_big_run(directory / name, 90, run=name, seed=number, etcd_version=version, outage_s=1 + number / 4)
        info = json.loads((directory / name / "run.json").read_bytes())
        info["began"] = f"2026-01-0{number}T00:00:00+00:00"
        (directory / name / "run.json").write_text(json.dumps(info))
    (directory / "20260102-030403-failed-leader-1a2b" / "verdict.json").unlink()
    (directory / "no-run").mkdir()
    (directory / "a-file").write_text("")
    return directory


def test_all_runs_are_listed(runs: Path) -> None:
    """The newest first, a killed one as unfinished; what is no run is not there."""
    found = list_runs(runs)
    assert [(each.run[14], each.verdict, each.etcd_version) for each in found] == [
        ("3", "unfinished", "3.5.1"),
        ("2", "passed", "3.4.23"),
        ("1", "passed", "3.5.30"),
    ]
    assert found[1].write_ms == pytest.approx(1500, abs=400)
    assert list_runs(runs / "nowhere") == []


def test_runs_are_filtered(runs: Path) -> None:
    """By drill, verdict, version or the beginning of one, cluster, and time; a name that no run has is refused."""
    found = list_runs(runs)
    assert [each.run[14] for each in matching(found, version="3.5")] == ["3", "1"]
    assert [each.run[14] for each in matching(found, version="3.5.3")] == []
    assert [each.run[14] for each in matching(found, verdict="passed", version="3.4.23")] == ["2"]
    assert [each.run[14] for each in matching(found, since="2026-01-02T00:00:00Z")] == ["3", "2"]
    assert matching(found, cluster="other") == []
    with pytest.raises(SpecError, match="no run has the drill 'x'"):
        matching(found, drill="x")
    with pytest.raises(SpecError, match="since"):
        matching(found, since="yesterday")


def test_the_list_is_a_page(runs: Path, tmp_path: Path) -> None:
    """Runs link to their pages where they have one; what a run says of itself is only text."""
    first = runs / "20260102-030401-failed-leader-1a2b"
    (first / "index.html").write_text("a page")
    try:
        found = list_runs(runs)
        text = write_index(found, runs.parent / "index.html").read_text()
    finally:
        (first / "index.html").unlink()
    assert f'<a href="runs/{first.name}/index.html">' in text
    assert text.count("<tr data-") == 3
    hostile = msgspec.structs.replace(found[0], drill="</td><script>x", page="")
    assert "<script>x" not in write_index([hostile], tmp_path / "index.html").read_text()


def test_two_runs_are_compared(runs: Path, tmp_path: Path) -> None:
    """What was different is told, and of figures whether they differ by more than resolution and noise."""
    a, b = (runs / f"20260102-03040{number}-failed-leader-1a2b" for number in (1, 2))
    found = compare(a, b)
    made = {pair.what: pair for pair in found.made}
    assert (made["etcd"].a, made["etcd"].b, made["etcd"].differs) == ("3.5.30", "3.4.23", True)
    assert not made["--how"].differs
    headline = found.outage[0]
    assert headline.difference == pytest.approx(250, abs=400)
    assert headline.telling is not None
    same = compare(a, a)
    assert not any(pair.differs for pairs in (same.made, same.outage, same.writes, same.checks) for pair in pairs)
    text = comparison_text(found)
    assert "3.4.23" in text
    assert write_comparison(found, tmp_path / "both.html").read_text().count("<table>") == 4
