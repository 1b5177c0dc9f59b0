"""Ingest: every file becomes a row or is named, and what cannot be used says why."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imagehash
import numpy as np
import pytest
from kfp import compiler
from PIL import Image, ImageOps

from components import catalog, phash
from components.ingest import __main__ as command
from components.ingest import sample_photos
from components.ingest.component import ingest as ingest_component
from components.ingest.examine import examine, pillow_settings
from components.ingest.files import IngestError, scan
from components.ingest.run import IngestReport, ingest
from components.store import StoreError


def picture(
    seed: int, kind: str = "JPEG", size: tuple[int, int] = (48, 32), **options: Any
) -> bytes:
    """A small image that no other seed gives."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(buffer, kind, **options)
    return buffer.getvalue()


def fill(folder: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def rows_of(report: IngestReport) -> dict[str, dict[str, Any]]:
    """The catalog's rows by path below the source."""
    rows = catalog.read(report.catalog_url).to_pylist()
    return {os.path.relpath(row["uri"], report.source): row for row in rows}


@pytest.fixture
def go(tmp_path: Path) -> Any:
    """Ingest files given by name and bytes."""

    def call(files: dict[str, bytes] | None = None, **options: Any) -> IngestReport:
        source = fill(tmp_path / "photos", files or {})
        return ingest(source, root=str(tmp_path / "root"), name="d", **options)

    return call


GOOD = {"cat/a.jpg": picture(1), "cat/b.jpg": picture(2), "dog/a.jpg": picture(3)}


def test_good_files_become_full_rows(go: Any) -> None:
    report = go(GOOD)
    assert (report.rows, report.ok, report.quarantined) == (3, 3, 0)
    assert report.classes == {"cat": 2, "dog": 1}
    row = rows_of(report)["cat/a.jpg"]
    assert row["uri"].startswith("/")
    assert row["sample_id"] == hashlib.sha256(picture(1)).hexdigest()
    expected = {"bytes": len(picture(1)), "format": "JPEG", "width": 48, "height": 32}
    expected |= {"mode": "RGB", "label": "cat", "status": "ok", "error": None, "split": None}
    assert {key: row[key] for key in expected} == expected
    assert row["source"] == report.source
    assert (row["group"], row["timestamp"]) == (None, None)


def test_formats_come_from_the_content(go: Any) -> None:
    kinds = {
        "png": "PNG",
        "webp": "WEBP",
        "bmp": "BMP",
        "tiff": "TIFF",
        "tif": "TIFF",
        "gif": "GIF",
    }
    files = {f"c/{i}.{ext}": picture(i, kind) for i, (ext, kind) in enumerate(kinds.items())}
    files["c/in-truth-png.JPG"] = picture(90, "PNG")
    files["c/in-truth-jpeg.png"] = picture(91)
    rows = rows_of(go(files))
    for i, (ext, kind) in enumerate(kinds.items()):
        assert rows[f"c/{i}.{ext}"]["format"] == kind
    assert rows["c/in-truth-png.JPG"]["format"] == "PNG"
    assert rows["c/in-truth-jpeg.png"]["format"] == "JPEG"
    assert {row["status"] for row in rows.values()} == {"ok"}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_and_hash_are_those_of_the_picture_as_shown(go: Any, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = picture(5, exif=exif)
    row = rows_of(go({"c/a.jpg": data}))["c/a.jpg"]
    with Image.open(io.BytesIO(data)) as image:
        shown = ImageOps.exif_transpose(image)
    assert (row["width"], row["height"]) == shown.size
    distance = (row["phash"] ^ phash.phash(phash.shrink(shown))).bit_count()
    assert distance <= 4  # resized before or after turning: rounding may flip a bit or two


def test_the_hash_is_imagehashs() -> None:
    for index in range(12):
        data = sample_photos.picture("temple", seed=1, index=index)
        with Image.open(io.BytesIO(data)) as image:
            assert phash.phash(phash.shrink(image)) == int(str(imagehash.phash(image)), 16)


BROKEN = {
    "truncated": (picture(1, size=(200, 200))[:-900], "the JPEG data ends before"),
    "truncated png": (picture(1, "PNG")[:-60], "truncated: the PNG data ends before"),
    "empty": (b"", "empty file: 0 bytes"),
    "text": (b"a note, not a picture\nline two", "holds text that begins 'a note, not a picture'"),
    "utf8 cut": ("é".encode() * 30, "not an image: holds text"),
    "binary": (b"\x00\x01\x02\xff" * 20, "not an image: begins with the bytes 00 01 02 ff"),
    "header only": (b"\xff\xd8\xff\xe0", "JPEG"),
    "bad png": (picture(1, "PNG").replace(b"IDAT", b"IDAX"), "PNG"),
    "webp cut": (picture(1, "WEBP")[:60], "WEBP"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_quarantined_with_a_reason(go: Any, case: str) -> None:
    data, expected = BROKEN[case]
    report = go({**GOOD, "cat/broken.jpg": data})
    row = rows_of(report)["cat/broken.jpg"]
    assert row["status"] == "quarantined"
    assert expected in row["error"]
    assert row["phash"] is None
    assert report.reasons == {row["error"].partition(":")[0]: 1}
    assert (report.rows, report.ok, report.quarantined) == (4, 3, 1)


def test_every_cut_of_a_jpeg_is_noticed(tmp_path: Path) -> None:
    data = picture(1, size=(120, 90))
    path = tmp_path / "x.jpg"

    def reason(keep: int) -> str | None:
        path.write_bytes(data[:keep])
        return examine(str(path), max_pixels=10**6).reason

    with pillow_settings():
        assert reason(len(data)) is None
        assert [keep for keep in range(0, len(data) - 2, 61) if reason(keep) is None] == []


def many_scans(count: int) -> bytes:
    """A progressive JPEG with its last scan repeated; Pillow reads any number of them."""
    data = picture(1, size=(120, 90), progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def test_what_training_would_refuse_is_quarantined(go: Any) -> None:
    with Image.open(io.BytesIO(many_scans(120))) as image:
        image.load()
    report = go({**GOOD, "cat/ok.jpg": many_scans(5), "cat/scans.jpg": many_scans(120)})
    rows = rows_of(report)
    assert rows["cat/ok.jpg"]["status"] == "ok"
    assert rows["cat/scans.jpg"]["error"].startswith("not trainable: the loader refuses it (")
    assert "scans" in rows["cat/scans.jpg"]["error"]


def tiff(dtype: Any, seed: int, scale: float = 1.0) -> bytes:
    pixels = np.random.default_rng(seed).random((40, 40)) * scale
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(dtype)).save(buffer, "TIFF")
    return buffer.getvalue()


def test_pixels_that_8_bits_would_clip_are_quarantined(go: Any) -> None:
    files = {"cat/f.tif": tiff(np.float32, 1), "cat/i.tif": tiff(np.int32, 2, 2**30)}
    rows = rows_of(go({**GOOD, **files}))
    for name, mode in (("cat/f.tif", "F"), ("cat/i.tif", "I")):
        assert rows[name]["error"].startswith(f"unsupported pixel type: {mode}, whose values")


def test_16_bit_greys_are_hashed_as_they_look(go: Any) -> None:
    files = {f"cat/{seed}.tif": tiff(np.uint16, seed, 2**16) for seed in (1, 2)}
    rows = rows_of(go({**GOOD, **files}))
    assert {rows[name]["status"] for name in files} == {"ok"}
    first, second = (rows[name]["phash"] for name in files)
    assert (first ^ second).bit_count() > 12


def test_too_many_pixels_are_not_decoded(go: Any) -> None:
    rows = rows_of(go({**GOOD, "cat/big.png": picture(7, "PNG", (400, 300))}, max_pixels=100_000))
    assert rows["cat/big.png"]["error"].startswith("too many pixels: 400x300 is 120,000, at most")
    assert rows["cat/a.jpg"]["status"] == "ok"


def test_pillows_own_limit_is_put_back(go: Any) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    go(GOOD)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_dangling_link_and_a_pipe_are_unreadable(go: Any, tmp_path: Path) -> None:
    fill(tmp_path / "photos", GOOD)
    (tmp_path / "photos/cat/link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "photos/cat/pipe.jpg")
    rows = rows_of(go())
    assert rows["cat/link.jpg"]["error"] == "unreadable: a dangling link"
    assert rows["cat/pipe.jpg"]["error"] == "unreadable: not a regular file"


def test_a_name_that_is_not_utf8_is_named_escaped(go: Any, tmp_path: Path) -> None:
    fill(tmp_path / "photos", GOOD)
    (tmp_path / "photos/cat" / os.fsdecode(b"\xe9t\xe9.jpg")).write_bytes(picture(9))
    report = go()
    (row,) = [row for row in rows_of(report).values() if row["status"] != "ok"]
    assert row["error"].startswith("bad name")
    assert "t\\udce9.jpg" in row["uri"]


def test_copies_within_a_class_leave_one(go: Any) -> None:
    report = go({**GOOD, "cat/z.jpg": picture(1), "cat/deep/cat/y.jpg": picture(1)})
    rows = rows_of(report)
    first = rows["cat/a.jpg"]
    assert first["status"] == "ok"
    for name in ("cat/z.jpg", "cat/deep/cat/y.jpg"):
        assert rows[name]["error"] == f"duplicate: the same bytes as {first['uri']}"
    assert report.reasons == {"duplicate": 2}


def test_the_same_bytes_in_two_classes_are_all_quarantined(go: Any) -> None:
    report = go({**GOOD, "dog/copy.jpg": picture(1), "dog/copy2.jpg": picture(1)})
    rows = rows_of(report)
    for name in ("cat/a.jpg", "dog/copy.jpg", "dog/copy2.jpg"):
        assert rows[name]["error"].startswith("conflicting labels: the same bytes are in 'cat' and")
    assert report.reasons == {"conflicting labels": 3}
    assert report.classes == {"cat": 1, "dog": 1}


def test_other_and_hidden_files_are_counted_and_named(go: Any) -> None:
    extra = {"readme.txt": b"x", "cat/notes.csv": b"x", ".hidden.jpg": b"", ".git/x.jpg": b""}
    report = go({**GOOD, **extra})
    assert report.ignored_files == [".git/", ".hidden.jpg", "cat/notes.csv", "readme.txt"]
    assert (report.ignored, report.rows) == (4, 3)


def test_an_image_outside_any_class_folder_is_quarantined(go: Any) -> None:
    report = go({**GOOD, "stray.jpg": picture(8)})
    assert rows_of(report)["stray.jpg"]["error"].startswith("no class: lies directly in the source")
    assert rows_of(report)["stray.jpg"]["label"] is None
    assert report.classes == {"cat": 2, "dog": 1}


def test_the_class_is_the_parent_folder_at_any_depth(go: Any) -> None:
    report = go(
        {"2024/cat/a.jpg": picture(1), "2025/cat/a.jpg": picture(2), "dog/a.jpg": picture(3)}
    )
    assert report.classes == {"cat": 2, "dog": 1}


def test_a_label_from_several_folders_is_named(go: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        go({"cat/2024/a.jpg": picture(1), "dog/2024/a.jpg": picture(2), "dog/b.jpg": picture(3)})
    assert "class '2024' comes from 2 folders (cat/2024, dog/2024)" in caplog.text


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", {"a.jpg": picture(1)})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "photos")
    listing = scan(str(tmp_path / "photos"))
    assert [(image.label, Path(image.path).name) for image in listing.images] == [("cat", "a.jpg")]


def test_a_class_lost_to_quarantine_is_named_loudly(
    go: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        report = go({**GOOD, "owl/a.jpg": b"", "owl/b.jpg": b"text"})
    assert report.lost_classes == ["owl"]
    assert "owl" not in report.classes
    assert "class 'owl' is lost: every file of it is quarantined" in caplog.text


def test_everything_quarantined_is_an_error_that_keeps_the_catalog(go: Any, tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"all 2 images are quarantined \(1 empty file, 1 not an"):
        go({"cat/a.jpg": b"", "cat/b.jpg": b"text"})
    (part,) = (tmp_path / "root").rglob("*.parquet")
    assert catalog.read(str(part)).num_rows == 2


def test_sources_that_will_not_do_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    texts = fill(tmp_path / "texts", {"a/x.txt": b"", "a/y.csv": b"", "b/z.txt": b""})
    flat = fill(tmp_path / "flat", {"a.jpg": picture(1)})
    manifest = fill(tmp_path / "m", {"m.csv": b"uri,label\n"}) + "/m.csv"
    cases = {
        str(tmp_path / "missing"): "missing: no such folder, expected a folder or s3://",
        str(empty): "empty: found no files, expected",
        texts: r"found 3 files and none of them an image \(2 \.txt, 1 \.csv\)",
        flat: "found 1 images directly in it and none in class folders",
        manifest: "m.csv: holds no rows, expected an image in each",
        "/data/train-{000000..000009}.tar": "tars are not supported yet",
        flat + "/a.jpg": "found a file, expected a folder",
        "gs://bucket/photos?token=secret": r"gs sources are not supported",
        "s3://bucket/photos?token=secret": r"expected s3://bucket/prefix and no query",
        "": r"set data\.source",
    }
    for source, message in cases.items():
        with pytest.raises(IngestError, match=message) as caught:
            ingest(source, root=str(tmp_path / "root"), name="d")
        assert "secret" not in str(caught.value)
    assert not (tmp_path / "root").exists()


def test_an_unwritable_store_fails_before_any_decoding(tmp_path: Path) -> None:
    source = fill(tmp_path / "photos", GOOD)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot be written .*; set store\.root"):
        ingest(source, root=str(tmp_path / "file"), name="d")


@pytest.mark.parametrize("option", ["workers", "max_pixels"])
def test_numbers_out_of_range_are_named(go: Any, option: str) -> None:
    with pytest.raises(IngestError, match=f"ingest.{option}=0: expected "):
        go(GOOD, **{option: 0})


def test_more_pixels_than_training_decodes_are_not_let_in(go: Any) -> None:
    with pytest.raises(IngestError, match="=178956971: expected 1 to 178956970, the most that"):
        go(GOOD, max_pixels=178_956_971)


def test_the_same_files_give_the_same_catalog_whatever_the_threads(go: Any, tmp_path: Path) -> None:
    files = {f"c{i % 3}/{i}.jpg": picture(i) for i in range(80)}
    one = go(files, workers=1)
    other = ingest(one.source, root=str(tmp_path / "other"), name="d", workers=4)
    assert one.catalog_id == other.catalog_id
    again = go()
    assert again.catalog_url == one.catalog_url
    assert len(list((tmp_path / "root").rglob("*.parquet"))) == 1


def test_unchanged_files_are_not_decoded_again(go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {**GOOD, "cat/broken.jpg": b"text", "dog/copy.jpg": picture(3)}
    first = go(files)
    decoded: list[str] = []

    def spy(path: str) -> bytes:
        decoded.append(os.path.relpath(path, first.source))
        return Path(path).read_bytes()

    monkeypatch.setattr("components.ingest.examine._read", spy)
    again = go()
    assert decoded == ["cat/broken.jpg"]  # errors are looked at anew: they may be cured
    assert (again.catalog_id, again.reused) == (first.catalog_id, 4)

    decoded.clear()
    changed = go({"cat/b.jpg": picture(20), "cat/new.jpg": picture(21)})
    assert sorted(decoded) == ["cat/b.jpg", "cat/broken.jpg", "cat/new.jpg"]
    assert changed.catalog_id != first.catalog_id
    fresh = {name: row["sample_id"] for name, row in rows_of(changed).items()}
    assert fresh["cat/b.jpg"] != rows_of(first)["cat/b.jpg"]["sample_id"]


def test_a_verdict_by_older_rules_is_not_taken_over(
    go: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert go(GOOD).reused == 0
    monkeypatch.setattr("components.ingest.examine.RULES", 99)
    assert go(GOOD).reused == 0
    assert go(GOOD).reused == 0  # equal rows, so the older catalog stays


def test_the_group_is_captured_from_the_path_and_changes_without_decoding(go: Any) -> None:
    files = {"cat/tom-1.jpg": picture(1), "cat/tom-2.jpg": picture(2), "cat/x.jpg": picture(3)}
    first = go(files, group=r"([^/]+)-\d+\.jpg$")
    groups = {name: row["group"] for name, row in rows_of(first).items()}
    assert groups == {"cat/tom-1.jpg": "tom", "cat/tom-2.jpg": "tom", "cat/x.jpg": None}

    other = go(group=r"^(\w+)/.*")
    assert other.reused == 3
    assert other.catalog_id != first.catalog_id
    assert {row["group"] for row in rows_of(other).values()} == {"cat"}

    none = go()
    assert none.reused == 3
    assert {row["group"] for row in rows_of(none).values()} == {None}


@pytest.mark.parametrize(
    ("group", "message"),
    [("(", "not a regular expression"), ("cat", r"found nothing in \(\.\.\), expected")],
)
def test_a_group_that_captures_nothing_is_refused(go: Any, group: str, message: str) -> None:
    with pytest.raises(IngestError, match=rf"ingest\.group='.*': {message}"):
        go(GOOD, group=group)


def test_a_damaged_earlier_catalog_is_no_obstacle(
    go: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    go(GOOD)
    (part,) = (tmp_path / "root").rglob("*.parquet")
    part.write_bytes(b"cut off")
    with caplog.at_level(logging.WARNING):
        report = go({"cat/c.jpg": picture(4)})
    assert report.ok == 4
    assert "every file is decoded afresh" in caplog.text


def test_the_sample_photographs_quarantine_exactly_their_broken_files(tmp_path: Path) -> None:
    made = sample_photos.make(str(tmp_path / "photos"), count=48)
    report = ingest(made.folder, root=str(tmp_path / "root"), name="photos")
    assert report.reasons == {
        "conflicting labels": 2,
        "duplicate": made.extras["exact copy"],
        "empty file": made.extras["zero bytes"],
        "not an image": made.extras["text named .jpg"],
        "truncated": made.extras["truncated"],
    }
    assert report.ok == 48 - 1 + made.extras["wrong extension"]
    assert report.ignored_files == [sample_photos.MARKER, "about.txt"]


def test_the_command_prints_the_report_or_one_error_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = fill(tmp_path / "photos", GOOD)
    assert (
        command.main([source, "--root", str(tmp_path / "root"), "--name", "d", "--group", "(.)"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["ok"] == 3
    assert command.main([str(tmp_path / "none"), "--root", str(tmp_path / "root")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_the_component_maps_config_to_arguments_and_report_to_artifact(tmp_path: Path) -> None:
    source = fill(tmp_path / "photos", GOOD)
    config = {
        "data": {"source": source, "name": "d", "version": None},
        "store": {"root": str(tmp_path / "root")},
        "ingest": {"workers": None, "max_pixels": 1000000, "group": "(cat|dog)"},
    }
    artifact = SimpleNamespace(path=str(tmp_path / "out" / "catalog"), metadata={})
    url = ingest_component.python_func(config=json.dumps(config), catalog=artifact)
    assert IngestReport.read(artifact.path).catalog_url == url
    assert artifact.metadata["classes.cat"] == 2
    assert set(catalog.read(url)["group"].to_pylist()) == {"cat", "dog"}


def test_the_component_compiles_without_pip(tmp_path: Path) -> None:
    path = tmp_path / "ingest.yaml"
    compiler.Compiler().compile(ingest_component, str(path))
    assert "pip install" not in path.read_text()
