"""The ceiling of decoding: libjpeg-turbo's cropped decode, without a resize; native/jpeg_crop.c."""

from __future__ import annotations

import ctypes
import io
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import native
from benchmarks.data import DataSet
from benchmarks.measure import Epoch, Tally
from benchmarks.members import SIZE, boxes, read_images


def make(data: DataSet, *, scaled: bool) -> Epoch:
    """`scaled`: decode at 1/2, 1/4 or 1/8 where the box then keeps `SIZE` pixels, as we do."""
    encoded = read_images(data)
    sizes = [Image.open(io.BytesIO(jpeg)).size for jpeg in encoded]
    blob = np.frombuffer(b"".join(encoded), np.uint8)
    lengths = np.array([len(jpeg) for jpeg in encoded], np.uint64)
    offsets = np.concatenate([np.zeros(1, np.uint64), np.cumsum(lengths)[:-1]]).astype(np.uint64)
    row = np.zeros((max(width for width, _ in sizes) + 64) * 4, np.uint8)
    crop_all = native.load("jpeg_crop", Path(data.root, ".."), "jpeg").jpeg_crop_all
    crop_all.restype = ctypes.c_int64

    def epoch(number: int, tally: Tally) -> None:
        places, _ = boxes(sizes, number)
        places = np.ascontiguousarray(places)
        shorter = np.minimum(places[:, 2] - places[:, 0], places[:, 3] - places[:, 1])
        reductions = np.ones(len(places), np.uint32)
        for by in (2, 4, 8) if scaled else ():
            reductions[shorter >= by * SIZE] = by
        arrays = [blob, offsets, lengths, places, reductions]
        pixels = crop_all(
            *[array.ctypes.data_as(ctypes.c_void_p) for array in arrays],
            ctypes.c_uint64(len(encoded)),
            row.ctypes.data_as(ctypes.c_void_p),
        )
        if pixels < 0:
            raise ValueError(f"libjpeg refused image {-1 - pixels} of the benchmark's own")
        tally.samples += len(encoded)
        tally.bytes += 3 * pixels

    return epoch
