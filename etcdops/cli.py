"""The `etcdops` program: the task collection, anywhere. `etcdops ctl` is served before Invoke is even imported."""

from __future__ import annotations

import os
import sys

from etcdops import etcdctl
from etcdops.errors import ClusterNotFound, EtcdopsError, SpecError
from etcdops.paths import find_state_dir

__all__ = ["hand_over", "main"]


def main() -> None:
    """Run a command line."""
    cluster = _fast_ctl(sys.argv)
    if cluster is not None:
        sys.exit(hand_over(cluster, sys.argv))
    from etcdops.tasks.program import program

    program.run()


def _fast_ctl(argv: list[str]) -> str | None:
    """Give the cluster's name if this is a plain `ctl [--cluster NAME] -- ...`, else None.

    Importing Invoke takes longer than etcdctl does. Whatever is not plain goes the ordinary way: a configuration file
    of Invoke's may name another cluster, so where there is one it is read.
    """
    if len(argv) < 3 or argv[1] != "ctl" or "--" not in argv or _has_invoke_files():
        return None
    own = argv[2 : argv.index("--")]
    if not own:
        return os.environ.get("INVOKE_ETCDOPS_CLUSTER", "lab")
    if len(own) == 2 and own[0] in ("--cluster", "-c"):
        return own[1]
    if len(own) == 1 and own[0].startswith("--cluster="):
        return own[0].partition("=")[2]
    return None


def _has_invoke_files() -> bool:
    if "INVOKE_RUNTIME_CONFIG" in os.environ:
        return True
    places = ("/etc/invoke", os.path.expanduser("~/.invoke"), "invoke")
    return any(os.path.exists(f"{place}.{kind}") for place in places for kind in ("yaml", "yml", "json", "py"))


def hand_over(cluster: str, argv: list[str]) -> int:
    """Become etcdctl with what follows the first `--` of `argv`; give an exit code only when that cannot be done."""
    try:
        arguments = etcdctl.remainder(argv)
        if arguments is None:
            raise SpecError(
                "`ctl` takes etcdctl's arguments after `--`", remedy="For example: `ctl -- member list -w table`."
            )
        if not arguments:
            arguments = ["--help"]
        _warn_unhealed(cluster)
        try:
            plan = etcdctl.plan(cluster, arguments)
        except (etcdctl.NotUp, ClusterNotFound) as error:
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise
            _offer_to_start(cluster, error)
            plan = etcdctl.plan(cluster, arguments)
        etcdctl.become(plan)
    except EtcdopsError as error:
        sys.stderr.write(f"error: {error}\n" + (f"  -> {error.remedy}\n" if error.remedy else ""))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 1


def _warn_unhealed(cluster: str) -> None:
    if os.path.exists(os.path.join(find_state_dir(), "clusters", cluster, "unhealed.json")):
        from etcdops.tasks.common import warn_unhealed

        warn_unhealed(cluster)


def _offer_to_start(cluster: str, error: EtcdopsError) -> None:
    sys.stderr.write(f"{error}\nStart it now? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise error
    from etcdops.cluster import Cluster
    from etcdops.interrupts import handled
    from etcdops.spec import ClusterSpec
    from etcdops.tasks.common import say

    with handled():
        Cluster.ensure_up(ClusterSpec.of_size(cluster), progress=say)
