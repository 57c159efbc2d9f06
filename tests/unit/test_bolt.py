"""What is read from a database's own pages: the same as etcdutl reads, and no file can make it fail in another way."""

from __future__ import annotations

import json
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etcdops import binaries
from etcdops.fake.database import database
from etcdops.snapshots.bolt import BoltMember, Contents, NotBolt, fnv, is_bolt, read_contents

#: Several examples may use one tmp_path: each writes its file anew.
REUSING = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def _revision(main: int, sub: int = 0, mark: bytes = b"") -> bytes:
    return main.to_bytes(8, "big") + b"_" + sub.to_bytes(8, "big") + mark


def _etcd(keys: int = 1, **buckets: list[tuple[bytes, bytes]]) -> bytes:
    """Give a database as etcd makes it, with so many revisions from 2 on."""
    pairs = [(_revision(2 + i), b"value %d" % i) for i in range(keys)]
    named = {name.encode(): content for name, content in buckets.items()}
    return database({b"key": pairs, b"meta": [], b"cluster": [], b"members": [], **named})


def _read(path: Path, data: bytes) -> Contents:
    path.write_bytes(data)
    return read_contents(path)


@REUSING
@given(count=st.sampled_from([0, 1, 2, 999, 1000, 1001, 5000]))
def test_last_revision_is_found_in_trees_of_any_depth(tmp_path: Path, count: int) -> None:
    """The newest revision is that of the last key, whether its bucket is empty, a leaf or has branches."""
    contents = _read(tmp_path / "db", _etcd(count))
    assert contents.last_revision == (count + 1 if count else 0)
    assert contents.revision == max(count + 1, 1)


def test_etcdutl_reads_the_same(tmp_path: Path) -> None:
    """etcd's own tool takes these databases for sound, and finds the same revision."""
    etcdutl = binaries.etcdutl_for("")
    assert etcdutl
    path = tmp_path / "db"
    contents = _read(path, _etcd(2500))
    done = subprocess.run([etcdutl, "snapshot", "status", path, "-w", "json"], capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["revision"] == contents.last_revision == 2501


def test_what_etcd_keeps_besides_is_read(tmp_path: Path) -> None:
    """Index, term, compaction, authentication, the cluster's version and its members."""
    told = {"id": 0xABC, "peerURLs": ["http://a:2380"], "name": "thor", "isLearner": True}
    contents = _read(
        tmp_path / "db",
        _etcd(
            3,
            meta=[
                (b"consistent_index", (77).to_bytes(8, "big")),
                (b"finishedCompactRev", _revision(9)),
                (b"scheduledCompactRev", _revision(11)),
                (b"term", (5).to_bytes(8, "big")),
            ],
            cluster=[(b"clusterVersion", b"3.5.0")],
            auth=[(b"authEnabled", b"\x01")],
            members=[(b"0000000000000abc", json.dumps(told).encode())],
        ),
    )
    assert contents == Contents(
        # All keys up to the compaction may be gone: the store is at its revision all the same.
        revision=11,
        last_revision=4,
        compact_revision=11,
        raft_index=77,
        raft_term=5,
        cluster_version="3.5.0",
        auth=True,
        members=(BoltMember(0xABC, "thor", ("http://a:2380",), True),),
    )
    bare = _read(tmp_path / "db", _etcd(1, auth=[(b"authEnabled", b"\x00")]))
    assert (bare.auth, bare.members, bare.cluster_version, bare.raft_term) == (False, (), "", 0)


def test_the_newest_sound_meta_page_counts(tmp_path: Path) -> None:
    """One of the two may be torn; of two that are right, the later transaction's is meant."""
    data = bytearray(_etcd(1))
    for broken in (0, 4096):
        torn = bytearray(data)
        torn[broken + 30] ^= 1
        assert _read(tmp_path / "db", bytes(torn)).revision == 2
    both = bytearray(data)
    both[30] ^= 1
    both[4096 + 30] ^= 1
    with pytest.raises(NotBolt, match="meta pages"):
        _read(tmp_path / "db", bytes(both))
    # The first one, made the later of the two, with a root that is not there.
    fields = bytearray(data[16:72])
    struct.pack_into("<QQ", fields, 16, 1_000_000, 0)
    struct.pack_into("<Q", fields, 48, 99)
    data[16:80] = fields + struct.pack("<Q", fnv(bytes(fields)))
    with pytest.raises(NotBolt, match="there is no page 1000000"):
        _read(tmp_path / "db", bytes(data))


def test_pages_that_lead_in_circles(tmp_path: Path) -> None:
    """A branch that has itself below it is an error, not an endless walk."""
    data = bytearray(_etcd(2000))
    branch = next(at for at in range(0, len(data), 4096) if struct.unpack_from("<H", data, at + 8)[0] == 0x01)
    for i in (0, 1):
        struct.pack_into("<Q", data, branch + 16 + 16 * i + 8, branch // 4096)
    with pytest.raises(NotBolt, match="circles"):
        _read(tmp_path / "db", bytes(data))


@REUSING
@given(data=st.data())
def test_damage_is_only_ever_called_that(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever is flipped or cut off: contents are read, or NotBolt is raised, and nothing else."""
    told = json.dumps({"id": 1, "peerURLs": ["http://a"], "name": "a"}).encode()
    whole = _etcd(1100, members=[(b"01", told)], meta=[(b"consistent_index", bytes(8))])
    broken = bytearray(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    for _ in range(data.draw(st.integers(0, 6)) if broken else 0):
        # Most of a page is values, which are not looked at: aim at headers.
        page = data.draw(st.integers(0, (len(broken) - 1) // 4096)) * 4096
        at = min(page + data.draw(st.integers(0, 200)), len(broken) - 1)
        broken[at] = data.draw(st.integers(0, 255))
    with suppress(NotBolt):
        assert _read(tmp_path / "db", bytes(broken)).revision >= 1


@pytest.mark.parametrize("content", [b"", b"short", bytes(4096), b"SQLite format 3\0" * 600])
def test_other_files_are_not_taken_for_databases(tmp_path: Path, content: bytes) -> None:
    """A file of another kind is told from a database at its beginning."""
    (tmp_path / "file").write_bytes(content)
    assert not is_bolt(tmp_path / "file")
    with pytest.raises(NotBolt):
        read_contents(tmp_path / "file")
    (tmp_path / "file").write_bytes(_etcd())
    assert is_bolt(tmp_path / "file")
    assert not is_bolt(tmp_path / "nothing")
