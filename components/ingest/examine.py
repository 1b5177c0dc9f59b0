"""Looking at one image file: what it truly is, and whether training can decode every pixel of it.

A file that cannot be used is an ordinary result with a reason, never an exception.  This module
looks at one file at a time; what files mean to one another is decided in `run`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError
from tarpon._pillow import UndecodableError, decode

from components import phash, sources

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""Pillow's names of the formats that are tried, whatever a file's name says."""

MAX_BYTES = 1 << 30
"""A larger file is quarantined unread."""

RULES = 2
"""Raised when a file may be judged otherwise than before: older verdicts are not taken over."""

_CLIPPED_MODES = ("F", "I")  # floats and 32-bit integers: no range that 8 bits could stand for
_MAGIC = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*"),
    "WEBP": (b"RIFF",),
    "BMP": (b"BM",),
}
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one file turned out to be.

    Attributes:
        sample_id: sha256 of the bytes, hex; of no bytes when they could not be read.
        width: Pixels as shown, after EXIF orientation; None when not decodable.
        phash: Of the picture as shown; None exactly when the file cannot be used.
        reason: Why it cannot be used, in two or three words to be counted by; None when it can.
        detail: The rest of that sentence.
        etag: Size and modification time, taken before the bytes were read, or what the server
            calls the content's ETag; and `RULES`.
    """

    sample_id: str
    bytes: int = 0
    format: str | None = None
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    phash: int | None = None
    reason: str | None = None
    detail: str = ""
    etag: str = ""


class _UnusableError(Exception):
    """This file cannot be used: a reason to count by, and the detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def etag(path: str) -> str:
    """What changes when the file may have changed; empty when it cannot be looked at."""
    try:
        info = os.stat(path)
    except OSError:
        return ""
    return f"{info.st_size}-{info.st_mtime_ns}-{RULES}"


def examine(
    path: str, *, max_pixels: int, listed: str | None = None, old: Seen | None = None
) -> Seen:
    """Read, hash and fully decode one file.  Call it inside `pillow_settings`.

    Args:
        path: The file, or its URL.
        max_pixels: A picture of more is not decoded: it may be a decompression bomb.
        listed: The ETag that a listing gave it.
        old: What was seen earlier, and is the answer where the file has not changed since.

    Raises:
        StoreError: The whole store does not answer; see `sources`.
    """
    data, suffix = b"", f"-{RULES}"
    tag = f"{listed}{suffix}" if listed else "" if sources.is_remote(path) else etag(path)
    if old is not None and tag and old.etag == tag:
        return old
    try:
        if sources.is_remote(path):
            known = old.etag.removesuffix(suffix) if old and old.etag.endswith(suffix) else None
            answer = sources.fetch(path, unless=known, max_bytes=MAX_BYTES)
            if answer is None:
                assert old is not None  # only its ETag can have been answered so
                return old
            data, tag = answer[0], f"{answer[1]}{suffix}" if answer[1] else ""
        else:
            data = _read(path)
        found = _decode(data, max_pixels)
    except (_UnusableError, sources.SourceError) as error:
        found = Seen(sample_id="", reason=error.reason, detail=error.detail)
    return Seen(
        sample_id=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        format=found.format,
        width=found.width,
        height=found.height,
        mode=found.mode,
        phash=found.phash,
        reason=found.reason,
        detail=found.detail,
        etag=tag,
    )


@contextlib.contextmanager
def pillow_settings() -> Iterator[None]:
    """Pillow's process-wide knobs, as `examine` needs them, for the length of a `with` block.

    `max_pixels` replaces Pillow's own limit, and what Pillow warns of (odd EXIF, odd TIFF tags)
    does not make a picture unusable.
    """
    Image.init()  # here, because registering the formats is not safe from several threads
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _read(path: str) -> bytes:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise _UnusableError("bad name", "the file name is not UTF-8; rename it") from None
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise _UnusableError("unreadable", "not a regular file")
        if info.st_size > MAX_BYTES:
            raise _UnusableError("too large", f"{info.st_size:,} bytes, at most {MAX_BYTES:,}")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        detail = "a dangling link" if os.path.islink(path) else error.strerror or str(error)
        raise _UnusableError("unreadable", detail) from error


def _decode(data: bytes, max_pixels: int) -> Seen:
    if not data:
        raise _UnusableError("empty file", "0 bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise _UnusableError(
                    "too many pixels",
                    f"{width}x{height} is {width * height:,}, at most {max_pixels:,}; "
                    "raise ingest.max_pixels if it is meant",
                )
            image.load()
            if image.mode in _CLIPPED_MODES:
                raise _UnusableError(
                    "unsupported pixel type",
                    f"{image.mode}, whose values 8 bits would clip; save it with 8 or 16 bits",
                )
            found = _describe(image)
        if found.format == "JPEG":
            decode(data)  # as training will, which is stricter than Pillow
        return found
    except _UnusableError:
        raise
    except UndecodableError as error:
        raise _UnusableError("not trainable", f"the loader refuses it ({error})") from error
    except UnidentifiedImageError:
        raise _not_an_image(data) from None
    except Exception as error:  # malformed files make Pillow's parsers raise almost anything
        raise _damaged(_sniff(data) or "image", error) from error


def _describe(image: Image.Image) -> Seen:
    orientation = _orientation(image)
    small = phash.shrink(_eight_bits(image))
    if orientation in _UPRIGHT:
        small = small.transpose(_UPRIGHT[orientation])
    width, height = image.size
    if orientation >= 5:
        width, height = height, width
    return Seen(
        sample_id="",
        format="JPEG" if image.format == "MPO" else image.format,
        width=width,
        height=height,
        mode=image.mode,
        phash=phash.phash(small),
    )


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit greys scaled, as the loader does; converting them would clip nearly all to white."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; anything unreadable is upright, as viewers have it."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a picture with broken EXIF is still a picture
        return 1
    return value if value in _UPRIGHT else 1


def _damaged(kind: str, error: Exception) -> _UnusableError:
    text = str(error) or type(error).__name__
    if isinstance(error, EOFError) or "truncated" in text.lower():
        return _UnusableError("truncated", f"the {kind} data ends before the picture does")
    return _UnusableError("damaged", f"the {kind} data cannot be decoded ({text})")


def _not_an_image(data: bytes) -> _UnusableError:
    kind = _sniff(data)
    if kind:
        return _UnusableError("damaged", f"begins as {kind}, but its header cannot be read")
    start = data[:40]
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        text = "" if error.start < len(start) - 3 else start[: error.start].decode()
    if text and all(char.isprintable() or char in "\r\n\t" for char in text):
        return _UnusableError("not an image", f"holds text that begins {text.split(chr(10))[0]!r}")
    return _UnusableError(
        "not an image", f"begins with the bytes {data[:8].hex(' ')}, expected one of {_KINDS}"
    )


_KINDS = ", ".join(_MAGIC)


def _sniff(data: bytes) -> str | None:
    """The format that the first bytes claim."""
    for kind, magics in _MAGIC.items():
        if data.startswith(magics):
            return kind
    return None
