"""What `scripts/soak` runs: operations killed at every instant, and every drill, on every runtime and release.

Each soak makes clusters of its own in a temporary directory, says a line for each round, and gives what went wrong.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from etcdops import drills, runtimes
from etcdops.cluster import Cluster
from etcdops.errors import EtcdopsError
from etcdops.faults.heal import heal
from etcdops.operations import pending
from etcdops.report.assembling import recheck
from etcdops.spec import ClusterSpec, Timing
from etcdops.state import Store
from tests.suite.killed import killed
from tests.suite.shared import NAMED

#: More instants than any operation has.
_MOST = 60


def say(text: str) -> None:
    """Tell how far it is."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def _count(cluster: Cluster) -> int:
    return len(list(cluster.client().get_prefix("soak/", keys_only=True)))


def _kills(runtime: str, operation: str) -> list[str]:
    """Kill an operation at each of its instants; run it again, or take it back, and look whether all is well then."""
    wrong: list[str] = []
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
        ways = ("on",) if operation == "replace_member" else ("on", "back")
        for instant, way in ((instant, way) for instant in range(1, _MOST) for way in ways):
            if operation == "replace_member":
                cluster.member("thor").kill()
            arguments = {"add_member": ["hulk"], "replace_member": ["thor"], "restore": [file]}[operation]
            if not killed(cluster.store.root, instant, "lab", operation, *arguments):
                say(f"{operation} on {runtime}: {instant - 1} instants, {len(wrong)} wrong")
                return wrong
            try:
                if way == "on":
                    getattr(cluster, operation)(*arguments)
                elif operation == "restore":
                    cluster.rollback()
                elif cluster.status().quorum == 2:
                    cluster.undo()
                else:
                    getattr(cluster, operation)(*arguments)
                if "hulk" in cluster.record.spec.names:
                    cluster.remove_member("hulk")
                seen = cluster.status()
                if seen.verdict != "healthy" or pending.load(cluster) or _count(cluster) != 1:
                    said = f"{seen.verdict}, {_count(cluster)} keys"
                    wrong.append(f"{operation} on {runtime}, killed at {instant}, {way}: {said}")
            except EtcdopsError as error:
                wrong.append(f"{operation} on {runtime}, killed at {instant}, {way}: {error}")
                with suppress(EtcdopsError):
                    cluster.up()
            say(f"{operation} on {runtime}, killed at {instant}, {way}: {wrong[-1] if wrong else 'well'}")
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


#: Each of the two searches for false alarms runs its drill so often, with every profile in turn.
_ALARM_RUNS = 200
_PROFILES = ("mixed", "register", "set", "append", "lease", "lock", "watch")


def _alarms(drill: str, **options: str) -> list[str]:
    """Run a drill again and again on an etcd that is known to be good; whatever deviates is a false alarm."""
    wrong, verdicts = [], Counter[str]()
    # Short elections, so that a run takes seconds: what is sought does not depend on their length.
    spec = ClusterSpec.of_size("lab", 3, timing=Timing(50, 500))
    with (
        tempfile.TemporaryDirectory() as directory,
        Cluster.create(spec, runtime="process", store=Store(Path(directory)), temporary=True) as cluster,
    ):
        say(f"{drill} on etcd {cluster.record.etcd_version}")
        for number in range(_ALARM_RUNS):
            profile = _PROFILES[number % len(_PROFILES)]
            verdict = drills.run(drill, cluster, profile=profile, baseline_s=0.5, rate=50, seed=number, **options)
            verdicts[verdict.verdict] += 1
            if verdict.verdict != "passed":
                bad = "; ".join(f"{c.name}: {c.detail}" for c in verdict.checks if c.result != "passed")
                say(f"{drill} {number} ({profile}) {verdict.verdict}: {bad}")
                if verdict.verdict != "inconclusive":
                    wrong.append(f"{drill} {number} ({profile}) {verdict.verdict}: {bad}")
                kept = Path("soak-runs") / verdict.run
                shutil.copytree(verdict.folder, kept)
            shutil.rmtree(verdict.folder)
    say(f"{drill}: {', '.join(f'{count} {name}' for name, count in verdicts.items())}")
    return wrong


def alarms_quiet() -> list[str]:
    """200 runs without a fault, of every profile: nothing may deviate (what does is kept in soak-runs/)."""
    return _alarms("no-fault", duration="2")


def alarms_kills() -> list[str]:
    """200 runs in which the leader is killed, of every profile: nothing may deviate."""
    return _alarms("failed-leader", how="kill")


_HOWS = ("kill", "freeze", "stop", "isolate", "unplug")

#: Every drill, with what changes what it does.
_DRILLS: tuple[tuple[str, Mapping[str, str]], ...] = (
    *(("failed-leader", {"how": how}) for how in _HOWS),
    *(("reduce-quorum", {"how": how, "leader": leader}) for how in _HOWS for leader in ("stays", "goes")),
    ("move-leader", {}),
    ("rolling-restart", {}),
    ("kill-restart", {"rounds": "3"}),
    ("scale-out", {}),
    ("replace-member", {"who": "leader"}),
    ("replace-member", {"who": "follower"}),
    ("data-loss", {"keys": "10"}),
    ("disaster", {"keys": "10"}),
    ("lock-fencing", {}),
    ("no-fault", {"duration": "2"}),
)


