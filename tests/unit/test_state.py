"""The state directory: found, read, written and locked, whatever other commands and crashes do to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from etcdops import etcdctl
from etcdops.cluster import Cluster
from etcdops.errors import ClusterNotFound, Locked, SpecError, StateError
from etcdops.runtimes.fake import FakeRuntime
from etcdops.state import ClusterRecord, DataRef, Store, Unhealed, replace_file

Wait = Callable[..., None]

FAULT = Unhealed("run-1", "freeze", "thor", "1:2:3", "2026-01-31T12:00:00+00:00")


@pytest.fixture
def record(store: Store) -> ClusterRecord:
    """The record of a cluster of three members that is in the store."""
    return Cluster.create("lab", runtime=FakeRuntime(), store=store).record


def _path(store: Store) -> Path:
    return store.cluster_dir("lab") / "cluster.json"


def _changed(store: Store, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the record as a person with an editor would."""
    document = json.loads(_path(store).read_text())
    change(document)
    _path(store).write_text(json.dumps(document))


@contextmanager
def _python(code: str, *args: object, **popen: Any) -> Iterator[subprocess.Popen[str]]:
    """A Python process that says "ready" once it is; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **popen,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


# -- where it is


def test_the_nearest_directory_upwards_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As git does: the nearest `.etcdops` from here upwards, or a new one here; a variable names another."""
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert Store.find().root == below / ".etcdops"
    (tmp_path / ".etcdops").mkdir()
    assert Store.find().root == tmp_path / ".etcdops"
    (tmp_path / "a" / ".etcdops").mkdir()
    assert Store.find().root == tmp_path / "a" / ".etcdops"
    monkeypatch.setenv("ETCDOPS_STATE_DIR", "elsewhere")
    assert Store.find().root == below / "elsewhere"
    assert not (below / "elsewhere").exists()


def test_git_ignores_it(store: Store, record: ClusterRecord) -> None:
    """The directory ignores itself, so no data is committed by accident."""
    assert (store.root / ".gitignore").read_text() == "*\n"


# -- records


def test_a_record_comes_back_as_it_was_written(store: Store, record: ClusterRecord) -> None:
    """What is loaded equals what was saved; the file can be read by people."""
    changed = record.with_member(msgspec.structs.replace(record.member("thor"), data=DataRef("/elsewhere", 7)))
    store.save(changed)
    assert store.load("lab") == changed
    assert store.load("lab").member("thor").data.generation == 7
    assert '\n  "schema": 1,' in _path(store).read_text()


def test_an_unknown_cluster_is_named_with_those_there_are(store: Store, record: ClusterRecord) -> None:
    """A cluster that is not there is an error that says which are, and how to make it."""
    with pytest.raises(ClusterNotFound, match=r"no cluster 'lba' in .*\(there is lab\)") as caught:
        store.load("lba")
    assert caught.value.remedy == "Type `up-env --cluster lba` to create it."
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["A", "a/b", "../lab", "", "x" * 32])
def test_a_bad_name_never_becomes_a_path(store: Store, name: str) -> None:
    """A name is checked wherever it would become part of a path, before anything is made."""
    for act in (store.load, store.exists, store.cluster_dir, store.unhealed, store.clear_unhealed, store.stamp):
        with pytest.raises(SpecError, match="cannot name a cluster"):
            act(name)
    with pytest.raises(SpecError, match="cannot name a cluster"), store.lock(name, "test"):
        pass
    assert not store.root.exists()


def test_foreign_directories_are_no_clusters(store: Store, record: ClusterRecord) -> None:
    """Only directories with a valid name and a record count as clusters."""
    for name in ("Upper", "empty", "x" * 40):
        (store.root / "clusters" / name).mkdir()
    shutil.copy(_path(store), store.root / "clusters" / "Upper" / "cluster.json")
    assert store.names() == ["lab"]
    assert Store(store.root / "nowhere").names() == []


DAMAGE: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda d: d.update(colour="red"), r"unknown field `colour`"),
    (lambda d: d["members"][1].update(colour="red"), r"unknown field `colour` - at `\$\.members\[1\]`"),
    (lambda d: d["members"][2]["data"].update(generation="2"), r"Expected `int`.*\$\.members\[2\]\.data\.generation"),
    (lambda d: d["members"][0].pop("client_url"), r"missing required field `client_url` - at `\$\.members\[0\]`"),
    (lambda d: d["spec"]["timing"].update(election_ms=1), r"election timeout of 1 ms"),
    (lambda d: d["spec"].update(name="Lab"), r"'Lab' cannot name a cluster"),
    (lambda d: d.pop("schema"), r"missing required field `schema`"),
    (lambda d: d.update(schema="1"), r"Expected `int`, got `str` - at `\$\.schema`"),
    (lambda d: d.update(schema=0), r"schema 0"),
    (lambda d: d["members"].pop(), r"its members are .*'thor'\), and those of its specification .*'deadpool'"),
    (lambda d: d["members"][0].update(client_url="nowhere"), r"'nowhere' of member ironman is not a URL"),
    (lambda d: d["members"][1].update(peer_url="http://127.0.0.1:x"), r"'http://127.0.0.1:x' of member thor"),
    (lambda d: d["members"][1].update(wanted="perhaps"), r"member thor cannot be wanted 'perhaps'"),
]


