"""Versions of etcd: what is known to be wrong with each, and which features it has.

The facts are data, in `versions.toml`. It is read when first asked for, because parsing it costs more than `ctl` or a
start from a warm cache may spend.

    >>> [row.code for row in findings("3.5.1") if row.severity == "unsafe"]
    ['etcd-13766', 'etcd-14733', 'etcd-14370', 'etcd-17780']
    >>> supports("3.5.16", "bump_revision"), supports("3.5.1", "bump_revision")
    (True, False)
"""

from __future__ import annotations

import os
import sys

from etcdops.errors import Refused, SpecError

TYPE_CHECKING = False  # `typing` itself is not imported: it costs as much as all the rest of this module
if TYPE_CHECKING:
    from collections.abc import Set
    from typing import Any

__all__ = [
    "CURRENT",
    "KnownBad",
    "Version",
    "broken_by",
    "features",
    "findings",
    "is_unsafe",
    "parse_version",
    "recommended",
    "refuse_known_bad",
    "supports",
]

#: The release that is fetched when no version is asked for.
CURRENT = "3.5.33"

#: No row that is "unsafe" reaches this version or a later one (a test holds this against the data), so that a start
#: from a warm cache need not read the data at all.
_SAFE_FROM = (3, 5, 14)

_DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "versions.toml")


class Version(tuple[int, int, int]):
    """A version of etcd, ordered: major, minor, patch. `str(version)` is "3.5.16"."""

    __slots__ = ()

    @property
    def series(self) -> tuple[int, int]:
        """Major and minor: what etcd's compatibility rules go by."""
        return self[0], self[1]

    def __str__(self) -> str:
        return f"{self[0]}.{self[1]}.{self[2]}"

    def __repr__(self) -> str:
        return f"Version({self!s})"


class KnownBad:
    """One thing that is known to be wrong with some released versions.

    `code` names it for good ("etcd-13766"). `affected` are half-open ranges (from, below). `condition` says when it
    strikes, `needs` which part of that can be looked at: "auth", "tls", "single-member", "voter-down",
    "unstarted-learner", "compact-to-newest". `effect` says what happens then. `fixed_in` are the first versions without
    it, `source` is where this is known from. `severity` is "unsafe" where members that crash or restart lose or diverge
    data, "warn" otherwise.
    `operations` are those that it spoils when `condition` holds: "defrag", "compact", "member.add",
    "member.promote", "member.update", "member.remove", "snapshot.restore", "auth.enable", "force-new-cluster",
    "upgrade.3.6", "upgrade.3.7". `seen_as` are words in which a drill's checks tell of it.
    """

    __slots__ = (
        "affected",
        "code",
        "condition",
        "effect",
        "fixed_in",
        "needs",
        "operations",
        "seen_as",
        "severity",
        "source",
    )

    def __init__(
        self,
        *,
        code: str,
        affected: tuple[tuple[Version, Version], ...],
        condition: str,
        effect: str,
        fixed_in: tuple[Version, ...],
        source: str,
        severity: str,
        operations: tuple[str, ...],
        needs: tuple[str, ...] = (),
        seen_as: tuple[str, ...] = (),
    ) -> None:
        self.code = code
        self.affected = affected
        self.condition = condition
        self.effect = effect
        self.fixed_in = fixed_in
        self.source = source
        self.severity = severity
        self.operations = operations
        self.needs = needs
        self.seen_as = seen_as

    def affects(self, version: Version | str) -> bool:
        """Say whether `version` lies in one of the affected ranges."""
        version = _version(version)
        return any(first <= version < below for first, below in self.affected)

    def __str__(self) -> str:
        return f"{self.effect} (when: {self.condition}; fixed in {', '.join(map(str, self.fixed_in))}; {self.source})"

    def __repr__(self) -> str:
        return f"KnownBad({self.code!r})"


