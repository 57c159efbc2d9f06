"""What there is of clusters on a Docker engine, found by our labels alone: their records may be gone."""

from __future__ import annotations

import os
from collections.abc import Iterator

from etcdops.docker.engine import ALIVE, Engine
from etcdops.errors import RuntimeUnavailable
from etcdops.runtimes.base import Leftover

__all__ = ["find", "remove"]


def find(engine: Engine) -> Iterator[Leftover]:
    """Give every container, network and volume of this user's clusters; nothing where no engine answers.

    In this order each can be removed: a network and a volume once no container has them.
    """
    mine = {"cluster_id": "", "uid": str(os.getuid())}
    try:
        for container in engine.containers(**mine):
            runs = container.state in ALIVE
            what = f"member {container.member}" if container.member else container.labels.get("role", "client")
            described = f"the {'running ' if runs else ''}{what} (container {container.id[:12]})"
            yield _leftover(container.labels, f"container {container.id}", described, runs)
        for kind in ("network", "volume"):
            for name, labels in engine.labelled(kind, **mine):
                yield _leftover(labels, f"{kind} {name}", f"the {kind} {name}", False)
    except RuntimeUnavailable:
        return


def remove(engine: Engine, leftover: Leftover) -> None:
    """Remove what `find` has found, whatever its state."""
    kind, _, name = leftover.ref.partition(" ")
    if kind == "container":
        engine.remove([name])
    else:
        engine.run(kind, "rm", name)


def _leftover(labels: dict[str, str], ref: str, described: str, runs: bool) -> Leftover:
    said = {name: labels.get(name, "") for name in ("cluster", "cluster-id", "member", "state-dir")}
    return Leftover(said["cluster"] or "?", said["cluster-id"], said["member"], said["state-dir"], ref, described, runs)
