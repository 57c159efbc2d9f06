"""Defragmenting, compacting, and healing a full quota, on real members."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from etcdops import calls, wire
from etcdops.answers import Alarm
from etcdops.cluster import Cluster
from etcdops.errors import EtcdError, EtcdopsError, PartlyChanged, Refused, WaitTimeout
from etcdops.operations import compact, defrag, nospace, upkeep
from etcdops.operations.leader import hand_over
from etcdops.report.journal import read_journal
from etcdops.runtimes.fake import FakeRuntime
from etcdops.space import DefragRule
from etcdops.spec import ClusterSpec, Timing
from etcdops.state import Store
from tests.conftest import CommandLine, need_runtime, place
from tests.suite.releases import spec_of

MIB = 2**20
QUOTA = 16 * MIB
EVERYONE = DefragRule(everyone=True)
QUICK = Timing(50, 500)


def _etcd(cluster: Cluster, name: str = "") -> wire.Connection:
    member = cluster.record.member(name) if name else cluster.record.members[0]
    return wire.Connection(member.client_url)


def _fill(cluster: Cluster, *, one_key: bool) -> int:
    """Write until the quota is used up; give how many writes were acknowledged."""
    with _etcd(cluster) as etcd:
        for number in range(1000):
            try:
                etcd.put(b"load" if one_key else f"load/{number}".encode(), bytes(400_000), timeout_s=10)
            except EtcdError as error:
                if error.text == "etcdserver: mvcc: database space exceeded":
                    return number
                raise
    raise AssertionError("the quota is never used up")


def _alarms(cluster: Cluster) -> set[tuple[str, str]]:
    """Give the alarms, by the members' names."""
    names = {member.status().member_id: member.name for member in cluster.members}
    with _etcd(cluster) as etcd:
        return {(names[alarm.member_id], alarm.kind) for alarm in etcd.alarms(timeout_s=20)}


def _wait_alarms(cluster: Cluster) -> None:
    """Wait until no more alarms come: each member raises its own when it applies what its quota has no room for."""
    deadline, before = time.monotonic() + 40, set[tuple[str, str]]()
    while (now := _alarms(cluster)) != before:
        assert time.monotonic() < deadline
        before = now
        time.sleep(0.5)


def _raise(cluster: Cluster, name: str, kind: str) -> None:
    """Raise an alarm for a member, by the call with which members do it."""
    with _etcd(cluster) as etcd:
        ids = [cluster.member(name).status().member_id]
        etcd.call(calls._alarm("ACTIVATE", ids[0], kind), timeout_s=20)


def _sizes(cluster: Cluster) -> dict[str, int]:
    return {member.name: member.status().db_size for member in cluster.members}


def _seen(cluster: Cluster) -> object:
    """Give what a look must not change: revisions, what is compacted, alarms, terms, and the runs on record.

    Sizes are not among it: what was written before may still be on its way to the file.
    """
    deadline = time.monotonic() + 20
    said = [member.status(timeout_s=20) for member in cluster.members]
    while len({status.raft_applied_index for status in said}) > 1:
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
        said = [member.status(timeout_s=20) for member in cluster.members]
    compacted = []
    for member in cluster.members:
        with _etcd(cluster, member.name) as etcd:
            compacted.append(etcd.hash_kv(timeout_s=20).compact_revision)
    known = [(s.revision, s.raft_term, s.leader, sorted(s.errors)) for s in said]
    return known, compacted, sorted(path.name for path in cluster.store.runs.glob("*"))


def _steps(cluster: Cluster, operation: str) -> list[str]:
    """Give the steps that the journal of the latest run of an operation has as done."""
    [*_, run] = sorted(
        cluster.store.runs.glob(f"*-{operation.replace('.', '-')}-*"), key=lambda p: p.stat().st_mtime_ns
    )
    entries = read_journal(run / "journal.jsonl")
    begun = [entry.detail for entry in entries if entry.event == "step"]
    assert begun == [entry.detail for entry in entries if entry.event == "done"]
    return [f"{entry.detail.split()[1]} {entry.member}" for entry in entries if entry.event == "done"]


# -- a full quota