class _Data:
    """The content of versions.toml. A feature is (since, until or None)."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.known_bad = tuple(
            KnownBad(
                code=row["code"],
                affected=tuple((parse_version(first), parse_version(below)) for first, below in row["affected"]),
                condition=row["condition"],
                effect=row["effect"],
                fixed_in=tuple(map(parse_version, row["fixed_in"])),
                source=row["source"],
                severity=row["severity"],
                operations=tuple(row["operations"]),
                needs=tuple(row.get("needs", ())),
                seen_as=tuple(row.get("seen_as", ())),
            )
            for row in document["known_bad"]
        )
        self.features = {
            name: (
                tuple(map(parse_version, row["since"])),
                parse_version(row["until"]) if "until" in row else None,
            )
            for name, row in document["features"].items()
        }
        self.recommended = tuple(map(parse_version, document["recommended"]))


_loaded: _Data | None = None


def parse_version(text: str) -> Version:
    """Give the version that `text` names: "3.5.16", "v3.5.16", "3.5.16+dfsg", "3.6.0-rc.3".

    What follows the three numbers is dropped: builds of distributions append to them, and a release candidate shares
    its release's features and most of its faults. Raises SpecError when there are not three numbers.
    """
    core = text.strip()
    core = core[1:] if core[:1] in ("v", "V") else core
    for mark in "-+~":
        core = core.partition(mark)[0]
    parts = core.split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) <= 6 for part in parts):
        raise SpecError(
            f"{text!r} is not a version of etcd: three numbers are expected",
            remedy=f"Give a version such as {CURRENT}.",
        )
    major, minor, patch = map(int, parts)
    return Version((major, minor, patch))


def findings(version: Version | str, *, excluded: Set[str] = frozenset()) -> tuple[KnownBad, ...]:
    """Give everything that is known to be wrong with `version`, what is unsafe first.

    Rows that need what is `excluded` (see `KnownBad.needs`) are left out: they cannot strike.
    """
    version = _version(version)
    return tuple(row for row in _data().known_bad if row.affects(version) and excluded.isdisjoint(row.needs))


def broken_by(version: Version | str, operation: str, *, excluded: Set[str] = frozenset()) -> tuple[KnownBad, ...]:
    """Give the rows that spoil `operation` (see KnownBad) on `version`, save those that need what is `excluded`."""
    return tuple(row for row in findings(version, excluded=excluded) if operation in row.operations)


def refuse_known_bad(
    version: Version | str, operation: str, *, allow: bool = False, excluded: Set[str] = frozenset()
) -> None:
    """Raise Refused if `version` spoils `operation`, with what would happen and when; not if that is allowed.

    Rows that need what is `excluded` do not count: `etcdops.checks.excluded` gives what the facts rule out.
    """
    rows = () if allow else broken_by(version, operation, excluded=excluded)
    if rows:
        raise Refused(
            f"{operation} is not safe on etcd {_version(version)}: " + "; ".join(f"[{row.code}] {row}" for row in rows),
            remedy=f"etcd {recommended(version)} is without it. --allow-known-bad goes on all the same.",
        )


def recommended(version: Version | str) -> Version:
    """Give the release that members of `version` should be at: of the same minor, or of the next that is supported."""
    version = _version(version)
    floors = _data().recommended
    return next((floor for floor in floors if floor.series >= version.series), floors[-1])


def is_unsafe(version: Version | str) -> bool:
    """Say whether members of `version` can lose or diverge data when they crash."""
    version = _version(version)
    return version < _SAFE_FROM and any(row.severity == "unsafe" for row in findings(version))


def supports(version: Version | str, feature: str) -> bool:
    """Say whether `version` has `feature`, a name from `features()`; raise KeyError for any other name.

    A feature that came in patches of several minors is in a minor from that minor's own patch on, and in every minor
    after the last that is listed.
    """
    version = _version(version)
    try:
        since, until = _data().features[feature]
    except KeyError:
        raise KeyError(f"no feature {feature!r}: there are {', '.join(features())}") from None
    starts = [start for start in since if start.series <= version.series]
    return bool(starts) and version >= max(starts) and (until is None or version < until)


def features() -> tuple[str, ...]:
    """Give the names that `supports` knows."""
    return tuple(_data().features)


def _version(version: Version | str) -> Version:
    return parse_version(version) if isinstance(version, str) else version


def _data() -> _Data:
    global _loaded
    if _loaded is None:
        from importlib import import_module

        # By name, because the type checker, which looks at the oldest Python that we support, knows neither module.
        toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
        with open(_DATA, "rb") as file:
            _loaded = _Data(toml.load(file))
    return _loaded
