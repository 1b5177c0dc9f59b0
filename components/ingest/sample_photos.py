"""Make a labelled folder of real JPEGs out of the photographs inside scikit-image and scikit-learn.

    python -m components.ingest.sample_photos OUT --count 1200 --seed 0

One class per photograph; each picture is a random crop of it, scaled, flipped and recoloured, in
the varieties that real collections hold: greyscale, CMYK, progressive, rotated by EXIF.  A handful
of broken and misleading files lie among them, so that a pipeline's quarantine has work to do.
Nothing is downloaded, and the same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageEnhance, ImageOps
from tarpon.cpus import usable_cpus

from components.progress import track

CLASSES: dict[str, tuple[str, ...]] = {
    "astronaut": ("skimage/data/astronaut.png",),
    "cat": ("skimage/data/chelsea.png",),
    "coffee": ("skimage/data/coffee.png",),
    "flower": ("sklearn/datasets/images/flower.jpg",),
    "galaxies": ("skimage/data/hubble_deep_field.jpg",),
    "motorcycle": ("skimage/data/motorcycle_left.png", "skimage/data/motorcycle_right.png"),
    "rocket": ("skimage/data/rocket.jpg",),
    "temple": ("sklearn/datasets/images/china.jpg",),
}
"""Class name to the photographs it is cut from, as `package/file`."""

MARKER = ".sample-photos.json"
"""Lists the files this command made in a folder; without it a non-empty folder is left alone."""

_ORIENTATION_TAG = 0x0112
_UNROTATE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation to what was done to the stored pixels, so that a viewer shows them upright."""


class SamplePhotosError(ValueError):
    """The folder cannot be made as asked; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What lies in the folder afterwards.

    Attributes:
        photos: Good pictures by class, the copies and the misnamed ones not among them.
        traits: How many of those are greyscale, CMYK, progressive or rotated by EXIF.
        extras: Broken, misnamed and copied files by kind.
        fresh: False when the folder held exactly this already and nothing was written.
    """

    folder: str
    photos: dict[str, int]
    traits: dict[str, int]
    extras: dict[str, int]
    fresh: bool


@dataclass(frozen=True, slots=True)
class _Look:
    """The file-level traits of one picture; drawn from its seed alone."""

    grey: bool
    cmyk: bool
    progressive: bool
    orientation: int
    quality: int


@dataclass(frozen=True, slots=True)
class _Extra:
    """One file that is broken, misnamed or a copy, made from a good picture's bytes."""

    path: str
    kind: str
    of: str
    make: Callable[[bytes], bytes]


def make(out: str, *, count: int, seed: int = 0, classes: Sequence[str] | None = None) -> Made:
    """Fill a folder with `count` good pictures, `out/<class>/<class>-<number>.jpg`, and the extras.

    Safe to kill and run again: what an earlier run of this command left is completed or replaced.

    Args:
        out: A folder that is missing, empty or made by this command.
        count: Good pictures over all classes, at least two per class.
        seed: Fixes every byte, for one version of Pillow.
        classes: Names from `CLASSES`; all of them when None.

    Raises:
        SamplePhotosError: Bad arguments, a foreign non-empty folder, or photographs not installed.
    """
    names = _chosen(classes, count)
    folder = Path(out)
    plan = _plan(names, count)
    extras = _extras(plan, names)
    wish = {"count": count, "seed": seed, "classes": names, "pillow": PIL.__version__}
    made = Made(
        folder=str(folder),
        photos=dict(Counter(name for name, _ in plan.values())),
        traits=dict(sorted(_traits(seed, count).items())),
        extras=dict(Counter(extra.kind for extra in extras)),
        fresh=True,
    )
    files = [*plan, *(extra.path for extra in extras)]
    if _claim(folder, wish, files):
        return dataclasses.replace(made, fresh=False)

    def write(item: tuple[str, tuple[str, int]]) -> None:
        path, (name, index) = item
        _put(folder / path, picture(name, seed=seed, index=index))

    with ThreadPoolExecutor(usable_cpus()) as pool:
        for _ in track(pool.map(write, plan.items()), len(plan), "sample photos"):
            pass
    for extra in extras:
        _put(folder / extra.path, extra.make((folder / extra.of).read_bytes()))
    _write_marker(folder, wish, files, complete=True)
    return made


