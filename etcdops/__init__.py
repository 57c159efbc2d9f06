"""A real etcd cluster in one command; break it on purpose, and prove what happened.

    >>> import etcdops
    >>> with etcdops.Cluster.create() as cluster:
    ...     print(cluster.status().verdict)
    healthy

Names are loaded when they are first used: `import etcdops` itself costs next to nothing.
"""

from __future__ import annotations

from etcdops import errors

# As `typing.TYPE_CHECKING`, and without the import: it is the largest part of what `etcdops ctl` would load.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from etcdops.cluster import Cluster as Cluster
    from etcdops.drills import run as run_drill  # noqa: F401
    from etcdops.errors import *  # noqa: F403
    from etcdops.errors import EtcdopsError as EtcdopsError
    from etcdops.faults.heal import heal as heal
    from etcdops.member import Member as Member
    from etcdops.report.verdict import Verdict as Verdict
    from etcdops.runtimes.compose import ComposeRuntime as ComposeRuntime
    from etcdops.runtimes.fake import FakeRuntime as FakeRuntime
    from etcdops.runtimes.process import ProcessRuntime as ProcessRuntime
    from etcdops.snapshots.catalog import list_snapshots as list_snapshots
    from etcdops.snapshots.manifest import Snapshot as Snapshot
    from etcdops.snapshots.pruning import plan_prune as plan_prune
    from etcdops.snapshots.pruning import prune_snapshots as prune_snapshots
    from etcdops.snapshots.remote import Pushed as Pushed
    from etcdops.snapshots.remote import list_remote_snapshots as list_remote_snapshots
    from etcdops.snapshots.remote import pull_snapshot as pull_snapshot
    from etcdops.snapshots.remote import push_snapshot as push_snapshot
    from etcdops.snapshots.saving import save_snapshot as save_snapshot
    from etcdops.snapshots.verifying import verify_snapshot as verify_snapshot
    from etcdops.spec import ClusterSpec as ClusterSpec
    from etcdops.spec import MemberSpec as MemberSpec
    from etcdops.spec import Timing as Timing
    from etcdops.spec import Tls as Tls
    from etcdops.state import Store as Store
    from etcdops.status import ClusterStatus as ClusterStatus

_HOMES = {
    "Cluster": "cluster",
    "ClusterSpec": "spec",
    "ClusterStatus": "status",
    "ComposeRuntime": "runtimes.compose",
    "FakeRuntime": "runtimes.fake",
    "Member": "member",
    "MemberSpec": "spec",
    "ProcessRuntime": "runtimes.process",
    "Pushed": "snapshots.remote",
    "Snapshot": "snapshots.manifest",
    "Store": "state",
    "Timing": "spec",
    "Tls": "spec",
    "Verdict": "report.verdict",
    "heal": "faults.heal",
    "list_remote_snapshots": "snapshots.remote",
    "list_snapshots": "snapshots.catalog",
    "plan_prune": "snapshots.pruning",
    "prune_snapshots": "snapshots.pruning",
    "pull_snapshot": "snapshots.remote",
    "push_snapshot": "snapshots.remote",
    "run_drill": "drills:run",
    "save_snapshot": "snapshots.saving",
    "verify_snapshot": "snapshots.verifying",
}

__all__ = sorted([*_HOMES, *errors.__all__])


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in errors.__all__:
        return getattr(errors, name)
    if name not in _HOMES:
        raise AttributeError(f"module 'etcdops' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(f"etcdops.{module}"), attribute or name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
