"""The verdict of a run from its checks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from etcdops.verify import Check

__all__ = ["Verdict", "combine"]

#: What the checks of a run can say together. "aborted" and "stuck" are the engine's to say: no check has run then.
Verdict = Literal["passed", "deviated", "inconclusive"]


def combine(checks: Iterable[Check]) -> Verdict:
    """Give "deviated" if any check failed, else "inconclusive" if any was, or if there was none, else "passed"."""
    results = {check.result for check in checks}
    if "failed" in results:
        return "deviated"
    return "passed" if results == {"passed"} else "inconclusive"
