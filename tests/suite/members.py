"""Members as somebody sees and treats them who knows nothing of etcdops: by `kill` and /proc, or by `docker`."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
from pathlib import Path

from etcdops import binaries, runtimes
from etcdops.cluster import Cluster
from etcdops.runtimes.base import Leftover
from etcdops.state import ClusterRecord

_SIGNALS = {"kill": signal.SIGKILL, "pause": signal.SIGSTOP, "unpause": signal.SIGCONT}


def docker(*arguments: str) -> str:
    """Run a docker command, and give what it wrote."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout.strip()


def put_file(container: str, path: str, content: bytes) -> None:
    """Write a file of a container's, whose owner is the user that it runs as."""
    uid, _, gid = docker("inspect", "--format", "{{.Config.User}}", container).partition(":")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo(path.lstrip("/"))
        entry.size, entry.mode, entry.uid, entry.gid = len(content), 0o600, int(uid or 0), int(gid or 0)
        tar.addfile(entry, io.BytesIO(content))
    subprocess.run(["docker", "cp", "-", f"{container}:/"], input=archive.getvalue(), check=True, timeout=60)


def act(runtime: str, ref: str, action: str) -> None:
    """Do "kill", "pause" or "unpause" to a member behind etcdops' back; `ref` is the recorded one, or a leftover's."""
    if runtime == "compose":
        docker(action, ref.rpartition(" ")[2])
    else:
        os.kill(int(ref.partition(":")[0]), _SIGNALS[action])


def life(record: ClusterRecord, name: str) -> str:
    """Name the life that a member leads: another start, another life."""
    ref = record.member(name).ref
    return docker("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", ref) if record.runtime == "compose" else ref


def lives(record: ClusterRecord) -> list[str]:
    """Name the lives of all members."""
    return [life(record, member.name) for member in record.members]


def left(runtime: str, state_dir: Path | None = None) -> list[Leftover]:
    """Give all that there is of clusters in a state directory (in any, without one), the directory itself aside."""
    if runtime == "compose":
        return [each for kind in ("container", "network", "volume") for each in _labelled(kind, state_dir)]
    return [each for each in runtimes.get(runtime).leftovers() if state_dir is None or each.state_dir == str(state_dir)]


def running(runtime: str, state_dir: Path) -> list[Leftover]:
    """Give the members of clusters in a state directory that run, recorded or not."""
    found = _labelled("container", state_dir) if runtime == "compose" else left(runtime, state_dir)
    return [each for each in found if each.member and each.runs]


def _labelled(kind: str, state_dir: Path | None) -> list[Leftover]:
    """Find by our labels what Docker has of a kind."""
    listing = ["ps", "--all", "--no-trunc"] if kind == "container" else [kind, "ls"]
    values = [f'{{{{.Label "io.etcdops.{name}"}}}}' for name in ("cluster", "cluster-id", "member", "state-dir")]
    values += ["{{.ID}}", "{{.State}}"] if kind == "container" else ["{{.Name}}", "there"]
    label = "label=io.etcdops.state-dir" + (f"={state_dir}" if state_dir else "")
    told = docker(*listing, "--filter", label, "--format", "\t".join(values)).splitlines()
    found = []
    for line in told:
        cluster, cluster_id, member, directory, name, state = line.split("\t")
        runs = state in ("running", "paused", "restarting")
        described = f"the {kind} {name} ({state})"
        found.append(Leftover(cluster, cluster_id, member, directory, f"{kind} {name}", described, runs))
    return found


def below(directory: Path) -> list[tuple[str, Leftover]]:
    """Give, with its runtime, all that there is of clusters whose state directory is somewhere below a directory."""
    here = [name for name in runtimes.names() if not runtimes.get(name).unavailable()]
    return [(name, each) for name in here for each in left(name) if each.state_dir.startswith(f"{directory}{os.sep}")]


def end(runtime: str, state_dir: Path) -> None:
    """End and remove all of that."""
    for each in left(runtime, state_dir):
        remove(runtime, each)


def remove(runtime: str, leftover: Leftover) -> None:
    """End or remove one of them."""
    kind, _, name = leftover.ref.partition(" ")
    if runtime == "process":
        runtimes.get(runtime).end_leftover(leftover)
    elif kind == "container":
        docker("rm", "--force", "--volumes", name)
    else:
        docker(kind, "rm", name)


def has_data(record: ClusterRecord, name: str) -> bool:
    """Whether a member's data is there."""
    place = record.member(name).data.place
    if record.runtime == "compose":
        return place in docker("volume", "ls", "--quiet").split()
    return Path(place, "member").is_dir()


def log_of(record: ClusterRecord, name: str) -> bytes:
    """Give all that a member has logged."""
    member = record.member(name)
    if record.runtime == "compose":
        argv = ["docker", "logs", member.ref]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True, timeout=60)
        return done.stdout
    return Path(member.log).read_bytes()


def etcdctl(record: ClusterRecord) -> str:
    """Give the path of an etcdctl of the cluster's version."""
    return binaries.etcdctl_for(record.etcd_version, beside=record.binary)


def shown(cluster: Cluster, name: str) -> str:
    """Give the words by which a person is told what a member runs as."""
    ref = cluster.record.member(name).ref
    return f"container {ref[:12]}" if cluster.record.runtime == "compose" else f"process {ref.partition(':')[0]}"
