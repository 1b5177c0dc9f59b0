"""Train, stopped and started again: by a kill, a signal, a bad loss, or after the end."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tarpon
import torch
from mlflow.entities import LoggedModelStatus

from components import manifest
from components.store import Store
from components.tracking import TRAINING_TAG, TrackingError
from components.train import __main__ as command
from components.train import run
from components.train.checkpoint import Checkpoints
from components.train.loop import LAG, NonFiniteLossError, Trainer
from tests.components.conftest import SETTINGS, STEPS, Trained
from tests.components.mlflow_runs import client_of, steps_logged
from tests.servers.s3 import S3Server

pytestmark = pytest.mark.slow  # a few seconds each, and many


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, action: Any) -> None:
    """Do something with the trainer right after the given optimiser step."""
    real = Trainer._train_on

    def wrapped(self: Trainer, batch: Any, before: Any) -> None:
        real(self, batch, before)
        if self.step == step:
            action(self)

    monkeypatch.setattr(Trainer, "_train_on", wrapped)


def assert_same_weights(one: run.TrainReport, other: run.TrainReport) -> None:
    mine, theirs = (torch.load(it.checkpoint, weights_only=True)["model"] for it in (one, other))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.fixture
def every_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """No checkpoint is left out because the one before is still being written."""
    monkeypatch.setattr(Checkpoints, "busy", property(lambda self: self.wait() is not None))


def power_cut(_: object) -> None:
    raise RuntimeError("power cut")


# ---- after the end, a kill or a signal ---------------------------------------------------------


def test_the_same_command_again_answers_without_training(
    copy_of_trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again() -> run.TrainReport:
        output = str(copy_of_trained.folder / "checkpoints")
        return run.train(copy_of_trained.dataset_url, output=output, **SETTINGS)

    report = copy_of_trained.report
    assert again() == report
    client = client_of(copy_of_trained.folder)
    assert len(client.search_runs(["1"])) == 1

    injected = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", injected)
    assert again() == report
    told = client.get_run(injected)
    assert told.info.status == "FINISHED"
    assert told.data.tags["train.run_id"] == report.run_id
    assert told.data.params["train.epochs"] == "4"
    assert told.data.metrics["val/accuracy"] == report.val_accuracy
    monkeypatch.setenv("MLFLOW_RUN_ID", report.run_id)
    assert again() == report
    assert len(client.search_runs(["0", "1"])) == 2


@pytest.mark.usefixtures("unlogged", "every_checkpoint")
@pytest.mark.parametrize("step", [1, 9])  # before a first checkpoint, and just after an epoch
def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    trained: Trained,
    tracking: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    output = str(tmp_path / "checkpoints")
    often = {**SETTINGS, "checkpoint_every_s": 1e-9}
    with monkeypatch.context() as patch:
        stop_after(patch, step, power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            run.train(trained.dataset_url, output=output, **often)
    client = client_of(tmp_path)
    (killed,) = client.search_runs(["1"])
    assert killed.info.status == "FAILED"

    report = run.train(trained.dataset_url, output=output, **often)
    assert report.resumed_from_step == step - 1
    assert report.run_id == killed.info.run_id
    assert client.get_run(report.run_id).info.status == "FINISHED"
    for key in ("train/step_loss", "train/lr"):
        assert Counter(steps_logged(client, report.run_id, key)) == Counter(range(1, STEPS + 1))
    assert sorted(steps_logged(client, report.run_id, "val/accuracy")) == [4, 8, 12, 16]
    assert_same_weights(report, trained.report)
    assert report.train_loss == trained.report.train_loss


@pytest.mark.usefixtures("tracking", "unlogged")
def test_nothing_that_a_step_can_do_is_lost_by_a_kill(
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Averaged weights, momentum, parts, mixtures, dropout: bit by bit, read late as on a GPU."""
    monkeypatch.setitem(LAG, "cpu", 1)
    options = SETTINGS | {
        "optimizer": "sgd", "ema_decay": 0.8, "accumulate": 2, "mixup_alpha": 0.4,
        "cutmix_alpha": 1.0, "clip_norm": 2.0, "precision": "bfloat16", "keep_checkpoints": 1,
        "checkpoint_every_s": 1e-9,
    }  # fmt: skip
    whole = run.train(trained.dataset_url, output=str(tmp_path / "whole"), **options)
    output = str(tmp_path / "cut")
    with monkeypatch.context() as patch:
        stop_after(patch, 11, power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            run.train(trained.dataset_url, output=output, **options)
    caplog.set_level(logging.INFO)
    report = run.train(trained.dataset_url, output=output, **options, began_s=time.time())
    assert re.search(r"first step after \d+\.\d s", caplog.text)
    assert report.resumed_from_step in (8, 9, 10)
    one, other = (torch.load(it.checkpoint, weights_only=True) for it in (whole, report))
    for part in ("model", "average"):
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part]), part
    first = "network.0.weight"
    assert not torch.equal(one["model"][first], one["average"][first])
    assert (report.train_loss, report.val_loss) == (whole.train_loss, whole.val_loss)
    assert len(list(Path(report.checkpoint).parent.glob("*.pt"))) == 1


