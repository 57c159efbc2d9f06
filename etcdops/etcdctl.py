"""`ctl`: hands the command over to a real etcdctl, with the cluster's endpoints and TLS files set.

Nothing stands between the caller and etcdctl: this process *becomes* etcdctl, so arguments, stdin, stdout, stderr,
signals and the exit code are its own. Only where members are reached by forwards through SSH, it waits for etcdctl:
those live as long as this process. This module imports next to nothing, because it is on the way of every `ctl`.
"""

from __future__ import annotations

import os
import sys

from etcdops import foreign
from etcdops.errors import BinaryError, ClusterNotFound, Refused, SpecError, StateError
from etcdops.paths import find_state_dir

__all__ = [
    "CtlPlan",
    "NotUp",
    "become",
    "check_name",
    "environment",
    "listens",
    "misplaced",
    "plan",
    "remainder",
    "without_dashes",
]

#: What we set for the caller, and what each of those is called as a flag. etcdctl refuses to start when it is given
#: both ("conflicting environment variable is shadowed by corresponding command-line flag", etcd#11298), so a flag of
#: the caller's wins by our leaving the variable out.
_VARIABLES = {
    "ETCDCTL_ENDPOINTS": "--endpoints",
    "ETCDCTL_CACERT": "--cacert",
    "ETCDCTL_CERT": "--cert",
    "ETCDCTL_KEY": "--key",
}

#: The caller's variables that would lead etcdctl to another cluster, or to this one in another way.
_REPLACED = (
    *_VARIABLES,
    "ETCDCTL_INSECURE_TRANSPORT",
    "ETCDCTL_INSECURE_SKIP_TLS_VERIFY",
    "ETCDCTL_DISCOVERY_SRV",
    "ETCDCTL_DISCOVERY_SRV_NAME",
    "ETCDCTL_INSECURE_DISCOVERY",
)

#: Subcommands that talk to no cluster.
_LOCAL = ("help", "version", "completion")
_LOCAL_SNAPSHOT = ("restore", "status")

_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


class NotUp(Refused):
    """No member of the cluster accepts connections."""


class CtlPlan:
    """Which etcdctl to become, with which arguments and which environment; or to wait for, if `waits`."""

    def __init__(self, path: str, argv: list[str], env: dict[str, str], *, waits: bool = False) -> None:
        self.path = path
        self.argv = argv
        self.env = env
        self.waits = waits


def remainder(argv: list[str]) -> list[str] | None:
    """Give what follows the first `--` of a command line, or None if there is none."""
    return argv[argv.index("--") + 1 :] if "--" in argv else None


def misplaced(argv: list[str]) -> list[str]:
    """Give the words between `ctl` and the first `--` (or the end) that are no flags of ours.

    Invoke would take them for further tasks: `ctl status` for `ctl` and then `status`.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    start = next((i for i in range(1, end) if argv[i].rpartition(".")[2] == "ctl"), end)
    found: list[str] = []
    own = iter(argv[start + 1 : end])
    for word in own:
        if word in ("--cluster", "-c"):
            next(own, None)
        elif found or not word.startswith(("--cluster=", "-c", "-h", "--help")):
            found.append(word)
    return found


def check_name(cluster: str) -> None:
    """Raise SpecError for what cannot be a cluster's name, before it becomes part of a path."""
    if not _NAME_LETTERS.issuperset(cluster) or not 0 < len(cluster) < 32 or cluster[0] == "-":
        # The full check is slow to import, and says what is wrong.
        from etcdops.spec import valid_name

        valid_name(cluster)


