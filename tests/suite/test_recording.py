"""The recorder: clients of every profile and a watch through every member, on real etcd and on members in memory."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from etcdops import wire
from etcdops.answers import Event
from etcdops.cluster import Cluster
from etcdops.errors import ClusterError
from etcdops.ops import Put, Range, Txn
from etcdops.runtimes.base import Runtime
from etcdops.runtimes.fake import FakeRuntime
from etcdops.runtimes.process import ProcessRuntime
from etcdops.state import Store
from etcdops.verify.lease import check_leases
from etcdops.verify.lock import check_locks, measure_locks
from etcdops.verify.recorded import Observed, Recorded, State
from etcdops.workload import watches
from etcdops.workload.deliveries import Delivery, EventsWriter, events_file, read_deliveries, read_extra
from etcdops.workload.history import CLIENT, PREPARE, Operation, read_history
from etcdops.workload.profiles import PROFILES
from etcdops.workload.traffic import Traffic, TrafficPlan

RUN = "run1"


@pytest.fixture(scope="module", params=["process", "fake"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three members that the tests of this module share, all running before each."""
    runtime: Runtime = FakeRuntime() if request.param == "fake" else ProcessRuntime()
    store = Store(tmp_path_factory.mktemp("state"))
    made = Cluster.create("recording", runtime=runtime, store=store, offline=True)
    made.up()
    yield made
    made.purge()


class _Kept:
    """What a recording left, read again."""

    def __init__(self, folder: Path, cluster: Cluster, base: State) -> None:
        self.history = read_history(folder / "history.jsonl")
        self.deliveries = {m.name: read_deliveries(events_file(folder, m.name)) for m in cluster.members}
        self.base = base

    def log(self, member: str) -> list[Event]:
        return [event for delivery in self.deliveries[member] for event in delivery.events]

    def recorded(self, run: str) -> Recorded:
        observed = Observed(run=run, members=tuple(self.deliveries), states=(self.base,), base=0)
        return Recorded(observed, self.history, self.deliveries)


def _base(cluster: Cluster) -> State:
    with wire.Connection(cluster.endpoints[0]) as etcd:
        found = etcd.range(b"\0", b"\0", timeout_s=10)
    return State(found.revision, found.kvs)


def _plan(cluster: Cluster, folder: Path, base: State, **changes: Any) -> TrafficPlan:
    fields: dict[str, Any] = {
        "run": RUN,
        "endpoints": {m.name: m.client_url for m in cluster.members},
        "output": str(folder / "history.jsonl"),
        "rate": 10,
        "deadline_s": 10,
        "max_s": 100,
        "clients": 6,
        "client_rate": 20,
        "watch_from": base.revision + 1,
    }
    return TrafficPlan(**{**fields, **changes})


def _tombstone(cluster: Cluster) -> int:
    with wire.Connection(cluster.endpoints[0]) as etcd:
        return etcd.put(b"etcdops/tombstone", b"", timeout_s=10).revision


