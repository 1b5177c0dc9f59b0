"""Decode and augment in NVIDIA DALI what a Loader reads; torch tensors come out.

    Loader --raw bytes--> front check --> DALI: decode, crop, resize, augment, normalise --> torch
             (core threads)               (GPU, or its own CPU threads)

Which samples, in which order, and where a killed run goes on is the Loader's business alone. A
pipeline runs some batches ahead of the loader's position, which moves when a batch is handed over.
"""

from __future__ import annotations

import math
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self, get_args

import numpy as np

try:
    import nvidia.dali  # noqa: F401
    import torch
    import torch.utils.dlpack
except ImportError as error:
    raise ImportError(
        f"tarpon.dali: {error}; it takes NVIDIA DALI and torch: pip install 'tarpon[dali-cuda12]' "
        "for CUDA 12, 'tarpon[dali-cuda13]' for CUDA 13"
    ) from error

from tarpon import _dali
from tarpon._arguments import default_threads, one_of, positive
from tarpon._dali_graph import (
    Augment,
    Crops,
    Dtype,
    Plan,
    augmentation,
    decoding,
    encoded,
    graph,
)
from tarpon.batch import Batch, Ragged
from tarpon.errors import BadSampleError
from tarpon.fields import CenterCrop, Int, Raw, Triple
from tarpon.loader import Loader

Device = Literal["gpu", "cpu"]


@dataclass(slots=True, kw_only=True)
class _Flight:
    """One batch on its way through DALI, and all that DALI looks at until it is through."""

    epoch: int
    start: int
    batch: Batch
    inputs: tuple[Any, ...]
    done: Any = None  # the event of a GPU that has read them


