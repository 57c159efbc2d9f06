"""Jepsen's histories: what is read from each of their forms, what is written, and what `check` says of them."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from invoke.context import Context
from invoke.exceptions import Exit

from etcdops.errors import Refused, SpecError
from etcdops.histories.checking import check_foreign
from etcdops.histories.edn import EdnError, Keyword, dumps, read_values
from etcdops.histories.jepsen import Form, read_jepsen, write_jepsen
from etcdops.tasks.checking import check
from etcdops.verify.models import Event
from etcdops.verify.search import Budget, search
from tests.unit.test_search import PLAIN, histories, op

# -- EDN


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("nil", None),
        ("[true false -3 4.5 6N 1e3]", (True, False, -3, 4.5, 6, 1000.0)),
        ('"a \\"b\\" \\n \\u00e9"', 'a "b" \n é'),
        (
            "{:type :invoke, :value [[:append 5 1] [:r 6 nil]]}",
            {"type": "invoke", "value": (("append", 5, 1), ("r", 6, None))},
        ),
        ("#jepsen.history.Op{:index 0 #_ ignored :f :read}", {"index": 0, "f": "read"}),
        ("(1 ; a comment )\n 2)", (1, 2)),
        ("#{1}", (1,)),
        ("[#_1 #_[2 3] 4 \\a \\newline]", (4, "a", "\n")),
        ('#inst "2020-01-01"', "2020-01-01"),
    ],
)
def test_edn_is_read(text: str, value: Any) -> None:
    """Values, tags, comments and what is discarded are read as EDN has them; tags themselves are dropped."""
    assert [each for _, each in read_values(text)] == [value]


@pytest.mark.parametrize(
    ("text", "at"), [("[1 2", 0), ("[1 2}", 4), ("  )", 2), ("{:a}", 0), ("[1x]", 1), ('"never', 0), ("[1 #_]", 0)]
)
def test_what_is_no_edn_is_an_error_with_its_place(text: str, at: int) -> None:
    """An error says where in the text it is."""
    with pytest.raises(EdnError) as raised:
        list(read_values(text))
    assert raised.value.at == at


_keywords = st.from_regex(r"[a-z][a-z0-9-]*", fullmatch=True).map(Keyword)
_edn = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | _keywords,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.integers(), inner, max_size=2),
    max_leaves=6,
)


@given(_edn)
@settings(deadline=None, max_examples=80)
def test_what_is_written_as_edn_is_read_back(value: Any) -> None:
    """Reading undoes writing, keywords and strings apart."""
    [(_, found)] = read_values(dumps(value))
    assert found == value
    assert repr(found) == repr(value)


# -- reading


def read(tmp_path: Path, text: str) -> list[Event]:
    file = tmp_path / "history"
    file.write_text(text, encoding="utf-8")
    return read_jepsen(file)


LOG = """\
INFO  jepsen.util - 0\t:invoke\t:read\tnil
INFO  jepsen.util - 1\t:invoke\t:write\t3
INFO  jepsen.util - 1\t:ok\t:write\t3
INFO  jepsen.util - 0\t:ok\t:read\tnil
INFO  jepsen.util - 1\t:invoke\t:cas\t[1 4]
INFO  jepsen.util - 1\t:fail\t:cas\t[1 4]
INFO  jepsen.util - 0\t:invoke\t:read\tnil
INFO  jepsen.util - 0\t:fail\t:read\t:timed-out
INFO  jepsen.util - 2\t:invoke\t:cas\t[1 2]
INFO  jepsen.util - 2\t:info\t:cas\t:timed-out
INFO  jepsen.util - 7\t:invoke\t:write\t5
"""
READ_FROM_LOG = [
    Event(0, "read", None, (), "ok", None, 0, 3, 1),
    Event(1, "write", None, (3,), "ok", None, 1, 2, 2),
    Event(1, "cas", None, (1, 4), "ok", False, 4, 5, 5),
    Event(0, "read", None, (), "failed", None, 6, 7, 7),
    Event(2, "cas", None, (1, 2), "unknown", None, 8, 9, 9),
    Event(7, "write", None, (5,), "unknown", None, 10, None, 11),
]


def test_a_log_is_read(tmp_path: Path) -> None:
    """A text log gives each operation and its outcome: a failed compare is an answer; without one it is unknown."""
    assert read(tmp_path, LOG) == READ_FROM_LOG


def test_other_lines_of_a_log_are_passed_over(tmp_path: Path) -> None:
    """What else a logger writes, the nemesis and history.txt's bare lines are no obstacle."""
    lines = LOG.splitlines()
    lines[0] = "2020-01-02 03:04:05,678{GMT}\tINFO\t[jepsen worker 3] jepsen.util: 0\t:invoke\t:read\tnil"
    lines[1] = "1    :invoke   :write  3"
    lines[4:4] = ["INFO  jepsen.core - Worker 3 starting", 'INFO  jepsen.util - :nemesis\t:info\t:start\t"cut off"', ""]
    assert [msgspec.structs.replace(e, line=0) for e in read(tmp_path, "\n".join(lines))] == [
        msgspec.structs.replace(e, line=0) for e in READ_FROM_LOG
    ]


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("form", ["edn", "json"])
def test_maps_are_read(tmp_path: Path, form: Form, vector: bool) -> None:
    """EDN and JSON, one operation a line or all in a vector, give the same operations and their lines."""
    file = tmp_path / "history"
    write_jepsen(READ_FROM_LOG, file, form=form)
    text = file.read_text()
    if vector:
        text = "[" + (",\n" if form == "json" else "\n").join(text.splitlines()) + "]\n"
    assert read(tmp_path, text) == READ_FROM_LOG
    (tmp_path / "zipped.gz").write_bytes(gzip.compress(text.encode()))
    assert read_jepsen(tmp_path / "zipped.gz") == READ_FROM_LOG


