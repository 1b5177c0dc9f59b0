"""What `python -m components.train` does in the process, or in each of them, that trains."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from tarpon import TarponError

from components.executor import ExecutorInputError, Task
from components.links import NO_RUN, KfpRun
from components.loading import DeviceError, EmptySplitError, OneClassError, UnprovenDatasetError
from components.manifest import ManifestError
from components.store import Store, StoreError
from components.tracking import TrackingError, run_metadata
from components.train import run
from components.train.batches import DaliMissingError
from components.train.checkpoint import CheckpointMismatchError
from components.train.distributed import RanksError
from components.train.lock import TrainingBusyError
from components.train.loop import NonFiniteLossError
from components.train.memory import OutOfMemoryError
from components.train.model import UnknownModelError
from components.train.settings import SettingsError

EXPECTED = (
    CheckpointMismatchError,
    DaliMissingError,
    DeviceError,
    EmptySplitError,
    ExecutorInputError,
    ManifestError,
    NonFiniteLossError,
    OneClassError,
    OutOfMemoryError,
    RanksError,
    SettingsError,
    StoreError,
    TarponError,
    TrackingError,
    TrainingBusyError,
    UnknownModelError,
    UnprovenDatasetError,
)
"""Errors whose message says all there is to say; any other one is our bug and keeps its trace."""


def work(
    task: Task | None, options: argparse.Namespace, given: dict[str, Any], *, began_s: float
) -> int:
    """Train and answer; returns the exit code, 1 after an error that was named.

    Raises:
        StopRequested: SIGTERM or Ctrl-C.
    """
    try:
        if task is not None:
            run_task(task, KfpRun.from_options(options), began_s=began_s)
            return 0
        report = run.train(
            options.dataset,
            output=options.output,
            experiment=options.experiment,
            allow_unproven=options.allow_unproven,
            fresh=options.fresh,
            began_s=began_s,
            **given,
        )
        if _first():
            print(report.to_json())
    except EXPECTED as error:
        rank = "" if _first() else f" [rank {os.environ['RANK']}]"
        print(f"train{rank}: {str(error).removeprefix('train: ')}", file=sys.stderr)
        return 1
    return 0


def run_task(task: Task, kfp: KfpRun = NO_RUN, *, began_s: float | None = None) -> run.TrainReport:
    """Do one KFP task: `config` and `dataset` in; `model`, `metrics` and `run_id` out."""
    config = task.config()
    pointer = json.loads(task.input_path("dataset").read_text(encoding="utf-8"))
    report = run.train(
        pointer["dataset_url"],
        output=Store(config["store"]["root"]).url(config["data"]["name"], "checkpoints"),
        experiment=config["mlflow"]["experiment"],
        config=config,
        began_s=began_s,
        kfp=kfp,
        **config["train"],
    )
    if not _first():
        return report
    pages = run_metadata(report.run_id, report.model_uri)
    report.write(task.output_path("model"))
    task.set_metadata("model", report.summary() | pages)
    metrics = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "images_per_s")
    found = {name: getattr(report, name) for name in metrics}
    task.set_metadata("metrics", {n: v for n, v in found.items() if v is not None} | pages)
    task.set_parameter("run_id", report.run_id)
    task.finish()
    return report


def _first() -> bool:
    return os.environ.get("RANK", "0") == "0"
