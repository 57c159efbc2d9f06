"""Compose: renders a cluster's file, and has `docker compose` or `docker-compose` create what the file says.

It creates and no more. v1 recreates containers that v2 has made, and the other way round, unless it is told not to;
what is started, stopped and removed here is so by container id.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from etcdops import rendering
from etcdops.docker.engine import LABEL, Engine
from etcdops.docker.problems import COMPOSE_MISSING
from etcdops.docker.tls import client_variables
from etcdops.errors import CommandMissing, RuntimeUnavailable
from etcdops.hosts import Completed
from etcdops.state import ClusterRecord, replace_file

__all__ = ["ComposeFile", "Service", "compose_missing", "create", "file_of", "project_of", "render"]

#: Variables that a Docker client's configuration puts into every container (`proxies` in its config.json).
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")

#: What docker says without the plugin; an "unknown flag" is one that follows the word that it does not know.
_NO_PLUGIN = re.compile(
    r"is not a docker command|unknown command: docker compose|unknown (shorthand )?flag", re.IGNORECASE
)


class Service(NamedTuple):
    """A member as a service: its published ports, its volume, etcd's flags and its health check.

    `alone` is where it meets its peers at their hosts' addresses: there is no network for that.
    """

    name: str
    ports: list[str]
    volume: str
    flags: list[str]
    health: list[str]
    alone: bool = False


class ComposeFile(NamedTuple):
    """What a rendered file is made of: `endpoints` are what the client passes connections on to.

    Where `host` is given, the file goes there as Compose's input, and a copy of it stays here.
    """

    record: ClusterRecord
    image: str
    services: list[Service]
    endpoints: list[str]
    host: str = ""


def project_of(name: str, cluster_id: str) -> str:
    """Give the Compose project of a cluster; another cluster of the same name has another."""
    return f"etcdops-{name}-{cluster_id[:6]}"


def file_of(record: ClusterRecord, host: str = "") -> str:
    """Give the path of a cluster's rendered file, or of the one for a host."""
    name = f"compose-{host}.yaml" if host else "compose.yaml"
    return os.path.join(record.state_dir, "clusters", record.spec.name, name)


def render(content: ComposeFile) -> str:
    """Give the text of a cluster's file."""
    record = content.record
    return rendering.render(
        "compose.yaml.j2",
        filters={"yaml": _yaml},
        cluster=record.spec.name,
        cluster_id=record.id,
        project=project_of(record.spec.name, record.id),
        state_dir=record.state_dir,
        uid=str(os.getuid()),
        image=content.image,
        members=content.services,
        endpoints=content.endpoints,
        networks=["client"] if all(each.alone for each in content.services) else ["client", "peer"],
        client_variables=client_variables(record),
        label=LABEL,
        proxies=[name for upper in _PROXIES for name in (upper, upper.lower())],
    )


def _yaml(value: object) -> str:
    """Write a value as JSON, which is YAML, with the dollar signs that Compose would take for variables doubled."""
    return json.dumps(value, ensure_ascii=True).replace("$", "$$")


def create(engine: Engine, content: ComposeFile, services: Sequence[str]) -> None:
    """Create the named services' containers, and the networks and volumes of the file; starts and recreates nothing.

    Raises RuntimeUnavailable without Compose, and what `etcdops.docker.problems` knows.
    """
    record = content.record
    path = Path(file_of(record, content.host))
    path.parent.mkdir(parents=True, exist_ok=True)
    text = render(content).encode()
    replace_file(path, text)
    project = project_of(record.spec.name, record.id)
    file = "-" if content.host else str(path)
    arguments = ["-p", project, "-f", file, "up", "--no-start", "--no-recreate", "--no-deps", *services]
    engine.checked(("compose", "up --no-start"), _compose(engine, arguments, text if content.host else b""))


def _compose(engine: Engine, arguments: list[str], stdin: bytes) -> Completed:
    done = engine.try_run("compose", "--ansi", "never", *arguments, timeout_s=300.0, stdin=stdin)
    if done.exit_code == 0 or not _NO_PLUGIN.search(done.stderr.decode(errors="replace")):
        return done
    try:
        return engine.host.run(
            ["docker-compose", *engine.flags, "--ansi", "never", *arguments], timeout_s=300.0, stdin=stdin
        )
    except CommandMissing as error:
        raise COMPOSE_MISSING from error


def compose_missing(engine: Engine) -> RuntimeUnavailable | None:
    """Give the error when neither Compose answers, else None; raises as `Engine.survey` does."""
    if engine.survey().exit_code == 0:
        return None
    try:
        done = engine.host.run(["docker-compose", "version", "--short"], timeout_s=30.0)
    except CommandMissing:
        return COMPOSE_MISSING
    return None if done.exit_code == 0 else COMPOSE_MISSING
