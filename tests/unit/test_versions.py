"""What is known about versions of etcd, and how versions are read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from etcdops import versions
from etcdops.errors import Refused, SpecError
from etcdops.versions import (
    CURRENT,
    KnownBad,
    Version,
    broken_by,
    findings,
    is_unsafe,
    parse_version,
    recommended,
    refuse_known_bad,
    supports,
)

ROWS: tuple[KnownBad, ...] = versions._data().known_bad
OPERATIONS = {
    "auth.enable",
    "compact",
    "defrag",
    "force-new-cluster",
    "member.add",
    "member.promote",
    "member.remove",
    "member.update",
    "snapshot.restore",
    "upgrade.3.6",
    "upgrade.3.7",
}


def row(code: str) -> KnownBad:
    return next(row for row in ROWS if row.code == code)


def before(version: Version) -> Version | None:
    """Give the release before `version` in its minor."""
    return Version((*version.series, version[2] - 1)) if version[2] else None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3.5.16", (3, 5, 16)),
        ("v3.5.16", (3, 5, 16)),
        (" 3.4.0\n", (3, 4, 0)),
        ("3.6.0-rc.3", (3, 6, 0)),
        ("3.7.0-alpha.0", (3, 7, 0)),
        ("3.5.16+dfsg", (3, 5, 16)),
        ("3.5.16~rc1-2", (3, 5, 16)),
    ],
)
def test_parse(text: str, expected: tuple[int, int, int]) -> None:
    """Three numbers are read, with or without a v before and a suffix behind."""
    assert parse_version(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "v", "3", "3.5", "3.5.", "3.5.x", "3.5.1.2", "latest", "3.-5.1", "3.5.1 2", "vv3.5.1", "3.5.¹", "../3.5.1"],
)
def test_parse_refuses(text: str) -> None:
    """What is not three numbers is refused with what was given and an example."""
    with pytest.raises(SpecError, match="is not a version of etcd") as caught:
        parse_version(text)
    assert repr(text) in str(caught.value)
    assert CURRENT in caught.value.remedy


def test_order_and_text() -> None:
    """Versions are ordered by number, not by letter, and write themselves as etcd does."""
    assert parse_version("3.5.9") < parse_version("3.5.16") < parse_version("3.10.0")
    assert str(parse_version("v3.5.16-rc.1")) == "3.5.16"
    assert repr(Version((3, 5, 16))) == "Version(3.5.16)"


@pytest.mark.parametrize(
    ("code", "affected", "sound"),
    [
        ("etcd-13766", "3.5.0 3.5.1 3.5.2", "3.4.45 3.5.3 3.6.0"),
        ("etcd-14733", "3.5.0 3.5.5", "3.4.33 3.5.6"),
        ("etcd-14571", "3.4.20 3.4.21 3.5.5", "3.4.19 3.4.22 3.5.4 3.5.6"),
        ("etcd-14370", "3.3.27 3.4.20 3.5.0 3.5.4", "3.4.21 3.5.5"),
        ("etcd-13946", "3.5.3", "3.5.2 3.5.4"),
        ("etcd-11651", "3.3.20 3.4.7", "3.4.8 3.5.0"),
        ("etcd-17425", "3.4.30 3.5.12", "3.4.31 3.5.13 3.6.0"),
        ("etcd-17612", "3.4.30 3.5.12", "3.4.31 3.5.13 3.6.0"),
        ("etcd-17780", "3.4.31 3.5.13", "3.4.32 3.5.14 3.6.0"),
        ("etcd-15220", "3.4.23 3.4.24 3.5.1 3.5.7", "3.4.25 3.5.8 3.6.0"),
        ("etcd-15096", "3.4.23 3.5.6", "3.4.24 3.5.7 3.6.0"),
        ("etcd-18799", "3.5.16", "3.5.17 3.6.0"),
        ("etcd-19557", "3.5.1 3.5.19", "3.5.0 3.5.20 3.6.0"),
        ("etcd-20793", "3.5.20 3.5.23", "3.5.19 3.5.24"),
        ("etcd-20967", "3.5.25", "3.5.26 3.6.0"),
        ("etcd-20650", "3.4.37 3.5.22 3.6.0 3.6.4", "3.4.38 3.5.23 3.6.5"),
        ("etcd-20387", "3.6.0 3.6.3", "3.5.33 3.6.4"),
        ("etcd-20896", "3.5.24 3.6.5", "3.5.25 3.6.6"),
        ("etcd-20339", "3.5.21 3.6.0", "3.5.22 3.6.1"),
        ("etcd-20874", "3.5.27 3.6.5", "3.5.28 3.6.6"),
        ("etcd-20418", "3.4.41 3.5.16 3.5.27 3.6.8", "3.4.42 3.5.28 3.6.9 3.7.0"),
        ("cve-2026-33413", "3.4.41 3.5.27 3.6.8", "3.4.42 3.5.28 3.6.9"),
        ("etcd-21516", "3.4.42 3.5.28 3.6.9", "3.4.41 3.4.43 3.5.27 3.5.29 3.6.8 3.6.10"),
        ("cve-2026-44283", "3.4.43 3.5.29 3.6.10", "3.4.44 3.5.30 3.6.11"),
        ("etcd-21667", "3.5.29 3.6.10", "3.5.30 3.6.11"),
        ("etcd-21694", "3.5.30 3.6.11", "3.5.31 3.6.12"),
        ("etcd-3.7-upgrade", "3.6.10", "3.5.33 3.6.11"),
        ("ghsa-6vch", "3.5.32 3.6.13 3.7.0", "3.5.33 3.6.14 3.7.1"),
        ("ghsa-xg4h", "3.5.32 3.6.13 3.7.0", "3.5.33 3.6.14 3.7.1"),
        ("etcd-18667", "3.5.33 3.6.14", "3.7.0"),
        ("etcd-3.4-eol", "3.4.45 3.3.0", "3.5.0"),
        ("etcd-13196", "3.5.0", "3.5.1"),
    ],
)
def test_ranges(code: str, affected: str, sound: str) -> None:
    """Each row begins and ends where its source says: the last bad and the first good release of each minor."""
    found = row(code)
    for version in affected.split():
        assert found.affects(version), version
        assert found in findings(version)
    for version in sound.split():
        assert not found.affects(version), version
        assert found not in findings(version)


def test_every_row_is_tested() -> None:
    """A row that is added to the data needs its boundaries in the test above."""
    marks = next(mark for mark in test_ranges.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    assert {case[0] for case in marks.args[1]} == {found.code for found in ROWS}


@pytest.mark.parametrize("found", ROWS, ids=lambda found: found.code)
def test_rows_are_sound(found: KnownBad) -> None:
    """Ranges are not empty and end at a fix; severity and operations are of the known words."""
    assert found.severity in ("unsafe", "warn")
    assert set(found.operations) <= OPERATIONS
    conditions = {"auth", "tls", "single-member", "voter-down", "unstarted-learner", "compact-to-newest"}
    assert set(found.needs) <= conditions
    assert ("auth is on" in found.condition) is ("auth" in found.needs)
    assert all((found.condition, found.effect, found.source, found.fixed_in, found.affected))
    for first, below in found.affected:
        assert first < below
        assert before(below) is None or found.affects(before(below) or first)
        assert not found.affects(below)
    if found.code != "etcd-3.4-eol":
        assert [below for _, below in found.affected] == list(found.fixed_in)
    assert found.effect in str(found)
    assert found.source in str(found)


def test_codes_are_unique() -> None:
    """A code names one row."""
    assert len({found.code for found in ROWS}) == len(ROWS)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("3.4.7", True),
        ("3.4.23", True),
        ("3.4.31", True),
        ("3.4.32", False),
        ("3.5.0", True),
        ("3.5.2", True),
        ("3.5.5", True),
        ("3.5.6", True),
        ("3.5.13", True),
        ("3.5.14", False),
        ("3.5.16", False),
        ("3.5.30", False),
        (CURRENT, False),
        ("3.6.0", False),
        ("3.7.1", False),
        ("9.0.0", False),
    ],
)
def test_unsafe(version: str, expected: bool) -> None:
    """Unsafe is what loses or diverges data when members crash."""
    assert is_unsafe(version) is expected
    assert is_unsafe(parse_version(version)) is expected


def test_no_unsafe_row_reaches_the_short_cut() -> None:
    """is_unsafe reads no data from one version on, which no unsafe row may reach."""
    assert all(
        below <= versions._SAFE_FROM for found in ROWS if found.severity == "unsafe" for _, below in found.affected
    )


def test_unsafe_comes_first() -> None:
    """Findings begin with what is unsafe, so that a caller that shows a few shows those."""
    severities = [found.severity for found in findings("3.5.1")]
    assert severities == sorted(severities, key=["unsafe", "warn"].index)
    assert "unsafe" in severities
    assert "warn" in severities


def test_current_release() -> None:
    """The release that is fetched by default has no finding but the one that no 3.5 release is without."""
    assert [found.code for found in findings(CURRENT)] == ["etcd-18667"]


@pytest.mark.parametrize(
    ("version", "operation", "codes"),
    [
        ("3.5.1", "defrag", ["etcd-14733", "etcd-20650"]),
        ("3.5.22", "defrag", ["etcd-20650"]),
        ("3.5.23", "defrag", []),
        ("3.5.30", "member.update", ["etcd-21694"]),
        ("3.5.25", "upgrade.3.6", ["etcd-20967"]),
        ("3.5.26", "upgrade.3.6", []),
    ],
)
def test_broken_operations(version: str, operation: str, codes: list[str]) -> None:
    """An operation's gate finds the rows that name it."""
    assert [found.code for found in broken_by(version, operation)] == codes


