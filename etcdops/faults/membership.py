"""What drills do to who is a member: members that are added for a while, and members whose disk is lost.

Both are on record from before they are done, as every fault is, so that whoever heals knows what to put right: a member
that was added for a while is removed again, and one whose disk was lost is replaced.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from etcdops.errors import EtcdopsError, HealFailed, Refused
from etcdops.interrupts import deferred

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.operations.plan import Plan
    from etcdops.state import MemberRecord

__all__ = ["EXTRA", "WIPED", "ExtraMembers", "Shown", "extra_members", "put_members_right", "wiped"]

#: The marks of what is on record: members that are there for a while, and one whose disk is lost.
EXTRA = "members added for a while"
WIPED = "disk lost"

Progress = Callable[[str], None]

#: How long healing goes on trying, and between two tries, seconds.
_PATIENCE_S, _PAUSE_S = 30.0, 0.5


class Shown:
    """Tells of the steps of a plan, each with its plain command, as they are taken."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._commands: dict[str, str] = {}

    def confirm(self, plan: Plan) -> None:
        """Take note of a plan that is about to be carried out."""
        steps = enumerate(plan.steps, start=1)
        self._commands = {f"{number}/{len(plan.steps)} {step.text}": step.by_hand for number, step in steps}

    def progress(self, text: str) -> None:
        """Say what is going on; of a step, the command too."""
        command = self._commands.get(text, "")
        self._progress(text + (f"\n      $ {command}" if command else ""))


class ExtraMembers:
    """Members that a run adds, and removes again. `names` are those that are there, in the order of their coming."""

    def __init__(self, cluster: Cluster, run: str, progress: Progress) -> None:
        self.names: list[str] = []
        self._generations: list[str] = []
        self._cluster = cluster
        self._run = run
        self._shown = Shown(progress)

    def next_name(self) -> str:
        """Give the name that the next one gets."""
        from etcdops.operations.membership import new_member

        return new_member(self._cluster.record).name

    def add(self) -> None:
        """Add one, by a learner that is promoted. Raises as `Cluster.add_member` does."""
        name = self.next_name()
        with deferred():
            self.names.append(name)
            self._generations.append(f"{name}-g{self._cluster.record.next_generation(name)}")
            _mark(self._cluster, self._run, EXTRA, self.names)
        self._cluster.add_member(name, allow_known_bad=True, confirm=self._shown.confirm, progress=self._shown.progress)

    def remove(self, name: str) -> None:
        """Remove one. Raises as `Cluster.remove_member` does."""
        cluster = self._cluster
        cluster.remove_member(name, allow_known_bad=True, confirm=self._shown.confirm, progress=self._shown.progress)
        with deferred():
            self.names.remove(name)
            _mark(cluster, self._run, EXTRA, self.names)

    def forget_data(self) -> None:
        """Delete the data of all that were there: the members that stay hold every key."""
        for generation in self._generations:
            _forget_data(self._cluster, generation)


@contextmanager
def extra_members(cluster: Cluster, run: str, *, progress: Progress) -> Iterator[ExtraMembers]:
    """Let members be added inside the block; those that are there at its end are removed, whatever happened.

    The caller holds the cluster's lock. Raises HealFailed when one cannot be removed.
    """
    extra = ExtraMembers(cluster, run, progress)
    try:
        yield extra
    finally:
        with deferred():
            _put_right(cluster, run, progress)
            extra.forget_data()


@contextmanager
def wiped(cluster: Cluster, name: str, run: str, *, progress: Progress) -> Iterator[None]:
    """Kill a member and remove its data, all of it; it is replaced at the end of the block if it is not by then.

    Only one copy goes, as every member holds every key. The caller holds the cluster's lock. Raises HealFailed when the
    member cannot be replaced.
    """
    member = cluster.record.member(name)
    try:
        with deferred():
            _mark(cluster, run, WIPED, [name])
            _wipe(cluster, member)
        yield
    finally:
        with deferred():
            now = cluster.record.member(name)
            if now.data == member.data and not cluster.runtime.lost_data(cluster.record, [name]):
                # It was started after all, on what is not the data of any member.
                _wipe(cluster, now)
            _put_right(cluster, run, progress)
            _forget_data(cluster, f"{name}-g{member.data.generation}")


