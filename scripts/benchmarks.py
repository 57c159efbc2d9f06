"""The benchmarks behind `scripts/bench`.

Each compares within one run, its sides taking turns, with something that a person would do by hand; a machine that is
slow or busy slows both. Budgets are printed beside the figures, and nothing fails when one is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from etcdops import binaries, drills, wire
from etcdops.cluster import Cluster
from etcdops.docker import images
from etcdops.docker.engine import Engine
from etcdops.errors import EtcdopsError
from etcdops.hosts import LocalHost
from etcdops.ports import free_ports
from etcdops.report.assembling import recheck
from etcdops.runtimes.process import ProcessRuntime
from etcdops.snapshots.examining import examine
from etcdops.snapshots.saving import save_snapshot
from etcdops.spec import ClusterSpec
from etcdops.state import Store
from etcdops.verify.models import Event
from etcdops.verify.search import search
from etcdops.workload.history import pinned_stream, read_history
from etcdops.workload.outage import measure
from etcdops.workload.plan import TrafficPlan
from etcdops.workload.traffic import Traffic
from scripts import host_benchmarks
from scripts.benching import BIN, NOOP, POLL, ROOT, median, place, row, say, timed


def _end(hand: Path) -> None:
    """Kill the members that the shell script started: they carry no name but their recorded ids."""
    for pid in (hand / "pids").read_text().split():
        try:
            os.kill(int(pid), 9)
        except ProcessLookupError:
            say(f"process {pid} of {hand.name} had died: {(hand / 'a.log').read_text()[-300:]}")


# What a person would write: start three members, then put until it succeeds.
BY_HAND = """
set -eu
cd "$1"; etcd=$2; etcdctl=$3; first=$4
cluster="a=http://127.0.0.1:$((first+1)),b=http://127.0.0.1:$((first+3)),c=http://127.0.0.1:$((first+5))"
port=$first
for name in a b c; do
    "$etcd" --name=$name --data-dir=$name --listen-client-urls=http://127.0.0.1:$port \
        --advertise-client-urls=http://127.0.0.1:$port --listen-peer-urls=http://127.0.0.1:$((port+1)) \
        --initial-advertise-peer-urls=http://127.0.0.1:$((port+1)) --initial-cluster="$cluster" \
        --logger=zap --log-outputs=stderr >$name.log 2>&1 </dev/null & echo $! >>pids
    port=$((port+2))
done
until "$etcdctl" --endpoints=http://127.0.0.1:$first,http://127.0.0.1:$((first+2)),http://127.0.0.1:$((first+4)) \
    --command-timeout=500ms --dial-timeout=500ms put bench ok >/dev/null 2>&1; do :; done
