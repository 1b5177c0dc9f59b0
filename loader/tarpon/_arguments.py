"""What a Loader is told, checked and completed from the environment. No state, no I/O."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Literal

import numpy as np

from tarpon.cpus import usable_cpus
from tarpon.fields import CenterCrop, Field, RandomResizedCrop

_THREADS_MOST = 16


def asked_order(
    lanes: int | None, window_samples: int | Literal["all"] | None
) -> tuple[int | None, int | Literal["all"] | None, frozenset[str]]:
    """Both as plain numbers, and what a state must agree with, because it was asked for."""
    lanes = None if lanes is None else positive("lanes", lanes)
    if window_samples == "all":
        if lanes not in (None, 1):
            raise ValueError(
                f"lanes={lanes} with window_samples='all', expected lanes=None: it is one window "
                "of one lane; give window_samples a number, or leave lanes out"
            )
        return lanes, "all", frozenset(("lanes", "window"))
    if isinstance(window_samples, str):
        raise ValueError(f"window_samples={window_samples!r}, expected a number or 'all'")
    if window_samples is not None:
        window_samples = positive("window_samples", window_samples)
    asked = {"lanes": lanes, "window": window_samples}
    return lanes, window_samples, frozenset(k for k, value in asked.items() if value is not None)


def place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """This rank and how many there are: as given, or from whoever started the process."""
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank={rank}, world_size={world_size}: expected both or neither")
    if rank is None or world_size is None:
        distributed = sys.modules.get("torch.distributed")  # never imported for this
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            rank, world_size = distributed.get_rank(), distributed.get_world_size()
        else:
            rank, world_size = place_by_torchrun()
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank}, world_size={world_size}: expected 0 <= rank < world_size")
    return int(rank), int(world_size)


def place_by_torchrun() -> tuple[int, int]:
    """What the environment says; a launcher that tells only half of it must not make twins."""
    rank, world_size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    alone = (rank or "0", world_size or "1") == ("0", "1")
    if not alone and (rank is None or world_size is None):
        found = f"WORLD_SIZE={world_size} without RANK" if rank is None else f"RANK={rank} alone"
        raise ValueError(
            f"{found} in the environment, expected both RANK and WORLD_SIZE or neither; make the "
            "loader after the process group is up, or pass rank and world_size"
        )
    try:
        return int(rank or "0"), int(world_size or "1")
    except ValueError:
        raise ValueError(
            f"RANK={rank}, WORLD_SIZE={world_size}: expected whole numbers, as torchrun sets them"
        ) from None


def checked_fields(fields: Mapping[str, Field] | None) -> dict[str, Field] | None:
    if fields is None:
        return None
    if not isinstance(fields, Mapping) or not fields:
        raise ValueError(
            f"fields={fields!r}, expected a dict such as {{'label': tarpon.Int('cls')}}"
        )
    for name, field in fields.items():
        if not isinstance(field, Field):
            raise ValueError(
                f"fields[{name!r}]={field!r}, expected a field such as tarpon.Raw('jpg')"
            )
    return dict(fields)


def check_memory(fields: Mapping[str, Field], batch_size: int) -> None:
    """Refuse batches that no machine like this one can hold two of, before it dies trying."""
    crops = [
        field for field in fields.values() if isinstance(field, RandomResizedCrop | CenterCrop)
    ]
    bytes_each = sum(f.size * f.size * 3 * np.dtype(f.dtype).itemsize for f in crops) + 64
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 2 * batch_size * bytes_each > memory:
        raise ValueError(
            f"batch_size={batch_size} makes batches of {batch_size * bytes_each / 2**30:.1f} GiB, "
            f"expected two of them to fit the machine's {memory / 2**30:.1f} GiB; lower batch_size"
        )


def default_threads() -> int:
    return min(_THREADS_MOST, usable_cpus())


def positive(name: str, value: int) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}, expected a whole number of at least 1")
    return int(value)


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}, expected one of {', '.join(map(repr, choices))}")


def count(name: str, value: int) -> int:
    """`value` as an int, if it is a whole number that the core can count to."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not 0 <= value < 2**64:
        raise ValueError(f"{name}={value!r}, expected a whole number from 0 to 2^64 - 1")
    return int(value)
