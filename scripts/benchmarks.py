"""The benchmarks behind `scripts/bench`.

Each compares within one run, its sides taking turns, with something that a person would do by hand; a machine that is
slow or busy slows both. Budgets are printed beside the figures, and nothing fails when one is missed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from etcdops import binaries, drills, wire
from etcdops.cluster import Cluster
from etcdops.docker import images
from etcdops.docker.engine import Engine
from etcdops.hosts import LocalHost
from etcdops.ports import free_ports
from etcdops.runtimes.process import ProcessRuntime
from etcdops.snapshots.examining import examine
from etcdops.snapshots.saving import save_snapshot
from etcdops.spec import ClusterSpec
from etcdops.state import Store
from etcdops.workload.history import pinned_stream, read_history
from etcdops.workload.outage import measure
from etcdops.workload.plan import TrafficPlan
from etcdops.workload.traffic import Traffic

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent


def say(text: str) -> None:
    """Tell a person what goes on."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def row(what: str, figure: str, budget: str, met: bool) -> None:
    """Print a result."""
    print(f"{what:<46} {figure:<44} {budget:<34} {'met' if met else 'MISSED'}", flush=True)


def timed(argv: list[str], **options: object) -> float:
    """Run a command and give how many milliseconds it took; its failure ends the benchmark."""
    began = time.perf_counter()
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True, **options)  # type: ignore[call-overload]
    return (time.perf_counter() - began) * 1000


@contextmanager
def place() -> Iterator[Path]:
    """A fresh directory with the project's tasks, whose clusters are removed at the end."""
    with tempfile.TemporaryDirectory(prefix="etcdops-bench-", dir=ROOT / ".etcdops-bench") as name:
        path = Path(name)
        (path / "tasks.py").write_text((ROOT / "tasks.py").read_text() + NOOP)
        try:
            yield path
        finally:
            store = Store(path / ".etcdops")
            for cluster in store.names():
                Cluster.attach(cluster, store=store).purge()


def _end(hand: Path) -> None:
    """Kill the members that the shell script started: they carry no name but their recorded ids."""
    for pid in (hand / "pids").read_text().split():
        try:
            os.kill(int(pid), 9)
        except ProcessLookupError:
            say(f"process {pid} of {hand.name} had died: {(hand / 'a.log').read_text()[-300:]}")


NOOP = """
from invoke import task
@task
def noop(c): pass
"""

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

POLL = """
until "$1" --endpoints="$2" --command-timeout=500ms --dial-timeout=500ms put bench ok >/dev/null 2>&1; do :; done
"""


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
    figure = f"{min(ours):.0f} - {min(by_hand):.0f} = {extra:+.0f} ms (medians {_median(ours)} - {_median(by_hand)})"
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
    figure = f"{min(ours):.0f} - {min(by_hand):.0f} = {extra:+.0f} ms (medians {_median(ours)} - {_median(by_hand)})"
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
    figure = f"{min(over):+.0f} .. {max(over):+.0f} ms, median {_median(over)}"
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


def calibration() -> None:
    """A one-member etcd is frozen for 1,000 ms, 20 times: how far off is the outage that is measured?"""
    errors, inside = [], 0
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
    figure = f"{min(ours):.0f} / {min(by_hand):.0f} = {ratio:.2f} (medians {_median(ours)} / {_median(by_hand)})"
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
    figure = f"{min(ours):.0f} / {min(by_hand):.0f} = {ratio:.2f} (medians {_median(ours)} / {_median(by_hand)})"
    row("snapshot.verify / sha256sum + etcdutl, best of 5", figure, "<= 1.2", ratio <= 1.2)


def snapshot_restore() -> None:
    """Data of three members from a 500 MB snapshot, checked, against three `etcdutl snapshot restore` in parallel."""
    ours, by_hand = [], []
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
    figure = f"{min(ours):.0f} / {min(by_hand):.0f} = {ratio:.2f} (medians {_median(ours)} / {_median(by_hand)})"
    row("restoring three members / three etcdutl, best of 6", figure, "<= 1.2", ratio <= 1.2)


def _fact(path: Path, name: str) -> str:
    import json

    return str(json.loads(path.read_text())[name])


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):.0f}"


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


BENCHMARKS: dict[str, Callable[[], None]] = {
    "up-env": up_env,
    "ctl": ctl,
    "compose-up-env": compose_up_env,
    "compose-ctl": compose_ctl,
    "failed-leader": failed_leader,
    "member-add": member_add,
    "traffic": traffic,
    "calibration": calibration,
    "snapshot-save": snapshot_save,
    "snapshot-verify": snapshot_verify,
    "snapshot-restore": snapshot_restore,
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
    finally:
        (ROOT / ".etcdops-bench").rmdir()


if __name__ == "__main__":
    main()
