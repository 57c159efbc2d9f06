"""EDN, as far as Jepsen's histories go (https://github.com/edn-format/edn), read and written.

Lists, vectors and sets become tuples, so that every value can be a key. A keyword is a `str` that knows it is one, tags
(`#inst`, `#jepsen.history.Op`) are dropped and what they stand before is kept. The packages that read EDN take some 15
times as long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

__all__ = ["EdnError", "Keyword", "dumps", "read_values"]


class Keyword(str):
    """A keyword, without its colon; equal to the string of the same letters."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f":{self}"


class EdnError(ValueError):
    """A text is not EDN; `at` is where in it."""

    def __init__(self, what: str, at: int) -> None:
        super().__init__(what)
        self.at = at


_TOKEN = re.compile(
    r"""[\s,]+ | ;[^\n]*
    | (?P<open> \#\{ | [\[({] ) | (?P<close> [\])}] )
    | (?P<string> "(?:[^"\\]|\\.)*" )
    | (?P<discard> \#_ ) | (?P<tag> \#[^\s,\[\](){}"#;_][^\s,\[\](){}";]* ) | (?P<char> \\(?:[^\s,\[\](){}";]+|.) )
    | (?P<atom> [^\s,\[\](){}"\\;\#][^\s,\[\](){}";]* )""",
    re.VERBOSE | re.DOTALL,
)
_INTEGER = re.compile(r"[+-]?\d+N?")
_FLOAT = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?M?")
_CLOSES = {"[": "]", "(": ")", "{": "}", "#{": "}"}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_CHARS = {"newline": "\n", "space": " ", "tab": "\t", "return": "\r", "formfeed": "\f", "backspace": "\b"}
_DISCARD = object()


def read_values(text: str) -> Iterator[tuple[int, Any]]:
    """Give every value of a text, with where it begins. Raises EdnError where the text is no EDN."""
    atoms: dict[str, Any] = {}
    stack: list[tuple[str, int, list[Any]]] = []
    items: list[Any] = []
    at = began = 0
    match = _TOKEN.match
    while at < len(text):
        found = match(text, at)
        if found is None:
            raise EdnError(f"{text[at : at + 20]!r} cannot be read", at)
        kind, start, at = found.lastgroup, at, found.end()
        if kind is None or kind == "tag":
            continue
        token = found.group(kind)
        if not stack and not items:
            began = start
        if kind == "open":
            stack.append((token, start, items))
            items = []
            continue
        if kind == "discard":
            items.append(_DISCARD)
            continue
        if kind == "atom":
            value = atoms.get(token, _DISCARD)
            if value is _DISCARD:
                value = atoms[token] = _atom(token, start)
        elif kind == "close":
            if not stack or _CLOSES[stack[-1][0]] != token:
                raise EdnError(f"{token!r} closes nothing", start)
            opened, start, outer = stack.pop()
            if items and items[-1] is _DISCARD:
                raise EdnError("nothing follows #_", start)
            value = _collection(opened, items, start)
            items = outer
        elif kind == "string":
            value = _ESCAPE.sub(_unescaped, token[1:-1]) if "\\" in token else token[1:-1]
        else:
            value = _CHARS.get(token[1:], token[1:])
        if items and items[-1] is _DISCARD:
            items.pop()
        elif stack:
            items.append(value)
        else:
            yield began, value
    if stack:
        raise EdnError(f"{stack[-1][0]!r} is never closed", stack[-1][1])


def _unescaped(found: re.Match[str]) -> str:
    letter = found[1]
    return chr(int(letter[1:], 16)) if len(letter) == 5 else _ESCAPES.get(letter, letter)


def _collection(opened: str, items: list[Any], at: int) -> Any:
    if opened != "{":
        return tuple(items)
    if len(items) % 2:
        raise EdnError("a map has a key without a value", at)
    try:
        return dict(zip(items[::2], items[1::2], strict=True))
    except TypeError:
        raise EdnError("a map has a map for a key", at) from None


def _atom(token: str, at: int) -> Any:
    if token[0] == ":":
        return Keyword(token[1:])
    if token in ("nil", "true", "false"):
        return {"nil": None, "true": True, "false": False}[token]
    if _INTEGER.fullmatch(token):
        return int(token.rstrip("N"))
    if _FLOAT.fullmatch(token):
        return float(token.rstrip("M"))
    if token[0].isdigit() or (token[0] in "+-" and token[1:2].isdigit()):
        raise EdnError(f"{token!r} is no number", at)
    return Keyword(token)


def dumps(value: Any) -> str:
    """Give a value as EDN: a `Keyword` with its colon, another string in quotes, sequences as vectors."""
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Keyword):
        return f":{value}"
    if isinstance(value, str):
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + quoted.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{dumps(key)} {dumps(each)}" for key, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{' '.join(map(dumps, value))}]"
    raise TypeError(f"{value!r} has no form in EDN")
