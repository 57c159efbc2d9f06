"""A directory of another machine, by SFTP: fsspec's, with OpenSSH's keys, configuration and check of the host's key.

fsspec accepts any host key unless it is told otherwise (`SFTPFileSystem`, `host_key_policy`), so the connection is made
here. What is known of a host is read from known_hosts files alone; an unknown key is never learned.
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import os
import posixpath
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import paramiko
from fsspec.implementations.sftp import SFTPFileSystem
from paramiko.hostkeys import HostKeyEntry, HostKeys
from paramiko.sftp import CMD_EXTENDED

from etcdops.errors import Refused
from etcdops.snapshots.addresses import Address
from etcdops.snapshots.depot import PIECE_BYTES, Depot, Entry, Upload, rfc3339
from etcdops.snapshots.places import PARTIAL

__all__ = ["SftpDepot"]

_CONNECT_S = 10.0

#: How much is asked for at once. Paramiko can bound that (`max_concurrent_requests`), but loses its place when all that
#: it has asked for has come before it asks for more: it then asks no longer ahead, and keeps what comes in memory.
_WINDOW_BYTES = 8 * 2**20

_SYSTEM_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_USER_KNOWN_HOSTS = "~/.ssh/known_hosts ~/.ssh/known_hosts2"


class _Target(NamedTuple):
    """A host as ~/.ssh/config has it; `known_as` is what known_hosts calls it."""

    host: str
    port: int
    user: str
    known_as: str
    known_hosts: tuple[str, ...]
    keys: tuple[str, ...]
    only_keys: bool
    proxy: str

    @property
    def login(self) -> str:
        """The same for a person, and for ssh's command line."""
        return f"{'' if self.port == 22 else f'-p {self.port} '}{self.user}@{self.host}"


class SftpDepot(Depot):
    """A directory by SFTP. Each method raises Refused when there is no connection, and none can be made."""

    def __init__(self, address: Address, *, stall_s: float) -> None:
        super().__init__(address)
        self._timeout_s = min(_CONNECT_S, stall_s)
        self._fs: _CheckedFileSystem | None = None

    def _connected(self) -> _CheckedFileSystem:
        if self._fs is None:
            target = _target(self.address)
            try:
                self._fs = _CheckedFileSystem(target.host, target=target, timeout_s=self._timeout_s)
            except paramiko.BadHostKeyException as error:
                raise _changed_key(target, error) from error
            except paramiko.AuthenticationException as error:
                raise _no_key(target, str(error)) from error
            except (paramiko.SSHException, OSError, EOFError) as error:
                if str(error) == "No authentication methods available":
                    raise _no_key(target, "there is none") from error
                raise Refused(
                    f"cannot connect to {target.host}, port {target.port}: {_said(error)}",
                    remedy=f"See whether `sftp {target.login.replace('-p', '-P')}` works.",
                ) from error
        return self._fs

    def _path(self, name: str) -> str:
        return posixpath.join(self.address.path, name)

    def check(self) -> None:
        """Raise FileNotFoundError where there is no such directory."""
        self._connected().ftp.stat(self.address.path or ".")

    def entries(self) -> dict[str, Entry]:
        """Give the files, by name."""
        ftp = self._connected().ftp
        return {
            each.filename: Entry(each.st_size or 0, rfc3339(each.st_mtime or 0))
            for each in ftp.listdir_attr(self.address.path or ".")
            if stat.S_ISREG(each.st_mode or 0)
        }

    def size(self, name: str) -> int | None:
        """Give a file's size in bytes, None if there is none of that name."""
        try:
            seen = self._connected().ftp.stat(self._path(name))
        except FileNotFoundError:
            return None
        return seen.st_size if stat.S_ISREG(seen.st_mode or 0) else None

    def pieces(self, name: str) -> Iterator[bytes]:
        """Give what is in a file."""
        fs = self._connected()
        path, at = self._path(name), 0
        size: int = fs.ftp.stat(path).st_size
        while at < size:
            end = min(at + _WINDOW_BYTES, size)
            with fs.open(path, "rb") as file:
                file.seek(at)
                file.prefetch(end)
                while at < end:
                    piece = file.read(min(PIECE_BYTES, end - at))
                    if not piece:
                        return
                    at += len(piece)
                    yield piece

    @contextmanager
    def upload(self, name: str) -> Iterator[Upload]:
        """Begin to put a file there."""
        # A name of its own: two that push the same must not write into one file.
        part = _Part(self._connected(), self._path(name), f"{name}.{secrets.token_hex(4)}{PARTIAL}", self)
        try:
            yield part
        finally:
            part.discard()

    def remove(self, name: str) -> None:
        """Remove a file."""
        self._connected().ftp.remove(self._path(name))

    def explain(self, error: Exception) -> tuple[str, str]:
        """Give what an error means."""
        if isinstance(error, FileNotFoundError):
            return f"there is no directory {self.address.path or '~'} there", "`sftp` and its `mkdir` make it."
        if isinstance(error, PermissionError):
            return "permission denied", "See who owns the directory there, and its permissions."
        if isinstance(error, OSError) and str(error) == "Failure":
            return "the server says no more than “Failure”", "See whether its disk is full, or a quota is used up."
        return _said(error), "See whether `sftp` works there, and try again."

    def abort(self) -> None:
        """End what is under way."""
        if self._fs is not None:
            self._fs.client.close()

    def close(self) -> None:
        """Let go of the connection."""
        if self._fs is not None:
            self._fs.client.close()


