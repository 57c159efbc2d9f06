"""Tasks of which one argument may stand as a word of its own, or not be there at all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from invoke.parser.argument import Argument
from invoke.tasks import Task

__all__ = ["may_take"]


def may_take(task_name: str, argument: str) -> type[Task[Any]]:
    """Give a class for the task `task_name` (as it is typed) whose `argument` may be a word of its own, or absent.

    Invoke knows positional arguments that have to be there, and none that may; which of the two it is here is seen in
    the command line. A word that is a task's name is that task: `snapshot.save ./status` writes a file of that name.
    """

    class MayTake(Task[Any]):
        def get_arguments(self, *args: Any, **kwargs: Any) -> list[Argument]:
            """Give what the parser takes."""
            arguments: list[Argument] = super().get_arguments(*args, **kwargs)
            takes_value = {name for each in arguments if each.takes_value for name in each.names}
            if _has_word(sys.argv, task_name, takes_value):
                for each in arguments:
                    each.positional = each.name == argument
            return arguments

    return MayTake


def _has_word(argv: Sequence[str], task_name: str, takes_value: set[str]) -> bool:
    """Whether, in a command line, a word follows the task that is no flag, no flag's value and no task."""
    start = next((i for i, word in enumerate(argv) if word.rpartition(task_name)[1:] == (task_name, "")), 0)
    if not start:
        return False
    words = iter(argv[start + 1 :])
    for word in words:
        if word.startswith("-") and len(word) > 1:
            if word.lstrip("-") in takes_value:
                next(words, None)
            continue
        from etcdops.tasks import namespace

        return word not in namespace.task_names
    return False
