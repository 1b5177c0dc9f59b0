"""What of `tarpon.dali` needs neither DALI nor torch: the look at bytes, and every random draw.

Draws depend on (seed, epoch, position in the epoch) alone, so a pipeline that is resumed, on any
number of ranks, makes the same pictures.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from tarpon import _core, _pillow
from tarpon.batch import Ragged

Floats = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint64]

_SCALE, _RATIO, _FLIP = (0.08, 1.0), (3 / 4, 4 / 3), 0.5  # RandomResizedCrop's defaults
_DECODABLE = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000")  # by DALI on a CPU
_STATE_WORDS = 7  # 32-bit words of the state that one of DALI's random operators takes
# What the draws of this module are told apart by from each other and from the core's.
_AUGMENT, _STATE = np.uint64(0x6175676D656E7400), np.uint64(0x7374617465000000)


class FrontCheck:
    """Looks at encoded images before DALI does, for which one broken image fails the batch.

    Headers and ends of JPEGs are looked at by the core, in well under a microsecond each. A JPEG
    without an end is decoded, to see whether it is whole; of other kinds Pillow reads the header.

    Attributes:
        sizes: ``int32[B, 2]``, width and height of the images of the last call, turned as DALI
            turns them: by their Exif tag. 0 for a bad one.
    """

    sizes: Int32s

    def __call__(self, images: Ragged) -> dict[int, str]:
        """What is wrong, by slot."""
        sizes, issues = _core.jpeg_front(images.data, images.offsets)
        self.sizes = np.frombuffer(sizes, np.int32).reshape(-1, 2).copy()
        bad: dict[int, str] = {}
        for slot, message in issues:
            if message is not None:
                bad[slot] = message
                continue
            try:
                kind, *size = _pillow.look(images[slot])
            except _pillow.UndecodableError as error:
                bad[slot] = str(error)
                continue
            if kind in _DECODABLE:
                self.sizes[slot] = size
            else:
                bad[slot] = (
                    f"an image of kind {kind}, expected one that DALI decodes: "
                    + ", ".join(_DECODABLE)
                )
        return bad


def whole_jpeg() -> Ragged:
    """An image that no decoder refuses."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    data = np.frombuffer(file.getvalue(), np.uint8)
    return Ragged(data, np.array([0, len(data)]))


def random_windows(
    sizes: Int32s, *, seed: int, epoch: int, positions: npt.NDArray[np.int64]
) -> tuple[Int32s, Int32s]:
    """The boxes that ``RandomResizedCrop`` draws there, and its flips.

    Returns:
        ``int32[B, 4]``, left, top, right, bottom in pixels; ``int32[B]``, 1 for a flip.
    """
    drawn = [
        _core.random_box(width, height, _SCALE, _RATIO, _FLIP, seed, epoch, position)
        for (width, height), position in zip(sizes.tolist(), positions.tolist(), strict=True)
    ]
    table = np.array(drawn, np.int32).reshape(-1, 5)
    return np.ascontiguousarray(table[:, :4]), np.ascontiguousarray(table[:, 4])


def centre_windows(sizes: Int32s, size: int, resize: int | None) -> Floats:
    """The boxes of ``CenterCrop(size, resize)``: ``float32[B, 4]``, in fractions of pixels."""
    boxes = [_core.center_box(width, height, size, resize or 0) for width, height in sizes.tolist()]
    return np.array(boxes, np.float32).reshape(-1, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What an augmentation may draw, as a table; one draw takes one row of it.

    Attributes:
        ops: ``int32[rows, steps]``, numbers of operations, one after the other.
        bins: ``int32[rows, steps]``, how strong each is.
        chances: ``float64[rows, steps]``, how likely each is carried out.
        idle: The operation that changes nothing.
        independent: Each step draws a row of its own, else all take one.
    """

    ops: Int32s
    bins: Int32s
    chances: npt.NDArray[np.float64]
    idle: int
    independent: bool

    def draw(
        self, *, seed: int, epoch: int, positions: npt.NDArray[np.int64]
    ) -> tuple[Int32s, Int32s, Int32s]:
        """Operation, strength and sign (1: negative) of each step: three ``int32[B, steps]``."""
        rows, steps = self.ops.shape
        words = _words(np.uint64(seed) ^ _AUGMENT, epoch, positions, 3 * steps)
        row = (words[:, :steps] % np.uint64(rows)).astype(np.int64)
        if not self.independent:
            row = np.repeat(row[:, :1], steps, axis=1)
        step = np.arange(steps)
        chance = (words[:, steps : 2 * steps] >> np.uint64(11)).astype(np.float64) * 2.0**-53
        ops = np.where(chance < self.chances[row, step], self.ops[row, step], self.idle)
        signs = (words[:, 2 * steps :] >> np.uint64(63)).astype(np.int32)
        return ops.astype(np.int32), self.bins[row, step], signs


def operator_state(
    *, seed: int, epoch: int, positions: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint32]:
    """State for a random operator of DALI, which makes all draws of a batch from one.

    ``uint32[B, 7]``, all rows alike: a function of the batch's first position on this rank.
    """
    words = _words(np.uint64(seed) ^ _STATE, epoch, positions[:1], _STATE_WORDS)
    state = (words >> np.uint64(32)).astype(np.uint32)
    return np.ascontiguousarray(np.broadcast_to(state, (len(positions), _STATE_WORDS)))


def _words(seed: np.uint64, epoch: int, positions: npt.NDArray[np.int64], count: int) -> Words:
    """``uint64[B, count]``: the core's counter generator (rng.h), for many streams at once."""
    odd = np.uint64(0x9E3779B97F4A7C15)
    one = np.uint64(1)
    with np.errstate(over="ignore"):
        stream = _mix(np.full(len(positions), seed) + odd)
        stream = _mix(stream ^ (np.uint64(epoch) + one) * odd)
        stream = _mix(stream ^ (positions.astype(np.uint64) + one) * odd)
        draws = np.arange(1, count + 1, dtype=np.uint64) * odd
        return _mix(stream[:, None] + draws)


def _mix(bits: Words) -> Words:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def policy_of(
    rows: Sequence[Sequence[tuple[int, int, float]]], *, idle: int, independent: bool
) -> Policy:
    """A Policy from its rows of (operation, strength, chance)."""
    table = np.array(rows, np.float64)
    return Policy(
        ops=table[:, :, 0].astype(np.int32),
        bins=table[:, :, 1].astype(np.int32),
        chances=table[:, :, 2],
        idle=idle,
        independent=independent,
    )
