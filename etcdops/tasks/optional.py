"""Tasks of which one argument may stand as a word of its own, or not be there at all; and help for all of them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from invoke.collection import Collection
from invoke.parser.argument import Argument
from invoke.tasks import Task

__all__ = ["may_take", "show_help", "takes_more"]

F = TypeVar("F", bound=Callable[..., Any])


def may_take(
    task_name: str, argument: str, *, after: int = 0, even_a_task: bool = False, many: bool = False
) -> type[Task[Any]]:
    """Give a class for the task `task_name` (as it is typed) whose `argument` may be a word of its own, or absent.

    It stands `after` so many words that have to be there. With `many` all words that follow are its: the second and the
    others come to the task's function as further keywords, in order (see `takes_more`).

    Invoke knows positional arguments that have to be there, and none that may; which of the two it is here is seen in
    the command line. A word that is a task's name is that task (`snapshot.save ./status` writes a file of that name),
    but not with `even_a_task`: there, words are meant to be such names.
    """

    class MayTake(Task[Any]):
        def get_arguments(self, *args: Any, **kwargs: Any) -> list[Argument]:
            """Give what the parser takes."""
            arguments: list[Argument] = super().get_arguments(*args, **kwargs)
            takes_value = {name for each in arguments if each.takes_value for name in each.names}
            if _has_word(sys.argv, task_name, takes_value, after, even_a_task):
                for each in arguments:
                    each.positional = each.positional or each.name == argument
                count = len(_words(sys.argv, task_name, takes_value)) if many else 1
                arguments += [Argument(name=f"{argument}{n}", positional=True) for n in range(2, count + 1)]
            return arguments

    return MayTake


def takes_more(body: F) -> F:
    """Hide a function's `**more` from Invoke, which would make it one more word that has to be there."""
    signature = inspect.signature(body)
    kept = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    body.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return body


def show_help(tasks: Collection) -> None:
    """Have `NAME --help` show the help of each task, also where a word of its own has to follow NAME.

    Invoke would take `--help` for that word.
    """
    for name in tasks.task_names:
        task = tasks[name]
        task.__class__ = _with_help(type(task), name)


def _with_help(kind: type[Task[Any]], task_name: str) -> type[Task[Any]]:
    class WithHelp(kind):  # type: ignore[misc, valid-type]  # whatever class the task has
        def get_arguments(self, *args: Any, **kwargs: Any) -> list[Argument]:
            """Give what the parser takes; of the words that have to be there, those before a `--help`."""
            arguments: list[Argument] = super().get_arguments(*args, **kwargs)
            before = _words_before_help(sys.argv, task_name, arguments)
            if before is not None:
                for each in [each for each in arguments if each.positional][before:]:
                    each.positional = False
            return arguments

    return WithHelp


def _words_before_help(argv: Sequence[str], task_name: str, arguments: Sequence[Argument]) -> int | None:
    """Give how many words stand between a task and a `--help` for it, None if there is none."""
    if task_name not in argv[1:]:
        return None
    takes_value = {name for each in arguments if each.takes_value for name in each.names}
    own = {name for each in arguments for name in each.names}
    count = 0
    words = iter(argv[argv.index(task_name, 1) + 1 :])
    for word in words:
        if word == "--":
            break
        if word == "--help" or (word == "-h" and "h" not in own):
            return count
        if word.startswith("-") and len(word) > 1:
            if word.lstrip("-") in takes_value:
                next(words, None)
            continue
        count += 1
    return None


def _has_word(
    argv: Sequence[str], task_name: str, takes_value: set[str], after: int, even_a_task: bool = False
) -> bool:
    """Whether, in a command line, a word follows the task that is no flag, no flag's value and (see above) no task.

    The first `after` words are not that one, whatever they are.
    """
    words = _words(argv, task_name, takes_value)[after:]
    if not words:
        return False
    from etcdops.tasks import namespace

    return even_a_task or words[0] not in namespace.task_names


def _words(argv: Sequence[str], task_name: str, takes_value: set[str]) -> list[str]:
    """Give the words after a task that are no flags, and no flags' values."""
    start = next((i for i, word in enumerate(argv) if word.rpartition(task_name)[1:] == (task_name, "")), 0)
    found: list[str] = []
    words = iter(argv[start + 1 :] if start else ())
    for word in words:
        if word == "--":
            break
        if word.startswith("-") and len(word) > 1:
            if word.lstrip("-") in takes_value:
                next(words, None)
            continue
        found.append(word)
    return found
