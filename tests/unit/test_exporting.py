"""Runs of our own as Jepsen's histories: what becomes of each operation, and that others can read all of it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from invoke.context import Context
from invoke.exceptions import Exit

from etcdops.answers import KeyValue, TxnResult
from etcdops.errors import Refused, SpecError
from etcdops.histories.checking import check_foreign
from etcdops.histories.exporting import EXPORT_FORMATS, Exported, export_history, write_export
from etcdops.histories.generated import generate
from etcdops.histories.requests import REGISTER
from etcdops.model import Model
from etcdops.ops import Compare, Delete, Put, Range, Txn
from etcdops.report.exporting import export_run
from etcdops.report.runinfo import RunInfo, write_run
from etcdops.spec import Timing
from etcdops.tasks.exporting import export
from etcdops.verify.activity import Minimum
from etcdops.verify.models import Event
from etcdops.verify.recorded import Recorded
from etcdops.verify.registers import registers_of
from etcdops.verify.search import search
from etcdops.workload.history import HistoryWriter, Operation
from etcdops.workload.profiles import load
from etcdops.workload.profiles.base import Setting
from tests.unit.cases import SCALE, Scripted, key, small, value
from tests.unit.mutations import MUTATIONS

#: What porcupine's tests understand of a log (porcupine_test.go, parseJepsenLog), and which calls they join. Whatever
#: else is in a log is passed over, so that a call without its answer stays open.
_CALLS = [r":invoke\s+:read\s+nil", r":invoke\s+:write\s+\d+", r":invoke\s+:cas\s+\[\d+\s+\d+\]"]
_ANSWERS = [
    r":ok\s+:read\s+(?:nil|\d+)",
    r":ok\s+:write\s+\d+",
    r":(?:ok|fail)\s+:cas\s+\[\d+\s+\d+\]",
    r":fail\s+:read\s+:timed-out",
]


def _key(name: str) -> bytes:
    return f"etcdops/run1/{name}".encode()


def _cas(old: int, new: int, k: bytes = _key("r/1")) -> Txn:
    expected = Compare(k, "value", "=", value(old)) if old else Compare(k, "create_revision", "=", 0)
    return Txn((expected,), (Put(k, value(new)), Range(k)), (Range(k),))


def _registers() -> Recorded:
    """One key, and everything that can become of its operations."""
    run, k = Scripted(), _key("r/1")
    run.do(_cas(0, 1), 0, 1)
    run.do(Put(k, value(2)), 2, 3)
    run.do(_cas(1, 3), 4, 5)
    run.do(Range(k), 6, 7)
    run.say(Range(k), 8, 9, None, outcome="failed", code="UNAVAILABLE")
    run.say(Put(k, value(6)), 10, 11, None, outcome="failed", code="RESOURCE_EXHAUSTED")
    run.unknown(Put(k, value(7)), 12, 13)
    run.unknown(_cas(7, 8), 14, 15, applied=False)
    run.do(Delete(k), 16, 17)
    run.do(Range(k), 18, 19)
    run.do(Range(k, serializable=True), 20, 21)
    run.do(Range(_key("r/"), _key("r0")), 22, 23)
    return run.recorded()


def _exported(recorded: Recorded, **choices: Any) -> Exported:
    assert recorded.base is not None
    return export_history(recorded.history, "run1", base=recorded.base.kvs, **choices)


def test_operations_become_jepsens() -> None:
    """Each has Jepsen's word and outcome; a delete writes 0, which is what a key that is not there holds."""
    said = [(e.f, e.key, e.arguments, e.outcome, e.answer) for e in _exported(_registers()).events]
    assert said == [
        ("write", "r/1", (0,), "ok", None),
        ("cas", "r/1", (0, 1), "ok", True),
        ("write", "r/1", (2,), "ok", None),
        ("cas", "r/1", (1, 3), "ok", False),
        ("read", "r/1", (), "ok", 2),
        ("read", "r/1", (), "failed", None),
        ("write", "r/1", (6,), "failed", None),
        ("write", "r/1", (7,), "unknown", None),
        ("cas", "r/1", (7, 8), "unknown", None),
        ("write", "r/1", (0,), "ok", None),
        ("read", "r/1", (), "ok", 0),
    ]


