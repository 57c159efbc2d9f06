"""The TLS files of a cluster whose authority is etcdops: made where they are missing, and looked at before a start."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from etcdops.errors import Refused, StateError
from etcdops.state import remove_tree, replace_file
from etcdops.tls.layout import FILE_MODE, TLS_DIR_MODE, is_own

if TYPE_CHECKING:
    from datetime import timedelta

    from etcdops.state import ClusterRecord, MemberRecord
    from etcdops.tls.authority import Authority

__all__ = [
    "OPERATOR",
    "check_authority",
    "check_files",
    "create",
    "forget",
    "hosts_of",
    "issue",
    "issue_missing",
    "remove",
]

#: The common name of the operator's certificate: the user that it stands for, where etcd's authentication is on.
OPERATOR = "etcdops"

#: By these a member is reached on its own machine, through whatever is forwarded there, and by its own gateway.
_HERE = ("localhost", "127.0.0.1", "::1")

_RENEW = "`tls.renew` makes new certificates."


def hosts_of(member: MemberRecord, more: Iterable[str] = ()) -> tuple[str, ...]:
    """Give the names and addresses by which a member is reached: its own, this machine's, and those of its URLs."""
    urls = [urlsplit(url).hostname or "" for url in (member.client_url, member.peer_url)]
    return tuple(dict.fromkeys([member.name, f"{member.name}.peer", *_HERE, *filter(None, urls), *more]))


def create(record: ClusterRecord) -> None:
    """Make the authority of a new cluster, and all that it signs; raises StateError where files cannot be written."""
    from etcdops.tls.authority import Authority

    tls = record.spec.tls
    assert tls
    directory = Path(tls.ca_key).parent
    try:
        directory.mkdir(mode=TLS_DIR_MODE, parents=True, exist_ok=True)
        # One that a killed command has left may be anybody's.
        directory.chmod(TLS_DIR_MODE)
    except OSError as error:
        raise StateError(
            f"cannot make {directory}: {error.strerror or error}",
            remedy="Free some space, make it writable, or name another place with ETCDOPS_STATE_DIR.",
        ) from error
    try:
        Authority.new(f"etcdops {record.spec.name} {record.id[:6]}").save(tls.ca, tls.ca_key)
        issue(record, record.spec.names, operator=True)
    except BaseException:
        remove(record)
        raise


def remove(record: ClusterRecord) -> None:
    """Remove all that was made for a cluster which has come to nothing."""
    assert record.spec.tls
    remove_tree(Path(record.spec.tls.ca_key).parent)


def issue(
    record: ClusterRecord, names: Iterable[str], *, operator: bool = False, lifetime: timedelta | None = None
) -> None:
    """Make new pairs for members, and for the operator; each takes the place of the old one at once.

    Raises Refused where the authority's files are missing or have ended, StateError where a file cannot be written.
    """
    from etcdops.tls.authority import LEAF_LIFETIME

    tls = record.spec.tls
    assert tls
    authority = check_authority(record)
    lasts = lifetime or LEAF_LIFETIME
    for name in names:
        pair = authority.issue(name, hosts_of(record.member(name)), server=True, lifetime=lasts)
        replace_file(Path(record.spec.member(name).cert), pair, mode=FILE_MODE)
    if operator:
        pair = authority.issue(OPERATOR, server=False, lifetime=lasts)
        replace_file(Path(tls.client_cert), pair, mode=FILE_MODE)


def check_authority(record: ClusterRecord) -> Authority:
    """Give the authority of a cluster; raises Refused where it can sign nothing, or others could in its name."""
    from etcdops.tls.authority import Authority
    from etcdops.tls.expiry import ended

    tls = record.spec.tls
    assert tls
    authority = Authority.load(tls.ca, tls.ca_key)
    refuse_readable([tls.ca_key])
    if ended(authority.certificate):
        raise Refused(
            f"the authority of {record.spec.name} ended on {authority.certificate.not_valid_after_utc:%Y-%m-%d}",
            remedy="`snapshot.restore FILE --cluster NEW --tls` makes another cluster, of a snapshot that is verified.",
        )
    return authority


def issue_missing(record: ClusterRecord, names: Sequence[str]) -> None:
    """Make the pairs of those of the named members that have none; nothing where etcdops is not the authority."""
    if is_own(record.spec):
        absent = [name for name in names if not os.path.exists(record.spec.member(name).cert)]
        if absent:
            issue(record, absent)


def forget(record: ClusterRecord, name: str) -> None:
    """Delete the pair of a member that has left; nothing where etcdops is not the authority."""
    if is_own(record.spec):
        Path(record.spec.member(name).cert).unlink(missing_ok=True)


def check_files(record: ClusterRecord, names: Sequence[str]) -> None:
    """Raise Refused where the named members cannot start with their TLS files, or should not.

    That is where a file is missing, a key of our own can be read by others, or a certificate has ended.
    """
    tls = record.spec.tls
    if tls is None:
        return
    pairs = [path for name in names for path in (record.spec.member(name).cert, record.spec.member(name).key)]
    files = dict.fromkeys([tls.ca, tls.client_cert, tls.client_key, *pairs])
    for path in files:
        if not os.path.exists(path):
            way = "Put it back from a copy; nothing was started."
            if is_own(record.spec) and path != tls.ca:
                way = f"{_RENEW} Nothing was started."
            raise Refused(f"the TLS file {path} of {record.spec.name} is missing", remedy=way)
    if is_own(record.spec):
        refuse_readable([*dict.fromkeys([tls.ca_key, tls.client_key, *pairs])])
    from etcdops.tls.expiry import certificates, findings

    known = certificates(record, names)
    if not is_own(record.spec):
        # The first of several authorities may have ended long ago.
        known = [each for each in known if each.whose != "authority"]
    found = [finding for finding in findings(record, known) if finding.severity == "error"]
    if found:
        raise Refused(
            f"{record.spec.name} cannot start: {'; '.join(finding.message for finding in found)}",
            remedy=f"{found[0].remedy} Nothing was started.",
        )


def refuse_readable(paths: Iterable[str]) -> None:
    """Raise Refused for a key that others than its owner can read."""
    for path in paths:
        try:
            mode = stat.S_IMODE(os.stat(path).st_mode)
        except FileNotFoundError:
            continue
        if mode & 0o077:
            raise Refused(
                f"the key in {path} can be read by others (mode {mode:04o}), who could pass for its owner",
                remedy=f"`chmod 600 {path}`; and if somebody may have read it, `tls.renew`. Nothing was changed.",
            )
