"""Drills on clusters in memory: how quickly, how they are left by Ctrl-C, and what they found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from etcdops.cluster import Cluster
from etcdops.drills import engine, leadership, scene
from etcdops.fake.lies import Lies
from etcdops.faults import heal
from etcdops.report.verdict import Verdict
from etcdops.runtimes.fake import FakeRuntime
from etcdops.spec import ClusterSpec, Timing
from etcdops.state import Store

#: How long is waited for what should come, on a busy machine: for a steady state, and for what a drill has brought
#: about; in election timeouts. A test in which it is waited in vain makes them smaller.
STEADY = 80
PATIENCE = 60

#: Traffic that is enough for a verdict; on a busy machine a drill waits until it is.
QUICK: dict[str, Any] = {"rate": 20, "baseline_s": 0.3}


def fake_spec(size: int = 3) -> ClusterSpec:
    """Give members with short timing, since what a drill waits for is measured in election timeouts."""
    return ClusterSpec.of_size("fake", size, timing=Timing(heartbeat_ms=20, election_ms=250))


@contextmanager
def fake_cluster(store: Store, lies: Lies | None = None, *, size: int = 3) -> Iterator[Cluster]:
    """Give a running cluster that lives in memory and lies as it is told; it is gone afterwards."""
    runtime = FakeRuntime(lies=lies or Lies())
    with pytest.MonkeyPatch.context() as patch:
        # To ask and to answer is Python's work here.
        patch.setattr(leadership, "_EVERY_S", 0.05)
        patch.setattr(engine, "_STEADY", STEADY)
        patch.setattr(scene, "_PATIENCE", PATIENCE)
        # Nothing is under way between members in memory.
        patch.setattr(heal, "_LATE_ON_LOOPBACK_S", 0.2)
        with Cluster.create(fake_spec(size), runtime=runtime, store=store, temporary=True) as cluster:
            yield cluster


def be_honest(lies: Lies) -> None:
    """End every lie."""
    for field in Lies.__struct_fields__:
        setattr(lies, field, getattr(Lies(), field))


def failed(verdict: Verdict) -> dict[str, str]:
    """Give the checks that failed, with what they say."""
    return {check.name: check.detail for check in verdict.checks if check.result == "failed"}


def interrupting(after: int) -> Callable[[], None]:
    """Give a pause that is left by Ctrl-C, the `after`-th time."""
    left = [after]

    def pause() -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    return pause


def saying(word: str) -> Callable[[str], None]:
    """Give what is told of the drill's progress, and presses Ctrl-C when it hears of `word`."""
    pressed: list[str] = []

    def say(text: str) -> None:
        if word in text and not pressed:
            pressed.append(text)
            raise KeyboardInterrupt

    return say
