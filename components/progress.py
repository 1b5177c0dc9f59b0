"""Progress for people: a bar on a terminal, a plain line every few seconds elsewhere.

Everything goes to stderr, so a command's own output stays clean.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

LINE_EVERY_S = 5.0
"""Seconds between two plain lines where there is no terminal (a pod's log, CI)."""


def track(iterable: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Yield the items unchanged while showing how many of `total` have passed."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from _bar(iterable, total, label, console)
    else:
        yield from _lines(iterable, total, label)


def _bar(iterable: Iterable[T], total: int, label: str, console: Console) -> Iterator[T]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as progress:
        yield from progress.track(iterable, total=total, description=label)


def _lines(iterable: Iterable[T], total: int, label: str) -> Iterator[T]:
    """The first line comes after `LINE_EVERY_S`, so a short job says only that it is done."""
    start = last = time.monotonic()
    done = 0
    for item in iterable:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= LINE_EVERY_S:
            last = now
            sys.stderr.write(f"{label}: {done}/{total}\n")
            sys.stderr.flush()
    sys.stderr.write(f"{label}: {done}/{total}, done in {time.monotonic() - start:.1f} s\n")
    sys.stderr.flush()
