"""Manifest files: a CSV, JSON-lines or Parquet table with one row per image.

    uri,label[,group][,timestamp][,any other columns]

`uri` is a local path (relative ones from the manifest's folder), `s3://bucket/key` or a public
`http(s)://` address.  Other columns come into the catalog under their names.
"""

from __future__ import annotations

import io
import os

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from components import catalog
from components.ingest.files import ImageFile, IngestError, Listing
from components.sources import is_remote
from components.store import local_path, split_url

TEXT = ("uri", "label", "group")
"""Columns of a manifest that are text, whatever they look like: a label `007` is no number."""

_EXPECTED = "the columns uri and label, and perhaps group and timestamp"


def scan(source: str) -> Listing:
    """The images that a manifest file lists, sorted by path.

    Raises:
        IngestError: It is no such table, or without images.
        StoreError: It cannot be read.
    """
    store, name = split_url(source)
    where = store.url(name)
    table = _table(store.read_bytes(name), where)
    _check(table, where)
    folder = store.root
    images = []
    for uri, label in zip(
        table.column("uri").to_pylist(), table.column("label").to_pylist(), strict=True
    ):
        if not uri:
            raise IngestError(f"{where}: found a row without uri, expected one in each; fill it")
        images.append(ImageFile(path=_absolute(uri, folder), name=uri, label=label or None))
    order = sorted(range(len(images)), key=lambda row: images[row].path)
    return Listing(
        source=where,
        images=[images[row] for row in order],
        ignored=[],
        columns=table.drop_columns(["uri", "label"]).take(order),
    )


def with_columns(table: pa.Table, columns: pa.Table | None, *, group: str | None) -> pa.Table:
    """A catalog's rows with a manifest's columns; its groups give way to the pattern `group`."""
    if columns is None:
        return table
    for name in columns.column_names:
        if name == "group" and group is not None:
            continue
        column = columns.column(name)
        if name in catalog.SCHEMA.names:
            field = catalog.SCHEMA.field(name)
            table = table.set_column(table.schema.get_field_index(name), field, column)
        else:
            table = table.append_column(columns.schema.field(name), column)
    return table


def _table(data: bytes, where: str) -> pa.Table:
    kind = os.path.splitext(where)[1].lower()
    try:
        if kind == ".parquet":
            table = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read()
        elif kind == ".csv":
            texts = dict.fromkeys(TEXT, pa.string())
            options = pyarrow.csv.ConvertOptions(column_types=texts, strings_can_be_null=True)
            table = pyarrow.csv.read_csv(io.BytesIO(data), convert_options=options)
        else:
            table = pyarrow.json.read_json(io.BytesIO(data))
        for name in (name for name in TEXT if name in table.column_names):
            column = pc.cast(table.column(name), pa.string())
            table = table.set_column(table.schema.get_field_index(name), name, column)
        if "timestamp" in table.column_names:
            place, kind_ = table.schema.get_field_index("timestamp"), pa.timestamp("us", tz="UTC")
            table = table.set_column(place, "timestamp", pc.cast(table.column(place), kind_))
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise IngestError(
            f"{where}: not a readable table ({said}), expected {_EXPECTED}; check data.source"
        ) from error
    return table


def _check(table: pa.Table, where: str) -> None:
    missing = [name for name in ("uri", "label") if name not in table.column_names]
    if missing:
        raise IngestError(
            f"{where}: lacks the columns {missing} (it has {table.column_names}), expected "
            f"{_EXPECTED}; rename them"
        )
    ours = set(catalog.SCHEMA.names) - {*TEXT, "timestamp"}
    if taken := sorted(ours & set(table.column_names)):
        raise IngestError(
            f"{where}: has the columns {taken}, which a catalog fills itself, expected other "
            "names; rename them"
        )
    if not table.num_rows:
        raise IngestError(f"{where}: holds no rows, expected an image in each; check data.source")


def _absolute(uri: str, folder: str) -> str:
    """A remote URI as it is; a path as an absolute one, seen from the manifest."""
    if is_remote(uri):
        return uri
    if uri.startswith(("/", "~", "file:")):
        return str(local_path(uri))
    if is_remote(folder):
        return f"{folder}/{uri}"
    return os.path.normpath(os.path.join(folder, uri))
