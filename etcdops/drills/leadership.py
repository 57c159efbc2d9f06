"""Who leads, over time: every member is asked again and again, and what it says is noted."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

from etcdops import wire
from etcdops.errors import EtcdError
from etcdops.verify.recorded import Claim

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.report.journal import Journal

__all__ = ["Leadership"]

_EVERY_S = 0.02
_ANSWER_S = 0.2

#: What a member still says is noted again after so long: a record shows until when it held, and who came back to it.
_AGAIN_NS = 500_000_000


class Leadership:
    """Watches the members' terms and leaders from a thread for each, and keeps every change, and some of what stays.

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
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Leadership:
        for member in self._cluster.members:
            self.follow(member.name)
        return self

    def follow(self, name: str) -> None:
        """Ask one more member, such as one that has come to the cluster since; nothing where it is not on record."""
        for member in self._cluster.record.members:
            if member.name == name:
                asking = (name, member.client_url)
                thread = threading.Thread(target=self._watch, args=asking, daemon=True, name=f"leadership-{name}")
                self._threads.append(thread)
                thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(timeout=5.0)

    def _watch(self, name: str, url: str) -> None:
        with wire.Connection(url, self._cluster.record.spec.tls) as connection:
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
                if claim.t_ns - last.t_ns >= _AGAIN_NS:
                    self._last[claim.member] = claim
                    self.claims.append(claim)
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

    def latest(self) -> tuple[dict[str, Claim], dict[int, str]]:
        """Give what each member last said of its term and leader, and the members' names by id."""
        with self._changed:
            return dict(self._last), dict(self.ids)

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
