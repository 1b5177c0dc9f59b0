"""The ceiling of reading over HTTP: libcurl's multi interface from C; see native/curl_multi.c."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import native
from benchmarks.data import DataSet
from benchmarks.measure import Epoch, Tally
from benchmarks.ranges import Arrivals, Range, ranges


def make(data: DataSet, *, connections: int, range_bytes: int, buffer_bytes: int) -> Epoch:
    """`buffer_bytes`: what libcurl reads from a socket at once."""
    parts = ranges(data, range_bytes)
    library = native.load("curl_multi", Path(data.root, ".."), "curl")
    library.fetch_open.restype = ctypes.c_void_p
    library.fetch_all.restype = ctypes.c_int64
    client = ctypes.c_void_p(
        library.fetch_open(ctypes.c_int(connections), ctypes.c_long(buffer_bytes))
    )
    if not client:
        raise OSError(f"libcurl refused a client of {connections} connections, expected one")
    slots = np.zeros(connections * range_bytes, np.uint8)
    wanted = _arguments(data, parts)

    def fetch(memory: Any, places: Any) -> int:
        received: int = library.fetch_all(
            client,
            *wanted,
            memory.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_uint64(range_bytes),
            places,
        )
        if received < 0:
            raise OSError("a request for the benchmark's own shards failed")
        return received

    def epoch(number: int, tally: Tally) -> None:
        arrivals = Arrivals(data, tally)
        if arrivals.held is None:
            arrivals.end(fetch(slots, None))
            return
        whole = np.zeros(len(parts) * range_bytes, np.uint8)
        firsts = range(0, whole.size, range_bytes)
        fetch(whole, (ctypes.c_uint64 * len(parts))(*firsts))
        taken = (
            arrivals.take(part.shard, part.offset, whole[first : first + part.size].data)
            for part, first in zip(parts, firsts, strict=True)
        )
        arrivals.end(sum(taken))

    return epoch


def _arguments(data: DataSet, parts: list[Range]) -> list[Any]:
    """URLs, offsets, sizes and their count as C takes them; they live as long as the list."""
    urls = [url.encode() for url in data.sources]
    return [
        (ctypes.c_char_p * len(parts))(*[urls[part.shard] for part in parts]),
        (ctypes.c_uint64 * len(parts))(*[part.offset for part in parts]),
        (ctypes.c_uint64 * len(parts))(*[part.size for part in parts]),
        ctypes.c_uint64(len(parts)),
    ]
