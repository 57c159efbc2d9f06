"""A terminal of our own, to see what a person at one sees."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time

from tests.conftest import CommandLine


class Terminal:
    """A command on a terminal of its own: its controlling terminal, and its stdin, stdout and stderr."""

    def __init__(self, line: CommandLine, *args: str, program: str = "etcdops", **env: str) -> None:
        self.text = ""
        self._ours, theirs = pty.openpty()
        name = os.ttyname(theirs)
        # A session leader without a terminal gets the first one that it opens as its own.
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", f'exec "$@" <{name} >{name} 2>&1', "sh", *line.argv(*args, program=program)],
            cwd=line.cwd,
            env={**line.env, "TERM": "xterm", **env},
            start_new_session=True,
        )
        # The slave stays open until the end: without it, reading before the command has opened it would fail.
        self._theirs = theirs

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._theirs)
        os.close(self._ours)

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._ours], [], [], timeout_s)[0]:
            return False
        self.text += os.read(self._ours, 65536).decode(errors="replace")
        return True

    def expect(self, text: str, timeout_s: float = 30.0) -> None:
        """Wait until `text` has been shown."""
        deadline = time.monotonic() + timeout_s
        while text not in self.text:
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"{text!r} was not shown within {timeout_s:.0f} s, but {self.text!r}"
            if not self._read(min(left_s, 0.2)) and self.process.poll() is not None:
                assert self._read(0) or text in self.text, f"it ended without {text!r}: {self.text!r}"

    def type(self, text: str) -> None:
        """Type something; "\\x03" is Ctrl-C."""
        os.write(self._ours, text.encode())

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for the end, and give the exit code as a shell would."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it goes on after {timeout_s:.0f} s: {self.text!r}"
            self._read(0.05)
        while self._read(0):
            pass
        assert "Traceback" not in self.text, self.text
        code = self.process.returncode
        return 128 - code if code < 0 else code
