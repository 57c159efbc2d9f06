"""The pytest fixture that ships with the package, as a user's own tests use it. Each runs a pytest of its own.

It is a temporary cluster in a fixture: what becomes of such a one, test_cluster.py tests with each runtime. Here each
has a part where the fixture, or pytest itself, might make a difference.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.suite.members import below, remove

on_processes = pytest.mark.runtime("process")

#: Which runtime, as a user says it.
RUNTIME = """
import pytest

@pytest.fixture(scope="{scope}")
def etcd_cluster_runtime():
    return "{runtime}"
"""

#: One member that elects itself after 0.1 s.
QUICK = (
    RUNTIME
    + """
from etcdops import ClusterSpec, Timing

@pytest.fixture(scope="{scope}")
def etcd_cluster_spec():
    return ClusterSpec.of_size("quick", 1, timing=Timing(10, 100))
"""
)


@pytest.fixture(autouse=True)
def _nothing_left(pytester: pytest.Pytester) -> object:
    """Whatever happened in a test, nothing of a cluster is left that was made in its directories."""
    yield
    left = below(_base(pytester))
    for runtime, leftover in left:
        remove(runtime, leftover)
    assert left == []
    assert list(_base(pytester).rglob("cluster.json")) == []
    assert [path for path in _base(pytester).rglob("*-g1") if path.is_dir()] == []


def _base(pytester: pytest.Pytester) -> Path:
    return pytester.path / "base"


def _run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", f"--basetemp={_base(pytester)}", *args, timeout=60)


def test_the_fixture_is_there_without_any_import(pytester: pytest.Pytester, etcd_cluster_runtime: str) -> None:
    """As the plugin's own text shows it: a running cluster, a client, and a leader to kill."""
    pytester.makeconftest(RUNTIME.format(scope="function", runtime=etcd_cluster_runtime))
    pytester.makepyfile(
        """
        def test_my_service(etcd_cluster):
            assert [m.name for m in etcd_cluster.members] == ["ironman", "thor", "deadpool"]
            assert etcd_cluster.runtime.name == RUNTIME
            client = etcd_cluster.client()
            client.put("k", "v")
            assert etcd_cluster.status().verdict == "healthy"
            leader = etcd_cluster.leader()
            leader.kill()
            assert leader.state() == "stopped"
        """.replace("RUNTIME", repr(etcd_cluster_runtime))
    )
    _run(pytester).assert_outcomes(passed=1)


def test_it_is_listed_with_what_it_does(pytester: pytest.Pytester) -> None:
    """`pytest --fixtures` explains the three fixtures, `--help` the setting."""
    fixtures = pytester.runpytest_subprocess("--fixtures", timeout=60)
    fixtures.stdout.fnmatch_lines_random(
        [
            "etcd_cluster *",
            "*A running etcd cluster, healthy at first*",
            "etcd_cluster_spec *",
            "etcd_cluster_runtime *",
        ]
    )
    pytester.runpytest_subprocess("--help", timeout=60).stdout.fnmatch_lines(["*etcd_cluster_scope *"])


def test_a_suite_that_does_not_use_it_pays_nothing(pytester: pytest.Pytester) -> None:
    """Being installed, the plugin imports nothing of the library's before a test asks for a cluster."""
    pytester.makepyfile(
        """
        import sys

        def test_lean():
            loaded = [name for name in sys.modules if name.startswith("etcdops")]
            assert set(loaded) <= {"etcdops", "etcdops.errors", "etcdops.pytest_plugin"}
            assert "grpc" not in sys.modules
            assert "msgspec" not in sys.modules
        """
    )
    _run(pytester).assert_outcomes(passed=1)


@on_processes
def test_the_spec_can_be_redefined(pytester: pytest.Pytester, etcd_cluster_runtime: str) -> None:
    """A fixture of the same name changes what the cluster is, each test having one of its own."""
    pytester.makeconftest(QUICK.format(scope="function", runtime=etcd_cluster_runtime))
    pytester.makepyfile(
        """
        seen = []

        def test_one(etcd_cluster):
            seen.append(etcd_cluster.record.id)
            assert etcd_cluster.record.spec.timing.election_ms == 100
            etcd_cluster.client().put("k", "v")

        def test_two(etcd_cluster):
            assert etcd_cluster.name == "quick"
            assert etcd_cluster.record.id not in seen
            assert etcd_cluster.client().get("k") == (None, None)
        """
    )
    _run(pytester).assert_outcomes(passed=2)


def test_the_runtime_can_be_redefined(pytester: pytest.Pytester) -> None:
    """A Runtime of the user's own is used as it is, for one class here."""
    pytester.makepyfile(
        """
        import pytest
        from etcdops import FakeRuntime

        class TestInMemory:
            @pytest.fixture
            def etcd_cluster_runtime(self):
                return FakeRuntime()

            def test_fake(self, etcd_cluster):
                assert etcd_cluster.runtime.name == "fake"
                etcd_cluster.client().put("k", "v")
        """
    )
    _run(pytester).assert_outcomes(passed=1)


@on_processes  # how long a fixture lives is pytest's affair, whatever is in it
@pytest.mark.parametrize(("scope", "clusters"), [("class", 4), ("module", 2), ("session", 1)])
def test_tests_can_share_one(pytester: pytest.Pytester, etcd_cluster_runtime: str, scope: str, clusters: int) -> None:
    """With a wider scope the tests of a class, module or session see one cluster, and no more of them than that."""
    pytester.makeini(f"[pytest]\netcd_cluster_scope = {scope}\n")
    pytester.makeconftest(QUICK.format(scope=scope, runtime=etcd_cluster_runtime) + "\nids = []\n")
    body = """
        import pytest
        from conftest import ids

        class TestOne:
            def test_a(self, etcd_cluster):
                ids.append(etcd_cluster.record.id)
                etcd_cluster.client().put("k", "v")

            def test_b(self, etcd_cluster):
                ids.append(etcd_cluster.record.id)
                assert etcd_cluster.client().get("k")[0] == b"v"

        class TestTwo:
            def test_c(self, etcd_cluster):
                ids.append(etcd_cluster.record.id)
        """
    count = f"""
        def test_count():
            assert len(ids) == 6
            assert len(set(ids)) == {clusters}
        """
    pytester.makepyfile(test_1=body, test_2=body + count)
    _run(pytester).assert_outcomes(passed=7)


