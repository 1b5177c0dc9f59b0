"""`python -m components.train`: by hand with options, or by KFP with --executor-input.

Exit codes: 0 trained; 1 an error, named on the last line; 130 Ctrl-C and 143 SIGTERM, both after
a checkpoint was saved: the same command goes on from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from typing import Any

from tarpon import TarponError

from components.executor import ExecutorInputError, Task
from components.links import NO_RUN, KfpRun, add_arguments
from components.loading import DeviceError, EmptySplitError, OneClassError, UnprovenDatasetError
from components.manifest import ManifestError
from components.store import Store, StoreError
from components.tracking import TrackingError, run_metadata
from components.train import run
from components.train.loop import NonFiniteLossError, StopRequested
from components.train.model import UnknownModelError
from components.train.settings import Settings, SettingsError

CODES = {"SIGINT": 130, "SIGTERM": 143}

EXPECTED = (
    DeviceError,
    EmptySplitError,
    ExecutorInputError,
    ManifestError,
    NonFiniteLossError,
    OneClassError,
    SettingsError,
    StoreError,
    TarponError,
    TrackingError,
    UnknownModelError,
    UnprovenDatasetError,
)
"""Errors whose message says all there is to say; any other one is our bug and keeps its trace."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    options = _parser().parse_args(arguments)
    try:
        if options.executor_input is not None:
            run_task(Task.from_json(options.executor_input), KfpRun.from_options(options))
        else:
            print(_by_hand(options).to_json())
    except StopRequested as stop:
        print(f"train: {stop}", file=sys.stderr)
        return CODES[stop.signal_name]
    except EXPECTED as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    return 0


def run_task(task: Task, kfp: KfpRun = NO_RUN) -> run.TrainReport:
    """Do one KFP task: `config` and `dataset` in; `model`, `metrics` and `run_id` out."""
    config = task.config()
    pointer = json.loads(task.input_path("dataset").read_text(encoding="utf-8"))
    output = Store(config["store"]["root"]).url(config["data"]["name"], "checkpoints")
    experiment = config["mlflow"]["experiment"]
    report = run.train(
        pointer["dataset_url"],
        output=output,
        experiment=experiment,
        config=config,
        kfp=kfp,
        **config["train"],
    )
    pages = run_metadata(report.run_id, report.model_uri)
    report.write(task.output_path("model"))
    task.set_metadata("model", report.summary() | pages)
    metrics = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "images_per_s")
    found = {name: getattr(report, name) for name in metrics}
    task.set_metadata("metrics", {n: v for n, v in found.items() if v is not None} | pages)
    task.set_parameter("run_id", report.run_id)
    task.finish()
    return report


def _by_hand(options: argparse.Namespace) -> run.TrainReport:
    if options.dataset is None or options.output is None:
        _parser().error("give --dataset and --output, or --executor-input")
    given = vars(options)
    settings = {field.name: given[field.name] for field in dataclasses.fields(Settings)}
    return run.train(
        options.dataset,
        output=options.output,
        experiment=options.experiment,
        allow_unproven=options.allow_unproven,
        fresh=options.fresh,
        **settings,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m components.train", description=run.__doc__)
    parser.add_argument("--executor-input", metavar="JSON", help="what KFP's launcher passes")
    add_arguments(parser)
    parser.add_argument("--dataset", metavar="URL", help="folder of a published dataset version")
    parser.add_argument(
        "--output", metavar="DIR", help="folder for checkpoints, or s3://bucket/prefix"
    )
    parser.add_argument("--experiment", default="tarpon", help="MLflow experiment (%(default)s)")
    parser.add_argument("--allow-unproven", action="store_true", help="accept a missing proof")
    parser.add_argument("--fresh", action="store_true", help="begin again, drop the checkpoints")
    kinds: dict[str, Any] = {"model": str, "device": str}
    kinds |= dict.fromkeys(("epochs", "batch_size", "image_size", "seed", "threads"), int)
    for field in dataclasses.fields(Settings):
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=kinds.get(field.name, float),
            default=field.default,
            metavar=field.name.upper(),
            help="default: %(default)s",
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
