"""Our shards in other people's readers: tarfile, webdataset and DALI give back the same bytes."""

from __future__ import annotations

import gc
import json
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from components import catalog, manifest
from components.shard import run as shard
from tests.components import versions

Samples = dict[str, tuple[bytes, bytes]]  # key -> image bytes, class index as ASCII


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> shard.DatasetReport:
    return versions.published(tmp_path_factory.mktemp("interop"))


@pytest.fixture(scope="module")
def expected(dataset) -> dict[str, Samples]:
    """What the splits must hold, from the catalog and the source files alone."""
    found: dict[str, Samples] = defaultdict(dict)
    for row in catalog.read(manifest.read(dataset.dataset_url).catalog["url"]).to_pylist():
        index = str(dataset.classes.index(row["label"])).encode()
        found[row["split"]][row["sample_id"]] = (Path(row["uri"]).read_bytes(), index)
    return found


def tars(dataset: shard.DatasetReport, split: str) -> list[str]:
    shards = manifest.read_shard_list(dataset.dataset_url, split)
    assert shards
    return [f"{dataset.dataset_url}/{info.url}" for info in shards]


@pytest.mark.parametrize("split", manifest.SPLITS)
def test_tarfile(dataset, expected, split):
    members = {}
    for tar in tars(dataset, split):
        with tarfile.open(tar) as opened:
            members |= {m.name: opened.extractfile(m).read() for m in opened}
    assert len(members) == 3 * len(expected[split])
    for key, (image, index) in expected[split].items():
        assert image == members[f"{key}.jpg" if image[:2] == b"\xff\xd8" else f"{key}.png"]
        assert index == members[f"{key}.cls"]
        assert json.loads(members[f"{key}.json"])["sample_id"] == key


@pytest.mark.parametrize("split", manifest.SPLITS)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves tars open
def test_webdataset(dataset, expected, split):
    import webdataset

    samples = list(webdataset.WebDataset(tars(dataset, split), shardshuffle=False))
    found = {s["__key__"]: (s.get("jpg") or s.get("png"), s["cls"]) for s in samples}
    assert len(samples) == len(found)
    assert found == expected[split]
    assert all(json.loads(s["json"])["sample_id"] == s["__key__"] for s in samples)
    gc.collect()


def test_dali_reads_by_our_index(dataset, expected):
    dali = pytest.importorskip("nvidia.dali", reason="DALI is an extra")
    from nvidia.dali import fn

    paths = tars(dataset, "train")
    count = len(expected["train"])

    @dali.pipeline_def(
        batch_size=count,
        num_threads=1,
        device_id=None,
        prefetch_queue_depth=1,
    )
    def pipeline():
        return tuple(
            fn.readers.webdataset(
                paths=paths,
                index_paths=[path.removesuffix(".tar") + ".idx" for path in paths],
                ext=["jpg;png", "cls", "json"],
                missing_component_behavior="error",
                dtypes=[dali.types.UINT8] * 3,
            )
        )

    built = pipeline()
    built.build()
    columns = built.run()
    rows = [[np.array(column.at(i)).tobytes() for column in columns] for i in range(count)]
    found = {json.loads(meta)["sample_id"]: (image, index) for image, index, meta in rows}
    assert found == expected["train"]


@pytest.mark.parametrize("split", manifest.SPLITS)
def test_tarpon_reads_the_shard_list_and_agrees_on_the_index(dataset, expected, split, tmp_path):
    tarpon = pytest.importorskip("tarpon", reason="the loader is not built")
    opened = tarpon.open(f"{dataset.dataset_url}/{split}.json")
    found = {}
    for position in range(len(opened)):
        sample = opened[position]
        image = sample["jpg"] if "jpg" in sample else sample["png"]
        found[opened.key(position)] = (bytes(image), bytes(sample["cls"]))
    assert found == expected[split]
    for tar in tars(dataset, split):
        copy = tmp_path / Path(tar).name
        copy.write_bytes(Path(tar).read_bytes())
        tarpon.index(str(copy))
        assert copy.with_suffix(".idx").read_bytes() == Path(tar).with_suffix(".idx").read_bytes()
