"""Changes of members by a real etcd and by members in memory, the same sequence: answers, codes, texts, lists."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from etcdops import calls, wire
from etcdops.answers import MemberInfo
from etcdops.calls import Call
from etcdops.cluster import Cluster
from etcdops.errors import EtcdError
from etcdops.logs import read_log
from etcdops.placement import place
from etcdops.runtimes.fake import FakeRuntime
from etcdops.runtimes.process import ProcessRuntime
from etcdops.spec import ClusterSpec, MemberSpec, Timing
from etcdops.state import DataRef, Retired, Store
from tests.conftest import need_runtime

Wait = Callable[..., None]

EXISTS = ("FAILED_PRECONDITION", "etcdserver: Peer URLs already exists")
NOT_FOUND = ("NOT_FOUND", "etcdserver: member not found")
VOTER = ("FAILED_PRECONDITION", "etcdserver: can only promote a learner member")
BEHIND = ("FAILED_PRECONDITION", "etcdserver: can only promote a learner member which is in sync with leader")
TOO_MANY = ("FAILED_PRECONDITION", "etcdserver: too many learner members in cluster")
UNHEALTHY = ("UNAVAILABLE", "etcdserver: unhealthy cluster")
UNSTARTED = ("UNKNOWN", "etcdserver: re-configuration failed due to not enough started members")
NO_LEARNER = ("UNAVAILABLE", "etcdserver: rpc not supported for learner")
BAD_URLS = ("INVALID_ARGUMENT", "etcdserver: given member URLs are invalid")
STOPPED = ("UNAVAILABLE", "etcdserver: server stopped")
NO_TRANSFER = ("FAILED_PRECONDITION", "etcdserver: bad leader transferee")


class Three:
    """Three members, and what the tests below ask of them; nothing here is shared with the operations of etcdops."""

    def __init__(self, cluster: Cluster, began: float, health_s: float) -> None:
        self.cluster = cluster
        self._began = began
        self._health_s = health_s

    def is_young(self) -> bool:
        """Whether its members certainly have been connected for less time than etcd wants."""
        return time.monotonic() - self._began < self._health_s

    def ask(self, name: str, call: Call[Any], timeout_s: float = 10.0) -> Any:
        """Give a member's answer, or the code and text of its refusal."""
        with wire.Connection(self.cluster.member(name).client_url) as etcd:
            try:
                return etcd.call(call, timeout_s=timeout_s)
            except EtcdError as error:
                return error.code, error.text

    def granted(self, name: str, call: Call[Any]) -> Any:
        """Give a member's answer, as soon as it is not that the cluster is unhealthy."""
        deadline = time.monotonic() + 40
        while (answer := self.ask(name, call)) == UNHEALTHY and time.monotonic() < deadline:
            time.sleep(0.1)
        return answer

    def wait_leader(self, name: str, wait_until: Wait) -> None:
        """Wait until a write through a member is acknowledged: etcd drops a change of members while nobody leads."""
        wait_until(lambda: not _is_error(self.ask(name, calls.put(b"k", b"2"), timeout_s=1.0)))

    def listed(self, name: str) -> dict[str, MemberInfo]:
        """Give the member list as a member has it, by names; "" for a member that never started."""
        answer = self.ask(name, calls.member_list())
        assert isinstance(answer, tuple), answer
        assert [info.id for info in answer] == sorted(info.id for info in answer)
        return {info.name: info for info in answer}

    def id(self, name: str) -> int:
        """Give the id of a member that answers."""
        return self.cluster.member(name).status().member_id

    def record(self, name: str) -> None:
        """Choose a place for a new member, and record it."""
        cluster, spec = self.cluster, MemberSpec(name)
        alone = msgspec.structs.replace(cluster.record.spec, members=(spec,))
        [placed] = place(cluster.runtime, alone, cluster.record.id, cluster.store)
        cluster.save(msgspec.structs.replace(cluster.record.joined(spec, placed), bootstrapped=True))

    def forget(self, name: str) -> None:
        """Take a member out of the record."""
        data = self.cluster.record.member(name).data
        self.cluster.save(self.cluster.record.left(name, Retired(name, data, "removed", "run", "")))

    def renew(self, name: str) -> None:
        """Give a member of the record no data."""
        member = self.cluster.record.member(name)
        data = DataRef(member.data.place.replace("-g1", "-g2"), 2)
        self.cluster.save(self.cluster.record.with_member(msgspec.structs.replace(member, data=data, ref="")))

    def start(self, name: str) -> None:
        """Start a member."""
        self.cluster.start_members([name])

    def log_after_end(self, name: str, wait_until: Wait) -> str:
        """Give what a member said that ends by itself."""
        wait_until(lambda: self.cluster.member(name).state() == "stopped")
        lines = list(read_log(self.cluster.runtime, self.cluster.record.member(name)))
        return " ".join(line.text for line in lines)