@pytest.mark.parametrize(("change", "says"), DAMAGE, ids=[says for _, says in DAMAGE])
def test_a_damaged_record_is_refused_with_its_path_and_field(
    store: Store, record: ClusterRecord, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    """A field that is unknown, missing, of another type, or of a value that cannot be, is named with the file."""
    _changed(store, change)
    with pytest.raises(StateError, match=says) as caught:
        store.load("lab")
    assert str(_path(store)) in str(caught.value)
    assert "is damaged" in str(caught.value)
    assert "cluster.prune" in caught.value.remedy
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("word", ["id", "runtime", "binary", "etcd_version"])
def test_ctl_refuses_a_record_that_lacks_what_it_needs(
    store: Store, record: ClusterRecord, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """`ctl` reads the record in a way of its own: it names the file, what that lacks, and the way out."""
    monkeypatch.setenv("ETCDOPS_STATE_DIR", str(store.root))
    _changed(store, lambda d: d.pop(word))
    with pytest.raises(StateError, match=f"it lacks '{word}'") as caught:
        etcdctl.plan("lab", ["version"])
    assert str(_path(store)) in str(caught.value)
    assert "Restore it" in caught.value.remedy


def test_ctl_reads_a_record_without_an_engine(
    store: Store, record: ClusterRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records from before members ran in containers have none."""
    monkeypatch.setenv("ETCDOPS_STATE_DIR", str(store.root))
    _changed(store, lambda d: d.pop("engine"))
    assert etcdctl.plan("lab", ["version"]).argv == ["etcdctl", "version"]


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"schema": 1}', b"{}" * 9])
def test_what_is_no_record_at_all_is_refused(store: Store, record: ClusterRecord, content: bytes) -> None:
    """An empty, cut off or foreign file is damage, never a traceback."""
    _path(store).write_bytes(content)
    with pytest.raises(StateError, match=re.escape(f"{_path(store)} is damaged")):
        store.load("lab")


def test_a_newer_record_is_refused_as_such(store: Store, record: ClusterRecord) -> None:
    """A record of a later schema is not called damaged, whatever new fields it has: a newer release reads it."""
    _changed(store, lambda d: (d.update(schema=2, novelty=True), d["members"].clear()))
    with pytest.raises(StateError, match="has schema 2, and this release of etcdops reads up to 1") as caught:
        store.load("lab")
    assert "newer release" in caught.value.remedy


def test_a_directory_in_the_records_place_is_refused(store: Store, record: ClusterRecord) -> None:
    """What cannot be read at all is an error with its path and the system's reason."""
    _path(store).unlink()
    _path(store).mkdir()
    with pytest.raises(StateError, match=r"cannot read .*cluster\.json: Is a directory"):
        store.load("lab")


@pytest.mark.parametrize("how", ["copied", "moved", "renamed"])
def test_a_record_that_was_moved_or_copied_is_refused(
    store: Store, record: ClusterRecord, tmp_path: Path, how: str
) -> None:
    """A record speaks for the data and processes of its own place: `down --purge` of a copy would end the original."""
    if how == "renamed":
        (store.root / "clusters" / "lab").rename(store.root / "clusters" / "other")
        found, name = store, "other"
    else:
        target = tmp_path / "target"
        (shutil.copytree if how == "copied" else shutil.move)(str(store.root), str(target))
        found, name = Store(target), "lab"
    with pytest.raises(StateError, match="moved or copied here") as caught:
        found.load(name)
    assert str(store.cluster_dir("lab")) in str(caught.value)


def test_a_link_to_the_state_directory_is_as_good(store: Store, record: ClusterRecord, tmp_path: Path) -> None:
    """The same directory by another path is the same."""
    link = tmp_path / "link"
    link.symlink_to(store.root)
    assert Store(link).load("lab") == record


# -- what is in force


def test_a_fault_is_on_record_until_it_is_cleared(store: Store, record: ClusterRecord) -> None:
    """The fault in force is read back as it was written; clearing twice is no error."""
    assert store.unhealed("lab") is None
    store.mark_unhealed("lab", FAULT)
    assert store.unhealed("lab") == FAULT
    store.clear_unhealed("lab")
    store.clear_unhealed("lab")
    assert store.unhealed("lab") is None


def test_a_damaged_fault_says_what_to_do(store: Store, record: ClusterRecord) -> None:
    """A record of a fault that cannot be read is named, and is not taken for none."""
    path = store.cluster_dir("lab") / "unhealed.json"
    path.write_text('{"run": "x"}')
    with pytest.raises(StateError, match=r"unhealed\.json is damaged: .*missing required field `fault`") as caught:
        store.unhealed("lab")
    assert "Delete it" in caught.value.remedy
    path.unlink()
    path.mkdir()
    with pytest.raises(StateError, match=r"cannot read .*unhealed\.json"):
        store.unhealed("lab")
    with pytest.raises(StateError, match=r"cannot write .*unhealed\.json"):
        store.clear_unhealed("lab")


# -- writing

SAVER = """
import sys
from etcdops.state import Store
import msgspec
store = Store(sys.argv[1])
record = store.load("lab")
print("ready", flush=True)
number = 0
while True:
    number += 1
    store.save(msgspec.structs.replace(record, created="x" * (number % 50_000)))
"""


def test_a_reader_finds_a_whole_record_whenever_the_writer_is_killed(store: Store, record: ClusterRecord) -> None:
    """While another process writes again and again, and is killed in the midst of it, every read gives a whole one."""
    lengths = set()
    for round_ in range(6):
        with _python(SAVER, store.root) as process:
            until = time.monotonic() + 0.1 + 0.037 * round_
            while time.monotonic() < until:
                lengths.add(len(store.load("lab").created))
            process.kill()
            process.wait(10)
        assert store.load("lab").id == record.id
    assert len(lengths) > 1


def test_threads_that_write_one_file_do_not_mix(tmp_path: Path) -> None:
    """Two threads of one process leave one content or the other, and no temporary file."""
    path = tmp_path / "file"
    contents = [b"a" * 100_000, b"b" * 100_000]

    def write(content: bytes) -> None:
        for _ in range(40):
            replace_file(path, content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert path.read_bytes() in contents
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_file_keeps_secrets_if_it_is_told_to(tmp_path: Path) -> None:
    """The mode holds from the first instant, and whatever was there before."""
    path = tmp_path / "key"
    path.write_text("old")
    path.chmod(0o644)
    replace_file(path, b"new", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk (here: a failing fsync) the old file stays, nothing else is left, and the error has the path."""
    path = tmp_path / "file"
    replace_file(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match=r"cannot write .*/file: No space left on device") as caught:
        replace_file(path, b"new")
    assert "ETCDOPS_STATE_DIR" in caught.value.remedy
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("root", ["/sys/etcdops", "/proc/self/etcdops", "/dev/null/etcdops"])
def test_a_place_where_nothing_can_be_written_is_refused(root: str) -> None:
    """A read-only state directory is a StateError that says so; not even root can write to these."""
    with pytest.raises(StateError, match=f"cannot write {root}"):
        Cluster.create("lab", runtime=FakeRuntime(), store=Store(root))


READ_ONLY = """
import sys
from etcdops.cluster import Cluster
from etcdops.errors import StateError
from etcdops.runtimes.fake import FakeRuntime
from etcdops.state import Store
cluster = Cluster.attach("lab", store=Store(sys.argv[1]))
print("ready", flush=True)
assert cluster.status().verdict == "down"
for act in (cluster.up, cluster.down, cluster.purge, lambda: cluster.member("thor").start()):
    try:
        act()
    except StateError as error:
        print(error)
"""


def test_a_directory_that_became_read_only_can_still_be_looked_at(store: Store, record: ClusterRecord) -> None:
    """Status needs to write nothing; whatever would change something is refused with the path."""
    # For root, modes are no obstacle unless it gives its capabilities up.
    bare = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.geteuid() == 0 else []
    if bare and subprocess.run([*bare, "true"], capture_output=True).returncode:
        pytest.skip("this user is root, and cannot give that up")
    places = [store.root, *store.root.rglob("*")]
    for path in places:
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        done = subprocess.run(
            [*bare, sys.executable, "-c", READ_ONLY, str(store.root)], capture_output=True, text=True, timeout=30
        )
    finally:
        for path in places:
            path.chmod(0o700 if path.is_dir() else 0o600)
    assert done.returncode == 0, done.stderr
    refusals = done.stdout.splitlines()[1:]
    assert len(refusals) == 4
    assert all("cannot write" in refusal and "Permission denied" in refusal for refusal in refusals), refusals
    assert store.load("lab") == record


# -- the lock

HOLDER = """
import sys, time
from etcdops.state import Store
with Store(sys.argv[1]).lock("lab", "drill failed-leader"):
    print("ready", flush=True)
    sys.stdin.readline()
    if len(sys.argv) > 2:
        raise SystemExit(sys.argv[2])
"""


def _wait_waiting(said: list[str], wait_until: Wait) -> None:
    wait_until(lambda: said, what="the message of who holds the lock")


def _take(store: Store, said: list[str], taken: list[float], **options: Any) -> None:
    with store.lock("lab", "test", on_wait=said.append, **options):
        taken.append(time.monotonic())


@pytest.mark.parametrize("ends", ["done", "fails", "killed"])
def test_the_lock_waits_for_its_holder_and_names_it(store: Store, wait_until: Wait, ends: str) -> None:
    """A second command waits, says once who works on the cluster, and goes on when that ends, be it by kill -9."""
    said: list[str] = []
    taken: list[float] = []
    with _python(HOLDER, store.root, *(["1"] if ends == "fails" else [])) as holder:
        waiter = threading.Thread(target=_take, args=(store, said, taken))
        waiter.start()
        _wait_waiting(said, wait_until)
        assert re.fullmatch(
            rf"waiting for cluster lab: `drill failed-leader` \(process {holder.pid} on \S+, since \d{{4}}-.*\)"
            " is working on it",
            said[0],
        )
        assert taken == []
        if ends == "killed":
            holder.send_signal(signal.SIGKILL)
        else:
            assert holder.stdin is not None
            holder.stdin.write("\n")
            holder.stdin.flush()
        waiter.join(20)
        assert len(taken) == 1
        assert len(said) == 1


def test_who_waits_too_long_learns_who_holds_the_lock(store: Store) -> None:
    """After its time a waiter gives up, with the holder's command and process and what to do."""
    with _python(HOLDER, store.root) as holder:
        with (
            pytest.raises(Locked, match=rf"`drill failed-leader` \(process {holder.pid} on .*; waited 0 s") as caught,
            store.lock("lab", "test", wait_s=0.1),
        ):
            pytest.fail("the lock was given twice")
        assert "Ctrl-C" in caught.value.remedy
        assert caught.value.exit_code == 3


def test_locks_of_other_clusters_are_others(store: Store) -> None:
    """One cluster's lock is no obstacle to another's, in the same directory or elsewhere."""
    with (
        _python(HOLDER, store.root),
        store.lock("other", "test", wait_s=0.1),
        Store(store.root / "x").lock("lab", "test", wait_s=0.1),
    ):
        pass


def test_a_thread_may_take_its_own_lock_again(store: Store) -> None:
    """Inside the lock, what takes it for itself goes on; others go on waiting until the outermost lets go."""
    with store.lock("lab", "outer", wait_s=1), store.lock("lab", "inner", wait_s=1):
        pass
    with store.lock("lab", "outer"):
        with store.lock("lab", "inner"):
            pass
        refused: list[BaseException] = []
        thread = threading.Thread(target=_refused, args=(store, refused))
        thread.start()
        thread.join(20)
        assert isinstance(refused[0], Locked)
        assert "`outer`" in str(refused[0])
    with _python(HOLDER, store.root):
        pass


def _refused(store: Store, refused: list[BaseException]) -> None:
    try:
        with store.lock("lab", "thread", wait_s=0.1):
            pass
    except Locked as error:
        refused.append(error)


def test_an_error_inside_lets_the_lock_go(store: Store) -> None:
    """After an exception the lock is free, and names nobody."""
    with pytest.raises(KeyError), store.lock("lab", "test"):
        raise KeyError
    assert (store.root / "locks" / "lab").read_text() == ""
    with store.lock("lab", "again", wait_s=0.1):
        pass


CONTENDER = """
import sys
from pathlib import Path
from etcdops.state import Store
store, counter = Store(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(40):
    with store.lock("lab", "count"):
        counter.write_text(str(int(counter.read_text()) + 1))
print("done", flush=True)
"""


def test_one_at_a_time(store: Store, tmp_path: Path) -> None:
    """Three processes that read, add one and write under the lock lose no count."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    with (
        _python(CONTENDER, store.root, counter) as a,
        _python(CONTENDER, store.root, counter) as b,
        _python(CONTENDER, store.root, counter) as c,
    ):
        for process in (a, b, c):
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in (a, b, c):
            assert process.stdout is not None
            assert process.stdout.readline() == "done\n"
    assert counter.read_text() == "120"


def test_the_lock_is_not_inherited_by_commands(store: Store) -> None:
    """A process started inside the lock does not keep it: the descriptor ends where a program begins."""
    with store.lock("lab", "test"):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with store.lock("lab", "again", wait_s=0.1):
            pass
    finally:
        child.kill()
        child.wait(10)
