"""obstore, the Rust object_store for Python: ranges by threads, or each shard as one stream."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import obstore
from obstore.store import S3Store

from benchmarks.data import DataSet
from benchmarks.measure import Epoch, Tally
from benchmarks.ranges import BUCKET, KEY_ID, REGION, SECRET, Arrivals, Range, keys, ranges


def make(
    data: DataSet, *, how: Literal["ranges", "stream"], threads: int, piece_bytes: int
) -> Epoch:
    """`piece_bytes`: of a range, or the least that a stream hands over."""
    store: Any = S3Store(
        BUCKET,
        endpoint=data.url,
        region=REGION,
        access_key_id=KEY_ID,
        secret_access_key=SECRET,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    names, parts = keys(data), ranges(data, piece_bytes)
    pool = ThreadPoolExecutor(threads)

    def of_range(arrivals: Arrivals, part: Range) -> int:
        body = obstore.get_range(store, names[part.shard], start=part.offset, length=part.size)
        return arrivals.take(part.shard, part.offset, memoryview(body))

    def of_shard(arrivals: Arrivals, shard: int) -> int:
        at = 0
        for body in obstore.get(store, names[shard]).stream(min_chunk_size=piece_bytes):
            at += arrivals.take(shard, at, memoryview(body))
        return at

    def epoch(number: int, tally: Tally) -> None:
        arrivals = Arrivals(data, tally)
        if how == "ranges":
            taken = pool.map(lambda part: of_range(arrivals, part), parts)
        else:
            taken = pool.map(lambda shard: of_shard(arrivals, shard), range(len(names)))
        arrivals.end(sum(taken))

    return epoch
