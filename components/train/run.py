"""Train a classifier on a published dataset version; one MLflow run per training.

Killed at any instant, the same command goes on where the last checkpoint was taken, in the same
run; finished, it answers with the report it gave. It never touches the test split.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

import mlflow
import mlflow.pytorch
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import nn

from components import figures, links, loading, manifest, tracking
from components.manifest import Manifest
from components.report import Report
from components.run_log import RunLog
from components.store import Store
from components.system_metrics import SystemMetrics
from components.train.checkpoint import Checkpoints, State
from components.train.loop import StopSignals, Trainer
from components.train.model import build_model
from components.train.settings import Settings, training_key

_log = logging.getLogger(__name__)

GRID_IMAGES = 24
REPORT = "report.json"
UNSENT = "mlflow-unsent.jsonl"
"""Beside the checkpoints: what the tracking server could not take before its patience was over."""

_DEFAULTS = Settings()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport(Report):
    """What a training made and where it is.

    Args:
        run_id: The MLflow run.
        model_uri: The logged model, `models:/m-...`.
        checkpoint: URL of the last checkpoint.
        epochs, steps: How many were trained in all.
        train_loss, train_accuracy: Of the last epoch, on augmented images.
        val_loss, val_accuracy: Of the last epoch; None where the val split is empty.
        images_per_s: Of the last epoch, waiting included.
        resumed_from_step: The step of the checkpoint this was continued from; None from scratch.
    """

    run_id: str
    model_uri: str
    checkpoint: str
    dataset_url: str
    dataset_digest: str
    epochs: int
    steps: int
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    images_per_s: float
    resumed_from_step: int | None


def train(
    dataset_url: str,
    *,
    output: str,
    epochs: int = _DEFAULTS.epochs,
    batch_size: int = _DEFAULTS.batch_size,
    image_size: int = _DEFAULTS.image_size,
    lr: float = _DEFAULTS.lr,
    seed: int = _DEFAULTS.seed,
    model: str = _DEFAULTS.model,
    device: str = _DEFAULTS.device,
    weight_decay: float = _DEFAULTS.weight_decay,
    warmup_epochs: float = _DEFAULTS.warmup_epochs,
    label_smoothing: float = _DEFAULTS.label_smoothing,
    threads: int | None = _DEFAULTS.threads,
    checkpoint_every_s: float = _DEFAULTS.checkpoint_every_s,
    experiment: str = "tarpon",
    allow_unproven: bool = False,
    fresh: bool = False,
    config: Mapping[str, Any] | None = None,
    kfp: links.KfpRun = links.NO_RUN,
) -> TrainReport:
    """Train to the last epoch and log the model.

    Args:
        dataset_url: The folder of a dataset version, `<root>/<name>/<version>`.
        output: A folder for checkpoints, local or on S3; each training has its own folder in it.
        epochs ... checkpoint_every_s: See `Settings`.
        experiment: MLflow experiment of a new run. `MLFLOW_RUN_ID`, when set, decides instead.
        allow_unproven: Train even if the split's proof is missing or does not match.
        fresh: Begin again, whatever checkpoints there are.
        config: The whole pipeline config, kept with the run; None where there is none.
        kfp: The pipeline run that this is a task of, for a link to it.

    Raises:
        OneClassError, UnprovenDatasetError, EmptySplitError, DeviceError, SettingsError,
            UnknownModelError: The training cannot begin.
        NonFiniteLossError: The loss blew up; the run is FAILED.
        StopRequested: SIGTERM or Ctrl-C; a checkpoint is saved and the run is KILLED.
    """
    settings = Settings(
        epochs=epochs,
        batch_size=batch_size,
        image_size=image_size,
        lr=lr,
        seed=seed,
        model=model,
        device=device,
        weight_decay=weight_decay,
        warmup_epochs=warmup_epochs,
        label_smoothing=label_smoothing,
        threads=threads,
        checkpoint_every_s=checkpoint_every_s,
    )
    version = manifest.read(dataset_url)
    loading.require_classes(version)
    if not allow_unproven:
        loading.require_proof(version)
    picked = loading.pick_device(settings.device, cuda=torch.cuda.device_count())
    key = training_key(settings, digest=version.digest, experiment=experiment)
    store = Store(Store(output).url(key))
    store.check_writable()
    return _Training(
        settings=settings,
        version=version,
        device=picked,
        store=store,
        experiment=experiment,
        config=dict(config) if config else {"train": dataclasses.asdict(settings)},
        kfp=kfp,
    ).run(fresh=fresh)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Training:
    """One training and the store of its checkpoints and its report."""

    settings: Settings
    version: Manifest
    device: str
    store: Store
    experiment: str
    config: dict[str, Any]
    kfp: links.KfpRun

    def run(self, *, fresh: bool) -> TrainReport:
        client = tracking.connect()
        checkpoints = Checkpoints(self.store.root)
        if fresh:
            checkpoints.clear()
            self.store.remove(REPORT)
        if (done := self._finished(client)) is not None:
            _log.info(
                "%s: this training is finished; its model is %s", self.store.root, done.model_uri
            )
            return done
        state = checkpoints.load_newest()
        name = f"{self.version.name}-{self.version.version}-{self.settings.model}"
        tags = tracking.dataset_tags(self.version) | {"train.device": self.device}
        with (
            tracking.open_run(
                client,
                experiment=self.experiment,
                name=name,
                tags=tags | self.kfp.tags(),
                resume=state.run_id if state else None,
                description=self._description(tags),
                system_metrics=False,
            ) as run_id,
            RunLog(client, run_id, unsent=self.store.url(UNSENT)) as log,
            SystemMetrics(log),
        ):
            _log.info("mlflow run %s in experiment %r", run_id, self.experiment)
            self._log_inputs(log)
            trainer = self._fit(log, checkpoints, state)
            report = self._report(trainer, log, checkpoints.newest(), state.step if state else None)
        self.store.write_bytes(REPORT, (report.to_json() + "\n").encode())
        return report

    def _finished(self, client: mlflow.MlflowClient) -> TrainReport | None:
        """The report of this very training, if it ended well and MLflow still has its model."""
        if not self.store.exists(REPORT):
            return None
        text = self.store.read_bytes(REPORT).decode()
        report = TrainReport.from_json(text, where=self.store.url(REPORT))
        if not tracking.run_is_usable(client, report.run_id):
            return None
        model_id = tracking.model_id_of(report.model_uri)
        with contextlib.suppress(mlflow.MlflowException):
            tracking.patiently(lambda: client.get_logged_model(model_id))
            return report
        return None

    def _description(self, tags: Mapping[str, str]) -> str:
        facts = {"dataset": self.version.url, "digest": tags["dataset.digest"][:16]}
        facts["code"] = tags["code.version"]
        return links.description(facts, {"KFP run": self.kfp.url})

    def _log_inputs(self, log: RunLog) -> None:
        log.log_params(self.config)
        log.log_text(json.dumps(self.config, indent=2, sort_keys=True), "config.json")
        for split in ("train", "val"):
            if samples := loading.split_samples(self.version, split):
                log.log_input(tracking.input_entry(self.version, split, samples))

    def _fit(self, log: RunLog, checkpoints: Checkpoints, state: State | None) -> Trainer:
        """Build network and loaders, train to the last epoch, give back what holds the result."""
        settings, version = self.settings, self.version
        torch.manual_seed(settings.seed)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        network = build_model(settings.model, len(version.classes)).to(self.device)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        size = {"batch_size": settings.batch_size, "image_size": settings.image_size}
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(StopSignals())
            batches = stack.enter_context(
                loading.train_batches(version, seed=settings.seed, threads=settings.threads, **size)
            )
            validation = None
            if loading.split_samples(version, "val"):
                validation = stack.enter_context(
                    loading.evaluation_batches(version, "val", threads=settings.threads, **size)
                )
            trainer = Trainer(
                model=network,
                settings=settings,
                device=self.device,
                batches=batches,
                validation=validation,
                metrics=log,
                checkpoints=checkpoints,
                run_id=log.run_id,
                stop=stop,
                on_first_batch=lambda batch: self._log_samples(log, batch),
            )
            if state is not None:
                trainer.restore(state)
                for row in state.history:  # a new run gets the finished epochs as well
                    log.add(round(row["epoch"]) * len(batches), row)
                log.restore(state.mlflow)
                _log.info("going on after step %d, epoch %d", state.step, state.epoch + 1)
            else:
                log.restore()
            trainer.fit()
        return trainer

    def _log_samples(self, log: RunLog, batch: Mapping[str, Any]) -> None:
        """A grid of what the network is fed: after crop, flip and resize."""
        images = np.asarray(batch["image"][:GRID_IMAGES])
        captions = [self.version.classes[label] for label in batch["label"][:GRID_IMAGES]]
        grid = figures.image_grid(images, captions, title="the first batch, as the network sees it")
        log.log_figure(grid, "samples/train.png")

    def _report(
        self, trainer: Trainer, log: RunLog, checkpoint: str, resumed_from: int | None
    ) -> TrainReport:
        """Log the curves and the model, and say what there is."""
        log.log_figure(figures.curves(trainer.history), "curves.png")
        log.flush()  # MLflow links to a model what its run has when it is logged
        start = time.monotonic()
        model_uri = tracking.patiently(lambda: self._log_model(trainer.model, trainer.step))
        _log.info("model logged as %s in %.1f s", model_uri, time.monotonic() - start)
        last = trainer.history[-1]
        return TrainReport(
            run_id=log.run_id,
            model_uri=model_uri,
            checkpoint=checkpoint,
            dataset_url=self.version.url,
            dataset_digest=self.version.digest,
            epochs=trainer.epoch,
            steps=trainer.step,
            train_loss=last["train/loss"],
            train_accuracy=last["train/accuracy"],
            val_loss=last.get("val/loss"),
            val_accuracy=last.get("val/accuracy"),
            images_per_s=last["train/images_per_s"],
            resumed_from_step=resumed_from,
        )

    def _log_model(self, network: nn.Module, step: int) -> str:
        """The model as MLflow serves it: an exported graph on the CPU that needs none of our code.

        Input `float32[batch, 3, S, S]`, RGB, 0..255; output `float32[batch, classes]`, logits.
        Requirements are given, not inferred: MLflow would start subprocesses to find them.
        """
        size, classes = self.settings.image_size, list(self.version.classes)
        network = network.cpu().to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        float32 = np.dtype("float32")
        signature = ModelSignature(
            inputs=Schema([TensorSpec(float32, (-1, 3, size, size))]),
            outputs=Schema([TensorSpec(float32, (-1, len(classes)))]),
        )
        about = {
            "classes": classes,
            "image_size": size,
            "input": "float32 NCHW, RGB, 0..255, resized to image_size; normalised by the model",
            "dataset_digest": self.version.digest,
        }
        info = mlflow.pytorch.log_model(
            network,
            name="model",
            signature=signature,
            input_example=np.zeros((2, 3, size, size), np.float32),
            pip_requirements=[
                f"torch=={torch.__version__.split('+')[0]}",
                f"numpy=={np.__version__}",
            ],
            metadata=about,
            tags={"dataset.digest": self.version.digest},
            step=step,
        )
        return str(info.model_uri)
