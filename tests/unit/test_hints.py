"""What is said about etcd's errors: to whom, and that etcd really has the words by which they are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from etcdops import binaries, wire
from etcdops.cluster import Cluster
from etcdops.errors import EtcdError
from etcdops.hints import HINTS, remedy_for
from etcdops.runtimes.fake import FakeRuntime
from etcdops.state import Store
from etcdops.versions import Version, parse_version

#: Words of gRPC's and of etcdutl's, which are not in the binary of etcd.
_ELSEWHERE = ("Deadline Exceeded", "snapshot missing hash but --skip-hash-check=false")


def _binary() -> tuple[Version, str]:
    found = binaries.find(offline=True)
    return parse_version(found.version), found.etcd


@pytest.mark.parametrize("words", [words for words, _ in HINTS if words not in _ELSEWHERE])
def test_etcd_has_the_words(words: str) -> None:
    """Each text by which an error is known is in the binary of etcd, so that none is listed in vain."""
    # Written by fmt from parts, or by a later release than the one at hand.
    parts = {"membership: too many learner members": "too many learner members in cluster"}
    version, path = _binary()
    if version < Version((3, 5, 0)):
        pytest.skip(f"etcd {version} is at hand, and the texts are those of 3.5 and later")
    assert parts.get(words, words).encode() in Path(path).read_bytes()


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("etcdserver: unhealthy cluster", "connected for 5 s"),
        ("etcdserver: re-configuration failed due to not enough started members", "never started"),
        ("etcdserver: too many learner members in cluster", "One learner at a time"),
        ("membership: too many learner members in cluster", "go back to the 3.5 binary"),
        ("etcdserver: can only promote a learner member which is in sync with leader", "has not caught up"),
        ("etcdserver: can only promote a learner member", "It is a voter already"),
        ("etcdserver: member not found", "as it should be"),
        ("etcdserver: Peer URLs already exists", "added already"),
        ("etcdserver: rpc not supported for learner", "ask a voter"),
        ("etcdserver: no leader", "no quorum"),
        ("etcdserver: request timed out", "no quorum"),
        ("etcdserver: request timed out, leader transfer took too long", "choose another"),
        ("Deadline Exceeded", "No answer in time"),
        ("etcdserver: mvcc: database space exceeded", "defrag"),
        ("etcdserver: corrupt cluster", "do not disarm it"),
        ("etcdserver: mvcc: required revision has been compacted", "read the keys anew"),
        ("request sent was ignored (cluster ID mismatch: peer[1]=2, local=3)", "cluster.list"),
        ("member 8e9e05c52164694d has already been bootstrapped", "remove the member"),
        ("tocommit(9) is out of range [lastIndex(0)]. Was the raft log corrupted, truncated, or lost?", "emptied"),
        ("the member has been permanently removed from the cluster", "never join again"),
        ("expected sha256 [1], got [2]; snapshot missing hash but --skip-hash-check=false", "multiple of 512"),
        ("etcdserver: user name is empty", "--user"),
        ("etcdserver: invalid auth token", "log in again"),
        ("etcdserver: revision of auth store is old", "log in again"),
        ("etcdserver: key is not provided", ""),
        ("", ""),
    ],
)
def test_each_error_has_its_own_remedy(said: str, remedy: str) -> None:
    """Every row of the table is reached by the text that etcd writes, and no other row takes it first."""
    found = remedy_for(said)
    assert remedy in found
    assert bool(found) is bool(remedy)


def test_every_row_is_tested() -> None:
    """A row that is added to the table needs a text in the test above."""
    marks = next(
        mark
        for mark in test_each_error_has_its_own_remedy.pytestmark  # type: ignore[attr-defined]
        if mark.name == "parametrize"
    )
    reached = {remedy_for(said) for said, _ in marks.args[1]}
    rare = {"not leader", "bad leader transferee", "context deadline exceeded"}
    assert {remedy for words, remedy in HINTS if words not in rare} <= reached


def test_users_get_the_remedy(tmp_path: Path) -> None:
    """An error of the server, and one of the transport, arrives with what to do about it."""
    runtime = FakeRuntime(request_timeout_s=0.3)
    with Cluster.create("lab", runtime=runtime, store=Store(tmp_path)) as cluster:
        leader = cluster.leader()
        follower = next(member for member in cluster.members if member.name != leader.name)
        with wire.Connection(follower.client_url) as etcd, pytest.raises(EtcdError, match="not leader") as refused:
            etcd.move_leader(1, timeout_s=20)
        assert "`status` shows who leads" in refused.value.remedy
        leader.pause()
        with wire.Connection(leader.client_url) as etcd, pytest.raises(EtcdError) as silent:
            etcd.range(b"k", timeout_s=0.2)
        assert "No answer in time" in silent.value.remedy


def test_every_row_can_be_reached() -> None:
    """No text is a part of a later one: that one would never be found."""
    texts = [words for words, _ in HINTS]
    for i, words in enumerate(texts):
        assert not any(earlier in words for earlier in texts[:i]), words
