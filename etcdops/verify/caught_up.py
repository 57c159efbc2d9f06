"""A member that was away has caught up: it has applied what the leader had, in the same term, under that leader."""

from __future__ import annotations

import msgspec

from etcdops.verify import Check

__all__ = ["NAME", "MemberView", "check_caught_up"]

NAME = "caught up"


class MemberView(msgspec.Struct, frozen=True):
    """What one member says of itself (its Status), or why it does not in `error`. `leader` 0: it knows of none."""

    member: str
    member_id: int = 0
    leader: int = 0
    raft_term: int = 0
    raft_applied_index: int = 0
    revision: int = 0
    error: str = ""


def check_caught_up(view: MemberView, leader: MemberView) -> Check:
    """Give the check of the member seen in `view` against `leader`, the leader's own view, taken *before* it.

    It fails when the member does not answer, is behind the leader's view, is in an earlier term or does not see that
    leader. It is inconclusive when the leader's view is missing or not a leader's, or when the member has seen a later
    term: then the leader has changed in between, and both must be looked at again.
    """
    if leader.error:
        return Check(NAME, "inconclusive", f"the leader {leader.member} could not be asked: {leader.error}")
    if not leader.member_id or leader.leader != leader.member_id:
        return Check(NAME, "inconclusive", f"{leader.member} was not the leader when it was asked")
    if view.error:
        return Check(NAME, "failed", f"{view.member} does not answer: {view.error}")
    if view.raft_term > leader.raft_term:
        return Check(
            NAME,
            "inconclusive",
            f"{view.member} is in term {view.raft_term}, after term {leader.raft_term} in which {leader.member} led",
        )
    problems: list[str] = []
    if view.raft_term < leader.raft_term:
        problems.append(f"it is in term {view.raft_term}, the leader in {leader.raft_term}")
    if view.leader != leader.member_id:
        sees = f"it takes {view.leader:x} for the leader, not" if view.leader else "it sees no leader, which is"
        problems.append(f"{sees} {leader.member} ({leader.member_id:x})")
    if view.revision < leader.revision:
        problems.append(f"its revision is {view.revision}, the leader's was {leader.revision}")
    if view.raft_applied_index < leader.raft_applied_index:
        problems.append(f"it has applied index {view.raft_applied_index}, the leader had {leader.raft_applied_index}")
    if problems:
        return Check(NAME, "failed", f"{view.member} has not caught up: " + "; ".join(problems))
    return Check(
        NAME,
        "passed",
        f"{view.member} has reached revision {leader.revision} and applied index {leader.raft_applied_index} of"
        f" {leader.member}, term {leader.raft_term}",
    )
