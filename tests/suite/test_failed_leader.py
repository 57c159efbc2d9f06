"""The leader drill on real etcd, on every runtime: what it does, what it proves, what it leaves."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from etcdops import drills, runtimes
from etcdops.cluster import Cluster
from etcdops.errors import Refused
from etcdops.faults.member import lacks
from etcdops.ops import Put
from etcdops.report.html import write_report
from etcdops.report.verdict import Verdict
from etcdops.spec import ClusterSpec
from etcdops.workload.history import read_history
from tests.conftest import CommandLine, assert_passed, place, place_with_lab

Wait = Callable[..., None]

#: What varies in etcdops alone varies with one runtime.
on_processes = pytest.mark.runtime("process")


@pytest.fixture(scope="module")
def home(etcd_cluster_runtime: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A place with a cluster of three, "lab", that the tests of a runtime share; at etcd's own timing."""
    with place_with_lab(tmp_path_factory.mktemp("leader"), etcd_cluster_runtime) as line:
        yield line


@pytest.fixture
def shared(home: CommandLine) -> Iterator[CommandLine]:
    """That place, with its cluster up, also where a test before has failed; nothing is left of any drill afterwards."""
    if _frozen_or_gone(home.cluster()):
        assert home("up-env").code == 0
    home.cluster().client().delete_prefix("etcdops/")
    yield home
    cluster = home.cluster()
    assert _frozen_or_gone(cluster) == []
    assert cluster.store.unhealed("lab") is None
    assert list(cluster.client().get_prefix("etcdops/")) == []


@pytest.fixture
def lab(shared: CommandLine) -> Cluster:
    """Its cluster, all of whose members serve."""
    cluster = shared.cluster()
    cluster.wait_healthy(timeout_s=30)
    return cluster


@pytest.fixture(scope="module")
def stopped(home: CommandLine) -> tuple[str, Verdict]:
    """The run in which the leader is stopped, beside its name; there is a key of somebody else."""
    cluster = home.cluster()
    cluster.wait_healthy(timeout_s=30)
    cluster.client().put("mine", "untouched")
    leader = cluster.leader().name
    return leader, drills.run("failed-leader", cluster, how="stop", rate=20, baseline_s=0.5, seed=7)


@pytest.mark.parametrize("how", ["kill", "freeze", "stop", "isolate", "unplug"])
def test_leader_taken_away_in_each_way(lab: Cluster, stopped: tuple[str, Verdict], how: str) -> None:
    """However the leader goes, another leads at a higher term, no acknowledged write is lost, and all is as before."""
    if lacks(lab.runtime, how):
        # What the runtime cannot do it refuses, before anything is touched.
        before = sorted(lab.store.runs.iterdir())
        with pytest.raises(Refused, match=f"the runtime {lab.runtime.name} cannot {how} a member") as refused:
            drills.run("failed-leader", lab, how=how)
        assert (refused.value.exit_code, lab.runtime.name) == (3, "process")
        assert how in ("isolate", "unplug")
        assert sorted(lab.store.runs.iterdir()) == before
        return
    if how == "stop":
        leader, verdict = stopped
    else:
        said: list[str] = []
        leader = lab.leader().name
        ref = lab.record.member(leader).ref
        verdict = drills.run("failed-leader", lab, how=how, rate=20, baseline_s=0.5, say=said.append)
        if (lab.runtime.name, how) == ("compose", "kill"):
            assert {f"docker kill {ref[:12]}", f"docker start {ref[:12]}"} <= _typed(said), said
    assert_passed(verdict)
    assert verdict.fault is not None
    assert (verdict.fault.kind, verdict.fault.member) == (how, leader)
    assert verdict.writes.acknowledged > 100
    assert verdict.check("caught up").result == "passed"
    assert verdict.outage is not None
    assert verdict.outage.predicted_ms == ((0.0, 100.0) if how == "stop" else (1000.0, 1900.0))
    if how != "stop":
        # An election cannot come before the followers' election timeout, less one heartbeat of phase.
        assert (verdict.outage.write_ms or 0) > 850
    assert lab.status().verdict == "healthy"


def _typed(said: list[str]) -> set[str]:
    """Give the commands that a person would have typed, as a drill's steps show them."""
    return {line.strip().removeprefix("$ ") for text in said for line in text.splitlines() if "$ " in line}


