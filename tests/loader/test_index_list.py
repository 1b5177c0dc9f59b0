"""`tarpon index --list` and `tarpon verify` of tars on real servers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import tarpon
from tarpon.cli import main

from tests.loader.tars import samples, write_tar
from tests.servers.fixtures import WebServers
from tests.servers.s3 import Bucket, S3Server

FIELDS = {"label": tarpon.Int("cls"), "image": tarpon.Raw("jpg")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of nine samples, without indexes."""
    folder = tmp_path / "own"
    folder.mkdir()
    for number in range(3):
        write_tar(folder / f"s-{number}.tar", samples(range(9 * number, 9 * number + 9)))
    return folder


@pytest.fixture
def uploaded(s3_environment: S3Server, s3_bucket: Bucket, folder: Path) -> str:
    """The same in a bucket, the last one without an index."""
    tarpon.index(folder)
    for file in folder.iterdir():
        if file.name != "s-2.idx":
            s3_bucket.put(f"own/{file.name}", file.read_bytes())
    return f"{s3_bucket.url}/own"


def listed(path: Path) -> list[dict[str, Any]]:
    shards: list[dict[str, Any]] = json.loads(path.read_text())["shardlist"]
    return shards


def labels(shards: str | Path) -> list[tuple[int, bytes]]:
    arguments = {"batch_size": 9, "fields": FIELDS, "seed": 3}
    with tarpon.Loader(shards, **arguments) as loader:  # type: ignore[arg-type]
        return [
            (int(label), bytes(batch["image"][at]))
            for batch in loader
            for at, label in enumerate(batch["label"])
        ]


