"""Host keys: what known_hosts files say of a host, and what of that speaks against a key that it shows.

The format is that of sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT". Paramiko's own reader knows no patterns, no revoked keys
and no lines, and asks nothing of a file that it cannot read.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from etcdops.errors import StateError

__all__ = ["KnownKey", "Shown", "fingerprint", "known_keys", "preferred", "record"]

_GLOB = re.compile(r"[*?]")


class KnownKey(NamedTuple):
    """A line of a known_hosts file that speaks of a host."""

    file: str
    line: int
    kind: str
    blob: bytes
    revoked: bool


class Shown(NamedTuple):
    """A key that a host has shown: its type ("ssh-ed25519") and its bytes."""

    kind: str
    blob: bytes


def fingerprint(blob: bytes) -> str:
    """Give a key's fingerprint as OpenSSH prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def known_keys(files: Iterable[str], name: str) -> list[KnownKey]:
    """Give what `files` say of the host that they call `name` ("h1", "[h1]:2222"). A missing file says nothing.

    Certificate authorities are left out: host certificates are not understood here. Raises StateError for a file that
    is there and cannot be read.
    """
    found = []
    for file in files:
        try:
            lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StateError(f"cannot read the host keys in {file}: {error.strerror or error}") from error
        for number, line in enumerate(lines, start=1):
            if known := _speaks_of(name, line):
                found.append(KnownKey(file, number, *known))
    return found


def _speaks_of(name: str, line: str) -> tuple[str, bytes, bool] | None:
    """Give type, key and whether it is revoked, if a line is about the host."""
    words = line.split()
    marker = words.pop(0) if words and words[0].startswith("@") else ""
    if len(words) < 3 or words[0].startswith("#") or marker not in ("", "@revoked"):
        return None
    if not _matches(name, words[0]):
        return None
    try:
        blob = base64.b64decode(words[2], validate=True)
    except binascii.Error:
        return None
    return words[1], blob, marker == "@revoked"


def _matches(name: str, patterns: str) -> bool:
    """Whether the first field of a line is about the host; one pattern with `!` that fits rules it out."""
    found = False
    for pattern in patterns.split(","):
        if pattern.startswith("|1|"):
            found = found or _hashed(name, pattern)
        elif pattern.startswith("!"):
            if _fits(name, pattern[1:]):
                return False
        else:
            found = found or _fits(name, pattern)
    return found


def _fits(name: str, pattern: str) -> bool:
    name, pattern = name.lower(), pattern.lower()
    if not _GLOB.search(pattern):
        return name == pattern
    # Here brackets are part of a name, `[h1]:2222`, and begin no class of letters.
    return fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))


def _hashed(name: str, pattern: str) -> bool:
    _, _, salt, digest = (*pattern.split("|"), "", "")[:4]
    try:
        made = hmac.new(base64.b64decode(salt), name.encode(), "sha1").digest()
        return hmac.compare_digest(made, base64.b64decode(digest))
    except binascii.Error:
        return False


def record(file: str, name: str, shown: Shown) -> None:
    """Add a host's key to a known_hosts file, which is made if need be. Raises StateError when it cannot be written."""
    path = Path(file)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+b") as out:
            size = out.seek(0, os.SEEK_END)
            torn = False
            if size:
                out.seek(-1, os.SEEK_END)
                torn = out.read(1) != b"\n"
            # One write: two commands that record at the same time do not mix their lines.
            out.write(f"{chr(10) * torn}{name} {shown.kind} {base64.b64encode(shown.blob).decode()}\n".encode())
    except OSError as error:
        raise StateError(f"cannot write the host key of {name} to {file}: {error.strerror or error}") from error


def preferred(known: Sequence[KnownKey]) -> list[str]:
    """Give the types of keys to ask a host for first: those by which it is known, or it would show another."""
    kinds: list[str] = []
    for key in known:
        names = ["rsa-sha2-512", "rsa-sha2-256"] if key.kind == "ssh-rsa" else [key.kind]
        kinds += [] if key.revoked else [name for name in names if name not in kinds]
    return kinds
