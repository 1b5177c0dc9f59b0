"""Train: it learns, says what it did, and refuses what it must."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch

from components import loading, manifest
from components import tracking as mlflow_seam
from components.executor import ExecutorInputError, Task
from components.train import __main__ as command
from components.train import run
from components.train.checkpoint import CheckpointMismatchError
from components.train.memory import OutOfMemoryError
from components.train.model import UnknownModelError, build_model
from components.train.optim import learning_rate
from components.train.settings import Settings, SettingsError, training_key
from tests.components import blobs
from tests.components.conftest import SETTINGS, STEPS, Trained
from tests.components.mlflow_runs import client_of, steps_logged

pytestmark = pytest.mark.slow  # a few seconds each, and many


# ---- what a training leaves behind ----------------------------------------------------------


def test_it_learns(trained: Trained) -> None:
    assert trained.report.val_accuracy >= 0.85
    assert trained.report.train_loss < 0.9
    assert (trained.report.epochs, trained.report.steps) == (4, STEPS)
    assert trained.report.resumed_from_step is None


def test_the_run_says_what_was_trained_on_what(trained: Trained) -> None:
    client = client_of(trained.folder)
    found = client.get_run(trained.report.run_id)
    version = manifest.read(trained.dataset_url)
    assert found.info.status == "FINISHED"
    assert found.data.params["train.epochs"] == "4"
    assert found.data.params["train.model"] == "convnet"
    assert found.data.tags["dataset.digest"] == version.digest
    assert found.data.tags["dataset.url"] == trained.dataset_url
    assert found.data.tags["code.version"]
    used = {name: found.data.tags[f"train.used.{name}"] for name in ("precision", "loader")}
    assert used == {"precision": "float32", "loader": "tarpon"}
    assert found.data.tags["train.used.threads"] == found.data.tags["train.used.processes"] == "1"
    assert found.data.tags["train.used.torch"] == torch.__version__
    assert int(found.data.tags["train.used.parameters"]) > 100_000
    assert "train.allow_unproven" not in found.data.tags
    inputs = {
        {tag.key: tag.value for tag in item.tags}["mlflow.data.context"]: item.dataset
        for item in found.inputs.dataset_inputs
    }
    assert sorted(inputs) == ["training", "validation"]
    assert {item.digest for item in inputs.values()} == {version.digest[:36]}
    files = {item.path for item in client.list_artifacts(trained.report.run_id)}
    assert {"config.json", "overrides.json", "curves.png", "samples"} <= files
    assert "overrides" not in found.data.params


def test_every_step_and_epoch_is_logged_once(trained: Trained) -> None:
    client = client_of(trained.folder)
    every = list(range(1, STEPS + 1))
    assert steps_logged(client, trained.report.run_id, "train/step_loss") == every
    assert steps_logged(client, trained.report.run_id, "train/lr") == every
    for key in ("train/loss", "val/loss", "val/accuracy", "train/images_per_s", "epoch",
                "train/data_wait_percent"):  # fmt: skip
        assert steps_logged(client, trained.report.run_id, key) == [4, 8, 12, 16], key


def test_the_logged_model_serves_raw_pixels_of_any_batch_size(
    copy_of_trained: Trained,
) -> None:
    mlflow_seam.connect()
    model = mlflow.pyfunc.load_model(copy_of_trained.report.model_uri)
    shape = model.metadata.signature.inputs.inputs[0].shape
    assert shape == (-1, 3, 16, 16)
    for count in (1, 3, 5):
        images = np.full((count, 3, 16, 16), 60, np.float32)
        images[:, 0] = 180  # red
        answer = model.predict(images)
        assert answer.shape == (count, 3)
        assert {blobs.CLASSES[i] for i in answer.argmax(1)} == {"red"}
    about = model.metadata.metadata
    assert about["classes"] == blobs.CLASSES
    assert about["image_size"] == 16


def test_only_the_newest_two_checkpoints_stay(trained: Trained) -> None:
    names = [path.name for path in (trained.folder / "checkpoints").rglob("*.pt")]
    assert sorted(names) == ["checkpoint-000000012.pt", "checkpoint-000000016.pt"]
    assert Path(trained.report.checkpoint).name == "checkpoint-000000016.pt"


# ---- what it refuses -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proof", "message"),
    [
        (None, "leakage.json: not found"),
        (b"{", "no digest and verdict"),
        (b"[]", "no digest and verdict"),
        (b'{"digest": "abc", "ok": true}', "the proof of digest 'abc', expected"),
        ("failed", "a sample or a group on two sides"),
    ],
)
def test_an_unproven_dataset_is_refused(
    tmp_path: Path, proof: bytes | str | None, message: str
) -> None:
    url = blobs.publish(tmp_path, train=3, val=3, test=3, proof=False)
    if proof == "failed":
        proof = json.dumps({"digest": manifest.read(url).digest, "ok": False}).encode()
    if isinstance(proof, bytes):
        (Path(url) / manifest.LEAKAGE).write_bytes(proof)
    with pytest.raises(loading.UnprovenDatasetError, match=message) as caught:
        run.train(url, output=str(tmp_path / "out"))
    assert "train.allow_unproven=true" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("unlogged")
def test_an_unproven_dataset_is_taken_when_asked_for_by_name(tracking: str, tmp_path: Path) -> None:
    url = blobs.publish(tmp_path, train=8, val=0, test=0, proof=False)
    short = SETTINGS | {"epochs": 1}
    report = run.train(url, output=str(tmp_path / "out"), allow_unproven=True, **short)
    assert report.steps == 1
    assert report.val_accuracy is None  # nothing to validate on, and it says so
    assert client_of(tmp_path).get_run(report.run_id).data.tags["train.allow_unproven"] == "true"


def test_one_class_is_nothing_to_learn(tmp_path: Path) -> None:
    url = blobs.publish(tmp_path, classes=["red"])
    with pytest.raises(loading.OneClassError, match=r"found the classes \['red'\], expected at"):
        run.train(url, output=str(tmp_path / "out"), **SETTINGS)


def assert_no_run_was_opened(folder: Path) -> None:
    assert client_of(folder).search_experiments(filter_string="name = 'tarpon'") == []


def test_too_few_samples_for_a_batch(tracking: str, tmp_path: Path) -> None:
    url = blobs.publish(tmp_path, train=7)
    with pytest.raises(loading.EmptySplitError, match="the train split has 7 samples"):
        run.train(url, output=str(tmp_path / "out"), **SETTINGS)
    assert_no_run_was_opened(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "train.epochs=0: expected a whole number of at least 1"),
        ({"batch_size": 8.0}, "train.batch_size=8.0: expected a whole number"),
        ({"image_size": 8}, "train.image_size=8: expected a whole number of pixels, at least 16"),
        ({"lr": 0.0}, "train.lr=0.0: expected a number above 0"),
        ({"weight_decay": -1.0}, "train.weight_decay=-1.0: expected 0 or more"),
        ({"warmup_epochs": -1.0}, "train.warmup_epochs=-1.0: expected 0 or more"),
        ({"label_smoothing": 1.0}, "train.label_smoothing=1.0: expected a number from 0"),
        ({"threads": 0}, "train.threads=0: expected at least 1, or null"),
        ({"checkpoint_every_s": 0.0}, "train.checkpoint_every_s=0.0: expected seconds above 0"),
    ],
)
def test_settings_no_training_can_use(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings(**settings)


def test_the_device() -> None:
    assert loading.pick_device("auto", cuda=True) == "cuda"
    assert loading.pick_device("auto", cuda=False) == "cpu"
    assert loading.pick_device("cpu", cuda=True) == "cpu"
    with pytest.raises(loading.DeviceError, match="torch sees no CUDA device; use"):
        loading.pick_device("cuda", cuda=False)
    assert loading.pick_device("cuda:1", cuda=2) == "cuda:1"
    with pytest.raises(loading.DeviceError, match="'cuda:2': torch sees 2 CUDA devices; use"):
        loading.pick_device("cuda:2", cuda=2)
    with pytest.raises(loading.DeviceError, match="'tpu': expected auto, cpu, cuda or cuda:<n>"):
        loading.pick_device("tpu", cuda=False)


@pytest.mark.usefixtures("tracking")
def test_a_network_that_does_not_fit_names_the_settings_that_make_it_fit(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr("components.train.loop.build_optimizer", full)
    with pytest.raises(OutOfMemoryError, match=r"train.model='convnet' and its optimiser do not f"):
        run.train(trained.dataset_url, output=str(tmp_path), **SETTINGS)
    monkeypatch.setattr("components.train.model.Classifier.to", full)
    with pytest.raises(
        OutOfMemoryError,
        match=r"\(CUDA out of memory. Tried to allocate 2.00 GiB.\), .*; end what else uses that "
        r"memory, .*, set train.optimizer=sgd, set train.ema_decay=0 \(now 0.9\)$",
    ):
        run.train(trained.dataset_url, output=str(tmp_path), **SETTINGS, ema_decay=0.9)


@pytest.mark.usefixtures("tracking")
def test_a_step_that_does_not_fit_names_the_settings_that_make_it_fit(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def huge(self: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
        return self.network(image) + torch.empty(2**50).sum()

    monkeypatch.setattr("components.train.model.Classifier.forward", huge)
    with pytest.raises(OutOfMemoryError, match="step 1 does not fit into the memory of the") as it:
        run.train(trained.dataset_url, output=str(tmp_path / "out"), **SETTINGS, accumulate=2)
    assert "found 4 samples of 16 pixels at a time; raise train.accumulate from 2" in str(it.value)
    assert "lower train.batch_size or train.image_size, set train.precision=bf" in str(it.value)


def test_every_rank_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert run._pick_device(Settings(device="cuda")) == "cuda:1"
    with pytest.raises(SettingsError, match="'cuda:1': found 2 processes on this machine, expect"):
        run._pick_device(Settings(device="cuda:1"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # two machines
    assert run._pick_device(Settings(device="cuda:1")) == "cuda:1"


def test_several_processes_in_one_are_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"train.processes=2: found one process, expected torch"
    ):
        run.train(trained.dataset_url, output=str(tmp_path / "out"), **SETTINGS, processes=2)


def test_what_cannot_be_trained_here_is_refused_before_a_run_is_opened(
    trained: Trained, tracking: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"train.augment=.rand.: found the tarpon loader"):
        run.train(trained.dataset_url, output=str(tmp_path / "out"), **SETTINGS, augment="rand")
    with pytest.raises(UnknownModelError, match=r"train.model=.resnet999."):
        run.train(trained.dataset_url, output=str(tmp_path / "out"), **SETTINGS, model="resnet999")
    assert_no_run_was_opened(tmp_path)


@pytest.mark.usefixtures("unlogged")
def test_a_checkpoint_of_other_classes_is_refused_by_name(
    copy_of_trained: Trained, tmp_path: Path
) -> None:
    (folder,) = (tmp_path / "checkpoints").iterdir()
    (folder / "report.json").unlink()
    for path in folder.glob("*.pt"):
        state = torch.load(path, weights_only=True)
        torch.save(state | {"classes": ["blue", "red"]}, path)
    output = str(tmp_path / "checkpoints")
    with pytest.raises(CheckpointMismatchError, match="2 classes, expected the 3 of the dataset"):
        run.train(copy_of_trained.dataset_url, output=output, **SETTINGS)
    again = run.train(copy_of_trained.dataset_url, output=output, fresh=True, **SETTINGS)
    assert again.resumed_from_step is None


def test_an_unknown_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("components.train.model.importlib.import_module", broken)
    with pytest.raises(UnknownModelError, match="'resnet50': that is not 'convnet', and torchvis"):
        build_model("resnet50", 3)


def test_a_torchvision_model_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Models:
        @staticmethod
        def get_model(name: str, *, weights: None, num_classes: int) -> torch.nn.Module:
            if name != "tiny":
                raise ValueError(f"Unknown model {name}")
            return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, num_classes))

    monkeypatch.setattr("components.train.model.importlib.import_module", lambda name: Models)
    assert build_model("tiny", 5)(torch.zeros(2, 3, 4, 4)).shape == (2, 5)
    with pytest.raises(UnknownModelError, match="'tyni': expected 'convnet' or a name of"):
        build_model("tyni", 5)


def test_a_dataset_that_does_not_exist_is_one_line_and_a_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = command.main(["--dataset", str(tmp_path / "none"), "--output", str(tmp_path / "out")])
    assert code == 1
    assert capsys.readouterr().err.startswith(f"train: {tmp_path}/none: no dataset.json")


# ---- small parts -----------------------------------------------------------------------------


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    settings = Settings(epochs=5, lr=0.1, warmup_epochs=1)
    rates = [learning_rate(settings, step, 20) for step in range(100)]
    assert rates[:20] == sorted(rates[:20])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[0] < 0.01
    assert max(rates) == rates[20] == 0.1
    assert rates[-1] < 1e-4
    no_warmup = Settings(epochs=1, lr=0.1, warmup_epochs=0)
    assert learning_rate(no_warmup, 0, 20) == 0.1


def test_the_key_of_a_training_is_what_decides_its_result() -> None:
    def key(digest: str = "d", experiment: str = "e", **settings: Any) -> str:
        return training_key(Settings(**settings), digest=digest, experiment=experiment)

    same = [key(), key(device="cpu"), key(threads=2), key(checkpoint_every_s=1)]
    others = [key(digest="x"), key(experiment="x"), key(epochs=9), key(seed=1), key(lr=1)]
    assert len(set(same)) == 1
    assert len({*same, *others}) == 1 + len(others)


def test_kfp_starts_it_and_reads_its_answer(
    copy_of_trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pointer = tmp_path / "pointer.json"
    pointer.write_text(json.dumps({"dataset_url": copy_of_trained.dataset_url}))
    config = {
        "data": {"name": "blobs"},
        "store": {"root": str(tmp_path / "root")},
        "train": SETTINGS,
        "mlflow": {"experiment": "tarpon"},
    }
    given: dict[str, Any] = {}

    def train(dataset_url: str, **options: Any) -> Any:
        given.update(options, dataset_url=dataset_url)
        return copy_of_trained.report

    monkeypatch.setattr(run, "train", train)

    def artifact(name: str) -> dict[str, Any]:
        return {"artifacts": [{"name": name, "uri": str(tmp_path / "made" / name)}]}

    message = {
        "inputs": {
            "parameterValues": {"config": json.dumps(config)},
            "artifacts": {"dataset": {"artifacts": [{"name": "d", "uri": str(pointer)}]}},
        },
        "outputs": {
            "parameters": {"run_id": {"outputFile": str(tmp_path / "made" / "run_id")}},
            "artifacts": {"model": artifact("model"), "metrics": artifact("metrics")},
            "outputFile": str(tmp_path / "made" / "executor_output.json"),
        },
    }
    assert command.main(["--executor-input", json.dumps(message)]) == 0
    assert given["dataset_url"] == copy_of_trained.dataset_url
    assert given["output"] == str(tmp_path / "root" / "blobs" / "checkpoints")
    assert (given["epochs"], given["experiment"], given["config"]) == (4, "tarpon", config)
    answer = json.loads((tmp_path / "made" / "executor_output.json").read_text())
    assert answer["parameterValues"] == {"run_id": copy_of_trained.report.run_id}
    (metrics,) = answer["artifacts"]["metrics"]["artifacts"]
    assert metrics["metadata"]["val_accuracy"] == copy_of_trained.report.val_accuracy
    assert run.TrainReport.read(tmp_path / "made" / "model") == copy_of_trained.report


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a JSON object"),
        ("3", "found '3', expected a JSON object"),
        ("{}", "found no outputs.outputFile"),
    ],
)
def test_an_executor_input_that_is_none(text: str, message: str) -> None:
    with pytest.raises(ExecutorInputError, match=message):
        Task.from_json(text)


def test_artifacts_lie_where_the_launcher_mounts_them() -> None:
    def at(uri: str) -> Path:
        inputs = {"artifacts": {"x": {"artifacts": [{"name": "x", "uri": uri}]}}}
        return Task({"inputs": inputs, "outputs": {"outputFile": "f"}}).input_path("x")

    assert at("s3://bucket/a/b") == Path("/s3/bucket/a/b")
    assert at("minio://bucket/a") == Path("/minio/bucket/a")
    assert at("gs://bucket/a") == Path("/gcs/bucket/a")
    assert at("/tmp/a") == Path("/tmp/a")
    with pytest.raises(ExecutorInputError, match=r"found the artifacts .*, expected one 'y'"):
        Task({"outputs": {"outputFile": "f"}}).input_path("y")