def by_hand(dataset_url: str, output: Path) -> int:
    """The command with SETTINGS; its exit code."""
    options = [f"--{key.replace('_', '-')}={value}" for key, value in SETTINGS.items()]
    return command.main(["--dataset", dataset_url, "--output", str(output), *options])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends_the_run_as_killed(
    trained: Trained,
    tracking: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    stop_after(monkeypatch, 6, lambda _: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    assert by_hand(trained.dataset_url, tmp_path / "out") == code
    assert "checkpoint-000000006.pt" in capsys.readouterr().err
    assert signal.getsignal(number) == before
    (found,) = client_of(tmp_path).search_runs(["1"])
    assert found.info.status == "KILLED"


@pytest.mark.usefixtures("unlogged")
def test_a_signal_is_heard_between_two_batches_of_the_validation(
    trained: Trained,
    tracking: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        heard = Trainer._stop_if_asked
        asked: list[int] = []

        def kill_at_the_second(self: Trainer) -> None:
            asked.append(self.step)
            if len(asked) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            heard(self)

        patch.setattr(Trainer, "_stop_if_asked", kill_at_the_second)
        assert by_hand(trained.dataset_url, tmp_path / "out") == 143
    assert asked == [4, 4]
    assert "checkpoint-000000004.pt" in capsys.readouterr().err
    report = run.train(trained.dataset_url, output=str(tmp_path / "out"), **SETTINGS)
    assert report.resumed_from_step == 4
    assert_same_weights(report, trained.report)
    (found,) = client_of(tmp_path).search_runs(["1"])
    assert steps_logged(client_of(tmp_path), found.info.run_id, "val/loss") == [4, 8, 12, 16]
    assert report.val_loss == trained.report.val_loss


def test_stopped_while_the_model_is_logged_or_after_it_leaves_one_model(
    copy_of_trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run has this training's model already; a killed attempt left an unfinished one."""
    client = client_of(copy_of_trained.folder)
    (folder,) = (copy_of_trained.folder / "checkpoints").iterdir()
    (folder / "report.json").unlink()
    client.create_logged_model(
        "1", "model", copy_of_trained.report.run_id, tags={TRAINING_TAG: folder.name}
    )
    with monkeypatch.context() as patch:
        real = run._Training._log_model

        def stopped(self: run._Training, trainer: Trainer) -> str:
            os.kill(os.getpid(), signal.SIGTERM)
            return real(self, trainer)

        patch.setattr(run._Training, "_log_model", stopped)
        assert by_hand(copy_of_trained.dataset_url, folder.parent) == 143
    assert "checkpoint-000000016.pt" in capsys.readouterr().err
    assert len(client.search_logged_models(["1"])) == 2
    assert client.get_run(copy_of_trained.report.run_id).info.status == "KILLED"
    report = run.train(copy_of_trained.dataset_url, output=str(folder.parent), **SETTINGS)
    (model,) = client.search_logged_models(["1"])
    assert report.model_uri == model.model_uri == copy_of_trained.report.model_uri
    assert model.status == LoggedModelStatus.READY
    assert client.get_run(report.run_id).info.status == "FINISHED"


def test_checkpoints_and_reports_lie_on_s3_as_well(
    trained: Trained, tracking: str, s3_environment: S3Server
) -> None:
    """The shards stay in their folder: what is looked at is where a training leaves its own."""
    bucket = s3_environment.bucket()
    options = {**SETTINGS, "epochs": 3, "output": f"{bucket.url}/photos/checkpoints"}
    first = run.train(trained.dataset_url, **options)
    names = sorted(os.path.basename(name) for name in Store(bucket.url).list())
    assert names == ["checkpoint-000000008.pt", "checkpoint-000000012.pt", "report.json"]
    assert first.checkpoint.startswith(f"{bucket.url}/photos/checkpoints/")
    assert first.checkpoint.endswith("/checkpoint-000000012.pt")
    assert run.train(trained.dataset_url, **options) == first  # finished: told from the report
    Store(first.checkpoint.rpartition("/")[0]).remove("report.json")
    again = run.train(trained.dataset_url, **options)
    assert (again.resumed_from_step, again.steps) == (12, 12)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    copy_of_trained: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    (folder,) = (copy_of_trained.folder / "checkpoints").iterdir()
    newest = folder / "checkpoint-000000016.pt"
    newest.write_bytes(newest.read_bytes()[:2000])
    with caplog.at_level(logging.WARNING):
        found = Checkpoints(folder).load_newest()
    assert found is not None
    assert (found[0], found[1].step) == ("checkpoint-000000012.pt", 12)
    assert f"{newest}: cannot be read" in caplog.text


@pytest.mark.usefixtures("unlogged")
def test_a_run_deleted_from_mlflow_is_replaced_with_its_history(
    copy_of_trained: Trained, caplog: pytest.LogCaptureFixture
) -> None:
    client = client_of(copy_of_trained.folder)
    client.delete_run(copy_of_trained.report.run_id)
    report = run.train(
        copy_of_trained.dataset_url,
        output=str(copy_of_trained.folder / "checkpoints"),
        **SETTINGS,
    )
    assert report.run_id != copy_of_trained.report.run_id
    assert report.steps == STEPS
    assert steps_logged(client, report.run_id, "val/accuracy") == [4, 8, 12, 16]
    assert "mlflow has no run" in caplog.text


@pytest.mark.usefixtures("unlogged")
def test_an_injected_run_is_used(
    trained: Trained, tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(tmp_path)
    given = client.create_run(client.create_experiment("injected")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    short = SETTINGS | {"epochs": 1}
    report = run.train(trained.dataset_url, output=str(tmp_path / "out"), **short)
    assert report.run_id == given
    assert client.get_run(given).info.status == "FINISHED"
    assert client.get_run(given).data.params["train.epochs"] == "1"
    assert client.get_experiment_by_name("tarpon") is None
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    with pytest.raises(TrackingError, match=r"found the training \w+ in that run, expected a fres"):
        run.train(trained.dataset_url, output=str(tmp_path / "out"), **short, seed=18)
    assert client.get_run(given).info.status == "FINISHED"


# ---- after a loss that is no number -------------------------------------------------------------


@pytest.mark.usefixtures("unlogged")
def test_a_loss_that_is_no_number_is_not_learnt_from(
    trained: Trained, tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read late as on a GPU, when the next step is under way already."""
    monkeypatch.setitem(LAG, "cpu", 1)
    fed: list[list[int]] = []
    with monkeypatch.context() as patch:
        real = Trainer._train_on

        def broken(self: Trainer, batch: Any, before: Any) -> None:
            fed.append(batch["indices"].tolist())
            ruined = {"image": batch["image"] * float("nan")} if self.step == 5 else {}
            real(self, batch | ruined, before)

        patch.setattr(Trainer, "_train_on", broken)
        with pytest.raises(NonFiniteLossError, match=r"the loss became nan at step 6 \(") as caught:
            run.train(trained.dataset_url, output=str(tmp_path / "out"), **SETTINGS)
    assert len(fed) == 7
    shards = tarpon.open(manifest.read(trained.dataset_url).shards_url("train"))
    keys = re.findall("[0-9a-f]{64}", str(caught.value))
    assert keys == [shards.key(index) for index in fed[5]]
    assert "that step was not taken, and the state before it is saved" in str(caught.value)
    (url,) = re.findall(r"go on with train.start_from=(\S+) and a lower", str(caught.value))
    (found,) = client_of(tmp_path).search_runs(["1"])
    assert found.info.status == "FAILED"

    gentle = SETTINGS | {"lr": 0.001, "epochs": 2, "start_from": url}
    other = run.train(trained.dataset_url, output=str(tmp_path / "out"), **gentle)
    assert (other.resumed_from_step, other.steps) == (5, 8)
    assert other.run_id != found.info.run_id
    report = run.train(trained.dataset_url, output=str(tmp_path / "out"), **SETTINGS)
    assert (report.resumed_from_step, report.run_id) == (5, found.info.run_id)
    assert_same_weights(report, trained.report)


@pytest.mark.usefixtures("unlogged")
def test_weights_that_are_no_numbers_replace_no_checkpoint(
    trained: Trained, tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ruined(step: int, **options: Any) -> str:
        with monkeypatch.context() as patch:
            ruin = lambda self: self._network.network[0].weight.data.fill_(float("inf"))  # noqa: E731
            stop_after(patch, step, ruin)
            with pytest.raises(NonFiniteLossError) as caught:
                run.train(trained.dataset_url, output=str(tmp_path), **SETTINGS | options)
        return str(caught.value)

    assert re.search(
        r"the loss became nan at step 4 \(.*no numbers any more and are not saved, and there is no "
        "checkpoint; lower train.lr or set train.clip_norm, and begin again$",
        ruined(3),
    )
    assert re.search(
        r"weights became nan or infinite in step 8 \(.*not saved; go on with train.start_from=\S+"
        "/checkpoint-000000004.pt and a lower",
        ruined(8),
    )
    names = sorted(path.name for path in tmp_path.rglob("*.pt"))
    assert names == ["checkpoint-000000000.pt", "checkpoint-000000004.pt"]
