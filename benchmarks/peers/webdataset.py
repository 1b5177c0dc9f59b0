"""webdataset: in this process, or with the workers of a torch DataLoader."""

from __future__ import annotations

from typing import Any

import webdataset as wds

from benchmarks.data import DataSet
from benchmarks.measure import Epoch, Tally


def _as_it_is(value: Any) -> Any:
    return value


def make(data: DataSet, *, shuffle: bool, workers: int, batch: int) -> Epoch:
    """`workers` = 0: samples one by one, here. Otherwise workers hand over lists of `batch`."""
    samples = wds.WebDataset(
        data.sources, shardshuffle=len(data.shards) if shuffle else False, empty_check=False
    )
    if shuffle:
        samples = samples.shuffle(1000)
    samples = samples.to_tuple("jpg", "cls")
    if workers:
        samples = wds.WebLoader(
            samples.batched(batch, collation_fn=_as_it_is),
            batch_size=None,
            num_workers=workers,
            persistent_workers=True,
            collate_fn=_as_it_is,
        )

    def epoch(number: int, tally: Tally) -> None:
        for item in samples:
            pairs = item if workers else (item,)
            for image, label in pairs:
                tally.raw(1, len(image), int(label), lambda it=image: (it,))

    return epoch
