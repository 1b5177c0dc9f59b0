"""Which sample goes into which tar, and what its members hold: derived from a split catalog alone.

Every pack job derives the same layout again, so a job need not list samples.  Nothing here reads
an image or writes anything.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
from dataclasses import dataclass
from typing import Any

from components import catalog
from components.manifest import SPLITS, digest
from components.rules import MIN_SHARD_BYTES, check_max_bytes

LAYOUT = 1
"""Raised when the same samples and options would give other bytes than before."""

BLOCK = 512
"""A tar header's size; contents are padded to a multiple of it."""

RECORD = MIN_SHARD_BYTES
"""A tar's size is a multiple of this."""

#: Member extension by the format the bytes really have, as Pillow names it: what training reads.
EXTENSIONS = {
    "BMP": "bmp",
    "GIF": "gif",
    "JPEG": "jpg",
    "MPO": "jpg",  # a JPEG with further pictures behind it
    "PNG": "png",
    "TIFF": "tif",
    "WEBP": "webp",
}

_COLUMNS = ["sample_id", "uri", "bytes", "format", "label", "group", "phash"]
_COLUMNS += ["split", "status"]
_GROUP_COLUMN = "split_group"  # only where the split kept groups together


class ShardError(ValueError):
    """Samples that cannot be packed, or a version that cannot be made; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample as it will lie in a tar."""

    key: str
    uri: str
    size: int  # bytes of the image
    ext: str
    label: str
    meta: bytes  # the .json member

    def tar_bytes(self, class_index: int) -> int:
        """What its three members take in a tar, headers and padding included."""
        sizes = (self.size, len(str(class_index)), len(self.meta))
        return sum(BLOCK + -(-size // BLOCK) * BLOCK for size in sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One tar to be: its samples sorted by key."""

    name: str  # "train-000000", no extension
    split: str
    samples: list[Sample]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Every tar of a version.

    Args:
        classes: Sorted class names of the ok samples; a class index is a position here.
        digest: What the version's digest must turn out to be.
        plan: 12 hex digits that name the tars' bytes: every sample with its side, label, extension
            and metadata, and what shapes the tars. Not where the samples lay.
    """

    shards: list[Shard]
    classes: list[str]
    digest: str
    plan: str

    def mine(self, partition: int, partitions: int) -> list[Shard]:
        """The shards of one pack job: every `partitions`-th, so that jobs are of equal size."""
        return self.shards[partition::partitions]


def derive(catalog_url: str, *, max_bytes: int) -> Layout:
    """Lay out the ok samples of a split catalog.

    Within a split the samples are put in the order of a hash of their ids, so that classes mix,
    and that line is cut into tars of nearly equal size, none above `max_bytes` unless a single
    sample is.

    Raises:
        ShardError: `max_bytes` is too small to be meant; the catalog is not split, or has samples
            without a label or of a format that has no extension.
        StoreError: The catalog cannot be read.
    """
    try:
        check_max_bytes(max_bytes)
    except ValueError as error:
        raise ShardError(str(error)) from error
    by_split = _samples(catalog_url)
    labels = [sample.label for samples in by_split.values() for sample in samples]
    classes = sorted(set(labels))
    index_of = {label: index for index, label in enumerate(classes)}
    shards = []
    for split in SPLITS:
        samples = sorted(by_split[split], key=lambda sample: _shuffled(sample.key))
        sizes = [sample.tar_bytes(index_of[sample.label]) for sample in samples]
        for number, (start, stop) in enumerate(_cut(sizes, max_bytes)):
            chosen = sorted(samples[start:stop], key=lambda sample: sample.key)
            shards.append(Shard(name=f"{split}-{number:06d}", split=split, samples=chosen))
    lines = ((split, sample.key, sample.label) for split in SPLITS for sample in by_split[split])
    return Layout(
        shards=shards,
        classes=classes,
        digest=digest(lines),
        plan=_plan_id(by_split, max_bytes),
    )


def _plan_id(by_split: dict[str, list[Sample]], max_bytes: int) -> str:
    """See `Layout.plan`; classes and their indices follow from the labels."""
    total = hashlib.sha256(json.dumps({"layout": LAYOUT, "max_bytes": max_bytes}).encode())
    for split in SPLITS:
        for sample in sorted(by_split[split], key=lambda sample: sample.key):
            line = [split, sample.key, sample.label, sample.ext, sample.meta.decode()]
            total.update(json.dumps(line).encode() + b"\n")
    return total.hexdigest()[:12]


def _samples(catalog_url: str) -> dict[str, list[Sample]]:
    """The distinct ok samples of each split; identical files are one sample, the first by URI."""
    table = catalog.read(catalog_url)
    extra = [_GROUP_COLUMN] if _GROUP_COLUMN in table.column_names else []
    rows = table.select([*_COLUMNS, *extra]).to_pylist()
    found: dict[str, dict[str, Sample]] = {split: {} for split in SPLITS}
    home: dict[str, tuple[str, str]] = {}
    for row in rows:
        if row["status"] != catalog.OK:
            continue
        key, split, label = row["sample_id"], row["split"], row["label"]
        if split not in found:
            raise ShardError(
                f"{catalog_url}: sample {key} has split {split!r}, expected one of "
                f"{', '.join(SPLITS)}; run the split step on this catalog first"
            )
        if label is None:
            raise ShardError(
                f"{catalog_url}: sample {key} ({row['uri']}) has no label, expected one for its "
                ".cls member; label it at the source"
            )
        if home.setdefault(key, (split, label)) != (split, label):
            raise ShardError(
                f"{catalog_url}: sample {key} is {home[key]} and {(split, label)}, expected one "
                "split and one label for the same bytes; run the split step on this catalog"
            )
        if key not in found[split]:
            found[split][key] = _sample(row, catalog_url)
    if not home:
        raise ShardError(
            f"{catalog_url}: none of {len(rows)} rows is ok, expected samples to pack; its `error` "
            "column says why each was quarantined"
        )
    return {split: list(samples.values()) for split, samples in found.items()}


def _sample(row: dict[str, Any], where: str) -> Sample:
    ext = EXTENSIONS.get(str(row["format"]).upper())
    if ext is None:
        raise ShardError(
            f"{where}: sample {row['sample_id']} ({row['uri']}) is of format {row['format']!r}, "
            f"expected one of {', '.join(EXTENSIONS)}; convert it at the source"
        )
    # Not the uri: the same samples must give the same bytes wherever they came from; the catalog
    # knows it by sample_id.
    meta = {name: row[name] for name in ("sample_id", "label", "group")}
    meta["phash"] = None if row["phash"] is None else f"{row['phash']:016x}"
    if row.get(_GROUP_COLUMN) is not None:
        meta[_GROUP_COLUMN] = row[_GROUP_COLUMN]
    text = json.dumps(meta, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return Sample(
        key=row["sample_id"],
        uri=row["uri"],
        size=row["bytes"],
        ext=ext,
        label=row["label"],
        meta=text.encode(),
    )


def _shuffled(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), key=b"tarpon shard order", digest_size=16).digest()


def _cut(sizes: list[int], max_bytes: int) -> list[tuple[int, int]]:
    """Cut a line of sizes into few runs of nearly equal sum that all fit a tar."""
    if not sizes:
        return []
    room = max_bytes // RECORD * RECORD - 2 * BLOCK  # two empty blocks end a tar
    room = max(room, max(sizes))
    ends = list(itertools.accumulate(sizes))
    count = -(-ends[-1] // room)
    while count < len(sizes):
        cuts = _even_cuts(ends, count)
        if all((ends[b - 1] - (ends[a - 1] if a else 0)) <= room for a, b in cuts):
            return cuts
        count += max(1, count // 64)
    return [(index, index + 1) for index in range(len(sizes))]


def _even_cuts(ends: list[int], count: int) -> list[tuple[int, int]]:
    """At most `count` runs, cut where the running sum is nearest to each multiple of the mean."""
    cuts = [0]
    for part in range(1, count):
        goal = ends[-1] * part / count
        after = bisect.bisect_left(ends, goal)
        before = ends[after - 1] if after else 0
        cuts.append(after + 1 if ends[after] - goal < goal - before else after)
    cuts.append(len(ends))
    return [(start, stop) for start, stop in itertools.pairwise(cuts) if stop > start]
