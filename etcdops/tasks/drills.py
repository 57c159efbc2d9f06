"""Tasks that run drills: drill.list, drill.run, heal, and one task for each drill, made from the registry."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import Task, task

from etcdops.drills import Choice, Drill, Number, all_drills
from etcdops.tasks.common import (
    HELP,
    attach,
    command,
    emit,
    emit_json,
    emit_table,
    flag,
    output_of,
    say,
    whole_number,
)
from etcdops.tasks.optional import may_take

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.report.verdict import Verdict
    from etcdops.runtimes.base import Runtime

__all__ = [
    "DrillTask",
    "bounded",
    "drill_tasks",
    "heal",
    "list_drills",
    "run_task",
    "seconds_of",
    "shown",
    "write_run_page",
]

_HELP = {
    "cluster": HELP["cluster"],
    "output": "table (for people) or json (verdict.json, as one document)",
    "rate": "writes per second on each stream that measures the outage, 1 to 10000 (default: 100; 10 with wide-txn)",
    "profile": "what more clients do: register, set, append, mixed, wide-txn, lease, lock or watch (default: its own)",
    "clients": "how many such clients there are, 0 to 100 (default: one a member)",
    "client-rate": "operations per second of each of them, 1 to 10000 (default: 20; 8 with wide-txn)",
    "client-keys": "how many keys they share, 1 to 10000: fewer meet more often (default: 20)",
    "baseline": "seconds of traffic before the fault, 0.1 to 60, for what is noise (default: 3)",
    "repeat": "run it so many times, and show the distribution",
    "seed": "repeat an earlier run's choices",
    "destroy-data": "the cluster's name: keys outside of etcdops/ may go, with a drill that destroys data",
    "pause": "wait for a key between steps",
    **{name: HELP[name] for name in ("runtime", "size", "etcd-version", "etcd-bin", "image", "offline", "tls")},
}


#: Flags with a letter of their own.
_LETTERS = {"cluster": "c", "output": "o", "runtime": "r", "size": "s", "pause": "p"}


@task(name="list", help={"output": HELP["output"]})
@command
def list_drills(c: Context, output: str | None = None) -> None:
    """List every drill: what it needs, how its last run ended, and what it does."""
    _list(output_of(c, output))


def _list(out: str) -> None:
    from etcdops.drills.listing import listing, needs_text, when_text
    from etcdops.state import Store

    drills = listing(Store.find())
    if out == "json":
        emit_json({"schema": 1, "drills": drills})
        return
    rows = [["DRILL", "NEEDS", "LAST VERDICT", "WHAT IT DOES"]]
    rows += [[each.name, needs_text(each), when_text(each.last), each.about] for each in drills]
    emit_table(rows)


class DrillTask(Task[Any]):
    """A task whose flags have letters only where every drill has them: Invoke would give `-h` to `--how`, and others
    to flags that no other drill has."""

    def arg_opts(self, name: str, default: str, taken_names: set[str]) -> dict[str, Any]:
        """Give what Invoke makes of a flag, with its letter if it is to have one."""
        opts = super().arg_opts(name, default, taken_names)
        opts["names"] = [each for each in opts["names"] if len(each) > 1 or each == _LETTERS.get(name)]
        return opts


class _RunTask(DrillTask, may_take("drill.run", "name", even_a_task=True)):  # type: ignore[misc]  # a class made for it
    """As a drill's own task, with the drill's name as a word that may be absent."""


def run_task() -> Task[Any]:
    """Give the task `drill.run`, with the options of all drills as flags."""

    def body(c: Context, name: str | None = None, **flags: Any) -> None:
        from etcdops.drills import find

        given = _Flags(**{field: flags.pop(field) for field in _Flags._fields})
        if name is None:
            _list(output_of(c, given.output))
            return
        drill = find(name)
        own = {choice.name for choice in drill.choices}
        _run(c, drill, given, {option: value for option, value in flags.items() if option in own or value is not None})

    body.__doc__ = """Run a drill by its name, as its own command does, or list all: drill.run failed-leader --how stop

    Without a name it does what `drill.list` does. The flags that only some drills have are refused by the others.
    """
    options: dict[str, list[str]] = {}
    for drill in all_drills():
        for choice in drill.choices:
            options.setdefault(choice.name, []).append(f"{drill.name}: {_values(choice)}")
    helps = {name: f"an option of {'; '.join(said)}" for name, said in options.items()}
    return _made(body, "run_drill", ["name"], list(options), {"name": "which drill (default: list them)", **helps})


@task(help={"cluster": HELP["cluster"]})
@command
def heal(c: Context, cluster: str | None = None) -> None:
    """Undo what a dead run left: frozen members go on, stopped ones that should run are started, its keys go."""
    from etcdops.faults.heal import heal as healing

    # To say that `heal` is needed is not needed here.
    healed = attach(c, cluster, warn=False)
    done = healing(healed, progress=say)
    for line in done:
        say(line)
    say(f"{healed.name} is as it should be" if done else f"{healed.name} was as it should be: nothing was changed")


def drill_tasks() -> list[Task[Any]]:
    """Give a task for each registered drill, with its options as flags."""
    return [_task(drill) for drill in all_drills()]


def _task(drill: Drill) -> Task[Any]:
    def body(c: Context, **flags: Any) -> None:
        _run(c, drill, _Flags(**{name: flags.pop(name) for name in _Flags._fields}), flags)

    body.__doc__ = inspect.cleandoc(drill.text)
    helps = {choice.name: _choice_help(choice.help, choice.values) for choice in drill.choices}
    return _made(body, drill.name.replace("-", "_"), [], [choice.name for choice in drill.choices], helps)


def _made(
    body: Callable[..., None], name: str, first: Sequence[str], last: Sequence[str], helps: dict[str, str]
) -> Task[Any]:
    """Make a task of a function that takes its flags by name: `first`, those that every drill has, and `last`."""
    text = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("c", text)]
    # The drill's own come last, so that the common ones keep the same letter with every drill.
    for flag_name in (*first, *_Flags._fields, *last):
        parameters.append(
            inspect.Parameter(flag_name, text, default=False if flag_name in ("pause", "offline", "tls") else None)
        )
    body.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    body.__name__ = name
    kind = _RunTask if first else DrillTask
    made: Task[Any] = kind(command(body), name=name, help={**helps, **_HELP})
    return made


def _values(choice: Choice | Number) -> str:
    if isinstance(choice, Number):
        return f"{choice.least:g} to {choice.most:g} (default: {choice.default:g})"
    return f"{', '.join(choice.values)} (default: {choice.values[0]})"


def _choice_help(text: str, values: tuple[str, ...]) -> str:
    return f"{text} (default: {values[0]})"


class _Flags(NamedTuple):
    """The flags that every drill has."""

    cluster: str | None
    output: str | None
    rate: str | None
    profile: str | None
    clients: str | None
    client_rate: str | None
    client_keys: str | None
    baseline: str | None
    repeat: str | None
    seed: str | None
    destroy_data: str | None
    runtime: str | None
    size: str | None
    etcd_version: str | None
    etcd_bin: str | None
    image: str | None
    pause: bool
    offline: bool
    tls: bool


def _run(c: Context, drill: Drill, flags: _Flags, options: dict[str, str | None]) -> None:
    from etcdops.report.repeats import repeats_text, summarise
    from etcdops.report.terminal import verdict_text
    from etcdops.report.verdict import worst

    out = output_of(c, flags.output)
    chosen = drill.options({name: flag(c, name, value) or None for name, value in options.items()})
    traffic = _Traffic(
        bounded(c, "rate", flags.rate, 1, 10_000),
        flag(c, "profile", flags.profile) or None,
        bounded(c, "clients", flags.clients, 0, 100),
        bounded(c, "client-rate", flags.client_rate, 1, 10_000),
        bounded(c, "client-keys", flags.client_keys, 1, 10_000),
        seconds_of(c, "baseline", flags.baseline, 0.1, 60),
        flags.destroy_data or "",
    )
    times = bounded(c, "repeat", flags.repeat, 1, 1000) or 1
    wanted = flag(c, "seed", flags.seed)
    first = whole_number(wanted, "seed") if wanted else None
    target = _target(c, drill, flags, chosen)

    verdicts: list[Verdict] = []
    for i in range(times):
        if times > 1:
            say(f"run {i + 1} of {times}")
        verdict = _once(drill, target, traffic, None if first is None else first + i, flags.pause, chosen)
        verdicts.append(verdict)
        write_run_page(verdict)
        if out == "table":
            emit(verdict_text(verdict))
        if verdict.verdict in ("stuck", "aborted"):
            break
    repeats = summarise(verdicts)
    if out == "json":
        document: object = verdicts[0]
        if times > 1:
            document = {
                "schema": 1,
                "runs": verdicts,
                "distribution": repeats.distribution,
                "prediction": repeats.prediction,
                "outliers": repeats.outliers,
            }
        emit_json(document)
    elif times > 1 and (text := repeats_text(repeats)):
        emit(text)
    raise Exit(code=worst(verdicts).exit_code)


def shown(drill: str) -> dict[str, Any]:
    """Give the argument of `drills.run` that shows a drill on one screen while it runs; none but on a terminal."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return {}
    from etcdops.report.live import live_view

    return {"show": lambda scene: live_view(scene, drill, sys.stderr)}


