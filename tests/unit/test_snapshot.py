"""Snapshots of members in memory, which etcd's own tools take for etcd's: saved, verified, listed and pruned."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etcdops.cluster import Cluster
from etcdops.errors import EtcdError, Refused, SnapshotError, SpecError, StateError
from etcdops.fake.database import snapshot_of
from etcdops.hosts import LocalHost
from etcdops.interrupts import handled
from etcdops.runtimes.fake import FakeRuntime
from etcdops.snapshots import pace, saving, stream, tools, verifying
from etcdops.snapshots.bolt import read_contents
from etcdops.snapshots.catalog import find_snapshot, list_snapshots
from etcdops.snapshots.manifest import (
    Manifest,
    Snapshot,
    manifest_path,
    now,
    read_manifest,
    write_manifest,
)
from etcdops.snapshots.places import PartFile
from etcdops.snapshots.pruning import PrunePlan, plan_prune, prune_snapshots
from etcdops.snapshots.saving import save_snapshot
from etcdops.snapshots.sink import Sink
from etcdops.snapshots.trailer import Trailer, fits
from etcdops.snapshots.verifying import SnapshotReport, verify_snapshot
from etcdops.state import Store

REUSING = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)

Monkey = pytest.MonkeyPatch


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def lab(runtime: FakeRuntime, tmp_path: Path) -> Iterator[Cluster]:
    """Three members in memory, with ten keys."""
    cluster = Cluster.create("lab", runtime=runtime, store=Store(tmp_path / "state"))
    cluster.up()
    for i in range(10):
        cluster.client().put(f"key/{i}", "value")
    yield cluster
    runtime.destroy(cluster.record)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A directory for snapshots."""
    made = tmp_path / "out"
    made.mkdir()
    return made


def _manifest(snapshot: Snapshot) -> Manifest:
    assert snapshot.manifest
    return snapshot.manifest


# -- the trailer


@given(body=st.binary(max_size=200), cuts=st.lists(st.integers(0, 240)))
def test_trailer_is_found_however_it_comes(body: bytes, cuts: list[int]) -> None:
    """In pieces of any size, the last 32 bytes are compared with the hash of all before them."""
    whole = body + hashlib.sha256(body).digest()
    trailer = Trailer()
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    for start, end in pairwise(edges):
        trailer.feed(whole[start:end])
    assert (trailer.right, trailer.size, trailer.sha256) == (True, len(whole), hashlib.sha256(whole).hexdigest())


@given(body=st.binary(max_size=100), at=st.integers(0, 131), flip=st.integers(1, 255))
def test_any_changed_byte_is_noticed(body: bytes, at: int, flip: int) -> None:
    """One changed byte, in the data or in the hash, makes the trailer wrong; so does what is missing at the end."""
    whole = bytearray(body + hashlib.sha256(body).digest())
    cut = Trailer()
    cut.feed(bytes(whole[:-1]))
    assert not cut.right
    whole[at % len(whole)] ^= flip
    changed = Trailer()
    changed.feed(bytes(whole))
    assert not changed.right


@given(st.integers(0, 10**12))
def test_sizes_that_can_be_a_snapshot(size: int) -> None:
    """Whole sectors and a hash: nothing shorter than a sector, and no raw copy."""
    assert fits(size) == (size >= 544 and (size - 32) % 512 == 0)
    assert fits(512 * (1 + size) + 32)
    assert not fits(512 * size)


# -- saving


def test_save_under_a_name_by_time(lab: Cluster) -> None:
    """Without a name: in the state directory, readable for its owner alone, with a manifest of what is in it."""
    said: list[str] = []
    before = datetime.now(timezone.utc).replace(microsecond=0)
    saved = save_snapshot(lab, progress=said.append)
    path = Path(saved.path)
    assert path.parent == lab.store.root / "snapshots" / "lab"
    assert path.name.startswith(before.strftime("%Y%m%dT%H"))
    assert path.name.endswith("Z-r13.db")
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (path.parent, path, manifest_path(path))]
    assert modes == [0o700, 0o600, 0o600]
    assert sorted(os.listdir(path.parent)) == [path.name, f"{path.name}.json"]
    manifest = _manifest(saved)
    assert read_manifest(path) == manifest
    assert manifest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (manifest.size, manifest.db_size) == (path.stat().st_size, path.stat().st_size - 32)
    assert (manifest.cluster, manifest.cluster_id) == ("lab", lab.record.id)
    assert (manifest.revision, manifest.quorum, manifest.auth, manifest.keys) == (13, True, False, None)
    status = lab.status()
    assert [(m.name, m.id, m.peer_urls) for m in manifest.members] == [
        (m.name, m.id, (m.peer_url,)) for m in sorted(status.members, key=lambda m: int(m.id, 16))
    ]
    assert manifest.etcd_version == status.member("thor").version
    assert manifest.raft_term == status.term
    assert manifest.etcd_cluster_id == f"{lab.members[0].status().cluster_id:x}"
    assert [each.level for each in manifest.verified] == ["hash"]
    assert before <= datetime.fromisoformat(manifest.created) <= datetime.now(timezone.utc)
    assert saved.level == "hash"
    assert len(said) == 2


