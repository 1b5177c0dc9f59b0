"""Batches on the device before they are asked for. Order, pixels and state are the Loader's.

    Loader --batch--> [thread: copy to the device, transform] --up to `prefetch`--> `for`

On CUDA the thread works on a stream of its own. A batch's memory there belongs to that stream;
an event orders the consumer's stream after it, and `record_stream` keeps the memory until both are
done. Copies start from torch's pinned staging memory rather than from page-locked slabs: one copy
more on the host, and in return a slab is free as soon as the thread has read it, whatever the GPU
does, and torch alone knows when staging memory may be used again.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Self, TypedDict, Unpack

import torch

from tarpon._arguments import count, positive
from tarpon._pump import Pump
from tarpon._shards import Shards
from tarpon._torch_columns import refuse_reserved, to_torch
from tarpon.dataset import Dataset
from tarpon.errors import LoaderTimeoutError
from tarpon.fields import Field
from tarpon.loader import Loader
from tarpon.store import Store

Transform = Callable[[dict[str, Any]], dict[str, Any]]


class LoaderOptions(TypedDict, total=False):
    """What a Loader takes beside its shards; defaults are the Loader's."""

    batch_size: int
    fields: Mapping[str, Field] | None
    shuffle: bool
    seed: int
    rank: int | None
    world_size: int | None
    lanes: int | None
    window_samples: int | Literal["all"] | None
    last: Literal["drop", "pad", "keep"]
    on_bad_sample: Literal["raise", "substitute"]
    threads: int | None
    buffer_bytes: int | None
    cache_dir: str | os.PathLike[str] | None
    cache_bytes: int | None
    timeout_s: float | None
    store: Store | None


