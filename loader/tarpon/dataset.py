"""Random access to the samples of tar shards. Reads; never writes, never decodes."""

from __future__ import annotations

import functools
import hashlib
import logging
import operator
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, overload

import numpy as np
import numpy.typing as npt

from tarpon import _core, _remote
from tarpon._arguments import positive
from tarpon._names import Shard, file_name
from tarpon._order import Int64s
from tarpon._shards import Shards, resolve, shown
from tarpon.errors import StoreError
from tarpon.store import Store

_log = logging.getLogger("tarpon")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How remote shards are reached and kept; of no concern to local ones."""

    store: Store | None = None
    cache_dir: str | None = None
    cache_bytes: int = 2**64 - 1
    timeout_s: float | None = None

    @classmethod
    def of(
        cls,
        store: Store | None,
        cache_dir: str | os.PathLike[str] | None,
        cache_bytes: int | None,
        timeout_s: float | None,
    ) -> Self:
        if store is not None and not isinstance(store, Store):
            raise ValueError(f"store={store!r}, expected a tarpon.Store, or None")
        if cache_dir == "":
            raise ValueError("cache_dir='', expected a folder, or None")
        if cache_bytes is not None and cache_dir is None:
            raise ValueError(f"cache_bytes={cache_bytes!r} without cache_dir, expected both")
        return cls(
            store=store,
            cache_dir=None if cache_dir is None else os.path.expanduser(os.fspath(cache_dir)),
            cache_bytes=2**64 - 1 if cache_bytes is None else positive("cache_bytes", cache_bytes),
            timeout_s=timeout_s,
        )


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

    def __init__(self, shards: Shards, reach: Reach | None = None) -> None:
        reach = reach or Reach()
        name = "of a list"
        if isinstance(shards, str | os.PathLike):
            name = shown(shards)
        self._open(resolve(shards, reach.store), name, reach)

    @classmethod
    def of(cls, shards: list[Shard], name: str, reach: Reach) -> Self:
        """Shards that were resolved already; `name`, for messages, is how they are called."""
        dataset = cls.__new__(cls)
        dataset._open(shards, name, reach)
        return dataset

    def _open(self, shards: list[Shard], name: str, reach: Reach) -> None:
        self._shards, self._name, self._reach = shards, name, reach
        self._client, self._cache = None, None
        if any(shard.is_remote for shard in shards):
            self._client = _remote.client(reach.store, reach.timeout_s)
            if reach.cache_dir is not None:
                self._cache = _core.Cache(reach.cache_dir, reach.cache_bytes)
        self._core = _core.Dataset(
            [(s.path, s.samples, s.bytes, s.is_remote, s.url, s.etag) for s in shards],
            self._client,
            self._cache,
        )
        self._pid = os.getpid()

    @property
    def core(self) -> _core.Dataset:
        """The C object behind; for the loader. A child after fork() opens its own."""
        if self._pid != os.getpid():  # another thread of the parent may hold its locks for ever
            self._open(self._counted(), self._name, self._reach)
        return self._core

    @property
    def is_remote(self) -> bool:
        """Whether any of its shards is read over a network."""
        return any(shard.is_remote for shard in self._shards)

    @property
    def is_cached(self) -> bool:
        """Whether what is read of remote shards is kept in a local folder."""
        return self._cache is not None

    def network(self) -> dict[str, int]:
        """``requests``, ``retries``, ``hedges`` and ``network_bytes`` of this process's client, and
        ``cache_hits``, ``cache_misses`` and ``cache_..._bytes`` of this dataset's cache.
        """
        sums = self._client.stats() if self._client else {}
        kept = self._cache.stats() if self._cache else {}
        return {
            "requests": sums.get("requests", 0),
            "retries": sums.get("retries", 0),
            "hedges": sums.get("hedges", 0),
            "network_bytes": sums.get("bytes", 0),
            "cache_hits": 0,
            "cache_misses": 0,
            **kept,
        }

    def cache_trouble(self) -> str | None:
        """Why the cache cannot be written; told once, by whichever process notices."""
        return self._cache.trouble() if self._cache else None

    def remote_sizes(self) -> dict[int, int]:
        """Bytes of each remote tar, by its number."""
        return {
            number: shard.bytes for number, shard in enumerate(self._counted()) if shard.is_remote
        }

    def fill(self, shard: int, block: int) -> bool:
        """Get one block of a remote shard that the cache has not; ``False``: there was none."""
        return self.core.fill(shard, block)

    def seen(self) -> list[Shard]:
        """The shards, with the counts, sizes and ETags that opening them brought."""
        etags = self.core.shard_etags()
        return [
            replace(sized(shard), etag=etag)
            for shard, etag in zip(self._counted(), etags, strict=True)
        ]

    def _counted(self) -> list[Shard]:
        """With counts and sizes. No locks: a child after fork() asks for them."""
        counts, sizes = self._core.shard_samples(), self._core.shard_bytes()
        return [
            replace(shard, samples=count, bytes=size)
            for shard, count, size in zip(self._shards, counts, sizes, strict=True)
        ]

    def __reduce__(self) -> tuple[object, ...]:
        """Another process opens the same shards, and is told what this one knows of them."""
        return Dataset.of, (self._counted(), self._name, self._reach)

    @property
    def shards(self) -> list[str]:
        """Paths of the tars, in order."""
        return [shard.path for shard in self._shards]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of each shard's name, sample count and size: what a state is bound to."""
        digest = hashlib.sha256()
        for shard in map(sized, self._counted()):
            name = file_name(shard.path)
            digest.update(f"{name}\0{shard.samples}\0{shard.bytes}\n".encode())
        return digest.hexdigest()[:32]

    @functools.cached_property
    def total_bytes(self) -> int:
        """Bytes of all tars."""
        return sum(sized(shard).bytes for shard in self._counted())

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

    @property
    def is_cached(self) -> bool:
        return self._base.is_cached

    def network(self) -> dict[str, int]:
        return self._base.network()

    def cache_trouble(self) -> str | None:
        return self._base.cache_trouble()

    def fill(self, shard: int, block: int) -> bool:
        return self._base.fill(shard, block)

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


def sized(shard: Shard) -> Shard:
    """With the size of its file, if nobody told it."""
    if shard.bytes >= 0:
        return shard
    try:
        return replace(shard, bytes=Path(shard.path).stat().st_size)
    except OSError as error:
        raise StoreError(f"{shard.path}: {error.strerror or error}") from error


def open(
    shards: Shards | Dataset,
    *,
    store: Store | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_bytes: int | None = None,
    timeout_s: float | None = None,
) -> Dataset:
    """Open shards for random access; see `Dataset`. One that is open already stays as it is.

    Args:
        shards: Anything a `Loader` takes.
        store: How to reach ``s3://`` and ``https://`` shards; ``None``: as the environment says.
        cache_dir: A local folder that keeps what is read of remote shards, in blocks of 4 MiB, for
            the next time and for other processes of this machine. ``None``: nothing is kept.
        cache_bytes: Most that the folder may hold; the least recently used goes first.
        timeout_s: Longest that one read over the network may take, tries included, in seconds.
    """
    reach = Reach.of(store, cache_dir, cache_bytes, timeout_s)
    if not isinstance(shards, Dataset):
        return Dataset(shards, reach)
    if (reach.store, reach.cache_dir) != (None, None):
        raise ValueError(
            f"store or cache_dir for {shards!r}, which is open already: give them to tarpon.open()"
        )
    return shards


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
