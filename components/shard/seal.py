"""Seal a version with its shard lists, and publish it with its manifest; the last two joints.

Publishing is one atomic write of `dataset.json`, and it happens only on a proof that holds: no
sample, near duplicate or group on two sides, checked from these very tars.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from components import manifest
from components.code import code_version
from components.manifest import LEAKAGE, SPLITS, Manifest, ShardInfo, SplitInfo
from components.parallel import in_order
from components.report import Report
from components.shard.layout import ShardError
from components.shard.pack import PackReport, read_receipt
from components.shard.plan import read_plan
from components.shard.verify import strength
from components.store import ConflictError, Entry, Store, split_url

_TAR = re.compile(rf"({'|'.join(SPLITS)})-\d{{6}}\.(tar|idx)")
READERS = 16
"""Receipts read at once: each is one small request."""

_PROOF_KEYS = {"digest", "shards", "ok", "splits", "classes", "near_duplicate_bits"}
_PROOF_KEYS |= {"offenders", "offenders_total"}


class LeakageError(ShardError):
    """The proof that nothing leaks between splits is missing, failed or about other content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SealReport(Report):
    """The sealed tars and samples per split."""

    dataset_url: str
    shards: dict[str, int]
    samples: dict[str, int]
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetReport(Report):
    """A published version: what every later step needs to find it and to name its content."""

    dataset_url: str
    name: str
    version: str
    digest: str
    catalog_id: str
    splits: dict[str, dict[str, Any]]
    classes: list[str]

    def summary(self) -> dict[str, str | int | float]:
        """Flat facts, with the samples per split."""
        flat = Report.summary(self)
        return flat | {f"samples.{name}": info["samples"] for name, info in self.splits.items()}


def seal(dataset_url: str, parts: Sequence[PackReport] = ()) -> SealReport:
    """Write the shard list of every split, once all tars of the plan are there.

    Args:
        dataset_url: The version's folder.
        parts: Reports of the pack jobs, checked against the plan when given; the tars' receipts
            in the store are what counts.

    Raises:
        ShardError: Tars are missing, or the folder holds tars that are not of this plan.
        StoreError: The store cannot be written.
    """
    store, version = split_url(dataset_url)
    plan = read_plan(dataset_url)
    there = store.entries(version)
    receipts = _receipts(store, version, plan, there)
    missing = sorted(name for name, info in receipts.items() if info is None)
    if missing:
        raise ShardError(
            f"{dataset_url}: {len(missing)} of {len(receipts)} tars are missing or cut short "
            f"({_some(missing)}), expected all of them; run the shard step again, it writes only "
            "those"
        )
    infos = {name: info for name, info in receipts.items() if info is not None}
    _check_parts(dataset_url, infos, parts)
    _check_strangers(store.url(version), version, set(infos), there)
    for split in SPLITS:
        mine = [
            replace(info, etag=there[f"{version}/{info.url}"].etag)
            for name, info in infos.items()
            if name.startswith(f"{split}-")
        ]
        manifest.renew(store, f"{version}/{split}.json", manifest.shard_list(mine))
    return SealReport(
        dataset_url=dataset_url,
        shards={split: _count(infos, split, lambda info: 1) for split in SPLITS},
        samples={split: _count(infos, split, lambda info: info.nsamples) for split in SPLITS},
        bytes=sum(info.filesize for info in infos.values()),
    )


def _count(infos: dict[str, ShardInfo], split: str, value: Any) -> int:
    return sum(value(info) for name, info in infos.items() if name.startswith(f"{split}-"))


def _check_parts(
    dataset_url: str, infos: dict[str, ShardInfo], parts: Sequence[PackReport]
) -> None:
    """The jobs together must have seen every tar, as it is now."""
    if not parts:
        return
    told = {shard["url"]: shard["sha256"] for part in parts for shard in part.shards}
    known = {info.url: info.sha256 for info in infos.values()}
    if told != known:
        different = sorted(
            url for url in told.keys() | known.keys() if told.get(url) != known.get(url)
        )
        raise ShardError(
            f"{dataset_url}: the pack jobs report other tars than the plan holds "
            f"({_some(different)}), expected the same; run the shard step again"
        )


def _receipts(
    store: Store, version: str, plan: dict[str, Any], there: Mapping[str, Entry]
) -> dict[str, ShardInfo | None]:
    """Of every tar of the plan, what pack says of it; None where it is not there in full."""

    def one(name: str) -> ShardInfo | None:
        return read_receipt(store, version, name, plan["plan"], there)

    with in_order(one, plan["shards"], workers=READERS) as found:
        return dict(zip(plan["shards"], found, strict=True))