@pytest.fixture(params=["3.5.30", "3.4.23"])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CommandLine]:
    """A command line with a cluster of three that real writes have filled, on two releases.

    All of it goes over the wire, and the quota is a flag that members get in the same way by each runtime.
    """
    need_runtime("process", request.config)
    spec = spec_of(request.param, "process", name="lab", quota_bytes=QUOTA)
    with place(tmp_path / "place", "process") as line:
        Cluster.ensure_up(spec, runtime="process", store=line.store, offline=True)
        _fill(line.cluster(), one_key=True)
        _wait_alarms(line.cluster())
        yield line


def test_a_full_quota_is_healed_and_corrupt_stays_armed(full: CommandLine) -> None:
    """Compact, defragment with the leader last, disarm NOSPACE alone: writes are accepted, and CORRUPT stays armed."""
    lab = full.cluster()
    assert {kind for _, kind in _alarms(lab)} == {"NOSPACE"}
    bad = ["--allow-known-bad"] if lab.record.etcd_version == "3.4.23" else []

    # CORRUPT came last, so it decides, and etcd refuses to compact: nothing can be done before that is dealt with.
    _raise(lab, "deadpool", "CORRUPT")
    before = _seen(lab)
    refused = full("cluster.heal-nospace", "--yes", *bad)
    assert refused.code == 3
    assert "a CORRUPT alarm has etcd refuse to compact" in refused.err
    assert _seen(lab) == before

    # Now NOSPACE comes last, by a write that the full quota refuses.
    with _etcd(lab) as etcd:
        for alarm in etcd.alarms(timeout_s=20):
            if alarm.kind == "NOSPACE":
                etcd.alarm_disarm(alarm.member_id, "NOSPACE", timeout_s=20)
    # Members' files differ: through one of them some more may fit, of which another finds that it does not.
    _fill(lab, one_key=True)
    _wait_alarms(lab)
    full_ones = {name for name, kind in _alarms(lab) if kind == "NOSPACE"}
    assert full_ones
    assert _alarms(lab) == {*((name, "NOSPACE") for name in full_ones), ("deadpool", "CORRUPT")}

    leader, before = lab.leader().name, _seen(lab)
    if bad:
        assert full("cluster.heal-nospace", "--yes").code == 3
    planned = full("cluster.heal-nospace", "--dry-run", *bad)
    assert planned.code == 0, planned
    assert "defragment" in planned.out
    assert "Restart none before CORRUPT is dealt with" in planned.out
    asked = full("cluster.heal-nospace", *bad)
    assert asked.code == 2, asked
    assert _seen(lab) == before

    done = full("cluster.heal-nospace", "--yes", "-o", "json", *bad)
    assert done.code == 0, done
    report = json.loads(done.out)
    assert (report["schema"], report["cluster"], report["corrupt"]) == (1, "lab", ["deadpool"])
    assert report["proof"] == "writes through ironman, thor, deadpool are acknowledged, and no alarm came of them"
    assert [m["disarmed"] for m in report["members"]] == [name in full_ones for name in lab.record.spec.names]
    assert "CORRUPT of deadpool is armed, as it was" in done.err
    assert "Restart none" in done.err
    assert _alarms(lab) == {("deadpool", "CORRUPT")}
    followers = [name for name in lab.record.spec.names if name != leader]
    steps = _steps(lab, "cluster.heal-nospace")
    assert steps[:3] == [f"compact {leader}", *(f"defrag {name}" for name in followers)]
    assert steps[3] in [f"move-leader {name}" for name in followers]
    disarmed = [f"disarm {name}" for name in lab.record.spec.names if name in full_ones]
    assert steps[4:] == [f"defrag {leader}", *disarmed, f"prove {leader}"]
    assert lab.leader().name == steps[3].split()[1]
    assert all(size < 0.8 * QUOTA for size in _sizes(lab).values())
    with _etcd(lab) as etcd:
        etcd.put(b"load", b"small again", timeout_s=20)
        assert etcd.range(b"etcdops/", b"etcdops0", timeout_s=20).count == 0

    again = full("cluster.heal-nospace")
    assert (again.code, "no member of lab has raised NOSPACE: nothing was changed" in again.err) == (0, True)
    assert _alarms(lab) == {("deadpool", "CORRUPT")}


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of one member with a small quota."""
    spec = ClusterSpec.of_size("lab", 1, timing=QUICK, quota_bytes=QUOTA)
    with Cluster.create(spec, store=Store(tmp_path / "state"), temporary=True, offline=True) as cluster:
        yield cluster


def test_a_cluster_whose_quota_is_full_starts(one: Cluster) -> None:
    """Nothing can be written, and that is said; it is no reason to stop the members again."""
    _fill(one, one_key=True)
    one.down()
    said: list[str] = []
    assert one.up(progress=said.append) == ["ironman"]
    assert "writes are refused (database space exceeded): `status` names the alarm, and what to do" in said


def test_live_data_that_fill_the_quota(one: Cluster) -> None:
    """Nothing can be compacted away: refused before anything changes. Once keys are deleted, it heals."""
    _fill(one, one_key=False)
    before = _seen(one)
    with pytest.raises(Refused, match=r"at least 1\d MiB of keys and values are alive, of a quota of 16 MiB"):
        one.heal_nospace(allow_known_bad=True)
    assert _seen(one) == before
    with _etcd(one) as etcd:
        # Accepted under NOSPACE: deletes make room in the end.
        assert etcd.delete_range(b"load/1", b"load0", timeout_s=20).deleted > 15
    report = one.heal_nospace(allow_known_bad=True)
    assert _alarms(one) == set()
    [member] = report.members
    assert member.disarmed
    assert member.db_size_after < 0.8 * QUOTA


class _Killed(Exception):
    """What stands for the end of etcdops in the middle of its work."""


def test_a_healing_that_was_cut_short_goes_on(one: Cluster) -> None:
    """Run again, it does what is left: no second compaction, and nobody defragments twice."""
    _fill(one, one_key=True)

    def die(text: str) -> None:
        if "disarm" in text:
            raise _Killed

    with pytest.raises(_Killed):
        one.heal_nospace(allow_known_bad=True, progress=die)
    assert {kind for _, kind in _alarms(one)} == {"NOSPACE"}
    plan, _ = nospace.prepare(one)
    assert [step.do for step in plan.steps] == ["disarm", "prove"]
    report = one.heal_nospace()
    assert (report.revision, _alarms(one)) == (0, set())


# -- defrag and compact


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A command line with a cluster of three for several tests."""
    with place(tmp_path_factory.mktemp("maintenance") / "place") as line:
        spec = ClusterSpec.of_size("lab", timing=QUICK)
        Cluster.ensure_up(spec, runtime="process", store=line.store, offline=True)
        yield line


