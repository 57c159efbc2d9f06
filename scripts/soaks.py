"""What `scripts/soak` runs: operations killed at every instant, on every runtime.

Each soak makes clusters of its own in a temporary directory, says a line for each round, and gives what went wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from etcdops import runtimes
from etcdops.cluster import Cluster
from etcdops.errors import EtcdopsError
from etcdops.operations import pending
from etcdops.spec import ClusterSpec, Timing
from etcdops.state import Store
from tests.suite.killed import killed

#: More instants than any operation has.
_MOST = 60


def say(text: str) -> None:
    """Tell how far it is."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def _count(cluster: Cluster) -> int:
    return len(list(cluster.client().get_prefix("soak/", keys_only=True)))


def _kills(runtime: str, operation: str) -> list[str]:
    """Kill an operation at each of its instants; run it again each time, and look whether all is well then."""
    wrong = []
    spec = ClusterSpec.of_size("lab", 3, timing=Timing(50, 500))
    with (
        tempfile.TemporaryDirectory() as directory,
        Cluster.create(spec, runtime=runtime, store=Store(Path(directory)), temporary=True) as cluster,
    ):
        file = str(Path(directory, "soak.db"))
        cluster.client().put("soak/0", "")
        if operation == "restore":
            from etcdops import save_snapshot

            save_snapshot(cluster, file)
        for instant in range(1, _MOST):
            if operation == "replace_member":
                cluster.member("thor").kill()
            arguments = {"add_member": ["hulk"], "replace_member": ["thor"], "restore": [file]}[operation]
            if not killed(cluster.store.root, instant, "lab", operation, *arguments):
                say(f"{operation} on {runtime}: {instant - 1} instants, {len(wrong)} wrong")
                return wrong
            try:
                getattr(cluster, operation)(*arguments)
                if operation == "add_member":
                    cluster.remove_member("hulk")
                seen = cluster.status()
                if seen.verdict != "healthy" or pending.load(cluster) or _count(cluster) != 1:
                    said = f"{seen.verdict}, {_count(cluster)} keys"
                    wrong.append(f"{operation} on {runtime}, killed at {instant}: {said}")
            except EtcdopsError as error:
                wrong.append(f"{operation} on {runtime}, killed at {instant}: {error}")
                with suppress(EtcdopsError):
                    cluster.up()
            say(f"{operation} on {runtime}, killed at {instant}: {wrong[-1] if wrong else 'well'}")
    return [*wrong, f"{operation} on {runtime} never came to its end"]


def _kill_all(runtime: str) -> list[str]:
    if problem := runtimes.get(runtime).unavailable():
        return [f"{runtime}: {problem}"]
    return [each for operation in ("add_member", "replace_member", "restore") for each in _kills(runtime, operation)]


def kills_process() -> list[str]:
    """add, replace and restore of processes, killed at every entry of the journal and every write of state."""
    return _kill_all("process")


def kills_compose() -> list[str]:
    """The same with members in containers."""
    return _kill_all("compose")


SOAKS: dict[str, Callable[[], list[str]]] = {"kills-process": kills_process, "kills-compose": kills_compose}


def main() -> int:
    """Run the soaks that are named, or all; give the exit code."""
    listing = "\n".join(f"  {name:<15} {body.__doc__}" for name, body in SOAKS.items())
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description=f"Runs for long what the tests do a little of.\n\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="*", help="which (default: all)")
    names = parser.parse_args().name or list(SOAKS)
    if unknown := [name for name in names if name not in SOAKS]:
        parser.error(f"there is no soak {', '.join(unknown)}: there are {', '.join(SOAKS)}")
    wrong = [each for name in names for each in SOAKS[name]()]
    for each in wrong:
        print(f"wrong: {each}")
    print(f"{len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
