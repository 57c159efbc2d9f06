"""Checks: pure functions from what was recorded and observed to a `Check`, one family a file.

A check that could not look says "inconclusive"; only one that looked, and found what etcd promises, says "passed".
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Check", "Result"]

Result = Literal["passed", "failed", "inconclusive"]


class Check(msgspec.Struct, frozen=True):
    """The outcome of one check; `detail` says in a sentence or two what was looked at and what was found."""

    name: str
    result: Result
    detail: str
