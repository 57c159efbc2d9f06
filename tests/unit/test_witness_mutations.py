"""The revision witness, the watch check and the members' check against the oracle: on legal runs, on mutated ones, and
on runs of faulty stores. What the oracle finds illegal, the check that owns it fails; what it finds legal, none does.

ETCDOPS_TEST_HISTORIES=N tries N times as many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from etcdops.histories.generated import Settings, generate
from etcdops.histories.requests import REGISTER, UNIQUE
from etcdops.verify import Check
from etcdops.verify.columns import Columns
from etcdops.verify.members_agree import check_members_agree
from etcdops.verify.reading import read_columns
from etcdops.verify.recorded import Recorded
from etcdops.verify.watch import check_watch
from etcdops.verify.witness import check_witness, examine, witness
from etcdops.workload.deliveries import EventsWriter, events_file
from etcdops.workload.history import HistoryWriter
from tests.unit.cases import SCALE, faulty, mutated, small
from tests.unit.oracle import judge
from tests.unit.scripts import ILLEGAL, LEGAL

#: That a lease was never granted may be a record without its grant.
ACCEPTED = {"leases": ("failed", "inconclusive")}


def wrong_results(recorded: Recorded) -> list[str]:
    """Give what the checks say against the oracle."""
    truth = judge(recorded)
    found = witness(recorded)
    checks = {
        "order": found.check,
        "leases": found.check,
        "watch": check_watch(recorded, found),
        "members": check_members_agree(recorded.observed.hashes),
    }
    wrong = [
        f"{part} illegal, but the {check.name} {check.result}: {check.detail}"
        for part, check in checks.items()
        if getattr(truth, part) == "illegal" and check.result not in ACCEPTED.get(part, ("failed",))
    ]
    if set(truth) == {"legal"}:
        failed = [check for check in checks.values() if check.result == "failed"]
        wrong += [f"legal, but the {check.name} failed: {check.detail}" for check in failed]
    return wrong


def against(cases: Iterable[tuple[str, int, Recorded]]) -> list[str]:
    """Give what the checks say against the oracle over many runs: which, how often, and the first case of each."""
    first: dict[str, str] = {}
    count: Counter[str] = Counter()
    for name, seed, recorded in cases:
        for wrong in wrong_results(recorded):
            what = f"{name}: {wrong.partition(':')[0]}"
            first.setdefault(what, f"seed {seed}{wrong.partition(':')[2]}")
            count[what] += 1
    return [f"{what} ({count[what]} times), as with {first[what]}" for what in first]


def results(recorded: Recorded) -> list[Check]:
    """Give what all checks of a run that can be judged from its record say."""
    found = witness(recorded)
    return [found.check, check_watch(recorded, found), check_members_agree(recorded.observed.hashes)]


def test_legal_runs_pass() -> None:
    """Small runs of every kind, whole as they are, pass: not only do they not fail."""
    for seed in range(150 * SCALE):
        for check in results(generate(small(seed))):
            assert check.result == "passed", f"seed {seed}, {check}"


@pytest.mark.parametrize(
    "settings",
    [
        Settings(seed=1, operations=3000, clients=10, keys=20, unknown=0.1, fault=0.005),
        Settings(seed=2, operations=3000, clients=10, keys=5, unknown=0.3, think_ms=50, lag_ms=50),
        Settings(seed=3, operations=2000, clients=30, keys=3, latency_ms=20, tick_ns=1_000_000),
        Settings(seed=4, operations=2000, mix=REGISTER, base_keys=0),
        Settings(seed=5, operations=2000, mix=UNIQUE, members=5, fault=0.01),
        Settings(seed=6, operations=1000, think_ms=400, clients=8, fault=0.01),
    ],
    ids=["faults", "lag", "concurrent", "register", "unique", "leases"],
)
def test_long_legal_runs_pass(settings: Settings) -> None:
    """Thousands of operations, with all that a cluster does to them, pass."""
    for check in results(generate(settings)):
        assert check.result == "passed", check


def test_mutations_are_caught_if_they_are_illegal_and_only_then() -> None:
    """Over every single change of many runs, the checks say what the oracle says."""
    assert against(mutated(range(35 * SCALE))) == []


def test_faulty_stores_are_caught_if_their_runs_are_illegal_and_only_then() -> None:
    """Over runs that are consistent but for one fault of the store, the checks say what the oracle says."""
    assert against(faulty(range(25 * SCALE))) == []


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_scripts_fail(name: str) -> None:
    """What a laxer rule lets through fails."""
    check = check_witness(ILLEGAL[name]())
    assert check.result == "failed", check.detail


@pytest.mark.parametrize("name", LEGAL)
def test_legal_scripts_do_not_fail(name: str) -> None:
    """What only looks odd is not flagged; it passes, unless the log stops too early."""
    check = check_witness(LEGAL[name]())
    assert check.result == ("inconclusive" if name.startswith("log_that_stops") else "passed"), check.detail


def _from_files(recorded: Recorded, folder: Path) -> Columns:
    """Write a run as traffic does, and read it as a later check does."""
    observed = recorded.observed
    history = folder / "history.jsonl"
    with HistoryWriter(history, observed.run) as writer:
        for op in recorded.history:
            writer.append(op)
    events = {}
    for member, deliveries in recorded.deliveries.items():
        events[member] = events_file(folder, member)
        with EventsWriter(events[member], observed.run, member) as told:
            for delivery in deliveries:
                told.append(delivery)
    base = recorded.base
    assert base is not None
    return read_columns(observed.run, observed.members, base, [history], events)


def test_the_record_read_again_gives_the_same_findings(tmp_path: Path) -> None:
    """What the witness finds in a run it finds in the run's files, too; the final states are not in these."""
    every, differ = 7, []
    for number, (name, seed, recorded) in enumerate(mutated(range(35 * SCALE))):
        # An event that no etcd sends has no form of its own in a file.
        if number % every or name == "kind_of_an_event_changed":
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        observed = recorded.observed
        part = examine(_from_files(recorded, folder), tombstone=observed.tombstone, faults=observed.faults)
        direct = witness(recorded).part
        assert direct is not None
        if part.findings.counts != direct.findings.counts and "final state" not in direct.findings.text():
            differ.append(f"{name}, seed {seed}: {part.findings.text()} / {direct.findings.text()}")
    assert differ == []
