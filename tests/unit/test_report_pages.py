"""A run's page: what it holds, that nothing in it is taken for more than text, and that any folder has one."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from etcdops import drills
from etcdops.errors import SpecError
from etcdops.fake.lies import Lies
from etcdops.report.counterexample import counterexamples
from etcdops.report.embedding import content_policy, plotly_bundle, script_json, shown
from etcdops.report.html import page_of, write_report
from etcdops.report.loading import load_run
from etcdops.state import Store
from etcdops.verify import Check
from scripts.big_run import write_big_run
from tests.unit.drilling import QUICK, fake_cluster

#: What somebody may say who wishes the reader ill, or who does not think of the reader at all.
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><svg/onload=alert(1)>",
    "<!--<script>",
    "]]>",
    "{{ 7*7 }}{% raw %}",
    "javascript:alert(1)",
    "\u2028\u2029\x00\x1b[31m",
)


class _Page(HTMLParser):
    """What a browser makes of a page: its elements with their attributes, its text, and what its scripts hold."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attrs, held = self.scripts[-1]
            self.scripts[-1] = attrs, held + data
        elif not self._inside:
            self.words.append(data)

    @property
    def text(self) -> str:
        """All that is read on it."""
        return " ".join(" ".join(self.words).split())

    def data(self, name: str) -> str:
        """What the script element of that id holds."""
        return next(held for attrs, held in self.scripts if attrs.get("id") == name)

    @property
    def executed(self) -> list[str]:
        """The scripts that a browser would run."""
        return [held for attrs, held in self.scripts if "type" not in attrs]


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _safe(page: _Page, scripts: int = 1) -> None:
    """Assert that a page runs its own scripts alone, and asks for nothing."""
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy") or ""
    assert "default-src 'none'" in policy
    assert [t for t, _ in page.elements].count("script") == len(page.scripts)
    assert len(page.executed) == scripts
    assert all(f"'{_hash(script)}'" in policy for script in page.executed)
    assert not {"img", "iframe", "link", "object", "embed", "form", "base"} & {t for t, _ in page.elements}
    for _, attrs in page.elements:
        assert not [name for name in attrs if name.startswith("on")]
        assert not {"src", "action", "srcset"} & set(attrs)
        assert not (attrs.get("href") or "").lower().startswith(("http", "javascript", "data"))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with an outage."""
    folder = tmp_path_factory.mktemp("runs") / "20260102-030405-failed-leader-1a2b"
    write_big_run(folder, 600)
    return folder


def test_a_page_says_what_the_run_came_to(told: Path) -> None:
    """Verdict, what was checked and what was not, outage beside prediction, members, and the way to repeat it."""
    page = _Page(write_report(told).read_text(encoding="utf-8"))
    _safe(page)
    verdict = load_run(told).verdict
    assert verdict.outage
    assert verdict.outage.write_ms
    for words in (
        "failed-leader",
        "Every one of 2 checks passed.",
        f"{verdict.outage.write_ms:,.0f} ms Raft predicts 1,000 to 1,900 ms",
        f"of {verdict.writes.acknowledged:,} acknowledged",
        "anything beyond this one run",
        f"writes stopped, worst surviving member ({verdict.outage.worst_member})",
        "follows deadpool, term 3",
        "kill, 2.6 s",
        "lost leader",
        "Linux 6.1",
        "fsync, 99th percentile not recorded",
        "drill.run failed-leader --how kill",
        "--seed 1",
    ):
        assert words in page.text, words


def test_a_page_holds_every_operation(told: Path) -> None:
    """The dots' columns are those of the record: as many as it has, and as many of each outcome."""
    page = _Page(page_of(told))
    data = json.loads(page.data("data"))
    packed = gzip.decompress(base64.b64decode(page.data("dots")))
    count = data["dots"]["count"]
    assert count == 600
    assert len(packed) == 21 * count
    kinds = packed[18 * count : 19 * count]
    named = [trace["name"] for trace in data["figure"]["data"] if trace["type"] == "scatter"]
    writes = load_run(told).verdict.writes
    assert kinds.count(named.index("outcome unknown")) == writes.unknown > 0
    assert kinds.count(named.index("write, failed")) == writes.failed > 0
    assert kinds.count(named.index("write, acknowledged")) == writes.acknowledged
    assert gzip.decompress(base64.b64decode(page.data("plotly"))).startswith(b"/**\n* plotly.js")


