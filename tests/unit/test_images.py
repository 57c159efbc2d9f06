"""Container images without a Docker engine: what is in one, which one is chosen, and how a pull is told."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from etcdops.docker import images, local_images, pull, rootfs
from etcdops.docker.engine import Engine
from etcdops.docker.images import MIRROR, OFFICIAL, OURS, Image, build, find, list_images, official
from etcdops.errors import CommandMissing, EtcdopsError, ImageError, Refused, RuntimeUnavailable, SpecError
from etcdops.hosts import Completed, LocalHost
from etcdops.versions import CURRENT

ARM = 183


def elf(machine: int = 62, loader: str = "", order: str = "<") -> bytes:
    """Give the head of a 64-bit program for Linux, with one program header if it asks for a loader."""
    name = loader.encode() + b"\0" if loader else b""
    ident = b"\x7fELF\2" + (b"\1" if order == "<" else b"\2") + b"\1" + bytes(9)
    head = struct.pack(f"{order}16sHHIQQQIHHHHHH", ident, 2, machine, 1, 0, 64, 0, 0, 64, 56, bool(loader), 0, 0, 0)
    if not loader:
        return head
    return head + struct.pack(f"{order}IIQQQQQQ", 3, 4, 120, 0, 0, len(name), len(name), 1) + name


def put(path: Path, content: bytes) -> str:
    """Write an executable file, and give its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755)
    return str(path)


class Docker:
    """A host whose docker command answers from a script: what is here, what can be pulled, which etcd each has."""

    name = "scripted"

    def __init__(self) -> None:
        self.here: dict[str, dict[str, Any]] = {}
        self.registry: dict[str, dict[str, Any]] = {}
        self.machine = "amd64"
        self.etcd: dict[str, str] = {}
        self.fails: dict[str, tuple[int, str]] = {}
        self.calls: list[list[str]] = []

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        env: Mapping[str, str] | None = None,
        stdin: bytes | Iterator[bytes] = b"",
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """Answer a docker command."""
        words = list(argv)[list(argv).index("docker") + 1 :]
        self.calls.append(words)
        name = " ".join(words[:2]) if words[0] == "image" else words[0]
        if name in self.fails:
            code, said = self.fails[name]
            return Completed(code, b"", said.encode())
        answers = {
            "version": self._version,
            "image inspect": self._inspect,
            "image ls": self._list,
            "image tag": self._nothing,
            "image rm": self._nothing,
            "pull": self._pull,
            "run": self._run,
            "rm": self._nothing,
        }
        return answers[name](words)

    def run_each(self, commands: Sequence[Sequence[str]], *, timeout_s: float) -> list[Completed]:
        """Answer several."""
        return [self.run(command, timeout_s=timeout_s) for command in commands]

    def did(self, *words: str) -> list[list[str]]:
        """Give the docker commands that began with these words."""
        return [call for call in self.calls if call[: len(words)] == list(words)]

    def _nothing(self, words: list[str]) -> Completed:
        return Completed(0, b"", b"")

    def _version(self, words: list[str]) -> Completed:
        told = {"Version": "20.10.24", "ApiVersion": "1.41", "Arch": self.machine}
        return Completed(0, json.dumps(told).encode(), b"")

    def _inspect(self, words: list[str]) -> Completed:
        names = words[words.index("{{json .}}") + 1 :]
        by_id = {told["Id"]: told for told in self.here.values()}
        found = [self.here.get(name) or by_id.get(name) for name in names]
        # The newest docker commands say it in this way; see the suite for what the one that is here says.
        said = "".join(
            f"Error response from daemon: no such image: {name}: No such image: {name}\n"
            for name, told in zip(names, found, strict=True)
            if not told
        )
        out = "".join(f"{json.dumps(told) if told else ''}\n" for told in found)
        return Completed(1 if said else 0, out.encode(), said.encode())

    def _list(self, words: list[str]) -> Completed:
        filters = [words[i + 1] for i, word in enumerate(words) if word == "--filter"]
        lines = []
        for name, told in self.here.items():
            repository, _, tag = name.rpartition(":")
            labels = told["Config"]["Labels"] or {}
            wanted = [each.partition("=")[2] for each in filters]
            if labels.get("io.etcdops.image") == "built" if filters[0].startswith("label=") else repository in wanted:
                none = name.startswith("sha256:")
                lines.append(f"{told['Id']}\t{'<none>' if none else repository}\t{'<none>' if none else tag}\n")
        return Completed(0, "".join(lines).encode(), b"")

    def _pull(self, words: list[str]) -> Completed:
        if words[-1] not in self.registry:
            return Completed(1, b"", b"Error response from daemon: manifest unknown\n")
        self.here[words[-1]] = self.registry[words[-1]]
        return Completed(0, b"", b"")

    def _run(self, words: list[str]) -> Completed:
        said = self.etcd.get(words[words.index("etcd") + 1], "")
        return Completed(0 if said else 127, said.encode(), b"" if said else b'exec: "etcd": executable file not found')


