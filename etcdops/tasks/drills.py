"""Tasks that run drills: drill.list, drill.run, heal, and one task for each drill, made from the registry."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import Task, task

from etcdops.drills import Drill, all_drills
from etcdops.tasks.common import HELP, attach, command, emit, emit_json, flag, output_of, say, whole_number

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.report.verdict import Verdict
    from etcdops.runtimes.base import Runtime

__all__ = ["drill_tasks", "heal", "list_drills", "run_drill"]

_HELP = {
    "cluster": HELP["cluster"],
    "output": "table (for people) or json (verdict.json, as one document)",
    "rate": "writes per second on each stream, 1 to 10000 (default: 100)",
    "repeat": "run it so many times, and show the distribution",
    "seed": "repeat an earlier run's choices",
    "pause": "wait for a key between steps",
    **{name: HELP[name] for name in ("runtime", "size", "etcd-version", "etcd-bin", "image", "offline")},
}


@task(name="list", help={"output": HELP["output"]})
@command
def list_drills(c: Context, output: str | None = None) -> None:
    """List every drill: its name, what it does, and what it needs."""
    out = output_of(c, output)
    drills = all_drills()
    if out == "json":
        rows = [{"name": d.name, "about": d.about, "min_voters": d.min_voters} for d in drills]
        emit_json({"schema": 1, "drills": rows})
        return
    for drill in drills:
        emit(f"{drill.name}\n    {drill.about}\n    needs {drill.min_voters} voters")
        for choice in drill.choices:
            emit(f"    --{choice.name} {'|'.join(choice.values)}: {choice.help}")


@task(positional=["name"], help={"name": "which drill, of those that `drill.list` shows", **_HELP})
@command
def run_drill(
    c: Context,
    name: str,
    cluster: str | None = None,
    output: str | None = None,
    rate: str | None = None,
    repeat: str | None = None,
    seed: str | None = None,
    runtime: str | None = None,
    size: str | None = None,
    etcd_version: str | None = None,
    etcd_bin: str | None = None,
    image: str | None = None,
    pause: bool = False,
    offline: bool = False,
) -> None:
    """Run a drill by its name, with its own options at their defaults: drill.run failed-leader"""
    from etcdops.drills import find

    _run(
        c,
        find(name),
        _Flags(cluster, output, rate, repeat, seed, runtime, size, etcd_version, etcd_bin, image, pause, offline),
        {},
    )


@task(help={"cluster": HELP["cluster"]})
@command
def heal(c: Context, cluster: str | None = None) -> None:
    """Undo what a dead run left: frozen members go on, stopped ones that should run are started, its keys go."""
    from etcdops.faults.heal import heal as healing

    healed = attach(c, cluster)
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

    text = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("c", text)]
    # The drill's own come last, so that the common ones keep the same letter with every drill.
    for name in (*_Flags._fields, *(choice.name for choice in drill.choices)):
        parameters.append(inspect.Parameter(name, text, default=False if name in ("pause", "offline") else None))
    body.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    body.__doc__ = inspect.cleandoc(drill.text)
    body.__name__ = drill.name.replace("-", "_")
    help_texts = {**{choice.name: _choice_help(choice.help, choice.values) for choice in drill.choices}, **_HELP}
    made: Callable[..., None] = command(body)
    return _DrillTask(made, name=body.__name__, help=help_texts)


class _DrillTask(Task[Any]):
    """A task whose flags leave `-h` alone: Invoke would give it to `--how`, and people who want help would get none."""

    def arg_opts(self, name: str, default: str, taken_names: set[str]) -> dict[str, Any]:
        """Give what Invoke makes of a flag, with `h` taken."""
        return super().arg_opts(name, default, {*taken_names, "h"})


def _choice_help(text: str, values: tuple[str, ...]) -> str:
    return f"{text} (default: {values[0]})"


class _Flags(NamedTuple):
    """The flags that every drill has."""

    cluster: str | None
    output: str | None
    rate: str | None
    repeat: str | None
    seed: str | None
    runtime: str | None
    size: str | None
    etcd_version: str | None
    etcd_bin: str | None
    image: str | None
    pause: bool
    offline: bool


def _run(c: Context, drill: Drill, flags: _Flags, options: dict[str, str | None]) -> None:
    from etcdops.errors import SpecError
    from etcdops.report.terminal import distribution, verdict_text
    from etcdops.report.verdict import worst

    out = output_of(c, flags.output)
    chosen = drill.options({name: flag(c, name, value) or None for name, value in options.items()})
    per_s = whole_number(flag(c, "rate", flags.rate) or "100", "rate")
    if not 1 <= per_s <= 10_000:
        raise SpecError(f"--rate {per_s} is not offered: 1 to 10000 writes per second and stream are")
    times = whole_number(flag(c, "repeat", flags.repeat) or "1", "repeat")
    if not 1 <= times <= 1000:
        raise SpecError(f"--repeat {times} is not offered: 1 to 1000 are")
    wanted = flag(c, "seed", flags.seed)
    first = whole_number(wanted, "seed") if wanted else None
    target = _target(c, drill, flags, chosen)

    verdicts: list[Verdict] = []
    for i in range(times):
        if times > 1:
            say(f"run {i + 1} of {times}")
        verdict = _once(drill, target, per_s, None if first is None else first + i, flags.pause, chosen)
        verdicts.append(verdict)
        if out == "table":
            emit(verdict_text(verdict))
        if verdict.verdict in ("stuck", "aborted"):
            break
    outages = [v.outage.write_ms for v in verdicts if v.outage and v.outage.write_ms is not None]
    spread = distribution(outages)
    if out == "json":
        document: object = verdicts[0]
        if times > 1:
            document = {"schema": 1, "runs": verdicts, "distribution": spread}
        emit_json(document)
    elif times > 1 and spread:
        emit(
            f"{len(verdicts)} runs: writes stopped for {spread.min_ms:,.0f} ms (min), {spread.median_ms:,.0f} (median),"
            f" {spread.p90_ms:,.0f} (p90), {spread.max_ms:,.0f} (max)"
        )
    raise Exit(code=worst(verdicts).exit_code)


def _once(drill: Drill, target: Cluster, rate: int, seed: int | None, pause: bool, chosen: dict[str, str]) -> Verdict:
    from etcdops import drills

    return drills.run(
        drill.name, target, rate=rate, seed=seed, say=say, pause=_wait_for_key if pause else None, **chosen
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
    if Store.find().exists(name):
        existing = attach(c, name)
        size = parse_size(flags.size) if flags.size else 0
        spec = ClusterSpec.of_size(
            name,
            etcd_version=flags.etcd_version or "",
            etcd_bin=flags.etcd_bin or "",
            image=flags.image or "",
        )
        check_same(existing.record, runtime=flags.runtime or "", size=size, spec=spec)
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
