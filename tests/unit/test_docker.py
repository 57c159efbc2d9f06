"""What Docker and Compose say, and what is made of it: errors, labels, addresses, logs, and the file for Compose."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from etcdops.docker.compose import ComposeFile, Service, project_of, render
from etcdops.docker.engine import Engine
from etcdops.docker.logs import ContainerLogs
from etcdops.docker.problems import explain, first_line
from etcdops.errors import EtcdopsError, ImageError, Refused, RuntimeUnavailable
from etcdops.hosts import Completed, LocalHost
from etcdops.runtimes.base import CanIsolate, CanKill, CanMovePorts, CanPause, CanUnplug, Runtime, looked
from etcdops.runtimes.compose import ComposeRuntime
from etcdops.spec import ClusterSpec, Tls
from etcdops.state import SCHEMA, ClusterRecord

# -- what went wrong

#: What Docker 20.10 and 28.2, Compose 2.26 and 1.29 wrote to stderr, and what it means; paths and ids are shortened.
SAID = [
    (
        "Cannot connect to the Docker daemon at unix:///nonexistent. Is the docker daemon running?",
        RuntimeUnavailable,
        "no Docker engine answers",
    ),
    (
        'error during connect: Get "http://%2Fsock/v1.24/info": dial unix /sock: connect: connection refused',
        RuntimeUnavailable,
        "no Docker engine answers",
    ),
    (
        'unable to resolve docker endpoint: context "nope" does not exist',
        RuntimeUnavailable,
        "no Docker engine answers",
    ),
    (
        (
            'Failed to initialize: unable to resolve docker endpoint: context "nope": context not found: open'
            " /root/.docker/contexts/meta/ca37/meta.json: no such file or directory"
        ),
        RuntimeUnavailable,
        "no Docker engine answers",
    ),
    (
        (
            "Traceback (most recent call last):\n"
            '  File "/usr/lib/python3/dist-packages/urllib3/connectionpool.py", line 705, in urlopen\n'
            "    httplib_response = self._make_request(\n"
            "                       ^^^^^^^^^^^^^^^^^^^\n"
            "FileNotFoundError: [Errno 2] No such file or directory\n\n"
            "docker.errors.DockerException: Error while fetching server API version: ('Connection aborted.',"
            " FileNotFoundError(2, 'No such file or directory'))\n"
        ),
        RuntimeUnavailable,
        "no Docker engine answers",
    ),
    (
        (
            "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: Get"
            ' "http://%2Fvar%2Frun%2Fdocker.sock/v1.50/containers/json": dial unix /var/run/docker.sock: connect:'
            " permission denied"
        ),
        RuntimeUnavailable,
        "does not let this user in",
    ),
    (
        (
            "Got permission denied while trying to connect to the Docker daemon socket at unix:///sock: Get"
            ' "http://%2Fsock/v1.24/containers/json": dial unix /sock: connect: permission denied'
        ),
        RuntimeUnavailable,
        "does not let this user in",
    ),
    (
        (
            "docker.errors.DockerException: Error while fetching server API version: ('Connection aborted.',"
            " PermissionError(13, 'Permission denied'))"
        ),
        RuntimeUnavailable,
        "does not let this user in",
    ),
    (
        "Error response from daemon: client version 1.52 is too new. Maximum supported API version is 1.41",
        RuntimeUnavailable,
        "too far apart in age",
    ),
    (
        (
            "Error response from daemon: client version 1.40 is too old. Minimum supported API version is 1.44, please"
            " upgrade your client to a newer version"
        ),
        RuntimeUnavailable,
        "too far apart in age",
    ),
    (
        (
            " Network zz2_default  Creating\n Network zz2_default  Error\n"
            "failed to create network zz2_default: Error response from daemon: could not find an available,"
            " non-overlapping IPv4 address pool among the defaults to assign to the network"
        ),
        Refused,
        "no address range left",
    ),
    ("Error response from daemon: all predefined address pools have been fully subnetted", Refused, "no address range"),
    (
        "Error response from daemon: write /var/lib/docker/overlay2/96f3-init/link: no space left on device",
        Refused,
        "the disk of the Docker engine is full",
    ),
    (
        (
            "Creating zz2_a_1 ... \nCreating zz2_a_1 ... error\n\n"
            "ERROR: for zz2_a_1  Cannot create container for service a: write /data/link: no space left on device\n\n"
            "ERROR: for a  Cannot create container for service a: write /data/link: no space left on device\n"
            "Encountered errors while bringing up the project."
        ),
        Refused,
        "the disk of the Docker engine is full",
    ),
    (
        " Container zz1-a-1  Creating\nError response from daemon: no such image: no/such:1: No such image: no/such:1",
        ImageError,
        "the image is not here any more",
    ),
    (
        (
            "Error response from daemon: image with reference sha256:cc06 was found but does not match the specified"
            " platform: wanted linux/amd64, actual: linux/arm64/v8"
        ),
        ImageError,
        "another architecture",
    ),
    (
        (
            "docker: Error response from daemon: driver failed programming external connectivity on endpoint q (85d1):"
            " Bind for 127.0.0.1:24998 failed: port is already allocated\n\n"
            "Run 'docker run --help' for more information"
        ),
        Refused,
        "something else listens on a port",
    ),
    (
        (
            "Error response from daemon: driver failed programming external connectivity on endpoint q2 (834a): Error"
            " starting userland proxy: listen tcp4 127.0.0.1:24998: bind: address already in use\n"
            "Error: failed to start containers: q2"
        ),
        Refused,
        "something else listens on a port",
    ),
]


@pytest.mark.parametrize(("said", "kind", "means"), SAID)
def test_known_problems(said: str, kind: type[EtcdopsError], means: str) -> None:
    """Each of Docker's complaints that people meet is one of our errors, with the place, Docker's words and a remedy,
    and exit code 3."""
    error = explain("docker ps", "unix:///sock", said)
    assert type(error) is kind
    assert error.exit_code == 3
    assert f"{means}" in str(error)
    assert "(unix:///sock): " in str(error)
    assert error.remedy
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (SAID[4][0], "docker.errors.DockerException: Error while fetching server API version: ('Connection aborted.',"),
        (SAID[13][0], "ERROR: for a  Cannot create container for service a: write /data/link: no space left on device"),
        (SAID[16][0], "docker: Error response from daemon: driver failed programming"),
        (SAID[17][0], "Error response from daemon: driver failed programming"),
        ("Error response from daemon: network a84a not found\nError: failed to start containers: q3", "Error response"),
        ("Error: failed to start containers: q3", "Error: failed to start containers: q3"),
        ("one\n\ntwo\n", "two"),
        ("", ""),
    ],
)
def test_the_line_that_says_what_was_wrong(said: str, line: str) -> None:
    """Of several lines, neither progress nor a trace nor advice is shown, but the cause."""
    assert first_line(said).startswith(line)
    assert bool(first_line(said)) == bool(line)


def test_a_problem_that_is_not_known() -> None:
    """What we do not know is passed on, with what was tried and where; silence is called that."""
    error = explain("docker pause", "unix:///sock", "Error response from daemon: Container c0ff is not running")
    assert type(error) is EtcdopsError
    assert (
        str(error) == "`docker pause` failed (unix:///sock): Error response from daemon: Container c0ff is not running"
    )
    assert "it said nothing" in str(explain("docker pause", "unix:///sock", ""))


# -- an engine, with a docker command of our own


class Stub(LocalHost):
    """A host whose docker gives answers that are known beforehand, in turn; the last one again and again."""

    def __init__(self, *answers: tuple[int, str, str]) -> None:
        self.answers = list(answers)
        self.asked: list[list[str]] = []

    def run(self, argv: Sequence[str], **options: object) -> Completed:
        """Give the next answer."""
        self.asked.append(list(argv))
        code, out, err = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return Completed(code, out.encode(), err.encode())


def _row(*columns: str) -> str:
    return "\t".join(columns) + "\n"


def test_labels_are_told_apart_whatever_they_hold() -> None:
    """Commas, dollar signs, equals signs, tabs and quotes in a label are its value; a label that is lacking is left
    out; the client has no member."""
    path = "/a b/$HOME,io.etcdops.uid=7,x=y\t\"'/ü"
    values = [json.dumps(value) for value in ("lab", "c0ffee", "member", "thor", path, "0", "", "", "")]
    client = [json.dumps(value) for value in ("lab", "c0ffee", "client", "", "/state", "0", "", "", "")]
    out = _row("1" * 64, "running", "p_client,p_peer", *values) + _row("2" * 64, "exited", "", *client)
    stub = Stub((0, out, ""))
    thor, other = Engine(stub, "unix:///sock").containers(cluster_id="c0ffee", uid="")
    assert (thor.member, thor.networks, thor.labels["state-dir"]) == ("thor", ("p_client", "p_peer"), path)
    assert (other.member, other.networks, other.state) == ("", (), "exited")
    assert "member" not in other.labels
    [argv] = stub.asked
    assert argv[:4] == ["docker", "--host", "unix:///sock", "ps"]
    assert {"label=io.etcdops.cluster-id=c0ffee", "label=io.etcdops.uid"} <= set(argv)


@pytest.mark.parametrize(
    "address",
    [
        "unix:///var/run/docker.sock",
        "unix:///home/me/a b/sock",
        "tcp://127.0.0.1:2375",
        "tcp://localhost:2375",
        "tcp://[::1]:2375",
        "127.0.0.1:2375",
        "tcp://127.0.0.1",
        "npipe:////./pipe/docker_engine",
        "tcp://:2375",
    ],
)
def test_addresses_of_this_machine(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """A socket, or loopback, is an engine of this machine, and recorded with its scheme."""
    monkeypatch.setenv("DOCKER_HOST", address)
    found = Engine(Stub((0, "default\tunix:///other\n", ""))).find_address()
    assert found == (address if "://" in address else f"tcp://{address}")


@pytest.mark.parametrize(
    "address",
    [
        "ssh://me@host",
        "ssh://localhost",
        "tcp://192.0.2.1:2375",
        "tcp://localhost.example.org:2375",
        "host:2375",
        "tcp://127.example.org:2375",
        "tcp://127.0.0.1.example.org",
        "https://127.0.0.1",
        "unix://",
    ],
)
def test_addresses_of_other_machines(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """An engine elsewhere is refused by name: what members publish on its loopback cannot be reached."""
    monkeypatch.setenv("DOCKER_HOST", address)
    with pytest.raises(RuntimeUnavailable, match="is on another machine") as caught:
        Engine(Stub((0, "default\tunix:///other\n", ""))).find_address()
    assert address in str(caught.value)
    assert "Unset DOCKER_HOST" in caught.value.remedy


@pytest.mark.parametrize(
    ("told", "address"),
    [
        ("default\tunix:///var/run/docker.sock", "unix:///var/run/docker.sock"),
        ("desktop-linux\tunix:///home/me/.docker/desktop/docker.sock", "unix:///home/me/.docker/desktop/docker.sock"),
        # Its keys are in the context.
        ("secured\ttcp://127.0.0.1:2376", "secured"),
    ],
)
def test_contexts(monkeypatch: pytest.MonkeyPatch, told: str, address: str) -> None:
    """A context is recorded as the socket that it leads to, so that it may change; by name where it holds more."""
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    engine = Engine(Stub((0, f"{told}\n", "")))
    assert engine.find_address() == address
    flags = Engine(Stub((0, "", "")), address).flags
    assert flags == (["--context", "secured"] if address == "secured" else ["--host", address])


def test_a_context_on_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is said with where it leads."""
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    with pytest.raises(RuntimeUnavailable, match=r"ssh://me@host \(context far\) is on another machine"):
        Engine(Stub((0, "far\tssh://me@host\n", ""))).find_address()


