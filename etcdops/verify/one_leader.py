"""One leader a term, as Raft promises, by what every member said while it was asked again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from etcdops.answers import hex_id
from etcdops.verify import Check
from etcdops.verify.recorded import Claim

__all__ = ["NAME", "check_one_leader"]

NAME = "one leader a term"


class _Tenure(NamedTuple):
    """One member's view of one leader: from when to when, the terms at its beginning and at its end."""

    leader: int
    since_ns: int
    until_ns: int
    first_term: int
    term: int


def _tenures(claims: list[Claim], until_ns: int) -> list[_Tenure]:
    """Give one member's claims as tenures, those during which it knew of no leader left out."""
    found: list[_Tenure] = []
    for claim, following in zip(claims, [*claims[1:], None], strict=True):
        end = following.t_ns if following else until_ns
        last = found[-1] if found else None
        if last and last.leader == claim.leader and last.until_ns == claim.t_ns:
            found[-1] = last._replace(until_ns=end, term=claim.term)
        else:
            found.append(_Tenure(claim.leader, claim.t_ns, end, claim.term, claim.term))
    return [tenure for tenure in found if tenure.leader]


def check_one_leader(claims: Sequence[Claim], *, until_ns: int, patience_ns: int) -> Check:
    """Give the check that no term had two leaders, as Raft promises ("election safety", Ongaro and Ousterhout 2014).

    The term that etcd reports is that of the last entry which it has applied, so a new leader is named with the old
    term until its first entry is committed. A leader whose term did not rise is therefore held against a member only
    if that lasted longer than `patience_ns`; two election timeouts are enough, since a leader that commits nothing
    steps down after one. `until_ns` is when the watching ended.
    """
    leaders: dict[int, set[int]] = {}
    by_member: dict[str, list[Claim]] = {}
    for claim in claims:
        by_member.setdefault(claim.member, []).append(claim)
    for own in by_member.values():
        before = 0
        for tenure in _tenures(own, until_ns):
            if tenure.term > before or tenure.until_ns - tenure.since_ns > patience_ns:
                leaders.setdefault(tenure.term, set()).add(tenure.leader)
            before = tenure.term
    doubled = {term: ids for term, ids in leaders.items() if len(ids) > 1}
    if doubled:
        said = "; ".join(f"term {term}: {', '.join(map(hex_id, sorted(ids)))}" for term, ids in sorted(doubled.items()))
        return Check(NAME, "failed", f"members named different leaders in one term: {said}")
    if not leaders:
        return Check(NAME, "inconclusive", "no member ever named a leader")
    return Check(NAME, "passed", f"{len(leaders)} terms were seen, each with one leader")
