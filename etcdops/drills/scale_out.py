"""The original lab's third drill: members are added, and what that gains is shown; and what it does not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from etcdops.drills import drill

if TYPE_CHECKING:
    from etcdops.drills.scene import Scene
    from etcdops.state import ClusterRecord

#: How many members are added, one after the other.
_MORE = 2

#: How long members may take to have the same keys at one revision, or all to answer, seconds.
_EQUAL_S = 30.0

#: How long writes go on at each size, so that enough is seen of it, seconds.
_HOLD_S = 0.5

#: A pause that is shorter says more of the machine than of etcd, whatever the election timeout.
_LEAST_MS = 3000.0

_ALL_KEYS = b"\0"


class _Size(NamedTuple):
    """How many voters there are, how many of them must agree, and how many may be lost."""

    voters: int
    quorum: int

    @property
    def may_be_lost(self) -> int:
        return self.voters - self.quorum

    def __str__(self) -> str:
        return f"{self.voters} voters: quorum {self.quorum}, {self.may_be_lost} may be lost"


def _fits(record: ClusterRecord) -> str | None:
    if record.spec.tls and not record.spec.tls.ca_key:
        return "its members have certificates of their own, and for members added for a while there are none"
    from etcdops.spec import MEMBER_NAMES

    if len(record.members) + _MORE > len(MEMBER_NAMES):
        return (
            f"it has {len(record.members)} members, and with {_MORE} more it would have more than {len(MEMBER_NAMES)}"
        )
    return None


@drill(min_voters=1, steps=2 + 4 * _MORE, takes_s=40, fits=_fits)
def scale_out(scene: Scene) -> None:
    """Add two members, one after the other, and remove them: writes go on, and every member holds every key.

    Each joins as a learner, which counts for no quorum, and is promoted once it has all data
    (https://etcd.io/docs/v3.5/learning/design-learner/): no election is needed, and the outage is about zero. An
    even number tolerates no more failures than the odd one before it, as the quorum grows with it
    (https://etcd.io/docs/v3.5/faq/). And nothing is spread anew: etcd replicates every key to every member, so that
    more members make reads scale, and writes slower.
    """
    before = _members(scene)
    sizes: dict[int, _Size] = {}
    with scene.step("look at the quorum", "etcdctl endpoint status --cluster -w table"):
        first = _look(scene, sizes, len(before))
        leader, term = scene.leader().name, scene.term()
    with scene.extra_members() as extra:
        for _ in range(_MORE):
            name = extra.next_name()
            label = f"add {name}: a learner first, promoted when it has all data"
            with scene.step(label, f"etcdops member.add {name}"), scene.acting("member.add", name):
                extra.add()
                scene.window.leadership.follow(name)
                scene.hold(_HOLD_S)
            with scene.step(f"compare the keys of {name} with the others'", "etcdctl endpoint hashkv --cluster"):
                size = _look(scene, sizes, len(before) + len(extra.names))
                _compare(scene, f"{size.voters} members hold every key")
        _explain(scene, sizes)
        for name in reversed(extra.names[:]):
            with scene.step(f"remove {name}", f"etcdops member.remove {name}"):
                scene.keep_log(scene.cluster.member(name))
                with scene.acting("member.remove", name):
                    extra.remove(name)
                    scene.hold(_HOLD_S)
            with scene.step("look at the quorum", "etcdctl endpoint status --cluster -w table"):
                _look(scene, sizes, len(before) + len(extra.names))
    with scene.step("compare with what was there before", "etcdctl member list -w table"):
        after = _members(scene)
        said = ", ".join(f"{name} ({number})" for name, number in after.items())
        scene.check("as before", after == before, f"the members are {said}, with a quorum of {first.quorum}")
        now = scene.leader().name
        scene.figure("elections", scene.term() - term, "", f"{leader} led before, {now} leads after; none is needed")
        _check_service(scene)


def _members(scene: Scene) -> dict[str, str]:
    """Give the members' names and IDs, as they themselves say; "" for one that does not."""
    deadline = time.monotonic() + _EQUAL_S
    while True:
        members = {member.name: member.id for member in scene.cluster.status().members}
        if all(members.values()) or time.monotonic() > deadline:
            return members
        time.sleep(0.05)


def _look(scene: Scene, sizes: dict[int, _Size], expected: int) -> _Size:
    """Look how many voters there are and what their quorum is; the drill ends if that does not get as it should be."""
    deadline = time.monotonic() + _EQUAL_S
    while True:
        status = scene.cluster.status()
        voters = [member.name for member in status.members if member.role in ("leader", "follower")]
        size = _Size(len(voters), status.quorum)
        well = status.verdict == "healthy" and size.voters == expected and size.quorum == expected // 2 + 1
        if well or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    scene.expect(f"{expected} voters", well, f"{status.verdict}: {', '.join(voters)}; {size}")
    if expected not in sizes:
        lost = f"{size.may_be_lost} may be lost"
        scene.figure(f"quorum of {expected}", size.quorum, "members", lost)
    sizes[expected] = size
    scene.say(str(size))
    return size


def _compare(scene: Scene, name: str) -> None:
    """Compare all members' keys at one revision: their hashes, and how many there are."""
    from etcdops.operations.equality import hashes_agree

    names = list(scene.cluster.record.spec.names)
    agreement = hashes_agree(scene.cluster, names, timeout_s=_EQUAL_S)
    scene.expect(name, agreement.equal, agreement.detail)
    counts = {member: _count(scene, member, agreement.revision) for member in names}
    said = ", ".join(f"{member} {count}" for member, count in counts.items())
    same = len(set(counts.values())) == 1 and None not in counts.values()
    scene.check(
        f"replicated to {len(names)}, not spread", same, f"keys of each member at revision {agreement.revision}: {said}"
    )
    scene.say(f"every member holds every key: {said}. etcd replicates; nothing is spread anew")


def _count(scene: Scene, member: str, revision: int) -> int | None:
    """Ask a member how many keys there are at a revision; None if it does not answer."""
    from etcdops.answers import RangeResult
    from etcdops.ops import Range

    counted = Range(_ALL_KEYS, _ALL_KEYS, revision=revision, count_only=True)
    asked = scene.own.ask(counted, through=member, timeout_s=5.0)
    return asked.answer.count if isinstance(asked.answer, RangeResult) else None


def _explain(scene: Scene, sizes: dict[int, _Size]) -> None:
    """Compare each even number of voters with the odd one before it."""
    for voters in sorted(sizes):
        if voters % 2 or voters - 1 not in sizes:
            continue
        even, odd = sizes[voters], sizes[voters - 1]
        same = even.may_be_lost == odd.may_be_lost and even.quorum == odd.quorum + 1
        name = f"{voters} tolerate no more than {voters - 1}"
        scene.check(name, same, f"{odd}; {even}, and one more must agree to each write")


def _check_service(scene: Scene) -> None:
    """See that writes never waited for long: on an idle machine for no longer than without any change."""
    from etcdops.workload.gaps import find_gap
    from etcdops.workload.history import PINNED

    faults = scene.window.faults
    since, until = min(fault.inject_ns for fault in faults), max(fault.heal_ns for fault in faults)
    worst, worst_ms, noise_ms = "", 0.0, 0.0
    streams: dict[str, list[int]] = {}
    for operation in scene.recorded():
        if operation.stream.startswith(PINNED) and operation.outcome == "ok":
            streams.setdefault(operation.stream, []).append(operation.return_ns)
    for stream, acked in streams.items():
        acked.sort()
        gap = find_gap(acked, start_ns=acked[0], end_ns=acked[-1], inject_ns=since, heal_ns=until)
        noise_ms = max(noise_ms, gap.noise_ms or 0.0)
        if gap.gap_ms > worst_ms:
            worst, worst_ms = stream[len(PINNED) :], gap.gap_ms
    limit_ms = _limit_ms(scene, noise_ms)
    said = f"the longest time between two acknowledged writes was {worst_ms:,.0f} ms, through {worst}"
    limit = f"without a change it was up to {noise_ms:,.0f} ms, and {limit_ms:,.0f} ms are the limit"
    scene.check("service throughout", worst_ms < limit_ms, f"{said}; {limit}")


def _limit_ms(scene: Scene, noise_ms: float) -> float:
    return max(2.0 * scene.cluster.record.spec.timing.election_ms, _LEAST_MS) + noise_ms
