"""The drills that lose data, and the one about locks: what can be shown in memory, without etcd."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from etcdops import drills
from etcdops.answers import KeyValue
from etcdops.cluster import Cluster
from etcdops.drills import engine
from etcdops.drills.member_logs import MemberLogs
from etcdops.errors import Refused
from etcdops.ops import Compare, Put, Range, Txn
from etcdops.runtimes.fake import FakeRuntime
from etcdops.spec import ClusterSpec
from etcdops.state import Store
from etcdops.verify.acknowledged import check_acknowledged
from etcdops.verify.judging import judge
from etcdops.verify.lock import is_fenced, measure_locks
from etcdops.verify.recorded import Recorded, State
from etcdops.workload.profiles.lock import counter_key, lock_key
from tests.unit.drilling import QUICK, fake_cluster
from tests.unit.stories import MEMBERS, RUN, Story


@pytest.mark.parametrize("name", ["data-loss", "disaster"])
def test_members_in_memory_cannot_be_restored(store: Store, name: str) -> None:
    """The drill says so before it touches anything."""
    with (
        fake_cluster(store) as cluster,
        pytest.raises(Refused, match="the runtime fake cannot make members' data from a snapshot"),
    ):
        drills.run(name, cluster)
    assert not store.runs.exists()


class _Logging(FakeRuntime):
    """Members whose logs a test writes."""

    content: dict[str, bytes]

    def log_bytes(self, member: object, offset: int = 0) -> bytes:
        return self.content[str(getattr(member, "name", ""))][offset:]


def test_logs_are_kept_window_by_window(store: Store, tmp_path: Path) -> None:
    """Each window has what was logged since the last one was closed, also where a member logs to another place then."""
    runtime = _Logging()
    runtime.content = {"ironman": b"before\n", "thor": b"before\n"}
    spec = ClusterSpec.of_size("logs", 2)
    with_two = Cluster.create(spec, runtime=runtime, store=store, temporary=True)
    logs = MemberLogs(with_two)
    for name in runtime.content:
        runtime.content[name] += b"first\n"
    logs.keep(tmp_path)
    logs.window_closed()
    assert (tmp_path / "thor.log").read_bytes() == b"first\n"
    runtime.content = {"ironman": b"before\nfirst\nsecond\n", "thor": b"a new container, and a longer log\n"}
    logs.window_opened()
    logs.keep(tmp_path)
    assert (tmp_path / "ironman.log").read_bytes() == b"second\n"
    assert (tmp_path / "thor.log").read_bytes() == b"a new container, and a longer log\n"
    with_two.purge()


# -- what the judge looks at


def _locked(*, fenced: bool, began: int = 0) -> Recorded:
    """Three updates of the counter, the last of them by a holder that has read it before the second."""
    counter, lock = counter_key(RUN), lock_key(RUN)
    base = [KeyValue(counter, f"{RUN}/0:{began}".encode(), 1, 1, 1, 0)] if began else []
    story = Story(revision=2 if began else 1, kvs=base)
    for token, count in ((5, began + 1), (5, began + 2), (4, began + 1)):
        put = Put(counter, f"{RUN}/{story.next_id()}:{count}".encode())
        if fenced:
            story.do(Txn((Compare(lock, "create_revision", "=", token),), (put, Range(counter)), (Range(lock),)))
        else:
            story.do(put)
    return story.told()


def test_whether_writes_were_fenced_is_seen_in_the_record() -> None:
    """Every write of the counter compares the lock's key, or they are not fenced; without a lock there is no answer."""
    assert is_fenced(_locked(fenced=True)) is True
    assert is_fenced(_locked(fenced=False)) is False
    story = Story()
    story.put("a")
    assert is_fenced(story.told()) is None


@pytest.mark.parametrize("began", [0, 40])
def test_lost_updates_are_counted_from_where_the_counter_began(began: int) -> None:
    """A counter that an earlier window has raised loses as many updates as one that begins at nothing."""
    seen = measure_locks(_locked(fenced=False, began=began))
    assert (seen.updates, seen.began, seen.final, seen.lost_updates) == (3, began, began + 1, 2)


def test_leases_and_locks_are_judged_where_there_are_any() -> None:
    """The judge has a check of the lock for a run with a lock, and none for others: nothing is said of nothing."""
    logs: dict[str, list[str] | None] = {member: [] for member in MEMBERS}
    names = {check.name for check in judge(_locked(fenced=False), logs=logs).checks}
    assert "lock" in names
    assert "lease" not in names
    story = Story()
    story.put("a")
    assert not {"lock", "lease"} & {check.name for check in judge(story.told(), logs=logs).checks}


def test_keys_of_the_window_before_are_explained() -> None:
    """What was there before the first operation needs no record of its write; what came later does."""
    old = KeyValue(f"etcdops/{RUN}/pinned.thor/00000001".encode(), b"x", 5, 5, 1, 0)
    story = Story(revision=5, kvs=[old])
    story.put("pinned.thor/00000002", stream="pinned.thor")
    recorded = story.told()
    assert check_acknowledged(recorded)[0].result == "passed"
    without = msgspec.structs.replace(recorded.observed, states=(State(5, ()), recorded.observed.states[1]))
    assert check_acknowledged(recorded._replace(observed=without))[0].result == "inconclusive"


def test_updates_that_are_lost_in_spite_of_fencing_are_found(store: Store) -> None:
    """Where writes are said to be fenced and are not, a paused holder undoes updates: the drill deviates."""
    unfenced = {"fencing": False, "ttl_s": 2, "hold_s": 5.0}
    broken = drills.find("lock-fencing")._replace(traffic=lambda **options: unfenced)
    with fake_cluster(store) as cluster:
        verdict = engine.run(broken, cluster, fencing="on", **QUICK)
    assert verdict.verdict == "deviated"
    check = verdict.check("with fencing, none is lost")
    assert check.result == "failed"
    assert "0 late writes were refused" in check.detail