"""


PROCESS = ("--runtime", "process", "--offline")


def up_env() -> None:
    """`up-env` against a shell script that starts the same three processes and polls for a write."""
    ours, by_hand = [], []
    tools = binaries.find(offline=True)
    with place() as path:
        for i in range(15):
            name = f"b{i}"
            ours.append(timed([str(BIN / "etcdops"), "up-env", *PROCESS, "--cluster", name], cwd=path))
            Cluster.attach(name, store=Store(path / ".etcdops")).purge()
            hand = path / f"hand{i}"
            hand.mkdir()
            first = ProcessRuntime().place(ClusterSpec.of_size("probe", 1), "", str(path))[0].client_url
            port = first.rpartition(":")[2]
            try:
                by_hand.append(
                    timed(["sh", "-c", BY_HAND, "sh", str(hand), tools.etcd, str(tools.etcdctl), port], cwd=path)
                )
            finally:
                _end(hand)
            say(f"up-env {i + 1}/15: {ours[-1]:.0f} ms, by hand {by_hand[-1]:.0f} ms")
    extra = min(ours) - min(by_hand)
    figure = f"{min(ours):.0f} - {min(by_hand):.0f} = {extra:+.0f} ms (medians {median(ours)} - {median(by_hand)})"
    row("up-env - by hand, fastest of 15", figure, "<= +250 ms", extra <= 250)


def ctl() -> None:
    """`ctl -- member list` against etcdctl itself, and a no-op Invoke task."""
    tools = binaries.find(offline=True)
    with place() as path:
        subprocess.run([str(BIN / "etcdops"), "up-env", *PROCESS], cwd=path, check=True, capture_output=True)
        endpoints = ",".join(Cluster.attach("lab", store=Store(path / ".etcdops")).endpoints)
        sides: dict[str, list[str]] = {
            "etcdctl": [str(tools.etcdctl), f"--endpoints={endpoints}", "member", "list"],
            "noop": [str(BIN / "invoke"), "noop"],
            "invoke ctl": [str(BIN / "invoke"), "ctl", "--", "member", "list"],
            "etcdops ctl": [str(BIN / "etcdops"), "ctl", "--", "member", "list"],
        }
        # The no-op's tasks.py must not load ours, or it would be no floor.
        noop = path / "noop"
        noop.mkdir()
        (noop / "tasks.py").write_text(NOOP)
        took: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(25):
            for name, argv in sides.items():
                took[name].append(timed(argv, cwd=noop if name == "noop" else path))
    middle = {name: statistics.median(values) for name, values in took.items()}
    over = middle["invoke ctl"] - middle["noop"] - middle["etcdctl"]
    figure = f"{middle['invoke ctl']:.0f} - {middle['noop']:.0f} - {middle['etcdctl']:.0f} = {over:+.0f} ms"
    row("invoke ctl - no-op task - etcdctl, medians of 25", figure, "<= +20 ms", over <= 20)
    over = middle["etcdops ctl"] - middle["etcdctl"]
    figure = f"{middle['etcdops ctl']:.0f} - {middle['etcdctl']:.0f} = {over:+.0f} ms"
    row("etcdops ctl - etcdctl, medians of 25", figure, "<= +40 ms", over <= 40)


def compose_up_env() -> None:
    """`up-env --runtime compose` against `docker compose up -d` of the hand-written file and polling for a write."""
    ours, by_hand = [], []
    etcdctl = str(binaries.find(offline=True).etcdctl)
    image = images.find(Engine(), offline=True).reference
    compose = (ROOT / "compose" / "docker-compose.yaml").read_text()
    with place() as path:
        for i in range(10):
            name = f"b{i}"
            argv = [str(BIN / "etcdops"), "up-env", "--runtime", "compose", "--image", image, "--cluster", name]
            ours.append(timed(argv, cwd=path))
            Cluster.attach(name, store=Store(path / ".etcdops")).purge()
            ports = [str(port) for port in free_ports(LocalHost(), 3, ())]
            file = path / f"hand{i}.yaml"
            text = compose
            for fixed, port in zip(("23791", "23792", "23793"), ports, strict=True):
                text = text.replace(fixed, port)
            file.write_text(text)
            hand = ["docker", "compose", "-p", f"etcdops-bench-{os.getpid()}-{i}", "-f", str(file)]
            env = {**os.environ, "ETCD_IMAGE": image}
            try:
                script = shlex.join([*hand, "up", "-d"]) + POLL
                endpoints = ",".join(f"http://127.0.0.1:{port}" for port in ports)
                by_hand.append(timed(["sh", "-c", script, "sh", etcdctl, endpoints], cwd=path, env=env))
            finally:
                subprocess.run([*hand, "down", "--volumes"], check=True, capture_output=True, env=env)
            say(f"compose-up-env {i + 1}/10: {ours[-1]:.0f} ms, by hand {by_hand[-1]:.0f} ms")
    extra = min(ours) - min(by_hand)
    figure = f"{min(ours):.0f} - {min(by_hand):.0f} = {extra:+.0f} ms (medians {median(ours)} - {median(by_hand)})"
    row("up-env on Compose - by hand, fastest of 10", figure, "<= +400 ms", extra <= 400)


def compose_ctl() -> None:
    """`ctl -- member list` on a cluster in containers against `docker exec client etcdctl member list`."""
    with place() as path:
        argv = [str(BIN / "etcdops"), "up-env", "--runtime", "compose", "--offline"]
        subprocess.run(argv, cwd=path, check=True, capture_output=True)
        record = Cluster.attach("lab", store=Store(path / ".etcdops")).record
        client = Engine().containers(cluster_id=record.id, role="client")[0].id
        sides = {
            "docker exec": ["docker", "exec", client, "etcdctl", "member", "list"],
            "etcdops ctl": [str(BIN / "etcdops"), "ctl", "--", "member", "list"],
        }
        took: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(25):
            for name, each in sides.items():
                took[name].append(timed(each, cwd=path))
    middle = {name: statistics.median(values) for name, values in took.items()}
    over = middle["etcdops ctl"] - middle["docker exec"]
    figure = f"{middle['etcdops ctl']:.0f} - {middle['docker exec']:.0f} = {over:+.0f} ms"
    row("etcdops ctl on Compose - docker exec, medians of 25", figure, "<= 0 ms", over <= 0)


def failed_leader() -> None:
    """From the fault to the verdict, against the outage that was measured."""
    with place() as path:
        cluster = Cluster.create("lab", store=Store(path / ".etcdops"), offline=True)
        cluster.up()
        over = []
        for i in range(5):
            verdict = drills.run("failed-leader", cluster, how="kill")
            ended_ns = time.monotonic_ns()
            inject = next(event for event in verdict.timeline if event.event == "inject")
            began_ns = int(_fact(verdict.folder / "run.json", "began_ns"))
            took = (ended_ns - began_ns) / 1e6 - inject.t_ms
            outage = verdict.outage.write_ms if verdict.outage and verdict.outage.write_ms else 0.0
            over.append(took - outage)
            say(f"failed-leader {i + 1}/5: {verdict.verdict}, fault to verdict {took:.0f} ms, outage {outage:.0f} ms")
    figure = f"{min(over):+.0f} .. {max(over):+.0f} ms, median {median(over)}"
    row("failed-leader, fault to verdict - outage, 5 runs", figure, "<= +3000 ms", statistics.median(over) <= 3000)


def traffic() -> None:
    """1,000 writes a second in all: processor time of the process that sends them, and how late it sends."""
    shares, lates = [], []
    with place() as path:
        cluster = Cluster.create("lab", store=Store(path / ".etcdops"), offline=True)
        cluster.up()
        for i in range(3):
            plan = TrafficPlan(
                run=f"bench-{i}",
                endpoints={m.name: m.client_url for m in cluster.members},
                output=str(path / f"history-{i}.jsonl"),
                rate=250,
                reads=False,
            )
            with Traffic.start(plan, path / "traffic.log") as sending:
                sending.wait_running(20.0)
                time.sleep(8.0)
                summary = sending.stop()
            shares.append(100 * summary.cpu_s / ((summary.ended_ns - summary.began_ns) / 1e9))
            lates.append(summary.late_p99_ms)
            sent = sum(counts.sent for counts in summary.streams.values())
            say(f"traffic {i + 1}/3: {sent} writes, {shares[-1]:.0f} % of a core, p99 lateness {lates[-1]:.1f} ms")
    row(
        "traffic of 1,000 writes/s, best of 3: processor",
        f"{min(shares):.0f} % of one core",
        "<= 60 %",
        min(shares) <= 60,
    )
    row("the same: p99 of send lateness", f"{min(lates):.1f} ms", "<= 20 ms", min(lates) <= 20)


#: Mixed operations a second that are recorded while every member is watched, until one rate is too high.
RECORDED = (1000, 1500, 2000, 2500, 3000)


def recording() -> None:
    """Mixed operations, recorded whole, with a watch through every member: processor, lateness, size, highest rate."""
    highest = 0
    with place() as path:
        cluster = Cluster.create("lab", store=Store(path / ".etcdops"), offline=True)
        cluster.up()
        for rate in RECORDED:
            best: tuple[float, float, float] | None = None
            for i in range(3):
                found = _record(cluster, path / f"{rate}-{i}", rate)
                say(
                    f"recording {rate}/s {i + 1}/3: {found[1]:.0f} % of a core, p99 lateness {found[0]:.1f} ms,"
                    f" {found[2]:.0f} bytes an operation"
                )
                best = found if best is None else min(best, found)
            assert best is not None
            late, share, size = best
            if rate == RECORDED[0]:
                row(
                    f"recording of {rate:,} operations/s: processor",
                    f"{share:.0f} % of one core",
                    "<= 80 %",
                    share <= 80,
                )
                row("the same: p99 of send lateness", f"{late:.1f} ms", "<= 20 ms", late <= 20)
                row("the same: an operation, compressed", f"{size:.0f} bytes", "<= 200 bytes", size <= 200)
            if late > 20:
                break
            highest = rate
    row("highest rate recorded within 20 ms", f"{highest:,} operations/s", ">= 1,000", highest >= 1000)


def _record(cluster: Cluster, folder: Path, rate: int) -> tuple[float, float, float]:
    """Give the p99 of send lateness in ms, the share of a core in percent, and the bytes of an operation's record."""
    folder.mkdir()
    with wire.Connection(cluster.endpoints[0]) as etcd:
        revision = etcd.range(b"bench", timeout_s=5.0).revision
    # Half from the probes, which measure the outage, and half from the clients.
    plan = TrafficPlan(
        run=folder.name,
        endpoints={m.name: m.client_url for m in cluster.members},
        output=str(folder / "history.jsonl"),
        rate=rate // 2 // (len(cluster.members) + 2),
        clients=10,
        client_rate=rate // 20,
        watch_from=revision + 1,
    )
    with Traffic.start(plan, folder / "traffic.log") as sending:
        sending.wait_running(20.0)
        time.sleep(8.0)
        summary = sending.stop_sending()
        with wire.Connection(cluster.endpoints[0]) as etcd:
            tombstone = etcd.put(b"bench", b"", timeout_s=5.0).revision
        closed = sending.close(tombstone)
    assert all(watch.reached for watch in closed.watches.values()), closed
    sent = sum(counts.sent for counts in summary.streams.values())
    share = 100 * summary.cpu_s / ((summary.ended_ns - summary.began_ns) / 1e9)
    return summary.late_p99_ms, share, (folder / "history.jsonl.gz").stat().st_size / sent


