"""Write tars: one job's share of a layout, each tar with its index, crash-safe and idempotent.

A tar appears under its name whole or not at all, then its index, then a *receipt* that says what
was written.  A tar with a receipt of the same plan is not written again; one without is, and comes
out the same byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import IO, Any

from webdataset.writer import TarWriter

from components.manifest import ShardInfo, dump
from components.progress import track
from components.report import Report
from components.shard import index
from components.shard.layout import BLOCK, Sample, Shard, ShardError, derive
from components.store import Store, StoreError, split_url

PARTS = ".parts"
"""Folder of a version for the plan and the receipts: what a later run reads to skip work."""

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
    infos, written = [], 0
    for shard in track(mine, len(mine), f"shards of part {options['partition']}"):
        info = read_receipt(store, version, shard.name, options["plan"])
        if info is None:
            info = _write(store, version, shard, class_index, options["plan"])
            written += 1
        infos.append(asdict(info))
    return PackReport(
        dataset_url=options["dataset_url"],
        partition=options["partition"],
        written=written,
        skipped=len(infos) - written,
        shards=infos,
    )


def read_receipt(store: Store, version: str, name: str, plan: str) -> ShardInfo | None:
    """What an earlier run wrote for this plan, if its tar and index are still there in full size.

    Sizes only: verify reads every byte later.
    """
    rel = f"{version}/{PARTS}/{name}.json"
    if not store.exists(rel):
        return None
    try:
        receipt = json.loads(store.read_bytes(rel))
        info, idx_bytes = ShardInfo(**receipt["shard"]), receipt["idx_bytes"]
        found_plan = receipt["plan"]
    except (ValueError, TypeError, KeyError):
        return None  # not a receipt: as good as none
    tar, idx = f"{version}/{name}.tar", f"{version}/{name}.idx"
    whole = (
        found_plan == plan
        and store.exists(tar)
        and store.size(tar) == info.filesize
        and store.exists(idx)
        and store.size(idx) == idx_bytes
    )
    return info if whole else None


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
    receipt = {"plan": plan, "shard": asdict(info), "idx_bytes": len(idx)}
    store.write_bytes(f"{version}/{PARTS}/{shard.name}.json", dump(receipt))
    return info


def _write_tar(tee: _Tee, shard: Shard, class_index: dict[str, int]) -> list[list[index.Entry]]:
    """Fill the tar; returns where each member's content lies in it."""
    entries = []
    with TarWriter(
        tee, user=_OWNER, group=_OWNER, mode=_MODE, mtime=0, compress=False, encoder=False
    ) as tar:
        for sample in shard.samples:
            members = {
                "cls": str(class_index[sample.label]).encode(),
                "json": sample.meta,
                sample.ext: _source_bytes(sample),
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
        store, name = split_url(sample.uri)
        data = store.read_bytes(name)
    except StoreError as error:
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
