"""Several processes that train together: started, stopped, killed, and one that goes on alone."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import mlflow
import psutil
import pytest

from tests.components import blobs
from tests.soak.training import soak

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def stopped_after_an_epoch(folder: Path, **settings: object) -> tuple[int, list[str]]:
    """Train until an epoch has ended, SIGTERM; the exit code and what was said."""
    given = {"batch-size": 8, "image-size": 16, "lr": 0.01, "threads": 1, "epochs": 5000}
    options = [f"--{name}={value}" for name, value in (given | settings).items()]
    places = ["--dataset", str(folder / "blobs/v1"), "--output", str(folder / "out")]
    command = [sys.executable, "-m", "components.train", *places, *options]
    lines: list[str] = []
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        ranks: list[psutil.Process] = []
        for line in process.stderr:
            lines.append(line.strip())
            if line.startswith("epoch ") and not ranks:
                ranks = psutil.Process(process.pid).children() or [psutil.Process(process.pid)]
                process.terminate()
    assert not any(rank.is_running() for rank in ranks)
    assert len(ranks) == settings.get("processes", 1)
    return process.returncode, lines


def test_all_ranks_stop_for_a_signal_and_one_process_goes_on(tmp_path: Path, tracking: str) -> None:
    blobs.publish(tmp_path, val=5)
    code, lines = stopped_after_an_epoch(tmp_path, processes=2)
    assert code == 143
    assert lines[-1].startswith("train: stopped by SIGTERM; run the same command again to go on")
    step = int(lines[-1].removesuffix(".pt").rpartition("-")[2])
    client = mlflow.MlflowClient(tracking_uri=tracking)
    (killed,) = client.search_runs(["1"])
    assert killed.info.status == "KILLED"

    code, lines = stopped_after_an_epoch(tmp_path, accumulate=2)
    assert code == 143
    assert f"going on after step {step}, epoch {step // 4 + 1}" in lines
    (killed,) = client.search_runs(["1"])
    logged = client.get_metric_history(killed.info.run_id, "train/step_loss")
    steps = Counter(metric.step for metric in logged)
    assert max(steps) > step
    assert steps == Counter(range(1, max(steps) + 1))


def test_killed_at_any_moment_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    assert soak(1, 1, tmp_path)["kills"] == 1


def test_so_do_two_ranks_of_which_one_is_killed(tmp_path: Path) -> None:
    assert soak(3, 1, tmp_path, processes=2)["kills"] == 1
