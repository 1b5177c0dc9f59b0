"""What a published version is: its manifest, its shard lists and the digest that names its content.

    <root>/<dataset>/<version>/dataset.json     the manifest, written last of all
    <root>/<dataset>/<version>/<split>.json     a wids shard list per split, on S3 with ETags
    <root>/<dataset>/<version>/leakage.json     the split's proof

A version without `dataset.json` does not exist.  This module reads and writes these files and
knows nothing of how shards are made or checked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from components.store import Store, split_url

SPLITS = ("train", "val", "test")
DATASET = "dataset.json"
LEAKAGE = "leakage.json"

_WIDS_KIND = "wids-shard-index-v1"


class ManifestError(ValueError):
    """A version that does not exist or whose files are not what they should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardInfo:
    """One tar of a split, as the shard list has it.

    Args:
        url: The tar's name, relative to the shard list.
        nsamples: Samples in it.
        filesize: Bytes of the tar.
        md5sum: Of the whole tar, for readers of wids lists.
        sha256: Of the whole tar.
        etag: Of the object, as S3 sends it, quotes included, for a reader's If-Match; None in a
            folder, and then not in the list.
    """

    url: str
    nsamples: int
    filesize: int
    md5sum: str
    sha256: str
    etag: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As the shard list has it."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitInfo:
    """One split of a version, counted from its shards.

    Args:
        samples: How many.
        bytes: Of its tars together.
        shards: How many tars.
        classes: Samples per class, every class of the dataset named.
    """

    samples: int
    bytes: int
    shards: int
    classes: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of `dataset.json`, and where it lay.

    Args:
        url: The version's folder; not in the file, which may be moved with its folder.
        classes: Class names; a class index in a shard is a position in this list.
        digest: sha256 over the sorted (split, sample_id, label) lines, see `digest`.
        config: The resolved config that made the version.
        code: What made it: see `components.code`.
        leakage: What the split's proof had to hold for: `near_duplicate_bits`.
    """

    url: str
    name: str
    version: str
    parent: str | None
    classes: list[str]
    splits: dict[str, SplitInfo]
    catalog: dict[str, str]
    config: dict[str, Any]
    code: str
    digest: str
    leakage: dict[str, Any] = field(default_factory=dict)

    def shards_url(self, split: str) -> str:
        """URL of a split's shard list, what `tarpon.Loader` takes.

        Raises:
            ManifestError: The version has no such split, or it is empty.
        """
        if split not in self.splits or self.splits[split].samples == 0:
            known = [name for name, info in self.splits.items() if info.samples]
            raise ManifestError(
                f"{self.url}: no samples in split {split!r}, expected one of {known}; "
                "give it a share in split.fractions"
            )
        store, folder = split_url(self.url)
        return store.url(folder, f"{split}.json")


def digest(lines: Iterable[tuple[str, str, str]]) -> str:
    """Name a dataset's content: sha256 over its sorted (split, sample_id, label) lines.

    A line is `split TAB sample_id TAB label LF` in UTF-8, so the digest can be had from a catalog
    with `sort` and `sha256sum` too.

    Raises:
        ManifestError: A label holds a tab or a line break, which would make two datasets one.
    """
    encoded = []
    for split, sample_id, label in lines:
        if any(mark in label for mark in "\t\n\r"):
            raise ManifestError(
                f"{sample_id}: label {label!r} holds a tab or a line break, expected plain text; "
                "rename the class at the source"
            )
        encoded.append(f"{split}\t{sample_id}\t{label}\n".encode())
    total = hashlib.sha256()
    for line in sorted(encoded):
        total.update(line)
    return total.hexdigest()


def exists(dataset_url: str) -> bool:
    """Whether the version is published."""
    store, folder = split_url(dataset_url)
    return store.exists(f"{folder}/{DATASET}")


def read(dataset_url: str) -> Manifest:
    """The manifest of a published version.

    Args:
        dataset_url: The version's folder, `<root>/<name>/<version>`.

    Raises:
        ManifestError: There is no such version, or its manifest is damaged.
    """
    store, folder = split_url(dataset_url)
    url = store.url(folder)
    if not store.exists(f"{folder}/{DATASET}"):
        raise ManifestError(
            f"{url}: no {DATASET}, so this version does not exist or was never finished; "
            "check data.name and data.version, or run the pipeline with until=shard"
        )
    values = _json(store, f"{folder}/{DATASET}")
    try:
        values["splits"] = {name: SplitInfo(**info) for name, info in values["splits"].items()}
        return Manifest(url=url, **values)
    except (TypeError, KeyError, AttributeError) as error:
        raise ManifestError(
            f"{store.url(folder, DATASET)}: not a dataset manifest ({error}); publish the version "
            "again with the shard step"
        ) from error


def readable(dataset_url: str) -> Manifest | None:
    """The manifest, or None where there is none or it is damaged, so that it can be made again."""
    try:
        return read(dataset_url)
    except ManifestError:
        return None


def write(manifest: Manifest) -> str:
    """Write `dataset.json`, and with it the version exists; returns its URL.

    A damaged one is replaced; one that can be read is not.

    Raises:
        ConflictError: The version is published already, or is just now, with another manifest.
        StoreError: The store cannot be written.
    """
    store, folder = split_url(manifest.url)
    values = dataclasses.asdict(manifest)
    del values["url"]
    rel, over = f"{folder}/{DATASET}", None
    if store.exists(rel) and readable(manifest.url) is None:
        over = store.read_bytes(rel)
    return store.publish(rel, dump(values), over=over)


def renew(store: Store, rel: str, content: bytes) -> None:
    """Put a file of a version that is not published yet; nothing happens where it is the same.

    Raises:
        ConflictError: Another run is making this version at the same moment.
        StoreError: The store cannot be written.
    """
    found = store.read_bytes(rel) if store.exists(rel) else None
    store.publish(rel, content, over=found)


def read_shard_list(dataset_url: str, split: str) -> list[ShardInfo]:
    """The shards of one split, in order.

    Raises:
        ManifestError: The split is not sealed, or the list is not one of ours.
    """
    store, folder = split_url(dataset_url)
    rel = f"{folder}/{split}.json"
    if not store.exists(rel):
        raise ManifestError(
            f"{store.url(rel)}: no such shard list, expected one per split; the version is not "
            "sealed, run the shard step again"
        )
    values = _json(store, rel)
    try:
        return [ShardInfo(**shard) for shard in values["shardlist"]]
    except (TypeError, KeyError) as error:
        raise ManifestError(
            f"{store.url(rel)}: not a shard list of ours ({error}), expected url, nsamples, "
            "filesize, md5sum and sha256 per shard; run the shard step again"
        ) from error


def shard_list(shards: Sequence[ShardInfo]) -> bytes:
    """The bytes of `<split>.json`: a wids index with relative URLs, and a sha256 per shard."""
    return dump(
        {
            "__kind__": _WIDS_KIND,
            "wids_version": 1,
            "shardlist": [shard.to_dict() for shard in shards],
        }
    )


def dump(values: dict[str, Any]) -> bytes:
    """JSON for the store: keys sorted, indented for people; equal values, equal bytes."""
    return (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _json(store: Store, rel: str) -> dict[str, Any]:
    try:
        values = json.loads(store.read_bytes(rel))
    except ValueError as error:
        raise ManifestError(
            f"{store.url(rel)}: not JSON ({error}); run the shard step again, it writes it anew"
        ) from error
    if not isinstance(values, dict):
        raise ManifestError(
            f"{store.url(rel)}: found {type(values).__name__}, expected an object; run the shard "
            "step again"
        )
    return values


__all__ = [
    "DATASET",
    "LEAKAGE",
    "SPLITS",
    "Manifest",
    "ManifestError",
    "ShardInfo",
    "SplitInfo",
    "digest",
    "dump",
    "exists",
    "read",
    "read_shard_list",
    "readable",
    "renew",
    "shard_list",
    "write",
]