def _poll(condition: Callable[[], object], what: str, timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"still not so after {timeout_s} s: {what}"
        time.sleep(0.05)


def _client_ok(traffic: Traffic) -> int:
    return sum(counts.ok for name, counts in traffic.progress().streams.items() if name.startswith(CLIENT))


def _record(
    cluster: Cluster,
    folder: Path,
    *,
    enough: int = 150,
    meanwhile: Callable[[Traffic], None] = lambda traffic: None,
    until: Callable[[Traffic], object] = lambda traffic: True,
    **changes: Any,
) -> _Kept:
    """Let a profile run until its clients have had enough acknowledged, and give what is kept."""
    base = _base(cluster)
    with Traffic.start(_plan(cluster, folder, base, **changes), folder / "log") as traffic:
        traffic.wait_running(30)
        meanwhile(traffic)
        _poll(lambda: _client_ok(traffic) >= enough and until(traffic), f"{enough} operations")
        summary = traffic.stop_sending()
        tombstone = _tombstone(cluster)
        closed = traffic.close(tombstone, 30.0)
        assert traffic.close() == closed
    assert summary.complete
    assert all(watch.reached for watch in closed.watches.values()), closed
    kept = _Kept(folder, cluster, base)
    assert Counter(op.outcome for op in kept.history if op.stream != PREPARE) == Counter(
        ok=sum(counts.ok for counts in summary.streams.values()),
        failed=sum(counts.failed for counts in summary.streams.values()),
        unknown=sum(counts.unknown for counts in summary.streams.values()),
    )
    assert {kind: tally.ok for kind, tally in summary.kinds.items() if tally.ok} == Counter(
        op.kind for op in kept.history if op.outcome == "ok"
    )
    _assert_whole(kept, tombstone)
    return kept


def _assert_whole(kept: _Kept, tombstone: int) -> None:
    """Every member's watch has delivered every revision, once and in order, and the same as the others."""
    logs = [kept.log(member) for member in kept.deliveries]
    for log in logs:
        assert log == logs[0]
    revisions = [event.kv.mod_revision for event in logs[0]]
    assert revisions == sorted(revisions)
    assert set(revisions) == set(range(kept.base.revision + 1, tombstone + 1))
    assert len({(event.kv.mod_revision, event.kv.key) for event in logs[0]}) == len(logs[0])
    written = {(event.kv.mod_revision, event.kv.key): event.kv.value for event in logs[0]}
    for op in kept.history:
        if isinstance(op.request, Put) and op.outcome == "ok":
            assert written[op.revision, op.request.key] == op.request.value


def _assert_processes(history: list[Operation]) -> None:
    """No process has two operations at a time, nor any after an unknown outcome."""
    last: dict[int, Operation] = {}
    for op in sorted(history, key=lambda op: op.call_ns):
        before = last.get(op.process)
        if before is not None:
            assert before.return_ns <= op.call_ns
            assert before.outcome != "unknown"
        last[op.process] = op


def test_a_recording_is_whole(cluster: Cluster, tmp_path: Path) -> None:
    """Every operation and every event is in the files, compressed, and they explain each other."""
    kept = _record(cluster, tmp_path, enough=600, client_rate=50)
    _assert_processes(kept.history)
    assert len({op.id for op in kept.history}) == len(kept.history)
    assert {op.member for op in kept.history if op.stream == f"{CLIENT}1"} == {cluster.members[1].name}
    assert {"put", "range", "delete", "txn", "grant"} <= {op.kind for op in kept.history if op.outcome == "ok"}
    assert sum(op.outcome == "ok" for op in kept.history) > 0.9 * len(kept.history)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("log", "history.jsonl.gz"),
        *(f"events-{m.name}.jsonl.gz" for m in cluster.members),
    }
    for deliveries in kept.deliveries.values():
        assert deliveries[0].what == "opened"
        assert deliveries[0].start_revision == kept.base.revision + 1
        assert [each.t_ns for each in deliveries] == sorted(each.t_ns for each in deliveries)
        assert deliveries[-1].what == "ended"
        # A delete tells what it deleted, for previous values are asked for.
        assert all(e.prev_kv is not None for each in deliveries for e in each.events if e.kind == "delete")


@pytest.mark.parametrize("cluster", ["process"], indirect=True)
@pytest.mark.parametrize("profile", [name for name in PROFILES if name not in ("mixed", "watch", "lock", "lease")])
def test_profiles(cluster: Cluster, tmp_path: Path, profile: str) -> None:
    """Every profile runs, is answered, and leaves a whole record."""
    kept = _record(cluster, tmp_path, profile=profile, enough=60, preload=500, keys=8)
    _assert_processes(kept.history)
    assert sum(op.outcome == "ok" for op in kept.history) > 0.9 * len(kept.history)
    if profile == "wide-txn":
        wide = [op.request for op in kept.history if isinstance(op.request, Txn) and op.request.compares]
        assert wide
        assert sum(len(delivery.events) for delivery in next(iter(kept.deliveries.values()))) > 500


