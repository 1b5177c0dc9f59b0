"""Train a classifier on a published dataset version; one MLflow run per training.

Killed at any instant, the same command goes on where the last checkpoint was taken, in the same
run; finished, it answers with the report it gave. It never touches the test split.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import mlflow
import tarpon
import torch

from components import links, loading, manifest, tracking
from components.manifest import Manifest
from components.report import Report
from components.run_log import RunLog
from components.store import Store
from components.system_metrics import SystemMetrics
from components.train import batches as batches_of
from components.train import checkpoint, distributed, lock, memory, used
from components.train.checkpoint import Checkpoints, State
from components.train.distributed import Ranks, RanksError
from components.train.loop import NonFiniteLossError, Trainer
from components.train.model import build_model
from components.train.settings import Settings, SettingsError, training_key
from components.train.stop import EXIT_CODES, StopRequested, StopSignals
from components.train.watch import LoaderWatch

_log = logging.getLogger(__name__)

GRID_IMAGES = 24
REPORT = "report.json"
UNSENT = "mlflow-unsent.jsonl"
"""Beside the checkpoints: what the tracking server could not take before its patience was over."""

WHERE_TO_BEGIN = "where to begin"
THE_END = "end its run and write the report"
"""What the other ranks wait for rank 0 to say or do."""


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

    def metrics(self) -> dict[str, float]:
        """What the last epoch came to, by the names it has in MLflow."""
        found = {
            "epoch": float(self.epochs),
            "train/loss": self.train_loss,
            "train/accuracy": self.train_accuracy,
            "train/images_per_s": self.images_per_s,
            "val/loss": self.val_loss,
            "val/accuracy": self.val_accuracy,
        }
        return {name: value for name, value in found.items() if value is not None}


def train(
    dataset_url: str,
    *,
    output: str,
    experiment: str = "tarpon",
    allow_unproven: bool = False,
    fresh: bool = False,
    config: Mapping[str, Any] | None = None,
    began_s: float | None = None,
    kfp: links.KfpRun = links.NO_RUN,
    **settings: Any,
) -> TrainReport:
    """Train to the last epoch and log the model.

    Under torchrun (RANK, WORLD_SIZE, LOCAL_RANK) this is one rank of a training, and every rank
    returns the same report. `python -m components.train` starts the ranks by itself.

    Args:
        dataset_url: The folder of a dataset version, `<root>/<name>/<version>`.
        output: A folder for checkpoints, local or on S3; each training has its own folder in it.
        experiment: MLflow experiment of a new run. `MLFLOW_RUN_ID`, when set, decides instead.
        allow_unproven: Train even if the split's proof is missing or does not match.
        fresh: Begin again, whatever checkpoints there are.
        config: The whole pipeline config, kept with the run; None where there is none. Its
            `overrides`, what was typed to get it, become a file of their own.
        began_s: When the command was started, seconds since the epoch: the log says how long the
            first step took to come.
        kfp: The pipeline run that this is a task of, for a link to it.
        settings: The fields of `Settings` by name; what is left out has its default.

    Raises:
        OneClassError, UnprovenDatasetError, EmptySplitError, DeviceError, SettingsError,
            UnknownModelError, DaliMissingError, CheckpointMismatchError: It cannot begin.
        NonFiniteLossError: The loss blew up; the state before is saved, and the run is FAILED.
        OutOfMemoryError: A step, or the network, does not fit into the device's memory.
        RanksError: Another rank ended.
        StopRequested: SIGTERM or Ctrl-C; a checkpoint is saved and the run is KILLED.
    """
    chosen = Settings(**settings)
    version = manifest.read(dataset_url)
    loading.require_classes(version)
    if not allow_unproven:
        loading.require_proof(version)
    device = _pick_device(chosen)
    batches_of.pick_loader(chosen, device)
    loading.require_batch(version, chosen.batch_size)
    parameters = used.parameters(chosen, len(version.classes))
    if ":" in device:  # NCCL, DALI and events go to the current one
        torch.cuda.set_device(device)
    key = training_key(chosen, digest=version.digest, experiment=experiment)
    store = Store(Store(output).url(key))
    with distributed.joined(device) as ranks, StopSignals(patient=ranks.world_size > 1) as stop:
        chosen.split(ranks.world_size)
        if ranks.first:
            store.check_writable()
        return _Training(
            settings=chosen,
            version=version,
            device=device,
            parameters=parameters,
            allow_unproven=allow_unproven,
            ranks=ranks,
            stop=stop,
            key=key,
            store=store,
            experiment=experiment,
            config=dict(config) if config else {"train": dataclasses.asdict(chosen)},
            began_s=began_s,
            kfp=kfp,
        ).run(fresh=fresh)


def _pick_device(settings: Settings) -> str:
    """The device of this rank."""
    started = distributed.world_size()
    if started == 1 and (settings.processes or 1) > 1:
        raise SettingsError(
            f"train.processes={settings.processes}: found one process, expected torchrun's "
            "environment; start `python -m components.train`, which starts them"
        )
    found = torch.cuda.device_count()
    picked = loading.pick_device(settings.device, cuda=found)
    ranks_here = distributed.local_world_size()
    if ":" in picked and ranks_here > 1:
        raise SettingsError(
            f"train.device={picked!r}: found {ranks_here} processes on this machine, expected one "
            "for a numbered device, or a GPU for each; set train.device=cuda, and "
            "CUDA_VISIBLE_DEVICES to choose among the GPUs"
        )
    if picked == "cuda" and started > 1:
        picked = loading.pick_device(f"cuda:{distributed.local_rank()}", cuda=found)
    return picked


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Training:
    """One rank of a training, and the store of its checkpoints and its report."""

    settings: Settings
    version: Manifest
    device: str
    parameters: int
    allow_unproven: bool
    ranks: Ranks
    stop: StopSignals
    key: str
    store: Store
    experiment: str
    config: dict[str, Any]
    began_s: float | None
    kfp: links.KfpRun

    def run(self, *, fresh: bool) -> TrainReport:
        if not self.ranks.first:
            return self._follow()
        how = "failed"
        try:
            self.stop.hear_at_once("")
            with lock.alone(self.store.root):
                report = self._lead(fresh=fresh)
            how = "done"
        except StopRequested as stop:
            how = stop.signal_name
            raise
        finally:
            self.ranks.say_done(THE_END, how)
        return report

    def _lead(self, *, fresh: bool) -> TrainReport:
        """Rank 0: find where to begin, tell the others, train, log and report.

        Before the first step and after the last a signal is heard at once: there may be a wait for
        the tracking server, and no step to come.
        """
        client = tracking.connect()
        with Checkpoints(self.store.root, keep=self.settings.keep_checkpoints) as checkpoints:
            if fresh:
                checkpoints.clear()
                self.store.remove(REPORT)
                self.store.remove(UNSENT)  # of the run before, whose steps would stand for ours
            if (done := self._finished(client)) is not None:
                _log.info(
                    "%s: this training is finished; its model is %s",
                    self.store.root, done.model_uri,
                )  # fmt: skip
                self._tell_injected_run(client, done)
                return self.ranks.share((done, ""), WHERE_TO_BEGIN)[0]
            url, state = self._where_to_begin(checkpoints)
            self.stop.hear_at_once(url)
            self.ranks.share((None, url), WHERE_TO_BEGIN)
            return self._lead_run(client, checkpoints, state)

    def _where_to_begin(self, checkpoints: Checkpoints) -> tuple[str, State | None]:
        """The newest checkpoint, else the one that was asked for: its URL and what is in it."""
        classes = list(self.version.classes)
        if found := checkpoints.load_newest():
            name, state = found
            state.require_classes(classes, checkpoints.url(name))
            return checkpoints.url(name), state
        if url := self.settings.start_from:
            return url, checkpoint.start_from(url, self.settings, classes)
        return "", None

    def _lead_run(
        self, client: mlflow.MlflowClient, checkpoints: Checkpoints, state: State | None
    ) -> TrainReport:
        name = f"{self.version.name}-{self.version.version}-{self.settings.model}"
        tags = tracking.dataset_tags(self.version) | self._tags()
        with (
            tracking.open_run(
                client,
                experiment=self.experiment,
                name=name,
                tags=tags | self.kfp.tags(),
                resume=state.run_id if state else "",
                description=self._description(tags, {}, {}),
                system_metrics=False,
            ) as run_id,
            RunLog(client, run_id, unsent=self.store.url(UNSENT)) as log,
            SystemMetrics(log),
        ):
            self.stop.hear_between_steps()
            _log.info("mlflow run %s in experiment %r", run_id, self.experiment)
            self._log_inputs(log)
            trainer = self._fit(
                state,
                metrics=log,
                checkpoints=checkpoints,
                on_first_batch=lambda *fed: self._log_samples(log, *fed),
            )
            checkpoints.wait()
            newest = checkpoints.newest()
            self.stop.hear_at_once(newest)
            report = self._report(trainer, log, newest, state.step if state else None)
        self.stop.hear_between_steps()  # of which there are none: the training is done
        self.store.write_bytes(REPORT, (report.to_json() + "\n").encode())
        return report

    def _follow(self) -> TrainReport:
        """The other ranks: begin where rank 0 says, train along, wait until it has reported."""
        url = ""
        try:
            done, url = self.ranks.share((None, ""), WHERE_TO_BEGIN)
            if done is not None:
                return done
            self._fit(checkpoint.load(url) if url else None)
        except (NonFiniteLossError, StopRequested):
            self.ranks.wait_for(THE_END)  # torchrun ends rank 0 soon after the first that ends
            raise
        except RanksError:
            if self.stop.requested:  # rank 0 heard it before the first step, and has ended
                raise StopRequested(self.stop.requested, url) from None
            raise
        how = self.ranks.wait_for(THE_END)
        if how in EXIT_CODES:
            raise StopRequested(how, Checkpoints(self.store.root).newest())
        if how != "done":
            raise RanksError(
                f"rank {self.ranks.rank} of {self.ranks.world_size}: rank 0 could not "
                f"{THE_END}; see its message"
            )
        return self._read_report()

    def _read_report(self) -> TrainReport:
        text = self.store.read_bytes(REPORT).decode()
        return TrainReport.from_json(text, where=self.store.url(REPORT))

    def _finished(self, client: mlflow.MlflowClient) -> TrainReport | None:
        """The report of this very training, if it ended well and MLflow still has its model."""
        if not self.store.exists(REPORT):
            return None
        report = self._read_report()
        if not tracking.run_is_usable(client, report.run_id):
            return None
        model_id = tracking.model_id_of(report.model_uri)
        with contextlib.suppress(mlflow.MlflowException):
            tracking.patiently(lambda: client.get_logged_model(model_id))
            return report
        return None

    def _tell_injected_run(self, client: mlflow.MlflowClient, done: TrainReport) -> None:
        """Give the run that `MLFLOW_RUN_ID` names, if it is another one, what the training's says.

        Whoever made it for this task finds the settings, the last metrics and the way to the rest.
        """
        if os.environ.get("MLFLOW_RUN_ID", done.run_id) == done.run_id:
            return
        of_training = {"train.run_id": done.run_id, "train.model_uri": done.model_uri}
        tags = tracking.dataset_tags(self.version) | of_training
        tags[tracking.TRAINING_TAG] = self.key
        experiment = tracking.patiently(lambda: client.get_run(done.run_id)).info.experiment_id
        page = links.mlflow_run_url(experiment, done.run_id)
        with (
            tracking.open_run(
                client,
                experiment=self.experiment,
                name="",
                tags=tags | self.kfp.tags(),
                description=self._description(tags, of_training, {"the run of the training": page}),
                system_metrics=False,
            ) as run_id,
            RunLog(client, run_id) as log,
        ):
            self._log_inputs(log)
            log.add(done.steps, done.metrics())
        _log.info("mlflow run %s is told what run %s came to", run_id, done.run_id)

    def _tags(self) -> dict[str, str]:
        """Which training this is, and what this start of it uses."""
        of: dict[str, Any] = {
            "device": self.device,
            "ranks": self.ranks,
            "parameters": self.parameters,
        }
        found = used.tags(self.settings, **of) | {tracking.TRAINING_TAG: self.key}
        return found | ({"train.allow_unproven": "true"} if self.allow_unproven else {})

    def _description(
        self, tags: Mapping[str, str], facts: Mapping[str, str], pages: Mapping[str, str]
    ) -> str:
        known = {"dataset": self.version.url, "digest": tags["dataset.digest"][:16]}
        known["code"] = tags["code.version"]
        return links.description({**known, **facts}, {"KFP run": self.kfp.url, **pages})

    def _log_inputs(self, log: RunLog) -> None:
        config = dict(self.config)
        if overrides := config.pop("overrides", None):
            log.log_text(json.dumps(overrides, indent=2), "overrides.json")
        log.log_params(config)
        log.log_text(json.dumps(config, indent=2, sort_keys=True), "config.json")
        for split in ("train", "val"):
            if samples := loading.split_samples(self.version, split):
                log.log_input(tracking.input_entry(self.version, split, samples))

    def _fit(
        self,
        state: State | None,
        *,
        metrics: RunLog | None = None,
        checkpoints: Checkpoints | None = None,
        on_first_batch: Callable[[torch.Tensor, torch.Tensor], None] = lambda *_: None,
    ) -> Trainer:
        """Build network and streams, train to the last epoch, give back what holds the result."""
        settings, version, ranks = self.settings, self.version, self.ranks
        torch.manual_seed(settings.seed)
        torch.backends.cudnn.benchmark = True  # all batches have one shape
        if (threads := settings.threads or ranks.threads) is not None:
            torch.set_num_threads(threads)
        network = build_model(settings.model, len(version.classes))
        with self._room_for_network():
            network = network.to(self.device)
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        where: dict[str, Any] = {"device": self.device, "ranks": ranks}
        with contextlib.ExitStack() as stack:
            batches = stack.enter_context(batches_of.train_stream(version, settings, **where))
            validation = None
            if loading.split_samples(version, "val"):
                validation = stack.enter_context(batches_of.val_stream(version, settings, **where))
            else:
                _log.warning("%s: the val split is empty, nothing is validated", version.url)
            threads = used.threads(settings, ranks)
            watch = None if metrics is None else LoaderWatch(batches, metrics, threads=threads)
            with self._room_for_network():
                trainer = Trainer(
                    network=network,
                    settings=settings,
                    precision=used.precision(settings, self.device),
                    batches=batches,
                    validation=validation,
                    metrics=metrics,
                    checkpoints=checkpoints,
                    classes=list(version.classes),
                    stop=self.stop,
                    key_of=lambda index: tarpon.open(version.shards_url("train")).key(index),
                    on_first_batch=on_first_batch,
                    watch=watch,
                    began_s=self.began_s,
                    **where,
                )
                if state is not None:
                    trainer.restore(state)
                    _log.info("going on after step %d, epoch %d", state.step, state.epoch + 1)
            if metrics is not None:
                for row in state.history if state else ():  # a new run gets them as well
                    metrics.add(round(row["epoch"]) * len(batches), row)
                metrics.restore(state.mlflow if state else ())
                if state is None or state.run_id != metrics.run_id:
                    trainer.save_start()
            trainer.fit()
        return trainer

    def _room_for_network(self) -> contextlib.AbstractContextManager[None]:
        return memory.explained(partial(memory.network_too_large, self.settings))

    def _log_samples(self, log: RunLog, image: torch.Tensor, label: torch.Tensor) -> None:
        """A grid of what the network is fed: after crop, flip, resize and mixing."""
        from components import figures  # and matplotlib, which a training that goes on is spared

        pixels = image[:GRID_IMAGES].permute(0, 2, 3, 1).round().clamp(0, 255)
        images = pixels.byte().cpu().numpy()
        captions = [self.version.classes[number] for number in label[:GRID_IMAGES].tolist()]
        grid = figures.image_grid(images, captions, title="the first batch, as the network sees it")
        log.log_figure(grid, "samples/train.png")

    def _report(
        self, trainer: Trainer, log: RunLog, newest: str, resumed_from: int | None
    ) -> TrainReport:
        """Log the curves and the model, and say what there is."""
        from components import figures

        log.log_figure(figures.curves(trainer.history), "curves.png")
        log.flush()  # MLflow links to a model what its run has when it is logged
        start = time.monotonic()
        model_uri = tracking.patiently(lambda: self._log_model(trainer))
        _log.info("model logged as %s in %.1f s", model_uri, time.monotonic() - start)
        last = trainer.history[-1]
        return TrainReport(
            run_id=log.run_id,
            model_uri=model_uri,
            checkpoint=newest,
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

    def _log_model(self, trainer: Trainer) -> str:
        # Imported when there is a model: it imports Lightning where that is installed, seconds
        # that would stand before the first step.
        from components.train.export import log_model

        return log_model(
            trainer.model, self.version, self.settings, step=trainer.step, key=self.key
        )