class TorchLoader:
    """A Loader whose batches are tensors on the device, copied and transformed ahead.

        loader = tarpon.torch.TorchLoader(
            "train-{000000..000127}.tar",
            batch_size=256,
            fields={"image": tarpon.RandomResizedCrop(224), "label": tarpon.Int("cls")},
            seed=17,
            transform=tarpon.torch.Normalize((123.7, 116.3, 103.5), (58.4, 57.1, 57.4)),
        )
        for batch in loader:                       # one epoch; the next `for` is the next
            step(batch["image"], batch["label"])   # float32[256, 3, 224, 224], int64[256]

    Args:
        loader: A ``tarpon.Loader``, which is this object's from then on, `close()` included; or
            shards, as a Loader takes them.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, a number or a ``torch.device``. ``None``: the
            current CUDA device if there is one, else the CPU.
        transform: Called on each batch, a dict as ``to_torch`` makes it with its tensors on the
            device; the dict it returns is handed over. Runs ahead, in a thread, on the copy
            stream, without gradients or autocast. Where it draws random numbers, let it draw
            them from a generator seeded by ``batch["indices"]``: torch's global one is shared
            with the thread that trains, and would not resume.
        prefetch: Batches that wait on the device or are on their way, beside those you hold.
        loader_options: As for ``tarpon.Loader``, where `loader` is shards.

    Yields:
        Dicts as ``to_torch`` makes them, with ``indices`` and ``valid``; tensors are on the
        device, ready for the stream that is current at the time; lists stay lists. On the CPU they
        view the loader's memory, and `prefetch` counts towards `buffer_bytes`.

    Raises:
        ValueError: The device is absent, or of another kind; options beside a ready Loader; a
            field is called ``indices`` or ``valid``.
        Otherwise as ``tarpon.Loader``. What it or `transform` raises comes at the batch it belongs
        to, which is not counted: the next ``for`` tries it again, or `set_epoch()` moves on.

    Epochs follow one another without a pause; `for`, `break`, `len`, ``epoch`` and states are as of
    a Loader, each loads the other's states, exact at what was handed over. One consumer thread.
    """

    def __init__(
        self,
        loader: Loader | Shards | Dataset,
        *,
        device: torch.device | str | int | None = None,
        transform: Transform | None = None,
        prefetch: int = 2,
        **loader_options: Unpack[LoaderOptions],
    ) -> None:
        self.device = _device(device)
        self._prefetch = positive("prefetch", prefetch)
        if isinstance(loader, Loader):
            if loader_options:
                raise ValueError(
                    f"TorchLoader: {', '.join(loader_options)} beside a ready Loader, expected "
                    "shards with them; give them to the Loader"
                )
            self._loader = loader
        else:
            self._loader = Loader(loader, **loader_options)
        refuse_reserved(self._loader._fields)
        self._make = _Maker(self._loader, self.device, transform)
        self._pump: Pump[_Made] | None = None
        self._unwatch: Callable[[], object] | None = None
        self._state = self._loader.state_dict()
        self._samples = 0
        self._wait_s = 0.0
        self._started: float | None = None
        self._using = threading.Lock()
        self._pid = os.getpid()  # -1: closed
        self._final: dict[str, Any] | None = None  # stats(), once closed

    # ---- iteration ---------------------------------------------------------------------------

    @property
    def num_samples(self) -> int:
        """Samples of the dataset, on all ranks together."""
        return self._loader.num_samples

    def __len__(self) -> int:
        """Batches per epoch on this rank."""
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._check_usable()
        epoch, position = self._due()
        self._move(epoch, position)
        while self._due() == (self._state["epoch"], self._state["position"]):
            yield self._advance()  # no name here, which would hold the batch and its memory
            if self._state["epoch"] != epoch:
                return
        self._move(*self._due())

    def _advance(self) -> dict[str, Any]:
        """The batch at our position, which moves past it."""
        self._check_usable()
        if not self._using.acquire(blocking=False):
            raise RuntimeError(
                "two threads take batches from one TorchLoader at once, expected one at a time; "
                "hand it over, or make a loader for each"
            )
        try:
            made = self._next()
            self._state = made.after
            self._samples += made.samples
            return made.columns
        finally:
            self._using.release()

    def _next(self) -> _Made:
        began = time.monotonic()
        if self._started is None:
            self._started = began
        try:
            made = self._running().take()
            while made.start != self._due():  # Ctrl-C came while one was being taken: it is lost
                del made
                self._halt()
                made = self._running().take()
        except Exception as error:
            if self._pid == -1:  # by another thread, under us
                raise ValueError("the loader is closed") from error
            self._halt()  # it stands at the batch that failed, and so do we
            raise
        finally:
            self._wait_s += time.monotonic() - began
        if made.event is not None:
            here = torch.cuda.current_stream(self.device)
            here.wait_event(made.event)
            for tensor in _tensors(made.columns):
                if tensor.is_cuda:
                    tensor.record_stream(here)
        return made

    # ---- position and state ------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, or of the last one while its `for` still runs."""
        return int(self._state["epoch"])

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; keeps what was prefetched where that is what comes next."""
        epoch = count("epoch", epoch)
        if self._due() != (epoch, 0):
            self._halt()
            self._loader.set_epoch(epoch)
            self._state = self._loader.state_dict()
        else:
            self._move(epoch, 0)

    def state_dict(self) -> dict[str, int | str | bool]:
        """Where this stands, as a Loader says it: batches handed over, not prefetched."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state` was taken, by this class or by a Loader.

        Raises:
            StateMismatchError: As from ``Loader.load_state_dict``; then nothing has moved.
        """
        self._halt()
        self._loader.load_state_dict(state)
        self._state = self._loader.state_dict()

    def _due(self) -> tuple[int, int]:
        """(epoch, position) of the batch that comes next."""
        return _due(self._loader, self._state)

    def _move(self, epoch: int, position: int) -> None:
        """Stand at (epoch, position), which is where the next batch begins anyway."""
        self._state = self._state | {"epoch": epoch, "position": position}

    # ---- what it did ---------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """As ``Loader.stats()``; ``samples``, ``samples_per_s`` and ``wait_s`` are of the consumer.

        ``prefetched``: batches that wait on the device now.
        """
        if self._final is not None:
            return self._final
        elapsed = time.monotonic() - self._started if self._started is not None else 0.0
        return self._loader.stats() | {
            "samples": self._samples,
            "samples_per_s": self._samples / elapsed if elapsed > 0 else 0.0,
            "wait_s": self._wait_s,
            "prefetched": 0 if self._pump is None else self._pump.ready(),
        }

    def close(self) -> None:
        """Stop the thread and close the loader. Batches handed over stay valid. Safe to repeat."""
        mine = os.getpid() == self._pid
        self._pid = -1  # first: a thread that waits for a batch is told why it gets none
        self._stop()
        if mine:
            self._final = self.stats()
        self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<tarpon.torch.TorchLoader on {self.device}, {self.num_samples} samples, {len(self)} "
            f"batches, epoch {self.epoch}, prefetch {self._prefetch}>"
        )

    # ---- inside ----------------------------------------------------------------------------------

    def _running(self) -> Pump[_Made]:
        if self._pump is not None and self._pump.stopped:  # Ctrl-C came before that was done
            self._halt()
        if self._pump is None:
            loader = self._loader
            self._pump = Pump(
                self._make,
                self._prefetch,
                patient=LoaderTimeoutError,
                interrupt=loader._interrupt,
            )
            # Whoever drops this object, or ends the program, without close().
            self._unwatch = weakref.finalize(self, _end, self._pump, loader).detach
        return self._pump

    def _stop(self) -> None:
        if self._pump is not None and self._unwatch is not None:
            _end(self._pump, self._loader)
            self._unwatch()
        self._pump = None

    def _halt(self) -> None:
        """Forget what was prefetched: the loader goes back to what was handed over."""
        self._stop()
        self._make.again()
        self._loader.load_state_dict(self._state)

    def _check_usable(self) -> None:
        if self._pid == -1:
            raise ValueError("the loader is closed")
        self._loader._check_usable()


class _Made(NamedTuple):
    """A batch on the device."""

    start: tuple[int, int]  # epoch and position
    after: dict[str, int | str | bool]  # the loader's state
    samples: int
    columns: dict[str, Any]
    event: torch.cuda.Event | None  # the copy and the transform are done


class _Maker:
    """Takes the loader's next batch, over all epochs, and brings it to the device."""

    def __init__(
        self,
        loader: Loader,
        device: torch.device,
        transform: Transform | None,
    ) -> None:
        self._loader, self._device, self._transform = loader, device, transform
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._batches = _endless(loader)

    def again(self) -> None:
        """The loader was moved."""
        self._batches = _endless(self._loader)

    def __call__(self) -> _Made:
        start = _due(self._loader, self._loader.state_dict())
        try:
            columns = next(self._batches)
        except BaseException:
            self.again()  # a generator that has raised is over
            raise
        after, samples = self._loader.state_dict(), len(columns["indices"])
        event = None
        with torch.no_grad():
            if self._stream is None:
                columns = self._transformed(columns)
            else:
                with torch.cuda.stream(self._stream):
                    columns = {name: self._copied(column) for name, column in columns.items()}
                    columns = self._transformed(columns)
                    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                    event.record(self._stream)
        return _Made(start, after, samples, columns, event)

    def _copied(self, column: Any) -> Any:
        if isinstance(column, torch.Tensor):
            staged = column.pin_memory() if column.numel() else column
            return staged.to(self._device, non_blocking=True)
        if isinstance(column, tuple):
            return type(column)(*map(self._copied, column))
        return column

    def _transformed(self, columns: dict[str, Any]) -> dict[str, Any]:
        return columns if self._transform is None else self._transform(columns)