def test_edn_is_as_jepsen_writes_it() -> None:
    """Values are `[key value]`; a failed read is :fail; a write without an answer is :info and ends its process."""
    recorded = _registers()
    history = [msgspec.structs.replace(op, process=0 if op.id < 8 else op.process) for op in recorded.history]
    lines = list(_exported(recorded._replace(history=history)).lines())
    assert lines[0].startswith('{:index 0, :time 0, :type :invoke, :process 11, :f :write, :value ["r/1" 0]}')
    assert [re.sub(r".*:type (.*)\}", r"\1", line) for line in lines if ":fail" in line or ":info" in line] == [
        ':fail, :process 0, :f :cas, :value ["r/1" [1 3]]',
        ':fail, :process 0, :f :read, :value ["r/1" nil], :error :failed',
        ':fail, :process 0, :f :write, :value ["r/1" 6], :error :failed',
        ':info, :process 0, :f :write, :value ["r/1" 7], :error :unknown',
        ':info, :process 8, :f :cas, :value ["r/1" [7 8]], :error :unknown',
    ]
    assert not any(":process 0," in line for line in lines[lines.index(next(x for x in lines if ":info" in x)) + 1 :])


def test_log_has_nothing_that_porcupine_passes_over() -> None:
    """Every call is understood, and every answer but those of writes whose outcome is not known."""
    lines = list(_exported(_registers(), format="etcd-log").lines())
    for line in lines:
        found = re.fullmatch(r"INFO\s+jepsen\.util\s+-\s+(\d+)\s+(:.*)", line)
        assert found, line
        known = any(re.fullmatch(pattern, found[2]) for pattern in [*_CALLS, *_ANSWERS])
        assert known or found[2] in (":info\t:write\t:unknown", ":info\t:cas\t:unknown"), line
    assert sum(":invoke" in line for line in lines) == 10
    assert lines[0].endswith(":invoke\t:write\t0")


@pytest.mark.parametrize("format", sorted(EXPORT_FORMATS))
def test_what_is_exported_has_the_verdict_of_the_record(tmp_path: Path, format: str) -> None:
    """A run's registers have an order in a file if they have one as recorded, or the file alone knows too little."""
    said: Counter[tuple[str, str]] = Counter()
    for seed in range(30 * SCALE):
        settings = small(seed, operations=14, mix=REGISTER, keys=1, base_keys=0, foreign=0, fault=0.0)
        legal = generate(settings)
        changed = [MUTATIONS[name](legal, Random(seed)) for name in Random(seed).sample(sorted(MUTATIONS), 3)]
        for number, recorded in enumerate((legal, *changed)):
            found = registers_of(recorded.history, _key("k/0").__eq__).found if recorded else {}
            if recorded is None or not found:
                continue
            ours = search([event for each in found.values() for _, event in each]).result
            file = tmp_path / f"{seed}-{number}"
            write_export(_exported(recorded, format=format, key="k/0"), file)
            theirs = check_foreign(file).verdict
            said[ours, theirs] += 1
            assert (ours, theirs) in {("passed", "passed"), ("failed", "failed"), ("failed", "passed")}
    assert said["passed", "passed"] > 20
    assert said["failed", "failed"] >= 2
    assert said["failed", "passed"] <= said["failed", "failed"]


def test_values_that_are_not_the_runs_get_numbers() -> None:
    """What the store held before is written first, and no two values share a number."""
    model = Model()
    model.apply(Put(_key("r/1"), b"foreign"))
    run, k = Scripted(model), _key("r/1")
    run.do(Range(k), 0, 1)
    run.do(Put(k, value(2)), 2, 3)
    run.do(Put(k, value(2) + b":7"), 4, 5)
    run.do(Range(k), 6, 7)
    told = [(e.f, *e.arguments, e.answer) for e in _exported(run.recorded()).events]
    old, odd = told[0][1], told[3][1]
    assert told == [("write", old, None), ("read", old), ("write", 2, None), ("write", odd, None), ("read", odd)]
    assert len({old, odd, 0, 2}) == 4


def test_keys_that_are_no_registers_are_left_out() -> None:
    """Each with the operation for which it is none; the others are written."""
    run = Scripted()
    run.do(Put(_key("r/1"), value(1)), 0, 1)
    run.do(Put(_key("r/2"), value(2)), 2, 3)
    run.do(Delete(_key("r/2"), _key("r/3")), 4, 5)
    run.do(Txn((Compare(_key("r/3"), "value", "=", b"x"),), (), (Put(_key("r/3"), value(4)),)), 6, 7)
    exported = _exported(run.recorded())
    assert (exported.keys, exported.left_out) == (("r/1",), {"r/2": 3, "r/3": 4})
    with pytest.raises(Refused, match="the key r/2 of run1 is no register: operation 3 writes it"):
        _exported(run.recorded(), key="r/2")


