"""Write tars: one job's share of a layout, each tar with its index, crash-safe and idempotent.

A tar appears under its name whole or not at all, then its index, then a *receipt* that says what
was written.  A tar with a receipt of the same plan is not written again; one without is, and comes
out the same byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

from webdataset.writer import TarWriter

from components import sources
from components.manifest import ShardInfo, dump
from components.parallel import in_order
from components.progress import track
from components.report import Report
from components.shard import index
from components.shard.layout import BLOCK, Sample, Shard, ShardError, derive
from components.store import Entry, Store, StoreError, split_url

PARTS = ".parts"
"""Folder of a version for the plan and the receipts: what a later run reads to skip work."""

READERS = 8
"""Source files read ahead at once: from S3 each is a request."""

_OWNER = "tarpon"
_MODE = 0o444


@dataclass(frozen=True, slots=True, kw_only=True)
class PackReport(Report):
    """What one job packed; `shards` are `ShardInfo` as plain dicts."""

    dataset_url: str
    partition: int
    written: int
    skipped: int
    shards: list[dict[str, Any]]


class _Tee:
    """Passes what a tar writer writes to a file, and hashes and counts it on the way."""

    __slots__ = ("_file", "md5", "sha256", "size")

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.md5.update(data)
        self.sha256.update(data)
        self.size += len(data)
        return self._file.write(data)


def pack(job: str) -> PackReport:
    """Write the tars of one job, skipping those that are there already.

    Args:
        job: One of `Plan.jobs`.

    Raises:
        ShardError: A source file is gone or is no longer what ingest saw.
        StoreError: The store cannot be written.
    """
    options = _parse(job)
    store, version = split_url(options["dataset_url"])
    shards = derive(options["catalog_url"], max_bytes=options["max_bytes"])
    mine = shards.mine(options["partition"], options["partitions"])
    class_index = {label: number for number, label in enumerate(shards.classes)}
    there = store.entries(version)
    infos, written = [], 0
    for shard in track(mine, len(mine), f"shards of part {options['partition']}"):
        info = read_receipt(store, version, shard.name, options["plan"], there)
        if info is None:
            _check_plan(store, version, options["plan"])
            info = _write(store, version, shard, class_index, options["plan"])
            written += 1
        infos.append(info.to_dict())
    return PackReport(
        dataset_url=options["dataset_url"],
        partition=options["partition"],
        written=written,
        skipped=len(infos) - written,
        shards=infos,
    )


def read_receipt(
    store: Store, version: str, name: str, plan: str, there: Mapping[str, Entry]
) -> ShardInfo | None:
    """What an earlier run wrote for this plan, if its tar and index are still there in full size.

    Sizes only, from the listing `there`: verify reads every byte later.
    """
    rel = f"{version}/{PARTS}/{name}.json"
    if rel not in there:
        return None
    try:
        receipt = json.loads(store.read_bytes(rel))
        info, idx_bytes = ShardInfo(**receipt["shard"]), receipt["idx_bytes"]
        found_plan = receipt["plan"]
    except (ValueError, TypeError, KeyError):
        return None  # not a receipt: as good as none
    tar, idx = there.get(f"{version}/{name}.tar"), there.get(f"{version}/{name}.idx")
    whole = (
        found_plan == plan
        and tar is not None
        and tar.size == info.filesize
        and idx is not None
        and idx.size == idx_bytes
    )
    return info if whole else None


def _check_plan(store: Store, version: str, plan: str) -> None:
    """Stop before a tar of another run is touched, where one took the version over meanwhile."""
    rel = f"{version}/{PARTS}/plan.json"
    try:
        found = json.loads(store.read_bytes(rel))["plan"]
    except (ValueError, KeyError, TypeError):
        found = None
    if found != plan:
        raise ShardError(
            f"{store.url(rel)}: holds the plan {found}, expected {plan}; another run is making "
            "this version from other content: wait for it, or choose another data.version"
        )


def _write(
    store: Store, version: str, shard: Shard, class_index: dict[str, int], plan: str
) -> ShardInfo:
    with store.open_temp(f"{version}/{shard.name}.tar") as file:
        tee = _Tee(file)
        entries = _write_tar(tee, shard, class_index)
    idx = index.render(entries)
    store.write_bytes(f"{version}/{shard.name}.idx", idx)
    info = ShardInfo(
        url=f"{shard.name}.tar",
        nsamples=len(shard.samples),
        filesize=tee.size,
        md5sum=tee.md5.hexdigest(),
        sha256=tee.sha256.hexdigest(),
    )
    receipt = {"plan": plan, "shard": info.to_dict(), "idx_bytes": len(idx)}
    store.write_bytes(f"{version}/{PARTS}/{shard.name}.json", dump(receipt))
    return info


def _write_tar(tee: _Tee, shard: Shard, class_index: dict[str, int]) -> list[list[index.Entry]]:
    """Fill the tar; returns where each member's content lies in it."""
    entries = []
    with (
        TarWriter(
            tee, user=_OWNER, group=_OWNER, mode=_MODE, mtime=0, compress=False, encoder=False
        ) as tar,
        in_order(_source_bytes, shard.samples, workers=READERS) as images,
    ):
        for sample, image in zip(shard.samples, images, strict=True):
            members = {
                "cls": str(class_index[sample.label]).encode(),
                "json": sample.meta,
                sample.ext: image,
            }
            entries.append(_entries(sample.key, members, start=tar.tarstream.offset))
            tar.write({"__key__": sample.key, **members})
    return entries


def _entries(key: str, members: dict[str, bytes], *, start: int) -> list[index.Entry]:
    """TarWriter writes members sorted by extension, each one header block and padded content."""
    entries, at = [], start
    for ext in sorted(members):
        size = len(members[ext])
        entries.append(index.Entry(ext, at + BLOCK, size, f"{key}.{ext}"))
        at += BLOCK + -(-size // BLOCK) * BLOCK
    return entries


def _source_bytes(sample: Sample) -> bytes:
    """The sample's file, proven to be what ingest saw."""
    try:
        data = sources.read(sample.uri)
    except (StoreError, sources.SourceError) as error:
        raise ShardError(
            f"{sample.uri}: source of sample {sample.key} cannot be read ({error}), expected the "
            "file that ingest saw; bring it back or run ingest again"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != sample.key:
        raise ShardError(
            f"{sample.uri}: found {len(data)} bytes with sha256 {found}, expected {sample.size} "
            f"bytes with {sample.key}; the file changed since ingest, run ingest again"
        )
    return data


def _parse(job: str) -> dict[str, Any]:
    wanted = {"catalog_url", "dataset_url", "max_bytes", "partition", "partitions", "plan"}
    try:
        values = json.loads(job)
    except ValueError as error:
        raise ShardError(f"job {job[:80]!r}: {error}, expected one of Plan.jobs") from error
    if not isinstance(values, dict) or set(values) != wanted:
        raise ShardError(f"job {job[:80]!r}: expected an object with {sorted(wanted)}")
    return values
