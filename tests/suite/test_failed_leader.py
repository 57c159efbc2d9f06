"""The leader drill on real etcd, on every runtime: what it does, what it proves, what it leaves."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from etcdops import drills, runtimes
from etcdops.cluster import Cluster
from etcdops.errors import Refused
from etcdops.faults.member import lacks
from etcdops.report.verdict import Verdict
from etcdops.spec import ClusterSpec
from etcdops.workload.history import read_history
from tests.conftest import CommandLine, assert_passed

Wait = Callable[..., None]

#: What varies in etcdops alone varies with one runtime.
on_processes = pytest.mark.runtime("process")


@pytest.mark.parametrize("how", ["kill", "freeze", "stop", "isolate"])
def test_leader_taken_away_in_each_way(etcd_cluster: Cluster, how: str) -> None:
    """However the leader goes, another leads at a higher term, no acknowledged write is lost, and all is as before."""
    if lacks(etcd_cluster.runtime, how):
        # What the runtime cannot do it refuses, before anything is touched.
        with pytest.raises(Refused, match=f"the runtime {etcd_cluster.runtime.name} cannot {how} a member") as refused:
            drills.run("failed-leader", etcd_cluster, how=how)
        assert (refused.value.exit_code, etcd_cluster.runtime.name, how) == (3, "process", "isolate")
        assert not etcd_cluster.store.runs.exists()
        return
    before = etcd_cluster.leader().name
    verdict = drills.run("failed-leader", etcd_cluster, how=how, rate=50, baseline_s=1.0)
    assert_passed(verdict)
    assert verdict.fault is not None
    assert (verdict.fault.kind, verdict.fault.member) == (how, before)
    assert verdict.writes.acknowledged > 100
    assert verdict.check("caught up").result == "passed"
    assert verdict.outage is not None
    assert verdict.outage.predicted_ms == ((0.0, 100.0) if how == "stop" else (1000.0, 1900.0))
    if how != "stop":
        # An election cannot come before the followers' election timeout, less one heartbeat of phase.
        assert (verdict.outage.write_ms or 0) > 850
    assert etcd_cluster.status().verdict == "healthy"
    assert etcd_cluster.store.unhealed(etcd_cluster.name) is None


def test_run_folder_keeps_everything(etcd_cluster: Cluster) -> None:
    """The run's folder holds the verdict, every operation with its outcome, the journal, the logs and a page."""
    verdict = drills.run("failed-leader", etcd_cluster, how="stop", rate=20, baseline_s=0.5, seed=7)
    folder = verdict.folder
    kept = {path.name for path in folder.iterdir()}
    assert {"run.json", "verdict.json", "verdict.md", "history.jsonl", "journal.jsonl", "ironman.log"} <= kept
    assert msgspec.json.decode((folder / "verdict.json").read_bytes(), type=Verdict) == verdict
    history = read_history(folder / "history.jsonl")
    puts = [op for op in history if op.op == "put"]
    assert len({op.value for op in puts}) == len(puts)
    assert {op.stream for op in puts} == {"pinned.ironman", "pinned.thor", "pinned.deadpool", "failover-write"}
    assert sum(op.outcome == "ok" for op in puts) == verdict.writes.acknowledged
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


def test_all_keys_are_deleted_and_foreign_ones_kept(etcd_cluster: Cluster) -> None:
    """After a run nothing is left under etcdops/, and what was in the cluster before is untouched."""
    client = etcd_cluster.client()
    client.put("mine", "untouched")
    drills.run("failed-leader", etcd_cluster, how="stop", rate=20, baseline_s=0.5)
    assert list(client.get_prefix("etcdops/")) == []
    assert client.get("mine")[0] == b"untouched"


