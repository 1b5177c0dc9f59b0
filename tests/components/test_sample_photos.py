"""The sample photographs: seeded bytes, the promised varieties, and no foreign file touched."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from components.ingest import sample_photos
from components.ingest.sample_photos import MARKER, SamplePhotosError

TWO = ["cat", "coffee"]


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_and_another_others(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        sample_photos.make(str(tmp_path / name), count=8, seed=seed, classes=TWO)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert set(a) == set(c)
    assert all(a[f"cat/cat-{k:05d}.jpg"] != c[f"cat/cat-{k:05d}.jpg"] for k in range(4))


def test_default_classes_are_at_least_six_and_evenly_filled(tmp_path: Path) -> None:
    made = sample_photos.make(str(tmp_path / "p"), count=20)
    assert len(made.photos) >= 6
    assert sum(made.photos.values()) == 20
    assert max(made.photos.values()) - min(made.photos.values()) <= 1
    for name, count in made.photos.items():
        assert len(list((tmp_path / "p" / name).glob(f"{name}-0*.jpg"))) == count


def test_pictures_are_jpegs_of_the_promised_varieties(tmp_path: Path) -> None:
    kinds = {"L": 0, "CMYK": 0, "RGB": 0, "progressive": 0, "rotated": 0}
    for index in range(60):
        with Image.open(io.BytesIO(sample_photos.picture("rocket", seed=0, index=index))) as image:
            assert image.format == "JPEG"
            kinds[image.mode] += 1
            kinds["progressive"] += "progressive" in image.info
            kinds["rotated"] += image.getexif().get(0x0112, 1) != 1
            width, height = ImageOps.exif_transpose(image).size
            assert 360 <= width <= 640
            assert 280 <= height <= 520
    assert all(kinds.values()), kinds
    assert kinds["RGB"] > 45


@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_rotation_shows_the_picture_upright(orientation: int) -> None:
    upright = Image.radial_gradient("L").crop((0, 30, 200, 180))
    stored = upright.transpose(sample_photos._UNROTATE[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=exif)
    with Image.open(buffer) as image:
        assert ImageOps.exif_transpose(image).tobytes() == upright.tobytes()


def test_extras_are_what_they_claim(tmp_path: Path) -> None:
    made = sample_photos.make(str(tmp_path / "p"), count=24)
    found = digests(tmp_path / "p")
    files = {Path(path).name: tmp_path / "p" / path for path in found}
    assert made.extras["exact copy"] >= 2
    assert len(set(found.values())) < len(found)
    assert files["broken-empty.jpg"].stat().st_size == 0
    assert files["broken-text.jpg"].read_text().startswith("a note")
    with Image.open(files["misnamed-png.jpg"]) as image:
        assert image.format == "PNG"
        image.load()
    for name in ("broken-cut-short.jpg", "broken-cut-late.jpg"):
        with Image.open(files[name]) as image, pytest.raises(OSError, match="truncated"):
            image.load()


def test_a_second_run_writes_nothing_and_a_changed_wish_replaces(tmp_path: Path) -> None:
    out = tmp_path / "p"
    assert sample_photos.make(str(out), count=12, classes=TWO).fresh
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert not sample_photos.make(str(out), count=12, classes=TWO).fresh
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    sample_photos.make(str(out), count=4, classes=["cat", "rocket"])
    assert not (out / "coffee").exists()
    assert len(list((out / "cat").glob("cat-0*.jpg"))) == 2


def test_an_interrupted_run_is_completed(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    sample_photos.make(str(whole), count=6, classes=TWO)
    sample_photos.make(str(broken), count=6, classes=TWO)
    (broken / "cat" / "cat-00001.jpg").unlink()
    assert sample_photos.make(str(broken), count=6, classes=TWO).fresh
    assert digests(broken) == digests(whole)


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(SamplePhotosError, match="not empty and not made by this command"):
        sample_photos.make(str(tmp_path), count=16)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_users_own_file_survives_a_new_run(tmp_path: Path) -> None:
    sample_photos.make(str(tmp_path / "p"), count=4, classes=TWO)
    (tmp_path / "p" / "cat" / "mine.jpg").write_bytes(b"precious")
    sample_photos.make(str(tmp_path / "p"), count=4, seed=1, classes=["coffee", "rocket"])
    assert (tmp_path / "p" / "cat" / "mine.jpg").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "3"], "--count: found 3, expected at least 16"),
        (["--classes", "cat", "unicorn"], "--classes: found .*unicorn.*expected two or more"),
        (["--classes", "cat"], "expected two or more"),
    ],
)
def test_bad_arguments_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert sample_photos.main([str(tmp_path / "p"), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error)
    assert not (tmp_path / "p").exists()


def test_the_command_prints_what_it_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample_photos.main([str(tmp_path / "p"), "--count", "16", "--seed", "5"]) == 0
    shown = capsys.readouterr().out
    assert "photos: 16 (" in shown
    assert "truncated" in shown
    assert (tmp_path / "p" / MARKER).is_file()
