"""Small datasets for the soak, with a model of every sample: what it holds and what is wrong."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tarpon
from PIL import Image

from tests.loader.tars import write_tar

FIELDS: dict[str, tarpon.Field] = {
    "label": tarpon.Int("cls"),
    "raw": tarpon.Raw("bin"),
    "text": tarpon.Text("txt"),
    "crop": tarpon.RandomResizedCrop(12),
    "floats": tarpon.RandomResizedCrop(8, dtype="float32", layout="NCHW"),
    "center": tarpon.CenterCrop(10, resize=14),
}
CROPS = ("crop", "floats", "center")


@dataclass(frozen=True, kw_only=True)
class Set:
    """Samples by number.

    Attributes:
        shards: What the loader is given.
        twin: The same samples in shards of the same sizes, and nothing wrong with them.
        samples: Every component's bytes, by extension.
        truncated: Samples whose photo ends early.
        unreadable: Samples of a shard that is cut off or missing.
        error: What reading one of those raises.
    """

    name: str
    shards: Path
    twin: Path
    samples: list[dict[str, bytes]]
    truncated: frozenset[int] = frozenset()
    unreadable: range = range(0)
    error: type[tarpon.TarponError] = tarpon.TarponError

    def bad(self, sample: int, name: str, wanted: tarpon.Field) -> bool:
        """Whether this field of this sample cannot be made."""
        data = self.samples[sample].get(wanted.extensions[0])
        if isinstance(wanted, tarpon.Int):
            return data is None or not data.isdigit()
        if isinstance(wanted, tarpon.Raw | tarpon.Text):
            return data is None
        return sample in self.truncated


def _photos() -> list[bytes]:
    """JPEGs of a few sizes, and one PNG, which the core leaves to Pillow."""
    photos = []
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 255, (3, 4, 3)).astype(np.uint8)
        image = Image.fromarray(pixels).resize((24 + 5 * number, 40 - 3 * number))
        buffer = io.BytesIO()
        image.save(buffer, "PNG" if number == 5 else "JPEG")
        photos.append(buffer.getvalue())
    return photos


def _samples(count: int) -> list[dict[str, bytes]]:
    photos = _photos()
    return [
        {
            "bin": bytes((n * 131 + i) % 256 for i in range(n * 37 % 701)),
            "cls": str(n % 10).encode(),
            "jpg": photos[n % len(photos)],
            "txt": f"sample {n}".encode(),
        }
        for n in range(count)
    ]


def _write(folder: Path, samples: list[dict[str, bytes]], sizes: list[int]) -> Path:
    """Shards of `sizes` samples and a list of them, which is returned."""
    folder.mkdir()
    first, entries = 0, []
    for number, size in enumerate(sizes):
        members = [
            (f"{n:05d}.{extension}", data)
            for n in range(first, first + size)
            for extension, data in samples[n].items()
        ]
        write_tar(folder / f"{number:03d}.tar", members)
        entries.append({"url": f"{number:03d}.tar", "nsamples": size})
        first += size
    listing = folder / "all.json"
    listing.write_text(json.dumps({"shardlist": entries}))
    return listing


def _add_size(listing: Path, tar: Path) -> None:
    shards = json.loads(listing.read_text())
    for entry in shards["shardlist"]:
        if entry["url"] == tar.name:
            entry["filesize"] = tar.stat().st_size
    listing.write_text(json.dumps(shards))


def make(root: Path) -> list[Set]:
    """Write every set below `root`."""
    sets = []
    for shape, sizes in {"few": [30, 1, 42], "many": [5] * 13, "one": [1]}.items():
        samples = _samples(sum(sizes))
        clean = _write(root / f"{shape}-clean", samples, sizes)
        tarpon.index(clean)
        bare = _write(root / f"{shape}-bare", samples, sizes)
        common = {"twin": clean, "samples": samples}
        sets += [
            Set(name=f"{shape}-clean", shards=clean, **common),
            Set(name=f"{shape}-bare", shards=bare.parent, **common),
        ]
        if shape == "one":
            continue
        for name, error in (("cut", tarpon.CorruptShardError), ("gone", tarpon.StoreError)):
            broken = _write(root / f"{shape}-{name}", samples, sizes)
            tar = broken.with_name("002.tar")
            whole = tar.read_bytes()
            if name == "gone":  # state_dict() wants the size, which only the list can tell now
                _add_size(broken, tar)
                tar.unlink()
            else:
                tar.write_bytes(whole[: len(whole) // 2])
            lost = range(sum(sizes[:2]), sum(sizes[:3]))
            sets.append(
                Set(name=broken.parent.name, shards=broken, unreadable=lost, error=error, **common)
            )
        sets.append(_spoiled(root / f"{shape}-spoiled", samples, sizes, clean))
    return sets


def _spoiled(folder: Path, samples: list[dict[str, bytes]], sizes: list[int], twin: Path) -> Set:
    spoiled = [dict(sample) for sample in samples]
    truncated = set()
    for n, sample in enumerate(spoiled):
        if n % 7 == 3:
            del sample["cls"]
        elif n % 13 == 6:
            sample["cls"] = b"dog"
        elif n % 11 == 6 and sample["jpg"][:2] == b"\xff\xd8":
            sample["jpg"] = sample["jpg"][:-60]
            truncated.add(n)
    listing = _write(folder, spoiled, sizes)
    return Set(
        name=folder.name,
        shards=listing,
        twin=twin,
        samples=spoiled,
        truncated=frozenset(truncated),
    )
