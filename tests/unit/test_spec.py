"""Specifications: what is refused, what is chosen, and that they survive being written down."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from etcdops.errors import SpecError
from etcdops.logs import parse_since
from etcdops.spec import (
    MEMBER_NAMES,
    ClusterSpec,
    MemberSpec,
    Timing,
    Tls,
    is_valid_name,
    parse_size,
    valid_name,
)

quick = settings(deadline=None)

names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,30}", fullmatch=True)
ports = st.integers(1024, 65535)
paths = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)


@st.composite
def specs(draw: st.DrawFn) -> ClusterSpec:
    """Any valid ClusterSpec."""
    chosen = draw(st.lists(names, min_size=1, max_size=7, unique=True))
    pinned = draw(st.lists(ports, min_size=2 * len(chosen), max_size=2 * len(chosen), unique=True))
    pin = [draw(st.booleans()) for _ in pinned]
    tls = draw(st.none() | st.builds(Tls, paths, paths, paths))
    pem = paths if tls else st.just("")
    heartbeat = draw(st.integers(1, 10_000))
    return ClusterSpec(
        draw(names),
        tuple(
            MemberSpec(
                name,
                client_port=pinned[2 * i] if pin[2 * i] else 0,
                peer_port=pinned[2 * i + 1] if pin[2 * i + 1] else 0,
                cert=draw(pem),
                key=draw(pem),
            )
            for i, name in enumerate(chosen)
        ),
        timing=Timing(heartbeat, draw(st.integers(5 * heartbeat, 50_000))),
        tls=tls,
        etcd_version=draw(st.sampled_from(["", "3.5.16", "3.6.0"])),
        etcd_bin=draw(st.just("") | paths),
        purpose=draw(st.sampled_from(["lab", "production"])),
    )


@quick
@given(specs())
def test_a_spec_survives_being_written_down(spec: ClusterSpec) -> None:
    """Encoded as JSON and read again, checks included, a spec is the same."""
    assert msgspec.json.decode(msgspec.json.encode(spec), type=ClusterSpec) == spec


@quick
@given(st.text(max_size=40))
@example("lab\n")
@example("lab ")
@example("Lab")
@example("a/b")
@example("..")
@example("-lab")
@example("x" * 31)
@example("x" * 32)
@example("läb")
@example("l٣b")
def test_names_are_what_the_design_says(text: str) -> None:
    """A name is 1 to 31 of a-z, 0-9 and dashes, with no dash first; it comes back as it is, or is refused."""
    good = re.fullmatch(r"[a-z0-9][a-z0-9\-]{0,30}", text) is not None
    assert is_valid_name(text) is good
    if good:
        assert valid_name(text) == text
        return
    with pytest.raises(SpecError, match="cannot name a cluster") as caught:
        valid_name(text)
    assert repr(text) in str(caught.value)
    assert caught.value.remedy
    assert caught.value.exit_code == 2


@quick
@given(st.text(max_size=8) | st.integers(-20, 20).map(str))
@example("three")
@example("")
@example("3.0")
@example("0")
@example("9")
@example("1e1")
@example("9" * 5000)
def test_sizes_are_1_to_7_or_refused(text: str) -> None:
    """Whatever is given as a size, the answer is a number from 1 to 7 or a SpecError that says what to give."""
    try:
        wanted = int(text)
    except ValueError:
        wanted = 0
    if 1 <= wanted <= 7:
        assert parse_size(text) == wanted
        return
    with pytest.raises(SpecError) as caught:
        parse_size(text)
    assert caught.value.remedy == "Give 1, 3, 5 or 7."


@pytest.mark.parametrize("text", ["0", "8", "9", "-3", "100"])
def test_a_size_that_is_not_offered(text: str) -> None:
    """A size beyond the names that there are is named in the refusal."""
    with pytest.raises(SpecError, match=f"a cluster of {text} members is not offered"):
        parse_size(text)


@quick
@given(size=st.integers(1, 7), base=st.integers(1024, 65535 - 13))
def test_members_take_ports_in_pairs_from_the_first(size: int, base: int) -> None:
    """With a first port, client and peer ports follow one another, member by member."""
    spec = ClusterSpec.of_size("lab", size, base_port=base)
    assert spec.names == MEMBER_NAMES[:size]
    assert [p for m in spec.members for p in (m.client_port, m.peer_port)] == list(range(base, base + 2 * size))
    assert spec.quorum == size // 2 + 1
    assert spec.quorum > size - spec.quorum


def test_without_a_port_none_is_pinned() -> None:
    """The original lab's three names come first, and no port is pinned unless it is asked for."""
    spec = ClusterSpec.of_size("lab")
    assert spec.names == ("ironman", "thor", "deadpool")
    assert {p for m in spec.members for p in (m.client_port, m.peer_port)} == {0}


