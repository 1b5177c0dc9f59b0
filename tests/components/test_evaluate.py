"""Evaluate: what it measures, where it writes it, and that a second time adds nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest

from components import loading, logged_model, manifest
from components import tracking as mlflow_seam
from components.evaluate import __main__ as command
from components.evaluate import run
from components.evaluate.met import met_by
from components.register import run as gate
from tests.components import blobs, colours
from tests.components.conftest import Trained

pytestmark = pytest.mark.slow  # a few seconds each, and many


def evaluate(trained: Trained, **options: Any) -> run.EvaluateReport:
    given = {
        "dataset_url": trained.dataset_url,
        "model_uri": trained.report.model_uri,
        "run_id": trained.report.run_id,
        "output": str(trained.folder / "evaluation"),
        "batch_size": 4,  # 9 samples: the last batch is short
    } | options
    return run.evaluate(given.pop("dataset_url"), **given)


def client_of(trained: Trained) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=trained.uri)


def test_it_measures_every_test_sample_once(copy_of_trained: Trained) -> None:
    report = evaluate(copy_of_trained)
    confusion = np.array(report.confusion)
    assert report.samples == confusion.sum() == 9
    assert confusion.sum(axis=1).tolist() == [3, 3, 3]
    assert report.accuracy == confusion.trace() / 9 >= 0.85
    assert report.classes == blobs.CLASSES
    assert [report.per_class[name]["support"] for name in report.classes] == [3, 3, 3]
    table = (copy_of_trained.folder / "evaluation" / "report.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["class"] for row in rows] == blobs.CLASSES
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in ("precision", "recall", "f1"))
    table = (copy_of_trained.folder / "evaluation" / "confusion_matrix.csv").read_text()
    first, *counts = csv.reader(table.splitlines())
    assert first == ["true class", *blobs.CLASSES]
    assert counts == [[n, *map(str, c)] for n, c in zip(blobs.CLASSES, confusion, strict=True)]
    lines = [("test", key, label) for key, label in _keys(copy_of_trained.dataset_url)]
    assert report.test_digest == manifest.digest(lines)


def _keys(url: str) -> list[tuple[str, str]]:
    with loading.evaluation_batches(
        manifest.read(url), "test", batch_size=9, image_size=16
    ) as batches:
        (batch,) = list(batches)
        labels = [blobs.CLASSES[label] for label in batch["label"]]
        return list(zip(batch.sample_keys, labels, strict=True))


def test_the_run_gets_metrics_linked_to_model_and_dataset(copy_of_trained: Trained) -> None:
    report = evaluate(copy_of_trained)
    client = client_of(copy_of_trained)
    found = client.get_run(report.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.metrics["test/accuracy"] == report.accuracy
    assert found.data.tags["test.digest"] == report.test_digest
    contexts = [
        {tag.key: tag.value for tag in item.tags}["mlflow.data.context"]
        for item in found.inputs.dataset_inputs
    ]
    assert sorted(contexts) == ["testing", "training", "validation"]
    model = client.get_logged_model(mlflow_seam.model_id_of(report.model_uri))
    (linked,) = [metric for metric in model.metrics if metric.key == "test/accuracy"]
    assert linked.dataset_name == "blobs/v1/test"
    assert linked.dataset_digest == report.dataset_digest[:36]
    files = {item.path for item in client.list_artifacts(report.run_id, "test")}
    assert files == {
        f"test/{name}"
        for name in (
            "report.json",
            "report.csv",
            "worst.png",
            "confusion_matrix.csv",
            "confusion_matrix.png",
        )
    }


def test_a_second_time_adds_nothing(copy_of_trained: Trained) -> None:
    assert evaluate(copy_of_trained) == evaluate(copy_of_trained)
    client = client_of(copy_of_trained)
    run_id = copy_of_trained.report.run_id
    assert len(client.get_metric_history(run_id, "test/accuracy")) == 1
    assert len(client.get_run(run_id).inputs.dataset_inputs) == 3


def test_an_empty_test_split(copy_of_trained: Trained, tmp_path: Path) -> None:
    url = blobs.publish(tmp_path, version="v2", test=0)
    with pytest.raises(loading.EmptySplitError, match="the test split has no samples, expected at"):
        evaluate(copy_of_trained, dataset_url=url)


def test_a_model_of_other_classes(copy_of_trained: Trained, tmp_path: Path) -> None:
    url = blobs.publish(tmp_path, version="v2", classes=["green", "red"])
    with pytest.raises(run.ModelMismatchError, match=r"\['green', 'red'\] in .*; evaluate it on"):
        evaluate(copy_of_trained, dataset_url=url)


def test_a_model_that_is_not_there(
    copy_of_trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(mlflow_seam.TrackingError, match=r"expected models:/m-\.\.\."):
        evaluate(copy_of_trained, model_uri="runs:/abc/model")
    arguments = ["--dataset", copy_of_trained.dataset_url, "--output", "out"]
    assert command.main([*arguments, "--model-uri", "models:/m-none"]) == 1
    assert capsys.readouterr().err.startswith("evaluate: models:/m-none: not found in sqlite:")
    assert command.main([*arguments, "--model-uri", "models:/m-none", "--device", "tpu"]) == 1
    assert "evaluate: --device='tpu': expected auto" in capsys.readouterr().err


def test_no_run_but_the_models_own_gets_its_figures(
    copy_of_trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, uri = copy_of_trained.report.run_id, copy_of_trained.report.model_uri
    arguments = ["--dataset", copy_of_trained.dataset_url, "--output", "out", "--model-uri", uri]
    assert command.main([*arguments, "--run-id", "nope"]) == 1
    assert f"evaluate: run nope: expected the run that trained {uri}, which is {ours};" in (
        capsys.readouterr().err
    )
    assert command.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["run_id"] == ours
    client_of(copy_of_trained).delete_run(ours)
    assert command.main(arguments) == 1
    assert f"run {ours}: found it deleted, expected the run that" in capsys.readouterr().err


def test_the_champion_is_measured_on_the_same_samples_once(
    copy_of_trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(copy_of_trained)
    model_id = mlflow_seam.model_id_of(copy_of_trained.report.model_uri)
    twin = client.get_logged_model(model_id).artifact_location  # same weights, another address
    client.create_registered_model("blobs")
    client.create_model_version("blobs", twin)
    client.set_registered_model_alias("blobs", "champion", "1")
    measured = []
    real = run._score

    def score(version: manifest.Manifest, model_uri: str, **options: Any) -> Any:
        measured.append(model_uri)
        return real(version, model_uri, **options)

    monkeypatch.setattr(run, "_score", score)
    report = evaluate(copy_of_trained, champion_of="blobs")
    assert (report.champion_version, report.champion_accuracy) == ("1", report.accuracy)
    assert "its run is gone or names no dataset" in report.champion_note
    assert report.compared_digest == report.test_digest
    assert evaluate(copy_of_trained, champion_of="blobs") == report
    ours = copy_of_trained.report.model_uri
    assert measured == [ours, twin, ours]
    gate_report = gate.register(
        model_uri=ours,
        run_id=report.run_id,
        dataset_url=report.dataset_url,
        accuracy=report.accuracy,
    )
    assert (gate_report.version, gate_report.alias) == ("2", "champion")


def test_a_champion_is_not_measured_on_what_it_was_trained_on(
    copy_of_trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its val and test samples are the test split of the new version; then its train samples."""
    client = client_of(copy_of_trained)
    ours = copy_of_trained.report
    twin = client.get_logged_model(mlflow_seam.model_id_of(ours.model_uri)).artifact_location
    client.create_registered_model("blobs")
    client.create_model_version("blobs", twin, run_id=ours.run_id)
    client.set_registered_model_alias("blobs", "champion", "1")
    url = blobs.publish(tmp_path, version="v2", first=30, train=3, val=3, test=18)
    report = evaluate(copy_of_trained, dataset_url=url, champion_of="blobs")
    on_the_rest = evaluate(copy_of_trained)  # 45 to 53, which v1 has as its test split
    assert (report.samples, report.champion_met, report.champion_note) == (18, 9, "")
    assert report.compared_digest == on_the_rest.test_digest
    assert report.compared_accuracy == report.champion_accuracy == on_the_rest.accuracy
    said = "champion version 1 was trained or validated on 9 of the 18 test samples: left out"
    assert said in caplog.text
    tags = client.get_model_version("blobs", "1").tags
    assert set(tags) == {mlflow_seam.accuracy_tag(report.compared_digest)}
    url = blobs.publish(tmp_path, version="v3", train=3, val=3, test=9)
    report = evaluate(copy_of_trained, dataset_url=url, champion_of="blobs")
    assert (report.champion_version, report.champion_met) == ("1", 9)
    assert (report.compared_accuracy, report.champion_accuracy) == (None, None)