def plan(cluster: str, arguments: list[str]) -> CtlPlan:
    """Find the cluster and the etcdctl for it.

    Raises NotUp when no member listens, ClusterNotFound, StateError, BinaryError when there is no etcdctl, or
    SpecError for what cannot be a cluster's name.
    """
    check_name(cluster)
    local = not arguments or _is_local(arguments)
    elsewhere = _has_flag(arguments, "--endpoints")
    record = _read(cluster, required=not (local or elsewhere))
    endpoints: list[str] = record["endpoints"]
    waits = False
    if not (local or elsewhere):
        up = _any_listens(record["reach"], endpoints)
        if not up and record["reach"]:
            forwarded = _forwarded(cluster)
            waits = up = forwarded != endpoints
            endpoints = forwarded
        if not up and record["runtime"] == foreign.RUNTIME:
            raise Refused(
                f"no member of {cluster} accepts connections from here, and etcdops did not start them",
                remedy=f"Start them {foreign.WHERE_THEY_RUN}; if they moved, `cluster.attach` again.",
            )
        if not up:
            raise NotUp(f"cluster {cluster} is not up: no member accepts connections", remedy=_up_command(cluster))
    env = environment(dict(os.environ), endpoints, record["tls"], arguments)
    try:
        path = _etcdctl(record["binary"], record["etcd_version"])
    except BinaryError:
        if record["runtime"] != "compose":
            raise
        from etcdops.docker.ctl import docker_path, exec_argv

        # There the gateway listens where etcdctl looks by itself, and TLS files are set; those here are this machine's.
        for name, word in _VARIABLES.items():
            env.pop(name, None)
            if _has_flag(arguments, word):
                # What is empty, etcdctl takes for not given.
                env[name] = ""
        return CtlPlan(docker_path(), exec_argv(record["id"], record["engine"], arguments, env), env)
    return CtlPlan(path, ["etcdctl", *arguments], env, waits=waits)


def environment(
    base: dict[str, str], endpoints: list[str], tls: dict[str, str] | None, arguments: list[str]
) -> dict[str, str]:
    """Give the environment for etcdctl: endpoints and TLS files are the cluster's, all the rest is the caller's."""
    env = {key: value for key, value in base.items() if key not in _REPLACED}
    values = {"ETCDCTL_ENDPOINTS": ",".join(endpoints)}
    if tls:
        values |= {"ETCDCTL_CACERT": tls["ca"], "ETCDCTL_CERT": tls["client_cert"], "ETCDCTL_KEY": tls["client_key"]}
    env |= {key: value for key, value in values.items() if value and not _has_flag(arguments, _VARIABLES[key])}
    return env


def become(ctl: CtlPlan) -> int:
    """Become etcdctl, and do not return; or wait for it, where the plan says so, and give its exit code.

    Raises BinaryError when it cannot be run.
    """
    import signal

    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()
    try:
        if ctl.waits:
            return _wait(ctl)
        # Python ignores these two, and what is ignored stays so across exec.
        for signum in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(signum, signal.SIG_DFL)
        os.execve(ctl.path, ctl.argv, ctl.env)
    except OSError as error:
        raise BinaryError(
            f"cannot run {ctl.path}: {error.strerror or error}", remedy="`etcd.fetch` gets another one."
        ) from error


def _wait(ctl: CtlPlan) -> int:
    """Run etcdctl to its end, and end as it did."""
    import signal
    import subprocess

    begun: list[subprocess.Popen[bytes]] = []

    def pass_on(signum: int, frame: object) -> None:
        for each in begun:
            each.send_signal(signum)

    # What a terminal sends, etcdctl gets as well, being of the same group.
    handlers = {signal.SIGINT: lambda signum, frame: None, signal.SIGQUIT: lambda signum, frame: None}
    for signum, handler in {**handlers, signal.SIGTERM: pass_on, signal.SIGHUP: pass_on}.items():
        signal.signal(signum, handler)
    child = subprocess.Popen(ctl.argv, executable=ctl.path, env=ctl.env)
    begun.append(child)
    code = child.wait()
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _flags(arguments: list[str]) -> list[str]:
    """Give the arguments that can be flags: what follows etcdctl's own `--` is a key or a value."""
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _has_flag(arguments: list[str], flag: str) -> bool:
    return any(word == flag or word.startswith(flag + "=") for word in _flags(arguments))


def _is_local(arguments: list[str]) -> bool:
    """Whether this needs no cluster: help, and what works on files alone."""
    if arguments[0] in _LOCAL or not {"--help", "-h"}.isdisjoint(_flags(arguments)):
        return True
    return arguments[0] == "snapshot" and arguments[1:2] != [] and arguments[1] in _LOCAL_SNAPSHOT


