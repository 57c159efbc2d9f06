"""What the rules of the revision witness find, and how it becomes one check."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

__all__ = ["RULES", "Finding", "Findings"]

#: The rules of the revision witness, in the order in which findings are told.
RULES = {
    "W0": "the log is complete",
    "W1": "each revision has one owner",
    "W2": "replay gives every answer",
    "W3": "revisions respect real time",
    "W4": "serializable reads are of one state and never go back",
}

_KEPT = 5


class Finding(NamedTuple):
    """A breach of a rule, and where: the operations by their ids, and the revision or 0."""

    rule: str
    text: str
    operations: tuple[int, ...] = ()
    revision: int = 0


class Findings:
    """Collects breaches, of which it keeps the first few of each rule, and doubts, all of them counted."""

    def __init__(self) -> None:
        self.kept: list[Finding] = []
        self.doubts: list[str] = []
        self.counts: Counter[str] = Counter()

    def add(self, rule: str, text: str, operations: tuple[int, ...] = (), revision: int = 0) -> None:
        """Take a breach."""
        self.counts[rule] += 1
        if self.counts[rule] <= _KEPT:
            self.kept.append(Finding(rule, text, operations, revision))

    def full(self, rule: str) -> bool:
        """Tell whether further breaches of a rule are only counted."""
        return self.counts[rule] >= _KEPT

    def doubt(self, text: str) -> None:
        """Take a reason for which the check cannot pass."""
        self.doubts.append(text)

    def text(self) -> str:
        """Give all breaches in words, rule by rule."""
        parts = []
        for rule, words in RULES.items():
            if not self.counts[rule]:
                continue
            shown = [found.text for found in self.kept if found.rule == rule][:_KEPT]
            more = f"; and {self.counts[rule] - len(shown)} more" if self.counts[rule] > len(shown) else ""
            parts.append(f"{rule} ({words}) is broken: {'; '.join(shown)}{more}")
        return ". ".join(parts)
