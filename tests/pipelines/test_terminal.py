"""What a person sees of a run, on a terminal and elsewhere."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines.compose import load
from pipelines.local import StepResult
from pipelines.summary import mlflow_line, remarks, summarise
from pipelines.terminal import Terminal, outcome


def result(name: str, *, exit_code: int = 0, folder: Path = Path(), **metadata: Any) -> StepResult:
    return StepResult(
        name=name,
        seconds=1.25,
        log=folder / f"{name}.log",
        exit_code=exit_code,
        artifacts={},
        metadata=metadata,
    )


def test_elsewhere_each_step_is_one_line() -> None:
    text = io.StringIO()
    with Terminal(Console(file=text, width=40)) as terminal:
        terminal.started("ingest")
        terminal.said("ingest", "ingest: 100/200")
        terminal.finished(result("ingest", ok=187.0, quarantined=13.0))
        terminal.finished(result("split", exit_code=1))
        terminal.error("split failed: a [class] with one sample " + "x" * 60)
    lines = text.getvalue().splitlines()
    assert lines[0] == "  ok  ingest        1.2 s   ok 187, quarantined 13"
    assert lines[1] == "fail  split         1.2 s"
    assert lines[2] == "error: split failed: a [class] with one sample " + "x" * 60
    assert len(lines) == 3


def test_on_a_terminal_a_running_step_shows_its_latest_line() -> None:
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=True, color_system=None)
    with Terminal(console) as terminal:
        terminal.started("train")
        terminal.said("train", "epoch 3/8 [val] accuracy 0.91")
        terminal._progress.refresh()
        assert "epoch 3/8 [val] accuracy 0.91" in text.getvalue()
        terminal.finished(result("train", epochs=8.0, val_accuracy=0.9312))
    assert "ok  train         1.2 s   epochs 8, val accuracy 0.9312" in text.getvalue()


def test_outcome_shows_what_the_report_has() -> None:
    shown = outcome(result("pack.3", written=2.0, skipped=0.0))
    assert shown == "written 2, skipped 0"
    assert outcome(result("unknown", anything=1)) == ""


def test_summary_reads_the_reports(tmp_path: Path) -> None:
    def step(name: str, report: dict[str, Any] | None, suffix: str = "") -> StepResult:
        path = tmp_path / f"{name}{suffix}"
        path.write_text(json.dumps(report) if report else "<html>")
        done = result(name, folder=tmp_path)
        return StepResult(
            name=name, seconds=1, log=done.log, exit_code=0, artifacts={"out": path}, metadata={}
        )

    sides = {side: {"samples": n, "shards": 2} for side, n in (("test", 9), ("train", 81))}
    results = [
        step("ingest", {"rows": 95, "ok": 90, "quarantined": 5, "reasons": {"truncated": 5}}),
        step("split", {"counts": {"test": 9, "train": 81}}),
        step("profile", None, ".html"),
        step("seal", {"dataset_url": "/d/v1", "digest": "abc", "splits": sides}),
        step("train", {"run_id": "r"}),
        step("evaluate", {"accuracy": 0.93119}),
        step("register", {"name": "photos", "version": "3", "alias": "champion"}),
    ]
    lines = summarise(results, load(["mlflow.uri=sqlite:////x/mlflow.db"]), tmp_path)
    assert lines[:7] == [
        "samples in 95, good 90, quarantined 5 (5 truncated)",
        "split train 81, test 9",
        "shards 4",
        "dataset /d/v1",
        "digest abc",
        f"profile report {tmp_path / 'profile.html'}",
        "test accuracy 0.9312",
    ]
    assert lines[7] == "model photos version 3 (champion)"
    assert lines[8].endswith("mlflow ui --backend-store-uri sqlite:////x/mlflow.db")


def test_warnings_of_reports_become_remarks(tmp_path: Path) -> None:
    report = tmp_path / "report"
    report.write_text(json.dumps({"lost_classes": ["cat"], "warnings": ["2 classes are rare"]}))
    done = result("split")
    found = remarks([dataclasses.replace(done, artifacts={"split": report}), result("train")])
    assert found == ["split: every file of cat was quarantined", "split: 2 classes are rare"]


def test_summary_of_a_part_says_no_more_than_there_was(tmp_path: Path) -> None:
    assert summarise([result("ingest")], load([]), tmp_path) == [f"logs {tmp_path / 'logs'}"]


def test_a_server_is_an_address_not_a_command() -> None:
    assert mlflow_line("http://mlflow:5000") == "MLflow http://mlflow:5000"
