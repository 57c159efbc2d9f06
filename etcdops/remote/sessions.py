"""One command on a remote host: a channel of its own on a connection, read until it ends or its time is up."""

from __future__ import annotations

import re
import select
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from etcdops.errors import ConnectionLost, EtcdopsError
from etcdops.hosts import Completed

__all__ = ["Session", "Sessions"]

#: sshd allows 10 sessions on a connection unless it is told otherwise (MaxSessions).
_AT_ONCE = 8
#: A host that does not even take word that a command shall end is given up after so long, connection and all.
_ENDS_S = 2.0
_PIECE_BYTES = 2**17
#: How soon a session is asked for again, and for how long although none of ours is open.
_AGAIN_S, _NOTICED_S = 0.1, 3.0
#: For how long a connection that has ended may still be taken for one that goes on.
_SAYS_SO_S = 0.5


class Sessions:
    """The channels of one connection; those that are too many wait for their turn."""

    def __init__(self, transport: Any, name: str) -> None:
        self.transport = transport
        self.name = name
        self._turns = threading.BoundedSemaphore(_AT_ONCE)
        self._changed = threading.Condition()
        self._open = 0

    def opened(self, deadline: float) -> Any:
        """Give a new channel. Raises ConnectionLost, or EtcdopsError when there is none in time."""
        from paramiko.ssh_exception import ChannelException, SSHException

        if not self._turns.acquire(timeout=max(deadline - time.monotonic(), 0.001)):
            raise EtcdopsError(f"host {self.name} is busy: {_AT_ONCE} commands run there, and none has ended in time")
        alone_since = time.monotonic()
        try:
            while True:
                try:
                    channel = self.transport.open_session(timeout=max(deadline - time.monotonic(), 0.001))
                    break
                except (SSHException, EOFError, OSError) as error:
                    # Of several that are turned away at the same time, Paramiko tells only one so.
                    turned_away = isinstance(error, ChannelException) or str(error) == "Unable to open channel."
                    if not (turned_away and self.transport.is_active()):
                        raise self.lost(error) from error
                    # Fewer than usual are allowed: others of ours have to end first, and sshd has to have noticed.
                    with self._changed:
                        self._changed.wait(_AGAIN_S)
                        if self._open:
                            alone_since = time.monotonic()
                    if time.monotonic() > min(alone_since + _NOTICED_S, deadline):
                        raise EtcdopsError(
                            f"the SSH server of host {self.name} allows no session: {error}",
                            remedy="See MaxSessions in its sshd_config, and whether this user may run commands.",
                        ) from error
        except BaseException:
            self._turns.release()
            raise
        with self._changed:
            self._open += 1
        return channel

    def closed(self, channel: Any) -> None:
        """Let go of a channel."""
        with suppress(OSError, EOFError):
            channel.close()
        with self._changed:
            self._open -= 1
            self._changed.notify_all()
        self._turns.release()

    def has_ended(self) -> bool:
        """Whether the connection has ended, of which its channels learn a moment before it says so itself."""
        deadline = time.monotonic() + _SAYS_SO_S
        while self.transport.is_active() and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self.transport.is_active()

    def lost(self, error: BaseException | None = None) -> ConnectionLost:
        """Give the error for a connection that has ended by itself."""
        cause = error or self.transport.saved_exception
        closed = cause is None or isinstance(cause, EOFError)
        said = "the other side closed it" if closed else str(cause) or type(cause).__name__
        return ConnectionLost(
            f"the connection to host {self.name} was lost: {said}",
            remedy="What ran there may go on, or not. `hosts.check` shows whether the host answers again.",
        )