def test_brings_the_environment_up_and_leaves_it_up(cli: CommandLine) -> None:
    """Without a cluster, the drill creates one, as the original lab's did, and leaves it up; a second drill uses it."""
    first = cli("failed-leader", "--how", "stop", "--rate", "20")
    assert first.code == 0, first.err
    assert "PASSED" in first.out
    assert "creating it with 3 members" in first.err
    assert cli("status").code == 0
    assert cli("down-env").code == 0
    again = cli("failed-leader", "--how", "stop", "--rate", "20", "-o", "json", program="invoke")
    assert again.code == 0, again.err
    assert "bringing it up" in again.err
    verdict = json.loads(again.out)
    assert verdict["schema"] == 1
    assert verdict["writes"]["lost"] == 0


@on_processes
def test_json_of_one_run_and_of_several(cli: CommandLine) -> None:
    """`-o json` is verdict.json; with --repeat it is the runs and their distribution, a folder each."""
    ended = cli("failed-leader", "--how", "stop", "--rate", "20", "--repeat", "2", "--seed", "5", "-o", "json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert document["schema"] == 1
    assert [run["seed"] for run in document["runs"]] == [5, 6]
    assert document["distribution"]["n"] == 2
    folders = [Path(run["report"]).parent for run in document["runs"]]
    assert len(set(folders)) == 2
    for run, folder in zip(document["runs"], folders, strict=True):
        assert json.loads((folder / "verdict.json").read_text()) == run


def test_each_step_shows_the_command_a_person_would_have_typed(cli: CommandLine) -> None:
    """Steps are numbered and timed, and each names the plain command; stdout holds the verdict alone."""
    ended = cli("failed-leader", "--how", "kill", "--rate", "20")
    assert ended.code in (0, 1), ended.err
    for step in range(1, 7):
        assert f" {step}/6 " in ended.err
    leader = re.search(r"take (\w+) away: kill", ended.err)
    assert leader
    ref = cli.store.load("lab").member(leader[1]).ref
    if cli.runtime == "compose":
        assert f"$ docker kill {ref[:12]}\n" in ended.err
        assert f"$ docker start {ref[:12]}\n" in ended.err
    else:
        assert re.search(r"\$ kill -KILL \d+\n", ended.err)
        assert "--data-dir=" in ended.err
    assert ended.out.startswith("failed-leader (kill ")


@on_processes
def test_pause_waits_for_a_key_between_steps(cli: CommandLine) -> None:
    """With --pause on a terminal, each step but the first waits for a key."""
    assert cli("up-env").code == 0
    ours, theirs = pty.openpty()
    process = cli.start("failed-leader", "--how", "stop", "--rate", "20", "--pause", stdin=theirs)
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


@pytest.mark.parametrize(
    "signum",
    [signal.SIGINT, pytest.param(signal.SIGTERM, marks=on_processes), pytest.param(signal.SIGHUP, marks=on_processes)],
)
def test_signals_heal_and_exit_with_their_number(cli: CommandLine, wait_until: Wait, signum: int) -> None:
    """A signal while the leader is frozen: it goes on again, the keys are gone, and the exit code is 128 + signal."""
    assert cli("up-env").code == 0
    process = cli.start("failed-leader", "--how", "freeze", "--rate", "20")
    cluster = _until_injected(cli, process, wait_until)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, err
    assert "Traceback" not in err
    assert _frozen_or_gone(cluster) == []
    assert cli.store.unhealed("lab") is None
    assert list(cluster.client().get_prefix("etcdops/")) == []
    assert cli("status").code == 0


def test_second_signal_says_how_long_healing_needs(cli: CommandLine, wait_until: Wait) -> None:
    """A second Ctrl-C does not interrupt the healing; it says how long that takes."""
    assert cli("up-env").code == 0
    process = cli.start("failed-leader", "--how", "kill", "--rate", "20")
    cluster = _until_injected(cli, process, wait_until)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "up to 30 s" in err
    assert _frozen_or_gone(cluster) == []


@pytest.mark.parametrize(
    "healer",
    ["heal", pytest.param("up-env", marks=on_processes), pytest.param("failed-leader", marks=on_processes)],
)
def test_kill_minus_nine_is_healed_by_the_next_command(cli: CommandLine, wait_until: Wait, healer: str) -> None:
    """After kill -9 of the drill: traffic ends by itself, every task says that a dead run is unhealed, it is healed."""
    assert cli("up-env").code == 0
    process = cli.start("failed-leader", "--how", "freeze", "--rate", "20")
    cluster = _until_injected(cli, process, wait_until)
    traffic = _children(process.pid)
    assert traffic
    process.kill()
    process.communicate(timeout=20)
    wait_until(lambda: not any(_alive(pid) for pid in traffic), what="the end of the traffic")
    assert len(_frozen_or_gone(cluster)) == 1

    # The others elect a leader; until they have, no quorum serves.
    wait_until(lambda: cli("status").code == 4, what="a degraded cluster")
    status = cli("status", "-o", "json")
    codes = [warning["code"] for warning in json.loads(status.out)["warnings"]]
    assert "unhealed-run" in codes
    for task in (["status"], ["logs", "--since", "1s"], ["ctl", "--", "version"]):
        assert "died without healing: type `heal`" in "".join(cli(*task)[1:]), task

    extra = ["--how", "stop", "--rate", "20"] if healer == "failed-leader" else []
    healed = cli(healer, *extra)
    assert healed.code == 0, healed.err
    assert _frozen_or_gone(cluster) == []
    assert cli.store.unhealed("lab") is None
    assert list(cluster.client().get_prefix("etcdops/")) == []
    assert "died without healing" not in cli("status").out


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


def test_quorum_already_lost_is_aborted_and_nothing_is_touched(cli: CommandLine) -> None:
    """With two of three members stopped the drill aborts with exit 3, and stops nobody: the original stopped all."""
    assert cli("up-env").code == 0
    cluster = Cluster.attach("lab", store=cli.store)
    cluster.member("thor").stop()
    cluster.member("deadpool").stop()
    ended = cli("failed-leader", "-o", "json")
    assert ended.code == 3, ended.err
    verdict: dict[str, Any] = json.loads(ended.out)
    assert verdict["verdict"] == "aborted"
    assert "quorum is lost" in verdict["checks"][0]["detail"]
    assert verdict["fault"] is None
    assert [m.state() for m in cluster.members] == ["running", "stopped", "stopped"]


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
    assert "Choose one of failed-leader" in cli("drill.run", "nope").err
    unknown = cli("failed-leader", "--how", "nuke")
    assert (unknown.code, "Choose one of kill, freeze, stop" in unknown.err) == (2, True)
    small = cli("failed-leader", "--size", "1")
    assert (small.code, "a new cluster of 1 is asked for" in small.err) == (3, True)
    if lacks(runtimes.get(cli.runtime), "isolate"):
        lacking = cli("failed-leader", "--how", "isolate")
        assert (lacking.code, f"the runtime {cli.runtime} cannot isolate a member" in lacking.err) == (3, True)
    assert cli.store.names() == []


def test_production_is_refused(etcd_cluster: Cluster) -> None:
    """No drill runs on a cluster that is marked as production."""
    record = etcd_cluster.record
    etcd_cluster.save(msgspec.structs.replace(record, spec=msgspec.structs.replace(record.spec, purpose="production")))
    with pytest.raises(Refused, match="production"):
        drills.run("failed-leader", etcd_cluster)


class TestFiveMembers:
    """The same on five members."""

    @pytest.fixture
    def etcd_cluster_spec(self) -> ClusterSpec:
        """Five members."""
        return ClusterSpec.of_size("five", 5)

    def test_five_members(self, etcd_cluster: Cluster) -> None:
        """Five members elect as three do."""
        verdict = drills.run("failed-leader", etcd_cluster, how="kill", rate=20, baseline_s=0.5)
        assert_passed(verdict)
        assert len(verdict.cluster.members) == 5
