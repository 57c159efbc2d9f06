"""The task game-day: several drills in order, one cluster, one report."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from etcdops.tasks.common import HELP, attach, command, emit, emit_json, emit_table, flag, output_of, say, whole_number
from etcdops.tasks.drills import DrillTask, bounded, seconds_of, shown, write_run_page
from etcdops.tasks.environment import ensure_up, wish_for
from etcdops.tasks.optional import may_take, takes_more

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.drills import Drill
    from etcdops.game_day import GameDay, Planned
    from etcdops.report.verdict import Verdict
    from etcdops.runtimes.base import Runtime

__all__ = ["game_day"]


class _GameDayTask(DrillTask, may_take("game-day", "drill", even_a_task=True, many=True)):  # type: ignore[misc]
    """A task that takes drills' names as words, which are tasks' names, too."""


@task(
    name="game-day",
    klass=_GameDayTask,
    help={
        "drill": "which drills, in this order: NAME, or NAME:OPTION=VALUE,… (default: all that can run)",
        "shuffle": "in an order that the seed decides",
        "seed": "repeat an earlier game day's order and choices",
        "dry-run": "show the plan and how long it will take, and start nothing",
        "rate": "writes per second on each stream that measures the outage, 1 to 10000 (default: each drill's own)",
        "baseline": "seconds of traffic before each fault, 0.1 to 60, for what is noise (default: 3)",
        "destroy-data": "the cluster's name: keys outside of etcdops/ may go, with drills that destroy data",
        "output": "table (for people) or json (game-day.json, as one document)",
        **{name: HELP[name] for name in ("cluster", "runtime", "size", "etcd-version", "etcd-bin", "image", "offline")},
        "tls": HELP["tls"],
    },
)
@command
@takes_more
def game_day(
    c: Context,
    drill: str | None = None,
    shuffle: bool = False,
    seed: str | None = None,
    dry_run: bool = False,
    rate: str | None = None,
    baseline: str | None = None,
    destroy_data: str | None = None,
    cluster: str | None = None,
    output: str | None = None,
    runtime: str | None = None,
    size: str | None = None,
    etcd_version: str | None = None,
    etcd_bin: str | None = None,
    image: str | None = None,
    offline: bool = False,
    tls: bool = False,
    **more: str,
) -> None:
    """Run several drills on one cluster, with one report: game-day failed-leader reduce-quorum:how=freeze

    Without a drill it runs all that can run there. It goes on after a drill that deviates, and stops at the first that
    is stuck; the exit code is that of the worst. The report is `.etcdops/game-days/ID/index.html`.
    """
    import secrets

    from etcdops import game_day as days
    from etcdops.state import Store

    out = output_of(c, output)
    words = [word for word in (drill, *more.values()) if word]
    wanted = flag(c, "seed", seed)
    number = whole_number(wanted, "seed") if wanted else secrets.randbelow(2**31)
    per_second = bounded(c, "rate", rate, 1, 10_000)
    baseline_s = seconds_of(c, "baseline", baseline, 0.1, 60)
    chosen = days.choose(words)
    fixed = {"runtime": runtime, "size": size, "etcd_version": etcd_version, "etcd_bin": etcd_bin, "image": image}
    where = _Where(
        c, flag(c, "cluster", cluster) or "lab", {**fixed, "port": None, "tls": "yes" if tls else None}, offline
    )
    fit, others = days.refuse(chosen, where.why_not(), named=bool(words))
    for each in others:
        say(f"left out: {each}")
    if shuffle:
        fit = days.shuffled(fit, number)
    plan = days.estimate(fit, Store.find())
    if out == "table":
        _show(plan, number)
    if dry_run:
        if out == "json":
            emit_json({"schema": 1, "cluster": where.name, "seed": number, "plan": plan})
        return
    day = days.play(
        where.cluster(),
        plan,
        seed=number,
        command=_again(plan, where.name, number, per_second),
        say=say,
        ended=lambda verdict: _ended(verdict, out),
        shown=shown,
        rate=per_second,
        baseline_s=baseline_s,
        destroy_data=destroy_data or "",
    )
    if out == "json":
        emit_json(day)
    else:
        _tell(day)
    raise Exit(code=day.exit_code)


class _Where(NamedTuple):
    """The cluster of a game day: one that there is, or else one that is created, by flags as `up-env` has them."""

    c: Context
    name: str
    fixed: dict[str, str | None]
    offline: bool

    def why_not(self) -> Callable[[Drill, dict[str, str]], str]:
        """Give what tells why a drill cannot run here. Changes nothing."""
        from etcdops.game_day import why_not_on
        from etcdops.spec import parse_size
        from etcdops.state import Store

        if Store.find().exists(self.name):
            return why_not_on(attach(self.c, self.name))
        runtimes: list[Runtime] = []
        size = parse_size(flag(self.c, "size", self.fixed["size"]) or "3")
        wish_for(self.c, self.name, self.fixed, offline=self.offline, progress=say, check=runtimes.append)
        return lambda drill, options: (
            f"it needs {drill.min_voters} voters"
            if size < drill.min_voters
            else drill.needs(runtimes[0], **drill.options(dict(options))) or ""
        )

    def cluster(self) -> Cluster:
        """Give the cluster, up."""
        return ensure_up(self.c, self.name, self.fixed, offline=self.offline, timeout_s=60.0, progress=say).cluster


def _show(plan: Sequence[Planned], seed: int) -> None:
    emit_table([["DRILL", "ABOUT", "AS"], *([str(each), f"{each.takes_s:.0f} s", each.known] for each in plan)])
    total = sum(each.takes_s for each in plan)
    emit(f"{len(plan)} drills, about {total / 60:.0f} min {total % 60:.0f} s in all, seed {seed}")


def _again(plan: Sequence[Planned], cluster: str, seed: int, rate: int | None) -> str:
    words = ["etcdops", "game-day", *map(str, plan), "--cluster", cluster, "--seed", str(seed)]
    return shlex.join([*words, *(["--rate", str(rate)] if rate else [])])


def _ended(verdict: Verdict, out: str) -> None:
    from etcdops.report.terminal import verdict_text

    write_run_page(verdict)
    if out == "table":
        emit(verdict_text(verdict))


def _tell(day: GameDay) -> None:
    emit_table(
        [["DRILL", "VERDICT", "RUN"], *([each.drill, each.verdict, each.run or each.said] for each in day.played)]
    )
    if day.left_out:
        emit(f"not come to: {', '.join(day.left_out)}: {day.why}")
    emit(
        f"{day.verdict.upper()}  game day {day.id} on {day.cluster}\n  report   {day.report}\n  again    {day.command}"
    )
