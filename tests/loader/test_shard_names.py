"""What a person may write for `shards`: which tars that names, and what is said if none."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tarpon
from tarpon._shards import resolve

from tests.loader.tars import samples, write_tar


def zstd(data: bytes) -> bytes:
    if shutil.which("zstd") is None:
        return b"\x28\xb5\x2f\xfd" + bytes(600)
    return subprocess.run(["zstd", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}


def write_list(folder: Path, document: Any, name: str = "train.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(document))
    return path


def ways(folder: Path, name: str) -> dict[str, Any]:
    """Each way to name the file `name` of `folder`, which holds no other."""
    stem, ending = name.split(".", 1)
    return {
        "path": folder / name,
        "glob": f"{folder}/*.{ending}",
        "braces": f"{folder}/{{{stem},other}}.{ending}",
        "folder": folder,
        "list": [folder / name],
        "shard list": write_list(folder, {"shardlist": [{"url": name, "nsamples": 2}]}),
    }


@pytest.mark.parametrize("way", ["path", "glob", "braces", "folder", "list", "shard list"])
@pytest.mark.parametrize("name", ["a b.tar", "a b.tar.{}", "a.t{}"])
@pytest.mark.parametrize("kind", COMPRESSORS)
def test_a_compressed_tar_is_refused_with_a_command_that_helps(
    kind: str, name: str, way: str, tmp_path: Path
) -> None:
    """By its name, or by its first bytes whatever its name; and the command is tried."""
    path = tmp_path / name.format(kind)
    plain = write_tar(tmp_path / "plain", samples(range(2)))
    path.write_bytes(COMPRESSORS[kind](plain.read_bytes()))
    plain.unlink()
    with pytest.raises(tarpon.CorruptShardError, match=r"compressed.*, expected a plain") as caught:
        list(tarpon.open(ways(tmp_path, path.name)[way]))  # shard lists wait for the first sample
    command = re.fullmatch(rf"{re.escape(str(path))}: .*rewrite it with `(.*)`", str(caught.value))
    assert command is not None, str(caught.value)
    if shutil.which(command[1].split()[0]):
        # a sanitizer that Python runs under is nothing for other people's programs
        clean = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
        subprocess.run(["sh", "-c", command[1]], check=True, env=clean)
        path.unlink()
        assert len(tarpon.open(tmp_path)) == 2


def test_a_compressed_tar_beside_its_plain_one_is_passed_over(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", samples(range(2)))
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
    assert tarpon.open(tmp_path).shards == [str(tar)]
    (tmp_path / "b.tgz").write_bytes(b"")
    with pytest.raises(tarpon.CorruptShardError, match="gunzip < "):
        tarpon.open(tmp_path)


def test_a_folder_is_its_tars_and_nothing_else(tmp_path: Path) -> None:
    """Not Energon's binary `.tar.idx`, nor hidden files, nor folders; but every link."""
    write_tar(tmp_path / "b.tar", samples(range(2, 5)))
    write_tar(tmp_path / "a.tar", samples(range(2)))
    for name in ("a.tar.idx", "._a.tar", "notes.txt", "x.tar.part"):
        (tmp_path / name).write_bytes(bytes(range(256)))
    (tmp_path / "c.tar").mkdir()
    dataset = tarpon.open(tmp_path)
    assert [Path(shard).name for shard in dataset.shards] == ["a.tar", "b.tar"]
    assert [dataset.key(i) for i in range(5)] == [f"{i:05d}" for i in range(5)]
    assert tarpon.index(tmp_path) == [tmp_path / "a.idx", tmp_path / "b.idx"]
    assert len(tarpon.open(tmp_path)) == 5
    (tmp_path / "d.tar").symlink_to("nowhere")
    for shards in (tmp_path, f"{tmp_path}/*.tar"):
        with pytest.raises(tarpon.StoreError, match=r"d\.tar: No such file"):
            tarpon.open(shards)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("t-{08..11}.tar", ["t-08.tar", "t-09.tar", "t-10.tar", "t-11.tar"]),
        ("t-{8..10}.tar", ["t-8.tar", "t-9.tar", "t-10.tar"]),
        ("t-{1..003}.tar", ["t-001.tar", "t-002.tar", "t-003.tar"]),
        ("{a,b}-{0..1}.tar", ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
        ("a{,-b}.tar", ["a.tar", "a-b.tar"]),
        (f"{{{'a,' * 200}b}}.tar", ["a.tar"] * 200 + ["b.tar"]),  # longer than a name may be
        ("a.tar::b-{0..1}.tar", None),  # a.tar is not there
    ],
)
def test_braces(pattern: str, names: list[str] | None) -> None:
    if names is None:
        with pytest.raises(tarpon.StoreError, match=r"a\.tar: no such file"):
            resolve(pattern)
    else:
        assert [shard.path for shard in resolve(pattern)] == names


