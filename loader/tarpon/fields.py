"""What to make of a sample's components. A field says; the core and the loader do.

Every field names the component it reads by extension, and may list alternatives that stand for
each other: ``"jpg;jpeg;png"`` takes the first one that a sample has.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Literal, get_args

Dtype = Literal["uint8", "float16", "float32"]
Layout = Literal["NHWC", "NCHW"]
Triple = tuple[float, float, float]

IMAGE_EXTENSIONS = "jpg;jpeg;png;webp;bmp;gif;tif;tiff;avif;jp2;ppm;pgm"
MAX_SIDE = 16384  # pixels; TP_TARGET_MAX_SIZE of the core


class Field:
    """Base of all fields; not used by itself."""

    __slots__ = ()
    ext: str

    def __post_init__(self) -> None:
        bad = not isinstance(self.ext, str)
        if bad or any(not name or "/" in name for name in self.extensions):
            raise ValueError(
                f"{type(self).__name__}: ext={self.ext!r}, expected extensions such as 'cls' or "
                "'jpg;jpeg;png'"
            )

    @property
    def extensions(self) -> tuple[str, ...]:
        """The alternatives, lower case, in order of preference."""
        return tuple(part.strip().lower().removeprefix(".") for part in self.ext.split(";"))


@dataclass(frozen=True, slots=True)
class Raw(Field):
    """The component's bytes as they are: a ``Ragged`` in the batch."""

    ext: str


@dataclass(frozen=True, slots=True)
class Int(Field):
    """A decimal integer in ASCII: ``int64[B]``. Parsed on the core's threads."""

    ext: str


@dataclass(frozen=True, slots=True)
class Float(Field):
    """A decimal number in ASCII: ``float64[B]``."""

    ext: str


@dataclass(frozen=True, slots=True)
class Text(Field):
    """UTF-8 text: ``list[str]``."""

    ext: str


@dataclass(frozen=True, slots=True)
class Json(Field):
    """A JSON document: ``list`` of whatever each one holds."""

    ext: str


@dataclass(frozen=True, slots=True)
class Npy(Field):
    """A NumPy ``.npy`` file: ``list[np.ndarray]``. Pickled objects are refused."""

    ext: str


@dataclass(frozen=True, slots=True)
class Image(Field):
    """The whole image as a person sees it (EXIF applied): ``list`` of ``uint8[H, W, 3]``."""

    ext: str = IMAGE_EXTENSIONS


def _plain(field: Field, *names: str) -> None:
    """Make plain numbers, and tuples of floats, of NumPy's and of lists: they hash and compare."""
    for name in names:
        value = getattr(field, name)
        try:
            if isinstance(value, bool | str):
                raise TypeError
            if isinstance(value, Iterable):
                value = tuple(map(float, value))
            elif value is not None:
                value = operator.index(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{type(field).__name__}: {name}={value!r}, expected a whole number of pixels, or "
                "a tuple of numbers where there are several"
            ) from error
        object.__setattr__(field, name, value)


def _check_output(
    name: str, size: int, dtype: Dtype, layout: Layout, mean: Triple | None, std: Triple | None
) -> None:
    """Refuse an output that cannot be made; shared by the two crops."""
    if not isinstance(size, int) or not 1 <= size <= MAX_SIDE:
        raise ValueError(f"{name}: size={size!r}, expected 1 to {MAX_SIDE} pixels")
    if dtype not in get_args(Dtype):
        raise ValueError(f"{name}: dtype={dtype!r}, expected one of {get_args(Dtype)}")
    if layout not in get_args(Layout):
        raise ValueError(f"{name}: layout={layout!r}, expected one of {get_args(Layout)}")
    if dtype == "uint8" and (mean is not None or std is not None):
        raise ValueError(
            f"{name}: mean or std with dtype='uint8', expected a floating dtype; "
            "use dtype='float32' or 'float16', or normalise later"
        )
    for key, values in (("mean", mean), ("std", std)):
        if values is not None and not (
            isinstance(values, tuple) and len(values) == 3 and all(map(math.isfinite, values))
        ):
            raise ValueError(f"{name}: {key}={values!r}, expected three numbers in 0..255")
    if std is not None and min(std) <= 0:
        raise ValueError(f"{name}: std={std!r}, expected three positive numbers")


