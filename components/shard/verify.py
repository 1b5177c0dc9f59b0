"""The proof that nothing leaks between splits, made from the tars and not from the catalog.

Reads back every byte of every tar, then looks for a sample, a near duplicate or a group on two
sides.  The result is `leakage.json`, bound to the digest and to the sha256 of each tar read; it is
written whether it is good news or not, and publish refuses a bad one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from components import manifest
from components.duplicates import near_pairs
from components.manifest import LEAKAGE, SPLITS, ShardInfo, SplitInfo, digest, dump
from components.parallel import in_order
from components.progress import track
from components.report import Report
from components.rules import NEAR_DUPLICATE_BITS, check_bits
from components.shard.layout import ShardError
from components.shard.readback import Found, samples
from components.store import split_url

OFFENDERS_SHOWN = 100
READERS = 4
"""Shards read back at once: one S3 connection alone is slow."""

Placed = tuple[str, Found]  # a split and a sample that lies in it


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport(Report):
    """What the proof says.

    Args:
        checked: Things looked at per check: samples, perceptual hashes, groups.
        offenders: The first `OFFENDERS_SHOWN`, each with the check and who is where.
    """

    dataset_url: str
    proof_url: str
    digest: str
    ok: bool
    samples: int
    near_duplicate_bits: int | None
    checked: dict[str, int]
    offenders_total: int
    offenders: list[dict[str, Any]]


def verify(
    dataset_url: str, *, near_duplicate_bits: int | None = NEAR_DUPLICATE_BITS
) -> VerifyReport:
    """Read a sealed version back and write `leakage.json`.

    Groups are checked where the split kept groups together (strategy `group`).  The proof of a
    published version is never made weaker: it is checked at no fewer bits than it was then.

    Args:
        dataset_url: The version's folder, sealed.
        near_duplicate_bits: The threshold the split was made with; None skips that check.  The
            report says what was used.

    Returns:
        The report; `ok` is False when something leaks. A leak is a finding, not an error.

    Raises:
        CorruptShardError: A tar or index is damaged; no proof is written.
        ManifestError: The version is not sealed.
        ShardError: Labels and class indices disagree.
    """
    check_bits(near_duplicate_bits, where="near_duplicate_bits")
    near_duplicate_bits = max(near_duplicate_bits, published_bits(dataset_url), key=strength)
    store, version = split_url(dataset_url)
    sealed = {split: manifest.read_shard_list(dataset_url, split) for split in SPLITS}
    shards = [(split, info) for split in SPLITS for info in sealed[split]]
    placed: list[Placed] = []

    def read_back(shard: tuple[str, ShardInfo]) -> list[Placed]:
        return [(shard[0], found) for found in samples(store, version, shard[1])]

    with in_order(read_back, shards, workers=READERS) as found:
        for part in track(found, len(shards), "shards read back"):
            placed += part
    classes = _classes(dataset_url, placed)

    offenders = [
        *_repeated(placed),
        *_near(placed, near_duplicate_bits),
        *_groups(placed),
    ]
    proof: dict[str, Any] = {
        "digest": digest((split, found.key, found.label) for split, found in placed),
        "ok": not offenders,
        "near_duplicate_bits": near_duplicate_bits,
        "checked": {
            "samples": len(placed),
            "phashes": sum(found.phash is not None for _, found in placed),
            "groups": len({found.split_group for _, found in placed} - {None}),
        },
        "offenders_total": len(offenders),
        "offenders": offenders[:OFFENDERS_SHOWN],
        "shards": {info.url: info.sha256 for _, info in shards},
        "splits": {split: _split_info(split, sealed[split], placed, classes) for split in SPLITS},
        "classes": classes,
    }
    rel = f"{version}/{LEAKAGE}"
    manifest.renew(store, rel, dump(proof))
    return VerifyReport(
        dataset_url=dataset_url,
        proof_url=store.url(rel),
        samples=len(placed),
        **{
            name: proof[name]
            for name in (
                "digest",
                "ok",
                "near_duplicate_bits",
                "checked",
                "offenders_total",
                "offenders",
            )
        },
    )


def strength(bits: int | None) -> int:
    """Orders thresholds by how much they prove; None, no check at all, proves least."""
    return -1 if bits is None else bits


def published_bits(dataset_url: str) -> int | None:
    """The threshold that the version was published on; None also where it is not published."""
    found = manifest.readable(dataset_url)
    if found is None:
        return None
    if "near_duplicate_bits" in found.leakage:
        bits: int | None = found.leakage["near_duplicate_bits"]
        return bits
    of_old: int | None = found.config.get("split", {}).get(
        "near_duplicate_bits", NEAR_DUPLICATE_BITS
    )
    return of_old


def _classes(dataset_url: str, placed: list[Placed]) -> list[str]:
    """The sorted labels; every sample's class index must be its label's place among them."""
    classes = sorted({found.label for _, found in placed})
    index_of = {label: position for position, label in enumerate(classes)}
    for _, found in placed:
        if found.class_index != index_of[found.label]:
            raise ShardError(
                f"{dataset_url}: sample {found.key} has class index {found.class_index} and label "
                f"{found.label!r}, expected {index_of[found.label]} of {len(classes)} sorted "
                "classes; run the shard step again"
            )
    return classes


def _repeated(placed: list[Placed]) -> list[dict[str, Any]]:
    """Samples met more than once: on two sides, or twice on one."""
    where = defaultdict(list)
    for split, found in placed:
        where[found.key].append(split)
    return [
        {"check": "sample", "sample_id": key, "splits": splits}
        for key, splits in sorted(where.items())
        if len(splits) > 1
    ]


def _near(placed: list[Placed], bits: int | None) -> list[dict[str, Any]]:
    """Pairs of perceptual hashes within the threshold whose samples are on different sides."""
    if bits is None:
        return []
    by_hash: dict[int, dict[str, str]] = defaultdict(dict)  # hash -> split -> a sample of it
    for split, found in placed:
        if found.phash is not None:
            by_hash[found.phash].setdefault(split, found.key)
    hashes = sorted(by_hash)
    same = [(index, index) for index, value in enumerate(hashes) if len(by_hash[value]) > 1]
    left, right = near_pairs(np.array(hashes, dtype=np.uint64), bits)
    offenders = []
    for a, b in [*same, *zip(left.tolist(), right.tolist(), strict=True)]:
        here, there = by_hash[hashes[a]], by_hash[hashes[b]]
        crossing = sorted((s, t) for s in here for t in there if s != t)
        if crossing:
            s, t = crossing[0]
            offenders.append(
                {
                    "check": "near_duplicate",
                    "bits": (hashes[a] ^ hashes[b]).bit_count(),
                    "sample_ids": [here[s], there[t]],
                    "splits": [s, t],
                }
            )
    return offenders


def _groups(placed: list[Placed]) -> list[dict[str, Any]]:
    """Groups with members on more than one side."""
    sides: dict[str, set[str]] = defaultdict(set)
    for split, found in placed:
        if found.split_group is not None:
            sides[found.split_group].add(split)
    return [
        {"check": "group", "group": group, "splits": [name for name in SPLITS if name in splits]}
        for group, splits in sorted(sides.items())
        if len(splits) > 1
    ]


def _split_info(
    split: str, infos: list[manifest.ShardInfo], placed: list[Placed], classes: list[str]
) -> dict[str, Any]:
    histogram = Counter(found.label for side, found in placed if side == split)
    info = SplitInfo(
        samples=sum(histogram.values()),
        bytes=sum(shard.filesize for shard in infos),
        shards=len(infos),
        classes={label: histogram[label] for label in classes},
    )
    return {name: getattr(info, name) for name in SplitInfo.__slots__}
