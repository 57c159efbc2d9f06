"""The generator of legal runs, the oracle that judges small ones, and the mutations, each held against the others."""

from __future__ import annotations

from collections import Counter

import pytest

from etcdops.histories.generated import Settings, generate
from etcdops.histories.requests import MIXED
from tests.unit.cases import SCALE, faulty, mutated, small
from tests.unit.faulty import FAULTS
from tests.unit.mutations import HARMLESS, MUTATIONS
from tests.unit.oracle import judge
from tests.unit.scripts import ILLEGAL, LEGAL


def test_generated_runs_are_legal() -> None:
    """The oracle, which knows nothing of how a run came about, finds every generated one legal."""
    for seed in range(400 * SCALE):
        assert set(judge(generate(small(seed)))) == {"legal"}, f"seed {seed}"


def test_equal_settings_give_equal_runs() -> None:
    """A seed gives its run again, and another one another."""
    assert generate(Settings(seed=5)) == generate(Settings(seed=5))
    assert generate(Settings(seed=5)) != generate(Settings(seed=6))


def test_a_run_has_everything_in_it() -> None:
    """All kinds of requests, all outcomes, leases that end, writes of others, watches that break, members that die."""
    recorded = generate(Settings(seed=1, operations=3000, think_ms=300, fault=0.005, unknown=0.1))
    kinds = Counter((op.kind, op.outcome) for op in recorded.history)
    for kind in ("put", "delete", "txn", "grant", "revoke"):
        assert kinds[kind, "ok"]
        assert kinds[kind, "unknown"]
    assert kinds["range", "ok"]
    assert kinds["range", "failed"]
    assert kinds["keep-alive", "ok"]
    assert len(recorded.observed.faults) > 2
    delivered = recorded.deliveries["thor"]
    assert {delivery.what for delivery in delivered} == {"opened", "events", "progress", "ended"}
    events = [event for delivery in delivered for event in delivery.events]
    assert {event.kind for event in events} == {"put", "delete"}
    assert any(len({event.kv.mod_revision for event in delivery.events}) > 1 for delivery in delivered)
    assert any(event.kv.key.startswith(b"other/") for event in events)
    acknowledged = {op.revision for op in recorded.history if op.may_write}
    ended = [e for e in events if e.kind == "delete" and e.prev_kv and e.prev_kv.lease > 1000]
    assert any(event.kv.mod_revision not in acknowledged for event in ended)
    assert set(MIXED) >= {"append", "cas", "local-txn", "read-txn"}


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_scripts(name: str) -> None:
    """The oracle finds what a laxer rule lets through."""
    assert judge(ILLEGAL[name]()).order == "illegal"


@pytest.mark.parametrize("name", LEGAL)
def test_legal_scripts(name: str) -> None:
    """The oracle has nothing to say against what only looks odd."""
    assert "illegal" not in judge(LEGAL[name]())


def test_mutations_are_what_they_are_said_to_be() -> None:
    """Each finds something to change, harmless ones are never illegal, and each other one is illegal at times."""
    found: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    for name, seed, recorded in mutated(range(60 * SCALE)):
        illegal = "illegal" in judge(recorded)
        assert not (illegal and name in HARMLESS), f"{name}, seed {seed}"
        tried[name] += 1
        found[name] += illegal
    assert set(tried) == set(MUTATIONS)
    never = {name for name in MUTATIONS if not found[name]} - HARMLESS
    assert never <= {"serializable_read_shown_as_linearizable", "serializable_read_of_an_earlier_state"}


def test_faulty_stores_are_faulty() -> None:
    """Each faulty store gives runs that the oracle finds illegal, or, where the log has a hole, unclear."""
    found: Counter[str] = Counter()
    for name, _, recorded in faulty(range(15 * SCALE)):
        found[name] += set(judge(recorded)) != {"legal"}
    assert {name for name in FAULTS if not found[name]} == set()