def _end(pump: Pump[_Made], loader: Loader) -> None:
    pump.stop()
    loader._resume()


def _endless(loader: Loader) -> Iterator[dict[str, Any]]:
    while True:
        yield from map(to_torch, loader)


def _due(loader: Loader, state: Mapping[str, Any]) -> tuple[int, int]:
    """(epoch, position) of the batch that comes after `state`."""
    epoch, position = int(state["epoch"]), int(state["position"])
    return (epoch + 1, 0) if loader._count_at(position) == 0 else (epoch, position)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _device(device: torch.device | str | int | None) -> torch.device:
    """The device that was asked for, with its number, if it is there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is None:
        device = "cuda" if count else "cpu"
    try:
        found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device={device!r}: no such device in torch, expected 'cpu', 'cuda' or 'cuda:N'"
        ) from error
    if found.type == "cpu":
        return found
    if found.type != "cuda":
        raise ValueError(
            f"device={device!r}: a {found.type} device, expected 'cpu', 'cuda' or 'cuda:N'; use "
            "device='cpu' and move the tensors yourself"
        )
    if count == 0:
        raise ValueError(
            f"device={device!r}: torch {torch.__version__} sees no CUDA device, expected one; use "
            "device='cpu', or check the driver and that torch is a CUDA build"
        )
    index = torch.cuda.current_device() if found.index is None else found.index
    if index >= count:
        raise ValueError(
            f"device={device!r}: torch sees {count} CUDA devices, expected a number below that; "
            "check CUDA_VISIBLE_DEVICES"
        )
    return torch.device("cuda", index)