def test_independent_keys_and_versions_are_taken_apart(tmp_path: Path) -> None:
    """`[key value]` is several registers, and jepsen.etcd's `[version value]` is its value; :key names one as well."""
    keyed = """
    {:process 0, :type :invoke, :f :read, :value [8 [nil nil]]}
    {:process 0, :type :ok, :f :read, :value [8 [1 4]]}
    {:process 1, :type :invoke, :f :cas, :value [9 [nil [4 5]]]}
    {:process 1, :type :ok, :f :cas, :value [9 [2 [4 5]]]}
    {:process 1, :type :invoke, :f :write, :value [9 [nil 6]]}
    {:process 1, :type :ok, :f :write, :value [9 [3 6]]}
    """
    found = [(e.f, e.key, e.arguments, e.answer) for e in read(tmp_path, keyed)]
    assert found == [("read", 8, (), 4), ("cas", 9, (4, 5), True), ("write", 9, (6,), None)]
    named = """{:process 0, :type :invoke, :f :put, :key "a", :value "x"}
    {:process 0, :type :ok, :f :put, :key "a", :value "x"}"""
    assert [(e.f, e.key, e.arguments) for e in read(tmp_path, named)] == [("write", "a", ("x",))]
    plain = """{:process 0, :type :invoke, :f :read, :value nil}
    {:process 0, :type :ok, :f :read, :value [8 4]}"""
    assert [(e.key, e.answer) for e in read(tmp_path, plain)] == [(None, (8, 4))]


