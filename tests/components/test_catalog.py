"""The catalog: equal rows have equal ids, and a written catalog never changes."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components import catalog
from components.store import Store, StoreError

NOON = datetime.datetime(2026, 1, 2, 12, tzinfo=datetime.UTC)


def row(sample_id: str, **changes: Any) -> dict[str, Any]:
    return {
        "sample_id": sample_id,
        "uri": f"/photos/{sample_id}.jpg",
        "bytes": 10,
        "label": "cat",
        "phash": 2**64 - 1,
        "status": catalog.OK,
        "etag": "10-1",
        "ingested_at": NOON,
        **changes,
    }


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=catalog.SCHEMA)


def test_rows_read_back_sorted_with_their_types(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ref = catalog.write(store, "d", table(row("b"), row("a", uri="/z"), row("a", uri="/y")))
    assert ref.url == str(tmp_path / "d" / "catalog" / ref.id / "part-00000.parquet")
    assert (ref.rows, len(ref.id)) == (3, 16)
    read = catalog.read(ref.url)
    assert read.schema.equals(catalog.SCHEMA)
    assert read["uri"].to_pylist() == ["/y", "/z", "/photos/b.jpg"]
    assert read["phash"].to_pylist() == [2**64 - 1] * 3
    assert catalog.read(ref.url, ["label"]).column_names == ["label"]
    assert pq.read_table(ref.url).equals(read)  # plain Parquet, for everybody else's readers


def test_the_id_is_frozen() -> None:
    """Who changes how ids are made gives every published dataset a new version."""
    assert catalog.content_id(table(row("a"), row("b", label=None))) == "27582b04a523fa48"


def test_the_id_ignores_order_chunks_and_when_a_row_was_seen(tmp_path: Path) -> None:
    store = Store(tmp_path)
    later = NOON + datetime.timedelta(days=1)
    one = catalog.write(store, "d", table(row("a"), row("b")))
    written = os.stat(one.url).st_mtime_ns
    other = pa.concat_tables([table(row("b", etag="10-2")), table(row("a", ingested_at=later))])
    assert catalog.write(store, "d", other) == one
    assert os.stat(one.url).st_mtime_ns == written
    assert len(store.list()) == 1


@pytest.mark.parametrize(
    "change",
    [{"label": "dog"}, {"label": None}, {"label": ""}, {"split": "test"}, {"phash": 7}],
    ids=str,
)
def test_the_id_follows_every_value(change: dict[str, Any]) -> None:
    assert catalog.content_id(table(row("a"))) != catalog.content_id(table(row("a", **change)))


def test_values_that_join_to_the_same_text_differ() -> None:
    one = table(row("a", label="x"), row("b", label="yz"))
    two = table(row("a", label="xy"), row("b", label="z"))
    assert catalog.content_id(one) != catalog.content_id(two)


def test_the_sources_own_columns_are_kept_and_count(tmp_path: Path) -> None:
    plain = table(row("a"))
    tagged = plain.append_column("tags", pa.array([["red", "big"]]))
    ref = catalog.write(Store(tmp_path), "d", tagged)
    assert catalog.read(ref.url)["tags"].to_pylist() == [["red", "big"]]
    assert ref.id != catalog.content_id(plain)


def test_newest_is_the_catalog_written_last(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert catalog.newest(store, "d") is None
    refs = [catalog.write(store, "d", table(row(name))) for name in "abc"]
    for age, ref in zip((30, 10, 20), refs, strict=True):
        os.utime(ref.url, (1e9 - age, 1e9 - age))
    assert catalog.newest(store, "d") == refs[1].url


def test_a_table_of_another_shape_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(catalog.CatalogError, match=r"lacks the columns \['phash', 'split'\]"):
        catalog.write(store, "d", table(row("a")).drop_columns(["phash", "split"]))
    wrong = table(row("a")).drop_columns("bytes").append_column("bytes", pa.array(["many"]))
    with pytest.raises(catalog.CatalogError, match=r"d: .*many"):
        catalog.write(store, "d", wrong)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "blüten"])
def test_a_dataset_name_is_one_plain_folder_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(catalog.CatalogError, match=r"data\.name=.*: expected ASCII letters"):
        catalog.write(Store(tmp_path), name, table(row("a")))


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such object"):
        catalog.read(str(tmp_path / "part-00000.parquet"))
    (tmp_path / "x.parquet").write_bytes(b"not parquet")
    with pytest.raises(catalog.CatalogError, match="not a readable Parquet file"):
        catalog.read(str(tmp_path / "x.parquet"))
