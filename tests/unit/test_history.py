"""The records of a run: written whole, read whole, torn only at their end, and short."""

from __future__ import annotations

import gzip
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcdops.answers import DeleteResult, Event, KeyValue, Lease, PutResult, RangeResult, TxnResult
from etcdops.errors import EtcdError, StateError
from etcdops.model import Answer, Model
from etcdops.ops import Compact, Compare, Delete, Grant, KeepAlive, Put, Range, Revoke, Txn
from etcdops.workload.deliveries import (
    Delivery,
    EventsWriter,
    ExtraWatch,
    events_file,
    extra_file,
    read_deliveries,
    read_extra,
)
from etcdops.workload.encoding import Text
from etcdops.workload.history import HistoryWriter, Operation, Request, key_prefix, pinned_stream, read_history
from etcdops.workload.lines import compress
from etcdops.workload.profiles import Setting, load

RUN = "20260102-030405-failed-leader-6f3a"
ROOT = str(Path(__file__).parents[2])


def _operation(number: int, request: Request | None = None, **changes: object) -> Operation:
    fields: dict[str, object] = {
        "id": number,
        "stream": "pinned.thor",
        "process": number % 7,
        "member": "thor",
        "request": request or Put(f"etcdops/{RUN}/pinned.thor/{number:08d}".encode(), f"{RUN}/{number}".encode()),
        "scheduled_ns": 1_000 + number,
        "call_ns": 1_001 + number,
        "return_ns": 1_002 + number,
        "outcome": "ok",
        "revision": 7,
        "answer": PutResult(7, None),
    }
    return Operation(**{**fields, **changes})  # type: ignore[arg-type]


def _answered(number: int, request: Request, answer: Answer) -> Operation:
    revision = answer if isinstance(answer, int) else answer.revision
    return _operation(number, request, revision=revision, answer=answer)


KV = KeyValue(f"etcdops/{RUN}/k/1".encode(), f"{RUN}/42".encode(), 5, 6, 2, 0)
FOREIGN = KeyValue(b"\xff\x00", b"@not ours", 3, 3, 1, 9_000_000_000_000)
LEASE = 9_000_000_000_001
KINDS: list[tuple[Request, Answer]] = [
    (Put(b"a", b"=b", LEASE, True, False, True), PutResult(9, FOREIGN)),
    (Range(b"a", b"\0", 3, 4, True, keys_only=True), RangeResult(9, (KV, FOREIGN), True, 17)),
    (Range(b"a", sort_order="descend", sort_target="version", max_mod_revision=3), RangeResult(9, (), False, 0)),
    (Delete(b"!x", b"~y", True), DeleteResult(9, 1, (KV,))),
    (Grant(LEASE, 5), Lease(LEASE, 6, 9)),
    (KeepAlive(LEASE), Lease(LEASE, 0, 9)),
    (Revoke(LEASE), 9),
    (Compact(8), 9),
    (
        Txn(
            (Compare(b"a", "mod_revision", "=", 0, b"c"), Compare(KV.key, "value", "!=", b"\xfe")),
            (Put(KV.key, b"v"), Range(KV.key), Delete(b"z"), Txn((), (Range(b"q"),), ())),
            (Range(KV.key),),
        ),
        TxnResult(
            9,
            True,
            (
                PutResult(9, None),
                RangeResult(9, (KV,), False, 1),
                DeleteResult(9, 0, ()),
                TxnResult(0, True, (RangeResult(9, (), False, 0),)),
            ),
        ),
    ),
]


def test_every_kind_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Requests and answers of every kind come back whole, and equal in type too."""
    path = tmp_path / "history.jsonl"
    written = [_answered(number, *kind) for number, kind in enumerate(KINDS)]
    with HistoryWriter(path, RUN) as writer:
        for operation in written:
            writer.append(operation)
    read = read_history(path)
    assert read == written
    assert repr(read) == repr(written)
    assert [op.kind for op in read] == [
        *("put", "range", "range", "delete", "grant", "keep-alive", "revoke", "compact", "txn")
    ]
    assert len(path.read_bytes().splitlines()) == 1 + len(written)


def test_what_was_not_acknowledged_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Outcome, code, text and attempt come back; such an operation has no answer."""
    path = tmp_path / "history.jsonl"
    bad: dict[str, Any] = {"revision": 0, "answer": None}
    written = [
        _operation(1, outcome="unknown", code="DEADLINE_EXCEEDED", error="Deadline\n“exceeded”", **bad),
        _operation(2, outcome="failed", code="NOT_SENT", error="", attempt=2, **bad),
        _operation(3, attempt=3),
    ]
    with HistoryWriter(path, RUN) as writer:
        for operation in written:
            writer.append(operation)
    assert read_history(path) == written


@given(st.binary())
def test_any_bytes_are_text_and_back(data: bytes) -> None:
    """A key or value of whatever bytes survives, also behind the run's own prefixes."""
    text = Text(RUN)
    for whole in (data, f"etcdops/{RUN}/".encode() + data, f"{RUN}/".encode() + data):
        assert Text(RUN).read(text.write(whole)) == whole


