"""Small shards of made-up photographs, written by Python's tarfile: not by anything of ours."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

Members = Iterable[tuple[str, bytes]]


def write_tar(path: Path, members: Members, *, format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def photo(seed: int, *, size: tuple[int, int] = (96, 72), format: str = "JPEG") -> bytes:
    """A smooth colour image of about `size`; the same seed, the same bytes."""
    rng = np.random.default_rng(seed)
    noise = (rng.random((6, 8, 3)) * 255).astype(np.uint8)
    width, height = size[0] + seed % 7, size[1] + seed % 5
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format, **({"quality": 90} if format == "JPEG" else {}))
    return buffer.getvalue()


def samples(numbers: Iterable[int]) -> list[tuple[str, bytes]]:
    """Members of the samples `numbers`: `.cls` holds number % 10, `.jpg` a photo."""
    members = []
    for number in numbers:
        members += [
            (f"{number:05d}.cls", str(number % 10).encode()),
            (f"{number:05d}.jpg", photo(number)),
        ]
    return members
