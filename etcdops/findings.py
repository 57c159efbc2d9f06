"""Findings: what the gate says, each with a code that is a promise to programs."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

__all__ = ["CODES", "Finding", "by_severity"]

#: Every code, and how grave it is. "error": what changes the cluster is refused until it is gone, unless it is about
#: the very member that is being helped. "warning": a person should know. "info": only said. What follows a colon in a
#: code ("known-bad:etcd-13766") says which one of many.
CODES = {
    "no-quorum": "error",
    "no-leader": "error",
    "quorum-at-risk": "error",
    "member-stopped": "error",
    "member-data-gone": "error",
    "member-frozen": "error",
    "member-isolated": "error",
    "member-unreachable": "error",
    "member-not-serving": "error",
    "cluster-id": "error",
    "member-lists-differ": "error",
    "member-unstarted": "error",
    "learner-pending": "error",
    "member-unknown": "warning",
    "member-removed": "error",
    "two-leaders": "error",
    "terms-differ": "error",
    "behind": "error",
    "diverged": "error",
    "alarm-nospace": "error",
    "alarm-corrupt": "error",
    "mixed-minors": "error",
    "no-snapshot": "error",
    "operation-unfinished": "warning",
    "unhealed-run": "error",
    "run-in-progress": "info",
    "amiss": "warning",
    "hosts-cut": "warning",
    "changed-elsewhere": "info",
    "auth": "warning",
    "even-size": "warning",
    "quota-high": "warning",
    "fragmented": "warning",
    "known-bad": "warning",
    "certificate-expired": "error",
    "certificate-expiring": "warning",
}

_RANKS = ("error", "warning", "info")


class Finding(msgspec.Struct, frozen=True):
    """Something that a person should know, with a code that a program can match (see CODES).

    `severity` is "error", "warning" or "info"; `member` is "" for what concerns the cluster; `remedy` says what to do,
    or is "" where there is nothing to be done.
    """

    code: str
    message: str
    severity: str = "warning"
    member: str = ""
    remedy: str = ""

    @classmethod
    def of(cls, code: str, message: str, *, member: str = "", remedy: str = "") -> Finding:
        """Give a finding as grave as its code is; raises KeyError for a code that is not in CODES."""
        return cls(code, message, CODES[code.partition(":")[0]], member, remedy)

    def __str__(self) -> str:
        return f"{self.severity} {self.code}: {self.message}" + (f" -> {self.remedy}" if self.remedy else "")


def by_severity(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Give findings with the gravest first, and otherwise in their order."""
    return tuple(sorted(found, key=lambda finding: _RANKS.index(finding.severity)))
