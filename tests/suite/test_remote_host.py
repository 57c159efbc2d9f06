"""A host behind a real sshd on loopback: commands, hostile arguments, files, forwards, host keys, and trouble."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from etcdops.docker.engine import Engine
from etcdops.errors import (
    CommandMissing,
    ConnectionLost,
    EtcdopsError,
    HostUnreachable,
    SpecError,
    StateError,
    WaitTimeout,
)
from etcdops.hosts import Host, LocalHost
from etcdops.ports import free_ports
from etcdops.remote.fan_out import Hosts, fan_out
from etcdops.remote.host import SSHHost
from etcdops.remote.inventory import HostSpec, Inventory
from etcdops.remote.quoting import command_line, quote
from etcdops.remote.ssh_config import resolve
from tests.suite.storage import SshServer, bad_line, ssh_server

Wait = Callable[..., None]

#: RFC 4254, 9.
_CHANNEL_EOF = 96

#: Writes the arguments that it gets, as bytes.
_TELL = [sys.executable, "-c", "import json, os, sys; print(json.dumps([os.fsencode(a).hex() for a in sys.argv[1:]]))"]

HOSTILE = [
    "",
    " ",
    "two words",
    "  lead and trail  ",
    "'",
    '"',
    'it\'s "quoted"',
    "'; touch /tmp/etcdops-hostile; '",
    "$(touch /tmp/etcdops-hostile)",
    "`touch /tmp/etcdops-hostile`",
    "${HOME}$HOME$$",
    "; exit 3",
    "&& false || true | cat > /dev/null &",
    "a\nb\n",
    "\ttab\rreturn\x1b[31m\x07\x7f\x01",
    "*",
    "?[a-z]*{a,b}",
    "~",
    "~root",
    "!!",
    "#comment",
    "\\",
    "back\\slash\\n",
    "a\\'b",
    "-n",
    "--help",
    "--",
    "=ls",
    "A=b",
    "%s%n",
    "<in >out 2>&1",
    "ünïcödé ☃",
    os.fsdecode(b"\xff\xfe not utf-8 \x80"),
    "x" * 50_000,
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """An sshd that lets us run commands."""
    with ssh_server(tmp_path_factory.mktemp("sshd"), commands=True) as server:
        yield server


def spec_of(server: SshServer, name: str = "h1", **fields: object) -> HostSpec:
    """The server as an inventory has it."""
    base: dict[str, object] = {
        "address": "127.0.0.1",
        "port": server.port,
        "key": str(server.home / ".ssh" / "id_ed25519"),
        "known_hosts": str(server.home / ".ssh" / "known_hosts"),
    }
    return msgspec.convert({"name": name, **base, **fields}, HostSpec)


@pytest.fixture(scope="module")
def host(server: SshServer) -> Iterator[SSHHost]:
    """That server as a host; tests share its connection, as the calls of a command do."""
    with SSHHost(spec_of(server)) as host:
        yield host


def _keygen(*arguments: str) -> None:
    subprocess.run(["ssh-keygen", "-q", *arguments], check=True, timeout=30, capture_output=True)


# -- commands


def test_it_is_a_host(host: SSHHost) -> None:
    """Whatever takes a Host takes it, and it does not pretend to keep processes."""
    as_host: Host = host
    assert as_host.name == "h1"
    assert not hasattr(host, "spawn")


def test_a_command_gives_what_it_wrote_and_how_it_ended(host: SSHHost) -> None:
    """Output is bytes as written, both streams apart; any exit code is an answer and no error."""
    assert host.run(["sh", "-c", "printf 'out\\377\\0'; echo err >&2; exit 7"], timeout_s=30) == (
        7,
        b"out\xff\0",
        b"err\n",
    )


def test_arguments_arrive_byte_for_byte(host: SSHHost) -> None:
    """Nothing in an argument means anything to the remote shell; all of them arrive, also beside one another."""
    Path("/tmp/etcdops-hostile").unlink(missing_ok=True)
    told = json.loads(host.run([*_TELL, *HOSTILE], timeout_s=60).stdout)
    assert [bytes.fromhex(each) for each in told] == [os.fsencode(each) for each in HOSTILE]
    assert not Path("/tmp/etcdops-hostile").exists()


def test_values_of_the_environment_arrive_byte_for_byte(host: SSHHost) -> None:
    """With `env`, a command has that environment and no other, whatever the values are."""
    env = {f"V{index}": value for index, value in enumerate(HOSTILE[:-1])}
    done = host.run(["env", "-0"], timeout_s=30, env=env)
    found = dict(each.split(b"=", 1) for each in done.stdout.split(b"\0") if each)
    assert found == {name.encode(): os.fsencode(value) for name, value in env.items()}


def test_no_word_is_left_bare() -> None:
    """Words that only some shells interpret, as zsh does `=ls`, are quoted as well."""
    assert [quote(word) for word in ("=ls", "A=b", "plain")] == [b"'=ls'", b"'A=b'", b"'plain'"]


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox", "zsh", "ksh"])
def test_no_posix_shell_interprets_an_argument(shell: str) -> None:
    """The line that sshd hands to a login shell means the same to each."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    line = command_line([*_TELL, *HOSTILE], mark="mark")
    argv = [shell, *(["sh"] if shell == "busybox" else []), "-c", os.fsdecode(line)]
    done = subprocess.run(argv, capture_output=True, timeout=60)
    assert [bytes.fromhex(each) for each in json.loads(done.stdout)] == [os.fsencode(each) for each in HOSTILE]