def test_one_key_can_be_named() -> None:
    """With or without the run's prefix; any key will do that is a register."""
    run = Scripted()
    run.do(Put(key("a"), value(1)), 0, 1)
    run.do(Put(_key("r/1"), value(2)), 2, 3)
    for name in ("k/a", "etcdops/run1/k/a"):
        assert _exported(run.recorded(), key=name).keys == ("k/a",)
    assert _exported(run.recorded()).keys == ("r/1",)


@pytest.mark.parametrize(
    ("choices", "kind", "says"),
    [
        ({"format": "csv"}, SpecError, "the format 'csv' is not known"),
        ({"model": "mutex"}, SpecError, "the model 'mutex' is not known"),
        ({"format": "etcd-log"}, SpecError, "an etcd log has one register, and run1 has 2"),
        ({"format": "etcd-log", "model": "append"}, SpecError, "an etcd log has one register, and no transactions"),
        ({"model": "append", "key": "r/1"}, SpecError, "--key is for registers"),
        ({"model": "append"}, Refused, "there are no transactions on lists in run1"),
        ({"key": "r/9"}, Refused, "nothing was asked of the key r/9 in run1"),
    ],
)
def test_what_cannot_be_written_is_refused(choices: dict[str, str], kind: type[Exception], says: str) -> None:
    """An error says what there is not, and what to choose instead."""
    run = Scripted()
    run.do(Put(_key("r/1"), value(1)), 0, 1)
    run.do(Put(_key("r/2"), value(2)), 2, 3)
    with pytest.raises(kind, match=re.escape(says)) as raised:
        _exported(run.recorded(), **choices)
    assert getattr(raised.value, "remedy", "")


def test_run_without_either_is_refused() -> None:
    """A run of another profile has neither registers nor lists."""
    run = Scripted()
    run.do(Put(key("a"), value(1)), 0, 1)
    for choices in ({}, {"model": "register"}):
        with pytest.raises(Refused, match=r"there are no (registers|transactions on lists) in run1"):
            _exported(run.recorded(), **choices)


# -- lists


def _lists(seed: int = 0) -> Recorded:
    """What the append profile asks of a store that is right; some operations fail, and some have no answer."""
    client = load("append", Setting(run="run1", seed=seed, clients=1, keys=2)).client(0)
    run = Scripted()
    for number in range(1, 41):
        request = client.next(number, 0.0)
        assert isinstance(request, Txn)
        at = 10 * number
        reads = not any(isinstance(each, Put) for each in request.success)
        if number % 7 == 0:
            run.say(request, at, at + 5, None, outcome="failed", code="UNAVAILABLE")
            client.ended(number, request, "failed", None, 0.0)
        elif number % 5 == 0 and not reads:
            run.unknown(request, at, at + 5, applied=number % 2 == 0)
            client.ended(number, request, "unknown", None, 0.0)
        else:
            client.ended(number, request, "ok", run.do(request, at, at + 5), 0.0)
    return run.recorded()


def test_transactions_on_lists_become_elles(tmp_path: Path) -> None:
    """Reads come before appends, elements are operations' ids, and what did not hold its comparisons only read."""
    recorded = _lists()
    exported = _exported(recorded)
    assert (exported.model, exported.form) == ("append", "edn")
    by_call = sorted(exported.events, key=lambda event: event.call)
    ours = [op for op in sorted(recorded.history, key=lambda op: op.call_ns) if isinstance(op.request, Txn)]
    outcomes = Counter(
        (op.outcome, any(f == "append" for f, _, _ in e.arguments)) for op, e in zip(ours, by_call, strict=True)
    )
    assert {"ok", "failed", "unknown"} == {outcome for outcome, _ in outcomes}
    for op, event in zip(ours, by_call, strict=True):
        appends = [micro for micro in event.arguments if micro[0] == "append"]
        assert [f for f, _, _ in event.arguments] == sorted((f for f, _, _ in event.arguments), reverse=True)
        assert all(micro[2] == op.id for micro in appends)
        if isinstance(op.answer, TxnResult):
            puts = any(isinstance(each, Put) for each in op.request.success) if isinstance(op.request, Txn) else False
            assert bool(appends) == (op.answer.succeeded and puts)
    write_export(exported, tmp_path / "lists.edn")
    assert check_foreign(tmp_path / "lists.edn", model="append").verdict == "passed"
    text = (tmp_path / "lists.edn").read_text()
    assert re.search(r':type :ok, .*:f :txn, :value \[\[:r "l/1" \[\d+ \d+', text)
    assert re.search(r':type :info, .*:value \[\[:r "l/\d" nil\] .*\[:append "l/\d" \d+\]\], :error :unknown', text)