def calibration() -> None:
    """A one-member etcd is frozen for 1,000 ms, 20 times: how far off is the outage that is measured?"""
    errors, resolutions, inside = [], [], 0
    with place() as path:
        cluster = Cluster.create("one", size=1, store=Store(path / ".etcdops"), offline=True)
        cluster.up()
        member = cluster.members[0]
        plan = TrafficPlan(
            run="calibration",
            endpoints={member.name: member.client_url},
            output=str(path / "history.jsonl"),
            rate=200,
            deadline_s=3.0,
            failover=False,
            reads=False,
        )
        windows = []
        with Traffic.start(plan, path / "traffic.log") as sending:
            sending.wait_running(20.0)
            for _ in range(20):
                time.sleep(0.5)
                began = time.monotonic_ns()
                member.pause()
                frozen = time.monotonic_ns()
                time.sleep(max(0.0, 1.0 - (frozen - began) / 1e9))
                thawing = time.monotonic_ns()
                member.resume()
                windows.append((began, frozen, thawing, time.monotonic_ns()))
            time.sleep(0.5)
            sending.stop()
        history = [op for op in read_history(path / "history.jsonl") if op.stream == pinned_stream(member.name)]
    for began, frozen, thawing, ended in windows:
        near = [op for op in history if began - 400_000_000 <= op.scheduled_ns <= ended + 400_000_000]
        seen = measure(near, inject_ns=began, heal_ns=ended, rate=200).streams[pinned_stream(member.name)]
        # It was frozen for some time between these two: from when it was seen to be until it was told to go on, and
        # from when it was told to stop until it was seen to go on.
        least, most = (thawing - frozen) / 1e6, (ended - began) / 1e6
        error = min(seen.gap_ms - least, 0.0) or max(seen.gap_ms - most, 0.0)
        errors.append(error)
        inside += abs(error) <= seen.resolution_ms
        resolutions.append(seen.resolution_ms)
    say(f"errors in ms, each beside its resolution: {', '.join(map('{:+.1f}/{:.1f}'.format, errors, resolutions))}")
    figure = f"{min(errors):+.1f} .. {max(errors):+.1f} ms, {inside}/20 within resolution"
    row("outage of a 1,000 ms freeze, error over 20", figure, "error <= resolution", inside == 20)


