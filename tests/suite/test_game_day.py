"""The task game-day on real etcd: what it refuses before anything is started, and the way out of it by Ctrl-C.

A game day to its end is the example of docs/game-day.md.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import place

Wait = Callable[..., None]

pytestmark = pytest.mark.runtime("process")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nope"], "there is no drill 'nope'"),
        (["no-fault", "failed-leader:how=isolate"], "not every drill can run here: failed-leader"),
        (["move-leader", "--size", "1"], "needs 3 voters"),
        (["no-fault", "--rate", "0"], "--rate 0 is not offered"),
        (["no-fault", "--seed", "x"], "--seed"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_run_is_refused_before_there_is_a_cluster(tmp_path: Path, words: list[str], said: str) -> None:
    """Nothing is created, started or written."""
    with place(tmp_path, "process") as line:
        ended = line("game-day", *words)
        assert ended.code in (2, 3), ended.err
        assert said in ended.err
        assert not list(tmp_path.rglob("clusters/*"))
        assert not list(tmp_path.rglob("game-days"))


def test_a_plan_of_all_leaves_out_what_cannot_run(tmp_path: Path) -> None:
    """One voter is enough for some; as JSON the plan has each with its seconds."""
    with place(tmp_path, "process") as line:
        ended = line("game-day", "--dry-run", "--size", "1", "-o", "json", "--seed", "4")
        told = json.loads(ended.out)
        names = [each["drill"] for each in told["plan"]]
        assert {"no-fault", "data-loss"} <= set(names)
        assert "failed-leader" not in names
        assert "left out: failed-leader: it needs 3 voters" in ended.err
        assert (told["seed"], all(each["takes_s"] > 0 for each in told["plan"])) == (4, True)
        assert not list(tmp_path.rglob("clusters/*"))


def test_ctrl_c_heals_and_leaves_a_report(tmp_path: Path, wait_until: Wait) -> None:
    """The drill that ended is in it, the one under way is said not to have."""
    with place(tmp_path, "process") as line:
        argv = ("game-day", "no-fault:duration=1", "failed-leader", "move-leader", "--seed", "9", "--rate", "50")
        process = line.start(*argv)
        said: list[str] = []
        assert process.stderr
        for text in process.stderr:
            said.append(text)
            if "2/6" in text:
                process.send_signal(signal.SIGINT)
                break
        _, rest = process.communicate(timeout=90)
        assert process.returncode == 130, [*said, rest]
        [kept] = tmp_path.rglob("game-day.json")
        day = json.loads(kept.read_text())
        assert [each["drill"] for each in day["played"]] == ["no-fault"], day
        assert day["left_out"] == ["failed-leader", "move-leader"]
        assert kept.with_name("index.html").exists()
        status = json.loads(line("status", "-o", "json").out)
        assert status["verdict"] == "healthy", status
