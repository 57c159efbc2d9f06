"""Container images of etcd: the one that a new cluster gets, those that are here, and one made from the etcd at hand.

A cluster runs etcd's official image, or one that `build` has made. Nothing else is pulled, and nobody's image is
overwritten.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Sequence

import msgspec

from etcdops.docker.engine import LABEL, Engine
from etcdops.docker.local_images import (
    BUILT,
    CONTENT,
    MIRROR,
    OFFICIAL,
    OURS,
    VERSION,
    Image,
    as_image,
    ask,
    has_label,
    here,
    inspect,
    list_images,
    version_in,
)
from etcdops.docker.problems import for_another
from etcdops.docker.pull import pull
from etcdops.docker.rootfs import BIN_DIR, DATA_DIR, USER_ID, read_elf, write
from etcdops.errors import ImageError, Refused, SpecError
from etcdops.versions import CURRENT, Version, is_unsafe, parse_version

__all__ = ["MIRROR", "OFFICIAL", "OURS", "Image", "build", "find", "list_images", "official"]

_HOST = r"(?:(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::\d+)?/)?"
_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(rf"{_HOST}{_PART}(?:/{_PART})*(?::\w[\w.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?", re.ASCII)
_ID = re.compile(r"sha256:[0-9a-f]{64}")

#: With another image at hand to fall back on, nobody waits longer than this for a better one.
_PULL_AT_EASE_S = 60.0


def official(version: str = "") -> str:
    """Give the reference of etcd's official image: of `version`, or of the current release."""
    return f"{OFFICIAL}:v{parse_version(version or CURRENT)}"


# -- which image a new cluster gets


def find(
    engine: Engine,
    *,
    image: str = "",
    version: str = "",
    offline: bool = False,
    progress: Callable[[str], None] | None = None,
    timeout_s: float = 300.0,
    architecture: str = "",
) -> Image:
    """Give the image that a new cluster uses, pulling it if it is not here.

    `image` names one. Else, of `version`: the official one if it is here, else one that `build` made, else the
    official one is pulled. Without either: the official one of the current release if it is here, else the newest that
    `build` made, under its default name, of an etcd that is not unsafe (`versions.is_unsafe`), else the former is
    pulled; where that fails, the best of these that is here is used. What is used for want of better, and how a pull
    goes, is said through `progress`. `offline` (or ETCDOPS_OFFLINE=1 in the environment) rules a pull out; a pull ends
    within `timeout_s` seconds. `architecture` is the engine's, for a caller who knows it.

    Raises ImageError when no image is to be had, or when it is for another architecture, is no etcd or not of
    `version`; SpecError for an `image` or a `version` that is none; and what `Engine.run` raises.
    """
    wanted = parse_version(version) if version else None
    if image:
        _check_reference(image)
    say = progress or _silent
    machine = architecture or engine.version()[1]
    offline = offline or os.environ.get("ETCDOPS_OFFLINE", "0") not in ("", "0")
    if image:
        names = [image]
    elif wanted:
        names = [official(str(wanted)), f"{MIRROR}:v{wanted}", f"{OURS}:{wanted}"]
    else:
        names = [official(), f"{MIRROR}:v{CURRENT}"]
    present = here(engine, names)
    fits = [each for each in present if each.architecture == machine]
    if not fits and not (image or wanted):
        # One that was given another name was made for somebody who names it.
        usual = (OURS, OFFICIAL, MIRROR)
        listed = [each for each in list_images(engine) if each.reference.rpartition(":")[0] in usual]
        others = [each for each in listed if each.architecture == machine and each.etcd_version]
        chosen = _best_of(engine, others, machine, say, offline=offline, timeout_s=timeout_s)
    elif not fits and present:
        raise _wrong_architecture(engine, present[0], machine)
    elif not fits:
        chosen = _pulled(engine, names[0], wanted, machine, offline=offline, progress=say, timeout_s=timeout_s)
    else:
        chosen = fits[0]
    if chosen.architecture != machine:
        raise _wrong_architecture(engine, chosen, machine)
    if not chosen.built:
        chosen = msgspec.structs.replace(chosen, etcd_version=version_in(engine, chosen))
    if wanted and chosen.etcd_version != str(wanted):
        raise ImageError(
            f"the image {chosen.reference} has etcd {chosen.etcd_version}, and etcd {wanted} was asked for",
            remedy="Leave one of the two out; `image.list` shows what is here.",
        )
    return chosen