class Session:
    """A command that runs on a host."""

    def __init__(self, sessions: Sessions, argv: Sequence[str], line: bytes, *, mark: str) -> None:
        self._sessions = sessions
        self._argv = argv
        self._line = line
        self._mark = re.compile(re.escape(mark.encode()) + rb" (\d+|missing)\n")
        self._group = 0
        self._late = threading.Event()
        self._ended = threading.Event()
        self._failed: BaseException | None = None
        self._channel: Any = None

    def run(
        self,
        *,
        timeout_s: float,
        stdin: bytes | Iterator[bytes] = b"",
        on_data: Callable[[bytes], None] | None = None,
    ) -> Completed | None:
        """Run it to its end; None if there is no such command. `on_data` gets stdout instead of the result.

        Raises EtcdopsError when it takes longer than `timeout_s` seconds, and ends it there as far as sshd lets us;
        ConnectionLost when the connection ends first.
        """
        from paramiko.ssh_exception import SSHException

        deadline = time.monotonic() + timeout_s
        self._channel = self._sessions.opened(deadline)
        limit = threading.Timer(max(deadline - time.monotonic(), 0.001), self._end_late)
        limit.daemon = True
        limit.start()
        try:
            try:
                self._channel.exec_command(self._line)
                self._feed(stdin)
                done = self._read(on_data)
            except (SSHException, EOFError, OSError) as error:
                if self._late.is_set() or self._failed:
                    done = Completed(-1, b"", b"")
                elif not self._sessions.has_ended():
                    raise EtcdopsError(
                        f"the SSH server of host {self._sessions.name} does not run commands: {error}",
                        remedy="See whether this user's sshd_config or authorized_keys forces another command.",
                    ) from error
                else:
                    raise self._sessions.lost(error) from error
        except BaseException:
            self.end()
            raise
        finally:
            limit.cancel()
            self._ended.set()
            self._sessions.closed(self._channel)
        if self._failed:
            raise self._failed
        if self._late.is_set():
            raise EtcdopsError(
                f"`{shlex.join(self._argv)}` did not end within {timeout_s:.0f} s on {self._sessions.name}"
            )
        return self._told(done)

    def _told(self, done: Completed) -> Completed | None:
        if done.exit_code == 127 and b"missing" in self._mark.findall(done.stderr):
            return None
        done = done._replace(stderr=self._mark.sub(b"", done.stderr, count=1))
        if done.exit_code >= 0:
            return done
        if self._sessions.has_ended():
            raise self._sessions.lost()
        raise EtcdopsError(
            f"`{shlex.join(self._argv)}` was ended on {self._sessions.name} together with its shell",
            remedy="See whether that host ends commands of this user, or is out of memory.",
        )

    # -- what goes there

    def _feed(self, stdin: bytes | Iterator[bytes]) -> None:
        # Where nothing is to be read, no end of it is sent either. Paramiko may send that after word that the command
        # has ended and the channel is closed, and sshd ends the whole connection for it (paramiko's issue 1115).
        if stdin != b"":
            threading.Thread(target=self._send, args=(stdin,), daemon=True).start()

    def _send(self, stdin: bytes | Iterator[bytes]) -> None:
        from paramiko.ssh_exception import SSHException

        try:
            for piece in [stdin] if isinstance(stdin, bytes) else stdin:
                for at in range(0, len(piece), _PIECE_BYTES):
                    try:
                        self._channel.sendall(piece[at : at + _PIECE_BYTES])
                    except (OSError, EOFError, SSHException):
                        # It has ended without reading everything, which is its own affair.
                        return
            with suppress(OSError, EOFError, SSHException):
                self._channel.shutdown_write()
        except BaseException as error:
            # A file that cannot be read any more, say. What has arrived must not be taken for all.
            self._failed = error
            self.end()

    # -- what comes from there

    def _read(self, on_data: Callable[[bytes], None] | None) -> Completed:
        channel = self._channel
        out, errors = bytearray(), bytearray()
        take = on_data or out.extend
        # One thread reads both: a stream that nobody reads would fill the window that the two share.
        arrived = select.poll()
        arrived.register(channel.fileno(), select.POLLIN)
        while True:
            over = channel.eof_received or channel.closed
            while channel.recv_ready():
                take(channel.recv(_PIECE_BYTES))
            while channel.recv_stderr_ready():
                errors += channel.recv_stderr(_PIECE_BYTES)
                if not self._group and (told := self._mark.search(errors)) and told[1] != b"missing":
                    self._group = int(told[1])
            if over:
                break
            arrived.poll(1000)
        # Comes after the output, or never: with the end of the channel at the latest this is set.
        while not channel.status_event.wait(1.0):
            if not self._sessions.transport.is_active():
                break
        return Completed(channel.exit_status, bytes(out), bytes(errors))

    # -- its end

    def _end_late(self) -> None:
        if not self._ended.is_set():
            self._late.set()
            self.end()

    def end(self) -> None:
        """End the command there, and all that it has started in its group. Does not wait for a host that is dead."""
        if self._channel is None or self._ended.is_set():
            return
        ending = threading.Thread(target=self._kill, daemon=True)
        ending.start()
        ending.join(_ENDS_S)
        if ending.is_alive():
            # Nothing leaves here any more: the host is gone, or the way to it.
            self._sessions.transport.close()

    def _kill(self) -> None:
        from paramiko.common import cMSG_CHANNEL_REQUEST
        from paramiko.message import Message
        from paramiko.ssh_exception import SSHException

        transport = self._sessions.transport
        message = Message()
        message.add_byte(cMSG_CHANNEL_REQUEST)
        message.add_int(self._channel.remote_chanid)
        message.add_string("signal")
        message.add_boolean(False)
        message.add_string("KILL")
        # Closing alone would leave it running. OpenSSH sends no command of root's a signal (RFC 4254, 6.9), so another
        # command does it as well; where that is one session too many, the signal has to do.
        with suppress(OSError, EOFError, SSHException):
            transport._send_user_message(message)
        if self._group:
            with suppress(OSError, EOFError, SSHException):
                killer = transport.open_session(timeout=_ENDS_S)
                killer.settimeout(_ENDS_S)
                killer.exec_command(f"kill -s KILL -- -{self._group}")
                killer.recv(1)
                killer.close()
        with suppress(OSError, EOFError, SSHException):
            self._channel.close()