@pytest.mark.parametrize("name", ["cd", "A=b", "no-such-command", "$(true)", "a;true", "/no/such", "/etc/passwd"])
def test_a_command_that_is_not_there(host: SSHHost, name: str) -> None:
    """What is no program is said to be missing, and is neither an assignment nor a piece of script."""
    if name == "cd":
        # A builtin is found, and is none the less no program.
        assert host.run([name], timeout_s=30).exit_code == 127
    else:
        with pytest.raises(CommandMissing, match=r"there is no command '.*' on h1"):
            host.run([name, "x"], timeout_s=30)


def test_exit_code_127_is_an_answer(host: SSHHost) -> None:
    """A command that is there and exits 127, as `docker run` does, is not taken for a missing one."""
    assert host.run(["sh", "-c", "exit 127"], timeout_s=30).exit_code == 127


@pytest.mark.parametrize(
    ("argv", "env"),
    [([], None), ([""], None), (["-x"], None), (["a\0b"], None), (["true"], {"A=B": "1"}), (["true"], {"-i": ""})],
)
def test_what_cannot_be_a_command(host: SSHHost, argv: list[str], env: dict[str, str] | None) -> None:
    """What no argv or environment can hold is refused before anything is sent."""
    with pytest.raises(SpecError):
        host.run(argv, timeout_s=30, env=env)


def test_a_line_that_is_too_long_is_refused(host: SSHHost) -> None:
    """The remote shell takes 128 KiB; more is refused here, with what to do instead."""
    with pytest.raises(SpecError, match="too long") as refused:
        host.run(["true", "x" * 131_072], timeout_s=30)
    assert "stdin" in refused.value.remedy


def test_a_command_ended_by_a_signal(host: SSHHost) -> None:
    """Death by a signal is 128 + its number, as shells report it."""
    assert host.run(["sh", "-c", "kill -9 $$"], timeout_s=30).exit_code == 137


def test_input_goes_there_and_comes_back(host: SSHHost) -> None:
    """Megabytes of input and output pass at the same time, from bytes and from pieces; without any, it has ended."""
    data = os.urandom(3_000_000)
    assert host.run(["cat"], timeout_s=60, stdin=data).stdout == data
    pieces = (data[at : at + 100_000] for at in range(0, len(data), 100_000))
    assert host.run(["cat"], timeout_s=60, stdin=pieces).stdout == data
    assert host.run(["cat"], timeout_s=60).stdout == b""


def test_much_on_stderr_blocks_nothing(host: SSHHost) -> None:
    """Both streams are read, so neither fills up while the other is waited for."""
    done = host.run(["sh", "-c", "head -c 5000000 /dev/zero >&2; echo done"], timeout_s=60)
    assert (done.stdout, len(done.stderr)) == (b"done\n", 5_000_000)


def test_input_that_nobody_reads(host: SSHHost) -> None:
    """A command that ends before it has read everything ends well."""
    assert host.run(["true"], timeout_s=60, stdin=b"x" * 5_000_000).exit_code == 0


def test_input_that_fails_ends_the_command(host: SSHHost) -> None:
    """Pieces that cannot be had any more are an error; what has arrived is not taken for all."""

    def pieces() -> Iterator[bytes]:
        yield b"some"
        raise StateError("the disk is gone")

    with pytest.raises(StateError, match="the disk is gone"):
        host.run(["sh", "-c", "cat; sleep 120"], timeout_s=60, stdin=pieces())


