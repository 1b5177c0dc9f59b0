"""How a step speaks to MLflow: the one place that knows its traps.

It knows no torch, no kfp and no step; it never prints, and it never holds a credential: the
address comes from `MLFLOW_TRACKING_URI` and whatever else MLflow reads from the environment.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import uuid
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlflow
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking.context import registry as context
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from components import links
from components.code import code_digest, code_version
from components.manifest import Manifest
from components.patience import PATIENCE_S, TrackingError, is_away, patiently, reason, server
from components.run_log import STOP_PATIENCE_S
from components.sending import Entry, RunGoneError, as_input, find_run, require_answer

DEFAULT_URI = "sqlite:///mlflow.db"
"""Where runs go when `MLFLOW_TRACKING_URI` says nothing: the folder one stands in."""

REQUEST_TIMEOUT_S = "60"
"""Seconds until a request that nobody answers has failed; MLFLOW_HTTP_REQUEST_TIMEOUT decides."""

ATTEMPT_TAG = "tarpon.attempt"
"""Names the start that made a run, so that a lost answer does not leave a second, empty run."""

TRAINING_TAG = "train.key"
"""The tag of a run and of a logged model that names its training: same key, same weights."""

DIGEST_CHARS = 36
"""MLflow refuses longer dataset digests; the full one is in the run's tag `dataset.digest`."""

CONTEXTS = {"train": "training", "val": "validation", "test": "testing"}
"""Split name to the dataset context MLflow's UI knows."""

_log = logging.getLogger(__name__)


def connect() -> mlflow.MlflowClient:
    """Point MLflow at the tracking server and quieten what it logs about itself.

    MLflow's client would send a request again by itself, for minutes, whether or not the server
    took the first one. Trying again is `patiently`'s and `RunLog`'s business, who know what may be
    sent twice.

    Raises:
        TrackingError: MLflow knows no such kind of address.
    """
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("mlflow.store.db.utils", "mlflow.tracking.fluent", "mlflow.system_metrics"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # steps print a report there
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", REQUEST_TIMEOUT_S)
    mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI)
    try:
        return mlflow.MlflowClient()
    except MlflowException as error:
        raise TrackingError(
            f"mlflow at {server()}: no tracking server can be there ({reason(error)}); check "
            "MLFLOW_TRACKING_URI"
        ) from None  # it repeats the address, password and all


def run_is_usable(
    client: mlflow.MlflowClient, run_id: str, *, patience_s: float = PATIENCE_S
) -> bool:
    """Whether the tracking server still has this run, not deleted; waits for an absent server.

    Raises:
        TrackingError: The server stays away.
    """
    try:
        patiently(lambda: find_run(client, run_id), patience_s=patience_s)
    except RunGoneError:
        return False
    return True


@contextlib.contextmanager
def open_run(
    client: mlflow.MlflowClient,
    *,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    resume: str = "",
    description: str = "",
    patience_s: float = PATIENCE_S,
    system_metrics: bool = True,
) -> Iterator[str]:
    """One MLflow run around a `with` block; yields its id. Of a training's ranks, only rank 0.

    The run is, in this order: the one named by `MLFLOW_RUN_ID` (KFP's MLflow plugin puts it
    there), `resume`, or a new one; new as well, and said, where `resume` was deleted. It ends
    FINISHED, FAILED after an exception, or KILLED after Ctrl-C or SIGTERM. One that was killed
    without a word stays RUNNING in MLflow until somebody resumes it.

    Args:
        description: Markdown, shown at the top of the run's page.
        patience_s: How long to wait for an absent server, at the start and at the end.
        system_metrics: Leave these to MLflow's own thread, which stops for good at the first
            outage; False where `SystemMetrics` takes them.

    Raises:
        TrackingError: The server stays away or says no, the injected run is deleted or holds
            another training, or the run was deleted within the block.
    """
    marks = dict(tags) | ({MLFLOW_RUN_NOTE: description} if description else {})
    injected = os.environ.get("MLFLOW_RUN_ID")
    attempt = uuid.uuid4().hex
    run_id = ""

    def start() -> None:
        nonlocal run_id
        run_id = _injected(client, injected, tags) if injected else _resumed(client, resume)
        if not run_id:
            made = {MLFLOW_RUN_NAME: name, **marks, ATTEMPT_TAG: attempt}
            run_id = _new_run(client, _experiment_id(client, experiment), made)
        elif marks:
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in marks.items()])
        _start(run_id, system_metrics=system_metrics)

    try:
        patiently(start, patience_s=patience_s)
    except KeyboardInterrupt:
        if run_id:
            _end_run(client, run_id, "KILLED", patience_s)
        raise
    except MlflowException as error:
        raise TrackingError(
            f"mlflow at {server()}: refuses to open a run ({reason(error)}); check "
            "MLFLOW_TRACKING_URI and its credentials; where it says 'Invalid Host header', start "
            "the server with --allowed-hosts"
        ) from error
    status = "FAILED"
    try:
        yield run_id
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except MlflowException as error:
        if not is_away(error):
            _require_run(client, run_id)  # deleted meanwhile: then it is no bug of ours
            raise
        raise _went_away(run_id, error) from None
    finally:
        _end_run(client, run_id, status, patience_s)