def test_two_in_one_second_have_names_of_their_own(lab: Cluster, monkeypatch: Monkey) -> None:
    """A name that is taken is never used again."""
    monkeypatch.setattr(saving, "time_stamp", lambda: "20260131T120000Z")
    names = [Path(save_snapshot(lab).path).name for _ in range(3)]
    assert names == [f"20260131T120000Z-r13{suffix}.db" for suffix in ("", "-2", "-3")]


def test_save_where_it_is_told_to(lab: Cluster, out: Path, monkeypatch: Monkey) -> None:
    """Under a name; in a directory, under a name by time; relative to the working directory."""
    assert save_snapshot(lab, out / "mine.db").path == str(out / "mine.db")
    assert save_snapshot(lab, out).path.endswith("-r13.db")
    monkeypatch.chdir(out)
    assert save_snapshot(lab, "here.db").path == str(out / "here.db")
    assert len([name for name in os.listdir(out) if name.endswith(".db")]) == 3


def test_no_key_is_written(lab: Cluster) -> None:
    """To save changes nothing in etcd."""
    before = [member.status() for member in lab.members]
    save_snapshot(lab)
    assert [member.status() for member in lab.members] == before


def test_the_most_advanced_member_is_asked(runtime: FakeRuntime, lab: Cluster) -> None:
    """Of members that serve, the one that has applied most; not one that lags behind and says that it serves."""
    follower = next(member for member in lab.members if member.name != lab.leader().name)
    runtime.lies.never_catches_up = "serves"
    follower.kill()
    follower.start()
    lab.client(lab.leader().name).put("later", "1")
    assert follower.status().revision < lab.leader().status().revision
    saved = _manifest(save_snapshot(lab))
    assert saved.source != follower.name
    assert saved.revision == lab.leader().status().revision
    # Asked for by name, it is taken all the same.
    assert _manifest(save_snapshot(lab, member=follower.name)).revision == follower.status().revision


def test_stopped_and_frozen_members_are_passed_over(lab: Cluster) -> None:
    """With one member stopped the others serve; without a quorum the one that answers will do, and it is told."""
    lab.member("ironman").kill()
    assert _manifest(save_snapshot(lab)).source != "ironman"
    lab.member("thor").pause()
    said: list[str] = []
    alone = _manifest(save_snapshot(lab, progress=said.append))
    assert (alone.source, alone.quorum) == ("deadpool", False)
    assert said[0] == "there is no quorum: deadpool has what it has applied, and later writes may be missing"


def test_learners_are_never_asked(lab: Cluster, out: Path, monkeypatch: Monkey) -> None:
    """Not by themselves, not by name, and not where nobody else answers."""
    status = lab.status

    def with_learner(**options: Any) -> Any:
        seen = status(**options)
        members = tuple(
            msgspec.structs.replace(each, role="learner") if each.name == "ironman" else each for each in seen.members
        )
        return msgspec.structs.replace(seen, members=members)

    monkeypatch.setattr(lab, "status", with_learner)
    assert _manifest(save_snapshot(lab)).source != "ironman"
    with pytest.raises(Refused, match="can be taken from ironman: ironman is a learner"):
        save_snapshot(lab, out / "x", member="ironman")
    lab.member("thor").kill()
    lab.member("deadpool").kill()
    with pytest.raises(Refused, match="ironman is a learner, thor is stopped, deadpool is stopped"):
        save_snapshot(lab, out / "x")


def test_nobody_to_ask(lab: Cluster, out: Path) -> None:
    """Refused, saying how each member is, when none answers; a member that is named must answer, and be one."""
    lab.member("thor").kill()
    with pytest.raises(Refused, match="can be taken from thor: thor is stopped"):
        save_snapshot(lab, out / "x", member="thor")
    with pytest.raises(SpecError, match="no member 'hulk'"):
        save_snapshot(lab, out / "x", member="hulk")
    lab.member("ironman").kill()
    lab.member("deadpool").pause()
    with pytest.raises(Refused, match="ironman is stopped, thor is stopped, deadpool is frozen"):
        save_snapshot(lab, out / "x")
    assert os.listdir(out) == []


def _refuses(lab: Cluster, path: Path, match: str) -> None:
    with pytest.raises(Refused, match=match) as raised:
        save_snapshot(lab, path)
    assert raised.value.remedy


def test_nothing_is_overwritten(lab: Cluster, out: Path) -> None:
    """A file, a link that leads nowhere, or a manifest under the name: refused, and left as it is."""
    (out / "file.db").write_text("mine")
    (out / "link.db").symlink_to("nowhere")
    (out / "left.db.json").write_text("mine")
    for name in ("file.db", "link.db", "left.db"):
        _refuses(lab, out / name, "exists already")
    assert (out / "file.db").read_text() == (out / "left.db.json").read_text() == "mine"
    assert sorted(os.listdir(out)) == ["file.db", "left.db.json", "link.db"]


