"""What a dataset holds, how well an order mixes it, and what an epoch will ask for. Reads, only.

The figures of `shuffle` are measured on batches of the user's own data, drawn from all over an
epoch, and stand beside those of a permutation of everything (i.i.d. draws, for all it matters).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tarpon._ahead import span_of, window_bytes
from tarpon._order import Int64s, Order
from tarpon.dataset import Dataset

_REQUEST_BYTES = 6 << 20  # one range request is at least allowed to be this long
_INDEX_ROOM = (128 << 20) // 100  # samples whose index a rank keeps
_HELD_BATCHES = 4  # one in use, three ahead


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """How one order mixes, over some batches of an epoch.

    Attributes:
        same_chunk: Share of the pairs in a global batch whose samples lie in one chunk.
        classes: Different labels in a global batch, on average; NaN without labels.
        imbalance: Chi-square of a batch's labels against the dataset's, by degree of freedom: 1
            for independent draws, the more the worse mixed; NaN without labels.
    """

    same_chunk: float
    classes: float
    imbalance: float


def contents(dataset: Dataset, *, samples: int) -> dict[str, Any]:
    """Counts of everything; sizes in bytes of each component, over up to `samples` samples."""
    numbers = _spread(len(dataset), samples)
    sizes: dict[str, list[int]] = {}
    for number in numbers:
        for extension, _, size in dataset.find(int(number))[2]:
            sizes.setdefault(extension, []).append(size)
    return {
        "samples": len(dataset),
        "shards": len(dataset.shards),
        "bytes": dataset.total_bytes,
        "looked_at": len(numbers),
        "components": {
            extension: {
                "share": len(found) / max(len(numbers), 1),
                "bytes_min": min(found),
                "bytes_mean": sum(found) / len(found),
                "bytes_max": max(found),
            }
            for extension, found in sorted(sizes.items())
        },
    }


def mixes(
    dataset: Dataset, order: Order, *, global_batch: int, batches: int, label: str | None
) -> dict[str, Mix]:
    """`Mix` of the order, of a permutation of everything, and of the samples as they lie."""
    whole = replace(order, chunk=1, lanes=1, window=order.samples)
    orders = {
        "this order": order,
        "all at once": whole,
        "no shuffle": replace(order, shuffle=False),
    }
    steps = _spread(max(order.samples // global_batch, 1), batches)
    drawn = {
        name: [_batch(one, int(step), global_batch) for step in steps]
        for name, one in orders.items()
    }
    labels = None if label is None else _labels(dataset, drawn, label)
    expected = None if labels is None else _frequencies(dataset, labels, label)
    return {name: _mix(found, order.chunk, labels, expected) for name, found in drawn.items()}


def plan(
    dataset: Dataset,
    order: Order,
    *,
    batch_size: int,
    world_size: int,
    samples_per_s: float,
    dollars_per_1000: float,
) -> dict[str, Any]:
    """Memory, requests and their price for one epoch, before it is run.

    ``local_bytes``: batches in use and in the making of one rank. ``remote_bytes``: those and what
    it holds of a window, were the shards remote. ``requests``: range GETs of all ranks together:
    each chunk is one, or more where it crosses shards, 6 MiB or the end of a lane's window; where
    ranks share lanes, each of them asks for every chunk. ``requests_for_indexes``: in the first
    epoch one for each shard and rank at most, and in every epoch the lines of those chunks whose
    index had to make room in the 128 MiB of a rank. ``dollars``: of all. ``requests_per_s``: of
    the ranges of all ranks at `samples_per_s`.
    """
    mean = dataset.total_bytes / len(dataset)
    batches = math.ceil(_HELD_BATCHES * batch_size * mean)
    span = span_of(order, mean, world_size)
    shared = order.shuffle and not order.by_lane(world_size)
    cut = order.lanes * -(-len(dataset) // span) if order.shuffle else 0
    requests = (_ranges(dataset, order.chunk, mean) + cut) * (world_size if shared else 1)
    # An index takes about a hundred bytes a sample, and is dropped in pages of 64 samples.
    dropped = max(0.0, 1 - _INDEX_ROOM / len(dataset))
    pages = 1 + (order.chunk - 1) / 64
    indexes = len(dataset.shards) * world_size + math.ceil(dropped * requests * pages)
    return {
        "local_bytes": batches,
        "remote_bytes": batches + window_bytes(span, mean, members=2, world_size=world_size),
        "requests": requests,
        "requests_for_indexes": indexes,
        "requests_per_s": requests * samples_per_s / len(dataset),
        "samples_per_s": samples_per_s,
        "dollars": (requests + indexes) * dollars_per_1000 / 1000,
        "dollars_per_1000_requests": dollars_per_1000,
    }


# ---- inside --------------------------------------------------------------------------------------


def _spread(total: int, count: int) -> Int64s:
    """Up to `count` of the first `total` numbers, evenly spread."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))


