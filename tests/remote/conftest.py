"""Docker hosts for the tests of remote clusters: real engines and real sshds, each at an address of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from scripts.lab_hosts.bed import Bed
from tests.conftest import REMOTE, need_runtime
from tests.remote.beds import bed_of_its_own, shared_bed


@pytest.fixture(scope="session")
def can_make_hosts(request: pytest.FixtureRequest) -> None:
    """This machine can have hosts; otherwise the test is skipped, or fails with `--require-runtime remote`."""
    need_runtime(REMOTE, request.config)


@pytest.fixture(scope="session")
def bed(can_make_hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """Three hosts, h1 to h3, for all tests of this run, also those of other workers.

    Who cuts, stops or switches off a host takes `bed_to_break` instead, and who uses this one leaves nothing on it.
    """
    base = tmp_path_factory.getbasetemp()
    # Each worker has a directory of its own, in the one of the run.
    with shared_bed((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared-bed") as shared:
        yield shared


@pytest.fixture(scope="module")
def bed_to_break(can_make_hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """Three hosts for one module alone; each of its tests leaves them as it found them."""
    with bed_of_its_own(tmp_path_factory.mktemp("beds") / "bed") as own:
        yield own
