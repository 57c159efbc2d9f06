"""Restoring a whole cluster: proved, refused before anything stops, taken back, killed at every step."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from etcdops import binaries, calls, runtimes, versions, wire
from etcdops.cluster import Cluster
from etcdops.errors import ClusterError, EtcdError, Refused, RuntimeUnavailable
from etcdops.etcd_flags import restore_flags
from etcdops.operations.equality import hashes_agree
from etcdops.operations.pending import load
from etcdops.runtimes.fake import FakeRuntime
from etcdops.snapshots.bolt import read_contents
from etcdops.snapshots.founding import found
from etcdops.snapshots.restoring import prepare
from etcdops.snapshots.saving import save_snapshot
from etcdops.spec import ClusterSpec, Timing
from etcdops.state import Store
from tests.conftest import CommandLine, need_runtime
from tests.suite import members
from tests.suite.releases import RELEASES, spec_of
from tests.suite.shared import cluster_by

_QUICK = Timing(30, 300)

#: A restore has five steps, each with an entry before it and one after.
_ENTRIES = 10


def _put(cluster: Cluster, *keys: str) -> None:
    client = cluster.client()
    for key in keys:
        client.put(key, f"value of {key}")


def _keys(cluster: Cluster) -> set[str]:
    """Give the keys that a person sees, as each member has them: all the same."""
    seen = []
    for url in cluster.endpoints:
        with wire.Connection(url, cluster.record.spec.tls) as connection:
            seen.append({kv.key.decode() for kv in connection.range(b"\0", b"\0", timeout_s=20).kvs})
    assert all(each == seen[0] for each in seen)
    return seen[0]


def _hashes(cluster: Cluster) -> set[tuple[int, int]]:
    hashes = set()
    for url in cluster.endpoints:
        with wire.Connection(url, cluster.record.spec.tls) as connection:
            told = connection.hash_kv(timeout_s=20)
            hashes.add((told.hash, told.revision))
    return hashes


@pytest.fixture(scope="module", params=runtimes.names())
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of three with a few keys, for all tests of a runtime."""
    with cluster_by(request, tmp_path_factory.mktemp("restore")) as cluster:
        _put(cluster, "a", "b")
        yield cluster


@pytest.fixture
def lab(shared: Cluster) -> Cluster:
    """The shared cluster, healthy; no operation is under way."""
    assert load(shared) is None
    shared.up()
    return shared


