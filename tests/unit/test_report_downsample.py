"""Fewer dots show the same: no outage is hidden or made up, and nothing that did not end well disappears."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcdops.report.downsample import thin
from etcdops.report.points import LOST, Points
from etcdops.workload.calls import FAILED, OK, UNKNOWN

MS = 1_000_000
STREAMS = ("pinned.ironman", "pinned.thor", "client.0")


def points(rows: list[tuple[int, int, int, int]]) -> Points:
    """Give points of (instant, ns; latency, ns; outcome; stream)."""
    at, took, outcome, stream = (np.array(column, np.int64) for column in zip(*sorted(rows), strict=True))
    zero = np.zeros(len(at), np.int64)
    ids = np.arange(1, len(at) + 1)
    return Points(STREAMS, ("ironman",), ("",), ids, at, took, outcome, zero + 1, stream, zero, zero, zero + 1)


#: So near to each other, and so alike, that many share a cell.
_POINT = st.tuples(
    st.one_of(st.integers(0, 400 * MS), st.integers(0, 400).map(lambda step: step * MS // 8)),
    st.one_of(st.integers(1, 2_000 * MS), st.sampled_from([MS, 333 * MS])),
    st.sampled_from([OK] * 4 + [FAILED, UNKNOWN, LOST]),
    st.integers(0, 2),
)
#: A stretch without any answer through one stream, somewhere in a long history.
_OUTAGE = st.tuples(st.integers(20 * MS, 200 * MS), st.integers(5 * MS, 150 * MS), st.integers(0, 2))


@settings(max_examples=80, deadline=None)
@given(st.lists(_POINT, min_size=2, max_size=400), _OUTAGE, st.integers(4, 120))
def test_every_long_pause_stays_and_no_other_comes_about(
    rows: list[tuple[int, int, int, int]], outage: tuple[int, int, int], budget: int
) -> None:
    """For each stream, the pauses between answers that are longer than a cell are the same, to the nanosecond."""
    since, lasted, hit = outage
    rows = [row for row in rows if not (row[3] == hit and row[2] == OK and since < row[0] < since + lasted)]
    rows += [(since, MS, OK, hit), (since + lasted, MS, OK, hit)]
    whole = points(rows)
    thinned, cell_ns = thin(whole, budget)
    for stream in range(len(STREAMS)):
        found = [
            {(int(a), int(b)) for a, b in itertools.pairwise(at) if b - a > cell_ns}
            for at in (each.at[(each.stream == stream) & (each.outcome == OK)] for each in (whole, thinned))
        ]
        assert found[0] == found[1]


@settings(max_examples=80, deadline=None)
@given(st.lists(_POINT, min_size=1, max_size=400), st.integers(4, 120))
def test_nothing_that_did_not_end_well_disappears(rows: list[tuple[int, int, int, int]], budget: int) -> None:
    """Each has a dot of its own outcome and stream within a cell; lost writes all stay; the weights are the counts."""
    _assert_nothing_bad_is_gone(points(rows), budget)


def _assert_nothing_bad_is_gone(whole: Points, budget: int) -> None:
    thinned, cell_ns = thin(whole, budget)
    kept = set(thinned.id.tolist())
    for at, outcome, stream, number in zip(whole.at, whole.outcome, whole.stream, whole.id, strict=True):
        if outcome == LOST:
            assert int(number) in kept
        same = (thinned.outcome == outcome) & (thinned.stream == stream)
        assert np.abs(thinned.at[same] - at).min() <= cell_ns
    for outcome in (OK, FAILED, UNKNOWN, LOST):
        assert thinned.weight[thinned.outcome == outcome].sum() == (whole.outcome == outcome).sum()
    assert (np.diff(thinned.at) >= 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_storm_of_failures_is_told_apart(seed: int) -> None:
    """Where hardly anything ends well, so that even failures are too many: each outcome stays, and all that is lost."""
    chance = np.random.default_rng(seed)
    rows = zip(
        chance.integers(0, 40 * MS, 1500).tolist(),
        chance.choice([MS, 333 * MS], 1500).tolist(),
        chance.choice([OK, FAILED, FAILED, UNKNOWN, UNKNOWN, LOST], 1500).tolist(),
        chance.integers(0, 3, 1500).tolist(),
        strict=True,
    )
    _assert_nothing_bad_is_gone(points(list(rows)), 200)


def test_all_stay_while_there_is_room() -> None:
    """As long as they are fewer than the budget all are there; whatever did not end well stays before what did."""
    rows = [(i * MS // 10, 3 * MS, OK, 0) for i in range(5000)] + [(i * MS, MS, UNKNOWN, 1) for i in range(200)]
    whole = thin(points(rows), 6000)
    assert (len(whole.points.at), whole.cell_ns) == (5200, 0)
    thinned = thin(points(rows), 1000)
    assert len(thinned.points.at) <= 1000
    assert (thinned.points.outcome == UNKNOWN).sum() == 200


def test_few_are_left_however_many_there_were() -> None:
    """A record that is far larger than the budget comes down to it."""
    chance = np.random.default_rng(7)
    rows = list(
        zip(
            chance.integers(0, 60_000 * MS, 60_000).tolist(),
            chance.integers(MS, 50 * MS, 60_000).tolist(),
            chance.choice([OK, OK, OK, FAILED, UNKNOWN], 60_000).tolist(),
            chance.integers(0, 3, 60_000).tolist(),
            strict=True,
        )
    )
    thinned = thin(points(rows), 5000)
    assert len(thinned.points.at) <= 5000
    assert thinned.points.weight.sum() == 60_000
