"""What a second operator needs of a cluster, as a few files: made of what is here, and checked before it is believed.

`cluster.json` is the record without what is of one operator's machine, the PEM files are the authority's, the
operator's and the members', and `manifest.json` says which version this is and what belongs to it. Who can write to
Docker's volumes on a host is root there, and not on the other hosts: no command, path or option is taken from there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import msgspec

from etcdops.docker.compose import project_of
from etcdops.errors import EtcdopsError, StateError
from etcdops.remote.inventory import HostSpec
from etcdops.remote.locking import operator
from etcdops.spec import ClusterSpec, Tls, is_foreign_name
from etcdops.state import SCHEMA, ClusterRecord, MemberRecord
from etcdops.tls.layout import is_own, with_own_files

__all__ = ["LARGEST_BYTES", "Kept", "Manifest", "digest", "files_of", "localised", "pack", "shape", "unpack"]

#: More than this is nothing that was kept here.
LARGEST_BYTES = 4 * 2**20

_MANIFEST, _RECORD = "manifest.json", "cluster.json"
_IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9._/:@-]{0,254}")
_IMAGE_ID = re.compile(r"(sha256:[0-9a-f]{64})?")
_WORD = re.compile(r"[A-Za-z0-9._+-]{0,64}")


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which version this is: of two, the one with the greater `serial` is newer. `files` are their SHA-256 by name."""

    schema: int
    cluster: str
    cluster_id: str
    serial: int
    written: str
    by: str
    files: dict[str, str]


class Kept(NamedTuple):
    """What was kept: the record as it is on hosts, and PEM files by their names there."""

    manifest: Manifest
    record: ClusterRecord
    files: dict[str, bytes]


# -- making it


