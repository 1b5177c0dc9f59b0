"""Small catalogs and photo folders for the tests of split and shard: no decoding, no ingest."""

from __future__ import annotations

import datetime
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from components import catalog
from components.store import Store

SEEN_AT = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def row(number: int, **values: Any) -> dict[str, Any]:
    """A catalog row of an ok JPEG whose perceptual hash is far from every other's."""
    name = hashlib.sha256(f"sample {number}".encode()).hexdigest()
    base: dict[str, Any] = dict.fromkeys(catalog.SCHEMA.names)
    base |= {
        "sample_id": name,
        "uri": f"/photos/{number:05d}.jpg",
        "bytes": 1000 + number % 7,
        "format": "JPEG",
        "label": f"class{number % 3}",
        "phash": int(hashlib.sha256(f"hash {number}".encode()).hexdigest()[:16], 16),
        "status": catalog.OK,
        "source": "/photos",
        "ingested_at": SEEN_AT,
    }
    return base | values


def table(rows: Sequence[Mapping[str, Any]], **extra: pa.DataType) -> pa.Table:
    schema = pa.schema([*catalog.SCHEMA, *(pa.field(name, kind) for name, kind in extra.items())])
    return pa.Table.from_pylist([dict(values) for values in rows], schema=schema)


def write(root: Path, rows: Sequence[Mapping[str, Any]], **extra: pa.DataType) -> str:
    """Write a catalog of these rows below `root/photos`; returns its URL."""
    return catalog.write(Store(root), "photos", table(rows, **extra)).url


def photos(folder: Path, count: int, *, seed: int = 0, size: int = 24) -> list[dict[str, Any]]:
    """Write real little JPEGs (every fifth a PNG); returns their catalog rows, no split yet."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        kind = "PNG" if number % 5 == 4 else "JPEG"
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(buffer, kind)
        path = folder / f"{number:04d}.{kind.lower()}"
        path.write_bytes(buffer.getvalue())
        rows.append(
            row(
                number,
                sample_id=hashlib.sha256(buffer.getvalue()).hexdigest(),
                uri=str(path),
                bytes=len(buffer.getvalue()),
                format=kind,
                source=str(folder),
            )
        )
    return rows
