"""A run recorded call by call, for tests that need a record of their own making."""

from __future__ import annotations

import time
from pathlib import Path

from etcdops import wire
from etcdops.cluster import Cluster
from etcdops.drills.own import OwnClient, whole_state
from etcdops.verify.members_agree import MemberHash
from etcdops.verify.recorded import Final, Observed, Recorded
from etcdops.workload.deliveries import Delivery
from etcdops.workload.history import read_history

_TIMEOUT_S = 10.0


class Recording:
    """What `ask` asks is recorded; `finish` closes the window through the members named, and gives the whole."""

    def __init__(self, cluster: Cluster, folder: Path, run: str = "run1") -> None:
        self._cluster = cluster
        self._run = run
        self._path = folder / "own.jsonl"
        self.ask = OwnClient(cluster, run, self._path)
        self._base = whole_state(self.ask.connection(cluster.record.members[0].name))

    def finish(self, members: list[str] | None = None) -> Recorded:
        """Write the tombstone, and read what there is through every member; deliveries are read now, too."""
        names = members or [member.name for member in self._cluster.record.members]
        deadline = time.monotonic() + 20
        while (tombstone := self.ask.put(self.ask.key("tombstone"), through=names[0], timeout_s=2)).outcome != "ok":
            assert time.monotonic() < deadline, tombstone.error
        until = tombstone.revision
        states, finals, hashes, deliveries = [self._base], {}, {}, {}
        for name in names:
            states.append(whole_state(self.ask.connection(name), until))
            finals[name] = Final(len(states) - 1)
            found = self.ask.connection(name).hash_kv(until, timeout_s=_TIMEOUT_S)
            hashes[name] = MemberHash(found.hash, found.hash_revision, found.compact_revision)
            deliveries[name] = self._delivered(name, until)
        self.ask.close()
        observed = Observed(
            run=self._run,
            members=tuple(member.name for member in self._cluster.record.members),
            states=tuple(states),
            base=0,
            tombstone=until,
            tombstone_ns=tombstone.return_ns,
            final=finals,
            hashes=hashes,
            watched=tuple(names),
            until_ns=time.monotonic_ns(),
        )
        return Recorded(observed, read_history(self._path), deliveries)

    def _delivered(self, member: str, until: int) -> list[Delivery]:
        start = self._base.revision + 1
        found = [Delivery(time.monotonic_ns(), 1, "opened", start_revision=start)]
        url = self._cluster.record.member(member).client_url
        with (
            wire.Connection(url) as connection,
            connection.watch(b"\0", b"\0", start_revision=start, prev_kv=True, timeout_s=_TIMEOUT_S) as watch,
        ):
            for batch in watch:
                found.append(Delivery(time.monotonic_ns(), 1, "events", batch.revision, events=batch.events))
                if batch.events and batch.events[-1].kv.mod_revision >= until:
                    break
        return found
