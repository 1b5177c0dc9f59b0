"""Tars written by others read as they read them: GNU tar and tarfile, in every format."""

from __future__ import annotations

import io
import random
import re
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


WEBDATASETS_KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # its base_plus_ext
WEBDATASETS_META = re.compile(r"__[^/]*__($|/)")  # its skip_meta, by match()


def split(name: str) -> tuple[str, str] | None:
    match = WEBDATASETS_KEY.match(name)
    if match is None or WEBDATASETS_META.match(name):
        return None
    return match[1], match[2].lower()


def expected(members: list[tuple[str, bytes]]) -> list[tuple[str, dict[str, bytes]]]:
    """webdataset's rule, in plain Python."""
    found: list[tuple[str, dict[str, bytes]]] = []
    for name, data in members:
        parts = split(name)
        if parts is None:
            continue
        if not found or found[-1][0] != parts[0]:
            found.append((parts[0], {}))
        found[-1][1][parts[1]] = data
    return found


def gnu_tar(folder: Path, members: list[tuple[str, bytes]], *options: str) -> Path:
    """folder/x.tar, as GNU tar writes it."""
    for name, data in members:
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    tar = folder / "x.tar"
    names = [name for name, _ in members]
    subprocess.run(
        ["tar", "--no-unquote", *options, "-C", folder / "in", "-cf", tar, *names], check=True
    )
    return tar


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
    assert content(gnu_tar(tmp_path, members, f"--format={format}")) == expected(members)