def test_where_an_engine_is_said_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By its own address; else by DOCKER_HOST, DOCKER_CONTEXT, or what `docker context use` has chosen."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert Engine().described == "default context"
    for damaged in ("", "[]", "{"):
        (tmp_path / "config.json").write_text(damaged)
        assert Engine().described == "default context"
    (tmp_path / "config.json").write_text('{"currentContext": "used"}')
    assert Engine().described == "used"
    monkeypatch.setenv("DOCKER_CONTEXT", "chosen")
    assert Engine().described == "chosen"
    assert Engine(Stub((0, "chosen\tunix:///a\n", ""))).elsewhere("unix:///a") == ""
    assert Engine(Stub((0, "chosen\tunix:///b\n", ""))).elsewhere("unix:///a") == "chosen"
    assert Engine(Stub((1, "", 'context "chosen" does not exist'))).elsewhere("unix:///a") == "chosen"
    monkeypatch.setenv("DOCKER_HOST", "unix:///host")
    assert Engine().described == "unix:///host"
    assert Engine(address="unix:///own").described == "unix:///own"


@pytest.mark.parametrize(
    ("api", "fits"), [("1.41", True), ("1.50", True), ("1.40", False), ("1.9", False), ("", False)]
)
def test_engines_that_are_too_old(api: str, fits: bool) -> None:
    """From Docker 20.10 on an engine is used; an older one is refused with both versions named."""
    engine = Engine(Stub((0, json.dumps({"Version": "x.y", "ApiVersion": api, "Arch": "amd64"}), "")), "unix:///sock")
    if fits:
        assert engine.version() == ("x.y", "amd64")
        return
    with pytest.raises(RuntimeUnavailable, match=r"the Docker engine x\.y .* is too old.* 1\.41 \(Docker 20\.10\)"):
        engine.version()


