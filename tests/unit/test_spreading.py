"""Which host a member gets, and what is done about hosts that do not answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from etcdops.cluster import Cluster
from etcdops.docker.spreading import SpreadsMembers
from etcdops.errors import EtcdopsError, HostUnreachable, Refused, SpecError
from etcdops.operations.hosts import add_hosts, remove_hosts, uses
from etcdops.remote.fan_out import Outcome
from etcdops.remote.inventory import HostSpec
from etcdops.runtimes.fake import FakeRuntime
from etcdops.spec import ClusterSpec, MemberSpec
from etcdops.state import ClusterRecord, DataRef, MemberRecord, Retired, Store


class Spread(SpreadsMembers):
    """Hosts of which some do not answer; nothing is ever done on them."""

    def __init__(self, names: Sequence[str], dead: Sequence[str] = ()) -> None:
        self._on: Any = dict.fromkeys(names)
        self.dead = dead

    def _each(self, hosts, what, timeout_s=0.0):  # type: ignore[no-untyped-def]  # as in SpreadsMembers
        gone = {name: HostUnreachable(f"no way to {name}", host=name) for name in self.dead}
        return {name: Outcome(None, gone.get(name), 0.0) for name in hosts}


def _record(*hosts: str, retired: tuple[Retired, ...] = ()) -> ClusterRecord:
    """Give a cluster of members ironman, thor and so on, each on the host that is named."""
    names = ("ironman", "thor", "deadpool", "hulk")[: len(hosts)]
    return ClusterRecord(
        schema=1,
        id="00",
        spec=ClusterSpec("lab", tuple(map(MemberSpec, names))),
        runtime="remote",
        token="t",
        state_dir="/nowhere",
        members=tuple(
            MemberRecord(name, host, f"https://10.0.0.{i}:1000", f"https://10.0.0.{i}:1001", DataRef(f"{name}-g1"), "")
            for i, (name, host) in enumerate(zip(names, hosts, strict=True))
        ),
        retired=retired,
        hosts=tuple(HostSpec(name) for name in ("h1", "h2", "h3", "h4")),
    )


def test_a_new_member_goes_where_fewest_are() -> None:
    """Without a wish it is the host with the fewest that answers; a wish is followed, however many are there."""
    spread = Spread(["h1", "h2", "h3", "h4"])
    assert spread.host_for(_record("h1", "h2", "h4")) == "h3"
    assert Spread(["h1", "h2", "h3", "h4"], dead=["h3"]).host_for(_record("h1", "h1", "h4")) == "h2"
    assert spread.host_for(_record("h1", "h2", "h4"), "h1") == "h1"


def test_a_wish_that_cannot_be() -> None:
    """A host that the cluster does not have is refused with those that it has; a dead one with what is amiss."""
    with pytest.raises(Refused, match="no host 'h9'") as unknown:
        Spread(["h1", "h2"]).host_for(_record("h1"), "h9")
    assert "h1, h2" in unknown.value.remedy
    with pytest.raises(HostUnreachable, match="no way to h2"):
        Spread(["h1", "h2"], dead=["h2"]).host_for(_record("h1"), "h2")


def test_a_replaced_member_stays_or_goes_to_a_spare_host() -> None:
    """It stays where it was; if that host is dead it goes to one without members, and to no other unasked."""
    record = _record("h1", "h2", "h3")
    thor = record.member("thor")
    assert Spread(["h1", "h2", "h3", "h4"]).host_for(record, instead_of=thor) == "h2"
    assert Spread(["h1", "h2", "h3", "h4"], dead=["h2"]).host_for(record, instead_of=thor) == "h4"
    with pytest.raises(Refused, match="thor was on h2, which cannot have it: no way to h2") as refused:
        Spread(["h1", "h2", "h3"], dead=["h2"]).host_for(record, instead_of=thor)
    assert "h1 (1), h3 (1)" in refused.value.remedy
    assert Spread(["h1", "h2", "h3"], dead=["h2"]).host_for(record, "h3", instead_of=thor) == "h3"


def test_where_things_are() -> None:
    """Hosts that only keep something are used ones, too; data is looked for where it is, or else everywhere."""
    kept = Retired("hulk", DataRef("hulk-g1"), "removed", "run", "then", "h4")
    record = _record("h1", "h2", retired=(kept,))
    spread = Spread(["h1", "h2", "h3", "h4"])
    assert spread.used(record) == ["h1", "h2", "h4"]
    assert spread.holding(record, [kept.data]) == ["h4"]
    assert spread.holding(record, [kept.data, DataRef("of-old")]) == ["h1", "h2", "h4"]
    assert [(use.name, use.members, use.left) for use in uses(record)] == [
        ("h1", ("ironman",), ()),
        ("h2", ("thor",), ()),
        ("h3", (), ()),
        ("h4", (), ("hulk-g1 (data)",)),
    ]


def test_what_is_cleared_is_on_record_no_more() -> None:
    """Containers that are left are forgotten once their host has answered; those on a dead host stay on record."""
    left = tuple(Retired("hulk", DataRef(f"hulk-g{i}"), "replaced", "run", "then", f"h{i}", "id") for i in (1, 2))
    now = Spread(["h1", "h2"], dead=["h2"]).clear_left(_record("h1", retired=left))
    assert [each.ref for each in now.retired] == ["", "id"]


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster whose members are on no other host."""
    cluster = Cluster.create("x", size=1, runtime=FakeRuntime(election_s=0.05), store=Store(tmp_path))
    cluster.up()
    yield cluster
    cluster.purge()


