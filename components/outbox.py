"""Entries that wait to be sent, in order, in bounded memory; it does not know what they are.

    put --> [ memory, up to a limit ] --> head, drop
              ^ refilled from
            [ a temporary file, once memory is full ]

Nothing is thrown away: a server that is away for a day costs disk, not memory.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator
from typing import IO

MEMORY_BYTES = 32 << 20
_PER_LINE = 100
"""Bytes that a line takes beside its characters."""


class Outbox:
    """A queue of lines of text; whoever calls it holds a lock.

    Args:
        memory_bytes: What lies in memory at most; the rest lies in a file without a name.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._limit = memory_bytes
        self._lines: deque[str] = deque()
        self._held = 0
        self._file: IO[str] | None = None
        self._in_file = 0
        self._read_at = 0

    def __len__(self) -> int:
        return len(self._lines) + self._in_file

    def put(self, line: str) -> None:
        """Add a line, which holds no line break, at the end."""
        if self._in_file or self._held + len(line) + _PER_LINE > self._limit:
            if self._file is None:
                self._file = tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n")  # noqa: SIM115
            self._file.seek(0, 2)
            self._file.write(line + "\n")
            self._in_file += 1
        else:
            self._keep(line)

    def head(self, most: int) -> list[str]:
        """The first lines, `most` or fewer; they stay until `drop`."""
        if not self._lines:
            self._refill()
        return [line for line, _ in zip(self._lines, range(most), strict=False)]

    def drop(self, count: int) -> None:
        """Forget the first `count` lines, which `head` gave."""
        for _ in range(count):
            self._held -= len(self._lines.popleft()) + _PER_LINE

    def __iter__(self) -> Iterator[str]:
        """All lines, from the first on; nothing is forgotten."""
        yield from self._lines
        if self._in_file:
            assert self._file is not None
            self._file.seek(self._read_at)
            for _ in range(self._in_file):
                yield self._file.readline().removesuffix("\n")

    def close(self) -> None:
        """Give the file back, and with it what lies there."""
        if self._file is not None:
            self._file.close()
            self._file, self._in_file, self._read_at = None, 0, 0

    def _keep(self, line: str) -> None:
        self._lines.append(line)
        self._held += len(line) + _PER_LINE

    def _refill(self) -> None:
        """Bring lines back from the file until memory is half full; at least one, however long."""
        if not self._in_file:
            return
        assert self._file is not None
        self._file.seek(self._read_at)
        while self._in_file and (not self._lines or self._held < self._limit // 2):
            self._keep(self._file.readline().removesuffix("\n"))
            self._in_file -= 1
        self._read_at = self._file.tell()
        if not self._in_file:
            self.close()