def test_transactions_are_read(tmp_path: Path) -> None:
    """A transaction keeps what was asked, and what was answered where it was."""
    text = """{:process 0, :type :invoke, :f :txn, :value [[:append 5 1] [:r 6 nil]]}
    {:process 0, :type :ok, :f :txn, :value [[:append 5 1] [:r 6 [1 2]]]}
    {:process 0, :type :invoke, :f :txn, :value [[:append 5 2]]}
    {:process 0, :type :info, :f :txn, :value [[:append 5 2]], :error :timeout}"""
    first, second = read(tmp_path, text)
    assert first.arguments == (("append", 5, 1), ("r", 6, None))
    assert first.answer == (("append", 5, 1), ("r", 6, (1, 2)))
    assert (second.outcome, second.answer) == ("unknown", None)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("INFO  jepsen.util - 0\t:invoke\t:read\tnil\nnonsense\n", 2, "neither an operation nor a line of a log"),
        ("INFO  jepsen.util - 0\t:invoke\t:cas\t[1\n", 1, "is no value"),
        ("INFO  jepsen.util - 0\t:ok\t:read\t3\n", 1, "an answer without a call"),
        ("0 :invoke :read nil\n0 :invoke :read nil\n", 2, "process 0 calls again, and that of line 1"),
        ("0 :invoke :read nil\n0 :ok :write 3\n", 2, "called read (line 1), and write is answered"),
        ("0 :invoke :write 3\n0 :ok :write 4\n", 2, "called with 3 and answered with 4"),
        ("0 :invoke :cas 3\n0 :ok :cas 3\n", 1, "an old and a new value"),
        ("0 :invoke :enqueue 3\n0 :ok :enqueue 3\n", 1, "enqueue is not known"),
        ("{:type :invoke, :f :read, :process 0}\n\n{:type", 3, "no EDN"),
        ("[{:type :invoke, :f :read, :process 0}\n {:type :oops}]", 2, "the :type of an operation is"),
        ('{"type": "invoke", "f": "read", "process": 0}\n{"type": }', 2, "no JSON"),
        ("{:type :invoke, :f :read, :process 0}\n7", 2, "'7' is no operation"),
        ("{:type :invoke, :f :txn, :process 0, :value [[:w 1 2]]}", 1, "neither [:append key element] nor"),
        ("{:type :invoke, :f :write, :process 0, :value {:a 1}}", 1, "is a map"),
        ("\n", 1, "there is no operation"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    """What cannot be understood is refused with the file, the line and what is wrong there."""
    with pytest.raises(SpecError) as raised:
        read(tmp_path, text)
    assert str(raised.value).startswith(f"{tmp_path / 'history'}, line {line}: ")
    assert says in str(raised.value)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """A file that is not there, a torn archive and bytes that are no text are errors that say so."""
    with pytest.raises(Refused, match=r"cannot read the history .*absent: No such file"):
        read_jepsen(tmp_path / "absent")
    (tmp_path / "torn.gz").write_bytes(gzip.compress(LOG.encode())[:-20])
    with pytest.raises(Refused, match=r"cannot read the history .*torn\.gz"):
        read_jepsen(tmp_path / "torn.gz")
    (tmp_path / "bytes").write_bytes(b"{:a 1}\n\xff\xfe")
    with pytest.raises(SpecError, match="line 2: this is no text"):
        read_jepsen(tmp_path / "bytes")


# -- writing


@pytest.mark.parametrize("form", ["edn", "json", "log"])
def test_what_is_written_is_read_back(tmp_path: Path, form: Form) -> None:
    """A generated history comes back with the same operations, the same concurrency and the same verdict."""
    for seed in range(60):
        kinds = [*PLAIN, "delete"] if seed % 2 else PLAIN
        events = histories(seed, 12, kinds=kinds, keys=1 + seed % 3, values=3)
        write_jepsen(events, tmp_path / "out", form=form)
        back = read_jepsen(tmp_path / "out")
        order = sorted(range(len(events)), key=lambda i: (events[i].call, i))
        ours = [events[i] for i in order]
        assert [(e.f, e.key, e.arguments, e.outcome, e.answer) for e in back] == [
            (e.f, e.key, e.arguments, e.outcome, e.answer) for e in ours
        ]
        for i, a in enumerate(ours):
            for j, b in enumerate(ours):
                if a.outcome == "ok":
                    assert (back[i].return_ or 0) >= back[i].call
                    assert ((back[i].return_ or 0) < back[j].call) == ((a.return_ or 0) < b.call)
        assert search(back).result == search(events).result


def test_a_process_that_crashed_goes_on_under_another_number(tmp_path: Path) -> None:
    """After a call without an answer, and while another call is under way, a process has a new number."""
    events = [
        op("a", "write", 1, at=(0, 1), outcome="unknown", key=None),
        op("a", "write", 2, at=(2, 4), key=None),
        op("a", "read", at=(3, 3), answer=2, key=None),
        op("a", "read", at=(5, 6), answer=2, key=None),
    ]
    write_jepsen(events, tmp_path / "out")
    processes = [event.process for event in read_jepsen(tmp_path / "out")]
    assert sorted(map(str, processes[:3])) == ["0", "1", "2"]
    assert processes[3] in processes[1:3]


def test_transactions_and_locks_are_written(tmp_path: Path) -> None:
    """Appends are written as Elle reads them, and a lock as Knossos does."""
    done = (("append", 5, 1), ("r", 6, (1, 2)))
    txn = Event(0, "txn", None, (("append", 5, 1), ("r", 6, None)), "ok", done, 0, 1, 1)
    write_jepsen([txn], tmp_path / "out")
    assert ":f :txn, :value [[:append 5 1] [:r 6 [1 2]]]}" in (tmp_path / "out").read_text()
    assert read_jepsen(tmp_path / "out") == [txn]
    write_jepsen([op(0, "acquire", at=(0, 1), key=None)], tmp_path / "out", form="log")
    assert "0\t:ok\t:acquire\tnil" in (tmp_path / "out").read_text()


@pytest.mark.parametrize(
    "event",
    [
        op(1, "swap", 1, at=(0, 1), answer=2),
        Event(1, "range", None, ("a",), "ok", (1,), 0, 1),
        Event(1, "txn", None, ((("a", 1),), (), ()), "unknown", None, 0, None),
    ],
    ids=lambda event: event.f,
)
def test_what_jepsen_has_no_word_for_is_refused(tmp_path: Path, event: Event) -> None:
    """What would be read as something else is not written, and no file is left."""
    with pytest.raises(SpecError, match="Jepsen's histories have no"):
        write_jepsen([event], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- verdicts

STALE = LOG + "INFO  jepsen.util - 8\t:invoke\t:read\tnil\nINFO  jepsen.util - 8\t:ok\t:read\t9\n"


def _file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "history.log"
    path.write_text(text)
    return str(path)


def test_a_foreign_history_gets_a_verdict(tmp_path: Path) -> None:
    """A history passes, or fails with the lines that show it, or runs out of its budget, or has nothing to judge."""
    passed = check_foreign(_file(tmp_path, LOG))
    assert (passed.verdict, passed.exit_code) == ("passed", 0)
    assert (passed.operations, passed.acknowledged, passed.unknown) == (6, 3, 2)
    failed = check_foreign(_file(tmp_path, STALE))
    assert (failed.verdict, failed.exit_code) == ("failed", 1)
    assert failed.flaws[0].name == "not-linearizable"
    assert 12 in failed.flaws[0].lines
    assert "the state could only be" in failed.flaws[0].explanation
    over = check_foreign(_file(tmp_path, STALE), budget=Budget(states=1))
    assert (over.verdict, over.exit_code) == ("inconclusive", 6)
    nothing = check_foreign(_file(tmp_path, "0 :invoke :write 3\n"))
    assert (nothing.verdict, nothing.detail) == ("inconclusive", "no operation has an answer")


def test_who_fails_only_by_failed_compares_is_told(tmp_path: Path) -> None:
    """Knossos leaves failed compares out: where they alone are in the way, the verdict says that it passes without."""
    text = "0 :invoke :write 3\n0 :ok :write 3\n0 :invoke :cas [3 4]\n0 :fail :cas [3 4]\n"
    found = check_foreign(_file(tmp_path, text))
    assert found.verdict == "failed"
    assert "Knossos leaves out, it passes" in found.detail
    assert "Knossos" not in check_foreign(_file(tmp_path, STALE)).detail
    # One that names an error is no answer, and says nothing of the value.
    assert check_foreign(_file(tmp_path, f"{text[:-1]} :refused\n")).verdict == "passed"


def test_locks_and_appends_are_models_of_their_own(tmp_path: Path) -> None:
    """A mutex that two held and lists with an anomaly fail as such; a history of another model is refused."""
    held = "0 :invoke :acquire nil\n0 :ok :acquire nil\n1 :invoke :acquire nil\n1 :ok :acquire nil\n"
    assert check_foreign(_file(tmp_path, held), model="mutex").verdict == "failed"
    with pytest.raises(SpecError, match="line 1: acquire is no operation of the model register"):
        check_foreign(_file(tmp_path, held))
    text = """{:process 0, :type :invoke, :f :txn, :value [[:append 5 1]]}
    {:process 0, :type :fail, :f :txn, :value [[:append 5 1]]}
    {:process 1, :type :invoke, :f :txn, :value [[:r 5 nil]]}
    {:process 1, :type :ok, :f :txn, :value [[:r 5 [1]]]}"""
    found = check_foreign(_file(tmp_path, text), model="append")
    assert [(flaw.name, flaw.lines) for flaw in found.flaws] == [("G1a", (1, 3))]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"format": "porcupine"}, "the format 'porcupine' is not known"),
        ({"format": "jepsen", "model": "queue"}, "the model 'queue' is not known"),
        ({"format": "jepsen", "budget_s": "0"}, "--budget-s 0 is not offered"),
        ({"format": "jepsen", "budget_states": "many"}, "--budget-states 'many' is not a whole number"),
        ({}, "of what format is"),
    ],
)
def test_check_refuses_what_it_does_not_know(tmp_path: Path, flags: dict[str, str], says: str) -> None:
    """A flag's value that is none ends `check` with exit code 2 and what is offered."""
    with pytest.raises(Exit) as raised:
        check(Context(), _file(tmp_path, LOG), **flags)
    assert raised.value.code == 2
    assert says in str(raised.value)


