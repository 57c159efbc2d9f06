"""What each member was doing over the time of a run: leading, following, away; by what it said and what was broken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from etcdops.report.loading import LoadedRun, members_in

__all__ = ["STATES", "Segment", "lanes"]

#: What a member can be doing, as it is told.
STATES = {
    "leads": "leads",
    "follows": "follows",
    "leaderless": "knows of no leader",
    "away": "away",
    "changing": "comes or goes",
    "unknown": "not heard of",
}


#: What is done to who is a member, and takes no member away that there is.
_ADDED = "member.add"
_CHANGES = (_ADDED, "member.remove")


class Segment(NamedTuple):
    """What a member was doing from one instant to another, ns. `detail` is whom it followed, or what was done to it."""

    member: str
    state: str
    term: int
    detail: str
    from_ns: int
    until_ns: int


def lanes(run: LoadedRun, start_ns: int, end_ns: int) -> list[Segment]:
    """Give what each member was doing between two instants, by member and in order of time, without holes.

    What a member said of its leader holds until it said something else, or was taken away, or was asked no more as a
    window was closed; after that it is not known what it does until it says so. All that is not known is told as such.
    """
    return [each for member in run.members for each in _lane(run, member, start_ns, end_ns)]


def _lane(run: LoadedRun, member: str, start_ns: int, end_ns: int) -> list[Segment]:
    names = {number: name for _, each in run.windows if each for name, number in each.ids.items()}
    changes: list[tuple[int, str, int, str]] = [(start_ns, "unknown", 0, "")]
    for claim in run.claims:
        if claim.member != member:
            continue
        leader = names.get(claim.leader, f"{claim.leader:x}")
        state = "leaderless" if not claim.leader else "leads" if leader == member else "follows"
        changes.append((claim.t_ns, state, claim.term, leader if state == "follows" else ""))
    said = [t_ns for t_ns, *_ in changes[1:]]
    # After the last window nothing more was done.
    changes += [(each.until_ns, "unknown", 0, "") for _, each in run.windows[:-1] if each and each.until_ns]
    later = [min(claim.t_ns for claim in each.claims) for _, each in run.windows[1:] if each and each.claims]
    absences = []
    for fault in run.faults:
        if member in members_in(fault.member):
            # One that says something while it is being healed is back before that was seen, and so is one that does in
            # a later window, when all have been restored; one that is new is there.
            healing_ns = min([fault.healing_ns, *(since for since in later if since > fault.inject_ns)])
            if fault.kind == _ADDED:
                healing_ns = fault.inject_ns
            back = min([t for t in said if healing_ns <= t < fault.heal_ns], default=fault.heal_ns)
            absences.append((fault.inject_ns, max(back, fault.inject_ns), fault.kind))
    # While a member is away nothing that it says counts, and afterwards it has to say it again.
    told = [one for one in changes if not any(since <= one[0] < until for since, until, _ in absences)]
    for since, until, kind in absences:
        told += [(since, "changing" if kind in _CHANGES else "away", 0, kind), (until, "unknown", 0, "")]
    # Of what begins at one instant, a state that is known wins.
    told.sort(key=lambda one: (one[0], one[1] != "unknown"))
    return _segments(member, told, start_ns, end_ns)


def _segments(member: str, told: Sequence[tuple[int, str, int, str]], start_ns: int, end_ns: int) -> list[Segment]:
    found: list[Segment] = []
    for place, (since, state, term, detail) in enumerate(told):
        until = told[place + 1][0] if place + 1 < len(told) else end_ns
        since, until = max(since, start_ns), min(max(until, start_ns), end_ns)
        if since >= until:
            continue
        last = found[-1] if found else None
        if last and last[1:4] == (state, term, detail) and last.until_ns == since:
            found[-1] = last._replace(until_ns=until)
        else:
            found.append(Segment(member, state, term, detail, since, until))
    return found
