"""What a snapshot holds, read from its file in Python: an etcd database is a bbolt file, and this reads what it needs.

A few pages are read, and no page is checked but those: that is etcdutl's work. The layout is that of bbolt's
`page.go`, `meta.go` and `bucket.go` (https://github.com/etcd-io/bbolt); what etcd keeps in which bucket is told by its
`server/mvcc/buckets`.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["BoltMember", "Contents", "NotBolt", "fnv", "is_bolt", "read_contents"]

_MAGIC = 0xED0CDAED
_META, _LEAF, _BRANCH = 0x04, 0x02, 0x01
_BUCKET = 0x01

#: A page's header: its id, flags, count of elements, and how many pages follow it as a part of it.
_PAGE = struct.Struct("<QHHI")
#: A meta page after the header: magic, version, page size, flags, root bucket (page, sequence), freelist, high-water
#: mark, transaction, checksum.
_META_FIELDS = struct.Struct("<IIIIQQQQQQ")
#: An element of a leaf page: flags, and where key and value are.
_LEAF_ELEMENT = struct.Struct("<IIII")
#: An element of a branch page: where its key is, and the page below.
_BRANCH_ELEMENT = struct.Struct("<IIQ")
#: The value of a bucket: its root page, or 0 for one that is inline after this, and a sequence.
_BUCKET_HEADER = struct.Struct("<QQ")

#: Page sizes that bbolt may have: the operating system's, so 4 KiB nearly everywhere.
_PAGE_SIZES = tuple(1 << n for n in range(9, 17))

_ALARMS = {1: "NOSPACE", 2: "CORRUPT"}

#: More than is ever read here: in a damaged file, pages may lead round in circles.
_MOST_BYTES = 2**26


class NotBolt(ValueError):
    """The file is no bbolt database, or is damaged where it was read."""


class BoltMember(NamedTuple):
    """A member as the database has it."""

    id: int
    name: str
    peer_urls: tuple[str, ...]
    learner: bool


class Contents(NamedTuple):
    """What a database says of itself.

    `revision` is the newest of the store, 1 when nothing was ever written; `last_revision` that of its last key (0
    without one), which is what `etcdutl snapshot status` calls its revision; `compact_revision` 0 when it was never
    compacted. `raft_index` is the last entry that is applied, `raft_term` its term, 0 before etcd 3.5, which did not
    record it. `cluster_version` is a minor, such as "3.5.0", or "". `alarms` are the kinds that are raised.
    """

    revision: int
    last_revision: int
    compact_revision: int
    raft_index: int
    raft_term: int
    cluster_version: str
    auth: bool
    members: tuple[BoltMember, ...]
    alarms: tuple[str, ...] = ()


def is_bolt(path: str | os.PathLike[str]) -> bool:
    """Whether the file at `path` begins as a bbolt database does."""
    try:
        with open(path, "rb") as file:
            head = file.read(_PAGE.size + 4)
    except OSError:
        return False
    return len(head) == _PAGE.size + 4 and struct.unpack_from("<I", head, _PAGE.size)[0] == _MAGIC


def read_contents(path: str | os.PathLike[str]) -> Contents:
    """Give what the database at `path` says of itself; a trailer after it does no harm. Raises NotBolt, OSError."""
    with open(path, "rb") as file:
        try:
            return _contents(_Database(file.fileno()))
        except (struct.error, IndexError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise NotBolt(str(error) or type(error).__name__) from error


def _contents(database: _Database) -> Contents:
    buckets = {name: value for name, value, _ in database.items(database.root)}
    meta = dict(_pairs(database, buckets, b"meta"))
    last = _last_revision(database, buckets)
    compacted = max(
        (_main(meta[key]) for key in (b"scheduledCompactRev", b"finishedCompactRev") if meta.get(key)), default=0
    )
    cluster = dict(_pairs(database, buckets, b"cluster"))
    auth = dict(_pairs(database, buckets, b"auth")) if b"auth" in buckets else {}
    return Contents(
        revision=max(last, compacted, 1),
        last_revision=last,
        compact_revision=compacted,
        raft_index=_number(meta.get(b"consistent_index", b"")),
        raft_term=_number(meta.get(b"term", b"")),
        cluster_version=cluster.get(b"clusterVersion", b"").decode(),
        auth=auth.get(b"authEnabled") == b"\x01",
        members=tuple(_member(value) for _, value in _pairs(database, buckets, b"members")),
        alarms=tuple(sorted({_alarm(key) for key, _ in _pairs(database, buckets, b"alarm")})),
    )


def _pairs(database: _Database, buckets: dict[bytes, bytes], name: bytes) -> Iterator[tuple[bytes, bytes]]:
    if name in buckets:
        yield from ((key, value) for key, value, _ in database.items(buckets[name]))


def _last_revision(database: _Database, buckets: dict[bytes, bytes]) -> int:
    key = database.last_key(buckets[b"key"])
    return _main(key) if key else 0


def _main(revision: bytes) -> int:
    """Give the revision out of etcd's key for one: eight bytes, `_`, the number within the transaction, marks."""
    if len(revision) < 17 or revision[8:9] != b"_":
        raise NotBolt(f"{revision!r} is no revision")
    return _number(revision[:8])


