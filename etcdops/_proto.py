"""etcd's messages and methods, as a table of our own; protobuf classes are built from it when this is imported.

The table holds the public field numbers of etcd's v3 API up to 3.6 (https://etcd.io/docs/v3.6/dev-guide/api_reference_v3/).
It is built into a descriptor pool of its own, so any other etcd client may live in the same process: two clients that
both register `rpc.proto` in protobuf's default pool cannot. Generated code would tie us to one protobuf release.

A line is a message (`Name: NUMBER TYPE NAME, …`) or an enum (`enum Name: VALUE …`, numbered from 0). `*` after a type
means repeated, `@x` after a name that the field belongs to the oneof `x`, and `header` alone is field 1, the
ResponseHeader.

    >>> PutRequest(key=b"a", value=b"1").SerializeToString()
    b'\\n\\x01a\\x12\\x011'
"""

from __future__ import annotations

from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["CLASSES", "ENUMS", "METHODS", "POOL", "SERVICES", "Method"]

_MVCCPB = """
KeyValue: 1 bytes key, 2 int64 create_revision, 3 int64 mod_revision, 4 int64 version, 5 bytes value, 6 int64 lease
enum Event.EventType: PUT DELETE
Event: 1 EventType type, 2 KeyValue kv, 3 KeyValue prev_kv
"""

_AUTHPB = """
UserAddOptions: 1 bool no_password
User: 1 bytes name, 2 bytes password, 3 string* roles, 4 UserAddOptions options
enum Permission.Type: READ WRITE READWRITE
Permission: 1 Type permType, 2 bytes key, 3 bytes range_end
Role: 1 bytes name, 2 Permission* keyPermission
"""

