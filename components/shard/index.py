"""DALI's text index `v1.2` beside each tar: where every member's bytes lie.

v1.2 <samples>
<ext> <offset> <size> <member name> <ext> <offset> <size> <member name> ...   one line a sample
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_VERSION = "v1.2"


@dataclass(frozen=True, slots=True)
class Entry:
    """One member: its extension, the offset and size of its content in bytes, its full name."""

    ext: str
    offset: int
    size: int
    name: str


def render(samples: Sequence[Sequence[Entry]]) -> bytes:
    """The index of a tar that holds these samples in this order.

    Raises:
        ValueError: A name that the format cannot express.
    """
    lines = [f"{_VERSION} {len(samples)}"]
    for sample in samples:
        for entry in sample:
            if not entry.name or any(mark.isspace() for mark in entry.name):
                raise ValueError(
                    f"{entry.name!r}: an index cannot hold a member name with white space, "
                    "expected none; rename the sample"
                )
        lines.append(" ".join(f"{e.ext} {e.offset} {e.size} {e.name}" for e in sample))
    return ("\n".join(lines) + "\n").encode()


def parse(data: bytes, *, where: str) -> list[list[Entry]]:
    """Read back what `render` wrote; `where` names the file in errors.

    Raises:
        ValueError: Not such an index; names the line.
    """
    lines = data.decode("utf-8", "replace").splitlines()
    head = lines[0].split() if lines else []
    if len(head) != 2 or head[0] != _VERSION or head[1] != str(len(lines) - 1):
        raise ValueError(
            f"{where} line 1: found {' '.join(head)!r} above {max(len(lines) - 1, 0)} lines, "
            f"expected '{_VERSION} <number of lines>'; delete it and run the shard step again"
        )
    samples = []
    for number, line in enumerate(lines[1:], start=2):
        words = line.split(" ")
        fields = [words[start : start + 4] for start in range(0, len(words), 4)]
        if any(len(four) != 4 or not (four[1] + four[2]).isdecimal() for four in fields):
            raise ValueError(
                f"{where} line {number}: found {line[:80]!r}, expected '<ext> <offset> <size> "
                "<name>' for each member; delete it and run the shard step again"
            )
        samples.append([Entry(ext, int(at), int(size), name) for ext, at, size, name in fields])
    return samples