def test_places_that_cannot_be(lab: Cluster, out: Path) -> None:
    """Not among the clusters' files, not in any etcd's data directory, also not by way of a link; nor nowhere."""
    store = lab.store.root
    members = store / "clusters" / "lab" / "members" / "thor-g1"
    members.mkdir(parents=True)
    for place in (members, members.parent, store / "clusters"):
        _refuses(lab, place / "x.db", "among the clusters' own files")
    (out / "link").symlink_to(members)
    _refuses(lab, out / "link" / "x.db", "among the clusters' own files")
    (out / "data" / "member" / "wal").mkdir(parents=True)
    for place in (out / "data", out / "data" / "member", out / "data" / "member" / "wal"):
        _refuses(lab, place / "x.db", f"in the data directory of a member, {out / 'data'}")
    _refuses(lab, out / "missing" / "x.db", "there is no directory")
    (out / "file").write_text("")
    _refuses(lab, out / "file" / "x.db", "there is no directory")


def test_full_disk_is_refused_before_anything_is_asked_for(lab: Cluster, out: Path, monkeypatch: Monkey) -> None:
    """1.2 times the database's size must be free."""
    size = lab.members[0].status().db_size
    monkeypatch.setattr(LocalHost, "free_bytes", lambda self, path: round(1.2 * size) - 1)
    _refuses(lab, out / "x.db", "of free space, and a snapshot of this database of .* needs")
    monkeypatch.setattr(LocalHost, "free_bytes", lambda self, path: round(1.2 * size))
    save_snapshot(lab, out / "x.db")


def test_what_a_killed_save_left_is_written_anew(lab: Cluster, out: Path) -> None:
    """A leftover goes; something else of that name is in the way, and what another save writes is waited for."""
    part = out / "x.db.part"
    part.write_bytes(Path(save_snapshot(lab).path).read_bytes()[:5000])
    part.chmod(0o644)
    save_snapshot(lab, out / "x.db")
    assert not part.exists()
    assert stat.S_IMODE((out / "x.db").stat().st_mode) == 0o600
    (out / "y.db.part").write_text("my notes")
    _refuses(lab, out / "y.db", "is no leftover of a save")
    assert (out / "y.db.part").read_text() == "my notes"
    (out / "z.db.part").symlink_to(out / "y.db.part")
    _refuses(lab, out / "z.db", "cannot write")
    with open(out / "v.db.part", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        _refuses(lab, out / "v.db", "another save is writing")


def _nothing_left(out: Path) -> None:
    assert os.listdir(out) == []


def _sends(monkeypatch: Monkey, change: Any) -> None:
    """Let members send other bytes than those of their database."""
    monkeypatch.setattr("etcdops.fake.service.snapshot_of", lambda member: change(snapshot_of(member)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "not the SHA-256"),
        (lambda data: b"\x01" + data[1:], "not the SHA-256"),
        (lambda data: data[:-512], "not the SHA-256"),
        (lambda data: data[:-32], "not the SHA-256"),
        (lambda data: b"", "it is 0 bytes long"),
        (lambda data: bytes(512) + hashlib.sha256(bytes(512)).digest(), "no database of etcd's"),
    ],
    ids=["hash", "byte", "cut", "no hash", "empty", "zeros"],
)
def test_what_is_not_sound_is_not_kept(lab: Cluster, out: Path, monkeypatch: Monkey, change: Any, said: str) -> None:
    """A snapshot that came wrong is an error, and no file is left of it."""
    _sends(monkeypatch, change)
    with pytest.raises(SnapshotError, match=said) as raised:
        save_snapshot(lab, out / "x.db")
    assert "Save it again" in raised.value.remedy
    _nothing_left(out)


def test_a_stream_that_stalls_is_given_up(lab: Cluster, out: Path, monkeypatch: Monkey) -> None:
    """A member that is frozen in the middle: what it sent is thrown away, once nothing has come for as long as said."""
    source = lab.runtime

    def freeze(data: bytes) -> bytes:
        for member in lab.members:
            source.pause(member.record)  # type: ignore[attr-defined]
        return data

    _sends(monkeypatch, freeze)
    # Said at each look: a busy machine may not come to it between two seconds and the three after which it is given up.
    for module in ("saving", "pace"):
        monkeypatch.setattr(f"etcdops.snapshots.{module}.EVERY_S", 0.0)
    said: list[str] = []
    with pytest.raises(SnapshotError, match=r"sent nothing for [1-4] s, after 0 bytes"):
        save_snapshot(lab, out / "x.db", stall_s=3.0, progress=said.append)
    _nothing_left(out)
    assert any("; nothing for" in line for line in said)
    with pytest.raises(SpecError, match="stall limit"):
        save_snapshot(lab, out / "x.db", stall_s=0.5)