def _best_of(
    engine: Engine, others: list[Image], machine: str, say: Callable[[str], None], *, offline: bool, timeout_s: float
) -> Image:
    """Give what is used without a wish where the official image of the current release is not here."""
    good = [each for each in others if each.built and not is_unsafe(each.etcd_version)]
    newest = [each for each in good if each.etcd_version == good[0].etcd_version]
    if newest:
        # Of several, the one with the name that `build` gives by itself: others were named for some purpose.
        each = next((each for each in newest if each.reference.startswith(f"{OURS}:")), newest[0])
        say(f"using the image {each.reference} (built here), because {official()} is not here")
        return each
    try:
        limit_s = min(timeout_s, _PULL_AT_EASE_S) if others else timeout_s
        return _pulled(engine, official(), None, machine, offline=offline, progress=say, timeout_s=limit_s)
    except ImageError as error:
        if not others:
            raise
        chosen = max(others, key=lambda each: (not is_unsafe(each.etcd_version), parse_version(each.etcd_version)))
        unsafe = ", whose etcd is known to lose data in a crash," if is_unsafe(chosen.etcd_version) else ""
        say(f"using the image {chosen.reference}{unsafe} because {error}")
        return chosen


def _pulled(
    engine: Engine,
    reference: str,
    wanted: Version | None,
    machine: str,
    *,
    offline: bool,
    progress: Callable[[str], None],
    timeout_s: float,
) -> Image:
    if offline:
        why = "a pull is ruled out (offline)"
    elif _ID.fullmatch(reference):
        why = "an image without a name cannot be pulled"
    else:
        why = pull(engine, reference, architecture=machine, timeout_s=timeout_s, progress=progress)
    if not why:
        if present := here(engine, [reference]):
            return present[0]
        why = "it was gone again right after it was pulled"
    raise ImageError(
        f"the image {reference} is not on the Docker engine ({engine.described}), and could not be pulled: {why}",
        remedy=engine.without_image.format(version=f" --etcd-version {wanted}" if wanted else ""),
    )


def _wrong_architecture(engine: Engine, image: Image, machine: str) -> ImageError:
    return ImageError(
        for_another(image.reference, image.architecture, f"({engine.described})", machine),
        remedy=f"`docker pull --platform linux/{machine} {image.reference}` gets the right one, if it is published;"
        " `image.build` makes one from the etcd at hand, and `--image` uses it.",
    )


def _check_reference(text: str) -> None:
    if not _REFERENCE.fullmatch(text) and not _ID.fullmatch(text):
        raise SpecError(f"{text!r} is not the name of an image", remedy=f"Give one such as {official()}.")


# -- making one


