"""Shards in S3: a real server, signed URLs, listings, and the same samples as from a folder."""

from __future__ import annotations

import json
import logging
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tarpon
import webdataset
from tarpon import _s3
from tarpon._names import without_secrets
from tarpon._shards import resolve
from tarpon.cli import main

from tests.loader.tars import write_tar
from tests.servers.s3 import Bucket, S3Server

FIELDS = {"image": tarpon.Raw("jpg"), "label": tarpon.Int("cls")}


@pytest.fixture
def environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    s3_server.set_environment(monkeypatch)
    _s3.S3._made.clear()
    return s3_server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five shards of twelve samples, with indexes but for the last."""
    folder = tmp_path / "v1"
    folder.mkdir()
    for number in range(5):
        members = []
        for sample in range(12):
            name = f"{number:02}{sample:03}"
            members.append((f"{name}.cls", str(sample % 3).encode()))
            members.append((f"{name}.jpg", bytes([number, sample]) * (300 + 977 * sample)))
        write_tar(folder / f"train-{number:06}.tar", members)
    tarpon.index(folder)
    (folder / "train-000004.idx").unlink()
    return folder


@pytest.fixture
def uploaded(environment: S3Server, s3_bucket: Bucket, folder: Path) -> str:
    for file in folder.iterdir():
        s3_bucket.put(f"data/v1/{file.name}", file.read_bytes())
    return f"{s3_bucket.url}/data/v1"


def stream(shards: Any, **arguments: Any) -> list[tuple[Any, ...]]:
    """Everything of two epochs, byte by byte."""
    arguments = {"batch_size": 6, "fields": FIELDS, "seed": 5} | arguments
    with tarpon.Loader(shards, **arguments) as loader:
        return [
            (tuple(b.sample_keys), b["image"].data.tobytes(), tuple(b["label"]), tuple(b.indices))
            for _ in range(2)
            for b in loader
        ]


PATTERNS = [
    "{}",
    "{}/",
    "{}/train-*.tar",
    "{}/train-00000[1-3].tar",
    "{}/train-{{000000..000004}}.tar",
    "{}/train-00000?.tar",
    "{}/**/train-*2.tar",
    "{}/train-{{000001,000003}}.tar::{}/train-000000.tar",
]


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_same_samples_as_from_a_folder(folder: Path, uploaded: str, pattern: str) -> None:
    local = tarpon.open(pattern.format(folder, folder))
    remote = tarpon.open(pattern.format(uploaded, uploaded))
    assert [Path(p).name for p in remote.shards] == [Path(p).name for p in local.shards]
    assert remote.fingerprint == local.fingerprint
    assert [remote.key(n) for n in range(len(remote))] == [local.key(n) for n in range(len(local))]
    assert remote[len(remote) - 1] == local[len(local) - 1]
    assert stream(remote) == stream(local)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"shuffle": False},
        {"window_samples": 12, "threads": 3},
        {"window_samples": "all"},
        {"rank": 1, "world_size": 2, "batch_size": 5},
        {"last": "pad", "batch_size": 7},
        {"fields": None},
        {"fields": {"label": tarpon.Int("cls"), "image": tarpon.Raw("jpg")}, "lanes": 3},
    ],
    ids=str,
)
def test_any_order_is_that_of_the_folder(
    folder: Path, uploaded: str, arguments: dict[str, Any]
) -> None:
    if arguments.get("fields", 1) is None:
        with (
            tarpon.Loader(folder, batch_size=6) as local,
            tarpon.Loader(uploaded, batch_size=6) as remote,
        ):
            for a, b in zip(local, remote, strict=True):
                assert a.sample_keys == b.sample_keys
                assert set(a) == set(b) == {"jpg", "cls"}
                assert np.array_equal(a["jpg"].data, b["jpg"].data)
        return
    assert stream(uploaded, **arguments) == stream(folder, **arguments)


def test_a_state_goes_on_from_either(folder: Path, uploaded: str) -> None:
    with tarpon.Loader(folder, batch_size=6, fields=FIELDS, seed=5) as local:
        steps = iter(local)
        for _ in range(4):
            next(steps)
        state = local.state_dict()
        rest = [tuple(batch.indices) for batch in steps]
    with tarpon.Loader(uploaded, batch_size=6, fields=FIELDS, seed=5) as remote:
        remote.load_state_dict(state)
        assert [tuple(batch.indices) for batch in remote] == rest


def test_a_shard_list_brings_counts_sizes_and_etags(
    uploaded: str, s3_bucket: Bucket, folder: Path
) -> None:
    listed = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "shardlist": [
            {"url": shard.path.rpartition("/")[2], "nsamples": 12, "filesize": shard.bytes}
            | {"etag": shard.etag}
            for shard in resolve(uploaded)
        ],
    }
    s3_bucket.put("data/v1/train.json", json.dumps(listed).encode())
    shards = resolve(f"{uploaded}/train.json")
    assert [shard.samples for shard in shards] == [12] * 5
    assert all(shard.etag and shard.is_remote and shard.url is None for shard in shards)
    assert stream(f"{uploaded}/train.json") == stream(folder)
    s3_bucket.put("data/v1/train-000002.tar", (folder / "train-000003.tar").read_bytes())
    with pytest.raises(tarpon.StoreError, match=r"train-000002\.tar: replaced"):
        stream(f"{uploaded}/train.json")


@pytest.mark.slow
@pytest.mark.parametrize(
    "key", ["sp ace+plus%25&=?#.tar", "uni-é日本.tar", "a//double.tar", "~x.tar"]
)
def test_odd_keys(uploaded: str, s3_bucket: Bucket, folder: Path, key: str) -> None:
    s3_bucket.put(f"odd/{key}", (folder / "train-000000.tar").read_bytes())
    assert (
        tarpon.open(f"{s3_bucket.url}/odd/{key}".replace("?", "[?]"))[3]
        == tarpon.open(folder / "train-000000.tar")[3]
    )


@pytest.mark.slow
def test_what_cannot_be_read_says_why(
    environment: S3Server, uploaded: str, s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(shards: str) -> str:
        _s3.S3._made.clear()
        with pytest.raises(tarpon.TarponError) as error:
            tarpon.open(shards, store=tarpon.Store(connections=len(shards)))
        assert "to-be-seen" not in str(error.value)
        assert "Signature" not in str(error.value).replace("SignatureDoesNotMatch", "")
        assert "no signed URL" not in str(error.value)
        return str(error.value)

    assert "matches no object" in refused(f"{uploaded}/val-*.tar")
    assert "without *.tar" in refused(f"{s3_bucket.url}/nothing-there")
    assert "HTTP 404 NoSuchKey" in refused(f"{uploaded}/val.json")
    assert "HTTP 404 NoSuchKey" in refused(f"{uploaded}/val-000000.tar")
    assert "no such bucket" in refused("s3://no-such-bucket-anywhere/x/")
    assert "gs:// is not supported" in refused("gs://bucket/x.tar")
    assert "names no bucket" in refused("s3:///x.json")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    assert "SignatureDoesNotMatch" in refused(f"{uploaded}/train-000000.tar")
    assert "AWS_SECRET_ACCESS_KEY" in refused(f"{uploaded}/")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "no credentials" in refused(f"{uploaded}/train-000001.tar")
    assert "no credentials" in refused(f"{uploaded}/train-*.tar")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
        assert "nobody answers" in refused(f"{uploaded}/*.tar")


def test_no_secret_anywhere(
    environment: S3Server, uploaded: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "tarpon")
    signed, until = _s3.S3.of(None).sign(f"{uploaded}/train-000000.tar")
    assert "X-Amz-Signature" in signed
    assert until > 0
    with tarpon.Loader(signed, batch_size=6, fields=FIELDS) as loader:
        next(iter(loader))
        told = [repr(loader), repr(loader.dataset), repr(loader.stats()), str(loader.state_dict())]
        told += loader.dataset.shards
    with pytest.raises(tarpon.TarponError) as error:
        tarpon.open(signed.replace("train-000000", "none-000000"))
    told += [str(error.value), repr(error.value), caplog.text, without_secrets(signed)]
    for text in told:
        assert "X-Amz" not in text, text
        assert "Signature=" not in text, text


def test_the_cache_keeps_what_was_read(
    uploaded: str, folder: Path, tmp_path: Path, s3_bucket: Bucket
) -> None:
    cache = tmp_path / "cache"
    assert stream(uploaded, cache_dir=cache) == stream(folder)
    with tarpon.Loader(uploaded, batch_size=6, fields=FIELDS, seed=5, cache_dir=cache) as loader:
        before = loader.stats()["network_bytes"]
        for _ in loader:
            pass
        found = loader.stats()
    assert found["cache_hits"] > 0
    assert found["network_bytes"] - before < 2000  # no shard, and no index


def test_prefetch_fills_it(
    uploaded: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    total = sum(file.stat().st_size for file in folder.glob("*.tar"))
    seen: list[tuple[int, int]] = []
    counted = [replace(shard, samples=12) for shard in resolve(uploaded)]
    with pytest.MonkeyPatch.context() as patch:  # so that opening reads no tar to count samples
        patch.setattr("tarpon.dataset.resolve", lambda *_: counted)
        fetched = tarpon.prefetch(uploaded, cache_dir=cache, progress=lambda *at: seen.append(at))
    assert (fetched, seen[-1]) == (total, (total, total))
    assert tarpon.prefetch(uploaded, cache_dir=cache) == 0
    assert main(["prefetch", "--cache-dir", str(tmp_path / "other"), uploaded]) == 0
    assert "MiB fetched into" in capsys.readouterr().out
    with tarpon.Loader(uploaded, batch_size=6, fields=FIELDS, cache_dir=cache) as loader:
        before = loader.stats()["network_bytes"]
        next(iter(loader))
        assert loader.stats()["network_bytes"] == before
    shutil.rmtree(cache)


def test_an_index_is_not_written_to_a_bucket(uploaded: str) -> None:
    with pytest.raises(tarpon.StoreError, match="a remote tar, expected a local one"):
        tarpon.index(uploaded)
    assert main(["index", uploaded]) == 2


def test_the_command_line_reads_buckets(
    uploaded: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ls", f"{uploaded}/train-*.tar"]) == 0
    remote = capsys.readouterr().out
    assert main(["ls", str(folder)]) == 0
    assert remote == capsys.readouterr().out


def test_buffer_bytes_holds_the_window_too(uploaded: str, tmp_path: Path) -> None:
    with tarpon.Loader(uploaded, batch_size=6, fields=FIELDS, buffer_bytes=100 << 20) as loader:
        assert sum(len(batch["label"]) for batch in loader) == 60
        assert loader.stats()["window_bytes"] <= 100 << 20
    for arguments in (
        {"buffer_bytes": 10 << 20},
        {"buffer_bytes": 100 << 20, "cache_dir": tmp_path / "cache"},
    ):
        with pytest.raises(ValueError, match=r"expected more than \d+ for the window of remote"):
            tarpon.Loader(uploaded, batch_size=6, fields=FIELDS, **arguments)


@pytest.mark.parametrize("ceiling", [None, 100 << 20])
def test_bad_samples_are_replaced_as_from_a_folder(
    folder: Path, s3_bucket: Bucket, environment: S3Server, ceiling: int | None
) -> None:
    """What was read ahead for a sample that turned out bad is let go, and the rest still comes."""
    bad = {*range(3, 60, 7), *range(20, 48)}  # single ones, and a run of more than a window
    members = [(f"{n:03}.cls", b"no" if n in bad else b"%d" % n) for n in range(60)]
    tar = write_tar(
        folder / "bad.tar", [m for m in members for m in (m, (m[0][:3] + ".jpg", b"x"))]
    )
    tarpon.index(tar)
    for file in (tar, tar.with_suffix(".idx")):
        s3_bucket.put(f"bad/{file.name}", file.read_bytes())
    arguments = {"on_bad_sample": "substitute", "buffer_bytes": ceiling, "window_samples": 20}
    remote = f"{s3_bucket.url}/bad/bad.tar"
    assert stream(remote, **arguments) == stream(tar, **arguments)
    with tarpon.Loader(remote, batch_size=6, fields=FIELDS, **arguments) as loader:
        for _ in range(3):
            for _ in loader:
                pass
        found = loader.stats()
    assert len(found["bad_samples"]) == len(bad)
    assert found["window_bytes"] <= 60 * 2 * 4096  # nothing that was skipped is held


def test_a_cache_that_is_emptied_costs_no_whole_blocks(
    uploaded: str, folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    arguments = {"batch_size": 6, "fields": FIELDS, "seed": 5, "cache_dir": cache}
    tarpon.prefetch(uploaded, cache_dir=cache)
    with tarpon.Loader(uploaded, **arguments) as loader:
        whole = [tuple(batch.sample_keys) for batch in loader]
        steps = iter(loader)
        next(steps)
        shutil.rmtree(cache, ignore_errors=True)  # while it is being used
        before = loader.stats()["network_bytes"]
        for _ in steps:
            pass
        read = loader.stats()["network_bytes"] - before
    assert whole == [one[0] for one in stream(folder)[:10]]
    assert read < 4 * sum(file.stat().st_size for file in folder.glob("*.tar"))


def test_prefetch_of_more_than_fits_is_refused(uploaded: str, tmp_path: Path) -> None:
    with pytest.raises(tarpon.StoreError, match="raise it, or prefetch fewer"):
        tarpon.prefetch(uploaded, cache_dir=tmp_path / "cache", cache_bytes=5000)


def test_opening_shards_of_a_tarwriter_reads_no_samples(
    environment: S3Server, s3_bucket: Bucket, tmp_path: Path
) -> None:
    """TarWriter puts pax headers before members, of which no index tells."""
    tar = tmp_path / "w.tar"
    with webdataset.TarWriter(str(tar)) as out:
        for number in range(12):
            out.write({"__key__": f"{number:03}", "bin": bytes(100_000), "cls": number})
    tarpon.index(tar)
    for file in (tar, tar.with_suffix(".idx")):
        s3_bucket.put(f"w/{file.name}", file.read_bytes())
    before = tarpon.open(f"{s3_bucket.url}/w/w.tar").network()["network_bytes"]
    dataset = tarpon.open(f"{s3_bucket.url}/w/w.tar")
    assert dataset.network()["network_bytes"] - before < 20_000
    assert len(dataset) == 12
    assert dataset[7] == tarpon.open(tar)[7]