def test_a_member_that_dies_while_it_sends(lab: Cluster, out: Path, monkeypatch: Monkey) -> None:
    """The call's own error is raised, and no file is left."""

    def die(data: bytes) -> bytes:
        for member in lab.members:
            # Frozen first: nothing is sent before the kill, which waits for this call's lock.
            lab.runtime.pause(member.record)  # type: ignore[attr-defined]
            threading.Thread(target=lab.runtime.kill, args=(member.record,)).start()  # type: ignore[attr-defined]
        return data

    _sends(monkeypatch, die)
    with pytest.raises(EtcdError):
        save_snapshot(lab, out / "x.db")
    _nothing_left(out)


def test_an_interruption_leaves_nothing(lab: Cluster, out: Path, monkeypatch: Monkey) -> None:
    """Wherever Ctrl-C arrives before the file has its name; one that arrives after that leaves both files."""
    for at in ("saving a snapshot", "saved"):

        def interrupt(line: str, at: str = at) -> None:
            if line.startswith(at):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            save_snapshot(lab, out / "x.db", progress=interrupt)
        assert sorted(os.listdir(out)) == ([] if at != "saved" else ["x.db", "x.db.json"])

    def interrupted(self: Sink, piece: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sink, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_snapshot(lab, out / "y.db")
    assert sorted(os.listdir(out)) == ["x.db", "x.db.json"]


def test_whoever_listens_may_fail(lab: Cluster, out: Path, monkeypatch: Monkey) -> None:
    """What is raised by `progress` in a thread ends the save or the verification, and leaves nothing."""
    monkeypatch.setattr(pace, "EVERY_S", 1e-9)
    monkeypatch.setattr(stream, "_LOOK_S", 0.01)

    def freeze(data: bytes) -> bytes:
        lab.runtime.pause(lab.members[0].record)  # type: ignore[attr-defined]
        return data

    def fail(line: str) -> None:
        if line.startswith("saving from") or line.endswith("so far"):
            raise BrokenPipeError("nobody reads")

    with monkeypatch.context() as patch:
        patch.setattr("etcdops.fake.service.snapshot_of", lambda member: freeze(snapshot_of(member)))
        with pytest.raises(BrokenPipeError):
            save_snapshot(lab, out / "x.db", member=lab.members[0].name, progress=fail)
    _nothing_left(out)
    lab.members[0].resume()
    saved = save_snapshot(lab, out / "x.db")
    with pytest.raises(BrokenPipeError):
        verify_snapshot(saved.path, deep=True, progress=fail)


def test_what_cannot_be_written_ends_the_save(lab: Cluster, out: Path, monkeypatch: Monkey) -> None:
    """An error of the disk, wherever in the file, is the save's error, and what was written goes."""
    for wrote in (0, 5000):

        def fail(self: PartFile, data: bytes, wrote: int = wrote) -> None:
            os.write(self._descriptor, data[:wrote])
            raise SnapshotError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(PartFile, "write", fail)
            with pytest.raises(SnapshotError, match="the disk is full"):
                save_snapshot(lab, out / "x.db")
        _nothing_left(out)


@given(sizes=st.lists(st.integers(0, 700_000), max_size=12), fails_at=st.none() | st.integers(0, 4_000_000))
@settings(deadline=None, max_examples=30)
def test_sink_writes_in_order_or_says_why_not(sizes: list[int], fails_at: int | None) -> None:
    """All pieces, in order, however they are cut; or the error of the first write that failed, and none after it."""
    pieces = [bytes([i]) * size for i, size in enumerate(sizes)]
    wrote: list[bytes] = []

    def write(data: bytes) -> None:
        if fails_at is not None and sum(map(len, wrote)) + len(data) > fails_at:
            raise OSError("full")
        wrote.append(data)

    try:
        with Sink(write) as sink:
            for piece in pieces:
                sink.put(piece)
            trailer = sink.close()
    except OSError:
        assert fails_at is not None
        assert sum(sizes) > fails_at
        assert b"".join(pieces).startswith(b"".join(wrote))
    else:
        assert b"".join(wrote) == b"".join(pieces)
        assert trailer.size == sum(sizes)


def test_signal_between_file_and_manifest_waits(lab: Cluster, out: Path, monkeypatch: Monkey) -> None:
    """SIGINT while the file gets its name is held back until its manifest is there."""
    publish = PartFile.publish

    def interrupted(self: PartFile, target: Path) -> None:
        publish(self, target)
        os.kill(os.getpid(), 2)

    monkeypatch.setattr(PartFile, "publish", interrupted)
    with pytest.raises(KeyboardInterrupt), handled():
        save_snapshot(lab, out / "x.db")
    assert sorted(os.listdir(out)) == ["x.db", "x.db.json"]
    assert verify_snapshot(out / "x.db").result == "passed"


def test_without_its_manifest_there_is_no_file(lab: Cluster, out: Path, monkeypatch: Monkey) -> None:
    """Where the manifest cannot be written, the snapshot is not kept either; and what came meanwhile is not lost."""

    def fail(*args: Any) -> None:
        raise StateError("cannot write it")

    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_manifest", fail)
        with pytest.raises(StateError):
            save_snapshot(lab, out / "x.db")
    _nothing_left(out)
    sync = PartFile.sync

    def overtaken(self: PartFile) -> int:
        (out / "x.db").write_text("somebody else's")
        return sync(self)

    monkeypatch.setattr(PartFile, "sync", overtaken)
    with pytest.raises(SnapshotError, match="has appeared meanwhile"):
        save_snapshot(lab, out / "x.db")
    assert (out / "x.db").read_text() == "somebody else's"
    assert os.listdir(out) == ["x.db"]


def test_where_there_are_no_hard_links(lab: Cluster, out: Path, monkeypatch: Monkey) -> None:
    """On such a file system it is renamed, and nothing is overwritten either."""

    def none(*args: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", none)
    save_snapshot(lab, out / "x.db")
    assert sorted(os.listdir(out)) == ["x.db", "x.db.json"]
    assert verify_snapshot(out / "x.db").result == "passed"


# -- verifying


@pytest.fixture
def saved(lab: Cluster, out: Path) -> Path:
    """A snapshot with its manifest."""
    return Path(save_snapshot(lab, out / "x.db").path)


def _results(report: SnapshotReport) -> dict[str, str]:
    return {check.name: check.result for check in report.checks}


def test_a_sound_snapshot_passes(saved: Path) -> None:
    """Hash, manifest and pages; only its manifest is written, and says so."""
    before, content = saved.stat(), saved.read_bytes()
    report = verify_snapshot(saved)
    assert (report.result, report.level, report.exit_code) == ("passed", "pages", 0)
    assert (report.revision, report.keys) == (13, None)
    assert _results(report) == dict.fromkeys(("size", "hash", "database", "manifest", "pages"), "passed")
    assert saved.read_bytes() == content
    assert saved.stat().st_mtime_ns == before.st_mtime_ns
    manifest = read_manifest(saved)
    assert manifest
    assert [each.level for each in manifest.verified] == ["hash", "pages"]
    assert sorted(os.listdir(saved.parent)) == [saved.name, f"{saved.name}.json"]


def test_deep(saved: Path, tmp_path: Path, monkeypatch: Monkey) -> None:
    """A real etcd starts from it, reads its keys, and is gone; the next time they must be as many."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    report = verify_snapshot(saved, deep=True)
    assert (report.result, report.level, report.keys) == ("passed", "boot", 10), report
    assert os.listdir(scratch) == []
    manifest = read_manifest(saved)
    assert manifest
    assert manifest.keys == 10
    # What is less thorough takes nothing away from what is known.
    verify_snapshot(saved)
    again = read_manifest(saved)
    assert again
    assert again.best
    assert again.best.level == "boot"
    write_manifest(saved, msgspec.structs.replace(again, keys=11))
    other = verify_snapshot(saved, deep=True)
    assert (other.result, other.level) == ("failed", None)
    assert "has 10 keys, and had 11 before" in other.check("boot").detail


@REUSING
@given(at=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_one_flipped_byte_fails(saved: Path, at: float, flip: int) -> None:
    """Wherever it is: in a page, in the hash; the manifest says from then on that it is damaged."""
    right = saved.read_bytes()
    wrong = bytearray(right)
    wrong[int(at * len(wrong))] ^= flip
    saved.write_bytes(wrong)
    try:
        report = verify_snapshot(saved, deep=True)
        assert (report.result, report.level, report.exit_code) == ("failed", None, 1)
        assert report.check("hash").result == report.check("manifest").result == "failed"
        assert report.check("boot").result == "skipped"
        [found] = list_snapshots(directory=saved.parent)
        assert (found.state, found.level) == ("damaged", None)
    finally:
        saved.write_bytes(right)


@REUSING
@given(cut=st.integers(1, 30_000))
def test_a_truncated_file_fails(saved: Path, cut: int) -> None:
    """However much is missing at its end, down to an empty file."""
    right = saved.read_bytes()
    saved.write_bytes(right[: max(len(right) - cut, 0)])
    try:
        report = verify_snapshot(saved)
        assert report.result == "failed"
        assert report.check("size").result == ("passed" if cut % 512 == 0 and cut < len(right) else "failed")
    finally:
        saved.write_bytes(right)


def test_a_raw_copy_is_called_that(saved: Path) -> None:
    """A database without a hash is no snapshot, although every page of it may be right."""
    raw = saved.with_name("db")
    raw.write_bytes(saved.read_bytes()[:-32])
    report = verify_snapshot(raw)
    assert report.result == "failed"
    assert "a raw copy of a member's own file" in report.check("size").detail
    assert _results(report) == {
        "size": "failed",
        "hash": "skipped",
        "database": "passed",
        "manifest": "skipped",
        "pages": "passed",
    }


def test_a_page_that_is_wrong_under_a_right_hash(saved: Path) -> None:
    """What was damaged before it was hashed is found by etcd's own check of the pages."""
    data = bytearray(saved.read_bytes()[:-32])
    page = next(at for at in range(8192, len(data), 4096) if data[at + 8] == 0x02 and b"key/0" in data[at : at + 4096])
    # The second key is now before the first.
    data[data.index(b"_", page) - 1] += 50
    saved.write_bytes(data + hashlib.sha256(data).digest())
    manifest_path(saved).unlink()
    report = verify_snapshot(saved, deep=True)
    assert _results(report) == {
        "size": "passed",
        "hash": "passed",
        "database": "passed",
        "manifest": "skipped",
        "pages": "failed",
        "boot": "skipped",
    }
    assert "etcdutl" in report.check("pages").detail


def test_where_no_tool_is_at_hand(saved: Path, monkeypatch: Monkey) -> None:
    """The check of the pages is skipped, and that is said: the level is no more than the hash."""
    monkeypatch.setattr(tools, "status_tool", lambda version, beside="": None)
    report = verify_snapshot(saved)
    assert (report.result, report.level) == ("passed", "hash")
    assert report.check("pages").result == "skipped"
    assert "there is no etcdutl here" in report.check("pages").detail


def test_a_tool_that_fails_is_told(saved: Path, monkeypatch: Monkey, tmp_path: Path) -> None:
    """Whatever etcdutl does, its words are in the report; the caller's ETCDCTL_ variables do not reach it."""
    for script, said in (
        ("echo 'bad page' >&2; exit 1", "bad page (exit code 1)"),
        ("echo nonsense", "is not understood"),
        ('echo "{\\"revision\\": 7, \\"totalKey\\": 1, \\"totalSize\\": 1}"', "finds revision 7"),
        ("kill -9 $$", "exit code 137"),
        ('test -z "$ETCDCTL_ENDPOINTS$ETCDUTL_X" || exit 9; echo quiet >&2; exit 3', "quiet (exit code 3)"),
    ):
        tool = tmp_path / "etcdutl"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("ETCDCTL_ENDPOINTS", "http://nowhere")
        monkeypatch.setenv("ETCDUTL_X", "x")
        monkeypatch.setattr(tools, "status_tool", lambda v, b="", path=str(tool): tools.Tool(path, "etcdutl"))
        report = verify_snapshot(saved)
        assert report.check("pages").result == "failed"
        assert said in report.check("pages").detail, report


def test_manifest_of_another_file(saved: Path, lab: Cluster, out: Path) -> None:
    """A manifest that does not belong to the file, is damaged or newer: failed, and never overwritten."""
    lab.client().put("more", "1")
    other = Path(save_snapshot(lab, out / "other.db").path)
    swapped = manifest_path(other).read_bytes()
    manifest_path(saved).write_bytes(swapped)
    report = verify_snapshot(saved)
    assert report.result == "failed"
    assert "its SHA-256 should be" in report.check("manifest").detail
    for content, said in (
        (b"{", "is damaged"),
        (b"[]", "is damaged"),
        (swapped.replace(b'"created": "', b'"created": "x'), "is damaged"),
        (swapped.replace(b'"schema": 1', b'"schema": 2'), "reads up to 1"),
    ):
        manifest_path(saved).write_bytes(content)
        report = verify_snapshot(saved)
        assert report.check("manifest").result == "failed"
        assert said in report.check("manifest").detail
        assert manifest_path(saved).read_bytes() == content
        assert [each.state for each in list_snapshots(directory=out) if each.path == str(saved)] == ["damaged"]


def test_failing_once_is_remembered_until_it_passes(saved: Path) -> None:
    """The manifest keeps what was wrong; a file that is right again, from a copy, passes and is good again."""
    right = saved.read_bytes()
    saved.write_bytes(right[:-1] + b"?")
    verify_snapshot(saved)
    manifest = read_manifest(saved)
    assert manifest
    assert (manifest.verified, manifest.best) == ((), None)
    assert manifest.problem.startswith("hash: ")
    saved.write_bytes(right)
    verify_snapshot(saved)
    assert [each.level for each in list_snapshots(directory=saved.parent)] == ["pages"]


def test_what_is_no_file(tmp_path: Path, saved: Path) -> None:
    """Nothing, or a directory: a usage error. A file that cannot be written beside is verified all the same."""
    for wrong in (tmp_path / "nothing", tmp_path):
        with pytest.raises(SpecError):
            verify_snapshot(wrong)
    said: list[str] = []

    def fail(*args: Any) -> None:
        raise StateError("cannot write it")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verifying, "write_manifest", fail)
        assert verify_snapshot(saved, progress=said.append).result == "passed"
    assert said[-1] == "what was found is not recorded: cannot write it"


# -- listing


def test_newest_first_of_one_cluster_or_all(runtime: FakeRuntime, lab: Cluster, monkeypatch: Monkey) -> None:
    """All snapshots of a state directory; also those of clusters that are gone."""
    assert list_snapshots(lab.store) == []
    other = Cluster.create("other", size=1, runtime=runtime, store=lab.store)
    other.up()
    stamps = iter(f"2026-01-31T12:00:0{i}+00:00" for i in range(3))
    monkeypatch.setattr(saving, "now", lambda: next(stamps))
    first, second, third = (save_snapshot(each) for each in (lab, other, lab))
    other.purge()
    assert list_snapshots(lab.store) == [third, second, first]
    assert list_snapshots(lab.store, "other") == [second]
    assert list_snapshots(lab.store, "lab") == [third, first]
    assert list_snapshots(lab.store, directory=Path(first.path).parent) == [third, first]
    with pytest.raises(SpecError):
        list_snapshots(lab.store, "../lab")
    with pytest.raises(SpecError, match="no directory"):
        list_snapshots(lab.store, directory=lab.store.root / "nothing")
    assert find_snapshot(Path(first.path).name, lab.store) == first.path
    assert find_snapshot("unknown.db", lab.store) == os.path.abspath("unknown.db")


def test_what_is_not_as_it_should_be_is_shown(lab: Cluster) -> None:
    """Without a manifest, with a damaged one, of another size, gone, left by a killed save, or being written now."""
    directory = Path(save_snapshot(lab).path).parent
    content = Path(save_snapshot(lab).path).read_bytes()

    def copy(name: str, data: bytes = content) -> None:
        save_snapshot(lab, directory / name)
        (directory / name).write_bytes(data)

    copy("plain.db")
    manifest_path(directory / "plain.db").unlink()
    copy("broken.db")
    manifest_path(directory / "broken.db").write_text("{")
    copy("short.db", content[:-512])
    copy("gone.db")
    (directory / "gone.db").unlink()
    (directory / "left.db.part").write_bytes(content[:1000])
    (directory / "stranger.json").write_text("{}")
    (directory / ".hidden.db").write_text("")
    (directory / "link.db").symlink_to("plain.db")
    with PartFile(directory / "now.db") as part:
        part.write(content[:10])
        found = {Path(each.path).name: each for each in list_snapshots(lab.store, "lab")}
    states = {name: each.state for name, each in found.items() if "-r13" not in name}
    assert states == {
        "plain.db": "unknown",
        "broken.db": "damaged",
        "short.db": "damaged",
        "gone.db": "damaged",
        "left.db.part": "partial",
        "now.db.part": "saving",
    }
    for name, said in (
        ("plain.db", "it has no manifest"),
        ("broken.db", "is damaged"),
        ("short.db", "its size should be"),
        ("gone.db", "gone.db is gone"),
        ("left.db.part", "it can be deleted"),
    ):
        assert said in found[name].problem
        assert found[name].level is None
    assert found["plain.db"].age_s() < 60
    assert not os.path.exists(directory / "now.db.part")


# -- pruning

HOUR = 3600.0
AT = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)


