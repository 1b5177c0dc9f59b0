"""What a training logs, against a real MLflow server that goes away, loses answers and returns."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from matplotlib.figure import Figure

from components import patience, tracking
from components.manifest import Manifest, SplitInfo
from components.register import run as gate
from components.run_log import RunLog
from tests.components import blobs
from tests.components.conftest import point_at
from tests.servers import mlflow as servers
from tests.servers.faultproxy import FaultProxy
from tests.servers.faults import (
    Fault,
    Rule,
    close,
    close_before_reply,
    cut_headers,
    error,
    refuse,
    reset_before_reply,
)
from tests.servers.fixtures import FaultProxies

pytestmark = pytest.mark.slow  # the server takes seconds to start

VERSION = Manifest(
    url="s3://bucket/photos/v1",
    name="photos",
    version="v1",
    parent=None,
    classes=["a", "b"],
    splits={"train": SplitInfo(samples=9, bytes=1, shards=1, classes={"a": 9, "b": 0})},
    catalog={},
    config={},
    code="",
    digest="d" * 64,
)


@pytest.fixture(scope="module")
def server(
    empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[servers.MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_database, folder / "server.db")
    with servers.running(folder) as started:
        yield started


@pytest.fixture
def proxy(
    server: servers.MlflowServer, fault_proxy: FaultProxies, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultProxy]:
    """What stands between this test's client and the server."""
    between = fault_proxy(server.url)
    with point_at(between.url, monkeypatch):
        yield between


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that tests do not feel."""
    for module in ("components.run_log", "components.patience"):
        monkeypatch.setattr(f"{module}.FIRST_PAUSE_S", 0.02)
        monkeypatch.setattr(f"{module}.LONGEST_PAUSE_S", 0.2)


def new_run(client: mlflow.MlflowClient) -> str:
    return str(client.create_run("0").info.run_id)


def steps(client: mlflow.MlflowClient, run_id: str, key: str) -> list[int]:
    return [metric.step for metric in client.get_metric_history(run_id, key)]


def batches(proxy: FaultProxy) -> int:
    return sum(request.path.endswith("/runs/log-batch") for request in proxy.requests())


def test_a_server_killed_in_the_middle_delays_nothing_and_loses_nothing(
    server: servers.MlflowServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with point_at(server.url, monkeypatch), caplog.at_level(logging.WARNING, "components"):
        client = tracking.connect()
        run_id = new_run(client)
        log = RunLog(client, run_id)
        for step in range(1, 101):
            log.add(step, {"train/loss": 1 / step})
        assert log.flush(60)
        server.kill()
        for step in range(101, 301):
            log.add(step, {"train/loss": 1 / step})
        log.log_params({"train": {"lr": 0.1}})
        log.log_input(tracking.input_entry(VERSION, "train", 9))
        log.log_text("a: 1\n", "config.yaml")
        log.log_figure(Figure(), "figures/empty.png")
        log.log_image(np.zeros((4, 6, 3), np.uint8), "samples/train", step=3)
        assert not log.flush(60)  # it answers as soon as the server is known to be away
        assert len(log.pending()) == 200 + 2 + 1 + 4  # records, the image's tag, files
        server.start()
        assert log.close(60) == ""
        assert steps(client, run_id, "train/loss") == list(range(1, 301))
        found = client.get_run(run_id)
        assert found.data.params == {"train.lr": "0.1"}
        assert found.data.tags["mlflow.loggedImages"] == "True"
        assert [item.dataset.name for item in found.inputs.dataset_inputs] == ["photos/v1/train"]
        assert {item.path for item in client.list_artifacts(run_id)} >= {"config.yaml", "images"}
        (figure,) = client.list_artifacts(run_id, "figures")
        assert figure.file_size > 100
        names = [Path(item.path).suffix for item in client.list_artifacts(run_id, "images")]
        assert sorted(names) == [".png", ".webp"]
    said = [record.getMessage() for record in caplog.records]
    assert sum("does not take metrics" in text for text in said) == 1
    assert sum("takes metrics again" in text for text in said) == 1
    assert not any("Traceback" in text or record.exc_info for text, record in
                   zip(said, caplog.records, strict=True))  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "taken"),
    [
        (cut_headers(), True),
        (close(at=0), True),
        (reset_before_reply(), False),
        (close_before_reply(), False),
        (error(503, "SlowDown"), False),
        (error(429, "TooManyRequests"), False),
    ],
    ids=lambda value: value.kind + str(value.status or "") if isinstance(value, Fault) else "",
)
def test_a_batch_whose_answer_was_lost_is_not_sent_twice(
    proxy: FaultProxy, fault: Fault, taken: bool
) -> None:
    client = tracking.connect()
    run_id = new_run(client)
    proxy.set_rules(Rule(name="lost", fault=fault, path="runs/log-batch$", first=1))
    log = RunLog(client, run_id)
    for step in range(5):
        log.add(step, {"loss": step})
        log.add_sampled({"system/cpu": step})
    assert log.close(60) == ""
    assert proxy.fired("lost") == 1
    assert batches(proxy) == (1 if taken else 2)
    assert steps(client, run_id, "loss") == [0, 1, 2, 3, 4]
    assert steps(client, run_id, "system/cpu")[0] == 0


def test_what_an_absent_server_did_not_take_is_sent_by_the_next_run(
    proxy: FaultProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = tracking.connect()
    run_id = new_run(client)
    unsent = str(tmp_path / "mlflow-unsent.jsonl")
    first = RunLog(client, run_id, unsent=unsent)
    first.add(1, {"loss": 1.0})
    assert first.flush(60)
    proxy.set_rules(Rule(name="away", fault=close_before_reply()))
    for step in (2, 3):
        first.add(step, {"loss": step})
    in_checkpoint = first.pending()
    first.log_text("hello", "hello.txt")
    assert first.close(0.1) == unsent
    assert f"kept in {unsent}" in caplog.text
    proxy.set_rules()
    second = RunLog(client, run_id, unsent=unsent)
    second.restore(in_checkpoint)
    for step in (3, 4):  # step 3 once more, as after a checkpoint
        second.add(step, {"loss": step})
    assert second.close(60) == ""
    assert steps(client, run_id, "loss") == [1, 2, 3, 4]
    assert [item.path for item in client.list_artifacts(run_id)] == ["hello.txt"]
    assert not Path(unsent).exists()


def test_a_run_that_is_deleted_meanwhile_is_said_and_what_is_left_is_kept(
    proxy: FaultProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = tracking.connect()
    run_id = new_run(client)
    unsent = str(tmp_path / "left.jsonl")
    log = RunLog(client, run_id, unsent=unsent)
    log.add(1, {"loss": 1.0})
    assert log.flush(60)
    client.delete_run(run_id)
    log.add(2, {"loss": 1.0})
    log.flush(60)
    assert log.close(60) == unsent
    assert f"run {run_id}: found it deleted" in caplog.text
    assert '"step": 2' in Path(unsent).read_text()


def test_one_entry_that_mlflow_refuses_does_not_hold_up_the_others(
    proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    client = tracking.connect()
    run_id = new_run(client)
    log = RunLog(client, run_id)
    log.add(1, {"before": 1.0})
    log.set_tags({"a//b": "no such name", "good": "yes"})
    log.add(1, {"after": 1.0})
    log.close(60)
    found = client.get_run(run_id).data
    assert found.metrics == {"before": 1.0, "after": 1.0}
    assert found.tags["good"] == "yes"
    assert "mlflow refuses tag a//b" in caplog.text
    assert len(client.get_metric_history(run_id, "before")) == 1


def test_a_run_begins_when_the_server_answers_and_only_once(
    proxy: FaultProxy, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    client = tracking.connect()
    proxy.set_rules(
        Rule(name="away", fault=refuse(0.3), path="get-by-name", first=1),
        Rule(name="lost", fault=cut_headers(), path="runs/create$", first=1),
    )
    with tracking.open_run(
        client,
        experiment="begins",
        name="r",
        tags={"a": "b"},
        description="[x](y)",
        system_metrics=False,
    ) as run_id:
        proxy.set_rules(Rule(name="end", fault=reset_before_reply(), path="/update$", first=1))
    assert proxy.fired("end") == 1
    experiment = client.get_experiment_by_name("begins")
    (made,) = client.search_runs([experiment.experiment_id])
    assert made.info.run_id == run_id
    assert made.info.status == "FINISHED"
    assert made.data.tags["a"] == "b"
    assert made.data.tags["mlflow.note.content"] == "[x](y)"
    assert caplog.text.count("does not answer") == 1  # however many attempts it took
    assert caplog.text.count("Traceback") == 0
    assert capsys.readouterr().out == ""  # a step's report goes there


def test_a_server_that_stays_away_is_named_with_what_to_do(proxy: FaultProxy) -> None:
    client = tracking.connect()
    proxy.set_rules(Rule(name="away", fault=close_before_reply()))
    opened = tracking.open_run(client, experiment="e", name="r", tags={}, patience_s=0.1)
    with pytest.raises(patience.TrackingError, match=r"no answer in 0 s .*; check MLFLOW_TRACK"):
        opened.__enter__()


def test_a_model_is_registered_once_though_answers_are_lost(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    client = tracking.connect()
    url = blobs.publish(tmp_path, train=3, val=3, test=3)
    run_id = new_run(client)
    made = client.create_logged_model("0", name="model", source_run_id=run_id)
    client.finalize_logged_model(made.model_id, "READY")
    lost = ("registered-models/create$", "model-versions/create$", "/alias$", "/update$")
    proxy.set_rules(
        *(Rule(name=path, fault=close(at=0), path=path, first=1) for path in lost),
        Rule(name="away", fault=close_before_reply(), path="logged-models", first=1),
    )
    report = gate.register(
        model_uri=f"models:/{made.model_id}",
        run_id=run_id,
        dataset_url=url,
        accuracy=0.9,
        name="lossy",
        test_digest="t" * 64,
    )
    assert proxy.fired("away") == proxy.fired("model-versions/create$") == 1
    assert (report.version, report.alias) == ("1", "champion")
    (version,) = client.search_model_versions("name='lossy'")
    assert client.get_model_version_by_alias("lossy", "champion").version == version.version
    assert version.tags["test_digest"] == "t" * 64
