"""What goes on in a drill, on one screen while it runs: who leads, who is away, what is acknowledged, what heals next.

It only looks: at the traffic's own reports, and at what members say of their leader. What cannot be seen at an instant
is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from etcdops.workload.history import FAILOVER_WRITE, PINNED

if TYPE_CHECKING:
    from rich.console import RenderableType

    from etcdops.drills.scene import Scene
    from etcdops.verify.recorded import Claim
    from etcdops.workload.plan import Progress

__all__ = ["Look", "MemberLook", "Watcher", "drawn", "live_view"]

#: How often the screen is drawn anew, per second.
_PER_S = 4

#: Over how long the rate is taken.
_RATE_S = 1.0

#: What is done to a member to heal it, by how it was taken away.
_HEALS = {
    "kill": "is started again",
    "stop": "is started again",
    "freeze": "goes on",
    "isolate": "is connected to its peers again",
    "unplug": "is connected again",
}


class MemberLook(NamedTuple):
    """A member at one instant: how it is away, "" if it is not, and what it last said of term and leader."""

    name: str
    away: str
    leads: bool
    follows: str
    term: int


class Look(NamedTuple):
    """All that is shown of a drill at one instant.

    `rate` is in acknowledged operations per second over the last second; `gap_ms` is how long ago the last write that
    fails over was acknowledged, `longest_ms` the longest such time since the traffic began; None where none was yet.
    """

    drill: str
    cluster: str
    run: str
    elapsed_s: float
    members: tuple[MemberLook, ...]
    rate: float
    ok: int
    failed: int
    unknown: int
    gap_ms: float | None
    longest_ms: float | None
    step: str
    heals: tuple[str, ...]
    traffic: bool


class Watcher:
    """Looks at a scene again and again; keeps what only several looks show: the rate, and the longest gap."""

    def __init__(self, scene: Scene, drill: str, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._scene = scene
        self._drill = drill
        self._clock = clock
        self._began = clock()
        self._reports: list[tuple[int, int]] = []
        self._longest = 0.0

    def look(self) -> Look:
        """Give what there is to see now. Whatever is just being opened or closed is left out."""
        scene, now = self._scene, self._clock()
        progress: Progress | None = None
        claims: dict[str, Claim] = {}
        ids: dict[int, str] = {}
        if scene.is_open:
            try:
                window = scene.window
                progress = window.traffic.progress()
                claims, ids = window.leadership.latest()
            except Exception:
                # The window was closed meanwhile, or its traffic has died, which the drill itself tells.
                progress = None
        away = {each.member.name: each.how for each in scene.away}
        members = []
        for member in scene.cluster.record.members:
            claim = claims.get(member.name)
            leader = ids.get(claim.leader, "") if claim else ""
            there = member.name not in away
            members.append(
                MemberLook(
                    member.name,
                    away.get(member.name, ""),
                    there and bool(leader) and leader == member.name,
                    leader if there else "",
                    claim.term if claim and there else 0,
                )
            )
        ok, failed, unknown, gap_ms = self._counted(progress, now)
        return Look(
            self._drill,
            scene.cluster.name,
            scene.run,
            (now - self._began) / 1e9,
            tuple(members),
            self._rate(),
            ok,
            failed,
            unknown,
            gap_ms,
            self._longest if gap_ms is not None else None,
            scene.step_label,
            tuple(f"{name} ({how}) {_HEALS.get(how, 'is brought back')}" for name, how in away.items()),
            progress is not None,
        )

    def _counted(self, progress: Progress | None, now: int) -> tuple[int, int, int, float | None]:
        if progress is None:
            self._reports.clear()
            return 0, 0, 0, None
        counts = progress.streams.values()
        ok = sum(each.ok for each in counts)
        self._reports.append((now, ok))
        while len(self._reports) > 2 and now - self._reports[1][0] >= _RATE_S * 1e9:
            self._reports.pop(0)
        last = max(
            (each.last_ok_return_ns for name, each in progress.streams.items() if name.startswith(FAILOVER_WRITE)),
            default=0,
        ) or max(
            (each.last_ok_return_ns for name, each in progress.streams.items() if name.startswith(PINNED)), default=0
        )
        gap_ms = max(now - last, 0) / 1e6 if last else None
        self._longest = max(self._longest, gap_ms or 0.0)
        return ok, sum(each.failed for each in counts), sum(each.unknown for each in counts), gap_ms

    def _rate(self) -> float:
        if len(self._reports) < 2:
            return 0.0
        (first, before), (last, after) = self._reports[0], self._reports[-1]
        return (after - before) / ((last - first) / 1e9) if last > first else 0.0


def drawn(look: Look) -> RenderableType:
    """Give a look as rich draws it: a line of what, a table of members, traffic, step, and what heals next."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Text.assemble((look.drill, "bold"), f" on {look.cluster}, {look.elapsed_s:.0f} s")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("MEMBER", no_wrap=True)
    table.add_column("IS", no_wrap=True)
    table.add_column("TERM", justify="right", no_wrap=True)
    for member in look.members:
        if member.away:
            state = Text(f"away ({member.away})", "red")
        elif member.leads:
            state = Text("leads", "bold green")
        elif member.follows:
            state = Text(f"follows {member.follows}")
        else:
            state = Text("knows no leader" if member.term else "-", "yellow" if member.term else "dim")
        table.add_row(Text(member.name), state, str(member.term or "-"))
    lines: list[Any] = [head, table]
    if look.traffic:
        lines.append(
            Text(f"traffic  {look.rate:,.0f}/s; {look.ok:,} ok, {look.failed:,} failed, {look.unknown:,} unknown")
        )
        if look.gap_ms is not None and look.longest_ms is not None:
            lines.append(
                Text(f"gap      {look.gap_ms:,.0f} ms since a write was acknowledged, {look.longest_ms:,.0f} at most")
            )
    if look.step:
        lines.append(Text(f"step     {look.step}"))
    lines += [Text(f"heals    {each}", "yellow") for each in look.heals]
    return Group(*lines)


@contextmanager
def live_view(scene: Scene, drill: str, stream: IO[str], *, per_s: float = _PER_S) -> Iterator[None]:
    """Show a scene on a terminal as long as the block runs; lines that are written to stderr meanwhile stay above it.

    It is gone afterwards, and so stands in no log.
    """
    from rich.console import Console
    from rich.live import Live

    watcher = Watcher(scene, drill)
    console = Console(file=stream, highlight=False)

    def render() -> RenderableType:
        return drawn(watcher.look())

    with Live(
        console=console,
        get_renderable=render,
        refresh_per_second=per_s,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=True,
        vertical_overflow="crop",
    ):
        yield