@pytest.fixture(params=["fake", "process"])
def three(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Three]:
    """Three members that have just started; those in memory want to know each other for a second, not for five."""
    spec = ClusterSpec.of_size("lab", 3, timing=Timing(50, 500))
    if request.param == "process":
        need_runtime("process", request.config)
    health_s = 5.0 if request.param == "process" else 1.0
    runtime = ProcessRuntime() if request.param == "process" else FakeRuntime(health_s=health_s)
    began = time.monotonic()
    with Cluster.create(spec, runtime=runtime, store=Store(tmp_path), temporary=True, offline=True) as cluster:
        yield Three(cluster, began, health_s)


def test_members_are_changed_as_etcd_changes_them(three: Three, wait_until: Wait) -> None:
    """A whole life: join as a learner, be promoted, leave while leading, die, be replaced, down to one member alone."""
    ask, cluster = three.ask, three.cluster
    leader = cluster.leader().name
    first, second = (name for name in cluster.record.spec.names if name != leader)
    three.record("hulk")
    three.record("groot")
    hulk, groot = (cluster.record.member(name).peer_url for name in ("hulk", "groot"))
    add = calls.member_add([hulk], learner=True)

    # Not before the members have been connected for a while; then at most one learner.
    added = ask(leader, add)
    assert added == UNHEALTHY or not three.is_young()
    if not isinstance(added, MemberInfo):
        added = three.granted(leader, add)
    assert isinstance(added, MemberInfo)
    assert added == MemberInfo(added.id, "", (hulk,), (), True)
    # An id is made of the URLs and the second: within the same one, etcd says that the id exists.
    asked = int(time.time())
    wait_until(lambda: int(time.time()) > asked)
    assert ask(first, add) == EXISTS
    assert ask(leader, calls.member_add([hulk], learner=False)) == EXISTS
    assert ask(first, calls.member_add([groot], learner=True)) == TOO_MANY
    assert ask(leader, calls.member_add(["hulk"], learner=True)) == BAD_URLS
    assert ask(leader, calls.member_add([], learner=True)) == BAD_URLS
    for name in (leader, first, second):
        listed = three.listed(name)
        assert set(listed) == {leader, first, second, ""}
        assert listed[""] == added
        assert listed[first].client_urls == (cluster.member(first).client_url,)

    # What is refused about members that are not there, or are something else.
    for name in (leader, first):
        assert ask(name, calls.member_promote(added.id)) == BEHIND
        assert ask(name, calls.member_promote(three.id(second))) == VOTER
        assert ask(name, calls.member_promote(12345)) == NOT_FOUND
        assert ask(name, calls.member_remove(12345)) == NOT_FOUND
        assert ask(name, calls.member_update(12345, [groot])) == NOT_FOUND
        assert ask(name, calls.member_update(three.id(second), [hulk])) == EXISTS
    assert ask(leader, calls.move_leader(added.id)) == NO_TRANSFER

    # A learner that runs, and all that it does not answer.
    three.forget("groot")
    three.start("hulk")
    wait_until(lambda: "hulk" in three.listed(leader), timeout_s=20)
    wait_until(lambda: cluster.member("hulk").status().is_learner, timeout_s=20)
    revision = ask(leader, calls.put(b"k", b"v"))
    assert not cluster.member(leader).status().is_learner
    wait_until(lambda: cluster.member("hulk").status().revision == revision.revision)
    for refused in (
        calls.range(b"k"),
        calls.put(b"k", b"w"),
        calls.txn([], [], []),
        calls.member_list(),
        calls.member_list(linearizable=False),
        calls.member_remove(added.id),
        calls.hash_kv(),
        calls.alarms(),
        calls.lease_grant(10),
    ):
        assert ask("hulk", refused) == NO_LEARNER
    local = ask("hulk", calls.range(b"k", serializable=True))
    assert local.kvs[0].value == b"v"

    # A follower passes a promotion on; a voter is no learner, whoever asks.
    promoted = three.granted(first, calls.member_promote(added.id))
    assert isinstance(promoted, tuple)
    assert {info.name: info.is_learner for info in promoted} == dict.fromkeys((leader, first, second, "hulk"), False)
    assert ask(leader, calls.member_promote(added.id)) == VOTER
    wait_until(lambda: not _is_error(ask("hulk", calls.range(b"k"))))

    # The leader is removed, by itself: it ends, another leads, and its data is of no use any more.
    left = three.granted(leader, calls.member_remove(three.id(leader)))
    # It may end before it has answered.
    assert left == STOPPED or {info.name for info in left} == {first, second, "hulk"}
    assert "permanently removed" in three.log_after_end(leader, wait_until)
    three.wait_leader(first, wait_until)
    assert set(three.listed(first)) == {first, second, "hulk"}
    before = len(list(read_log(cluster.runtime, cluster.record.member(leader))))
    three.start(leader)
    three.log_after_end(leader, wait_until)
    again = list(read_log(cluster.runtime, cluster.record.member(leader)))[before:]
    assert any("permanently removed" in line.text for line in again)
    three.renew(leader)
    three.start(leader)
    assert "member count is unequal" in three.log_after_end(leader, wait_until)
    url = cluster.record.member(leader).peer_url
    three.forget(leader)

    # With one of three down nobody joins, and nobody who is up leaves; who is down may.
    gone = three.id("hulk")
    cluster.member("hulk").kill()
    three.wait_leader(first, wait_until)
    wait_until(lambda: ask(first, calls.member_add([url], learner=True)) == UNHEALTHY, timeout_s=20)
    assert ask(first, calls.member_add([url], learner=False)) == UNHEALTHY
    assert ask(first, calls.member_remove(three.id(second))) == UNHEALTHY
    assert not _is_error(ask(first, calls.member_remove(gone)))
    assert ask(first, calls.member_remove(gone)) == NOT_FOUND
    assert ask(first, calls.member_promote(gone)) == NOT_FOUND

    # A voter that has not started counts at once; the same URL is another member now.
    back = three.granted(first, calls.member_add([hulk], learner=False))
    assert isinstance(back, MemberInfo)
    assert back.id != gone
    assert ask(first, calls.member_add([url], learner=False)) == UNSTARTED
    assert ask(first, calls.member_remove(three.id(second))) == UNSTARTED
    assert not _is_error(ask(first, calls.member_remove(back.id)))
    three.renew("hulk")
    three.forget("hulk")

    # Down to one, which cannot be removed; a second voter that does not start takes its quorum away.
    assert not _is_error(three.granted(first, calls.member_remove(three.id(second))))
    three.log_after_end(second, wait_until)
    three.wait_leader(first, wait_until)
    three.forget(second)
    assert ask(first, calls.member_remove(three.id(first))) == UNSTARTED
    alone = ask(first, calls.member_add([url], learner=False))
    assert isinstance(alone, MemberInfo)
    wait_until(lambda: _is_error(ask(first, calls.put(b"k", b"3"), timeout_s=0.5)))
    # etcd sets no limit to that: the client's own deadline ends it, as either of them tells, unless the member sees
    # first that it has lost its quorum.
    code = ask(first, calls.member_remove(alone.id), timeout_s=0.7)[0]
    assert code in ("DEADLINE_EXCEEDED", "CANCELLED", "UNAVAILABLE")


def _is_error(answer: object) -> bool:
    return isinstance(answer, tuple) and bool(answer) and isinstance(answer[0], str)