def _number(value: bytes) -> int:
    return int.from_bytes(value[:8], "big")


def _alarm(key: bytes) -> str:
    """Give the kind out of etcd's key for an alarm: a protobuf message whose last field, the second, is the kind."""
    return _ALARMS.get(key[-1], f"alarm {key[-1]}") if key[-2:-1] == b"\x10" else "unknown alarm"


def _member(value: bytes) -> BoltMember:
    told = json.loads(value)
    return BoltMember(
        int(told["id"]), str(told.get("name", "")), tuple(told["peerURLs"]), bool(told.get("isLearner", False))
    )


class _Database:
    """An open database: pages are read as they are asked for, so a large one costs no memory."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._left = _MOST_BYTES
        metas = [meta for meta in map(self._meta, (0, *_PAGE_SIZES)) if meta]
        if not metas:
            raise NotBolt("neither of its meta pages is one of bbolt's")
        newest = max(metas, key=lambda meta: meta[8])
        self._page_size = newest[2]
        #: The root bucket, as the value of a bucket.
        self.root = _BUCKET_HEADER.pack(newest[4], newest[5])

    def _meta(self, offset: int) -> tuple[int, ...] | None:
        """Give the fields of the meta page at `offset`, or None if there is none whose checksum is right."""
        raw = os.pread(self._descriptor, _PAGE.size + _META_FIELDS.size, offset)
        if len(raw) < _PAGE.size + _META_FIELDS.size:
            return None
        fields: tuple[int, ...] = _META_FIELDS.unpack_from(raw, _PAGE.size)
        right = fields[0] == _MAGIC and fields[9] == fnv(raw[_PAGE.size : _PAGE.size + _META_FIELDS.size - 8])
        return fields if right and fields[2] in _PAGE_SIZES and offset in (0, fields[2]) else None

    def _page(self, number: int) -> tuple[int, int, bytes]:
        """Give a page's flags, its count of elements, and all of it with what overflows."""
        offset = number * self._page_size
        if number < 2 or offset + self._page_size > self._size:
            raise NotBolt(f"there is no page {number}")
        found, flags, count, overflow = _PAGE.unpack(os.pread(self._descriptor, _PAGE.size, offset))
        length = (overflow + 1) * self._page_size
        if found != number or offset + length > self._size:
            raise NotBolt(f"page {number} is damaged")
        self._left -= length
        if self._left < 0:
            raise NotBolt("its pages lead round in circles")
        return flags, count, os.pread(self._descriptor, length, offset)

    def _root(self, bucket: bytes) -> tuple[int, int, bytes]:
        number, _ = _BUCKET_HEADER.unpack_from(bucket)
        if number:
            return self._page(number)
        inline = bucket[_BUCKET_HEADER.size :]
        _, flags, count, _ = _PAGE.unpack_from(inline)
        return flags, count, inline

    def items(self, bucket: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
        """Give each key, its value, and whether that is a bucket, in order; `bucket` is the value of one."""
        left = [self._root(bucket)]
        while left:
            flags, count, raw = left.pop()
            if flags & _LEAF:
                yield from (self._leaf(raw, i) for i in range(count))
            else:
                left += [self._below(flags, raw, i) for i in reversed(range(count))]

    def last_key(self, bucket: bytes) -> bytes:
        """Give the last key of a bucket, b"" if it has none."""
        flags, count, raw = self._root(bucket)
        while count and not flags & _LEAF:
            flags, count, raw = self._below(flags, raw, count - 1)
        return self._leaf(raw, count - 1)[0] if count else b""

    @staticmethod
    def _leaf(raw: bytes, i: int) -> tuple[bytes, bytes, bool]:
        start = _PAGE.size + i * _LEAF_ELEMENT.size
        flags, at, key_size, value_size = _LEAF_ELEMENT.unpack_from(raw, start)
        key = start + at
        if key + key_size + value_size > len(raw):
            raise NotBolt("an element lies outside of its page")
        value = key + key_size
        return raw[key:value], raw[value : value + value_size], bool(flags & _BUCKET)

    def _below(self, flags: int, raw: bytes, i: int) -> tuple[int, int, bytes]:
        if not flags & _BRANCH:
            raise NotBolt("a page of its tree is neither branch nor leaf")
        _, _, number = _BRANCH_ELEMENT.unpack_from(raw, _PAGE.size + i * _BRANCH_ELEMENT.size)
        return self._page(number)


def fnv(data: bytes) -> int:
    """Give the 64-bit FNV-1a hash, with which bbolt guards its meta pages."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value
