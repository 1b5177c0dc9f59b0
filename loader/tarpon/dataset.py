"""Random access to the samples of tar shards. Reads; never writes, never decodes."""

from __future__ import annotations

import functools
import hashlib
import operator
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from tarpon import _core
from tarpon._order import Int64s
from tarpon._shards import Shard, Shards, named, resolve
from tarpon._url import file_name, is_remote
from tarpon.errors import StoreError
from tarpon.store import Store


class Dataset(Sequence[dict[str, bytes]]):
    """The samples of a list of shards, by number.

    ``ds[i]`` is a dict of every component's bytes by lower-case extension, read from the tar at
    its indexed offset. Indexes come from the ``.idx`` beside each tar, or from one pass over the
    tar. An archive without samples has length 0. Any number of threads may read, and so may a
    child after ``fork()``, which opens the shards anew.

    Raises:
        StoreError: A shard is missing, unreadable or not the size its list says.
        CorruptShardError: A shard or index breaks its format, or they disagree.
    """

    def __init__(self, shards: Shards, *, store: Store | None = None) -> None:
        name = named(shards) if isinstance(shards, str | os.PathLike) else "of a list"
        self._open(resolve(shards, store), name)

    def _open(self, shards: list[Shard], name: str) -> None:
        for shard in shards:
            if is_remote(shard.path):
                raise StoreError(f"{shard.path}: remote tars cannot be read yet; copy them here")
        self._shards, self._name = shards, name
        self._core = _core.Dataset([(s.path, s.samples, s.bytes) for s in shards])
        self._pid = os.getpid()

    @property
    def core(self) -> _core.Dataset:
        """The C object behind; for the loader. A child after fork() opens its own."""
        if self._pid != os.getpid():  # another thread of the parent may hold its locks for ever
            self._open(self._counted(), self._name)
        return self._core

    def _counted(self) -> list[Shard]:
        """The shards, with the counts that opening them brought."""
        counts = self._core.shard_samples()
        return [
            replace(shard, samples=count) for shard, count in zip(self._shards, counts, strict=True)
        ]

    def __reduce__(self) -> tuple[object, ...]:
        """Another process opens the same shards, and is told what this one knows of them."""
        return _reopened, (self._counted(), self._name)

    @property
    def shards(self) -> list[str]:
        """Paths of the tars, in order."""
        return [shard.path for shard in self._shards]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of each shard's name, sample count and size: what a state is bound to."""
        digest = hashlib.sha256()
        for shard, samples in zip(self._shards, self.core.shard_samples(), strict=True):
            digest.update(f"{file_name(shard.path)}\0{samples}\0{_size(shard)}\n".encode())
        return digest.hexdigest()[:32]

    @functools.cached_property
    def total_bytes(self) -> int:
        """Bytes of all tars."""
        return sum(map(_size, self._shards))

    def key(self, index: int) -> str:
        """The key of sample `index`: its members' common name up to the first dot."""
        return self.find(index)[1]

    def find(self, index: int) -> tuple[str, str, list[tuple[str, int, int]]]:
        """(shard, key, [(extension, offset, size), ...]) of sample `index`, in bytes."""
        shard, key, members = self.core.sample(self._number(index))
        return self._shards[shard].path, key, members

    def component(self, index: int, ext: str) -> bytes | None:
        """The bytes of one component of sample `index`; ``None``: it has no such component.

        `ext` may list alternatives, as fields do: ``"jpg;jpeg;png"``.
        """
        found = self.core.read(self._number(index), ext)
        return next(iter(found.values()), None)

    def numbers(self, indices: Int64s) -> Int64s:
        """The numbers in the tars, all laid end to end, of the samples at `indices`."""
        return indices

    def __len__(self) -> int:
        return len(self.core)

    @overload
    def __getitem__(self, index: int) -> dict[str, bytes]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, bytes]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, bytes] | list[dict[str, bytes]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self.core.read(self._number(index))

    def __iter__(self) -> Iterator[dict[str, bytes]]:
        return (self[number] for number in range(len(self)))

    def __repr__(self) -> str:
        return f"<tarpon.Dataset {self._name}: {len(self)} samples in {len(self._shards)} shards>"

    def _number(self, index: int) -> int:
        """Where `index`, which may count from the end, lies in the tars laid end to end."""
        index = operator.index(index)
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"sample {index} of a dataset of {len(self)} samples")
        return number


def _reopened(shards: list[Shard], name: str) -> Dataset:
    dataset = Dataset.__new__(Dataset)
    dataset._open(shards, name)
    return dataset