def test_transaction_whose_comparisons_do_not_hold_only_reads() -> None:
    """What it asked for is not what it did: it is written as the reads that it came down to."""
    run, k = Scripted(), _key("l/1")
    append = Txn((Compare(k, "mod_revision", "=", 0),), (Range(k), Put(k, value(1) + b":1")), (Range(k),))
    run.do(append, 0, 1)
    run.do(append._replace(success=(Range(k), Put(k, value(2) + b":2"))), 2, 3)
    assert [(event.arguments, event.answer) for event in _exported(run.recorded()).events] == [
        ((("r", "l/1", None), ("append", "l/1", 1)), (("r", "l/1", ()), ("append", "l/1", 1))),
        ((("r", "l/1", None),), (("r", "l/1", (1,)),)),
    ]


def test_lost_append_is_found_in_what_is_exported(tmp_path: Path) -> None:
    """An element that was acknowledged and is not there for a later read is an anomaly for who reads the file."""
    run, k = Scripted(), _key("l/1")
    append = Txn((Compare(k, "mod_revision", "=", 0),), (Range(k), Put(k, value(1) + b":1")), (Range(k),))
    run.do(append, 0, 1)
    run.say(Txn((), (Range(k),), ()), 2, 3, Model().evaluate(Txn((), (Range(k),), ()))[0])
    write_export(_exported(run.recorded(), format="json"), tmp_path / "lists.json")
    result = check_foreign(tmp_path / "lists.json", model="append")
    assert result.verdict == "failed"
    assert "G-single-item-realtime" in result.detail


def test_lists_that_were_there_are_appended_first() -> None:
    """In a window that begins with lists, their elements are appended before all else."""
    k, other = _key("l/1"), _key("l/2")
    base = [KeyValue(each, value(9) + b":3,9", 5, 5, 1, 0) for each in (k, other)]
    look = Txn((), (Range(k),), ())
    answer = Model.at(5, base).evaluate(look)[0]
    exported = export_history([Operation(1, "s", 0, "thor", look, 5, 5, 6, "ok", 5, answer)], "run1", base=base)
    held = (("append", "l/1", 3), ("append", "l/1", 9))
    assert exported.events == (
        Event("before", "txn", None, held, "ok", held, 0, 1),
        Event(0, "txn", None, (("r", "l/1", None),), "ok", (("r", "l/1", (3, 9)),), 2, 3),
    )


# -- from a folder


def _folder(path: Path) -> Path:
    info = RunInfo(
        schema=1, run="run1", drill="no-fault", options={}, seed=1, rate=10, profile="register", clients=1,
        client_rate=1, baseline_s=0.0, minimum=Minimum(), failover_rule="", cluster="lab", runtime="process",
        etcd_version="3.5.30", binary="", known_bad=(), timing=Timing(), members=("thor",), command=(), python="",
        kernel="", cpus=1, began="", began_ns=0,
    )  # fmt: skip
    path.mkdir()
    write_run(info, path)
    recorded = _registers()
    with HistoryWriter(path / "history.jsonl", "run1") as writer:
        for op in recorded.history:
            writer.append(op)
    (path / "observed.json").write_bytes(msgspec.json.encode(recorded.observed))
    return path


def test_a_runs_folder_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The task writes to stdout, or to a file that was not there; it says on stderr what it wrote."""
    folder = _folder(tmp_path / "run1")
    assert export_run(folder).events == _exported(_registers()).events
    export(Context(), str(folder))
    shown = capsys.readouterr()
    assert shown.out.splitlines() == list(export_run(folder).lines())
    assert "11 operations on r/1 of run1" in shown.err

    target = tmp_path / "out.log"
    export(Context(), str(folder), format="etcd-log", key="r/1", to=str(target))
    assert capsys.readouterr().out == ""
    assert check_foreign(target).verdict == "passed"
    before = target.read_bytes()
    with pytest.raises(Exit, match="is there already, and nothing is overwritten") as raised:
        export(Context(), str(folder), to=str(target))
    assert raised.value.code == 3
    assert target.read_bytes() == before


def test_windows_and_runs_that_were_killed(tmp_path: Path) -> None:
    """A window that there is not is an error; a run without its end is written as far as it went."""
    folder = _folder(tmp_path / "run1")
    with pytest.raises(SpecError, match="run1 has no window 2"):
        export_run(folder, window=2)
    (folder / "observed.json").unlink()
    assert len(export_run(folder).events) == 11
