"""Trainings killed with SIGKILL at random moments end as if nothing had happened.

    python -m tests.soak.training --seed=1 --kills=20 --processes=1

Ranks are real processes with the real command, forked from a server that has torch and MLflow
imported, so that most of the moments fall into a training and not before it. A training that ends
before the next kill is compared with one that nobody disturbed, and another one begins.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

SETTINGS = {
    "epochs": 8, "batch-size": 12, "image-size": 16, "lr": 0.01, "threads": 1, "ema-decay": 0.9,
    "accumulate": 2, "mixup-alpha": 0.2, "cutmix-alpha": 1.0, "clip-norm": 5.0,
    "checkpoint-every-s": 0.01,
}  # fmt: skip
STEPS = 48  # 8 epochs of 72 // 12 batches
PATIENCE_S = 300  # for an attempt that nobody kills

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.soak.training_imports"])


def train(folder: str, output: str, place: dict[str, Any]) -> None:
    """One rank, in a process of its own."""
    from components.train import __main__ as command

    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    os.environ.pop("MLFLOW_RUN_ID", None)
    os.chdir(folder)
    log = os.open(f"{folder}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    options = [f"--{name}={value}" for name, value in SETTINGS.items()]
    sys.exit(command.main(["--dataset", f"{folder}/blobs/v1", "--output", output, *options]))


def make_database(folder: str) -> None:
    """An MLflow database with its tables and nothing in them."""
    import mlflow

    mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db").search_experiments()


@dataclass
class Trainings:
    """A folder with a dataset and a database, and trainings on it of `processes` ranks each."""

    folder: Path
    processes: int
    codes: list[int | None] = field(default_factory=list)

    def start(self, output: Path) -> list[BaseProcess]:
        """All ranks of one attempt."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = []
        for rank in range(self.processes):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.processes}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            ranks.append(context.Process(target=train, args=(str(self.folder), str(output), place)))
            ranks[-1].start()
        return ranks

    def undisturbed(self, output: Path) -> float:
        """Train to the end; returns the seconds it took."""
        began = time.monotonic()
        self.end(self.start(output), expected=0)
        return time.monotonic() - began

    def end(self, ranks: list[BaseProcess], expected: int | None = None) -> None:
        """Wait for every rank; one that hangs is a finding."""
        for rank in ranks:
            rank.join(PATIENCE_S)
        self.codes = [rank.exitcode for rank in ranks]
        for rank in ranks:
            rank.kill()
        if None in self.codes or (expected is not None and {*self.codes} != {expected}):
            log = (self.folder / "log").read_text().splitlines()
            raise AssertionError(f"exit codes {self.codes}: {' / '.join(log[-4:])}")

    def disturbed(self, output: Path, after_s: float, victim: int) -> bool:
        """Kill one rank `after_s` into an attempt; whether it came before the training's end."""
        ranks = self.start(output)
        ranks[victim].join(after_s)
        came = ranks[victim].is_alive()
        if came:
            os.kill(ranks[victim].pid or 0, signal.SIGKILL)
        self.end(ranks)  # the others end by themselves
        return came and self.codes[victim] == -signal.SIGKILL


def result(output: Path) -> dict[str, Any]:
    """What a finished training left: its last checkpoint, without what tells the time."""
    import torch

    (newest,) = output.glob(f"*/checkpoint-{STEPS:09d}.pt")
    state = torch.load(newest, weights_only=True)
    timed = ("images_per_s", "data_wait_percent")
    rows = [{k: v for k, v in row.items() if not k.endswith(timed)} for row in state["history"]]
    tensors: dict[str, Any] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(f"{name}.{key}", item)

    for part in ("model", "average", "optimizer"):
        walk(part, state[part])
    return {"step": state["step"], "loader": state["loader"], "history": rows, "tensors": tensors}


def same(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What differs between two results, by name; bit for bit."""
    import torch

    mine, theirs = one["tensors"], other["tensors"]
    found = [k for k in ("step", "loader", "history") if one[k] != other[k]]
    found += sorted(mine.keys() ^ theirs.keys())
    return found + [k for k in mine if k in theirs and not torch.equal(mine[k], theirs[k])]


def steps_logged(folder: Path) -> list[list[int]]:
    """The steps of `train/step_loss` in each finished MLflow run, in order."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs(["1"], filter_string="attributes.status = 'FINISHED'")
    return [
        sorted(it.step for it in client.get_metric_history(run.info.run_id, "train/step_loss"))
        for run in runs
    ]


def soak(seed: int, kills: int, folder: Path, *, processes: int = 1) -> dict[str, Any]:
    """Kill trainings `kills` times at moments drawn from `seed`; raises where a result differs."""
    from tests.components import blobs

    draw = random.Random(seed)
    blobs.publish(folder, train=72, val=13, test=3)
    trainings = Trainings(folder, processes)
    # What only the first training would wait for: the fork server's imports, MLflow's tables.
    first = context.Process(target=make_database, args=(str(folder),))
    first.start()
    first.join()
    took = trainings.undisturbed(folder / "undisturbed")
    expected = result(folder / "undisturbed")
    done, finished, attempts = 0, 0, 0
    began = time.monotonic()
    while done < kills or finished == 0:
        output = folder / f"killed-{finished}"
        attempts += 1
        if done < kills and trainings.disturbed(
            output, draw.uniform(0, took), draw.randrange(processes)
        ):
            done += 1
            continue
        if done == kills and not list(output.glob("*/report.json")):
            trainings.undisturbed(output)
        if differs := same(expected, result(output)):
            raise AssertionError(f"seed {seed}, {done} kills: other {', '.join(differs[:5])}")
        finished += 1
    for steps in steps_logged(folder):
        if steps != list(range(1, STEPS + 1)):
            raise AssertionError(f"seed {seed}: an MLflow run has the steps {steps}")
    return {
        "kills": done,
        "trainings": finished,
        "attempts": attempts,
        "seconds": round(time.monotonic() - began, 1),
        "undisturbed_s": round(took, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tarpon-soak-"))
    report = soak(options.seed, options.kills, folder, processes=options.processes)
    shutil.rmtree(folder)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