def build(
    engine: Engine,
    *,
    etcd_bin: str = "",
    version: str = "",
    tag: str = "",
    offline: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Image:
    """Make an image from the etcd at hand, and give it; no builder and no registry are needed.

    It holds etcd and its tools (see `binaries.find` for the first three parameters), the libraries that they load and
    nothing else, and runs as a user of its own. `tag` is its name (default: "etcdops/etcd:VERSION", where `find` looks
    without being told). A name is moved only from an image that was made here, and only when the new one was seen to
    run. One with the same content is kept as it is.

    Raises BinaryError when there is no such etcd; ImageError when it cannot run in a container of this engine; Refused
    when the name is that of an image that was not made here; SpecError for a `tag` that is none; and what `Engine.run`
    raises.
    """
    from etcdops import binaries
    from etcdops.executables import version_of

    if tag and ("@" in tag or not _REFERENCE.fullmatch(tag)):
        raise SpecError(f"--tag {tag!r} is not the name of an image", remedy=f"Give one such as {OURS}:{CURRENT}.")
    say = progress or _silent
    machine = engine.version()[1]
    found = binaries.find(etcd_bin=etcd_bin, version=version, offline=offline, progress=say)
    reference = tag or f"{OURS}:{found.version}"
    if ":" not in reference.rpartition("/")[2]:
        reference += ":latest"
    programs = [path for path in (found.etcd, found.etcdctl, found.etcdutl) if path]
    for path in programs:
        if (own := read_elf(path).machine) != machine:
            raise ImageError(
                f"{path} is for {own}, and the Docker engine ({engine.described}) runs {machine}",
                remedy=f"Give --etcd-bin an etcd for linux/{machine}, or use an image that can be pulled.",
            )
    before = inspect(engine, [reference])
    if before and not as_image(before[0], reference).built:
        raise Refused(
            f"there is an image {reference} already, and `image.build` did not make it: it is left as it is",
            remedy="Choose another name with --tag.",
        )
    labels = {
        "org.opencontainers.image.title": "etcd",
        "org.opencontainers.image.version": found.version,
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.source": "https://github.com/etcd-io/etcd",
        BUILT: "built",
        f"{LABEL}architecture": machine,
        VERSION: found.version,
    }
    for path, tool in zip(programs[1:], ("etcdctl", "etcdutl"), strict=False):
        if told := version_of(path, tool):
            labels[f"{LABEL}{tool}-version"] = str(told)
    say(f"making the image {reference} from {found.etcd} ({found.version}); Docker engine: {engine.described}")
    try:
        with tempfile.NamedTemporaryFile(prefix="etcdops-image-", suffix=".tar") as file:
            changes = _changes(labels)
            digest = hashlib.sha256("\n".join([*changes, write(file, programs)]).encode()).hexdigest()
            if has_label(before, CONTENT, digest):
                say(f"the image {reference} is here already, with the same content")
                return as_image(before[0], reference)
            changes.append(f"LABEL {CONTENT}={digest}")
            id_ = _imported(engine, file.name, machine, changes)
    except OSError as error:
        raise ImageError(
            f"cannot write the content of the image to {tempfile.gettempdir()}: {error}",
            remedy="Make room there, or name another directory with TMPDIR.",
        ) from error
    try:
        if (told_version := ask(engine, id_, reference, machine)) != found.version:
            raise ImageError(f"the etcd in the new image says that it is {told_version}, and outside {found.version}")
        engine.run("image", "tag", id_, reference)
    except BaseException:
        engine.try_run("image", "rm", id_)
        raise
    if before:
        say("the image that had this name has none now; `docker image prune` removes it once no container uses it")
    return here(engine, [reference])[0]


def _changes(labels: dict[str, str]) -> list[str]:
    """Give what the image's configuration is, as a Dockerfile would say it."""
    return [
        f"USER {USER_ID}:{USER_ID}",
        f"WORKDIR {DATA_DIR}",
        f"ENV PATH={BIN_DIR}",
        "EXPOSE 2379 2380",
        f'CMD ["{BIN_DIR}/etcd"]',
        *(f"LABEL {name}={value}" for name, value in labels.items()),
    ]


def _imported(engine: Engine, archive: str, architecture: str, changes: Sequence[str]) -> str:
    """Make an image without a name of an archive, and give its id."""
    arguments = [word for change in changes for word in ("--change", change)]
    arguments += ["--platform", f"linux/{architecture}", "--message", "etcdops image.build", "-"]
    argv = engine.argv("import", *arguments)
    # The shell opens the file: a docker command that is a snap sees another /tmp than ours.
    done = engine.host.run(["sh", "-c", 'exec "$@" <"$0"', archive, *argv], timeout_s=300.0)
    return engine.checked(("import",), done).strip()


def _silent(message: str) -> None:
    """Say nothing."""