@pytest.mark.parametrize("cluster", ["process"], indirect=True)
def test_leases_end_in_time(cluster: Cluster, tmp_path: Path) -> None:
    """Leases that are left alone end, neither early nor without their keys, and the check sees it."""
    base = _base(cluster)

    def one_ended(traffic: Traffic) -> bool:
        check = check_leases(_Kept(tmp_path, cluster, base).recorded(RUN))
        return check.result == "passed" and " 0 with keys ended by themselves" not in check.detail

    kept = _record(cluster, tmp_path, profile="lease", ttl_s=2, until=one_ended)
    check = check_leases(kept.recorded(RUN))
    assert check.result == "passed", check
    assert " 0 with keys ended by themselves" not in check.detail, check


@pytest.mark.parametrize("cluster", ["process"], indirect=True)
@pytest.mark.parametrize("fencing", [True, False])
def test_a_holder_that_rests_too_long(cluster: Cluster, tmp_path: Path, fencing: bool) -> None:
    """A client that rests in the critical section for longer than its lease lives is overtaken."""
    run, base = f"lock-{fencing}", _base(cluster)

    def overtaken(traffic: Traffic) -> bool:
        # The first client has rested, while another held the lock, and has written since.
        seen = measure_locks(_Kept(tmp_path, cluster, base).recorded(run))
        return any(f"{CLIENT}0" in (a.stream, b.stream) for a, b in seen.overlaps) and bool(seen.refused or seen.lost)

    kept = _record(
        cluster,
        tmp_path,
        run=run,
        profile="lock",
        ttl_s=2,
        hold_s=3.5,
        fencing=fencing,
        client_rate=40,
        enough=50,
        until=overtaken,
    )
    recorded = kept.recorded(run)
    check = check_locks(recorded, fenced=fencing)
    assert check.result == "passed", check
    assert measure_locks(recorded).overlaps
    assert (measure_locks(recorded).lost_updates == 0) == fencing, check


@pytest.mark.parametrize("cluster", ["process"], indirect=True)
def test_more_watches(cluster: Cluster, tmp_path: Path) -> None:
    """The watch profile's other watches deliver exactly their part of the log, each into a file of its own."""
    kept = _record(cluster, tmp_path, profile="watch", enough=300)
    log = kept.log(cluster.members[0].name)
    extra = read_extra(tmp_path)
    assert {one.member for one in extra} == {m.name for m in cluster.members}
    for _, watch, deliveries in extra:
        without = {kind.removeprefix("NO").removesuffix("S").lower() for kind in watch.filters}
        without = {"delete" if "delete" in kind else "put" for kind in without}
        end = watch.range_end or watch.key + b"\0"
        wanted = [event for event in log if watch.key <= event.kv.key < end and event.kind not in without]
        assert [event for delivery in deliveries for event in delivery.events] == wanted
        assert wanted or watch.name == "no-puts"


def test_a_killed_member_is_called_and_watched_again(cluster: Cluster, tmp_path: Path) -> None:
    """Calls and watch of a killed member go on when it is back, and its log lacks nothing and doubles nothing."""
    leader = cluster.leader().name
    victim = next(m for m in cluster.members if m.name != leader)
    stream = f"{CLIENT}{[m.name for m in cluster.members].index(victim.name)}"
    again_ns = 0

    def kill(traffic: Traffic) -> None:
        nonlocal again_ns
        _poll(lambda: _client_ok(traffic) > 30, "thirty operations")
        victim.kill()
        traffic.wait_acknowledged(time.monotonic_ns() + 700_000_000, 30, [f"pinned.{leader}"])
        victim.start()
        again_ns = time.monotonic_ns()

    def served_again(traffic: Traffic) -> bool:
        return traffic.progress().streams[stream].last_ok_call_ns > again_ns

    kept = _record(cluster, tmp_path, meanwhile=kill, until=served_again, deadline_s=1.0)
    _assert_processes(kept.history)
    deliveries = kept.deliveries[victim.name]
    assert len([each for each in deliveries if each.what == "opened"]) >= 2
    for before, after in pairwise(deliveries):
        if after.what == "opened":
            assert before.what == "ended"
            assert before.error
            delivered = [e.kv.mod_revision for each in deliveries for e in each.events if each.watch < after.watch]
            assert after.start_revision == max(delivered, default=kept.base.revision) + 1
    meanwhile = [op for op in kept.history if op.stream == stream and op.outcome != "ok"]
    assert meanwhile
    assert all(op.outcome == "failed" for op in meanwhile if op.kind == "range")


