"""boto3: ranges of the shards, fetched by a pool of threads. S3's client in most training code."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import boto3
from botocore.config import Config

from benchmarks.data import DataSet
from benchmarks.measure import Epoch, Tally
from benchmarks.ranges import BUCKET, KEY_ID, REGION, SECRET, Arrivals, Range, keys, ranges


def make(data: DataSet, *, threads: int, range_bytes: int) -> Epoch:
    client = boto3.client(
        "s3",
        endpoint_url=data.url,
        region_name=REGION,
        aws_access_key_id=KEY_ID,
        aws_secret_access_key=SECRET,
        config=Config(
            max_pool_connections=threads,
            s3={"addressing_style": "path"},
            response_checksum_validation="when_required",
        ),
    )
    names, parts = keys(data), ranges(data, range_bytes)
    pool = ThreadPoolExecutor(threads)

    def get(part: Range) -> bytes:
        wanted = f"bytes={part.offset}-{part.offset + part.size - 1}"
        reply = client.get_object(Bucket=BUCKET, Key=names[part.shard], Range=wanted)
        body: bytes = reply["Body"].read()
        return body

    def epoch(number: int, tally: Tally) -> None:
        arrivals = Arrivals(data, tally)
        taken = pool.map(lambda part: arrivals.take(part.shard, part.offset, get(part)), parts)
        arrivals.end(sum(taken))

    return epoch
