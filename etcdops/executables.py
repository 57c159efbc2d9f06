"""Tells native executables from scripts, and asks etcd, etcdctl and etcdutl for their version.

On the way of `ctl`, so it imports next to nothing until a binary has to be run.
"""

from __future__ import annotations

import os
import time

from etcdops.errors import SpecError
from etcdops.paths import cache_dir
from etcdops.versions import Version, parse_version

__all__ = ["Answer", "ask", "is_native", "version_of"]

#: What a native executable begins with: ELF, and Mach-O in its byte orders and as a universal file.
_MAGIC = (
    b"\x7fELF",
    b"\xcf\xfa\xed\xfe",
    b"\xce\xfa\xed\xfe",
    b"\xfe\xed\xfa\xcf",
    b"\xfe\xed\xfa\xce",
    b"\xca\xfe\xba\xbe",
)

#: How each tool is asked for its version, and what stands before it in the answer.
_QUESTIONS = {
    "etcd": ("--version", "etcd version:"),
    "etcdctl": ("version", "etcdctl version:"),
    "etcdutl": ("version", "etcdutl version:"),
}
_TIMEOUT_S = 5.0
_ENOUGH_BYTES = 4096
_MEMORY_LINES = 200


class Answer:
    """What a binary said: `version` if it is the tool that was asked for, `text` to show to the user if it is not."""

    def __init__(self, version: Version | None, text: str = "") -> None:
        self.version = version
        self.text = text


def is_native(path: str) -> bool:
    """Say whether `path` is an executable file of machine code, not a script."""
    try:
        if not os.access(path, os.X_OK) or not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return file.read(4) in _MAGIC
    except OSError:
        return False


def version_of(path: str, tool: str = "etcd") -> Version | None:
    """Give the version that the binary at `path` tells, or None if it is not `tool`; see `ask`."""
    return ask(path, tool).version


def ask(path: str, tool: str = "etcd", *, timeout_s: float = _TIMEOUT_S, remember: bool = True) -> Answer:
    """Ask the binary at `path` for its version. `tool` is "etcd", "etcdctl" or "etcdutl".

    To ask costs some 20 ms, so that answers of native binaries are kept in the cache directory for as long as the
    file's time and size stay the same. A cache that cannot be read or written only costs that time again.
    """
    key = _key(path, tool) if remember else None
    if key:
        known = _recall(key)
        if known:
            return Answer(known)
    argument, before = _QUESTIONS[tool]
    try:
        text = _run([path, argument], timeout_s)
    except TimeoutError:
        return Answer(None, f"`{path} {argument}` did not end within {timeout_s:g} s")
    except OSError as error:
        return Answer(None, f"it cannot be run: {error.strerror or error}")
    for line in text.splitlines():
        if line.lower().startswith(before):
            try:
                version = parse_version(line[len(before) :])
            except SpecError:
                break
            if key:
                _remember(key, version)
            return Answer(version, text)
    printed = " ".join(text.split())
    shown = printed if len(printed) <= 200 else printed[:200] + " …"
    return Answer(None, f"`{path} {argument}` printed {shown!r}" if shown else f"`{path} {argument}` printed nothing")


def _run(argv: list[str], timeout_s: float) -> str:
    """Give the first few kilobytes that a command prints, and end it and its children; TimeoutError if it goes on."""
    import select
    import signal
    import subprocess

    # A session of its own, so that whatever it starts can be ended with it. ETCDCTL_API=2 of the caller's would
    # make etcdctl 3.4 refuse `version`.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ETCD_", "ETCDCTL_"))}
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=env,
    )
    assert process.stdout
    output = process.stdout.fileno()
    deadline = time.monotonic() + timeout_s
    seen = b""
    try:
        poller = select.poll()
        poller.register(output, select.POLLIN | select.POLLHUP)
        while len(seen) < _ENOUGH_BYTES:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not poller.poll(left_s * 1000):
                raise TimeoutError
            chunk = os.read(output, _ENOUGH_BYTES)
            if not chunk:
                break
            seen += chunk
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # macOS says the latter of a zombie
            pass
        process.stdout.close()
        process.wait()
    return seen[:_ENOUGH_BYTES].decode("utf-8", "replace")


# -- the memory of answers: one line each, `tool TAB mtime_ns TAB size TAB real path TAB version`


def _memory() -> str:
    return os.path.join(cache_dir(), "etcd", "versions")


def _key(path: str, tool: str) -> str | None:
    """Give what an answer is kept under. None for a script, which may start another binary tomorrow."""
    if not is_native(path):
        return None
    real = os.path.realpath(path)
    if "\t" in real or len(real.splitlines()) != 1:
        return None
    try:
        about = os.stat(real)
    except OSError:
        return None
    return f"{tool}\t{about.st_mtime_ns}\t{about.st_size}\t{real}"


def _lines() -> list[str]:
    try:
        with open(_memory(), encoding="utf-8", errors="surrogateescape") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _recall(key: str) -> Version | None:
    for line in _lines():
        if line.startswith(key + "\t"):
            try:
                return parse_version(line[len(key) + 1 :])
            except SpecError:
                continue
    return None


def _remember(key: str, version: Version) -> None:
    tool, _, _, real = key.split("\t")
    kept = [line for line in _lines() if line.count("\t") == 4 and not _is_about(line, tool, real)]
    lines = [*kept[-_MEMORY_LINES:], f"{key}\t{version}"]
    path = _memory()
    draft = f"{path}.{os.getpid()}.{os.urandom(3).hex()}"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(draft, "x", encoding="utf-8", errors="surrogateescape") as file:
            file.write("\n".join(lines) + "\n")
        os.replace(draft, path)
    except OSError:
        try:
            os.unlink(draft)
        except OSError:
            pass


def _is_about(line: str, tool: str, real: str) -> bool:
    fields = line.split("\t")
    return fields[0] == tool and fields[3] == real