def test_the_outage_is_marked_where_it_was(told: Path) -> None:
    """The dashed band has the edges of the worst stream's gap, and says how long that was."""
    run = load_run(told)
    figure = json.loads(_Page(page_of(told)).data("data"))["figure"]
    assert run.verdict.outage
    stream = run.verdict.outage.streams[f"pinned.{run.verdict.outage.worst_member}"]
    band = next(each for each in figure["layout"]["shapes"] if each["line"].get("dash") == "dash")
    began = run.info.began_ns
    assert [band["x0"], band["x1"]] == pytest.approx(
        [(t - began) / 1e9 for t in (stream.gap_from_ns, stream.gap_until_ns)]
    )
    said = " ".join(each["text"] for each in figure["layout"]["annotations"])
    assert f"{run.verdict.outage.write_ms:,.0f} ms" in said


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_text(tmp_path: Path, text: str) -> None:
    """Whatever users, etcd or logs say is shown letter by letter: no element and no script comes of it."""
    folder = tmp_path / "run"
    check = Check(f"logs{text}", "failed", f"operation 5 {text}")
    members = ("ironman", "thor", "deadpool")
    write_big_run(folder, 300, text=text, checks=(check,), members=members, etcd_version=f"3.5{text}")
    plain = _Page(page_of(_quiet(tmp_path / "plain")))
    page = _Page(page_of(folder))
    _safe(page)
    assert [t for t, _ in page.elements].count("script") == [t for t, _ in plain.elements].count("script")
    # A browser shows a NUL as nothing, or as a sign that stands for it.
    assert " ".join(text.replace("\x00", "").split()) in page.text.replace("\x00", "").replace("\ufffd", "")
    data = json.loads(page.data("data"))
    assert any(text in note for note in data["dots"]["notes"])
    figure = json.dumps(data["figure"])
    assert "<img" not in figure
    assert "<script" not in figure


def _quiet(folder: Path) -> Path:
    write_big_run(folder, 300, checks=(Check("logs", "failed", "operation 5"),))
    return folder


def test_json_cannot_end_its_element() -> None:
    """JSON in a page has none of the signs that could end its element, and says the same."""
    for text in HOSTILE:
        made = script_json({text: [text]})
        assert not re.search("[<>&\u2028\u2029]", made)
        assert json.loads(made) == {text: [text]}
        assert "<" not in shown(text)


def test_a_policy_without_scripts_allows_none() -> None:
    """A page without scripts runs none."""
    assert "script-src 'none'" in content_policy()


def test_plotly_is_known_by_its_hash(told: Path) -> None:
    """The library that a page unpacks is exactly the one that its policy admits."""
    bundle = plotly_bundle()
    assert bundle.sha256 == _hash(gzip.decompress(base64.b64decode(bundle.packed)).decode())
    assert bundle.sha256 in page_of(told)


# -- any folder has a page