def _check_strangers(where: str, version: str, names: set[str], there: Mapping[str, Entry]) -> None:
    """A tar left by another plan would be read by whoever opens the whole folder."""
    found = [Path(rel).name for rel in there if Path(rel).parent.name == version]
    strangers = sorted(
        name for name in found if _TAR.fullmatch(name) and name.rsplit(".", 1)[0] not in names
    )
    if strangers:
        raise ShardError(
            f"{where}: holds {len(strangers)} files of another plan "
            f"({_some(strangers)}), expected only this one's; delete them or choose another "
            "data.version"
        )


def publish(
    dataset_url: str, *, config: dict[str, Any], parent: str | None = None
) -> DatasetReport:
    """Write `dataset.json`, on a proof that holds; a version published already stays as it is.

    A `dataset.json` that cannot be read is written anew.

    Args:
        dataset_url: The version's folder, sealed and verified.
        config: The resolved config; kept in the manifest.
        parent: The version this one was made from, if any.

    Raises:
        LeakageError: The proof is missing, not ok, or about other tars or another digest.
        ManifestError: Not sealed.
        StoreError: The store cannot be written.
    """
    store, version = split_url(dataset_url)
    plan = read_plan(dataset_url)
    proof = _proof(store, version, plan["digest"])
    bits = config.get("split", {}).get("near_duplicate_bits", proof["near_duplicate_bits"])
    if strength(proof["near_duplicate_bits"]) < strength(bits):
        raise LeakageError(
            f"{store.url(version, LEAKAGE)}: checked near duplicates up to "
            f"{proof['near_duplicate_bits']} bits, expected split.near_duplicate_bits={bits}; run "
            "verify again with that"
        )
    made = Manifest(
        url=store.url(version),
        name=store.name,
        version=version,
        parent=parent,
        classes=proof["classes"],
        splits={name: SplitInfo(**info) for name, info in proof["splits"].items()},
        catalog={"id": plan["catalog_id"], "url": plan["catalog_url"]},
        config=config,
        code=code_version(),
        digest=proof["digest"],
        leakage={"near_duplicate_bits": proof["near_duplicate_bits"]},
    )
    published = manifest.readable(dataset_url)
    if published is None:
        with contextlib.suppress(ConflictError):  # another run was faster; with the same content?
            manifest.write(made)
        published = manifest.read(dataset_url)
    if published.digest != made.digest:
        raise ShardError(
            f"{dataset_url}: already published with digest {published.digest[:12]}, this run made "
            f"{made.digest[:12]}; choose another data.version"
        )
    return DatasetReport(
        dataset_url=dataset_url,
        name=published.name,
        version=published.version,
        digest=published.digest,
        catalog_id=published.catalog["id"],
        splits={name: asdict(info) for name, info in published.splits.items()},
        classes=published.classes,
    )


def _proof(store: Store, version: str, digest: str) -> dict[str, Any]:
    """The leakage proof, if it is about the sealed tars and finds nothing."""
    rel = f"{version}/{LEAKAGE}"
    where = store.url(rel)
    if not store.exists(rel):
        raise LeakageError(f"{where}: no proof, expected one; run verify before publish")
    proof: dict[str, Any] = json.loads(store.read_bytes(rel))
    if lacking := sorted(_PROOF_KEYS - proof.keys()):
        raise LeakageError(f"{where}: lacks {lacking}, expected verify's own; run verify again")
    if proof["digest"] != digest:
        raise LeakageError(
            f"{where}: about digest {proof['digest'][:12]}, expected {digest[:12]} as the catalog "
            "has it; run the shard step and verify again"
        )
    url = store.url(version)
    sealed = {
        info.url: info.sha256 for split in SPLITS for info in manifest.read_shard_list(url, split)
    }
    if proof["shards"] != sealed:
        raise LeakageError(f"{where}: about other tars than the sealed ones; run verify again")
    if proof["ok"] is not True:
        first = proof["offenders"][0] if proof["offenders"] else {}
        raise LeakageError(
            f"{where}: {proof['offenders_total']} leaks between splits, expected none (first: "
            f"{json.dumps(first)}); split the catalog again with the group column or the "
            "near_duplicate_bits that this proof was asked for"
        )
    return proof


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", .." if len(names) > 3 else "")
