"""NVIDIA DALI on CPU: its WebDataset reader with an index, alone or with its decoder behind."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from nvidia.dali import fn, pipeline_def, types

from benchmarks.data import DataSet
from benchmarks.measure import Epoch, Tally
from benchmarks.members import RATIO, SCALE, SEED, SIZE, batch_size


def make(
    data: DataSet,
    *,
    image: Literal["raw", "crop"],
    threads: int,
    batch: int,
    mapped: bool = True,
    antialias: bool = True,
    fast_idct: bool = False,
) -> Epoch:
    """`mapped`: hand out pages of the mapped file, DALI's default; otherwise read into memory."""
    per_batch = batch_size(data, batch)

    @pipeline_def(batch_size=per_batch, num_threads=threads, device_id=None, seed=SEED)
    def pipeline() -> tuple[Any, Any]:
        encoded, label = fn.readers.webdataset(
            paths=data.shards,
            index_paths=data.indexes,
            ext=["jpg", "cls"],
            missing_component_behavior="error",
            dont_use_mmap=not mapped,
        )
        if image == "raw":
            return encoded, label
        decoded = fn.decoders.image_random_crop(
            encoded,
            device="cpu",
            output_type=types.RGB,
            random_area=list(SCALE),
            random_aspect_ratio=list(RATIO),
            use_fast_idct=fast_idct,
        )
        resized = fn.resize(
            decoded, size=[SIZE, SIZE], interp_type=types.INTERP_LINEAR, antialias=antialias
        )
        return fn.flip(resized, horizontal=fn.random.coin_flip()), label

    built = pipeline()
    built.build()

    def raw(number: int, tally: Tally) -> None:
        for _ in range(data.samples // per_batch):
            images, labels = built.run()
            size = sum(shape[0] for shape in images.shape())
            digits = labels.as_array()  # every label is one ASCII digit
            total = int(digits.sum(dtype=np.int64)) - ord("0") * digits.size
            tally.raw(len(images), size, total, lambda it=images: (np.asarray(one) for one in it))

    def crop(number: int, tally: Tally) -> None:
        for _ in range(data.samples // per_batch):
            images, _labels = built.run()
            size = len(images) * SIZE * SIZE * 3
            tally.pixels(len(images), size, lambda it=images: it.as_array())

    return raw if image == "raw" else crop
