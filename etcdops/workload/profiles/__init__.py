"""What the clients of a run ask: a profile is one module here, found by its name (wide-txn is `wide_txn`).

A profile is a reproducible generator: the same setting and the same answers give the same requests. It sends nothing
and looks at no clock. Whoever sends asks each client for its next request, at an instant of the schedule, and tells it
how each ended.

    >>> profile = load("register", Setting(run="run1", seed=7, clients=1, keys=5))
    >>> profile.client(0).next(1, at_s=0.0) is not None
    True
"""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

from etcdops.errors import SpecError
from etcdops.workload.profiles.base import Client, Profile, Setting

__all__ = ["KINDS", "PROFILES", "Client", "Pace", "Profile", "Setting", "load", "pace_of"]

#: Every profile, with what its clients do.
PROFILES = {
    "register": "reads, writes, compare-and-swaps and deletes of one key at a time, few enough to be searched",
    "set": "every write adds a key that is never deleted, and reads list them",
    "append": "transactions that read lists and append to them",
    "mixed": "everything at once: puts, reads, deletes, transactions, list-appends, leases",
    "wide-txn": "transactions whose comparisons span thousands of keys",
    "lease": "keys with leases that are kept alive, revoked, or left to end",
    "lock": "clients that take turns to raise a counter under a lock",
    "watch": "mixed, with more watches on parts of the keys",
}


class Pace(NamedTuple):
    """How quick a run with a profile is unless it is told otherwise.

    `rate` is of each probe and `client_rate` of each client, both per second; `deadline_s` ends each operation.
    """

    rate: int = 100
    client_rate: int = 20
    deadline_s: float = 1.0


#: Profiles whose operations are so dear to the members that a pace as ever would have them do nothing else.
_PACES = {"wide-txn": Pace(rate=10, client_rate=8, deadline_s=2.0)}


def pace_of(name: str) -> Pace:
    """Give the pace of the profile `name`."""
    return _PACES.get(name, Pace())


#: The kinds of operations that clients of each ask so often that a run in which none was acknowledged proves little.
KINDS: dict[str, tuple[str, ...]] = {
    "register": ("put", "range", "txn"),
    "set": ("range",),
    "append": ("txn",),
    "mixed": ("put", "range", "txn"),
    "wide-txn": ("txn",),
    "lease": ("put", "range"),
    "lock": ("txn",),
    "watch": ("put", "range", "txn"),
}


def load(name: str, setting: Setting) -> Profile:
    """Give the profile `name` for one run. Raises SpecError for one that there is not."""
    if name not in PROFILES:
        raise SpecError(f"there is no profile {name!r}", remedy=f"Choose one of {', '.join(PROFILES)}.")
    module = import_module(f"etcdops.workload.profiles.{name.replace('-', '_')}")
    profile: Profile = module.make(setting)
    return profile