@contextmanager
def large_database() -> Iterator[tuple[Path, Cluster]]:
    """A place with a cluster of one member whose database is 500 MB and more."""
    with place() as path:
        cluster = Cluster.create("lab", size=1, store=Store(path / ".etcdops"), offline=True)
        cluster.up()
        with wire.Connection(cluster.endpoints[0]) as etcd:
            for i in range(480):
                etcd.put(f"bench/{i:03}".encode(), os.urandom(2**20), timeout_s=60.0)
        say(f"a database of {cluster.members[0].status().db_size / 1e6:.0f} MB is made")
        yield path, cluster


def _resident_mb(argv: list[str], **options: object) -> tuple[float, float]:
    """Run a command; give how many milliseconds it took, and how much memory of its own it had at most, in MB."""
    # Linux counts the largest of all children that have ended: one child, in a process of its own.
    script = (
        "import resource, subprocess, sys, time; began = time.perf_counter();"
        "subprocess.run(sys.argv[1:], check=True, stdin=subprocess.DEVNULL, stdout=2);"
        "took = 1000 * (time.perf_counter() - began);"
        "print(took, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6)"
    )
    done = subprocess.run([sys.executable, "-c", script, *argv], check=True, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    took, resident = map(float, done.stdout.split())
    return took, resident


def snapshot_save() -> None:
    """`snapshot.save` of a 500 MB database against `etcdctl snapshot save`: time, and memory at most."""
    ours, by_hand, resident = [], [], []
    etcdctl = str(binaries.find(offline=True).etcdctl)
    with large_database() as (path, cluster):
        for i in range(5):
            file = path / "by-hand.db"
            by_hand.append(timed([etcdctl, f"--endpoints={cluster.endpoints[0]}", "snapshot", "save", str(file)]))
            file.unlink()
            took, most = _resident_mb([str(BIN / "etcdops"), "snapshot.save", str(path / "ours.db")], cwd=path)
            ours.append(took)
            resident.append(most)
            (path / "ours.db").unlink()
            (path / "ours.db.json").unlink()
            say(f"snapshot-save {i + 1}/5: {ours[-1]:.0f} ms and {most:.0f} MB, by hand {by_hand[-1]:.0f} ms")
    ratio = min(ours) / min(by_hand)
    figure = f"{min(ours):.0f} / {min(by_hand):.0f} = {ratio:.2f} (medians {median(ours)} / {median(by_hand)})"
    row("snapshot.save / etcdctl's, fastest of 5", figure, "<= 1.4", ratio <= 1.4)
    row("the same: memory at most", f"{max(resident):.0f} MB", "<= 100 MB", max(resident) <= 100)


def snapshot_verify() -> None:
    """`snapshot.verify` of a 500 MB snapshot against `sha256sum` and `etcdutl snapshot status`."""
    ours, by_hand = [], []
    etcdutl = str(binaries.find(offline=True).etcdutl)
    with large_database() as (path, cluster):
        file = save_snapshot(cluster, path / "x.db").path
        script = 'sha256sum "$1" && "$2" snapshot status "$1" -w json'
        for i in range(5):
            by_hand.append(timed(["sh", "-c", script, "sh", file, etcdutl]))
            ours.append(timed([str(BIN / "etcdops"), "snapshot.verify", file], cwd=path))
            say(f"snapshot-verify {i + 1}/5: {ours[-1]:.0f} ms, by hand {by_hand[-1]:.0f} ms")
    ratio = min(ours) / min(by_hand)
    figure = f"{min(ours):.0f} / {min(by_hand):.0f} = {ratio:.2f} (medians {median(ours)} / {median(by_hand)})"
    row("snapshot.verify / sha256sum + etcdutl, best of 5", figure, "<= 1.2", ratio <= 1.2)


def snapshot_restore() -> None:
    """Data of three members from a 500 MB snapshot, checked, against three `etcdutl snapshot restore` in parallel."""
    ours: list[float] = []
    by_hand: list[float] = []
    with large_database() as (path, cluster):
        file = save_snapshot(cluster, path / "x.db").path
        cluster.down()
        record = Cluster.create("three", store=cluster.store, offline=True).record
        runtime = ProcessRuntime()
        restoration = examine(file, record.etcd_version, progress=say).restoration(10**9)
        script = " & ".join(runtime.restore_by_hand(record, restoration)) + " & wait"

        def make() -> float:
            began = time.perf_counter()
            runtime.restore_data(record, restoration, progress=lambda text: None)
            seen = runtime.look_into(record, record.spec.names)
            assert not any(isinstance(each, str) for each in seen.values()), seen
            return (time.perf_counter() - began) * 1000

        for i in range(6):
            # Whoever comes second may find the disk busy with what the first has written, or its blocks at hand.
            for side in (by_hand, ours) if i % 2 else (ours, by_hand):
                os.sync()
                side.append(make() if side is ours else timed(["sh", "-c", script]))
                runtime.drop_data(record)
            say(f"snapshot-restore {i + 1}/6: {ours[-1]:.0f} ms, by hand {by_hand[-1]:.0f} ms")
    ratio = min(ours) / min(by_hand)
    figure = f"{min(ours):.0f} / {min(by_hand):.0f} = {ratio:.2f} (medians {median(ours)} / {median(by_hand)})"
    row("restoring three members / three etcdutl, best of 6", figure, "<= 1.2", ratio <= 1.2)


def _fact(path: Path, name: str) -> str:
    import json

    return str(json.loads(path.read_text())[name])


def member_add() -> None:
    """Adding a fourth member, from the members' start on: etcd itself lets nobody join for five seconds."""
    took = []
    for i in range(5):
        with place() as path:
            cluster = Cluster.create("lab", store=Store(path / ".etcdops"), offline=True)
            cluster.up()
            started = time.monotonic()
            cluster.add_member()
            took.append(time.monotonic() - started)
            say(f"member.add {i + 1}/5: {took[-1]:.2f} s")
    figure = f"{min(took):.2f} .. {max(took):.2f} s, median {statistics.median(took):.2f}"
    row("member.add 3 to 4, from a fresh start", figure, "<= 5 + 3 s", statistics.median(took) <= 8.0)


def _register_history(seed: int, *, clients: int = 10, operations: int = 90) -> list[Event]:
    """A history as Jepsen's register test makes it: reads, writes and compares of five values, one in ten unknown.

    Every second one ends with an answer that nothing explains, so that all there is has to be searched.
    """
    draw = random.Random(seed)
    busy = [0] * clients
    value: int | None = None
    now, events = 0, []
    for _ in range(operations):
        client = min(range(clients), key=lambda c: (busy[c], draw.random()))
        call = busy[client]
        # It takes effect at `now`, which is between its call and its return.
        now = max(now + draw.randint(1, 3), call)
        busy[client] = return_ = now + draw.randint(1, 20)
        f = draw.choice(("read", "write", "cas"))
        unknown = f != "read" and draw.random() < 0.1
        arguments: tuple[int, ...] = ()
        answer: object = value
        if f == "write":
            arguments, answer = (draw.randrange(5),), None
        elif f == "cas":
            arguments = (draw.randrange(5), draw.randrange(5))
            answer = arguments[0] == value
        if (f == "write" or (f == "cas" and answer)) and not (unknown and draw.random() < 0.5):
            value = arguments[-1]
        kind: Literal["ok", "unknown"] = "unknown" if unknown else "ok"
        events.append(Event(client, f, "k", arguments, kind, None if unknown else answer, call, return_))
    if seed % 2:
        last = max(i for i, event in enumerate(events) if event.f == "read")
        events[last] = msgspec.structs.replace(events[last], answer=-1)
    return events


def search_register() -> None:
    """The linearizability search over 100 histories of a register: 10 clients, 90 operations, some unknown."""
    histories = [_register_history(seed) for seed in range(100)]
    best, verdicts, states, worst = math.inf, {"passed": 0, "failed": 0, "inconclusive": 0}, 0, 0.0
    for attempt in range(5):
        began = time.process_time()
        results = [search(history, "register", explain=False) for history in histories]
        took = time.process_time() - began
        if took < best:
            best, states = took, sum(result.states for result in results)
            verdicts = {each: sum(result.result == each for result in results) for each in verdicts}
            worst = max(result.seconds for result in results)
        say(f"search {attempt + 1}/5: {took:.2f} s")
    what = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items() if count)
    say(f"search: {what}; {states:,} states, {max(r.states for r in results):,} at most; {1000 * worst:.0f} ms at most")
    began = time.process_time()
    small = sum(search(history, "register").minimal for history in histories)
    say(f"search: with {small} minimal counterexamples {time.process_time() - began:.2f} s")
    figure = f"{best:.2f} s, {states:,} states"
    row("search: 100 register histories, fastest of 5", figure, "<= 1 s", best <= 1.0)


