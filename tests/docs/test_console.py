"""The comparison of what a document shows with what was printed notices what it should, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.console import Shell, commands, differs
from tests.docs.markdown import Block, anchors, blocks

PLACE = Path("/tmp/somewhere/you")


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("a\n...\nz\n", "a\nz\n"),
        ("a\n...\nz\n", "a\nb\nc\nz\n"),
        ("...\nz\n", "z\n"),
        ("from ... to z\n", "from a to z\n"),
        ("09:23:38 starting thor\n", "11:00:01 starting thor\n"),
        ("http://127.0.0.1:20482\n", "http://127.0.0.1:31999\n"),
        ("09:23:44 thor leads in term 2\n", "09:23:45 deadpool leads in term 17\n"),
        ("  writes   391 acknowledged, 0 lost\n", "  writes   1,803 acknowledged, 0 lost\n"),
        ("report /home/you/lab/verdict.md\n", "report /tmp/somewhere/you/lab/verdict.md\n"),
        ("up\n", "up\nwarning known-bad: etcd 3.5.1: members diverge silently\n"),
        ("up\n", "11:00:01 members run as processes: no Docker engine answers\nup\n"),
        ("etcdops/etcd:3.5.30  3.5.30  amd64\n", "etcdops/etcd:3.4.23   3.4.23   amd64\n"),
        ("container a6fce83f6b23 of etcdops-lab-cd9a03_peer\n", "container 707e384c0fcd of etcdops-lab-00aa11_peer\n"),
    ],
)
def test_what_may_differ_may(shown: str, printed: str) -> None:
    """Ellipses stand for anything, and who leads, when, where and for how long may differ."""
    assert not differs(shown, printed, PLACE)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("a\n...\nz\n", "a\nb\n"),
        ("a\nz\n", "a\nb\nz\n"),
        ("b\na\n", "a\nb\n"),
        ("from ... to z\n", "from a\nto z\n"),
        ("1,803 acknowledged, 0 lost\n", "1,803 acknowledged, 1 lost\n"),
        ("failed-leader (kill thor): PASSED\n", "failed-leader (kill thor): DEVIATED\n"),
        ("lab: healthy: 3/3 voters healthy\n", "lab: degraded: 2/3 voters healthy\n"),
        ("thor  ID  leader  healthy  2  5  0  20 KiB\n", "thor  ID  leader  unhealthy  2  5  0  20 KiB\n"),
        ("exit code 3\n", "exit code 2\n"),
        ("created and started ironman, thor\n", "created and started ironman, hulk\n"),
        ("warning known-bad: ...\n", "up\n"),
        ("09:23:38 members run as processes: ...\n", "11:00:01 members run in containers: Docker is here\n"),
        ("in volume etcdops-lab-cd9a03_thor-g1\n", "in volume etcdops-lab-cd9a03_thor-g2\n"),
        ("", "something\n"),
    ],
)
def test_what_must_not_differ_is_noticed(shown: str, printed: str) -> None:
    """A line that is missing, too many, in another place, or that says something else is a difference."""
    assert differs(shown, printed, PLACE)


def test_commands_and_their_output_are_told_apart() -> None:
    """A line that begins with a dollar is typed, and indented ones are shown: a drill prints commands too."""
    block = Block("console", "$ one\nout\n      $ kill 1\n$ two\n", 10)
    assert commands(block) == [(10, "one", "out\n      $ kill 1\n"), (13, "two", "")]


def test_shell_remembers_directory_and_variables(tmp_path: Path) -> None:
    """The next command finds the directory and the exported variables of the one before, and its own exit code."""
    shell = Shell(tmp_path, {"PATH": "/usr/bin:/bin"})
    assert shell.run("mkdir deeper && cd deeper && export NAME='a b'") == (0, "")
    assert shell.run('basename "$PWD"; echo "$NAME" >&2; (exit 5)') == (5, "deeper\na b\n")


def test_a_command_that_does_not_end_is_ended(tmp_path: Path) -> None:
    """A deadline ends the command with all that it started, and says what it had printed."""
    shell = Shell(tmp_path, {"PATH": "/usr/bin:/bin"})
    with pytest.raises(AssertionError, match=r"did not end(?s:.)*so far"):
        shell.run("echo so far; sleep 60 | sleep 60", deadline_s=0.5)


def test_fences_and_headings_are_understood() -> None:
    """Blocks keep their language and line; headings in blocks are none; equal headings get anchors of their own."""
    text = "# A `b`, c\n\n```sh\n# no heading\n```\n\n## Same\n## Same\n"
    assert blocks(text) == [("sh", "# no heading\n", 4)]
    assert anchors(text) == ["a-b-c", "same", "same-1"]
    with pytest.raises(AssertionError, match="never closed"):
        blocks("```sh\n")