@pytest.mark.parametrize(
    ("feature", "present", "absent"),
    [
        ("learners", "3.4.0 3.5.1 3.7.1", "3.3.27"),
        ("max_learners", "3.6.0 3.7.0", "3.5.33"),
        ("learner_snapshot", "3.4.28 3.5.0 3.6.0", "3.4.27"),
        ("member_promote_json", "3.5.20 3.6.0", "3.5.19 3.4.45"),
        ("member_add_with_one_down", "3.5.30 3.6.11 3.7.0", "3.5.29 3.6.0 3.6.10 3.4.45"),
        ("serializable_member_list", "3.6.0", "3.5.33"),
        ("etcdutl", "3.5.0 3.7.1", "3.4.45"),
        ("etcdutl_backup", "3.5.0 3.5.33", "3.4.45 3.6.0"),
        ("etcdutl_check_v2store", "3.5.18 3.5.33", "3.5.17 3.6.0 3.7.1"),
        ("etcdutl_hashkv", "3.6.0", "3.5.33"),
        ("etcdutl_migrate", "3.6.0", "3.5.33"),
        ("etcdutl_timeout", "3.7.0", "3.6.14"),
        ("etcdctl_snapshot_restore", "3.4.45 3.5.33", "3.6.0"),
        ("etcdctl_defrag_data_dir", "3.5.33", "3.6.0"),
        ("bump_revision", "3.4.27 3.5.10 3.6.0 3.7.1", "3.4.26 3.5.0 3.5.9"),
        ("restore_trims_members", "3.5.0", "3.4.45"),
        ("livez_readyz", "3.4.29 3.5.11 3.6.0", "3.4.28 3.5.0 3.5.10"),
        ("readyz_non_learner", "3.5.19 3.6.0", "3.4.45 3.5.18"),
        ("compact_hash_check", "3.5.5 3.6.0", "3.5.4 3.4.45"),
        ("initial_corrupt_check", "3.3.0 3.7.1", "3.2.32"),
        ("alarms_combine", "3.6.0 3.7.1", "3.4.45 3.5.33"),
        ("stop_grpc_on_defrag", "3.5.14 3.6.0", "3.5.13"),
        ("feature_gates", "3.6.0 3.7.1", "3.5.33"),
        ("experimental_flags", "3.4.45 3.6.14", "3.7.0"),
        ("status_storage_version", "3.6.0", "3.5.33"),
        ("status_quota", "3.6.0", "3.5.33"),
        ("status_quota_right", "3.6.6 3.7.0", "3.6.5"),
        ("downgrade", "3.6.0", "3.5.33"),
        ("next_cluster_version_compatible", "3.4.32 3.4.45", "3.4.31 3.5.0"),
        ("client_api_on_peer_port", "3.5.33", "3.6.0"),
        ("auth_status_without_login", "3.7.0", "3.6.14"),
        ("unix_sockets", "3.7.0", "3.6.14"),
        ("range_stream", "3.7.0", "3.6.14"),
    ],
)
def test_features(feature: str, present: str, absent: str) -> None:
    """Each feature begins, and ends, where its source says."""
    assert [version for version in present.split() if not supports(version, feature)] == []
    assert [version for version in absent.split() if supports(version, feature)] == []


