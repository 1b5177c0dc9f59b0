"""The `tarpon` command, as a shell would see it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tarpon.cli import main

from tests.loader.tars import photo, samples, write_tar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tar(tmp_path / "a.tar", samples(range(3)))
    write_tar(tmp_path / "b.tar", samples(range(3, 5)))
    return tmp_path


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_ls(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert len(out.strip().splitlines()) == 5
    assert out.splitlines()[3].split()[:3] == ["3", "b.tar", "00003"]
    assert err == "5 samples in 2 shards\n"
    assert main(["ls", "--json", "--limit", "1", str(folder)]) == 0
    (row,) = lines(capsys.readouterr().out)
    assert row["key"] == "00000"
    assert row["components"]["cls"] == {"bytes": 1, "offset": 512}


def test_cat(folder: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["cat", str(folder), "00004", "jpg"]) == 0
    assert capfdbinary.readouterr().out == photo(4)
    assert main(["cat", str(folder), "4", "cls"]) == 0
    assert capfdbinary.readouterr().out == b"4"
    assert main(["cat", str(folder), "4"]) == 0
    assert b"jpg" in capfdbinary.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls", "nothing-here"], "nothing-here: no such file"),
        (["cat", "FOLDER", "99"], "no sample '99', expected a key or a number below 5"),
        (["cat", "FOLDER", "4", "txt"], "no component 'txt', it has cls, jpg"),
    ],
)
def test_errors_are_one_line(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder) if word == "FOLDER" else word for word in arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("tarpon: ")
    assert message in err
    assert err.count("\n") == 1


def test_index_then_verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "--json", str(folder)]) == 0
    assert [row["written"] for row in lines(capsys.readouterr().out)] == [True, True]
    assert main(["index", "--json", str(folder)]) == 0
    assert [row["written"] for row in lines(capsys.readouterr().out)] == [False, False]
    assert main(["verify", "--json", "--decode", str(folder)]) == 0
    assert [row["faults"] for row in lines(capsys.readouterr().out)] == [[], []]


def test_verify_finds_members_that_are_not_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "a.tar", [("k.jpg", photo(1)), ("l.jpg", photo(2)), ("k.cls", b"1")])
    assert main(["verify", str(tmp_path)]) == 1
    assert "tar --sort=name" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["cut", "payload", "index", "picture", "list"])
def test_verify_finds(folder: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["index", str(folder)])
    tar = folder / "b.tar"
    data = bytearray(tar.read_bytes())
    shards, options = str(folder), []
    if fault == "cut":
        tar.write_bytes(data[:3000])
    elif fault == "payload":
        data[1024 + 3] ^= 1  # the header of the second member
        tar.write_bytes(data)
    elif fault == "index":
        text = (folder / "b.idx").read_text().splitlines()
        (folder / "b.idx").write_text("\n".join(["v1.2 1", text[1]]) + "\n")
    elif fault == "picture":
        write_tar(tar, [("00003.jpg", photo(3)[:-300])])
        (folder / "b.idx").unlink()
        options = ["--decode"]
    else:
        entry = {"url": "b.tar", "nsamples": 2, "filesize": len(data), "md5sum": "0" * 32}
        (folder / "train.json").write_text(json.dumps({"shardlist": [entry]}))
        shards = str(folder / "train.json")
    capsys.readouterr()
    assert main(["verify", "--json", *options, shards]) == 1
    rows = lines(capsys.readouterr().out)
    assert [bool(row["faults"]) for row in rows] == ([True] if fault == "list" else [False, True])
    assert "b." in rows[-1]["shard"]
