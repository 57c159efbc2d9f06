"""Numbers for keys and values, and the way back."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Numbers", "OwnNumbers", "Texts"]


class Numbers(dict[Any, int]):
    """Numbers whatever is looked up in it, from 0 on."""

    def __missing__(self, what: Any) -> int:
        number = self[what] = len(self)
        return number

    def of(self, many: Sequence[Any]) -> list[int]:
        """Give the numbers of many at once."""
        return [*map(self.__getitem__, many)]


class OwnNumbers(Numbers):
    """Numbers values as they are written; that of one of the run's own is in its text, which then is not kept."""

    #: The number of the own value 0; that of the value n is n less.
    FIRST = -10

    def __missing__(self, what: str) -> int:
        if _OWN(what):
            return self.FIRST - int(what[1:])
        return super().__missing__(what)

    def of(self, many: Sequence[str]) -> list[int]:
        """Give the numbers of many at once."""
        # Most are the run's own, and a look into this would find none of them.
        first, number = self.FIRST, self.__getitem__
        owns = _OWNS("\n".join(many))
        if len(owns) != len(many):
            # One of them has lines of its own, or there are none.
            return [*map(number, many)]
        return [first - int(own) if own else number(text) for own, text in zip(owns, many, strict=True)]


#: Tells whether a value is one of the run's own, whose number is in its text.
_OWN = re.compile("=[1-9][0-9]{0,16}").fullmatch

#: Gives of each line the number of the own value that it is; of another, and of an empty one, nothing.
_OWNS = re.compile("^(?:=([1-9][0-9]{0,16})$|.*$)", re.MULTILINE).findall


class Texts(Sequence[bytes]):
    """Values that are kept as text, if at all, by their numbers."""

    def __init__(self, texts: list[Any], read: Callable[[Any], bytes]) -> None:
        self._texts, self._read = texts, read

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, number: Any) -> Any:
        return self._read(self._texts[number] if number >= 0 else f"={OwnNumbers.FIRST - number}")