def test_lines_are_told_as_they_come(host: SSHHost) -> None:
    """Each line comes when it is there, not at the end; the last needs no end of line."""
    seen: list[tuple[str, float]] = []
    done = host.run(
        ["sh", "-c", "echo one; sleep 0.5; printf 'two\\nthr'; printf ee"],
        timeout_s=30,
        on_line=lambda line: seen.append((line, time.monotonic())),
    )
    assert [line for line, _ in seen] == ["one", "two", "three"]
    assert seen[1][1] - seen[0][1] > 0.2
    assert done.stdout == b"one\ntwo\nthree"


def _alive(mark: str, *, of: str = "") -> bool:
    """Whether a process, of that program if one is given, runs that has `mark` among its arguments."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if mark.encode() in words and (not of or words[0] == of.encode()):
            return True
    return False


def test_a_command_that_takes_too_long_is_ended_there(host: SSHHost, wait_until: Wait) -> None:
    """After its time a command is killed on the far side, with what it started; the connection goes on."""
    length = f"118.{os.getpid()}"
    with pytest.raises(EtcdopsError, match=r"`sh -c .* did not end within 1 s on h1"):
        host.run(["sh", "-c", 'sleep "$1" | sleep "$1"; true', "sh", length], timeout_s=1)
    wait_until(lambda: not _alive(length), what="the end of the command on the far side")
    assert host.run(["true"], timeout_s=30).exit_code == 0


def test_commands_side_by_side(host: SSHHost, wait_until: Wait) -> None:
    """More commands than sshd has sessions for on a connection all run; when one fails, the others are ended."""
    done = host.run_each([["echo", str(index)] for index in range(25)], timeout_s=60)
    assert [each.stdout for each in done] == [b"%d\n" % index for index in range(25)]
    assert host.run_each([], timeout_s=1) == []
    length = f"117.{os.getpid()}"
    with pytest.raises(CommandMissing):
        host.run_each([["no-such-command"], ["sleep", length], ["sleep", length]], timeout_s=60)
    wait_until(lambda: not _alive(length), what="the end of the others")


def test_fewer_sessions_than_usual(tmp_path: Path) -> None:
    """Where sshd allows few sessions on a connection, commands wait for each other; where none, that is said."""
    with ssh_server(tmp_path / "few", commands=True, MaxSessions=2) as few, SSHHost(spec_of(few)) as host:
        assert len(host.run_each([["true"]] * 10, timeout_s=60)) == 10
    with (
        ssh_server(tmp_path / "none", commands=True, MaxSessions=0) as none,
        SSHHost(spec_of(none)) as host,
        pytest.raises(EtcdopsError, match="allows no session"),
    ):
        host.run(["true"], timeout_s=30)


def test_one_connection_is_used_for_all(host: SSHHost) -> None:
    """Calls share a connection; a closed one is made anew by the next call."""
    first = host.connect()
    host.run(["true"], timeout_s=30)
    assert host.connect() is first
    assert host.round_trip_s() > 0
    host.close()
    assert host.run(["true"], timeout_s=30).exit_code == 0


def test_a_command_that_ends_at_once_leaves_the_connection(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a channel's is sent after its end, however slow this machine is: sshd would end the connection."""
    with SSHHost(spec_of(server)) as host:
        transport = host.connect().transport
        send = transport._send_user_message

        def slowly(message: Any) -> None:
            # Word from us that there is no more to read, not from the thread that answers the server.
            if message.asbytes()[0] == _CHANNEL_EOF and threading.current_thread() is not transport:
                time.sleep(0.5)
            send(message)

        monkeypatch.setattr(transport, "_send_user_message", slowly)
        for _ in range(3):
            assert host.run(["true"], timeout_s=30).exit_code == 0
            time.sleep(0.1)
        assert host.connect().transport is transport


def test_docker_through_it(host: SSHHost) -> None:
    """What speaks to an engine through a host does so through this one."""
    if shutil.which("docker") is None or LocalHost().run(["docker", "version"], timeout_s=30).exit_code:
        pytest.skip("no Docker engine answers")
    there, here = Engine(host, "unix:///var/run/docker.sock"), Engine(LocalHost(), "unix:///var/run/docker.sock")
    assert there.version() == here.version()


