"""The timeline of a run as a figure for Plotly: what each member did, what was broken, and each operation as a dot.

Colours are named (`var(--lost)`) and filled in by the page, which has them twice: light and dark. Instants are in
seconds since the run began, as in its journal.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from etcdops.report.embedding import shown
from etcdops.report.lanes import STATES, Segment, lanes
from etcdops.report.loading import LoadedRun
from etcdops.report.points import LOST, Points
from etcdops.report.terminal import ms
from etcdops.workload.calls import FAILED, OK, UNKNOWN

__all__ = ["Dots", "Timeline", "dots", "timeline"]

_SECOND = 1_000_000_000
_MS = 1_000_000

#: The lowest latency that is drawn, ms: an operation that was never sent took none.
LEAST_MS = 0.05


class Timeline(NamedTuple):
    """The figure, the range of its time axis (s), and the part of that where something was broken (None: nothing)."""

    figure: dict[str, Any]
    whole: tuple[float, float]
    focus: tuple[float, float] | None


class Dots(NamedTuple):
    """The operations for the page's script: columns in one block of bytes, and the names that their numbers are for."""

    data: bytes
    total: int
    streams: tuple[str, ...]
    members: tuple[str, ...]
    notes: tuple[str, ...]


class _Kind(NamedTuple):
    name: str
    outcome: int
    kind: int
    symbol: str
    colour: str
    size: int


#: Told apart by shape as well as by colour; the worst are drawn last, and so lie on top.
_KINDS = (
    _Kind("read, answered", OK, 0, "circle-open", "read", 4),
    _Kind("write, acknowledged", OK, 1, "circle", "write", 4),
    _Kind("read, failed", FAILED, 0, "cross-thin-open", "failed-read", 6),
    _Kind("write, failed", FAILED, 1, "x-thin-open", "failed", 6),
    _Kind("outcome unknown", UNKNOWN, 1, "diamond-open", "unknown", 7),
    _Kind("acknowledged, and gone", LOST, 1, "star", "lost", 15),
)


def dots(points: Points, began_ns: int) -> Dots:
    """Give the points for the page's script: all four-byte columns first, then the short ones.

    Instants are differences, in units of 10 µs, and latencies in ms.
    """
    at = np.round((points.at - began_ns) / 10_000).astype("<i4")
    kinds = np.zeros(len(at), "u1")
    for number, each in enumerate(_KINDS):
        kinds[(points.outcome == each.outcome) & ((points.kind == each.kind) | (each.outcome in (UNKNOWN, LOST)))] = (
            number
        )
    columns = [
        np.diff(at, prepend=np.int32(0)).astype("<i4"),
        np.maximum(points.took / _MS, LEAST_MS).astype("<f4"),
        points.id.astype("<i4"),
        points.weight.astype("<i4"),
        points.stream.astype("<u2"),
        kinds,
        points.member.astype("u1"),
        points.note.astype("u1"),
    ]
    return Dots(b"".join(column.tobytes() for column in columns), len(at), points.streams, points.members, points.notes)


