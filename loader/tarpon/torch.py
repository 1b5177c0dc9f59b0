"""Batches as torch tensors: on the GPU ahead of time, or for who keeps ``DataLoader`` or Lightning.

The public face of the modules that import torch (``_torch_*.py``); ``IterableDataset``, which
shares the steps of an epoch among worker processes, is here. Order, state and pixels are the
Loader's, and nothing here decides about them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
import torch.utils.data

from tarpon._arguments import default_threads, place
from tarpon._shards import Shards
from tarpon._torch_columns import RaggedTensor, refuse_reserved, to_torch
from tarpon._torch_loader import LoaderOptions, TorchLoader
from tarpon._torch_normalize import Normalize
from tarpon.batch import Batch
from tarpon.dataset import Dataset
from tarpon.errors import StateMismatchError
from tarpon.fields import Field
from tarpon.loader import Loader
from tarpon.store import Store

__all__ = [
    "IterableDataset",
    "LoaderOptions",
    "Normalize",
    "RaggedTensor",
    "TorchLoader",
    "to_torch",
]

_WORKERS_MOST = 1024
_ORDER_BYTES = 1024  # more than a state takes


class IterableDataset(torch.utils.data.IterableDataset[Any]):
    """A Loader as a dataset of whole batches, for ``DataLoader(..., batch_size=None)``.

    That ``batch_size=None`` is needed: given a number, or nothing, ``DataLoader`` stacks so many
    batches into one, ``uint8[4, 256, ...]``, and nothing here can see it.

        dataset = tarpon.torch.IterableDataset(
            "train-{000000..000127}.tar",
            batch_size=256,
            fields={"image": tarpon.RandomResizedCrop(224), "label": tarpon.Int("cls")},
            seed=17,
        )
        for batch in dataset:                                      # or, with worker processes,
        for batch in DataLoader(dataset, batch_size=None, num_workers=2):
            batch["image"], batch["label"]         # uint8[256, 224, 224, 3], int64[256], on the CPU

    The Loader is made when it is first needed, in the process that iterates, so ranks are
    looked up after the process group is up. Of N workers, worker w makes the steps w, w + N, ...
    of the epoch: the stream is the same for every N, and for none.

    Begin without workers: the Loader's threads decode without the GIL. Workers are for a
    `transform` that is heavy Python.

    Args:
        shards: As for `tarpon.Loader`, like every argument that is not named here.
        transform: Called on each batch, a dict as `to_torch` makes it, in the process that
            iterates; what it returns is handed over. With workers that are spawned it has to
            be picklable.
        threads: C threads of each process; default those of one Loader, shared among the
            workers.

    Yields:
        What `to_torch` returns, or what `transform` made of that. Tensors own the memory of
        their batch, or view it, until they are dropped.

    Raises:
        ValueError: A field is called ``indices`` or ``valid``; more than 1,024 workers.
        Otherwise as `tarpon.Loader`, from the first use on.

    Epochs: each whole ``for`` is the next epoch, with persistent workers too. After a ``break``
    the next ``for`` gives the rest, as a Loader does; with workers, which have made batches ahead
    that are then lost, it starts the next epoch.
    State: without workers ``state_dict()`` is exact at any batch, and a Loader's: each loads the
    other's. A ``DataLoader`` with workers does not tell what it handed over; there
    ``torchdata.stateful_dataloader.StatefulDataLoader`` has the exact state, and
    ``state_dict()`` here raises instead of guessing.
    """

    def __init__(
        self,
        shards: Shards | Dataset,
        *,
        batch_size: int,
        fields: Mapping[str, Field] | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        lanes: int | None = None,
        window_samples: int | Literal["all"] | None = None,
        last: Literal["drop", "pad", "keep"] = "drop",
        on_bad_sample: Literal["raise", "substitute"] = "raise",
        threads: int | None = None,
        buffer_bytes: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
        timeout_s: float | None = 600,
        store: Store | None = None,
    ) -> None:
        if isinstance(fields, Mapping):
            refuse_reserved(fields)
        if not isinstance(shards, str | os.PathLike | Dataset):
            shards = list(shards)
        self._shards = shards
        self._transform = transform
        self._rank, self._world_size, self._threads = rank, world_size, threads
        self._options: dict[str, Any] = {
            "batch_size": batch_size,
            "fields": fields,
            "shuffle": shuffle,
            "seed": seed,
            "lanes": lanes,
            "window_samples": window_samples,
            "last": last,
            "on_bad_sample": on_bad_sample,
            "buffer_bytes": buffer_bytes,
            "cache_dir": cache_dir,
            "cache_bytes": cache_bytes,
            "timeout_s": timeout_s,
            "store": store,
        }
        # Row w, in memory that all processes share: epoch and position at which worker w starts
        # its next `for`, and whether it ever did. Nobody tells the main process that a `for`
        # began, and workers may live for one only; each writes its own row, so none waits.
        self._starts = torch.zeros(_WORKERS_MOST, 3, dtype=torch.int64)
        self._starts.share_memory_()  # type: ignore[no-untyped-call]
        # The order of the state that was loaded last, which all processes have to follow: JSON,
        # after a byte that says it is there, which is written last.
        self._order = torch.zeros(_ORDER_BYTES, dtype=torch.uint8)
        self._order.share_memory_()  # type: ignore[no-untyped-call]
        self._start = (0, 0)  # of this process, if it is no worker; else where its `for` stands
        self._loader: Loader | None = None
        self._pid = -1  # whose `_loader` is
        self._facts: tuple[tuple[int, int], Loader] | None = None
        self._parents_place: tuple[int, int] | None = None

    # ---- iteration ---------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches per epoch on this rank, for all workers together."""
        return len(self._known())

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        if worker is None:
            return self._alone()
        if worker.num_workers > _WORKERS_MOST:
            raise ValueError(f"num_workers={worker.num_workers}, expected at most {_WORKERS_MOST}")
        # Now, not at the first batch: a worker that is stopped before it must have moved on too.
        epoch, position, _ = self._starts[worker.id].tolist()
        self._starts[worker.id] = torch.tensor([epoch + 1, 0, 1])
        self._start = (epoch, position)
        return self._share(epoch, position, worker.id, worker.num_workers)

    def _alone(self) -> Iterator[Any]:
        yield from map(self._made, self._here())  # no name, which would hold the batch

    def _share(self, epoch: int, position: int, worker: int, workers: int) -> Iterator[Any]:
        """The worker's part of an epoch of which `position` samples were handed over."""
        loader = self._in_order(self._here())
        samples = self._global_batch()
        if position % samples and position < loader.num_samples:
            raise StateMismatchError(
                f"state at position {position} with {samples} samples per step, expected a whole "
                "number of steps with DataLoader workers; load it with the batch size it was "
                "taken with, or iterate with num_workers=0"
            )
        for step in range(-(-position // samples) + worker, len(loader), workers):
            # As if all workers had come as far as this one, which is what its copy may know.
            after = min((step - worker + workers) * samples, loader.num_samples)
            self._start = (epoch, after)
            yield self._made(loader.batch(epoch, step, every=workers))

    def _made(self, batch: Batch) -> Any:
        columns = to_torch(batch)
        return columns if self._transform is None else self._transform(columns)

    # ---- position and state ------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; reaches persistent workers with the next ``for``."""
        if epoch < 0:
            raise ValueError(f"epoch={epoch}, expected 0 or more")
        self._go_to(int(epoch), 0)

    def state_dict(self) -> dict[str, int | str | bool]:
        """Where this process stands: a Loader's state, exact at what was handed over.

        In a worker: where its own part stands, which is what ``StatefulDataLoader`` collects.

        Raises:
            RuntimeError: Called beside workers, whose position this process does not know.
        """
        mine = self._workers()
        if not mine and self._starts[:, 2].any():
            raise RuntimeError(
                "state_dict() of a dataset that DataLoader workers iterate: this process does not "
                "know which of their batches were handed over; use the state_dict() of torchdata's "
                "StatefulDataLoader, or num_workers=0, or set_epoch() between epochs"
            )
        if not mine and self._is_mine():
            return self._here().state_dict()
        epoch, position = self._start
        return self._known().state_dict() | {"epoch": epoch, "position": position} | mine

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken, by this class or by a Loader.

        Call it before workers start, or before the next ``for`` of persistent ones. With workers
        the position has to be a whole number of steps; without, any batch size goes on at the
        next sample.

        Raises:
            StateMismatchError: It is of another dataset, seed, shuffle or order; names both.
        """
        known, mine = self._known(), self._workers()
        for key in ("workers", "samples_per_step"):
            if isinstance(state, Mapping) and state.get(key) != mine.get(key):
                raise StateMismatchError(
                    f"state of {key} {state.get(key)}, this process has {mine.get(key)}; what a "
                    "worker saved is for the same worker of as many, with the same batch size"
                )
        known.load_state_dict(state)
        epoch, position = state["epoch"], state["position"]
        order = known.state_dict()
        del order["epoch"], order["position"]
        text = json.dumps(order).encode().ljust(_ORDER_BYTES - 1)
        self._order[1:] = torch.tensor([*text], dtype=torch.uint8)
        self._order[0] = 1
        worker = torch.utils.data.get_worker_info()
        if worker is not None:
            self._starts[worker.id, :2] = torch.tensor([epoch, position])
            return
        left = known.num_samples - position
        if left <= 0 or (self._options["last"] == "drop" and left < self._global_batch()):
            epoch, position = epoch + 1, 0
        self._go_to(epoch, position)

    def _go_to(self, epoch: int, position: int) -> None:
        self._starts[:] = torch.tensor([epoch, position, 0])
        self._start = (epoch, position)
        if self._is_mine():
            self._move(self._here())

    def _move(self, loader: Loader) -> None:
        self._in_order(loader)
        epoch, position = self._start
        loader.load_state_dict(loader.state_dict() | {"epoch": epoch, "position": position})

    # ---- inside ----------------------------------------------------------------------------------

    def _workers(self) -> dict[str, int]:
        """What a worker's state is bound to; nothing in the main process."""
        worker = torch.utils.data.get_worker_info()
        if worker is None:
            return {}
        return {"workers": worker.num_workers, "samples_per_step": self._global_batch()}

    def _in_order(self, loader: Loader) -> Loader:
        """`loader`, in the order of the last state that any process loaded."""
        if not self._order[0]:
            return loader
        saved = json.loads(bytes(self._order[1:].tolist()))
        if not saved.items() <= loader.state_dict().items():
            loader.load_state_dict(saved | {"epoch": 0, "position": 0})
        return loader

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned has no process group to ask for its rank.
        parents = self._place()
        return self.__dict__ | {"_loader": None, "_facts": None, "_parents_place": parents}

    def _is_mine(self) -> bool:
        return self._loader is not None and self._pid == os.getpid()

    def _here(self) -> Loader:
        """The Loader of this process, made on first use."""
        if self._loader is None or self._pid != os.getpid():
            worker = torch.utils.data.get_worker_info()
            threads = self._threads
            if threads is None and worker is not None:
                threads = max(1, default_threads() // worker.num_workers)
            self._loader = self._make(threads)
            self._pid = os.getpid()
            if worker is None:
                self._move(self._loader)
        return self._loader

    def _known(self) -> Loader:
        """A Loader to ask for length and state, closed: threads would be in the way of a fork."""
        if torch.utils.data.get_worker_info() is not None or self._is_mine():
            return self._here()
        place = self._place()
        if self._facts is None or self._facts[0] != place:
            with self._make(threads=1) as loader:
                self._facts = (place, loader)
        return self._in_order(self._facts[1])

    def _make(self, threads: int | None) -> Loader:
        rank, world_size = self._rank, self._world_size
        if torch.utils.data.get_worker_info() is not None:
            rank, world_size = self._place()  # else the Loader sees for itself, and keeps looking
        return self._in_order(
            Loader(self._shards, rank=rank, world_size=world_size, threads=threads, **self._options)
        )

    def _place(self) -> tuple[int, int]:
        if self._parents_place is not None and torch.utils.data.get_worker_info() is not None:
            return self._parents_place
        return place(self._rank, self._world_size)

    def _global_batch(self) -> int:
        return int(self._options["batch_size"]) * self._place()[1]
