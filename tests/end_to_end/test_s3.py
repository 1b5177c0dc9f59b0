"""The whole pipeline with everything on S3, by the command a person types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.ingest import sample_photos
from components.store import Store
from tests.servers.s3 import S3Server

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(folder: Path, *overrides: str, until: str = "shard") -> dict[str, str]:
    """The first word of each line of the summary, and the rest of it."""
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", f"until={until}", "shard.partitions=2", *overrides],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def test_photographs_on_s3_become_the_version_they_become_in_a_folder(
    tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sample_photos.main([str(tmp_path / "photos"), "--count", "40"]) == 0
    bucket = s3_server.bucket()
    s3_server.set_environment(monkeypatch)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")  # the config alone says where
    photos = Store(tmp_path / "photos")
    for name in photos.list():
        bucket.put(f"photos/{name}", photos.read_bytes(name))

    here = run(tmp_path, "data.source=photos")
    where = [f"store.root={bucket.url}/data", f"store.endpoint={s3_server.endpoint}"]
    short = ["train.epochs=1", "train.batch_size=8", "train.image_size=32"]
    there = run(tmp_path, f"data.source={bucket.url}/photos", *where, *short, until="register")
    assert here["digest"] == there["digest"]
    assert there["dataset"].startswith(f"{bucket.url}/data/photos/v")
    assert there["model"].startswith("photos version 1")

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    local, remote = Store(here["dataset"]), Store(there["dataset"])
    tars = [name for name in local.list() if name.endswith(".tar")]
    assert len(tars) >= 3
    for name in tars:
        assert local.read_bytes(name) == remote.read_bytes(name)
    (shard, *_) = json.loads(remote.read_bytes("train.json"))["shardlist"]
    assert shard["etag"] == remote.stat(shard["url"]).etag
    assert not any(s3_server.secret_key.encode() in file for file in everything(tmp_path))
    assert s3_server.endpoint not in remote.read_bytes("dataset.json").decode()


def everything(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