def test_folders_links_and_devices_are_skipped(tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"
    with tarfile.open(tar, "w") as archive:
        for name, kind in (
            ("d.x", tarfile.DIRTYPE),
            ("l.jpg", tarfile.SYMTYPE),
            ("a.jpg", tarfile.LNKTYPE),  # of the key of the sample that follows
            ("c.x", tarfile.CHRTYPE),
            ("b.x", tarfile.BLKTYPE),
            ("f.x", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "elsewhere"
            archive.addfile(info)
        info = tarfile.TarInfo("a.txt")
        info.size = 2
        archive.addfile(info, io.BytesIO(b"ok"))
    assert content(tar) == [("a", {"txt": b"ok"})]


@pytest.mark.parametrize("format", ["oldgnu", "gnu", "posix"])
def test_sparse_members_are_refused_by_name(format: str, tmp_path: Path) -> None:
    with (tmp_path / "holes.bin").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    command = ["tar", f"--format={format}", "--sparse", "-C", tmp_path, "-cf", tmp_path / "x.tar"]
    subprocess.run([*command, "holes.bin"], check=True)
    with pytest.raises(tarpon.CorruptShardError, match=r"holes\.bin.*sparse.*without --sparse"):
        tarpon.open(tmp_path / "x.tar")


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_member_of_more_than_8_gib(format: int, tmp_path: Path) -> None:
    """Its size is in base 256, or in a pax record; its bytes are a hole."""
    tar, size = tmp_path / "x.tar", (9 << 30) + 7
    with tar.open("wb") as file:
        info = tarfile.TarInfo("a.bin")
        info.size = size
        file.write(info.tobuf(format))
        file.seek(size + -size % 512, 1)
        info = tarfile.TarInfo("b.txt")
        info.size = 2
        file.write(info.tobuf(format) + b"ok" + bytes(510))
    dataset = tarpon.open(tar)
    assert [dataset.core.sample(i)[2][0][2] for i in range(2)] == [size, 2]
    assert dataset[1] == {"txt": b"ok"}


def test_names_are_split_as_webdataset_splits_them(tmp_path: Path) -> None:
    """Hidden files, `./`, dots in folders, `__meta__`: any name made of what is special in one."""
    draw = random.Random(4)
    parts = [".", "/", "a", "B", "__", "_", ".jpg", "./", "../", "/.", "__m__", "\n", "\\", "é"]
    names = {"".join(draw.choices(parts, k=draw.randint(1, 6))) for _ in range(3000)}
    names = {name for name in names if not name.endswith("/")}  # a folder, to tarfile
    found: dict[str, tuple[str, str] | None] = {}
    tar = write_tar(
        tmp_path / "x.tar",
        [pair for name in sorted(names) for pair in ((name, name.encode()), (".", b""))],
        format=tarfile.PAX_FORMAT,
    )
    for key, members in content(tar):
        for extension, name in members.items():
            found[name.decode()] = (key, extension)
    assert len(names) > 1500
    for name in names:
        assert found.get(name) == split(name), name


def test_missing_end_blocks_and_concatenated_archives(tmp_path: Path) -> None:
    first = write_tar(tmp_path / "a.tar", PLAIN).read_bytes()
    second = write_tar(tmp_path / "b.tar", [("z.txt", b"z")]).read_bytes()
    bare = first.rstrip(b"\0")
    bare += bytes(-len(bare) % 512)
    (tmp_path / "bare.tar").write_bytes(bare)
    assert content(tmp_path / "bare.tar") == expected(PLAIN)
    (tmp_path / "both.tar").write_bytes(first + second)
    assert content(tmp_path / "both.tar") == expected([*PLAIN, ("z.txt", b"z")])
    (tmp_path / "zeros.tar").write_bytes(first + bytes(99_999))
    assert content(tmp_path / "zeros.tar") == expected(PLAIN)


def test_what_follows_the_end_is_no_silent_loss(tmp_path: Path) -> None:
    """Rubbish may be the head of an archive that was meant to be read; the way out is exact."""
    tar = write_tar(tmp_path / "x.tar", PLAIN)
    with tar.open("ab") as file:
        file.write(b"rubbish" * 100)
    with pytest.raises(tarpon.CorruptShardError, match="after the end of the archive") as caught:
        tarpon.open(tar)
    size = re.search(r"`truncate -s (\d+)`", str(caught.value))
    assert size is not None
    subprocess.run(["truncate", "-s", size[1], tar], check=True)
    assert content(tar) == expected(PLAIN)


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


def index_by_dali(tar: Path) -> None:
    wds2idx = pytest.importorskip("wds2idx", reason="DALI is an extra")
    with wds2idx.IndexCreator(str(tar), str(tar.with_suffix(".idx")), verbose=False) as creator:
        creator.create_index()
    assert tar.with_suffix(".idx").read_bytes().startswith(b"v1.2 ")


@pytest.mark.parametrize("format", ["v7", "ustar", "gnu", "posix"])
def test_an_index_by_dalis_own_tool(format: str, tmp_path: Path) -> None:
    """Also of names that it escapes, as GNU tar lists them, and of those that webdataset skips."""
    members = [*PLAIN, ("README", b"x"), ("notes/TODO", b"y"), (".hidden.txt", b"z")]
    if format not in ("v7", "ustar"):
        members += [("Grüße/käfer.txt", "ß".encode()), ("empty.bin", b""), ("a\\b.txt", b"slash")]
    if format == "posix":
        members += [(f"{LONG}.jpg", photo(3)), (f"{LONG}.seg.PNG", b"upper case, two dots")]
    tar = gnu_tar(tmp_path, members, f"--format={format}")
    scanned = content(tar)
    index_by_dali(tar)
    assert content(tar) == scanned == expected(members)


def test_an_index_by_dalis_own_tool_may_be_wrong(tmp_path: Path) -> None:
    """For GNU's long names its offset is that of the name: DALI would read that, not the bytes."""
    tar = gnu_tar(tmp_path, [(f"{LONG}.jpg", photo(3)), ("b.txt", b"b")], "--format=gnu")
    index_by_dali(tar)
    with pytest.raises(tarpon.CorruptShardError, match="rebuild it with `tarpon index --force`"):
        tarpon.open(tar)
    tarpon.index(tar, force=True)
    assert tarpon.open(tar)[0] == {"jpg": photo(3)}


def test_energons_index_is_not_taken_for_ours(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", PLAIN)
    (tmp_path / "x.tar.idx").write_bytes(bytes(range(64)))  # numbers of 64 bits, lying
    assert content(tar) == expected(PLAIN)
    assert tarpon.index(tmp_path) == [tmp_path / "x.idx"]
    assert (tmp_path / "x.tar.idx").read_bytes() == bytes(range(64))


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