def _known(age_h: float, *, cluster: str = "a", verified: bool = True, problem: str = "") -> Snapshot:
    """Give a snapshot of that age."""
    created = datetime.fromtimestamp(AT.timestamp() - age_h * HOUR, timezone.utc).isoformat()
    manifest = Manifest(
        schema=1,
        file="x",
        cluster="lab",
        cluster_id=cluster,
        etcd_cluster_id="1",
        etcd_version="3.5.30",
        members=(),
        source="thor",
        quorum=True,
        revision=1,
        compact_revision=0,
        raft_term=2,
        raft_index=3,
        auth=False,
        size=1,
        db_size=1,
        sha256="",
        created=created,
    )
    manifest = manifest.passed(("hash",), at=created) if verified else manifest
    manifest = manifest.failed(problem) if problem else manifest
    return Snapshot(f"/s/{cluster}-{age_h}", "damaged" if problem else "ok", 1, created, problem, manifest)


def _ages(plan: PrunePlan) -> list[float]:
    return [each.age_s(AT) / HOUR for each in plan.remove]


def test_prune_by_count_and_age() -> None:
    """By count: what is beyond it. By age: what is older, and not the last one. By both: what is beyond and older."""
    found = [_known(age) for age in (1, 2, 3, 4, 5)]
    assert _ages(plan_prune(found, keep=2, at=AT)) == [3, 4, 5]
    assert _ages(plan_prune(found, older_than_s=3 * HOUR, at=AT)) == [4, 5]
    assert _ages(plan_prune(found, older_than_s=0, at=AT)) == [2, 3, 4, 5]
    assert _ages(plan_prune(found, keep=2, older_than_s=4 * HOUR, at=AT)) == [5]
    assert _ages(plan_prune(found, keep=5, older_than_s=0, at=AT)) == []
    assert [each.age_s(AT) / HOUR for each in plan_prune(found, keep=2, at=AT).relies_on] == [1]
    for wrong in (None, 0, -1):
        with pytest.raises(SpecError):
            plan_prune(found, keep=wrong)


