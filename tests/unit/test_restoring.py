"""The pure parts of a restore: by how much revisions move on, which versions fit, and the record before and after."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from etcdops.cluster import Cluster
from etcdops.errors import Refused
from etcdops.etcd_flags import restore_flags
from etcdops.operations.exchange import exchanged
from etcdops.runtimes.base import CanRestore
from etcdops.runtimes.compose import ComposeRuntime
from etcdops.runtimes.fake import FakeRuntime
from etcdops.runtimes.process import ProcessRuntime
from etcdops.snapshots.examining import bump_for, refuse_version
from etcdops.spec import ClusterSpec
from etcdops.state import ClusterRecord, DataRef, MemberRecord, Retired, Store


@pytest.mark.parametrize(
    ("index", "revision", "bump"),
    [(0, 0, 10**9), (9, 7, 10**9), (10**9, 1, 12 * 10**8), (1, 10**9 + 1, 1_200_000_002), (5 * 10**9, 0, 6 * 10**9)],
)
def test_revisions_move_on_beyond_any_that_was_seen(index: int, revision: int, bump: int) -> None:
    """1.2 times the last that is known, rounded up, and 10^9 at the least."""
    assert bump_for(index, revision) == bump


@pytest.mark.parametrize(
    ("of", "into"), [("3.5.30", "3.5.1"), ("3.5.0", "3.6.14"), ("3.4.0", "3.5.16"), ("", "3.5.1"), ("3.5.1", "")]
)
def test_versions_that_fit(of: str, into: str) -> None:
    """The same minor, whatever the patch, or the one before; what is not known is not refused."""
    refuse_version(of, into, "x.db")


@pytest.mark.parametrize(("of", "into"), [("3.6.0", "3.5.33"), ("4.0.0", "3.7.1"), ("3.4.0", "3.6.14")])
def test_versions_that_do_not_fit(of: str, into: str) -> None:
    """A newer minor, or one that is older by two: the refusal names a way."""
    with pytest.raises(Refused, match=r"x\.db is of etcd") as refused:
        refuse_version(of, into, "x.db")
    assert "new cluster" in refused.value.remedy


@pytest.fixture
def record(tmp_path: Path) -> ClusterRecord:
    """A record of three members that run, and of one that was removed."""
    spec = ClusterSpec.of_size("lab")
    with Cluster.create(spec, runtime=FakeRuntime(), store=Store(tmp_path), temporary=True) as cluster:
        old = Retired("hulk", DataRef("memory:x/hulk-g1"), "removed", "RUN", "2026-01-01T00:00:00+00:00")
        return msgspec.structs.replace(cluster.record, retired=(old,))


def _next(record: ClusterRecord) -> ClusterRecord:
    members = tuple(
        msgspec.structs.replace(member, data=DataRef(f"memory:x/{member.name}-g2", 2)) for member in record.members
    )
    return msgspec.structs.replace(record, members=members, token="another")


def test_what_is_given_up_is_retired_and_what_comes_back_is_not(record: ClusterRecord) -> None:
    """By an exchange and back again: no data is in use and retired at once, and none is forgotten."""
    after = exchanged(record, _next(record), "restored", "R1")
    assert (after.token, after.bootstrapped) == ("another", True)
    assert [member.ref for member in after.members] == [""] * 3
    assert [each.why for each in after.retired] == ["removed", "restored", "restored", "restored"]
    assert [each.data for each in after.retired[1:]] == [member.data for member in record.members]
    assert all(after.next_generation(name) == 3 for name in record.spec.names)
    moved: MemberRecord = msgspec.structs.replace(after.members[0], client_url="http://127.0.0.1:29999")
    back = exchanged(after.with_member(moved), record, "undone", "R2")
    assert back.token == record.token
    assert [member.data for member in back.members] == [member.data for member in record.members]
    # Its port has moved meanwhile, and a container's is fixed when it is made.
    assert back.members[0].client_url == "http://127.0.0.1:29999"
    assert [each.why for each in back.retired] == ["removed", "undone", "undone", "undone"]


def test_members_that_came_later_are_not_in_what_comes_back(record: ClusterRecord) -> None:
    """A member that was added since is no member of what was before; its data is kept."""
    spec = ClusterSpec.of_size("lab", 1)
    smaller = msgspec.structs.replace(record, spec=spec, members=record.members[:1], token="smaller")
    back = exchanged(record, smaller, "undone", "R3")
    assert back.spec.names == ("ironman",)
    assert {each.member for each in back.retired} == {"hulk", "thor", "deadpool"}


def test_both_flags_or_none(record: ClusterRecord) -> None:
    """etcd's tool takes the amount and the mark together alone; every member is told of all."""
    member = record.members[0]
    flags = restore_flags(record, member, data="D", bump=7)
    assert flags[-2:] == ["--bump-revision=7", "--mark-compacted"]
    assert not any(
        "revision" in flag or "compacted" in flag for flag in restore_flags(record, member, data="D", bump=0)
    )
    [everybody] = [flag for flag in flags if flag.startswith("--initial-cluster=")]
    assert all(f"{each.name}={each.peer_url}" in everybody for each in record.members)


def test_who_can_restore() -> None:
    """Members that have files can; those in memory cannot."""
    assert isinstance(ProcessRuntime(), CanRestore)
    assert isinstance(ComposeRuntime(), CanRestore)
    assert not isinstance(FakeRuntime(), CanRestore)
