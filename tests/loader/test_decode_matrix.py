"""Every kind of image: Pillow's pixels, or an error that names the sample; never a crash."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tarpon
from PIL import Image, ImageOps, features
from tarpon import _core, _pillow

from tests.loader.tars import write_tar
from tests.loader.test_pixels import difference, encoded, scene

CORPUS = Path("loader/core/fuzz/corpus/jpeg")
REFUSED = {"many-scans", "no-end", "truncated"}  # files of the corpus that are bad
DAMAGED = {"fill-bytes-before-stuffed-zero"}  # decoded here, as libjpeg would; not by Pillow


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes | None = None) -> bytes:
    """A PNG of any depth; rows of noise unless given."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    if rows is None:
        rng, line = np.random.default_rng(3), (width * depth * channels + 7) // 8
        rows = b"".join(b"\0" + rng.bytes(line) for _ in range(height))
    chunks = b"\x89PNG\r\n\x1a\n"
    for kind, body in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ):
        chunks += struct.pack(">I", len(body)) + kind + body
        chunks += struct.pack(">I", zlib.crc32(kind + body))
    return chunks


def turned(format: str, orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return saved(scene(70, 44), format, exif=tags)


def deep(format: str, mode: str) -> bytes:
    values = np.arange(44 * 70, dtype=np.uint16).reshape(44, 70) * 21
    return saved(Image.fromarray(values).convert(mode), format)


PALETTE = scene(70, 44).quantize(200)
KINDS: dict[str, Callable[[], bytes]] = {
    **{file.stem: file.read_bytes for file in CORPUS.glob("*.jpg") if file.stem not in REFUSED},
    "jpeg restart rows": lambda: encoded(scene(301, 99), restart_marker_rows=1),
    "jpeg 4:2:2 progressive": lambda: encoded(scene(99, 301), subsampling=1, progressive=True),
    "jpeg smaller than the crop": lambda: encoded(scene(9, 5)),
    "jpeg of the longest side": lambda: encoded(scene(65500, 1)),
    "jpeg of the tallest side": lambda: encoded(scene(1, 65500), subsampling=0),
    "jpeg 2000 x 3": lambda: encoded(scene(2000, 3)),
    **{
        f"png {mode}": lambda mode=mode: saved(scene(70, 44, mode), "PNG")
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA")
    },
    "png palette, alpha": lambda: saved(PALETTE, "PNG", transparency=bytes(range(200))),
    "png palette, one clear": lambda: saved(PALETTE, "PNG", transparency=7),
    "png grey, one clear": lambda: saved(scene(70, 44, "L"), "PNG", transparency=9),
    "png 1x1": lambda: saved(scene(1, 1), "PNG"),
    "png 3000 x 2": lambda: saved(scene(3000, 2), "PNG"),
    **{f"png {d} bits": lambda d=d: png(20, 10, d, 0) for d in (1, 2, 4)},
    **{f"png 16 bits, colour type {c}": lambda c=c: png(20, 10, 16, c) for c in (0, 2, 4, 6)},
    "gif": lambda: saved(scene(70, 44), "GIF"),
    "gif, one clear": lambda: saved(PALETTE, "GIF", transparency=3),
    "gif of frames": lambda: saved(
        scene(70, 44), "GIF", save_all=True, append_images=[scene(70, 44).rotate(90)]
    ),
    **{
        f"tiff {mode}": lambda mode=mode: saved(scene(70, 44, mode), "TIFF")
        for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr")
    },
    "tiff 16 bits": lambda: deep("TIFF", "I;16"),
    "tiff 16 bits, big-endian": lambda: deep("TIFF", "I;16B"),
    **{
        f"tiff {how}": lambda how=how: saved(scene(70, 44), "TIFF", compression=how)
        for how in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")
    },
    **{
        f"bmp {mode}": lambda mode=mode: saved(scene(70, 44, mode), "BMP")
        for mode in ("1", "L", "P", "RGB", "RGBA")
    },
    "webp lossy": lambda: saved(scene(70, 44), "WEBP"),
    "webp lossless, alpha": lambda: saved(scene(70, 44, "RGBA"), "WEBP", lossless=True),
    "webp of frames": lambda: saved(
        scene(70, 44), "WEBP", save_all=True, append_images=[scene(70, 44).rotate(90)]
    ),
    **{
        f"{format} orientation {turn}": lambda format=format, turn=turn: turned(format, turn)
        for format in ("PNG", "WEBP", "TIFF", "JPEG")
        for turn in range(1, 9)
    },
}


def pillow(data: bytes) -> Image.Image:
    with warnings.catch_warnings(action="ignore"):  # of orientations given twice
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if image.mode == "P":  # by way of alpha, as Pillow wants it
        image = image.convert("RGBA")
    return image.convert("RGB")


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tarpon.Loader]:
    """Batch i is the i-th of the kinds alone."""
    members = [(f"{i:04d}.jpg", make()) for i, make in enumerate(KINDS.values())]
    tar = write_tar(tmp_path_factory.mktemp("matrix") / "x.tar", members)
    fields = {
        "whole": tarpon.Image(),
        "exact": tarpon.RandomResizedCrop(32, exact=True),
        "fast": tarpon.RandomResizedCrop(16),
        "center": tarpon.CenterCrop(24, resize=28),
    }
    with tarpon.Loader(tar, batch_size=1, fields=fields, shuffle=False, seed=3) as loader:
        yield loader