# -- logs


def _logged(*lines: str) -> tuple[int, str, str]:
    return 0, "", "".join(f"2026-01-31T12:00:{line}\n" for line in lines)


def test_logs_are_read_on_from_where_they_were() -> None:
    """Docker tells again what has the time of the last line; nothing is there twice, and nothing is missed, with
    several lines at one instant as well."""
    stub = Stub(
        _logged("01.000000000Z a", "02.000000000Z b"),
        _logged("02.000000000Z b", "02.000000000Z c", "03.000000000Z d"),
        _logged("03.000000000Z d"),
        _logged("03.000000000Z d", "03.000000000Z d", "04.000000000Z e"),
    )
    logs = ContainerLogs(Engine(stub, "unix:///sock"))
    assert logs.read("c", 0) == b"a\nb\n"
    assert logs.read("c", 0) == b"a\nb\nc\nd\n"
    assert logs.read("c", 4) == b"c\nd\n"
    assert logs.read("c", 6) == b"d\nd\ne\n"
    assert [argv[5:-1] for argv in stub.asked] == [
        [],
        ["--since", "2026-01-31T12:00:02.000000000Z"],
        ["--since", "2026-01-31T12:00:03.000000000Z"],
        ["--since", "2026-01-31T12:00:03.000000000Z"],
    ]


