"""The served shards as ranges of bytes: what those peers fetch that know no samples.

As S3 objects they lie in a bucket named like their folder: nginx does not look at signatures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.data import SHARDS, DataSet
from benchmarks.measure import Tally
from benchmarks.members import members

BUCKET = SHARDS
REGION = "us-east-1"
KEY_ID, SECRET = "benchmark", "benchmark"  # clients sign with what they have; nobody checks


@dataclass(frozen=True, slots=True)
class Range:
    shard: int
    offset: int
    size: int


def ranges(data: DataSet, most: int) -> list[Range]:
    """All bytes of all shards, in order, at most so many each."""
    return [
        Range(shard, offset, min(most, size - offset))
        for shard, size in enumerate(map(os.path.getsize, data.shards))
        for offset in range(0, size, most)
    ]


def keys(data: DataSet) -> list[str]:
    """The shards' keys in the bucket."""
    return [os.path.basename(path) for path in data.shards]


class Arrivals:
    """The bytes of one epoch: counted, and kept only if somebody is going to look at them."""

    def __init__(self, data: DataSet, tally: Tally) -> None:
        self._data, self._tally = data, tally
        self._sizes = [os.path.getsize(path) for path in data.shards]
        looked_at = tally.look == "check"
        self.held = [bytearray(size) for size in self._sizes] if looked_at else None

    def take(self, shard: int, offset: int, body: Any) -> int:
        """From any thread; returns the size of `body`."""
        if self.held is not None:
            self.held[shard][offset : offset + len(body)] = body
        return len(body)

    def end(self, received: int) -> None:
        """Nothing more comes; `received` is the sum of what `take` returned."""
        if received != sum(self._sizes):
            raise OSError(f"received {received} bytes, expected the shards' {sum(self._sizes)}")
        self._tally.raw(self._data.samples, self._data.bytes, 0, self._images)

    def _images(self) -> Iterator[bytes]:
        """The bytes of each image, for the checksum; here the labels are added up too."""
        held = self.held or []
        for label in members(self._data, "cls"):
            self._tally.labels += int(held[label.shard][label.offset : label.offset + label.size])
        for image in members(self._data, "jpg"):
            yield bytes(held[image.shard][image.offset : image.offset + image.size])
