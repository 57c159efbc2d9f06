"""A run's columns are the same from its files as from the operations and deliveries in them."""

from __future__ import annotations

import pickle
import random
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from etcdops.answers import KeyValue
from etcdops.errors import StateError
from etcdops.ops import Compare, Delete, Put, Range, Txn
from etcdops.verify.building import columns_of
from etcdops.verify.columns import Columns
from etcdops.verify.describing import describe
from etcdops.verify.files import whole
from etcdops.verify.helping import Helper, shared
from etcdops.verify.parts import Part
from etcdops.verify.reading import Reader, read_columns
from etcdops.verify.recorded import Recorded, State
from etcdops.verify.swaps import take_swaps
from etcdops.verify.witness import examine
from etcdops.workload.deliveries import Delivery, EventsWriter, events_file
from etcdops.workload.history import HistoryWriter
from etcdops.workload.lines import compress
from tests.unit.stories import MEMBERS, RUN, Story, key, random_story, value
from tests.unit.test_witness_shapes import bent


def _write(folder: Path, recorded: Recorded) -> None:
    """Write a run's files, the history in two of them."""
    half = len(recorded.history) // 2
    for name, part in (("history.jsonl", recorded.history[:half]), ("own.jsonl", recorded.history[half:])):
        with HistoryWriter(folder / name, RUN) as writer:
            for op in part:
                writer.append(op)
    for member, deliveries in recorded.deliveries.items():
        with EventsWriter(events_file(folder, member), RUN, member) as events:
            for delivery in deliveries:
                events.append(delivery)


def _read(folder: Path, recorded: Recorded) -> Columns:
    assert recorded.base is not None
    return read_columns(
        RUN,
        MEMBERS,
        recorded.base,
        [folder / "history.jsonl", folder / "own.jsonl"],
        {member: events_file(folder, member) for member in recorded.deliveries},
    )


def _known(recorded: Recorded) -> Columns:
    assert recorded.base is not None
    return columns_of(RUN, MEMBERS, recorded.base, recorded.history, recorded.deliveries)


def _facts(columns: Columns) -> dict[str, Any]:
    """Give what columns say, with keys, values and rows as what they stand for."""

    def kv(row: int) -> object:
        if row < 0:
            return row
        kvs = columns.kvs
        rest = [int(column[row]) for column in kvs[2:]]
        return columns.keys[kvs.key[row]], columns.values[kvs.value[row]], *rest

    rows = columns.rows
    lists = [tuple(zip(*(column.tolist() for column in table), strict=True)) for table in rows]
    states, events, compares, spans = lists
    messages = columns.events.messages
    return {
        "members": columns.members,
        "base": (columns.base, [kv(row) for row in columns.based.tolist()]),
        "operations": [column.tolist() for column in columns.operations],
        "messages": [column.tolist() for column in messages],
        "delivered": [
            (message, kv(int(columns.events.kv[event])), kv(int(columns.events.previous[event])))
            for message, event in zip(columns.events.message.tolist(), columns.events.event.tolist(), strict=True)
        ],
        "states": sorted((op, at, columns.keys[of], str(kv(row))) for op, at, of, row in states),
        "events": sorted(
            (op, nth, columns.keys[of], columns.values[to] if to != -1 else b"", lease)
            for op, nth, of, to, lease in events
        ),
        "compares": sorted(
            (op, at, columns.keys[of], target, sign, str(columns.values[operand] if target == 4 else operand))
            for op, at, of, target, sign, operand in compares
        ),
        "spans": sorted(
            (op, at, low, high, count, [kv(states[row][3]) for row in range(first, first + length)])
            for op, at, low, high, count, length, first in spans
        ),
        "granted": sorted(zip(*(column.tolist() for column in columns.granted), strict=True)),
        "attempts": sorted(
            (op, columns.keys[of], columns.values[to])
            for op, of, to in zip(*(column.tolist() for column in columns.attempts), strict=True)
        ),
        "general": columns.general,
    }