def test_braces_and_a_glob(tmp_path: Path) -> None:
    for folder in ("val", "train", "test"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "0.tar", samples([1]))
    names = [shard.path for shard in resolve(f"{tmp_path}/{{train,val}}/*.tar")]
    assert names == [f"{tmp_path}/train/0.tar", f"{tmp_path}/val/0.tar"]


def test_names_that_look_like_patterns_and_are_there(tmp_path: Path) -> None:
    for name in ("a{1,2}.tar", "b[0].tar", "c*.tar"):
        tar = write_tar(tmp_path / name, samples([1]))
        assert tarpon.open(tar).shards == [str(tar)]
    assert len(tarpon.open(tmp_path)) == 3


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{0..10..2}.tar", r"\{0\.\.10\.\.2\}: expected a range of numbers"),
        ("{a..c}.tar", "expected a range of numbers"),
        ("{5..2}.tar", "expected a rising range"),
        ("{0..99999999999}.tar", "at most 10000000 shards"),
        ("{a,{b,c}}.tar", "unbalanced or nested braces"),
        ("a.tar}{", "unbalanced or nested braces"),
        ("a.tar::", "an empty path, expected a tar"),
        ("pipe:cat a.tar", "pipe: commands are not supported"),
        (f"{'x' * 300}.tar", "File name too long, expected a tar, .*; check the path"),
        ("a\0.tar", "no such file"),
    ],
)
def test_patterns_that_are_refused(pattern: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(tarpon.StoreError, match=message):
        resolve(pattern.replace("a.tar::", f"{write_tar(tmp_path / 'a.tar', [])}::"))


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the right to (root has every right, so the refusal is made up), or of other kinds."""
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "loop.tar").symlink_to("loop.tar")
    (tmp_path / "empty.tar").write_bytes(b"")
    listing = write_list(tmp_path, {"shardlist": [{"url": "folder.tar", "nsamples": 1}]})
    for shards, message in (
        (tmp_path / "pipe.tar", r"pipe\.tar: not a regular file, expected a tar"),
        (tmp_path / "folder.tar", r"folder\.tar: a folder without \*\.tar, expected"),
        (listing, r"folder\.tar: not a regular file, expected a tar"),
        (tmp_path / "loop.tar", r"loop\.tar: no such file"),
        (f"{tmp_path}/{{loop,x}}.tar", r"loop\.tar: Too many levels of symbolic links; check"),
    ):
        with pytest.raises(tarpon.StoreError, match=message):
            list(tarpon.open(shards))
    with pytest.raises(tarpon.CorruptShardError, match="an empty file, expected a tar; copy or"):
        tarpon.open(tmp_path / "empty.tar")

    def denied(*_: object) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", denied)
    with pytest.raises(tarpon.StoreError, match=r"a\.tar: Permission denied, expected .*; check"):
        resolve("a.tar")


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """data/a.tar of 2 samples and data/b.tar of 3."""
    (tmp_path / "data").mkdir()
    write_tar(tmp_path / "data" / "a.tar", samples(range(2)))
    write_tar(tmp_path / "data" / "b.tar", samples(range(2, 5)))
    return tmp_path


A: dict[str, Any] = {"url": "a.tar", "nsamples": 2}
B: dict[str, Any] = {"url": "b.tar", "nsamples": 3}


@pytest.mark.parametrize(
    "document",
    [
        {"wids_version": 1, "base": "data", "shardlist": [A, B]},
        {"wids_version": 1, "base": "{}/data", "shardlist": [A, B]},
        {"wids_version": 1, "base": "file://{}/data", "shardlist": [A, B]},
        {"shardlist": [A | {"url": "data/a.tar"}, B | {"url": "./data/../data/b.tar"}]},
        {"base": "/no", "shardlist": [A | {"url": "{}/data/a.tar"}],
         "datasets": [{"shardlist": [B | {"url": "{}/data/b.tar"}]}]},
        {"base": "data", "shardlist": [A], "datasets": [{"shardlist": [B], "weight": 1}]},
        {"base": "data", "datasets": [{"name": "x", "shardlist": [A]}, {"shardlist": [B]}]},
        {"datasets": [{"base": "data", "shardlist": [A, B]}]},
        {"datasets": [{"source_url": "data/a.json"}, {"base": "data", "shardlist": [B]}]},
    ],
)  # fmt: skip
def test_shard_lists_of_wids(document: dict[str, Any], two: Path) -> None:
    """With and without 'base', and with other datasets within, in place or by their URL."""
    write_list(two / "data", {"shardlist": [A]}, "a.json")
    text = json.dumps({"__kind__": "wids-shard-index-v1"} | document).replace("{}", str(two))
    dataset = tarpon.open(write_list(two, json.loads(text)))
    assert [Path(shard).resolve() for shard in dataset.shards] == [
        two / "data" / "a.tar",
        two / "data" / "b.tar",
    ]
    assert [dataset.key(i) for i in range(len(dataset))] == [f"{i:05d}" for i in range(5)]
    assert len(list(dataset)) == 5


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([A], "no 'shardlist', expected a wids shard list"),
        ({"shardlist": A}, "no 'shardlist'"),
        ({"datasets": []}, "no 'shardlist'"),
        ({"shardlist": [], "datasets": {"a": 1}}, "'datasets' is .*, expected a list"),
        ({"datasets": [{"source": "a"}]}, "dataset 0 is .*, expected an object with 'shardlist'"),
        ({"datasets": [{"shardlist": [3]}]}, "shard 0 is 3, expected an object with 'url'"),
        ({"datasets": [{"source_url": "train.json"}]}, "has 'datasets', expected a plain shard"),
        ({"base": 3, "shardlist": [A]}, "'base' is 3, expected a path"),
        ({"shardlist": [A | {"nsamples": True}]}, "shard 0 is .*, expected an object"),
        ({"shardlist": [A | {"nsamples": -1}]}, "expected an object"),
        ({"shardlist": [A | {"nsamples": "2"}]}, "expected an object"),
        ({"shardlist": [A | {"url": ""}]}, "expected an object"),
        ({"shardlist": [A | {"filesize": 1.5}]}, "expected an object"),
    ],
)
def test_shard_lists_that_are_none(document: Any, message: str, tmp_path: Path) -> None:
    path = write_list(tmp_path, document)
    with pytest.raises(tarpon.CorruptShardError, match=message) as caught:
        tarpon.open(path)
    assert str(caught.value).startswith(f"{path}: ")
    path.write_text("[" * 100_000)
    with pytest.raises(tarpon.CorruptShardError, match=r"not JSON \(.*\), expected a shard list"):
        tarpon.open(path)


@pytest.mark.parametrize(
    "document",
    [
        {"shardlist": ["https://host/a.tar?X-Amz-Signature=SECRET"]},
        {"shardlist": [{"url": "https://host/a.tar?sig=SECRET"}]},
        {"shardlist": [{"urls": ["https://me:SECRET@host/a.tar"]}]},
        {"datasets": {"source_url": "https://host/a.json?sig=SECRET"}},
        {"datasets": [{"url": "https://host/a.json?sig=SECRET"}]},
        {"datasets": ["https://host/a.json?sig=SECRET"]},
        {"base": ["https://host/?sig=SECRET"], "shardlist": []},
    ],
)
def test_what_is_wrong_with_a_list_is_told_without_signatures(
    tmp_path: Path, document: dict[str, object]
) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(document))
    with pytest.raises(tarpon.CorruptShardError) as caught:
        tarpon.open(path)
    assert "SECRET" not in str(caught.value)
    assert "host" in str(caught.value)
