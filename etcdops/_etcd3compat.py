"""Makes etcd3 0.12.0 importable on current protobuf, by supplying its message classes.

etcd3's own were generated in 2018; protobuf 4 and later refuse them ("Descriptors cannot be created directly"). The
ways around it are a protobuf that is out of support, or an environment variable that slows every user of protobuf in
the process and fails if protobuf was imported before. So the four generated modules that etcd3 looks for are made here
from `etcdops._proto`, which has etcd's newer fields besides, and put where its import statements find them. Nothing on
disk is changed.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from google.protobuf.internal import enum_type_wrapper

from etcdops import _proto

__all__ = ["install"]


def _messages(name: str, package: str) -> ModuleType:
    """Give a module with the messages and enum values of one of etcd's packages, as generated code has them."""
    module = ModuleType(name)
    for message, cls in _proto.CLASSES.items():
        if cls.DESCRIPTOR.file.package == package:
            setattr(module, message, cls)
    return module


def _stub(service: str) -> type:
    """Give the class that makes one service's methods over a channel."""
    methods = {
        path.rpartition("/")[2]: (path, method)
        for path, method in _proto.METHODS.items()
        if path.startswith(f"/etcdserverpb.{service}/")
    }

    def init(self: Any, channel: Any) -> None:
        makers = {"unary": channel.unary_unary, "server": channel.unary_stream, "both": channel.stream_stream}
        for name, (path, method) in methods.items():
            stub = makers[method.streams](
                path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            setattr(self, name, stub)

    return type(f"{service}Stub", (), {"__init__": init})


def _modules() -> dict[str, ModuleType]:
    prefix = "etcd3.etcdrpc"
    rpc = _messages(f"{prefix}.rpc_pb2", "etcdserverpb")
    alarm_type = _proto.POOL.FindEnumTypeByName("etcdserverpb.AlarmType")
    vars(rpc).update(_proto.ENUMS, AlarmType=enum_type_wrapper.EnumTypeWrapper(alarm_type))
    stubs = ModuleType(f"{prefix}.rpc_pb2_grpc")
    vars(stubs).update({f"{service}Stub": _stub(service) for service in _proto.SERVICES})
    modules = (_messages(f"{prefix}.kv_pb2", "mvccpb"), _messages(f"{prefix}.auth_pb2", "authpb"), rpc, stubs)
    return {module.__name__: module for module in modules}


def install() -> Any:
    """Give the module `etcd3`, made importable first unless someone imported it before: then it works already."""
    # Sets what gRPC reads when it is imported, and etcd3 imports it.
    importlib.import_module("etcdops.wire.channel")
    if "etcd3" not in sys.modules:
        sys.modules.update(_modules())
    return importlib.import_module("etcd3")
