"""Members that somebody else runs: what they may be called and where they may be, which for ours stays narrow."""

from __future__ import annotations

import pytest

from etcdops.answers import MemberInfo
from etcdops.errors import SpecError
from etcdops.foreign.attaching import names_for
from etcdops.spec import ClusterSpec, MemberSpec, Tls
from etcdops.state import DataRef, MemberRecord


def _info(number: int, name: str) -> MemberInfo:
    return MemberInfo(number, name, (), (), False)


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        (["a", "B.example.com", "c_1"], ["a", "B.example.com", "c_1"]),
        (["default", "default", "c"], ["default-1", "default-2", "c"]),
        (["", "", "c"], ["1", "2", "c"]),
        (["a b", "a,b", "[red]x"], ["a-b-1", "a-b-2", "red-x"]),
        (["-rf", "..", "名"], ["rf", "2", "3"]),
        (["n" * 300, "x" * 200, ""], ["n" * 200, "x" * 200, "3"]),
        (["../../etc", "a\nb", "$(x)"], ["etc", "a-b", "x-"]),
    ],
)
def test_names_here(called: list[str], expected: list[str]) -> None:
    """A name is etcd's own where it is safe and one member's; else it is made so, and is the same in any order."""
    listed = [_info(number, name) for number, name in enumerate(called, start=1)]
    assert list(names_for(listed).values()) == expected
    assert names_for(listed[::-1]) == names_for(listed)
    assert all(MemberSpec(name, foreign=True).name == name for name in expected)


def test_our_own_members_keep_narrow_names_and_certificates() -> None:
    """What becomes a path, a host name or a label is as narrow as before; only somebody else's may be wider."""
    with pytest.raises(SpecError, match="cannot name a member"):
        MemberSpec("infra0.example.com")
    for name in ("", "-x", "a b", "a,b", "../x", "a/b", "[x]", "a\n"):
        with pytest.raises(SpecError, match="cannot name a member"):
            MemberSpec(name, foreign=True)
    tls = Tls("ca.pem", "", "")
    with pytest.raises(SpecError, match="not every member has a certificate"):
        ClusterSpec("lab", (MemberSpec("thor"), MemberSpec("x.y", foreign=True)), tls=tls)
    assert ClusterSpec("lab", (MemberSpec("x.y", foreign=True),), tls=tls).tls == tls


@pytest.mark.parametrize("url", ["http://[::1]:2379", "https://host:1", "http://10.0.0.1:65535"])
def test_addresses_of_members(url: str) -> None:
    """A name, an IPv4 address and an IPv6 address in brackets are hosts."""
    assert MemberRecord("thor", "local", url, url, DataRef("/data"), "").client_url == url


@pytest.mark.parametrize(("client", "peer"), [("", "http://h:1"), ("http://h:1", "unix://sock:1"), ("", "")])
def test_only_somebody_elses_member_may_be_out_of_reach(client: str, peer: str) -> None:
    """No client URL, and sockets for peers, are for members whose data is not ours."""
    assert MemberRecord("thor", "", client, peer, DataRef(""), "").client_url == client
    with pytest.raises(SpecError, match="not a URL"):
        MemberRecord("thor", "", client, peer, DataRef("/data"), "")