def crop(image: Image.Image, size: int, box: tuple[float, ...], flip: bool) -> Image.Image:
    resized = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return ImageOps.mirror(resized) if flip else resized


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_as_pillow_has_it(kind: str, loader: tarpon.Loader) -> None:
    number = list(KINDS).index(kind)
    batch = loader.batch(0, number)
    if kind in DAMAGED:
        return
    image = pillow(KINDS[kind]())
    assert np.array_equal(batch["whole"][0], np.asarray(image))
    ranges = (0.08, 1.0), (3 / 4, 4 / 3)
    *box, flip = _core.random_box(image.width, image.height, *ranges, 0.5, 3, 0, number)
    for name, size, most in (("exact", 32, 1.0), ("fast", 16, 3.0)):
        expected = np.asarray(crop(image, size, tuple(box), flip))
        assert difference(batch[name][0], expected) <= most, name
    half = 24 * min(image.size) / 28 / 2
    x, y = image.width / 2, image.height / 2
    expected = np.asarray(crop(image, 24, (x - half, y - half, x + half, y + half), False))
    assert difference(batch["center"][0], expected) <= 1.0


def framed(offset: int, *values: int) -> bytes:
    """A JPEG with bytes of its frame header replaced, `offset` from its marker."""
    data = bytearray(encoded(scene(60, 50)))
    at = data.index(b"\xff\xc0") + offset
    data[at : at + len(values)] = bytes(values)
    return bytes(data)


def tiff_of_float_offsets() -> bytes:
    data = bytearray(saved(scene(70, 44), "TIFF"))
    directory = struct.unpack_from("<I", data, 4)[0]
    entries = range(directory + 2, len(data), 12)
    entry = next(at for at in entries if struct.unpack_from("<H", data, at)[0] == 273)
    struct.pack_into("<HHIf", data, entry, 273, 11, 1, 8.0)
    return bytes(data)


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "jpeg of 65535 x 65535": (lambda: framed(5, 255, 255, 255, 255), "65535 x 65535 pixels, exp"),
    "jpeg of no rows": (lambda: framed(5, 0, 0), "60 x 0 pixels, which is none"),
    "jpeg of 12 bits": (lambda: framed(4, 12), "12 bits a channel, expected 8"),
    "jpeg, lossless": (lambda: framed(1, 0xC3), "SOF3, which is lossless or hierarchical; exp"),
    "jpeg of 2 channels": (lambda: framed(9, 2), "2 channels, expected 1, 3 or 4"),
    "scan bomb": ((CORPUS / "many-scans.jpg").read_bytes, "more than 100 scans, expected"),
    "no end": ((CORPUS / "no-end.jpg").read_bytes, "Premature end"),
    "cut in its header": ((CORPUS / "truncated.jpg").read_bytes, "it is truncated"),
    "png bomb": (lambda: png(100_000, 100_000, 8, 2, b""), "decompression bomb.*, expected an im"),
    "png of no rows": (lambda: png(9, 9, 8, 2, b""), "expected an image"),
    **{
        f"{format} cut off": (
            lambda format=format: saved(scene(300, 200), format)[:-2000],
            "expected an image",
        )
        for format in ("PNG", "WEBP", "TIFF", "BMP", "GIF")
    },
    "tiff of float offsets": (tiff_of_float_offsets, "expected an image"),  # TypeError in Pillow
    # Pillow would start Ghostscript
    "postscript": (lambda: saved(scene(9, 9), "EPS"), "of no kind that is read, expected an image"),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "of no kind that is read"),
    "html": (lambda: b"<html>404</html>", "of no kind that is read"),
    "zeros": (lambda: bytes(1000), "of no kind that is read"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("field", [tarpon.CenterCrop(8), tarpon.Image()], ids=["crop", "whole"])
def test_what_cannot_be_decoded_is_a_bad_sample(
    kind: str, field: tarpon.fields.Field, tmp_path: Path
) -> None:
    make, message = BAD[kind]
    tar = write_tar(tmp_path / "x.tar", [("a/bad.jpg", make())])
    with (
        tarpon.Loader(tar, batch_size=1, fields={"image": field}) as loader,
        pytest.raises(tarpon.BadSampleError, match=message) as caught,
    ):
        next(iter(loader))
    assert str(caught.value).startswith(f"{tar}, sample a/bad at byte 512: ")


def test_damaged_bytes_draw_no_other_error_out_of_pillow() -> None:
    """Warnings are errors here, so those of Pillow are among what is thrown at us."""
    files = [saved(scene(40, 30), format) for format in ("PNG", "WEBP", "TIFF", "BMP", "GIF")]
    if features.check("avif"):
        files.append(saved(scene(40, 30), "AVIF"))
    draw = random.Random(8)
    outcomes = set()
    for _ in range(800):
        data = bytearray(draw.choice(files))
        for _ in range(draw.choice((1, 2, 8))):
            data[draw.randrange(min(len(data), draw.choice((64, 400))))] = draw.randrange(256)
        try:
            _pillow.decode(bytes(data))
        except _pillow.UndecodableError as error:
            outcomes.add(type(error.__cause__).__name__)
    assert len(outcomes) >= 3
