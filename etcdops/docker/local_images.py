"""The container images of etcd that a Docker engine has, and which etcd is in each."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from etcdops.docker.engine import LABEL, Engine
from etcdops.docker.problems import explain, first_line
from etcdops.errors import EtcdopsError, ImageError, Refused, SpecError
from etcdops.paths import cache_dir
from etcdops.versions import CURRENT, parse_version

__all__ = [
    "BUILT",
    "CONTENT",
    "MIRROR",
    "OFFICIAL",
    "OURS",
    "VERSION",
    "Image",
    "as_image",
    "ask",
    "has_label",
    "here",
    "inspect",
    "list_images",
    "version_in",
]

#: Where etcd's releases are published (each release's notes on github.com/etcd-io/etcd name both), and what we build.
OFFICIAL = "gcr.io/etcd-development/etcd"
MIRROR = "quay.io/coreos/etcd"
OURS = "etcdops/etcd"

#: The labels of an image that we built: that we did, a hash of all that is in it, and the version of its etcd.
BUILT = f"{LABEL}image"
CONTENT = f"{LABEL}content"
VERSION = f"{LABEL}etcd-version"


class Image(msgspec.Struct, frozen=True):
    """An image that is here.

    `reference` is its name and tag, or its id where it has no name. `architecture` is as Docker calls it ("amd64").
    `user` is "10001:10001", or "" for root. `etcd_version` is as "3.5.30", or "" where it is not known. `size` is in
    bytes, `created` as Docker writes it (RFC 3339). `built` tells whether `image.build` made it.
    """

    reference: str
    id: str
    architecture: str
    user: str
    etcd_version: str
    size: int
    created: str
    built: bool


def list_images(engine: Engine) -> list[Image]:
    """Give the images that `build` made and etcd's official ones, by version, the newest first.

    An image with several names is there once for each. Nothing is run: the version of an official one is what its tag
    says. Raises what `Engine.run` raises.
    """
    columns = "{{.ID}}\t{{.Repository}}\t{{.Tag}}"
    told = engine.run_each(
        [
            ["image", "ls", "--no-trunc", "--filter", f"label={BUILT}=built", "--format", columns],
            ["image", "ls", "--no-trunc", *_of_repositories(OFFICIAL, MIRROR), "--format", columns],
        ]
    )
    names: dict[str, str] = {}
    for line in "".join(told).splitlines():
        id_, repository, tag = line.split("\t")
        names[id_ if "<none>" in (repository, tag) else f"{repository}:{tag}"] = id_
    by_id = {each["Id"]: each for each in inspect(engine, sorted(set(names.values())))}
    every = [as_image(by_id[id_], name) for name, id_ in names.items() if id_ in by_id]
    found = [each for each in every if each.built or each.reference.rpartition(":")[0] in (OFFICIAL, MIRROR)]
    return sorted(found, key=lambda each: (_order(each.etcd_version), each.created, each.reference), reverse=True)


def _of_repositories(*names: str) -> list[str]:
    return [word for name in names for word in ("--filter", f"reference={name}")]


def _order(version: str) -> tuple[int, ...]:
    return parse_version(version) if version else ()


def here(engine: Engine, references: Sequence[str]) -> list[Image]:
    """Give those of the images that are here, in this order, by one docker command."""
    found = inspect(engine, references)
    if len(references) == 1:
        return [as_image(each, references[0]) for each in found]
    return [as_image(each, name) for name in references for each in found if name in (each.get("RepoTags") or [])]


def inspect(engine: Engine, references: Sequence[str]) -> list[dict[str, Any]]:
    """Give what Docker tells of those of the images that are here: it tells those, and fails for the others."""
    if not references:
        return []
    done = engine.try_run("image", "inspect", "--format", "{{json .}}", *references)
    said = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    if not said or not all(re.search("no such image", line, re.IGNORECASE) for line in said):
        engine.checked(("image", "inspect"), done)
    # Newer docker commands write an empty line for what is not here.
    return [json.loads(line) for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]


def has_label(told: Sequence[dict[str, Any]], name: str, value: str) -> bool:
    """Whether an image, as `inspect` gives it, has a label of this value; False where there is none."""
    return any(((each.get("Config") or {}).get("Labels") or {}).get(name) == value for each in told)


def as_image(told: dict[str, Any], reference: str) -> Image:
    """Give what Docker tells of an image as an Image of that name; the version is what its label or its tag says."""
    config = told.get("Config") or {}
    labels = config.get("Labels") or {}
    # What somebody derived from an image of ours has our labels too, but layers of its own.
    built = labels.get(BUILT) == "built" and len((told.get("RootFS") or {}).get("Layers") or []) == 1
    repository, _, tag = reference.rpartition(":")
    text = labels.get(VERSION, "") if built else tag if repository in (OFFICIAL, MIRROR) else ""
    try:
        version = str(parse_version(text))
    except SpecError:
        version = ""
    return Image(
        reference=reference,
        id=told["Id"],
        architecture=told.get("Architecture") or "",
        user=config.get("User") or "",
        etcd_version=version,
        size=told.get("Size") or 0,
        created=told.get("Created") or "",
        built=built and bool(version),
    )


def version_in(engine: Engine, image: Image) -> str:
    """Give the version that the etcd in an image tells; raise ImageError when there is none.

    To run it costs some 0.5 s, and an image's id stands for its content, so that answers are kept in the cache
    directory. A cache that cannot be read or written only costs that time again.
    """
    memory = os.path.join(cache_dir(), "image-versions")
    try:
        with open(memory, encoding="utf-8") as file:
            for line in file:
                if re.fullmatch(rf"{re.escape(image.id)}\t\d+\.\d+\.\d+\n", line):
                    return line.split()[1]
    except (OSError, ValueError):
        pass
    version = ask(engine, image.id, image.reference, image.architecture)
    try:
        os.makedirs(os.path.dirname(memory), exist_ok=True)
        with open(memory, "a", encoding="utf-8") as file:
            file.write(f"{image.id}\t{version}\n")
    except OSError:
        pass
    return version


def ask(engine: Engine, id_: str, reference: str, architecture: str) -> str:
    """Run the etcd of an image and give its version; raise ImageError when there is none that runs."""
    name = f"etcdops-ask-{secrets.token_hex(4)}"
    # The platform is named, since DOCKER_DEFAULT_PLATFORM may say otherwise.
    platform = f"linux/{architecture}"
    alone = ["--rm", "--name", name, "--platform", platform, "--pull", "never", "--network", "none", "--read-only"]
    try:
        done = engine.try_run("run", *alone, "--entrypoint", "etcd", id_, "--version")
    except BaseException as error:
        # The docker command has ended, and what it started may not have.
        engine.try_run("rm", "--force", "--volumes", name)
        if type(error) is EtcdopsError:
            raise ImageError(f"the etcd in the image {reference} does not tell its version: {error}") from error
        raise
    said = (done.stdout + b"\n" + done.stderr).decode(errors="replace")
    for line in said.splitlines():
        if line.lower().startswith("etcd version:"):
            try:
                return str(parse_version(line.partition(":")[2]))
            except SpecError:
                break
    if done.exit_code == 125:  # Docker itself has failed
        means = explain("docker run", engine.described, said)
        if isinstance(means, Refused):
            raise means
    raise ImageError(
        f"the image {reference} is no image of etcd: `etcd --version` in it ended with {done.exit_code} and said:"
        f" {first_line(said)[:300] or 'nothing'}",
        remedy=f"Name another: {OFFICIAL}:v{CURRENT}, or one that `image.list` shows.",
    )
