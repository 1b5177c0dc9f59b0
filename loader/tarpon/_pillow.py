"""Images the core does not decode (PNG, WebP, ...), and whole images. Pillow, on Python threads."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from tarpon import _core
from tarpon.fields import CenterCrop, Crop

_JPEG = b"\xff\xd8\xff"
_ORIENTATION = 0x0112  # EXIF's tag
_ON_ITS_SIDE = (5, 6, 7, 8)
# Pillow knows more, such as EPS, for which it starts Ghostscript on the bytes.
_FORMATS = ("PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")


class UndecodableError(ValueError):
    """The bytes are no image of a kind that is decoded."""


def decode(data: bytes | memoryview) -> npt.NDArray[np.uint8]:
    """The whole image: ``uint8[H, W, 3]``, EXIF applied. JPEGs are decoded by the core."""
    if bytes(data[:3]) == _JPEG:
        try:
            pixels, height, width = _core.decode(data)
        except ValueError as error:
            raise UndecodableError(str(error)) from error
        return np.frombuffer(pixels, np.uint8).reshape(height, width, 3).copy()
    return np.array(_open(data))


def look(data: bytes | memoryview) -> tuple[str, int, int]:
    """Kind of image, width and height turned by its Exif tag, of which XMP is no part.

    Reads no more than the header, but of a JPEG and of a PNG without an end, which are decoded:
    that shows whether they are whole.
    """
    if bytes(data[:3]) == _JPEG:
        height, width, _ = decode(data).shape
        return "JPEG", width, height
    with _reading():
        image = Image.open(io.BytesIO(data), formats=_formats())
        if image.format == "PNG" and (
            b"IEND" not in bytes(data)
            or ("exif" not in image.info and b"eXIf" in bytes(data))  # it stands behind the pixels
        ):
            image.load()
        tags = Image.Exif()
        tags.load(image.info.get("exif", b""))
        width, height = image.size  # of a TIFF, Pillow has turned it
        if tags.get(_ORIENTATION) in _ON_ITS_SIDE and image.format != "TIFF":
            width, height = height, width
        return str(image.format), width, height


def crop(
    data: bytes, field: Crop, *, seed: int, epoch: int, position: int
) -> npt.NDArray[np.uint8 | np.float16 | np.float32]:
    """What the core would make of a JPEG, made of any other image."""
    image = _open(data)
    flip = False
    box: tuple[float, float, float, float]
    if isinstance(field, CenterCrop):
        box = _core.center_box(image.width, image.height, field.size, field.resize or 0)
    else:
        *edges, flip = _core.random_box(
            image.width,
            image.height,
            field.scale,
            field.ratio,
            field.flip,
            seed,
            epoch,
            position,
        )
        box = (edges[0], edges[1], edges[2], edges[3])
    side = (field.size, field.size)
    pixels = np.asarray(image.resize(side, Image.Resampling.BILINEAR, box=box))
    if flip:
        pixels = pixels[:, ::-1]
    if field.dtype != "uint8":
        mean = np.asarray(field.mean or (0, 0, 0), np.float32)
        std = np.asarray(field.std or (1, 1, 1), np.float32)
        with np.errstate(over="ignore"):  # infinite in float16, as the core has it
            pixels = ((pixels - mean) / std).astype(field.dtype)
    return pixels.transpose(2, 0, 1) if field.layout == "NCHW" else pixels


def _open(data: bytes | memoryview) -> Image.Image:
    with _reading():
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data), formats=_formats()))
        if image.mode.startswith("I;16"):  # convert() would clip 16 bits, not scale them
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image.info.pop("transparency", None)  # not for RGB; convert() would warn of some
        return image.convert("RGB")


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Whatever hostile bytes draw out of Pillow becomes an UndecodableError."""
    try:
        yield
    except UnidentifiedImageError as error:  # its text holds an address
        kinds = ", ".join(("JPEG", *_formats()))
        raise UndecodableError(f"of no kind that is read, expected an image: {kinds}") from error
    except MemoryError:
        raise
    except Exception as error:  # TypeError, RuntimeError, ...
        raise UndecodableError(f"{error}, expected an image") from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those that this build of Pillow reads."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
