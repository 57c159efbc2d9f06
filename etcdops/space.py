"""How much space each member's database takes, of how much: pure functions over collected facts.

A database's file (`db_size`) never shrinks by itself. What was deleted and compacted away leaves free pages in it,
which are used again; defragmenting gives them back. The space quota is compared with the file's size, not with what is
in use, so a full member is cured only by defragmenting (etcd#16779).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from etcdops import versions
from etcdops.units import size_text

if TYPE_CHECKING:
    from etcdops.facts import Facts

__all__ = ["DEFAULT_QUOTA_BYTES", "FULL_PERCENT", "DefragRule", "Judged", "Space", "measure"]

_MIB = 2**20

#: etcd's space quota where none is set (https://etcd.io/docs/v3.5/op-guide/maintenance/#space-quota).
DEFAULT_QUOTA_BYTES = 2 * 2**30

#: The part of the quota, in percent, beyond which a member is as good as full; below it, an alarm may be disarmed.
FULL_PERCENT = 80


class Space(NamedTuple):
    """A member's database, in bytes: its file, what is in use of it, and the quota (0: there is none).

    `quota_from` says where the quota is known from: "status", "metrics", "spec" (as it was created) or "default".
    `disk_free` is what is free where the database lies, None where that cannot be looked at from here.
    """

    member: str
    role: str
    db_size: int
    in_use: int
    quota: int = DEFAULT_QUOTA_BYTES
    quota_from: str = "default"
    disk_free: int | None = None

    @property
    def free(self) -> int:
        """What defragmenting would give back, about."""
        return max(self.db_size - self.in_use, 0)

    @property
    def used_percent(self) -> float:
        """How much of the quota the file takes, in percent; 0 without a quota."""
        return 100 * self.db_size / self.quota if self.quota > 0 else 0.0

    @property
    def full(self) -> bool:
        """Whether it is too near to the quota for an alarm to be disarmed."""
        return self.used_percent >= FULL_PERCENT

    def __str__(self) -> str:
        of = f" of {size_text(self.quota)}" if self.quota > 0 else ""
        return f"{size_text(self.db_size)}{of}, {size_text(self.in_use)} in use"


class Judged(NamedTuple):
    """A member's database, and whether it is to be defragmented, with the reason in words."""

    space: Space
    chosen: bool
    reason: str


class DefragRule(NamedTuple):
    """When a defragmentation is worth the time in which the member does not serve.

    At `free_bytes` that would be given back; or, above `used_percent` of the quota, at `least_bytes` already (the rule
    of cozystack's etcd operator). `everyone` takes every voter, whatever there is to gain.
    """

    free_bytes: int = 200 * _MIB
    used_percent: float = FULL_PERCENT
    least_bytes: int = 32 * _MIB
    everyone: bool = False

    def judge(self, space: Space) -> Judged:
        """Say of a member whether it is to be defragmented, and why, or why not."""
        free, use = size_text(space.free), f"{space.used_percent:.0f} % of the quota"
        if space.role == "learner":
            return Judged(space, False, "a learner: etcd defragments none")
        if self.everyone:
            return Judged(space, True, f"all are asked for; {free} free")
        if space.free >= self.free_bytes:
            return Judged(space, True, f"{free} free: at least {size_text(self.free_bytes)}")
        if space.used_percent > self.used_percent and space.free >= self.least_bytes:
            return Judged(space, True, f"{free} free, at {use}: at least {size_text(self.least_bytes)}")
        if space.used_percent > self.used_percent:
            return Judged(space, False, f"only {free} free at {use}: that would gain little")
        return Judged(space, False, f"only {free} free: less than {size_text(self.free_bytes)}, at {use}")


def measure(
    facts: Facts, quotas: Mapping[str, int] | None = None, disks: Mapping[str, int] | None = None
) -> tuple[Space, ...]:
    """Give the database of every member that told its status, in order of creation.

    A quota is what the member itself says where its version says it right, else what `quotas` has for it (from its
    metrics), else what the cluster was created with, else etcd's default. `disks` is what is free on members' disks.
    """
    found = []
    for member in facts.members:
        status = member.status
        if status is None:
            continue
        quota, known_from = facts.quota_bytes or DEFAULT_QUOTA_BYTES, "spec" if facts.quota_bytes else "default"
        if quotas and member.name in quotas:
            quota, known_from = quotas[member.name], "metrics"
        if status.db_size_quota and versions.supports(status.version, "status_quota_right"):
            quota, known_from = status.db_size_quota, "status"
        role = "learner" if status.is_learner else "leader" if status.leader == status.member_id else "follower"
        disk_free = disks.get(member.name) if disks else None
        found.append(Space(member.name, role, status.db_size, status.db_size_in_use, quota, known_from, disk_free))
    return tuple(found)
