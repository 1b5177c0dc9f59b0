"""Register: every branch of the gate, and one version per model however often it is called."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest

from components import logged_model
from components import tracking as mlflow_seam
from components.register import __main__ as command
from components.register import run
from components.register.component import register as component
from tests.components import blobs

DIGEST = "d" * 64
OTHER = "e" * 64


@pytest.fixture
def client(tracking: str) -> mlflow.MlflowClient:
    return mlflow_seam.connect()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return blobs.publish(tmp_path, train=3, val=3, test=3)


def logged(client: mlflow.MlflowClient) -> dict[str, str]:
    """A model as train leaves it, without the network."""
    run_id = client.create_run("0").info.run_id
    model = client.create_logged_model("0", name="model", source_run_id=run_id)
    client.finalize_logged_model(model.model_id, "READY")
    return {"model_uri": f"models:/{model.model_id}", "run_id": run_id}


def register(client: mlflow.MlflowClient, url: str, accuracy: float, **options: Any) -> Any:
    given = {"test_digest": DIGEST, "dataset_url": url, **logged(client), **options}
    return run.register(accuracy=accuracy, **given)


def aliases(client: mlflow.MlflowClient, name: str = "blobs") -> dict[str, str]:
    found = client.get_registered_model(name).aliases
    return {alias: str(version) for alias, version in found.items()}


def test_the_first_model_becomes_champion(client: mlflow.MlflowClient, url: str) -> None:
    report = register(client, url, 0.9, min_accuracy=0.9)
    assert (report.name, report.version, report.alias) == ("blobs", "1", "champion")
    assert report.reason == "champion: the first model, accuracy 0.9000"
    assert aliases(client) == {"champion": "1"}
    found = client.get_model_version("blobs", "1")
    assert found.tags["test_digest"] == DIGEST
    assert found.tags["test_accuracy"] == "0.9"
    assert found.tags["dataset.url"] == url
    assert found.description == report.reason


def test_a_better_or_equal_one_takes_over(client: mlflow.MlflowClient, url: str) -> None:
    register(client, url, 0.9)
    assert register(client, url, 0.9).alias == "champion"
    assert register(client, url, 0.95).alias == "champion"
    assert aliases(client) == {"champion": "3"}


def test_a_worse_one_is_challenger(client: mlflow.MlflowClient, url: str) -> None:
    register(client, url, 0.9)
    report = register(client, url, 0.89)
    assert report.alias == "challenger"
    assert "0.8900 against 0.9000 of champion version 1" in report.reason
    assert aliases(client) == {"champion": "1", "challenger": "2"}


def test_better_by_less_than_the_margin_is_challenger(
    client: mlflow.MlflowClient, url: str
) -> None:
    register(client, url, 0.9)
    assert register(client, url, 0.92, margin=0.05).alias == "challenger"
    assert register(client, url, 0.96, margin=0.05).alias == "champion"


def test_one_below_the_floor_is_kept_without_an_alias(
    client: mlflow.MlflowClient, url: str
) -> None:
    report = register(client, url, 0.5, min_accuracy=0.8)
    assert report.alias == "none"
    assert report.reason == "refused: accuracy 0.5000 is below min_accuracy 0.8000"
    assert client.get_model_version("blobs", report.version).description == report.reason
    assert aliases(client) == {}
    assert register(client, url, 0.9, min_accuracy=0.8).alias == "champion"


def test_a_champion_of_other_test_samples_cannot_be_beaten_unseen(
    client: mlflow.MlflowClient, url: str
) -> None:
    register(client, url, 0.5, test_digest=OTHER)
    report = register(client, url, 0.99)
    assert report.alias == "challenger"
    assert f"version 1 was not measured on the test samples {DIGEST[:16]}" in report.reason
    client.set_model_version_tag("blobs", "1", mlflow_seam.accuracy_tag(DIGEST), "0.7")
    assert register(client, url, 0.99).alias == "champion"


def beside(accuracy: float | None, *, met: int, **options: Any) -> run.Comparison:
    left = {"champion": "1", "samples": 27 - met, "digest": OTHER}
    return run.Comparison(accuracy=accuracy, met=met, **left | options)


def test_the_champion_is_beaten_on_the_samples_it_has_not_met(
    client: mlflow.MlflowClient, url: str
) -> None:
    register(client, url, 0.96)
    client.set_model_version_tag("blobs", "1", mlflow_seam.accuracy_tag(OTHER), "0.75")
    report = register(client, url, 0.7, comparison=beside(0.7, met=13))
    assert report.alias == "challenger"
    assert report.reason.endswith(
        "accuracy 0.7000 against 0.7500 of champion version 1, margin 0.0000, on 14 test samples: "
        "13 that the champion was trained or validated on are left out"
    )
    found = client.get_model_version("blobs", "2")
    assert (found.tags["test_left_out"], found.description) == ("13", report.reason)
    model = logged(client) | {"comparison": beside(0.8, met=13)}
    assert register(client, url, 0.7, **model).alias == "champion"
    assert register(client, url, 0.7, **model).alias == "champion"
    assert client.get_model_version("blobs", "3").tags["test_left_out"] == "13"
    # Of who was champion before this says nothing about who is now.
    assert register(client, url, 0.6, comparison=beside(0.8, met=13)).alias == "challenger"


def test_a_champion_that_has_met_all_test_samples_cannot_be_beaten(
    client: mlflow.MlflowClient, url: str
) -> None:
    register(client, url, 0.5)
    report = register(client, url, 0.9, comparison=beside(None, met=27))
    assert report.alias == "challenger"
    assert "validated on all 27 test samples, so that none compares the two; add" in report.reason


def test_what_a_champion_has_met_may_be_unknown_and_is_said(
    client: mlflow.MlflowClient, url: str
) -> None:
    register(client, url, 0.5)
    unknown = beside(0.9, met=0, digest=DIGEST, note="it may have been trained on some")
    report = register(client, url, 0.9, comparison=unknown)
    assert report.alias == "champion"
    assert report.reason.endswith("margin 0.0000; it may have been trained on some")


def test_a_champion_whose_model_was_deleted_protects_nothing(
    client: mlflow.MlflowClient, url: str
) -> None:
    first = logged(client)
    register(client, url, 0.9, **first)
    client.delete_logged_model(mlflow_seam.model_id_of(first["model_uri"]))
    assert register(client, url, 0.6, min_accuracy=0.8).alias == "none"
    report = register(client, url, 0.85, min_accuracy=0.8)
    assert (report.version, report.alias) == ("3", "champion")
    assert report.reason == (
        "champion: accuracy 0.8500; the model of champion version 1 was deleted"
    )
    client.delete_model_version("blobs", "3")  # and its alias with it
    assert register(client, url, 0.5).reason == "champion: the first model, accuracy 0.5000"


def test_a_champion_of_other_classes_is_left_to_a_person(
    client: mlflow.MlflowClient, url: str, tmp_path: Path
) -> None:
    def champion(classes: list[str]) -> None:
        folder = tmp_path / str(len(classes))
        folder.mkdir()
        mlflow.models.Model(metadata={"classes": classes}).save(str(folder / "MLmodel"))
        made = client.create_model_version("blobs", str(folder))
        client.set_model_version_tag("blobs", made.version, mlflow_seam.accuracy_tag(DIGEST), "0.1")
        client.set_registered_model_alias("blobs", "champion", made.version)

    client.create_registered_model("blobs")
    champion([f"kind{n}" for n in range(1000)])
    report = register(client, url, 0.99)
    assert report.alias == "challenger"
    assert "champion version 1 tells apart [kind0, kind1, " in report.reason
    assert "kind7, ... 1000 in all], this one [blue, green, red]; no test set" in report.reason
    champion(list(blobs.CLASSES))
    assert register(client, url, 0.99).alias == "champion"


def test_an_accuracy_that_is_none_is_not_compared_with(
    client: mlflow.MlflowClient, url: str
) -> None:
    register(client, url, 0.5)
    tag = mlflow_seam.accuracy_tag(DIGEST)
    client.set_model_version_tag("blobs", "1", tag, "great")
    report = register(client, url, 0.9)
    assert (report.alias, "was not measured on" in report.reason) == ("challenger", True)
    for noted, known in {"nan": None, "7": None, "": None, "0.25": 0.25}.items():
        assert logged_model.accuracy_of(SimpleNamespace(tags={tag: noted}), DIGEST) == known


def test_an_accuracy_that_is_none_is_refused(client: mlflow.MlflowClient, url: str) -> None:
    report = register(client, url, float("nan"))
    assert (report.alias, aliases(client)) == ("none", {})
    assert report.reason.startswith("refused: accuracy nan is no number of 0 to 1")


def test_the_same_model_twice_is_one_version(client: mlflow.MlflowClient, url: str) -> None:
    model = logged(client)
    first = register(client, url, 0.9, **model)
    again = register(client, url, 0.9, **model)
    assert (again.version, again.alias) == (first.version, "champion")
    assert again.reason == "champion: it is already, accuracy 0.9000"
    assert len(client.search_model_versions("name='blobs'")) == 1
    register(client, url, 0.95)
    assert register(client, url, 0.9, **model).alias == "challenger"
    assert aliases(client) == {"champion": "2", "challenger": "1"}


def test_a_challenger_that_is_promoted_is_no_challenger_any_more(
    client: mlflow.MlflowClient, url: str
) -> None:
    register(client, url, 0.9)
    model = logged(client)
    assert register(client, url, 0.92, margin=0.05, **model).alias == "challenger"
    assert register(client, url, 0.92, **model).alias == "champion"
    assert aliases(client) == {"champion": "2"}


def test_the_digest_comes_from_the_run_when_not_given(
    client: mlflow.MlflowClient, url: str
) -> None:
    model = logged(client)
    with pytest.raises(run.NotEvaluatedError, match=r"found no tag test.digest, .*; evaluate the"):
        register(client, url, 0.9, test_digest=None, **model)
    client.set_tag(model["run_id"], "test.digest", OTHER)
    assert register(client, url, 0.9, test_digest=None, **model).test_digest == OTHER


def test_what_it_refuses(
    client: mlflow.MlflowClient, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(mlflow, "get_tracking_uri", lambda: "postgresql://me:secret@x/db")
        with pytest.raises(mlflow_seam.TrackingError, match="not found in postgresql://x/db, "):
            register(client, url, 0.9, model_uri="models:/m-none")
    with pytest.raises(mlflow_seam.TrackingError, match=r"register.name='a/b': MLflow refuses it"):
        register(client, url, 0.9, name="a/b")
    assert register(client, url, 0.9, name="it's").name == "it's"


def test_it_says_nothing_on_its_own(
    client: mlflow.MlflowClient, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    register(client, url, 0.9)
    register(client, url, 0.9)
    assert capsys.readouterr() == ("", "")


def evaluated(client: mlflow.MlflowClient, url: str, **beside: Any) -> str:
    """A report as evaluate writes it, of a first model unless told what it was `beside`."""
    measured = {"accuracy": 0.9, "test_digest": DIGEST, "dataset_url": url, "samples": 27}
    measured |= {"champion_version": "", "champion_met": 0, "champion_note": "", "loss": 0.1}
    measured |= {"compared_digest": "", "compared_accuracy": None, **logged(client)}
    return json.dumps(measured | beside)


def test_the_component_maps_its_artifacts(
    client: mlflow.MlflowClient, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_UI_URL", "https://bob:pw@mlflow.example/")
    evaluation = SimpleNamespace(path=str(tmp_path / "evaluation"))
    Path(evaluation.path).write_text(evaluated(client, url))
    registration = SimpleNamespace(path=str(tmp_path / "registration"), metadata={})
    config = {
        "data": {"name": "photos"},
        "register": {"name": None, "min_accuracy": 0.0, "margin": 0.0},
    }
    answer = component.python_func(
        config=json.dumps(config), evaluation=evaluation, registration=registration
    )
    assert answer == "photos 1 champion"
    assert run.RegisterReport.read(registration.path).version == "1"
    assert registration.metadata["alias"] == "champion"
    page = "https://mlflow.example/#/models/photos/versions/1"
    assert registration.metadata["mlflow_version_url"] == page
    assert registration.metadata["mlflow_links"] == f"[registered version]({page})"


def test_by_hand(
    client: mlflow.MlflowClient, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.json"
    file.write_text(evaluated(client, url))
    asked = ["--evaluation", str(file), "--min-accuracy", "0.95", "--name", "pets"]
    assert command.main(asked) == 0
    report = run.RegisterReport.from_json(capsys.readouterr().out)
    assert (report.name, report.version, report.alias) == ("pets", "1", "none")
    file.write_text('{"accuracy": 0.9}')
    assert command.main(asked) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"register: {file}: no report of evaluate (KeyError: 'model_uri')")


def test_by_hand_too_the_champion_is_beaten_on_the_samples_it_has_not_met(
    client: mlflow.MlflowClient, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(client, url, 0.96)
    client.set_model_version_tag("blobs", "1", mlflow_seam.accuracy_tag(OTHER), "0.75")
    beside = {"champion_version": "1", "champion_met": 13, "compared_digest": OTHER}
    file = tmp_path / "report.json"
    file.write_text(evaluated(client, url, **beside, compared_accuracy=0.8))
    assert command.main(["--evaluation", str(file)]) == 0
    report = run.RegisterReport.from_json(capsys.readouterr().out)
    assert report.alias == "champion"
    assert "accuracy 0.8000 against 0.7500 of champion version 1" in report.reason
    assert "on 14 test samples: 13 that the champion" in report.reason
