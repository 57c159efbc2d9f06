"""Every check over a window of a run, in the order in which people read them.

They are pure: the same record gives the same verdict, at the end of the drill and from its folder at any time later.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from etcdops.verify import Check
from etcdops.verify.acknowledged import Writes, check_acknowledged
from etcdops.verify.activity import Minimum, check_activity
from etcdops.verify.lease import check_leases
from etcdops.verify.linearizability import check_search
from etcdops.verify.lock import check_locks, is_fenced
from etcdops.verify.logs import ALLOWED, Allowed, check_logs
from etcdops.verify.members_agree import add_logs, check_members_agree
from etcdops.verify.recorded import Recorded
from etcdops.verify.watch import check_watch
from etcdops.verify.witness import Witness, witness
from etcdops.workload.outage import fault_window

__all__ = ["CHECKS", "Judgement", "check_members", "judge"]


class Judgement(NamedTuple):
    """The checks of a window, in the order in which they are shown, what became of its writes, and the witness."""

    checks: tuple[Check, ...]
    writes: Writes
    witness: Witness


def check_members(recorded: Recorded, found: Witness) -> Check:
    """Give the check that members agree (W5): their hashes, and what they delivered."""
    check = check_members_agree(recorded.observed.hashes)
    if found.part is None:
        return check
    log = found.part.log
    return add_logs(check, [str(one) for one in found.part.mismatches], log.end - log.base)


def check_lives(recorded: Recorded, found: Witness) -> Check | None:
    """Give the check of the leases, None where none was asked for."""
    return check_leases(recorded) if recorded.columns.operations.of_kind("grant").any() else None


def check_turns(recorded: Recorded, found: Witness) -> Check | None:
    """Give the check of the lock, None where nobody asked for one."""
    fenced = is_fenced(recorded)
    return None if fenced is None else check_locks(recorded, fenced=fenced)


#: The checks over the record alone, each of a window and of what the witness found in it; one that has nothing to look
#: at gives None. A further one is added here.
CHECKS: tuple[Callable[[Recorded, Witness], Check | None], ...] = (
    check_search,
    check_watch,
    check_members,
    check_lives,
    check_turns,
)


def judge(
    recorded: Recorded,
    *,
    logs: Mapping[str, Iterable[str] | None],
    minimum: Minimum | None = None,
    kinds: Collection[str] = (),
    allowed: Sequence[Allowed] = ALLOWED,
) -> Judgement:
    """Give what every check says of a window.

    `logs` are the members' logs since it began (see `check_logs`), of which `allowed` do not count; `minimum` and
    `kinds` say how much must have happened (see `check_activity`).
    """
    observed = recorded.observed
    found = witness(recorded)
    acknowledged, writes = check_acknowledged(recorded, found)
    looked = (check(recorded, found) for check in CHECKS)
    checks = [acknowledged, found.check, *(check for check in looked if check), check_logs(logs, allowed)]
    if observed.faults:
        inject_ns, heal_ns, _ = fault_window(observed.faults)
        checks.append(
            check_activity(recorded.columns, inject_ns=inject_ns, heal_ns=heal_ns, minimum=minimum, kinds=kinds)
        )
    elif observed.restored:
        checks.append(check_activity(recorded.columns, inject_ns=0, heal_ns=0, minimum=minimum))
    return Judgement(tuple(checks), writes, found)
