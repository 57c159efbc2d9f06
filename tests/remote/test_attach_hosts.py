"""A second operator: takes a cluster up from its hosts alone, and takes turns with the first."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from etcdops.cluster import Cluster
from etcdops.errors import Locked
from etcdops.remote import locking
from etcdops.remote.keeping import keep
from etcdops.remote.kept import digest, files_of, pack
from etcdops.remote.locking import lock_name
from etcdops.report.verdict import Verdict
from etcdops.runtimes.remote import RemoteRuntime
from scripts.lab_hosts.bed import Bed
from tests.conftest import CommandLine, assert_passed, need_runtime, place
from tests.remote.beds import ssh

HOSTS = ("h1", "h2", "h3")
ROLE = "label=io.etcdops.role=operators"


@pytest.fixture(scope="module")
def first(
    bed_to_break: Bed, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CommandLine]:
    """The first operator's place, on whose hosts there is an image."""
    need_runtime("compose", request.config)
    with place(tmp_path_factory.mktemp("first") / "place", "auto") as line:
        line.env["INVOKE_ETCDOPS_HOSTS"] = str(bed_to_break.inventory)
        pushed = line("image.push")
        assert pushed.code == 0, pushed.err
        yield line


@pytest.fixture
def lab(first: CommandLine) -> Cluster:
    """The cluster `lab` that the first operator has made, with all its members up."""
    up = first("up-env")
    assert up.code == 0, up.err
    return first.cluster()


@contextmanager
def second_place(directory: Path) -> Iterator[CommandLine]:
    """Give a place that knows nothing of any cluster, at the home of a user who has none."""
    home = directory / "home"
    home.mkdir()
    with place(directory / "place", "auto") as line:
        line.env |= {"HOME": str(home), "USER": "bo", "LOGNAME": "bo"}
        try:
            yield line
        finally:
            # What is on the hosts is the first operator's to remove.
            shutil.rmtree(line.store.root, ignore_errors=True)


@pytest.fixture
def second(tmp_path: Path) -> Iterator[CommandLine]:
    """The second operator's place."""
    with second_place(tmp_path) as line:
        yield line