def write_run_page(verdict: Verdict) -> None:
    """Write the run's page. One that cannot be made is said, and changes nothing of what the drill came to."""
    from etcdops.report.html import write_report

    try:
        write_report(verdict.folder)
    except Exception as error:
        # Whatever is wrong with the page, the run is over, and its verdict has to be told.
        say(f"the page of {verdict.run} could not be made ({type(error).__name__}: {error}); its verdict stands")


class _Traffic(NamedTuple):
    """What the flags say of the traffic; what they leave out is the profile's, and one client a member."""

    rate: int | None
    profile: str | None
    clients: int | None
    client_rate: int | None
    client_keys: int | None
    baseline_s: float | None
    destroy_data: str


def bounded(c: Context, name: str, given: str | None, least: int, most: int) -> int | None:
    """Give a flag's whole number, None where it was not given; raises SpecError for one that is not offered."""
    from etcdops.errors import SpecError

    text = flag(c, name.replace("-", "_"), given)
    if not text:
        return None
    value = whole_number(text, name)
    if not least <= value <= most:
        raise SpecError(f"--{name} {value} is not offered: {least} to {most} are")
    return value


def seconds_of(c: Context, name: str, given: str | None, least: float, most: float) -> float | None:
    """Give a flag's seconds, None where they were not given; raises SpecError for what is not offered."""
    from etcdops.errors import SpecError

    text = flag(c, name, given)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value <= most:
        raise SpecError(f"--{name} {text!r} is not offered: {least:g} to {most:g} seconds are")
    return value