def witness() -> None:
    """The revision witness over 10,000 to 3 million mixed operations and three members' logs: time and memory."""
    figures: dict[int, dict[str, float]] = {}
    for size in (10_000, 100_000, 1_000_000, 3_000_000):
        with tempfile.TemporaryDirectory(prefix="etcdops-bench-", dir=ROOT / ".etcdops-bench") as name:
            _big_history("write", name, str(size))
            runs = [_check_in_a_process(name) for _ in range(3 if size < 3_000_000 else 1)]
        best = {what: min(run[what] for run in runs) for what in ("read_s", "check_s", "processor_s", "mb")}
        figures[size] = best
        each = best["check_s"] * 1e9 / (size * math.log2(size))
        say(
            f"witness, {size:,} operations: read in {best['read_s']:.2f} s, checked in {best['check_s']:.2f} s"
            f" ({each:.0f} ns for each n log n), {best['processor_s']:.2f} s of processors, {best['mb']:.0f} MB"
        )
    million, most = figures[1_000_000], figures[3_000_000]
    row(
        "witness, 1,000,000 operations from columns",
        f"{million['check_s']:.2f} s",
        "<= 3.5 s",
        million["check_s"] <= 3.5,
    )
    whole = million["read_s"] + million["check_s"]
    row("the same from files", f"{whole:.2f} s", "<= 6 s", whole <= 6.0)
    row("the same: most memory", f"{million['mb']:.0f} MB", "<= 600 MB", million["mb"] <= 600)
    grown = most["check_s"] / million["check_s"]
    due = 3 * math.log2(3_000_000) / math.log2(1_000_000)
    row("witness, 3,000,000 operations", f"{grown:.2f} times as long", f"n log n: {due:.2f} times", grown <= 1.3 * due)


