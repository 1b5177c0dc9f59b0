"""The command line: what it prints, what it refuses and with which exit code."""

from __future__ import annotations

import json
import os
import shlex
import signal
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines import usage
from pipelines.cli import main
from pipelines.compose import load
from pipelines.config import key_types
from pipelines.local import LocalRun, PipelineStopped


def test_help_explains_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(usage.USAGE.splitlines()[0])
    for key in key_types():
        assert (key if not key.startswith("pod.") else key.rpartition(".")[2]) in shown
    assert "split=group|random|stratified" in shown


def test_cfg_prints_the_settings_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--cfg", "job", "train.epochs=3", "data.source=x"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["train"]["epochs"] == 3
    assert list(tmp_path.iterdir()) == []


SECRET = "http://bob:hunter2@host/?sig=hunter2"


@pytest.mark.parametrize("arguments", [["--cfg", "job", f"++mlflow.uri={SECRET}"], ["--help"]])
def test_no_password_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", SECRET)
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "http://host/" in shown
    assert "hunter2" not in shown


def test_no_password_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    given = ["data.source=empty", "until=ingest", "train.lr=1e-3"]
    assert main([*given, f"++mlflow.uri={SECRET}", f"+store.endpoint={SECRET}"]) == 1
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"overrides.txt", "config.json", "ingest.log", "runner.log"} <= {f.name for f in files}
    assert [file for file in files if b"hunter2" in file.read_bytes()] == []
    (saved,) = tmp_path.rglob("overrides.txt")
    assert saved.read_text().split() == given
    assert "hunter2" not in capsys.readouterr().err


@pytest.mark.slow
def test_groups_in_file_names_stay_on_one_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve cameras of five photographs, by the example of the help page, as a shell reads it."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(17)
    for number in range(60):
        folder = tmp_path / "photos" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"cam{number % 12:02d}-{number}.jpg")
    (example,) = [line for line in usage.USAGE.splitlines() if "split=group" in line]
    words = shlex.split(example)
    assert words[:3] == ["python", "-m", "pipelines"]
    assert main([*words[3:], "until=shard"]) == 0, capsys.readouterr().err
    lines = capsys.readouterr().out.splitlines()
    (version,) = [Path(line.split()[1]) for line in lines if line.startswith("dataset ")]
    proof = json.loads((version / "leakage.json").read_text())
    assert proof["ok"] is True
    sides: dict[str, set[str]] = {}
    for shard in version.glob("*.tar"):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    group = json.load(tar.extractfile(member))["group"]
                    sides.setdefault(group, set()).add(shard.name.partition("-")[0])
    assert sorted(sides) == [f"cam{number:02d}" for number in range(12)]
    assert {len(found) for found in sides.values()} == {1}
    assert set.union(*sides.values()) == {"train", "val", "test"}
    (command,) = [line for line in lines if line.startswith("train on it with: ")]
    again = shlex.split(command.partition(": ")[2])[3:]
    assert load(again).data.version == version.name
    assert Path(load(again).store.root, "photos", version.name).is_dir()


def test_compile_writes_the_file_and_says_what_pods_will_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["action=compile", "output=made/p.yaml", "until=split"]
    assert main([*typed, "store.endpoint=http://minio:9000"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "compiled made/p.yaml\n"
    assert "note: mlflow.uri=" in captured.err
    spec, _platform = yaml.safe_load_all((tmp_path / "made/p.yaml").read_text())
    assert spec["pipelineInfo"]["name"] == "image-training"
    config = spec["root"]["inputDefinitions"]["parameters"]["config"]["defaultValue"]
    assert json.loads(config)["overrides"] == typed  # without addresses
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "data.source is not set"),
        (["train.epoch=3", "data.source=x"], 2, "nearest is 'train.epochs'"),
        (["action=sweep", "data.source=x"], 2, "not supported yet"),
        (["action=compile", "output=p.json"], 2, "ends in .yaml"),
        (["data.source=x", "store.root=gs://bucket/x"], 1, "gs:// stores are not supported"),
        (["data.source=x", "store.root=file.txt/data"], 1, "expected a writable folder"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").touch()
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_step_s_error_is_shown_and_its_log_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["data.source=empty", "until=shard"]) == 1
    error = capsys.readouterr().err
    assert "error: ingest failed: " in error
    assert str(tmp_path / "empty") in error
    assert "Traceback" not in error
    log = Path(error.rstrip().rpartition("whole log is ")[2])
    assert "Traceback" in log.read_text()
    assert not (tmp_path / "tarpon-data" / "photos").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    def execute(*_: object, **__: object) -> None:
        raise PipelineStopped(number)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LocalRun, "execute", execute)
    assert main(["data.source=x"]) == code
    assert capsys.readouterr().err == (
        f"error: stopped by {number.name}; the same command goes on from what is finished\n"
    )
