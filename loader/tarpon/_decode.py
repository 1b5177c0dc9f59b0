"""From what the core made of a batch to the arrays a user sees, and the slots that are bad."""

from __future__ import annotations

import io
import json
import math
import tokenize
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tarpon import _core, _pillow
from tarpon.batch import Ragged
from tarpon.dataset import Dataset
from tarpon.errors import BadSampleError
from tarpon.fields import (
    CenterCrop,
    Crop,
    Field,
    Float,
    Image,
    Int,
    Json,
    Npy,
    RandomResizedCrop,
    Text,
)

# The numbers of enum tp_field_kind, tp_dtype and tp_layout.
_RAW, _INT, _RANDOM_CROP, _CENTER_CROP = range(4)
_DTYPES = ("uint8", "float16", "float32")
_LAYOUTS = ("NHWC", "NCHW")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One batch, as it was asked of the engine.

    Attributes:
        start: Position of the global batch's first sample.
        again: It had a bad sample before.
        tries: Slots of samples that are only looked at, each range in the order in which they may
            stand in for a bad one; nothing is handed over.
    """

    epoch: int
    step: int
    start: int
    indices: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_]
    again: bool = False
    tries: tuple[range, ...] = ()


def describe(field: Field) -> tuple[Any, ...]:
    """The field as the engine takes it; what the core cannot make, it fetches as raw bytes."""
    extensions = ";".join(field.extensions)
    if isinstance(field, RandomResizedCrop | CenterCrop):
        random = isinstance(field, RandomResizedCrop)
        return (
            _RANDOM_CROP if random else _CENTER_CROP,
            extensions,
            field.size,
            _DTYPES.index(field.dtype),
            _LAYOUTS.index(field.layout),
            tuple(map(float, field.mean or (0, 0, 0))),
            tuple(map(float, field.std or (1, 1, 1))),
            field.scale if isinstance(field, RandomResizedCrop) else (1.0, 1.0),
            field.ratio if isinstance(field, RandomResizedCrop) else (1.0, 1.0),
            field.flip if isinstance(field, RandomResizedCrop) else 0.0,
            0 if isinstance(field, RandomResizedCrop) else field.resize or 0,
            field.exact,
        )
    unused = (1, 0, 0, (0.0,) * 3, (1.0,) * 3, (1.0, 1.0), (1.0, 1.0), 0.0, 0, False)
    return (_INT if isinstance(field, Int) else _RAW, extensions, *unused)


def _float(data: memoryview) -> float:
    text = bytes(data)
    if b"_" in text:  # Python would take 1_0 for ten
        raise ValueError(f"{text[:40]!r}")
    return float(text)


def _npy(data: memoryview) -> npt.NDArray[Any]:
    """The array, after its header's claims were compared with the bytes that are there."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in _NPY_HEADERS:
        raise ValueError(f"format version {version}")
    shape, fortran, dtype = _NPY_HEADERS[version](file)
    found, claimed = len(data) - file.tell(), math.prod(shape) * dtype.itemsize
    if dtype.hasobject or found != claimed:
        raise ValueError(f"{found} bytes for {shape} of {dtype}")
    array: npt.NDArray[Any] = np.frombuffer(data[file.tell() :], dtype)
    return array.reshape(shape, order="F" if fortran else "C").copy()


