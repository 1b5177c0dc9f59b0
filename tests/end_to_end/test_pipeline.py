"""Photographs in, registered model out, by the command a person types; then the same again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest

from components.ingest import sample_photos

ROOT = Path(__file__).resolve().parents[2]
OVERRIDES = ["train.epochs=10", "train.image_size=32", "train.batch_size=16", "shard.partitions=2"]
BAR = 0.8
"""Test accuracy on 20 photographs. Five seeds reach 0.90 to 1.00, with 6 epochs 0.85 to 0.95; five
that cannot learn (lr=1e-9) reach 0.10 to 0.20."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    # MLflow 3.17's own queries, under SQLAlchemy 2.1
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """One run of the command line, and the folder it was started in."""

    folder: Path
    lines: list[str]

    def value(self, start: str) -> str:
        """What follows ``start`` on its line of the summary; there is exactly one."""
        (found,) = [line.removeprefix(f"{start} ") for line in self.lines if line.startswith(start)]
        return found


def run(folder: Path, *overrides: str) -> Ran:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "AWS_ENDPOINT_URL_S3"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "data.source=photos", *OVERRIDES, *overrides],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Ran(folder=folder, lines=done.stdout.splitlines())


def make_photos(folder: Path, count: int) -> None:
    assert sample_photos.main([str(folder / "photos"), "--count", str(count)]) == 0


def test_photographs_become_a_registered_model_and_again(tmp_path: Path) -> None:
    """One test, for the runs are long: each of the checks below looks at the same two."""
    make_photos(tmp_path, 200)
    first = run(tmp_path)
    check_summary(first)
    check_litter(first)
    second = run(tmp_path)
    check_no_duplicates(first, second)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    run_id = check_run(client, second)
    check_artifacts(client, run_id)
    check_model(client, second)
    check_published_version(first)


def test_until_shard_ends_with_a_published_checked_version(tmp_path: Path) -> None:
    make_photos(tmp_path, 40)
    shown = run(tmp_path, "until=shard")
    version = Path(shown.value("dataset"))
    manifest = json.loads((version / "dataset.json").read_text())
    proof = json.loads((version / "leakage.json").read_text())
    assert manifest["digest"] == proof["digest"] == shown.value("digest")
    assert proof["ok"] is True
    assert not (tmp_path / "mlflow.db").exists()


def check_summary(first: Ran) -> None:
    assert re.fullmatch(r"\d+, good \d+, quarantined \d+ \(.+\)", first.value("samples in"))
    sides = dict(part.split() for part in first.value("split").split(", "))
    assert set(sides) == {"train", "val", "test"}
    assert int(first.value("shards")) >= 3
    assert BAR <= float(first.value("test accuracy")) <= 1
    assert re.fullmatch(r"photos version 1 \(champion\)", first.value("model"))
    assert Path(first.value("profile report")).read_text().lower().startswith("<!doctype html")
    version = Path(first.value("dataset"))
    assert (version / "dataset.json").is_file()
    assert (version / "leakage.json").is_file()
    assert first.value("open MLflow with:").endswith(
        f"mlflow ui --backend-store-uri sqlite:///{first.folder}/mlflow.db"
    )


def check_litter(first: Ran) -> None:
    found = {path.name for path in first.folder.iterdir()}
    assert found <= {"photos", "tarpon-data", "mlflow.db", "mlruns", "mlartifacts"}


def check_no_duplicates(first: Ran, second: Ran) -> None:
    for key in ("digest", "dataset", "samples in", "split", "shards", "test accuracy"):
        assert second.value(key) == first.value(key)
    root = second.folder / "tarpon-data" / "photos"
    assert len(list(root.glob("*/dataset.json"))) == 1
    names = Counter(p.name for p in root.glob("v*/*.tar"))
    assert set(names.values()) == {1}
    assert len(list((root / "catalog").iterdir())) == 2  # as ingested, and as split


def check_run(client: mlflow.MlflowClient, second: Ran) -> str:
    experiment = client.get_experiment_by_name("tarpon")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["train.epochs"] == "10"
    digests = {item.dataset.digest for item in found.inputs.dataset_inputs}
    assert digests == {second.value("digest")[:36]}
    contexts = {tag.value for item in found.inputs.dataset_inputs for tag in item.tags}
    assert {"training", "validation", "testing"} <= contexts
    history = client.get_metric_history(found.info.run_id, "val/accuracy")
    assert len(history) == 10
    run_id: str = found.info.run_id
    return run_id


def check_artifacts(client: mlflow.MlflowClient, run_id: str) -> None:
    artifacts: list[str] = []
    folders = [""]
    while folders:
        for item in client.list_artifacts(run_id, folders.pop() or None):
            (folders if item.is_dir else artifacts).append(item.path)
    wanted = {"config.json", "overrides.json", "test/confusion_matrix.png", "test/report.csv"}
    assert wanted <= {*artifacts}


def check_model(client: mlflow.MlflowClient, second: Ran) -> None:
    (version,) = client.search_model_versions("name = 'photos'")
    assert client.get_model_version_by_alias("photos", "champion").version == version.version
    assert f"{float(version.tags['test_accuracy']):.4f}" == second.value("test accuracy")


def check_published_version(first: Ran) -> None:
    version = Path(first.value("dataset")).name
    shown = run(first.folder, f"data.version={version}", "data.source=null", "until=train")
    assert shown.value("digest") == first.value("digest")
    assert not any(line.startswith("samples in") for line in shown.lines)