def picture(name: str, *, seed: int, index: int) -> bytes:
    """One good JPEG of a class; the same arguments give the same bytes.

    A quarter to all of the photograph, at about 500x400, so that a class is recognised by what
    the crops of one photograph share and no two pictures are alike.
    """
    rng = np.random.default_rng([seed, index])
    look = _look(seed, index)
    sources = CLASSES[name]
    photo = _photo(sources[int(rng.integers(len(sources)))])
    width = int(np.clip(rng.normal(500, 50), 360, 640))
    height = int(np.clip(rng.normal(400, 40), 280, 520))
    image = photo.resize((width, height), Image.Resampling.BICUBIC, box=_crop(rng, photo.size))
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    image = _recolour(rng, image)
    if look.grey:
        image = image.convert("L")
    if look.cmyk:
        image = image.convert("CMYK")
    options: dict[str, object] = {"quality": look.quality, "progressive": look.progressive}
    if look.orientation != 1:
        image = image.transpose(_UNROTATE[look.orientation])
        exif = Image.Exif()
        exif[_ORIENTATION_TAG] = look.orientation
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def _look(seed: int, index: int) -> _Look:
    rng = np.random.default_rng([seed, index, 1])
    colour, progressive, rotated = rng.random(3)
    return _Look(
        grey=bool(colour < 0.06),
        cmyk=bool(0.06 <= colour < 0.09),
        progressive=bool(progressive < 0.12),
        orientation=int(rng.integers(2, 9)) if rotated < 0.08 else 1,
        quality=int(rng.integers(75, 96)),
    )


def _traits(seed: int, count: int) -> Counter[str]:
    traits: Counter[str] = Counter()
    for look in (_look(seed, index) for index in range(count)):
        traits["greyscale"] += look.grey
        traits["cmyk"] += look.cmyk
        traits["progressive"] += look.progressive
        traits["rotated by exif"] += look.orientation != 1
    return traits


