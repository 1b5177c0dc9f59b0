"""torch's DataLoader over one file per image, decoded and random-resized-cropped by Pillow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tarpon import _core
from torch.utils.data import DataLoader, Dataset, Sampler

from benchmarks.data import DataSet, label_of
from benchmarks.measure import Epoch, Tally
from benchmarks.members import RATIO, SCALE, SEED, SIZE, batch_size
from benchmarks.peers.pillow import decode

_Place = tuple[int, int]
"""(epoch, position): what fixes the box, as in the loader."""


class _Pictures(Dataset[tuple[npt.NDArray[np.uint8], int]]):
    def __init__(self, paths: list[str], *, draft: bool) -> None:
        self._paths, self._draft = paths, draft

    def __getitem__(self, place: _Place) -> tuple[npt.NDArray[np.uint8], int]:
        epoch, position = place
        path = self._paths[position]
        image = Image.open(path)
        *box, flip = _core.random_box(*image.size, SCALE, RATIO, 0.5, SEED, epoch, position)
        left, top, right, bottom = box
        pixels = decode(  # read-only, which torch warns of
            image,
            (left, top, right, bottom),
            flip=bool(flip),
            draft=self._draft,
            crop_first=not self._draft,
        )
        return pixels.copy(), label_of(path)


class _InOrder(Sampler[_Place]):
    """Every place of the next epoch."""

    def __init__(self, samples: int) -> None:
        self._samples, self.epoch = samples, 0

    def __iter__(self) -> Iterator[_Place]:
        return ((self.epoch, position) for position in range(self._samples))

    def __len__(self) -> int:
        return self._samples


def make(data: DataSet, *, draft: bool, workers: int, batch: int) -> Epoch:
    """`draft`: decode smaller where that is enough, and resize straight from the box.

    Otherwise crop, then resize, as torchvision's RandomResizedCrop does with Pillow images.
    """
    sampler = _InOrder(data.samples)
    loader: DataLoader[Any] = DataLoader(
        _Pictures(data.files, draft=draft),
        batch_size=batch_size(data, batch),
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
    )

    def epoch(number: int, tally: Tally) -> None:
        sampler.epoch = number
        for images, _labels in loader:
            size = len(images) * SIZE * SIZE * 3
            tally.pixels(len(images), size, lambda it=images: it.numpy())

    return epoch
