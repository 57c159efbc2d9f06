"""The `etcdops` program: the task collection, anywhere. `etcdops ctl` is served before Invoke is even imported."""

from __future__ import annotations

import os
import sys

from etcdops import etcdctl
from etcdops.errors import ClusterNotFound, EtcdopsError, Interrupted
from etcdops.paths import find_project_dir, find_state_dir, has_configuration

TYPE_CHECKING = False  # `typing` itself is not imported: it takes longer than all that `ctl` does
if TYPE_CHECKING:
    from invoke.context import Context

__all__ = ["hand_over", "main"]


def main() -> None:
    """Run a command line."""
    import signal

    # Outside a task, to end at once says more than a traceback or Invoke's exit code 1. A task handles its signals.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    cluster = _fast_ctl(sys.argv)
    if cluster is not None:
        sys.exit(hand_over(cluster, sys.argv))
    _open_streams()
    from etcdops.tasks.program import program

    try:
        try:
            program.run()
        finally:
            # Here rather than at exit, where Python would print a traceback of its own.
            sys.stdout.flush()
    except OSError as error:
        # The reader (`head`, say) has enough, or the disk is full. Nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"error: {error}\n")
            sys.exit(1)


def _open_streams() -> None:
    """Open the streams that a caller has closed: Invoke, and much else, takes them for granted."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # for as long as we run


def _fast_ctl(argv: list[str]) -> str | None:
    """Give the cluster's name if this is a plain `ctl [--cluster NAME] -- ...`, else None.

    Importing Invoke takes longer than etcdctl does. Whatever is not plain goes the ordinary way: a configuration file
    of Invoke's may name another cluster, so where there is one it is read.
    """
    if len(argv) < 3 or argv[1] != "ctl" or "--" not in argv or _has_invoke_files():
        return None
    own = argv[2 : argv.index("--")]
    if not own:
        return os.environ.get("INVOKE_ETCDOPS_CLUSTER") or "lab"
    if len(own) == 2 and own[0] in ("--cluster", "-c"):
        return own[1]
    if len(own) == 1 and own[0].startswith("--cluster="):
        return own[0].partition("=")[2]
    return None


def _has_invoke_files() -> bool:
    if "INVOKE_RUNTIME_CONFIG" in os.environ:
        return True
    return any(map(has_configuration, ("/etc/invoke", os.path.expanduser("~/.invoke")))) or bool(find_project_dir())


def hand_over(cluster: str, argv: list[str], context: Context | None = None) -> int:
    """Become etcdctl with what follows the first `--` of `argv`; give an exit code only when that cannot be done.

    Where no member runs, a cluster is offered on a terminal; `context` holds what a configuration says about it.
    """
    try:
        arguments = etcdctl.remainder(argv)
        words = etcdctl.misplaced(argv)
        if arguments is None or words:
            raise etcdctl.without_dashes(words)
        _warn_unhealed(cluster)
        arguments = arguments or ["--help"]
        try:
            plan = etcdctl.plan(cluster, arguments)
        except (etcdctl.NotUp, ClusterNotFound) as error:
            if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)):
                raise
            _offer_to_start(cluster, error, context)
            plan = etcdctl.plan(cluster, arguments)
        return etcdctl.become(plan)
    except EtcdopsError as error:
        _tell(f"error: {error}\n" + (f"  -> {error.remedy}\n" if error.remedy else ""))
        return error.exit_code
    except Interrupted as error:
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _tell(text: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(text)
        sys.stderr.flush()


def _warn_unhealed(cluster: str) -> None:
    if os.path.exists(os.path.join(find_state_dir(), "clusters", cluster, "unhealed.json")):
        from etcdops.tasks.common import warn_unhealed

        warn_unhealed(cluster)


def _offer_to_start(cluster: str, error: EtcdopsError, context: Context | None) -> None:
    _tell(f"{error}\nStart it now? [y/N] ")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise error
    from etcdops.interrupts import handled
    from etcdops.tasks.common import say
    from etcdops.tasks.environment import start_as_configured

    with handled():
        start_as_configured(context, cluster, progress=say)
