"""One image that somebody sent, to the pixels the network takes: the geometry of `CenterCrop`.

The bytes are hostile: what they claim is checked before anything of that size is allocated.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image
from tarpon._pillow import UndecodableError, decode

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""Pillow's names of what is taken, whatever a request calls it; of several frames the first."""

MAX_PIXELS = 50_000_000
"""A larger image is refused unread: about 0.5 GB while it is decoded."""


class BadImageError(ValueError):
    """The bytes are no image that can be scored; says why."""


def pixels(data: bytes, size: int, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """`uint8[size, size, 3]`, RGB: the largest centred square, resized by Pillow.

    The same box as `tarpon.CenterCrop(size)`, on the image with its EXIF orientation applied. The
    loader resizes JPEGs with its own code: the mean difference stays below one grey level.

    Raises:
        BadImageError: Not an image, too large, or damaged.
    """
    width, height = _claimed(data)
    if width * height > max_pixels:
        raise BadImageError(
            f"found {width} x {height} pixels, expected {max_pixels} at most; send a smaller one"
        )
    try:
        image = Image.fromarray(decode(data))
    except UndecodableError as error:
        raise BadImageError(str(error)) from error
    side = min(image.width, image.height)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def _claimed(data: bytes) -> tuple[int, int]:
    """Width and height as the header has them; nothing else is decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(f"{error}; send a smaller one") from error
    except MemoryError:
        raise
    except Exception as error:  # hostile bytes draw TypeError, struct.error, ... out of Pillow
        expected = ", ".join(FORMATS)
        raise BadImageError(
            f"found {len(data)} bytes that are no image, expected one of {expected}"
        ) from error