@pytest.fixture(scope="module")
def saved(shared: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of it, with the keys a and b."""
    return Path(save_snapshot(shared, tmp_path_factory.mktemp("saved") / "ab.db").path)


def test_every_member_has_the_snapshot_again_and_rollback_takes_it_back(lab: Cluster, saved: Path) -> None:
    """A new cluster with exactly the snapshot's keys on all three; what they had is kept, and comes back."""
    _put(lab, "later")
    before, status = lab.record, lab.member("thor").status()
    old = status.revision
    said: list[str] = []
    done = lab.restore(saved, progress=said.append)
    assert _keys(lab) == {"a", "b"}
    assert len(_hashes(lab)) == 1
    assert {check.result for check in done.checks} == {"passed"}
    assert done.lost_revisions == old - done.revision
    now = lab.member("thor").status()
    assert now.cluster_id != status.cluster_id
    assert now.revision >= done.revision + 1_000_000_000
    for member in lab.members:
        assert member.record.data.place.endswith("-g2")
        with wire.Connection(member.client_url) as connection, pytest.raises(EtcdError, match="compacted"):
            connection.range(b"a", revision=done.revision, timeout_s=20)
    retired = {each.data: each.why for each in lab.record.retired}
    assert retired == {member.data: "restored" for member in before.members}
    assert all(step in "\n".join(said) for step in ("1/5 make ", "2/5 stop ", "3/5 have ", "4/5 start ", "5/5 prove "))
    _put(lab, "since")
    assert "has again the data" in lab.rollback()
    assert _keys(lab) == {"a", "b", "later"}
    assert lab.member("thor").status().cluster_id == status.cluster_id
    assert {m.data for m in lab.record.members} == {m.data for m in before.members}
    assert [each.why for each in lab.record.retired] == ["undone"] * 3
    with pytest.raises(Refused, match="no restore to take back"):
        lab.rollback()


def test_an_interrupted_restore_goes_on_and_nothing_else_begins(lab: Cluster, saved: Path) -> None:
    """Killed when the record was written and nothing runs: another restore is refused; the same call goes on."""
    _put(lab, "lost")
    assert _kill(lab, 6, "restore", saved) == -signal.SIGKILL
    with pytest.raises(Refused, match="has not come to its end"):
        lab.restore(saved.with_name("other.db"))
    done = lab.restore(saved)
    assert done.run == _run_of(lab)
    assert _keys(lab) == {"a", "b"}
    assert load(lab) is None
    assert _left_by_restores(lab) == []


def _run_of(cluster: Cluster) -> str:
    return max((cluster.store.cluster_dir(cluster.name) / "before").iterdir()).stem


def _left_by_restores(cluster: Cluster) -> list[str]:
    """Give what is left of the making of data: containers, and the snapshot's volume."""
    if cluster.record.runtime != "compose":
        return []
    of = f"label=io.etcdops.cluster-id={cluster.record.id}"
    role = "label=io.etcdops.role=restore"
    found = members.docker("ps", "--all", "--quiet", "--filter", of, "--filter", role).split()
    return found + members.docker("volume", "ls", "--quiet", "--filter", of, "--filter", role).split()


def _kill(cluster: Cluster, at: int, operation: str, *file: Path) -> int:
    """Kill etcdops at an entry in the journal, and give how its process ended."""
    argv = [sys.executable, "-m", "tests.suite.killing", str(at), str(cluster.store.root), cluster.name, operation]
    root = Path(__file__).parents[2]
    done = subprocess.run([*argv, *map(str, file)], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


# -- what no runtime changes: by processes alone


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of three processes."""
    spec, store = ClusterSpec.of_size("lab", timing=_QUICK), Store(tmp_path_factory.mktemp("plain"))
    with Cluster.create(spec, store=store, temporary=True, offline=True) as cluster:
        _put(cluster, "a", "b")
        yield cluster


@pytest.fixture(scope="module")
def file(plain: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of it."""
    return Path(save_snapshot(plain, tmp_path_factory.mktemp("file") / "ab.db").path)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4096])


def _newer(path: Path) -> None:
    """Make it a sound snapshot of a version that is yet to come: bbolt guards no page but its first two by a hash."""
    content, found = re.subn(rb"clusterVersion\d\.\d\.\d", b"clusterVersion9.9.0", path.read_bytes()[:-32])
    assert found
    path.write_bytes(content + hashlib.sha256(content).digest())


@pytest.mark.parametrize(
    ("damage", "why"),
    [(_flip, "is not sound.*SHA-256"), (_truncate, "is not sound"), (_newer, "newer minor version")],
    ids=["one flipped byte", "truncated", "of a newer minor"],
)
def test_refused_before_anything_stops(
    plain: Cluster, file: Path, tmp_path: Path, damage: Callable[[Path], None], why: str
) -> None:
    """Every member lives on as the same process, and nothing was written down or made."""
    bad = Path(shutil.copy(file, tmp_path / "bad.db"))
    damage(bad)
    lives, record = members.lives(plain.record), plain.record
    directory = sorted(plain.store.cluster_dir("lab").rglob("*-g*"))
    with pytest.raises(Refused, match=why) as refused:
        plain.restore(bad)
    assert refused.value.exit_code == 3
    assert (members.lives(plain.record), plain.record) == (lives, record)
    assert sorted(plain.store.cluster_dir("lab").rglob("*-g*")) == directory
    assert load(plain) is None
    _put(plain, "still served")


def test_dry_run_shows_the_way_back_and_changes_nothing(plain: Cluster, file: Path) -> None:
    """The plan has five steps, each with its plain command; those that change what runs name the way back."""
    lives = members.lives(plain.record)
    plan = prepare(plain, file)
    assert [step.do for step in plan.steps] == ["make", "stop", "exchange", "start", "prove"]
    assert all(step.by_hand for step in plan.steps)
    assert all(step.undo == "snapshot.rollback" for step in plan.steps[1:])
    assert "is lost" in plan.consequence
    assert members.lives(plain.record) == lives
    assert load(plain) is None