_ETCDSERVERPB = """
ResponseHeader: 1 uint64 cluster_id, 2 uint64 member_id, 3 int64 revision, 4 uint64 raft_term

enum RangeRequest.SortOrder: NONE ASCEND DESCEND
enum RangeRequest.SortTarget: KEY VERSION CREATE MOD VALUE
RangeRequest: 1 bytes key, 2 bytes range_end, 3 int64 limit, 4 int64 revision, 5 SortOrder sort_order,
  6 SortTarget sort_target, 7 bool serializable, 8 bool keys_only, 9 bool count_only, 10 int64 min_mod_revision,
  11 int64 max_mod_revision, 12 int64 min_create_revision, 13 int64 max_create_revision
RangeResponse: header, 2 mvccpb.KeyValue* kvs, 3 bool more, 4 int64 count
PutRequest: 1 bytes key, 2 bytes value, 3 int64 lease, 4 bool prev_kv, 5 bool ignore_value, 6 bool ignore_lease
PutResponse: header, 2 mvccpb.KeyValue prev_kv
DeleteRangeRequest: 1 bytes key, 2 bytes range_end, 3 bool prev_kv
DeleteRangeResponse: header, 2 int64 deleted, 3 mvccpb.KeyValue* prev_kvs
RequestOp: 1 RangeRequest request_range@request, 2 PutRequest request_put@request,
  3 DeleteRangeRequest request_delete_range@request, 4 TxnRequest request_txn@request
ResponseOp: 1 RangeResponse response_range@response, 2 PutResponse response_put@response,
  3 DeleteRangeResponse response_delete_range@response, 4 TxnResponse response_txn@response
enum Compare.CompareResult: EQUAL GREATER LESS NOT_EQUAL
enum Compare.CompareTarget: VERSION CREATE MOD VALUE LEASE
Compare: 1 CompareResult result, 2 CompareTarget target, 3 bytes key, 4 int64 version@target_union,
  5 int64 create_revision@target_union, 6 int64 mod_revision@target_union, 7 bytes value@target_union,
  8 int64 lease@target_union, 64 bytes range_end
TxnRequest: 1 Compare* compare, 2 RequestOp* success, 3 RequestOp* failure
TxnResponse: header, 2 bool succeeded, 3 ResponseOp* responses
CompactionRequest: 1 int64 revision, 2 bool physical
CompactionResponse: header

WatchRequest: 1 WatchCreateRequest create_request@request_union, 2 WatchCancelRequest cancel_request@request_union,
  3 WatchProgressRequest progress_request@request_union
enum WatchCreateRequest.FilterType: NOPUT NODELETE
WatchCreateRequest: 1 bytes key, 2 bytes range_end, 3 int64 start_revision, 4 bool progress_notify,
  5 FilterType* filters, 6 bool prev_kv, 7 int64 watch_id, 8 bool fragment
WatchCancelRequest: 1 int64 watch_id
WatchProgressRequest:
WatchResponse: header, 2 int64 watch_id, 3 bool created, 4 bool canceled, 5 int64 compact_revision,
  6 string cancel_reason, 7 bool fragment, 11 mvccpb.Event* events

LeaseGrantRequest: 1 int64 TTL, 2 int64 ID
LeaseGrantResponse: header, 2 int64 ID, 3 int64 TTL, 4 string error
LeaseRevokeRequest: 1 int64 ID
LeaseRevokeResponse: header
LeaseCheckpoint: 1 int64 ID, 2 int64 remaining_TTL
LeaseCheckpointRequest: 1 LeaseCheckpoint* checkpoints
LeaseCheckpointResponse: header
LeaseKeepAliveRequest: 1 int64 ID
LeaseKeepAliveResponse: header, 2 int64 ID, 3 int64 TTL
LeaseTimeToLiveRequest: 1 int64 ID, 2 bool keys
LeaseTimeToLiveResponse: header, 2 int64 ID, 3 int64 TTL, 4 int64 grantedTTL, 5 bytes* keys
LeaseLeasesRequest:
LeaseStatus: 1 int64 ID
LeaseLeasesResponse: header, 2 LeaseStatus* leases

Member: 1 uint64 ID, 2 string name, 3 string* peerURLs, 4 string* clientURLs, 5 bool isLearner
MemberAddRequest: 1 string* peerURLs, 2 bool isLearner
MemberAddResponse: header, 2 Member member, 3 Member* members
MemberRemoveRequest: 1 uint64 ID
MemberRemoveResponse: header, 2 Member* members
MemberUpdateRequest: 1 uint64 ID, 2 string* peerURLs
MemberUpdateResponse: header, 2 Member* members
MemberListRequest: 1 bool linearizable
MemberListResponse: header, 2 Member* members
MemberPromoteRequest: 1 uint64 ID
MemberPromoteResponse: header, 2 Member* members

enum AlarmType: NONE NOSPACE CORRUPT
enum AlarmRequest.AlarmAction: GET ACTIVATE DEACTIVATE
AlarmRequest: 1 AlarmAction action, 2 uint64 memberID, 3 AlarmType alarm
AlarmMember: 1 uint64 memberID, 2 AlarmType alarm
AlarmResponse: header, 2 AlarmMember* alarms
StatusRequest:
StatusResponse: header, 2 string version, 3 int64 dbSize, 4 uint64 leader, 5 uint64 raftIndex, 6 uint64 raftTerm,
  7 uint64 raftAppliedIndex, 8 string* errors, 9 int64 dbSizeInUse, 10 bool isLearner, 11 string storageVersion,
  12 int64 dbSizeQuota, 13 DowngradeInfo downgradeInfo
DowngradeInfo: 1 bool enabled, 2 string targetVersion
enum DowngradeRequest.DowngradeAction: VALIDATE ENABLE CANCEL
DowngradeRequest: 1 DowngradeAction action, 2 string version
DowngradeResponse: header, 2 string version
DefragmentRequest:
DefragmentResponse: header
HashRequest:
HashResponse: header, 2 uint32 hash
HashKVRequest: 1 int64 revision
HashKVResponse: header, 2 uint32 hash, 3 int64 compact_revision, 4 int64 hash_revision
SnapshotRequest:
SnapshotResponse: header, 2 uint64 remaining_bytes, 3 bytes blob, 4 string version
MoveLeaderRequest: 1 uint64 targetID
MoveLeaderResponse: header

AuthEnableRequest:
AuthEnableResponse: header
AuthDisableRequest:
AuthDisableResponse: header
AuthStatusRequest:
AuthStatusResponse: header, 2 bool enabled, 3 uint64 authRevision
AuthenticateRequest: 1 string name, 2 string password
AuthenticateResponse: header, 2 string token
AuthUserAddRequest: 1 string name, 2 string password, 3 authpb.UserAddOptions options, 4 string hashedPassword
AuthUserAddResponse: header
AuthUserGetRequest: 1 string name
AuthUserGetResponse: header, 2 string* roles
AuthUserListRequest:
AuthUserListResponse: header, 2 string* users
AuthUserDeleteRequest: 1 string name
AuthUserDeleteResponse: header
AuthUserChangePasswordRequest: 1 string name, 2 string password, 3 string hashedPassword
AuthUserChangePasswordResponse: header
AuthUserGrantRoleRequest: 1 string user, 2 string role
AuthUserGrantRoleResponse: header
AuthUserRevokeRoleRequest: 1 string name, 2 string role
AuthUserRevokeRoleResponse: header
AuthRoleAddRequest: 1 string name
AuthRoleAddResponse: header
AuthRoleGetRequest: 1 string role
AuthRoleGetResponse: header, 2 authpb.Permission* perm
AuthRoleListRequest:
AuthRoleListResponse: header, 2 string* roles
AuthRoleDeleteRequest: 1 string role
AuthRoleDeleteResponse: header
AuthRoleGrantPermissionRequest: 1 string name, 2 authpb.Permission perm
AuthRoleGrantPermissionResponse: header
AuthRoleRevokePermissionRequest: 1 string role, 2 bytes key, 3 bytes range_end
AuthRoleRevokePermissionResponse: header
"""

