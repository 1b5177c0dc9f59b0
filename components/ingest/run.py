"""Ingest: the images of a source become a catalog that knows every file, good or bad.

    scan names --> examine each file (threads) --> compare the files --> catalog

Nothing is copied or changed, and no file is dropped in silence: what cannot be trained on is a
quarantined row with a reason.  Until the catalog is written, last and whole, nothing exists, so
the step may be killed at any time and run again.
"""

from __future__ import annotations

import datetime
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from tarpon.cpus import usable_cpus

from components import catalog, rules
from components.ingest import rows
from components.ingest.examine import Seen, examine, pillow_settings
from components.ingest.files import ImageFile, IngestError, Listing, is_manifest, scan
from components.progress import track
from components.report import Report
from components.rules import MAX_PIXELS
from components.sources import SIGNED, is_remote
from components.store import Store, StoreError, without_secrets

NAMED_IGNORED = 50
"""Ignored files named in the report; all are counted."""

FETCHERS = 16
"""Files fetched at once: most of the time each is waited for."""

_log = logging.getLogger(__name__)
_BATCH = 32  # files per task of the pool


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestReport(Report):
    """What ingest saw.

    Attributes:
        catalog_url: The Parquet file with one row per image file.
        rows: `ok` + `quarantined`.
        reasons: Quarantined rows by reason; each row's `error` has the rest of the sentence.
        classes: Usable samples by class.
        lost_classes: Classes of which every file is quarantined.
        ignored: Files without an image's extension, hidden files, and hidden folders, each as
            one; the first of them are in `ignored_files`.
        reused: Files unchanged since the dataset's newest catalog, taken over undecoded.
    """

    catalog_url: str
    catalog_id: str
    rows: int
    ok: int
    quarantined: int
    reasons: dict[str, int]
    classes: dict[str, int]
    lost_classes: list[str]
    ignored: int
    ignored_files: list[str]
    reused: int
    source: str


def ingest(
    source: str,
    *,
    root: str,
    name: str,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    group: str | None = None,
) -> IngestReport:
    """Catalogue the images of a source; below a folder the class is the folder a file lies in.

    The same files give the same catalog id.  Files whose size and time, or ETag, are those of the
    dataset's newest catalog are not decoded again, and not fetched.

    Args:
        source: A folder, `s3://bucket/prefix`, or a manifest file (see `rows`), local or on S3.
        root: The store root that takes the catalog.
        name: The dataset's name.
        workers: Threads that fetch and decode; when None the number of usable CPUs, and at least
            `FETCHERS` where files come over the network.
        max_pixels: A picture of more is quarantined, not decoded.
        group: A regular expression searched in each file's path below the source (with '/'); what
            its first (..) captures is the sample's group, for split strategy `group`.  A file
            without a match has none.

    Raises:
        IngestError: An option is out of range; the source is missing, of another kind or without
            images, or everything in it is quarantined; in that last case the catalog is there and
            is named.
        StoreError: The store cannot be written.
        catalog.CatalogError: The name will not do.
    """
    if workers is not None and workers < 1:
        raise IngestError(f"ingest.workers={workers}: expected at least 1; null is one per CPU")
    try:
        rules.check_max_pixels(max_pixels)
        rules.check_group(group)
    except ValueError as error:
        raise IngestError(str(error)) from error
    store = Store(root)
    catalog.check_name(name)
    listing = rows.scan(source) if is_manifest(source) else scan(source)
    store.check_writable()
    if workers is None:
        remote = any(is_remote(image.path) for image in listing.images)
        workers = max(usable_cpus(), FETCHERS if remote else 1)

    known = _reusable(store, name, max_pixels)
    seen, reused = _examine_all(listing.images, known, workers=workers, max_pixels=max_pixels)
    lacking = (
        "lies directly in the source, expected a class folder"
        if listing.columns is None
        else "has no label in the manifest, expected one"
    )
    pairs = zip(listing.images, seen, strict=True)
    found = [_row(image, result, lacking) for image, result in pairs]
    _compare(found)
    now = datetime.datetime.now(datetime.UTC)
    for row, its_group in zip(found, _groups(listing, group), strict=True):
        row.update(group=its_group, source=listing.source, ingested_at=now)
    table = pa.Table.from_pylist(found, schema=catalog.SCHEMA)
    ref = catalog.write(store, name, rows.with_columns(table, listing.columns, group=group))
    report = _report(ref, listing, found, reused)
    _warn(report, listing)
    return report