def test_what_a_model_has_met_is_told_only_from_its_very_dataset(tmp_path: Path) -> None:
    url, tags = blobs.publish(tmp_path, train=3, val=3, test=3), {}
    run_of = SimpleNamespace(get_run=lambda _: SimpleNamespace(data=SimpleNamespace(tags=tags)))
    model = SimpleNamespace(source="s3://bucket/model", run_id="r")
    new = manifest.read(blobs.publish(tmp_path, version="v2", first=5, train=3, val=3, test=3))

    def unknown() -> str:
        return met_by(run_of, model, new, ["a"]).unknown

    assert unknown() == "its run is gone or names no dataset"
    tags |= {"dataset.url": url, "dataset.digest": new.digest}
    assert unknown() == ""  # the same dataset: the split is proven
    tags["dataset.digest"] = "0" * 64
    assert unknown() == f"{url} is not the version any more that it was trained on"
    tags["dataset.digest"] = manifest.read(url).digest
    (Path(url) / "train-000000.tar").unlink()
    assert "train-000000.tar" in unknown()
    (Path(url) / "dataset.json").unlink()
    assert "no dataset.json, so this version does not exist" in unknown()


def test_a_champion_that_cannot_be_measured_is_passed_over_and_said(
    copy_of_trained: Trained,
) -> None:
    client = client_of(copy_of_trained)
    client.create_registered_model("blobs")
    client.create_model_version("blobs", str(copy_of_trained.folder / "gone"))
    client.set_registered_model_alias("blobs", "champion", "1")
    report = evaluate(copy_of_trained, champion_of="blobs")
    assert (report.champion_version, report.champion_accuracy) == ("", None)
    assert (report.compared_digest, report.compared_accuracy) == ("", None)
    assert "/gone: cannot be loaded from" in report.champion_note


