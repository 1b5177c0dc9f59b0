"""Split a catalog into train, val and test so that nothing that belongs together is torn apart.

The result is a function of the catalog's rows and the options alone: not of row order, machine or
time.  This step writes a new catalog with `split` filled in; it neither reads images nor writes
shards, and what it promises is checked later from the shards (components/shard/verify.py).
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from components import catalog
from components.duplicates import Links, clusters
from components.manifest import SPLITS
from components.report import Report
from components.rules import (
    NEAR_DUPLICATE_BITS,
    check_bits,
    check_fractions,
    check_strategy,
    nearest,
)
from components.split.assign import (
    Counts,
    deal,
    fill_empty,
    quotas_by_class,
    quotas_overall,
)
from components.store import Store

#: Columns this step adds beside `split`: the near-duplicate cluster (smallest sample_id in it;
#: null when alone), and the value that strategy `group` kept together (null otherwise).
CLUSTER_COLUMN = "split_cluster"
GROUP_COLUMN = "split_group"

_ALL = "all"  # the one class there is when labels do not matter


class SplitError(ValueError):
    """Options that cannot be met or a catalog that cannot be split; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to split; the `split` section of the pipeline's config.

    Args:
        strategy: `random`; `stratified` (each class in the same proportions); `group` (no value
            of column `by` on two sides).
        by: The column for `group`; None means the catalog's own `group` column.
        fractions: Shares of train, val and test; they sum to 1 and train is not 0.
        seed: Another seed, another split.
        near_duplicate_bits: Perceptual hashes that differ in at most this many of 64 bits travel
            together, chains of them too.  None: only identical files do.
    """

    strategy: str = "stratified"
    by: str | None = None
    fractions: Sequence[float] = (0.8, 0.1, 0.1)
    seed: int = 17
    near_duplicate_bits: int | None = NEAR_DUPLICATE_BITS

    def __post_init__(self) -> None:
        try:
            check_strategy(self.strategy)
            check_fractions(self.fractions)
            check_bits(self.near_duplicate_bits)
        except ValueError as error:
            raise SplitError(str(error)) from error
        if self.by is not None and self.strategy != "group":
            raise SplitError(
                f"split.by={self.by!r}: has no meaning with split.strategy={self.strategy}, "
                "expected null; set split.strategy=group to keep its values together"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitReport(Report):
    """What the split came to.  Counts are distinct samples; a file met twice counts once."""

    catalog_url: str
    catalog_id: str
    strategy: str
    by: str | None
    seed: int
    near_duplicate_bits: int | None
    fractions: list[float]
    samples: int
    counts: dict[str, int]
    duplicates: int  # further rows that hold the bytes of a sample already counted
    conflicts: list[str]  # sample_ids quarantined here: same bytes, different labels
    units: dict[str, int]  # what travelled together: count, largest
    clusters: dict[str, int]  # near duplicates: count, largest, samples in them
    groups: dict[str, int]  # strategy group: count, largest, merged by near duplicates
    classes: dict[str, dict[str, int]]
    rare_classes: list[str]  # too few separate samples for every side; all went to train
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Samples:
    """The distinct ok samples of a catalog, sorted by sample_id; rows point into them."""

    ids: list[str]
    labels: list[str | None]
    phashes: list[int | None]
    groups: list[list[str]]  # several when identical files carry different groups


@dataclass(frozen=True, slots=True, kw_only=True)
class _Units:
    """What travels together: one entry per unit, in the order of the keyed hash."""

    members: list[list[int]]
    cluster_of: list[int]  # per sample: first sample of its near-duplicate cluster
    cluster_report: dict[str, int]
    group_report: dict[str, int]


def split(
    catalog_url: str,
    *,
    root: str,
    name: str,
    strategy: str = "stratified",
    by: str | None = None,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 17,
    near_duplicate_bits: int | None = NEAR_DUPLICATE_BITS,
) -> SplitReport:
    """Write a catalog whose ok rows all name a side.

    Samples that are near duplicates of one another, or share a group under strategy `group`,
    get one side.  A class with fewer separate samples than there are non-empty sides goes to
    train whole and is named in `rare_classes`.  Identical files under different labels are
    quarantined, since no label of theirs can be believed.

    Args:
        catalog_url: The catalog that ingest wrote.
        root: Store root for the new catalog.
        name: The dataset's name.
        strategy, by, fractions, seed, near_duplicate_bits: See `Options`.

    Raises:
        SplitError: Options out of range; no ok rows; a missing label, group or column; a class
            that would be absent from train under `stratified`.
        StoreError: The catalog cannot be read or the store not be written.
    """
    options = Options(
        strategy=strategy,
        by=by,
        fractions=fractions,
        seed=seed,
        near_duplicate_bits=near_duplicate_bits,
    )
    store = Store(root)
    store.check_writable()
    table, conflicts = _quarantine_conflicts(catalog.read(catalog_url))
    samples, row_sample = _distinct(table, options, catalog_url)
    units = _units(samples, options)
    sides, rare = _assign(samples, units, options, catalog_url)

    result = _with_columns(table, samples, units, sides, row_sample, options)
    ref = catalog.write(store, name, result)
    counts = {split_: sides.count(index) for index, split_ in enumerate(SPLITS)}
    return SplitReport(
        catalog_url=ref.url,
        catalog_id=ref.id,
        strategy=strategy,
        by=_group_column(options),
        seed=seed,
        near_duplicate_bits=near_duplicate_bits,
        fractions=list(options.fractions),
        samples=len(samples.ids),
        counts=counts,
        duplicates=sum(index is not None for index in row_sample) - len(samples.ids),
        conflicts=conflicts,
        units={"count": len(units.members), "largest": max(map(len, units.members))},
        clusters=units.cluster_report,
        groups=units.group_report,
        classes=_class_counts(samples, sides),
        rare_classes=rare,
        warnings=_warnings(samples, sides, units, rare, conflicts, options, table),
    )


def _quarantine_conflicts(table: pa.Table) -> tuple[pa.Table, list[str]]:
    """Mark identical files that carry different labels; every one of them, by name."""
    ids, status, labels, errors = (
        table.column(name).to_pylist() for name in ("sample_id", "status", "label", "error")
    )
    seen: dict[str, set[str | None]] = defaultdict(set)
    for sample_id, state, label in zip(ids, status, labels, strict=True):
        if state == catalog.OK:
            seen[sample_id].add(label)
    bad = {sample_id: found for sample_id, found in seen.items() if len(found) > 1}
    if not bad:
        return table, []
    for row, sample_id in enumerate(ids):
        if sample_id in bad and status[row] == catalog.OK:
            status[row] = catalog.QUARANTINED
            found = ", ".join(sorted(repr(label) for label in bad[sample_id]))
            errors[row] = f"conflicting labels: identical files are labelled {found}"
    table = _set_column(table, "status", status, nullable=False)
    return _set_column(table, "error", errors), sorted(bad)


def _distinct(table: pa.Table, options: Options, where: str) -> tuple[_Samples, list[int | None]]:
    """The ok samples, and for each row the sample it holds (None when it is quarantined)."""
    column = _group_column(options)
    if column is not None and column not in table.column_names:
        raise SplitError(
            f"{where}: split.by={column!r} is not a column of the catalog, expected one of "
            f"{', '.join(table.column_names)}{nearest(column, table.column_names)}"
        )
    rows = table.select(["sample_id", "status", "label", "phash"]).to_pylist()
    values: list[Any] = table.column(column).to_pylist() if column else [None] * len(rows)
    ok = [row for row, value in enumerate(rows) if value["status"] == catalog.OK]
    if not ok:
        raise SplitError(
            f"{where}: none of {len(rows)} rows is ok, expected at least one; the catalog's "
            "`error` column says why each was quarantined"
        )
    if column and (nulls := sum(values[row] is None for row in ok)):
        uris = table.column("uri").to_pylist()
        first = next(uris[row] for row in ok if values[row] is None)
        remedy = (
            "set ingest.group to a regular expression whose first (..) captures the group from "
            "each file's path below the source and run ingest again"
            if column == "group"
            else "fill it at the source"
        )
        raise SplitError(
            f"{where}: column {column!r} is empty in {nulls} of {len(ok)} ok rows (first: "
            f"{first}), expected a value in each; {remedy}, or set split.by to one of "
            f"{', '.join(table.column_names)}"
        )
    if options.strategy == "stratified" and (
        bare := [rows[row]["sample_id"] for row in ok if rows[row]["label"] is None]
    ):
        raise SplitError(
            f"{where}: {len(bare)} of {len(ok)} ok rows have no label (first: {bare[0]}), expected "
            "one in each; label them at the source or set split.strategy=random"
        )
    ids = sorted({rows[row]["sample_id"] for row in ok})
    index_of = {sample_id: index for index, sample_id in enumerate(ids)}
    labels: list[str | None] = [None] * len(ids)
    phashes: list[int | None] = [None] * len(ids)
    groups: list[list[str]] = [[] for _ in ids]
    row_sample: list[int | None] = [None] * len(rows)
    for row in ok:
        index = row_sample[row] = index_of[rows[row]["sample_id"]]
        labels[index], phashes[index] = rows[row]["label"], rows[row]["phash"]
        if column:
            groups[index].append(str(values[row]))
    return _Samples(ids=ids, labels=labels, phashes=phashes, groups=groups), row_sample


def _units(samples: _Samples, options: Options) -> _Units:
    """Join near duplicates, then groups, and put the units in the order of a keyed hash."""
    cluster_of = clusters(samples.phashes, options.near_duplicate_bits).tolist()
    links = Links(len(samples.ids))
    for index, first in enumerate(cluster_of):
        links.join(index, first)
    first_of: dict[str, int] = {}
    for index, values in enumerate(samples.groups):
        for value in values:
            links.join(index, first_of.setdefault(value, index))
    members: dict[int, list[int]] = defaultdict(list)
    for index, unit in enumerate(links.roots().tolist()):
        members[unit].append(index)

    key = str(options.seed).encode()
    rank = [
        hashlib.blake2b(text.encode(), key=key, digest_size=16).digest() for text in samples.ids
    ]
    ordered = sorted(members.values(), key=lambda unit: min(rank[index] for index in unit))
    together = [size for size in Counter(cluster_of).values() if size > 1]
    group_sizes = Counter(value for values in samples.groups for value in values)
    group_units = sum(1 for unit in ordered if samples.groups[unit[0]])
    return _Units(
        members=ordered,
        cluster_of=cluster_of,
        cluster_report={
            "count": len(together),
            "largest": max(together, default=0),
            "samples": sum(together),
        },
        group_report={
            "count": len(group_sizes),
            "largest": max(group_sizes.values(), default=0),
            "merged": len(group_sizes) - group_units,
        },
    )


def _assign(
    samples: _Samples, units: _Units, options: Options, where: str
) -> tuple[list[int], list[str]]:
    """The side of each sample, and the classes too small to be divided."""
    stratified = options.strategy == "stratified"
    per_unit: list[Counts] = [
        Counter(str(samples.labels[index]) if stratified else _ALL for index in unit)
        for unit in units.members
    ]
    sizes: Counter[str] = Counter()
    separate: Counter[str] = Counter()
    for counts in per_unit:
        sizes.update(counts)
        separate.update(counts.keys())
    rare: list[str] = []
    pinned: dict[int, int] = {}
    if stratified:
        wanted = sum(fraction > 0 for fraction in options.fractions)
        rare = sorted(label for label in sizes if separate[label] < wanted)
        pinned = {i: 0 for i, counts in enumerate(per_unit) if not counts.keys().isdisjoint(rare)}
        common = {label: sizes[label] for label in sizes if label not in rare}
        quotas = quotas_by_class(common, options.fractions)
        quotas |= {label: [sizes[label], 0, 0] for label in rare}
    else:
        quotas = {_ALL: quotas_overall(sizes[_ALL], options.fractions)}
    unit_sides = deal(per_unit, quotas, pinned=pinned)
    fill_empty(per_unit, unit_sides, options.fractions, pinned=pinned)

    sides = [0] * len(samples.ids)
    for unit, side in zip(units.members, unit_sides, strict=True):
        for index in unit:
            sides[index] = side
    if stratified:
        in_train = {samples.labels[index] for index, side in enumerate(sides) if side == 0}
        if absent := sorted(label for label in sizes if label not in in_train):
            raise SplitError(
                f"{where}: no sample of {', '.join(map(repr, absent))} would be in train, expected "
                "every class there; its near duplicates are tied to other classes: lower "
                "split.near_duplicate_bits, raise train's fraction or set split.strategy=random"
            )
    return sides, rare


def _with_columns(
    table: pa.Table,
    samples: _Samples,
    units: _Units,
    sides: list[int],
    row_sample: list[int | None],
    options: Options,
) -> pa.Table:
    """The catalog with `split` filled in and the columns this step adds."""
    cluster_sizes = np.bincount(units.cluster_of, minlength=len(samples.ids))
    groups = table.column(_group_column(options) or "group").to_pylist()
    split_column, cluster_column, group_column = [], [], []
    for row, index in enumerate(row_sample):
        first = -1 if index is None else units.cluster_of[index]
        alone = first < 0 or cluster_sizes[first] < 2
        split_column.append(None if index is None else SPLITS[sides[index]])
        cluster_column.append(None if alone else samples.ids[first])
        grouped = options.strategy == "group" and index is not None
        group_column.append(str(groups[row]) if grouped else None)
    table = _set_column(table, "split", split_column)
    table = _set_column(table, CLUSTER_COLUMN, cluster_column)
    return _set_column(table, GROUP_COLUMN, group_column)


def _set_column(
    table: pa.Table, name: str, values: list[str | None], *, nullable: bool = True
) -> pa.Table:
    new = pa.field(name, pa.string(), nullable=nullable)
    array = pa.array(values, pa.string())
    index = table.schema.get_field_index(name)
    return table.append_column(new, array) if index < 0 else table.set_column(index, new, array)


def _class_counts(samples: _Samples, sides: list[int]) -> dict[str, dict[str, int]]:
    tally = Counter(zip(samples.labels, sides, strict=True))
    return {
        str(label): {name: tally[label, side] for side, name in enumerate(SPLITS)}
        for label in sorted({label for label in samples.labels if label is not None})
    }


def _warnings(
    samples: _Samples,
    sides: list[int],
    units: _Units,
    rare: list[str],
    conflicts: list[str],
    options: Options,
    table: pa.Table,
) -> list[str]:
    """What a reader of the report should know before trusting the split."""
    found = []
    total = len(sides)
    largest = max(len(unit) for unit in units.members)
    slack = max(1.0, 0.01 * total, float(len(set(samples.labels))))
    off = [
        f"{name} {sides.count(side)} of {fraction * total:.0f}"
        for side, (name, fraction) in enumerate(zip(SPLITS, options.fractions, strict=True))
        if abs(sides.count(side) - fraction * total) > slack or (fraction > 0 and side not in sides)
    ]
    if off:
        found.append(
            f"the fractions could not be met ({', '.join(off)} samples): {total} samples travel as "
            f"{len(units.members)} units, the largest of {largest}; fewer near duplicates "
            "(split.near_duplicate_bits), smaller groups or more samples would help"
        )
    if rare:
        found.append(f"too few separate samples to divide, all in train: {', '.join(rare)}")
    if conflicts:
        found.append(f"{len(conflicts)} samples quarantined: identical files, different labels")
    labels = {label for label in samples.labels if label is not None}
    in_train = {label for label, side in zip(samples.labels, sides, strict=True) if side == 0}
    if absent := sorted(labels - in_train):
        found.append(f"classes that train never sees: {', '.join(absent)}")
    if options.strategy != "group" and (known := table.column("group").drop_null()):
        found.append(
            f"the catalog's `group` column holds {len(known.unique())} values and "
            f"split.strategy={options.strategy} does not keep them together"
        )
    return found


def _group_column(options: Options) -> str | None:
    return (options.by or "group") if options.strategy == "group" else None