def _examine_all(
    images: list[ImageFile], known: dict[str, Seen], *, workers: int, max_pixels: int
) -> tuple[list[Seen], int]:
    """One result per image, in order, and how many were taken from `known`."""

    def one(image: ImageFile) -> tuple[Seen, bool]:
        old = known.get(image.path)
        seen = examine(image.path, max_pixels=max_pixels, listed=image.etag, old=old)
        return seen, seen is old

    def batch(part: list[ImageFile]) -> list[tuple[Seen, bool]]:
        return [one(image) for image in part]

    size = max(1, min(_BATCH, len(images) // workers))
    parts = [images[start : start + size] for start in range(0, len(images), size)]
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ingest")
    try:
        with pillow_settings():
            flat = _flatten(pool.map(batch, parts))
            results = list(track(flat, len(images), "ingest"))
    finally:
        pool.shutdown(cancel_futures=True)
    return [result for result, _ in results], sum(old for _, old in results)


def _flatten(parts: Iterable[list[tuple[Seen, bool]]]) -> Iterator[tuple[Seen, bool]]:
    for part in parts:
        yield from part


def _reusable(store: Store, name: str, max_pixels: int) -> dict[str, Seen]:
    """By uri, what the newest catalog says of the files that decoded; errors are looked at anew."""
    try:
        url = catalog.newest(store, name)
        if url is None:
            return {}
        fields = ["sample_id", "bytes", "format", "width", "height", "mode", "phash", "etag"]
        known = catalog.read(url, ["uri", *fields]).to_pylist()
    except (catalog.CatalogError, StoreError) as error:
        _log.warning("every file is decoded afresh: %s", error)
        return {}
    return {
        row["uri"]: Seen(**{field: row[field] for field in fields})
        for row in known
        if row["phash"] is not None and row["width"] * row["height"] <= max_pixels and row["etag"]
    }


def _row(image: ImageFile, seen: Seen, unlabelled: str) -> dict[str, Any]:
    reason, detail = seen.reason, seen.detail
    if reason is None and image.label is None:
        reason, detail = "no class", unlabelled
    # Everybody may read a catalog, so a URL that carries credentials is not kept whole in it.
    uri = without_secrets(image.path) if seen.reason == SIGNED else image.path
    return {
        "sample_id": seen.sample_id,
        "uri": _printable(uri),
        "bytes": seen.bytes,
        "format": seen.format,
        "width": seen.width,
        "height": seen.height,
        "mode": seen.mode,
        "label": None if image.label is None else _printable(image.label),
        "phash": seen.phash,
        "status": catalog.OK if reason is None else catalog.QUARANTINED,
        "error": None if reason is None else f"{reason}: {detail}",
        "etag": seen.etag,
    }


def _groups(listing: Listing, pattern: str | None) -> list[str | None]:
    """The group of each image, from its name alone: so it is had anew for reused rows as well."""
    if pattern is None:
        return [None] * len(listing.images)
    expression = re.compile(pattern)
    matches = (expression.search(image.name) for image in listing.images)
    return [_printable(match[1]) if match and match[1] else None for match in matches]


def _compare(rows: list[dict[str, Any]]) -> None:
    """Quarantine copies: all but the first of one class, every one of those in several classes."""
    by_id: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["status"] == catalog.OK:
            by_id.setdefault(row["sample_id"], []).append(row)
    for same in by_id.values():
        labels = sorted({row["label"] for row in same})
        if len(labels) > 1:
            named = " and ".join(repr(label) for label in labels)
            where = ", ".join(row["uri"] for row in same[:5])
            error = f"conflicting labels: the same bytes are in {named} ({where})"
            for row in same:
                row.update(status=catalog.QUARANTINED, error=error)
        else:
            for row in same[1:]:
                error = f"duplicate: the same bytes as {same[0]['uri']}"
                row.update(status=catalog.QUARANTINED, error=error)


def _report(
    ref: catalog.CatalogRef, listing: Listing, rows: list[dict[str, Any]], reused: int
) -> IngestReport:
    reasons = Counter(row["error"].partition(":")[0] for row in rows if row["error"])
    classes = Counter(row["label"] for row in rows if row["status"] == catalog.OK)
    lost = {row["label"] for row in rows if row["label"] is not None} - set(classes)
    report = IngestReport(
        catalog_url=ref.url,
        catalog_id=ref.id,
        rows=ref.rows,
        ok=sum(classes.values()),
        quarantined=sum(reasons.values()),
        reasons=dict(sorted(reasons.items())),
        classes=dict(sorted(classes.items())),
        lost_classes=sorted(lost),
        ignored=len(listing.ignored),
        ignored_files=[_printable(path) for path in listing.ignored[:NAMED_IGNORED]],
        reused=reused,
        source=listing.source,
    )
    if not report.ok:
        named = ", ".join(f"{count} {reason}" for reason, count in report.reasons.items())
        raise IngestError(
            f"{listing.source}: all {report.rows} images are quarantined ({named}), expected some "
            f"that decode; the column `error` of {report.catalog_url} says why for each"
        )
    return report


def _warn(report: IngestReport, listing: Listing) -> None:
    for label, folders in listing.scattered_labels().items():
        _log.warning(
            "class %r comes from %d folders (%s): the class is the folder an image lies in; "
            "rename them if they are different classes",
            label,
            len(folders),
            ", ".join(folders[:3]) + (", ..." if len(folders) > 3 else ""),
        )
    for label in report.lost_classes:
        _log.warning(
            "class %r is lost: every file of it is quarantined; the column `error` of %s says why",
            label,
            report.catalog_url,
        )


def _printable(text: str) -> str:
    """The text with bytes that are not UTF-8 escaped, so that it can be stored."""
    return text.encode("utf-8", "backslashreplace").decode()