def left_on(bed: Bed, name: str) -> str:
    """Give what there is of any cluster on a host."""
    listed = [
        ssh(bed, name, "docker", *what, "--quiet", "--filter", "label=io.etcdops.cluster-id")
        for what in (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
    ]
    assert [each.code for each in listed] == [0, 0, 0]
    return "".join(each.out for each in listed)


def kept_on(bed: Bed, name: str) -> list[str]:
    """Give the volumes of a host that are for a second operator."""
    return ssh(bed, name, "docker", "volume", "ls", "--quiet", "--filter", ROLE).out.split()


def locks_on(bed: Bed, name: str) -> list[str]:
    """Give the locks that are held on a host."""
    return ssh(bed, name, "docker", "ps", "-aq", "--filter", "label=io.etcdops.role=lock").out.split()


#: Prints what the labels of the one volume are, then the type, mode, owner and name of what is in it.
_LOOK = """
v=$(docker volume ls --quiet --filter label=io.etcdops.role=operators) && docker volume inspect "$v" | tr -d ' \n'; echo
find "$(docker volume inspect --format '{{.Mountpoint}}' "$v")" -printf '%y %m %u %P\n'
"""


def test_what_is_kept(lab: Cluster, bed_to_break: Bed) -> None:
    """Each host has one volume, its files root's alone, and no secret in its labels."""
    assert lab.record.spec.tls
    secret = Path(lab.record.spec.tls.ca_key).read_text().splitlines()[1]
    for name in HOSTS:
        told = ssh(bed_to_break, name, "sh", "-c", _LOOK)
        assert told.code == 0, told.err
        labels, *seen = told.out.splitlines()
        assert '"io.etcdops.cluster":"lab"' in labels
        assert secret not in labels
        assert {"f 600 root ca.key", "f 600 root operator.pem", "f 600 root cluster.json", "d 700 root "} <= set(seen)
        assert all(each.startswith(("f 600 root ", "d 700 root ")) for each in seen)


def test_from_the_hosts_alone(lab: Cluster, first: CommandLine, bed_to_break: Bed) -> None:
    """Without .etcdops, and with a host that is down, attach gives all back: status, ctl, a drill, and purge."""
    before = lab.record
    shutil.rmtree(first.store.root)
    bed_to_break.stop_sshd("h1")
    try:
        attached = first("cluster.attach", "--hosts", str(bed_to_break.inventory))
        assert attached.code == 0, attached.err
        assert "going on without a host" in attached.err
        assert "h1" in attached.err
    finally:
        bed_to_break.start_sshd("h1")
    record = first.cluster().record
    reached = tuple(msgspec.structs.replace(each, peer_address=each.address) for each in before.hosts)
    assert (record.id, record.members, record.hosts) == (before.id, before.members, reached)
    files = list((first.store.cluster_dir("lab") / "tls").iterdir())
    assert {path.name for path in files} >= {"ca.pem", "ca.key", "operator.pem", "member-thor.pem"}
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o600"}
    again = first("cluster.attach", "--hosts", str(bed_to_break.inventory))
    assert (again.code, "there already is a cluster 'lab'" in again.err) == (3, True), again.err

    assert "thor" in first("status").out
    assert len(first("ctl", "--", "member", "list").out.splitlines()) == 3
    drill = first("failed-leader", "--rate", "20", "-o", "json")
    assert drill.code == 0, drill.err
    assert_passed(msgspec.json.decode(drill.out, type=Verdict))
    purged = first("down-env", "--purge", "--yes")
    assert purged.code == 0, purged.err
    assert [left_on(bed_to_break, name) for name in HOSTS] == ["", "", ""]


#: A process that works on the cluster until a signal ends it, as a command of etcdops would.
_WORKS = """
import time
from etcdops import Cluster
from etcdops.interrupts import handled
with handled(), Cluster.attach("lab").locked("member.replace thor"):
    print("begun", flush=True)
    time.sleep(600)
"""


@contextmanager
def at_work(line: CommandLine) -> Iterator[subprocess.Popen[str]]:
    """Give a process that holds the cluster's lock; it is killed at the end."""
    argv = [sys.executable, "-c", _WORKS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    worker = subprocess.Popen(argv, cwd=line.cwd, env=line.env, text=True, **pipes)  # type: ignore[call-overload]
    try:
        assert worker.stdout.readline() == "begun\n"
        yield worker
    finally:
        worker.kill()
        worker.communicate(timeout=60)


def test_two_operators(lab: Cluster, first: CommandLine, second: CommandLine, bed_to_break: Bed) -> None:
    """Who comes second is told who is there, since when, where and with what; Ctrl-C frees it; then they take turns."""
    inventory = str(bed_to_break.inventory)
    attached = second("cluster.attach", "--hosts", inventory)
    assert attached.code == 0, attached.err
    first.env |= {"USER": "ana", "LOGNAME": "ana"}
    with at_work(first) as worker:
        assert all(locks_on(bed_to_break, name) for name in HOSTS)
        refused = second("member.stop", "thor", "--yes")
        assert refused.code == 3, refused.err
        ana = f"ana@{os.uname().nodename}, process {worker.pid}"
        for said in (f"by {ana} (`member.replace thor`, since 2", "its lock on h1 was renewed", "60 s after its last"):
            assert said in refused.err
        assert second("status").code != 3
        worker.send_signal(signal.SIGINT)
        worker.communicate(timeout=90)
    assert [locks_on(bed_to_break, name) for name in HOSTS] == [[], [], []]

    stopped = second("member.stop", "thor", "--yes")
    assert stopped.code == 0, stopped.err
    # What is seen agrees with either record, what is expected only with the newer one.
    told = json.loads(first("status", "-o", "json").out)
    assert [each["code"] for each in told["warnings"] if each["code"] == "changed-elsewhere"], told
    assert first.cluster().record.member("thor").wanted == "running"
    healed = first("heal")
    assert healed.code == 0, healed.err
    assert f"bo@{os.uname().nodename} has changed lab" in healed.err
    assert first.cluster().record.member("thor").wanted == "stopped"
    assert {len(kept_on(bed_to_break, name)) for name in HOSTS} == {1}


def test_a_lock_that_nobody_renews(
    lab: Cluster, bed_to_break: Bed, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    """While its holder may be alive a lock holds, wherever it is; when it is silent too long, the next takes over."""
    monkeypatch.setattr(locking, "_GRACE_S", 0.0)
    labels = {"role": "lock", "cluster-id": lab.record.id, "holder": "cleo@far\x1b[2J", "doing": "up-env lab"}
    flags = [word for key, value in labels.items() for word in ("--label", f"io.etcdops.{key}={value}")]
    words = ["create", "--name", lock_name(lab.record), *flags, lab.record.image_id, "x"]
    made = ssh(bed_to_break, "h2", "docker", *words)
    assert made.code == 0, made.err
    with (
        pytest.raises(Locked, match=r"by cleo@far\?\[2J \(`up-env lab`, since .* on h2 was renewed") as locked,
        lab.locked("try"),
    ):
        pass
    assert "60 s after its last sign" in locked.value.remedy
    assert [len(locks_on(bed_to_break, name)) for name in HOSTS] == [0, 1, 0]

    monkeypatch.setattr(locking, "LIMIT_S", 1.0)
    said: list[str] = []
    held: list[int] = []

    def taken_over() -> bool:
        try:
            with lab.locked("try", progress=said.append):
                held.extend(len(locks_on(bed_to_break, name)) for name in HOSTS)
        except Locked:
            return False
        return True

    wait_until(taken_over, 30)
    assert held == [1, 1, 1]
    assert any("took over the lock of cleo@far" in each and "silent for" in each for each in said)
    assert [locks_on(bed_to_break, name) for name in HOSTS] == [[], [], []]


def test_an_operator_that_was_killed(lab: Cluster, first: CommandLine, second: CommandLine, bed_to_break: Bed) -> None:
    """The lock of a process of the same machine that is gone holds up nobody, and what it broke is healed.

    The keys of its drills go, and nobody else's.
    """
    with at_work(first):
        pass
    runs = ["20261122-101112-failed-leader-0a1b", "20261122-101112-no-fault-ffff"]
    others = {f"etcdops/{name}" for name in ("mine", "mine/20261122-101112-no-fault-ffff/k", runs[0], "~")}
    with lab.client() as client:
        for key in {f"etcdops/{run}/k/{number}" for run in runs for number in range(3)} | others:
            client.put(key, "v")
    assert locks_on(bed_to_break, "h1")
    thor = lab.record.member("thor")
    paused = ssh(bed_to_break, thor.host, "docker", "pause", thor.ref)
    assert paused.code == 0, paused.err
    attached = second("cluster.attach", "--hosts", str(bed_to_break.inventory))
    assert attached.code == 0, attached.err
    healed = second("heal")
    assert healed.code == 0, healed.err
    assert "whose process is gone" in healed.err
    assert "thor was frozen and goes on" in healed.err
    with lab.client() as client:
        assert {meta.key.decode() for _, meta in client.get_prefix("etcdops/")} == others
    assert all(f"run {run} was another operator's" in healed.err for run in runs)
    assert locks_on(bed_to_break, "h1") == []


def _by_hand(bed: Bed, host: str, volume: str, cluster: str, id_: str, entries: list[tarfile.TarInfo]) -> None:
    """Make a volume as etcdops would, with what it never writes."""
    image = ssh(bed, host, "docker", "image", "ls", "--quiet").out.split()[0]
    labels = {"role": "operators", "cluster": cluster, "cluster-id": id_, "host": host, "image": image}
    flags = [word for key, value in labels.items() for word in ("--label", f"io.etcdops.{key}={value}")]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for entry in entries:
            tar.addfile(entry, io.BytesIO(b"x" * entry.size) if entry.isfile() else None)
    for argv, stdin in (
        (["volume", "create", *flags, volume], b""),
        (["create", "--name", "by-hand", "--volume", f"{volume}:/at", image, "x"], b""),
        (["cp", "-", "by-hand:/at"], buffer.getvalue()),
        (["rm", "by-hand"], b""),
    ):
        done = ssh(bed, host, "docker", *argv, stdin=stdin)
        assert done.code == 0, done.err


def _link() -> tarfile.TarInfo:
    entry = tarfile.TarInfo("cluster.json")
    entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/shadow"
    return entry


def _large() -> tarfile.TarInfo:
    entry = tarfile.TarInfo("manifest.json")
    entry.size = 5 * 2**20
    return entry


def test_what_etcdops_has_not_written(lab: Cluster, second: CommandLine, bed_to_break: Bed) -> None:
    """A newer version that is none is named and passed over; a cluster of which there is nothing else is refused."""
    inventory, other = str(bed_to_break.inventory), "0123456789abcdef"
    volumes = [
        f"etcdops-lab-{lab.record.id[:6]}_operators.g99.{'a' * 12}",
        f"etcdops-other-012345_operators.g1.{'b' * 12}",
    ]
    try:
        _by_hand(bed_to_break, "h1", volumes[0], "lab", lab.record.id, [_link()])
        _by_hand(bed_to_break, "h2", volumes[1], "other", other, [_large()])
        several = second("cluster.attach", "--hosts", inventory)
        assert several.code == 3, several.err
        assert f"lab ({lab.record.id})" in several.err
        assert f"other ({other})" in several.err
        strange = second("cluster.attach", "--hosts", inventory, "--cluster", "other")
        assert strange.code == 3, strange.err
        assert f"{volumes[1]} on h2 holds more than" in strange.err
        assert second.store.names() == []
        attached = second("cluster.attach", "--hosts", inventory, "--cluster", "lab")
        assert attached.code == 0, attached.err
        assert f"{volumes[0]} on h1 holds 'cluster.json', which is no file of ours" in attached.err
        assert second.cluster().record.id == lab.record.id

        # The first operator's next command puts what is right in its place.
        said: list[str] = []
        with lab.locked("look", progress=said.append):
            pass
        assert any("which is to take its place" in each for each in said), said
        assert volumes[0] not in kept_on(bed_to_break, "h1")
        newer = lab.record.with_member(msgspec.structs.replace(lab.record.member("thor"), wanted="stopped"))
        engine = RemoteRuntime(lab.record.hosts).engines["h2"]
        keep(engine, newer, pack(newer, 500), 500, digest(newer, files_of(newer)))
        shutil.rmtree(second.store.root)
        differ = second("cluster.attach", "--hosts", inventory, "--cluster", lab.record.id)
        assert differ.code == 0, differ.err
        assert "the hosts differ: h1 has version 100, h3 has version 100; taken is version 500" in differ.err
        assert second.cluster().record.member("thor").wanted == "stopped"
    finally:
        for host, volume in zip(HOSTS, volumes, strict=False):
            ssh(bed_to_break, host, "docker", "volume", "rm", "--force", volume)