def test_deliveries_are_read_as_they_were_written(tmp_path: Path) -> None:
    """What a watch delivered comes back whole: puts, deletes, previous values, progress, and why it ended."""
    tombstone = KeyValue(KV.key, b"", 0, 8, 0, 0)
    written = [
        Delivery(10, 1, "opened", 4, start_revision=5),
        Delivery(11, 1, "events", 6, events=(Event("put", KV, None),)),
        Delivery(12, 1, "events", 8, events=(Event("delete", tombstone, KV), Event("put", FOREIGN, FOREIGN))),
        Delivery(13, 1, "progress", 8),
        Delivery(14, 1, "ended", error="Stream removed"),
        Delivery(15, 2, "opened", 8, start_revision=9),
    ]
    path = events_file(tmp_path, "thor")
    with EventsWriter(path, RUN, "thor") as writer:
        for delivery in written:
            writer.append(delivery)
    assert read_deliveries(path) == written
    compress(path)
    assert read_deliveries(path) == written
    path.with_name(path.name + ".gz").unlink()
    with pytest.raises(StateError, match=r"events-thor\.jsonl"):
        read_deliveries(path)


def test_more_watches_have_files_of_their_own(tmp_path: Path) -> None:
    """A watch on a part of the keys is found by the folder, with its range and filters, compressed or not."""
    prefix = key_prefix(RUN).encode()
    watches = [
        ExtraWatch("one", prefix + b"k/1", b""),
        ExtraWatch("some", prefix + b"k/", prefix + b"k0", ("NOPUT",)),
    ]
    for watch, member in zip(watches, ("thor", "ironman"), strict=True):
        with EventsWriter(extra_file(tmp_path, member, watch.name), RUN, member, watch) as writer:
            writer.append(Delivery(1, 1, "progress", 4))
    compress(extra_file(tmp_path, "thor", "one"))
    EventsWriter(events_file(tmp_path, "thor"), RUN, "thor").close()
    found = read_extra(tmp_path)
    assert [(one.member, one.watch) for one in found] == [("ironman", watches[1]), ("thor", watches[0])]
    assert all(one.deliveries == [Delivery(1, 1, "progress", 4)] for one in found)


def test_append_goes_on_after_a_record_that_exists(tmp_path: Path) -> None:
    """A writer opened on a record adds to it."""
    path = tmp_path / "history.jsonl"
    for number in (1, 2):
        with HistoryWriter(path, RUN) as writer:
            writer.append(_operation(number))
    assert [operation.id for operation in read_history(path)] == [1, 2]


def test_old_lines_are_flushed_by_the_next_append(tmp_path: Path) -> None:
    """No operation is held back for more than 100 ms while others come in."""
    path = tmp_path / "history.jsonl"
    writer = HistoryWriter(path, RUN)
    writer.append(_operation(1))
    deadline = time.monotonic() + 10
    number = 2
    while not read_history(path):
        assert time.monotonic() < deadline
        writer.append(_operation(number))
        number += 1
        time.sleep(0.01)
    assert read_history(path)[0].id == 1
    writer.close()


def test_flushed_lines_survive_a_kill(tmp_path: Path) -> None:
    """After kill -9, what was flushed is there."""
    path = tmp_path / "history.jsonl"
    script = (
        "import os, sys\n"
        "from etcdops.ops import Put\n"
        "from etcdops.workload.history import HistoryWriter, Operation\n"
        "writer = HistoryWriter(sys.argv[1], 'run1')\n"
        "put = Put(b'k', b'v')\n"
        "for n in (1, 2): writer.append(Operation(n, 's', 0, 'm', put, 1, 2, 3, 'unknown'))\n"
        "writer.flush()\n"
        "writer.append(Operation(3, 's', 0, 'm', put, 1, 2, 3, 'unknown'))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=ROOT, timeout=60, env={**os.environ, "PYTHONPATH": ROOT}
    )
    assert done.returncode == -9
    assert [operation.id for operation in read_history(path)] == [1, 2]


def _two(path: Path) -> list[bytes]:
    with HistoryWriter(path, RUN) as writer:
        writer.append(_operation(1))
        writer.append(_operation(2))
    header, first, second, _ = path.read_bytes().split(b"\n")
    return [header, first, second]


@pytest.mark.parametrize("keep", [1, 20, -2, -1])
def test_torn_last_line_is_left_out(tmp_path: Path, keep: int) -> None:
    """A last line that a kill has cut anywhere does not hide the lines before it."""
    path = tmp_path / "history.jsonl"
    header, first, second = _two(path)
    path.write_bytes(b"\n".join([header, first, second[:keep]]))
    assert [operation.id for operation in read_history(path)] == [1]


