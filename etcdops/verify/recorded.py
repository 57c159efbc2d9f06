"""What a run left behind, as all checks take it: pure data, from the run's folder or from a test.

A check is a pure function of a `Recorded` (or of a part of it) to a `Check`, so that the same folder always gives the
same verdict, at the end of the drill and offline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from etcdops.answers import KeyValue
from etcdops.verify import Check
from etcdops.verify.members_agree import MemberHash
from etcdops.workload.deliveries import Delivery, ExtraDeliveries
from etcdops.workload.history import Operation

if TYPE_CHECKING:
    from etcdops.verify.columns import Columns

__all__ = ["OBSERVED", "Claim", "Fault", "Figure", "Final", "Observed", "Recorded", "Restored", "State"]

#: Where a window's folder holds what a drill saw by itself.
OBSERVED = "observed.json"


class State(msgspec.Struct, frozen=True):
    """Every key that existed at `revision`, in order of keys, over the whole key space."""

    revision: int
    kvs: tuple[KeyValue, ...]


class Final(msgspec.Struct, frozen=True):
    """What a linearizable range over the whole key space at the tombstone's revision gave through one member.

    Where the member has not reached that revision, it is what the newest one gave.
    `state` is an index into `Observed.states`, -1 where `error` says why there is none.
    """

    state: int = -1
    error: str = ""


class Claim(NamedTuple):
    """What one member said at one instant: its term, and the leader that it knows (0 for none)."""

    t_ns: int
    member: str
    term: int
    leader: int


class Fault(msgspec.Struct, frozen=True):
    """A fault, or something that was done on purpose, and when it acted.

    `inject_ns` is stamped before the act and `injected_ns` after it, confirmed by looking; `healing_ns` before it was
    undone, `heal_ns` when that was seen to be done. `predicts` is how a leader was lost by it ("kill", "freeze",
    "isolate", "unplug", "stop"), which is what Raft's prediction is for; "" where none was.
    """

    kind: str
    member: str
    inject_ns: int
    injected_ns: int
    healing_ns: int
    heal_ns: int
    predicts: str = ""


class Figure(msgspec.Struct, frozen=True):
    """A number that a drill has measured besides the outage; `value` None where it could not."""

    name: str
    value: float | None
    unit: str
    detail: str = ""


class Restored(msgspec.Struct, frozen=True):
    """The store of this window began as a restore of a snapshot of `revision`, taken in the window before.

    Writes that were acknowledged in that window at a higher revision are gone: they are the restore's RPO.
    """

    revision: int
    snapshot: str = ""


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What a drill saw by itself, besides its traffic, in one window: `observed.json` in the window's folder.

    A window is a stretch of time over one store, from `base` to the write that closes it. A drill that restores a
    snapshot has two: after a restore revisions begin anew, and nothing that was true of them before holds.

    `base` is an index into `states`: all keys before the first operation, from a linearizable range. `tombstone` is the
    revision of the write that closed the window, 0 if none was acknowledged. `final` holds every member that should
    have served then. `hashes` were taken at one revision at the end, `rejoined` through each member after each return
    of it. `checks` are those that could only be made live. `ids` are the members' IDs. `complete` says that every
    operation was recorded with its end. `watched` are the members whose events were recorded. `opened` is, after a
    restore, what each member had at the base's revision.
    """

    run: str
    members: tuple[str, ...]
    states: tuple[State, ...] = ()
    base: int = -1
    tombstone: int = 0
    tombstone_ns: int = 0
    final: dict[str, Final] = {}
    hashes: dict[str, MemberHash] = {}
    rejoined: tuple[Check, ...] = ()
    checks: tuple[Check, ...] = ()
    figures: tuple[Figure, ...] = ()
    faults: tuple[Fault, ...] = ()
    restored: Restored | None = None
    opened: dict[str, Final] = {}
    claims: tuple[Claim, ...] = ()
    ids: dict[str, int] = {}
    watched: tuple[str, ...] = ()
    until_ns: int = 0
    complete: bool = True


class _Parts(NamedTuple):
    observed: Observed
    history: Sequence[Operation]
    deliveries: Mapping[str, Sequence[Delivery]]
    extra: Sequence[ExtraDeliveries] = ()


class Recorded(_Parts):
    """A run: what was observed, the operations in the order in which they ended, and each member's deliveries.

    Checks look at `columns`, which hold the same, and are worked out once: nothing here may change once they were
    looked at (`_replace` gives another record). `kept.read_recorded` gives one whose columns come straight from its
    files, and whose operations and deliveries are read only if looked at.
    `extra` is what watches on parts of the keys delivered, where the profile has any.
    """

    @cached_property
    def columns(self) -> Columns:
        """The operations, deliveries and the state before as columns."""
        from etcdops.verify.building import columns_of

        base = self.base or State(0, ())
        return columns_of(self.observed.run, self.observed.members, base, self.history, self.deliveries)

    @property
    def base(self) -> State | None:
        """The state before the first operation, None if it was not read."""
        at = self.observed.base
        return self.observed.states[at] if at >= 0 else None

    def final(self, member: str) -> State | None:
        """Give the state at the tombstone through a member, None if it was not read."""
        found = self.observed.final.get(member)
        return self.observed.states[found.state] if found and found.state >= 0 else None
