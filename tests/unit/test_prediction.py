"""Raft's prediction: exact against a listing of all draws, and outliers told from what lies within it."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcdops.errors import SpecError
from etcdops.spec import Timing
from etcdops.workload import outage
from etcdops.workload.prediction import (
    Prediction,
    explain_outlier,
    predict,
    predict_distribution,
    predicted_mean_ms,
)


def test_prediction_for_a_killed_leader() -> None:
    """A follower campaigns after T to 2T - 1 ticks: 1.0 to 1.9 s at the defaults, whatever the number of followers."""
    for voters in (3, 5, 7):
        assert predict(Timing(), voters, "kill") == (1000, 1900)
        assert predict(Timing(), voters, "freeze") == (1000, 1900)
    assert predict(Timing(heartbeat_ms=10, election_ms=100), 3, "kill") == (100, 190)
    # etcd counts whole ticks: 1,050 ms are 10 of 100 ms.
    assert predict(Timing(heartbeat_ms=100, election_ms=1050), 3, "kill") == (1000, 1900)


def test_prediction_for_a_stopped_leader() -> None:
    """A leader that hands over costs about a heartbeat, whether it goes or stays."""
    assert predict(Timing(), 3, "stop") == (0, 100)
    assert predict(Timing(heartbeat_ms=10, election_ms=100), 3, "move-leader") == (0, 10)
    # Leadership can be moved between two members; nobody is taken away.
    assert predict(Timing(), 2, "move-leader") == (0, 100)
    with pytest.raises(SpecError, match="single member"):
        predict(Timing(), 1, "move-leader")


@pytest.mark.parametrize("voters", [1, 2])
def test_no_prediction_without_a_quorum(voters: int) -> None:
    """Where the rest is no quorum the outage ends with the healing, not with an election."""
    with pytest.raises(SpecError, match="no quorum"):
        predict(Timing(), voters, "kill")
    with pytest.raises(SpecError, match="no quorum"):
        predicted_mean_ms(Timing(), voters)


def test_no_prediction_for_another_way() -> None:
    """A way without a model is refused by name."""
    with pytest.raises(SpecError, match="'partition'"):
        predict(Timing(), 3, "partition")


def _mean_ticks(ticks: int, followers: int) -> Fraction:
    """Give the mean of the smallest of `followers` draws from ticks .. 2 ticks - 1, by listing all of them."""
    total = Fraction(0)
    for value in range(ticks, 2 * ticks):
        at_least = Fraction(2 * ticks - value, ticks) ** followers
        more = Fraction(2 * ticks - value - 1, ticks) ** followers
        total += value * (at_least - more)
    return total


def test_predicted_mean() -> None:
    """The mean is 1.29 s for three voters and 1.15 s for five, and in general that of the earliest draw."""
    assert predicted_mean_ms(Timing(), 3) == pytest.approx(1285)
    assert predicted_mean_ms(Timing(), 5) == pytest.approx(1153.33)
    for voters in (3, 4, 5, 7):
        assert math.isclose(predicted_mean_ms(Timing(), voters), 100 * _mean_ticks(10, voters - 1))


def test_prediction_is_found_where_it_was() -> None:
    """`predict` and `predicted_mean_ms` can still be imported from the module of the outage."""
    assert outage.predict is predict
    assert outage.predicted_mean_ms is predicted_mean_ms


def test_distribution_at_the_defaults() -> None:
    """Three and five voters at etcd's defaults, worked out by hand."""
    three = predict_distribution(Timing(), 3, "kill")
    assert (three.low_ms, three.median_ms, three.p90_ms, three.high_ms) == (1000, 1200, 1600, 1900)
    assert three.mean_ms == pytest.approx(1285)
    # Two draws from ten values are equal in one of ten cases.
    assert three.split_risk == pytest.approx(0.1)
    assert three.phase_ms == 100
    five = predict_distribution(Timing(), 5, "freeze")
    assert five.mean_ms == pytest.approx(1153.33)
    assert five.split_risk == pytest.approx(0.19, abs=0.005)
    assert any("19 %" in each for each in five.not_in_it)


