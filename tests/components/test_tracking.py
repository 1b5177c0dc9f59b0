"""Runs, names, links and the queue: what needs no server, on an MLflow database of its own."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
import requests
from botocore.exceptions import EndpointConnectionError
from mlflow.exceptions import MlflowException

from components import links, patience, run_names
from components import tracking as seam
from components.loader_metrics import loader_metrics
from components.outbox import Outbox
from components.run_log import RunLog
from components.system_metrics import SystemMetrics

ROOT = Path(__file__).resolve().parents[2]


def test_an_address_of_no_kind_that_mlflow_knows_is_one_line(
    tracking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://bob:hunter2@nowhere:1")
    with pytest.raises(seam.TrackingError, match="mlflow at htp://nowhere:1") as caught:
        seam.connect()
    assert "check MLFLOW_TRACKING_URI" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("memory_bytes", [0, 400, 1 << 20])
def test_the_outbox_is_a_queue_wherever_its_lines_lie(memory_bytes: int) -> None:
    outbox, model = Outbox(memory_bytes), deque[str]()
    draw = random.Random(5)
    for number in range(2000):
        if draw.random() < 0.6:
            line = f"{number} ä" + "x" * draw.randrange(60)
            outbox.put(line)
            model.append(line)
        else:
            head = outbox.head(draw.randrange(1, 9))
            assert head == list(model)[: len(head)]
            assert head or not model
            outbox.drop(len(head))
            for _ in head:
                model.popleft()
        assert len(outbox) == len(model)
        if number % 100 == 0:
            assert list(outbox) == list(model)
    assert list(outbox) == list(model)
    outbox.close()


def test_settings_become_names_and_values_that_mlflow_takes() -> None:
    found = run_names.params_of({"a": {"b c": 1, "x=y{}": None}, "long": "z" * 7000, "..": 1})
    assert found == {"a.b c": "1", "a.x_y__": "None", "long": "z" * 5999 + "…", "_": "1"}
    assert run_names.metric_name("/train//loss@1") == "train/loss_1"
    assert len(run_names.metric_name("k" * 300)) == 250


def test_many_long_params_are_logged_and_a_second_time_changes_nothing(tracking: str) -> None:
    client = seam.connect()
    run_id = client.create_run("0").info.run_id
    values = {f"group/{i}": {"key?": "v" * 6001} for i in range(150)}
    for given in (values, values | {"group/0": {"key?": "other"}}):
        with RunLog(client, run_id) as log:
            log.log_params(given)
    found = client.get_run(run_id).data.params
    assert len(found) == 150
    assert found["group/0.key_"] == "v" * 5999 + "…"


def refusal(status: int) -> requests.HTTPError:
    """What MLflow lets through where it lists artifacts."""
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("no", response=response)


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (requests.exceptions.ReadTimeout("no answer"), True),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:1"), True),
        (refusal(503), True),
        (refusal(403), False),
        (OSError(errno.ENOSPC, "no space left on device"), False),
        (PermissionError(errno.EACCES, "denied"), False),
        (ValueError("ours"), False),
    ],
)
def test_a_full_disk_is_no_absent_server(error: Exception, away: bool) -> None:
    assert patience.is_away(error) == away


@pytest.mark.slow  # a process of its own
def test_a_killed_process_leaves_a_running_run_that_the_next_one_goes_on_in(
    tracking: str, tmp_path: Path
) -> None:
    program = (
        "import os, signal; from components import tracking\n"
        "from components.run_log import RunLog\n"
        "client = tracking.connect()\n"
        "with tracking.open_run(client, experiment='e', name='r', tags={},"
        " system_metrics=False) as run_id:\n"
        "    log = RunLog(client, run_id)\n"
        "    for step in range(1, 8): log.add(step, {'loss': step})\n"
        "    assert log.flush(60)\n"
        "    print(run_id, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run_id = killed.stdout.strip()
    client = seam.connect()
    assert client.get_run(run_id).info.status == "RUNNING"
    with (
        seam.open_run(client, experiment="e", name="r", tags={}, resume=run_id) as again,
        RunLog(client, again) as log,
    ):
        for step in range(5, 11):  # from the checkpoint at step 4
            log.add(step, {"loss": step})
    assert again == run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    history = client.get_metric_history(run_id, "loss")
    assert [metric.step for metric in history] == list(range(1, 11))


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), "KILLED"), (RuntimeError("x"), "FAILED"), (SystemExit(1), "FAILED")],
)
def test_how_a_training_ended_is_told_apart(
    tracking: str, error: BaseException, status: str
) -> None:
    client = seam.connect()
    opened = seam.open_run(client, experiment="e", name="r", tags={}, system_metrics=False)
    with pytest.raises(type(error)), opened as run_id:
        raise error
    assert client.get_run(run_id).info.status == status


def test_a_run_that_is_interrupted_while_it_is_opened_is_ended(
    tracking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    client = seam.connect()
    monkeypatch.setattr(mlflow, "start_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        seam.open_run(client, experiment="e", name="r", tags={}).__enter__()
    (made,) = client.search_runs(["1"])
    assert made.info.status == "KILLED"


def test_ctrl_c_ends_the_wait_of_the_end_and_what_is_unsent_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    client = mlflow.MlflowClient(tracking_uri="http://127.0.0.1:1")
    log = RunLog(client, "r", unsent=str(tmp_path / "unsent.jsonl"))
    log.add(1, {"loss": 1.0})
    assert not log.flush(60)
    threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        log.close(60)
    assert '"step": 1' in (tmp_path / "unsent.jsonl").read_text()


@pytest.mark.parametrize("error", [None, MlflowException("no such run"), RuntimeError("x")])
def test_a_run_deleted_while_it_is_open_is_said(
    tracking: str, error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    client = seam.connect()
    opened = seam.open_run(client, experiment="e", name="r", tags={}, system_metrics=False)
    ours = isinstance(error, RuntimeError)  # what ended the step comes first
    expected = r"^x$" if ours else "found it deleted, expected the run of this step; run the same"

    def step() -> None:
        with opened as run_id:
            client.delete_run(run_id)
            if error is not None:
                raise error

    with pytest.raises(RuntimeError, match=expected):
        step()
    assert ("cannot be ended as FAILED" in caplog.text) == (error is not None)


def test_a_deleted_run_is_replaced_and_gets_what_the_checkpoint_has(
    tracking: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = seam.connect()
    old = client.create_run("0").info.run_id
    gone = RunLog(client, old)
    client.delete_run(old)
    for epoch in (1, 2, 3):
        gone.add(4 * epoch, {"train/loss": 1 / epoch})
    pending = gone.pending()
    gone.close(1)
    with caplog.at_level(logging.WARNING):
        opened = seam.open_run(
            client, experiment="e", name="r", tags={}, resume=old, system_metrics=False
        )
    with opened as new, RunLog(client, new) as log:
        for epoch in (1, 2):
            log.add(4 * epoch, {"train/loss": 1 / epoch})
        log.restore(pending)
    assert new != old
    assert f"mlflow has no run {old} any more" in caplog.text
    history = client.get_metric_history(new, "train/loss")
    assert sorted(metric.step for metric in history) == [4, 8, 12]


@pytest.mark.parametrize("deleted", [True, False])
def test_an_injected_run_that_is_not_there_is_refused(
    tracking: str, monkeypatch: pytest.MonkeyPatch, deleted: bool
) -> None:
    client = seam.connect()
    run_id = "0" * 32
    if deleted:
        run_id = client.create_run("0").info.run_id
        client.delete_run(run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    opened = seam.open_run(client, experiment="e", name="r", tags={}, resume="1" * 32)
    with pytest.raises(seam.TrackingError, match=f"MLFLOW_RUN_ID='{run_id}': .*, expected an act"):
        opened.__enter__()
    assert mlflow.active_run() is None


def test_the_machine_is_measured(tracking: str) -> None:
    client = seam.connect()
    run_id = client.create_run("0").info.run_id
    with RunLog(client, run_id) as log, SystemMetrics(log, every_s=0.1) as machine:
        assert {"system/cpu_utilization_percentage", "system/system_memory_usage_percentage"} <= (
            machine.sample().keys()
        )
        until = 0
        while until < 3:
            log.flush(60)
            until = len(client.get_metric_history(run_id, "system/cpu_utilization_percentage"))
    history = client.get_metric_history(run_id, "system/cpu_utilization_percentage")
    assert [metric.step for metric in history] == list(range(len(history)))


def test_a_short_run_has_one_sample_of_the_machine_and_its_load_is_no_zero() -> None:
    noted: list[dict[str, float]] = []
    with SystemMetrics(SimpleNamespace(add_sampled=noted.append)):  # type: ignore[arg-type]
        until = time.monotonic() + 0.1
        while time.monotonic() < until:
            pass
    (sample,) = noted
    assert sample["system/cpu_utilization_percentage"] > 0


def test_two_looks_at_a_loader_are_rates_and_shares() -> None:
    before = {
        "samples": 100, "samples_per_s": 50.0, "bytes": 1_000_000, "wait_s": 1.0, "read_s": 0.5,
        "decode_s": 1.0, "full_s": 0.0, "idle_s": 0.5, "held_bytes": 0, "cache_hits": 1,
        "cache_misses": 1, "retries": 1, "network_bytes": 0, "bad_samples": [],
    }  # fmt: skip
    after = before | {
        "samples": 300, "samples_per_s": 75.0, "bytes": 5_000_000, "wait_s": 1.5, "read_s": 1.0,
        "decode_s": 4.0, "idle_s": 1.0, "held_bytes": 3_000_000, "cache_hits": 4, "retries": 3,
        "network_bytes": 4_000_000, "bad_samples": [{"key": "x"}],
    }  # fmt: skip
    assert loader_metrics(before, after) == pytest.approx(
        {
            "loader/samples_per_s": 100.0,
            "loader/mb_per_s": 2.0,
            "loader/network_mb_per_s": 2.0,
            "loader/wait_percent": 25.0,
            "loader/read_busy_percent": 12.5,
            "loader/decode_busy_percent": 75.0,
            "loader/cache_hit_percent": 100.0,
            "loader/held_mb": 3.0,
            "loader/retries": 3.0,
            "loader/bad_samples": 1.0,
        }
    )
    assert loader_metrics({}, {"samples": 0, "samples_per_s": 0.0}) == {}
    assert loader_metrics({}, after, elapsed_s=10)["loader/samples_per_s"] == 30.0


def test_kfp_and_mlflow_point_at_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_UI_URL", "https://bob:pw@kfp.example/pipeline/")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("MLFLOW_UI_URL", "https://mlflow.example")
    parser = argparse.ArgumentParser()
    links.add_arguments(parser)
    run = links.KfpRun.from_options(parser.parse_args(["--kfp-run", "ab-1", "--kfp-task", "train"]))
    page = "https://kfp.example/pipeline/#/runs/details/ab-1"
    assert run.tags() == {"kfp.run_id": "ab-1", "kfp.task": "train", "kfp.url": page}
    found = links.mlflow_metadata("7", "r1", "models:/m-2")
    assert found["mlflow_run_url"] == "https://mlflow.example/#/experiments/7/runs/r1"
    assert found["mlflow_model_url"] == "https://mlflow.example/#/experiments/7/models/m-2"
    assert found["mlflow_links"].startswith("[run](https://mlflow.example/#/exp")
    assert links.description({"dataset": "v1", "code": ""}, {"KFP run": run.url, "x": ""}) == (
        f"- dataset: `v1`\n- [KFP run]({page})"
    )


def test_without_pages_there_are_ids_and_no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KFP_UI_URL", "MLFLOW_UI_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert links.KfpRun(run_id="ab").tags() == {"kfp.run_id": "ab"}
    assert links.KfpRun.from_options(argparse.Namespace(kfp_run="{{$.x}}")) == links.KfpRun()
    assert links.mlflow_metadata("7", "r1", "models:/m-2") == {"mlflow_run_id": "r1"}
    assert links.mlflow_version_metadata("flowers", "3") == {}