@pytest.fixture
def loose(shared: CommandLine) -> Cluster:
    """The shared cluster, healthy, with much that is free in every database, and a few keys."""
    lab = shared.cluster()
    lab.up()
    with _etcd(lab) as etcd:
        for number in range(20):
            etcd.put(b"load", bytes(400_000), timeout_s=10)
            etcd.put(f"key/{number % 7}".encode(), str(number).encode(), timeout_s=10)
        etcd.delete_range(b"load", timeout_s=10)
        etcd.compact(etcd.status(timeout_s=20).revision, physical=True, timeout_s=30)
    lab.wait_healthy()
    return lab


def _hashes(cluster: Cluster) -> set[int]:
    with _etcd(cluster) as etcd:
        revision = etcd.range(b"x", timeout_s=20).revision
    found = set()
    for member in cluster.members:
        cluster.wait_serving([member.name])
        with _etcd(cluster, member.name) as etcd:
            found.add(etcd.hash_kv(revision, timeout_s=20).hash)
    return found


def _wait_free(cluster: Cluster, wait_until: Any) -> None:
    """Wait until every member has cleaned its database: each does in its own time."""

    def free() -> bool:
        # A member counts pages as free with the next writes only.
        with _etcd(cluster) as etcd:
            etcd.put(b"key/0", b"0", timeout_s=20)
        said = [member.status() for member in cluster.members]
        return all(status.db_size - status.db_size_in_use > 4 * MIB for status in said)

    wait_until(free, what="databases that are clean")