def test_prune_counts_verified_ones_only() -> None:
    """What is not verified, or damaged, does not count; it goes as others do, and never stands for them."""
    found = [_known(1, verified=False), _known(2, problem="torn"), _known(3), _known(4, problem="torn"), _known(5)]
    assert _ages(plan_prune(found, keep=1, at=AT)) == [4, 5]
    assert _ages(plan_prune(found, keep=2, at=AT)) == []
    assert _ages(plan_prune(found[:2], older_than_s=0, at=AT)) == []
    unknown = Snapshot("/s/x", "unknown", 1, AT.isoformat())
    assert plan_prune([unknown, _known(1)], older_than_s=0, at=AT).remove == ()


@given(
    found=st.lists(
        st.builds(
            _known,
            st.integers(0, 50).map(float),
            cluster=st.sampled_from("ab"),
            verified=st.booleans(),
            problem=st.sampled_from(["", "", "torn"]),
        ),
        max_size=12,
    ),
    keep=st.none() | st.integers(1, 5),
    older_h=st.none() | st.integers(0, 60),
)
def test_prune_never_takes_the_last_verified_one(found: list[Snapshot], keep: int | None, older_h: int | None) -> None:
    """Of each cluster as many verified ones stay as asked for, and each that goes has newer ones that stay."""
    if keep is None and older_h is None:
        return
    plan = plan_prune(found, keep=keep, older_than_s=None if older_h is None else older_h * HOUR, at=AT)
    gone = list(map(id, plan.remove))
    for cluster in "ab":
        verified = [each for each in found if each.level and _manifest(each).cluster_id == cluster]
        stay = [each for each in verified if id(each) not in gone]
        assert len(stay) >= min(len(verified), keep or 1)
        for each in plan.remove:
            if _manifest(each).cluster_id == cluster:
                assert sum(other.created >= each.created for other in stay) >= (keep or 1)
                assert older_h is None or each.age_s(AT) > older_h * HOUR