def timeline(run: LoadedRun, points: Points) -> Timeline:
    """Give the timeline. Its dots are left to the page's script, which draws as many as there is room for."""
    began = run.info.began_ns or (int(points.at[0]) if points else 0)
    start, end = _span(run, points, began)
    found = lanes(run, start, end)
    faults = run.faults
    focus = None
    if faults:
        since, until = min(f.inject_ns for f in faults), max(f.heal_ns for f in faults)
        margin = max((until - since) // 5, _SECOND // 2)
        focus = (_s(since - margin, began), _s(until + margin, began))
    whole = (_s(start, began), _s(end, began))
    figure = {
        "data": [*_bars(run, found, began), *_dot_traces()],
        "layout": _layout(run, began, whole),
    }
    return Timeline(figure, whole, focus)


def _s(t_ns: int, began_ns: int) -> float:
    return round((t_ns - began_ns) / _SECOND, 6)


def _span(run: LoadedRun, points: Points, began: int) -> tuple[int, int]:
    """Give the first and the last instant of the timeline: those of the traffic, a little widened."""
    instants = [entry.t_ns for entry in run.entries]
    first, last = (instants[0], instants[-1]) if instants else (began, began)
    if points:
        first = min(int((points.at - points.took).min()), max(first, began))
        last = max(int(points.at[-1]), last)
    return first, last + max((last - first) // 100, _MS)


_BAR = {
    "leads": ("leads", "", "leads"),
    "follows": ("follows", "", "follows"),
    "leaderless": ("leaderless", ".", "no leader"),
    "away": ("away", "/", ""),
    "changing": ("changing", "/", ""),
    "unknown": ("silent", "x", ""),
}


def _bars(run: LoadedRun, found: list[Segment], began: int) -> list[dict[str, Any]]:
    """Give a bar for each thing that a member did, one trace for each kind."""
    traces = []
    order = {member: len(run.members) - 1 - place for place, member in enumerate(run.members)}
    for state, (colour, pattern, word) in _BAR.items():
        own = [segment for segment in found if segment.state == state]
        if not own:
            continue
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": STATES[state],
                "xaxis": "x",
                "yaxis": "y2",
                "base": [_s(each.from_ns, began) for each in own],
                "x": [_s(each.until_ns, each.from_ns) for each in own],
                "y": [order[each.member] for each in own],
                "width": 0.62,
                "text": [shown(_words(each, word)) for each in own],
                "textposition": "inside",
                "insidetextanchor": "middle",
                "textangle": 0,
                "textfont": {"color": f"var(--on-{colour})"},
                "hovertext": [shown(_told(each, began)) for each in own],
                "hovertemplate": "%{hovertext}<extra></extra>",
                "marker": {
                    "color": f"var(--{colour})",
                    "line": {"color": "var(--paper)", "width": 1},
                    "pattern": {
                        "shape": pattern,
                        "bgcolor": f"var(--{colour})",
                        "fgcolor": "var(--hatch)",
                        "size": 7,
                        "solidity": 0.2,
                    },
                },
            }
        )
    return traces


def _words(segment: Segment, word: str) -> str:
    """Give what stands on a bar."""
    what = word or (f"away: {segment.detail}" if segment.state == "away" and segment.detail else segment.detail)
    return f"{what} · term {segment.term}" if segment.term else what


def _told(segment: Segment, began: int) -> str:
    since, until = _s(segment.from_ns, began), _s(segment.until_ns, began)
    what = STATES[segment.state]
    if segment.detail:
        what += f" {segment.detail}" if segment.state in ("leads", "follows") else f" ({segment.detail})"
    if segment.term:
        what += f" in term {segment.term}"
    return f"{segment.member} {what}, {since:.3f} to {until:.3f} s"


def _dot_traces() -> list[dict[str, Any]]:
    traces = []
    for number, each in enumerate(_KINDS):
        line = {"width": 1.6 if each.symbol.endswith("open") else 0.8, "color": f"var(--{each.colour})"}
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": each.name,
                "meta": number,
                "x": [],
                "y": [],
                "text": [],
                "xaxis": "x",
                "yaxis": "y",
                "hovertemplate": "%{text}<extra></extra>",
                "cliponaxis": False,
                "marker": {
                    "symbol": each.symbol,
                    "size": each.size,
                    "color": f"var(--{each.colour})",
                    "opacity": 0.75 if each.outcome == OK else 1,
                    "line": line,
                },
            }
        )
    return traces