@pytest.mark.parametrize(
    ("size", "base"), [(3, 1023), (3, 65531), (7, 65523), (3, 65536), (3, -1), (1, 80), (3, 2**31)]
)
def test_a_first_port_that_leaves_no_room_is_refused(size: int, base: int) -> None:
    """Every member's ports must be between 1024 and 65535."""
    with pytest.raises(SpecError, match=f"port {base} is not offered"):
        ClusterSpec.of_size("lab", size, base_port=base)


def test_the_last_ports_can_be_had() -> None:
    """The highest first port is one with which the last member's peer port is 65535."""
    assert ClusterSpec.of_size("lab", 3, base_port=65530).members[-1].peer_port == 65535


@pytest.mark.parametrize("port", [-1, 1, 1023, 65536])
def test_a_pinned_port_out_of_range_is_refused(port: int) -> None:
    """Each of a member's two ports is checked, and the member is named."""
    with pytest.raises(SpecError, match=f"port {port} of member thor"):
        MemberSpec("thor", client_port=port)
    with pytest.raises(SpecError, match=f"port {port} of member thor"):
        MemberSpec("thor", peer_port=port)


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ((), "has no members"),
        ((MemberSpec("a"), MemberSpec("b"), MemberSpec("a")), "names a member twice: a, b, a"),
        ((MemberSpec("a", 2379, 2380), MemberSpec("b", 2380, 2381)), "pins a port twice: 2379, 2380, 2380, 2381"),
        ((MemberSpec("a", 2379, 2379),), "pins a port twice"),
    ],
)
def test_members_that_contradict_one_another_are_refused(members: tuple[MemberSpec, ...], says: str) -> None:
    """No members, a name twice, and a port twice are each refused with what is wrong."""
    with pytest.raises(SpecError, match=says):
        ClusterSpec("lab", members)


@pytest.mark.parametrize(
    ("heartbeat", "election"), [(0, 1000), (-1, 1000), (100, 499), (100, 50_001), (20_000, 50_000), (100, 0)]
)
def test_timing_that_etcd_refuses_is_refused_here(heartbeat: int, election: int) -> None:
    """An election timeout is 5 heartbeats at the least and 50 s at the most, and a heartbeat 1 ms at the least."""
    with pytest.raises(SpecError, match=f"{election} ms|{heartbeat} ms"):
        Timing(heartbeat, election)


@pytest.mark.parametrize(("heartbeat", "election"), [(1, 5), (100, 500), (100, 1000), (10_000, 50_000)])
def test_timing_at_its_limits(heartbeat: int, election: int) -> None:
    """The limits themselves are accepted."""
    assert Timing(heartbeat, election).election_ms == election


def test_tls_needs_a_pair_for_every_member() -> None:
    """A cluster with TLS in which one member has no certificate or key is refused."""
    tls = Tls("ca.pem", "client.pem", "client.key")
    whole, half = MemberSpec("a", cert="a.pem", key="a.key"), MemberSpec("b", cert="b.pem")
    assert ClusterSpec("lab", (whole,), tls=tls).tls == tls
    with pytest.raises(SpecError, match="not every member has a certificate and a key"):
        ClusterSpec("lab", (whole, half), tls=tls)