def faults(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    capsys.readouterr()
    status = main(["verify", "--json", *arguments])
    found = [json.loads(line)["faults"] for line in capsys.readouterr().out.splitlines()]
    assert status == int(any(found))
    return found


def test_a_list_of_local_tars(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "train.json"
    elsewhere = write_tar(folder.parent / "x.tar", samples([50, 51]))
    assert main(["index", "--json", "--list", str(path), str(folder), str(elsewhere)]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["shards"], report["samples"]) == (4, 29)
    tars = [*sorted(folder.glob("*.tar")), elsewhere]
    assert listed(path) == [
        {"url": url, "nsamples": count, "filesize": tar.stat().st_size}
        for tar, url, count in zip(
            tars, ["s-0.tar", "s-1.tar", "s-2.tar", str(elsewhere)], [9, 9, 9, 2], strict=True
        )
    ]
    assert report["bytes"] == sum(tar.stat().st_size for tar in tars)
    assert all(tar.with_suffix(".idx").exists() for tar in tars)
    assert len(tarpon.open(path)) == 29
    assert faults(capsys, str(path)) == [[], [], [], []]
    moved = folder.rename(folder.parent / "moved")  # what lies beside the list moves with it
    assert len(labels(moved / "train.json")) == 27
    assert [file.name for file in moved.iterdir() if file.name.startswith(".")] == []


def test_names_that_look_like_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pipe:a.tar", "b\udcff.tar"):
        write_tar(tmp_path / name, samples([1, 2]))
    assert main(["index", "--list", "train.json", "."]) == 0
    assert len(tarpon.open("train.json")) == 4
    assert tarpon.open("train.json")[3]["cls"] == b"2"


def test_a_list_is_counted_anew(folder: Path) -> None:
    old, new = folder / "old.json", folder / "new.json"
    assert main(["index", "--list", str(old), str(folder)]) == 0
    write_tar(folder / "s-1.tar", samples(range(4)))
    assert main(["index", "--force", "--list", str(new), str(old)]) == 0
    assert [shard["nsamples"] for shard in listed(new)] == [9, 4, 9]


def test_a_list_of_a_bucket(uploaded: str, folder: Path, tmp_path: Path, s3_bucket: Bucket) -> None:
    path = tmp_path / "train.json"
    assert main(["index", "--list", str(path), uploaded]) == 0
    assert [shard["url"] for shard in listed(path)] == [f"{uploaded}/s-{n}.tar" for n in range(3)]
    assert [shard["nsamples"] for shard in listed(path)] == [9, 9, 9]
    for shard, tar in zip(listed(path), sorted(folder.glob("*.tar")), strict=True):
        assert shard["filesize"] == tar.stat().st_size
        assert shard["etag"].strip('"') == hashlib.md5(tar.read_bytes()).hexdigest()
    assert labels(path) == labels(folder)
    s3_bucket.put("own/s-1.tar", (folder / "s-2.tar").read_bytes())
    with pytest.raises(tarpon.StoreError, match=r"s-1\.tar: replaced"):
        labels(path)


def test_a_list_of_a_web_server(folder: Path, tmp_path: Path, web_server: WebServers) -> None:
    tarpon.index(folder)
    server, path = web_server(folder), tmp_path / "web.json"
    assert main(["index", "--list", str(path), f"{server.url}/s-{{0..2}}.tar"]) == 0
    assert all(shard["etag"] for shard in listed(path))
    assert labels(path) == labels(folder)


@pytest.mark.parametrize(
    ("path", "shards", "message"),
    [
        ("s3://b/train.json", "FOLDER", "expected a local file such as train.json"),
        ("train.txt", "FOLDER", "expected a local file such as train.json"),
        ("none/train.json", "FOLDER", "no such folder"),
        ("a.json", "https://h/a.tar?X-Amz-Signature=hidden", "may be a secret"),
        ("a.json", "https://me:hidden@h/a.tar", "may be a secret"),
    ],
)
def test_lists_that_cannot_be(
    folder: Path, path: str, shards: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["index", "--list", path, shards.replace("FOLDER", str(folder))]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "hidden" not in told
    assert list(folder.glob("*.idx")) == []


def test_verify_reads_a_bucket_as_a_folder(
    uploaded: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert faults(capsys, "--decode", uploaded) == [[], [], []]
    assert faults(capsys, "--decode", str(folder)) == [[], [], []]
    tar = (folder / "s-1.tar").read_bytes()
    entry = {"url": f"{uploaded}/s-1.tar", "nsamples": 8, "filesize": len(tar)}
    good = {"sha256": hashlib.sha256(tar).hexdigest(), "md5sum": "0" * 32, "etag": '"0"'}
    path = tmp_path / "l.json"
    entries = [entry, entry | {"nsamples": 9, **good, "etag": None}, entry | good]
    entries += [entry | {"filesize": 512}, entry | {"url": f"{uploaded}/none.tar"}]
    path.write_text(json.dumps({"shardlist": entries}))
    count, digest, etag, size, missing = faults(capsys, str(path))
    assert count == ["9 samples, expected 8 by the shard list"]
    assert len(digest) == 1
    assert digest[0].startswith("md5 ")
    assert f"{uploaded}/s-1.tar: replaced" in etag[0]
    assert f"{uploaded}/s-1.tar: {len(tar)} bytes, expected 512" in size[0]
    assert "none.tar: HTTP 404" in missing[0]


def test_verify_names_what_is_wrong_in_a_bucket(
    uploaded: str, folder: Path, s3_bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    index = (folder / "s-0.idx").read_text().splitlines()
    s3_bucket.put("own/s-0.idx", "\n".join(["v1.2 1", index[1]]).encode() + b"\n")
    broken = bytearray((folder / "s-1.tar").read_bytes())
    broken[1024 + 3] ^= 1  # the header of the second member
    s3_bucket.put("own/s-1.tar", bytes(broken))
    s3_bucket.put("own/s-2.tar", (folder / "s-2.tar").read_bytes()[:3000])
    stale, header, cut = faults(capsys, uploaded)
    assert stale[0].startswith(f"{uploaded}/s-0.tar: its index has 1 samples")
    assert header[0].startswith(f"{uploaded}/s-1.tar: index and tar disagree at byte 1024")
    assert cut[0].startswith(f"{uploaded}/s-2.tar")
