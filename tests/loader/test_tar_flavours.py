"""Tars written by others read as they read them: GNU tar and tarfile, in every format."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
import tarpon

from tests.loader.tars import photo, write_tar

LONG = "a-directory-with-quite-a-long-name/" * 4 + "x" * 60

PLAIN = [("b/0001.jpg", photo(1)), ("b/0001.cls", b"3"), ("b/0002.jpg", photo(2))]
HARD = [
    *PLAIN,
    (f"{LONG}.jpg", photo(3)),
    (f"{LONG}.seg.PNG", b"upper case, two dots"),
    ("Grüße/käfer.txt", "ß".encode()),
    ("spaced name/a b.txt", b"space"),
    ("empty.bin", b""),
    ("README", b"no dot: skipped"),
    ("__meta__/info.json", b"meta: skipped"),
]


def expected(members: list[tuple[str, bytes]]) -> list[tuple[str, dict[str, bytes]]]:
    """webdataset's rule, in plain Python."""
    found: list[tuple[str, dict[str, bytes]]] = []
    for name, data in members:
        folder, _, base = name.rpartition("/")
        if "." not in base or folder.startswith("__"):
            continue
        stem, extension = base.split(".", 1)
        key = f"{folder}/{stem}" if folder else stem
        if not found or found[-1][0] != key:
            found.append((key, {}))
        found[-1][1][extension.lower()] = data
    return found


def content(tar: Path) -> list[tuple[str, dict[str, bytes]]]:
    dataset = tarpon.open(tar)
    return [(dataset.key(i), dict(dataset[i])) for i in range(len(dataset))]


@pytest.mark.parametrize(
    ("format", "members"),
    [
        (tarfile.USTAR_FORMAT, PLAIN),
        (tarfile.GNU_FORMAT, HARD),
        (tarfile.PAX_FORMAT, HARD),
    ],
)
def test_pythons_tarfile(format: int, members: list[tuple[str, bytes]], tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", members, format=format)
    assert content(tar) == expected(members)


@pytest.mark.parametrize("format", ["v7", "ustar", "oldgnu", "gnu", "pax", "posix"])
def test_gnu_tar(format: str, tmp_path: Path) -> None:
    members = PLAIN if format in ("v7", "ustar") else HARD
    for name, data in members:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    names = [name for name, _ in members]
    tar = tmp_path / "x.tar"
    subprocess.run(
        ["tar", f"--format={format}", "-C", str(tmp_path / "in"), "-cf", str(tar), *names],
        check=True,
    )
    assert content(tar) == expected(members)


def test_folders_and_links_are_skipped(tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"
    with tarfile.open(tar, "w") as archive:
        for name, kind in (("d.x", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "elsewhere"
            archive.addfile(info)
        info = tarfile.TarInfo("a.txt")
        info.size = 2
        archive.addfile(info, io.BytesIO(b"ok"))
    assert content(tar) == [("a", {"txt": b"ok"})]


def test_missing_end_blocks_and_concatenated_archives(tmp_path: Path) -> None:
    first = write_tar(tmp_path / "a.tar", PLAIN).read_bytes()
    second = write_tar(tmp_path / "b.tar", [("z.txt", b"z")]).read_bytes()
    bare = first.rstrip(b"\0")
    bare += bytes(-len(bare) % 512)
    (tmp_path / "bare.tar").write_bytes(bare)
    assert content(tmp_path / "bare.tar") == expected(PLAIN)
    (tmp_path / "both.tar").write_bytes(first + second)
    assert content(tmp_path / "both.tar") == expected([*PLAIN, ("z.txt", b"z")])


def test_an_extension_twice_in_one_sample_is_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [("k.jpg", b"1"), ("k.JPG", b"2")])
    with pytest.raises(tarpon.CorruptShardError, match="k"):
        tarpon.open(tar)


def test_an_index_gives_what_a_scan_gives(tmp_path: Path) -> None:
    members = [pair for pair in HARD if " " not in pair[0]]
    tar = write_tar(tmp_path / "x.tar", members, format=tarfile.PAX_FORMAT)
    scanned = content(tar)
    assert tarpon.index(tar) == [tmp_path / "x.idx"]
    assert (tmp_path / "x.idx").read_text().startswith(f"v1.2 {len(scanned)}\n")
    assert content(tar) == scanned == expected(members)
    assert tarpon.index(tar) == []  # already there


def test_a_name_with_white_space_cannot_be_indexed_but_is_read(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", [("a b.txt", b"1")])
    with pytest.raises(tarpon.CorruptShardError, match=r"a b\.txt"):
        tarpon.index(tar)
    assert not (tmp_path / "x.idx").exists()
    assert content(tar) == [("a b", {"txt": b"1"})]


def test_an_old_index_without_names_is_passed_over(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", PLAIN)
    (tmp_path / "x.idx").write_text("v1.1 1\njpg 512 10\n")
    assert content(tar) == expected(PLAIN)


@pytest.mark.parametrize("text", ["", "v1.2", "v9 1\n", "v1.2 1\njpg 513 1 a.jpg\n", "\x00\x01"])
def test_a_broken_index_is_named(text: str, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", PLAIN)
    (tmp_path / "x.idx").write_text(text)
    with pytest.raises(tarpon.CorruptShardError, match=r"x\.idx"):
        tarpon.open(tar)
