"""Snapshots in another directory, in S3 and behind SFTP: pushed, pulled and listed, on real servers and bad lines."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

from etcdops.cluster import Cluster
from etcdops.errors import Refused, SnapshotError, SpecError
from etcdops.snapshots import remote
from etcdops.snapshots.addresses import parse
from etcdops.snapshots.depot import Depot, open_depot
from etcdops.snapshots.manifest import Snapshot, manifest_path, read_manifest
from etcdops.snapshots.remote import list_remote_snapshots, pull_snapshot, push_snapshot
from etcdops.snapshots.saving import save_snapshot
from etcdops.spec import ClusterSpec
from etcdops.state import Store
from tests.conftest import CommandLine
from tests.suite.storage import S3Server, SshServer, bad_line, s3_server, ssh_server, tls_line

Wait = Callable[..., None]

#: Bytes of values: enough for two parts in S3.
_LARGE = 6 * 2**20


class Place(NamedTuple):
    """A directory, a prefix or a directory by SFTP, empty at first, and what a client of it has in its environment."""

    kind: str
    url: str
    env: dict[str, Any]
    line: Callable[[int], str]
    server_port: int


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two snapshots of one cluster that is gone, a small one, and then a large one."""
    store = Store(tmp_path_factory.mktemp("saved") / ".etcdops")
    kept = tmp_path_factory.mktemp("kept")
    with Cluster.create(ClusterSpec.of_size("lab", 1), store=store, temporary=True) as cluster:
        client = cluster.client()
        client.put("key", "value")
        small = save_snapshot(cluster, kept / "first.db")
        for i in range(8):
            client.put(f"key/{i}", os.urandom(_LARGE // 16).hex())
        large = save_snapshot(cluster, kept / "second.db")
    assert small.size < 2**20
    assert large.size > _LARGE
    return Path(small.path), Path(large.path)


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("ssh")) as server:
        yield server


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(params=["path", "s3", "sftp"])
def there(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Each kind of place, for commands and for this process."""
    if request.param == "path":
        directory = tmp_path / "there"
        directory.mkdir()
        return Place("path", str(directory), {}, lambda port: "", 0)
    place = _s3(request, tmp_path) if request.param == "s3" else _sftp(request, tmp_path)
    for name, value in place.env.items():
        monkeypatch.setenv(name, value)
    return place


def _s3(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    server: S3Server = request.getfixturevalue("s3")
    url = f"s3://backups/{tmp_path.name}"
    return Place("s3", url, server.env, lambda port: url, server.port)


def _sftp(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    server: SshServer = request.getfixturevalue("ssh")
    server.know(server.port)
    directory = tmp_path / "there"
    directory.mkdir()
    return Place(
        "sftp",
        server.url(directory),
        {"HOME": str(server.home)},
        lambda port: server.url(directory, port),
        server.port,
    )


@pytest.fixture
def here(tmp_path: Path, saved: tuple[Path, Path]) -> Iterator[CommandLine]:
    """A directory with both snapshots of `lab` among those of its state."""
    line = CommandLine(tmp_path / "here")
    directory = line.store.root / "snapshots" / "lab"
    directory.mkdir(parents=True)
    for path in saved:
        shutil.copy2(path, directory)
        shutil.copy2(manifest_path(path), manifest_path(directory / path.name))
    yield line
    line.purge()


def _names(there: Place) -> dict[str, Snapshot]:
    return {each.path.rpartition("/")[2]: each for each in list_remote_snapshots(there.url)}


# -- each kind of place


def test_there_and_back(there: Place, saved: tuple[Path, Path], store: Store, tmp_path: Path) -> None:
    """Both go there, and come back the same, bytes and manifest; what is there already is not sent again."""
    told: list[str] = []
    for path in reversed(saved):
        pushed = push_snapshot(path, there.url, progress=told.append)
        assert (pushed.already, pushed.url) == (False, f"{there.url}/{path.name}")
        assert (pushed.size, pushed.path) == (path.stat().st_size, str(path))
    assert f"{there.url}/first.db is there: read back, " in told[-1]
    before = _names(there)
    assert push_snapshot(saved[1], there.url).already
    assert _names(there) == before
    assert [each.path for each in list_remote_snapshots(there.url)] == [
        f"{there.url}/{name}.db" for name in ("second", "first")
    ]
    assert {(each.state, each.level) for each in before.values()} == {("ok", "hash")}
    assert list_remote_snapshots(there.url, "other") == []

    newest = pull_snapshot(there.url, newest=True, cluster="lab", store=store)
    assert Path(newest.path) == store.root / "snapshots" / "lab" / "second.db"
    (tmp_path / "mine").mkdir()
    for target, path in (("mine", saved[0]), ("mine/named.db", saved[1])):
        pull_snapshot(f"{there.url}/{path.name}", tmp_path / target, store=store)
    assert sorted(os.listdir(tmp_path / "mine")) == ["first.db", "first.db.json", "named.db", "named.db.json"]
    pulled = (Path(newest.path), tmp_path / "mine" / "first.db", tmp_path / "mine" / "named.db")
    for path, source in zip(pulled, (saved[1], *saved), strict=True):
        assert path.read_bytes() == source.read_bytes()
        got, was = read_manifest(path), read_manifest(source)
        assert got
        assert was
        assert got.file == path.name
        assert (got.sha256, got.revision, got.cluster_id) == (was.sha256, was.revision, was.cluster_id)
        assert [each.level for each in got.verified] == ["hash"]
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(manifest_path(path).stat().st_mode) == 0o600


def test_nothing_is_overwritten(there: Place, saved: tuple[Path, Path], store: Store, tmp_path: Path) -> None:
    """Another snapshot under the same name is refused, there and here; what was there stays as it was."""
    push_snapshot(saved[0], there.url)
    before = _names(there)
    other = tmp_path / "first.db"
    shutil.copy2(saved[1], other)
    shutil.copy2(manifest_path(saved[1]), manifest_path(other))
    with pytest.raises(Refused, match="is there already with other content, and is not overwritten"):
        push_snapshot(other, there.url)
    assert _names(there) == before
    with pytest.raises(Refused, match="exists already, and is not overwritten"):
        pull_snapshot(f"{there.url}/first.db", other, store=store)
    assert other.read_bytes() == saved[1].read_bytes()


def test_a_push_that_was_interrupted_goes_on(there: Place, saved: tuple[Path, Path], tmp_path: Path) -> None:
    """Without its manifest a snapshot counts as unknown; the next push reads it, and adds the manifest alone."""
    _put(there, tmp_path, "first.db", saved[0].read_bytes())
    assert _names(there)["first.db"].state == "unknown"
    assert not push_snapshot(saved[0], there.url).already
    assert _names(there)["first.db"].state == "ok"
    # Under a name that is another's, it is the content that tells.
    _put(there, tmp_path, "second.db", saved[0].read_bytes())
    with pytest.raises(Refused, match="with other content"):
        push_snapshot(saved[1], there.url)
    _put(there, tmp_path, "lost.db.json", manifest_path(saved[1]).read_bytes())
    lost = tmp_path / "lost.db"
    shutil.copy2(saved[1], lost)
    shutil.copy2(manifest_path(saved[1]), manifest_path(lost))
    with pytest.raises(Refused, match="the snapshot that it describes is not"):
        push_snapshot(lost, there.url)


def test_what_is_not_sound_stays_where_it_is(
    there: Place, saved: tuple[Path, Path], store: Store, tmp_path: Path
) -> None:
    """One flipped byte here, and nothing is pushed; one there, and nothing is kept."""
    right = saved[0].read_bytes()
    flipped = right[:5000] + bytes([right[5000] ^ 1]) + right[5001:]
    path = tmp_path / "x.db"
    path.write_bytes(flipped)
    shutil.copy2(manifest_path(saved[0]), manifest_path(path))
    with pytest.raises(SnapshotError, match="its bytes are not those of which its manifest tells"):
        push_snapshot(path, there.url)
    assert _names(there) == {}

    for name, content, said in (
        ("bad.db", flipped, "last 32 bytes are not the SHA-256 of the others. Nothing was kept"),
        ("cut.db", right[:-4096], f"its size should be {len(right)}, and is {len(right) - 4096}"),
        ("other.db", saved[1].read_bytes(), "not"),
    ):
        _put(there, tmp_path, name, content)
        _put(there, tmp_path, f"{name}.json", manifest_path(path).read_bytes())
        with pytest.raises(SnapshotError, match=said):
            pull_snapshot(f"{there.url}/{name}", store=store)
    assert _names(there)["cut.db"].state == "damaged"
    assert os.listdir(store.root / "snapshots" / "lab") == []


def test_what_comes_between_is_not_overwritten(
    there: Place, saved: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another puts there under the same name while it is sent stays: the store itself is asked to see to that."""

    def crowded(*args: Any, **options: Any) -> Depot:
        depot = open_depot(*args, **options)
        upload = depot.upload

        @contextmanager
        def late(name: str) -> Iterator[Any]:
            with upload(name) as part:
                publish = part.publish

                def after_another() -> None:
                    _put(there, tmp_path, name, b"theirs")
                    publish()

                part.publish = after_another  # type: ignore[method-assign]
                yield part

        depot.upload = late  # type: ignore[method-assign]
        return depot

    monkeypatch.setattr(remote, "open_depot", crowded)
    for path in saved:
        with pytest.raises(SnapshotError, match="has appeared meanwhile, and is not overwritten"):
            push_snapshot(path, there.url)
    assert {name: (each.size, each.state) for name, each in _names(there).items()} == {
        "first.db": (6, "unknown"),
        "second.db": (6, "unknown"),
    }


def test_what_the_store_has_is_read(there: Place, saved: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that keeps other bytes than it was sent, and says nothing, is found out, and nothing is left there."""

    def damaging(*args: Any, **options: Any) -> Depot:
        depot = open_depot(*args, **options)
        upload = depot.upload

        @contextmanager
        def flipped(name: str) -> Iterator[Any]:
            with upload(name) as part:
                write = part.write
                part.write = lambda data: write(data[:-1] + bytes([data[-1] ^ 1]))  # type: ignore[method-assign]
                yield part

        depot.upload = flipped  # type: ignore[method-assign]
        return depot

    monkeypatch.setattr(remote, "open_depot", damaging)
    with pytest.raises(SnapshotError, match="is not what was sent"):
        push_snapshot(saved[0], there.url)
    assert _names(there) == {}


def _put(there: Place, tmp_path: Path, name: str, content: bytes) -> None:
    """Put a file there as somebody else would."""
    if there.kind != "s3":
        (tmp_path / "there" / name).write_bytes(content)
        return
    depot = open_depot(parse(there.url), Store(tmp_path / "unused"))
    try:
        with depot.upload(name) as upload:
            upload.write(content)
            upload.publish()
    finally:
        depot.close()


def test_pulling_from_where_nothing_is(there: Place, store: Store) -> None:
    """Nothing of that name, a directory, nothing in it: refused, with what to do."""
    for url, newest, said in (
        (f"{there.url}/none.db", False, "there is no snapshot"),
        (there.url + "/", False, "is a directory"),
        (there.url, True, "there is no snapshot of lab with a manifest"),
    ):
        with pytest.raises(Refused, match=said) as raised:
            pull_snapshot(url, newest=newest, cluster="lab", store=store)
        assert "snapshot.list --dir" in raised.value.remedy


# -- bad lines


def _through(there: Place, port: int, request: pytest.FixtureRequest) -> str:
    """Give the URL of a place by another port; the environment is seen to."""
    if there.kind == "s3":
        request.getfixturevalue("monkeypatch").setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        return there.url
    request.getfixturevalue("ssh").know(there.server_port, port)
    return there.line(port)


def _straight(there: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in there.env.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("there", ["s3", "sftp"], indirect=True)
def test_line_that_breaks(
    there: Place, saved: tuple[Path, Path], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-way up, it is an error, and nothing there looks whole; the next push is as the first."""
    with bad_line(there.server_port, limit=_LARGE * 2 // 3) as line:
        url = _through(there, line.port, request)
        with pytest.raises(SnapshotError, match=r"cannot push second\.db to .*, while pushing second\.db: ") as raised:
            push_snapshot(saved[1], url)
        assert raised.value.remedy
        assert line.passed > 2**20
    _straight(there, monkeypatch)
    assert {each.state for each in _names(there).values()} <= {"partial"}
    assert "second.db" not in _names(there)
    assert not push_snapshot(saved[1], there.url).already


# What the hung connection has not sent is let go with it, and asyncio calls that unclosed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("there", ["s3", "sftp"], indirect=True)
def test_line_that_stalls(
    there: Place, saved: tuple[Path, Path], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When nothing moves for so long, it is an error that says so, and nothing there looks whole."""
    with bad_line(there.server_port, limit=_LARGE * 2 // 3, then="hold") as line:
        url = _through(there, line.port, request)
        with pytest.raises(SnapshotError, match=r"nothing has moved for 3 s while pushing second\.db"):
            push_snapshot(saved[1], url, stall_s=3.0)
        assert not [each for each in threading.enumerate() if each.name in ("etcdops-transfer", "etcdops-s3")]
    _straight(there, monkeypatch)
    assert "second.db" not in _names(there)


@pytest.mark.parametrize("there", ["s3", "sftp"], indirect=True)
def test_ctrl_c(
    there: Place, here: CommandLine, request: pytest.FixtureRequest, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends a push within seconds, by its exit code, and leaves nothing there."""
    with bad_line(there.server_port, pause_s=0.05) as line:
        url = _through(there, line.port, request)
        here.env.update(os.environ)
        process = here.start("snapshot.push", url)
        wait_until(lambda: line.passed > 2**21, what="a part of it is there")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    _straight(there, monkeypatch)
    assert _names(there) == {}


# -- SFTP


@pytest.fixture
def known_hosts(ssh: SshServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The known_hosts of the client's home directory, which is that of this process."""
    monkeypatch.setenv("HOME", str(ssh.home))
    return ssh.home / ".ssh" / "known_hosts"


def _key(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=30)
    return path.with_suffix(".pub").read_text().rsplit(" ", 1)[0]


def test_host_key_is_checked(ssh: SshServer, known_hosts: Path, saved: tuple[Path, Path], tmp_path: Path) -> None:
    """A host whose key is unknown, another or revoked is refused before anything is sent, and nothing is learned."""
    url = ssh.url(tmp_path)
    at = f"[127.0.0.1]:{ssh.port}"
    for content, said in (
        ("", "is not known: it is not in"),
        (f"{at} {_key(tmp_path / 'other')}\n", "is not the one that is known"),
        (f"127.0.0.1 {ssh.host_key}\n", "is not known"),
        (f"{at} {ssh.host_key}\n@revoked * {ssh.host_key}\n", "is not known"),
    ):
        known_hosts.write_text(content)
        with pytest.raises(Refused, match=said) as raised:
            push_snapshot(saved[0], url)
        assert f"the host key of {at} " in str(raised.value)
        assert "ssh-ed25519 SHA256:" in str(raised.value)
        assert "administrator" in raised.value.remedy
        assert known_hosts.read_text() == content
    assert not [*tmp_path.glob("first*")]


def test_host_key_that_is_known(ssh: SshServer, known_hosts: Path, saved: tuple[Path, Path], tmp_path: Path) -> None:
    """As OpenSSH hashes names, and under an alias of ~/.ssh/config."""
    ssh.know(ssh.port)
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known_hosts)], check=True, timeout=30, capture_output=True)
    assert "127.0.0.1" not in known_hosts.read_text()
    assert not push_snapshot(saved[0], ssh.url(tmp_path)).already
    known_hosts.write_text(f"vault {ssh.host_key}\n")
    config = ssh.home / ".ssh" / "config"
    config.write_text(f"Host backup\n HostName 127.0.0.1\n Port {ssh.port}\n HostKeyAlias vault\n")
    try:
        pushed = push_snapshot(saved[0], f"sftp://backup{tmp_path}")
    finally:
        config.unlink()
    assert (pushed.already, pushed.url) == (True, f"sftp://backup{tmp_path}/first.db")


def test_files_behind_sftp_are_for_their_owner(
    ssh: SshServer, known_hosts: Path, saved: tuple[Path, Path], tmp_path: Path
) -> None:
    """What is put there is readable for its owner alone, as it is here; /~/ is the home directory."""
    ssh.know(ssh.port)
    push_snapshot(saved[0], ssh.url(tmp_path))
    for name in ("first.db", "first.db.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    # The server's home directory is the account's, so it is only looked into.
    url = f"sftp://127.0.0.1:{ssh.port}/~/{os.path.relpath(tmp_path, Path(pwd.getpwuid(os.geteuid()).pw_dir))}"
    [found] = list_remote_snapshots(url)
    assert found.path == f"{url}/first.db"


def test_sftp_refusals(ssh: SshServer, known_hosts: Path, saved: tuple[Path, Path], tmp_path: Path) -> None:
    """No key that is accepted, no server, no directory: which it is; nobody is asked for a password."""
    ssh.know(ssh.port)
    key = ssh.home / ".ssh" / "id_ed25519"
    with pytest.raises(Refused, match=f"there is no directory {tmp_path}/no there"):
        push_snapshot(saved[0], ssh.url(tmp_path / "no"))
    with pytest.raises(Refused, match=r"cannot connect to 127\.0\.0\.1, port 1: "):
        push_snapshot(saved[0], "sftp://127.0.0.1:1/x")
    key.rename(tmp_path / "kept")
    try:
        with pytest.raises(Refused, match="accepts no key of yours: there is none"):
            push_snapshot(saved[0], ssh.url(tmp_path))
        _key(key)
        with pytest.raises(Refused, match="accepts no key of yours: Authentication failed"):
            push_snapshot(saved[0], ssh.url(tmp_path))
    finally:
        (tmp_path / "kept").rename(key)


# -- S3


def test_s3_refusals(s3: S3Server, saved: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong credentials, none, no bucket, no server: which it is, and what to do; the endpoint may be an argument."""
    url = "s3://backups/refusals"
    env: dict[str, str]
    for to, env, said in (
        (url, {"AWS_SECRET_ACCESS_KEY": "wrong"}, "whose keys are used"),
        (url, {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "Set AWS_ACCESS_KEY_ID"),
        ("s3://nobody/x", {}, "aws s3 mb s3://nobody"),
        (url, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "--endpoint-url"),
    ):
        with monkeypatch.context() as patch:
            for name, value in {**s3.env, **env}.items():
                patch.setenv(name, value)
            with pytest.raises(Refused, match="cannot push ") as raised:
                push_snapshot(saved[0], to)
        assert said in raised.value.remedy, raised.value
    for name, value in s3.env.items():
        if name != "AWS_ENDPOINT_URL":
            monkeypatch.setenv(name, value)
    assert not push_snapshot(saved[0], url, endpoint_url=s3.env["AWS_ENDPOINT_URL"]).already


def test_s3_by_tls(s3: S3Server, saved: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate of an authority that nobody knows is refused, and AWS_CA_BUNDLE makes it known."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with tls_line(s3.port, authority.issue_cert("127.0.0.1")) as port:
        for name, value in {**s3.env, "AWS_ENDPOINT_URL": f"https://127.0.0.1:{port}"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(Refused, match="certificate verify failed") as raised:
            push_snapshot(saved[0], "s3://backups/tls")
        assert "AWS_CA_BUNDLE" in raised.value.remedy
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        push_snapshot(saved[0], "s3://backups/tls")


# -- what is asked for


def test_commands(here: CommandLine, tmp_path: Path) -> None:
    """Only the URL or the path is on stdout; without a name it is the newest; JSON; a word of its own as the file."""
    there = tmp_path / "there"
    there.mkdir()
    ended = here("snapshot.push", str(there))
    assert (ended.code, ended.out) == (0, f"{there}/second.db\n"), ended
    assert "read back, " in ended.err
    ended = here("snapshot.push", f"file://{there}", "--file", "second.db", "-o", "json")
    document = json.loads(ended.out)
    assert (document["schema"], document["already"], document["url"]) == (1, True, f"{there}/second.db")
    ended = here("snapshot.list", "--dir", f"file://{there}")
    assert ended.code == 0, ended
    [row] = [line.split() for line in ended.out.splitlines()[1:]]
    assert (row[0], row[-1]) == ("lab", f"{there}/second.db")
    ended = here("snapshot.pull", str(there), str(tmp_path / "mine.db"), "--newest")
    assert (ended.code, ended.out) == (0, f"{tmp_path}/mine.db\n"), ended
    ended = here("snapshot.pull", "--newest", str(there), "-o", "json", ETCDOPS_STATE_DIR=str(tmp_path / "state"))
    document = json.loads(ended.out)
    assert document["snapshot"]["path"] == str(tmp_path / "state" / "snapshots" / "lab" / "second.db")
    ended = here("snapshot.pull", str(there), "--newest")
    assert (ended.code, ended.out) == (3, "")
    assert "exists already, and is not overwritten" in ended.err
    for args, code, said in (
        ((str(there), "--cluster", "other"), 3, "no verified snapshot of other"),
        ((str(there), "--stall", "0"), 2, "--stall 0 is not offered"),
        (("s3://key:secret@bucket/x",), 2, "credentials in the URL"),
    ):
        ended = here("snapshot.push", *args)
        assert (ended.code, ended.out) == (code, ""), ended
        assert said in ended.err
        assert "secret" not in ended.err


def test_bad_requests(saved: tuple[Path, Path], store: Store, tmp_path: Path) -> None:
    """What is no place, or has a secret in it, is refused before anything is looked at."""
    among = store.cluster_dir("lab") / "members"
    among.mkdir(parents=True)
    for url, kind, said in (
        ("s3://key:secret@bucket/x", SpecError, "credentials in the URL"),
        ("sftp://me:hidden@host/x", SpecError, "a password is in sftp://…@host"),
        ("gopher://x/y", SpecError, "gopher:// is not known"),
        ("s3:///x", SpecError, "names no bucket"),
        ("sftp:///x", SpecError, "names no host"),
        ("sftp://h:port/x", SpecError, "is no URL"),
        ("file://elsewhere/x", SpecError, "is no file of this machine"),
        ("", SpecError, "no URL"),
        (str(tmp_path / "no"), Refused, "there is no directory"),
        (str(among), Refused, "among the clusters' own files"),
    ):
        with pytest.raises(kind, match=said) as raised:
            push_snapshot(saved[0], url, store=store)
        assert raised.value.remedy
        assert "hidden" not in str(raised.value)
    with pytest.raises(SpecError, match="for s3:// alone"):
        push_snapshot(saved[0], str(tmp_path), endpoint_url="http://x")
    with pytest.raises(SpecError, match="stall limit"):
        push_snapshot(saved[0], str(tmp_path), stall_s=0.5)
    with pytest.raises(SpecError, match="there is no file"):
        push_snapshot(tmp_path / "none.db", str(tmp_path))
    shutil.copy(saved[0], tmp_path / "theirs.db")
    with pytest.raises(Refused, match="has no manifest"):
        push_snapshot(tmp_path / "theirs.db", str(tmp_path))


def test_pull_of_what_etcdctl_saved(saved: tuple[Path, Path], store: Store, tmp_path: Path) -> None:
    """Without a manifest its own hash vouches for it, and that is said; under file:// as well."""
    (tmp_path / "a b").mkdir()
    shutil.copy(saved[0], tmp_path / "a b" / "byhand.db")
    told: list[str] = []
    pulled = pull_snapshot(f"file://{tmp_path}/a%20b/byhand.db", store=store, progress=told.append)
    assert Path(pulled.path) == store.root / "snapshots" / "lab" / "byhand.db"
    assert (pulled.state, pulled.manifest) == ("unknown", None)
    assert any("nothing but its own hash vouches for it" in line for line in told)


def test_without_the_extra(here: CommandLine, tmp_path: Path) -> None:
    """Directories work without it; for the others it is said what to install."""
    script = (
        "import sys\n"
        "for name in ('fsspec', 's3fs', 'botocore'): sys.modules[name] = None\n"
        "from etcdops.cli import main\n"
        "sys.argv[0] = 'etcdops'\n"
        "main()\n"
    )
    for url, code, said in (
        ("s3://backups/lab", 3, "pip install 'etcdops[remote]'"),
        ("sftp://host/lab", 3, "pip install 'etcdops[remote]'"),
        (str(tmp_path), 0, "is there: read back"),
    ):
        argv = [sys.executable, "-c", script, "snapshot.push", url]
        done = subprocess.run(argv, cwd=here.cwd, env=here.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done
        assert said in done.stderr
