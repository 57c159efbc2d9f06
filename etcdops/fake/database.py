"""The database of a member in memory as a file: what its snapshots are made of. etcdutl takes it for one of etcd's.

The layout is that of bbolt, which `etcdops.snapshots.bolt` reads.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from etcdops import _proto
from etcdops.fake.messages import kv_message
from etcdops.snapshots.bolt import fnv
from etcdops.versions import CURRENT, parse_version

if TYPE_CHECKING:
    from etcdops.fake.member import FakeMember

__all__ = ["Pairs", "database", "snapshot_of"]

#: A bucket's keys and values, sorted by key.
Pairs = Sequence[tuple[bytes, bytes]]

_PAGE_SIZE = 4096
_BRANCH, _LEAF, _META, _FREELIST = 0x01, 0x02, 0x04, 0x10
_HEADER = struct.Struct("<QHHI")
_MAGIC = 0xED0CDAED

#: More elements than this in a page's tree make a branch above them.
_MOST_IN_A_LEAF = 1000


def snapshot_of(member: FakeMember) -> bytes:
    """Give a member's snapshot: its database, and the SHA-256 of that. Holds the cluster's lock."""
    model, cluster = member.model, member.cluster
    keys: list[tuple[bytes, bytes]] = []
    at = sub = 0
    for kv in model.kept():
        at, sub = kv.mod_revision, sub + 1 if kv.mod_revision == at else 0
        if kv.version:
            keys.append((_revision(at, sub), kv_message(kv).SerializeToString()))
        else:
            keys.append((_revision(at, sub) + b"t", _proto.KeyValue(key=kv.key).SerializeToString()))
    meta = {b"consistent_index": _number(member.applied), b"term": _number(cluster.term)}
    if model.compacted:
        meta |= dict.fromkeys((b"finishedCompactRev", b"scheduledCompactRev"), _revision(model.compacted, 0))
    members = {
        f"{each.id:016x}".encode(): json.dumps(
            {
                "id": each.id,
                "peerURLs": each.peer_urls,
                "name": each.name,
                "clientURLs": each.client_urls,
                **({"isLearner": True} if each.learner else {}),
            }
        ).encode()
        for each in member.view.listed()
    }
    removed = [(f"{each:016x}".encode(), b"removed") for each in sorted(member.view.removed)]
    major, minor, _ = parse_version(CURRENT)
    data = database(
        {
            **dict.fromkeys((b"alarm", b"auth", b"authRoles", b"authUsers", b"lease"), ()),
            b"cluster": [(b"clusterVersion", f"{major}.{minor}.0".encode())],
            b"key": keys,
            b"members": sorted(members.items()),
            b"members_removed": removed,
            b"meta": sorted(meta.items()),
        }
    )
    return data + hashlib.sha256(data).digest()


def _revision(main: int, sub: int) -> bytes:
    return _number(main) + b"_" + _number(sub)


def _number(value: int) -> bytes:
    return value.to_bytes(8, "big")


def database(buckets: dict[bytes, Pairs]) -> bytes:
    """Give a database with these buckets."""
    pages: list[bytes] = [b"", b"", _page(2, _FREELIST, 0, b"")]
    roots = [(name, struct.pack("<QQ", _tree(pages, pairs), 0)) for name, pairs in sorted(buckets.items())]
    root = _append_leaf(pages, roots, flags=1)
    for i in (0, 1):
        fields = struct.pack("<IIIIQQQQQ", _MAGIC, 2, _PAGE_SIZE, 0, root, 0, 2, len(pages), i)
        pages[i] = _page(i, _META, 0, fields + struct.pack("<Q", fnv(fields)))
    return b"".join(pages)


def _tree(pages: list[bytes], pairs: Pairs) -> int:
    """Append the pages of a bucket, and give the number of its root."""
    chunks = [pairs[i : i + _MOST_IN_A_LEAF] for i in range(0, len(pairs), _MOST_IN_A_LEAF)]
    if len(chunks) < 2:
        return _append_leaf(pages, pairs)
    below = [(chunk[0][0], _append_leaf(pages, chunk)) for chunk in chunks]
    elements, data = b"", b""
    for i, (key, number) in enumerate(below):
        elements += struct.pack("<IIQ", 16 * (len(below) - i) + len(data), len(key), number)
        data += key
    return _append(pages, _BRANCH, len(below), elements + data)


def _append_leaf(pages: list[bytes], pairs: Pairs, *, flags: int = 0) -> int:
    elements, data = [], bytearray()
    for i, (key, value) in enumerate(pairs):
        # Positions count from the element itself.
        elements.append(struct.pack("<IIII", flags, 16 * (len(pairs) - i) + len(data), len(key), len(value)))
        data += key + value
    return _append(pages, _LEAF, len(pairs), b"".join(elements) + data)


def _append(pages: list[bytes], flags: int, count: int, content: bytes) -> int:
    number = len(pages)
    page = _page(number, flags, count, content)
    pages += [page[i : i + _PAGE_SIZE] for i in range(0, len(page), _PAGE_SIZE)]
    return number


def _page(number: int, flags: int, count: int, content: bytes) -> bytes:
    length = -(-(_HEADER.size + len(content)) // _PAGE_SIZE)
    return (_HEADER.pack(number, flags, count, length - 1) + content).ljust(length * _PAGE_SIZE, b"\0")
