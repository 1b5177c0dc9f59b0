"""Profile: one self-contained HTML page that shows a dataset to the person about to train on it.

    catalog --> numbers --> page

It judges nothing and changes nothing: what looks wrong is named on the page and in the report's
`warnings`, and the pipeline goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components import catalog
from components.profile import numbers, page
from components.report import Report
from components.rules import NEAR_DUPLICATE_BITS, check_bits
from components.store import Store, StoreError


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileReport(Report):
    """The page and its main numbers.

    Attributes:
        path: The HTML file.
        classes: Usable samples by class.
        imbalance: Largest class over smallest.
        exact_duplicates: Files beyond the first of each group with equal bytes.
        near_duplicate_pairs: Pairs of usable samples at most `near_duplicate_bits` bits of
            perceptual hash apart.
        near_duplicate_clusters: Groups of samples that such pairs chain together.
        split_skew: By split, the distance of its classes from everybody's, 0 to 1.
        warnings: What deserves a look, the gravest first.
    """

    path: str
    catalog_url: str
    rows: int
    ok: int
    quarantined: int
    classes: dict[str, int]
    lost_classes: list[str]
    imbalance: float
    exact_duplicates: int
    near_duplicate_bits: int
    near_duplicate_pairs: int
    near_duplicate_clusters: int
    split_skew: dict[str, float]
    source_skew: dict[str, float]
    warnings: list[str]


def profile(
    catalog_url: str, *, output: str, near_duplicate_bits: int = NEAR_DUPLICATE_BITS
) -> ProfileReport:
    """Write the page; the same catalog and pictures give the same bytes.

    Args:
        catalog_url: A catalog, before or after the split step.
        output: The HTML file to write; its folder is made when missing.
        near_duplicate_bits: Bits of 64 in which the hashes of near duplicates may differ.

    Raises:
        StoreError: No catalog there, or the page cannot be written.
        catalog.CatalogError: What is there is no catalog.
        ValueError: `near_duplicate_bits` is out of range.
    """
    check_bits(near_duplicate_bits, where="near_duplicate_bits")
    table = catalog.read(catalog_url)
    missing = [name for name in numbers.COLUMNS if name not in table.column_names]
    if missing:
        raise catalog.CatalogError(
            f"{catalog_url}: lacks the columns {missing}, expected a catalog; run ingest again"
        )
    found = numbers.compute(table, near_bits=near_duplicate_bits)
    target = Path(output).absolute()
    if target.is_dir():
        raise StoreError(f"{target}: found a folder, expected the name of an HTML file")
    html = page.render(found, catalog_url=catalog_url)
    Store(target.parent).write_bytes(target.name, html.encode())
    return ProfileReport(
        path=str(target),
        catalog_url=catalog_url,
        rows=table.num_rows,
        ok=len(found.usable),
        quarantined=table.num_rows - len(found.usable),
        classes=dict(sorted(found.classes.items())),
        lost_classes=found.lost_classes,
        imbalance=round(found.imbalance, 3),
        exact_duplicates=sum(len(group) - 1 for group in found.copies),
        near_duplicate_bits=near_duplicate_bits,
        near_duplicate_pairs=found.near_pairs,
        near_duplicate_clusters=len(found.near),
        split_skew=found.splits.skew if found.splits else {},
        source_skew=found.sources.skew if found.sources else {},
        warnings=found.warnings(),
    )
