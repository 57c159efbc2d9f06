"""The gate before an operation, and after it: what forbids it, and that the cluster is well again."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from etcdops import checks, quorum, versions
from etcdops.errors import Refused, WaitTimeout
from etcdops.facts import Facts, collect
from etcdops.findings import Finding

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.status import ClusterStatus

__all__ = ["DOWN", "PATIENCE_S", "look", "refuse_bad_versions", "refuse_unhealthy", "settled", "without_data"]

#: The findings that say of a member that it is not up.
DOWN = frozenset(
    (
        "member-stopped",
        "member-data-gone",
        "member-frozen",
        "member-isolated",
        "member-unreachable",
        "member-not-serving",
    )
)

#: How long a member may take to serve, and the others to agree again.
PATIENCE_S = 30.0

_ELECTIONS = 10


def look(cluster: Cluster, *, gap_s: float = 0.0) -> Facts:
    """Collect the facts for an operation; an election under way is waited for, ten election timeouts at most."""
    deadline = time.monotonic() + _ELECTIONS * cluster.record.spec.timing.election_ms / 1000
    while True:
        facts = collect(cluster.record, cluster.runtime, gap_s=gap_s)
        there, everyone = quorum.answering(facts), quorum.voters(facts)
        settled_now = len(quorum.up(facts)) == len(there) and quorum.member_list(facts) is not None
        electing = len(there) > len(everyone) // 2 and not settled_now
        if not electing or time.monotonic() > deadline:
            return facts
        time.sleep(0.05)


def refuse_unhealthy(
    facts: Facts,
    operation: str,
    *,
    about: str = "",
    ignoring: Collection[str] = (),
    remedies: dict[str, str] | None = None,
) -> None:
    """Raise Refused if the gate finds an error, except about the member `about` and those whose codes are `ignoring`.

    With authentication on, etcd would refuse what etcdops asks, and that is said first. `remedies` says for a code
    what else helps, with {name} for the member.
    """
    if facts.auth:
        raise Refused(
            f"{operation} of {facts.cluster} is refused: authentication is on, and etcdops has no user",
            remedy="`ctl -- --user root` asks for the password, and does what etcdctl can do. Nothing was changed.",
        )
    found = [
        finding
        for finding in checks.findings(facts)
        if finding.severity == "error" and finding.code not in ignoring and not (about and finding.member == about)
    ]
    if not found:
        return
    known = remedies or {}
    more = [known[finding.code].format(name=finding.member) for finding in found if finding.code in known]
    raise Refused(
        f"{operation} of {facts.cluster} is refused: {'; '.join(finding.message for finding in found)}",
        remedy=" ".join(dict.fromkeys([*(finding.remedy for finding in found if finding.remedy), *more]))
        + " Nothing was changed.",
    )


def refuse_bad_versions(facts: Facts, operation: str, *, allow: bool, ruled_out: Collection[str] = ()) -> None:
    """Raise Refused if a member's version spoils `operation`, unless that is allowed.

    `ruled_out` are conditions (see `versions.KnownBad.needs`) that the plan itself keeps from being met.
    """
    told = {member.status.version for member in facts.members if member.status}
    for version in sorted(told or ({facts.etcd_version} - {""})):
        excluded = quorum.excluded(facts) | frozenset(ruled_out)
        versions.refuse_known_bad(version, operation, allow=allow, excluded=excluded)


def without_data(names: Sequence[str]) -> Refused:
    """Give the refusal to start members that have run before, and whose data is gone.

    Without what its log held a member may vote twice in a term. That is why etcd has one whose disk is lost removed,
    and another added (https://etcd.io/docs/v3.5/op-guide/runtime-configuration/).
    """
    remedies = " ".join(f"`member.replace {name}` puts a new member in its place." for name in names)
    return Refused(
        f"the data of {' and '.join(names)} is gone: started so, a member would come back under its old id without what"
        " it has promised to keep",
        remedy=f"{remedies} Nothing was started.",
    )


def settled(
    cluster: Cluster, before: Sequence[Finding] = (), *, about: str = "", timeout_s: float = PATIENCE_S
) -> ClusterStatus:
    """Wait until one leads and the gate finds no error that was not there `before`; give the status then.

    Errors about the member `about` do not count. Raises WaitTimeout, naming what is found, after `timeout_s` seconds.
    """
    known = {(finding.code, finding.member) for finding in before}
    deadline = time.monotonic() + timeout_s
    while True:
        status = cluster.status()
        new = [f for f in status.blockers if (f.code, f.member) not in known and not (about and f.member == about)]
        # With authentication on, nobody may say who leads.
        if not new and (status.leader or any(finding.code == "auth" for finding in status.warnings)):
            return status
        if time.monotonic() > deadline:
            said = "; ".join(finding.message for finding in new) or "no member leads"
            raise WaitTimeout(
                f"{cluster.name} has not settled within {timeout_s:.0f} s: {said}",
                remedy=" ".join(finding.remedy for finding in new) or "Look at `status`.",
            )
        time.sleep(0.05)