def test_defrag_takes_turns_and_gives_back(loose: Cluster, wait_until: Any) -> None:
    """Followers first, the leader last and after another leads; every file shrinks, and no data change."""
    _wait_free(loose, wait_until)
    leader, before, hashes = loose.leader().name, _sizes(loose), _hashes(loose)
    led: dict[str, str] = {}

    def note(text: str) -> None:
        words = text.split()
        if words[1] == "defragment":
            led[words[2]] = loose.leader().name

    report = loose.defrag(rule=DefragRule(free_bytes=4 * MIB), allow_known_bad=True, progress=note)
    followers = [name for name in loose.record.spec.names if name != leader]
    assert list(led) == [*followers, leader]
    assert [led[name] for name in followers] == [leader, leader]
    assert led[leader] in followers
    steps = _steps(loose, "cluster.defrag")
    assert steps == [*(f"defrag {name}" for name in followers), f"move-leader {led[leader]}", f"defrag {leader}"]
    after = _sizes(loose)
    assert all(after[name] < before[name] - 4 * MIB for name in before)
    assert all(row.done and row.reclaimed == before[row.member] - after[row.member] for row in report.members)
    assert report.reclaimed == sum(before.values()) - sum(after.values())
    assert _hashes(loose) == hashes
    assert len(hashes) == 1
    # By the rule there is nothing left to do.
    again = loose.defrag(rule=DefragRule(free_bytes=4 * MIB), allow_known_bad=True)
    assert not any(row.done for row in again.members)


def test_defrag_as_a_task(shared: CommandLine, loose: Cluster, wait_until: Any) -> None:
    """--dry-run changes nothing and says why each; then a table of what each gave back; then nothing is left."""
    _wait_free(loose, wait_until)
    rule = ("--min-free", "4MiB", "--allow-known-bad")
    before = _seen(loose)
    planned = shared("cluster.defrag", "--dry-run", *rule)
    assert planned.code == 0, planned
    assert planned.out.count("free: at least 4 MiB") == 3
    assert "  4. defragment " in planned.out
    left = shared("cluster.defrag", "--allow-known-bad")
    assert left.code == 0
    assert left.out.count("free: less than 200 MiB") == 3
    assert "no member of lab was worth defragmenting: nothing was changed" in left.err
    assert _seen(loose) == before
    one = shared("cluster.defrag", "-o", "json", "--member", "thor", *rule)
    assert one.code == 0, one
    rows = json.loads(one.out)["members"]
    assert [(row["member"], row["done"]) for row in rows] == [("ironman", False), ("thor", True), ("deadpool", False)]
    done = shared("cluster.defrag", *rule)
    assert done.code == 0, done
    assert [line.split()[-5] for line in done.out.splitlines() if "at least 4 MiB" in line] != []
    assert shared("cluster.defrag", "--min-free", "4MB").code == 2
    assert shared("cluster.defrag", "--member", "nobody").code == 2


def test_no_leader_defragments_in_place(loose: Cluster) -> None:
    """An election after the plan was made: who leads when its turn comes hands over first."""
    follower = next(name for name in loose.record.spec.names if name != loose.leader().name)
    said: list[str] = []

    def elect(text: str) -> None:
        said.append(text)
        if text.startswith("1/1 defragment"):
            hand_over(loose, follower)

    loose.defrag(rule=EVERYONE, only=[follower], allow_known_bad=True, progress=elect)
    assert any(text.startswith(f"{follower} leads now: handing leadership over to ") for text in said)
    assert loose.leader().name != follower