def _wipe(cluster: Cluster, member: MemberRecord) -> None:
    cluster.member(member.name).kill()
    # A container that is stopped still holds its volume.
    cluster.runtime.forget(cluster.record, member.name)
    cluster.runtime.remove_data(cluster.record, [member.data])


def put_members_right(cluster: Cluster, *, progress: Progress = lambda text: None) -> list[str]:
    """Undo what a run has done to who is a member, as far as it is on record; give what was done, for a person.

    The caller holds the cluster's lock, and every other member runs. Raises HealFailed with what is still to be done.
    """
    fault = cluster.store.unhealed(cluster.name)
    if fault is None or fault.fault not in (EXTRA, WIPED):
        return []
    # It is this process's to put right from now on: what a dead run left would bar the operations that do it.
    _mark(cluster, fault.run, fault.fault, [fault.member])
    done = []
    names = [name for name in fault.member.split(", ") if name]
    for name in reversed(names):
        try:
            said = _patiently(_remove if fault.fault == EXTRA else _replace, cluster, name, progress)
        except EtcdopsError as error:
            verb = "member.remove" if fault.fault == EXTRA else "member.replace"
            raise HealFailed(
                f"what run {fault.run} did to {name} ({fault.fault}) could not be undone: {error}",
                remedy=f"{error.remedy} `{verb} {name}` does it; then type `heal`.".strip(),
            ) from error
        if said:
            done.append(said)
    return done


def _put_right(cluster: Cluster, run: str, progress: Progress) -> None:
    from etcdops.faults.heal import NO_FAULT, mark

    put_members_right(cluster, progress=progress)
    mark(cluster, run, NO_FAULT, "")


def _mark(cluster: Cluster, run: str, kind: str, names: list[str]) -> None:
    from etcdops.faults.heal import NO_FAULT, mark

    mark(cluster, run, kind if names else NO_FAULT, ", ".join(names))


def _patiently(undo: Callable[[Cluster, str, Progress], str], cluster: Cluster, name: str, progress: Progress) -> str:
    """Undo something, again and again for a while where that is refused or does not come to its end.

    Whatever is done is not done twice; and what the gate refuses now may only be that a member is busy.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return undo(cluster, name, progress)
        except EtcdopsError as error:
            if time.monotonic() > deadline:
                raise
            progress(f"not yet: {error}")
            time.sleep(_PAUSE_S)


def _remove(cluster: Cluster, name: str, progress: Progress) -> str:
    """Remove a member that was added for a while, however far that has come."""
    from etcdops.operations import pending

    begun = pending.load(cluster)
    if begun is not None and begun.target == name and begun.operation == "member.add":
        try:
            cluster.undo(progress=progress)
        except Refused:
            # It is a voter already, so that its addition can only be brought to its end.
            cluster.add_member(name, allow_known_bad=True, progress=progress)
        begun = None
    if name in cluster.record.spec.names or (begun is not None and begun.target == name):
        cluster.remove_member(name, allow_known_bad=True, progress=progress)
        return f"{name} had been added for a while and was removed"
    return ""


def _replace(cluster: Cluster, name: str, progress: Progress) -> str:
    from etcdops.operations import pending

    record = cluster.record
    begun = pending.load(cluster)
    if (begun is not None and begun.target == name) or cluster.runtime.lost_data(record, [name]):
        cluster.replace_member(name, allow_known_bad=True, progress=progress)
        return f"the disk of {name} was lost, and it was replaced"
    return ""


def _forget_data(cluster: Cluster, generation: str) -> None:
    """Delete a generation of data that is kept, if it is."""
    from etcdops.operations import data

    if any(f"{each.member}-g{each.data.generation}" == generation for each in cluster.record.retired):
        data.remove(cluster, [generation])