def test_logs_of_a_container_that_is_not_there() -> None:
    """They are empty; but an engine that does not answer is no empty log."""
    gone = ContainerLogs(Engine(Stub((1, "", "Error response from daemon: No such container: c")), "unix:///sock"))
    assert (gone.read("c", 0), gone.read("", 0)) == (b"", b"")
    down = Stub((1, "", "Cannot connect to the Docker daemon at unix:///sock. Is the docker daemon running?"))
    with pytest.raises(RuntimeUnavailable):
        ContainerLogs(Engine(down, "unix:///sock")).read("c", 0)


# -- the file for Compose


def _record(state_dir: str, *, tls: bool = False) -> ClusterRecord:
    spec = ClusterSpec.of_size("lab", 3)
    if tls:
        members = tuple(type(m)(m.name, cert="c.pem", key="k.pem") for m in spec.members)
        spec = ClusterSpec("lab", members, tls=Tls("ca.pem", "cc.pem", "ck.pem"))
    runtime = ComposeRuntime(Engine(address="unix:///sock"))
    return ClusterRecord(
        schema=SCHEMA,
        id="c0ffee0123456789",
        spec=spec,
        runtime="compose",
        binary="",
        etcd_version="3.5.30",
        token="etcdops-c0ffee",
        state_dir=state_dir,
        members=runtime.place(spec, "c0ffee0123456789", "/unused"),
        image="etcd:1",
        image_id="sha256:1",
        engine="unix:///sock",
        created="",
    )