def _left_by(cluster: Cluster) -> list[str]:
    """Say what a drill has left that was not there before it."""
    left = [] if cluster.status().verdict == "healthy" else [f"the cluster is {cluster.status().verdict}"]
    if cluster.store.unhealed(cluster.name) is not None or pending.load(cluster) is not None:
        left.append("a fault or an operation is on record")
    if count := len(list(cluster.client().get_prefix("etcdops/", keys_only=True))):
        left.append(f"{count} keys")
    return left


def _drill(cluster: Cluster, name: str, options: Mapping[str, str], where: str) -> list[str]:
    """Run a drill, and verify its record again; give what was wrong."""
    said = " ".join((name, *options.values(), where))
    drill = drills.find(name)
    if reason := drill.needs(cluster.runtime, **drill.options({**options})):
        say(f"{said}: {reason}")
        return []
    verdict = drills.run(name, cluster, rate=20, baseline_s=0.5, **options)
    wrong = [f"{check.name}: {check.detail}" for check in verdict.checks if check.result != "passed"]
    if recheck(verdict.folder) != verdict:
        wrong.append("verified again, it has another verdict")
    wrong += _left_by(cluster)
    say(f"{said}: {'; '.join(wrong) or 'passed'}")
    return [f"{said}: {each}" for each in wrong]


def _drills(runtime: str) -> list[str]:
    if problem := runtimes.get(runtime).unavailable():
        return [f"{runtime}: {problem}"]
    with (
        tempfile.TemporaryDirectory() as directory,
        Cluster.create(
            ClusterSpec.of_size("lab"), runtime=runtime, store=Store(Path(directory)), temporary=True
        ) as lab,
    ):
        return [each for name, options in _DRILLS for each in _drill(lab, name, options, f"on {runtime}")]


def drills_process() -> list[str]:
    """Every drill in every way on processes: it passes, is verified to the same verdict again, and leaves nothing."""
    return _drills("process")


def drills_compose() -> list[str]:
    """The same with members in containers."""
    return _drills("compose")


def releases() -> list[str]:
    """failed-leader in every way on each etcd of ETCDOPS_TEST_ETCDS, as processes and in containers."""
    wrong: list[str] = []
    for version, etcd_bin in sorted(NAMED.items()):
        for spec, runtime in (
            (ClusterSpec.of_size("lab", etcd_bin=etcd_bin), "process"),
            (ClusterSpec.of_size("lab", etcd_version=version), "compose"),
        ):
            where = f"on etcd {version}, {runtime}"
            try:
                with (
                    tempfile.TemporaryDirectory() as directory,
                    Cluster.create(spec, runtime=runtime, store=Store(Path(directory)), temporary=True) as cluster,
                ):
                    for how in _HOWS:
                        wrong += _drill(cluster, "failed-leader", {"how": how}, where)
            except EtcdopsError as error:
                wrong.append(f"{where}: {error}")
    return wrong


#: More entries than any drill's journal has.
_MOST_ENTRIES = 300

_DYING = """
import os, signal, sys
from etcdops import drills
from etcdops.cluster import Cluster
from etcdops.report.journal import Journal
from etcdops.state import Store

directory, drill, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
note = Journal.note

def note_and_die(self, *args, **options):
    global left
    entry = note(self, *args, **options)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return entry

Journal.note = note_and_die
drills.run(drill, Cluster.attach("lab", store=Store(directory)), keys="10", age="0.2", rate=20, baseline_s=0.5)
"""


def kills_drills() -> list[str]:
    """data-loss and disaster on processes, killed at every entry of their journals: `heal` puts right what is left."""
    wrong = []
    with (
        tempfile.TemporaryDirectory() as directory,
        Cluster.create(
            ClusterSpec.of_size("lab"), runtime="process", store=Store(Path(directory)), temporary=True
        ) as lab,
    ):
        for drill in ("data-loss", "disaster"):
            for entry in range(1, _MOST_ENTRIES):
                argv = [sys.executable, "-c", _DYING, directory, drill, str(entry)]
                died = subprocess.run(argv, capture_output=True, timeout=300, check=False).returncode < 0
                heal(lab)
                left = _left_by(lab)
                say(f"{drill}, killed at {entry}: {'; '.join(left) or 'well'}")
                wrong += [f"{drill}, killed at {entry}: {each}" for each in left]
                if not died:
                    break
            else:
                wrong.append(f"{drill} never came to its end")
    return wrong


def remote() -> list[str]:
    """The same on three Docker hosts with TLS, which are made for it."""
    from etcdops.docker import images
    from etcdops.docker.engine import Engine
    from etcdops.remote.inventory import load
    from etcdops.runtimes.remote import RemoteRuntime
    from tests.remote.beds import bed_of_its_own

    image = images.find(Engine(), image="", version="", offline=True, progress=say).reference
    with (
        tempfile.TemporaryDirectory() as directory,
        bed_of_its_own(Path(directory, "bed"), "--image", image) as bed,
        Cluster.create(
            ClusterSpec.of_size("lab", image=image),
            runtime=RemoteRuntime(load(bed.inventory).hosts),
            store=Store(Path(directory, "state")),
            tls=True,
            temporary=True,
        ) as lab,
    ):
        return [each for name, options in _DRILLS for each in _drill(lab, name, options, "on three hosts")]


SOAKS: dict[str, Callable[[], list[str]]] = {
    "kills-process": kills_process,
    "kills-compose": kills_compose,
    "alarms-quiet": alarms_quiet,
    "alarms-kills": alarms_kills,
    "drills-process": drills_process,
    "drills-compose": drills_compose,
    "remote": remote,
    "releases": releases,
    "kills-drills": kills_drills,
}


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