@pytest.mark.parametrize("works", [True, False])
def test_a_timeout_is_not_asked_twice(loose: Cluster, monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    """The member goes on when the client has stopped waiting: it is looked at, and what it did shows in its size."""
    asked: list[str] = []
    really = wire.Connection.defragment

    def late(self: wire.Connection, *, timeout_s: float) -> None:
        asked.append(self.endpoint)
        if works:
            really(self, timeout_s=timeout_s)
        raise EtcdError("DEADLINE_EXCEEDED", "Deadline Exceeded", endpoint=self.endpoint)

    with _etcd(loose, "thor") as etcd:
        etcd.defragment(timeout_s=30)
        for _ in range(10):
            etcd.put(b"load", bytes(400_000), timeout_s=10)
        etcd.delete_range(b"load", timeout_s=20)
        etcd.compact(etcd.status(timeout_s=20).revision, physical=True, timeout_s=30)
    monkeypatch.setattr(wire.Connection, "defragment", late)
    if works:
        report = loose.defrag(rule=EVERYONE, only=["thor"], allow_known_bad=True)
        assert [row.member for row in report.members if row.reclaimed] == ["thor"]
    else:
        with pytest.raises(WaitTimeout, match="thor was asked to defragment, and did not answer") as failed:
            loose.defrag(rule=EVERYONE, only=["thor"], allow_known_bad=True)
        assert "no member is done" in failed.value.remedy
    assert asked == [loose.record.member("thor").client_url]


def test_the_gate_is_closed(shared: CommandLine, loose: Cluster) -> None:
    """With a member down nothing is begun, and the refusal names it and what to do."""
    loose.member("thor").stop()
    before = loose.status().members[0].raft_index
    plans: tuple[Callable[[], object], ...] = (
        lambda: defrag.prepare(loose, rule=EVERYONE, allow_known_bad=True),
        lambda: compact.prepare(loose, keep=1),
        lambda: nospace.prepare(loose),
    )
    for plan in plans:
        with pytest.raises(Refused, match=r"is not begun while something is wrong: .*thor is stopped") as refusal:
            plan()
        assert "`member.start thor`" in refusal.value.remedy
    refused = shared("cluster.defrag", "--all", "--yes", "--allow-known-bad")
    assert (refused.code, "thor is stopped" in refused.err) == (3, True)
    assert loose.status().members[0].raft_index == before
    loose.member("thor").start()


def test_compact_gives_up_history(shared: CommandLine, loose: Cluster) -> None:
    """What is older than asked for cannot be read or watched any more, current values can; done is done."""
    newest = loose.member("thor").status().revision
    with _etcd(loose) as etcd:
        for number in range(30):
            etcd.put(b"key/0", str(number).encode(), timeout_s=20)
    before = _seen(loose)
    planned = shared("cluster.compact", "--keep", "10", "--dry-run")
    assert planned.code == 0, planned
    assert f"compact to revision {newest + 20}" in planned.out
    assert "is gone for good" in planned.out
    asked = shared("cluster.compact", "--keep", "10")
    assert (asked.code, "Nobody can be asked" in asked.err) == (2, True)
    assert _seen(loose) == before
    done = shared("cluster.compact", "--keep", "10", "--yes")
    assert done.code == 0, done
    assert done.out == f"compacted to revision {newest + 20}; revisions {newest + 20} to {newest + 30} can be read\n"
    with _etcd(loose) as etcd:
        assert etcd.range(b"key/0", revision=newest + 20, timeout_s=20).kvs[0].value == b"19"
        with pytest.raises(EtcdError, match="required revision has been compacted"):
            etcd.range(b"key/0", revision=newest + 19, timeout_s=20)
        assert etcd.range(b"key/0", timeout_s=20).kvs[0].value == b"29"
    again = shared("cluster.compact", "--keep", "10", "-o", "json")
    assert again.code == 0, again
    known = json.loads(again.out)
    assert (known["revision"], known["oldest"], known["newest"]) == (0, newest + 20, newest + 30)
    assert "nothing was changed" in again.err
    assert "nothing was changed" in shared("cluster.compact").err
    assert shared("cluster.compact", "--revision", "0", "--yes").code == 2


def test_a_late_answer_to_a_compaction(loose: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compaction that was done is done, though nobody waited for its end; one that was not is said not to be."""
    really = wire.Connection.compact
    works = True

    def late(self: wire.Connection, revision: int, **options: Any) -> int:
        if works:
            really(self, revision, **options)
        raise EtcdError("DEADLINE_EXCEEDED", "Deadline Exceeded", endpoint=self.endpoint)

    with _etcd(loose) as etcd:
        for _ in range(5):
            etcd.put(b"key/1", b"1", timeout_s=20)
    monkeypatch.setattr(wire.Connection, "compact", late)
    said: list[str] = []
    done = loose.compact(keep=3, progress=said.append)
    assert (done.revision, done.oldest) == (done.newest - 3, done.newest - 3)
    assert said[-1].endswith("goes on by itself")
    works = False
    with pytest.raises(WaitTimeout, match="has not compacted to revision"):
        loose.compact(keep=1, progress=said.append)


# -- versions


def test_known_bad_versions_are_refused(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """3.5.1 loses data when it crashes while it defragments: refused (exit 3), unless that is asked for by name.

    With a single member there is an outage as well, so it is asked about.
    """
    need_runtime("process", request.config)
    spec = spec_of("3.5.1", "process", name="lab", size=1)
    with place(tmp_path / "place") as line:
        Cluster.ensure_up(spec, runtime="process", store=line.store, offline=True)
        refused = line("cluster.defrag", "--all", "--dry-run")
        assert refused.code == 3, refused
        assert "defrag is not safe on etcd 3.5.1: [etcd-14733]" in refused.err
        asked = line("cluster.defrag", "--all", "--allow-known-bad")
        assert asked.code == 2, asked
        assert "ironman is the only voter: nothing is served while it rewrites its database" in asked.err
        assert line("cluster.defrag", "--all", "--allow-known-bad", "--yes").code == 0
        # To the newest revision alone is a compaction known to be bad on it.
        lab = line.cluster()
        with pytest.raises(Refused, match="etcd-17780"):
            lab.compact(keep=0)
        with _etcd(lab) as etcd:
            etcd.put(b"k", b"1", timeout_s=20)
        assert lab.compact(keep=1).revision


def test_the_quota_is_fixed_at_creation(tmp_path: Path) -> None:
    """--quota becomes the members' own, and another is refused on a cluster that is there."""
    with place(tmp_path / "place") as line:
        assert line("up-env", "--size", "1", "--quota", "16 MB").code == 2
        assert line("up-env", "--size", "1", "--quota", "24MiB").code == 0
        other = line("up-env", "--quota", "32MiB")
        assert (other.code, "a space quota of 24 MiB, not 32 MiB" in other.err) == (3, True)
        _, judged = defrag.prepare(line.cluster())
        [space] = [each.space for each in judged]
        assert (space.quota, space.quota_from in ("metrics", "status")) == (24 * MIB, True)
        assert space.disk_free


# -- in memory


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Cluster]:
    """Three members in memory."""
    spec = ClusterSpec.of_size("lab", timing=QUICK)
    runtime = FakeRuntime(request_timeout_s=0.5)
    with Cluster.create(spec, runtime=runtime, store=Store(tmp_path / "state"), temporary=True) as cluster:
        yield cluster


def test_an_alarm_that_comes_back(fake: Cluster) -> None:
    """A write may be acknowledged and raise the alarm again: alarms are listed once more, and that is no success."""
    _raise(fake, "thor", "NOSPACE")

    def raise_again(text: str) -> None:
        if "list the alarms again" in text:
            _raise(fake, "thor", "NOSPACE")

    with pytest.raises(EtcdopsError, match="NOSPACE is raised again by"):
        fake.heal_nospace(progress=raise_again)
    assert _alarms(fake) == {("thor", "NOSPACE")}
    assert fake.heal_nospace().proof.startswith("writes through ironman, thor, deadpool")
    assert _alarms(fake) == set()


def test_who_is_not_cured_stays_armed(fake: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that is full all the same would raise its alarm with the next write: none is disarmed."""
    _raise(fake, "thor", "NOSPACE")
    look = upkeep.spaces_of

    def full_by_then(text: str) -> None:
        if "disarm" in text:
            monkeypatch.setattr(
                nospace, "spaces_of", lambda *a: tuple(space._replace(quota=space.db_size) for space in look(*a))
            )

    with pytest.raises(EtcdopsError, match="not every member is cured, so NOSPACE of thor stays armed: ironman has"):
        fake.heal_nospace(progress=full_by_then)
    assert _alarms(fake) == {("thor", "NOSPACE")}


def test_the_alarm_of_a_member_that_is_gone(fake: Cluster) -> None:
    """An alarm outlives its member, and keeps everybody from writing: it is disarmed by its id; CORRUPT is not."""
    with _etcd(fake) as etcd:
        etcd.call(calls._alarm("ACTIVATE", 0xABC, "NOSPACE"), timeout_s=20)
        etcd.call(calls._alarm("ACTIVATE", 0xABC, "CORRUPT"), timeout_s=20)
        report = fake.heal_nospace()
        assert etcd.alarms(timeout_s=20) == (Alarm(0xABC, "CORRUPT"),)
    assert report.corrupt == ("abc",)


def test_operations_on_members_in_memory(fake: Cluster) -> None:
    """All three work on every runtime."""
    with _etcd(fake) as etcd:
        for number in range(20):
            etcd.put(b"k", str(number).encode(), timeout_s=20)
    assert compact.compact(fake, keep=5).revision == fake.member("thor").status().revision - 5
    try:
        report = fake.defrag(rule=EVERYONE)
    except PartlyChanged:
        # A machine that is busy enough keeps members from answering in time. Done again, it goes on.
        fake.wait_healthy(timeout_s=60)
        report = fake.defrag(rule=EVERYONE)
    assert all(row.done for row in report.members)
    assert msgspec.to_builtins(report)["cluster"] == "lab"
    assert fake.heal_nospace().members[0].alarmed is False
