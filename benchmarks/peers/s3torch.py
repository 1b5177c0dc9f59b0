"""s3torchconnector, AWS's own reader for torch over its C runtime: whole shards, one after another.

Its runtime fetches parts of a shard in parallel on threads of its own.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from s3torchconnector import S3ClientConfig, S3MapDataset, S3ReaderConstructor

from benchmarks.data import DataSet
from benchmarks.measure import Epoch, Tally
from benchmarks.ranges import BUCKET, KEY_ID, REGION, SECRET, Arrivals, keys


def make(
    data: DataSet,
    *,
    reader: Literal["sequential", "range_based"],
    threads: int,
    part_bytes: int,
    read_bytes: int,
) -> Epoch:
    """`threads` shards at once; `part_bytes` of its requests, `read_bytes` of each read here."""
    os.environ |= {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET}
    sizes = [os.path.getsize(path) for path in data.shards]
    dataset = S3MapDataset.from_objects(
        [f"s3://{BUCKET}/{key}" for key in keys(data)],
        region=REGION,
        endpoint=data.url,
        s3client_config=S3ClientConfig(force_path_style=True, part_size=part_bytes),
        reader_constructor=getattr(S3ReaderConstructor, reader)(),
    )
    pool = ThreadPoolExecutor(threads)

    def of_shard(arrivals: Arrivals, shard: int) -> int:
        opened, at = dataset[shard], 0
        while at < sizes[shard]:
            body = opened.read(min(read_bytes, sizes[shard] - at))
            if not body:
                break
            at += arrivals.take(shard, at, body)
        return at

    def epoch(number: int, tally: Tally) -> None:
        arrivals = Arrivals(data, tally)
        taken = pool.map(lambda shard: of_shard(arrivals, shard), range(len(sizes)))
        arrivals.end(sum(taken))

    return epoch