def _other_data(cluster: Cluster, file: Path) -> None:
    """Give thor, of the data that was just made, that of another snapshot."""
    pending = load(cluster)
    assert pending
    assert pending.record
    thor = pending.record.member("thor")
    shutil.rmtree(thor.data.place)
    # At the same revision in the end, or that alone would give it away.
    more = read_contents(file).last_revision - int(pending.arguments["last_revision"])
    bump = int(pending.arguments["bump"]) - more
    flags = restore_flags(pending.record, thor, data=thor.data.place, bump=bump)
    tool = binaries.find(etcd_bin=cluster.record.binary, offline=True).etcdutl
    assert tool
    subprocess.run([tool, "snapshot", "restore", str(file), *flags], check=True, capture_output=True, timeout=60)


def _no_log(cluster: Cluster, file: Path) -> None:
    """Damage the log of thor's new data, so that it dies when it is started."""
    pending = load(cluster)
    assert pending
    assert pending.record
    [log] = Path(pending.record.member("thor").data.place, "member", "wal").glob("*.wal")
    log.write_bytes(b"\1" * 4096)


@pytest.mark.parametrize(
    ("damage", "why"), [(_other_data, "members hold different data"), (_no_log, "thor died")], ids=["proof", "start"]
)
def test_the_way_back_is_taken_when_the_proof_or_the_start_fails(
    plain: Cluster, file: Path, tmp_path: Path, damage: Callable[[Cluster, Path], None], why: str
) -> None:
    """All members have again what they had, and serve; the operation has ended, and the error says both."""
    _put(plain, "kept")
    keys, before = _keys(plain), plain.record
    other = Path(save_snapshot(plain, tmp_path / "other.db").path)

    def tamper(text: str) -> None:
        if text.startswith("3/5 "):
            damage(plain, other)

    from etcdops.snapshots.restoring import restore_snapshot

    with pytest.raises(ClusterError, match=f"(?s)lab is as it was before.*{why}") as failed:
        restore_snapshot(plain, file, progress=tamper)
    assert failed.value.exit_code == 1
    assert _keys(plain) == keys
    assert [m.data for m in plain.record.members] == [m.data for m in before.members]
    assert plain.record.token == before.token
    assert load(plain) is None
    assert plain.status(gate=True).blockers == ()


def test_killed_at_every_entry_in_the_journal(plain: Cluster, file: Path) -> None:
    """Whichever entry it was killed at, the same command goes on, or snapshot.rollback takes it back.

    Between the entry after one step and that before the next nothing is done: of each such pair, one is tried, and by
    turns gone on with or taken back. `scripts/soak kills-process` tries all, both ways.
    """
    for at, way in [(1, "back"), (2, "on"), (5, "back"), (6, "on"), (9, "back"), (_ENTRIES, "on")]:
        marker = f"cycle {at} {way}"
        _put(plain, marker)
        assert _kill(plain, at, "restore", file) == -signal.SIGKILL, at
        assert load(plain), marker
        if way == "on":
            plain.restore(file)
            assert _keys(plain) == {"a", "b"}, marker
        else:
            plain.rollback()
            assert {"a", "b", marker} <= _keys(plain), marker
        assert load(plain) is None, marker
        assert plain.status().verdict == "healthy", marker
        assert hashes_agree(plain, plain.record.spec.names, timeout_s=30.0).equal, marker
    assert _kill(plain, _ENTRIES + 1, "restore", file) == 0


