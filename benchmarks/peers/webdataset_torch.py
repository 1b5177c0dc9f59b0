"""webdataset with the workers of a torch DataLoader, which decode and crop with Pillow."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from tarpon import _core

from benchmarks.data import DataSet
from benchmarks.measure import Epoch, Tally
from benchmarks.members import RATIO, SCALE, SEED, SIZE, batch_size

_numbers = iter(range(2**62))  # in each worker, for another window each time


def _crop(data: bytes) -> torch.Tensor:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    *box, flip = _core.random_box(
        image.width, image.height, SCALE, RATIO, 0.5, SEED, 0, next(_numbers)
    )
    side = (SIZE, SIZE)
    pixels = np.asarray(image.crop(tuple(map(int, box))).resize(side, Image.Resampling.BILINEAR))
    pixels = pixels[:, ::-1] if flip else pixels
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def make(data: DataSet, *, workers: int, batch: int, device: str, copies: int = 1) -> Epoch:
    """Each worker fills batches of its own from its own shards, as webdataset has it."""
    urls = data.copies(copies)
    samples = (
        wds.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
        .shuffle(1000)
        .to_tuple("jpg", "cls")
        .map_tuple(_crop, int)
        .batched(batch_size(data, batch))
    )
    loader = wds.WebLoader(samples, batch_size=None, num_workers=workers, persistent_workers=True)

    def epoch(number: int, tally: Tally) -> None:
        for images, _labels in loader:
            image: Any = images.to("cuda" if device == "gpu" else "cpu").float()
            size = image.numel() * image.element_size()
            tally.pixels(len(image), size, lambda it=image: it.cpu().numpy())

    return epoch
