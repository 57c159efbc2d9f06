"""`logs`: what the members wrote, merged by time, followed, and narrowed down."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path

import pytest

from etcdops.errors import SpecError
from etcdops.logs import LogLine, matter, parse_since
from tests.conftest import CommandLine, place_with_lab
from tests.suite.members import log_of
from tests.suite.terminal import Terminal

Wait = Callable[..., None]

#: The other program has the same tasks, and a terminal is one whatever members run as.
on_processes = pytest.mark.runtime("process")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, etcd_cluster_runtime: str) -> Iterator[CommandLine]:
    """A running cluster of three members, shared."""
    with place_with_lab(tmp_path_factory.mktemp("logs"), etcd_cluster_runtime) as line:
        yield line


def _members(out: str) -> set[str]:
    return {line.partition("|")[0].strip() for line in out.splitlines()}


def _say(line: CommandLine, word: str) -> None:
    """Have every member log a word: the name of a role that it makes."""
    ended = line("ctl", "--", "role", "add", word)
    assert ended.code == 0, ended.err


def _append(line: CommandLine, member: str, text: str) -> None:
    """Write to a member's log file what the member itself could have written."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    with Path(line.store.load("lab").member(member).log).open("a") as file:
        file.write(json.dumps({"level": "info", "ts": now, "msg": text}) + "\n")


@pytest.mark.parametrize("program", ["etcdops", pytest.param("invoke", marks=on_processes)])
def test_all_members_merged_by_time(lab: CommandLine, program: str) -> None:
    """Every line of every member is there, in order of time, with its member's name before it; no colour."""
    ended = lab("logs", program=program)
    assert (ended.code, ended.err) == (0, "")
    assert _members(ended.out) == {"ironman", "thor", "deadpool"}
    record = lab.store.load("lab")
    total = sum(len(log_of(record, name).splitlines()) for name in record.spec.names)
    assert len(ended.out.splitlines()) == total
    times = [datetime.fromisoformat(ts[:23]) for ts in re.findall(r'"ts":"([^"]+)"', ended.out)]
    # etcd's own goroutines write a few microseconds out of order; each member's file is kept as it is.
    assert all(later - earlier > timedelta(milliseconds=-50) for earlier, later in pairwise(times))
    switches = sum(a != b for a, b in pairwise(line.partition("|")[0] for line in ended.out.splitlines()))
    assert switches > 2
    assert "\x1b" not in ended.out


def test_some_members(lab: CommandLine) -> None:
    """`--member` takes one or several, separated by commas; one that is named twice is shown once."""
    assert _members(lab("logs", "--member", "thor").out) == {"thor"}
    both = lab("logs", "--member", "thor,ironman").out
    assert _members(both) == {"thor", "ironman"}
    assert lab("logs", "--member", "thor, ironman,thor").out == both
    for wrong in ("nosuch", "thor,nosuch", "thor,", ""):
        ended = lab("logs", "--member", wrong)
        assert (ended.code, ended.out) == (2, ""), wrong
    assert "Its members are ironman, thor, deadpool" in lab("logs", "--member", "nosuch").err


def test_since(lab: CommandLine) -> None:
    """`--since` takes a span or a time; older lines are left out."""
    _say(lab, "a-word-of-now")
    everything = lab("logs").out
    assert "a-word-of-now" in lab("logs", "--since", "90s").out
    assert lab("logs", "--since", "1d").out == everything
    hour = datetime.now(timezone.utc) + timedelta(hours=1)
    assert lab("logs", "--since", hour.strftime("%Y-%m-%dT%H:%M:%SZ")).out == ""
    ago = datetime.now(timezone.utc) - timedelta(hours=1)
    assert lab("logs", "--since", ago.isoformat()).out == everything


@pytest.mark.parametrize(
    "since", ["yesterday", "", "90", "10x", "-5m", "99999999999999d", "2026-13-01T00:00:00Z", "0001-01-01"]
)
def test_since_that_is_no_time(lab: CommandLine, since: str) -> None:
    """What is neither a span nor a time is refused, with examples."""
    if since in ("90", "0001-01-01"):
        with pytest.raises(SpecError):
            parse_since(since)
        return
    ended = lab("logs", f"--since={since}")
    assert (ended.code, ended.out) == (2, "")
    assert "Give 90s, 10m, 2h" in ended.err


def test_spans_and_times() -> None:
    """Spans add up, and times with any fraction, zone or none are understood on every Python."""
    now = datetime.now(timezone.utc)
    for text, seconds in (("90s", 90), ("1h30m", 5400), ("250ms", 0.25), ("1.5h", 5400), ("2d", 172_800)):
        assert abs((now - parse_since(text)).total_seconds() - seconds) < 5
    exact = datetime(2026, 1, 31, 12, 0, 0, 500_000, timezone.utc)
    assert parse_since("2026-01-31T12:00:00.5Z") == exact
    assert parse_since("2026-01-31T12:00:00.500000000+00:00") == exact
    assert parse_since("2026-01-31T13:00:00.5+0100") == exact
    assert parse_since("2026-01-31 12:00:00").tzinfo is not None