# -- files and ports


@pytest.mark.parametrize("name", ["plain", "-rf", "two words\nand a line", "$(x);'\"*", "ünï"])
def test_files_go_there_and_come_back(host: SSHHost, tmp_path: Path, name: str) -> None:
    """A file arrives byte for byte under any name, for its owner alone, and nothing else is left beside it."""
    data = os.urandom(700_000)
    (tmp_path / "source").write_bytes(data)
    (tmp_path / "there").mkdir()
    there = tmp_path / "there" / name
    said: list[tuple[int, int | None]] = []
    digest = host.put(tmp_path / "source", str(there), progress=lambda done, total: said.append((done, total)))
    assert digest == hashlib.sha256(data).hexdigest()
    assert there.read_bytes() == data
    assert stat.S_IMODE(there.stat().st_mode) == 0o600
    assert said[-1] == (len(data), len(data))
    assert host.get(str(there), tmp_path / "back") == digest
    assert (tmp_path / "back").read_bytes() == data
    assert os.listdir(tmp_path / "there") == [name]
    assert sorted(os.listdir(tmp_path)) == ["back", "source", "there"]
    assert host.read(str(there), 699_990) == data[-10:]


def test_a_transfer_that_fails_leaves_nothing(host: SSHHost, tmp_path: Path) -> None:
    """What was there before stays as it was, and no part of the new one is left, whichever side fails."""
    target = tmp_path / "target"
    target.write_text("before")

    def pieces() -> Iterator[bytes]:
        yield b"some"
        raise StateError("the disk is gone")

    with pytest.raises(StateError, match="the disk is gone"):
        host.put(pieces(), str(target))
    with pytest.raises(StateError, match=r"cannot write .* on h1: .*nowhere"):
        host.put(iter([b"x"]), str(tmp_path / "nowhere" / "x"))
    with pytest.raises(StateError, match="it is a directory"):
        host.put(iter([b"x"]), str(tmp_path))
    with pytest.raises(StateError, match=r"cannot read .* on h1"):
        host.get(str(tmp_path / "missing"), tmp_path / "here")
    assert os.listdir(tmp_path) == ["target"]
    assert target.read_text() == "before"


