"""An SSH connection by Fabric: opened within a time limit, to the host that is known, and explained when it fails.

Fabric accepts any host key unless it is told otherwise, and goes through jump hosts without a time limit; so both are
done here.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import threading
import time
from contextlib import suppress
from typing import Any, NamedTuple

from etcdops.errors import EtcdopsError, HostUnreachable
from etcdops.remote.inventory import HostSpec
from etcdops.remote.known_hosts import KnownKey, Shown, fingerprint, known_keys, preferred, record
from etcdops.remote.ssh_config import Target, resolve

__all__ = ["CONNECT_S", "Connected", "answers", "connect"]

#: How long a host may take to answer at all, unless ~/.ssh/config has a ConnectTimeout, and how long until it has let
#: us in: one that is busy answers at once, since that is up to its kernel, and needs longer for the rest.
CONNECT_S = 5.0
_LET_IN_S = 10.0

_KEEPALIVE_S = 15
#: So long may what we have sent go unacknowledged before the kernel gives the connection up.
_SILENT_MS = 30_000
_DEEPEST = 8

#: What Paramiko says when the time is up; the last of these when that is before the host has shown its key.
_LATE = re.compile(r"[Tt]imeout|timed out|No existing session")

_SILENCE = logging.NullHandler()

#: Ciphers that authenticate as well: with others, each packet costs a hash in Python.
_QUICK_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")


class Connected(NamedTuple):
    """An open connection. `client` is Fabric's, `transport` Paramiko's; `way` are those on which it rests."""

    target: Target
    client: Any
    transport: Any
    way: tuple[Connected, ...] = ()
    proxy: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether it can still be used, as far as is known."""
        return bool(self.transport.is_active())

    def cut(self) -> None:
        """End it without waiting for anything. Whoever uses it sees that it has ended."""
        with suppress(OSError, EOFError):
            self.transport.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of it, and of those on the way."""
        for each in (self, *reversed(self.way)):
            # Paramiko's thread looks only ten times a second whether it shall end, but sees at once that this has.
            each.cut()
            # What is closed is of no more use, whatever it says.
            with suppress(OSError, EOFError):
                each.client.close()
            if each.proxy is not None:
                _end(each.proxy)


class _Limit(NamedTuple):
    """Until when a connection has to be there (monotonic), and how long each host on the way may take to answer."""

    deadline: float
    answer_s: float

    @property
    def left_s(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    @property
    def answer_left_s(self) -> float:
        return min(self.left_s, self.answer_s)


def connect(spec: HostSpec, *, timeout_s: float | None = None, accept_new: bool = False) -> Connected:
    """Give an open connection to a host, within `timeout_s` seconds.

    Without `timeout_s`, within what ~/.ssh/config gives as ConnectTimeout; else the host, and each on the way, has to
    answer within CONNECT_S seconds, and to have let us in within twice that. With `accept_new`, the key of a host of
    which nothing is known is recorded in the first of its known_hosts files; a key that has changed is refused all the
    same. Raises HostUnreachable.
    """
    target = resolve(spec)
    whole_s = timeout_s or target.timeout_s
    limit = _Limit(time.monotonic() + (whole_s or _LET_IN_S), whole_s or CONNECT_S)
    return _connect(target, limit, accept_new, 0)


def answers(spec: HostSpec, timeout_s: float) -> bool | None:
    """Whether a host answers at all within `timeout_s` seconds, however busy it is; None where that cannot be told."""
    target = resolve(spec)
    if target.jumps or target.command:
        return None
    try:
        socket.create_connection((target.host, target.port), timeout=timeout_s).close()
        return True
    except socket.gaierror:
        return None
    except OSError:
        return False


def _connect(target: Target, limit: _Limit, accept_new: bool, depth: int) -> Connected:
    if depth > _DEEPEST:
        raise HostUnreachable(
            f"the way to {target.described} leads through more than {_DEEPEST} jump hosts",
            host=target.name,
            kind="configuration",
            remedy="See ProxyJump in ~/.ssh/config: a host may be its own jump host.",
        )
    way: list[Connected] = []
    try:
        for index, hop in enumerate(target.jumps):
            told = resolve(hop)
            # Only the first of several is reached as ~/.ssh/config says; the way to the others is through it.
            told = told if index == 0 else told._replace(jumps=(), command="")
            way.append(_over(told, way, limit, accept_new, depth + 1))
        return _over(target._replace(jumps=()), way, limit, accept_new, depth)
    except BaseException:
        for each in reversed(way):
            each.close()
        raise


def _over(target: Target, way: list[Connected], limit: _Limit, accept_new: bool, depth: int) -> Connected:
    if target.jumps:
        return _connect(target, limit, accept_new, depth)
    policy = _Policy(target, accept_new)
    proxy: subprocess.Popen[bytes] | None = None
    try:
        if target.command and not way:
            sock, proxy = _proxied(target.command)
        else:
            sock = _socket(target, way[-1].transport if way else None, limit)
        try:
            client = _open(target, sock, policy, limit)
        except BaseException:
            sock.close()
            if proxy is not None:
                _end(proxy)
            raise
    except EtcdopsError:
        raise
    except Exception as error:
        raise _explained(target, error, way, policy) from error
    return Connected(target, client, client.client.get_transport(), tuple(way), proxy)


def _socket(target: Target, through: Any, limit: _Limit) -> Any:
    if through is not None:
        place = (target.host, target.port)
        return _Through(through.open_channel("direct-tcpip", place, ("127.0.0.1", 0), timeout=limit.answer_left_s))
    sock = socket.create_connection((target.host, target.port), timeout=limit.answer_left_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_MS)
    return sock


class _Through:
    """A channel to another host that does not mind being closed when the connection on which it rests is gone."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def shutdown(self, how: int) -> None:
        """End it in both directions, as far as that is known here: the host on the way may be dead."""
        threading.Thread(target=self.close, daemon=True).start()

    def close(self) -> None:
        """Let go of it."""
        with suppress(OSError, EOFError):
            self._channel.close()


