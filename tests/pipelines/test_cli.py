"""The command line: what it prints, what it refuses and with which exit code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from pipelines import usage
from pipelines.cli import main
from pipelines.config import key_types


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


def test_compile_writes_the_file_and_says_what_pods_will_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["action=compile", "output=made/p.yaml", "until=split"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "compiled made/p.yaml\n"
    assert "note: mlflow.uri=" in captured.err
    spec, _platform = yaml.safe_load_all((tmp_path / "made/p.yaml").read_text())
    assert spec["pipelineInfo"]["name"] == "image-training"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "data.source is not set"),
        (["train.epoch=3", "data.source=x"], 2, "nearest is 'train.epochs'"),
        (["action=sweep", "data.source=x"], 2, "not supported yet"),
        (["action=compile", "output=p.json"], 2, "ends in .yaml"),
        (["data.source=x", "store.root=s3://bucket/x"], 1, "s3:// stores are not supported yet"),
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
