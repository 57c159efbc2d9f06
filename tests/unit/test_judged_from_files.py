"""A run is judged the same from its files as from operations and deliveries in memory, whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import msgspec
import pytest

from etcdops.errors import StateError
from etcdops.histories.generated import Settings, generate
from etcdops.ops import Put
from etcdops.report.judged import load, load_history
from etcdops.verify.activity import Minimum
from etcdops.verify.columns import Columns
from etcdops.verify.judging import judge
from etcdops.verify.recorded import OBSERVED, Fault, Recorded
from etcdops.workload.deliveries import EventsWriter, events_file
from etcdops.workload.history import FAILOVER_WRITE, HistoryWriter, pinned_stream
from etcdops.workload.lines import compress
from etcdops.workload.outage import Outage, measure
from tests.unit.cases import faulty, mutated
from tests.unit.stories import random_story


def _with_probes(recorded: Recorded) -> Recorded:
    """Give a run in which every other operation is a probe's, and which a fault met in its middle."""
    history = []
    for number, op in enumerate(recorded.history):
        if isinstance(op.request, Put) or number % 2:
            name = FAILOVER_WRITE if number % 3 else pinned_stream(op.member)
            op = msgspec.structs.replace(op, stream=name, attempt=1 + number % 2)
        history.append(op)
    history.sort(key=lambda op: op.return_ns)
    third = len(history) // 3
    since, until = history[third].call_ns, max(op.return_ns for op in history[: 2 * third + 1])
    fault = Fault("kill", history[third].member, since, since, until, until, "kill")
    observed = msgspec.structs.replace(recorded.observed, faults=(fault,))
    return Recorded(observed, history, recorded.deliveries)


def _write(folder: Path, recorded: Recorded) -> None:
    """Write a run as a drill does; every third operation is the drill's own."""
    run = recorded.observed.run
    for name, wanted in (("history.jsonl", (1, 2)), ("own.jsonl", (0,))):
        with HistoryWriter(folder / name, run) as writer:
            for number, op in enumerate(recorded.history):
                if number % 3 in wanted:
                    writer.append(op)
    for member, deliveries in recorded.deliveries.items():
        path = events_file(folder, member)
        with EventsWriter(path, run, member) as events:
            for delivery in deliveries:
                events.append(delivery)
        compress(path)
    (folder / OBSERVED).write_bytes(msgspec.json.encode(recorded.observed))


def _said(recorded: Recorded) -> dict[str, Any]:
    logs: dict[str, list[str]] = {member: [] for member in recorded.observed.members}
    found = judge(recorded, logs=logs, minimum=Minimum(1, 0, 1), kinds=["put", "txn"])
    witness = found.witness
    return {
        "checks": [msgspec.structs.astuple(check) for check in found.checks],
        "writes": found.writes,
        "witness": (witness.lost, witness.recovered, witness.not_applied),
        "outage": _outage(recorded.columns, recorded.observed.faults[0]),
    }


def _outage(columns: Columns, fault: Fault) -> Outage:
    return measure(
        columns.calls(without="none"),
        inject_ns=fault.inject_ns,
        heal_ns=fault.heal_ns,
        rate=100,
        affected=[fault.member],
        deliveries=columns.arrivals(),
    )


def _cases() -> Iterator[tuple[str, Recorded]]:
    yield "legal", random_story(3, 150).told()
    yield "generated", generate(Settings(seed=5, operations=300))
    # An event that no etcd sends has no form of its own in a file.
    bent = ((name, run) for name, _, run in mutated(range(3)) if name != "kind_of_an_event_changed")
    yield from chain(bent, ((name, run) for name, _, run in islice(faulty(range(2)), 20)))


def test_files_and_operations_give_the_same_verdict(tmp_path: Path) -> None:
    """Every check with its whole text, the count of the writes and the outage, of good runs and of bad ones."""
    results: set[tuple[str, str]] = set()
    for number, (name, run) in enumerate(_cases()):
        recorded = _with_probes(run)
        folder = tmp_path / str(number)
        folder.mkdir()
        _write(folder, recorded)
        known, read = _said(recorded), _said(load(folder))
        assert read == known, name
        # The outage is the same from operations and deliveries.
        fault = recorded.observed.faults[0]
        assert known["outage"] == measure(
            recorded.history,
            inject_ns=fault.inject_ns,
            heal_ns=fault.heal_ns,
            rate=100,
            affected=[fault.member],
            deliveries=recorded.deliveries,
        )
        results |= {(check[0], check[1]) for check in known["checks"]}
    failing = {name for name, result in results if result == "failed"}
    assert failing >= {"revision witness", "watch", "acknowledged writes"}
    assert {name for name, _ in results} >= {"linearizability search", "lease", "members agree", "activity"}


def test_operations_and_deliveries_can_be_looked_at(tmp_path: Path) -> None:
    """What is read from files has all operations, in the order in which they ended, and each member's deliveries."""
    recorded = _with_probes(random_story(4, 60).told())
    _write(tmp_path, recorded)
    kept = load(tmp_path)
    assert list(kept.history) == recorded.history == load_history(tmp_path)
    assert {member: list(found) for member, found in kept.deliveries.items()} == dict(recorded.deliveries)
    assert kept.columns.some_operations([5, 1, 5]) == [recorded.history[5], recorded.history[1], recorded.history[5]]


def test_changed_record_has_columns_of_its_own(tmp_path: Path) -> None:
    """Replacing a part of what was read from files leaves the files behind."""
    recorded = _with_probes(random_story(4, 60).told())
    _write(tmp_path, recorded)
    kept = load(tmp_path)
    assert len(kept.columns.operations.id) == len(recorded.history)
    assert len(kept._replace(history=recorded.history[:7]).columns.operations.id) == 7


def test_damaged_files_are_named(tmp_path: Path) -> None:
    """A record that is no record is an error as soon as it is looked at."""
    _write(tmp_path, _with_probes(random_story(4, 60).told()))
    (tmp_path / "own.jsonl").write_text("{}\n")
    with pytest.raises(StateError, match=r"own\.jsonl"):
        _ = load(tmp_path).columns
    with pytest.raises(StateError, match=r"own\.jsonl"):
        len(load(tmp_path).history)