class ImagePipeline:
    """A Loader's images, decoded and augmented by DALI, as torch tensors.

        loader = tarpon.Loader(
            "photos/v3/train.json",
            batch_size=256,
            fields={"jpg": tarpon.Raw("jpg;jpeg;png"), "cls": tarpon.Int("cls")},
            seed=17,
        )
        with tarpon.dali.ImagePipeline(loader, size=224, augment="trivial") as pipeline:
            for batch in pipeline:                        # one epoch; the next `for` is the next
                step(batch["image"], batch["label"])      # float32[256, 3, 224, 224], int64[256]

    Args:
        loader: Reads the shards, on its own threads; closed together with the pipeline, and not
            to be iterated beside it. What to do about bad samples and a short last batch is what
            it was told. A ``buffer_bytes`` of it has to leave room for `prefetch` + 1 batches of
            encoded images more.
        image, label: Its fields that hold the encoded image, a ``Raw``, and the label, an ``Int``.
        size: Side of the result in pixels.
        train: A random crop and flip of each image (``RandomResizedCrop`` with its defaults), and
            `augment`. ``False``: the centred square of ``CenterCrop(size, resize)``, and neither
            `augment` nor `crops` has a meaning.
        device: ``"gpu"``: torch's current CUDA device decodes and augments. ``"cpu"``: DALI's own
            threads do.
        augment: ``"trivial"`` (TrivialAugment), ``"rand"`` (RandAugment, 2 operations of strength
            9 of 30) or ``"auto"`` (AutoAugment for ImageNet), of DALI's operations.
        crops: Who draws the windows. ``"tarpon"``: the very windows and flips of a Loader's
            ``RandomResizedCrop``. ``"dali"``: DALI's ``image_random_crop``, of the same
            distribution; flips are the same in both.
        dtype: Of the images. ``"bfloat16"`` is rounded from float32 by torch: DALI has none.
        mean, std: Per channel, in units of 0..255; ``(value - mean) / std``. Default 0 and 1.
        num_threads: Of DALI; default one per CPU this process may use, at most 16.
        prefetch: Batches that are in DALI or wait to be handed over.
        resize: For ``train=False``: what the shorter side would become; see ``CenterCrop``.
        channels_last: Images lie in memory as NHWC; their shape is NCHW all the same.

    Yields:
        A dict of tensors on the device: ``image``, `dtype`[B, 3, size, size]; ``label``,
        int64[B]; ``valid``, bool[B], ``False`` for a repeat that fills up the last batch;
        ``indices``, int64[B], each sample's number in the dataset. They are the caller's.

    Raises:
        ImportError: From ``import tarpon.dali``: DALI is not installed.
        ValueError: A field is not there or of another kind; an unknown option; no GPU; with the
            first batch, a ``buffer_bytes`` that is too small.
        BadSampleError: An image is broken, or of a kind that DALI does not decode, and the loader
            was not told to substitute it.
        RuntimeError: DALI failed, and not because of an image.
        Otherwise as a ``Loader``.

    Order, ``len``, epochs and state are the Loader's, counted at what was handed over: either
    loads the other's state. One consumer thread. A resumed pipeline repeats every picture bit by
    bit, on a GPU as far as its JPEG decoders do. Windows, flips and augmentations follow from
    (seed, epoch, position) alone, on any number of ranks; but of ``crops="dali"`` the windows also
    from which samples share a batch: only the same batch size on as many ranks repeats them.

    DALI turns an image by its last Exif tag alone: where a photograph has its orientation in XMP,
    a Loader turns it and this does not.
    """

    def __init__(
        self,
        loader: Loader,
        *,
        image: str = "jpg",
        label: str = "cls",
        size: int = 224,
        train: bool = True,
        device: Device = "gpu",
        augment: Augment | None = None,
        crops: Crops = "dali",
        dtype: Dtype = "float32",
        mean: Triple | None = None,
        std: Triple | None = None,
        num_threads: int | None = None,
        prefetch: int = 2,
        resize: int | None = None,
        channels_last: bool = False,
    ) -> None:
        one_of("crops", crops, get_args(Crops))
        one_of("dtype", dtype, get_args(Dtype))
        if augment is not None:
            one_of("augment", augment, get_args(Augment))
        # Refuses what cannot be, and makes plain numbers of NumPy's.
        crop = CenterCrop(size, resize, dtype="float32", mean=mean, std=std)
        self._device = _device(device)
        self._loader = _with_fields(loader, image, label)
        self._image, self._label = image, label
        operations, policy, bins = augmentation(augment if train else None, crop.size)
        self._plan = Plan(
            size=crop.size,
            resize=crop.resize,
            train=bool(train),
            gpu=device == "gpu",
            crops=crops,
            dtype=dtype,
            mean=crop.mean or (0.0, 0.0, 0.0),
            std=crop.std or (1.0, 1.0, 1.0),
            channels_last=bool(channels_last),
            operations=operations,
            policy=policy,
            bins=bins,
        )
        self._threads = (
            default_threads() if num_threads is None else positive("num_threads", num_threads)
        )
        self._prefetch = positive("prefetch", prefetch)
        self._front = _dali.FrontCheck()
        loader._decoder.checks[image] = self._front
        self._flying: deque[_Flight] = deque()
        self._landed: deque[_Flight] = deque()  # handed over, while a GPU may still read inputs
        # Of the batch after those that fly: its epoch and start, and what is wrong.
        self._failure: tuple[tuple[int, int], Exception] | None = None
        self._pipe: Any = None
        self._handed = 0
        self._wait_s = 0.0
        self._using = threading.Lock()
        self._pid = os.getpid()
        self._ended: float | None = None
        self._started: float | None = None

    # ---- iteration ---------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches per epoch on this rank."""
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return self._loader._rest_of_epoch(self._advance)

    # ---- position and state ------------------------------------------------------------------

    @property
    def num_samples(self) -> int:
        """Samples in the dataset."""
        return self._loader.num_samples

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, or of the last one while its `for` still runs."""
        return self._loader.epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`."""
        self._loader.set_epoch(epoch)

    def state_dict(self) -> dict[str, int | str | bool]:
        """Where the pipeline stands, counted at what was handed over: a Loader's state."""
        return self._loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken, by a pipeline or by a Loader.

        Raises:
            StateMismatchError: As ``Loader.load_state_dict``.
        """
        self._loader.load_state_dict(state)
        self._ground()  # what flies may be of another order, at the same position

    # ---- what it did ---------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """The Loader's; ``samples``, ``samples_per_s`` and ``wait_s`` are of what came from here.

        ``loader_wait_s`` is the part of ``wait_s`` that was spent waiting for the Loader.
        """
        sums = self._loader.stats()
        now = self._ended or time.monotonic()
        elapsed = 0.0 if self._started is None else now - self._started
        return sums | {
            "samples": self._handed,
            "samples_per_s": self._handed / elapsed if elapsed > 0 else 0.0,
            "wait_s": self._wait_s,
            "loader_wait_s": sums["wait_s"],
        }

    def close(self) -> None:
        """Stop DALI and the Loader. Tensors handed over stay valid. Safe to call again."""
        self._ended = self._ended or time.monotonic()
        self._ground()
        self._loader.close()

    def __del__(self) -> None:
        if hasattr(self, "_started"):  # else it was never made
            self._ground()  # before the memory goes that DALI reads

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<tarpon.dali.ImagePipeline of {self._loader!r} on {self._device}>"

    # ---- inside ----------------------------------------------------------------------------------

    def _advance(self) -> dict[str, torch.Tensor]:
        """The batch at the loader's position, which moves past it."""
        if not self._using.acquire(blocking=False):
            raise RuntimeError(
                "two threads take batches from one ImagePipeline at once, expected one at a time; "
                "hand it over, or make a pipeline for each"
            )
        began = time.monotonic()
        if self._started is None:
            self._started = began
        try:
            tensors = self._next()
            self._handed += len(tensors["label"])
            self._loader._move_on()
            return tensors
        finally:
            self._wait_s += time.monotonic() - began
            self._using.release()

    def _next(self) -> dict[str, torch.Tensor]:
        while True:
            try:
                self._send()
                if self._flying:
                    return self._tensors(*self._arrival())
                assert self._failure is not None
                raise self._failure[1]
            except RuntimeError:  # which is what DALI raises for everything
                flights = [*self._flying]
                self._ground()  # before anything else is asked of a GPU that may be full
                bad = self._culprits(flights)
                if not bad:
                    raise
                self._loader._condemn(bad)
            except BaseException:  # DALI and `_flying` may be out of step
                self._ground()
                raise

    def _send(self) -> None:
        """Have `prefetch` batches under way, from the loader's position on, across epochs."""
        here = (self._loader._epoch, self._loader._position)
        if self._flying:
            comes = (self._flying[0].epoch, self._flying[0].start)
        else:
            comes = self._failure[0] if self._failure is not None else here
        if comes != here:
            self._ground()
        if self._pipe is None:
            self._pipe = self._built()
        if self._loader._ceiling is not None:  # which a GPU that lags behind must not use up
            self._give_back(keep=1)
        while len(self._flying) < self._prefetch and self._failure is None:
            self._pipe.schedule_run()  # calls _feed; the first one, `prefetch` times

    def _feed(self, _info: Any) -> tuple[Any, ...]:
        """DALI's source. The next batch; where DALI counts does not matter, a restart keeps on."""
        loader = self._loader
        at = (loader._epoch, loader._position)
        if self._flying:
            at = loader._after(self._flying[-1].epoch, self._flying[-1].start)
        try:
            batch = loader._take_in_turn(*at)
            if not self._flying:
                self._check_room(batch)
            arrays = self._plan.arrays(
                self._front.sizes,
                seed=loader._seed,
                epoch=batch.epoch,
                positions=loader._positions(at[1]),
            )
        except Exception as error:  # batches before this one are good, and come first
            self._failure = at, error
            raise StopIteration from error
        arrays["images"] = encoded(batch[self._image])
        inputs = tuple(arrays[name] for name in self._plan.inputs())
        self._flying.append(_Flight(epoch=at[0], start=at[1], batch=batch, inputs=inputs))
        return inputs

    def _check_room(self, batch: Batch) -> None:
        """Refuse a ceiling under which the loader would wait for a batch until its time-out."""
        ceiling = self._loader._ceiling
        # The core rounds a batch's memory up, by an eighth at most.
        takes = (self._prefetch + 1) * batch[self._image].data.nbytes * 9 // 8
        if ceiling is not None and ceiling < takes:
            raise ValueError(
                f"ImagePipeline: {ceiling} of buffer_bytes are left for batches, expected at least "
                f"{takes} for prefetch={self._prefetch} and one more, as large as the first; raise "
                f"it by {takes - ceiling}, or lower prefetch or batch_size"
            )

    def _arrival(self) -> tuple[_Flight, torch.Tensor]:
        """The oldest batch under way, once DALI has made it, or a GPU is about to."""
        stream = torch.cuda.current_stream(self._device) if self._plan.gpu else None
        (pixels,) = self._pipe.share_outputs(stream)
        self._pipe.release_outputs()  # the tensor keeps its memory
        flight = self._flying.popleft()
        if stream is not None:
            flight.done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            flight.done.record(stream)
        self._landed.append(flight)
        return flight, torch.utils.dlpack.from_dlpack(pixels.as_tensor())

    def _tensors(self, flight: _Flight, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is handed over; the loader's memory goes back as soon as DALI has read it."""
        if self._plan.dtype == "bfloat16":
            image = image.to(torch.bfloat16)
        if self._plan.channels_last:
            image = image.permute(0, 3, 1, 2)
        batch = flight.batch
        small = {"label": batch[self._label], "valid": batch.valid, "indices": batch.indices}
        tensors = {"image": image}
        for name, column in small.items():  # copies: a view would keep the encoded images
            tensors[name] = torch.from_numpy(column.copy()).to(self._device, non_blocking=True)
        self._give_back()
        return tensors

    def _give_back(self, *, keep: float = math.inf) -> None:
        """The loader gets back what DALI has read; waits while over `keep` batches are left."""
        while self._landed:
            done = self._landed[0].done
            if done is not None and not done.query():
                if len(self._landed) <= keep:
                    return
                done.synchronize()
            self._release(self._landed.popleft())

    def _release(self, flight: _Flight) -> None:
        """DALI has read the inputs: the loader may write their memory again."""

    def _culprits(self, flights: Sequence[_Flight]) -> dict[int, BadSampleError]:
        """The samples that DALI fails on, by index, of the first of these batches with some."""
        field = self._loader._fields[self._image]
        reason = "DALI does not decode it, or cuts nothing out of it; expected a whole image"
        for flight in flights:
            if failing := self._failing(flight):
                indices = flight.batch.indices[failing].tolist()
                return {
                    index: self._loader._decoder.bad_sample(index, field, reason)
                    for index in indices
                }
        return {}

    def _failing(self, flight: _Flight) -> list[int]:
        """The slots of images that DALI fails on though each is alone."""
        images = [
            encoded(Ragged(np.asarray(image), np.array([0, len(image)])))
            for image in flight.batch[self._image]
        ]
        plan = replace(self._plan, operations=None, policy=None)
        inputs = dict(zip(self._plan.inputs(), flight.inputs, strict=True))
        feeds = [
            tuple(
                image if name == "images" else inputs[name][slot : slot + 1]
                for name in plan.inputs()
            )
            for slot, image in enumerate(images)
        ]
        failing = self._alone(partial(graph, plan), feeds)
        if len(failing) < len(feeds):
            return failing
        # All of them: is it the images? Not if a whole one fails too, on a GPU that is full.
        whole = _dali.whole_jpeg()
        images.append(encoded(whole))
        failing = self._alone(partial(decoding, plan.gpu), [(image,) for image in images])
        return [] if len(feeds) in failing else failing

    def _alone(self, pipeline: Callable[..., Any], feeds: Sequence[tuple[Any, ...]]) -> list[int]:
        """Which of these inputs for one image each fail in a pipeline of their own kind."""
        failing: list[int] = []
        given: deque[tuple[Any, ...]] = deque(maxlen=1)
        pipe = None
        for number, feed in enumerate(feeds):
            given.append(feed)
            try:
                if pipe is None:
                    pipe = pipeline(
                        lambda _: given[0],
                        batch_size=1,
                        num_threads=1,
                        device_id=self._device.index,
                        prefetch_queue_depth=1,
                    )
                pipe.run()
            except RuntimeError:
                failing.append(number)
                pipe = None  # one that has failed fails ever after
        return failing

    def _built(self) -> Any:
        # DALI's own augmentations use what DALI deprecates, and it says so whatever the filter.
        with warnings.catch_warnings(record=True):
            pipe = graph(
                self._plan,
                self._feed,
                batch_size=self._loader._batch_size,
                num_threads=self._threads,
                device_id=self._device.index,
                prefetch_queue_depth=self._prefetch,
            )
            pipe.build()  # type: ignore[no-untyped-call]
        return pipe

    def _ground(self) -> None:
        """Forget what flies; DALI has stopped before the memory it reads goes back."""
        if os.getpid() != self._pid:
            return  # a child after fork() has none of DALI's threads, nor memory of its own
        if self._pipe is not None:
            self._pipe._shutdown()  # at once: a traceback may hold it for as long as it likes
        self._pipe = None
        self._give_back(keep=0)
        self._flying.clear()
        self._failure = None


def _device(device: Device) -> torch.device:
    one_of("device", device, get_args(Device))
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(
            "device='gpu': torch finds no CUDA device, expected one; use device='cpu', or see that "
            "the driver and a CUDA build of torch are there"
        )
    return torch.device("cuda", torch.cuda.current_device())


def _with_fields(loader: Loader, image: str, label: str) -> Loader:
    """The loader, which has both fields."""
    if not isinstance(loader, Loader):
        raise ValueError(f"loader={loader!r}, expected a tarpon.Loader")
    for option, name, kind in (("image", image, Raw), ("label", label, Int)):
        found = loader._fields.get(name)
        if not isinstance(found, kind):
            what = "no such field" if found is None else f"a {type(found).__name__}"
            raise ValueError(
                f"{option}={name!r}: the loader has {what}, expected a tarpon.{kind.__name__} "
                f"under that name; its fields are {', '.join(map(repr, loader._fields))}"
            )
    return loader
