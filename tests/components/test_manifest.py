"""The manifest: a version exists when it has one, and its digest names its content."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from components import manifest
from components.manifest import Manifest, ManifestError, ShardInfo, SplitInfo


def example(url: Path, **values) -> Manifest:
    info = SplitInfo(samples=2, bytes=10240, shards=1, classes={"cat": 1, "dog": 1})
    none = SplitInfo(samples=0, bytes=0, shards=0, classes={"cat": 0, "dog": 0})
    base = {
        "url": str(url),
        "name": "pets",
        "version": "v1",
        "parent": None,
        "classes": ["cat", "dog"],
        "splits": {"train": info, "val": none, "test": none},
        "catalog": {"id": "ab" * 8, "url": "/store/pets/catalog/abab/part-00000.parquet"},
        "config": {"split": {"fractions": [1, 0, 0]}},
        "code": "0.1.0",
        "digest": "00" * 32,
    }
    return Manifest(**(base | values))


def test_round_trip_and_the_file_can_move(tmp_path):
    manifest.write(example(tmp_path / "pets/v1"))
    read = manifest.read(str(tmp_path / "pets/v1"))
    assert read == example(tmp_path / "pets/v1")
    assert str(tmp_path) not in (tmp_path / "pets/v1/dataset.json").read_text()
    (tmp_path / "pets").rename(tmp_path / "animals")
    assert manifest.read(f"{tmp_path}/animals/v1/").url == str(tmp_path / "animals/v1")


def test_shards_url_names_the_splits_there_are(tmp_path):
    made = example(tmp_path / "pets/v1")
    assert made.shards_url("train") == str(tmp_path / "pets/v1/train.json")
    for absent in ("val", "training"):
        with pytest.raises(ManifestError, match=r"no samples in split .* one of \['train'\]"):
            made.shards_url(absent)


def test_a_version_without_a_manifest_does_not_exist(tmp_path):
    (tmp_path / "pets/v1").mkdir(parents=True)
    (tmp_path / "pets/v1/train.json").write_text("{}")
    assert not manifest.exists(str(tmp_path / "pets/v1"))
    with pytest.raises(ManifestError, match=r"no dataset\.json.*until=shard"):
        manifest.read(str(tmp_path / "pets/v1"))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"splits": {"train": {"samples": 1}}}'])
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ManifestError) as error:
        manifest.read(str(tmp_path))
    assert str(tmp_path / "dataset.json") in str(error.value)


def test_digest_is_of_the_sorted_lines():
    lines = [("val", "b", "dog"), ("train", "a", "black cat")]
    text = "train\ta\tblack cat\nval\tb\tdog\n"
    assert manifest.digest(lines) == hashlib.sha256(text.encode()).hexdigest()
    assert manifest.digest(reversed(lines)) == manifest.digest(lines)
    moved = [("test", "b", "dog"), ("train", "a", "black cat")]
    assert manifest.digest(moved) != manifest.digest(lines)


def test_a_label_that_would_blur_the_digest_is_refused():
    with pytest.raises(ManifestError, match="'a\\\\tb' holds a tab"):
        manifest.digest([("train", "00", "a\tb")])


def test_shard_list_is_a_wids_index(tmp_path):
    shard = ShardInfo(url="train-000000.tar", nsamples=1, filesize=2, md5sum="3", sha256="4")
    data = manifest.shard_list([shard])
    values = json.loads(data)
    assert values["__kind__"] == "wids-shard-index-v1"
    assert values["wids_version"] == 1
    assert values["shardlist"][0]["url"] == "train-000000.tar"
    (tmp_path / "train.json").write_bytes(data)
    assert manifest.read_shard_list(str(tmp_path), "train") == [shard]


def test_a_missing_or_foreign_shard_list_is_named(tmp_path):
    with pytest.raises(ManifestError, match=r"train\.json: no such shard list"):
        manifest.read_shard_list(str(tmp_path), "train")
    (tmp_path / "train.json").write_text('{"shardlist": [{"url": "a.tar", "nsamples": 1}]}')
    with pytest.raises(ManifestError, match="not a shard list of ours"):
        manifest.read_shard_list(str(tmp_path), "train")
