"""The figures of a profile, computed from the catalog's columns alone.

No image is opened and nothing is drawn here; `page` shows what this module finds.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components import catalog, duplicates

IMBALANCE_WARNING = 3.0
"""Largest class over smallest from which the page warns."""

SKEW_WARNING = 0.1
"""Share of a split's samples that would have to change class to match the whole; warns above."""

_SKEWED = "of its samples would have to change class for it to match the whole"

COLUMNS = [
    "sample_id", "uri", "bytes", "format", "width", "height", "mode", "label", "phash", "split",
    "status", "error", "source",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Rows of usable samples that look alike, with the classes and splits they are in."""

    rows: list[int]
    labels: list[str]
    splits: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossTable:
    """Counts of class by something: `counts[label][column]`, and each column's skew.

    Attributes:
        skew: Total variation distance, 0 to 1, between a column's classes and everybody's.
    """

    columns: list[str]
    totals: dict[str, int]
    counts: dict[str, dict[str, int]]
    skew: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Everything the page states.

    Attributes:
        table: The catalog's rows; positions elsewhere in this class are positions in it.
        usable: Positions of the rows whose status is ok.
        classes: Usable samples by class, largest class first.
        copies: Exact duplicates: groups of positions with the same bytes, quarantined or not.
        near: Clusters of usable samples that look alike, largest first.
        near_pairs: Pairs of usable samples at most `near_bits` bits apart.
        splits: None before the split step.
        sources: None when all rows come from one.
    """

    table: pa.Table
    usable: np.ndarray[Any, np.dtype[np.int64]]
    classes: dict[str, int]
    lost_classes: list[str]
    reasons: dict[str, int]
    formats: dict[str, int]
    modes: dict[str, int]
    copies: list[list[int]]
    near: list[Cluster]
    near_pairs: int
    near_bits: int
    splits: CrossTable | None
    sources: CrossTable | None

    @property
    def imbalance(self) -> float:
        """Largest class over smallest; 0 when there is no usable sample."""
        return max(self.classes.values()) / min(self.classes.values()) if self.classes else 0.0

    def warnings(self) -> list[str]:
        """What deserves a look, the gravest first, one sentence each."""
        found = [
            f"class {label!r} is lost: every file of it is quarantined"
            for label in self.lost_classes
        ]
        if conflicts := self.reasons.get("conflicting labels", 0):
            found.append(f"{conflicts} files are quarantined because their classes contradict")
        straddling = sum(len(cluster.splits) > 1 for cluster in self.near)
        if straddling:
            found.append(f"{straddling} clusters of near duplicates lie in more than one split")
        mixed = sum(len(cluster.labels) > 1 for cluster in self.near)
        if mixed:
            found.append(f"{mixed} clusters of near duplicates mix classes")
        if self.imbalance >= IMBALANCE_WARNING:
            found.append(f"the largest class is {self.imbalance:.1f} times the smallest")
        for kind, cross in (("split", self.splits), ("source", self.sources)):
            for name, skew in (cross.skew if cross else {}).items():
                if skew > SKEW_WARNING:
                    found.append(f"{kind} {name!r} is skewed: {skew:.0%} {_SKEWED}")
        return found


def compute(table: pa.Table, *, near_bits: int) -> Numbers:
    """All numbers of a catalog that has at least `COLUMNS`."""
    status = np.asarray(table["status"].to_pylist())
    usable = np.flatnonzero(status == catalog.OK)
    good = table.take(pa.array(usable))
    classes = _counts(good["label"])
    present = {label for label in pc.unique(table["label"]).to_pylist() if label is not None}
    near, pairs = _near(good, usable, near_bits)
    return Numbers(
        table=table,
        usable=usable,
        classes=classes,
        lost_classes=sorted(present - set(classes)),
        reasons=_reasons(table["error"].to_pylist()),
        formats=_counts(good["format"]),
        modes=_counts(good["mode"]),
        copies=_copies(table),
        near=near,
        near_pairs=pairs,
        near_bits=near_bits,
        splits=_cross(good, "split", order=["train", "val", "test"]),
        sources=_cross(good, "source") if len(set(good["source"].to_pylist())) > 1 else None,
    )


def short_names(uris: Sequence[str], sources: Sequence[str | None]) -> list[str]:
    """Each uri as seen from its source, for people to read."""
    return [
        os.path.relpath(uri, source) if source and uri.startswith(f"{source}/") else uri
        for uri, source in zip(uris, sources, strict=True)
    ]


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    """Values and how often, most frequent first and otherwise by name; nulls are "none"."""
    counts = Counter("none" if value is None else str(value) for value in column.to_pylist())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _reasons(errors: Sequence[str | None]) -> dict[str, int]:
    counts = Counter(error.partition(":")[0] for error in errors if error)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _copies(table: pa.Table) -> list[list[int]]:
    """Groups of decodable rows with equal bytes."""
    groups: dict[str, list[int]] = defaultdict(list)
    columns = zip(table["sample_id"].to_pylist(), table["phash"].to_pylist(), strict=True)
    for position, (sample_id, phash) in enumerate(columns):
        if phash is not None:
            groups[sample_id].append(position)
    return sorted(
        (group for group in groups.values() if len(group) > 1), key=lambda g: (-len(g), g)
    )


def _near(
    good: pa.Table, usable: np.ndarray[Any, np.dtype[np.int64]], bits: int
) -> tuple[list[Cluster], int]:
    hashes = good["phash"].to_pylist()
    groups: dict[int, list[int]] = defaultdict(list)
    for position, root in enumerate(duplicates.clusters(hashes, bits).tolist()):
        groups[root].append(position)
    labels, splits = good["label"].to_pylist(), good["split"].to_pylist()
    found = [
        Cluster(
            rows=[int(usable[position]) for position in group],
            labels=sorted({str(labels[position]) for position in group}),
            splits=sorted({splits[position] for position in group if splits[position]}),
        )
        for group in groups.values()
        if len(group) > 1
    ]
    found.sort(key=lambda cluster: (-len(cluster.rows), cluster.rows))
    known = np.array([value for value in hashes if value is not None], dtype=np.uint64)
    distinct, counts = np.unique(known, return_counts=True)
    left, right = duplicates.near_pairs(distinct, bits)
    equal = int((counts * (counts - 1) // 2).sum())
    return found, equal + int((counts[left] * counts[right]).sum())


def _cross(good: pa.Table, by: str, order: Sequence[str] = ()) -> CrossTable | None:
    """Class by another column; None when that column is empty."""
    values = good[by].to_pylist()
    totals = Counter(value for value in values if value is not None)
    if not totals:
        return None
    columns = sorted(totals, key=lambda v: (order.index(v) if v in order else len(order), v))
    counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(columns, 0))
    for label, value in zip(good["label"].to_pylist(), values, strict=True):
        if value is not None:
            counts[str(label)][value] += 1
    return CrossTable(
        columns=columns,
        totals={column: totals[column] for column in columns},
        counts=dict(sorted(counts.items())),
        skew={column: _skew(counts, column, totals) for column in columns},
    )


def _skew(counts: Mapping[str, Mapping[str, int]], column: str, totals: Mapping[str, int]) -> float:
    everybody = sum(totals.values())
    differences = (
        abs(row[column] / totals[column] - sum(row.values()) / everybody) for row in counts.values()
    )
    return round(sum(differences) / 2, 4)
