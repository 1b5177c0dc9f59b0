"""Every field that is not an image, and what a batch is."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tarpon

from tests.loader.tars import samples, write_tar


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    members = []
    for i in range(6):
        members += [
            (f"dir.v1/s{i}.txt", f"Grüße {i}".encode()),
            (f"dir.v1/s{i}.score", f"{i / 4}\n".encode()),
            (f"dir.v1/s{i}.JSON", json.dumps({"i": i}).encode()),
            (f"dir.v1/s{i}.seg.npy", npy(np.full((i, 2), i, np.float32))),
            (f"dir.v1/s{i}.bin", bytes(range(i))),
        ]
    return write_tar(tmp_path / "mixed.tar", members)


def test_each_field(mixed: Path) -> None:
    fields = {
        "text": tarpon.Text("txt"),
        "score": tarpon.Float("score"),
        "meta": tarpon.Json("json"),
        "array": tarpon.Npy("npy;seg.npy"),
        "raw": tarpon.Raw("bin"),
    }
    with tarpon.Loader(mixed, batch_size=6, fields=fields, shuffle=False) as loader:
        batch = next(iter(loader))
    assert batch["text"] == [f"Grüße {i}" for i in range(6)]
    assert batch["score"].dtype == np.float64
    assert batch["score"].tolist() == [i / 4 for i in range(6)]
    assert batch["meta"] == [{"i": i} for i in range(6)]
    assert [array.shape for array in batch["array"]] == [(i, 2) for i in range(6)]
    assert [bytes(view) for view in batch["raw"]] == [bytes(range(i)) for i in range(6)]
    assert batch["raw"].offsets.tolist() == [0, 0, 1, 3, 6, 10, 15]
    assert bytes(batch["raw"][-1]) == bytes(range(5))
    assert batch.sample_keys[2] == "dir.v1/s2"
    with pytest.raises(IndexError):
        batch["raw"][6]
    with pytest.raises(KeyError, match=r"no field 'image'; this batch has \['array'"):
        batch["image"]


def test_without_fields_every_component_comes_as_bytes(mixed: Path) -> None:
    with tarpon.Loader(mixed, batch_size=2, shuffle=False) as loader:
        batch = next(iter(loader))
    assert sorted(batch) == ["bin", "json", "score", "seg.npy", "txt"]
    assert bytes(batch["txt"][1]) == "Grüße 1".encode()


@pytest.mark.parametrize(
    ("field", "data", "message"),
    [
        (tarpon.Float("x"), b"one", "expected a number"),
        (tarpon.Text("x"), b"\xff", "expected UTF-8 text"),
        (tarpon.Json("x"), b"{", "expected a JSON document"),
        (tarpon.Npy("x"), b"\x93NUMPY", "expected a .npy array"),
        (tarpon.Npy("x"), npy(np.array([None], object)), "expected a .npy array"),
        (tarpon.Npy("x"), npy(np.zeros(9))[:-1], "71 bytes for"),
        (tarpon.Npy("x"), npy(np.zeros(9)).replace(b"(9,)", b"(9, "), "expected a .npy array"),
        (tarpon.Npy("x"), npy(np.zeros(9)).replace(b"(9,), }   ", b"(99999,), }"), "of float64"),
        (tarpon.Npy("x"), b"PK\x03\x04" + bytes(60), "expected a .npy array"),
        (tarpon.Float("x"), b"1_0", "expected a number"),
        (tarpon.Json("x"), b"[" * 100_000, "expected a JSON document"),
        (
            tarpon.Image("x"),
            b"not an image",
            "of no kind that is read, expected an image: JPEG",
        ),
        (tarpon.Image("x"), b"GIF89a", "expected an image"),
        (tarpon.Image("x"), b"\xff\xd8\xff\xe0junk", "x"),
        (tarpon.CenterCrop(8, ext="x"), b"\x89PNG\r\n\x1a\n", "expected an image"),
    ],
)
def test_what_cannot_be_made(
    field: tarpon.fields.Field, data: bytes, message: str, tmp_path: Path
) -> None:
    tar = write_tar(tmp_path / "x.tar", [("k.x", data)])
    with (
        tarpon.Loader(tar, batch_size=1, fields={"f": field}) as loader,
        pytest.raises(tarpon.BadSampleError, match=message) as caught,
    ):
        next(iter(loader))
    assert (caught.value.key, caught.value.offset) == ("k", 512)


def test_random_access(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(range(4)))
    write_tar(tmp_path / "b.tar", samples(range(4, 7)))
    dataset = tarpon.open([tmp_path / "a.tar", tmp_path / "b.tar"])
    assert len(dataset) == 7
    assert [dataset.key(i) for i in range(7)] == [f"{i:05d}" for i in range(7)]
    assert dict(dataset[5]) == {name.split(".")[1]: data for name, data in samples([5])}
    assert dataset[-1] == dataset[6]
    assert [list(sample) for sample in dataset[4:6]] == [["cls", "jpg"]] * 2
    assert dataset.shards == [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    with pytest.raises(IndexError):
        dataset[7]
    assert dataset.fingerprint == tarpon.open(str(tmp_path / "{a,b}.tar")).fingerprint
    assert dataset.fingerprint != tarpon.open(tmp_path / "a.tar").fingerprint


@pytest.mark.parametrize("spelling", ["{0..2}", "{0,1,2}", "*", "?"])
def test_ways_to_name_shards(spelling: str, tmp_path: Path) -> None:
    for i in range(3):
        write_tar(tmp_path / f"t-00000{i}.tar", samples([i]))
    expected = [str(tmp_path / f"t-00000{i}.tar") for i in range(3)]
    assert tarpon.open(f"{tmp_path}/t-00000{spelling}.tar").shards == expected
    assert tarpon.open(f"{tmp_path}/t-{{000000..000002}}.tar").shards == expected
    assert tarpon.open(tmp_path).shards == expected
    assert tarpon.open("::".join(expected)).shards == expected
    assert tarpon.open(f"file://{expected[0]}").shards == expected[:1]
