"""What is recorded of members' disks: etcd's own histogram of fsyncs, and the file system."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from etcdops.drills.disks import Fsyncs, disks_of
from etcdops.hosts import LocalHost
from etcdops.metrics import gauge, histogram
from etcdops.report.disks import Disk, Disks, fsync_text, p99, systems_text, write_disks
from etcdops.report.loading import load_run
from scripts.big_run import write_big_run

INF = float("inf")

#: As etcd 3.5 has it, but for most of its buckets.
TEXT = """\
# HELP etcd_disk_wal_fsync_duration_seconds The latency distributions of fsync called by WAL.
# TYPE etcd_disk_wal_fsync_duration_seconds histogram
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.001"} 90
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.002"} 98
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.004"} 1.99e+02
etcd_disk_wal_fsync_duration_seconds_bucket{le="+Inf"} 200
etcd_disk_wal_fsync_duration_seconds_sum 0.2
etcd_disk_wal_fsync_duration_seconds_count 200
etcd_disk_wal_write_bytes_total 7
process_start_time_seconds 1.7e+09
"""


def test_a_histogram_is_read() -> None:
    """Each bucket's bound and count; other metrics, and those of a longer name, are not taken for it."""
    assert histogram(TEXT, "etcd_disk_wal_fsync_duration_seconds") == {0.001: 90, 0.002: 98, 0.004: 199, INF: 200}
    assert histogram(TEXT, "etcd_disk_wal_fsync") == {}
    assert histogram("", "etcd_disk_wal_fsync_duration_seconds") == {}
    assert gauge(TEXT, "process_start_time_seconds") == 1.7e9
    assert gauge(TEXT, "process_start") is None


@pytest.mark.parametrize(
    ("buckets", "bound"),
    [
        ({0.001: 90, 0.002: 98, 0.004: 199, INF: 200}, 0.004),
        ({0.001: 99, INF: 100}, 0.001),
        ({0.001: 98, INF: 100}, INF),
        ({0.001: 1, INF: 1}, 0.001),
        ({0.001: 0, INF: 0}, None),
        ({}, None),
    ],
)
def test_p99(buckets: dict[float, int], bound: float | None) -> None:
    """The least bound under which 99 in 100 lie, and nothing where nothing was seen."""
    assert p99(buckets) == bound


class _Runtime:
    def file_systems(self, record: object) -> dict[str, str]:
        return {"ironman": "ext4"}


class _Cluster:
    runtime = _Runtime()
    record = None


def test_what_was_counted_before_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a member that goes on, what came since; of one that was started meanwhile, all that it has counted."""
    now = {
        "ironman": Fsyncs(1.0, {0.001: 100, 0.002: 1000, INF: 1000}),
        "thor": Fsyncs(9.0, {0.001: 50, INF: 50}),
        "deadpool": Fsyncs(1.0, {0.001: 5, INF: 10}),
        "hulk": Fsyncs(None, {}),
    }
    monkeypatch.setattr("etcdops.drills.disks.fsyncs", lambda cluster: now)
    before = {
        "ironman": Fsyncs(1.0, {0.001: 0, 0.002: 900, INF: 900}),
        "thor": Fsyncs(1.0, {0.001: 1, INF: 40}),
        "deadpool": Fsyncs(1.0, {0.001: 5, INF: 5}),
    }
    assert disks_of(_Cluster(), before) == Disks(  # type: ignore[arg-type]
        {
            "ironman": Disk("ext4", 100, 1.0),
            "thor": Disk("", 50, 1.0),
            "deadpool": Disk("", 5, None),
            "hulk": Disk(),
        }
    )


def test_words() -> None:
    """One text where all members are alike, else one for each; nothing where nothing is known."""
    alike = Disks({"ironman": Disk("ext4", 10, 2.0), "thor": Disk("ext4", 10, 2.0)})
    assert (systems_text(alike), fsync_text(alike)) == ("ext4", "at most 2 ms (10 fsyncs)")
    unlike = Disks({"ironman": Disk("ext4", 1234, 0.5), "thor": Disk("xfs", 10, None), "hulk": Disk("ext4")})
    assert systems_text(unlike) == "ironman: ext4; thor: xfs; hulk: ext4"
    assert fsync_text(unlike) == "ironman: at most 0.5 ms (1,234 fsyncs); thor: longer than etcd counts (10 fsyncs)"
    assert (systems_text(Disks()), fsync_text(Disks({"thor": Disk()}))) == ("", "")


def test_a_folder_without_or_with_a_damaged_file(tmp_path: Path) -> None:
    """A run of an older release has none, which is no problem; one that is damaged is a problem that is told."""
    folder = tmp_path / "20260102-030405-failed-leader-1a2b"
    write_big_run(folder, 600)
    (folder / "disks.json").unlink(missing_ok=True)
    run = load_run(folder)
    assert (run.disks, run.problems) == (Disks(), ())
    known = Disks({"ironman": Disk("ext4", 10, 2.0), "thor": Disk("", 3, None)})
    write_disks(known, folder)
    assert load_run(folder).disks == known
    (folder / "disks.json").write_text('{"members": 7}')
    run = load_run(folder)
    assert run.disks == Disks()
    assert any("disks.json" in problem for problem in run.problems)


def test_the_file_system_is_the_one_that_df_names(tmp_path: Path) -> None:
    """For an ordinary directory, for one on a file system of its own kind, and for a path that is not there yet."""
    host = LocalHost()
    for place in (tmp_path, Path("/proc"), Path("/dev/shm")):
        if place.exists():
            told = subprocess.run(["df", "-PT", str(place)], capture_output=True, text=True, check=True).stdout
            assert host.file_system(str(place)) == told.split()[-6]
    assert host.file_system(str(tmp_path / "later")) == host.file_system(str(tmp_path))