def test_lines_that_matter() -> None:
    """Of a member that died, its errors are shown, without stack traces; or else the last that it said."""
    now = datetime.now(timezone.utc)
    lines = [LogLine(now, "thor", "info", f"line {i}") for i in range(9)]
    assert [line.text for line in matter(lines)] == [f"line {i}" for i in range(3, 9)]
    text = '{"level":"fatal","msg":"it \\"failed\\"","stacktrace":"main\\n\\t\\"a\\".go:1","then":1}'
    fatal = LogLine(now, "thor", "fatal", text)
    assert [line.text for line in matter([*lines, fatal, *lines])] == [
        '{"level":"fatal","msg":"it \\"failed\\"","then":1}'
    ]


def _shown_by_all(text: str, word: str) -> bool:
    return {line.partition(" ")[0] for line in text.splitlines() if word in line} == {"ironman", "thor", "deadpool"}


def test_follow_shows_new_lines(lab: CommandLine, wait_until: Wait) -> None:
    """`--follow` goes on: new lines of every member appear, and those of a member that comes back as well."""
    log = lab.cwd / "followed.txt"
    with log.open("w") as file:
        process = lab.start("logs", "--follow", "--since", "60s", stdout=file)
        for i in range(3):
            _say(lab, f"new-word-{i}")
            wait_until(lambda i=i: _shown_by_all(log.read_text(), f"new-word-{i}"), what=f"word {i}")
        lab.cluster().member("deadpool").kill()
        lab.cluster().member("deadpool").start()
        wait_until(lambda: "deadpool | " in log.read_text().rpartition("new-word-2")[2], what="its new start")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    for i in range(3):
        said = [line for line in log.read_text().splitlines() if f"new-word-{i}" in line]
        # One that is killed applies again what its database had not on the disk yet, and says so at another time.
        by = Counter(line.partition(" ")[0] for line in said)
        assert (by["ironman"], by["thor"]) == (1, 1)
        assert by["deadpool"] in (1, 2)
        assert len(set(said)) == len(said)


@pytest.mark.runtime("process")  # what a container writes, Docker gives by the line
def test_follow_shows_whole_lines(lab: CommandLine, wait_until: Wait) -> None:
    """A line of which a member has written only the beginning is shown once it is whole."""
    log = lab.cwd / "halves.txt"
    with log.open("w") as file:
        process = lab.start("logs", "--follow", "--since", "60s", stdout=file)
        with Path(lab.store.load("lab").member("thor").log).open("a") as half:
            half.write('{"level":"info","msg":"first half, ')
            half.flush()
            _append(lab, "ironman", "another member's")
            wait_until(lambda: "another member's" in log.read_text(), what="another line")
            assert "first half" not in log.read_text()
            half.write('second half"}\n')
        wait_until(lambda: "first half, second half" in log.read_text(), what="a whole line")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 130


def test_long_lines_are_in_one_piece(lab: CommandLine) -> None:
    """A line of many kilobytes is one line, with nothing in its midst; Docker keeps it in pieces of 16 KiB."""
    word = "".join(f"{i:05}," for i in range(5_000))
    _say(lab, word)
    out = lab("logs", "--since", "30s").out
    assert _shown_by_all(out, word), [len(line) for line in out.splitlines()]


@pytest.mark.parametrize("program", ["etcdops", pytest.param("invoke", marks=on_processes)])
def test_ctrl_c_ends_follow(lab: CommandLine, program: str) -> None:
    """Ctrl-C on a terminal ends `--follow` with 130."""
    with Terminal(lab, "logs", "--follow", program=program) as terminal:
        terminal.expect("thor     | ")
        terminal.type("\x03")
        assert terminal.wait(20) == 130


@pytest.mark.parametrize("program", ["etcdops", pytest.param("invoke", marks=on_processes)])
@pytest.mark.parametrize("more", ["", " --follow"])
def test_reader_that_leaves_early(lab: CommandLine, program: str, more: str) -> None:
    """`logs | head -1` ends quietly, followed or not."""
    for i in range(3):
        # etcd would panic at a name of more than 32 KiB.
        _say(lab, f"{program}{more}{i}".replace(" ", "") + "x" * 30_000)
    done = lab.run("sh", "-c", f"{getattr(lab, program)} logs{more} | head -1")
    assert len(done.out.splitlines()) == 1
    assert done.err == ""


def test_logs_of_a_cluster_that_is_down(cli: CommandLine) -> None:
    """Logs outlive their members: they can be read when nothing runs."""
    assert cli("up-env", "--size", "1").code == 0
    assert cli("down-env").code == 0
    assert "ironman | " in cli("logs").out
    assert cli("logs", "--cluster", "nosuch").code == 3
