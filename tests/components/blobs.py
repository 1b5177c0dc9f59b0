"""Tiny published datasets that a network can learn in a second: one colour per class."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from components import manifest

CLASSES = ["blue", "green", "red"]
CHANNEL = {"red": 0, "green": 1, "blue": 2}


def publish(
    root: Path,
    *,
    version: str = "v1",
    train: int = 36,
    val: int = 9,
    test: int = 9,
    classes: list[str] = CLASSES,
    proof: bool = True,
    first: int = 0,
) -> str:
    """Write a dataset version of noisy 32x32 JPEGs, classes in turn; returns its URL.

    `first` is the number of the first sample: other numbers, other pictures.
    """
    folder = root / "blobs" / version
    folder.mkdir(parents=True)
    splits, lines, number = {}, [], first
    for split, count in (("train", train), ("val", val), ("test", test)):
        counts = dict.fromkeys(classes, 0)
        members = {}
        for _ in range(count):
            label = classes[number % len(classes)]
            data = picture(label, number)
            key = hashlib.sha256(data).hexdigest()
            members[key] = (data, label)
            lines.append((split, key, label))
            counts[label] += 1
            number += 1
        tar = folder / f"{split}-000000.tar"
        _write_tar(tar, members, classes)
        shard = manifest.ShardInfo(
            url=tar.name, nsamples=count, filesize=tar.stat().st_size, md5sum="", sha256=""
        )
        (folder / f"{split}.json").write_bytes(manifest.shard_list([shard] if count else []))
        splits[split] = manifest.SplitInfo(
            samples=count, bytes=tar.stat().st_size, shards=1, classes=counts
        )
    digest = manifest.digest(lines)
    if proof:
        (folder / manifest.LEAKAGE).write_bytes(manifest.dump({"digest": digest, "ok": True}))
    manifest.write(
        manifest.Manifest(
            url=str(folder),
            name="blobs",
            version=version,
            parent=None,
            classes=classes,
            splits=splits,
            catalog={},
            config={},
            code={},
            digest=digest,
        )
    )
    return str(folder)


def picture(label: str, number: int) -> bytes:
    """A JPEG, 32x32, noise with one strong channel."""
    noise = np.random.default_rng(number).integers(0, 90, (32, 32, 3), dtype=np.uint8)
    noise[..., CHANNEL.get(label, 0)] += 120
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=90)
    return file.getvalue()


def _write_tar(path: Path, members: dict[str, tuple[bytes, str]], classes: list[str]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, (data, label) in sorted(members.items()):
            for suffix, content in (("cls", str(classes.index(label)).encode()), ("jpg", data)):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
