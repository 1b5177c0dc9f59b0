"""How a step speaks to MLflow: the one place that knows its traps.

It knows no torch, no kfp and no step; it never prints, and it never holds a credential: the
address comes from `MLFLOW_TRACKING_URI` and whatever else MLflow reads from the environment.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking.context import registry as context
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from components.code import code_version
from components.manifest import Manifest

DEFAULT_URI = "sqlite:///mlflow.db"
"""Where runs go when `MLFLOW_TRACKING_URI` says nothing: the folder one stands in."""

DIGEST_CHARS = 36
"""MLflow refuses longer dataset digests; the full one is in the run's tag `dataset.digest`."""

CONTEXTS = {"train": "training", "val": "validation", "test": "testing"}
"""Split name to the dataset context MLflow's UI knows."""

FLUSH_EVERY_S = 5.0
BATCH_METRICS = 1000
"""The most metrics MLflow accepts in one call."""


class TrackingError(RuntimeError):
    """MLflow does not hold what a step was told it holds; the message names it."""


def connect() -> mlflow.MlflowClient:
    """Point MLflow at the tracking server and quieten what it logs about itself."""
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("mlflow.store.db.utils", "mlflow.tracking.fluent", "mlflow.system_metrics"):
        logging.getLogger(name).setLevel(logging.WARNING)
    mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI)
    return mlflow.MlflowClient()


def run_is_usable(client: mlflow.MlflowClient, run_id: str) -> bool:
    """Whether the tracking server still has this run, not deleted."""
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException:
        return False


@contextlib.contextmanager
def open_run(
    client: mlflow.MlflowClient,
    *,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    resume: str | None = None,
) -> Iterator[str]:
    """One MLflow run around a `with` block; yields its id.

    The run is, in this order: the one named by `MLFLOW_RUN_ID` (KFP's MLflow plugin puts it
    there), `resume`, or a new one. It ends FINISHED, FAILED after an exception, or KILLED after
    Ctrl-C or SIGTERM.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID") or resume
    if run_id is None:
        all_tags = context.resolve_tags({"mlflow.runName": name, **tags})
        created = client.create_run(_experiment_id(client, experiment), tags=all_tags)
        run_id = str(created.info.run_id)
    else:
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    os.environ.pop("MLFLOW_RUN_ID", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a GPU library it looks for warns that it has moved
        mlflow.start_run(run_id=run_id, log_system_metrics=_has("psutil"))
    status = "FAILED"
    try:
        yield run_id
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        mlflow.end_run(status)


def _experiment_id(client: mlflow.MlflowClient, name: str) -> str:
    """The experiment's id, made when missing; two steps may make it at the same time."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=_beside_database(name)))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"mlflow experiment {name!r}: found it deleted, expected an active one; restore it "
            f"(mlflow experiments restore -x {found.experiment_id}) or set mlflow.experiment"
        )
    return str(found.experiment_id)


def _beside_database(experiment: str) -> str | None:
    """Where a new experiment's files go: with a SQLite store beside the database, wherever one
    stands; a server decides for itself."""
    uri = mlflow.get_tracking_uri()
    if not uri.startswith("sqlite:///"):
        return None
    folder = Path(uri.removeprefix("sqlite:///")).absolute().parent
    return str(folder / "mlruns" / re.sub(r"[^\w.-]", "_", experiment))


def dataset_input(manifest: Manifest, split: str) -> MetaDataset:
    """One split of a dataset version, as MLflow records it: a name, a place and our own digest.

    Each split has its own name, since MLflow keeps one context per name and digest in a run.
    """
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # it registers local folders twice, and says so
        source = resolve_dataset_source(manifest.url, None)
    return MetaDataset(
        source=source,
        name=f"{manifest.name}/{manifest.version}/{split}",
        digest=manifest.digest[:DIGEST_CHARS],
    )


def log_dataset(
    client: mlflow.MlflowClient, run_id: str, manifest: Manifest, split: str, samples: int
) -> None:
    """Put one split among a run's inputs; a second time changes nothing."""
    data = dataset_input(manifest, split)
    entity = Dataset(
        name=data.name,
        digest=data.digest,
        source_type=data.source._get_source_type(),
        source=data.source.to_json(),
    )
    tags = {MLFLOW_DATASET_CONTEXT: CONTEXTS[split], "split": split, "num_samples": str(samples)}
    inputs = DatasetInput(entity, [InputTag(key, value) for key, value in tags.items()])
    client.log_inputs(run_id, [inputs])


def dataset_tags(manifest: Manifest) -> dict[str, str]:
    """The tags by which a run names its data and its code in full."""
    return {
        "dataset.name": manifest.name,
        "dataset.version": manifest.version,
        "dataset.url": manifest.url,
        "dataset.digest": manifest.digest,
        "code.version": code_version(),
    }


def log_params(client: mlflow.MlflowClient, run_id: str, values: Mapping[str, Any]) -> None:
    """Nested settings as flat params, `train.lr`. Params are immutable: call it once per run."""
    known = client.get_run(run_id).data.params
    params = [Param(k, str(v)) for k, v in sorted(flatten(values).items()) if k not in known]
    if params:
        client.log_batch(run_id, params=params)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to one level with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def champion(client: mlflow.MlflowClient, name: str) -> ModelVersion | None:
    """The version of a registered model with the alias `champion`, or None."""
    try:
        return client.get_model_version_by_alias(name, "champion")
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def accuracy_tag(test_digest: str) -> str:
    """The tag of a model version that holds its accuracy on one set of test samples."""
    return f"test_accuracy.{test_digest[:16]}"


class MetricLog:
    """A run's metrics, sent in batches; a step that the run already has is never sent again.

    MLflow appends a repeated step instead of replacing it, so a resumed training, which runs the
    steps after its checkpoint once more, would draw every one of them twice.

    Args:
        resumed: The run may hold metrics already: ask it, once per key.
    """

    def __init__(self, client: mlflow.MlflowClient, run_id: str, *, resumed: bool) -> None:
        self._client = client
        self._run_id = run_id
        self._resumed = resumed
        self._last_step: dict[str, int] = {}
        self._waiting: list[Metric] = []
        self._flushed = time.monotonic()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Queue one step's values; they are sent every few seconds and by `flush`."""
        now_ms = time.time_ns() // 1_000_000
        for key, value in values.items():
            if step > self._last(key):
                self._last_step[key] = step
                self._waiting.append(Metric(key, float(value), now_ms, step))
        if time.monotonic() - self._flushed > FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Send everything queued. Call before a checkpoint, so that the run is never behind it."""
        while self._waiting:
            batch = self._waiting[:BATCH_METRICS]
            self._client.log_batch(self._run_id, metrics=batch)
            del self._waiting[: len(batch)]
        self._flushed = time.monotonic()

    def _last(self, key: str) -> int:
        if key not in self._last_step:
            history = self._client.get_metric_history(self._run_id, key) if self._resumed else []
            self._last_step[key] = max((metric.step for metric in history), default=-1)
        return self._last_step[key]


def model_id_of(model_uri: str) -> str:
    """The logged model's id in `models:/m-...`.

    Raises:
        TrackingError: Some other URI.
    """
    prefix, _, model_id = model_uri.partition("models:/")
    if prefix or not model_id.startswith("m-"):
        raise TrackingError(
            f"model_uri={model_uri!r}: expected models:/m-..., the logged model the train step "
            "reports; pass its model_uri"
        )
    return model_id


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
