"""The set every case reads: ImageNet-like JPEGs as tar shards and as loose files, made here.

Cut from the photographs inside scikit-image and scikit-learn, so nothing is downloaded. The same
count and the same Pillow give the same bytes; what was made is kept and used again.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import tarpon
from PIL import Image, ImageFilter

RECIPE = 1
"""Change it with anything below that changes the bytes."""

_PHOTOS = (
    "skimage/data/astronaut.png",
    "skimage/data/chelsea.png",
    "skimage/data/coffee.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/ihc.png",
    "skimage/data/motorcycle_left.png",
    "skimage/data/retina.jpg",
    "skimage/data/rocket.jpg",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
)
LABELS = len(_PHOTOS)
"""The label of sample `n` is ``n % LABELS``."""

_ASPECTS = (4 / 3, 3 / 2, 5 / 4, 1.0, 16 / 9)
_ASPECT_ODDS = (0.48, 0.29, 0.11, 0.07, 0.05)
_QUALITIES = (75, 82, 88, 90, 92, 94, 96)
_QUALITY_ODDS = (0.04, 0.05, 0.08, 0.12, 0.17, 0.22, 0.32)
_SAMPLES_PER_SHARD = 512
SHARDS = "shards"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """The set on disk and what is true of it.

    Attributes:
        root: Holds ``shards/``, ``files/`` and ``dataset.json``.
        samples, bytes: Images and the sum of their JPEG bytes.
        crc: Sum of the images' CRC-32s, modulo 2^64: the same in any order.
        labels: Sum of the labels.
        width, height: Means in pixels.
        url: Where `root` is served, or ``None``.
    """

    root: str
    samples: int
    bytes: int
    crc: int
    labels: int
    width: float
    height: float
    url: str | None = None

    @property
    def shards(self) -> list[str]:
        return [str(path) for path in sorted(Path(self.root, SHARDS).glob("*.tar"))]

    @property
    def sources(self) -> list[str]:
        """The shards as readers are to name them: URLs where the set is served."""
        if self.url is None:
            return self.shards
        return [f"{self.url}/{SHARDS}/{os.path.basename(path)}" for path in self.shards]

    def copies(self, count: int) -> list[str]:
        """The sources `count` times, each time under other names."""
        if count == 1:
            return self.sources
        folders = [f"{SHARDS}-{number}" for number in range(count)]
        for folder in folders:
            with contextlib.suppress(FileExistsError):
                Path(self.root, folder).symlink_to(SHARDS)
        return [
            source.replace(f"/{SHARDS}/", f"/{folder}/")
            for folder in folders
            for source in self.sources
        ]

    @property
    def indexes(self) -> list[str]:
        return [path.removesuffix(".tar") + ".idx" for path in self.shards]

    @property
    def files(self) -> list[str]:
        """Loose files, ``<label>/<number>.jpg``, in the order of the shards."""
        paths = Path(self.root, "files").glob("*/*.jpg")
        return [str(path) for path in sorted(paths, key=lambda path: path.name)]


def label_of(path: str) -> int:
    """The label of a loose file, which is the name of its folder."""
    return int(os.path.basename(os.path.dirname(path)))


def make(folder: Path, samples: int) -> DataSet:
    """The set of so many images below `folder`, made when it is not there yet."""
    root = folder / f"{samples}-recipe{RECIPE}-pillow{PIL.__version__}"
    manifest = root / "dataset.json"
    if not manifest.exists():
        facts = _write(root, samples)
        temporary = manifest.with_suffix(".tmp")
        temporary.write_text(json.dumps(facts), encoding="utf-8")
        temporary.replace(manifest)
    return DataSet(root=str(root), **json.loads(manifest.read_text(encoding="utf-8")))


def _write(root: Path, samples: int) -> dict[str, Any]:
    import webdataset as wds  # brings torch, which the cases' own processes start faster without

    (root / SHARDS).mkdir(parents=True, exist_ok=True)
    for label in range(LABELS):
        (root / "files" / str(label)).mkdir(parents=True, exist_ok=True)
    sums = np.zeros(3)
    crc = labels = 0
    for first in range(0, samples, _SAMPLES_PER_SHARD):
        shard = root / SHARDS / f"train-{first // _SAMPLES_PER_SHARD:06d}.tar"
        with wds.TarWriter(str(shard), mtime=0) as tar:
            numbers = range(first, min(first + _SAMPLES_PER_SHARD, samples))
            for number, (label, width, height, data) in zip(
                numbers, _pictures(numbers), strict=True
            ):
                key = f"{number:08d}"
                tar.write({"__key__": key, "jpg": data, "cls": str(label).encode()})
                (root / "files" / str(label) / f"{key}.jpg").write_bytes(data)
                sums += (len(data), width, height)
                crc += zlib.crc32(data)
                labels += label
    tarpon.index(str(root / SHARDS), force=True)
    return {
        "samples": samples,
        "bytes": int(sums[0]),
        "crc": crc,
        "labels": labels,
        "width": sums[1] / samples,
        "height": sums[2] / samples,
    }


def _pictures(numbers: range) -> Iterator[tuple[int, int, int, bytes]]:
    if len(numbers) < 64:  # not worth the processes
        yield from map(picture, numbers)
        return
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(picture, numbers, chunksize=16)


@functools.cache
def _photo(label: int) -> Image.Image:
    package, _, inside = _PHOTOS[label].partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed, expected it for its photographs; make setup")
    return Image.open(Path(spec.origin).parent / inside).convert("RGB")


def _size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height as ImageNet has them: mostly 500 at most, with a tail of large ones."""
    kind = rng.random()
    if kind < 0.66:
        longer = 500
    elif kind < 0.82:
        longer = int(rng.integers(180, 430))
    elif kind < 0.97:
        longer = int(rng.integers(500, 930))
    else:
        longer = int(rng.integers(900, 2000))
    shorter = round(longer / rng.choice(_ASPECTS, p=_ASPECT_ODDS))
    return (longer, shorter) if rng.random() < 0.75 else (shorter, longer)