def _read(cluster: str, *, required: bool) -> dict:  # type: ignore[type-arg]  # as json gives it; see Store.load
    """Read the record with the standard library alone: the checked way costs more than etcdctl itself takes."""
    import json

    path = os.path.join(find_state_dir(), "clusters", cluster, "cluster.json")
    words = ("id", "runtime", "binary", "etcd_version")
    empty: dict[str, object] = {"endpoints": [], "tls": None, "engine": "", "reach": [], **dict.fromkeys(words, "")}
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        if record["schema"] > 1:
            raise ValueError("it was written by a newer release")
        if os.path.realpath(record["state_dir"]) != os.path.realpath(find_state_dir()):
            raise ValueError(f"it is the record of the cluster in {record['state_dir']}, and was moved or copied here")
        tls = record["spec"]["tls"]
        return {
            "endpoints": [str(member["client_url"]) for member in record["members"] if member["client_url"]],
            "tls": tls and {key: str(tls[key]) for key in ("ca", "client_cert", "client_key")},
            # Records that were written before members ran in containers have no engine.
            "engine": str(record.get("engine", "")),
            "reach": [str(host.get("reach", "auto")) for host in record.get("hosts", ())],
            **{word: str(record[word]) for word in words},
        }
    except FileNotFoundError:
        if required:
            raise ClusterNotFound(
                f"there is no cluster {cluster!r} in {find_state_dir()}", remedy=_up_command(cluster)
            ) from None
        return empty
    except (OSError, ValueError, KeyError, TypeError) as error:
        said, remedy = str(error), "See `status` for what is wrong with it."
        if isinstance(error, KeyError):
            said, remedy = f"it lacks {error}", "Restore it from a copy; or see `cluster.list` and `cluster.prune`."
        raise StateError(f"cannot read {path}: {said}", remedy=remedy) from error


def listens(url: str) -> bool:
    """Whether something accepts connections at `url`; looks for a second at the longest."""
    import socket

    try:
        socket.create_connection(_address(url), timeout=1.0).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _any_listens(reach: list[str], urls: list[str]) -> bool:
    """Whether a member accepts connections. Where hosts are told to be reached by forwards, this does not matter."""
    if not reach:
        return any(listens(url) for url in urls)
    if "forward" in reach:
        return False
    import queue
    import threading

    # A host that is off keeps nobody waiting for those that are not.
    answers: queue.Queue[bool] = queue.Queue()
    for url in urls:
        threading.Thread(target=lambda at: answers.put(listens(at)), args=(url,), daemon=True).start()
    return any(answers.get() for _ in urls)


def _forwarded(cluster: str) -> list[str]:
    """Give the URLs at which members are reached from here, by a forward through SSH where there is no other way."""
    from concurrent.futures import ThreadPoolExecutor

    from etcdops import reach
    from etcdops.runtimes.remote import for_record
    from etcdops.state import Store

    record = Store.find().load(cluster)
    for_record(record)
    urls = [member.client_url for member in record.members]
    with ThreadPoolExecutor(len(urls)) as pool:
        return list(pool.map(reach.through, urls))


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.rpartition("://")[2].rpartition(":")
    return host.strip("[]"), int(port)


def _etcdctl(binary: str, version: str) -> str:
    from etcdops.binaries import etcdctl_for

    return etcdctl_for(version, beside=binary)


def _up_command(cluster: str) -> str:
    program = os.path.basename(sys.argv[0]) or "etcdops"
    program = "invoke" if program in ("inv", "invoke") else "etcdops"
    return f"Type `{program} up-env{'' if cluster == 'lab' else ' --cluster ' + cluster}` to start it."


def without_dashes(words: list[str]) -> SpecError:
    """Give the error for `ctl status`, which Invoke would otherwise run as two tasks; `words` are from `misplaced`."""
    import shlex

    said = shlex.join(words)
    return SpecError(
        "`ctl` takes etcdctl's arguments after `--`" + (f", and {said!r} stands before it" if said else ""),
        remedy=f"Type `ctl -- {said or 'member list -w table'}`.",
    )