def _batch(order: Order, step: int, global_batch: int) -> Int64s:
    first = step * global_batch
    return order.samples_at(0, np.arange(first, min(first + global_batch, order.samples)))


def _labels(dataset: Dataset, drawn: dict[str, list[Int64s]], label: str) -> dict[int, bytes]:
    wanted = {int(i) for batches in drawn.values() for batch in batches for i in batch}
    return {index: _label(dataset, index, label) for index in sorted(wanted)}


def _label(dataset: Dataset, index: int, label: str) -> bytes:
    found = dataset.component(index, label)
    if found is None:
        shard, key, members = dataset.find(index)
        raise LookupError(
            f"{shard}, sample {key}: no component {label!r}, it has "
            f"{', '.join(name for name, _, _ in members)}; name the one that holds the class with "
            "--label"
        )
    return found.strip()


def _frequencies(dataset: Dataset, labels: dict[int, bytes], label: str | None) -> Counter[bytes]:
    """Labels of samples drawn evenly from everything, so that the order has no say."""
    assert label is not None
    return Counter(
        labels.get(int(i)) or _label(dataset, int(i), label) for i in _spread(len(dataset), 4096)
    )


def _mix(
    batches: list[Int64s],
    chunk: int,
    labels: dict[int, bytes] | None,
    expected: Counter[bytes] | None,
) -> Mix:
    pairs = sum(_pairs(np.unique(batch // chunk, return_counts=True)[1]) for batch in batches)
    same = pairs / max(_pairs([len(batch) for batch in batches]), 1)
    if labels is None or expected is None:
        return Mix(same_chunk=same, classes=math.nan, imbalance=math.nan)
    found = [Counter(labels[int(index)] for index in batch) for batch in batches]
    return Mix(
        same_chunk=same,
        classes=sum(map(len, found)) / len(found),
        imbalance=sum(_imbalance(one, expected) for one in found) / len(found),
    )


def _pairs(counts: Iterable[int]) -> int:
    return sum(int(count) * (int(count) - 1) // 2 for count in counts)


def _imbalance(found: Counter[bytes], expected: Counter[bytes]) -> float:
    """Chi-square over degrees of freedom, for a batch drawn without regard to the label."""
    if len(expected) < 2:
        return math.nan
    share = found.total() / expected.total()
    squares = sum(
        (found[label] - share * count) ** 2 / (share * count) for label, count in expected.items()
    )
    return squares / (len(expected) - 1)


def _ranges(dataset: Dataset, chunk: int, mean: float) -> int:
    """Range requests that bring every chunk once."""
    ends = np.cumsum(dataset.core.shard_samples())
    cuts = np.union1d(np.arange(chunk, len(dataset) + chunk, chunk).clip(max=len(dataset)), ends)
    lengths = np.diff(cuts, prepend=0)
    return int(np.ceil(lengths[lengths > 0] * mean / _REQUEST_BYTES).sum())
