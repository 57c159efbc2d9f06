"""What a second operator needs, as files: the same for everybody, believed only as far as etcdops has kept it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from etcdops.errors import StateError
from etcdops.remote.inventory import HostSpec
from etcdops.remote.kept import digest, files_of, localised, pack, unpack
from etcdops.remote.locking import Holder
from etcdops.spec import ClusterSpec
from etcdops.state import SCHEMA, ClusterRecord, DataRef, MemberRecord
from etcdops.tls import leaves
from etcdops.tls.layout import directory_of, with_own_files

ID = "0123456789abcdef"


def record_in(directory: Path) -> ClusterRecord:
    """Give the record of a cluster over three hosts, as its first operator has it in `directory`."""
    spec = with_own_files(ClusterSpec.of_size("lab", 3), directory_of(directory))
    members = tuple(
        MemberRecord(
            name=name,
            host=f"h{number}",
            client_url=f"https://10.0.0.{number}:2379",
            peer_url=f"https://10.0.0.{number}:2380",
            data=DataRef(f"etcdops-lab-012345_{name}-g1"),
            log="",
            ref=str(number) * 64,
            wanted="running",
        )
        for number, name in enumerate(spec.names, start=1)
    )
    return ClusterRecord(
        schema=SCHEMA,
        id=ID,
        spec=spec,
        runtime="remote",
        token=f"etcdops-{ID}",
        state_dir=str(directory),
        members=members,
        image="etcdops/etcd:3.5.30",
        image_id=f"sha256:{'a' * 64}",
        etcd_version="3.5.30",
        hosts=tuple(
            HostSpec(name=f"h{n}", address=f"10.0.0.{n}", key="/home/ana/key", docker="sudo -n docker", jump="bastion")
            for n in (1, 2, 3)
        ),
    )


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> ClusterRecord:
    """That record, with its TLS files."""
    made = record_in(tmp_path_factory.mktemp("first"))
    leaves.create(made)
    return made


def test_there_and_back(record: ClusterRecord, tmp_path: Path) -> None:
    """Another operator has the same record with paths of their own, all PEM files, and no path of the first one's."""
    packed = pack(record, 3)
    assert set(packed) == {"manifest.json", "cluster.json", *files_of(record)}
    assert {"ca.pem", "ca.key", "operator.pem", "member-thor.pem"} <= set(packed)
    assert record.state_dir.encode() not in b"".join(packed.values())
    assert b"/home/ana" not in b"".join(packed.values())
    found = unpack(packed, "here", ID)
    assert (found.manifest.serial, found.manifest.cluster) == (3, "lab")
    hosts = tuple(HostSpec(name=each.name, address="x", peer_address=each.peer_address) for each in found.record.hosts)
    theirs = localised(found, str(tmp_path), tmp_path / "tls", hosts)
    assert [member.data for member in theirs.members] == [member.data for member in record.members]
    assert theirs.spec.tls is not None
    assert (theirs.spec.tls.ca_key, theirs.state_dir) == (str(tmp_path / "tls" / "ca.key"), str(tmp_path))
    assert digest(theirs, found.files) == digest(record, files_of(record))


def test_what_counts_as_a_change(record: ClusterRecord) -> None:
    """Who should run, who is a member and each PEM file count; a container that is another, and who asks, do not."""
    files, member = files_of(record), record.members[0]
    same = record.with_member(msgspec.structs.replace(member, ref="f" * 64))
    assert digest(same, files) == digest(record, files)
    stopped = record.with_member(msgspec.structs.replace(member, wanted="stopped"))
    assert digest(stopped, files) != digest(record, files)
    never_ran = record.with_member(msgspec.structs.replace(member, ref=""))
    assert digest(never_ran, files) != digest(record, files)
    assert digest(record, {**files, "operator.pem": b"renewed"}) != digest(record, files)


def _changed(packed: dict[str, bytes], change: Callable[[Any], Any]) -> dict[str, bytes]:
    """Give what was kept with its record changed, and hashed anew, as somebody who means it would."""
    told = json.loads(packed["cluster.json"])
    change(told)
    content = json.dumps(told).encode()
    manifest = json.loads(packed["manifest.json"])
    manifest["files"]["cluster.json"] = hashlib.sha256(content).hexdigest()
    return {**packed, "cluster.json": content, "manifest.json": json.dumps(manifest).encode()}