@pytest.mark.parametrize("cluster", ["process"], indirect=True)
def test_a_silent_member_is_waited_for_no_longer_than_told(cluster: Cluster, tmp_path: Path) -> None:
    """A watch that cannot deliver the last revision in time is told as such; the others have."""
    base = _base(cluster)
    leader = cluster.leader().name
    silent = next(m for m in cluster.members if m.name != leader)
    with Traffic.start(_plan(cluster, tmp_path, base, clients=0, deadline_s=0.5), tmp_path / "log") as traffic:
        traffic.wait_running(30)
        silent.pause()
        try:
            assert traffic.stop_sending() == traffic.stop_sending()
            with wire.Connection(cluster.member(leader).client_url) as etcd:
                tombstone = etcd.put(b"etcdops/tombstone", b"", timeout_s=10).revision
            closed = traffic.close(tombstone, 0.5, compress=False)
        finally:
            silent.resume()
    assert {name for name, watch in closed.watches.items() if not watch.reached} == {silent.name}
    assert closed.watches[leader].revision >= tombstone
    assert (tmp_path / "history.jsonl").exists()
    assert (tmp_path / f"events-{leader}.jsonl").exists()


@pytest.mark.parametrize("cluster", ["process"], indirect=True)
def test_kill_minus_nine_of_the_sender_keeps_what_was_reported(cluster: Cluster, tmp_path: Path) -> None:
    """Whatever a report of the last 50 ms has counted is in the record, though the process was killed at once."""
    base = _base(cluster)
    plan = _plan(cluster, tmp_path, base)
    with Traffic.start(plan, tmp_path / "log") as traffic:
        traffic.wait_running(30)
        _poll(lambda: _client_ok(traffic) > 50, "fifty operations")
        reported = traffic.progress()
        os.kill(traffic.pid, signal.SIGKILL)
        with pytest.raises(ClusterError, match="was killed by signal 9"):
            traffic.close()
    history = read_history(plan.output)
    assert len([op for op in history if op.outcome == "ok"]) >= sum(c.ok for c in reported.streams.values())
    newest = max(counts.last_ok_return_ns for counts in reported.streams.values())
    assert max(op.return_ns for op in history) >= newest
    for member in cluster.members:
        assert read_deliveries(events_file(tmp_path, member.name))


# -- one watch alone, on members in memory


@pytest.fixture
def single(tmp_path: Path) -> Iterator[Cluster]:
    """One member in memory."""
    made = Cluster.create("one", size=1, runtime=FakeRuntime(), store=Store(tmp_path / "state"), offline=True)
    made.up()
    yield made
    made.purge()


def _watch(
    cluster: Cluster,
    path: Path,
    start: int,
    act: Callable[[watches.MemberWatch], object],
    done: Callable[[watches.MemberWatch], bool],
    span: tuple[bytes, bytes] = watches.ALL_KEYS,
) -> tuple[watches.MemberWatch, list[Delivery]]:
    """Watch from `start` while `act` runs in a thread, until `done`."""

    async def run() -> watches.MemberWatch:
        with EventsWriter(path, RUN, "m") as writer:
            watch = watches.MemberWatch(cluster.endpoints[0], None, writer, start, life_s=60, span=span)
            keeping = asyncio.create_task(watches.keep_all({"m": watch}))
            try:
                await asyncio.get_running_loop().run_in_executor(None, act, watch)
                end = time.monotonic() + 30
                while not done(watch):
                    assert time.monotonic() < end
                    await asyncio.sleep(0.01)
            finally:
                keeping.cancel()
                await asyncio.wait({keeping})
        return watch

    watch = asyncio.run(run())
    return watch, read_deliveries(path)


