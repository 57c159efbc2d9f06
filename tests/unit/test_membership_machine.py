"""Operations on members in every order, faults and interruptions between them: what no sequence of them may break."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from etcdops import wire
from etcdops.cluster import Cluster
from etcdops.errors import EtcdError, NoLeader, QuorumLost, Refused, SpecError
from etcdops.fake.cluster import FakeCluster
from etcdops.operations import gate, joining, members, pending, reconfigure
from etcdops.runtimes.fake import FakeRuntime
from etcdops.spec import ClusterSpec, Timing
from etcdops.state import Store

#: What says that nothing was done.
_REFUSALS = (Refused, SpecError, NoLeader, QuorumLost)

_WHICH = st.integers(0, 6)

#: Before which step an operation is cut off, as kill -9 would; 0 for one that is not.
_CUT = st.sampled_from((0, 0, 0, 1, 2, 3, 4, 5))

_STEP = re.compile(r"(\d+)/\d+ ")


class _Cut(BaseException):
    """Ends an operation between two steps, and nobody in between handles it."""


def _cut_before(step: int) -> Callable[[str], None]:
    def progress(text: str) -> None:
        found = _STEP.match(text)
        if found and int(found[1]) == step:
            raise _Cut

    return progress


class Operations(RuleBasedStateMachine):
    """A cluster in memory, and what has been acknowledged to its clients."""

    @initialize(size=st.sampled_from((3, 3, 3, 2, 4, 1)))
    def create(self, size: int) -> None:
        """Start members in memory that elect at once."""
        self.directory = tempfile.TemporaryDirectory()
        self.runtime = FakeRuntime(election_s=0.01, request_timeout_s=0.2, health_s=0.005)
        spec = ClusterSpec.of_size("lab", size, timing=Timing(10, 100))
        self.cluster = Cluster.create(spec, runtime=self.runtime, store=Store(self.directory.name))
        self.cluster.up()
        self.acknowledged: dict[bytes, bytes] = {}
        self.moves = 0
        self.write()

    # -- what there is, seen from within

    @property
    def fake(self) -> FakeCluster:
        """What FakeRuntime runs."""
        return self.runtime._clusters[self.cluster.record.id]

    def names(self) -> list[str]:
        """Give the recorded members."""
        return list(self.cluster.record.spec.names)

    def running(self) -> list[str]:
        """Give the recorded members that run."""
        return [name for name in self.names() if self.cluster.member(name).state() == "running"]

    def away(self) -> list[str]:
        """Give the recorded members that do not run."""
        return [name for name in self.names() if self.cluster.member(name).state() != "running"]

    def startable(self) -> list[str]:
        """Give the members that do not run and can: not those that an operation that was cut off has removed."""
        places = {self.cluster.record.member(name).data.place: name for name in self.away()}
        inside = {name: self.runtime._members.get(place) for place, name in places.items()}
        removed = self.fake.membership.removed
        return [name for name, member in inside.items() if member is not None and member.id not in removed]

    def pick(self, names: list[str], which: int) -> str:
        """Give one of these members."""
        return names[which % len(names)]

    def has_quorum(self) -> bool:
        """Whether a quorum of voters is there, by what the members themselves are."""
        with self.fake.changed:
            there = [self.fake.process(entry.id) for entry in self.fake.membership.voters()]
            return sum(bool(member and member.there) for member in there) >= self.fake.membership.quorum

    def seen(self) -> object:
        """Give all that a refused operation must leave as it was, once there is a leader where there can be one."""
        deadline = time.monotonic() + 2
        fake = self.fake
        while True:
            with fake.changed:
                fake.advance()
                if fake.leader is not None or not self.has_quorum() or time.monotonic() > deadline:
                    states = [(member.id, member.state) for member in fake.processes]
                    leader = fake.leader.id if fake.leader else 0
                    return (
                        self.cluster.record,
                        pending.load(self.cluster),
                        fake.membership.listed(),
                        states,
                        leader,
                        fake.term,
                    )
            time.sleep(0.002)

    def write(self) -> None:
        """Have a key acknowledged by any member, or fail."""
        key = b"k/%d" % len(self.acknowledged)
        deadline = time.monotonic() + 3
        error: object = None
        while time.monotonic() < deadline:
            for name, state in self.runtime.states(self.cluster.record).items():
                if state == "running":
                    try:
                        with wire.Connection(self.cluster.member(name).client_url) as etcd:
                            etcd.put(key, name.encode(), timeout_s=1)
                        self.acknowledged[key] = name.encode()
                        return
                    except EtcdError as caught:
                        error = caught
            time.sleep(0.005)
        raise AssertionError(f"no write is acknowledged: {error}; {self.fake.membership.listed()}")

    def attempt(
        self, call: Callable[..., Any], *args: Any, cut: int = 0, may_lose: bool = False, **options: Any
    ) -> None:
        """Do an operation: refused, it has changed nothing; done or cut off, a quorum that was there is there still."""
        before, had_quorum = self.seen(), self.has_quorum()
        refused: Exception | None = None
        try:
            call(*args, progress=_cut_before(cut), **options)
        except _REFUSALS as error:
            refused = error
        except _Cut:
            pass
        if refused:
            assert self.seen() == before, f"{call.__name__}{args} was refused, and has changed something: {refused}"
        elif had_quorum and not may_lose:
            assert self.has_quorum(), f"{call.__name__}{args} was permitted, and took the quorum away"
            self.write()

    # -- what is done

    @precondition(lambda self: bool(self.running()))
    @rule(action=st.sampled_from(("stop", "kill", "freeze")), which=_WHICH, lose=st.sampled_from((False, False, True)))
    def take_away(self, action: str, which: int, lose: bool) -> None:
        """Take a member away, and the quorum only where that is asked for."""
        name = self.pick(self.running(), which)
        self.attempt(members.run, self.cluster, action, name, may_lose=lose, lose_quorum=lose)

    @precondition(lambda self: bool(self.startable()))
    @rule(which=_WHICH)
    def bring_back(self, which: int) -> None:
        """Bring one member back."""
        name = self.pick(self.startable(), which)
        action = "thaw" if self.cluster.member(name).state() == "paused" else "start"
        self.attempt(members.run, self.cluster, action, name)

    @precondition(lambda self: bool(self.away()))
    @rule()
    def up(self) -> None:
        """Bring all members back."""
        self.cluster.up()
        self.write()

    @precondition(lambda self: self.moves < 2)
    @rule(which=_WHICH)
    def move_leader(self, which: int) -> None:
        """Move leadership, but not as often as it offers itself."""
        self.moves += 1
        self.attempt(self.cluster.move_leader, self.pick(self.names(), which))

    @precondition(lambda self: not self.away() and pending.load(self.cluster) is None)
    @rule(cut=_CUT)
    def add(self, cut: int) -> None:
        """Add a member to a cluster that is well."""
        self.attempt(self.cluster.add_member, cut=cut)

    @precondition(lambda self: pending.load(self.cluster) is None)
    @rule(which=_WHICH, cut=_CUT)
    def remove(self, which: int, cut: int) -> None:
        """Remove a member."""
        self.attempt(self.cluster.remove_member, self.pick(self.names(), which), cut=cut)

    @precondition(lambda self: bool(self.away() and self.running()))
    @rule(which=_WHICH)
    def remove_beside(self, which: int) -> None:
        """Remove a member that runs while another does not."""
        self.attempt(self.cluster.remove_member, self.pick(self.running(), which))

    @precondition(lambda self: bool(self.away()))
    @rule(which=_WHICH, cut=_CUT)
    def replace(self, which: int, cut: int) -> None:
        """Replace a member that is not there."""
        self.attempt(self.cluster.replace_member, self.pick(self.away(), which), cut=cut)

    @precondition(lambda self: pending.load(self.cluster) is not None)
    @rule(way=st.sampled_from(("again", "promote", "undo")), cut=_CUT)
    def finish(self, way: str, cut: int) -> None:
        """Bring an operation that was cut off to its end, or take it back."""
        begun = pending.load(self.cluster)
        assert begun is not None
        again = {
            "member.add": self.cluster.add_member,
            "member.remove": self.cluster.remove_member,
            "member.replace": self.cluster.replace_member,
            "member.promote": self.cluster.promote_member,
        }[begun.operation]
        if way == "undo":
            self.attempt(self.cluster.undo, cut=cut)
        elif way == "promote" and begun.target in self.names():
            self.attempt(self.cluster.promote_member, begun.target, cut=cut)
        else:
            self.attempt(again, begun.target, cut=cut)

    # -- what is true at any time

    @invariant()
    def at_most_one_learner(self) -> None:
        """etcd allows one, and no operation leaves one beside another."""
        learners = [entry for entry in self.fake.membership.listed() if entry.learner]
        assert len(learners) <= 1

    @invariant()
    def recorded_as_listed(self) -> None:
        """Where no operation is unfinished, the record has the members that there are."""
        if pending.load(self.cluster) is None:
            listed = {entry.name for entry in self.fake.membership.listed()}
            assert listed == set(self.cluster.record.spec.names)

    @invariant()
    def nothing_acknowledged_is_lost(self) -> None:
        """Every key is there that a client was told was written."""
        if self.has_quorum():
            self.seen()
            leader = self.fake.leader
            assert leader is not None, "there is a quorum, and nobody leads"
            with wire.Connection(leader.client_url) as etcd:
                kvs = etcd.range(b"k/", b"k0", timeout_s=2).kvs
            assert {kv.key: kv.value for kv in kvs} == self.acknowledged

    def teardown(self) -> None:
        """Leave nothing."""
        if hasattr(self, "cluster"):
            self.runtime.destroy(self.cluster.record)
            self.directory.cleanup()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare what only real members need."""
    # No disk fails here.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    # Members in memory converge at once, and one that does not has no need of half a minute.
    monkeypatch.setattr(reconfigure, "GAP_S", 0.01)
    monkeypatch.setattr(joining, "_REFUSED_S", 3.0)
    monkeypatch.setattr(joining, "_STILL_S", 3.0)
    monkeypatch.setitem(cast("dict[str, float]", gate.settled.__kwdefaults__), "timeout_s", 3.0)


def test_nobody_is_removed_beside_one_that_is_down() -> None:
    """The shortest of all sequences that could break three members, as chance need not choose it."""
    operations = Operations()
    operations.create(size=3)
    try:
        operations.take_away("kill", 0, lose=False)
        for which in (0, 1):
            operations.remove_beside(which)
            operations.take_away("stop", which, lose=False)
        assert len(operations.names()) == 3
        operations.nothing_acknowledged_is_lost()
    finally:
        operations.teardown()


def test_no_sequence_of_operations_breaks_a_cluster() -> None:
    """Whatever is permitted keeps the quorum and every acknowledged key, and whatever is refused changes nothing."""
    run_state_machine_as_test(
        Operations,
        settings=settings(
            max_examples=24,
            stateful_step_count=8,
            deadline=None,
            derandomize=True,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