def test_check_ends_as_the_verdict_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`check` prints the verdict with what it rests on, as text or JSON, and exits 0, 1 or 6; 3 without a file."""
    check(Context(), _file(tmp_path, LOG), format="jepsen")
    assert "history.log: PASSED (register)\n  6 operations have an order" in capsys.readouterr().out
    with pytest.raises(Exit) as failed:
        check(Context(), _file(tmp_path, STALE), format="jepsen", output="json")
    assert failed.value.code == 1
    document = json.loads(capsys.readouterr().out)
    assert list(document)[:4] == ["schema", "file", "model", "verdict"]
    assert (document["schema"], document["verdict"]) == (1, "failed")
    with pytest.raises(Exit) as over:
        check(Context(), _file(tmp_path, STALE), format="jepsen", budget_states="1")
    assert over.value.code == 6
    assert "INCONCLUSIVE" in capsys.readouterr().out
    with pytest.raises(Exit) as absent:
        check(Context(), str(tmp_path / "absent"), format="jepsen")
    assert absent.value.code == 3


# -- a corpus that others have judged

_CORPUS = os.environ.get("ETCDOPS_TEST_PORCUPINE", "")
#: The histories of etcd 0.4 to 2.0 (reads without quorum) that are linearizable, of the 102 that porcupine's tests
#: judge, by the number in their file's name: https://github.com/anishathalye/porcupine, porcupine_test.go.
_LINEARIZABLE = {2, 5, 7, 18, 25, 31, 38, 45, 48, 49, 51, 53, 56, 67, 75, 76, 80, 87, 92, 98, 100, 101, 102}


@pytest.mark.skipif(not _CORPUS, reason="ETCDOPS_TEST_PORCUPINE names no copy of it")
def test_the_verdicts_over_porcupines_corpus_are_its_own() -> None:
    """Every etcd log of porcupine's test_data/jepsen has the verdict that porcupine expects."""
    files = sorted(Path(_CORPUS).glob("etcd_*.log"))
    verdicts = {int(file.stem[-3:]): check_foreign(file).verdict for file in files if file.stem != "etcd_095"}
    assert len(verdicts) == 102
    assert set(verdicts.values()) <= {"passed", "failed"}
    assert {number for number, verdict in verdicts.items() if verdict == "passed"} == _LINEARIZABLE