def test_an_unknown_purpose_is_refused() -> None:
    """A purpose decides whether drills may run, so a misspelt one is not taken for "lab"."""
    with pytest.raises(SpecError, match="purpose 'prod' is not known: lab or production"):
        ClusterSpec("lab", (MemberSpec("a"),), purpose="prod")


def test_an_unknown_member_is_named_with_those_there_are() -> None:
    """Asking for a member that is not there says which are."""
    with pytest.raises(SpecError, match=r"no member 'hulk': it has ironman, thor, deadpool"):
        ClusterSpec.of_size("lab").member("hulk")
    assert ClusterSpec.of_size("lab").member("thor").name == "thor"


@pytest.mark.parametrize(
    ("document", "where"),
    [
        ('{"name": "lab", "members": [{"name": "a"}, {"name": 3}]}', r"\$\.members\[1\]\.name"),
        ('{"name": "lab", "members": [{"name": "a", "port": 1}]}', r"unknown field `port`.*\$\.members\[0\]"),
        ('{"name": "lab", "members": [{"name": "a"}], "timing": {"heartbeat_ms": "1"}}', r"\$\.timing\.heartbeat_ms"),
        ('{"name": "lab", "members": [{"name": "a"}], "colour": "red"}', "unknown field `colour`"),
        ('{"name": "Lab", "members": [{"name": "a"}]}', "'Lab' cannot name a cluster"),
    ],
)
def test_what_is_read_is_checked_too(document: str, where: str) -> None:
    """A spec that was written by hand is checked as one that is built, and the error says where it is wrong."""
    with pytest.raises((msgspec.ValidationError, SpecError), match=where):
        msgspec.json.decode(document, type=ClusterSpec)


spans = st.lists(st.tuples(st.integers(0, 9999), st.sampled_from(["ms", "s", "m", "h", "d"])), min_size=1, max_size=3)
_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@quick
@given(spans)
@example([(90, "s")])
@example([(1, "h"), (30, "m")])
def test_a_span_is_so_long_ago(parts: list[tuple[int, str]]) -> None:
    """A span, or several in a row, is the instant that lies so far in the past."""
    ago = sum((timedelta(**{_UNITS[unit]: number}) for number, unit in parts), timedelta())
    before = datetime.now(timezone.utc)
    instant = parse_since("".join(f"{number}{unit}" for number, unit in parts))
    assert timedelta(0) <= instant + ago - before < timedelta(seconds=30)


@quick
@given(st.datetimes(datetime(1971, 1, 1), datetime(2999, 1, 1)), st.integers(-14 * 60, 14 * 60))
def test_a_time_is_that_instant(moment: datetime, offset_min: int) -> None:
    """An RFC 3339 time is that instant, whatever its offset; one without an offset is this machine's."""
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=offset_min)))
    assert parse_since(aware.isoformat()) == aware
    assert parse_since(moment.isoformat()) == moment.astimezone()


@quick
@given(st.text(max_size=30))
@example("")
@example("yesterday")
@example("10")
@example("-5m")
@example("5m ")
@example("9999999999999d")
@example("1" * 400 + "d")
@example("2026-13-01T00:00:00Z")
@example("0001-01-01T00:00:00")
@example("9999-12-31T23:59:59")
def test_any_text_is_an_instant_or_refused(text: str) -> None:
    """Whatever is given, the answer is an instant that can be compared with those of log lines, or a SpecError."""
    try:
        instant = parse_since(text)
    except SpecError as error:
        said = str(error)
    else:
        said = ""
        assert isinstance(instant < datetime.now(timezone.utc), bool)
    assert said == "" or (repr(text) in said and "neither a span of time nor a time" in said)
