"""`python -m components.predict`: by hand with options, or by KFP with --executor-input."""

from __future__ import annotations

import argparse
import logging
import sys

from tarpon import TarponError

from components.executor import ExecutorInputError, Task
from components.loading import DeviceError, EmptySplitError
from components.logged_model import ModelMismatchError
from components.predict import run
from components.predict.parts import OtherJobError
from components.predict.scorer import NonFiniteScoresError
from components.store import StoreError
from components.tracking import TrackingError

EXPECTED = (
    DeviceError,
    EmptySplitError,
    ExecutorInputError,
    ModelMismatchError,
    NonFiniteScoresError,
    OtherJobError,
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
        print("predict: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except EXPECTED as error:
        print(f"predict: {error}", file=sys.stderr)
        return 1
    return 0


def _by_hand(parser: argparse.ArgumentParser, options: argparse.Namespace) -> run.PredictReport:
    missing = [f"--{n}" for n in ("model", "shards", "output") if not getattr(options, n)]
    if missing:
        parser.error(f"give {', '.join(missing)}, or --executor-input")
    for name in ("batch_size", "part_samples"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: expected 1 or more")
    if (options.rank is None) != (options.world_size is None):
        parser.error("give both of --rank and --world-size, or neither")
    if options.rank is not None and not 0 <= options.rank < options.world_size:
        parser.error(f"--rank {options.rank}: expected 0 to {options.world_size - 1}")
    shards = options.shards[0] if len(options.shards) == 1 else options.shards
    return run.predict(
        shards,
        model_uri=options.model,
        output=options.output,
        batch_size=options.batch_size,
        part_samples=options.part_samples,
        device=options.device,
        threads=options.threads,
        rank=options.rank,
        world_size=options.world_size,
        cache_dir=options.cache_dir,
    )


def run_task(task: Task) -> run.PredictReport:
    """Do one KFP task: `model`, `shards`, `output`, `batch_size` in; `predictions` out."""
    report = run.predict(
        task.parameter("shards"),
        model_uri=task.parameter("model"),
        output=task.parameter("output"),
        batch_size=int(task.parameter("batch_size")),  # KFP makes a float of it
        device=task.parameter("device"),
    )
    report.write(task.output_path("predictions"))
    task.set_metadata("predictions", report.summary())
    task.finish()
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m components.predict", description=run.__doc__)
    parser.add_argument("--executor-input", metavar="JSON", help="what KFP's launcher passes")
    parser.add_argument(
        "--model", metavar="URI", help="models:/name@champion, models:/m-..., or a run's id"
    )
    parser.add_argument(
        "--shards",
        nargs="+",
        metavar="URL",
        help="shard list, tars or a folder; local, s3:// or https://",
    )
    parser.add_argument("--output", metavar="DIR", help="folder of the scores, or s3://bucket/...")
    parser.add_argument("--batch-size", type=int, default=256, help="default: %(default)s")
    parser.add_argument(
        "--part-samples", type=int, default=8192, help="rows of one file (%(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<n>")
    parser.add_argument("--threads", type=int, help="of the loader and of torch, each")
    parser.add_argument("--rank", type=int, help="this process's number; torchrun sets RANK")
    parser.add_argument("--world-size", type=int, help="processes in all; torchrun: WORLD_SIZE")
    parser.add_argument("--cache-dir", metavar="DIR", help="keep what is read of remote shards")
    return parser


if __name__ == "__main__":
    sys.exit(main())
