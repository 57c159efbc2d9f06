"""W5: all members hold the same keys and told of the same events.

Their HashKV is equal at one revision and one compact revision, and what two of them delivered of one revision is
identical.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from etcdops.verify import Check

__all__ = ["NAME", "MemberHash", "add_logs", "check_members_agree"]

NAME = "members agree"


class MemberHash(msgspec.Struct, frozen=True):
    """A member's answer to HashKV: the hash over its keys up to `revision`, or why there is none in `error`.

    `revision` is the revision that was hashed (`HashKV.hash_revision` of `etcdops.calls`), not the member's newest.
    """

    hash: int = 0
    revision: int = 0
    compact_revision: int = 0
    error: str = ""


def check_members_agree(hashes: Mapping[str, MemberHash]) -> Check:
    """Give the check over all members that should hold the data: {member: answer}.

    Two hashes compare only at equal revisions and equal compact revisions; members that differ in these, a call that
    failed, and no members at all make it inconclusive. (etcd's own tests missed the data inconsistency of 3.5.0 since
    they took a failed call for agreement: etcd's Documentation/postmortems/v3.5-data-inconsistency.md.)
    """
    errors = {member: answer.error for member, answer in hashes.items() if answer.error}
    answers = {member: answer for member, answer in hashes.items() if not answer.error}

    groups: dict[tuple[int, int], dict[int, list[str]]] = {}
    for member, answer in answers.items():
        comparable = groups.setdefault((answer.revision, answer.compact_revision), {})
        comparable.setdefault(answer.hash, []).append(member)
    for (revision, compact_revision), by_hash in groups.items():
        if len(by_hash) > 1:
            sides = "; ".join(f"{', '.join(members)}: {hash_:08x}" for hash_, members in by_hash.items())
            where = f"revision {revision}, compact revision {compact_revision}"
            return Check(NAME, "failed", f"members hold different data at {where}: {sides}")

    if errors:
        texts = "; ".join(f"{member}: {error}" for member, error in errors.items())
        return Check(NAME, "inconclusive", f"HashKV failed: {texts}")
    if not answers:
        return Check(NAME, "inconclusive", "no member was asked for its hash")
    if len(groups) > 1:
        where = "; ".join(
            f"{member}: revision {answer.revision}, compact revision {answer.compact_revision}"
            for member, answer in answers.items()
        )
        return Check(NAME, "inconclusive", f"the members' hashes cannot be compared: {where}")
    ((revision, compact_revision),) = groups
    (hash_,) = groups[revision, compact_revision]
    detail = f"{', '.join(answers)}: hash {hash_:08x} at revision {revision}, compact revision {compact_revision}"
    return Check(NAME, "passed", detail)


def add_logs(check: Check, differences: Sequence[str], compared: int) -> Check:
    """Give the check of hashes with what comparing the members' logs of `compared` revisions found added to it."""
    if differences:
        also = "" if check.result == "passed" else f"; {check.detail}"
        return Check(NAME, "failed", f"members told of different events: {'; '.join(differences)}{also}")
    return Check(NAME, check.result, f"{check.detail}; what they delivered of {compared} revisions is identical")