class View(Dataset):
    """Chosen samples of another dataset, read from the same tars; see `view`.

    Attributes:
        indices: ``int64[len]``, the number of each sample in the dataset it was chosen from.
    """

    def __init__(self, base: Dataset, indices: npt.ArrayLike) -> None:
        chosen = np.asarray(indices)
        if chosen.size == 0:
            chosen = chosen.astype(np.int64)
        if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
            raise ValueError(
                f"indices of {chosen.dtype} and shape {chosen.shape}, expected a list of sample "
                "numbers; turn a mask into numbers with np.flatnonzero"
            )
        outside = chosen[(chosen < 0) | (chosen >= len(base))]
        if outside.size > 0:
            raise IndexError(
                f"sample {outside[0]}, one of {outside.size} outside {base!r}, expected 0 to "
                f"{len(base) - 1}"
            )
        self._base, self._shards = base, base._shards
        self.indices: Int64s = np.array(chosen, np.int64)
        self.indices.flags.writeable = False

    def __reduce__(self) -> tuple[object, ...]:
        return View, (self._base, self.indices)

    @property
    def core(self) -> _core.Dataset:
        return self._base.core

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of the dataset's fingerprint and the chosen numbers."""
        digest = hashlib.sha256(self._base.fingerprint.encode())
        digest.update(self.indices.astype("<i8").tobytes())
        return digest.hexdigest()[:32]

    @functools.cached_property
    def total_bytes(self) -> int:
        """About the bytes of the chosen samples, by the mean of the whole dataset."""
        return self._base.total_bytes * len(self) // max(len(self._base), 1)

    def numbers(self, indices: Int64s) -> Int64s:
        return self._base.numbers(self.indices[indices])

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return f"<a view of {len(self)} samples of {self._base!r}>"

    def _number(self, index: int) -> int:
        return self._base._number(int(self.indices[super()._number(index)]))


def _size(shard: Shard) -> int:
    if shard.bytes >= 0:
        return shard.bytes
    try:
        return Path(shard.path).stat().st_size
    except OSError as error:
        raise StoreError(f"{shard.path}: {error.strerror or error}") from error


def open(shards: Shards | Dataset, *, store: Store | None = None) -> Dataset:
    """Open shards for random access; see `Dataset`. One that is open already stays as it is.

    `store` says how remote ones are reached; ``None``: as the environment tells.
    """
    return shards if isinstance(shards, Dataset) else Dataset(shards, store=store)


def view(shards: Shards | Dataset, indices: npt.ArrayLike) -> View:
    """A dataset of chosen samples of `shards`: re-sampling that copies nothing.

        rare = tarpon.view("photos/v3/train.json", np.flatnonzero(labels == 7).repeat(10))
        loader = tarpon.Loader(rare, batch_size=64)

    Args:
        shards: Anything `open` takes, or what it returns.
        indices: Integers, in any order; repeats are allowed. Kept in memory, 8 bytes each. In
            ascending order, neighbours lie near each other in the tars.

    Raises:
        IndexError: A number that `shards` does not have.
    """
    return View(open(shards), indices)


def index(shards: Shards, *, force: bool = False, store: Store | None = None) -> list[Path]:
    """Write DALI's ``.idx`` beside each tar that has none, from one pass over its headers.

    Args:
        shards: Anything `open` takes.
        force: Also replace the indexes that are there.
        store: How a remote shard list is reached; the tars it names must be local.

    Returns:
        The index files written, in order.

    Raises:
        CorruptShardError: Not a plain tar, or a name with white space, which the format cannot
            hold. Nothing is written for that shard.
        StoreError: The folder cannot be written, or a tar is remote: nothing is written then.
    """
    written = []
    found = resolve(shards, store)
    for shard in found:
        if is_remote(shard.path):
            raise StoreError(
                f"{shard.path}: a remote tar, expected a local one, as its index is written "
                "beside it; run this where the tars are written, and upload both"
            )
    for shard in found:
        path = sidecar(shard.path)
        if force or not path.exists():
            write_sidecar(shard.path)
            written.append(path)
    return written


def sidecar(shard: str) -> Path:
    """Where the index of a tar lies: ``train-000000.tar`` -> ``train-000000.idx``."""
    return Path(shard.removesuffix(".tar") + ".idx")


def write_sidecar(shard: str) -> None:
    """Index one tar; the file appears whole or not at all."""
    text = _core.index_text(shard)
    path = sidecar(shard)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(
            f"{path}: {error.strerror or error}, expected a folder that can be written; "
            "readers can do without: they then scan the tar each time"
        ) from error
