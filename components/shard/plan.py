"""Decide what a version is called and cut the packing into jobs; writes the plan, packs nothing."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from components import catalog, manifest
from components.manifest import dump
from components.report import Report
from components.shard.layout import ShardError, derive, plan_id
from components.shard.pack import PARTS
from components.store import Store, split_url

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Report):
    """What will be packed.

    Args:
        dataset_url: The version's folder.
        digest: What the version's digest will be.
        shards: How many tars.
        jobs: JSON strings for `pack`; any order, any machine, at once or one by one.
    """

    dataset_url: str
    name: str
    version: str
    catalog_url: str
    catalog_id: str
    digest: str
    shards: int
    samples: int
    jobs: list[str]


def plan(
    catalog_url: str,
    *,
    root: str,
    name: str,
    version: str | None = None,
    max_bytes: int = 64 * 2**20,
    partitions: int = 4,
) -> Plan:
    """Lay out a split catalog as tars and divide them into jobs.

    Args:
        catalog_url: The catalog that split wrote.
        root: Store root of the version.
        name: The dataset's name.
        version: The version's name; None derives it from content, so that the same catalog and
            `max_bytes` give the same version and the same bytes.
        max_bytes: Largest tar, unless a single sample is larger.
        partitions: Jobs at most. Does not change what is written.

    Raises:
        ShardError: A bad name, a version published from other content, or a catalog that cannot
            be packed.
        StoreError: The store cannot be written.
    """
    _check_name("data.name", name)
    if partitions < 1:
        raise ShardError(f"shard.partitions={partitions}: expected 1 or more")
    store = Store(root)
    store.check_writable()
    layout = derive(catalog_url, max_bytes=max_bytes)
    catalog_id = catalog.content_id(catalog.read(catalog_url))
    identity = plan_id(catalog_id, max_bytes)
    version = f"v{identity}" if version is None else version
    _check_name("data.version", version)
    dataset_url = store.url(name, version)
    _refuse_other(dataset_url, identity, layout.digest)

    written = {
        "catalog_id": catalog_id,
        "catalog_url": catalog_url,
        "digest": layout.digest,
        "max_bytes": max_bytes,
        "plan": identity,
        "shards": [shard.name for shard in layout.shards],
    }
    rel = f"{name}/{version}/{PARTS}/plan.json"
    if not store.exists(rel) or store.read_bytes(rel) != dump(written):
        store.write_bytes(rel, dump(written))
    count = min(partitions, len(layout.shards))
    return Plan(
        dataset_url=dataset_url,
        name=name,
        version=version,
        catalog_url=catalog_url,
        catalog_id=catalog_id,
        digest=layout.digest,
        shards=len(layout.shards),
        samples=sum(len(shard.samples) for shard in layout.shards),
        jobs=[
            json.dumps(
                {
                    "catalog_url": catalog_url,
                    "dataset_url": dataset_url,
                    "max_bytes": max_bytes,
                    "partition": partition,
                    "partitions": count,
                    "plan": identity,
                },
                sort_keys=True,
            )
            for partition in range(count)
        ],
    )


def read_plan(dataset_url: str) -> dict[str, Any]:
    """The plan that a version's tars are made by.

    Raises:
        ShardError: There is none.
    """
    store, version = split_url(dataset_url)
    rel = f"{version}/{PARTS}/plan.json"
    if not store.exists(rel):
        raise ShardError(
            f"{store.url(rel)}: no plan, expected the one the shard step writes first; check "
            "data.name and data.version or run the shard step"
        )
    values: dict[str, Any] = json.loads(store.read_bytes(rel))
    return values


def _refuse_other(dataset_url: str, identity: str, digest: str) -> None:
    """A published version never changes: stop before a tar of it is touched."""
    if not manifest.exists(dataset_url):
        return
    published = manifest.read(dataset_url).digest
    same = published == digest and read_plan(dataset_url)["plan"] == identity
    if not same:
        raise ShardError(
            f"{dataset_url}: already published with digest {published[:12]} and other tars, this "
            f"plan would make {digest[:12]}; choose another data.version or leave it null"
        )


def _check_name(where: str, value: str) -> None:
    if not _NAME.fullmatch(value) or value == "catalog":
        raise ShardError(
            f"{where}={value!r}: expected letters, digits, '.', '_' or '-', the first a letter or "
            "digit, and not 'catalog'; it becomes a folder of the store"
        )