def _proxied(command: str) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start a ProxyCommand, and give a socket that leads to it. Paramiko's own is never waited for."""
    ours, its = socket.socketpair()
    with its:
        # As ssh does: the user's own configuration is a line for a shell.
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command}"], stdin=its.fileno(), stdout=its.fileno(), start_new_session=True
        )
    return ours, process


def _end(proxy: subprocess.Popen[bytes]) -> None:
    proxy.terminate()
    try:
        proxy.wait(2)
    except subprocess.TimeoutExpired:
        proxy.kill()
        proxy.wait(2)


def _open(target: Target, sock: Any, policy: _Policy, limit: _Limit) -> Any:
    import fabric
    import paramiko

    # Without a handler, Python prints what Paramiko logs, and that is no more than what we raise.
    logging.getLogger("paramiko").addHandler(_SILENCE)

    def transport(given: Any, **options: Any) -> Any:
        made = paramiko.Transport(given, **options)
        security = made.get_security_options()
        security.ciphers = _first(_QUICK_CIPHERS, security.ciphers)
        security.key_types = _first(preferred(policy.known), security.key_types)
        return made

    left = limit.left_s
    # No configuration of Fabric's own: it might change what is checked.
    config = fabric.Config(lazy=True, ssh_config=paramiko.SSHConfig())
    opened = fabric.Connection(
        target.host,
        user=target.user,
        port=target.port,
        config=config,
        gateway=False,
        connect_kwargs={
            "sock": sock,
            "timeout": left,
            "banner_timeout": left,
            "auth_timeout": left,
            "key_filename": list(target.keys),
            "look_for_keys": not target.keys,
            "allow_agent": target.agent,
            "transport_factory": transport,
        },
    )
    opened.client.set_missing_host_key_policy(policy)
    try:
        opened.open()
    except BaseException:
        opened.client.close()
        raise
    opened.client.get_transport().set_keepalive(_KEEPALIVE_S)
    return opened


def _first(wanted: Any, offered: Any) -> list[str]:
    chosen = [each for each in wanted if each in offered]
    return [*chosen, *(each for each in offered if each not in chosen)]


