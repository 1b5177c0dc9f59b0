"""A version on S3: the same bytes as in a folder, with ETags, few requests and one publisher."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from components import manifest, s3
from components.shard import run
from components.store import ConflictError, Store
from tests.components import versions
from tests.servers.s3 import Bucket, S3Server


@pytest.fixture
def bucket(s3_environment: S3Server) -> Bucket:
    return s3_environment.bucket()


def how(root: str, **options: Any) -> dict[str, Any]:
    return {"root": root, "name": "photos", "max_bytes": versions.MAX_BYTES} | options


def test_a_version_on_s3_holds_the_bytes_of_one_in_a_folder(bucket: Bucket, tmp_path: Path) -> None:
    url = versions.split_catalog(tmp_path)
    here = run.shard(url, **how(str(tmp_path / "store"), version="v"))
    there = run.shard(url, **how(f"{bucket.url}/store", version="v"))
    assert there.digest == here.digest
    assert there.dataset_url == f"{bucket.url}/store/photos/v"
    local, remote = Store(here.dataset_url), Store(there.dataset_url)
    assert local.list() == remote.list()
    lists = [f"{split}.json" for split in manifest.SPLITS]
    entries = remote.entries()
    for name in local.list():
        mine, other = local.read_bytes(name), remote.read_bytes(name)
        if name in lists:
            told = json.loads(other)
            for shard in told["shardlist"]:
                assert shard.pop("etag") == entries[shard["url"]].etag
            assert told == json.loads(mine)
        elif name not in ("dataset.json", ".parts/plan.json"):
            assert other == mine, name
    assert manifest.read(there.dataset_url).name == "photos"
    again = run.shard(url, **how(f"{bucket.url}/store", version="v"))
    assert again == there
    assert remote.entries() == entries  # nothing was written again


def test_sealing_asks_for_no_tar(bucket: Bucket, tmp_path: Path) -> None:
    made = run.plan(versions.split_catalog(tmp_path), **how(bucket.url, version="v"))
    parts = [run.pack(job) for job in made.jobs]
    asked: Counter[str] = Counter()

    def note(model: Any, params: dict[str, Any], **_: Any) -> None:
        asked[f"{model.name} {params['url_path'].rpartition('.')[2]}"] += 1

    s3.client().meta.events.register("before-call.s3", note)
    try:
        run.seal(made.dataset_url, parts)
    finally:
        s3.client().meta.events.unregister("before-call.s3", note)
    assert made.shards > 4
    assert not [name for name in asked if name.endswith(("tar", "idx"))]
    assert sum(count for name, count in asked.items() if name.startswith("ListObjectsV2")) == 1


def test_of_two_plans_for_one_version_the_first_stops_before_it_touches_a_tar(
    bucket: Bucket, tmp_path: Path
) -> None:
    url = versions.split_catalog(tmp_path)
    first = run.plan(url, **how(bucket.url, version="v"))
    second = run.plan(url, **how(bucket.url, version="v", max_bytes=20480))
    with pytest.raises(run.ShardError, match=r"photos/v/\.parts/plan\.json: holds the plan .*data"):
        run.pack(first.jobs[0])
    assert not [name for name in Store(bucket.url).list() if name.endswith(".tar")]
    run.seal(second.dataset_url, [run.pack(job) for job in second.jobs])
    run.verify(second.dataset_url)
    run.publish(second.dataset_url, config={})
    with pytest.raises(run.ShardError, match=r"photos/v: already published"):
        run.plan(url, **how(bucket.url, version="v"))


def test_a_published_manifest_is_not_overwritten(bucket: Bucket, tmp_path: Path) -> None:
    done = run.shard(versions.split_catalog(tmp_path), **how(bucket.url, version="v"))
    found = manifest.read(done.dataset_url)
    manifest.write(found)
    other = manifest.Manifest(
        **{name: getattr(found, name) for name in manifest.Manifest.__slots__}
        | {"digest": "0" * 64}
    )
    with pytest.raises(ConflictError, match=r"photos/v/dataset\.json: another run"):
        manifest.write(other)
    assert manifest.read(done.dataset_url) == found
    Store(done.dataset_url).write_bytes("dataset.json", b"damaged")
    manifest.write(found)
    assert manifest.read(done.dataset_url) == found


def test_a_damaged_tar_on_s3_is_named_with_its_byte(bucket: Bucket, tmp_path: Path) -> None:
    done = run.shard(versions.split_catalog(tmp_path), **how(bucket.url, version="v"))
    key = "photos/v/train-000000.tar"
    data = bytearray(bucket.get(key))
    data[len(data) // 2] ^= 1
    bucket.put(key, bytes(data))
    with pytest.raises(run.CorruptShardError, match="not the tar that was sealed") as caught:
        run.verify(done.dataset_url)
    assert caught.value.shard == f"{bucket.url}/{key}"
    bucket.put(key, bytes(data[:20_000]))
    with pytest.raises(run.CorruptShardError, match="found 20000 bytes"):
        run.verify(done.dataset_url)
