"""The cluster in containers that a module's tests share, for modules that have no `line` and `lab` of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from etcdops.cluster import Cluster
from tests.conftest import CommandLine
from tests.suite.containers import shared_lab


@pytest.fixture(scope="module")
def line(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A command line with a cluster of three in containers."""
    with shared_lab(request.config, tmp_path_factory) as line:
        yield line


@pytest.fixture
def lab(line: CommandLine) -> Cluster:
    """That cluster, up and with nothing amiss, whatever has been done to it before."""
    cluster = line.cluster()
    cluster.up()
    return cluster