def test_last_line_that_only_lacks_its_newline_counts(tmp_path: Path) -> None:
    """A whole line at the end is not thrown away for its missing newline."""
    path = tmp_path / "history.jsonl"
    _two(path)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert [operation.id for operation in read_history(path)] == [1, 2]


@pytest.mark.parametrize("bad", [b"{", b"", b'{"id": "one"}', b"\xff\xfe", b"[]", b"[1,2,3]"])
def test_bad_line_in_the_middle_names_file_and_line(tmp_path: Path, bad: bytes) -> None:
    """Damage elsewhere than at the end is refused, with the place."""
    path = tmp_path / "history.jsonl"
    header, first, second = _two(path)
    path.write_bytes(b"\n".join([header, first, bad, second, b""]))
    with pytest.raises(StateError, match=r"history\.jsonl, line 3: ") as caught:
        read_history(path)
    assert caught.value.remedy


@pytest.mark.parametrize("field", [4, 8, 10])
def test_a_line_that_says_nonsense_is_refused(tmp_path: Path, field: int) -> None:
    """A request of no kind, an outcome that there is not, an answer of another kind: damage, with the place."""
    path = tmp_path / "history.jsonl"
    with HistoryWriter(path, RUN) as writer:
        writer.append(_answered(1, Range(b"a"), RangeResult(9, (), False, 0)))
    import msgspec

    header, line, _ = path.read_bytes().split(b"\n")
    fields = msgspec.json.decode(line)
    fields[field] = ["nonsense"]
    path.write_bytes(header + b"\n" + msgspec.json.encode(fields) + b"\n")
    with pytest.raises(StateError, match="line 2: "):
        read_history(path)


@pytest.mark.parametrize(
    "header", [b'{"schema":1,"kind":"events","run":"r"}', b'{"schema":2,"kind":"history","run":"r"}', b"[]", b""]
)
def test_a_record_of_another_kind_is_refused(tmp_path: Path, header: bytes) -> None:
    """A file without the right first line is no history, and is not read as one."""
    path = tmp_path / "history.jsonl"
    path.write_bytes(header + b"\n")
    with pytest.raises(StateError, match="line 1: "):
        read_history(path)


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    """A record that does not exist, cannot be created, or is cut short when compressed, is named."""
    with pytest.raises(StateError, match=r"there is no record .*none"):
        read_history(tmp_path / "none")
    with pytest.raises(StateError, match=r"cannot write the record .*none/h: No such file"):
        HistoryWriter(tmp_path / "none" / "h", RUN)
    path = tmp_path / "history.jsonl"
    _two(path)
    packed = compress(path)
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(StateError, match=r"cannot read the record .*history\.jsonl\.gz"):
        read_history(path)


def test_compressing_that_was_cut_short_loses_nothing(tmp_path: Path) -> None:
    """With both files there, the plain one counts: the compressed one may be a beginning."""
    path = tmp_path / "history.jsonl"
    _two(path)
    path.with_name("history.jsonl.gz").write_bytes(gzip.compress(b"{"))
    assert len(read_history(path)) == 2
    compress(path)
    assert not path.exists()
    assert len(read_history(path)) == 2


def test_an_operation_takes_less_than_200_bytes(tmp_path: Path) -> None:
    """Mixed operations with their whole answers, compressed, take less than 200 bytes each on average."""
    path = tmp_path / "history.jsonl"
    chance, model = random.Random(5), Model()
    profile = load("mixed", Setting(run=RUN, seed=5, clients=10))
    clients = [profile.client(index) for index in range(10)]
    count, now = 5000, 3_600_000_000_000
    with HistoryWriter(path, RUN) as writer:
        for number in range(1, count + 1):
            client = clients[number % 10]
            request = client.next(number, number / 200)
            assert request is not None
            now += 1_000_000
            call = now + chance.randrange(2_000_000)
            fields: dict[str, object] = {
                "stream": f"client.{number % 10}",
                "process": chance.randrange(10),
                "member": ("ironman", "thor", "deadpool")[number % 3],
                "scheduled_ns": now,
                "call_ns": call,
                "return_ns": call + chance.randrange(20_000_000),
            }
            try:
                if isinstance(request, KeepAlive):
                    answer: Answer = Lease(request.lease, 3, model.revision)
                else:
                    answer = model.apply(request)
            except EtcdError as error:
                bad = {"outcome": "failed", "revision": 0, "answer": None, "code": error.code, "error": error.text}
                operation = _operation(number, request, **fields, **bad)
            else:
                revision = answer if isinstance(answer, int) else answer.revision
                operation = _operation(number, request, **fields, revision=revision, answer=answer)
            writer.append(operation)
            client.ended(number, request, operation.outcome, operation.answer, number / 200)
    assert compress(path).stat().st_size / count <= 200


def test_names() -> None:
    """Keys of a run and of a stream are found by their prefix, and no member's stream is called like another."""
    assert key_prefix("run1") == "etcdops/run1/"
    assert key_prefix("run1", pinned_stream("thor")) == "etcdops/run1/pinned.thor/"
