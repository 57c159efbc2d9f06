"""Runs the commands of ```console blocks as a reader would, and compares what they print with what is shown.

Lines that begin with `$ ` are typed; what follows, up to the next of them, is what a terminal shows: stdout and stderr.
`...` stands for anything within its line, and for any number of lines where it is a line of its own. What is different
each time (`_VOLATILE`) is compared by its form only, so that documents can show what really was printed. Every command
must exit 0: a document that shows a failure says `; echo "exit code $?"`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.docs.markdown import Block

#: What a reader's directory is called in the documents.
SHOWN_HOME = "/home/you"

_DEADLINE_S = 90.0

_NAME = "(ironman|thor|deadpool)"

#: Who leads, when, on which port and for how long differs each time; that it is said does not.
_VOLATILE = [
    (r"\b\d\d:\d\d:\d\d\b", "TIME"),
    (r"\d{4}-\d\d-\d\dT[\d:.+Z]+", "TIME"),
    (r"\b\d{8}-\d{6}-([a-z-]+)-[0-9a-f]{4}\b", r"RUN-\1"),
    (r"(?<=127\.0\.0\.1:)\d+", "PORT"),
    (r"(?<=\betcdops-lab-)[0-9a-f]{6}(?=[-_])", "CLUSTER"),
    (r"\b[0-9a-f]{12,16}\b", "ID"),
    (r"(?<=process )\d+", "PID"),
    (r"(?<=kill -)([A-Z]+) \d+", r"\1 PID"),
    (r"\b\d[\d,]*(?= (ms|MiB|KiB|acknowledged|failed|unknown|of them)\b)", "N"),
    (r"(?<=term )\d+", "N"),
    (r"(?<=etcd )\d+\.\d+\.\d+", "VERSION"),
    (r'(?<="etcd_version": )"[\d.]+"', "VERSION"),
    (r"(?<=etcdops/etcd:)\d+\.\d+\.\d+( +\d+\.\d+\.\d+)?", "VERSION"),
    (r"\b\d+\.\d(?= +TIME +image\.build)", "MEGABYTES"),
    (rf"\b{_NAME}(?= leads in)", "LEADER"),
    (rf"(?<=take ){_NAME}(?= away)|(?<=bring ){_NAME}(?= back)|(?<=until ){_NAME}(?= has)", "LEADER"),
    (rf"(?<=isolate ){_NAME}|(?<=--alias ){_NAME}(?=\.peer)", "LEADER"),
    (rf"(?<=kill ){_NAME}|(?<=freeze ){_NAME}|(?<=stop ){_NAME}|(?<=kill of ){_NAME}|(?<=starting ){_NAME}$", "LEADER"),
    (rf"(?<=^TIME ){_NAME}(?= was )", "LEADER"),
    (rf"(?<=rejoined ){_NAME}|(?<= start ){_NAME}(?=, and| again)", "LEADER"),
    (rf"(?<=through ){_NAME}(?=, the worst)", "SURVIVOR"),
    (rf'(?<=; ){_NAME}(?=: N ms)|(?<="leader": "){_NAME}', "LEADER"),
    (r"(leader|follower) +(healthy|unhealthy) +\d+ +\d+ +\d+ +\S+ [KM]?i?B", r"ROLE \2 NUMBERS"),
    (r"\b\d+\.\d+\.\d+, \d+ [kM]?B, (true|false), false(, \d+){3}", "FIELDS"),
    (r"\b[\d.]+(?= s without a fault first\b)", "N"),
    (r" \(over less time than the fault lasted\)", ""),
    (r"(?<=\S) {2,}", " "),
]

#: What only some versions of etcd bring, other clusters of this machine, or what it has of Docker: left out unless a
#: document shows it.
_OPTIONAL = [
    re.compile(pattern)
    for pattern in (
        r"warning (known-bad|leftover|damaged)\b",
        r"  etcd .* is known-bad",
        r"TIME using etcd .* because ",
        r"TIME members run (as processes|in containers)\b",
        r"TIME using the image .* because ",
        r"TIME image ",
    )
]


class Command(NamedTuple):
    """One command of a document: its line number, what is typed, and what is shown to come."""

    line: int
    typed: str
    shown: str


def commands(block: Block) -> list[Command]:
    """Give the commands of a ```console block."""
    found: list[Command] = []
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        if line.startswith("$ "):
            found.append(Command(number, line[2:], ""))
        else:
            assert found, f"line {number}: output without a command"
            found[-1] = found[-1]._replace(shown=f"{found[-1].shown}{line}\n")
    return found


def differs(shown: str, printed: str, place: Path) -> str:
    """Give how `printed` differs from what is `shown`, or "" where it does not; `place` is the reader's home."""
    want, got = _plain(shown), _plain(printed.replace(str(place), SHOWN_HOME))
    for optional in _OPTIONAL:
        if not any(map(optional.match, want)):
            got = [line for line in got if not optional.match(line)]
    pattern = "".join(r"(?:.*\n)*?" if line.strip() == "..." else _line(line) for line in want)
    if re.fullmatch(pattern, "".join(f"{line}\n" for line in got)):
        return ""
    missing = [
        line for line in want if line.strip() != "..." and not any(re.fullmatch(_line(line), f"{g}\n") for g in got)
    ]
    return (
        "shown, and not printed:\n"
        + "".join(f"    {line}\n" for line in missing or ["(every line is there, but in another order)"])
        + "printed:\n"
        + "".join(f"    {line}\n" for line in got)
    )


def _plain(text: str) -> list[str]:
    lines = []
    for line in text.splitlines():
        for volatile, form in _VOLATILE:
            line = re.sub(volatile, form, line)
        lines.append(line.rstrip())
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _line(line: str) -> str:
    return ".*".join(re.escape(part) for part in line.split("...")) + r"\n"


class Shell:
    """A reader's shell: every command finds the directory and the exported variables that the one before left."""

    def __init__(self, cwd: Path, env: dict[str, str]) -> None:
        self._cwd = cwd
        self._env = env
        self._left = ""

    def run(self, typed: str, *, deadline_s: float = _DEADLINE_S) -> tuple[int, str]:
        """Run a command; give its exit code and what it printed on both streams, as a terminal shows them."""
        script = 'eval "$1"; eval "$2"; code=$?; { export -p; printf "cd %q\n" "$PWD"; } >"$3"; exit "$code"'
        with tempfile.NamedTemporaryFile("r", prefix="shell-") as left:
            ended = self._run(["bash", "-c", script, "bash", self._left, typed, left.name], typed, deadline_s)
            self._left = left.read()
        return ended

    def _run(self, argv: list[str], typed: str, deadline_s: float) -> tuple[int, str]:
        process = subprocess.Popen(
            argv,
            cwd=self._cwd,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            printed, _ = process.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            # The members of a cluster are in sessions of their own, and are taken down with it.
            os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
            raise AssertionError(f"`{typed}` did not end within {deadline_s:.0f} s; it printed:\n{printed}") from None
        return process.returncode, printed
