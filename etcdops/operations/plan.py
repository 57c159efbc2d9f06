"""A plan: the numbered steps of an operation, each with the plain command for it and the way back.

A plan is data. It is made from what was observed and what is wished, without touching anything; it is shown, and asked
about where something is lost by it; then its steps are taken one after the other, each on record in the run's folder
before it is begun and again when it is done.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from etcdops.errors import EtcdopsError
from etcdops.interrupts import deferred
from etcdops.report.journal import Journal
from etcdops.state import replace_file

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.state import ClusterRecord

__all__ = ["Plan", "Step", "by_etcdctl", "carry_out", "new_run", "plan_text"]


class Step(msgspec.Struct, frozen=True):
    """One step: what is done (`do`, for programs) to which member, in words, as a plain command, and the way back.

    A step that `waits` may be interrupted: it changes nothing itself.
    """

    do: str
    member: str
    text: str
    by_hand: str
    undo: str = ""
    waits: bool = False


class Plan(msgspec.Struct, frozen=True):
    """What an operation will do to a cluster.

    Without steps there is nothing to be done, and `already` says why. `consequence` is what is lost by it, "" if
    nothing is: a plan that has one is asked about before it is carried out. `notes` are what a person should know.
    """

    operation: str
    cluster: str
    member: str
    steps: tuple[Step, ...] = ()
    already: str = ""
    consequence: str = ""
    notes: tuple[str, ...] = ()


def by_etcdctl(record: ClusterRecord, endpoint: str, *args: str) -> str:
    """Give the plain etcdctl command that a person would type, through one endpoint."""
    argv = ["etcdctl", f"--endpoints={endpoint}"]
    if tls := record.spec.tls:
        argv += [f"--cacert={tls.ca}", f"--cert={tls.client_cert}", f"--key={tls.client_key}"]
    return shlex.join([*argv, *args])


def plan_text(plan: Plan) -> str:
    """Give a plan as people read it: numbered steps with their plain commands, and the way back."""
    if not plan.steps:
        return f"{plan.already}: nothing is to be done"
    lines = [f"{plan.operation} {plan.member} (cluster {plan.cluster}):"]
    for number, step in enumerate(plan.steps, start=1):
        lines += [f"  {number}. {step.text}", f"      $ {step.by_hand}"]
        if step.undo:
            lines.append(f"      back: {step.undo}")
    lines += [f"  note: {note}" for note in plan.notes]
    if plan.consequence:
        lines.append(f"  This means: {plan.consequence}")
    return "\n".join(lines)


def new_run(cluster: Cluster, operation: str) -> str:
    """Give the name of a new run of an operation, and make its folder."""
    run = f"{datetime.now():%Y%m%d-%H%M%S}-{operation.replace('.', '-')}-{secrets.token_hex(2)}"
    cluster.store.make_dir(cluster.store.runs / run)
    return run


def carry_out(
    cluster: Cluster,
    plan: Plan,
    acts: Mapping[str, Callable[[Step], None]],
    progress: Callable[[str], None],
    *,
    run: str = "",
    commands: bool = True,
) -> Path:
    """Take a plan's steps one after the other, by `acts`, and give the folder that holds plan and journal.

    The caller holds the cluster's lock. Ctrl-C lets a step that has begun come to its end, unless it only waits.
    `run` is the run that an interrupted operation goes on with; its folder has a plan for each time. Without `commands`
    progress is told the steps alone: the plan has been shown. Raises what a step raises; the journal says then which
    steps were done.
    """
    folder = cluster.store.make_dir(cluster.store.runs / (run or new_run(cluster, plan.operation)))
    earlier = len(list(folder.glob("plan*.json")))
    name = f"plan-{earlier + 1}.json" if earlier else "plan.json"
    replace_file(folder / name, msgspec.json.format(msgspec.json.encode(plan), indent=2) + b"\n")
    with Journal(folder / "journal.jsonl") as journal:
        for number, step in enumerate(plan.steps, start=1):
            by_hand = f"\n      $ {step.by_hand}" if commands else ""
            progress(f"{number}/{len(plan.steps)} {step.text}{by_hand}")
            try:
                with nullcontext() if step.waits else deferred():
                    journal.note("step", step.member, f"{number} {step.do}", sync=True)
                    acts[step.do](step)
                    journal.note("done", step.member, f"{number} {step.do}", sync=True)
            except EtcdopsError as error:
                journal.note("failed", step.member, f"{number} {step.do}: {error}", sync=True)
                raise
    return folder
