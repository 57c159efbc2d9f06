"""An operation under way: written down before its first step, and gone after its last.

What a killed command leaves is taken up from here. Which steps are still to be taken is not written down but looked
at: the members, the member list and the record say which are done.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from etcdops.errors import EtcdopsError, PartlyChanged, Refused, StateError
from etcdops.hosts import identify
from etcdops.interrupts import deferred
from etcdops.operations.plan import new_run
from etcdops.spec import MemberSpec
from etcdops.state import ClusterRecord, MemberRecord, replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from etcdops.cluster import Cluster

__all__ = ["Pending", "begin", "end", "going_on", "load", "now", "refuse_unfinished"]


class Pending(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An operation that has begun: which, on what, in which run, since when, and by which process.

    `again` is the command that goes on with it and `back` the one that takes it back, if there is one. `spec` and
    `member` are of the member that is to join, with its ports and its place for data chosen. `old_id` is the id of the
    member that it takes the place of. `record` is the whole record as it is to be, for an operation that swaps it.
    """

    operation: str
    target: str
    run: str
    since: str
    owner: str
    again: str
    back: str = "member.undo"
    spec: MemberSpec | None = None
    member: MemberRecord | None = None
    old_id: int = 0
    record: ClusterRecord | None = None
    arguments: dict[str, str] = {}

    def __str__(self) -> str:
        return f"{self.operation} {self.target}".rstrip()

    @property
    def ways(self) -> str:
        """What can be done about it, as a clause: going on, and taking it back where that can be."""
        return f"`{self.again}` goes on" + (f"; `{self.back}` takes it back" if self.back else "")


def now() -> str:
    """Give the time as it is recorded: RFC 3339, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _path(cluster: Cluster) -> Path:
    return cluster.store.cluster_dir(cluster.name) / "operation.json"


def load(cluster: Cluster) -> Pending | None:
    """Give the operation that has begun and not ended, or None. Raises StateError when it cannot be read."""
    path = _path(cluster)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Pending)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, EtcdopsError) as error:
        raise StateError(
            f"{path}, which says what operation is under way, cannot be used: {error}",
            remedy="Restore it from a copy; or look at `status` and the newest folder of runs/, and delete it.",
        ) from error


def save(cluster: Cluster, pending: Pending) -> Pending:
    """Write down how far an operation is, and give it back."""
    replace_file(_path(cluster), msgspec.json.format(msgspec.json.encode(pending), indent=2) + b"\n")
    return pending


def begin(cluster: Cluster, operation: str, target: str, **known: object) -> Pending:
    """Write down that an operation begins, with what was chosen for it (see Pending), and give that.

    The caller holds the cluster's lock, and has made sure that no other is under way.
    """
    run = new_run(cluster, operation)
    again = str(known.pop("again", f"{operation} {target}".rstrip()))
    pending = Pending(operation, target, run, now(), identify(os.getpid()), again=again)
    return save(cluster, msgspec.structs.replace(pending, **known))


def end(cluster: Cluster) -> None:
    """Write down that no operation is under way any more."""
    _path(cluster).unlink(missing_ok=True)


def refuse_unfinished(cluster: Cluster, operation: str = "", target: str = "") -> Pending | None:
    """Give the unfinished operation, if it is this very one, or None if there is none.

    Raises Refused for another: one is ended, or taken back, before the next begins.
    """
    pending = load(cluster)
    if pending is None or (pending.operation == operation and target in ("", pending.target)):
        return pending
    raise Refused(
        f"`{pending}` of {pending.since} has not come to its end (run {pending.run})",
        remedy=f"{pending.ways}.",
    )


@contextmanager
def going_on(cluster: Cluster, pending: Pending, progress: Callable[[str], None]) -> Iterator[None]:
    """Say, when the block does not come to its end, how to go on; afterwards nothing is under way any more.

    Raises PartlyChanged in place of an error.
    """
    try:
        yield
    except EtcdopsError as error:
        if load(cluster) is None:
            raise
        remedy = f"{error.remedy} Then {pending.ways}." if error.remedy else f"{pending.ways}."
        raise PartlyChanged(f"{pending} has not come to its end: {error}", remedy=remedy) from error
    except KeyboardInterrupt:
        if load(cluster) is not None:
            progress(f"{pending} has not come to its end: {pending.ways}")
        raise
    with deferred():
        end(cluster)