def _put(cluster: Cluster, count: int) -> int:
    with wire.Connection(cluster.endpoints[0]) as etcd:
        for number in range(count):
            revision = etcd.put(b"k", f"{number}".encode(), timeout_s=10).revision
    return revision


def test_what_was_compacted_ends_a_watch_for_good(single: Cluster, tmp_path: Path) -> None:
    """A watch that would have to begin before the compacted revision says so in its record, and tries no more."""
    newest = _put(single, 5)
    with wire.Connection(single.endpoints[0]) as etcd:
        etcd.compact(newest, timeout_s=10)
    watch, deliveries = _watch(single, tmp_path / "events", 2, lambda watch: None, lambda watch: watch.lost)
    assert not watch.has_reached(newest)
    assert watch.seen.opened == 1 or not deliveries[:-1]
    assert deliveries[-1].what == "ended"
    assert "compacted" in deliveries[-1].error
    assert len([each for each in deliveries if each.what == "ended"]) == 1


def test_a_watch_that_hears_nothing_is_opened_anew(
    single: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that says nothing for long is asked again, from after the last event, once it answers."""
    monkeypatch.setattr(watches, "_SILENT_NS", 300_000_000)
    monkeypatch.setattr(watches, "_OPEN_S", 0.2)
    first = _put(single, 3)

    def act(watch: watches.MemberWatch) -> None:
        member = single.members[0]
        _poll(lambda: watch.has_reached(first), "what was there is delivered")
        member.pause()
        try:
            _poll(lambda: watch.seen.error, "the watch was given up, and could not be opened again")
        finally:
            member.resume()
        _put(single, 2)

    watch, deliveries = _watch(single, tmp_path / "events", 2, act, lambda watch: watch.has_reached(first + 2))
    assert watch.seen.opened >= 2
    assert [e.kv.mod_revision for each in deliveries for e in each.events] == list(range(2, first + 3))
    opened = [each.start_revision for each in deliveries if each.what == "opened"]
    assert opened[0] == 2
    assert first + 1 in opened
    assert any("nothing was heard" in each.error for each in deliveries)


def test_a_revision_without_an_event_is_reached_by_repeated_words(single: Cluster, tmp_path: Path) -> None:
    """Asked to reach a revision of which nothing is delivered, a watch is done when it was confirmed several times."""
    newest = _put(single, 2)
    watch, deliveries = _watch(
        single,
        tmp_path / "events",
        2,
        lambda watch: None,
        lambda watch: watch.has_reached(newest),
        span=(b"other", b""),
    )
    assert watch.seen.revision == 1
    assert [each.revision for each in deliveries if each.what == "progress"].count(newest) >= 2
    assert not any(each.events for each in deliveries)
    assert not watch.has_reached(newest + 1)


@pytest.mark.parametrize("cluster", ["process"], indirect=True)
def test_reads_that_fail_are_failed_and_writes_are_unknown(cluster: Cluster, tmp_path: Path) -> None:
    """Without an answer, a read has certainly changed nothing, and a write may have."""
    base = _base(cluster)
    plan = _plan(cluster, tmp_path, base, deadline_s=0.2, watch_from=0)
    with Traffic.start(plan, tmp_path / "log") as traffic:
        traffic.wait_running(30)
        member = cluster.members[0]
        member.pause()
        try:
            _poll(lambda: _unanswered(plan) > 20, "twenty operations without an answer")
        finally:
            member.resume()
        traffic.stop()
    bad = [op for op in read_history(plan.output) if op.code == "DEADLINE_EXCEEDED"]
    assert {op.outcome for op in bad if isinstance(op.request, Range)} <= {"failed"}
    assert {op.outcome for op in bad if op.may_write} == {"unknown"}


def _unanswered(plan: TrafficPlan) -> int:
    return sum(op.code == "DEADLINE_EXCEEDED" for op in read_history(plan.output))
