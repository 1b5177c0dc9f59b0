"""Relative paths become absolute for a run, and addresses become variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import environment
from pipelines.compose import load


def test_relative_paths_are_seen_from_the_folder_one_stands_in(tmp_path: Path) -> None:
    config = environment.localise(load(["data.source=photos", "store.root=../data"]), tmp_path)
    assert config.data.source == str(tmp_path / "photos")
    assert config.store.root == str(tmp_path.parent / "data")
    assert config.mlflow.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert environment.for_run(config) == {"MLFLOW_TRACKING_URI": config.mlflow.uri}


@pytest.mark.parametrize(
    "uri", ["http://mlflow:5000", "sqlite:////srv/mlflow.db", "sqlite:///:memory:"]
)
def test_addresses_that_are_absolute_stay(tmp_path: Path, uri: str) -> None:
    config = environment.localise(load([f"mlflow.uri='{uri}'", "data.source=s3://b/p"]), tmp_path)
    assert config.mlflow.uri == uri
    assert config.data.source == "s3://b/p"


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = environment.localise(load(["data.source=~/photos"]), Path("/elsewhere"))
    assert config.data.source == str(tmp_path / "photos")


@pytest.mark.parametrize(
    "override",
    [
        *("mlflow.uri={}", "+mlflow.uri={}", "++mlflow.uri={}", "~mlflow.uri={}"),
        *("++store.endpoint={}", "mlflow={{uri: {}}}", "+store={{endpoint: '{}'}}"),
        "mlflow.uri@mlflow.uri={}",
    ],
)
def test_no_way_to_set_an_address_is_saved(override: str) -> None:
    typed = override.format("http://bob:hunter2@host/x")
    kept = ["mlflow=cluster", "store=local", "train.lr=1e-3", "data.source=a b"]
    assert environment.storable([typed, *kept]) == kept


def test_addresses_in_other_overrides_lose_their_secrets() -> None:
    typed = ["pod.cpu.node_selector.x=http://bob:hunter2@host/y?sig=hunter2"]
    assert environment.storable(typed) == ["pod.cpu.node_selector.x=http://host/y"]


def test_the_shell_may_name_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-the-shell")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3-from-the-shell")
    assert environment.for_run(load([])) == {
        "MLFLOW_TRACKING_URI": "http://from-the-shell",
        "AWS_ENDPOINT_URL_S3": "http://s3-from-the-shell",
    }
    assert load(["mlflow.uri=http://typed"]).mlflow.uri == "http://typed"


def test_pods_know_where_a_browser_finds_the_two_uis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_UI_URL", "https://bob:hunter2@kfp.example/pipeline")
    monkeypatch.delenv("MLFLOW_UI_URL", raising=False)
    variables = environment.for_pods(load(["mlflow.uri=http://mlflow:5000"])).variables
    assert variables["KFP_UI_URL"] == "https://kfp.example/pipeline"
    assert "MLFLOW_UI_URL" not in variables
