"""The catalog: one Parquet row per file that ingest saw, the table every later step reads.

    <root>/<dataset>/catalog/<catalog-id>/part-00000.parquet

The id is a hash of what the rows say, so equal rows have equal ids on any machine and a catalog,
once written, never changes: a step that adds a column's values writes a new catalog.  This module
neither decodes images nor decides which rows are good.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components import rules
from components.store import Store, split_url

OK = "ok"
QUARANTINED = "quarantined"

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),  # sha256 of the bytes, hex
        pa.field("uri", pa.string(), nullable=False),  # where the bytes are
        pa.field("bytes", pa.int64()),
        pa.field("format", pa.string()),  # from the content, not the name: JPEG, PNG, ...
        pa.field("width", pa.int32()),  # pixels, as shown: after EXIF orientation
        pa.field("height", pa.int32()),
        pa.field("mode", pa.string()),  # Pillow's: RGB, L, CMYK, ...
        pa.field("label", pa.string()),
        pa.field("group", pa.string()),  # samples that must stay on one side of a split
        pa.field("timestamp", pa.timestamp("us", tz="UTC")),  # when the picture was taken
        pa.field("phash", pa.uint64()),  # perceptual hash; null when not decodable
        pa.field("split", pa.string()),  # train, val, test; null before the split step
        pa.field("status", pa.string(), nullable=False),  # OK or QUARANTINED
        pa.field("error", pa.string()),  # why it is quarantined: "<reason>: <detail>"
        pa.field("source", pa.string()),  # the folder, manifest or archive it came from
        pa.field("etag", pa.string()),  # changes when the file may have changed
        pa.field("ingested_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)

#: Columns that say when and how a row was seen rather than what it is; they do not enter the id.
NOT_IN_ID = frozenset({"etag", "ingested_at"})

_PART = "part-00000.parquet"


class CatalogError(ValueError):
    """A table that is not a catalog, or a catalog that cannot be read; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogRef:
    """A catalog that lies in a store."""

    url: str
    id: str
    rows: int


def write(store: Store, dataset_name: str, table: pa.Table) -> CatalogRef:
    """Sort the rows, hash them and write them unless a catalog of this id is there already.

    Args:
        store: The store root.
        dataset_name: The dataset's folder below the root.
        table: Holds every column of `SCHEMA`; further columns (the source's own) are kept.

    Raises:
        CatalogError: A bad dataset name, or a column missing or of the wrong type.
        StoreError: The store cannot be written.
    """
    check_name(dataset_name)
    table = _conform(dataset_name, table)
    catalog_id = content_id(table)
    rel = f"{dataset_name}/catalog/{catalog_id}/{_PART}"
    if not store.exists(rel):
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        store.write_bytes(rel, buffer.getvalue())
    return CatalogRef(url=store.url(rel), id=catalog_id, rows=table.num_rows)


def read(url: str, columns: list[str] | None = None) -> pa.Table:
    """The rows of a catalog, sorted by sample_id then uri; only some columns when named.

    Raises:
        StoreError: There is nothing at the URL.
        CatalogError: What is there is no catalog.
    """
    store, name = split_url(url)
    data = store.read_bytes(name)
    try:
        # One thread and no read-ahead: arrow's I/O threads may drop the last reference to `data`
        # while the interpreter shuts down, which aborts a short process now and then.
        file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
        return file.read(columns=columns, use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise CatalogError(
            f"{url}: not a readable Parquet file ({error}), expected a catalog; run ingest again"
        ) from error


def newest(store: Store, dataset_name: str) -> str | None:
    """URL of the dataset's catalog written last, or None when it has none yet."""
    entries = store.entries(f"{dataset_name}/catalog").items()
    found = [(entry.modified_s, rel) for rel, entry in entries if rel.endswith(_PART)]
    return store.url(max(found)[1]) if found else None


def check_name(dataset_name: str) -> None:
    """Refuse a dataset name that is not one plain folder name.

    Raises:
        CatalogError: It is not.
    """
    try:
        rules.check_name(dataset_name)
    except ValueError as error:
        raise CatalogError(str(error)) from error


def content_id(table: pa.Table) -> str:
    """First 16 hex digits of a sha256 over the rows in order, less the columns in `NOT_IN_ID`.

    Depends on values alone: not on chunking, dictionary encoding or the Parquet writer.
    """
    digest = hashlib.sha256()
    for name in sorted(set(table.column_names) - NOT_IN_ID):
        column = table.column(name)
        valid = pc.is_valid(column).combine_chunks().to_numpy(zero_copy_only=False)
        digest.update(json.dumps([name, len(valid)]).encode())
        digest.update(np.packbits(valid).tobytes())
        offsets, data = _as_text(column)
        digest.update(offsets)
        digest.update(data)
    return digest.hexdigest()[:16]


def _as_text(column: pa.ChunkedArray) -> tuple[bytes, bytes]:
    """A column's values as text, nulls as "": little-endian int64 end offsets, then UTF-8."""
    if pa.types.is_nested(column.type):
        texts = [json.dumps(value, sort_keys=True, default=str) for value in column.to_pylist()]
        array = pa.array(texts, pa.large_string())
    else:
        array = pc.fill_null(column.cast(pa.large_string()), "").combine_chunks()
    offsets = np.frombuffer(array.buffers()[1], "<i8")[array.offset : array.offset + len(array) + 1]
    text = array.buffers()[2]
    data = text.to_pybytes()[offsets[0] : offsets[-1]] if text is not None else b""
    return (offsets[1:] - offsets[0]).tobytes(), data


def _conform(dataset_name: str, table: pa.Table) -> pa.Table:
    """The same rows with columns in the schema's order and types, extras last, rows sorted."""
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise CatalogError(
            f"{dataset_name}: table lacks the columns {missing}, expected all of catalog.SCHEMA"
        )
    extras = [name for name in table.column_names if name not in SCHEMA.names]
    target = pa.schema([*SCHEMA, *(table.schema.field(name) for name in sorted(extras))])
    try:
        table = table.select(target.names).cast(target)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise CatalogError(f"{dataset_name}: {error}, expected catalog.SCHEMA's types") from error
    return table.sort_by([("sample_id", "ascending"), ("uri", "ascending")])