def told(name: str, *, built: str = "", machine: str = "amd64", layers: int = 1) -> dict[str, Any]:
    """Give what Docker tells of an image; `built` is the version of one that we made."""
    labels = {"io.etcdops.image": "built", "io.etcdops.etcd-version": built} if built else None
    return {
        "Id": f"sha256:{hashlib.sha256(name.encode()).hexdigest()}",
        "RepoTags": [name],
        "Architecture": machine,
        "Size": 70_000_000,
        "Created": "2026-01-01T00:00:00Z",
        "Config": {"User": "10001:10001" if built else "", "Labels": labels},
        "RootFS": {"Layers": ["sha256:0"] * layers},
    }


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Docker:
    """A scripted docker, with a cache of its own, and pulls not ruled out."""
    monkeypatch.delenv("ETCDOPS_OFFLINE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Docker()


@pytest.fixture
def engine(docker: Docker) -> Engine:
    """The engine that the scripted docker leads to."""
    return Engine(docker)  # type: ignore[arg-type]


def have(docker: Docker, *names: str, **kind: Any) -> None:
    """Put images onto the engine; those of the official repositories hold the etcd that their tag names."""
    for name in names:
        docker.here[name] = told(name, **kind)
        docker.etcd[docker.here[name]["Id"]] = f"etcd Version: {name.rpartition(':')[2].lstrip('v')}\n"


def can_pull(docker: Docker, name: str, **kind: Any) -> None:
    """Put an image into the registry."""
    docker.registry[name] = told(name, **kind)
    docker.etcd[docker.registry[name]["Id"]] = f"etcd Version: {name.rpartition(':')[2].lstrip('v')}\n"


# -- which image is chosen


def test_official_names_the_current_release() -> None:
    """The official image is of etcd's own repository, with a "v" before the version, as its release notes have it."""
    assert official() == f"gcr.io/etcd-development/etcd:v{CURRENT}"
    assert official("v3.5.16") == official("3.5.16") == "gcr.io/etcd-development/etcd:v3.5.16"


def test_official_image_that_is_here_comes_first(docker: Docker, engine: Engine) -> None:
    """Without a wish, and with a version, the official image wins over one that was built; nothing is pulled."""
    have(docker, official(), official("3.5.16"))
    have(docker, f"{OURS}:3.5.16", built="3.5.16")
    assert find(engine).reference == official()
    assert find(engine, version="3.5.16").reference == official("3.5.16")
    assert not docker.did("pull")


def test_mirror_of_the_official_image_will_do(docker: Docker, engine: Engine) -> None:
    """The same release from the place that mirrors it is as good as the official one."""
    have(docker, f"{MIRROR}:v3.5.16")
    assert find(engine, version="3.5.16").reference == f"{MIRROR}:v3.5.16"


def test_built_image_before_a_pull(docker: Docker, engine: Engine) -> None:
    """With a version, one that was built of it is used before the official one is pulled."""
    have(docker, f"{OURS}:3.5.16", built="3.5.16")
    can_pull(docker, official("3.5.16"))
    chosen = find(engine, version="v3.5.16")
    assert (chosen.reference, chosen.etcd_version, chosen.built) == (f"{OURS}:3.5.16", "3.5.16", True)
    assert not docker.did("pull")
    assert not docker.did("run"), "an image of ours tells its version by its label"


def test_without_a_wish_the_newest_good_one_that_was_built(docker: Docker, engine: Engine) -> None:
    """Newest by version and not by name; one that is unsafe is passed over, and so is one with another name or none."""
    have(docker, f"{OURS}:3.5.9", built="3.5.9")
    have(docker, f"{OURS}:3.5.16", built="3.5.16")
    have(docker, f"{OURS}:3.5.30", built="3.5.30", machine="arm64")
    have(docker, "mine/etcd:x", built="3.6.8")
    have(docker, "sha256:" + "1" * 64, built="3.6.9")
    can_pull(docker, official())
    said: list[str] = []
    assert find(engine, progress=said.append).reference == f"{OURS}:3.5.16"
    assert not docker.did("pull")
    assert said == [f"using the image {OURS}:3.5.16 (built here), because {official()} is not here"]


def test_without_a_wish_and_nothing_good_here_it_is_pulled(docker: Docker, engine: Engine) -> None:
    """The current release is pulled rather than that an unsafe etcd is used."""
    have(docker, f"{OURS}:3.5.1", built="3.5.1")
    can_pull(docker, official())
    said: list[str] = []
    assert find(engine, progress=said.append).reference == official()
    assert said[0] == f"pulling {official()}"
    assert docker.did("pull") == [["pull", "--platform", "linux/amd64", official()]]


def test_where_nothing_can_be_pulled_the_best_that_is_here(docker: Docker, engine: Engine) -> None:
    """A sound release before an unsafe one that is newer, and an unsafe one rather than none, with a word about it."""
    have(docker, f"{OURS}:3.5.1", built="3.5.1")
    said: list[str] = []
    assert find(engine, progress=said.append).reference == f"{OURS}:3.5.1"
    assert "known to lose data in a crash" in said[-1]
    assert "manifest unknown" in said[-1]
    have(docker, official("3.4.44"))
    assert find(engine, progress=said.append).reference == official("3.4.44")
    assert "lose data" not in said[-1]


@pytest.mark.parametrize("how", ["parameter", "environment"])
def test_offline_never_pulls(docker: Docker, engine: Engine, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `offline` or ETCDOPS_OFFLINE nothing is pulled, whatever is asked for, and the refusal says so."""
    can_pull(docker, official())
    can_pull(docker, official("3.5.16"))
    if how == "environment":
        monkeypatch.setenv("ETCDOPS_OFFLINE", "1")
    wishes: list[dict[str, Any]] = [{}, {"version": "3.5.16"}, {"image": official("3.5.16")}]
    for wish in wishes:
        with pytest.raises(ImageError, match=r"ruled out \(offline\)"):
            find(engine, offline=how == "parameter", **wish)
    assert not docker.did("pull")


def test_named_image_is_used_or_pulled(docker: Docker, engine: Engine) -> None:
    """One that is named is taken as it is, and pulled where it is not here; nothing else is looked at."""
    have(docker, official())
    have(docker, "mine/etcd:3.5.9")
    can_pull(docker, "registry.example:5000/etcd:3.5.12")
    assert find(engine, image="mine/etcd:3.5.9").etcd_version == "3.5.9"
    assert find(engine, image="registry.example:5000/etcd:3.5.12").etcd_version == "3.5.12"
    assert not docker.did("image", "ls")


def test_usual_case_costs_few_commands(docker: Docker, engine: Engine) -> None:
    """A cluster's creation is timed: an image that is here takes two docker commands, or one."""
    have(docker, f"{OURS}:3.5.16", built="3.5.16")
    find(engine, version="3.5.16")
    assert [call[0] for call in docker.calls] == ["version", "image"]
    docker.calls.clear()
    find(engine, version="3.5.16", architecture="amd64")
    assert [call[0] for call in docker.calls] == ["image"]


def test_refusal_says_what_was_tried_and_what_to_do(docker: Docker, engine: Engine) -> None:
    """Neither here nor pullable: the image, the engine, what docker said last, and the commands that help."""
    with pytest.raises(ImageError) as raised:
        find(engine, version="3.5.16")
    text = str(raised.value)
    assert official("3.5.16") in text
    assert f"({engine.described})" in text
    assert "manifest unknown" in text
    assert "`image.build --etcd-version 3.5.16`" in raised.value.remedy
    assert "`up-env --runtime compose --etcd-version 3.5.16`" in raised.value.remedy
    assert raised.value.exit_code == 3


def test_another_architecture_is_refused(docker: Docker, engine: Engine) -> None:
    """An image for another machine than the engine's, here or pulled, is refused before anything runs in it."""
    have(docker, "mine/etcd:1", machine="arm64")
    can_pull(docker, official("3.5.9"), machine="s390x")
    wishes: list[dict[str, Any]] = [{"image": "mine/etcd:1"}, {"version": "3.5.9"}]
    for wish in wishes:
        with pytest.raises(ImageError, match=r"is for (arm64|s390x), and the Docker engine .* runs amd64") as raised:
            find(engine, **wish)
        assert "--platform linux/amd64" in raised.value.remedy
    assert not docker.did("run")


def test_one_for_this_machine_before_one_for_another(docker: Docker, engine: Engine) -> None:
    """An official image that was pulled for another machine does not hide one that was built for this one."""
    have(docker, official("3.5.16"), machine="arm64")
    have(docker, f"{OURS}:3.5.16", built="3.5.16")
    assert find(engine, version="3.5.16").built


def test_image_of_another_etcd_than_asked_for_is_refused(docker: Docker, engine: Engine) -> None:
    """What is in the image counts, not its name."""
    have(docker, official("3.5.16"))
    docker.etcd[docker.here[official("3.5.16")]["Id"]] = "etcd Version: 3.5.9\n"
    with pytest.raises(ImageError, match=r"has etcd 3\.5\.9, and etcd 3\.5\.16 was asked for"):
        find(engine, version="3.5.16")


def test_image_without_etcd_is_refused(docker: Docker, engine: Engine) -> None:
    """An image in which there is no etcd is refused with what it said."""
    docker.here["busybox:1"] = told("busybox:1")
    with pytest.raises(ImageError, match=r"no image of etcd.*executable file not found"):
        find(engine, image="busybox:1")


def test_engine_that_cannot_run_is_no_fault_of_the_image(docker: Docker, engine: Engine) -> None:
    """A full disk, found as the image's etcd is run, is told as a full disk."""
    have(docker, "mine/etcd:1")
    docker.fails["run"] = (125, "docker: Error response from daemon: mkdir /var: no space left on device.")
    with pytest.raises(Refused, match="disk of the Docker engine is full"):
        find(engine, image="mine/etcd:1")


def test_etcd_of_an_image_is_asked_once(docker: Docker, engine: Engine) -> None:
    """An image's id stands for its content: its etcd runs once, also for another command; the memory may be broken."""
    have(docker, "mine/etcd:3.5.9")
    for _ in range(2):
        assert find(engine, image="mine/etcd:3.5.9").etcd_version == "3.5.9"
    assert len(docker.did("run")) == 1
    memory = Path(os.environ["XDG_CACHE_HOME"]) / "etcdops" / "image-versions"
    memory.write_bytes(b"\xff" + memory.read_bytes()[5:])
    assert find(engine, image="mine/etcd:3.5.9").etcd_version == "3.5.9"
    assert len(docker.did("run")) == 2
    memory.unlink()
    memory.mkdir()
    assert find(engine, image="mine/etcd:3.5.9").etcd_version == "3.5.9"


def test_image_derived_from_ours_is_asked_itself(docker: Docker, engine: Engine) -> None:
    """Labels are inherited: one with layers of its own may hold another etcd, is not listed, nor overwritten."""
    have(docker, "mine/etcd:3.5.9", built="3.5.30", layers=2)
    assert find(engine, image="mine/etcd:3.5.9").etcd_version == "3.5.9"
    assert list_images(engine) == []


@pytest.mark.parametrize(
    "text", ["--rm", "", " ", "a b", "a/B", "a:", ":x", "a@sha256:12", "a//b", "a:b:c", "-a", "a\n", "http://a/b"]
)
def test_what_is_no_name_of_an_image(engine: Engine, docker: Docker, text: str) -> None:
    """What could not be an image's name, or would be taken for a flag, is refused before docker sees it."""
    if text:
        with pytest.raises(SpecError, match="name of an image"):
            find(engine, image=text)
        with pytest.raises(SpecError, match="name of an image"):
            build(engine, tag=text)
    assert docker.calls == []


@pytest.mark.parametrize(
    "text",
    [
        *("etcd", "etcd:1", "a/b", "a/b/c__d-e.f:V1.2_x-", "host.example:5000/a/b:1", "[::1]:5000/a", "0a69c1a00c84"),
        *("sha256:" + "a" * 64, "a/b@sha256:" + "0" * 64),
    ],
)
def test_what_is_a_name_of_an_image(engine: Engine, docker: Docker, text: str) -> None:
    """Every form that docker takes is taken: with a host, a port, a tag, a digest, or an id."""
    have(docker, text)
    docker.etcd[docker.here[text]["Id"]] = "etcd Version: 3.5.9\n"
    assert find(engine, image=text).reference == text


def test_engine_problems_are_not_missing_images(docker: Docker, engine: Engine) -> None:
    """An engine that does not answer is told as that, not as an image that is not here."""
    docker.fails["image inspect"] = (
        1,
        "Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?",
    )
    with pytest.raises(RuntimeUnavailable, match="no Docker engine answers"):
        find(engine, image="a/b")


# -- the list


def test_list_is_by_version_and_runs_nothing(docker: Docker, engine: Engine) -> None:
    """Built and official images, the newest version first (3.5.30 before 3.5.9), each name once; nothing is run."""
    have(docker, official("3.5.9"), f"{MIRROR}:v3.5.30", f"{OFFICIAL}:latest", "other/etcd:3.5.31")
    have(docker, f"{OURS}:3.5.16", built="3.5.16")
    found = list_images(engine)
    assert [(each.reference, each.etcd_version, each.built) for each in found] == [
        (f"{MIRROR}:v3.5.30", "3.5.30", False),
        (f"{OURS}:3.5.16", "3.5.16", True),
        (official("3.5.9"), "3.5.9", False),
        (f"{OFFICIAL}:latest", "", False),
    ]
    assert found[1] == Image(
        f"{OURS}:3.5.16", found[1].id, "amd64", "10001:10001", "3.5.16", 70_000_000, found[1].created, True
    )
    assert not docker.did("run")
    assert len(docker.did("image", "inspect")) == 1


def test_list_names_an_image_without_a_name_by_its_id(docker: Docker, engine: Engine) -> None:
    """One that lost its name to a newer one is still there, and may be what a cluster runs."""
    have(docker, "sha256:" + "1" * 64, built="3.5.9")
    (only,) = list_images(engine)
    assert only.reference == only.id


def test_empty_list(docker: Docker, engine: Engine) -> None:
    """Where there is none, none is inspected."""
    assert list_images(engine) == []
    assert not docker.did("image", "inspect")


# -- a pull


def test_layers_are_counted() -> None:
    """What docker writes without a terminal becomes a count of layers; a layer that is there already counts as done."""
    layers = pull.Layers()
    assert str(layers) == "asking the registry"
    layers.take("v3.5.33: Pulling from etcd-development/etcd")
    assert str(layers) == "asking the registry"
    for line in (
        *("d557676654e5: Pulling fs layer", "aaaaaaaaaaaa: Already exists", "bbbbbbbbbbbb: Pulling fs layer"),
        *("bbbbbbbbbbbb: Waiting", "d557676654e5: Verifying Checksum", "d557676654e5: Download complete"),
    ):
        layers.take(line)
    assert str(layers) == "1 of 3 layers"
    layers.take("d557676654e5: Pull complete")
    layers.take("bbbbbbbbbbbb: Pull complete")
    layers.take("")
    assert str(layers) == "3 of 3 layers"
    assert layers.last == "bbbbbbbbbbbb: Pull complete"


def _pull(engine: Engine) -> str:
    return pull.pull(engine, "a/b:1", architecture="amd64", timeout_s=5.0, progress=lambda text: None)


@pytest.mark.parametrize(
    "said",
    [
        "Error response from daemon: manifest for a/b:1 not found: manifest unknown: manifest unknown",
        "Error response from daemon: pull access denied for a/b, repository does not exist or may require docker login",
        'Error response from daemon: Get "https://gcr.io/v2/": dial tcp: lookup gcr.io on 10.0.0.1:53: no such host',
        'Error response from daemon: Get "https://a.b/v2/": dial tcp 1.2.3.4:5: connect: connection refused by docker',
    ],
)
def test_registry_that_refuses(docker: Docker, engine: Engine, said: str) -> None:
    """What a registry or the way to it brings is a reason, in docker's words, and no fault of the engine."""
    docker.fails["pull"] = (1, f"{said}\n")
    assert _pull(engine) == said


@pytest.mark.parametrize(
    ("said", "kind", "means"),
    [
        ("write /var/lib/docker/tmp/x: no space left on device", Refused, "disk of the Docker engine is full"),
        ("no matching manifest for linux/amd64 in the manifest list entries", ImageError, "another architecture"),
        (
            "Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?",
            RuntimeUnavailable,
            "no Docker",
        ),
    ],
)
def test_engine_that_cannot_pull(
    docker: Docker, engine: Engine, said: str, kind: type[EtcdopsError], means: str
) -> None:
    """What the engine itself brings is told as such: no other image would help."""
    docker.fails["pull"] = (1, said)
    with pytest.raises(kind, match=means):
        _pull(engine)


def test_docker_that_is_gone(docker: Docker, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A docker command that is not there is not a pull that takes too long."""

    def gone(*args: object, **options: object) -> Completed:
        raise CommandMissing("there is no command 'docker'")

    monkeypatch.setattr(docker, "run", gone)
    with pytest.raises(CommandMissing):
        _pull(engine)


# -- what is in an image


def test_loader_of_a_program(tmp_path: Path) -> None:
    """A program's machine and loader are read from its head, in either byte order; a static one has no loader."""
    assert rootfs.read_elf(put(tmp_path / "a", elf())) == ("amd64", "")
    assert rootfs.read_elf(put(tmp_path / "b", elf(ARM, "/lib/ld-linux-aarch64.so.1"))) == (
        "arm64",
        "/lib/ld-linux-aarch64.so.1",
    )
    assert rootfs.read_elf(put(tmp_path / "c", elf(22, "/lib/ld64.so.1", ">"))) == ("ELF machine 22", "/lib/ld64.so.1")


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\xcf\xfa\xed\xfe" + bytes(80), b"\x7fELF\1" + bytes(80)])
def test_what_cannot_run_in_a_container(tmp_path: Path, content: bytes) -> None:
    """A program for macOS, a script or a 32-bit one is refused with a way out."""
    with pytest.raises(ImageError, match="no 64-bit program for Linux") as raised:
        rootfs.read_elf(put(tmp_path / "etcd", content))
    assert "docker save" in raised.value.remedy


def test_broken_program(tmp_path: Path) -> None:
    """A program that ends within its head is refused, and so is one that is not there."""
    for path in (put(tmp_path / "etcd", elf(62, "/lib/ld.so")[:100]), str(tmp_path / "none")):
        with pytest.raises(ImageError, match="cannot read"):
            rootfs.read_elf(path)


def test_what_ldd_lists() -> None:
    """Libraries by their paths, the loader with them, each once, what the kernel brings not; and what is missing."""
    glibc = (
        "\tlinux-vdso.so.1 (0x00007fd8f0932000)\n"
        "\tlibpthread.so.0 => /lib/x86_64-linux-gnu/libpthread.so.0 (0x00007fd8f0740000)\n"
        "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007fd8f073f000)\n"
        "\tlibc.so.6 => /lib/x86_64-linux-gnu/../x86_64-linux-gnu/libc.so.6 (0x00007fd8f073f000)\n"
        "\tlibodd.so.1 => /opt/a b/libodd.so.1 (0x00007fd8f073f000)\n"
        "\tlibgone.so.3 => not found\n"
        "\t/lib64/ld-linux-x86-64.so.2 (0x00007fd8f0934000)\n"
    )
    assert rootfs.listed(glibc) == (
        [
            "/lib/x86_64-linux-gnu/libpthread.so.0",
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/opt/a b/libodd.so.1",
            "/lib64/ld-linux-x86-64.so.2",
        ],
        ["libgone.so.3"],
    )
    musl = "\t/lib/ld-musl-x86_64.so.1 (0x7f)\n\tlibc.musl-x86_64.so.1 => /lib/ld-musl-x86_64.so.1 (0x7f)\n"
    assert rootfs.listed(musl) == (["/lib/ld-musl-x86_64.so.1"], [])
    assert rootfs.listed("\tstatically linked\n") == ([], [])


def test_libraries_of_a_program_of_this_machine() -> None:
    """A dynamic program brings its loader, libc, and what libc loads to look names up; a static one nothing."""
    shell = os.path.realpath("/bin/sh")
    loader = rootfs.read_elf(shell).loader
    if not loader:
        pytest.skip("this machine's shell is static")
    found = rootfs.libraries([shell, shell])
    assert loader in found
    assert found == sorted(set(found))
    assert all(os.path.isfile(path) for path in found)
    listed, _ = rootfs.listed(LocalHost().run(["ldd", shell], timeout_s=10).stdout.decode())
    assert set(listed) <= set(found)
    libc = [path for path in found if path.endswith("/libc.so.6")]
    for path in libc:
        beside = Path(path).parent
        assert {str(each) for each in beside.glob("libnss_dns.so.2")} <= set(found)


def test_missing_library_is_named(tmp_path: Path) -> None:
    """A program whose libraries are not all here is refused with their names; so is one whose loader is not here."""
    loader = put(tmp_path / "ld.so", b"#!/bin/sh\necho ' libgone.so.3 => not found'\n")
    with pytest.raises(ImageError, match=r"it misses libgone\.so\.3"):
        rootfs.libraries([put(tmp_path / "etcd", elf(62, loader))])
    with pytest.raises(ImageError, match=r"there is no command '/none/ld\.so'"):
        rootfs.libraries([put(tmp_path / "etcd", elf(62, "/none/ld.so"))])


def test_libraries_that_only_the_environment_leads_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container there is no LD_LIBRARY_PATH: the loader is asked without."""
    loader = put(tmp_path / "ld.so", b'#!/bin/sh\necho "/x$LD_LIBRARY_PATH$LD_PRELOAD"\n')
    monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    assert "/x" in rootfs.libraries([put(tmp_path / "etcd", elf(62, loader))])


def _archive(programs: Sequence[str]) -> tuple[str, dict[str, tarfile.TarInfo], tarfile.TarFile]:
    file = io.BytesIO()
    digest = rootfs.write(file, programs)
    file.seek(0)
    archive = tarfile.open(fileobj=file)  # noqa: SIM115
    return digest, {entry.name: entry for entry in archive.getmembers()}, archive


def test_content_of_an_image(tmp_path: Path) -> None:
    """The tools, a data directory of the members' own, a place for temporary files, names for users, the order of
    look-ups; no entry twice, a directory before what is in it, and nothing of this machine.
    """
    tools = [put(tmp_path / "x" / name, elf() + name.encode()) for name in ("etcd", "etcdctl")]
    _, entries, archive = _archive(tools)
    assert set(entries) == {
        *("etc", "etc/passwd", "etc/group", "etc/nsswitch.conf", "tmp", "var", "var/lib", "var/lib/etcd"),
        *("usr", "usr/local", "usr/local/bin", "usr/local/bin/etcd", "usr/local/bin/etcdctl"),
    }
    names = archive.getnames()
    assert len(names) == len(entries)
    assert all(names.index(os.path.dirname(name)) < names.index(name) for name in names if "/" in name)
    about = {name: (entry.mode, entry.uid, entry.gid) for name, entry in entries.items()}
    assert about["usr/local/bin/etcd"] == (0o755, 0, 0)
    assert about["var/lib/etcd"] == (0o700, 10001, 10001)
    assert about["tmp"] == (0o1777, 0, 0)
    assert about["etc/passwd"] == (0o644, 0, 0)
    content = archive.extractfile("usr/local/bin/etcdctl")
    assert content
    assert content.read() == elf() + b"etcdctl"
    look_up = archive.extractfile("etc/nsswitch.conf")
    assert look_up
    assert b"hosts: files dns" in look_up.read()
    assert {entry.mtime for entry in entries.values()} == {0}
    assert {entry.uname for entry in entries.values()} == {""}


def test_same_programs_same_content(tmp_path: Path) -> None:
    """Neither time, nor place, nor order of the programs changes an image's content; what is in them does."""
    tools = [put(tmp_path / "a" / name, elf() + name.encode()) for name in ("etcd", "etcdctl")]
    again = [put(tmp_path / "b" / name, elf() + name.encode()) for name in ("etcdctl", "etcd")]
    os.utime(again[0], (1, 1))
    first = _archive(tools)[0]
    assert _archive(again)[0] == first
    assert re.fullmatch("[0-9a-f]{64}", first)
    put(tmp_path / "b" / "etcd", elf() + b"ETCD")
    assert _archive(again)[0] != first


def test_libraries_follow_links(tmp_path: Path) -> None:
    """A library is a link to a versioned file: what comes into the image is the file, where the loader looks."""
    put(tmp_path / "lib" / "libx.so.1.2", b"library")
    (tmp_path / "lib" / "libx.so.1").symlink_to("libx.so.1.2")
    loader = put(tmp_path / "ld.so", f"#!/bin/sh\necho ' libx.so.1 => {tmp_path}/lib/libx.so.1 (0x0)'\n".encode())
    _, entries, archive = _archive([put(tmp_path / "etcd", elf(62, loader))])
    name = f"{tmp_path}/lib/libx.so.1".lstrip("/")
    assert entries[name].isreg()
    content = archive.extractfile(name)
    assert content
    assert content.read() == b"library"
    assert loader.lstrip("/") in entries


# -- making one


@pytest.fixture
def etcd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A directory with tools that are found as etcd 3.5.16."""
    from etcdops import binaries

    paths = {name: put(tmp_path / "bin" / name, elf() + name.encode()) for name in ("etcd", "etcdctl")}
    found = binaries.Binaries(**paths, etcdutl=None, version="3.5.16", source="given")
    monkeypatch.setattr(binaries, "find", lambda **wish: found)
    return str(tmp_path / "bin")


def _imports(docker: Docker, monkeypatch: pytest.MonkeyPatch, version: str = "3.5.16") -> None:
    """Let `docker import` make an image of 3.5.16."""
    run = docker.run

    def answer(argv: Sequence[str], **options: Any) -> Completed:
        if "import" not in argv:
            return run(argv, **options)
        words = list(argv)
        docker.calls.append(words[words.index("docker") + 1 :])
        changes = [words[i + 1] for i, word in enumerate(words) if word == "--change"]
        new = told(f"{OURS}:3.5.16", built="3.5.16")
        new["Config"]["Labels"] = dict(
            change.removeprefix("LABEL ").split("=", 1) for change in changes if change.startswith("LABEL ")
        )
        docker.here[f"{OURS}:3.5.16"] = new
        docker.etcd[new["Id"]] = f"etcd Version: {version}\n"
        return Completed(0, f"{new['Id']}\n".encode(), b"")

    monkeypatch.setattr(docker, "run", answer)


def test_configuration_of_a_built_image(
    docker: Docker, engine: Engine, etcd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """User, directory, ports, command and labels are given to docker as a Dockerfile would; its name comes last."""
    _imports(docker, monkeypatch)
    made = build(engine)
    assert (made.reference, made.etcd_version, made.built) == (f"{OURS}:3.5.16", "3.5.16", True)
    (words,) = docker.did("import")
    changes = [words[i + 1] for i, word in enumerate(words) if word == "--change"]
    assert changes[:5] == [
        *("USER 10001:10001", "WORKDIR /var/lib/etcd", "ENV PATH=/usr/local/bin", "EXPOSE 2379 2380"),
        'CMD ["/usr/local/bin/etcd"]',
    ]
    for label in ("io.etcdops.image=built", "io.etcdops.etcd-version=3.5.16", "io.etcdops.architecture=amd64"):
        assert f"LABEL {label}" in changes
    assert words[-1] == "-"
    assert [call[0] for call in docker.calls].index("import") < docker.calls.index(
        ["image", "tag", made.id, made.reference]
    )


def test_same_content_is_not_imported_again(
    docker: Docker, engine: Engine, etcd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built twice from the same programs, the image stays, and that is said; from others, it is made anew."""
    _imports(docker, monkeypatch)
    said: list[str] = []
    first = build(engine, progress=said.append)
    assert build(engine, progress=said.append) == first
    assert said[-1].endswith("with the same content")
    assert len(docker.did("import")) == 1
    put(Path(etcd) / "etcdctl", elf() + b"another")
    build(engine, progress=said.append)
    assert len(docker.did("import")) == 2


def test_programs_for_another_machine(docker: Docker, engine: Engine, etcd: str) -> None:
    """An engine of another architecture than the programs' is refused before anything is imported."""
    docker.machine = "arm64"
    with pytest.raises(ImageError, match=r"is for amd64, and the Docker engine .* runs arm64"):
        build(engine)
    assert not docker.did("import")


@pytest.mark.parametrize("kind", [{}, {"built": "3.5.16", "layers": 2}])
def test_name_of_another_image(docker: Docker, engine: Engine, etcd: str, kind: dict[str, Any]) -> None:
    """A name that somebody else's image has is refused, and so is that of one which was derived from ours."""
    have(docker, f"{OURS}:3.5.16", **kind)
    with pytest.raises(Refused, match="did not make it") as raised:
        build(engine)
    assert "--tag" in raised.value.remedy
    assert not docker.did("import")
    assert not docker.did("image", "tag")


def test_image_that_does_not_run_gets_no_name(
    docker: Docker, engine: Engine, etcd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new image whose etcd does not say what it should is removed again."""
    _imports(docker, monkeypatch, version="3.5.1")
    with pytest.raises(ImageError, match=r"3\.5\.1, and outside 3\.5\.16"):
        build(engine)
    assert not docker.did("image", "tag")
    assert len(docker.did("image", "rm")) == 1


def test_no_room_for_the_archive(docker: Docker, engine: Engine, etcd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full temporary directory is told as such, with the variable that names another."""
    monkeypatch.setattr(images, "write", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ImageError, match="No space left on device") as raised:
        build(engine)
    assert "TMPDIR" in raised.value.remedy


def test_versions_are_asked_in_the_dark(docker: Docker, engine: Engine) -> None:
    """What runs in an image to find out its version has no network, is removed, and is pulled by nobody."""
    have(docker, "mine/etcd:3.5.9")
    image = local_images.here(engine, ["mine/etcd:3.5.9"])[0]
    assert local_images.version_in(engine, image) == "3.5.9"
    (words,) = docker.did("run")
    text = " ".join(words)
    for part in ("--rm", "--network none", "--pull never", "--platform linux/amd64", "--entrypoint etcd"):
        assert part in text
    assert words[-2:] == [image.id, "--version"]


def test_etcd_that_does_not_end(docker: Docker, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image whose etcd hangs is refused, and its container is removed by name."""
    have(docker, "mine/etcd:3.5.9")
    run = docker.run

    def hang(argv: Sequence[str], **options: Any) -> Completed:
        done = run(argv, **options)
        if "--entrypoint" in argv:
            raise EtcdopsError("`docker run` did not end within its time limit")
        return done

    monkeypatch.setattr(docker, "run", hang)
    with pytest.raises(ImageError, match="does not tell its version"):
        find(engine, image="mine/etcd:3.5.9")
    (started,) = docker.did("run")
    assert docker.did("rm")[0][-1] == started[started.index("--name") + 1]