def test_a_cluster_on_one_machine_has_no_hosts(local: Cluster) -> None:
    """What is about hosts is refused there, and nothing is changed."""
    acts: list[Callable[[], object]] = [
        lambda: local.add_member(host="h1"),
        lambda: add_hosts(local, [HostSpec("h1")]),
        lambda: remove_hosts(local, ["h1"]),
        lambda: local.purge(lost=["h1"]),
    ]
    before = local.record
    for act in acts:
        with pytest.raises(SpecError):
            act()
    assert local.record == before


def test_hosts_with_something_on_them_stay(local: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with a member is not forgotten, and one that keeps data only where it is given up."""
    kept = Retired("hulk", DataRef("hulk-g1"), "replaced", "run", "then", "h2", "id")
    hosts = tuple(HostSpec(name) for name in ("h1", "h2", "h3"))
    monkeypatch.setattr(local, "runtime", _Reach(local.runtime))
    local.save(
        msgspec.structs.replace(
            local.record.with_member(msgspec.structs.replace(local.record.members[0], host="h1")),
            hosts=hosts,
            retired=(kept,),
        )
    )
    with pytest.raises(Refused, match="h1 has a member"):
        remove_hosts(local, ["h1"], lost=True)
    with pytest.raises(Refused, match="on h2 something is kept") as refused:
        remove_hosts(local, ["h3", "h2"])
    assert "--lost" in refused.value.remedy
    assert local.record.hosts == hosts
    assert remove_hosts(local, ["h2"], lost=True) == (kept,)
    assert (local.record.hosts, local.record.retired) == ((hosts[0], hosts[2]), ())


class _Reach:
    """A runtime in memory that could have hosts, as far as this test goes."""

    def __init__(self, runtime: object) -> None:
        self._runtime = runtime

    def __getattr__(self, name: str) -> object:
        return getattr(self._runtime, name)

    def take_up(self, hosts: Sequence[HostSpec]) -> None: ...

    def host_for(self, *_: object, **__: object) -> str:
        return ""

    def leave(self, record: ClusterRecord, names: object) -> dict[str, EtcdopsError]:
        return {}

    def give_up(self, names: object) -> None: ...

    def clear_left(self, record: ClusterRecord) -> ClusterRecord:
        return record
