"""What every task shares: flags and configuration, errors and signals as exit codes, asking, and what is said where."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from invoke.context import Context
from invoke.exceptions import Exit

from etcdops.errors import ConfirmationNeeded, EtcdopsError, Interrupted, SpecError

if TYPE_CHECKING:
    from etcdops.cluster import Cluster

__all__ = [
    "HELP",
    "attach",
    "colour",
    "command",
    "confirm",
    "emit",
    "emit_json",
    "emit_table",
    "flag",
    "is_offline",
    "is_yes",
    "json_text",
    "output_of",
    "say",
    "seconds",
    "warn_unhealed",
    "whole_number",
]

F = TypeVar("F", bound=Callable[..., Any])

#: Help texts of flags that several tasks have.
HELP = {
    "cluster": "which cluster (default: lab)",
    "output": "table (for people) or json (one document)",
    "yes": "do not ask",
    "member": "only this member; several separated by commas",
    "etcd-version": "which etcd, such as 3.5.16 (fixed when the cluster is created)",
    "etcd-bin": "an etcd binary, or the directory that holds it",
    "offline": "fetch nothing: use the etcd at hand",
    "size": "how many members: 1, 3, 5 or 7 (fixed when the cluster is created; default: 3)",
    "hosts": "Docker hosts for the members, reached by SSH: an inventory file, or names separated by commas",
    "runtime": "process, compose, or auto: compose where Docker and the image are here (fixed when created)",
    "tls": "mutual TLS between members, and with clients, by certificates made for this cluster (fixed when created)",
    "image": "which container image (fixed when the cluster is created; default: etcd's official one)",
}


def command(body: F) -> F:
    """Make a task end as a command should: errors and signals become messages and exit codes, never tracebacks."""

    @wraps(body)
    def ends_well(*args: Any, **kwargs: Any) -> Any:
        from etcdops.interrupts import handled

        _escape_what_cannot_be_written()
        try:
            with handled():
                return body(*args, **kwargs)
        except EtcdopsError as error:
            raise Exit(_message(error), error.exit_code) from error
        except Interrupted as error:
            raise Exit("interrupted", error.exit_code) from error
        except KeyboardInterrupt:
            raise Exit("interrupted", 130) from None
        except BrokenPipeError:
            # The reader (`head`, say) has enough.
            _drop_output()
            raise Exit(code=0) from None
        except UnicodeEncodeError as error:
            said = f"error: {error.object!a} cannot be expressed in this locale ({error.encoding})"
            raise Exit(f"{said}\n  -> Set LC_ALL=C.UTF-8.", 1) from error
        except OSError as error:
            _drop_output()
            raise Exit(f"error: {error}", 1) from error

    return ends_well  # type: ignore[return-value]


def _escape_what_cannot_be_written() -> None:
    """Write a letter that stdout's encoding lacks as an escape, as stderr does: a path may hold any."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Throw away what could not be written: Python would try again at exit, and print a traceback of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _message(error: EtcdopsError) -> str:
    return f"error: {error}" + (f"\n  -> {error.remedy}" if error.remedy else "")


def flag(context: Context, name: str, given: str | None) -> str:
    """Give a flag's value: as given, or from Invoke's configuration (`invoke.yaml`, INVOKE_ETCDOPS_NAME), or "".

    Raises SpecError for a flag that is given as "": in a script that is a variable without a value, and the default
    instead would act on another cluster than was meant.
    """
    if given == "":
        raise SpecError(f"--{name.replace('_', '-')} is given without a value", remedy="Leave it out for the default.")
    if given is not None:
        return given
    value = context.config.get("etcdops", {}).get(name)
    return "" if value is None else str(value)


def seconds(context: Context, given: str | None, default: int) -> float:
    """Give the --timeout that is asked for, in seconds; raise SpecError for what is none."""
    chosen = whole_number(flag(context, "timeout", given) or str(default), "timeout")
    if not 1 <= chosen <= 86_400:
        raise SpecError(f"--timeout {chosen} is not offered: 1 to 86400 seconds are")
    return float(chosen)


def whole_number(text: str, name: str) -> int:
    """Give the whole number that a flag's text is; raise SpecError otherwise."""
    try:
        return int(text)
    except ValueError:
        raise SpecError(f"--{name} {text!r} is not a whole number", remedy="Give digits alone, such as 5.") from None


def is_offline(context: Context, given: bool) -> bool:
    """Whether nothing may be fetched: --offline is given, or the configuration says so."""
    return given or is_yes(flag(context, "offline", None))


def is_yes(text: str) -> bool:
    """Whether what is configured means yes."""
    return text.lower() in ("1", "true", "yes")


def output_of(context: Context, given: str | None) -> str:
    """Give "table" or "json"; raise SpecError for anything else."""
    chosen = flag(context, "output", given) or "table"
    if chosen not in ("table", "json"):
        raise SpecError(f"-o {chosen!r} is not known", remedy="Choose table or json.")
    return chosen


def attach(context: Context, cluster: str | None, *, warn: bool = True) -> Cluster:
    """Take up the cluster that a task is about, and say so, with `warn`, if a dead run has left it unhealed."""
    from etcdops.cluster import Cluster

    name = flag(context, "cluster", cluster) or "lab"
    attached = Cluster.attach(name)
    if warn:
        warn_unhealed(name)
    return attached


def warn_unhealed(cluster: str) -> None:
    """Say on stderr if a run that has died left a fault in force. Costs one look for a file when there is none."""
    from etcdops.paths import find_state_dir

    if not os.path.exists(os.path.join(find_state_dir(), "clusters", cluster, "unhealed.json")):
        return
    from etcdops.faults.heal import dead, describe
    from etcdops.state import Store

    fault = Store.find().unhealed(cluster)
    if fault is not None and dead(fault):
        sys.stderr.write(f"warning: {describe(fault)}\n")


def say(text: str) -> None:
    """Tell a person what goes on: on stderr, with the time of day."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def emit(text: str) -> None:
    """Write data to stdout."""
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
    sys.stdout.flush()


def json_text(document: object) -> str:
    """Give a document as the JSON that a person can read as well."""
    import msgspec

    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def emit_json(document: object) -> None:
    """Write a document to stdout, as JSON."""
    emit(json_text(document))


def emit_table(rows: Sequence[Sequence[str]]) -> None:
    """Write rows to stdout, each column as wide as its widest cell; the first row has the headings."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    emit("\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows))


def colour(stream: Any = None) -> bool:
    """Whether colour is wanted: on a terminal, unless NO_COLOR is set (https://no-color.org) or it is a dumb one."""
    stream = stream or sys.stdout
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def confirm(question: str, *, yes: bool, name: str = "") -> None:
    """Ask before something is destroyed, or lost: for a yes, or, with `name`, for that name to be typed.

    Raises ConfirmationNeeded when the answer is another, or nobody can be asked.
    """
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfirmationNeeded(
            f"{question} Nobody can be asked: stdin is no terminal", remedy="Nothing was done. Add --yes to go on."
        )
    sys.stderr.write(f"{question} {f'Type {name} to go on:' if name else '[y/N]'} ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ((name,) if name else ("y", "yes")):
        raise ConfirmationNeeded("not confirmed, so nothing was done")
