"""The shard step: plan, pack, seal, verify and publish a version of a dataset.

    plan -> pack, pack, .. (any order, any machine) -> seal -> verify -> publish

Every call is idempotent and may be killed at any instant and run again: same input, same version,
same bytes.  Nobody sees the version before `publish` has written its manifest.
"""

from __future__ import annotations

from typing import Any

from components.rules import NEAR_DUPLICATE_BITS
from components.shard.layout import ShardError
from components.shard.pack import PackReport, pack
from components.shard.plan import Plan, plan
from components.shard.readback import CorruptShardError
from components.shard.seal import DatasetReport, LeakageError, SealReport, publish, seal
from components.shard.verify import VerifyReport, published_bits, strength, verify


def shard(
    catalog_url: str,
    *,
    root: str,
    name: str,
    version: str | None = None,
    max_bytes: int = 64 * 2**20,
    partitions: int = 1,
    near_duplicate_bits: int | None = NEAR_DUPLICATE_BITS,
    config: dict[str, Any] | None = None,
    parent: str | None = None,
) -> DatasetReport:
    """The whole step in one process: from a split catalog to a published, checked version."""
    planned = plan(
        catalog_url,
        root=root,
        name=name,
        version=version,
        max_bytes=max_bytes,
        partitions=partitions,
    )
    parts = [pack(job) for job in planned.jobs]
    seal(planned.dataset_url, parts)
    verify(planned.dataset_url, near_duplicate_bits=near_duplicate_bits)
    return publish(planned.dataset_url, config=config or {}, parent=parent)


__all__ = [
    "CorruptShardError",
    "DatasetReport",
    "LeakageError",
    "PackReport",
    "Plan",
    "SealReport",
    "ShardError",
    "VerifyReport",
    "pack",
    "plan",
    "publish",
    "published_bits",
    "seal",
    "shard",
    "strength",
    "verify",
]
