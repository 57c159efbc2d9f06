"""The operations on a cluster as methods of it, each of which loads what does it only when it is called."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.member import Member
    from etcdops.operations.compact import Compacted
    from etcdops.operations.defrag import DefragReport
    from etcdops.operations.nospace import NospaceReport
    from etcdops.operations.plan import Plan
    from etcdops.snapshots.restoring import Restored
    from etcdops.space import DefragRule

__all__ = ["Operations"]

Progress = Callable[[str], None]

#: Called with a plan before it is carried out, to show it; raises to stop it.
Confirm = Callable[["Plan"], None]


def _silent(text: str) -> None:
    pass


def _agreed(plan: Plan) -> None:
    pass


class Operations:
    """What `Cluster` inherits: operations that look first, refuse what is not safe, act, and prove what they did."""

    @property
    def _cluster(self) -> Cluster:
        return cast("Cluster", self)

    def move_leader(self, to: str = "", *, progress: Progress = _silent) -> Member:
        """Hand leadership over to the member `to`, or to the most advanced healthy voter, and give the one that leads.

        Done already where it leads. Raises SpecError for what is no member, Refused for a learner or one that does not
        serve, NoLeader or QuorumLost where nobody leads, EtcdError when the leader refuses, WaitTimeout when nobody is
        seen to have taken over.
        """
        from etcdops.operations.leader import move_leader

        return move_leader(self._cluster, to, progress=progress)

    def renew_certificates(
        self,
        names: Sequence[str] = (),
        *,
        dry_run: bool = False,
        confirm: Confirm = _agreed,
        progress: Progress = _silent,
    ) -> Plan:
        """Make new certificates and keys for members, or for all and the operator, and give the plan that did it.

        No member is started anew. Raises as `etcdops.tls.renewing.renew` does.
        """
        from etcdops.tls.renewing import renew

        return renew(self._cluster, names, dry_run=dry_run, confirm=confirm, progress=progress)

    def restore(self, path: str | os.PathLike[str], *, bump: bool = True, progress: Progress = _silent) -> Restored:
        """Give every member the data of a snapshot, and say what was proved; see `etcdops.snapshots.restoring`.

        What was written after the snapshot is lost. What the members had is kept: `rollback` takes it back.
        """
        from etcdops.snapshots.restoring import restore_snapshot

        return restore_snapshot(self._cluster, path, bump=bump, progress=progress)

    def recover(self, *, lost: Sequence[str] = (), progress: Progress = _silent) -> Restored:
        """Make all members anew from the survivor that is furthest, where the quorum is lost for good.

        What may be lost by it is in the plan of `etcdops.snapshots.recovering.prepare_recover`. `lost` names members
        that are given up. What the members had is kept.
        """
        from etcdops.snapshots.recovering import recover

        return recover(self._cluster, lost=lost, progress=progress)

    def rollback(self, *, progress: Progress = _silent) -> str:
        """Take the last restore back, or one that was interrupted, and say how things are then."""
        from etcdops.snapshots.taking_back import rollback

        return rollback(self._cluster, progress=progress)

    def add_member(
        self,
        name: str = "",
        *,
        host: str = "",
        cert: str = "",
        key: str = "",
        allow_known_bad: bool = False,
        dry_run: bool = False,
        confirm: Confirm = _agreed,
        progress: Progress = _silent,
    ) -> Plan:
        """Add a member, by a learner that is promoted when it has all data, and give the plan that did it.

        `name` "" means the first usual name that is free, `host` "" the one with the fewest members where there are
        several. Raises as `etcdops.operations.reconfigure.add` does.
        """
        from etcdops.operations import reconfigure

        return reconfigure.add(
            self._cluster,
            name,
            host=host,
            cert=cert,
            key=key,
            allow_known_bad=allow_known_bad,
            dry_run=dry_run,
            confirm=confirm,
            progress=progress,
        )

    def remove_member(
        self,
        name: str,
        *,
        allow_known_bad: bool = False,
        dry_run: bool = False,
        confirm: Confirm = _agreed,
        progress: Progress = _silent,
    ) -> Plan:
        """Remove a member for ever, keep its data, and give the plan that did it.

        Raises as `etcdops.operations.reconfigure.remove` does.
        """
        from etcdops.operations import reconfigure

        return reconfigure.remove(
            self._cluster,
            name,
            allow_known_bad=allow_known_bad,
            dry_run=dry_run,
            confirm=confirm,
            progress=progress,
        )

    def replace_member(
        self,
        name: str,
        *,
        host: str = "",
        allow_known_bad: bool = False,
        dry_run: bool = False,
        confirm: Confirm = _agreed,
        progress: Progress = _silent,
    ) -> Plan:
        """Put a new member in the place of a lost one, and give the plan that did it.

        Raises as `etcdops.operations.reconfigure.replace` does.
        """
        from etcdops.operations import reconfigure

        return reconfigure.replace(
            self._cluster,
            name,
            host=host,
            allow_known_bad=allow_known_bad,
            dry_run=dry_run,
            confirm=confirm,
            progress=progress,
        )

    def promote_member(
        self,
        name: str,
        *,
        allow_known_bad: bool = False,
        dry_run: bool = False,
        confirm: Confirm = _agreed,
        progress: Progress = _silent,
    ) -> Plan:
        """Make a learner a voter once it has what the leader has, and give the plan that did it.

        Raises as `etcdops.operations.reconfigure.promote` does.
        """
        from etcdops.operations import reconfigure

        return reconfigure.promote(
            self._cluster,
            name,
            allow_known_bad=allow_known_bad,
            dry_run=dry_run,
            confirm=confirm,
            progress=progress,
        )

    def undo(self, *, dry_run: bool = False, confirm: Confirm = _agreed, progress: Progress = _silent) -> Plan:
        """Take an unfinished add or replace of a member back, and give the plan that did it.

        Raises as `etcdops.operations.reconfigure.undo` does.
        """
        from etcdops.operations import reconfigure

        return reconfigure.undo(self._cluster, dry_run=dry_run, confirm=confirm, progress=progress)

    def defrag(
        self,
        *,
        rule: DefragRule | None = None,
        only: Sequence[str] = (),
        allow_known_bad: bool = False,
        progress: Progress = _silent,
    ) -> DefragReport:
        """Defragment the members for which `rule` says that it is worth it, one at a time, the leader last.

        Raises as `etcdops.operations.defrag.defrag` does.
        """
        from etcdops.operations.defrag import defrag

        return defrag(self._cluster, rule=rule, only=only, allow_known_bad=allow_known_bad, progress=progress)

    def compact(
        self,
        *,
        keep: int | None = None,
        revision: int = 0,
        allow_known_bad: bool = False,
        progress: Progress = _silent,
    ) -> Compacted:
        """Give up the history before `revision`, or all but the last `keep` revisions (default: 10,000), for good.

        Raises as `etcdops.operations.compact.compact` does.
        """
        from etcdops.operations.compact import compact

        return compact(self._cluster, keep=keep, revision=revision, allow_known_bad=allow_known_bad, progress=progress)

    def heal_nospace(
        self, *, keep: int | None = None, allow_known_bad: bool = False, progress: Progress = _silent
    ) -> NospaceReport:
        """Cure a full space quota: compact, defragment, disarm NOSPACE (never CORRUPT), and prove it by a write.

        Raises as `etcdops.operations.nospace.heal_nospace` does.
        """
        from etcdops.operations.nospace import heal_nospace

        return heal_nospace(self._cluster, keep=keep, allow_known_bad=allow_known_bad, progress=progress)