def test_every_feature_is_tested() -> None:
    """A feature that is added to the data needs its boundaries in the test above."""
    marks = next(mark for mark in test_features.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    assert {case[0] for case in marks.args[1]} == set(versions.features())


def test_unknown_feature() -> None:
    """A misspelt feature is a mistake in the program, and never "not supported"."""
    with pytest.raises(KeyError, match=r"no feature 'livez'.*livez_readyz"):
        supports("3.5.1", "livez")


def test_data_is_read_late() -> None:
    """Importing the module and asking whether a current version is unsafe reads no data: `ctl` passes here."""
    program = (
        "import sys; from etcdops import versions; versions.is_unsafe('3.5.33'); versions.parse_version('3.5.1')\n"
        "assert versions._loaded is None and 'tomllib' not in sys.modules and 'tomli' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True, timeout=60)


@pytest.mark.parametrize(
    ("version", "operation", "excluded", "codes"),
    [
        ("3.5.1", "defrag", frozenset(), ["etcd-14733", "etcd-20650"]),
        ("3.5.1", "member.add", frozenset(), ["etcd-21667"]),
        ("3.5.1", "member.add", frozenset({"voter-down"}), []),
        ("3.5.16", "member.promote", frozenset({"voter-down"}), ["etcd-20874"]),
        ("3.5.16", "member.promote", frozenset({"auth"}), []),
        ("3.4.23", "member.promote", frozenset({"auth"}), ["etcd-15096"]),
        ("3.4.23", "member.promote", frozenset({"auth", "unstarted-learner"}), []),
        ("3.5.5", "snapshot.restore", frozenset({"single-member", "tls"}), ["etcd-14571"]),
        ("3.5.33", "defrag", frozenset(), []),
    ],
)
def test_operations_are_refused_on_known_bad_versions(
    version: str, operation: str, excluded: frozenset[str], codes: list[str]
) -> None:
    """The refusal has each row with its condition, and the flag; what cannot happen, or is allowed, is no reason."""
    assert [found.code for found in broken_by(version, operation, excluded=excluded)] == codes
    refuse_known_bad(version, operation, allow=True, excluded=excluded)
    if not codes:
        refuse_known_bad(version, operation, excluded=excluded)
        return
    with pytest.raises(Refused, match=f"{operation} is not safe on etcd {version}: ") as refused:
        refuse_known_bad(version, operation, excluded=excluded)
    for code in codes:
        assert f"[{code}] {row(code).effect} (when: {row(code).condition}" in str(refused.value)
    assert "--allow-known-bad" in refused.value.remedy
    assert str(recommended(version)) in refused.value.remedy
    assert refused.value.exit_code == 3


def test_what_is_excluded_is_not_found() -> None:
    """A condition that cannot hold takes its rows away, and no others."""
    everything = findings("3.5.1")
    without = findings("3.5.1", excluded=frozenset({"single-member"}))
    assert [found.code for found in everything if found not in without] == ["etcd-14370"]


@pytest.mark.parametrize(
    ("version", "floor"),
    [
        ("3.3.1", "3.5.33"),
        ("3.4.45", "3.5.33"),
        ("3.5.1", "3.5.33"),
        ("3.5.40", "3.5.33"),
        ("3.6.0", "3.6.14"),
        ("3.7.0", "3.7.1"),
        ("3.8.0", "3.7.1"),
    ],
)
def test_recommended(version: str, floor: str) -> None:
    """The release to be at is of the same minor, or of the next that is supported."""
    assert str(recommended(version)) == floor


def test_recommended_releases_have_no_fault_that_a_patch_mends() -> None:
    """What is known of a recommended release is mended in a later minor, or not at all; CURRENT is one of them."""
    floors = {recommended(version) for version in ("3.5.0", "3.6.0", "3.7.0")}
    for floor in floors:
        for found in findings(floor):
            assert all(fix.series > floor.series for fix in found.fixed_in), found.code
    assert parse_version(CURRENT) in floors
