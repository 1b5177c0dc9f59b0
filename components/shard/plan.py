"""Decide what a version is called and cut the packing into jobs; writes the plan, packs nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from components import catalog, manifest, rules
from components.manifest import dump
from components.report import Report
from components.shard.layout import Layout, ShardError, derive
from components.shard.pack import PARTS
from components.store import Store, split_url


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
        version: The version's name; None derives it from content, so that the same split samples
            and `max_bytes` give the same version and the same bytes, wherever the files lie.
        max_bytes: Largest tar, unless a single sample is larger.
        partitions: Jobs at most. Does not change what is written.

    Raises:
        ShardError: A bad name, a version published from other content, or a catalog that cannot
            be packed.
        StoreError: The store cannot be written.
    """
    try:
        rules.check_name(name)
        if version is not None:
            rules.check_version(version)
    except ValueError as error:
        raise ShardError(str(error)) from error
    if partitions < 1:
        raise ShardError(f"shard.partitions={partitions}: expected 1 or more")
    store = Store(root)
    store.check_writable()
    layout = derive(catalog_url, max_bytes=max_bytes)
    catalog_id = catalog.content_id(catalog.read(catalog_url))
    version = f"v{layout.plan}" if version is None else version
    dataset_url = store.url(name, version)
    published = _published(dataset_url, layout)

    written = {
        "catalog_id": catalog_id,
        "catalog_url": catalog_url,
        "digest": layout.digest,
        "max_bytes": max_bytes,
        "plan": layout.plan,
        "shards": [shard.name for shard in layout.shards],
    }
    rel = f"{name}/{version}/{PARTS}/plan.json"
    # A published version keeps the plan, and so the catalog, that it was made by.
    if not published:
        manifest.renew(store, rel, dump(written))
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
                    "plan": layout.plan,
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


def _published(dataset_url: str, layout: Layout) -> bool:
    """Whether this very version is published; another one never changes: stop before a tar of it
    is touched.  A damaged manifest counts as none, if the plan beside it is this one."""
    if not manifest.exists(dataset_url):
        return False
    made, found = read_plan(dataset_url), manifest.readable(dataset_url)
    digest = made["digest"] if found is None else found.digest
    if digest != layout.digest or made["plan"] != layout.plan:
        raise ShardError(
            f"{dataset_url}: already published with digest {digest[:12]} and other tars, this "
            f"plan would make {layout.digest[:12]}; choose another data.version or leave it null"
        )
    return found is not None