_NPY_HEADERS: dict[tuple[int, int], Callable[[io.BytesIO], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# What parsing hostile bytes may raise; anything else is a bug of ours.
_UNREADABLE = (ValueError, EOFError, SyntaxError, tokenize.TokenError, RecursionError)

_FROM_BYTES: dict[type[Field], Callable[[memoryview], Any]] = {
    Float: _float,
    Text: lambda data: str(data, "utf-8"),
    Json: lambda data: json.loads(bytes(data)),
    Npy: _npy,
    Image: _pillow.decode,
}
_EXPECTED: dict[type[Field], str] = {
    Float: "a number",
    Text: "UTF-8 text",
    Json: "a JSON document",
    Npy: "a .npy array without objects",
    Image: "an image",
}


class Decoder:
    """Makes a batch's columns; one per loader. Its threads only run for what Pillow decodes."""

    def __init__(
        self, dataset: Dataset, fields: Mapping[str, Field], *, threads: int, seed: int
    ) -> None:
        self._dataset = dataset
        self._fields = dict(fields)
        self._seed = seed
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        # Whoever decodes a field of raw bytes later may look at it here: slot -> what is wrong.
        self.checks: dict[str, Callable[[Ragged], dict[int, str]]] = {}

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)  # they only decode: nothing that hangs
            self._pool = None

    def columns(
        self,
        ask: Ask,
        slab: _core.Slab,
        layouts: list[tuple[int, int, int]],
        issues: list[tuple[int, int, bytes | None, str, int, str]],
        keys: list[str],
    ) -> tuple[dict[str, Any], dict[int, BadSampleError]]:
        """The fields by name, and for each bad slot why it is bad."""
        bad: dict[int, BadSampleError] = {}
        foreign: dict[tuple[int, int], bytes] = {}
        for slot, number, image, message, offset, shard in sorted(issues, key=lambda it: it[:2]):
            if image is not None:
                foreign[number, slot] = image
            else:
                bad.setdefault(
                    slot, _error(message, shard, keys[slot], offset, message.split(": ", 1)[-1])
                )
        columns: dict[str, Any] = {}
        for number, (name, field) in enumerate(self._fields.items()):
            column: Any = _view(field, len(ask.indices), slab, layouts[number])
            if isinstance(field, RandomResizedCrop | CenterCrop):
                images = {slot: image for (of, slot), image in foreign.items() if of == number}
                self._each([*images], partial(self._crop, ask, field, column, images), bad)
            elif type(field) in _FROM_BYTES:
                column = self._convert(ask, field, column, bad)
            elif name in self.checks:
                for slot, reason in self.checks[name](column).items():
                    bad.setdefault(slot, self._bad(ask, slot, field, reason))
            columns[name] = column
        return columns, bad

    def _crop(
        self,
        ask: Ask,
        field: Crop,
        column: npt.NDArray[Any],
        images: dict[int, bytes],
        slot: int,
    ) -> None:
        """Fill one slot from an image that is not a JPEG."""
        try:
            column[slot] = _pillow.crop(
                images[slot],
                field,
                seed=self._seed,
                epoch=ask.epoch,
                position=int(ask.positions[slot]),
            )
        except _pillow.UndecodableError as error:
            raise self._bad(ask, slot, field, str(error)) from error

    def _convert(
        self, ask: Ask, field: Field, raw: Ragged, bad: dict[int, BadSampleError]
    ) -> list[Any] | npt.NDArray[np.float64]:
        values: list[Any] = [None] * len(raw)

        def convert(slot: int) -> None:
            try:
                values[slot] = _FROM_BYTES[type(field)](raw[slot])
            except _UNREADABLE as error:
                expected = _EXPECTED[type(field)]
                reason = f"component {field.ext}: {error}, expected {expected}"
                raise self._bad(ask, slot, field, reason) from error

        slots = [slot for slot in range(len(raw)) if slot not in bad]
        if isinstance(field, Image):
            self._each(slots, convert, bad)
        else:
            _collect(slots, convert, bad)
        if isinstance(field, Float):
            return np.array([0.0 if value is None else value for value in values], np.float64)
        return values

    def _each(
        self, slots: list[int], work: Callable[[int], None], bad: dict[int, BadSampleError]
    ) -> None:
        """Run `work` for each slot on the pool; Pillow and the core drop the GIL."""
        if len(slots) < 2:
            _collect(slots, work, bad)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="tarpon-pillow")
        futures = {slot: self._pool.submit(work, slot) for slot in slots}
        _collect(slots, lambda slot: futures[slot].result(), bad)

    def _bad(self, ask: Ask, slot: int, field: Field, reason: str) -> BadSampleError:
        return self.bad_sample(int(ask.indices[slot]), field, reason)

    def bad_sample(self, index: int, field: Field, reason: str) -> BadSampleError:
        """That sample `index` is bad, because of what `field` reads of it."""
        shard, key, members = self._dataset.find(index)
        offset = next(
            (at for wanted in field.extensions for name, at, _ in members if name == wanted), 0
        )
        return _error(
            f"{shard}, sample {key} at byte {offset}: {reason}", shard, key, offset, reason
        )


def _collect(slots: list[int], work: Callable[[int], None], bad: dict[int, BadSampleError]) -> None:
    for slot in slots:
        try:
            work(slot)
        except BadSampleError as error:
            bad.setdefault(slot, error)


def _error(message: str, shard: str, key: str, offset: int, reason: str) -> BadSampleError:
    error = BadSampleError(message)
    error.shard, error.key, error.offset, error.reason = shard, key, offset, reason
    return error


def _view(
    field: Field, count: int, slab: _core.Slab, layout: tuple[int, int, int]
) -> npt.NDArray[Any] | Ragged:
    """The field's part of the slab, without a copy."""
    data_at, data_bytes, offsets_at = layout
    buffer: Any = slab
    if isinstance(field, Int):
        return np.ndarray((count,), np.int64, buffer, data_at)
    if isinstance(field, RandomResizedCrop | CenterCrop):
        side = field.size
        shape = (count, 3, side, side) if field.layout == "NCHW" else (count, side, side, 3)
        return np.ndarray(shape, field.dtype, buffer, data_at)
    return Ragged(
        np.ndarray((data_bytes,), np.uint8, buffer, data_at),
        np.ndarray((count + 1,), np.int64, buffer, offsets_at),
    )