def verification() -> None:
    """A minute of a drill's traffic, verified from its folder three times: processor time for five minutes of it."""
    with place() as path:
        cluster = Cluster.create("lab", store=Store(path / ".etcdops"), offline=True)
        cluster.up()
        verdict = drills.run("failed-leader", cluster, how="kill", baseline_s=_RECORDED_S)
        history = read_history(verdict.folder / "history.jsonl")
        lasted_s = (max(op.return_ns for op in history) - min(op.call_ns for op in history)) / 1e9
        took = []
        for i in range(3):
            began = time.process_time()
            again = recheck(verdict.folder)
            took.append(time.process_time() - began)
            say(f"verification {i + 1}/3: {again.verdict}, {len(history):,} operations in {took[-1]:.2f} s")
    each = min(took) * 300 / lasted_s
    what = f"{each:.2f} s ({len(history) * 300 / lasted_s:,.0f} operations)"
    row("verification of a five-minute drill, best of 3", what, "<= 5 s", each <= 5.0)


def report() -> None:
    """A page of 100,000 operations: its size, how long it takes to make, and until Chromium has drawn it."""
    with place() as path:
        folder = path / "20260102-030405-failed-leader-1a2b"
        writing = [sys.executable, str(ROOT / "scripts/big_run.py"), str(folder), "100000"]
        subprocess.run(writing, check=True, stdin=subprocess.DEVNULL)
        call = "from etcdops.report.html import write_report; write_report(Path(sys.argv[1]))"
        making = [sys.executable, "-c", f"import sys; from pathlib import Path; {call}", str(folder)]
        took = []
        for i in range(3):
            began = time.perf_counter()
            subprocess.run(making, check=True, stdin=subprocess.DEVNULL)
            took.append(time.perf_counter() - began)
            say(f"page {i + 1}/3: {took[-1]:.2f} s")
        page = folder / "index.html"
        size = page.stat().st_size / 1e6
        row("page of 100,000 operations, size", f"{size:.1f} MB", "<= 8 MB", size <= 8.0)
        row("page of 100,000 operations, made, best of 3", f"{min(took):.2f} s", "<= 3 s", min(took) <= 3.0)
        drawn = [_seconds_until_drawn(page) for _ in range(3)]
    if all(each is not None for each in drawn):
        best = min(each for each in drawn if each is not None)
        row("page of 100,000 operations, interactive, best of 3", f"{best:.2f} s", "<= 2 s", best <= 2.0)