def _same(folder: Path, recorded: Recorded) -> Columns:
    _write(folder, recorded)
    read, known = _facts(columns := _read(folder, recorded)), _facts(_known(recorded))
    for name, fact in known.items():
        assert read[name] == fact, name
    for number, op in enumerate(recorded.history):
        assert describe(columns.operation(number)) == describe(op)
    return columns


@pytest.mark.parametrize("seed", range(12))
def test_files_give_the_same_columns(seed: int, tmp_path: Path) -> None:
    """Every column and every row is what the operations and deliveries give, and each operation can be found again."""
    recorded = random_story(seed, 120).told()
    columns = _same(tmp_path, recorded)
    part = examine(columns, tombstone=recorded.observed.tombstone)
    assert not part.findings.counts
    assert not part.findings.doubts


@pytest.mark.parametrize("seed", range(8))
def test_files_of_bent_histories_give_the_same_columns(seed: int, tmp_path: Path) -> None:
    """Whatever answers say: what is of a common shape from its file is so from its operation, and the other way."""
    chance = random.Random(seed)
    recorded = random_story(seed, 150).told()
    _same(tmp_path, recorded._replace(history=[bent(chance, op) for op in recorded.history]))


def _swaps(seed: int, reads: Sequence[str]) -> Recorded:
    """Give a run of the plainest transactions, of which each swaps and reads, or reads, among reads and deletes."""
    chance, story = random.Random(seed), Story()
    for number in range(150):
        name = chance.choice("abc")
        kv = story.model.get(key(name))
        seen = kv.mod_revision if kv and number % 3 else 0
        swap = Put(key(name), value(story.next_id()))
        compare = Compare(key(name), "mod_revision", "=", seen)
        looks = [Range(key(each or name)) for each in reads]
        story.do(Txn((compare,), (looks[0], swap, *looks[1:]), (Range(key(name)),)))
        story.do(Delete(key(name)) if not number % 10 else Range(key(name)))
    return story.told()