def _without(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def _torn(folder: Path) -> None:
    """As a kill leaves it: no verdict, nothing observed, the history plain and cut within a line."""
    _without("verdict.json", "observed.json", "thor.log")(folder)
    packed = folder / "history.jsonl.gz"
    data = gzip.decompress(packed.read_bytes())
    packed.unlink()
    (folder / "history.jsonl").write_bytes(data[: len(data) * 2 // 3])
    journal = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "journal.jsonl").write_bytes(b"".join(journal[:4]) + journal[4][:20])


def _older(folder: Path) -> None:
    """As an older release might have written it: fields are missing, others have another form."""
    info = json.loads((folder / "run.json").read_bytes())
    for name in ("client_keys", "timing", "known_bad", "cpus"):
        info.pop(name, None)
    info["minimum"] = [10, 1, 10]
    (folder / "run.json").write_text(json.dumps(info))
    verdict = json.loads((folder / "verdict.json").read_bytes())
    verdict["outage"] = {"write_ms": 1234.5}
    verdict.pop("writes")
    (folder / "verdict.json").write_text(json.dumps(verdict))


def _garbled(folder: Path) -> None:
    for name in ("run.json", "verdict.json", "observed.json", "journal.jsonl", "history.jsonl.gz"):
        (folder / name).write_bytes(b'{"schema": 1, "run": ["' + bytes(range(256)))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_without("verdict.json", "observed.json"), "it was killed, or goes on still"),
        (_torn, "it was killed, or goes on still"),
        (_older, "of another release, or damaged: without"),
        (_garbled, "run.json is damaged"),
        (_without("history.jsonl.gz"), "none of its operations are shown"),
        (_without("run.json"), "run.json cannot be read"),
        (_without("journal.jsonl"), "journal.jsonl cannot be read"),
        (_without("observed.json"), "observed.json"),
    ],
    ids=["killed", "torn", "older", "garbled", "no history", "no run.json", "no journal", "no observed.json"],
)
def test_any_folder_has_a_page(told: Path, tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    """Killed half-way, of another release or damaged: what can be read is shown, and what cannot is said."""
    folder = tmp_path / told.name
    shutil.copytree(told, folder, ignore=shutil.ignore_patterns("index.html"))
    damage(folder)
    page = _Page(page_of(folder))
    _safe(page)
    assert says in page.text
    assert "Not all of this run could be read." in page.text


def test_a_killed_run_shows_what_it_recorded(told: Path, tmp_path: Path) -> None:
    """Its operations up to the end of its record, the fault that its journal tells of, and that nothing was judged."""
    folder = tmp_path / told.name
    shutil.copytree(told, folder)
    _torn(folder)
    page = _Page(page_of(folder))
    assert 300 < json.loads(page.data("data"))["dots"]["count"] < 600
    assert "kill thor" in page.text
    assert "inconclusive" in page.text
    assert "Every one of" not in page.text


def test_a_folder_that_is_no_run_has_none(tmp_path: Path) -> None:
    """Nothing is written into a folder that is no run's."""
    with pytest.raises(SpecError, match="no run folder"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


# -- drills


def test_a_failed_check_has_a_picture(store: Store) -> None:
    """A cluster that lies: the operations that no order explains are drawn, and the one that shows it is marked."""
    with fake_cluster(store, Lies(stale_every=5)) as cluster:
        verdict = drills.run("no-fault", cluster, duration="1", profile="register", rate=20, baseline_s=0.5)
    assert verdict.verdict == "deviated"
    page = page_of(verdict.folder)
    _safe(_Page(page))
    assert 'class="counterexample"' in page
    assert "A check failed" in page
    # The search has a limit in time, and says nothing beyond it; what it says of such a run is marked.
    run = load_run(verdict.folder)
    shown = next(each for each in counterexamples(run, []) if each.operations)
    culprit = shown.operations[0].id
    said = f"the register r/1: no order of its operations explains operation {culprit}"
    told = msgspec.structs.replace(verdict, checks=(Check("linearizability search", "failed", said),))
    (marked,) = counterexamples(run._replace(verdict=told), [])
    assert marked.picture.count('class="culprit"') == 1
    found = verdict.check("linearizability search")
    assert found.result == "inconclusive" or 'class="culprit"' in page, found


def test_lost_writes_are_listed_and_marked(tmp_path: Path) -> None:
    """Acknowledged writes that are gone have a dot of their own, and are named one by one."""
    folder = tmp_path / "run"
    verdict = write_big_run(folder, 300, lost=3)
    page = _Page(page_of(folder))
    data = json.loads(page.data("data"))
    count = data["dots"]["count"]
    packed = gzip.decompress(base64.b64decode(page.data("dots")))
    named = [trace["name"] for trace in data["figure"]["data"] if trace["type"] == "scatter"]
    assert packed[18 * count : 19 * count].count(named.index("acknowledged, and gone")) == 3 == verdict.writes.lost
    assert "3 acknowledged writes are lost." in page.text


def test_an_aborted_run_has_a_page(store: Store) -> None:
    """A run that touched nothing says so, and why."""
    with fake_cluster(store, Lies(two_leaders=True)) as cluster:
        verdict = drills.run("failed-leader", cluster, **QUICK)
    assert verdict.verdict == "aborted"
    page = _Page(page_of(verdict.folder))
    _safe(page)
    assert "Nothing was touched" in page.text
    assert "No outage was measured" in page.text


def test_a_stuck_run_says_so(told: Path, tmp_path: Path) -> None:
    """That healing failed comes first, with what has to be done."""
    folder = tmp_path / told.name
    shutil.copytree(told, folder)
    verdict = json.loads((folder / "verdict.json").read_bytes())
    verdict["verdict"] = "stuck"
    verdict["checks"].append({"name": "healed", "result": "failed", "detail": "thor did not start. Run heal."})
    (folder / "verdict.json").write_text(json.dumps(verdict))
    page = _Page(page_of(folder))
    assert "Healing failed; 2 of 3 checks passed, 1 failed (healed)." in page.text
    assert "thor did not start. Run heal." in page.text


def test_repeats_have_a_histogram(tmp_path: Path) -> None:
    """Runs beside it that were made alike are shown together with Raft's prediction; others are not."""
    for number in range(5):
        name = f"20260102-03040{number}-failed-leader-1a2b"
        write_big_run(tmp_path / name, 300, run=name, seed=number, outage_s=1.1 + 0.2 * number)
    other = tmp_path / "20260102-030409-failed-leader-1a2b"
    write_big_run(other, 300, run=other.name, etcd_version="3.4.1")
    page = page_of(tmp_path / "20260102-030402-failed-leader-1a2b")
    assert "The same 5 times" in page
    assert 'class="predicted"' in page
    assert "Histogram of the outages of 5 runs" in page
    assert "The same 6 times" not in page_of(other)
    assert "svg" not in [tag for tag, _ in _Page(page_of(other)).elements]


def test_what_is_missing_is_left_empty(tmp_path: Path) -> None:
    """What a verdict of another release lacks is empty or zero, and everything else is as it says."""
    (tmp_path / "verdict.json").write_bytes(msgspec.json.encode({"run": "r", "verdict": "passed", "seed": "7"}))
    run: Any = load_run(tmp_path)
    assert (run.verdict.run, run.verdict.verdict, run.verdict.seed) == ("r", "passed", 7)
    assert (run.verdict.outage, run.verdict.checks, run.verdict.writes.lost) == (None, (), 0)
    assert any("without" in problem for problem in run.problems)
