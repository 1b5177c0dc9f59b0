"""Doing one thing to many items on threads, with the results in the items' order."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextlib.contextmanager
def in_order(
    do: Callable[[Item], Result], items: Iterable[Item], *, workers: int
) -> Iterator[Iterator[Result]]:
    """The results of `do`, item by item, made up to `2 * workers` ahead of who takes them.

    The first error comes out where its item's result would have; leaving the `with` block waits
    for what is being done and drops the rest.
    """
    rest = iter(items)
    pool = ThreadPoolExecutor(workers)

    def results() -> Iterator[Result]:
        waiting: deque[Future[Result]] = deque()
        while True:
            for item in itertools.islice(rest, 2 * workers - len(waiting)):
                waiting.append(pool.submit(do, item))
            if not waiting:
                return
            yield waiting.popleft().result()

    try:
        yield results()
    finally:
        pool.shutdown(cancel_futures=True)
