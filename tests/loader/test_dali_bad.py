"""Images that DALI cannot decode: found before it, or by it; named, replaced, and never the end."""

from __future__ import annotations

import logging
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tarpon
import torch
from PIL import Image
from tarpon import _dali

from tests.loader.tars import photo, samples, write_tar

pytest.importorskip("nvidia.dali")
from tarpon.dali import ImagePipeline

FIELDS = {"jpg": tarpon.Raw("jpg"), "cls": tarpon.Int("cls")}
PNG = photo(1, format="PNG")


def without_tables(jpeg: bytes) -> bytes:
    """The file without its quantisation tables: its header and its end are in order."""
    at = jpeg.index(b"\xff\xdb")
    while jpeg[at : at + 2] == b"\xff\xdb":
        jpeg = jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4]) :]
    return jpeg


BROKEN = {  # by kind: the bytes, what is said, and whether only DALI finds out
    "truncated": (photo(7)[:-200], "Premature end of JPEG file", False),
    "header": (photo(7)[:300], "ends before its first scan; it is truncated", False),
    "huge": (photo(7).replace(b"\x00\x11\x08\x00", b"\x00\x11\x08\xff", 1), "pixels", False),
    "empty": (b"", "zero bytes, expected an image", False),
    "words": (b"hello" * 100, "of no kind that is read, expected an image", False),
    "gif": (photo(7, format="GIF"), "of kind GIF, expected one that DALI decodes: JPEG", False),
    "png": (PNG[: len(PNG) // 2], "image file is truncated", False),
    "tables": (
        without_tables(photo(7)),
        "DALI does not decode it, .* expected a whole image",
        True,
    ),
}


def shard(folder: Path, broken: dict[int, bytes], count: int = 40) -> Path:
    members = dict(samples(range(count)))
    members |= {f"{index:05d}.jpg": data for index, data in broken.items()}
    return write_tar(folder / "train-000000.tar", members.items())


def pipeline(tar: Path, *, train: bool = False, crops: str = "dali", **told: Any) -> ImagePipeline:
    loader = tarpon.Loader(
        tar, **({"batch_size": 8, "fields": FIELDS, "shuffle": False, "last": "pad"} | told)
    )
    return ImagePipeline(loader, device="cpu", size=16, train=train, crops=crops, num_threads=2)


@pytest.mark.parametrize("kind", BROKEN)
def test_raise_names_the_sample_after_the_good_batches(tmp_path: Path, kind: str) -> None:
    data, reason, _ = BROKEN[kind]
    tar = shard(tmp_path, {19: data})
    with pipeline(tar) as fed:
        epoch = iter(fed)
        assert [next(epoch)["indices"][0].item() for _ in range(2)] == [0, 8]
        state = fed.state_dict()
        with pytest.raises(tarpon.BadSampleError, match=reason) as caught:
            next(epoch)
        assert fed.state_dict() == state  # the broken batch was not handed over
        assert (caught.value.shard, caught.value.key) == (str(tar), "00019")
        assert str(caught.value).startswith(f"{tar}, sample 00019 at byte {caught.value.offset}: ")
        fed.set_epoch(1)
        assert next(iter(fed))["indices"].tolist() == [*range(8)]


def test_who_moves_on_before_a_broken_batch_does_not_hear_of_it(tmp_path: Path) -> None:
    with pipeline(shard(tmp_path, {19: b""})) as fed:
        epoch = iter(fed)
        next(epoch)
        next(epoch)
        fed.set_epoch(1)
        assert next(iter(fed))["indices"].tolist() == [*range(8)]


def test_dali_is_stopped_though_the_error_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback holds the pipeline; its threads must not read memory that went back."""
    pipes, built = [], ImagePipeline._built

    def keep(fed: ImagePipeline) -> Any:
        pipe = built(fed)
        pipes.append(weakref.ref(pipe))
        return pipe

    monkeypatch.setattr(ImagePipeline, "_built", keep)
    with pipeline(shard(tmp_path, {3: BROKEN["tables"][0]})) as fed:
        with pytest.raises(tarpon.BadSampleError) as caught:
            next(iter(fed))
        kept = [pipe() for pipe in pipes]
        assert [pipe._pipe for pipe in kept if pipe is not None] == [None]
        assert "00003" in str(caught.value)


def test_no_image_is_blamed_where_dali_fails_on_every_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def run(self, *_: Any) -> Any:
            raise RuntimeError("out of memory")

    with pipeline(shard(tmp_path, {}), on_bad_sample="substitute") as fed:
        first = next(iter(fed))["indices"]
        for name in ("graph", "decoding"):
            monkeypatch.setattr(f"tarpon.dali.{name}", Full)
        monkeypatch.setattr(fed._pipe, "share_outputs", Full().run)
        with pytest.raises(RuntimeError, match="out of memory"):
            next(iter(fed))
        assert fed.stats()["bad_samples"] == []
        monkeypatch.undo()
        assert next(iter(fed))["indices"][0] == len(first)


@pytest.mark.parametrize("only_dali", [False, True])
def test_substitute_is_the_loaders(
    tmp_path: Path, only_dali: bool, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = [data for data, _, late in BROKEN.values() if late == only_dali]
    broken = dict(zip((9, 10, 19, 20, 30, 39), kinds * 6, strict=False))
    tar = shard(tmp_path, broken)
    caplog.set_level(logging.WARNING, "tarpon")
    with pipeline(tar, on_bad_sample="substitute", shuffle=True, seed=4) as fed:
        found = [[batch["indices"].tolist() for batch in fed] for _ in range(2)]
        named = {bad["key"] for bad in fed.stats()["bad_samples"]}
    assert named == {f"{index:05d}" for index in broken}
    assert len([line for line in caplog.messages if "replaced by the next good" in line]) == 6

    # What a Loader does of itself, once it knows the same samples as bad.
    missing = dict(samples(range(40)))
    for index in broken:
        del missing[f"{index:05d}.jpg"]
    write_tar(tar, missing.items())
    with tarpon.Loader(
        tar, batch_size=8, fields=FIELDS, last="pad", on_bad_sample="substitute", seed=4
    ) as loader:
        expected = [[batch.indices.tolist() for batch in loader] for _ in range(2)]
    assert found == expected


def test_pixels_beside_a_broken_image_are_those_without_it(tmp_path: Path) -> None:
    tar = shard(tmp_path, {})
    with pipeline(tar) as fed:
        whole = {
            index: image
            for batch in fed
            for index, image in zip(batch["indices"].tolist(), batch["image"], strict=True)
        }
    shard(tmp_path, {19: BROKEN["png"][0], 21: BROKEN["tables"][0], 33: BROKEN["gif"][0]})
    with pipeline(tar, on_bad_sample="substitute") as fed:
        batches = list(fed)
    seen = [
        (index, image)
        for batch in batches
        for index, image in zip(batch["indices"].tolist(), batch["image"], strict=True)
    ]
    assert len(seen) == 40
    assert {index for index, _ in seen} == set(range(40)) - {19, 21, 33}
    assert all(torch.equal(image, whole[index]) for index, image in seen)


def test_with_no_good_sample_left_it_ends(tmp_path: Path) -> None:
    tar = shard(tmp_path, dict.fromkeys(range(9), BROKEN["tables"][0]), count=9)
    with (
        pipeline(tar, on_bad_sample="substitute") as fed,
        pytest.raises(tarpon.BadSampleError, match="all 9 samples are bad"),
    ):
        list(fed)


def test_failures_that_no_image_is_to_blame_for_are_dalis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows outside of the images, which DALI refuses; images are whole."""
    tar = shard(tmp_path, {})
    far = np.full((8, 4), 10_000, np.int32), np.zeros(8, np.int32)
    with pipeline(tar, train=True, crops="tarpon") as fed:
        first = next(iter(fed))["image"]
        fed.set_epoch(0)
        with monkeypatch.context() as patch:
            patch.setattr(_dali, "random_windows", lambda *_, **__: far)
            with pytest.raises(RuntimeError, match="pipeline"):
                next(iter(fed))
        fed.set_epoch(0)
        assert torch.equal(next(iter(fed))["image"], first)


def test_a_shard_that_is_cut_comes_after_the_good_batches(tmp_path: Path) -> None:
    tar = shard(tmp_path, {})
    with pipeline(tar) as fed:
        epoch = iter(fed)
        next(epoch)
        tar.write_bytes(tar.read_bytes()[:2048])
        with pytest.raises((tarpon.StoreError, tarpon.CorruptShardError), match=tar.name):
            list(epoch)
        assert fed.state_dict()["epoch"] == 0
        assert 8 <= fed.state_dict()["position"] < 40


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return b"Exif\0\0" + tags.tobytes().removeprefix(b"Exif\0\0")


def strip(segments: list[bytes]) -> bytes:
    jpeg = photo(0, size=(400, 40))
    head = b"".join(b"\xff\xe1" + (len(it) + 2).to_bytes(2) + it for it in segments)
    return jpeg[:2] + head + jpeg[2:]


XMP = b'http://ns.adobe.com/xap/1.0/\0<r tiff:Orientation="6"/>'


@pytest.mark.parametrize(
    "segments",
    [[exif(6)], [XMP], [b"Exif\0\0" + exif(6)], [exif(6), exif(1)]],
    ids=["exif", "xmp", "doubled", "twice"],
)
def test_windows_fit_however_an_orientation_is_written(
    tmp_path: Path, segments: list[bytes]
) -> None:
    """On a strip, a window of a size turned the wrong way would lie outside."""
    tar = shard(tmp_path, dict.fromkeys(range(40), strip(segments)))
    with pipeline(tar, train=True, crops="tarpon") as fed:
        for batch in fed:
            assert (batch["image"].flatten(1).std(1) > 1).all()
        assert fed.stats()["bad_samples"] == []


def test_what_dali_decodes_but_cannot_cut_is_a_bad_sample(tmp_path: Path) -> None:
    """Two Exif tags, of which the first is plain: DALI's slices of it fail, wherever they lie."""
    tar = shard(tmp_path, {19: strip([exif(1), exif(6)])})
    with pipeline(tar, train=True, crops="tarpon", on_bad_sample="substitute") as fed:
        seen = [index for batch in fed for index in batch["indices"].tolist()]
        assert sorted(seen) == sorted([*range(19), *range(20, 40), 20])
        assert [bad["key"] for bad in fed.stats()["bad_samples"]] == ["00019"]