def _check_range(name: str, key: str, low_high: tuple[float, float], most: float) -> None:
    if (
        not (isinstance(low_high, tuple) and len(low_high) == 2)
        or not 0 < low_high[0] <= low_high[1] <= most
    ):
        raise ValueError(f"{name}: {key}={low_high!r}, expected 0 < low <= high <= {most:g}")


@dataclass(frozen=True, slots=True)
class RandomResizedCrop(Field):
    """A random box of the image, resized to ``size`` x ``size`` and flipped half of the time.

    ``dtype[B, size, size, 3]``, or ``[B, 3, size, size]`` with ``layout="NCHW"``. The draw is
    torchvision's and depends on (seed, epoch, position in the epoch) alone: the same on every
    machine and after every resume. JPEGs are decoded on the core's threads, anything else by
    Pillow on Python threads.

    Args:
        size: Side of the result in pixels.
        ext: Components to decode, by extension.
        scale: Smallest and largest area of the box, as a share of the image's.
        ratio: Smallest and largest width over height of the box.
        flip: Probability of a left-right flip.
        exact: Never decode a JPEG at 1/2, 1/4 or 1/8 scale; otherwise that is done where the
            crop keeps at least twice ``size`` pixels a side.
        dtype: ``"uint8"``, ``"float16"`` or ``"float32"``; floats hold ``(value - mean) / std``.
        mean: Per channel, in units of 0..255; default 0.
        std: Per channel, in units of 0..255; default 1.
        layout: ``"NHWC"`` or ``"NCHW"``.
    """

    size: int
    ext: str = IMAGE_EXTENSIONS
    _: KW_ONLY
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    exact: bool = False
    dtype: Dtype = "uint8"
    mean: Triple | None = None
    std: Triple | None = None
    layout: Layout = "NHWC"

    def __post_init__(self) -> None:
        Field.__post_init__(self)
        _plain(self, "size", "scale", "ratio", "mean", "std")
        _check_output("RandomResizedCrop", self.size, self.dtype, self.layout, self.mean, self.std)
        _check_range("RandomResizedCrop", "scale", self.scale, 1.0)
        _check_range("RandomResizedCrop", "ratio", self.ratio, math.inf)
        if not 0 <= self.flip <= 1:
            raise ValueError(f"RandomResizedCrop: flip={self.flip!r}, expected a probability")


@dataclass(frozen=True, slots=True)
class CenterCrop(Field):
    """The centred square that is left after the shorter side is resized to ``resize`` pixels.

    Shape, dtype and threads as for ``RandomResizedCrop``. Resized once, straight from the
    image, and never decoded at a smaller scale.

    Args:
        size: Side of the result in pixels.
        resize: What the shorter side would become; ``None`` is ``size``: the largest square.
        ext: Components to decode, by extension.
        exact: Accepted for symmetry; a centre crop always is.
        dtype, mean, std, layout: As for ``RandomResizedCrop``.
    """

    size: int
    resize: int | None = None
    ext: str = IMAGE_EXTENSIONS
    _: KW_ONLY
    exact: bool = False
    dtype: Dtype = "uint8"
    mean: Triple | None = None
    std: Triple | None = None
    layout: Layout = "NHWC"

    def __post_init__(self) -> None:
        Field.__post_init__(self)
        _plain(self, "size", "resize", "mean", "std")
        _check_output("CenterCrop", self.size, self.dtype, self.layout, self.mean, self.std)
        if self.resize is not None and not self.size <= self.resize < 2**31:
            raise ValueError(
                f"CenterCrop: resize={self.resize}, expected at least size={self.size}; "
                "the square would leave the image"
            )


Crop = RandomResizedCrop | CenterCrop
