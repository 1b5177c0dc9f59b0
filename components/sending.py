"""How what a run logs becomes requests to MLflow, each of which may safely be repeated.

    {"kind": "metric", "key", "value", "time_ms", "step"}    step null: the next one of this key
    {"kind": "param" | "tag", "key", "value"}
    {"kind": "input", "name", "digest", "source_type", "source", "tags"}
    {"kind": "file", "path", "data"}                         data in base64

It does not wait, try again or hold anything back: `components.run_log` does.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

Entry = dict[str, Any]

LIMITS = {"metric": 900, "param": 100, "tag": 100, "input": 10}
"""How many of each kind one request takes; a thousand of all kinds together is MLflow's limit."""


class RunGoneError(RuntimeError):
    """The run was deleted while something was still to be logged to it."""


def one_request(entries: Iterable[Entry]) -> list[Entry]:
    """The first of these entries that fit into one request."""
    left, taken = dict(LIMITS), []
    for entry in entries:
        left[entry["kind"]] -= 1
        if left[entry["kind"]] < 0:
            break
        taken.append(entry)
    return taken


class Sender:
    """Sends entries to one run; what the run has already is left out.

    MLflow appends a repeated step instead of replacing it. So the run is asked for the last step
    of each key before the first request, and again whenever a request failed: the server may have
    taken it, and only its answer was lost. Steps of a key must come in ascending order.
    """

    def __init__(self, client: mlflow.MlflowClient, run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self._sure = False
        self._last: dict[str, tuple[int, int]] = {}
        self._params: set[str] = set()

    def send(self, entries: Sequence[Entry]) -> None:
        """Send records (anything but files), no more than `one_request` gave.

        Raises:
            RunGoneError: The run is deleted.
            MlflowException: The server refuses, or is away.
        """
        if not self._sure:
            self._ask()
        self._sure = False
        of_kind: dict[str, list[Entry]] = {kind: [] for kind in LIMITS}
        for entry in entries:
            of_kind[entry["kind"]].append(entry)
        last = dict(self._last)
        metrics = [new for entry in of_kind["metric"] if (new := _metric(entry, last))]
        params = {e["key"]: e["value"] for e in of_kind["param"] if e["key"] not in self._params}
        tags = {entry["key"]: entry["value"] for entry in of_kind["tag"]}
        if metrics or params or tags:
            self._client.log_batch(
                self._run_id,
                metrics=metrics,
                params=[Param(key, value) for key, value in params.items()],
                tags=[RunTag(key, value) for key, value in tags.items()],
            )
        if of_kind["input"]:
            self._client.log_inputs(self._run_id, [as_input(entry) for entry in of_kind["input"]])
        self._last = last
        self._params |= params.keys()
        self._sure = True

    def send_file(self, entry: Entry) -> None:
        """Put one file among the run's artifacts; a second time replaces it."""
        path = PurePosixPath(entry["path"])
        with tempfile.TemporaryDirectory(prefix="tarpon-log-") as folder:
            file = Path(folder) / path.name
            file.write_bytes(base64.b64decode(entry["data"]))
            parent = None if str(path.parent) == "." else str(path.parent)
            self._client.log_artifact(self._run_id, str(file), parent)

    def check_run(self) -> None:
        """Raises RunGoneError if there is no such run any more."""
        find_run(self._client, self._run_id)

    def _ask(self) -> None:
        """What the run holds: the last step and its time by metric key, and the params."""
        data = find_run(self._client, self._run_id).data
        self._last = {m.key: (m.step, m.timestamp) for m in data.to_proto().metrics}
        self._params = set(data.params)


def find_run(client: mlflow.MlflowClient, run_id: str) -> mlflow.entities.Run:
    """The run.

    Raises:
        RunGoneError: It is deleted, or there never was one.
        MlflowException, ConnectionError: The server is away or says no.
    """
    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise RunGoneError(f"run {run_id}: found none of this id") from error
        raise
    require_answer(found.info.run_id)
    if found.info.lifecycle_stage != "active":
        raise RunGoneError(f"run {run_id}: found it deleted")
    return found


def require_answer(answered_id: str) -> str:
    """The id in an answer. MLflow's client takes a reply that broke off for one with empty fields.

    Raises:
        ConnectionError: It is empty.
    """
    if not answered_id:
        raise ConnectionError("the answer broke off")
    return answered_id


def as_input(entry: Mapping[str, Any]) -> DatasetInput:
    """An input as MLflow's client takes it."""
    about = {name: entry[name] for name in ("name", "digest", "source_type", "source")}
    return DatasetInput(Dataset(**about), [InputTag(k, v) for k, v in entry["tags"].items()])


def _metric(entry: Entry, last: dict[str, tuple[int, int]]) -> Metric | None:
    """The metric, or None where the run has it; `last` is brought up to date."""
    key, step, time_ms = entry["key"], entry["step"], entry["time_ms"]
    last_step, last_ms = last.get(key, (-1, -1))
    if (time_ms <= last_ms) if step is None else (step <= last_step):
        return None
    last[key] = (last_step + 1 if step is None else step, time_ms)
    return Metric(key, float(entry["value"]), time_ms, last[key][0])