def _layout(run: LoadedRun, began: int, whole: tuple[float, float]) -> dict[str, Any]:
    count = max(len(run.members), 1)
    axis = {"gridcolor": "var(--grid)", "zeroline": False, "linecolor": "var(--grid)", "fixedrange": False}
    shapes, notes = _bands(run, began)
    return {
        "barmode": "overlay",
        "hovermode": "closest",
        "dragmode": "zoom",
        "showlegend": True,
        "paper_bgcolor": "var(--paper)",
        "plot_bgcolor": "var(--paper)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "var(--ink)"},
        "hoverlabel": {"align": "left", "bgcolor": "var(--panel)", "font": {"color": "var(--ink)"}},
        "margin": {"l": 76, "r": 12, "t": 28, "b": 96},
        "legend": {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0, "itemsizing": "constant"},
        "xaxis": {**axis, "range": list(whole), "title": {"text": "seconds since the run began"}, "anchor": "y"},
        "yaxis": {
            **axis,
            "type": "log",
            "domain": [0.0, 1 - min(0.11 * count + 0.06, 0.6)],
            "title": {"text": "latency, ms"},
            "fixedrange": True,
            "dtick": 1,
            "exponentformat": "none",
            "separatethousands": True,
        },
        "yaxis2": {
            **axis,
            "domain": [1 - min(0.11 * count, 0.54), 1.0],
            "range": [-0.6, count - 0.4],
            "tickvals": [count - 1 - place for place in range(count)],
            "ticktext": [shown(member) for member in run.members],
            "fixedrange": True,
            "showgrid": False,
        },
        "shapes": shapes,
        "annotations": notes,
    }


def _bands(run: LoadedRun, began: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Give the bands over the dots: while something was broken, as it was healed, and while writes stopped."""
    shapes: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []

    def band(since: float, until: float, colour: str, *, line: str = "", layer: str = "below") -> None:
        outline = {"color": f"var(--{line})", "width": 1.5, "dash": "dash"} if line else {"width": 0}
        whole = {"type": "rect", "xref": "x", "yref": "y domain", "y0": 0, "y1": 1, "layer": layer}
        shapes.append({**whole, "x0": since, "x1": until, "fillcolor": f"var(--{colour})", "line": outline})

    def note(x: float, text: str, place: float, colour: str, anchor: str) -> None:
        at = {"x": x, "y": place, "xref": "x", "yref": "y domain", "showarrow": False}
        font = {"color": f"var(--{colour})", "size": 12}
        look = {"xanchor": anchor, "yanchor": "top", "font": font, "bgcolor": "var(--veil)", "borderpad": 2}
        notes.append({**at, **look, "text": text})

    for fault in run.faults:
        band(_s(fault.inject_ns, began), _s(fault.healing_ns, began), "fault")
        band(_s(fault.healing_ns, began), _s(fault.heal_ns, began), "heal")
        for at, colour in ((fault.inject_ns, "fault-edge"), (fault.heal_ns, "heal-edge")):
            edge = {"type": "line", "xref": "x", "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
            x = _s(at, began)
            shapes.append({**edge, "x0": x, "x1": x, "line": {"color": f"var(--{colour})", "width": 1.5}})
    # Names that would lie upon each other are left out: the members' bars have them as well.
    apart = (run.entries[-1].t_ns - began) / _SECOND / 6 if run.entries else 0.0
    last = float("-inf")
    for fault in run.faults:
        x = _s(fault.inject_ns, began)
        if x - last < apart:
            continue
        last = x
        notes.append(
            {
                "x": x,
                "y": 1.0,
                "xref": "x",
                "yref": "paper",
                "text": shown(f"{fault.kind} {fault.member}".strip()),
                "showarrow": False,
                "xanchor": "left",
                "yanchor": "bottom",
                "font": {"color": "var(--fault-edge)", "size": 12},
            }
        )
    outage = run.verdict.outage
    if outage and outage.write_ms is not None and (stopped := outage.stopped):
        since, until = _s(stopped.from_ns, began), _s(stopped.until_ns, began)
        band(since, until, "outage", line="outage-edge")
        least = "" if stopped.ended else "at least "
        text = f"<b>writes stopped: {least}{ms(outage.write_ms)} ms</b>"
        if outage.predicted_ms:
            text += f"<br>Raft predicts {ms(outage.predicted_ms[0])} to {ms(outage.predicted_ms[1])} ms"
        note(round((since + until) / 2, 6), text, 0.99, "outage-ink", "center")
    return shapes, notes
