"""Little datasets taken as far as a test needs: split, packed or published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.shard import run as shard
from components.split import run as split
from tests.components import synthetic

MAX_BYTES = 40 * 1024  # some ten little JPEGs a tar


def split_catalog(root: Path, *, count: int = 60, **how: Any) -> str:
    """Photos in `root/source`, their split catalog below `root/store`; returns its URL."""
    rows = synthetic.photos(root / "source", count)
    url = synthetic.write(root / "store", rows)
    return split.split(url, root=str(root / "store"), name="photos", **how).catalog_url


def catalog_as_split(root: Path, rows: Sequence[dict[str, Any]]) -> str:
    """A catalog whose rows say themselves which side they are on, leaks and all."""
    return synthetic.write(root / "store", rows)


def plan(root: Path, catalog_url: str, **options: Any) -> shard.Plan:
    how: dict[str, Any] = {"max_bytes": MAX_BYTES, "partitions": 3} | options
    return shard.plan(catalog_url, root=str(root / "store"), name="photos", **how)


def sealed(root: Path, catalog_url: str, **options: Any) -> str:
    """Packed and sealed, not verified; returns the version's URL."""
    made = plan(root, catalog_url, **options)
    shard.seal(made.dataset_url, [shard.pack(job) for job in made.jobs])
    return made.dataset_url


def published(root: Path, **options: Any) -> shard.DatasetReport:
    url = sealed(root, split_catalog(root), **options)
    shard.verify(url)
    return shard.publish(url, config={"data": {"name": "photos"}})


def snapshot(url: str) -> dict[str, tuple[bytes, int]]:
    """Every file of a version: its bytes and when it was written, in nanoseconds."""
    return {
        str(path.relative_to(url)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(Path(url).rglob("*"))
        if path.is_file()
    }