@pytest.mark.parametrize("share", [1, 0.1])
@pytest.mark.parametrize("reads", [["b"], ["b", ""]], ids=["one read", "two"])
@pytest.mark.parametrize("seed", range(4))
def test_files_of_bent_swaps_give_the_same_columns(
    seed: int, reads: list[str], share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plainest transactions, reads and puts, which are taken many at a time, with one thing otherwise in some."""
    monkeypatch.setattr("etcdops.verify.files._BLOCK", 3000)
    chance, recorded = random.Random(seed), _swaps(seed, reads)
    history = [bent(chance, op) if chance.random() < share else op for op in recorded.history]
    _same(tmp_path, recorded._replace(history=history))


def _leave(taker: Any, lines: Any, first: int, flags: Any, places: list[int], raws: list[bytes]) -> Any:
    return places, raws


def test_swaps_are_taken_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of swaps that are as they should be, done or not, none is left to be taken one by one; of others all are."""
    left: list[int] = []

    def take(taker: Any, lines: Any, first: int, flags: Any, places: list[int], raws: list[bytes]) -> Any:
        rest = take_swaps(taker, lines, first, flags, places, raws)
        left.append(len(rest[0]))
        return rest

    monkeypatch.setattr("etcdops.verify.blocks.take_swaps", take)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, reads in zip(folders, (["b"], ["b", ""]), strict=True):
        folder.mkdir()
        _same(folder, _swaps(1, reads))
        left.append(-1)
    one, two = left[: left.index(-1)], left[left.index(-1) + 1 : -1]
    assert not any(one)
    assert sum(two) == 150


#: What may be in a line instead of something else, where it is JSON still.
_TEXTS = [
    (b"[1,[[", b"[true,[["),
    (b"[1,[[", b"[2,[["),
    (b"[1,[[", b"[0,[["),
    (b"[0,[[", b"[1,[["),
    (b'"range",[1,0,', b'"range",[1,1,'),
    (b'"range",[1,0,', b'"range",[2,0,'),
    (b'"range",[1,0,', b'"put",[1,0,'),
    (b'"range",[0,0,[]]', b'"range",null'),
    (b'"range",[0,0,[]]', b'"range",[1,0,[]]'),
    (b',"put",null', b',"put",["k","v",1,1,1,0]'),
    (b',"put",null]]', b',"put",null],[1,"put",null]]'),
    (b'"mod_revision"', b'"version"'),
    (b'"mod_revision"', b'"value"'),
    (b'"mod_revision"', b'"weight"'),
    (b'"mod_revision","="', b'"mod_revision","<="'),
    (b'"mod_revision","="', b'"mod_revision","!="'),
    (b'"mod_revision","=",', b'"mod_revision","=",1'),
    (b'"mod_revision","=",', b'"mod_revision","=",1.5,'),
    (b'["txn",[["@a"', b'["txn",[[""'),
    (b'[["range","@b"]', b'[["range",""]'),
    (b'],["put","@a"', b'],["put",""'),
    (b']],[["range","@a"]]]', b']],[["range",""]]]'),
    (b'[["range","@', b'[["range","","@'),
    (b',"put",null', b'0,"put",null'),
    (b',"range",[0', b'0,"range",[0'),
    (b'[["range","@', b'[["delete","@'),
    (b'["put","@', b'["put",7,"@'),
    (b'["put","@', b'["range","@'),
    (b'["txn",', b'["txn",0,'),
    (b'"ok",', b'"ok",1'),
    (b'"ok",', b'"ok","x",'),
    (b'"ok",', b'"ok",null,'),
]


@pytest.mark.parametrize(("was", "text"), _TEXTS)
def test_lines_of_swaps_that_were_changed(
    was: bytes, text: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stands in a swap's line, columns and errors are those of transactions that are taken one by one."""
    recorded = _swaps(2, ["b"])
    _write(tmp_path, recorded)
    path = tmp_path / "history.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    places = [at for at, line in enumerate(lines) if b'["txn"' in line and was in line]
    assert places
    for at in (places[0], places[-1]):
        path.write_bytes(b"".join([*lines[:at], lines[at].replace(was, text, 1), *lines[at + 1 :]]))
        came: list[Any] = []
        for taking in (take_swaps, _leave):
            monkeypatch.setattr("etcdops.verify.blocks.take_swaps", taking)
            try:
                came.append(_facts(_read(tmp_path, recorded)))
            except StateError as error:
                came.append(str(error))
        assert came[0] == came[1]


def _merged(found: list[Delivery]) -> list[Delivery]:
    """Give deliveries that bring two revisions each."""
    made = found[:1]
    for one, two in zip(found[1::2], found[2::2], strict=False):
        made.append(msgspec.structs.replace(two, events=one.events + two.events))
    return made + (found[-1:] if not len(found) % 2 else [])


@pytest.mark.parametrize(
    "bend",
    [
        lambda found: _merged(found),
        lambda found: [*found[:3], Delivery(found[3].t_ns, 1, "progress", 3), *found[3:]],
        lambda found: [*found[:4], *found[2:]],
        lambda found: [found[0], *found[:0:-1]],
        lambda found: found[:5],
        lambda found: [],
        lambda found: [
            *found[:6],
            Delivery(found[6].t_ns, 1, "ended", error="EOF"),
            Delivery(found[6].t_ns, 2, "opened", 6, 7),
            *found[6:],
        ],
    ],
    ids=["merged", "progress", "repeated", "backwards", "short", "empty", "resumed"],
)
@pytest.mark.parametrize("member", [MEMBERS[0], MEMBERS[1]])
def test_members_whose_messages_differ(
    bend: Callable[[list[Delivery]], list[Delivery]], member: str, tmp_path: Path
) -> None:
    """Messages may hold what they like, in whatever order, on any member."""
    recorded = random_story(3, 60).told()
    bent = bend(list(recorded.deliveries[member]))
    _same(tmp_path, recorded._replace(deliveries={**recorded.deliveries, member: bent}))


def test_values_of_every_form_are_told_apart(tmp_path: Path) -> None:
    """The run's own values, those of others, and what only looks like a number of the run's."""
    story = Story(revision=3, kvs=(KeyValue(b"base", b"run1/7", 2, 3, 2, 0),))
    for text in (
        b"run1/1",
        b"run1/01",
        b"run1/",
        b"run1/1:1,2",
        b"=1",
        b"run1/+1",
        b"run1/1_0",
        b"\xff",
        b"~x",
        b"run1/0",
    ):
        story.do(Put(key("a"), text, prev_kv=True))
        story.get("a")
        story.do(Put(b"\xfe", text))
    story.do(Put("run1/\u0663".encode(), b"run1/\xd9\xa3"))
    story.put("big/" + "9" * 30)
    story.do(Put(key("a"), b"run1/" + b"9" * 30))
    story.get("a")
    _same(tmp_path, story.told())


def test_small_blocks_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a block of the file ends makes no difference."""
    for size in (200, 1000):
        monkeypatch.setattr("etcdops.verify.files._BLOCK", size)
        folder = tmp_path / str(size)
        folder.mkdir()
        _same(folder, random_story(5, 60).told())


def test_compressed_and_torn_files(tmp_path: Path) -> None:
    """Files may be compressed; a last line that a kill has torn is left out."""
    recorded = random_story(7, 60).told()
    _write(tmp_path, recorded)
    torn = tmp_path / "own.jsonl"
    torn.write_bytes(torn.read_bytes() + b'[1,"mixed",1,"th')
    for path in list(tmp_path.glob("*.jsonl")):
        compress(path)
    read, known = _facts(_read(tmp_path, recorded)), _facts(_known(recorded))
    assert read == known


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("history.jsonl", b"{", "line 4"),
        ("history.jsonl", b'[1,"mixed",1,"thor",["fly"],1,1,1,"ok",2,null]', "line 4"),
        ("history.jsonl", b'[1,"mixed",1,"thor",["put","k","v"],1,1,1,"perhaps",2,null]', "history"),
        ("events-thor.jsonl", b"[1,2]", "line 4"),
        ("events-thor.jsonl", b'[1,1,1,5,[["k"]]]', "events-thor"),
    ],
)
def test_damaged_files_are_named(name: str, line: bytes, words: str, tmp_path: Path) -> None:
    """What is no record's line is an error that names the file."""
    recorded = random_story(7, 40).told()
    _write(tmp_path, recorded)
    lines = (tmp_path / name).read_bytes().split(b"\n")
    lines[3] = line
    (tmp_path / name).write_bytes(b"\n".join(lines))
    with pytest.raises(StateError, match=name) as caught:
        _read(tmp_path, recorded)
    assert words in str(caught.value)
    (tmp_path / name).write_bytes(b'{"schema":1,"kind":"other","run":"run1"}\n')
    with pytest.raises(StateError, match="a other of schema 1"):
        _read(tmp_path, recorded)
    (tmp_path / name).unlink()
    with pytest.raises(StateError, match="there is no record"):
        _read(tmp_path, recorded)


def test_empty_records(tmp_path: Path) -> None:
    """A run of nothing has columns of nothing."""
    recorded = Recorded(Story().told().observed, [], {member: [] for member in MEMBERS})
    recorded = recorded._replace(observed=msgspec.structs.replace(recorded.observed, states=(State(1, ()),)))
    columns = _same(tmp_path, recorded)
    assert not len(columns.operations.id)
    assert np.array_equal(columns.based, np.empty(0))


class _Here(Helper):
    """Reads its part in this process, once it is asked for it, so that blocks are as small here."""

    def __enter__(self) -> Helper:
        return self

    def part(self) -> Part:
        reader = Reader(RUN, MEMBERS)
        reader.read_pieces(self.pieces)
        part: Part = pickle.loads(pickle.dumps(reader.part()))
        return part


@pytest.fixture
def processors(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let histories of any size be shared among the processes for so many processors."""
    monkeypatch.setattr("etcdops.verify.helping._WORTH", 0)
    return lambda count: monkeypatch.setattr("etcdops.verify.helping._processors", lambda: count)


@pytest.mark.parametrize("seed", range(8))
def test_parts_give_the_same(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processors: Callable[[int], None]
) -> None:
    """A history that is read in parts, by two to four processes, gives what it gives as one."""
    processors(2 + seed % 3)
    monkeypatch.setattr("etcdops.verify.files._BLOCK", 700)
    monkeypatch.setattr("etcdops.verify.reading.Helper", _Here)
    chance = random.Random(seed)
    recorded = random_story(seed, 200).told()
    folders = [tmp_path / "plain", tmp_path / "bent"]
    for folder, history in zip(folders, (recorded.history, [bent(chance, op) for op in recorded.history]), strict=True):
        folder.mkdir()
        _same(folder, recorded._replace(history=history))
    own, rest = shared([folders[0] / "history.jsonl", folders[0] / "own.jsonl"])
    assert len(rest) == 1 + seed % 3
    assert all(rest), (own, rest)


@pytest.fixture
def long_story(tmp_path: Path) -> Recorded:
    """A run whose history has several blocks, in its files."""
    recorded = random_story(3, 3000).told()
    _write(tmp_path, recorded)
    return recorded


def test_processes_beside_us(long_story: Recorded, tmp_path: Path, processors: Callable[[int], None]) -> None:
    """What other processes have read, of plain files and of compressed ones, is what one alone reads."""
    known = _facts(_known(long_story))
    processors(3)
    assert _facts(_read(tmp_path, long_story)) == known
    for path in list(tmp_path.glob("*.jsonl")):
        compress(path)
    assert _facts(_read(tmp_path, long_story)) == known


def test_a_process_that_dies_or_finds_damage(
    long_story: Recorded, tmp_path: Path, processors: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process leaves unread we read ourselves; what it finds damaged is told as if we had found it."""
    processors(2)
    begun: list[subprocess.Popen[bytes]] = []
    start = Helper.__enter__

    def die(self: Helper) -> Helper:
        start(self)
        assert self._process is not None
        begun.append(self._process)
        self._process.kill()
        return self

    with monkeypatch.context() as patch:
        patch.setattr(Helper, "__enter__", die)
        assert _facts(_read(tmp_path, long_story)) == _facts(_known(long_story))
    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", str(tmp_path / "no-such-python"))
        assert _facts(_read(tmp_path, long_story)) == _facts(_known(long_story))
    last = tmp_path / "own.jsonl"
    lines = last.read_bytes().splitlines(keepends=True)
    last.write_bytes(b"".join([*lines[:-2], b"[1]\n", lines[-1]]))
    with pytest.raises(StateError, match=rf"own\.jsonl.*line {len(lines) - 1}"):
        _read(tmp_path, long_story)
    assert [process.wait(30) for process in begun] == [-9]


def test_an_interrupt_leaves_no_process(long_story: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the process beside us whether it comes as that begins, while it reads, or while we wait for it."""
    begun: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            begun.append(self)

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("subprocess.Popen", Noted)
    pieces = [whole(tmp_path / "history.jsonl")]
    with pytest.raises(KeyboardInterrupt), Helper(RUN, MEMBERS, pieces):
        raise KeyboardInterrupt
    for name in ("load", "dump"):
        with monkeypatch.context() as patch:
            patch.setattr(f"pickle.{name}", interrupt)
            with pytest.raises(KeyboardInterrupt), Helper(RUN, MEMBERS, pieces) as helper:
                helper.part()
    assert len(begun) == 3
    assert all(process.returncode is not None for process in begun)
