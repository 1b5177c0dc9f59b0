"""litdata: the set as its own optimized chunks, in this process or with workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import litdata

from benchmarks.data import DataSet, label_of
from benchmarks.measure import Epoch, Tally
from benchmarks.members import batch_size, converted

_CHUNK_BYTES = "64MB"  # what its documentation uses


def _as_it_is(value: Any) -> Any:
    return value


def _sample(path: str) -> dict[str, Any]:
    return {"jpg": Path(path).read_bytes(), "cls": label_of(path)}


def _convert(data: DataSet, folder: Path) -> None:
    litdata.optimize(
        fn=_sample,
        inputs=data.files,
        output_dir=str(folder),
        chunk_bytes=_CHUNK_BYTES,
        num_workers=1,
        keep_data_ordered=True,
        verbose=False,
    )


def make(data: DataSet, *, workers: int, batch: int) -> Epoch:
    """`workers` = 0: its StreamingDataLoader reads here, its default."""
    folder = converted(data, f"litdata-{litdata.__version__}", lambda path: _convert(data, path))
    loader = litdata.StreamingDataLoader(
        litdata.StreamingDataset(str(folder), shuffle=False),
        batch_size=batch_size(data, batch),
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=_as_it_is,
    )

    def epoch(number: int, tally: Tally) -> None:
        for made in loader:
            size = sum(len(one["jpg"]) for one in made)
            labels = sum(one["cls"] for one in made)
            tally.raw(len(made), size, labels, lambda it=made: (one["jpg"] for one in it))

    return epoch
