"""Ingest from S3 and HTTP, and from manifests: what is fetched, what is not, what becomes a row."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components import catalog, s3, sources
from components.ingest.files import IngestError
from components.ingest.run import IngestReport, ingest
from components.store import StoreError
from tests.components.test_ingest import picture
from tests.servers.fixtures import WebServers
from tests.servers.s3 import Bucket, S3Server

PHOTOS = {"cat/a.jpg": 1, "cat/deep/x/b c+%20.png": 2, "dog/ü?.jpg": 3, "dog/d.jpg": 4}


@pytest.fixture
def bucket(s3_environment: S3Server) -> Bucket:
    return s3_environment.bucket()


def fill(bucket: Bucket, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        bucket.put(f"photos/{name}", data)
    return f"{bucket.url}/photos"


def rows_of(report: IngestReport) -> dict[str, dict[str, Any]]:
    return {row["uri"]: row for row in catalog.read(report.catalog_url).to_pylist()}


@contextmanager
def gets() -> Iterator[list[str]]:
    """The keys of the images that are asked for."""
    found: list[str] = []

    def note(params: dict[str, Any], **_: Any) -> None:
        if params["Key"].startswith("photos/"):
            found.append(params["Key"])

    events = s3.client().meta.events
    events.register("provide-client-params.s3.GetObject", note)
    try:
        yield found
    finally:
        events.unregister("provide-client-params.s3.GetObject", note)


def test_a_prefix_is_a_folder_and_what_has_not_changed_is_not_fetched(bucket: Bucket) -> None:
    source = fill(
        bucket,
        {name: picture(seed) for name, seed in PHOTOS.items()}
        | {"": b"", "dog/": b"", "notes.txt": b"x", "cat/.thumbs/a.jpg": b"x", ".hidden": b"x"},
    )
    bucket.put("photos2/cat/other.jpg", picture(5))
    how = {"root": f"{bucket.url}/store", "name": "d", "group": r"([^/]+)/[^/]+$"}
    report = ingest(source + "/", **how)
    rows = rows_of(report)
    assert sorted(rows) == sorted(f"{source}/{name}" for name in PHOTOS)
    assert report.classes == {"cat": 1, "x": 1, "dog": 2}
    assert report.ignored_files == [".hidden", "cat/.thumbs/", "notes.txt"]
    assert rows[f"{source}/dog/d.jpg"]["group"] == "dog"
    assert (report.source, report.reused) == (source, 0)

    bucket.put("photos/dog/d.jpg", picture(6))
    with gets() as fetched:
        again = ingest(source, **how)
    assert fetched == ["photos/dog/d.jpg"]
    assert again.reused == 3
    assert again.catalog_id != report.catalog_id


def test_a_prefix_that_will_not_do_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("texts/cat/x.txt", b"x")
    bucket.put("flat/x.jpg", picture(1))
    for source, message in (
        (f"{bucket.url}/nothing", "found no files"),
        (f"{bucket.url}/texts", r"none of them an image \(1 \.txt\)"),
        (f"{bucket.url}/flat", "directly in it and none in class folders"),
    ):
        with pytest.raises(IngestError, match=message):
            ingest(source, root=str(tmp_path), name="d")
    with pytest.raises(StoreError, match="no such bucket"):
        ingest("s3://tarpon-no-such/photos", root=str(tmp_path), name="d")


def table(kind: str, rows: list[dict[str, Any]]) -> bytes:
    """The rows as a manifest file of a kind."""
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "csv":
        lines = [",".join(rows[0])]
        lines += [",".join("" if v is None else str(v) for v in row.values()) for row in rows]
        return "\n".join(lines).encode()
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_manifest_names_files_anywhere(
    bucket: Bucket, tmp_path: Path, web_server: WebServers, kind: str
) -> None:
    for folder, seed in (("near", 1), ("web", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jpg").write_bytes(picture(seed))
    bucket.put("photos/x", picture(3))  # no extension: the manifest says that it is an image
    web = web_server(tmp_path / "web").url
    remote = f"{bucket.url}/photos/x"
    uris = ["near/x.jpg", f"{web}/x.jpg", remote, f"{web}/gone.jpg", f"{bucket.url}/photos/gone"]
    uris += [f"{web}/signed.jpg?X-Amz-Signature=hush", f"{bucket.url}/photos/x2"]
    bucket.put("photos/x2", picture(4))
    labels = ["007", "007", "8", "8", "8", "8", None]
    rows = [
        {"uri": uri, "label": label, "group": f"g{n}", "camera": 5 + n}
        for n, (uri, label) in enumerate(zip(uris, labels, strict=True))
    ]
    source = tmp_path / f"list.{kind}"
    source.write_bytes(table(kind, rows))
    how = {"root": str(tmp_path / "store"), "name": "d"}
    report = ingest(str(source), **how)
    found = rows_of(report)
    assert "hush" not in str(found)
    assert report.classes == {"007": 2, "8": 1}
    assert report.reasons == {"no class": 1, "signed url": 1, "unreadable": 2}
    assert found[str(tmp_path / "near" / "x.jpg")]["label"] == "007"
    assert found[f"{web}/x.jpg"] | {"group": "g1", "camera": 6} == found[f"{web}/x.jpg"]
    assert "the server answered 404" in found[f"{web}/gone.jpg"]["error"]
    assert "no such object" in found[f"{bucket.url}/photos/gone"]["error"]

    again = ingest(str(source), **how)
    assert (again.catalog_id, again.reused) == (report.catalog_id, 4)
    (tmp_path / "web" / "x.jpg").write_bytes(picture(9))
    assert ingest(str(source), **how).reused == 3


def test_a_manifest_on_s3_is_read_from_there(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("lists/a/x.jpg", picture(1))
    bucket.put("lists/all.csv", b"uri,label\na/x.jpg,cat\n")
    report = ingest(f"{bucket.url}/lists/all.csv", root=str(tmp_path), name="d")
    assert list(rows_of(report)) == [f"{bucket.url}/lists/a/x.jpg"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uri,label\n", "holds no rows"),
        ("file,label\na,b\n", r"lacks the columns \['uri'\]"),
        ("uri,label,bytes\na,b,1\n", r"columns \['bytes'\], which a catalog fills itself"),
        ("uri,label\n,b\n", "a row without uri"),
        ("uri,label,timestamp\na,b,soon\n", "not a readable table"),
        ("", "not a readable table"),
    ],
)
def test_a_manifest_that_will_not_do_is_refused(tmp_path: Path, text: str, message: str) -> None:
    source = tmp_path / "list.csv"
    source.write_text(text)
    with pytest.raises(IngestError, match=rf"list\.csv: .*{message}"):
        ingest(str(source), root=str(tmp_path / "store"), name="d")


def test_an_outage_is_no_fault_of_the_files(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("x", b"1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match="the signature is wrong"):
        sources.read(f"{bucket.url}/x")
