"""Turns a profile's numbers into HTML: chooses what is shown and how much of it.

Everything is inlined, so the page opens anywhere, without a network.  Long lists are cut at fixed
lengths, and the page says how much was left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from tarpon.cpus import usable_cpus

from components import catalog
from components.profile import figures
from components.profile.numbers import Numbers, short_names

MAX_CLASSES = 60
"""Classes that get bars, table rows and sample pictures; the largest are shown."""

SAMPLES_PER_CLASS = 8
MAX_CLUSTERS = 12
MAX_PER_CLUSTER = 8
MAX_QUARANTINED = 200
THUMBNAIL_PX = 112

_TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A thumbnail with its caption; `data` is None when the file cannot be read any more."""

    name: str
    label: str
    data: str | None


def render(numbers: Numbers, *, catalog_url: str) -> str:
    """The whole page."""
    table, usable = numbers.table, numbers.usable
    names = short_names(table["uri"].to_pylist(), table["source"].to_pylist())
    shown_classes = list(numbers.classes)[:MAX_CLASSES]
    samples = _samples(numbers, shown_classes)
    shown_clusters = numbers.near[:MAX_CLUSTERS]
    clusters = [figures.spread(cluster.rows, MAX_PER_CLUSTER) for cluster in shown_clusters]
    wanted = [row for rows in (*samples.values(), *clusters) for row in rows]
    pictures = _pictures(numbers, wanted, names)
    good = table.select(["width", "height", "bytes"]).take(usable)
    width, height, size = (good[name].to_numpy() for name in good.column_names)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["thousands"] = "{:,}".format
    environment.filters["percent"] = "{:.1%}".format
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        n=numbers,
        title=_title(catalog_url),
        catalog_url=catalog_url,
        rows=table.num_rows,
        warnings=numbers.warnings(),
        shown_classes=shown_classes,
        samples={label: [pictures[row] for row in rows] for label, rows in samples.items()},
        charts=[
            figures.sizes(width, height),
            figures.histogram(width / np.maximum(height, 1), "aspect ratio, width / height"),
            figures.histogram(size / 1000, "file size, kB"),
        ],
        copies=[[names[row] for row in group] for group in numbers.copies[:MAX_QUARANTINED]],
        clusters=[
            (cluster, [pictures[row] for row in rows])
            for cluster, rows in zip(shown_clusters, clusters, strict=True)
        ],
        quarantined=_quarantined(numbers, names),
        max_quarantined=MAX_QUARANTINED,
    )


def _title(catalog_url: str) -> str:
    """`<dataset>` out of `<root>/<dataset>/catalog/<id>/part-00000.parquet`."""
    parts = catalog_url.split("/")
    return parts[-4] if len(parts) >= 4 else catalog_url


def _samples(numbers: Numbers, labels: Iterable[str]) -> dict[str, list[int]]:
    """A few rows of each class; rows are sorted by hash, so evenly spaced is as good as random."""
    rows: dict[str, list[int]] = {label: [] for label in labels}
    all_labels = numbers.table["label"].to_pylist()
    for row in numbers.usable.tolist():
        if all_labels[row] in rows:
            rows[all_labels[row]].append(row)
    return {label: figures.spread(found, SAMPLES_PER_CLASS) for label, found in rows.items()}


def _pictures(numbers: Numbers, rows: list[int], names: list[str]) -> dict[int, Picture]:
    uris, labels = numbers.table["uri"].to_pylist(), numbers.table["label"].to_pylist()
    distinct = sorted(set(rows))

    def one(row: int) -> Picture:
        data = figures.thumbnail(uris[row], THUMBNAIL_PX)
        return Picture(name=names[row], label=str(labels[row]), data=data)

    with ThreadPoolExecutor(usable_cpus()) as pool:
        return dict(zip(distinct, pool.map(one, distinct), strict=True))


def _quarantined(numbers: Numbers, names: list[str]) -> list[dict[str, Any]]:
    """The quarantined files, sorted by name, with the paths in their reasons shortened."""
    table = numbers.table
    status, errors = table["status"].to_pylist(), table["error"].to_pylist()
    sources = table["source"].to_pylist()
    found = []
    for row, name in enumerate(names):
        if status[row] == catalog.QUARANTINED:
            text = str(errors[row]).replace(f"{sources[row]}/", "")
            reason, _, detail = text.partition(": ")
            found.append({"name": name, "reason": reason, "detail": detail})
    return sorted(found, key=lambda item: item["name"])