def picture(number: int) -> tuple[int, int, int, bytes]:
    """(label, width, height, JPEG): a crop of a photograph, flipped, sharpened, with noise."""
    rng = np.random.default_rng([RECIPE, number])
    label = number % LABELS
    photo = _photo(label)
    width, height = _size(rng)
    most = min(photo.width / width, photo.height / height)
    scale = most * rng.uniform(0.6, 1)
    crop = width * scale, height * scale
    x, y = rng.uniform(0, photo.width - crop[0]), rng.uniform(0, photo.height - crop[1])
    image = photo.resize(
        (width, height), Image.Resampling.LANCZOS, box=(x, y, x + crop[0], y + crop[1])
    )
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.filter(ImageFilter.UnsharpMask(1.0, int(rng.integers(50, 170)), 1))
    pixels = np.asarray(image, np.float32) * rng.uniform(0.8, 1.2) + rng.uniform(-15, 15)
    pixels += rng.normal(0, rng.gamma(2.0, 3.4), (height, width, 1)).astype(np.float32)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    options: dict[str, Any] = {
        "quality": int(rng.choice(_QUALITIES, p=_QUALITY_ODDS)),
        "subsampling": int(rng.choice((0, 1, 2), p=(0.22, 0.08, 0.70))),
        "progressive": bool(rng.random() < 0.01),
        "optimize": bool(rng.random() < 0.3),
    }
    if rng.random() < 0.02:
        image = image.convert("L")
        del options["subsampling"]
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return label, width, height, buffer.getvalue()


def to_json(data: DataSet) -> str:
    return json.dumps(asdict(data))


def from_json(text: str) -> DataSet:
    return DataSet(**json.loads(text))
