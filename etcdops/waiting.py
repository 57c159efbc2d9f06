"""Waiting for members: until a write is acknowledged, until each serves, and never for one that has died."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from etcdops import reach
from etcdops.errors import EtcdError, MemberFailed, WaitTimeout
from etcdops.etcdctl import listens

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.wire import Connection

__all__ = ["fail_if_dead", "wait_first_write", "wait_serving"]

#: What members answer to writes while an alarm is armed, in part.
_ALARMS = ("database space exceeded", "corrupt cluster")

_LEARNER = "rpc not supported for learner"

#: How long a member has for a read by which it proves that it serves: more with each try, as one that is busy with what
#: it has missed needs longer, and one that is not there yet is best asked often.
_READ_S, _READ_MOST_S, _READ_MORE = 0.5, 5.0, 1.5

#: How often a wait looks whether what it waits for is still alive; and how much longer than a look it lets pass until
#: the next, as looks through a Docker engine cost the processor that members need to start.
_LOOK_S, _LOOK_SHARE = 0.05, 4


def wait_first_write(cluster: Cluster, started: Sequence[str], timeout_s: float) -> str:
    """Wait until any member acknowledges a write; the key goes again at once.

    Gives "", or what an alarm says that refuses writes: waiting does not help there. Raises MemberFailed when one of
    `started` dies meanwhile, WaitTimeout when no write is acknowledged in time.
    """
    from etcdops import wire
    from etcdops.status import refused_by_auth

    deadline = time.monotonic() + timeout_s
    key = f"etcdops/up/{secrets.token_hex(4)}".encode()
    last = "no member answered"
    life = _Life(cluster, started)
    pause_s = 0.005
    while True:
        for url in cluster.endpoints:
            life.look()
            if time.monotonic() > deadline:
                raise WaitTimeout(
                    f"no write was acknowledged within {timeout_s:.0f} s; last: {last}",
                    remedy=f"Look at `logs --cluster {cluster.name}`.",
                )
            if not listens(reach.through(url)):
                continue
            refused = ""
            try:
                with wire.Connection(url, cluster.record.spec.tls) as connection:
                    if not connection.status(timeout_s=1.0).leader:
                        # It would drop the write without a word, and we would wait for our deadline.
                        last = f"{url} knows no leader"
                        continue
                    connection.put(key, b"up", timeout_s=1.0)
                    connection.delete_range(key, timeout_s=5.0)
            except EtcdError as error:
                refused = next((alarm for alarm in _ALARMS if alarm in error.text), "")
                if not refused and not refused_by_auth(error):
                    last = str(error)
                    continue
            # Whatever answered: a member that died may have left its port to another.
            fail_if_dead(cluster, started)
            return refused
        # Docker accepts connections before etcd does, and to try without end would take the processor from etcd.
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LOOK_S)


def wait_serving(cluster: Cluster, names: Sequence[str], *, timeout_s: float = 30.0) -> None:
    """Wait until a linearizable read succeeds through each of the named members; a serializable one, for a learner.

    Raises MemberFailed when one of them dies meanwhile, WaitTimeout when one does not serve in time.
    """
    from etcdops import wire
    from etcdops.status import refused_by_auth

    deadline = time.monotonic() + timeout_s
    for name in names:
        url = cluster.record.member(name).client_url
        life = _Life(cluster, [name])
        read_s = _READ_S
        connection = wire.Connection(url, cluster.record.spec.tls)
        try:
            while True:
                try:
                    connection.range(b"health", timeout_s=read_s)
                    break
                except EtcdError as error:
                    if refused_by_auth(error) or (_LEARNER in error.text and _serves_locally(connection)):
                        break
                    life.look()
                    if time.monotonic() > deadline:
                        raise WaitTimeout(
                            f"member {name} serves no linearizable read after {timeout_s:.0f} s; last: {error}",
                            remedy=f"Look at `logs --member {name}`, and at `status`: it needs a quorum of voters.",
                        ) from error
                    if error.code == "DEADLINE_EXCEEDED":
                        read_s = min(_READ_MOST_S, read_s * _READ_MORE, max(deadline - time.monotonic(), _READ_S))
                        # It may be the connection: one that is made while a member's networks change can lead nowhere
                        # for longer than anybody waits.
                        connection.close()
                        connection = wire.Connection(url, cluster.record.spec.tls)
                time.sleep(0.01)
        finally:
            connection.close()
    if names:
        fail_if_dead(cluster, names)


def _serves_locally(connection: Connection) -> bool:
    """Whether a member answers a serializable read: of all reads the only one that a learner answers."""
    try:
        connection.range(b"health", serializable=True, timeout_s=0.5)
    except EtcdError:
        return False
    return True


class _Life:
    """Looks whether members live, again and again, but not so often that the looking is what takes the time."""

    def __init__(self, cluster: Cluster, names: Sequence[str]) -> None:
        self._cluster = cluster
        self._names = names
        self._next = 0.0

    def look(self) -> None:
        began = time.monotonic()
        if began >= self._next:
            fail_if_dead(self._cluster, self._names)
            now = time.monotonic()
            self._next = now + max(_LOOK_S, _LOOK_SHARE * (now - began))


def fail_if_dead(cluster: Cluster, names: Sequence[str]) -> None:
    """Raise MemberFailed, with the lines that matter of what it has logged since its start, if one does not run."""
    from etcdops.hints import remedy_for
    from etcdops.logs import matter, read_log

    states = cluster.runtime.states(cluster.record)
    for name in names:
        if states[name] == "stopped":
            member = cluster.record.member(name)
            lines = matter(list(read_log(cluster.runtime, member))[cluster.logged.get(name, 0) :])
            said = "\n".join(f"    {line.text}" for line in lines) or "    (it logged nothing)"
            whole = f"Its whole log is {member.log}." if member.log else f"Look at `logs --member {name}`."
            remedies = [remedy_for(said), whole]
            raise MemberFailed(f"member {name} died:\n{said}", remedy=" ".join(filter(None, remedies)))
