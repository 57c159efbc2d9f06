"""What Docker and Compose say when they cannot, as errors of ours: what is wrong, and what to do about it."""

from __future__ import annotations

import re
from typing import NamedTuple

from etcdops.errors import EtcdopsError, ImageError, Refused, RuntimeUnavailable

__all__ = ["COMPOSE_MISSING", "PUSH", "explain", "first_line", "for_another"]


class _Problem(NamedTuple):
    said: re.Pattern[str]
    kind: type[EtcdopsError]
    means: str
    remedy: str


def _problem(said: str, kind: type[EtcdopsError], means: str, remedy: str) -> _Problem:
    return _Problem(re.compile(said, re.IGNORECASE), kind, means, remedy)


#: In this order: a message may hold the words of several.
_PROBLEMS = (
    _problem(
        r"permission denied .*(docker daemon|docker\.sock|docker API)|dial unix .*permission denied|PermissionError",
        RuntimeUnavailable,
        "the Docker engine does not let this user in",
        "Add yourself to the group that owns the socket (`sudo usermod -aG docker $USER`, then log in again), or use"
        " `--runtime process`, which needs no Docker.",
    ),
    _problem(
        r"client version .* is too new|maximum supported API version|client version .* is too old"
        r"|minimum supported API version",
        RuntimeUnavailable,
        "the docker command and the Docker engine are too far apart in age",
        "Update the older one of the two; `docker version` shows both.",
    ),
    _problem(
        r"cannot connect to the docker daemon|is the docker daemon running|error during connect"
        r"|failed to connect to the docker api|couldn't connect to docker daemon|connection refused.*docker"
        r"|error while fetching server API version|unable to resolve docker endpoint"
        r"|context .* (not found|does not exist)",
        RuntimeUnavailable,
        "no Docker engine answers",
        "Start it (`sudo systemctl start docker`, or Docker Desktop), see `docker context ls`, or use"
        " `--runtime process`, which needs no Docker.",
    ),
    _problem(
        r"no space left on device|not enough space|disk quota exceeded",
        Refused,
        "the disk of the Docker engine is full",
        "See `docker system df`; `docker image prune` and `cluster.prune` make room.",
    ),
    _problem(
        r"non-overlapping IPv4 address pool|address pools have been fully subnetted|no available network",
        Refused,
        "the Docker engine has no address range left for another network",
        "Remove networks that nobody needs: see `docker network ls`, `docker network prune` and `cluster.prune`.",
    ),
    _problem(
        r"no matching manifest for|does not match the (detected|specified) (host )?platform|exec format error"
        r"|cannot be used on this platform",
        ImageError,
        "the image is for another architecture than the Docker engine's",
        "`image.build` makes one from the etcd at hand; then `up-env` uses it.",
    ),
    _problem(
        r"pull access denied|manifest unknown|no such image|repository does not exist|manifest for .* not found",
        ImageError,
        "the image is not here any more",
        "`image.list` shows those that are, `image.build` makes one from the etcd at hand; or pull it again.",
    ),
    _problem(
        r"port is already allocated|address already in use|failed to bind host port",
        Refused,
        "something else listens on a port that a member should have",
        "Type `up-env` again: a member without a pinned port gets another one.",
    ),
)

#: What says no more than that something went wrong, or where to read more.
_BOOKKEEPING = re.compile(r"Error: failed to start containers|Encountered errors while|(See|Run) 'docker ")

COMPOSE_MISSING = RuntimeUnavailable(
    "Docker has no Compose: neither `docker compose` nor `docker-compose` answers",
    remedy="Install docker-compose-plugin (or docker-compose), or use `--runtime process`, which needs no Docker.",
)


#: What to do about an image that a host lacks.
PUSH = (
    "`image.push --hosts …` copies this machine's there, and no registry is needed; `image.build` makes one from the"
    " etcd at hand."
)


def for_another(image: str, architecture: str, where: str, runs: str) -> str:
    """Say that an image is for another architecture than the engine's that is `where`."""
    own = architecture or "an unknown architecture"
    return f"the image {image} is for {own}, and the Docker engine {where} runs {runs}"


def explain(tried: str, where: str, said: str) -> EtcdopsError:
    """Give the error for a docker command that failed: `tried` on `where`, which wrote `said` to stderr."""
    for problem in _PROBLEMS:
        if problem.said.search(said):
            return problem.kind(f"{problem.means} ({where}): {first_line(said)}", remedy=problem.remedy)
    return EtcdopsError(f"`{tried}` failed ({where}): {first_line(said) or 'it said nothing'}")


def first_line(said: str) -> str:
    """Give the line that says what was wrong, without the advice and the bookkeeping around it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    lines = [line for line in lines if not _BOOKKEEPING.match(line)] or lines
    telling = [
        line
        for line in lines
        if re.search(r"error|cannot|could not|denied|fail|no such|not found|refused|unable", line, re.IGNORECASE)
    ]
    return (telling or lines or [""])[-1]
