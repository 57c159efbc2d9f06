"""What several runs of one drill show together: the distribution of their outages, beside the predicted one."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from etcdops.report.verdict import Verdict
    from etcdops.workload.prediction import Prediction

__all__ = ["Distribution", "Outlier", "Repeats", "distribution", "repeats_text", "summarise"]


class Distribution(msgspec.Struct, frozen=True):
    """The write outages of repeated runs, in milliseconds."""

    n: int
    min_ms: float
    median_ms: float
    p90_ms: float
    max_ms: float


class Outlier(msgspec.Struct, frozen=True):
    """A run whose outage, in milliseconds, is not what Raft predicts, and why that is likely so."""

    run: str
    write_ms: float
    reason: str


class Repeats(msgspec.Struct, frozen=True):
    """What runs of one drill show together. `distribution` is None when no run measured an outage."""

    runs: int
    distribution: Distribution | None
    prediction: Prediction | None
    outliers: tuple[Outlier, ...]


def distribution(values: Sequence[float]) -> Distribution | None:
    """Give the distribution of some outages, or None of none. The 90th percentile is the nearest rank."""
    if not values:
        return None
    ordered = sorted(values)
    return Distribution(
        len(ordered),
        ordered[0],
        float(median(ordered)),
        ordered[min(len(ordered) - 1, -(-9 * len(ordered) // 10) - 1)],
        ordered[-1],
    )


def summarise(verdicts: Sequence[Verdict]) -> Repeats:
    """Give what these runs show together; they are of one drill with the same options on one cluster."""
    outages = [(v.run, v.outage) for v in verdicts if v.outage]
    return Repeats(
        runs=len(verdicts),
        distribution=distribution([outage.write_ms for _, outage in outages if outage.write_ms is not None]),
        prediction=next((outage.prediction for _, outage in outages if outage.prediction), None),
        outliers=tuple(
            Outlier(run, outage.write_ms, outage.outlier)
            for run, outage in outages
            if outage.outlier and outage.write_ms is not None
        ),
    )


def repeats_text(repeats: Repeats) -> str:
    """Give it in a few lines; "" when no run measured an outage."""
    spread, predicted = repeats.distribution, repeats.prediction
    if spread is None:
        return ""
    measured = (
        f"{repeats.runs} runs: writes stopped for {spread.min_ms:,.0f} ms (min), {spread.median_ms:,.0f} (median),"
        f" {spread.p90_ms:,.0f} (p90), {spread.max_ms:,.0f} (max)"
    )
    lines = [measured]
    if predicted and predicted.median_ms is not None and predicted.p90_ms is not None:
        lines.append(
            f"  Raft predicts {predicted.low_ms:,.0f} ms (min), {predicted.median_ms:,.0f} (median),"
            f" {predicted.p90_ms:,.0f} (p90), {predicted.high_ms:,.0f} (max), or up to {predicted.phase_ms:,.0f} less"
        )
        lines.append(f"  and more after a split vote, in up to {100 * predicted.split_risk:.0f} % of runs")
    elif predicted:
        lines.append(f"  Raft predicts {predicted.low_ms:,.0f} to {predicted.high_ms:,.0f} ms")
    lines += [f"  outlier: {one.run}: {one.write_ms:,.0f} ms, {one.reason}" for one in repeats.outliers]
    return "\n".join(lines)