def _seconds_until_drawn(page: Path) -> float | None:
    """Give how long after it was opened a page can be used, None without a browser."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        chromium = None
    if chromium is None:
        say("chromium or playwright is not installed: how long a page takes to be drawn is not measured")
        return None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        opened.goto(page.absolute().as_uri())
        opened.wait_for_selector("#timeline[data-ready]", timeout=60_000)
        # The page notes it by the browser's own clock, from when it was opened.
        ms = float(opened.evaluate("document.getElementById('timeline').dataset.ready"))
        browser.close()
    say(f"drawn after {ms:.0f} ms")
    return ms / 1000


#: For how long a drill records before its fault, for `verification`.
_RECORDED_S = 55.0


def _big_history(*argv: str) -> str:
    command = [sys.executable, str(ROOT / "scripts/big_history.py"), *argv]
    return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True).stdout


def _check_in_a_process(folder: str) -> dict[str, float]:
    """Give the figures of `big_history.check_history`, with the most memory that it and what it began had at one time.

    What the processes share is counted for each. A peak between two looks is seen only within one process.
    """
    command = [sys.executable, str(ROOT / "scripts/big_history.py"), "check", folder]
    most = 0.0
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            most = max(most, _together_mb(process.pid))
            time.sleep(0.01)
        assert process.stdout is not None
        said = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"the check of a legal history ended with {process.returncode}")
    figures: dict[str, Any] = json.loads(said)
    if figures["result"] != "passed":
        raise SystemExit(f"a legal history was not passed: {figures['detail']}")
    figures["mb"] = max(figures["mb"], most)
    return figures


def _together_mb(pid: int) -> float:
    """Give the resident memory of a process and of its children, 0 once they are gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6 + sum(_together_mb(int(child)) for child in children)