def _set(*path: Any) -> Callable[[Any], None]:
    *way, last, value = path

    def change(told: Any) -> None:
        for step in way:
            told = told[step]
        told[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("members", 0, "data", "place", "/"),
        _set("members", 0, "data", "place", "--volume=/:/x"),
        _set("members", 0, "host", "h9"),
        _set("members", 0, "log", "/etc/passwd"),
        _set("members", 0, "ref", "--privileged"),
        _set("hosts", 0, "docker", "sh -c evil"),
        _set("hosts", 0, "jump", "elsewhere"),
        _set("hosts", 0, "key", "/home/bo/.ssh/id_ed25519"),
        _set("hosts", 0, "name", "../../x"),
        _set("image", "--privileged"),
        _set("image_id", "busybox"),
        _set("token", "x --force-new-cluster"),
        _set("engine", "tcp://elsewhere"),
        _set("binary", "/tmp/evil"),
        _set("state_dir", "/home/bo"),
        _set("owner", "1:2:3"),
        _set("runtime", "process"),
        _set("id", "fedcba9876543210"),
        _set("etcd_version", "3.5\x1b[2J"),
        _set("created", "\x1b]0;evil\x07"),
        _set("spec", "tls", "ca", "/etc/ssl/cert.pem"),
        _set("spec", "tls", "ca_key", "../../ca.key"),
        _set("spec", "members", 0, "cert", "member-thor.pem"),
        _set("spec", "members", 0, "foreign", True),
        _set("spec", "etcd_bin", "/tmp/evil"),
        _set("spec", "name", "other"),
        _set("schema", SCHEMA + 1),
        _set("unknown", 1),
    ],
)
def test_a_record_that_would_do_something(record: ClusterRecord, change: Callable[[Any], None]) -> None:
    """What becomes part of a command, a path or a terminal's text is refused where it is not as etcdops makes it."""
    packed = pack(record, 1)
    unpack(packed, "here", ID)
    with pytest.raises(StateError, match=r"^a volume is not what a second operator can use") as refused:
        unpack(_changed(packed, change), "a volume", ID)
    assert str(refused.value).isprintable()


def test_damage(record: ClusterRecord) -> None:
    """Something that is missing, cut off, altered, added, or another cluster's is refused, and named."""
    packed = pack(record, 1)
    manifest = json.loads(packed["manifest.json"])
    newer = json.dumps({**manifest, "schema": 2}).encode()
    more = json.dumps({**manifest, "files": {**manifest["files"], "x": hashlib.sha256(b"").hexdigest()}}).encode()
    cases: list[tuple[dict[str, bytes], str]] = [
        ({}, "there is no manifest.json"),
        ({name: content for name, content in packed.items() if name != "manifest.json"}, "there is no manifest.json"),
        ({name: content for name, content in packed.items() if name != "ca.key"}, "ca.key is missing"),
        ({**packed, "operator.pem": packed["operator.pem"][:100]}, "operator.pem is missing, or is not as"),
        ({**packed, "manifest.json": b"\xff\xfe"}, "can use"),
        ({**packed, "manifest.json": newer}, "use the newer release"),
        ({**packed, "manifest.json": more, "x": b""}, "x does not belong to it"),
    ]
    for files, said in cases:
        with pytest.raises(StateError, match=said):
            unpack(files, "here", ID)
    with pytest.raises(StateError, match="is labelled as of"):
        unpack(packed, "here", "ffffffffffffffff")


def test_who_is_dead() -> None:
    """A holder is dead where its process was one of this machine's and is gone; of others nobody can know."""
    from etcdops.remote import locking

    def holder(process: str, silent_s: float = 1.0) -> Holder:
        return Holder("h1", "c", "ana@laptop", "up-env lab", process, "m", "2026-01-31 12:00:00 UTC", silent_s)

    own = locking._process()
    assert not holder(own).dead
    place, _, process = own.rpartition("/")
    pid, _, rest = process.partition(":")
    started, _, boot = rest.partition(":")
    assert holder(f"{place}/{pid}:{int(started) - 1}:{boot}").dead
    assert not holder(f"{place}/{pid}:{int(started) - 1}:another").dead
    assert not holder(f"pid:[1]/{pid}:{int(started) - 1}:{boot}").dead
    assert not holder("").dead
    assert not holder(own, 59.0).expired
    assert holder(own, 61.0).expired