class _Part:
    def __init__(self, fs: _CheckedFileSystem, path: str, staged: str, depot: SftpDepot) -> None:
        self._ftp = fs.ftp
        self._path = path
        self._temporary = posixpath.join(posixpath.dirname(path), staged)
        self._depot = depot
        self._published = False
        self.staged = staged
        self._file = fs.open(self._temporary, "wxb")
        try:
            self._file.chmod(0o600)
            # Without this, each 32 KiB would wait for the answer to the last.
            self._file.set_pipelined(True)
        except BaseException:
            self.discard()
            raise
        self.write = self._file.write

    def finish(self) -> None:
        self._file.flush()
        # Not every server has it. There is no public way to ask for an extension.
        with suppress(OSError):
            self._ftp._request(CMD_EXTENDED, "fsync@openssh.com", self._file.handle)
        self._file.close()

    def publish(self) -> None:
        try:
            # SFTP's own rename overwrites nothing. fsspec's `mv` would.
            self._ftp.rename(self._temporary, self._path)
        except OSError as error:
            if self._depot.size(posixpath.basename(self._path)) is not None:
                raise FileExistsError(self._path) from error
            raise
        self._published = True

    def discard(self) -> None:
        if self._published:
            return
        # The connection may be what failed: then the file stays, under its temporary name.
        with suppress(OSError, EOFError, paramiko.SSHException):
            self._file.close()
        with suppress(OSError, EOFError, paramiko.SSHException):
            self._ftp.remove(self._temporary)


class _CheckedFileSystem(SFTPFileSystem):  # type: ignore[misc]
    """fsspec's SFTP, connected as OpenSSH would."""

    cachable = False

    def __init__(self, host: str, *, target: _Target, timeout_s: float) -> None:
        self._target = target
        self._timeout_s = timeout_s
        super().__init__(host)

    def _connect(self) -> None:
        target = self._target
        self.client = paramiko.SSHClient()
        client: Any = self.client
        client.set_missing_host_key_policy(_Unknown(target))
        # Paramiko looks under this name, whatever known_hosts calls it.
        looked_up = target.host if target.port == 22 else f"[{target.host}]:{target.port}"
        for kind, key in (_known_keys(target).lookup(target.known_as) or {}).items():
            client.get_host_keys().add(looked_up, kind, key)
        try:
            client.connect(
                target.host,
                port=target.port,
                username=target.user,
                key_filename=list(target.keys) or None,
                look_for_keys=not target.keys,
                allow_agent=not target.only_keys,
                timeout=self._timeout_s,
                banner_timeout=self._timeout_s,
                auth_timeout=self._timeout_s,
                sock=paramiko.ProxyCommand(target.proxy) if target.proxy else None,
            )
            self.ftp = client.open_sftp()
        except BaseException:
            client.close()
            raise


