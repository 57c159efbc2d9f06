"""etcd's messages as we describe them, against etcd3's own descriptors; and etcd3 running on ours."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from etcdops import _proto

_FIELD = descriptor_pb2.FieldDescriptorProto

#: Where etcd changed a field's type after etcd3 was generated; both are the same on the wire.
_CHANGED = {
    "AuthRoleRevokePermissionRequest.key": (_FIELD.TYPE_STRING, _FIELD.TYPE_BYTES),
    "AuthRoleRevokePermissionRequest.range_end": (_FIELD.TYPE_STRING, _FIELD.TYPE_BYTES),
}


def _theirs(name: str) -> Any:
    """Give the descriptor that is serialized in the source of etcd3's `name`_pb2.py, without importing that."""
    spec = importlib.util.find_spec("etcd3")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).with_name("etcdrpc").joinpath(f"{name}_pb2.py").read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "serialized_pb":
            # Written as _b('…'), which encodes to latin-1.
            assert isinstance(node.value, ast.Call)
            return descriptor_pb2.FileDescriptorProto.FromString(ast.literal_eval(node.value.args[0]).encode("latin-1"))
    raise AssertionError(f"etcd3's {name}_pb2.py holds no descriptor")


def _ours(package: str) -> Any:
    file = descriptor_pb2.FileDescriptorProto()
    _proto.POOL.FindFileByName(f"etcdops/{package}.proto").CopyToProto(file)
    return file


def _shape(field: Any) -> tuple[Any, ...]:
    oneof = field.oneof_index if field.HasField("oneof_index") else None
    return field.number, field.type, field.label, field.type_name, oneof


@pytest.mark.parametrize(("name", "package"), [("kv", "mvccpb"), ("auth", "authpb"), ("rpc", "etcdserverpb")])
def test_every_field_of_etcd3_is_ours_too(name: str, package: str) -> None:
    """Each message, field (number, type, label, oneof), enum value and RPC that etcd3 has, we have as it is there."""
    theirs, ours = _theirs(name), _ours(package)
    assert theirs.package == ours.package
    messages = {message.name: message for message in ours.message_type}
    for message in theirs.message_type:
        fields = {field.name: _shape(field) for field in messages[message.name].field}
        for field in message.field:
            expected = _shape(field)
            changed = _CHANGED.get(f"{message.name}.{field.name}")
            if changed:
                assert expected[1] == changed[0]
                expected = (expected[0], changed[1], *expected[2:])
            assert fields[field.name] == expected, f"{message.name}.{field.name}"
        assert [one.name for one in messages[message.name].oneof_decl] == [one.name for one in message.oneof_decl]
        assert list(messages[message.name].enum_type) == list(message.enum_type), message.name
    assert list(ours.enum_type) == list(theirs.enum_type)
    for service in theirs.service:
        for rpc in service.method:
            method = _proto.METHODS[f"/etcdserverpb.{service.name}/{rpc.name}"]
            assert f".{method.request.DESCRIPTOR.full_name}" == rpc.input_type
            assert f".{method.response.DESCRIPTOR.full_name}" == rpc.output_type
            streams = {(False, False): "unary", (False, True): "server", (True, True): "both"}
            assert method.streams == streams[rpc.client_streaming, rpc.server_streaming]


@pytest.mark.parametrize(
    ("message", "field", "number"),
    [
        ("Member", "isLearner", 5),
        ("MemberAddRequest", "isLearner", 2),
        ("MemberListRequest", "linearizable", 1),
        ("StatusResponse", "raftAppliedIndex", 7),
        ("StatusResponse", "errors", 8),
        ("StatusResponse", "dbSizeInUse", 9),
        ("StatusResponse", "isLearner", 10),
        ("StatusResponse", "storageVersion", 11),
        ("StatusResponse", "dbSizeQuota", 12),
        ("StatusResponse", "downgradeInfo", 13),
        ("HashKVResponse", "hash_revision", 4),
        ("SnapshotResponse", "version", 4),
        ("WatchRequest", "progress_request", 3),
        ("WatchCreateRequest", "watch_id", 7),
        ("WatchCreateRequest", "fragment", 8),
        ("WatchResponse", "fragment", 7),
    ],
)
def test_fields_newer_than_etcd3(message: str, field: str, number: int) -> None:
    """Fields that etcd added after etcd3 was made have etcd's public numbers."""
    assert _proto.CLASSES[message].DESCRIPTOR.fields_by_name[field].number == number


def test_unknown_fields_survive() -> None:
    """A field from a newer etcd is carried along, not refused."""
    data = _proto.StatusResponse(version="9.0").SerializeToString() + b"\xfa\x01\x03new"
    assert _proto.StatusResponse.FromString(data).SerializeToString() == data


def test_no_such_message() -> None:
    """A message that etcd does not have is an AttributeError, as on any module."""
    with pytest.raises(AttributeError, match="PutRequst"):
        _ = _proto.PutRequst


def _run(code: str, **environment: str) -> None:
    """Run Python code in a process of its own, where nothing has been imported yet."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


_USE_ETCD3 = """
from etcdops import _etcd3compat
etcd3 = _etcd3compat.install()
assert etcd3.etcdrpc.PutRequest(key=b"k").SerializeToString() == b"\\n\\x01k"
assert etcd3.etcdrpc.NOSPACE == 1 and etcd3.etcdrpc.RangeRequest.DESCEND == 2
client = etcd3.client()
client.close()
"""


@pytest.mark.parametrize(
    "before",
    ["", "import google.protobuf.message", "try:\n    import etcd3\nexcept TypeError:\n    pass"],
    ids=["fresh", "after protobuf", "after a failed import"],
)
def test_etcd3_imports(before: str) -> None:
    """etcd3 works on our messages, also after protobuf was imported and after its own import failed."""
    _run(f"{before}\n{_USE_ETCD3}assert hasattr(etcd3.etcdrpc, 'MemberPromoteRequest')")


def test_an_imported_etcd3_is_left_alone() -> None:
    """Where someone made etcd3 work in their own way, we leave it as it is, and our messages live beside its own."""
    code = f"""
import etcd3
import sys
from etcdops import _proto
native = sys.modules["etcd3.etcdrpc.rpc_pb2"]
theirs = etcd3.etcdrpc.PutRequest
{_USE_ETCD3}
assert sys.modules["etcd3.etcdrpc.rpc_pb2"] is native
assert etcd3.etcdrpc.PutRequest is theirs and theirs is not _proto.PutRequest
assert _proto.PutRequest.FromString(theirs(key=b"k", value=b"v").SerializeToString()).value == b"v"
"""
    _run(code, PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python")


def test_another_client_in_the_default_pool() -> None:
    """etcd's messages in protobuf's default pool, where other clients put them, do not disturb ours, nor ours them."""
    files = [_theirs(name).SerializeToString() for name in ("kv", "auth", "rpc")]
    code = f"""
from google.protobuf import descriptor_pool, message_factory
pool = descriptor_pool.Default()
def other():
    for file in {files!r}:
        pool.AddSerializedFile(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("etcdserverpb.PutRequest"))
if FIRST:
    theirs = other()
from etcdops._proto import PutRequest
if not FIRST:
    theirs = other()
assert theirs is not PutRequest
assert theirs.FromString(PutRequest(key=b"k").SerializeToString()).key == b"k"
"""
    _run(code.replace("FIRST", "True"))
    _run(code.replace("FIRST", "False"))