def _start(run_id: str, *, system_metrics: bool) -> None:
    """Make a run that there is the active one of MLflow's fluent calls."""
    os.environ.pop("MLFLOW_RUN_ID", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a GPU library it looks for warns that it has moved
        mlflow.start_run(run_id=run_id, log_system_metrics=system_metrics and _has("psutil"))


def _went_away(run_id: str, error: MlflowException) -> TrackingError:
    return TrackingError(
        f"mlflow at {server()}: went away ({reason(error)}), expected it to take what run "
        f"{run_id} still has to log; run the same command again"
    )


def _injected(client: mlflow.MlflowClient, run_id: str, tags: Mapping[str, str]) -> str:
    """The run that `MLFLOW_RUN_ID` names, unless it holds another training than the tags do."""
    mine = tags.get(TRAINING_TAG)
    try:
        found = find_run(client, run_id)
    except RunGoneError as error:
        raise TrackingError(
            f"MLFLOW_RUN_ID={run_id!r}: {error} at {server()}, expected an active run; restore it "
            f"(mlflow runs restore --run-id {run_id}), or unset MLFLOW_RUN_ID for a new one"
        ) from error
    held = found.data.tags.get(TRAINING_TAG, mine)
    if mine is not None and held != mine:
        raise TrackingError(
            f"MLFLOW_RUN_ID={run_id!r}: found the training {held} in that run, expected a fresh "
            f"run or one of this training, {mine}; unset MLFLOW_RUN_ID for a new one"
        )
    return run_id


def _resumed(client: mlflow.MlflowClient, run_id: str) -> str:
    """The run, or an empty string where there is none to go on in."""
    if not run_id:
        return ""
    try:
        find_run(client, run_id)
    except RunGoneError as error:
        _log.warning("mlflow has no run %s any more (%s); going on in a new one", run_id, error)
        return ""
    return run_id


def _new_run(client: mlflow.MlflowClient, experiment_id: str, tags: dict[str, str]) -> str:
    """Make a run, or find the one that an earlier attempt made without hearing of it."""
    query = f"tags.`{ATTEMPT_TAG}` = '{tags[ATTEMPT_TAG]}'"
    found = client.search_runs([experiment_id], query, max_results=1)
    if found:
        return require_answer(found[0].info.run_id)
    made = client.create_run(experiment_id, tags=context.resolve_tags(tags))
    return require_answer(made.info.run_id)


def _end_run(client: mlflow.MlflowClient, run_id: str, status: str, patience_s: float) -> None:
    """End the run; a server that stays away does not hide why a training failed."""
    try:
        if mlflow.active_run() is None:  # interrupted before it was started here
            client.set_terminated(run_id, status)
        else:
            mlflow.end_run(status)
        return
    except MlflowException as error:
        if not is_away(error):
            if status == "FINISHED":
                _require_run(client, run_id)
                raise
            _log.error("run %s cannot be ended as %s: %s", run_id, status, reason(error))
            return
    if status != "FINISHED":
        patience_s = min(patience_s, STOP_PATIENCE_S)
    try:
        patiently(lambda: client.set_terminated(run_id, status), patience_s=patience_s)
    except TrackingError as error:
        if status == "FINISHED":
            raise
        _log.error("run %s stays RUNNING in mlflow though it is %s: %s", run_id, status, error)


def _require_run(client: mlflow.MlflowClient, run_id: str) -> None:
    """Raises TrackingError where the run of a step that is under way was deleted."""
    try:
        find_run(client, run_id)
    except RunGoneError as error:
        raise TrackingError(
            f"mlflow at {server()}: {error}, expected the run of this step; run the same command "
            "again: it goes on in a new run"
        ) from None


def _experiment_id(client: mlflow.MlflowClient, name: str) -> str:
    """The experiment's id, made when missing; two steps may make it at the same time."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            made = client.create_experiment(name, artifact_location=_beside_database(name))
            return require_answer(made)
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    require_answer(found.experiment_id)
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


def input_entry(manifest: Manifest, split: str, samples: int) -> Entry:
    """One split as an input of a run, for `RunLog.log_input`."""
    data = dataset_input(manifest, split)
    return {
        "kind": "input",
        "name": data.name,
        "digest": data.digest,
        "source_type": data.source._get_source_type(),
        "source": data.source.to_json(),
        "tags": {
            MLFLOW_DATASET_CONTEXT: CONTEXTS[split],
            "split": split,
            "num_samples": str(samples),
        },
    }


def log_dataset(
    client: mlflow.MlflowClient, run_id: str, manifest: Manifest, split: str, samples: int
) -> None:
    """Put one split among a run's inputs; a second time changes nothing."""
    client.log_inputs(run_id, [as_input(input_entry(manifest, split, samples))])


def dataset_tags(manifest: Manifest) -> dict[str, str]:
    """The tags by which a run names its data and its code in full."""
    return {
        "dataset.name": manifest.name,
        "dataset.version": manifest.version,
        "dataset.url": manifest.url,
        "dataset.digest": manifest.digest,
        "code.version": code_version(),
        "code.digest": code_digest(),
    }


def run_metadata(run_id: str, model_uri: str) -> dict[str, str]:
    """What a KFP artifact says of a run and its model: `links.mlflow_metadata`."""
    client = connect()
    experiment = patiently(lambda: find_run(client, run_id)).info.experiment_id
    return links.mlflow_metadata(experiment, run_id, model_uri)


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
