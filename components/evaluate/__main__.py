"""`python -m components.evaluate`: by hand with options, or by KFP with --executor-input."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile

from tarpon import TarponError

from components.evaluate import run
from components.executor import ExecutorInputError, Task, confusion_metadata
from components.loading import DeviceError, EmptySplitError
from components.logged_model import ModelMismatchError
from components.manifest import ManifestError
from components.store import StoreError
from components.tracking import TrackingError

EXPECTED = (
    DeviceError,
    EmptySplitError,
    ExecutorInputError,
    ManifestError,
    ModelMismatchError,
    StoreError,
    TarponError,
    TrackingError,
)
"""Errors whose message says all there is to say; any other one is our bug and keeps its trace."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.executor_input is not None:
            run_task(Task.from_json(options.executor_input))
        else:
            print(_by_hand(parser, options).to_json())
    except KeyboardInterrupt:
        print("evaluate: interrupted", file=sys.stderr)
        return 130
    except EXPECTED as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    return 0


def _by_hand(parser: argparse.ArgumentParser, options: argparse.Namespace) -> run.EvaluateReport:
    missing = [f"--{n}" for n in ("dataset", "model-uri", "output")
               if getattr(options, n.replace("-", "_")) is None]  # fmt: skip
    if missing:
        parser.error(f"give {', '.join(missing)}, or --executor-input")
    return run.evaluate(
        options.dataset,
        model_uri=options.model_uri,
        run_id=options.run_id,
        output=options.output,
        batch_size=options.batch_size,
        device=options.device,
        champion_of=options.champion_of,
    )


def run_task(task: Task) -> run.EvaluateReport:
    """Do one KFP task: `config` and `model` in; `evaluation`, `metrics`, `confusion` out."""
    config = task.config()
    trained = json.loads(task.input_path("model").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="tarpon-evaluate-") as folder:
        report = run.evaluate(
            trained["dataset_url"],
            model_uri=trained["model_uri"],
            run_id=trained["run_id"],
            output=folder,
            device=config["train"]["device"],
            device_option="train.device",
            threads=config["train"]["threads"],
            champion_of=config["register"]["name"] or config["data"]["name"],
            **config["evaluate"],
        )
    report.write(task.output_path("evaluation"))
    scalars = {name: getattr(report, name) for name in ("accuracy", "loss", "macro_f1", "samples")}
    task.set_metadata("evaluation", scalars | {"test_digest": report.test_digest})
    task.set_metadata("metrics", scalars)
    task.set_metadata("confusion", confusion_metadata(report.classes, report.confusion))
    task.finish()
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m components.evaluate", description=run.__doc__)
    parser.add_argument("--executor-input", metavar="JSON", help="what KFP's launcher passes")
    parser.add_argument("--dataset", metavar="URL", help="folder of a published dataset version")
    parser.add_argument("--model-uri", help="models:/m-..., as train reports it")
    parser.add_argument("--run-id", help="MLflow run that trained the model; default: MLflow knows")
    parser.add_argument("--output", metavar="DIR", help="folder for the report and the figures")
    parser.add_argument("--batch-size", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n>")
    parser.add_argument(
        "--champion-of", metavar="NAME", help="measure this registered model's champion as well"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
