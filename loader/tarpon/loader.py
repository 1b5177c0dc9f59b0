"""The loader: positions of an epoch in, batches out, exact at any point. Order, state and errors.

Reading and decoding happen in the core (core/engine.h); this module only decides which samples
stand in which batch, and what to do about bad ones.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, Self, TypeVar

import numpy as np

from tarpon import _core
from tarpon._ahead import ReadAhead, batch_ceiling
from tarpon._arguments import (
    asked_order,
    check_memory,
    checked_fields,
    count,
    default_threads,
    one_of,
    place,
    positive,
)
from tarpon._decode import Ask, Decoder, describe
from tarpon._order import Int64s, Order
from tarpon._shards import Shards
from tarpon._substitutes import Substitutes, in_turn
from tarpon.batch import Batch
from tarpon.dataset import Dataset, open
from tarpon.errors import (
    BadSampleError,
    LoaderTimeoutError,
    StateMismatchError,
    TarponError,
)
from tarpon.fields import Field, Raw
from tarpon.store import Store

_AHEAD = 3  # batches asked for before they are wanted: one in use, one done, one in the making
_UNLIMITED = 2**64 - 1
_PATIENCE_S = 20.0  # without a batch, before it is said
_STATE_VERSION = 2
_MOST_EPOCHS = 2**64

_T = TypeVar("_T")
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
            folder, or a list of these, local, ``s3://`` or ``https://``; or an opened
            ``Dataset``, such as a ``tarpon.view``.
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
            as fast on local disks for up to about a million samples, whose indexes stay in memory
            (beyond, some 30 µs a sample). ``tarpon stats --shuffle`` tells what it does on your
            shards. Saved states carry both, and the defaults follow from the dataset and the
            global batch alone.
        last: ``"drop"`` the rest that fills no global batch, ``"pad"`` it with repeats marked in
            ``batch.valid``, or ``"keep"`` it short (one rank only).
        on_bad_sample: ``"raise"``, or ``"substitute"``: the next good sample of the same lane
            takes the slot; logged once each and counted in ``stats()``.
        threads: C threads; default one per CPU this process or its container may use, at most
            16.
        buffer_bytes: Hard ceiling on the memory of batches, in the making and in use, and of remote
            samples read ahead. Reading pauses there. ``None``: no ceiling on batches, of which
            three are made ahead and those you keep come on top; of remote shards about a window
            divided by ``world_size`` is held.
        cache_dir, cache_bytes: A local folder that keeps what is read of remote shards, for the
            next epoch and for the other ranks of this machine, and the most it may hold in bytes.
            ``tarpon prefetch`` fills one ahead. ``None``: nothing is kept.
        store: How to reach remote shards, a ``tarpon.Store``; ``None``: as the environment says.
        timeout_s: Longest wait for one batch, in seconds; nine tenths of it for one remote read.
            ``None`` waits for ever, for one remote read 540 s; an opened dataset has its own.

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
        store: Store | None = None,
    ) -> None:
        self._rank, self._world_size = place(rank, world_size)
        self._placed = rank is not None
        self._batch_size = positive("batch_size", batch_size)
        self._global = self._batch_size * self._world_size
        seed = count("seed", seed)
        if timeout_s is not None and not timeout_s > 0:
            raise ValueError(f"timeout_s={timeout_s!r}, expected seconds above 0, or None")
        one_of("last", last, ("drop", "pad", "keep"))
        one_of("on_bad_sample", on_bad_sample, ("raise", "substitute"))
        if last == "keep" and self._world_size > 1:
            raise ValueError(
                f"last='keep' with world_size={self._world_size}, expected one rank: the others "
                "would wait for a batch that never comes; use last='pad' or 'drop'"
            )
        self._seed, self._last = seed, last
        self._substitute = on_bad_sample == "substitute"
        self._timeout_s = math.inf if timeout_s is None else float(timeout_s)

        fields = checked_fields(fields)
        self.dataset = open(
            shards, store=store, cache_dir=cache_dir, cache_bytes=cache_bytes, timeout_s=timeout_s
        )
        self.num_samples = len(self.dataset)
        self._check_size()
        lanes, window_samples, self._fixed = asked_order(lanes, window_samples)
        self._order = Order.of(
            samples=self.num_samples,
            total_bytes=self.dataset.total_bytes,
            global_batch=self._global,
            shuffle=bool(shuffle),
            seed=seed,
            lanes=lanes,
            window_samples=window_samples,
        )
        self._advised = 0  # lanes that were complained of
        self._advise_lanes()
        threads = default_threads() if threads is None else positive("threads", threads)
        self._fields = fields if fields is not None else self._every_component()
        check_memory(self._fields, self._batch_size)
        self._decoder = Decoder(self.dataset, self._fields, threads=threads, seed=seed)
        self._ahead = ReadAhead.of(
            self.dataset, self._order, self._fields, world_size=self._world_size
        )
        self._ceiling = batch_ceiling(buffer_bytes, self._ahead.held)
        self._engine = _core.Engine(
            self.dataset.core,
            [describe(field) for field in self._fields.values()],
            threads,
            _UNLIMITED if self._ceiling is None else self._ceiling,
            self._ahead.bytes,
        )
        self._pid = os.getpid()
        self._epoch = 0
        self._position = 0  # samples of the epoch handed over, on all ranks together
        self._asked: deque[Ask] = deque()
        self._stride = 1  # steps from one batch that is asked for to the next
        self._phase = (-1, 0)  # the epoch in which batches begin there in the global batch
        self._bad = Substitutes()
        self._handed = 0
        self._wait_s = 0.0
        self._started: float | None = None
        self._using = threading.Lock()
        self._interrupted = False
        self._final: dict[str, Any] | None = None  # stats(), once closed

    # ---- iteration ---------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches per epoch on this rank."""
        if self._last == "drop":
            return self.num_samples // self._global
        return -(-self.num_samples // self._global)

    def __iter__(self) -> Iterator[Batch]:
        return self._rest_of_epoch(self._advance)

    def _rest_of_epoch(self, advance: Callable[[], _T]) -> Iterator[_T]:
        """What `advance` gives for each batch up to the epoch's end; then the next epoch begins."""
        self._check_usable()
        self._check_place()
        if self._count_at(self._position) == 0:
            self.set_epoch(self._epoch + 1)
        epoch = self._epoch
        while self._epoch == epoch and self._count_at(self._position) > 0:
            yield advance()  # no name here, which would hold the batch and its memory
        if self._epoch == epoch:
            self._epoch, self._position = epoch + 1, 0

    def batch(self, epoch: int, step: int, *, every: int = 1) -> Batch:
        """Batch number `step` of `epoch` on this rank: a pure function, whatever came before.

        Does not move the loader. Reads ahead for who asks for steps in turn, or for each
        `every`-th.
        """
        self._check_usable()
        self._check_place()
        count("epoch", epoch)
        if not 0 <= count("step", step) < len(self):
            raise IndexError(f"step {step} of an epoch of {len(self)} batches")
        self._stride = positive("every", every)
        return self._take(int(epoch), int(step) * self._global)

    def where(self, index: int, epoch: int) -> tuple[int, int, int] | None:
        """(step, rank, slot) at which sample `index` falls in `epoch`; ``None``: it does not.

        As this loader hands it over: in an epoch that was restored in the middle of one of its
        own batches, because the batch size changed, from there on.
        """
        if not 0 <= count("index", index) < self.num_samples:
            raise IndexError(f"sample {index} of a dataset of {self.num_samples} samples")
        position = self._order.position_of(count("epoch", epoch), int(index))
        first = self._phase[1] if self._phase[0] == epoch else 0
        if position < first:
            return None
        step, rank, slot = self._order.owner(position, first, self._global, self._world_size)
        return (step, rank, slot) if self._count_at(first + step * self._global) > 0 else None

    # ---- position and state ------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, or of the last one while its `for` still runs."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`."""
        self._epoch, self._position = count("epoch", epoch), 0
        self._phase = (-1, 0)

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
        wanted = (
            "version",
            "fingerprint",
            "order",
            "samples",
            "shuffle",
            "seed",
            "epoch",
            "position",
        )
        missing = [key for key in wanted if not isinstance(state, Mapping) or key not in state]
        if missing:
            raise StateMismatchError(
                f"state without {missing}, a {type(state).__name__}: expected the dict that "
                "Loader.state_dict() gave"
            )
        if state["fingerprint"] != self.dataset.fingerprint:
            raise StateMismatchError(
                f"state of fingerprint {state['fingerprint']!r} and {state['samples']} samples, "
                f"this loader has {self.dataset.fingerprint!r} and {self.num_samples}; build the "
                "loader on the same shards, in the same order"
            )
        if state["version"] not in range(1, _STATE_VERSION + 1):
            raise StateMismatchError(
                f"state of version {state['version']!r}, this loader knows 1 to {_STATE_VERSION}; "
                "use the tarpon that saved it, or a newer one"
            )
        order = self._order.restored(state, fixed=self._fixed)
        epoch, position = state["epoch"], state["position"]
        whole = type(epoch) is int and type(position) is int
        if not whole or not 0 <= epoch < _MOST_EPOCHS or not 0 <= position <= self.num_samples:
            raise StateMismatchError(
                f"state at epoch {epoch!r}, position {position!r}, expected a position within "
                f"{self.num_samples} samples"
            )
        self._cancel()
        self._order, self._epoch, self._position = order, epoch, position
        self._ahead.follow(order)
        here = self._count_at(position) > 0
        self._phase = (epoch, position % self._global) if here else (-1, 0)
        self._advise_lanes()

    # ---- what it did ---------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Sums since the loader was made; once it is closed, those of that moment.

        ``samples``, ``bytes`` read, ``samples_per_s``; seconds the consumer waited
        (``wait_s``); seconds summed over threads that they read (``read_s``), decoded
        (``decode_s``), waited for room (``full_s``) or for work (``idle_s``);
        ``held_bytes`` of batches, ``window_bytes`` of remote samples and ``index_bytes`` in memory
        now; ``unplanned`` reads of remote samples that nobody had asked for ahead;
        ``requests``, ``retries``, ``hedges`` and ``network_bytes`` of this process's network
        client; ``cache_hits``, ``cache_misses``;
        ``bad_samples``: a list of shard, key, offset and reason.
        """
        if self._final is not None:
            return self._final
        self._check_usable()
        sums = self._engine.stats()
        elapsed = time.monotonic() - self._started if self._started is not None else 0.0
        return sums | {
            "samples": self._handed,
            "bytes": int(sums["bytes"]),
            "samples_per_s": self._handed / elapsed if elapsed > 0 else 0.0,
            "wait_s": self._wait_s,
            "index_bytes": self.dataset.core.index_bytes(),
            **self.dataset.network(),
            "bad_samples": [
                {
                    "shard": error.shard,
                    "key": error.key,
                    "offset": error.offset,
                    "reason": error.reason,
                }
                for error in list(self._bad.errors.values())  # another thread may be taking a batch
            ],
        }

    def close(self) -> None:
        """Stop the threads. Batches handed over stay valid. Safe to call again.

        Waits no longer than a second for a read that hangs or a huge image: the thread then ends
        by itself.
        """
        if os.getpid() == self._pid:
            self._final = self.stats()
            if not self._engine.close():
                _log.warning(
                    "%r closed while a thread still reads or decodes; it ends when that does", self
                )
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

    def _positions(self, start: int) -> Int64s:
        """Those of this rank's part of the global batch at `start`."""
        return self._order.share(start, self._count_at(start), self._rank, self._world_size)

    def _lay_out(self, epoch: int, start: int) -> tuple[Ask, Int64s]:
        """This rank's part of a global batch, and what would stand there if no sample were bad."""
        positions = self._positions(start)
        planned, indices = self._bad.lay_out(self._order, epoch, positions)
        ask = Ask(
            epoch=epoch,
            step=start // self._global,
            start=start,
            indices=indices,
            positions=positions,
            valid=positions < self.num_samples,
        )
        return ask, planned

    def _ask(self, epoch: int, start: int) -> None:
        """Have the next batch made."""
        ask, planned = self._lay_out(epoch, start)
        if self._ahead.bytes:
            number = self._ahead.asked()
            for slot in np.flatnonzero(planned != ask.indices):
                if number < self._bad.since[int(planned[slot])]:  # planned before that was known
                    self._engine.skip(int(self.dataset.numbers(planned[slot : slot + 1])[0]))
        numbers = self.dataset.numbers(ask.indices)
        self._engine.submit(numbers, ask.positions, self._seed, epoch, False)
        self._asked.append(ask)

    def _ask_first(self, ask: Ask) -> None:
        """Have this made before the batches that were asked for."""
        numbers = self.dataset.numbers(ask.indices)
        self._engine.plan(numbers, True)
        self._engine.submit(numbers, ask.positions, self._seed, ask.epoch, True)
        self._asked.appendleft(ask)

    def _plan(self, epoch: int, start: int) -> None:
        """Have remote samples read ahead of the batches, which go on at `start`."""
        for batches in self._ahead.groups(epoch, start, self._after):
            numbers = [self.dataset.numbers(self._lay_out(*batch)[0].indices) for batch in batches]
            self._engine.plan(np.concatenate(numbers), False)

    def _advance(self) -> Batch:
        """The batch at the loader's position, which moves past it."""
        batch = self._take_in_turn(self._epoch, self._position)
        self._move_on()
        return batch

    def _take_in_turn(self, epoch: int, start: int) -> Batch:
        """The batch at `start`, which need not be the loader's position; then those after it."""
        self._stride = 1
        return self._take(epoch, start)

    def _move_on(self) -> None:
        """The batch at the loader's position was handed over."""
        self._position = min(self._position + self._global, self.num_samples)

    def _take(self, epoch: int, start: int) -> Batch:
        """The batch at `start`, while those after it are being made, across the epoch's end."""
        self._check_usable()
        if not self._using.acquire(blocking=False):
            raise RuntimeError(
                "two threads take batches from one loader at once, expected one at a time: they "
                "would get each other's; hand it over, or make a loader for each"
            )
        try:
            return self._take_alone(epoch, start)
        finally:
            self._using.release()

    def _take_alone(self, epoch: int, start: int) -> Batch:
        if self._started is None:
            self._started = time.monotonic()
        try:
            if self._asked and (self._asked[0].epoch, self._asked[0].start) != (epoch, start):
                self._cancel()
            at = (epoch, start)
            if self._asked:
                at = self._after(self._asked[-1].epoch, self._asked[-1].start)
            self._plan(*at)
            while len(self._asked) < _AHEAD:
                self._ask(*at)
                at = self._after(*at)
            return self._next_asked()
        except BaseException as error:
            # Engine and `_asked` may be out of step, and would pair a batch with another's
            # indices: forget both, the next call asks again.
            self._cancel()
            if self._pid == -1 and isinstance(error, Exception):  # by another thread, under us
                raise ValueError("the loader is closed") from error
            raise

    def _after(self, epoch: int, start: int) -> tuple[int, int]:
        """The batch to ask for after the one at `start`, across the epoch's end."""
        following = start + self._stride * self._global
        if self._count_at(following) > 0:
            return epoch, following
        return epoch + 1, start // self._global % self._stride * self._global

    def _next_asked(self) -> Batch:
        """Wait for the oldest batch asked for."""
        while True:
            ask = self._asked[0]
            began = time.monotonic()
            slab, layouts, keys, issues = self._wait()
            self._wait_s += time.monotonic() - began
            if self._interrupted:  # then this may be another batch than the oldest of `_asked`
                raise TarponError("interrupted by another thread")
            columns, bad = self._decoder.columns(ask, slab, layouts, issues, keys)
            if not bad and not ask.tries:
                break
            del slab, columns  # their memory is needed for the next try
            self._on_bad(ask, bad)
        self._asked.popleft()
        if trouble := self.dataset.cache_trouble():
            _log.warning("%s; samples are streamed without being kept", trouble)
        self._handed += len(ask.indices)
        return Batch(
            columns,
            sample_keys=keys,
            indices=ask.indices,
            valid=ask.valid,
            epoch=ask.epoch,
            step=ask.step,
        )

    def _wait(self) -> tuple[Any, Any, list[str], Any]:
        """The oldest batch from the engine; says once in a long wait what it waits for."""
        if self._timeout_s > _PATIENCE_S:
            try:
                return self._engine.take(_PATIENCE_S)
            except LoaderTimeoutError as error:
                waits_for = str(error).partition(": ")[2]
                _log.warning("no batch for %.0f s: %s", _PATIENCE_S, waits_for)
        return self._engine.take(self._timeout_s)

    def _on_bad(self, ask: Ask, bad: dict[int, BadSampleError]) -> None:
        """Raise, or ask for the same batch again with other samples in the bad slots.

        Where a second time some are bad, those that come after them are looked at first, a batch of
        them at once: a long run of bad samples would take a whole batch for each.
        """
        if ask.tries:
            bad = in_turn(ask.tries, bad)
        self._condemn({int(ask.indices[slot]): bad[slot] for slot in sorted(bad)})
        if self._ceiling is None:
            self._asked.popleft()
        else:  # those asked for since may hold what memory there is
            self._cancel()
        if ask.again and not ask.tries:
            self._ask_first(self._bad.trial(self._order, ask, bad, self._batch_size))
        else:
            self._ask_first(replace(self._lay_out(ask.epoch, ask.start)[0], again=True))

    def _condemn(self, bad: Mapping[int, BadSampleError]) -> None:
        """Raise the first of these samples, or let others stand in for them from now on."""
        for index, error in bad.items():
            if not self._substitute:
                raise error
            if index not in self._bad.errors:
                self._bad.errors[index] = error
                self._bad.since[index] = self._ahead.planned
                _log.warning("bad sample %d replaced by the next good one: %s", index, error)

    def _cancel(self) -> None:
        self._asked.clear()
        self._ahead.forget()
        if self._pid == os.getpid():
            self._engine.cancel()

    def _interrupt(self) -> None:
        """Make another thread that takes a batch give up; once it has, call `_resume`."""
        self._interrupted = True  # first: from then on the engine is out of step with `_asked`
        self._engine.cancel()

    def _resume(self) -> None:
        self._cancel()
        self._interrupted = False

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
        now = (self._rank, self._world_size) if self._placed else place(None, None)
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
        if one or order.by_lane(world) or self._rank > 0 or self._advised == order.lanes:
            return
        self._advised = order.lanes
        _log.warning(
            "lanes=%d cannot be dealt to %d ranks: each takes part of every lane, the same samples "
            "at the price of bytes that two ranks read; lanes=%d would avoid it",
            order.lanes,
            world,
            world * max(1, 64 // world),
        )

    def _every_component(self) -> dict[str, Field]:
        return {extension: Raw(extension) for extension in self.dataset[0]}