def test_a_champion_of_other_classes_is_passed_over_and_said(
    copy_of_trained: Trained, tmp_path: Path
) -> None:
    client = client_of(copy_of_trained)
    other = colours.save(tmp_path / "other", classes=["cat", "dog", "owl"])
    client.create_registered_model("blobs")
    client.create_model_version("blobs", other)
    client.set_registered_model_alias("blobs", "champion", "1")
    report = evaluate(copy_of_trained, champion_of="blobs")
    assert (report.champion_version, report.champion_accuracy) == ("", None)
    assert "was trained on the classes ['cat', 'dog', 'owl']" in report.champion_note


def test_kfp_gets_metrics_and_the_confusion_matrix(
    copy_of_trained: Trained, tmp_path: Path
) -> None:
    copy_of_trained.report.write(tmp_path / "model.json")
    config = {
        "data": {"name": "blobs"},
        "train": {"device": "cpu", "threads": 1},
        "evaluate": {"batch_size": 256},
        "register": {"name": None},
    }
    made = tmp_path / "made"
    names = ("evaluation", "metrics", "confusion")
    message = {
        "inputs": {
            "parameterValues": {"config": json.dumps(config)},
            "artifacts": {
                "model": {"artifacts": [{"name": "m", "uri": str(tmp_path / "model.json")}]}
            },
        },
        "outputs": {
            "artifacts": {n: {"artifacts": [{"name": n, "uri": str(made / n)}]} for n in names},
            "outputFile": str(made / "executor_output.json"),
        },
    }
    assert command.main(["--executor-input", json.dumps(message)]) == 0
    answer = json.loads((made / "executor_output.json").read_text())
    found = {name: answer["artifacts"][name]["artifacts"][0]["metadata"] for name in names}
    report = run.EvaluateReport.read(made / "evaluation")
    assert found["metrics"]["accuracy"] == report.accuracy
    matrix = found["confusion"]["confusionMatrix"]
    assert [item["displayName"] for item in matrix["annotationSpecs"]] == blobs.CLASSES
    assert [row["row"] for row in matrix["rows"]] == report.confusion


def test_a_failed_load_tells_no_secrets(tracking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str) -> None:
        raise mlflow.MlflowException("no answer from http://me:secret@host/api")

    monkeypatch.setattr(mlflow.models, "get_model_info", refuse)
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "http://me:secret@host")
    with pytest.raises(mlflow_seam.TrackingError, match=r"from http://host .*http://host/api") as e:
        logged_model.load("models:/m-1")
    assert "secret" not in str(e.value)


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_the_stores_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command.logging, "basicConfig", lambda **_: None)  # it outlives the test
    words = ["--dataset", "s3://bucket/photos/v1", "--model-uri", "models:/m-1"]
    assert command.main([*words, "--run-id", "r", "--output", "out"]) == 1
    assert "found no credentials" in capsys.readouterr().err
    monkeypatch.setattr(run, "evaluate", interrupted)
    assert command.main([*words, "--run-id", "r", "--output", "out"]) == 130
    assert capsys.readouterr().err == "evaluate: interrupted\n"
