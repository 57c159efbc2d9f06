"""The Invoke program behind `etcdops`: the same tasks, the project's own configuration, and exit code 2 for usage."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from invoke.exceptions import Exit, ParseError
from invoke.program import Program

from etcdops.etcdctl import misplaced, without_dashes
from etcdops.paths import find_project_dir
from etcdops.tasks import namespace

__all__ = ["program"]

_USAGE = 2


class _Program(Program):
    def create_config(self) -> None:
        """Load the project's invoke.yaml as well: Invoke does so only where it loads the tasks from a file itself."""
        with_files: Callable[[], None] = super().create_config

        def load() -> None:
            with_files()
            project = find_project_dir()
            if project:
                self.config.set_project_location(project)
                self.config.load_project()

        _readable(load)

    def update_config(self, merge: bool = True) -> None:
        """Load what `--config` names, and see that everything that is configured goes together."""
        super_update: Callable[..., None] = super().update_config

        def update() -> None:
            super_update(merge=merge)
            path = self.args.config.value or os.environ.get("INVOKE_RUNTIME_CONFIG")
            if path and not os.path.exists(path):
                raise FileNotFoundError(f"there is no file {path}")
            # Invoke does these two just before it calls a task, where it cannot be told from an error of the task's.
            trial = self.config.clone()
            trial.load_collection(namespace.configuration())
            trial.load_shell_env()

        _readable(update)

    def parse_core(self, argv: list[str] | None) -> None:
        """Exit 2 for a command line that Invoke cannot parse; its own code for that is 1, which means "failed" here."""
        self._or_usage(lambda: Program.parse_core(self, argv))

    def parse_tasks(self) -> None:
        """As `parse_core`."""
        self._or_usage(lambda: Program.parse_tasks(self))

    def parse_cleanup(self) -> None:
        """As `parse_core`: this is where `--help NAME` and `--list NAME` are seen."""
        self._or_usage(lambda: Program.parse_cleanup(self))

    def _or_usage(self, parse: Callable[[], None]) -> None:
        remedy = "`etcdops --list` shows every command, `etcdops --help NAME` its flags."
        try:
            parse()
        except ParseError as error:
            words = misplaced(self.argv)
            if "ctl" in self.argv and words:
                hint = without_dashes(words)
                raise Exit(f"error: {hint}\n  -> {hint.remedy}", _USAGE) from None
            # Invoke shows its own object instead of the flag.
            said = re.sub(
                r"Flag <Argument: ([\w-]+)[^>]*>", lambda found: f"--{found[1].replace('_', '-')}", str(error)
            )
            raise Exit(f"{said}\n  -> {remedy}", _USAGE) from None
        except Exit as error:
            if not error.message:
                raise
            raise Exit(f"{error.message}\n  -> {remedy}", _USAGE) from None


def _readable(load: Callable[[], None]) -> None:
    """Load configuration, and exit 2 when it cannot be used: whatever the files hold is the user's."""
    try:
        load()
    except Exception as error:  # Invoke's loaders raise what YAML, JSON, int() or a Python file raises
        said = " ".join(str(error).split())
        raise Exit(
            f"error: Invoke's configuration cannot be used: {said or type(error).__name__}\n"
            "  -> Look at invoke.yaml, ~/.invoke.yaml, /etc/invoke.yaml, --config, and INVOKE_… in the environment.",
            _USAGE,
        ) from error


def _version() -> str:
    from importlib.metadata import version

    return version("etcdops")


class _Lazy:
    """The version, looked up only when it is printed: reading a distribution's metadata takes time."""

    def __str__(self) -> str:
        return _version()


program = _Program(name="etcdops", binary="etcdops", namespace=namespace, version=_Lazy())  # type: ignore[arg-type]