#: Service: its methods. `>` marks a stream of answers, `<>` streams both ways; `:Stem` names the messages' stem where
#: it is not the method's name.
_SERVICES = {
    "KV": "Range Put DeleteRange Txn Compact:Compaction",
    "Watch": "Watch<>",
    "Lease": "LeaseGrant LeaseRevoke LeaseKeepAlive<> LeaseTimeToLive LeaseLeases",
    "Cluster": "MemberAdd MemberRemove MemberUpdate MemberList MemberPromote",
    "Maintenance": "Alarm Status Defragment Hash HashKV Snapshot> MoveLeader Downgrade",
    "Auth": "AuthEnable AuthDisable AuthStatus Authenticate UserAdd:AuthUserAdd UserGet:AuthUserGet"
    " UserList:AuthUserList UserDelete:AuthUserDelete UserChangePassword:AuthUserChangePassword"
    " UserGrantRole:AuthUserGrantRole UserRevokeRole:AuthUserRevokeRole RoleAdd:AuthRoleAdd RoleGet:AuthRoleGet"
    " RoleList:AuthRoleList RoleDelete:AuthRoleDelete RoleGrantPermission:AuthRoleGrantPermission"
    " RoleRevokePermission:AuthRoleRevokePermission",
}

_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _FIELD.TYPE_BOOL,
    "bytes": _FIELD.TYPE_BYTES,
    "int64": _FIELD.TYPE_INT64,
    "string": _FIELD.TYPE_STRING,
    "uint32": _FIELD.TYPE_UINT32,
    "uint64": _FIELD.TYPE_UINT64,
}


class Method(NamedTuple):
    """One RPC: its message classes, and how it streams ("unary", "server" or "both")."""

    request: Any
    response: Any
    streams: str


def _lines(table: str) -> list[tuple[str, str]]:
    """Give the table's lines as (left of the colon, right of it), with continuation lines joined."""
    joined = table.strip().replace(",\n ", ",")
    return [(name, rest.strip()) for name, _, rest in (line.partition(":") for line in joined.splitlines() if line)]


