"""What a local run came to, in a dozen lines for a person; read from the steps' own reports."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.store import is_s3, without_secrets
from pipelines.config import Config
from pipelines.local import StepResult


def summarise(results: Sequence[StepResult], config: Config, folder: Path) -> list[str]:
    """The lines, from samples in to how the MLflow UI is opened; only of what there was to do."""
    reports = {result.name: _report(result) for result in results}
    return [
        *_data_lines(reports),
        *_profile_line(results),
        *_model_lines(reports, config),
        *_next_line(reports, config),
        f"logs {folder / 'logs'}",
    ]


def remarks(results: Sequence[StepResult]) -> list[str]:
    """What the steps warn of: nothing stopped, but somebody should know."""
    found: list[str] = []
    for result in results:
        report = _report(result)
        if lost := report.get("lost_classes"):
            found.append(f"{result.name}: every file of {', '.join(lost)} was quarantined")
        found += [f"{result.name}: {text}" for text in report.get("warnings", [])]
    return found


def _data_lines(reports: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if ingest := reports.get("ingest"):
        reasons = ", ".join(f"{count} {why}" for why, count in sorted(ingest["reasons"].items()))
        bad = f"{ingest['quarantined']}" + (f" ({reasons})" if reasons else "")
        yield f"samples in {ingest['rows']}, good {ingest['ok']}, quarantined {bad}"
    if split := reports.get("split"):
        yield f"split {', '.join(f'{name} {n}' for name, n in _in_order(split['counts']))}"
    if dataset := reports.get("seal") or reports.get("published"):
        splits = dataset["splits"]
        if not split:
            counts = {name: info["samples"] for name, info in splits.items()}
            yield f"split {', '.join(f'{name} {n}' for name, n in _in_order(counts))}"
        yield f"shards {sum(info['shards'] for info in splits.values())}"
        yield f"dataset {dataset['dataset_url']}"
        yield f"digest {dataset['digest']}"


def _profile_line(results: Sequence[StepResult]) -> Iterator[str]:
    for result in results:
        for path in result.artifacts.values():
            if path.suffix == ".html":
                yield f"{result.name} report {path}"


def _model_lines(reports: Mapping[str, Mapping[str, Any]], config: Config) -> Iterator[str]:
    if evaluate := reports.get("evaluate"):
        yield f"test accuracy {evaluate['accuracy']:.4f}"
    if register := reports.get("register"):
        alias = f" ({register['alias']})" if register.get("alias") else ""
        yield f"model {register['name']} version {register['version']}{alias}"
    if "train" in reports:
        yield mlflow_line(config.mlflow.uri)


def _next_line(reports: Mapping[str, Mapping[str, Any]], config: Config) -> Iterator[str]:
    """After a dataset without a model: the command that trains on it, from this same folder."""
    dataset = reports.get("seal")
    if dataset is None or "train" in reports:
        return
    root = config.store.root
    if not is_s3(root) and not os.path.relpath(root).startswith(".."):
        root = os.path.relpath(root)
    chosen = {
        "data.version": dataset["version"],
        "data.name": config.data.name,
        "store.root": root,
    }
    if is_s3(root) and config.store.endpoint:
        chosen["store.endpoint"] = without_secrets(config.store.endpoint)
    words = [f"{key}={value}" for key, value in chosen.items()]
    yield f"train on it with: {_command('python')} -m pipelines {shlex.join(words)}"


def mlflow_line(uri: str | None) -> str:
    """How to look at the run: a command for a database, the address of a server."""
    if uri is None:
        return "MLflow at its default address"
    shown = without_secrets(uri)
    hidden = "" if shown == uri else "  (with the credentials, which are not shown)"
    if uri.startswith(("http://", "https://")):
        return f"MLflow {shown}"
    command = f"{_command('mlflow')} ui --backend-store-uri {shlex.quote(shown)}"
    return f"open MLflow with: {command}{hidden}"


def _command(name: str) -> str:
    """A command of this interpreter, as short as the shell can be told it in this folder."""
    bin_folder = Path(sys.executable).parent
    found = shutil.which(name)
    if not (bin_folder / name).exists() or (
        found and os.path.samefile(Path(found).parent, bin_folder)
    ):
        return name
    here = Path.cwd()
    short = bin_folder.relative_to(here) if bin_folder.is_relative_to(here) else bin_folder
    return shlex.quote(str(short / name))


def _in_order(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    names = ("train", "val", "test")
    return [(name, counts[name]) for name in names if name in counts]


def _report(result: StepResult) -> dict[str, Any]:
    """The JSON report among a step's artifacts; the first that is one."""
    for path in result.artifacts.values():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict):
            return found
    return {}
