"""simplejpeg: decode whole JPEGs that are in memory already; Pillow resizes the crop."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import Image

from benchmarks.data import DataSet
from benchmarks.measure import Epoch, Tally
from benchmarks.members import SIZE, batch_size, boxes, read_images


def make(data: DataSet, *, scaled: bool, fast: bool, batch: int) -> Epoch:
    """`scaled`: decode at 1/2, 1/4 or 1/8 where the box then keeps `SIZE` pixels, as we do.

    `fast`: its faster and coarser inverse DCT and upsampling of colours.
    """
    encoded = read_images(data)
    sizes = [Image.open(io.BytesIO(jpeg)).size for jpeg in encoded]
    out = np.empty((batch_size(data, batch), SIZE, SIZE, 3), np.uint8)

    def one(at: int, box: list[int], flip: bool) -> Image.Image:
        width, height = sizes[at]
        shorter = min(box[2] - box[0], box[3] - box[1])
        # other fractions have no SIMD in libjpeg-turbo
        by = next((by for by in (8, 4, 2) if scaled and shorter >= by * SIZE), 1)
        pixels = simplejpeg.decode_jpeg(
            encoded[at],
            min_height=-(-height // by),
            min_width=-(-width // by),
            fastdct=fast,
            fastupsample=fast,
        )
        x, y = pixels.shape[1] / width, pixels.shape[0] / height
        image = Image.fromarray(pixels).resize(
            (SIZE, SIZE),
            Image.Resampling.BILINEAR,
            box=(box[0] * x, box[1] * y, box[2] * x, box[3] * y),
        )
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image

    def epoch(number: int, tally: Tally) -> None:
        places, flips = boxes(sizes, number)
        for first in range(0, len(encoded), len(out)):
            for slot in range(len(out)):
                at = first + slot
                out[slot] = np.asarray(one(at, places[at].tolist(), flips[at]))
            tally.pixels(len(out), out.nbytes, lambda: out)

    return epoch
