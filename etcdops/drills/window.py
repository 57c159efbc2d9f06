"""A window of a run: recorded traffic over one store, from the state before it to the write that closes it.

Nothing settles at its end. The traffic stops, one more write is acknowledged (the tombstone, at revision T), and every
key at T is read back through every member: what is not in the store by then was not applied in this window.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from etcdops import calls, wire
from etcdops.drills.leadership import Leadership
from etcdops.drills.own import FIRST_ID, OwnClient, whole_state
from etcdops.errors import EtcdError
from etcdops.state import replace_file
from etcdops.verify import Check
from etcdops.verify.members_agree import MemberHash
from etcdops.verify.recorded import OBSERVED, Fault, Figure, Final, Observed, Restored, State
from etcdops.workload.history import Operation
from etcdops.workload.plan import TrafficPlan
from etcdops.workload.traffic import Traffic

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.report.journal import Journal

__all__ = ["Window"]

#: How long the first answers may take to come, what a profile writes before included, seconds.
_OPENING_S = 60.0

#: How long the tombstone may take to be acknowledged, seconds.
_CLOSING_S = 20.0
_ANSWER_S = 10.0
#: For how long a member that does not give the final state is asked again, seconds.
_AGAIN_S = 3.0

#: How many ids a window has for the drill's own operations.
_OWN_IDS = 10_000_000

#: What a member answers that is asked for a revision that it has not reached yet, in part.
_BEHIND = "future revision"


class Window:
    """Made open; `close` ends it and writes what was observed. As a context manager it leaves no process behind.

    `number` counts the windows of a run, from 1. After a restore the state before is read through every member.
    Raises what Traffic raises, and EtcdError when the state before cannot be read.
    """

    def __init__(
        self,
        cluster: Cluster,
        run: str,
        folder: Path,
        journal: Journal,
        plan: Callable[[Path, int], TrafficPlan],
        *,
        number: int = 1,
        restored: Restored | None = None,
    ) -> None:
        self.folder = folder
        self.checks: list[Check] = []
        self.rejoined: list[Check] = []
        self.figures: list[Figure] = []
        self.faults: list[Fault] = []
        self._cluster = cluster
        self._run = run
        self._journal = journal
        self._restored = restored
        self._states: list[State] = []
        self._members = tuple(member.name for member in cluster.record.members)
        self._stack = ExitStack()
        first = FIRST_ID + (number - 1) * _OWN_IDS
        with ExitStack() as stack:
            self.own = stack.enter_context(OwnClient(cluster, run, folder / "own.jsonl", first=first))
            self._base = self._keep(whole_state(self.own.connection(self._first_that_serves())))
            self.base_revision = self._states[self._base].revision
            self._opened = self._read_back(self._members, self.base_revision) if restored else {}
            self.plan = plan(folder, self.base_revision + 1)
            self.leadership = stack.enter_context(Leadership(cluster, journal))
            self.traffic = stack.enter_context(Traffic.start(self.plan, folder / "traffic.log"))
            self.traffic.wait_running(timeout_s=_OPENING_S)
            journal.note("traffic")
            self._stack = stack.pop_all()

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @property
    def base(self) -> State:
        """Every key that there was before the first operation."""
        return self._states[self._base]

    def _first_that_serves(self) -> str:
        leader = self._cluster.status().leader
        return leader or self._members[0]

    def _keep(self, state: State) -> int:
        """Give the index of a state, which is kept once however often it is seen."""
        if state not in self._states:
            self._states.append(state)
        return self._states.index(state)

    def close(self) -> Observed:
        """End the traffic, close the window with a tombstone, read everything back, and write `observed.json`."""
        summary = self.traffic.stop_sending(timeout_s=10.0)
        self._journal.note("traffic-ended")
        names = [member.name for member in self._cluster.record.members]
        tombstone, at_ns = self._tombstone(names)
        final = self._read_back(names, tombstone) if tombstone else {}
        hashes = self._hashes(names, tombstone) if tombstone else {}
        until_ns = time.monotonic_ns()
        closed = self.traffic.close(tombstone, timeout_s=_ANSWER_S)
        for name, watch in closed.watches.items():
            if not watch.reached:
                self._journal.note("watch-behind", name, f"at revision {watch.revision} of {tombstone}: {watch.error}")
        claims, ids = tuple(self.leadership.claims), {name: number for number, name in self.leadership.ids.items()}
        self._stack.close()
        observed = Observed(
            run=self._run,
            members=self._members,
            states=tuple(self._states),
            base=self._base,
            tombstone=tombstone,
            tombstone_ns=at_ns,
            final=final,
            hashes=hashes,
            rejoined=tuple(self.rejoined),
            checks=tuple(self.checks),
            figures=tuple(self.figures),
            faults=tuple(self.faults),
            restored=self._restored,
            opened=self._opened,
            claims=claims,
            ids=ids,
            watched=tuple(name for name, watch in closed.watches.items() if watch.reached),
            until_ns=until_ns,
            complete=summary.complete,
        )
        replace_file(self.folder / OBSERVED, msgspec.json.encode(observed) + b"\n")
        return observed

    def _tombstone(self, names: Sequence[str]) -> tuple[int, int]:
        """Write the window's last key, through whichever member acknowledges it; give its revision, 0 if none did.

        Each attempt is a write of its own: one that was not acknowledged may be applied, too.
        """
        key = self.own.key("tombstone")
        deadline = time.monotonic() + _CLOSING_S
        while True:
            for name in names:
                put = self.own.put(key, through=name, timeout_s=2.0)
                if put.outcome == "ok":
                    self._journal.note("tombstone", name, f"revision {put.revision}")
                    return put.revision, put.return_ns
            if time.monotonic() > deadline:
                self._journal.note("no-tombstone", detail=f"{put.code} {put.error}")
                return 0, 0
            time.sleep(0.05)

    def _read_back(self, names: Sequence[str], revision: int) -> dict[str, Final]:
        """Read everything through each member; one that has only just come back is asked more than once."""
        final: dict[str, Final] = {}
        for name in names:
            at = revision
            deadline = time.monotonic() + _AGAIN_S
            while True:
                try:
                    state = whole_state(self.own.connection(name), at, timeout_s=_ANSWER_S)
                except EtcdError as error:
                    if time.monotonic() < deadline:
                        time.sleep(0.1)
                        continue
                    if at and _BEHIND in str(error):
                        # Acknowledged, and not there for a read that came later: what is there shows what is lost.
                        self._journal.note("behind-tombstone", name, str(error))
                        at = 0
                        continue
                    self._journal.note("not-read-back", name, str(error))
                    final[name] = Final(error=str(error))
                else:
                    final[name] = Final(self._keep(state))
                break
        return final

    def _hashes(self, names: Sequence[str], revision: int) -> dict[str, MemberHash]:
        """Ask every member for its hash at one revision, which all that were read back have."""
        return member_hashes({name: self.own.connection(name) for name in names}, revision)

    def wait_equal(self, member: str, timeout_s: float) -> Check:
        """Wait until a member that came back has applied what the others have; then read, write and hash through it."""
        name, own = f"rejoined {member}", self.own
        key = own.key(f"rejoined/{member}")
        deadline = time.monotonic() + timeout_s
        mark = self._mark(key, but=member, deadline=deadline)
        if mark.outcome != "ok":
            return Check(name, "inconclusive", f"no write was acknowledged to compare with: {mark.code} {mark.error}")
        applied = 0
        while applied < mark.revision:
            if time.monotonic() > deadline:
                return Check(name, "failed", f"{member} is at revision {applied} and never reached {mark.revision}")
            try:
                applied = own.connection(member).status(timeout_s=1.0).revision
            except EtcdError:
                time.sleep(0.02)
        # One that is busy with what it has missed may take long to answer.
        read = _until_ok(lambda: own.get(key, through=member, timeout_s=5.0), timeout_s)
        if read.outcome != "ok":
            return Check(name, "failed", f"{member} does not answer a linearizable read: {read.code} {read.error}")
        wrote = _until_ok(lambda: own.put(key, through=member, timeout_s=5.0), timeout_s)
        if wrote.outcome != "ok":
            return Check(name, "failed", f"{member} does not acknowledge a write: {wrote.code} {wrote.error}")
        here = {each.name: own.connection(each.name) for each in self._cluster.record.members}
        hashes = member_hashes(here, mark.revision)
        while any(_BEHIND in each.error for each in hashes.values()) and time.monotonic() < deadline:
            time.sleep(0.05)
            hashes = member_hashes(here, mark.revision)
        mine = hashes.pop(member)
        if mine.error:
            return Check(name, "inconclusive", f"{member} gave no hash at {mark.revision}: {mine.error}")
        if hashes and all(each.error for each in hashes.values()):
            said = "; ".join(f"{other}: {each.error}" for other, each in hashes.items())
            return Check(name, "inconclusive", f"no other member gave a hash at {mark.revision}: {said}")
        differing = sorted(
            other
            for other, answer in hashes.items()
            if not answer.error and answer.compact_revision == mine.compact_revision and answer.hash != mine.hash
        )
        if differing:
            said = f"the keys of {member} differ at revision {mark.revision} from those of {', '.join(differing)}"
            return Check(name, "failed", said)
        return Check(
            name,
            "passed",
            f"{member} read, wrote and has the others' hash at revision {mark.revision}, once it was back",
        )

    def _mark(self, key: bytes, *, but: str, deadline: float) -> Operation:
        """Write `key` through another member, until one acknowledges it."""
        others = [each.name for each in self._cluster.record.members if each.name != but] or [but]
        while True:
            for other in others:
                mark = self.own.put(key, through=other, timeout_s=2.0)
                if mark.outcome == "ok" or time.monotonic() > deadline:
                    return mark


def _until_ok(ask: Callable[[], Operation], timeout_s: float) -> Operation:
    """Ask until it is acknowledged, each time by an operation of its own; give the last one."""
    deadline = time.monotonic() + timeout_s
    while True:
        asked = ask()
        if asked.outcome == "ok" or time.monotonic() > deadline:
            return asked
        time.sleep(0.02)


def member_hashes(connections: dict[str, wire.Connection], revision: int) -> dict[str, MemberHash]:
    """Ask members for their hashes at one revision, all at once."""
    answers = wire.ask_all(connections, calls.hash_kv(revision), timeout_s=30.0)
    return {
        name: MemberHash(error=str(answer))
        if isinstance(answer, EtcdError)
        else MemberHash(hash=answer.hash, revision=revision, compact_revision=answer.compact_revision)
        for name, answer in answers.items()
    }
