"""Pillow: decode and random-resized-crop of images that are in memory already."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from benchmarks.data import DataSet
from benchmarks.measure import Epoch, Tally
from benchmarks.members import SIZE, batch_size, boxes, read_images


def decode(
    image: Image.Image,
    box: tuple[float, float, float, float],
    *,
    flip: bool,
    draft: bool,
    crop_first: bool,
) -> npt.NDArray[np.uint8]:
    """The pixels of `box` of a JPEG just opened, resized to `SIZE` a side: uint8[SIZE, SIZE, 3].

    `draft`: let libjpeg decode smaller where the crop keeps `SIZE` pixels a side. `crop_first`:
    cut the box out and then resize it, as torchvision does, instead of resizing straight from it.
    """
    if draft:
        shrink = max(1.0, min(box[2] - box[0], box[3] - box[1]) / SIZE)
        width, height = image.size
        image.draft("RGB", (int(width / shrink), int(height / shrink)))
        x, y = image.width / width, image.height / height
        box = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
    image = ImageOps.exif_transpose(image).convert("RGB")
    if crop_first:
        image = image.crop((int(box[0]), int(box[1]), int(box[2]), int(box[3])))
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    else:
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)


def make(data: DataSet, *, draft: bool, crop_first: bool, batch: int) -> Epoch:
    """`draft`, `crop_first`: see `decode`."""
    encoded = read_images(data)
    sizes = [Image.open(io.BytesIO(jpeg)).size for jpeg in encoded]
    out = np.empty((batch_size(data, batch), SIZE, SIZE, 3), np.uint8)

    def epoch(number: int, tally: Tally) -> None:
        places, flips = boxes(sizes, number)
        for first in range(0, len(encoded), len(out)):
            for slot in range(len(out)):
                at = first + slot
                left, top, right, bottom = places[at].tolist()
                out[slot] = decode(
                    Image.open(io.BytesIO(encoded[at])),
                    (left, top, right, bottom),
                    flip=bool(flips[at]),
                    draft=draft,
                    crop_first=crop_first,
                )
            tally.pixels(len(out), out.nbytes, lambda: out)

    return epoch
