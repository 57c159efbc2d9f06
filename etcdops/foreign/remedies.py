"""What to do about a finding where somebody else runs the members: etcdops cannot start them, or read their logs."""

from __future__ import annotations

import msgspec

from etcdops.findings import Finding
from etcdops.foreign import WHERE_IT_RUNS, WHERE_THEY_RUN

__all__ = ["elsewhere"]

_LOOK = f"Look at it, and at its log, {WHERE_IT_RUNS}."

#: By code. A code that is missing here has the same remedy wherever members run.
_REMEDIES = {
    "no-quorum": f"Bring back who is missing {WHERE_THEY_RUN}.",
    "quorum-at-risk": f"Bring back who is missing {WHERE_THEY_RUN}.",
    "member-unreachable": f"{_LOOK} If it is reached at another address: `cluster.attach --endpoints URL` again.",
    "member-not-serving": f"It may not reach its peers. {_LOOK}",
    "member-lists-differ": "Look again, as a change may be under way; if it stays, see the logs of the minority.",
    "member-unstarted": f"Start it {WHERE_IT_RUNS}; or take it back: `ctl -- member remove ID`.",
    "member-unknown": "`cluster.attach` again records it, and looks whether it is up.",
    "member-removed": "`cluster.attach` again forgets it.",
    "cluster-id": "An address leads to another cluster: `cluster.attach` again says which.",
    "behind": f"See its disk and its network. {_LOOK}",
}


def elsewhere(finding: Finding) -> Finding:
    """Give a finding with a remedy that can be followed without etcdops' hand on the members."""
    remedy = _REMEDIES.get(finding.code)
    return finding if remedy is None else msgspec.structs.replace(finding, remedy=remedy)
