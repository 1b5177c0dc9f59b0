"""Where the members lie, and which box of each image is decoded: the same for every case."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tarpon import _core

from benchmarks.data import DataSet

SEED = 17
SIZE = 224
SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True, slots=True)
class Member:
    shard: int
    offset: int
    size: int


def batch_size(data: DataSet, most: int) -> int:
    """The largest power of two up to `most` that divides the set: no epoch has a short batch."""
    return math.gcd(data.samples, most)


def members(data: DataSet, extension: str) -> list[Member]:
    """Every sample's member of that extension, from the DALI indexes beside the shards."""
    found = []
    for shard, path in enumerate(data.indexes):
        for line in Path(path).read_text(encoding="ascii").splitlines()[1:]:
            words = line.split()
            at = words[::4].index(extension) * 4
            found.append(Member(shard, int(words[at + 1]), int(words[at + 2])))
    return found


def read_images(data: DataSet) -> list[bytes]:
    images = []
    for member in members(data, "jpg"):
        with open(data.shards[member.shard], "rb") as shard:
            shard.seek(member.offset)
            images.append(shard.read(member.size))
    return images


def converted(data: DataSet, name: str, convert: Callable[[Path], None]) -> Path:
    """The folder of the set in a peer's own format: `convert` fills it once, whole or not at all.

    `name` says format and version. Every case makes an epoch for its proof before it is timed, so
    no conversion falls into a run that counts.
    """
    folder = Path(data.root, name)
    if not folder.exists():
        temporary = folder.with_name(f"{name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        convert(temporary)
        temporary.rename(folder)
    return folder


def boxes(
    sizes: list[tuple[int, int]], epoch: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
    """(left, top, right, bottom) and whether to flip: what the loader draws for this epoch.

    `sizes` are (width, height). The generator is the core's own, so that a peer in C or Pillow
    decodes the very boxes that the loader does.
    """
    drawn = [
        _core.random_box(width, height, SCALE, RATIO, 0.5, SEED, epoch, position)
        for position, (width, height) in enumerate(sizes)
    ]
    return (
        np.array([box[:4] for box in drawn], np.uint32),
        np.array([box[4] for box in drawn], np.bool_),
    )