def _crop(rng: np.random.Generator, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box of 25 to 100 % of the area, aspect ratio within a quarter of the photograph's."""
    width, height = size
    share = rng.uniform(0.25, 1.0)
    stretch = np.exp(rng.uniform(np.log(0.8), np.log(1.25)))
    w = min(width, width * np.sqrt(share * stretch))
    h = min(height, height * np.sqrt(share / stretch))
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return (left, top, left + w, top + h)


def _recolour(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(float(rng.uniform(0.65, 1.35)))
    tint = rng.uniform(0.88, 1.12, size=3)
    table = [min(255, round(value * gain)) for gain in tint for value in range(256)]
    return image.point(table)


@functools.cache
def _photo(source: str) -> Image.Image:
    """The whole photograph in RGB, found beside its package's code without importing it."""
    package, _, inner = source.partition("/")
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / inner if spec and spec.origin else None
    if path is None or not path.is_file():
        raise SamplePhotosError(
            f"{source}: not installed, expected it inside scikit-image or scikit-learn; "
            "run `make setup`, or leave its class out with --classes"
        )
    with Image.open(path) as image:
        return image.convert("RGB")


def _chosen(classes: Sequence[str] | None, count: int) -> list[str]:
    names = sorted(classes if classes is not None else CLASSES)
    unknown = [name for name in names if name not in CLASSES]
    if unknown or len(set(names)) != len(names) or len(names) < 2:
        raise SamplePhotosError(
            f"--classes: found {names}, expected two or more different ones of {sorted(CLASSES)}"
        )
    if count < 2 * len(names):
        raise SamplePhotosError(
            f"--count: found {count}, expected at least {2 * len(names)}, two per class"
        )
    for name in names:
        for source in CLASSES[name]:
            _photo(source)
    return names


def _plan(names: list[str], count: int) -> dict[str, tuple[str, int]]:
    """Path to class and number, the classes dealt in turn."""
    dealt = [(names[index % len(names)], index) for index in range(count)]
    return {f"{name}/{name}-{i // len(names):05d}.jpg": (name, i) for name, i in dealt}


def _extras(plan: dict[str, tuple[str, int]], names: list[str]) -> list[_Extra]:
    """A handful of troublesome files, spread over the classes."""
    first = {name: f"{name}/{name}-00000.jpg" for name in names}
    second = {name: f"{name}/{name}-00001.jpg" for name in names}

    def extra(turn: int, stem: str, kind: str, made: Callable[[bytes], bytes]) -> _Extra:
        name = names[turn % len(names)]
        return _Extra(f"{name}/{stem}", kind, second[name], made)

    return [
        extra(0, "broken-cut-short.jpg", "truncated", lambda data: data[: len(data) * 2 // 5]),
        extra(1, "broken-cut-late.jpg", "truncated", lambda data: data[:-2000]),
        extra(2, "broken-empty.jpg", "zero bytes", lambda data: b""),
        extra(3, "broken-empty.jpg", "zero bytes", lambda data: b""),
        extra(4, "broken-text.jpg", "text named .jpg", lambda data: b"a note, not a picture\n" * 9),
        extra(
            5,
            "broken-page.jpg",
            "text named .jpg",
            lambda data: b"<!DOCTYPE html><title>404 Not Found</title>\n",
        ),
        extra(6, "misnamed-png.jpg", "wrong extension", lambda data: _recode(data, "PNG")),
        extra(7, "misnamed-jpeg.png", "wrong extension", lambda data: _recode(data, "JPEG")),
        *(
            _Extra(f"{name}/{name}-copy.jpg", "exact copy", first[name], lambda data: data)
            for name in names[:4]
        ),
        _Extra(
            f"{names[-1]}/misfiled.jpg",
            "same bytes in two classes",
            f"{names[0]}/{names[0]}-00001.jpg",
            lambda data: data,
        ),
        _Extra("about.txt", "not an image", next(iter(plan)), lambda data: _ABOUT),
    ]


_ABOUT = (
    b"Crops of the photographs shipped with scikit-image and scikit-learn, made by\n"
    b"components.ingest.sample_photos. Some files are broken on purpose.\n"
)


def _recode(data: bytes, kind: str) -> bytes:
    """The same picture in another format, mirrored so that it is nobody's copy."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        ImageOps.mirror(image.convert("RGB")).save(buffer, kind)
    return buffer.getvalue()


def _claim(folder: Path, wish: dict[str, object], files: list[str]) -> bool:
    """Take the folder for ourselves; True when all that is wished for lies there already."""
    if folder.exists() and not folder.is_dir():
        raise SamplePhotosError(f"{folder}: found a file, expected a folder or nothing")
    folder.mkdir(parents=True, exist_ok=True)
    marker = _read_marker(folder)
    if marker is None:
        if any(folder.iterdir()):
            raise SamplePhotosError(
                f"{folder}: not empty and not made by this command, expected an empty folder; "
                "choose another or empty it yourself"
            )
    else:
        complete = marker["wish"] == wish and marker["complete"]
        if complete and set(marker["files"]) == set(files) and _all_there(folder, files):
            return True
        for path in set(marker["files"]) - set(files):
            (folder / path).unlink(missing_ok=True)
    known = sorted({*files, *(marker["files"] if marker else [])})
    _write_marker(folder, wish, known, complete=False)
    for child in folder.iterdir():
        if child.is_dir() and not any(child.iterdir()):
            child.rmdir()
    for path in files:
        (folder / path).parent.mkdir(exist_ok=True)
    return False


def _all_there(folder: Path, files: list[str]) -> bool:
    return all((folder / path).is_file() for path in files)


def _read_marker(folder: Path) -> dict[str, Any] | None:
    try:
        marker: dict[str, Any] = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise SamplePhotosError(
            f"{folder / MARKER}: {error}, expected this command's own list; empty the folder"
        ) from error
    return marker


def _write_marker(
    folder: Path, wish: dict[str, object], files: list[str], *, complete: bool
) -> None:
    text = json.dumps({"wish": wish, "complete": complete, "files": files}, indent=1)
    _put(folder / MARKER, text.encode())


def _put(path: Path, data: bytes) -> None:
    """Whole or not at all: a picture cut off by a kill would look like one of the broken ones."""
    temp = path.with_name(f".{path.name}.tmp")
    temp.write_bytes(data)
    temp.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="components.ingest.sample_photos", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("out", help="folder to fill: missing, empty or made by this command")
    parser.add_argument("--count", type=int, default=1200, help="good pictures (default 1200)")
    parser.add_argument("--seed", type=int, default=0, help="fixes every byte (default 0)")
    parser.add_argument("--classes", nargs="+", metavar="CLASS", help=f"some of {sorted(CLASSES)}")
    options = parser.parse_args(arguments)
    try:
        made = make(options.out, count=options.count, seed=options.seed, classes=options.classes)
    except (SamplePhotosError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    _describe(made)
    return 0


def _describe(made: Made) -> None:
    print(f"{made.folder}: {'made' if made.fresh else 'already holds'}")
    groups = [("photos", made.photos), ("of these", made.traits), ("and", made.extras)]
    for title, counts in groups:
        total = f"{sum(counts.values())} " if title != "of these" else ""
        print(f"  {title}: {total}({', '.join(f'{n} {kind}' for kind, n in counts.items())})")


if __name__ == "__main__":
    sys.exit(main())