def test_prune_removes_files_with_their_manifests(lab: Cluster, monkeypatch: Monkey) -> None:
    """What the plan names goes, and nothing else; one whose snapshot is gone already, too."""
    stamps = iter(f"2026-01-31T12:00:0{i}+00:00" for i in range(5))
    monkeypatch.setattr(saving, "now", lambda: next(stamps))
    paths = [Path(save_snapshot(lab).path) for _ in range(5)]
    (paths[0].parent / "mine.db").write_text("mine")
    paths[0].unlink()
    plan = plan_prune(list_snapshots(lab.store), keep=2)
    assert [each.path for each in plan.remove] == [str(path) for path in reversed(paths[:3])]
    manifest = read_manifest(paths[1])
    assert manifest
    write_manifest(paths[1], manifest.failed("changed meanwhile"))
    assert prune_snapshots(plan) == [str(paths[2]), str(paths[0])]
    left = {"mine.db", *(path.name for path in paths[3:]), *(f"{path.name}.json" for path in paths[3:])}
    assert set(os.listdir(paths[0].parent)) == left | {paths[1].name, f"{paths[1].name}.json"}


def test_prune_looks_again_at_what_it_relies_on(lab: Cluster) -> None:
    """Where the newest verified one has been damaged since, or exchanged, nothing is removed."""
    old, new = (Path(save_snapshot(lab, lab.store.root / name).path) for name in ("old.db", "new.db"))
    manifest = read_manifest(old)
    assert manifest
    write_manifest(old, msgspec.structs.replace(manifest, created="2020-01-31T12:00:00+00:00"))
    plan = plan_prune(list_snapshots(lab.store, directory=lab.store.root), keep=1)
    assert [each.path for each in plan.remove] == [str(old)]
    right = new.read_bytes()
    for wrong in (right[:-1] + b"?", hashlib.sha256(b"").digest()):
        new.write_bytes(wrong)
        with pytest.raises(SnapshotError, match="nothing was removed"):
            prune_snapshots(plan)
    assert old.exists()
    new.unlink()
    with pytest.raises(SnapshotError):
        prune_snapshots(plan)
    assert old.exists()
    new.write_bytes(right)
    assert prune_snapshots(plan) == [str(old)]
    assert verify_snapshot(new).result == "passed"


# -- the rest


def test_members_in_memory_keep_their_history_in_snapshots(lab: Cluster, out: Path) -> None:
    """Deletions and compactions too: revision and compaction are those of the member."""
    client = lab.client()
    client.delete("key/3")
    client.compact(9)
    saved = save_snapshot(lab, out / "x.db")
    contents = read_contents(saved.path)
    assert (contents.revision, contents.compact_revision, contents.raft_term) == (14, 9, lab.status().term)
    report = verify_snapshot(saved.path, deep=True)
    assert (report.result, report.keys) == ("passed", 9), report


def test_json_of_a_manifest_is_stable(saved: Path) -> None:
    """Its fields, in order: programs of others read them."""
    assert list(json.loads(manifest_path(saved).read_bytes())) == [
        *("schema", "file", "cluster", "cluster_id", "etcd_cluster_id", "etcd_version", "members", "source", "quorum"),
        *("revision", "compact_revision", "raft_term", "raft_index", "auth", "size", "db_size", "sha256", "created"),
        *("verified", "problem", "keys"),
    ]
    assert datetime.fromisoformat(now()).tzinfo
