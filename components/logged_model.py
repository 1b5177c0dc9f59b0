"""The model that an MLflow URI names: its classes, its digest and its network.

Shared by the steps that run or compare trained models. It resolves whatever a person may type to
one logged model, so that an alias that moves later changes nothing. No torch is imported in here:
MLflow brings it when a network is loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import mlflow.artifacts
import mlflow.models
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from components import tracking
from components.store import without_secrets

_RUN_ID = re.compile(r"^[0-9a-f]{32}$")
_FORMS = (
    "models:/<name>@<alias>, models:/<name>/<version>, models:/m-..., runs:/<run id>/<name>, "
    "a run's id or a folder"
)
_NOT_CONTENT = "registered_model_meta"
"""MLflow adds this file to a copy that was asked for by a registered name."""


class ModelMismatchError(ValueError):
    """The model is not one of ours, or not for the classes it is to be used with."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoggedModel:
    """A classifier that the train step logged, in memory.

    Args:
        uri: `models:/m-...` where MLflow has it as a logged model, else what was asked for.
        name, version: The registered version that led to it; empty strings without one.
        digest: sha256 over the model's files, names and content.
        classes: Class names, in the order of the scores.
        image_size: Side of the square images it takes, in pixels.
        network: `float32[B, 3, S, S]`, RGB 0..255, to `float32[B, classes]`, logits; on the CPU.
    """

    uri: str
    name: str
    version: str
    digest: str
    classes: list[str]
    image_size: int
    network: Any = dataclasses.field(repr=False)


def load(asked: str, *, patience_s: float = tracking.PATIENCE_S) -> LoggedModel:
    """Find the model at the tracking server and bring it into memory; waits for an absent server.

    Args:
        asked: `models:/name@alias`, `models:/name/3`, `models:/m-...`, `runs:/<run id>/model`, a
            run's id (its newest model), or a folder with a saved model.

    Raises:
        TrackingError: MLflow has no such model, its files cannot be had, or it stays away.
        ModelMismatchError: It is not a model of the train step.
    """
    if not sys.stderr.isatty():  # a bar of a hundred lines in a log
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    client = tracking.connect()
    try:
        with tempfile.TemporaryDirectory(prefix="tarpon-model-") as folder:

            def fetch() -> tuple[str, str, str, dict[str, Any], str]:
                uri, name, version = resolve(client, asked)
                about = _about(uri)
                path = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder)
                return uri, name, version, about, path

            uri, name, version, about, path = tracking.patiently(fetch, patience_s=patience_s)
            network = mlflow.pytorch.load_model(path)  # MLflow imports it, and torch, only here
            digest = _digest(Path(path))
    except (MlflowException, OSError) as error:
        raise tracking.TrackingError(
            f"{asked}: cannot be loaded from {without_secrets(mlflow.get_tracking_uri())} "
            f"({without_secrets(str(error))}); {_instead(client, asked)}"
        ) from error
    if not (about.get("classes") and about.get("image_size")):
        raise ModelMismatchError(
            f"{asked}: found no classes and image_size in its metadata, expected a model "
            "logged by the train step"
        )
    return LoggedModel(
        uri=uri,
        name=name,
        version=version,
        digest=digest,
        classes=list(about["classes"]),
        image_size=int(about["image_size"]),
        network=network,
    )


def classes_of(uri: str) -> list[str] | None:
    """The classes of a model, without loading it; None where MLflow or the model does not say."""
    try:
        found = _about(uri).get("classes")
    except (MlflowException, OSError):
        return None
    return None if found is None else list(found)


def is_deleted(client: mlflow.MlflowClient, version: ModelVersion) -> bool:
    """Whether the logged model behind a registered version was deleted.

    An answer that does not come, or files that cannot be read, are no proof of that.
    """
    source = str(version.source)
    if not source.startswith("models:/m-"):
        return False
    try:
        client.get_logged_model(tracking.model_id_of(source))
    except MlflowException as error:
        return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")
    return False


def accuracy_of(version: ModelVersion, test_digest: str) -> float | None:
    """What evaluate or register noted on a registered version; None: nothing that is a share."""
    try:
        found = float(version.tags[tracking.accuracy_tag(test_digest)])
    except (KeyError, ValueError):  # tags can be edited by hand
        return None
    return found if 0 <= found <= 1 else None


def resolve(client: mlflow.MlflowClient, asked: str) -> tuple[str, str, str]:
    """The fixed URI behind what was asked for, and the registered name and version, if any.

    Raises:
        MlflowException: There is no such alias, version or run.
        TrackingError: The run has logged no model.
    """
    if _RUN_ID.match(asked):
        return _of_run(client, asked, ""), "", ""
    if asked.startswith("runs:/"):
        run_id, _, name = asked.removeprefix("runs:/").strip("/").partition("/")
        return _of_run(client, run_id, name), "", ""
    registered = asked.removeprefix("models:/").strip("/")
    if not asked.startswith("models:/") or registered.startswith("m-"):
        return asked, "", ""
    name, at, alias = registered.rpartition("@")
    if at:
        found = client.get_model_version_by_alias(name, alias)
    else:
        name, slash, number = registered.rpartition("/")
        if not slash or not number.isdigit():
            raise tracking.TrackingError(f"model {asked!r}: expected {_FORMS}")
        found = client.get_model_version(name, number)
    logged = str(found.source).startswith("models:/m-")
    uri = str(found.source) if logged else f"models:/{name}/{found.version}"
    return uri, name, str(found.version)


def _instead(client: mlflow.MlflowClient, asked: str) -> str:
    """What to do about a model that cannot be had: the names there are or, of a known name, what
    it has."""
    advice = "check MLFLOW_TRACKING_URI, or train again"
    name = re.split("[@/]", asked.removeprefix("models:/").strip("/"))[0]
    try:
        known = {model.name: model.aliases for model in client.search_registered_models()}
        if not known:
            return f"no model is registered there: {advice}"
        if not asked.startswith("models:/") or name not in known:
            return f"registered there: {_some(sorted(known))}; expected {_FORMS}"
        versions = client.search_model_versions(f"name = '{name}'")
    except (MlflowException, OSError):
        return advice
    numbers = sorted((int(version.version) for version in versions), reverse=True)
    there = [f"@{alias}" for alias in sorted(known[name])] + [f"/{number}" for number in numbers]
    if asked.removeprefix(f"models:/{name}") in there:  # its files are what is missing
        return advice
    return f"of models:/{name} there are {_some(there)}; ask for one of them"


def _some(names: list[str]) -> str:
    rest = f", ... {len(names)} in all" if len(names) > 8 else ""
    return ", ".join(names[:8]) + rest


def _about(uri: str) -> dict[str, Any]:
    """What train wrote beside the model: `classes`, `image_size`, `dataset_digest`."""
    return dict(mlflow.models.get_model_info(uri).metadata or {})


def _of_run(client: mlflow.MlflowClient, run_id: str, name: str) -> str:
    """The newest model of a run, of that name if one is given."""
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models(
        [experiment],
        filter_string=f"source_run_id = '{run_id}'",
        order_by=[{"field_name": "creation_timestamp", "ascending": False}],
    )
    for model in found:
        if name in ("", model.name):
            return str(model.model_uri)
    raise tracking.TrackingError(
        f"run {run_id}: found the models {[model.name for model in found]}, expected "
        f"{name or 'one'!r}; did its training end?"
    )


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _NOT_CONTENT:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return total.hexdigest()
