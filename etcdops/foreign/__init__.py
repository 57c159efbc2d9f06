"""Clusters that somebody else runs: etcdops knows where they are reached, and has no hand on their processes.

This module says which they are, and refuses what cannot be done to them. It imports next to nothing, as `ctl` and
every operation pass by. How one is recorded is in `etcdops.foreign.attaching`.
"""

from __future__ import annotations

from etcdops.errors import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from etcdops.state import ClusterRecord

__all__ = [
    "FORGET",
    "RUNTIME",
    "WHERE_IT_RUNS",
    "WHERE_THEY_RUN",
    "bring_back",
    "is_foreign",
    "refuse_foreign",
    "refused",
]

#: The runtime of such a cluster, as it is recorded.
RUNTIME = "attached"

_BY = "by systemd, Kubernetes, Docker or the like"

#: What to do instead, whatever it was: it is done there.
WHERE_IT_RUNS = f"where it runs, {_BY}"
WHERE_THEY_RUN = f"where they run, {_BY}"

#: What can be done instead of stopping such a cluster.
FORGET = f"Stop its members {WHERE_THEY_RUN}. `down-env --purge` forgets the cluster, and touches nothing of it."


def is_foreign(record: ClusterRecord) -> bool:
    """Whether somebody else runs this cluster: it was attached by its endpoints."""
    return record.runtime == RUNTIME


def refuse_foreign(record: ClusterRecord, what: str, *, target: str = "", remedy: str = "") -> None:
    """Raise Refused if somebody else runs this cluster: `what` needs its processes, those of `target` or of all."""
    if is_foreign(record):
        raise refused(what, target=target, cluster=record.spec.name, remedy=remedy)


def bring_back(foreign: bool, otherwise: str) -> str:
    """Give the remedy for members that are missing: `otherwise`, unless somebody else runs them."""
    return f"Bring back who is missing {WHERE_THEY_RUN}." if foreign else otherwise


def refused(what: str, *, target: str = "", cluster: str = "", remedy: str = "") -> Refused:
    """Give the refusal of what needs processes, data or logs that are not etcdops'."""
    it = target or f"the members of {cluster}"
    return Refused(
        f"{what} is refused: etcdops did not start {it}, and has no hand on what runs there",
        remedy=(remedy or f"Do it {WHERE_IT_RUNS if target else WHERE_THEY_RUN}.") + " Nothing was changed.",
    )
