"""Pixels against Pillow: what the core decodes, crops and resizes is what Pillow would make."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tarpon
from PIL import Image, ImageOps
from tarpon import _core

from tests.loader.tars import write_tar


def scene(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Something with edges and slopes, so that a pixel's shift shows."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [
        127 + 90 * np.sin(x / 19) * np.cos(y / 23),
        (x * 255) // max(1, width - 1),
        255.0 * ((x // 24 + y // 24) % 2),
    ]
    pixels = np.clip(np.stack(np.broadcast_arrays(*channels), -1), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **({"quality": 92} | options))
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


KINDS: dict[str, Callable[[], bytes]] = {
    "420": lambda: encoded(scene(333, 251), subsampling=2),
    "422": lambda: encoded(scene(333, 251), subsampling=1),
    "444": lambda: encoded(scene(333, 251), subsampling=0),
    "grey": lambda: encoded(scene(301, 199, "L")),
    "cmyk": lambda: encoded(scene(301, 199, "CMYK")),
    "progressive": lambda: encoded(scene(333, 251), progressive=True),
    "tall": lambda: encoded(scene(60, 700)),
    "tiny": lambda: encoded(scene(3, 2)),
    **{
        f"exif{turn}": lambda turn=turn: encoded(scene(220, 140), exif=exif(turn))
        for turn in range(2, 9)
    },
}


def pillow(data: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def difference(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    return float(np.abs(a.astype(np.int16) - b.astype(np.int16)).mean())


def one_batch(folder: Path, data: bytes, fields: dict[str, tarpon.fields.Field]) -> tarpon.Batch:
    write_tar(folder / "one.tar", [(f"{i}.jpg", data) for i in range(24)])
    with tarpon.Loader(
        folder / "one.tar", batch_size=24, fields=fields, shuffle=False, seed=11
    ) as loader:
        return next(iter(loader))


@pytest.mark.parametrize("kind", KINDS)
def test_crops_are_pillows(kind: str, tmp_path: Path) -> None:
    data = KINDS[kind]()
    image = pillow(data)
    batch = one_batch(
        tmp_path,
        data,
        {
            "exact": tarpon.RandomResizedCrop(64, exact=True),
            "fast": tarpon.RandomResizedCrop(32),
            "center": tarpon.CenterCrop(48, resize=56),
        },
    )
    for slot in range(24):
        *box, flip = _core.random_box(
            image.width, image.height, (0.08, 1.0), (3 / 4, 4 / 3), 0.5, 11, 0, slot
        )
        for name, side, tolerance in (("exact", 64, 1.0), ("fast", 32, 3.0)):
            expected = image.resize((side, side), Image.Resampling.BILINEAR, box=tuple(box))
            if flip:
                expected = ImageOps.mirror(expected)
            assert difference(batch[name][slot], np.asarray(expected)) <= tolerance, (name, box)
    half = 48 * min(image.size) / 56 / 2
    x, y = image.width / 2, image.height / 2
    expected = image.resize(
        (48, 48), Image.Resampling.BILINEAR, box=(x - half, y - half, x + half, y + half)
    )
    assert difference(batch["center"][0], np.asarray(expected)) <= 1.0


def test_whole_images_and_other_formats(tmp_path: Path) -> None:
    image = scene(130, 90)
    members = [("a.jpg", KINDS["exif6"]())]
    for name, fmt in (("b.png", "PNG"), ("c.webp", "WEBP"), ("d.bmp", "BMP")):
        buffer = io.BytesIO()
        image.save(buffer, fmt, **({"lossless": True} if fmt == "WEBP" else {}))
        members.append((name, buffer.getvalue()))
    deep = Image.fromarray((np.arange(90 * 130, dtype=np.uint16) * 5).reshape(90, 130))
    buffer = io.BytesIO()
    deep.save(buffer, "PNG")
    members.append(("e.png", buffer.getvalue()))
    write_tar(tmp_path / "x.tar", members)
    fields = {
        "whole": tarpon.Image(),
        "crop": tarpon.RandomResizedCrop(40),
        "float": tarpon.CenterCrop(
            40, dtype="float32", layout="NCHW", mean=(1, 2, 3), std=(4, 5, 6)
        ),
    }
    with tarpon.Loader(tmp_path, batch_size=5, fields=fields, shuffle=False) as loader:
        batch = next(iter(loader))
    assert batch["whole"][0].shape == (220, 140, 3)
    for slot in (1, 2, 3):
        assert np.array_equal(batch["whole"][slot], np.asarray(image))
    assert batch["whole"][4].max() == 228  # 16 bits scaled, not clipped
    *box, flip = _core.random_box(130, 90, (0.08, 1.0), (3 / 4, 4 / 3), 0.5, 0, 0, 1)
    expected = image.resize((40, 40), Image.Resampling.BILINEAR, box=tuple(box))
    expected = ImageOps.mirror(expected) if flip else expected
    assert np.array_equal(batch["crop"][1], np.asarray(expected))
    assert batch["float"].shape == (5, 3, 40, 40)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])  # the core's and Pillow's
@pytest.mark.parametrize("std", [(58.4, 57.1, 57.4), (1e-3, 3e-7, 1e9)])
def test_floats_are_the_normalised_bytes_to_the_last_bit(
    std: tuple[float, float, float], format: str, dtype: str, layout: str, tmp_path: Path
) -> None:
    mean, buffer = (123.7, 116.3, 103.5), io.BytesIO()
    scene(333, 251).save(buffer, format)
    batch = one_batch(
        tmp_path,
        buffer.getvalue(),
        {
            "bytes": tarpon.RandomResizedCrop(32),
            "float": tarpon.RandomResizedCrop(32, dtype=dtype, layout=layout, mean=mean, std=std),
        },
    )
    expected = (batch["bytes"].astype(np.float32) - np.float32(mean)) / np.float32(std)
    with np.errstate(over="ignore"):
        expected = expected.astype(dtype)
    if layout == "NCHW":
        expected = expected.transpose(0, 3, 1, 2)
    assert batch["float"].dtype == dtype
    assert np.array_equal(batch["float"], expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tarpon.RandomResizedCrop(0), "size=0, expected 1 to 16384"),
        (lambda: tarpon.CenterCrop(224, 200), "resize=200, expected at least size=224"),
        (lambda: tarpon.CenterCrop(8, resize=2**31), "resize=2147483648, expected at least"),
        (lambda: tarpon.CenterCrop(8, resize=9.5), "resize=9.5, expected a whole number"),
        (lambda: tarpon.CenterCrop(True), "size=True, expected a whole number"),
        (lambda: tarpon.CenterCrop((8, 8)), "size=(8.0, 8.0), expected 1 to 16384"),
        (lambda: tarpon.RandomResizedCrop(8, scale=(0.5, 0.1)), "scale="),
        (lambda: tarpon.RandomResizedCrop(8, ratio=1), "ratio=1, expected 0 < low"),
        (lambda: tarpon.RandomResizedCrop(8, ratio="ab"), "ratio='ab', expected a whole number"),
        (lambda: tarpon.CenterCrop(8, dtype="float32", mean=3), "mean=3, expected three numbers"),
        (lambda: tarpon.RandomResizedCrop(8, flip=2), "flip=2"),
        (lambda: tarpon.RandomResizedCrop(8, dtype="int8"), "dtype='int8'"),
        (lambda: tarpon.RandomResizedCrop(8, mean=(0, 0, 0)), "use dtype='float32'"),
        (lambda: tarpon.CenterCrop(8, dtype="float32", std=(1, 0, 1)), "three positive numbers"),
        (lambda: tarpon.CenterCrop(8, layout="CHW"), "layout='CHW'"),
        (lambda: tarpon.Raw(""), "ext='', expected extensions"),
    ],
)
def test_wrong_fields(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_numpys_numbers_and_lists_are_as_good_as_pythons() -> None:
    plain = tarpon.RandomResizedCrop(8, dtype="float32", mean=(1, 2, 3), scale=(0.5, 1))
    other = tarpon.RandomResizedCrop(
        np.int64(8), dtype="float32", mean=np.array([1, 2, 3]), scale=[0.5, 1]
    )
    assert plain == other
    assert hash(plain) == hash(other)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    data = bytearray(KINDS["444"]())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xdc\xff\xdc"  # 65500 x 65500
    with pytest.raises(tarpon.BadSampleError, match="65500"):
        one_batch(tmp_path, bytes(data), {"image": tarpon.CenterCrop(8)})