def pack(record: ClusterRecord, serial: int) -> dict[str, bytes]:
    """Give the files to keep of a cluster, by their names. Raises StateError where a PEM file cannot be read."""
    files = {_RECORD: _json(_portable(record)), **files_of(record)}
    manifest = Manifest(
        1,
        record.spec.name,
        record.id,
        serial,
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
        operator(),
        {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    )
    return {_MANIFEST: _json(manifest), **files}


def files_of(record: ClusterRecord) -> dict[str, bytes]:
    """Give the PEM files of a cluster, by the names under which they are kept; a member's may be missing."""
    found = {}
    for name, path in _paths(record.spec).items():
        try:
            found[name] = Path(path).read_bytes()
        except FileNotFoundError:
            if not name.startswith("member-"):
                raise StateError(f"the TLS file {path} of {record.spec.name} is missing") from None
        except OSError as error:
            raise StateError(f"cannot read {path}: {error.strerror or error}") from error
    return found


def digest(record: ClusterRecord, files: Mapping[str, bytes]) -> str:
    """Give what changes whenever something changes that a second operator needs, and does not with who asks."""
    members = tuple(msgspec.structs.replace(each, ref="there" if each.ref else "") for each in record.members)
    hosts = tuple(HostSpec(name=each.name, peer_address=_reached_at(each)) for each in record.hosts)
    same = msgspec.structs.replace(_portable(record), members=members, hosts=hosts)
    hashed = hashlib.sha256(msgspec.json.encode(same))
    for name in sorted(files):
        hashed.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    return hashed.hexdigest()


def shape(record: ClusterRecord) -> tuple[object, ...]:
    """Give what must be known of a cluster at any moment, should its operator be gone: who its members are, and where.

    The rest may wait until a command has come to its end.
    """
    members = [(each.name, each.host, each.client_url, each.peer_url, each.data) for each in record.members]
    return (*members, *record.retired, *(each.name for each in record.hosts))


def _json(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _portable(record: ClusterRecord) -> ClusterRecord:
    hosts = tuple(
        HostSpec(
            name=each.name,
            address=each.address or each.name,
            user=each.user,
            port=each.port,
            peer_address=_reached_at(each),
        )
        for each in record.hosts
    )
    # Whoever takes it up creates members that join: the first start of the others was when this was kept.
    return msgspec.structs.replace(
        record, spec=_named(record.spec), hosts=hosts, state_dir="", owner="", bootstrapped=True
    )


def _reached_at(host: HostSpec) -> str:
    return host.peer_address or host.address or host.name


def _paths(spec: ClusterSpec) -> dict[str, str]:
    """Give the PEM files of a specification by the names under which they are kept."""
    tls = spec.tls
    if tls is None:
        return {}
    own = {"ca.pem": tls.ca, "operator.pem": tls.client_cert, "operator.key": tls.client_key, "ca.key": tls.ca_key}
    for member in spec.members:
        own |= {f"member-{member.name}.pem": member.cert, f"member-{member.name}.key": member.key}
    # A pair that is one file is kept once, under the first of its names.
    first = {path: name for name, path in reversed(own.items()) if path}
    return {name: path for name, path in own.items() if first.get(path) == name}


def _named(spec: ClusterSpec) -> ClusterSpec:
    """Give a specification with the names of its PEM files in the place of their paths."""
    names = {path: name for name, path in _paths(spec).items()}
    return _with_paths(spec, names)


def _with_paths(spec: ClusterSpec, to: Mapping[str, str]) -> ClusterSpec:
    def at(path: str) -> str:
        return to[path] if path else ""

    tls = spec.tls
    if tls is None:
        return spec
    moved = Tls(at(tls.ca), at(tls.client_cert), at(tls.client_key), ca_key=at(tls.ca_key))
    members = tuple(msgspec.structs.replace(each, cert=at(each.cert), key=at(each.key)) for each in spec.members)
    return msgspec.structs.replace(spec, tls=moved, members=members)


def localised(kept: Kept, state_dir: str, directory: Path, hosts: tuple[HostSpec, ...]) -> ClusterRecord:
    """Give the record as it is used here, with its PEM files in `directory` and these hosts."""
    spec = kept.record.spec
    if is_own(spec):
        spec = with_own_files(spec, directory)
    else:
        spec = _with_paths(spec, {name: str(directory / name) for name in _paths(spec)})
    return msgspec.structs.replace(kept.record, spec=spec, state_dir=state_dir, hosts=hosts)


# -- believing it


def unpack(files: Mapping[str, bytes], where: str, cluster_id: str) -> Kept:
    """Give what was kept of the cluster with this id; raises StateError, which names `where`, for what cannot be it."""
    try:
        return _unpack(dict(files), cluster_id)
    except (msgspec.MsgspecError, UnicodeError, EtcdopsError, KeyError) as error:
        said = str(error) if not isinstance(error, KeyError) else f"the TLS file {error} is not among what was kept"
        raise StateError(
            f"{where} is not what a second operator can use: {_shown(said)}",
            remedy="Who keeps the cluster up makes it anew with the next command that changes something.",
        ) from error


def _shown(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text[:400])


def _unpack(files: dict[str, bytes], cluster_id: str) -> Kept:
    if _MANIFEST not in files:
        raise StateError(f"there is no {_MANIFEST}: it was not written to its end")
    schema = msgspec.json.decode(files[_MANIFEST], type=_Schema).schema
    if schema != 1:
        raise StateError(f"it has schema {schema}, and this release of etcdops reads 1; use the newer release")
    manifest = msgspec.json.decode(files.pop(_MANIFEST), type=Manifest)
    if manifest.cluster_id != cluster_id:
        raise StateError(f"it is of the cluster {manifest.cluster_id}, and is labelled as of {cluster_id}")
    seen = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    if seen != manifest.files:
        odd = sorted(name for name in {*seen, *manifest.files} if seen.get(name) != manifest.files.get(name))
        raise StateError(f"{', '.join(odd)} is missing, or is not as it was written")
    if not files.get(_RECORD):
        raise StateError(f"there is no {_RECORD}")
    _refuse_unprintable([json.loads(files[_RECORD]), manifest.by, manifest.written])
    schema = msgspec.json.decode(files[_RECORD], type=_Schema).schema
    if schema > SCHEMA:
        raise StateError(f"the record has schema {schema}, and this release of etcdops reads up to {SCHEMA}")
    record = msgspec.json.decode(files.pop(_RECORD), type=ClusterRecord)
    _refuse_strange(record, manifest)
    expected = _paths(record.spec)
    if odd := sorted(set(files) - set(expected)):
        raise StateError(f"{', '.join(odd)} does not belong to it")
    if lacking := [name for name in expected if name not in files and not name.startswith("member-")]:
        raise StateError(f"the TLS file {lacking[0]} is missing")
    return Kept(manifest, record, files)


class _Schema(msgspec.Struct):
    schema: int


def _refuse_unprintable(value: object) -> None:
    """Raise StateError where a text anywhere in it would do something to a terminal."""
    if isinstance(value, str) and not value.isprintable():
        raise StateError(f"it holds {value[:40]!a}, which is no text of ours")
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in children:
        _refuse_unprintable(each)


def _refuse_strange(record: ClusterRecord, manifest: Manifest) -> None:
    """Raise StateError for a record that no cluster on several hosts has: what it names is used in commands."""
    spec = record.spec
    project = project_of(spec.name, record.id)
    hosts = [host.name for host in record.hosts]
    kept = [(member.name, member.data) for member in record.members]
    kept += [(each.member, each.data) for each in record.retired]
    wrong = {
        "id": record.id != manifest.cluster_id or not re.fullmatch(r"[0-9a-f]{6,64}", record.id),
        "name": spec.name != manifest.cluster,
        "runtime": record.runtime != "remote",
        "binary": bool(record.binary or spec.etcd_bin or record.engine or record.owner or record.state_dir),
        "image": not _IMAGE.fullmatch(record.image) or not _IMAGE_ID.fullmatch(record.image_id),
        "spec.image": bool(spec.image) and not _IMAGE.fullmatch(spec.image),
        "token": not _WORD.fullmatch(record.token),
        "etcd_version": not (_WORD.fullmatch(record.etcd_version) and _WORD.fullmatch(spec.etcd_version)),
        "hosts": not hosts or len(set(hosts)) < len(hosts) or not all(map(is_foreign_name, hosts)),
        "hosts' commands": any(_commanding(host) for host in record.hosts),
        "members": any(member.host not in hosts or _odd(member) for member in record.members),
        "spec.members": any(member.foreign or member.host not in ("", *hosts) for member in spec.members),
        "data": any(data.place != f"{project}_{name}-g{data.generation}" for name, data in kept),
        "TLS files": spec.tls is not None and _named_so(spec) != spec,
        "retired": any(not _WORD.fullmatch(each.why) or not _WORD.fullmatch(each.run) for each in record.retired),
    }
    if found := [what for what, is_so in wrong.items() if is_so]:
        raise StateError(f"its record says what no record of such a cluster does, in {', '.join(found)}")


def _commanding(host: HostSpec) -> bool:
    plain = HostSpec(host.name, host.address, host.user, host.port, peer_address=host.peer_address)
    return host != plain


def _odd(member: MemberRecord) -> bool:
    return bool(member.log or member.etcd_name) or not re.fullmatch(r"[0-9a-f]{0,64}", member.ref)


def _named_so(spec: ClusterSpec) -> ClusterSpec:
    """Give a specification whose PEM files have the names that `_named` gives them."""
    tls = spec.tls
    assert tls
    together = tls.client_cert == tls.client_key
    client_key = "" if not tls.client_key else "operator.pem" if together else "operator.key"
    named = Tls("ca.pem", "operator.pem", client_key, ca_key="ca.key" if tls.ca_key else "")
    members = tuple(
        msgspec.structs.replace(
            each,
            cert=f"member-{each.name}.pem",
            key=f"member-{each.name}.{'pem' if each.cert == each.key else 'key'}",
        )
        for each in spec.members
    )
    return msgspec.structs.replace(spec, tls=named, members=members)