@on_processes
def test_the_same_verdict_again_elsewhere(shared: CommandLine, tmp_path: Path) -> None:
    """`check` gives exactly the drill's verdict; also on another machine, to which only the run's folder came."""
    ended = shared("failed-leader", "--rate", "20", "--profile", "watch", "-o", "json")
    verdict = json.loads(ended.out)
    folder = Path(verdict["report"]).parent
    again = shared("check", folder.name, "-o", "json")
    assert (again.code, json.loads(again.out)) == (ended.code, verdict)
    with place(tmp_path / "other machine") as elsewhere:
        moved = elsewhere.cwd / "a run"
        folder.rename(moved)
        again = elsewhere("check", str(moved), "-o", "json")
        assert json.loads(again.out) == {**verdict, "report": str(moved / "verdict.md")}
        assert not (elsewhere.cwd / ".etcdops").exists()
        gone = shared("check", folder.name)
        assert (gone.code, f"there is no run '{folder.name}'" in gone.err) == (2, True)


def test_run_folder_keeps_everything(stopped: tuple[str, Verdict]) -> None:
    """The run's folder holds the verdict, every operation with its outcome, the journal, the logs and a page."""
    _, verdict = stopped
    folder = verdict.folder
    kept = {path.name for path in folder.iterdir()}
    assert {"run.json", "verdict.json", "verdict.md", "history.jsonl.gz", "journal.jsonl", "ironman.log"} <= kept
    assert msgspec.json.decode((folder / "verdict.json").read_bytes(), type=Verdict) == verdict
    history = read_history(folder / "history.jsonl")
    assert verdict.outage
    probes = [op for op in history if op.stream in verdict.outage.streams and isinstance(op.request, Put)]
    assert len({op.request.value for op in probes if isinstance(op.request, Put)}) == len(probes)
    assert {op.stream for op in probes} == {"pinned.ironman", "pinned.thor", "pinned.deadpool", "failover-write"}
    assert sum(op.outcome == "ok" for op in probes) <= verdict.writes.acknowledged
    assert all(op.call_ns >= op.scheduled_ns and op.return_ns >= op.call_ns for op in history)
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["seed"], facts["options"], facts["rate"]) == (7, {"how": "stop"}, 20)
    events = [event.event for event in verdict.timeline]
    assert [e for e in events if e in ("inject", "injected", "new-leader", "heal", "healed", "caught-up")] == [
        "inject",
        "injected",
        "new-leader",
        "heal",
        "healed",
        "caught-up",
    ]
    assert "## Outage" in (folder / "verdict.md").read_text()


def test_the_run_knows_its_disks(stopped: tuple[str, Verdict], lab: Cluster) -> None:
    """Of each member: its file system as the machine names it, and within which time 99 in 100 fsyncs ended."""
    _, verdict = stopped
    disks = json.loads((verdict.folder / "disks.json").read_text())["members"]
    assert set(disks) == {"ironman", "thor", "deadpool"}
    place = lab.record.members[0].data.place
    if lab.record.runtime == "process":
        kind = subprocess.run(["df", "-PT", place], capture_output=True, text=True, check=True).stdout.split()[-6]
        assert {disk["file_system"] for disk in disks.values()} == {kind}
    assert all(disk["file_system"] for disk in disks.values())
    for name, disk in disks.items():
        assert disk["fsyncs"] > 0, name
        assert disk["p99_ms"] is None or disk["p99_ms"] in [2.0**power for power in range(14)]
    page = write_report(verdict.folder).read_text()
    assert f'<td class="wrap">{disks["thor"]["file_system"]}</td>' in page
    assert "fsyncs)" in page
    assert "not recorded" not in page


def test_all_keys_are_deleted_and_foreign_ones_kept(lab: Cluster, stopped: tuple[str, Verdict]) -> None:
    """After a run nothing is left under etcdops/, and what was in the cluster before is untouched."""
    client = lab.client()
    assert list(client.get_prefix("etcdops/")) == []
    assert client.get("mine")[0] == b"untouched"


@on_processes
def test_brings_the_environment_up_and_leaves_it_up(cli: CommandLine) -> None:
    """Without a cluster, the drill creates one, as the original lab's did, and leaves it up; a second drill uses it."""
    first = cli("failed-leader", "--how", "freeze", "--rate", "20")
    assert first.code == 0, first.err
    assert "PASSED" in first.out
    assert "creating it with 3 members" in first.err
    assert cli("status").code == 0
    assert cli("down-env").code == 0
    again = cli("failed-leader", "--how", "freeze", "--rate", "20", "-o", "json", program="invoke")
    assert again.code == 0, again.err
    assert "bringing it up" in again.err
    verdict = json.loads(again.out)
    assert verdict["schema"] == 1
    assert verdict["writes"]["lost"] == 0


