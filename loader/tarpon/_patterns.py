"""Braces and globs in the names of shards, as text. Looks nothing up."""

from __future__ import annotations

import fnmatch
import re
from itertools import product

from tarpon._url import shown
from tarpon.errors import StoreError

_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
_GLOB = re.compile(r"[*?[]")
_MOST_SHARDS = 10_000_000


def is_glob(text: str) -> bool:
    return _GLOB.search(text) is not None


def literal_prefix(pattern: str) -> str:
    """What every name that matches begins with."""
    found = _GLOB.search(pattern)
    return pattern[: found.start()] if found else pattern


def matches(pattern: str, key: str) -> bool:
    """Whether a key matches as the path of a file would in a shell, and in `glob.glob`.

    ``*``, ``?`` and ``[...]`` stay within a segment and pass over names that begin with a dot;
    ``**`` is any number of segments.
    """
    return _matches(pattern.split("/"), key.split("/"))


def _matches(pattern: list[str], names: list[str]) -> bool:
    if not pattern:
        return not names
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        deeper = bool(names) and not names[0].startswith(".") and _matches(pattern, names[1:])
        return deeper or _matches(rest, names)
    if not names or (names[0].startswith(".") and not first.startswith(".") and is_glob(first)):
        return False
    fits = fnmatch.fnmatchcase(names[0], first) if is_glob(first) else names[0] == first
    return fits and _matches(rest, names[1:])


def expand_braces(text: str) -> list[str]:
    """``a-{0..1}-{x,y}.tar`` to four paths; no nesting."""
    pieces = _BRACES.split(text)  # text, body, text, body, ..., text
    if any("{" in piece or "}" in piece for piece in pieces):
        raise StoreError(
            f"{shown(text)}: unbalanced or nested braces, expected such as {{0000..0127}}"
        )
    choices = [
        _alternatives(piece) if number % 2 else [piece] for number, piece in enumerate(pieces)
    ]
    return ["".join(combination) for combination in product(*choices)]


def _alternatives(body: str) -> list[str]:
    numbers = _NUMBERS.fullmatch(body)
    if numbers is None and ".." in body:
        raise StoreError(f"{{{body}}}: expected a range of numbers such as {{0000..0127}}")
    if numbers is None:
        return body.split(",")
    low, high = numbers.groups()
    if int(high) < int(low) or int(high) - int(low) >= _MOST_SHARDS:
        raise StoreError(f"{{{body}}}: expected a rising range of at most {_MOST_SHARDS} shards")
    padded = any(end.startswith("0") and len(end) > 1 for end in (low, high))
    width = max(len(low), len(high)) if padded else 0
    return [str(number).zfill(width) for number in range(int(low), int(high) + 1)]
