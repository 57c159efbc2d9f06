"""The command line that a remote shell gets: the one place where anything is quoted for it.

sshd hands a command to the user's login shell as one text. Everything of it that is not ours stands in single quotes,
within which a POSIX shell (sh, bash, dash, ksh, zsh, busybox) interprets nothing. `shlex.join` leaves some words bare,
which is not enough here: `A=b` as the first word would be an assignment, and `=ls` a path to zsh.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from etcdops.errors import SpecError

__all__ = ["LONGEST_BYTES", "command_line", "quote"]

#: Linux takes no single argument that is longer (MAX_ARG_STRLEN), and the whole line is one to the login shell.
LONGEST_BYTES = 128 * 1024 - 1

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def quote(word: str) -> bytes:
    """Give a word as a POSIX shell reads it back, byte for byte. Raises SpecError for what no argument can hold."""
    if "\0" in word:
        raise SpecError(f"{word!r} holds a NUL byte, which no argument of a command can")
    return b"'" + word.encode("utf-8", "surrogateescape").replace(b"'", b"'\"'\"'") + b"'"


def command_line(argv: Sequence[str], *, mark: str, env: Mapping[str, str] | None = None, stdin: bool = False) -> bytes:
    """Give the line that runs `argv` and nothing else, in `env` alone if that is given.

    It runs the program of that name, never a function, an alias or a builtin of the shell's; unless it has `stdin`,
    there is nothing to read for it. First a line goes to stderr: `mark` and the process id of the shell, which leads
    the group of all that it starts. Where there is no such program, `mark` and "missing" follow, and it exits 127. A
    program that dies of a signal exits 128 + its number.
    Raises SpecError for what cannot be an argument, and for a line that would be too long.
    """
    if not argv or not argv[0] or argv[0].startswith("-"):
        raise SpecError(f"{argv[0] if argv else ''!r} cannot be a command")
    name = quote(argv[0])
    words = b" ".join(map(quote, argv[1:]))
    if env is None:
        run = b"exec " + name
    else:
        for variable in env:
            if not _VARIABLE.fullmatch(variable):
                raise SpecError(f"{variable!r} cannot be the name of a variable of the environment")
        if "=" in argv[0]:
            raise SpecError(f"{argv[0]!r} cannot be a command: it would be taken for a variable")
        values = b" ".join(quote(f"{variable}={value}") for variable, value in env.items())
        # Looked up before the environment is replaced: its PATH need not lead to env itself.
        run = b"exec env -i " + values + b' "$(command -v ' + name + b')"'
    line = (
        b'echo "' + mark.encode() + b' $$" >&2; command -v ' + name + b" >/dev/null 2>&1 || { echo "
        b'"' + mark.encode() + b' missing" >&2; exit 127; }; '
        # The shell stays, to tell of a signal as shells do.
        b"(" + run + b" " + words + (b")" if stdin else b") </dev/null") + b"; exit $?"
    )
    if len(line) > LONGEST_BYTES:
        raise SpecError(
            f"a command for a remote host is too long: {len(line):,} bytes, and {LONGEST_BYTES:,} are possible",
            remedy="Hand what is large over by stdin, or as a file.",
        )
    return line