@on_processes
def test_json_of_one_run_and_of_several(shared: CommandLine) -> None:
    """`-o json` is verdict.json; with --repeat it is the runs and their distribution, a folder each."""
    ended = shared("failed-leader", "--how", "freeze", "--rate", "20", "--repeat", "2", "--seed", "5", "-o", "json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert document["schema"] == 1
    assert [run["seed"] for run in document["runs"]] == [5, 6]
    assert document["distribution"]["n"] == 2
    folders = [Path(run["report"]).parent for run in document["runs"]]
    assert len(set(folders)) == 2
    for run, folder in zip(document["runs"], folders, strict=True):
        assert json.loads((folder / "verdict.json").read_text()) == run


@on_processes  # as containers have it, above
def test_each_step_shows_the_command_a_person_would_have_typed(shared: CommandLine) -> None:
    """Steps are numbered and timed, and each names the plain command; stdout holds the verdict alone."""
    ended = shared("failed-leader", "--how", "kill", "--rate", "20")
    assert ended.code in (0, 1), ended.err
    for step in range(1, 7):
        assert f" {step}/6 " in ended.err
    leader = re.search(r"take (\w+) away: kill", ended.err)
    assert leader
    assert re.search(r"\$ kill -KILL \d+\n", ended.err)
    assert "--data-dir=" in ended.err
    assert ended.out.startswith("failed-leader (kill ")


@on_processes
def test_pause_waits_for_a_key_between_steps(shared: CommandLine) -> None:
    """With --pause on a terminal, each step but the first waits for a key."""
    ours, theirs = pty.openpty()
    process = shared.start("failed-leader", "--how", "freeze", "--rate", "20", "--pause", stdin=theirs)
    os.close(theirs)
    prompts = 0
    assert process.stderr is not None
    buffer = ""
    while True:
        piece = process.stderr.read(1)
        if not piece:
            break
        buffer += piece
        if buffer.endswith("press a key to go on ..."):
            prompts += 1
            os.write(ours, b"x")
    assert process.wait(timeout=60) == 0, buffer
    assert prompts == 5
    os.close(ours)


def _frozen_or_gone(cluster: Cluster) -> list[str]:
    return [m.name for m in cluster.members if m.state() != "running"]


def _until_injected(cli: CommandLine, process: subprocess.Popen[str], wait_until: Wait) -> Cluster:
    """Wait until the fault is in force."""
    wait_until(lambda: cli.store.exists("lab"), what="a cluster")
    cluster = Cluster.attach("lab", store=cli.store)

    def in_force() -> bool:
        assert process.poll() is None, process.communicate()
        fault = cli.store.unhealed("lab")
        return fault is not None and bool(fault.member) and bool(_frozen_or_gone(cluster))

    wait_until(in_force, timeout_s=40, what="a fault in force")
    return cluster


@on_processes  # in containers: test_compose_damage.py
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_heal_and_exit_with_their_number(shared: CommandLine, wait_until: Wait, signum: int) -> None:
    """A signal while the leader is frozen: it goes on again, the keys are gone, and the exit code is 128 + signal."""
    process = shared.start("failed-leader", "--how", "freeze", "--rate", "20")
    cluster = _until_injected(shared, process, wait_until)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, err
    assert "Traceback" not in err
    assert _frozen_or_gone(cluster) == []
    assert shared.store.unhealed("lab") is None
    assert list(cluster.client().get_prefix("etcdops/")) == []
    assert shared("status").code == 0


@on_processes
def test_second_signal_says_how_long_healing_needs(shared: CommandLine, wait_until: Wait) -> None:
    """A second Ctrl-C does not interrupt the healing; it says how long that takes."""
    process = shared.start("failed-leader", "--how", "kill", "--rate", "20")
    cluster = _until_injected(shared, process, wait_until)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "up to 30 s" in err
    assert _frozen_or_gone(cluster) == []


@on_processes  # in containers: test_compose_damage.py
@pytest.mark.parametrize("healer", ["heal", "up-env", "failed-leader"])
def test_kill_minus_nine_is_healed_by_the_next_command(shared: CommandLine, wait_until: Wait, healer: str) -> None:
    """After kill -9 of the drill: traffic ends by itself, every task says that a dead run is unhealed, it is healed."""
    process = shared.start("failed-leader", "--how", "freeze", "--rate", "20")
    cluster = _until_injected(shared, process, wait_until)
    traffic = _children(process.pid)
    assert traffic
    process.kill()
    process.communicate(timeout=20)
    wait_until(lambda: not any(_alive(pid) for pid in traffic), what="the end of the traffic")
    assert len(_frozen_or_gone(cluster)) == 1

    # The others elect a leader; until they have, no quorum serves.
    wait_until(lambda: shared("status").code == 4, what="a degraded cluster")
    status = shared("status", "-o", "json")
    codes = [warning["code"] for warning in json.loads(status.out)["warnings"]]
    assert "unhealed-run" in codes
    for task in (["status"], ["logs", "--since", "1s"], ["ctl", "--", "version"]):
        assert "died without healing: type `heal`" in "".join(shared(*task)[1:]), task

    extra = ["--how", "freeze", "--rate", "20"] if healer == "failed-leader" else []
    healed = shared(healer, *extra)
    assert healed.code == 0, healed.err
    assert _frozen_or_gone(cluster) == []
    assert shared.store.unhealed("lab") is None
    assert list(cluster.client().get_prefix("etcdops/")) == []
    assert "died without healing" not in shared("status").out


def _children(pid: int) -> list[int]:
    import psutil

    found = []
    for child in psutil.Process(pid).children(recursive=True):
        # Commands come and go meanwhile, and one that has just ended has no arguments.
        with suppress(psutil.Error):
            if "traffic" in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


def _alive(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@on_processes
def test_quorum_already_lost_is_aborted_and_nothing_is_touched(shared: CommandLine) -> None:
    """With two of three members stopped the drill aborts with exit 3, and stops nobody: the original stopped all."""
    cluster = Cluster.attach("lab", store=shared.store)
    cluster.member("thor").stop()
    cluster.member("deadpool").stop()
    ended = shared("failed-leader", "-o", "json")
    assert ended.code == 3, ended.err
    verdict: dict[str, Any] = json.loads(ended.out)
    assert verdict["verdict"] == "aborted"
    assert "quorum is lost" in verdict["checks"][0]["detail"]
    assert verdict["fault"] is None
    assert [m.state() for m in cluster.members] == ["running", "stopped", "stopped"]
    assert shared("up-env").code == 0


@on_processes
def test_single_member_is_refused(cli: CommandLine) -> None:
    """On one member there is nobody to elect: the drill is refused and says why."""
    assert cli("up-env", "--size", "1").code == 0
    ended = cli("failed-leader")
    assert ended.code == 3
    assert "needs 3 voters, and lab has 1" in ended.err
    by_name = cli("drill.run", "failed-leader", program="invoke")
    assert (by_name.code, by_name.err) == (3, ended.err)


def test_a_drill_that_there_is_not(cli: CommandLine) -> None:
    """An unknown drill, and an unknown way, are refused with what there is; nothing is created for them."""
    assert "Choose one of data-loss, disaster, failed-leader" in cli("drill.run", "nope").err
    unknown = cli("failed-leader", "--how", "nuke")
    assert (unknown.code, "Choose one of kill, freeze, stop" in unknown.err) == (2, True)
    small = cli("failed-leader", "--size", "1")
    assert (small.code, "a new cluster of 1 is asked for" in small.err) == (3, True)
    if lacks(runtimes.get(cli.runtime), "isolate"):
        lacking = cli("failed-leader", "--how", "isolate")
        assert (lacking.code, f"the runtime {cli.runtime} cannot isolate a member" in lacking.err) == (3, True)
    assert cli.store.names() == []


@on_processes
def test_production_is_refused(lab: Cluster) -> None:
    """No drill runs on a cluster that is marked as production."""
    record = lab.record
    lab.save(msgspec.structs.replace(record, spec=msgspec.structs.replace(record.spec, purpose="production")))
    try:
        with pytest.raises(Refused, match="production"):
            drills.run("failed-leader", lab)
    finally:
        lab.save(record)


class TestFiveMembers:
    """The same on five members."""

    @pytest.fixture
    def etcd_cluster_spec(self) -> ClusterSpec:
        """Five members."""
        return ClusterSpec.of_size("five", 5)

    @on_processes
    def test_five_members(self, etcd_cluster: Cluster) -> None:
        """Five members elect as three do."""
        verdict = drills.run("failed-leader", etcd_cluster, how="kill", rate=20, baseline_s=0.5)
        assert_passed(verdict)
        assert len(verdict.cluster.members) == 5