class _Policy:
    """Decides about the key that a host shows.

    Paramiko asks only for hosts of which it knows nothing; since it is told of none, that is every time.
    """

    def __init__(self, target: Target, accept_new: bool) -> None:
        self.known = known_keys(target.known_hosts, target.known_as)
        self._target = target
        self._accept_new = accept_new

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        """Return for a key that is known; else record it, if that is wished and nothing was known, or raise."""
        shown = Shown(key.get_name(), key.asbytes())
        same = [known for known in self.known if known.blob == shown.blob]
        if revoked := next((known for known in same if known.revoked), None):
            raise self._changed(shown, [revoked])
        if same:
            return
        if self.known:
            raise self._changed(shown, self.known)
        target = self._target
        if self._accept_new:
            record(target.known_hosts[0], target.known_as, shown)
            return
        raise HostUnreachable(
            f"the key of host {target.described} is not known: it shows {shown.kind} {fingerprint(shown.blob)}, and"
            f" {target.known_hosts[0]} has no line for {target.known_as}",
            host=target.name,
            kind="unknown-key",
            remedy="Compare that fingerprint with the host's own (`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`"
            f" there). If it is the same, `hosts.check --accept-new-host-keys` records it, as `ssh {target.login}`"
            " does.",
        )

    def _changed(self, shown: Shown, known: list[KnownKey]) -> HostUnreachable:
        target, first = self._target, known[0]
        of_kind = next((each for each in known if each.kind == shown.kind), first)
        what = "is revoked in" if of_kind.revoked else f"is not {of_kind.kind} {fingerprint(of_kind.blob)}, as in"
        return HostUnreachable(
            f"the key of host {target.described} has changed: {shown.kind} {fingerprint(shown.blob)} {what}"
            f" {of_kind.file}, line {of_kind.line}. Somebody else may be answering in its place",
            host=target.name,
            kind="changed-key",
            remedy="Ask who runs the host. Only if it was really given a new key:"
            f" `ssh-keygen -f {of_kind.file} -R '{target.known_as}'`, and accept the new one.",
        )


def _explained(target: Target, error: Exception, way: list[Connected], policy: _Policy) -> HostUnreachable:
    """Say what an error of a socket's or of Paramiko's means: which host, what was tried, what to do."""
    import paramiko

    through = f" through {way[-1].target.name}" if way else f" by `{target.command}`" if target.command else ""
    tried = f"cannot connect to host {target.described}{through}"
    by_hand = f"`ssh {target.login}` must work without a question"
    kind, said, remedy = "unreachable", "", f"See whether it is up; {by_hand}."
    text = str(error)
    if isinstance(error, paramiko.PasswordRequiredException) or "passphrase" in text.lower():
        kind, said = "authentication", "its key has a passphrase"
        remedy = f"Give it to your agent: `ssh-add {target.keys[0] if target.keys else ''}".rstrip() + "`."
    elif isinstance(error, paramiko.AuthenticationException) or text == "No authentication methods available":
        tries = ", ".join(target.keys) or "the keys in ~/.ssh"
        agent = " and your agent's" if target.agent and os.environ.get("SSH_AUTH_SOCK") else ""
        kind, said = "authentication", f"user {target.user} is not let in with {tries}{agent}: {text}"
        remedy = f"{by_hand}: `ssh-copy-id` puts your key there; name another with `key` or `user` in the inventory."
    elif isinstance(error, socket.gaierror):
        said = f"there is no address for this name ({error.strerror})"
        remedy = "Correct the name, or give the host's `address`."
    elif isinstance(error, ConnectionRefusedError) or "Connection refused" in text:
        kind, said = "refused", "connection refused: nothing listens there"
        remedy = f"See whether sshd runs there, and at that port; {by_hand}."
    elif isinstance(error, TimeoutError | socket.timeout) or _LATE.search(text):
        said = "no answer in time"
    elif isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
        kind, said = "configuration", text
        remedy = "Its SSH server and ours have no method in common: update the server."
    elif "protocol banner" in text:
        said = f"what answers is no SSH server, or one that turns us away ({text})"
    elif isinstance(error, OSError) and error.strerror:
        said = error.strerror.lower()
    elif isinstance(error, EOFError):
        said = "the connection was closed"
    return HostUnreachable(
        f"{tried}: {said or text or type(error).__name__}", host=target.name, kind=kind, remedy=remedy
    )
