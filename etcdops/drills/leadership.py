"""Who leads, over time: every member is asked again and again, and what changes is noted."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from etcdops import wire
from etcdops.errors import EtcdError
from etcdops.verify import Check

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.report.journal import Journal

__all__ = ["Claim", "Leadership", "check_one_leader"]

_EVERY_S = 0.02
_ANSWER_S = 0.2


class Claim(NamedTuple):
    """What one member said at one instant: its term, and the leader that it knows (0 for none)."""

    t_ns: int
    member: str
    term: int
    leader: int


class Leadership:
    """Watches the members' terms and leaders from a thread for each, and keeps every change.

    A member that does not answer holds nobody else up, and is asked again.
    """

    def __init__(self, cluster: Cluster, journal: Journal) -> None:
        self.claims: list[Claim] = []
        self.ids: dict[int, str] = {}
        self._cluster = cluster
        self._journal = journal
        self._last: dict[str, Claim] = {}
        self._heard: dict[str, Claim] = {}
        self._changed = threading.Condition()
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._watch, args=(member.name,), daemon=True, name=f"leadership-{member.name}")
            for member in cluster.members
        ]

    def __enter__(self) -> Leadership:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(timeout=5.0)

    def _watch(self, name: str) -> None:
        record = self._cluster.record
        with wire.Connection(record.member(name).client_url, record.spec.tls) as connection:
            while not self._end.wait(_EVERY_S):
                try:
                    status = connection.status(timeout_s=_ANSWER_S)
                except EtcdError:
                    continue
                self._note(Claim(time.monotonic_ns(), name, status.raft_term, status.leader), status.member_id)

    def _note(self, claim: Claim, member_id: int) -> None:
        with self._changed:
            self.ids[member_id] = claim.member
            last, heard = self._last.get(claim.member), self._heard.get(claim.member)
            if last and (last.term, last.leader) == (claim.term, claim.leader):
                self._heard.pop(claim.member, None)
                return
            # etcd reads its term and its leader one after the other (Maintenance.Status), so an answer in the midst of
            # an election can pair the old term with the new leader. A claim counts once the next answer repeats it.
            if heard is None or (heard.term, heard.leader) != (claim.term, claim.leader):
                self._heard[claim.member] = claim
                return
            claim = self._last[claim.member] = self._heard.pop(claim.member)
            self.claims.append(claim)
            leader = self.ids.get(claim.leader, wire.hex_id(claim.leader)) if claim.leader else "none"
            self._journal.note("sees-leader", claim.member, f"{leader} in term {claim.term}", t_ns=claim.t_ns)
            self._changed.notify_all()

    def leader(self, *, after_term: int = 0, but: str = "") -> tuple[str, int] | None:
        """Give the leader that the highest term seen names, and that term; None if that is none, or not as asked."""
        with self._changed:
            latest = list(self._last.values())
            term = max((claim.term for claim in latest), default=0)
            if term <= after_term:
                return None
            for claim in latest:
                name = self.ids.get(claim.leader, "")
                # The leader's own word as well: a follower names it before it knows that it has won.
                if claim.term == term and name and name != but and self._leads(name, claim.leader, term):
                    return name, term
        return None

    def _leads(self, name: str, leader: int, term: int) -> bool:
        own = self._last.get(name)
        return own is not None and own.leader == leader and own.term == term

    def wait_leader(self, *, after_term: int, but: str, timeout_s: float) -> tuple[str, int] | None:
        """Wait for another leader at a higher term; None if none comes within `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = self.leader(after_term=after_term, but=but)
            if found:
                return found
            with self._changed:
                self._changed.wait(0.05)
        return None


class _Tenure(NamedTuple):
    """One member's view of one leader: from when to when, the terms at its beginning and at its end."""

    leader: int
    since_ns: int
    until_ns: int
    first_term: int
    term: int


def _tenures(claims: list[Claim], until_ns: int) -> list[_Tenure]:
    """Give one member's claims as tenures, those during which it knew of no leader left out."""
    found: list[_Tenure] = []
    for claim, following in zip(claims, [*claims[1:], None], strict=True):
        end = following.t_ns if following else until_ns
        last = found[-1] if found else None
        if last and last.leader == claim.leader and last.until_ns == claim.t_ns:
            found[-1] = last._replace(until_ns=end, term=claim.term)
        else:
            found.append(_Tenure(claim.leader, claim.t_ns, end, claim.term, claim.term))
    return [tenure for tenure in found if tenure.leader]


def check_one_leader(claims: list[Claim], *, until_ns: int, patience_ns: int) -> Check:
    """Give the check that no term had two leaders, as Raft promises ("election safety", Ongaro and Ousterhout 2014).

    The term that etcd reports is that of the last entry which it has applied, so a new leader is named with the old
    term until its first entry is committed. A leader whose term did not rise is therefore held against a member only
    if that lasted longer than `patience_ns`; two election timeouts are enough, since a leader that commits nothing
    steps down after one. `until_ns` is when the watching ended.
    """
    leaders: dict[int, set[int]] = {}
    by_member: dict[str, list[Claim]] = {}
    for claim in claims:
        by_member.setdefault(claim.member, []).append(claim)
    for own in by_member.values():
        before = 0
        for tenure in _tenures(own, until_ns):
            if tenure.term > before or tenure.until_ns - tenure.since_ns > patience_ns:
                leaders.setdefault(tenure.term, set()).add(tenure.leader)
            before = tenure.term
    doubled = {term: ids for term, ids in leaders.items() if len(ids) > 1}
    if doubled:
        said = "; ".join(
            f"term {term}: {', '.join(map(wire.hex_id, sorted(ids)))}" for term, ids in sorted(doubled.items())
        )
        return Check("one leader a term", "failed", f"members named different leaders in one term: {said}")
    if not leaders:
        return Check("one leader a term", "inconclusive", "no member ever named a leader")
    return Check("one leader a term", "passed", f"{len(leaders)} terms were seen, each with one leader")
