"""`python -m components.train`: by hand with options, or by KFP with --executor-input.

Exit codes: 0 trained; 1 an error, named on the last line; 130 Ctrl-C and 143 SIGTERM, both after
a checkpoint was saved: the same command goes on from it. With several processes they are those of
the ranks, 128 + n where signal n ended one.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import logging
import os
import re
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, get_type_hints

from components.executor import ExecutorInputError, Task
from components.links import add_arguments
from components.train import launch
from components.train.settings import Settings, SettingsError
from components.train.stop import EXIT_CODES, StopRequested

BEGAN = "TARPON_TRAIN_BEGAN_S"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    first = os.environ.get("RANK", "0") == "0"
    level = logging.INFO if first else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
    options = _parser().parse_args(arguments)
    try:
        task, given = _what_is_asked(options)
        processes = launch.processes_wanted(Settings(**given))
        if processes > 1:
            os.environ[BEGAN] = repr(_began_s())
            return launch.launch(arguments, processes)
        launch.die_with_launcher()
        return _work(task, options, given)
    except KeyboardInterrupt as error:
        # One that is none of ours came before the training listened: there was nothing to save.
        stop = error if isinstance(error, StopRequested) else StopRequested("SIGINT", "")
        if first:
            print(f"train: {stop}", file=sys.stderr)
        return EXIT_CODES[stop.signal_name]
    except (ExecutorInputError, SettingsError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1


def _what_is_asked(options: argparse.Namespace) -> tuple[Task | None, dict[str, Any]]:
    """The KFP task, if it is one, and the settings of the training."""
    names = [field.name for field in dataclasses.fields(Settings)]
    if options.executor_input is None:
        if options.dataset is None or options.output is None:
            _parser().error("give --dataset and --output, or --executor-input")
        return None, {name: getattr(options, name) for name in names}
    task = Task.from_json(options.executor_input)
    section = task.config()["train"]
    return task, {name: section[name] for name in names if name in section}


def _work(task: Task | None, options: argparse.Namespace, given: dict[str, Any]) -> int:
    """Train in this process, be it the only one or one rank."""
    from components.train import command  # torch and MLflow, which a launcher does without

    began_s = float(os.environ.get(BEGAN) or _began_s())
    return command.work(task, options, given, began_s=began_s)


def _began_s() -> float:
    """When this process was started, in seconds since the epoch."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    up_s = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - up_s + ticks / os.sysconf("SC_CLK_TCK")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m components.train",
        description="Train a classifier on a published dataset version; one MLflow run per "
        "training. Killed at any instant, the same command goes on from the last checkpoint.",
        epilog="In the pipeline each option is train.<name>: `python -m pipelines --help`.",
    )
    parser.add_argument("--executor-input", metavar="JSON", help="what KFP's launcher passes")
    add_arguments(parser)
    parser.add_argument("--dataset", metavar="URL", help="folder of a published dataset version")
    parser.add_argument(
        "--output", metavar="DIR", help="folder for checkpoints, or s3://bucket/prefix"
    )
    parser.add_argument("--experiment", default="tarpon", help="MLflow experiment (%(default)s)")
    parser.add_argument("--allow-unproven", action="store_true", help="accept a missing proof")
    parser.add_argument("--fresh", action="store_true", help="begin again, drop the checkpoints")
    hints, meanings = get_type_hints(Settings), _meanings()
    for field in dataclasses.fields(Settings):
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=_reader(hints[field.name]),
            default=field.default,
            metavar=field.name.upper(),
            help=f"{meanings[field.name]} (default: {_typed(field.default)})",
        )
    return parser


def _meanings() -> dict[str, str]:
    """What each setting is, as the docstring of `Settings` says it."""
    _, _, arguments = (inspect.getdoc(Settings) or "").partition("Args:")
    found = {}
    for entry in re.split(r"\n {4}(?=\w)", arguments)[1:]:
        names, _, text = entry.partition(":")
        for name in names.split(", "):
            found[name] = " ".join(text.split()).replace("`", "").replace("%", "%%").rstrip(".")
    return found


def _typed(value: Any) -> str:
    """A default as one would type it: null, false, 0.003, adamw."""
    return value if isinstance(value, str) else json.dumps(value)


def _reader(kind: Any) -> Any:
    """How one setting's text is read: `null` where it may be left out, true or false, a number."""
    kinds = set(getattr(kind, "__args__", (kind,)))
    (plain,) = kinds - {type(None)}

    def read(text: str) -> Any:
        if text in ("null", "None") and type(None) in kinds:
            return None
        if plain is bool:
            if text.lower() not in ("true", "false"):
                raise ValueError(text)
            return text.lower() == "true"
        return plain(text)

    read.__name__ = plain.__name__  # argparse names it: invalid int value
    return read


def _end_at_once(number: int, _frame: FrameType | None) -> None:
    """Before a training listens: nothing is lost, and an exception might be while modules load."""
    if os.environ.get("RANK", "0") == "0":
        said = StopRequested(signal.Signals(number).name, "")
        os.write(sys.stderr.fileno(), f"train: {said}\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end_at_once)
    code = main()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # one that comes while Python ends changes no code
    sys.exit(code)
