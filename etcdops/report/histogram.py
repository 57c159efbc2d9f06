"""The outages of runs that were alike, beside the distribution that Raft predicts: a histogram as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import msgspec

from etcdops.report.loading import LoadedRun
from etcdops.report.repeats import Distribution, distribution
from etcdops.report.runinfo import RunInfo
from etcdops.spec import Timing
from etcdops.workload.prediction import Prediction

__all__ = ["Alike", "alike", "histogram", "predicted_shares"]

#: So many of the newest runs are looked at.
_NEWEST = 1000
_MOST_BINS = 36


class Alike(NamedTuple):
    """The outages of runs of one drill with the same options, ms, by their ids; `spread` is what they show together."""

    outages: dict[str, float]
    spread: Distribution


class _Outage(msgspec.Struct):
    write_ms: float | None = None


class _Ended(msgspec.Struct):
    outage: _Outage | None = None


class _Told(msgspec.Struct):
    """What makes two runs alike. `members` counts by number: which they are called is of no account."""

    run: str
    drill: str
    options: dict[str, str]
    rate: int
    profile: str
    clients: int
    etcd_version: str
    runtime: str
    timing: Timing
    members: tuple[str, ...]


def _key(told: _Told | RunInfo) -> tuple[object, ...]:
    options = tuple(sorted(told.options.items()))
    traffic = (told.rate, told.profile, told.clients)
    return told.drill, options, traffic, told.etcd_version, told.runtime, told.timing, len(told.members)


def alike(run: LoadedRun) -> Alike | None:
    """Give the outages of the run and of those beside its folder that are alike; None if there are not two."""
    found: dict[str, float] = {}
    own = _key(run.info)
    folders = sorted((each for each in run.folder.parent.iterdir() if each.is_dir()), reverse=True)[:_NEWEST]
    for folder in folders:
        if not run.info.drill or run.info.drill not in folder.name:
            continue
        try:
            told = msgspec.json.decode((folder / "run.json").read_bytes(), type=_Told)
            ended = msgspec.json.decode((folder / "verdict.json").read_bytes(), type=_Ended)
        except (OSError, msgspec.MsgspecError):
            continue
        if _key(told) == own and ended.outage and ended.outage.write_ms is not None:
            found[told.run] = ended.outage.write_ms
    outage = run.verdict.outage
    if outage and outage.write_ms is not None:
        found[run.verdict.run] = outage.write_ms
    spread = distribution(list(found.values()))
    return Alike(dict(sorted(found.items())), spread) if spread and len(found) > 1 else None


def predicted_shares(timing: Timing, voters: int) -> list[tuple[float, float, float]]:
    """Give Raft's prediction in steps: of which share of runs the outage lies from one time to another, ms.

    It is the earliest of the followers' draws (see `workload.prediction`), each less a part of a tick, evenly: the
    last heartbeat was some time ago.
    """
    ticks, followers, tick_ms = timing.election_ms // timing.heartbeat_ms, voters - 1, timing.heartbeat_ms
    if followers < 1:
        return []
    return [
        (
            (ticks + j - 1) * tick_ms,
            (ticks + j) * tick_ms,
            ((ticks - j) ** followers - (ticks - j - 1) ** followers) / ticks**followers,
        )
        for j in range(ticks)
    ]


class _Scale(NamedTuple):
    low: float
    width: float
    bins: int


def _scale(values: Sequence[float], steps: Sequence[tuple[float, float, float]]) -> _Scale:
    low = min([*values, *(step[0] for step in steps)])
    high = max([*values, *(step[1] for step in steps)])
    width = steps[0][1] - steps[0][0] if steps else 10 ** math.floor(math.log10(max(high - low, 10.0) / 5))
    while (high - low) / width > _MOST_BINS:
        width *= 2
    low = math.floor(low / width) * width
    return _Scale(low, width, int((high - low) // width) + 1)


def histogram(
    values: Sequence[float], prediction: Prediction | None, timing: Timing, *, mark: float | None = None
) -> str:
    """Give a histogram of outages (ms) as an SVG element; what Raft predicts of so many runs is drawn as an outline.

    `mark` is the outage of one run that is pointed at.
    """
    spread = distribution(list(values))
    if spread is None:
        return ""
    by_draw = prediction is not None and prediction.median_ms is not None
    steps = predicted_shares(timing, prediction.voters) if prediction and by_draw else []
    scale = _scale(values, steps)
    counts = [0] * scale.bins
    for value in values:
        counts[min(int((value - scale.low) // scale.width), scale.bins - 1)] += 1
    expected = [0.0] * scale.bins
    for since, until, share in steps:
        # With wider bins several steps fall into one.
        middle = (since + until) / 2
        expected[min(max(int((middle - scale.low) // scale.width), 0), scale.bins - 1)] += share * len(values)
    return _svg(values, scale, counts, expected if steps else [], prediction, spread, mark)


_WIDTH, _HEIGHT, _LEFT, _TOP, _BASE = 720, 250, 44, 26, 206


def _svg(
    values: Sequence[float],
    scale: _Scale,
    counts: list[int],
    expected: list[float],
    prediction: Prediction | None,
    spread: Distribution,
    mark: float | None,
) -> str:
    top = max([*counts, *expected, 1.0])
    step = (_WIDTH - _LEFT - 12) / scale.bins

    def x(value: float) -> float:
        return round(_LEFT + (value - scale.low) / scale.width * step, 1)

    def y(count: float) -> float:
        return round(_BASE - count / top * (_BASE - _TOP), 1)

    label = (
        f"Histogram of the outages of {len(values)} runs: {spread.min_ms:,.0f} to {spread.max_ms:,.0f} ms, median"
        f" {spread.median_ms:,.0f} ms."
    )
    if prediction:
        label += f" Raft predicts {prediction.low_ms:,.0f} to {prediction.high_ms:,.0f} ms."
    parts = [f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">']
    for level in sorted({0, round(top / 2), math.floor(top)}):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - 12}" y1="{y(level)}" y2="{y(level)}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(level) + 4}" text-anchor="end">{level}</text>')
    if prediction and not expected:
        since, until = x(max(prediction.low_ms, scale.low)), x(prediction.high_ms)
        parts.append(
            f'<rect class="predicted-range" x="{since}" y="{_TOP}" width="{max(until - since, 2):.1f}"'
            f' height="{_BASE - _TOP}"/>'
        )
    for place, number in enumerate(counts):
        if number:
            left = x(scale.low + place * scale.width)
            said = (
                f"{number} runs from {scale.low + place * scale.width:,.0f} to"
                f" {scale.low + (place + 1) * scale.width:,.0f} ms"
            )
            parts.append(
                f'<rect class="measured" x="{left + 1:.1f}" y="{y(number)}" width="{max(step - 2, 1):.1f}"'
                f' height="{_BASE - y(number):.1f}"><title>{said}</title></rect>'
            )
    if expected:
        path = f"M{x(scale.low)},{_BASE}"
        for place, count in enumerate(expected):
            path += (
                f"V{y(count)}H{x(scale.low + (place + 1) * scale.width)}"
                if count
                else (f"V{_BASE}H{x(scale.low + (place + 1) * scale.width)}")
            )
        parts.append(f'<path class="predicted" d="{path}V{_BASE}"/>')
    every = max(1, -(-scale.bins // 8))
    for place in range(0, scale.bins + 1, every):
        value = scale.low + place * scale.width
        parts.append(f'<text x="{x(value)}" y="{_BASE + 18}" text-anchor="middle">{value:,.0f}</text>')
    parts.append(
        f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">writes stopped for, ms</text>'
    )
    if mark is not None:
        at = x(mark)
        parts.append(f'<path class="mark" d="M{at - 6:.1f},{_TOP - 14}h12l-6,10z"/>')
        anchor = "end" if at > _WIDTH * 0.8 else "start"
        beside = at + (-10 if anchor == "end" else 10)
        parts.append(f'<text x="{beside:.1f}" y="{_TOP - 6}" text-anchor="{anchor}">this run: {mark:,.0f} ms</text>')
    return "".join([*parts, "</svg>"])
