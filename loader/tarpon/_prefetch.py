"""Fills a cache with remote shards before a run wants them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from tarpon import _core
from tarpon._shards import Shards
from tarpon.dataset import Dataset, open
from tarpon.errors import StoreError
from tarpon.store import Store

_AT_ONCE = 32
_ASKED_AHEAD = 4 * _AT_ONCE


def prefetch(
    shards: Shards,
    *,
    cache_dir: str | os.PathLike[str],
    cache_bytes: int | None = None,
    store: Store | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Put remote shards and their indexes into a cache, those parts that are not there.

        tarpon.prefetch("s3://photos/flowers/v3/train.json", cache_dir="/nvme/tarpon")

    Can be interrupted and run again: what is there stays. Local shards are passed over.

    Args:
        shards: As for a `Loader`, but for an opened dataset.
        cache_dir, cache_bytes: The folder, and the most it may hold in bytes, as for a `Loader`.
        store: How to reach the shards; ``None``: as the environment says.
        progress: Called with the bytes looked at so far and all there are, now and then.

    Returns:
        The bytes that were fetched.

    Raises:
        StoreError: A shard cannot be read, or the folder not be written.
    """
    dataset = open(shards, store=store, cache_dir=cache_dir, cache_bytes=cache_bytes)
    sizes = dataset.remote_sizes()
    total, seen, fetched = sum(sizes.values()), 0, 0
    if cache_bytes is not None and total > cache_bytes:
        raise StoreError(
            f"{os.fspath(cache_dir)}: {total} bytes of shards, expected no more than "
            f"cache_bytes={cache_bytes}; raise it, or prefetch fewer shards"
        )
    with ThreadPoolExecutor(_AT_ONCE, "tarpon-prefetch") as pool:
        running: deque[tuple[Future[bool], int]] = deque()
        try:
            for shard, block, size in _blocks(sizes):
                running.append((pool.submit(dataset.fill, shard, block), size))
                if len(running) >= _ASKED_AHEAD:
                    seen, fetched = _one_done(running, seen, fetched)
                    _check(dataset)
                    if progress:
                        progress(seen, total)
            while running:
                seen, fetched = _one_done(running, seen, fetched)
                _check(dataset)
                if progress:
                    progress(seen, total)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return fetched


def _blocks(sizes: dict[int, int]) -> Iterator[tuple[int, int, int]]:
    """(shard, block, bytes) of every block there is."""
    for shard, size in sizes.items():
        for block in range(-(-size // _core.CACHE_BLOCK)):
            yield shard, block, min(_core.CACHE_BLOCK, size - block * _core.CACHE_BLOCK)


def _one_done(running: deque[tuple[Future[bool], int]], seen: int, fetched: int) -> tuple[int, int]:
    future, size = running.popleft()
    return seen + size, fetched + (size if future.result() else 0)


def _check(dataset: Dataset) -> None:
    trouble = dataset.cache_trouble()
    if trouble:
        raise StoreError(f"{trouble}; make room, or choose another cache_dir")
