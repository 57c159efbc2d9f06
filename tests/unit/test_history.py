"""The record of a run: written whole, read whole, torn only at its end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from etcdops.errors import StateError
from etcdops.workload.history import HistoryWriter, Operation, key_prefix, pinned_stream, read_history


def _operation(number: int, **changes: object) -> Operation:
    fields: dict[str, object] = {
        "id": number,
        "stream": "pinned.thor",
        "member": "thor",
        "op": "put",
        "key": f"etcdops/run1/pinned.thor/{number:08d}",
        "value": f"run1/{number}",
        "scheduled_ns": 1_000 + number,
        "call_ns": 1_001 + number,
        "return_ns": 1_002 + number,
        "outcome": "ok",
        "revision": 7,
    }
    return Operation(**{**fields, **changes})  # type: ignore[arg-type]


def test_round_trip(tmp_path: Path) -> None:
    """What is appended is read again, in order and in full."""
    path = tmp_path / "history.jsonl"
    written = [
        _operation(1),
        _operation(2, outcome="unknown", code="DEADLINE_EXCEEDED", error="Deadline\n“exceeded”", revision=0),
        _operation(3, op="get", value="", attempt=2, stream="failover-read"),
    ]
    with HistoryWriter(path) as writer:
        for operation in written:
            writer.append(operation)
    assert read_history(path) == written
    assert len(path.read_bytes().splitlines()) == 3


def test_append_goes_on_after_a_record_that_exists(tmp_path: Path) -> None:
    """A writer opened on a record adds to it."""
    path = tmp_path / "history.jsonl"
    for number in (1, 2):
        with HistoryWriter(path) as writer:
            writer.append(_operation(number))
    assert [operation.id for operation in read_history(path)] == [1, 2]


def test_old_records_are_flushed_by_the_next_append(tmp_path: Path) -> None:
    """No record is held back for more than 100 ms while others come in."""
    path = tmp_path / "history.jsonl"
    writer = HistoryWriter(path)
    writer.append(_operation(1))
    deadline = time.monotonic() + 10
    number = 2
    while not path.stat().st_size:
        assert time.monotonic() < deadline
        writer.append(_operation(number))
        number += 1
        time.sleep(0.01)
    assert read_history(path)[0].id == 1
    writer.close()


def test_flushed_records_survive_a_kill(tmp_path: Path) -> None:
    """After kill -9, what was flushed is there."""
    path = tmp_path / "history.jsonl"
    script = (
        "import os, sys\n"
        "from etcdops.workload.history import HistoryWriter, Operation\n"
        "writer = HistoryWriter(sys.argv[1])\n"
        "for n in (1, 2): writer.append(Operation(n, 's', 'm', 'put', 'k', 'v', 1, 2, 3, 'ok'))\n"
        "writer.flush()\n"
        "writer.append(Operation(3, 's', 'm', 'put', 'k', 'v', 1, 2, 3, 'ok'))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=root, timeout=60, env={**os.environ, "PYTHONPATH": root}
    )
    assert done.returncode == -9
    assert [operation.id for operation in read_history(path)] == [1, 2]


@pytest.mark.parametrize("keep", [1, 20, -2, -1])
def test_torn_last_line_is_left_out(tmp_path: Path, keep: int) -> None:
    """A last line that a kill has cut anywhere does not hide the lines before it."""
    path = tmp_path / "history.jsonl"
    with HistoryWriter(path) as writer:
        writer.append(_operation(1))
        writer.append(_operation(2))
    first, second, _ = path.read_bytes().split(b"\n")
    path.write_bytes(first + b"\n" + second[:keep])
    assert [operation.id for operation in read_history(path)] == [1]


def test_last_line_that_only_lacks_its_newline_counts(tmp_path: Path) -> None:
    """A whole record at the end is not thrown away for its missing newline."""
    path = tmp_path / "history.jsonl"
    with HistoryWriter(path) as writer:
        writer.append(_operation(1))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert [operation.id for operation in read_history(path)] == [1]


@pytest.mark.parametrize("bad", [b"{", b"", b'{"id": "one"}', b"\xff\xfe", b"[]"])
def test_bad_line_in_the_middle_names_file_and_line(tmp_path: Path, bad: bytes) -> None:
    """Damage elsewhere than at the end is refused, with the place."""
    path = tmp_path / "history.jsonl"
    with HistoryWriter(path) as writer:
        writer.append(_operation(1))
        writer.append(_operation(2))
    first, second, _ = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([first, bad, second, b""]))
    with pytest.raises(StateError, match=r"history\.jsonl, line 2: ") as caught:
        read_history(path)
    assert caught.value.remedy


def test_last_line_of_another_kind_is_refused(tmp_path: Path) -> None:
    """A whole last line that is no operation is damage, not a torn line."""
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"id": "one"}')
    with pytest.raises(StateError, match="line 1: "):
        read_history(path)


def test_empty_record_is_empty(tmp_path: Path) -> None:
    """A run that was killed before its first record has an empty history."""
    path = tmp_path / "history.jsonl"
    path.touch()
    assert read_history(path) == []


def test_missing_files_are_refused(tmp_path: Path) -> None:
    """A record that does not exist, or cannot be created, is named."""
    with pytest.raises(StateError, match=r"cannot read the history .*none: No such file"):
        read_history(tmp_path / "none")
    with pytest.raises(StateError, match=r"cannot write the history .*none/h: No such file"):
        HistoryWriter(tmp_path / "none" / "h")


def test_names() -> None:
    """Keys of a run and of a stream are found by their prefix, and no member's stream is called like another."""
    assert key_prefix("run1") == "etcdops/run1/"
    assert key_prefix("run1", pinned_stream("thor")) == "etcdops/run1/pinned.thor/"