def _when_data_is_being_made(cluster: Cluster, file: Path, signum: int) -> subprocess.Popen[str]:
    """Send a restore a signal as soon as there is anything of the new data; give its process, which has ended."""
    known = set(_data_of(cluster))
    argv = [sys.executable, "-m", "tests.suite.killing", "0", str(cluster.store.root), cluster.name, "restore"]
    root = Path(__file__).parents[2]
    with subprocess.Popen([*argv, str(file)], cwd=root, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while set(_data_of(cluster)) <= known:
            assert time.monotonic() < deadline
            assert process.poll() is None
        process.send_signal(signum)
        process.communicate(timeout=60)
    return process


def _data_of(cluster: Cluster) -> list[Path]:
    """Give the directories that there are for members' data."""
    return list((cluster.store.cluster_dir(cluster.name) / "members").glob("*-g*"))


def test_killed_while_data_is_being_made(plain: Cluster, file: Path) -> None:
    """What is half made, and what may still be making it, goes; all members serve, as if nothing had been."""
    lives = members.lives(plain.record)
    assert _when_data_is_being_made(plain, file, signal.SIGKILL).returncode == -signal.SIGKILL
    pending = load(plain)
    assert pending
    assert pending.record
    plain.rollback()
    assert load(plain) is None
    assert members.lives(plain.record) == lives
    made = {Path(member.data.place) for member in pending.record.members}
    assert made.isdisjoint(_data_of(plain))
    assert _when_data_is_being_made(plain, file, signal.SIGKILL).returncode == -signal.SIGKILL
    plain.restore(file)
    assert _keys(plain) == {"a", "b"}


def test_interrupted_before_anything_stops(plain: Cluster, file: Path) -> None:
    """Ctrl-C while data is made: it goes again, nothing is under way, and every member lives on."""
    lives, data = members.lives(plain.record), sorted(_data_of(plain))

    def interrupt(text: str) -> None:
        if text.startswith("the data of 3 members is made"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plain.restore(file, progress=interrupt)
    assert load(plain) is None
    assert (members.lives(plain.record), sorted(_data_of(plain))) == (lives, data)


@pytest.mark.parametrize("at", [2, 4])
def test_a_rollback_that_is_killed_goes_on(plain: Cluster, file: Path, at: int) -> None:
    """Run again, it ends; what was restored is retired, and what was written before is there."""
    _put(plain, f"before {at}")
    plain.restore(file)
    assert _kill(plain, at, "rollback") == -signal.SIGKILL
    with pytest.raises(Refused, match=r"`snapshot\.rollback` of"):
        plain.restore(file)
    plain.rollback()
    assert f"before {at}" in _keys(plain)
    assert load(plain) is None


def test_a_file_that_was_changed_meanwhile_is_not_gone_on_with(plain: Cluster, file: Path, tmp_path: Path) -> None:
    """Where the data is still to be made, it has to be from the very same file."""
    mine = Path(shutil.copy(file, tmp_path / "mine.db"))
    assert _kill(plain, 3, "restore", mine) == -signal.SIGKILL
    _put(plain, "another revision")
    save_snapshot(plain, tmp_path / "another.db")
    shutil.copy(tmp_path / "another.db", mine)
    with pytest.raises(Refused, match="its SHA-256 is another"):
        plain.restore(mine)
    assert "is taken back" in plain.rollback()


def test_members_in_memory_cannot_be_restored(tmp_path: Path, file: Path) -> None:
    """Said before anything is touched."""
    spec = ClusterSpec.of_size("lab")
    with (
        Cluster.create(spec, runtime=FakeRuntime(), store=Store(tmp_path), temporary=True) as cluster,
        pytest.raises(RuntimeUnavailable, match="cannot make members' data"),
    ):
        cluster.restore(file)


def test_into_a_new_cluster_of_another_size(plain: Cluster, file: Path, tmp_path: Path) -> None:
    """A snapshot of three members becomes a cluster of one beside it, of another name; it is gone if it fails."""
    store = Store(tmp_path / "state")
    cluster, done = found(ClusterSpec.of_size("copy", 1, timing=_QUICK), file, store=store, offline=True)
    try:
        assert _keys(cluster) == {"a", "b"}
        assert done.bump == 1_000_000_000
        assert cluster.status().verdict == "healthy"
        with pytest.raises(Refused, match="already is a cluster 'copy'"):
            found(ClusterSpec.of_size("copy", 1), file, store=store, offline=True)
        smaller = save_snapshot(cluster, tmp_path / "one.db")
        three, _ = found(ClusterSpec.of_size("three", 3, timing=_QUICK), smaller.path, store=store, offline=True)
        try:
            assert _keys(three) == {"a", "b"}
            assert len(_hashes(three)) == 1
        finally:
            three.purge()
    finally:
        cluster.purge()
    bad = Path(shutil.copy(file, tmp_path / "bad.db"))
    _flip(bad)
    with pytest.raises(Refused, match="not sound"):
        found(ClusterSpec.of_size("bad"), bad, store=store, offline=True)
    assert store.names() == []


@pytest.mark.parametrize(
    ("version", "runtime", "size"),
    [
        *((version, "process", 3) for version in RELEASES),
        # 3.4 has another tool, and that of 3.5.1 looks up the members' names, which only their own network knows.
        *((version, "compose", 1) for version in ("3.4.23", "3.5.1")),
    ],
)
def test_versions(tmp_path: Path, pytestconfig: pytest.Config, version: str, runtime: str, size: int) -> None:
    """Each version restores with its own tool, and moves revisions on where it can."""
    need_runtime(runtime, pytestconfig)
    spec = msgspec.structs.replace(spec_of(version, runtime, size=size), timing=_QUICK)
    with Cluster.create(
        spec, runtime=runtime, store=Store(tmp_path / "state"), temporary=True, offline=True
    ) as cluster:
        _put(cluster, "a", "b")
        snapshot = save_snapshot(cluster, tmp_path / "ab.db")
        _put(cluster, "later")
        done = cluster.restore(snapshot.path)
        assert _keys(cluster) == {"a", "b"}
        assert len(_hashes(cluster)) == 1
        offered = versions.supports(cluster.record.etcd_version, "bump_revision")
        assert done.bump == (1_000_000_000 if offered else 0)
        cluster.rollback()
        assert "later" in _keys(cluster)


def test_an_alarm_comes_back_with_the_snapshot(plain: Cluster, tmp_path: Path) -> None:
    """With NOSPACE it is restored, and said what could not be written; with CORRUPT it is refused."""
    lives = members.lives(plain.record)
    with wire.Connection(plain.endpoints[0]) as connection:
        me = connection.status(timeout_s=20).member_id
        for kind in ("NOSPACE", "CORRUPT"):
            connection.call(calls._alarm("ACTIVATE", me, kind), timeout_s=20)
            save_snapshot(plain, tmp_path / f"{kind}.db")
            connection.alarm_disarm(me, kind, timeout_s=20)
    with pytest.raises(Refused, match="CORRUPT was raised"):
        plain.restore(tmp_path / "CORRUPT.db")
    assert members.lives(plain.record) == lives
    done = plain.restore(tmp_path / "NOSPACE.db")
    assert {check.name for check in done.checks if check.result == "inconclusive"} == {"canary", "alarms"}
    plain.rollback()
    _put(plain, "written again")


# -- the tasks


@pytest.mark.runtime("process")  # what the commands say does not depend on it
def test_the_tasks(cli: CommandLine) -> None:
    """Planned, asked about, refused, proved as JSON, taken back; a cluster that there is not yet is not asked about."""
    assert cli("up-env", "--size", "1", "--offline").code == 0
    assert cli("ctl", "--", "put", "a", "b").code == 0
    assert cli("snapshot.save", "ab.db").code == 0
    plan = cli("snapshot.restore", "ab.db", "--dry-run")
    assert plan.code == 0
    assert "back: snapshot.rollback" in plan.out
    asked = cli("snapshot.restore", "ab.db")
    assert asked.code == 2
    assert "This means: " in asked.err
    assert cli("snapshot.restore", "ab.db", "--size", "3").code == 3
    assert cli("snapshot.restore", "none.db").code == 2
    assert cli("snapshot.rollback").code == 3
    done = cli("snapshot.restore", "ab.db", "--yes", "-o", "json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["schema"], told["cluster"]) == (1, "lab")
    assert {check["result"] for check in told["checks"]} == {"passed"}
    assert cli("snapshot.rollback", "--dry-run").code == 0
    assert cli("snapshot.rollback").code == 2
    assert cli("snapshot.rollback", "--yes").code == 0
    new = cli("snapshot.restore", "ab.db", "--cluster", "copy", "--size", "1", "--runtime", "process", "--offline")
    assert new.code == 0, new.err
    assert cli("ctl", "--cluster", "copy", "--", "get", "a", "--print-value-only").out == "b\n"