@settings(deadline=None, max_examples=30)
@given(st.integers(5, 8), st.integers(2, 4), st.integers(1, 30))
def test_distribution_is_that_of_all_draws(ticks: int, followers: int, tick_ms: int) -> None:
    """Mean, median, 90th percentile and the chance of a tie are those of every combination of draws, listed."""
    timing = Timing(heartbeat_ms=tick_ms, election_ms=ticks * tick_ms)
    made = predict_distribution(timing, followers + 1, "kill")
    draws = [sorted(each) for each in product(range(ticks, 2 * ticks), repeat=followers)]
    earliest = sorted(each[0] for each in draws)
    assert made.low_ms == earliest[0] * tick_ms
    assert made.high_ms == earliest[-1] * tick_ms
    assert made.mean_ms == pytest.approx(tick_ms * sum(earliest) / len(earliest))
    assert made.median_ms == tick_ms * earliest[math.ceil(len(earliest) / 2) - 1]
    assert made.p90_ms == tick_ms * earliest[math.ceil(Fraction(9, 10) * len(earliest)) - 1]
    assert made.split_risk == pytest.approx(sum(each[0] == each[1] for each in draws) / len(draws))


def test_no_distribution_where_leadership_is_handed_over() -> None:
    """About a heartbeat is all that can be said: no mean is made up, and no vote can be split."""
    made = predict_distribution(Timing(), 3, "stop")
    assert (made.low_ms, made.high_ms, made.mean_ms, made.p90_ms, made.split_risk) == (0, 100, None, None, 0)
    with pytest.raises(SpecError, match="no quorum"):
        predict_distribution(Timing(), 2, "kill")


_KILL = predict_distribution(Timing(), 3, "kill")


@pytest.mark.parametrize(
    ("measured", "noise", "words"),
    [
        (1000, 10, ""),
        (1925, 10, ""),  # 15 + 10 ms above the longest
        (1926, 10, "too little to tell a split vote"),
        (875, 10, ""),  # 15 + 10 ms below the shortest, less a heartbeat
        (874, 10, "did not lead any more"),
        (1915, None, ""),
        (1916, None, "16 ms longer"),
        (1930, 10, "30 ms longer"),
        (2300, 10, "400 ms longer than predicted: likely a split vote"),
        (3800, 10, "split vote"),
        (3826, 10, "more than one split vote"),
        (2300, 101, "slow machine, for without a fault answers were held up for 101 ms"),
        (2016, 101, ""),
    ],
)
def test_outliers_have_a_likely_reason(measured: float, noise: float | None, words: str) -> None:
    """Within resolution and noise of the prediction nothing is said; beyond it, what it looks like."""
    said = explain_outlier(measured, _KILL, resolution_ms=15, noise_ms=noise)
    assert words in said
    assert bool(said) == bool(words)


def test_a_handover_that_failed_is_named() -> None:
    """A stopped leader's outage of an election timeout means that nobody was handed leadership."""
    stop = predict_distribution(Timing(), 3, "stop")
    assert explain_outlier(86, stop, resolution_ms=15, noise_ms=12) == ""
    assert "not handed over" in explain_outlier(1300, stop, resolution_ms=15, noise_ms=12)
    assert "slow machine" in explain_outlier(1300, stop, resolution_ms=15, noise_ms=300)


@settings(deadline=None)
@given(
    st.floats(0, 10_000),
    st.floats(1, 100),
    st.one_of(st.none(), st.floats(0, 500)),
    st.sampled_from([predict_distribution(Timing(), 5, how) for how in ("kill", "stop")]),
)
def test_every_outlier_is_explained_and_nothing_else(
    measured: float, resolution: float, noise: float | None, prediction: Prediction
) -> None:
    """A value is an outlier exactly if it is further from the interval than resolution and noise together."""
    off = max(prediction.low_ms - prediction.phase_ms - measured, measured - prediction.high_ms)
    slack = resolution + (noise or 0)
    if abs(off - slack) > 1e-6:
        said = explain_outlier(measured, prediction, resolution_ms=resolution, noise_ms=noise)
        assert bool(said) == (off > slack)
