"""The Invoke program behind `etcdops`: the same tasks, the project's own configuration, and exit code 2 for usage."""

from __future__ import annotations

import os
import sys

from invoke.exceptions import ParseError
from invoke.program import Program

from etcdops.tasks import namespace

__all__ = ["program"]


class _Program(Program):
    def create_config(self) -> None:
        """Load the project's invoke.yaml as well: Invoke does so only where it loads the tasks from a file itself."""
        super().create_config()
        self.config.set_project_location(os.getcwd())
        self.config.load_project()

    def parse_core(self, argv: list[str] | None) -> None:
        """Exit 2 for a command line that Invoke cannot parse; its own code for that is 1, which means "failed" here."""
        self._or_usage(lambda: Program.parse_core(self, argv))

    def parse_tasks(self) -> None:
        """As `parse_core`."""
        self._or_usage(lambda: Program.parse_tasks(self))

    @staticmethod
    def _or_usage(parse) -> None:  # type: ignore[no-untyped-def]
        try:
            parse()
        except ParseError as error:
            sys.stderr.write(f"{error}\n  -> `etcdops --list` shows every command, `etcdops --help NAME` its flags.\n")
            sys.exit(2)


def _version() -> str:
    from importlib.metadata import version

    return version("etcdops")


class _Lazy:
    """The version, looked up only when it is printed: reading a distribution's metadata takes time."""

    def __str__(self) -> str:
        return _version()


program = _Program(name="etcdops", binary="etcdops", namespace=namespace, version=_Lazy())  # type: ignore[arg-type]
