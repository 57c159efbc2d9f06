"""What is said of a lost quorum: who is furthest, and what may be lost, by the arithmetic of quorums alone."""

from __future__ import annotations

import pytest

from etcdops.snapshots.recovering import Survey, Voter, may_be_lost

_LOST = Voter("ironman", "lost", "is lost")
_THOR = Voter("thor", "answers", "answers, and has applied revision 7", 7, 9, 2)


def test_the_furthest_is_taken_and_of_two_that_are_as_far_the_one_that_answers() -> None:
    """What a member has applied is committed, so the one that is furthest has all that the others have applied."""
    behind = Voter("hulk", "answers", "", 6, 99, 9)
    assert Survey((behind, _THOR)).best == _THOR
    file = Voter("wasp", "database", "", 7, 10, 3)
    assert Survey((file, _THOR)).best == _THOR
    ahead = file._replace(revision=8)
    assert Survey((_THOR, ahead)).best == ahead
    assert Survey((_LOST,)).best is None


@pytest.mark.parametrize(("voters", "lost", "quorum"), [(1, 1, 1), (3, 2, 2), (5, 3, 3), (4, 2, 3), (6, 3, 4)])
def test_what_may_be_lost(voters: int, lost: int, quorum: int) -> None:
    """Where those that are gone are a quorum, nobody can tell; where they are fewer, a log that is left has it all."""
    gone = tuple(_LOST._replace(name=f"gone{i}") for i in range(lost))
    there = tuple(_THOR._replace(name=f"there{i}") for i in range(voters - lost))
    found = Survey((*there, *gone))
    assert found.needed == quorum
    said = may_be_lost(found, _THOR, 7)
    assert ("nothing here can tell" in said) == (lost >= quorum)
    assert ("at least one of the" in said) == (lost < quorum)
    assert "after revision 7 may be lost" in said
    assert "write-ahead log" not in said


def test_what_a_database_file_lacks_is_said() -> None:
    """The tail of the log; and who is known to have been further than what is taken."""
    ahead = _LOST._replace(name="hulk", revision=9)
    source = _THOR._replace(kind="database")
    said = may_be_lost(Survey((source, ahead, _LOST)), source, 7)
    assert "write-ahead log alone" in said
    assert "hulk had been seen further: that is lost for certain" in said
