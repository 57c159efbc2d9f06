"""The live view: what is drawn of a look, and what is looked at while a drill runs in memory."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from etcdops import drills
from etcdops.drills.scene import Scene
from etcdops.report.live import Look, MemberLook, Watcher, drawn, live_view
from etcdops.state import Store
from tests.unit.drilling import QUICK, fake_cluster


def text_of(look: Look, width: int = 80) -> str:
    """Give what a terminal of a width would show."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(drawn(look))
    assert isinstance(console.file, io.StringIO)
    return re.sub(r" +\n", "\n", console.file.getvalue())


LOOK = Look(
    "failed-leader",
    "lab",
    "RUN",
    7.4,
    (
        MemberLook("ironman", "kill", False, "", 0),
        MemberLook("thor", "", True, "thor", 3),
        MemberLook("deadpool", "", False, "", 3),
    ),
    812.4,
    1234,
    3,
    12,
    812.0,
    1204.6,
    "3/6 wait for [another] leader",
    ("ironman (kill) is started again",),
    True,
)


def test_one_screen_says_all() -> None:
    """Members with leader and term, rate and errors, the gap so far, the step, and what heals next."""
    assert text_of(LOOK) == (
        "failed-leader on lab, 7 s\n"
        "MEMBER    IS               TERM\n"
        "ironman   away (kill)         -\n"
        "thor      leads               3\n"
        "deadpool  knows no leader     3\n"
        "traffic  812/s; 1,234 ok, 3 failed, 12 unknown\n"
        "gap      812 ms since a write was acknowledged, 1,205 at most\n"
        "step     3/6 wait for [another] leader\n"
        "heals    ironman (kill) is started again\n"
    )


def test_what_is_not_known_is_left_out() -> None:
    """Before any write, between two windows, and with nothing broken."""
    quiet = LOOK._replace(traffic=False, gap_ms=None, longest_ms=None, step="", heals=())
    assert text_of(quiet).splitlines()[-1] == "deadpool  knows no leader     3"


@pytest.fixture
def looks(tmp_path: Path) -> list[Look]:
    """What was there to be seen at each step of a drill whose leader is killed, and once a moment beside."""
    seen: list[Look] = []
    watchers: list[Watcher] = []

    @contextmanager
    def show(scene: Scene) -> Iterator[None]:
        watchers.append(Watcher(scene, "failed-leader"))
        yield
        seen.append(watchers[0].look())

    def say(text: str) -> None:
        if watchers:
            seen.append(watchers[0].look())

    with fake_cluster(Store(tmp_path)) as cluster:
        verdict = drills.run("failed-leader", cluster, show=show, say=say, seed=1, **QUICK)
    assert verdict.verdict == "passed", verdict.checks
    return seen


def test_a_drill_is_seen_as_it_goes(looks: list[Look]) -> None:
    """The leader, then who is away and how it heals, then nobody again; the counts only grow."""
    assert any(member.leads for member in looks[1].members)
    away = [look for look in looks if look.heals]
    assert away
    [gone] = {member.name for look in away for member in look.members if member.away}
    assert all(look.heals == (f"{gone} (kill) is started again",) for look in away)
    assert not looks[-1].heals
    assert not any(member.away for member in looks[-1].members)
    counts = [look.ok for look in looks if look.traffic]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]
    assert max(look.rate for look in looks) > 0
    assert max(look.longest_ms or 0 for look in looks) >= max(look.gap_ms or 0 for look in looks) > 0
    assert [look.step for look in looks if look.step][-1].startswith("6/6")


def test_what_is_written_stays_above_and_the_screen_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines to stderr are there afterwards, each whole; the screen is drawn, and erased in the end."""
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", stream)
    with fake_cluster(Store(tmp_path)) as cluster:
        import sys

        def say(text: str) -> None:
            sys.stderr.write(f"SAID {text}\n")

        drills.run(
            "no-fault", cluster, duration="1", show=lambda scene: live_view(scene, "no-fault", stream), say=say, **QUICK
        )
    written = stream.getvalue()
    assert "no-fault" in written
    assert "MEMBER" in written
    assert re.search(r"SAID 2/3 do nothing for 1 s", written)
    # The last thing that rich does to the screen is to make the cursor visible, after the lines were erased.
    after = written[written.rindex("MEMBER") :]
    assert "\x1b[2K" in after
    assert "\x1b[?25h" in after
