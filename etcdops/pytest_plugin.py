"""Fixtures for tests of your own: a real etcd cluster, gone when the test ends.

    def test_my_service(etcd_cluster):
        client = etcd_cluster.client()
        client.put("k", "v")
        etcd_cluster.leader().kill()      # what does my service do now?

`etcd_cluster` is a running `etcdops.Cluster`. Redefine these fixtures to change it:

- `etcd_cluster_spec`: its ClusterSpec (default: None, three members at etcd's default timing);
- `etcd_cluster_runtime`: "process" (the default), "compose" for members in containers, or a Runtime of your own.

With `etcd_cluster_scope = module` (or class, package, session) in your pytest configuration, tests share one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.runtimes.base import Runtime
    from etcdops.spec import ClusterSpec

__all__ = ["etcd_cluster", "etcd_cluster_runtime", "etcd_cluster_spec"]

_SCOPES = ("function", "class", "module", "package", "session")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting that says how long a cluster lives."""
    parser.addini("etcd_cluster_scope", f"how long a cluster lives: {', '.join(_SCOPES)}", default="function")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a setting that is not known here: where fixtures are made, pytest takes an error for one of its own."""
    scope = config.getini("etcd_cluster_scope")
    if scope not in _SCOPES:
        raise pytest.UsageError(f"etcd_cluster_scope = {scope} is not known: choose one of {', '.join(_SCOPES)}")


def _scope(fixture_name: str, config: pytest.Config) -> Any:
    return config.getini("etcd_cluster_scope")


@pytest.fixture(scope=_scope)
def etcd_cluster_spec() -> ClusterSpec | None:
    """What the cluster of `etcd_cluster` should be. Redefine it to have another."""
    return None


@pytest.fixture(scope=_scope)
def etcd_cluster_runtime() -> Runtime | str:
    """How the members of `etcd_cluster` run. Redefine it to have another."""
    return "process"


@pytest.fixture(scope=_scope)
def etcd_cluster(
    etcd_cluster_spec: ClusterSpec | None,
    etcd_cluster_runtime: Runtime | str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    """A running etcd cluster, healthy at first; stopped and deleted at the end, whatever was done to it."""
    from etcdops.cluster import Cluster
    from etcdops.spec import ClusterSpec
    from etcdops.state import Store

    spec = etcd_cluster_spec or ClusterSpec.of_size("test")
    store = Store(tmp_path_factory.mktemp("etcdops"))
    with Cluster.create(spec, runtime=etcd_cluster_runtime, store=store, temporary=True) as cluster:
        yield cluster
