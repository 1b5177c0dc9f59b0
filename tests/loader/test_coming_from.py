"""docs/coming-from.md: what stands under *After* runs, and does what the page says."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tarpon
import torch
from tarpon import cli
from torch.utils.data import DataLoader

from tests.loader.tars import photo, samples, write_tar

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coming-from.md"
SAMPLES = 150


def blocks(section: str) -> dict[str, str]:
    """The section's code by the first word above it; `sh` for shell."""
    (text,) = re.findall(
        rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S
    )
    found = re.findall(r"(?:^(\w+)[^\n]*:\n\n)?^```(\w+)\n(.*?)^```", text, re.M | re.S)
    return {word or language: code for word, language, code in found}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def expect_epoch(names: dict[str, Any], labels: list[int]) -> None:
    """The block went through an epoch, whose batches are as its *Before* had them."""
    images = names["images"]
    assert images.shape == (64, 3, 224, 224)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < 0.3 < 0.7 < images.max() <= 1
    assert names["labels"].tolist() == [labels[index] for index in names["batch"]["indices"]]
    loader = names["loader"]
    assert loader.state_dict()["epoch"] == 1  # the whole of the first
    loader.set_epoch(0)
    alone = [batch["indices"].tolist() for batch in loader]
    loader.set_epoch(0)
    wrapped = DataLoader(loader, batch_size=None, num_workers=2)
    assert [batch["indices"].tolist() for batch in wrapped] == alone
    assert len(alone) == len(labels) // 64


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_webdataset(here: Path) -> None:
    for number in range(3):
        first = 50 * number
        write_tar(here / f"train-{number:06d}.tar", samples(range(first, first + 50)))
    code = blocks("webdataset")
    assert list(code) == ["Before", "After"]
    expect_epoch(run(code["After"]), [number % 10 for number in range(SAMPLES)])
    assert bytes(tarpon.open("train-*.tar")[7]["jpg"]) == photo(7)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_imagefolder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = ["cat", "dog", "eel"]
    names = []
    for number in range(SAMPLES):
        kind = kinds[number % 3]
        folder = here / "photos" / kind
        folder.mkdir(parents=True, exist_ok=True)
        ending = "JPEG" if number % 2 else "jpg"
        (folder / f"no. {number:03d}.{ending}").write_bytes(photo(number))
        names.append(f"{kind}/no. {number:03d}.{ending}")
    (here / "photos" / "cat" / ".DS_Store").write_bytes(b"left by a file manager")
    code = blocks("torchvision's ImageFolder")
    assert list(code) == ["Before", "Once", "sh", "After"]
    run(code["Once"])
    for line in code["sh"].splitlines():
        program, *arguments = shlex.split(line)
        assert program == "tarpon"
        assert cli.main(arguments) == 0
    assert (here / "train-000000.idx").exists()
    assert "150" in capsys.readouterr().out
    dataset = tarpon.open("train-*.tar")
    for index, name in enumerate(sorted(names)):
        sample = dataset[index]
        assert sample[name.rpartition(".")[2].lower()] == (here / "photos" / name).read_bytes()
        assert int(sample["cls"]) == kinds.index(name.partition("/")[0])
    expect_epoch(run(code["After"]), [int(sample["cls"]) for sample in dataset])


def test_litdata(here: Path) -> None:
    write_tar(here / "train-000000.tar", samples(range(SAMPLES)))
    code = blocks("litdata")
    assert list(code) == ["Before", "After"]
    whole = run(code["After"])
    state = json.loads((here / "loader.json").read_text())
    assert (state["epoch"], state["position"]) == (0, 64)
    resumed = run(code["After"])
    assert resumed["step"] == 0  # one batch of two was left
    assert torch.equal(resumed["batch"]["indices"], whole["batch"]["indices"])
    assert torch.equal(resumed["batch"]["image"], whole["batch"]["image"])
    (here / "loader.json").write_text(json.dumps(state))
    other = run(code["After"].replace("batch_size=64", "batch_size=43"))
    found = other["loader"].state_dict()
    assert (found["epoch"], found["position"]) == (1, 0)  # 64, 107, 150


def test_each_move_is_ten_lines() -> None:
    for section in ("webdataset", "torchvision's ImageFolder", "litdata"):
        for name, code in blocks(section).items():
            if name != "sh":
                ast.parse(code)
            assert sum(bool(line.strip()) for line in code.splitlines()) <= 10, (section, name)
