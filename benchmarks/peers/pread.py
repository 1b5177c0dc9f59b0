"""The ceiling of reading: a pread per member from C threads; see native/pread.c."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks import native
from benchmarks.data import DataSet
from benchmarks.measure import Epoch, Tally
from benchmarks.members import Member, batch_size, members

_BATCHES = 4  # as many as the loader holds: one in use and three ahead


def make(
    data: DataSet,
    *,
    threads: int,
    shuffle: bool,
    memory: Literal["hot", "batches"],
    batch: int,
) -> Epoch:
    """`memory`: every read over the same pages, or into batches that a consumer could be given."""
    wanted = list(zip(members(data, "jpg"), members(data, "cls"), strict=True))
    if shuffle:
        order = np.random.default_rng(0).permutation(len(wanted))
        wanted = [wanted[index] for index in order]
    flat = [member for pair in wanted for member in pair]
    files = [os.open(path, os.O_RDONLY) for path in data.shards]
    places, room = _places(flat, batch_size(data, batch) * 2) if memory == "batches" else ([], 0)
    room = room or max(member.size for member in flat)
    memories = [np.zeros(room, np.uint8) for _ in range(threads if memory == "hot" else 1)]
    read_all = native.load("pread", Path(data.root, "..")).pread_all
    read_all.restype = ctypes.c_int64
    arrays = [
        np.array([files[member.shard] for member in flat], np.int32),
        np.array([member.offset for member in flat], np.uint64),
        np.array([member.size for member in flat], np.uint64),
        np.array(places or [0] * len(flat), np.uint64),
    ]
    labels_bytes = sum(member.size for member in flat[1::2])

    def epoch(number: int, tally: Tally) -> None:
        pointers = [memories[thread % len(memories)].ctypes.data for thread in range(threads)]
        read = read_all(
            *[array.ctypes.data_as(ctypes.c_void_p) for array in arrays],
            ctypes.c_uint64(len(flat)),
            (ctypes.c_void_p * threads)(*pointers),
            ctypes.c_int(threads),
        )
        if read < 0:
            raise OSError("a pread of the benchmark's own shards failed")
        tally.raw(len(wanted), read - labels_bytes, 0, lambda: _again(data, flat, files, tally))

    return epoch


def _places(flat: list[Member], per_batch: int) -> tuple[list[int], int]:
    """Where each member goes in a ring of batches, and the bytes of the ring."""
    totals = [
        sum(member.size for member in flat[first : first + per_batch])
        for first in range(0, len(flat), per_batch)
    ]
    most = max(totals)
    places = []
    for first in range(0, len(flat), per_batch):
        at = first // per_batch % _BATCHES * most
        for member in flat[first : first + per_batch]:
            places.append(at)
            at += member.size
    return places, most * min(_BATCHES, len(totals))


def _again(data: DataSet, flat: list[Member], files: list[int], tally: Tally) -> list[bytes]:
    """The bytes of each image once more, for the checksum; there the labels are added up too."""
    both = [os.pread(files[member.shard], member.size, member.offset) for member in flat]
    tally.labels += sum(int(label) for label in both[1::2])
    return both[::2]
