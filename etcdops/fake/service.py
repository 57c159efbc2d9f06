"""What a member in memory answers to each of etcd's calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from etcdops import _proto
from etcdops.errors import EtcdError
from etcdops.fake.database import snapshot_of
from etcdops.fake.membership import Listed, add, changed_urls, promote, remove
from etcdops.fake.messages import delete_of, fill, put_of, range_of, txn_of
from etcdops.fake.watch import WatchStream
from etcdops.ops import Compact, Grant, Op, Revoke, is_read_only
from etcdops.versions import CURRENT
from etcdops.wire import ServerError, ServerStream

if TYPE_CHECKING:
    from etcdops.fake.member import FakeMember

__all__ = ["handlers"]

#: etcd's `--max-request-bytes` as it is by default.
_MOST_BYTES = 3 * 2**19

#: As large as etcd's own pieces of a snapshot.
_PIECE_BYTES = 2**15

_ALARMS = {1: "NOSPACE", 2: "CORRUPT"}


def handlers(member: FakeMember) -> dict[str, Callable[[Any], Any]]:
    """Give what `wire.serve` needs to answer as `member`, from its start now until its next end."""
    service = _Service(member)
    unary: dict[str, Callable[[Any], Any]] = {
        "KV/Range": service.range,
        "KV/Put": service.put,
        "KV/DeleteRange": service.delete_range,
        "KV/Txn": service.txn,
        "KV/Compact": service.compact,
        "Lease/LeaseGrant": service.lease_grant,
        "Lease/LeaseRevoke": service.lease_revoke,
        "Lease/LeaseTimeToLive": service.lease_time_to_live,
        "Lease/LeaseLeases": service.lease_leases,
        "Cluster/MemberList": service.member_list,
        "Cluster/MemberAdd": service.member_add,
        "Cluster/MemberRemove": service.member_remove,
        "Cluster/MemberPromote": service.member_promote,
        "Cluster/MemberUpdate": service.member_update,
        "Maintenance/Status": service.status,
        "Maintenance/HashKV": service.hash_kv,
        "Maintenance/Alarm": service.alarm,
        "Maintenance/Defragment": service.defragment,
        "Maintenance/MoveLeader": service.move_leader,
    }
    found: dict[str, Callable[[Any], Any]] = {name: partial(service.answer, call) for name, call in unary.items()}
    found["Lease/LeaseKeepAlive"] = service.lease_keep_alive
    found["Watch/Watch"] = service.watch
    found["Maintenance/Snapshot"] = service.snapshot
    return {f"/etcdserverpb.{name}": call for name, call in found.items()}


class _Service:
    """One life of a member, from a start to the end after it."""

    def __init__(self, member: FakeMember) -> None:
        self._member = member
        self._cluster = member.cluster
        self._start = member.starts

    def answer(self, call: Callable[[Any], Any], request: Any) -> Any:
        """Give what `call` answers; not while the member is frozen, and never after its end."""
        self._wait_thawed()
        with self._cluster.changed:
            self._member.answering += 1
        try:
            self._refuse_learner(local=isinstance(request, _proto.StatusRequest) or _is_local(request))
            if request.ByteSize() > _MOST_BYTES:
                raise ServerError("INVALID_ARGUMENT", "etcdserver: request is too large")
            return call(request)
        except EtcdError as error:
            raise ServerError(error.code, error.text) from None
        finally:
            # It may have been frozen meanwhile.
            try:
                self._wait_thawed()
            finally:
                with self._cluster.changed:
                    self._member.answering -= 1
                    self._cluster.changed.notify_all()

    def _refuse_learner(self, *, local: bool = False) -> None:
        """Raise what a learner answers to all but `local` calls; it goes by what it has applied itself."""
        with self._cluster.changed:
            if not local and self._member.view.is_learner(self._member.id):
                raise ServerError("UNAVAILABLE", "etcdserver: rpc not supported for learner")

    def _wait_thawed(self) -> None:
        with self._cluster.changed:
            self._member.wait_thawed(self._start)

    def _header(self, revision: int | None = None) -> Any:
        return _proto.ResponseHeader(
            cluster_id=self._cluster.id,
            member_id=self._member.id,
            revision=self._member.model.revision if revision is None else revision,
            raft_term=self._cluster.term,
        )

    # -- KV

    def _write(self, op: Op) -> Any:
        answer: Any = self._cluster.propose(self._member, op)
        return fill(answer, self._header(answer.revision))

    def put(self, request: Any) -> Any:
        return self._write(put_of(request))

    def delete_range(self, request: Any) -> Any:
        return self._write(delete_of(request))

    def range(self, request: Any) -> Any:
        answer: Any = self._cluster.read(self._member, range_of(request))
        return fill(answer, self._header(answer.revision))

    def txn(self, request: Any) -> Any:
        op = txn_of(request)
        if not is_read_only(op):
            return self._write(op)
        answer: Any = self._cluster.read(self._member, op)
        return fill(answer, self._header(answer.revision))

    def compact(self, request: Any) -> Any:
        revision: Any = self._cluster.propose(self._member, Compact(request.revision))
        return _proto.CompactionResponse(header=self._header(revision))

    # -- leases

    def lease_grant(self, request: Any) -> Any:
        op = Grant(request.ID or self._cluster.new_lease(), request.TTL)
        lease: Any = self._cluster.propose(self._member, op)
        return _proto.LeaseGrantResponse(header=self._header(lease.revision), ID=lease.lease_id, TTL=lease.ttl_s)

    def lease_revoke(self, request: Any) -> Any:
        revision: Any = self._cluster.propose(self._member, Revoke(request.ID))
        return _proto.LeaseRevokeResponse(header=self._header(revision))

    def lease_keep_alive(self, stream: ServerStream) -> Iterator[Any]:
        self._wait_thawed()
        self._refuse_learner()
        for request in stream:
            self._wait_thawed()
            ttl_s = self._cluster.keep_alive(self._member, request.ID)
            yield _proto.LeaseKeepAliveResponse(header=self._header(), ID=request.ID, TTL=ttl_s)

    def lease_time_to_live(self, request: Any) -> Any:
        self._cluster.settle(self._member)
        model = self._member.model
        granted_s = model.leases.get(request.ID)
        if granted_s is None:
            return _proto.LeaseTimeToLiveResponse(header=self._header(), ID=request.ID, TTL=-1)
        return _proto.LeaseTimeToLiveResponse(
            header=self._header(),
            ID=request.ID,
            TTL=int(self._cluster.remaining_s(request.ID)),
            grantedTTL=granted_s,
            keys=model.attached(request.ID) if request.keys else (),
        )

    def lease_leases(self, request: Any) -> Any:
        self._cluster.settle(self._member)
        leases = [_proto.LeaseStatus(ID=lease) for lease in sorted(self._member.model.leases)]
        return _proto.LeaseLeasesResponse(header=self._header(), leases=leases)

    # -- watch

    def watch(self, stream: ServerStream) -> Iterator[Any]:
        self._wait_thawed()
        self._refuse_learner()
        yield from WatchStream(self._member, stream, self._start, self._header)

    # -- the cluster, and maintenance

    def member_list(self, request: Any) -> Any:
        if request.linearizable:
            self._cluster.settle(self._member)
        with self._cluster.changed:
            return _proto.MemberListResponse(header=self._bare(), members=map(_listed, self._member.view.listed()))

    def _bare(self) -> Any:
        """Give the header of answers about members, which has no revision."""
        return _proto.ResponseHeader(
            cluster_id=self._cluster.id, member_id=self._member.id, raft_term=self._cluster.term
        )

    def _after(self) -> Any:
        return map(_listed, self._cluster.membership.listed())

    def member_add(self, request: Any) -> Any:
        with self._cluster.changed:
            entry = add(self._cluster, self._member, request.peerURLs, learner=request.isLearner)
            return _proto.MemberAddResponse(header=self._bare(), member=_listed(entry), members=self._after())

    def member_remove(self, request: Any) -> Any:
        with self._cluster.changed:
            remove(self._cluster, self._member, request.ID)
            return _proto.MemberRemoveResponse(header=self._bare(), members=self._after())

    def member_promote(self, request: Any) -> Any:
        with self._cluster.changed:
            promote(self._cluster, self._member, request.ID)
            return _proto.MemberPromoteResponse(header=self._bare(), members=self._after())

    def member_update(self, request: Any) -> Any:
        with self._cluster.changed:
            changed_urls(self._cluster, self._member, request.ID, request.peerURLs)
            return _proto.MemberUpdateResponse(header=self._bare(), members=self._after())

    def status(self, request: Any) -> Any:
        with self._cluster.changed:
            leader = self._cluster.leader_by(self._member)
            # Made up, and yet it grows as a database does.
            size = 20_480 + 128 * self._member.applied
            return _proto.StatusResponse(
                header=self._header(),
                version=CURRENT,
                dbSize=size,
                dbSizeInUse=size,
                leader=leader.id if leader else 0,
                raftIndex=self._member.applied if self._member.stuck else len(self._cluster.log),
                raftTerm=self._cluster.term,
                raftAppliedIndex=self._member.applied,
                isLearner=self._member.view.is_learner(self._member.id),
                errors=[
                    *([] if leader else ["etcdserver: no leader"]),
                    *(f"memberID:{m} alarm:{_ALARMS[kind]} " for m, kind in sorted(self._cluster.alarms)),
                ],
            )

    def hash_kv(self, request: Any) -> Any:
        member = self._member
        with self._cluster.changed:
            value = member.model.hash(request.revision)
            return _proto.HashKVResponse(
                header=self._header(),
                hash=value ^ 1 if self._cluster.lies.wrong_hash == member.name else value,
                # etcd has -1 for a store that was never compacted.
                compact_revision=member.model.compacted or -1,
                hash_revision=request.revision or member.model.revision,
            )

    def alarm(self, request: Any) -> Any:
        alarms = self._cluster.alarms
        self._cluster.settle(self._member)
        asked = {(request.memberID, request.alarm)}
        with self._cluster.changed:
            if request.action == 1:
                alarms |= asked
            elif request.action == 2:
                alarms -= asked
            listed = [_proto.AlarmMember(memberID=member, alarm=kind) for member, kind in sorted(alarms)]
        return _proto.AlarmResponse(header=self._header(), alarms=listed)

    def defragment(self, request: Any) -> Any:
        return _proto.DefragmentResponse(header=self._header())

    def snapshot(self, request: Any) -> Iterator[Any]:
        self._wait_thawed()
        with self._cluster.changed:
            data = snapshot_of(self._member)
        for at in range(0, len(data), _PIECE_BYTES):
            self._wait_thawed()
            piece = data[at : at + _PIECE_BYTES]
            yield _proto.SnapshotResponse(blob=piece, remaining_bytes=len(data) - at - len(piece))

    def move_leader(self, request: Any) -> Any:
        self._cluster.transfer(self._member, request.targetID)
        return _proto.MoveLeaderResponse(header=self._header())


def _is_local(request: Any) -> bool:
    """Whether it is a read that a member answers from its own state: with status, all that a learner answers."""
    return isinstance(request, _proto.RangeRequest) and request.serializable


def _listed(entry: Listed) -> Any:
    return _proto.Member(
        ID=entry.id,
        name=entry.name,
        peerURLs=entry.peer_urls,
        clientURLs=entry.client_urls,
        isLearner=entry.learner,
    )