def _add_field(message: Any, text: str, package: str, names: dict[str, bool]) -> None:
    """Add the field that `text` describes; `names` maps every known type's full name to whether it is an enum."""
    number, kind, name = ["1", "ResponseHeader", "header"] if text == "header" else text.split()
    name, _, oneof = name.partition("@")
    field = message.field.add(name=name, number=int(number))
    field.label = _FIELD.LABEL_REPEATED if kind.endswith("*") else _FIELD.LABEL_OPTIONAL
    kind = kind.rstrip("*")
    if oneof:
        if not message.oneof_decl:
            message.oneof_decl.add(name=oneof)
        field.oneof_index = 0
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
        return
    full = next(n for n in (f"{package}.{message.name}.{kind}", f"{package}.{kind}", kind) if n in names)
    field.type = _FIELD.TYPE_ENUM if names[full] else _FIELD.TYPE_MESSAGE
    field.type_name = f".{full}"


def _describe(package: str, table: str, names: dict[str, bool]) -> Any:
    """Give the FileDescriptorProto of one package's table, and enter its types into `names`."""
    # A name that no other package uses: protobuf's pure Python implementation keeps some state by file name.
    file = descriptor_pb2.FileDescriptorProto(name=f"etcdops/{package}.proto", package=package, syntax="proto3")
    lines = _lines(table)
    messages: dict[str, Any] = {}
    for left, _ in lines:
        name = left.removeprefix("enum ")
        names[f"{package}.{name}"] = name != left
        if name == left:
            messages[name] = file.message_type.add(name=name)
    for left, right in lines:
        if left in messages:
            for text in right.split(", ") if right else ():
                _add_field(messages[left], text.strip(), package, names)
            continue
        owner, _, name = left.removeprefix("enum ").rpartition(".")
        enum = (messages[owner] if owner else file).enum_type.add(name=name)
        for number, value in enumerate(right.split()):
            enum.value.add(name=value, number=number)
    return file


def _build() -> tuple[Any, dict[str, Any], dict[str, int]]:
    """Give the pool, the message classes by name, and the values of the enums that belong to no message."""
    pool = descriptor_pool.DescriptorPool()
    names: dict[str, bool] = {}
    classes: dict[str, Any] = {}
    enums: dict[str, int] = {}
    earlier: list[str] = []
    for package, table in (("mvccpb", _MVCCPB), ("authpb", _AUTHPB), ("etcdserverpb", _ETCDSERVERPB)):
        file = _describe(package, table, names)
        file.dependency.extend(earlier)
        earlier.append(file.name)
        pool.AddSerializedFile(file.SerializeToString())
        for message in file.message_type:
            descriptor = pool.FindMessageTypeByName(f"{package}.{message.name}")
            classes[message.name] = message_factory.GetMessageClass(descriptor)
        enums.update((value.name, value.number) for enum in file.enum_type for value in enum.value)
    return pool, classes, enums


def _methods() -> dict[str, Method]:
    """Give every RPC by its path."""
    methods = {}
    for service, text in _SERVICES.items():
        for word in text.split():
            word, _, stem = word.partition(":")
            name = word.rstrip("<>")
            streams = {"": "unary", ">": "server", "<>": "both"}[word[len(name) :]]
            stem = stem or name
            method = Method(CLASSES[f"{stem}Request"], CLASSES[f"{stem}Response"], streams)
            methods[f"/etcdserverpb.{service}/{name}"] = method
    return methods


#: The private descriptor pool, the message classes by name, and the values of top-level enums (AlarmType) by name.
POOL, CLASSES, ENUMS = _build()
#: Every RPC by its path, such as "/etcdserverpb.KV/Put".
METHODS = _methods()
#: The services' names, in etcd's order.
SERVICES = tuple(_SERVICES)


def __getattr__(name: str) -> Any:
    """Give the message class called `name`, so that `_proto.PutRequest` reads as generated code does."""
    try:
        return CLASSES[name]
    except KeyError:
        raise AttributeError(f"etcd has no message {name!r}") from None