class _Unknown(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Refuses a host whose key nobody vouches for, and says how to come by one."""

    def __init__(self, target: _Target) -> None:
        self._target = target

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        """Raise Refused."""
        target = self._target
        raise Refused(
            f"the host key of {target.known_as} ({key.get_name()} {_fingerprint(key)}) is not known: it is not in"
            f" {' or '.join(target.known_hosts)}",
            remedy=f"Connect once with `ssh {target.login}`, and compare the fingerprint with that of the server's"
            " administrator before you accept it.",
        )


def _no_key(target: _Target, problem: str) -> Refused:
    return Refused(
        f"{target.user}@{target.host} accepts no key of yours: {problem}",
        remedy=f"`ssh {target.login}` must work without a question: `ssh-add` unlocks a key that has a passphrase,"
        " `ssh-copy-id` installs one.",
    )


def _changed_key(target: _Target, error: Any) -> Refused:
    return Refused(
        f"the host key of {target.known_as} is not the one that is known: it has {error.key.get_name()}"
        f" {_fingerprint(error.key)}, and {' or '.join(target.known_hosts)} says {_fingerprint(error.expected_key)}."
        " Somebody else may be answering in its place",
        remedy="Ask the server's administrator. Only if the key was really changed:"
        f" `ssh-keygen -R '{target.known_as}'`, and connect once with `ssh {target.login}`.",
    )


def _fingerprint(key: Any) -> str:
    """Give a key's fingerprint as OpenSSH prints it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def _target(address: Address) -> _Target:
    """Give what ~/.ssh/config says of a host, as far as it is understood here; raise Refused for what is not."""
    config = paramiko.SSHConfig()
    for name in (os.path.expanduser("~/.ssh/config"), "/etc/ssh/ssh_config"):
        with suppress(OSError), open(name, encoding="utf-8", errors="replace") as file:
            config.parse(file)
    told: dict[str, Any] = dict(config.lookup(address.host))
    host = str(told.get("hostname", address.host))
    port = address.port or int(told.get("port", 22))
    proxy = str(told.get("proxycommand", ""))
    if told.get("proxyjump", "none") != "none" and not proxy:
        raise Refused(
            f"~/.ssh/config wants a ProxyJump for {address.host}, which is not understood here",
            remedy=f"Write `ProxyCommand ssh -W %h:%p {told['proxyjump']}` instead.",
        )
    files = str(told.get("userknownhostsfile", _USER_KNOWN_HOSTS)).split()
    named = "identityfile" in told
    return _Target(
        host=host,
        port=port,
        user=address.user or str(told.get("user", "")) or getpass.getuser(),
        known_as=str(told.get("hostkeyalias", "")) or (host if port == 22 else f"[{host}]:{port}"),
        known_hosts=tuple(os.path.expanduser(name) for name in files),
        keys=tuple(os.path.expanduser(name) for name in told["identityfile"]) if named else (),
        only_keys=str(told.get("identitiesonly", "no")).lower() == "yes",
        proxy="" if proxy == "none" else proxy,
    )


def _known_keys(target: _Target) -> HostKeys:
    """Give the host keys that known_hosts files vouch for, without those that they revoke."""
    lines = []
    for name in (*target.known_hosts, *_SYSTEM_KNOWN_HOSTS):
        with suppress(OSError), open(name, encoding="utf-8", errors="replace") as file:
            lines += [line.strip() for line in file]
    revoked = {line.split()[3] for line in lines if line.startswith("@revoked ") and len(line.split()) > 3}
    known = HostKeys()
    for line in lines:
        # Marked ones are certificate authorities, which Paramiko does not know.
        if not line or line.startswith(("#", "@")):
            continue
        with suppress(paramiko.SSHException, ValueError):
            entry = HostKeyEntry.from_line(line)
            if entry is None or entry.key.get_base64() in revoked:
                continue
            for name in entry.hostnames:
                known.add(name, entry.key.get_name(), entry.key)
    return known


def _said(error: Exception) -> str:
    if isinstance(error, paramiko.PasswordRequiredException):
        return f"a key has a passphrase: {error}"
    if isinstance(error, socket.timeout):
        return "it does not answer in time"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text or ("the connection has ended" if isinstance(error, EOFError) else type(error).__name__)
