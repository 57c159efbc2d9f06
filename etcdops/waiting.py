"""Waiting for members: until a write is acknowledged, until each serves, and never for one that has died."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from etcdops.errors import EtcdError, MemberFailed, WaitTimeout
from etcdops.etcdctl import listens

if TYPE_CHECKING:
    from etcdops.cluster import Cluster

__all__ = ["fail_if_dead", "wait_first_write", "wait_serving"]


def wait_first_write(cluster: Cluster, started: Sequence[str], timeout_s: float) -> None:
    """Wait until any member acknowledges a write; the key goes again at once.

    Raises MemberFailed when one of `started` dies meanwhile, WaitTimeout when no write is acknowledged in time.
    """
    from etcdops import wire
    from etcdops.status import refused_by_auth

    deadline = time.monotonic() + timeout_s
    key = f"etcdops/up/{secrets.token_hex(4)}".encode()
    last = "no member answered"
    while True:
        for url in cluster.endpoints:
            fail_if_dead(cluster, started)
            if time.monotonic() > deadline:
                raise WaitTimeout(
                    f"no write was acknowledged within {timeout_s:.0f} s; last: {last}",
                    remedy=f"Look at `logs --cluster {cluster.name}`.",
                )
            if not listens(url):
                continue
            try:
                with wire.Connection(url, cluster.record.spec.tls) as connection:
                    connection.put(key, b"up", timeout_s=1.0)
                    connection.delete_range(key, timeout_s=5.0)
                return
            except EtcdError as error:
                if refused_by_auth(error):
                    return
                last = str(error)
        time.sleep(0.005)


def wait_serving(cluster: Cluster, names: Sequence[str], *, timeout_s: float = 30.0) -> None:
    """Wait until a linearizable read succeeds through each of the named members.

    Raises MemberFailed when one of them dies meanwhile, WaitTimeout when one does not serve in time.
    """
    from etcdops import wire
    from etcdops.status import refused_by_auth

    deadline = time.monotonic() + timeout_s
    for name in names:
        url = cluster.record.member(name).client_url
        with wire.Connection(url, cluster.record.spec.tls) as connection:
            while True:
                fail_if_dead(cluster, [name])
                try:
                    connection.range(b"health", timeout_s=0.5)
                    break
                except EtcdError as error:
                    if refused_by_auth(error):
                        break
                    if time.monotonic() > deadline:
                        raise WaitTimeout(
                            f"member {name} serves no linearizable read after {timeout_s:.0f} s; last: {error}",
                            remedy=f"Look at `logs --member {name}`, and at `status`: it needs a quorum of voters.",
                        ) from error
                time.sleep(0.01)


def fail_if_dead(cluster: Cluster, names: Sequence[str]) -> None:
    """Raise MemberFailed, with the lines that matter of what it has logged since its start, if one does not run."""
    from etcdops.logs import matter, read_log

    for name in names:
        member = cluster.record.member(name)
        if cluster.runtime.state(member) == "stopped":
            lines = matter(list(read_log(cluster.runtime, member))[cluster.logged.get(name, 0) :])
            said = "\n".join(f"    {line.text}" for line in lines) or "    (it logged nothing)"
            raise MemberFailed(
                f"member {name} died:\n{said}", remedy=f"Its whole log is {member.log}." if member.log else ""
            )