BENCHMARKS: dict[str, Callable[[], None]] = {
    "up-env": up_env,
    "ctl": ctl,
    "compose-up-env": compose_up_env,
    "compose-ctl": compose_ctl,
    "failed-leader": failed_leader,
    "member-add": member_add,
    "traffic": traffic,
    "recording": recording,
    "calibration": calibration,
    "search": search_register,
    "snapshot-save": snapshot_save,
    "snapshot-verify": snapshot_verify,
    "snapshot-restore": snapshot_restore,
    "witness": witness,
    "verification": verification,
    "report": report,
    **host_benchmarks.BENCHMARKS,
}


def main() -> None:
    """Run the benchmarks that were named, or all."""
    listing = "\n".join(f"  {name:<15} {body.__doc__}" for name, body in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure etcdops against what a person would do by hand.",
        epilog=listing,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="*", help="which (default: all)")
    names = parser.parse_args().name or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}: there are {', '.join(BENCHMARKS)}")
    (ROOT / ".etcdops-bench").mkdir(exist_ok=True)
    try:
        for name in names:
            BENCHMARKS[name]()
    except EtcdopsError as error:
        raise SystemExit(f"{name}: {error}\n{error.remedy}".rstrip()) from None
    finally:
        (ROOT / ".etcdops-bench").rmdir()


if __name__ == "__main__":
    main()