def _once(
    drill: Drill, target: Cluster, traffic: _Traffic, seed: int | None, pause: bool, chosen: dict[str, str]
) -> Verdict:
    from etcdops import drills

    return drills.run(
        drill.name,
        target,
        rate=traffic.rate,
        profile=traffic.profile,
        clients=traffic.clients,
        client_rate=traffic.client_rate,
        client_keys=traffic.client_keys,
        baseline_s=traffic.baseline_s,
        destroy_data=traffic.destroy_data,
        seed=seed,
        say=say,
        pause=_wait_for_key if pause else None,
        # Who is asked for a key has to see what is written without an end of line.
        **({} if pause else shown(drill.name)),
        **chosen,
    )


def _target(c: Context, drill: Drill, flags: _Flags, chosen: dict[str, str]) -> Cluster:
    """Give the cluster to run on. Where there is none yet, one is created, as the original lab's drill did.

    An existing one that is down is brought up by the drill itself; here it is only compared with the flags.
    """
    from etcdops.errors import Refused
    from etcdops.placement import check_same
    from etcdops.spec import ClusterSpec, parse_size
    from etcdops.state import Store
    from etcdops.tasks.environment import ensure_up

    name = flag(c, "cluster", flags.cluster) or "lab"
    fixed = {"runtime": flags.runtime, "size": flags.size, "etcd_version": flags.etcd_version, "port": None}
    fixed["etcd_bin"] = flags.etcd_bin
    fixed["image"] = flags.image
    fixed["tls"] = "yes" if flags.tls else None
    if Store.find().exists(name):
        existing = attach(c, name)
        size = parse_size(flags.size) if flags.size else 0
        spec = ClusterSpec.of_size(
            name,
            etcd_version=flags.etcd_version or "",
            etcd_bin=flags.etcd_bin or "",
            image=flags.image or "",
        )
        check_same(existing.record, runtime=flags.runtime or "", size=size, spec=spec, tls=flags.tls)
        return existing
    size = parse_size(flag(c, "size", flags.size) or "3")
    if size < drill.min_voters:
        raise Refused(
            f"{drill.name} needs {drill.min_voters} voters, and a new cluster of {size} is asked for",
            remedy=f"Nothing was created. Give --size {drill.min_voters} or more.",
        )

    def check(runtime: Runtime) -> None:
        if reason := drill.needs(runtime, **chosen):
            raise Refused(
                f"{drill.name} cannot run on a new cluster by the runtime {runtime.name}: {reason}",
                remedy="Nothing was created. `--runtime compose` runs members in containers.",
            )

    say(f"there is no cluster {name} yet: creating it with {size} members")
    return ensure_up(c, name, fixed, offline=flags.offline, timeout_s=60.0, progress=say, check=check).cluster


def _wait_for_key() -> None:
    """Wait for a key on the terminal, as the original lab's pauses did; without one, go on."""
    if not sys.stdin.isatty():
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        # Before the prompt, and without throwing away what was typed already. Ctrl-C stays a signal.
        tty.setcbreak(descriptor, termios.TCSANOW)
        sys.stderr.write("      press a key to go on ...")
        sys.stderr.flush()
        os.read(descriptor, 1)
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
        sys.stderr.write("\n")