def test_a_file_that_arrives_damaged_is_refused(host: SSHHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash that differs is an error, and the file does not get its name."""
    from etcdops.remote import files

    monkeypatch.setattr(files, "_PUT", files._PUT.replace('cat >"$1"', '{ cat; echo; } >"$1"'))
    with pytest.raises(StateError, match="did not arrive on h1 as it was sent"):
        host.put(iter([b"x"]), str(tmp_path / "x"))
    assert os.listdir(tmp_path) == []


def test_files_without_sha256sum(host: SSHHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that cannot tell a hash has its files read back instead."""
    from etcdops.remote import files

    for name in ("_PUT", "_GET"):
        monkeypatch.setattr(files, name, getattr(files, name).replace("sha256sum", "no-such-sum"))
    host.put(iter([b"abc"]), str(tmp_path / "x"))
    host.get(str(tmp_path / "x"), tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == b"abc"


def test_directories_and_space(host: SSHHost, tmp_path: Path) -> None:
    """Directories are made, looked into and removed, and space is told, as on this machine."""
    place, local = str(tmp_path / "a b" / "$c"), LocalHost()
    assert host.is_empty(place)
    host.make_dir(place)
    assert stat.S_IMODE(os.stat(place).st_mode) == 0o700
    assert host.is_empty(place)
    (Path(place) / ".hidden").write_text("x")
    assert not host.is_empty(place)
    host.remove(place)
    host.remove(place)
    assert not os.path.exists(place)
    assert abs(host.free_bytes(place) - local.free_bytes(place)) < 2**30
    assert host.read(place) == b""
    with pytest.raises(StateError, match=r"cannot read .* on h1"):
        host.read(str(tmp_path))


def test_ports_in_use(host: SSHHost, server: SshServer) -> None:
    """A port on which something listens is in use, and a free one is not."""
    [free] = free_ports(LocalHost(), 1, ())
    assert host.port_in_use(server.port)
    assert not host.port_in_use(free)


def test_a_forward_leads_there(host: SSHHost) -> None:
    """A connection to the local port arrives there, ends as there, and the port is gone with the block."""
    with socket.create_server(("127.0.0.1", 0)) as listening, host.forward(listening.getsockname()[1]) as port:
        near = socket.create_connection(("127.0.0.1", port), 20)
        listening.settimeout(20)
        far, _ = listening.accept()
        with near, far:
            far.settimeout(20)
            near.sendall(b"question")
            assert far.recv(100) == b"question"
            near.shutdown(socket.SHUT_WR)
            assert far.recv(100) == b""
            far.sendall(b"answer")
            far.shutdown(socket.SHUT_WR)
            assert near.recv(100) == b"answer"
            assert near.recv(100) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)


def test_a_forward_to_nothing_closes(host: SSHHost) -> None:
    """Where nothing listens there, a connection ends as if refused."""
    [free] = free_ports(LocalHost(), 1, ())
    with host.forward(free) as port, socket.create_connection(("127.0.0.1", port), 20) as near:
        near.settimeout(20)
        assert near.recv(1) == b""


# -- the connection


def test_a_key_that_nobody_knows(server: SshServer, tmp_path: Path) -> None:
    """It is refused with its fingerprint, recorded only on demand, for its owner alone, and known from then on."""
    known = tmp_path / "ssh" / "known_hosts"
    spec = spec_of(server, known_hosts=str(known))
    blob = base64.b64decode(server.host_key.split()[1])
    printed = "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    with pytest.raises(HostUnreachable, match="is not known") as refused, SSHHost(spec) as host:
        host.run(["true"], timeout_s=30)
    assert printed in str(refused.value)
    assert refused.value.kind == "unknown-key"
    assert "--accept-new-host-keys" in refused.value.remedy
    assert not known.exists()
    with SSHHost(spec, accept_new_host_keys=True) as host:
        host.run(["true"], timeout_s=30)
    assert known.read_text() == f"[127.0.0.1]:{server.port} {server.host_key}\n"
    assert stat.S_IMODE(known.stat().st_mode) == 0o600
    with SSHHost(spec) as host:
        host.run(["true"], timeout_s=30)


@pytest.mark.parametrize("accept", [False, True])
@pytest.mark.parametrize("other", ["ssh-ed25519", "ecdsa-sha2-nistp256", "revoked", "hashed"])
def test_a_key_that_has_changed(server: SshServer, tmp_path: Path, other: str, accept: bool) -> None:
    """Whatever else is known of the host, another key is refused, with file and line, and never recorded."""
    known = tmp_path / "known_hosts"
    kind = "ecdsa" if other.startswith("ecdsa") else "ed25519"
    _keygen("-t", kind, "-N", "", "-f", str(tmp_path / "other"))
    key = (tmp_path / "other.pub").read_text().rsplit(" ", 1)[0]
    name = f"[127.0.0.1]:{server.port}"
    line = f"@revoked * {server.host_key}" if other == "revoked" else f"{name} {key}"
    known.write_text(f"# a comment\n\n{line}\n")
    if other == "hashed":
        _keygen("-H", "-f", str(known))
    before = known.read_text()
    with (
        pytest.raises(HostUnreachable, match=f"{known}, line 3") as refused,
        SSHHost(spec_of(server, known_hosts=str(known)), accept_new_host_keys=accept) as host,
    ):
        host.run(["true"], timeout_s=30)
    assert refused.value.kind == "changed-key"
    assert known.read_text() == before


def test_keys_are_known_as_to_openssh(server: SshServer, tmp_path: Path) -> None:
    """Hashed names, patterns and several keys of a host are understood as ssh does."""
    known = tmp_path / "known_hosts"
    spec = spec_of(server, known_hosts=str(known))
    known.write_text(f"[127.0.0.1]:{server.port} {server.host_key}\n")
    _keygen("-H", "-f", str(known))
    assert "127.0.0.1" not in known.read_text()
    for text in (known.read_text(), f"other,[127.0.0.*]:* {server.host_key}\n"):
        known.write_text(text)
        with SSHHost(spec) as host:
            host.run(["true"], timeout_s=30)
    known.write_text(f"[127.0.0.*]:*,!*:{server.port} {server.host_key}\n")
    with pytest.raises(HostUnreachable, match="is not known"), SSHHost(spec) as host:
        host.run(["true"], timeout_s=30)


def test_ssh_config_is_followed(server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of ~/.ssh/config, included files as well, is enough; and nothing there turns the check off."""
    home = tmp_path / "home"
    shutil.copytree(server.home, home)
    monkeypatch.setenv("HOME", str(home))
    (home / ".ssh" / "more").write_text(
        f"Host lab1\n  HostName 127.0.0.1\n  Port {server.port}\n  StrictHostKeyChecking no\n"
        f"  IdentityFile ~/.ssh/id_ed25519\n  IdentitiesOnly yes\n"
    )
    (home / ".ssh" / "config").write_text("Include more\nHost *\n  ConnectTimeout 1m30\n")
    assert resolve(HostSpec(name="lab1")).timeout_s == 90
    with SSHHost(HostSpec(name="lab1")) as host:
        assert host.run(["echo", "x"], timeout_s=30).stdout == b"x\n"
    (home / ".ssh" / "known_hosts").unlink()
    with pytest.raises(HostUnreachable, match="is not known"), SSHHost(HostSpec(name="lab1")) as host:
        host.run(["true"], timeout_s=30)


@pytest.mark.parametrize("way", ["inventory", "ProxyJump", "ProxyCommand"])
def test_a_host_behind_another(server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Jump hosts are gone through as ssh does, each with its own key checked."""
    home = tmp_path / "home"
    shutil.copytree(server.home, home)
    monkeypatch.setenv("HOME", str(home))
    user = LocalHost().run(["id", "-un"], timeout_s=10).stdout.decode().strip()
    with ssh_server(tmp_path / "bastion", commands=True) as bastion:
        shutil.copy(tmp_path / "bastion" / "home" / ".ssh" / "id_ed25519", home / ".ssh" / "id_bastion")
        (home / ".ssh" / "known_hosts").write_text(
            f"[127.0.0.1]:{server.port} {server.host_key}\n[127.0.0.1]:{bastion.port} {bastion.host_key}\n"
        )
        command = f"ssh -F {home}/.ssh/config -o UserKnownHostsFile={home}/.ssh/known_hosts -W %h:%p bastion"
        extra = {"ProxyJump": "ProxyJump bastion", "ProxyCommand": f"ProxyCommand {command}"}.get(way, "")
        (home / ".ssh" / "config").write_text(
            f"Host bastion\n  HostName 127.0.0.1\n  Port {bastion.port}\n  IdentityFile {home}/.ssh/id_bastion\n"
            f"Host inner\n  HostName 127.0.0.1\n  Port {server.port}\n  IdentityFile ~/.ssh/id_ed25519\n  {extra}\n"
        )
        spec = HostSpec(name="inner", jump=f"{user}@bastion" if way == "inventory" else "")
        with SSHHost(spec) as host:
            told = host.run(["sh", "-c", "echo $SSH_CONNECTION"], timeout_s=30).stdout.split()
            assert told[3] == str(server.port).encode()
        if way != "ProxyCommand":
            (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {server.host_key}\n")
            with pytest.raises(HostUnreachable, match=r"host bastion .*is not known"), SSHHost(spec) as host:
                host.run(["true"], timeout_s=30)


def test_no_one_is_let_in_without_a_key(server: SshServer, tmp_path: Path) -> None:
    """A key that the host does not have is an error that names host, user and key."""
    _keygen("-t", "ed25519", "-N", "", "-f", str(tmp_path / "id"))
    with (
        pytest.raises(HostUnreachable, match=rf"host h1 .*user .* is not let in with {tmp_path}/id") as refused,
        SSHHost(spec_of(server, key=str(tmp_path / "id"))) as host,
    ):
        host.run(["true"], timeout_s=30)
    assert refused.value.kind == "authentication"
    assert "ssh-copy-id" in refused.value.remedy


def test_a_key_with_a_passphrase(server: SshServer, tmp_path: Path) -> None:
    """A key that is locked is said to be so: nobody is asked."""
    key = tmp_path / "id"
    shutil.copy(server.home / ".ssh" / "id_ed25519", key)
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(key)], check=True, timeout=30, capture_output=True
    )
    with pytest.raises(HostUnreachable, match="passphrase") as refused, SSHHost(spec_of(server, key=str(key))) as host:
        host.run(["true"], timeout_s=30)
    assert "ssh-add" in refused.value.remedy


def test_hosts_that_cannot_be_reached(server: SshServer) -> None:
    """A closed port, a name without an address, and what is no SSH server are told apart."""
    [free] = free_ports(LocalHost(), 1, ())
    with pytest.raises(HostUnreachable, match=r"h1 .*nothing listens there") as refused:
        SSHHost(spec_of(server, port=free)).connect()
    assert refused.value.kind == "refused"
    with pytest.raises(HostUnreachable, match="there is no address for this name"):
        SSHHost(spec_of(server, address="no-such-host.invalid")).connect()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(HostUnreachable, match=r"no SSH server|no answer in time"):
            SSHHost(spec_of(server, port=silent.getsockname()[1]), connect_timeout_s=1).connect()
        assert time.monotonic() - began < 30


def test_a_line_that_is_cut(server: SshServer, tmp_path: Path) -> None:
    """A connection that ends in the middle of a command is an error of its own; the next call makes another."""
    with bad_line(server.port) as line:
        server.know(server.port, line.port)
        with SSHHost(spec_of(server, port=line.port)) as host:
            threading.Timer(1.0, line._cut).start()
            with pytest.raises(ConnectionLost, match="connection to host h1 was lost"):
                host.run(["sleep", "60"], timeout_s=60)
            with pytest.raises(HostUnreachable):
                host.run(["true"], timeout_s=30)


def test_a_host_that_falls_silent(server: SshServer) -> None:
    """When nothing comes any more, a call still ends at its own time limit."""
    with bad_line(server.port, limit=20_000, then="hold") as line:
        server.know(server.port, line.port)
        with SSHHost(spec_of(server, port=line.port)) as host:
            host.run(["true"], timeout_s=30)
            began = time.monotonic()
            with pytest.raises(EtcdopsError):
                host.run(["cat"], timeout_s=2, stdin=b"x" * 20_000_000)
            assert time.monotonic() - began < 30


# -- many hosts


def test_all_hosts_at_once(server: SshServer) -> None:
    """Each host gives its own result or error; a dead one holds up no other."""
    [free] = free_ports(LocalHost(), 1, ())
    inventory = Inventory((spec_of(server, "h1"), spec_of(server, "dead", port=free), spec_of(server, "h2")))
    with Hosts(inventory) as hosts:
        done = hosts.each(lambda host: host.run(["echo", host.name], timeout_s=30).stdout, timeout_s=60)
        assert list(done) == ["h1", "dead", "h2"]
        assert (done["h1"].value, done["h2"].value) == (b"h1\n", b"h2\n")
        assert isinstance(done["dead"].error, HostUnreachable)
        with pytest.raises(HostUnreachable):
            done["dead"].checked()
        assert hosts["h2"].name == "h2"
        with pytest.raises(SpecError, match="did you mean 'dead'"):
            hosts["deed"]


def test_a_slow_host_is_given_up(server: SshServer) -> None:
    """A host that is not done in time is reported so, and the others' results are there."""
    with Hosts(Inventory((spec_of(server, "quick"), spec_of(server, "slow")))) as hosts:

        def work(host: SSHHost) -> int:
            return host.run(["sleep", "60" if host.name == "slow" else "0"], timeout_s=90).exit_code

        done = fan_out(list(hosts), work, timeout_s=4)
        assert done["quick"].value == 0
        assert isinstance(done["slow"].error, WaitTimeout)


def test_a_mistake_is_not_an_outcome(server: SshServer) -> None:
    """What is no error of ours is raised, not reported as a host's."""
    with Hosts(Inventory((spec_of(server),))) as hosts, pytest.raises(ZeroDivisionError):
        hosts.each(lambda host: 1 // 0, timeout_s=30)


def test_ctrl_c_ends_what_runs_there(server: SshServer, tmp_path: Path, wait_until: Wait) -> None:
    """Whoever is interrupted leaves no command behind on the host."""
    length = f"116.{os.getpid()}"
    code = (
        "import sys, msgspec\n"
        "from etcdops.remote.host import SSHHost\n"
        "from etcdops.remote.inventory import HostSpec\n"
        "spec = msgspec.json.decode(sys.argv[1], type=HostSpec)\n"
        "SSHHost(spec).run(['sleep', sys.argv[2]], timeout_s=60)\n"
    )
    argv = [sys.executable, "-c", code, msgspec.json.encode(spec_of(server)).decode(), length]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _alive(length, of="sleep"), 60, "the command on the far side")
        process.send_signal(signal.SIGINT)
        process.wait(30)
        wait_until(lambda: not _alive(length, of="sleep"), what="its end")
    finally:
        process.kill()
        process.wait(10)