def test_rendered_with_a_hostile_path() -> None:
    """What Compose would take for variables, or YAML for its own, is written so that both give it back as it is."""
    path = "/a $HOME/${X:?no} $$ \"q' # : - {{ x }}/ü\n"
    record = _record(path)
    text = render(
        ComposeFile(
            record,
            "etcd:1",
            [Service("thor", ["127.0.0.1:20000:2379"], "v-g1", ["--a=$b"], ["CMD", "x"])],
            ["thor:2379"],
        )
    )
    labels = {line.partition(": ")[2] for line in text.splitlines() if "state-dir:" in line}
    [written] = labels
    assert json.loads(written.replace("$$", "$")) == path
    assert written.count("$$") * 2 == written.count("$")
    assert '      - "--a=$$b"' in text
    assert "{{ x }}" in text


def test_rendered_members() -> None:
    """Each has its volume, its port on loopback and its alias; the client knows all; nothing is restarted by itself."""
    record = _record("/state")
    runtime = ComposeRuntime(Engine(Stub((0, "sha256:1\n", "")), "unix:///sock"))
    text = render(runtime._file(record))
    project = project_of("lab", record.id)
    assert project == "etcdops-lab-c0ffee"
    for member in record.members:
        port = member.client_url.rpartition(":")[2]
        assert f'- "127.0.0.1:{port}:2379"' in text
        assert f"aliases: [{member.name}.peer]" in text
        assert member.data.place == f"{project}_{member.name}-g1"
        assert f'name: "{member.data.place}"' in text
        assert f"--advertise-client-urls={member.client_url}" in text
    assert "--endpoints=ironman:2379,thor:2379,deadpool:2379" in text
    assert text.count('restart: "no"') == 4
    assert text.count('https_proxy: ""') == text.count('HTTPS_PROXY: ""') == 4
    assert text.count("internal: true") == 1


def test_rendered_with_tls() -> None:
    """Flags and the health check name the files that a member is given."""
    runtime = ComposeRuntime(Engine(Stub((0, "sha256:1\n", "")), "unix:///sock"))
    text = render(runtime._file(_record("/state", tls=True)))
    assert text.count("--client-cert-auth=true") == 3
    assert "--peer-trusted-ca-file=/etc/etcd-tls/ca.pem" in text
    assert '"--endpoints=https://127.0.0.1:2379", "--cacert=/etc/etcd-tls/ca.pem"' in text
    assert "http://" not in text


def test_what_the_runtime_can_do() -> None:
    """It can kill, freeze and cut off members, and give them other ports."""
    runtime: Runtime = ComposeRuntime(Engine(address="unix:///sock"))
    assert all(isinstance(runtime, each) for each in (CanKill, CanPause, CanIsolate, CanUnplug, CanMovePorts))


def test_several_questions_take_one_look() -> None:
    """From one look come the members' states, their references and what is amiss; the runtime itself looks anew."""
    record = _record("/state")
    network = f"{project_of(record.spec.name, record.id)}_client"
    labels = [json.dumps(each) for each in (record.spec.name, record.id, "member", "thor", "/state", "0", "", "", "")]
    runs, ended = (_row("f" * 64, state, network, *labels) for state in ("running", "exited"))
    stub = Stub((0, runs, ""), (0, ended, ""))
    runtime = ComposeRuntime(Engine(stub, address="unix:///sock"))
    once = looked(runtime, record)
    assert once.states(record)["thor"] == "isolated"
    assert once.adopt(record).member("thor").ref == "f" * 64
    assert any("thor is off the network" in each for each in once.amiss(record))
    assert len(stub.asked) == 1
    assert runtime.states(record)["thor"] == "stopped"
    assert len(stub.asked) == 2