def test_an_unknown_scope_is_a_usage_error(pytester: pytest.Pytester) -> None:
    """A misspelt setting is named with the choices, and no cluster is made."""
    pytester.makeini("[pytest]\netcd_cluster_scope = modul\n")
    pytester.makepyfile("def test_it(etcd_cluster): pass")
    result = _run(pytester)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    said = "\n".join([*result.outlines, *result.errlines])
    assert "etcd_cluster_scope = modul is not known: choose one of function, class, module, package, session" in said


WAYS_TO_LEAVE_IT = {
    "a failing test": "assert False",
    "a frozen member": "etcd_cluster.members[0].pause()",
    "a killed member": "etcd_cluster.members[0].kill()",
    "purged": "etcd_cluster.purge()",
    "down": "etcd_cluster.down()",
    "record lost": "(etcd_cluster.store.cluster_dir('quick') / 'cluster.json').unlink()",
    "record damaged": "(etcd_cluster.store.cluster_dir('quick') / 'cluster.json').write_text('{')",
    "exit": "pytest.exit('enough')",
    "interrupt": "raise KeyboardInterrupt",
}


@on_processes
def test_it_is_gone_whatever_was_done_to_it(pytester: pytest.Pytester, etcd_cluster_runtime: str) -> None:
    """After a failing test, and whatever a test did to members or record, the cluster is stopped and deleted."""
    pytester.makeconftest(QUICK.format(scope="function", runtime=etcd_cluster_runtime))
    ways = {name: way for name, way in WAYS_TO_LEAVE_IT.items() if name not in ("exit", "interrupt")}
    pytester.makepyfile(
        "\n".join(f"def test_{number}(etcd_cluster):\n    {way}\n" for number, way in enumerate(ways.values()))
    )
    _run(pytester).assert_outcomes(passed=len(ways) - 1, failed=1)


@pytest.mark.parametrize("way", [pytest.param("exit", marks=on_processes), "interrupt"])
def test_it_is_gone_when_the_run_is_cut_short(pytester: pytest.Pytester, etcd_cluster_runtime: str, way: str) -> None:
    """Ctrl-C in a test, and pytest.exit, end the cluster too."""
    pytester.makeconftest(QUICK.format(scope="session", runtime=etcd_cluster_runtime))
    pytester.makeini("[pytest]\netcd_cluster_scope = session\n")
    pytester.makepyfile(f"import pytest\n\ndef test_it(etcd_cluster):\n    {WAYS_TO_LEAVE_IT[way]}\n")
    assert _run(pytester).ret == pytest.ExitCode.INTERRUPTED


def test_a_start_that_fails_halfway_leaves_nothing(pytester: pytest.Pytester, etcd_cluster_runtime: str) -> None:
    """When one of the members dies at its start, the test fails at its setup with that member's words."""
    pytester.makeconftest(RUNTIME.format(scope="function", runtime=etcd_cluster_runtime))
    pytester.makepyfile(
        """
        import pytest
        from etcdops import ClusterSpec, MemberSpec, Timing, Tls
        from trustme import CA

        @pytest.fixture
        def etcd_cluster_spec(tmp_path):
            ca = CA()
            issued = ca.issue_cert("127.0.0.1")
            ca.cert_pem.write_to_path(tmp_path / "ca")
            issued.private_key_pem.write_to_path(tmp_path / "key")
            issued.cert_chain_pems[0].write_to_path(tmp_path / "cert")
            (tmp_path / "garbage").write_text("garbage")
            ca, cert, key, garbage = (str(tmp_path / name) for name in ("ca", "cert", "key", "garbage"))
            members = (MemberSpec("good", cert=cert, key=key), MemberSpec("bad", cert=garbage, key=garbage))
            return ClusterSpec("half", members, timing=Timing(10, 100), tls=Tls(ca, cert, key))

        def test_it(etcd_cluster):
            pass
        """
    )
    result = _run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*MemberFailed: member bad died:*"])


def test_what_cannot_be_created_is_an_error_at_setup(pytester: pytest.Pytester) -> None:
    """A wish that is refused is said before anything runs."""
    pytester.makepyfile(
        """
        import pytest
        from etcdops import ClusterSpec

        @pytest.fixture
        def etcd_cluster_spec(tmp_path):
            return ClusterSpec.of_size("lab", 1, etcd_bin=str(tmp_path))

        def test_it(etcd_cluster):
            pass
        """
    )
    result = _run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*etcdops.errors.BinaryError: *"])


@on_processes
def test_no_warnings_are_caused(pytester: pytest.Pytester, etcd_cluster_runtime: str) -> None:
    """In a suite that turns warnings into errors, the fixture is none: nothing is left open or unreaped."""
    pytester.makeconftest(QUICK.format(scope="function", runtime=etcd_cluster_runtime))
    pytester.makepyfile(
        """
        import gc

        def test_it(etcd_cluster):
            etcd_cluster.client().put("k", "v")
            etcd_cluster.status()
            etcd_cluster.down()
            etcd_cluster.up()

        def test_after():
            gc.collect()
        """
    )
    _run(pytester, "-W", "error").assert_outcomes(passed=2)
