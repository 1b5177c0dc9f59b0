"""The loader: positions of an epoch in, batches out, exact at any point. Order, state and errors.

Reading and decoding happen in the core (core/engine.h); this module only decides which samples
stand in which batch, and what to do about bad ones.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

import numpy as np

from tarpon import _core
from tarpon._decode import Ask, Decoder, describe
from tarpon._order import Order
from tarpon._shards import Shards
from tarpon.batch import Batch
from tarpon.cpus import usable_cpus
from tarpon.dataset import Dataset, open
from tarpon.errors import BadSampleError, StateMismatchError, TarponError
from tarpon.fields import Field, Raw

_AHEAD = 3  # batches asked for before they are wanted: one in use, one done, one in the making
_THREADS_MOST = 16
_UNLIMITED = 2**64 - 1
_STATE_VERSION = 2

_log = logging.getLogger("tarpon")


class Loader:
    """Resumable stream of batches from tar shards; one per rank.

    Reading, JPEG decoding and resizing run on C threads without the GIL; the caller only waits.

        with tarpon.Loader(
            "photos/v3/train.json",
            batch_size=256,
            fields={"image": tarpon.RandomResizedCrop(224), "label": tarpon.Int("cls")},
            seed=17,
        ) as loader:
            for batch in loader:                       # one epoch; the next `for` is the next
                step(batch["image"], batch["label"])   # uint8[256, 224, 224, 3], int64[256]

    Args:
        shards: A shard list (``train.json``), a tar, ``train-{000000..000127}.tar``, a glob, a
            folder, or a list of these; or an opened ``Dataset``, such as a ``tarpon.view``.
            Local files.
        batch_size: Samples per batch on this rank.
        fields: What to make of each sample, by the name it gets in the batch; see
            ``tarpon.fields``. ``None``: every component of the first sample, as raw bytes.
        shuffle: Another permutation of the whole dataset each epoch: chunks of neighbours are
            permuted, then single samples within windows. ``False``: samples come as they lie in
            the shards.
        seed: Fixes order, crops and flips, on any machine and for any world size.
        rank, world_size: Default to ``torch.distributed`` when it is initialised, else to the
            ``RANK`` and ``WORLD_SIZE`` of torchrun, else to a single rank.
        lanes: Parts of the epoch that take turns; a rank keeps to its own where ``world_size``
            divides their number. Default: the largest divisor of the global batch up to 64.
        window_samples: How many samples are mixed with one another, over all lanes; more mix
            better, and make a rank hold more of remote shards. Default: what 1.5 GiB holds, 256
            to 65,536. ``"all"``: one lane and one window, a permutation at the level of samples,
            which local disks serve as fast. ``tarpon stats --shuffle`` tells what it does on your
            shards. Saved states carry both, and the defaults follow from the dataset and the
            global batch alone.
        last: ``"drop"`` the rest that fills no global batch, ``"pad"`` it with repeats marked in
            ``batch.valid``, or ``"keep"`` it short (one rank only).
        on_bad_sample: ``"raise"``, or ``"substitute"``: the next good sample of the same lane
            takes the slot; logged once each and counted in ``stats()``.
        threads: C threads; default one per CPU this process or its container may use, at most
            16.
        buffer_bytes: Hard ceiling on the memory of batches, in the making and in use. Reading
            pauses there. ``None``: no ceiling; three batches are made ahead, and those you keep
            come on top.
        cache_dir, cache_bytes, store: For remote shards, which are not supported yet.
        timeout_s: Longest wait for one batch, in seconds; ``None`` waits for ever.

    Yields:
        ``Batch``: arrays view the loader's memory and hold it until dropped.

    Raises:
        StoreError: A shard is missing, unreadable, replaced or not the size its list says.
        CorruptShardError: A shard or index breaks its format; carries ``shard`` and ``offset``.
        BadSampleError: A wanted field cannot be made, with ``on_bad_sample="raise"``.
        LoaderTimeoutError: No batch within ``timeout_s``; says what it waited for.
        StateMismatchError: From ``load_state_dict``.

    State: ``state_dict()`` and ``load_state_dict()`` are exact at any batch. One consumer thread.
    """

    def __init__(
        self,
        shards: Shards | Dataset,
        *,
        batch_size: int,
        fields: Mapping[str, Field] | None = None,
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
        store: Any = None,
    ) -> None:
        _refuse_unsupported(cache_dir, cache_bytes, store)
        self._rank, self._world_size = _place(rank, world_size)
        self._placed = rank is not None
        self._batch_size = _positive("batch_size", batch_size)
        self._global = self._batch_size * self._world_size
        if not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise ValueError(f"seed={seed!r}, expected a whole number from 0 to 2^64 - 1")
        if timeout_s is not None and not timeout_s > 0:
            raise ValueError(f"timeout_s={timeout_s!r}, expected seconds above 0, or None")
        _one_of("last", last, ("drop", "pad", "keep"))
        _one_of("on_bad_sample", on_bad_sample, ("raise", "substitute"))
        if last == "keep" and self._world_size > 1:
            raise ValueError(
                f"last='keep' with world_size={self._world_size}, expected one rank: the others "
                "would wait for a batch that never comes; use last='pad' or 'drop'"
            )
        self._seed, self._last = seed, last
        self._substitute = on_bad_sample == "substitute"
        self._timeout_s = math.inf if timeout_s is None else float(timeout_s)

        fields = _checked_fields(fields)
        self.dataset = open(shards)
        self.num_samples = len(self.dataset)
        self._check_size()
        self._fixed = _asked_order(lanes, window_samples)
        self._order = Order.of(
            samples=self.num_samples,
            total_bytes=self.dataset.total_bytes,
            global_batch=self._global,
            shuffle=bool(shuffle),
            seed=seed,
            lanes=lanes,
            window_samples=window_samples,
        )
        self._advise_lanes()
        threads = _default_threads() if threads is None else _positive("threads", threads)
        self._fields = fields if fields is not None else self._every_component()
        self._decoder = Decoder(self.dataset, self._fields, threads=threads, seed=seed)
        self._engine = _core.Engine(
            self.dataset.core,
            [describe(field) for field in self._fields.values()],
            threads,
            _UNLIMITED if buffer_bytes is None else _positive("buffer_bytes", buffer_bytes),
        )
        self._pid = os.getpid()
        self._epoch = 0
        self._position = 0  # samples of the epoch handed over, on all ranks together
        self._asked: deque[Ask] = deque()
        self._stride = 1  # steps from one batch that is asked for to the next
        self._wanted = (0, 0)  # the last epoch and step that batch() was asked for
        self._bad: dict[int, BadSampleError] = {}
        self._handed = 0
        self._wait_s = 0.0
        self._started: float | None = None

    # ---- iteration ---------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches per epoch on this rank."""
        if self._last == "drop":
            return self.num_samples // self._global
        return -(-self.num_samples // self._global)

    def __iter__(self) -> Iterator[Batch]:
        self._check_usable()
        self._check_place()
        if self._count_at(self._position) == 0:
            self.set_epoch(self._epoch + 1)
        epoch = self._epoch
        while self._epoch == epoch and self._count_at(self._position) > 0:
            yield self._advance()  # no name here, which would hold the batch and its memory
        if self._epoch == epoch:
            self._epoch, self._position = epoch + 1, 0

    def batch(self, epoch: int, step: int) -> Batch:
        """Batch number `step` of `epoch` on this rank: a pure function, whatever came before.

        Does not move the loader. Asking for every n-th step in turn reads ahead, as iterating
        does.
        """
        self._check_usable()
        self._check_place()
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of an epoch of {len(self)} batches")
        if epoch == self._wanted[0] and step > self._wanted[1]:
            self._stride = step - self._wanted[1]
        self._wanted = epoch, step
        return self._take(epoch, step * self._global)

    def where(self, index: int, epoch: int) -> tuple[int, int, int] | None:
        """(step, rank, slot) at which sample `index` falls in `epoch`; ``None``: dropped."""
        position = self._order.position_of(epoch, index)
        step, rank, slot = self._order.owner(position, self._global, self._world_size)
        return (step, rank, slot) if step < len(self) else None

    # ---- position and state ------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, or of the last one while its `for` still runs."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`."""
        if epoch < 0:
            raise ValueError(f"epoch={epoch}, expected 0 or more")
        self._epoch, self._position = int(epoch), 0

    def state_dict(self) -> dict[str, int | str | bool]:
        """Where the loader stands: batches handed over, not prefetched. JSON-able, < 1 KB."""
        return {
            "version": _STATE_VERSION,
            "fingerprint": self.dataset.fingerprint,
            **self._order.state(),
            "epoch": self._epoch,
            "position": self._position,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken; the next batch starts with the next sample.

        World size, batch size and threads may differ from those of the loader that made it;
        lanes and window are those of the state.

        Raises:
            StateMismatchError: It is of another dataset, seed or shuffle, or of other lanes or
                another window than this loader was told to use; names both.
        """
        wanted = ("fingerprint", "order", "samples", "shuffle", "seed", "epoch", "position")
        missing = [key for key in wanted if not isinstance(state, Mapping) or key not in state]
        if missing:
            raise StateMismatchError(f"state without {missing}, expected a Loader.state_dict()")
        if state["fingerprint"] != self.dataset.fingerprint:
            raise StateMismatchError(
                f"state of fingerprint {state['fingerprint']!r}, this loader has "
                f"{self.dataset.fingerprint!r}; build the loader on the same shards"
            )
        order = self._order.restored(state, fixed=self._fixed)
        epoch, position = state["epoch"], state["position"]
        whole = isinstance(epoch, int) and isinstance(position, int)
        if not whole or epoch < 0 or not 0 <= position <= self.num_samples:
            raise StateMismatchError(
                f"state at epoch {epoch!r}, position {position!r}, expected a position within "
                f"{self.num_samples} samples"
            )
        self._cancel()
        self._order, self._epoch, self._position = order, epoch, position

    # ---- what it did ---------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Sums since the loader was made.

        ``samples``, ``bytes`` read, ``samples_per_s``; seconds the consumer waited
        (``wait_s``); seconds summed over threads that they read (``read_s``), decoded
        (``decode_s``), waited for room (``full_s``) or for work (``idle_s``);
        ``held_bytes`` of batches and ``index_bytes`` in memory now; ``cache_hits``, ``retries``;
        ``bad_samples``: a list of shard, key, offset and reason.
        """
        self._check_usable()
        sums = self._engine.stats()
        elapsed = time.monotonic() - self._started if self._started is not None else 0.0
        return sums | {
            "samples": self._handed,
            "bytes": int(sums["bytes"]),
            "samples_per_s": self._handed / elapsed if elapsed > 0 else 0.0,
            "wait_s": self._wait_s,
            "index_bytes": self.dataset.core.index_bytes(),
            "cache_hits": 0,
            "retries": 0,
            "bad_samples": [
                {
                    "shard": error.shard,
                    "key": error.key,
                    "offset": error.offset,
                    "reason": error.reason,
                }
                for error in self._bad.values()
            ],
        }

    def close(self) -> None:
        """Stop the threads. Batches handed over stay valid. Safe to call again.

        Waits no longer than a second for a read that hangs: its thread then ends by itself.
        """
        if os.getpid() == self._pid:
            if not self._engine.close():
                _log.warning("%r closed while a read hangs; its thread ends when that does", self)
            self._decoder.close()
        self._asked.clear()
        self._pid = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<tarpon.Loader {self.num_samples} samples, {len(self)} batches of "
            f"{self._batch_size} on rank {self._rank} of {self._world_size}, epoch {self._epoch}>"
        )

    # ---- inside ----------------------------------------------------------------------------------

    def _count_at(self, position: int) -> int:
        """Samples of the global batch that starts at `position`; 0: the epoch is over."""
        left = self.num_samples - position
        if left <= 0 or (self._last == "drop" and left < self._global):
            return 0
        return min(left, self._global) if self._last == "keep" else self._global

    def _ask(self, epoch: int, start: int) -> None:
        count = self._count_at(start)
        positions = self._order.share(start, count, self._rank, self._world_size)
        indices = self._order.samples_at(epoch, positions)
        if self._bad:
            for slot in np.flatnonzero(np.isin(indices, list(self._bad))):
                indices[slot] = self._substitute_for(epoch, int(positions[slot]))
        ask = Ask(
            epoch=epoch,
            step=start // self._global,
            start=start,
            indices=indices,
            positions=positions,
            valid=positions < self.num_samples,
        )
        numbers = self.dataset.numbers(indices)
        self._engine.submit(numbers, positions, self._seed, epoch)
        self._asked.append(ask)

    def _advance(self) -> Batch:
        """The batch at the loader's position, which moves past it."""
        self._stride = 1
        batch = self._take(self._epoch, self._position)
        self._position = min(self._position + self._global, self.num_samples)
        return batch

    def _take(self, epoch: int, start: int) -> Batch:
        """The batch at `start`, while those after it are being made, across the epoch's end."""
        self._check_usable()
        if self._started is None:
            self._started = time.monotonic()
        try:
            if self._asked and (self._asked[0].epoch, self._asked[0].start) != (epoch, start):
                self._cancel()
            if not self._asked:
                self._ask(epoch, start)
            while len(self._asked) < _AHEAD:
                self._ask_after(self._asked[-1])
            return self._next_asked()
        except BaseException as error:
            # Engine and `_asked` may be out of step, and would pair a batch with another's
            # indices: forget both, the next call asks again.
            self._cancel()
            if self._pid == -1 and isinstance(error, Exception):  # by another thread, under us
                raise ValueError("the loader is closed") from error
            raise

    def _ask_after(self, ask: Ask) -> None:
        start = ask.start + self._stride * self._global
        if self._count_at(start) > 0:
            self._ask(ask.epoch, start)
        else:
            self._ask(ask.epoch + 1, ask.step % self._stride * self._global)

    def _next_asked(self) -> Batch:
        """Wait for the oldest batch asked for."""
        while True:
            ask = self._asked[0]
            began = time.monotonic()
            slab, layouts, keys, issues = self._engine.take(self._timeout_s)
            self._wait_s += time.monotonic() - began
            columns, bad = self._decoder.columns(ask, slab, layouts, issues, keys)
            if not bad:
                break
            del slab, columns  # their memory is needed for the next try
            self._on_bad(ask, bad)
        self._asked.popleft()
        self._handed += len(ask.indices)
        return Batch(
            columns,
            sample_keys=keys,
            indices=ask.indices,
            valid=ask.valid,
            epoch=ask.epoch,
            step=ask.step,
        )

    def _on_bad(self, ask: Ask, bad: dict[int, BadSampleError]) -> None:
        """Raise, or ask for the same batch again with other samples in the bad slots."""
        if not self._substitute:
            raise bad[min(bad)]
        self._cancel()
        for slot in sorted(bad):
            index = int(ask.indices[slot])
            if index not in self._bad:
                self._bad[index] = bad[slot]
                _log.warning("bad sample %d replaced by the next good one: %s", index, bad[slot])
        self._ask(ask.epoch, ask.start)

    def _substitute_for(self, epoch: int, position: int) -> int:
        """The first sample that may stand in for the one at `position` and is not known bad."""
        known, start = list(self._bad), 0
        while len(positions := self._order.successors(position, start, 64 + start)) > 0:
            indices = self._order.samples_at(epoch, positions)
            good = indices[~np.isin(indices, known)]
            if len(good) > 0:
                return int(good[0])
            start += len(positions)
        first = next(iter(self._bad.values()))
        raise BadSampleError(f"all {self.num_samples} samples are bad, the first one: {first}")

    def _cancel(self) -> None:
        self._asked.clear()
        if self._pid == os.getpid():
            self._engine.cancel()

    def _check_usable(self) -> None:
        if self._pid == -1:
            raise ValueError("the loader is closed")
        if self._pid != os.getpid():
            raise RuntimeError(
                "this loader was made before fork(): its threads do not exist in the child; "
                "make the loader in the process that uses it, or start workers with 'spawn'"
            )

    def _check_place(self) -> None:
        """A process group that came up since may have put this process somewhere else."""
        now = (self._rank, self._world_size) if self._placed else _place(None, None)
        if now != (self._rank, self._world_size):
            raise RuntimeError(
                f"a loader made as rank {self._rank} of {self._world_size}, this process is now "
                f"rank {now[0]} of {now[1]}: it would give other ranks' samples; make the loader "
                "after the process group is up, or pass rank and world_size"
            )

    def _check_size(self) -> None:
        if self.num_samples == 0:
            tars = len(self.dataset.shards)
            raise TarponError(f"{self.dataset!r}: no samples in {tars} tars, expected some")
        if self._last == "drop" and self.num_samples < self._global:
            raise ValueError(
                f"batch_size={self._batch_size} on {self._world_size} ranks takes {self._global} "
                f"samples, the dataset has {self.num_samples}: not one batch with last='drop'; "
                "lower batch_size or use last='pad'"
            )

    def _advise_lanes(self) -> None:
        """Say once that ranks will share lanes, and what would avoid it."""
        order, world = self._order, self._world_size
        one = order.lanes == 1  # of one lane or one sample after another nothing else can come
        if one or order.by_lane(world) or self._rank > 0:
            return
        _log.warning(
            "lanes=%d cannot be dealt to %d ranks: each takes part of every lane, the same samples "
            "at the price of bytes that two ranks read; lanes=%d would avoid it",
            order.lanes,
            world,
            world * max(1, 64 // world),
        )

    def _every_component(self) -> dict[str, Field]:
        return {extension: Raw(extension) for extension in self.dataset[0]}


def _refuse_unsupported(cache_dir: object, cache_bytes: object, store: object) -> None:
    for name, value in (("cache_dir", cache_dir), ("cache_bytes", cache_bytes), ("store", store)):
        if value is not None:
            raise NotImplementedError(
                f"{name}={value!r}: not supported yet, expected None; only local shards are read, "
                "and the page cache keeps those"
            )


def _asked_order(lanes: int | None, window_samples: int | Literal["all"] | None) -> frozenset[str]:
    """Which parts of the order a state must agree with, because they were asked for."""
    if lanes is not None:
        _positive("lanes", lanes)
    if window_samples == "all":
        if lanes not in (None, 1):
            raise ValueError(
                f"lanes={lanes} with window_samples='all', expected lanes=None: it is one window "
                "of one lane; give window_samples a number, or leave lanes out"
            )
        return frozenset(("lanes", "window"))
    if window_samples is not None:
        if isinstance(window_samples, str):
            raise ValueError(f"window_samples={window_samples!r}, expected a number or 'all'")
        _positive("window_samples", window_samples)
    asked = {"lanes": lanes, "window": window_samples}
    return frozenset(key for key, value in asked.items() if value is not None)


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """This rank and how many there are: as given, or from whoever started the process."""
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank={rank}, world_size={world_size}: expected both or neither")
    if rank is None or world_size is None:
        distributed = sys.modules.get("torch.distributed")  # never imported for this
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            rank, world_size = distributed.get_rank(), distributed.get_world_size()
        else:
            rank, world_size = _place_by_torchrun()
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank}, world_size={world_size}: expected 0 <= rank < world_size")
    return rank, world_size


def _place_by_torchrun() -> tuple[int, int]:
    """What the environment says; a launcher that tells only half of it must not make twins."""
    rank, world_size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE", "1")
    if rank is None and world_size != "1":
        raise ValueError(
            f"WORLD_SIZE={world_size} without RANK, expected both or neither; make the loader "
            "after the process group is up, or pass rank and world_size"
        )
    try:
        return int(rank or "0"), int(world_size)
    except ValueError:
        raise ValueError(
            f"RANK={rank}, WORLD_SIZE={world_size}: expected whole numbers, as torchrun sets them"
        ) from None


def _checked_fields(fields: Mapping[str, Field] | None) -> dict[str, Field] | None:
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


def _default_threads() -> int:
    return min(_THREADS_MOST, usable_cpus())


def _positive(name: str, value: int) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}, expected a whole number of at least 1")
    return int(value)


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}, expected one of {', '.join(map(repr, choices))}")
