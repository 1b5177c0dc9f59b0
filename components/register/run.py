"""The gate: put a measured model into MLflow's registry and say whether it is the champion.

It compares numbers that evaluate wrote down; it loads no model and reads no data. Nothing is ever
lost: a model that fails the gate is a registered version too, with the reason on it.

| what was found                                             | alias        |
|------------------------------------------------------------|--------------|
| accuracy below `min_accuracy`, or no number of 0 to 1      | none         |
| no champion yet, or its model was deleted                  | `champion`   |
| accuracy >= the champion's on the same samples + `margin`  | `champion`   |
| less than that                                             | `challenger` |
| the champion is of other classes: a person has to choose   | `challenger` |
| the champion was not measured on the same samples          | `challenger` |
| the champion was trained or validated on all of them       | `challenger` |

The same samples are those of the test split that the champion was not trained or validated on, as
evaluate found out; how many it had met is on the version, and said.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from components import logged_model, manifest, tracking
from components.manifest import Manifest
from components.patience import is_away
from components.report import Report
from components.sending import require_answer
from components.store import without_secrets

_log = logging.getLogger(__name__)

CHAMPION, CHALLENGER, NONE = "champion", "challenger", "none"


class NotEvaluatedError(ValueError):
    """Nothing says on which samples the model was measured."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What evaluate found out beside the champion of that moment.

    Args:
        champion: Its version; an empty string where there was none to compare with.
        met: Test samples that it was trained or validated on, which were left out.
        samples: How many were left to compare on.
        digest: Names these.
        accuracy: The new model's on them; None where none are left.
        note: Why it could not be known which the champion has met; else an empty string.
    """

    champion: str
    met: int
    samples: int
    digest: str
    accuracy: float | None
    note: str = ""


def measured(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments of `register` that the fields of evaluate's report say.

    Raises:
        KeyError: One of its fields is missing.
    """
    fields = ("model_uri", "run_id", "dataset_url", "accuracy", "test_digest")
    return {field: evaluation[field] for field in fields} | {
        "comparison": Comparison(
            champion=evaluation["champion_version"],
            met=evaluation["champion_met"],
            samples=evaluation["samples"] - evaluation["champion_met"],
            digest=evaluation["compared_digest"],
            accuracy=evaluation["compared_accuracy"],
            note=evaluation["champion_note"],
        )
    }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RegisterReport(Report):
    """What the gate decided.

    Args:
        name, version: The registered model and its version.
        alias: `champion`, `challenger` or `none`.
        reason: One sentence for people, also the version's description.
    """

    name: str
    version: str
    alias: str
    reason: str
    accuracy: float
    test_digest: str
    model_uri: str


def register(
    *,
    model_uri: str,
    run_id: str,
    dataset_url: str,
    accuracy: float,
    name: str | None = None,
    min_accuracy: float = 0.0,
    margin: float = 0.0,
    test_digest: str | None = None,
    comparison: Comparison | None = None,
) -> RegisterReport:
    """Register the model, once however often this is called, and give it its alias.

    Args:
        model_uri: The logged model, `models:/m-...`.
        run_id: The run that trained it.
        dataset_url: The version it was trained and measured on.
        accuracy: On the test split, as evaluate reports it.
        name: The registered model; None means the dataset's name.
        min_accuracy: Below this the model gets no alias.
        margin: How much better than the champion it must be, in accuracy; 0 lets equal win.
        test_digest: The samples it was measured on, as evaluate reports; None asks the run.
        comparison: With the champion, as evaluate reports it; None compares on `test_digest`.

    Raises:
        NotEvaluatedError: The run was never evaluated and `test_digest` is not given.
        TrackingError: MLflow has no such model or refuses the name.
    """
    client = tracking.connect()
    version = manifest.read(dataset_url)
    gate = functools.partial(
        _register,
        client,
        version,
        model_uri=model_uri,
        run_id=run_id,
        accuracy=accuracy,
        name=name or version.name,
        min_accuracy=min_accuracy,
        margin=margin,
        test_digest=test_digest,
        comparison=comparison,
    )
    return tracking.patiently(gate)  # again from the start: each of its requests may be repeated


def _register(
    client: mlflow.MlflowClient,
    version: Manifest,
    *,
    model_uri: str,
    run_id: str,
    accuracy: float,
    name: str,
    min_accuracy: float,
    margin: float,
    test_digest: str | None,
    comparison: Comparison | None,
) -> RegisterReport:
    digest = test_digest or _digest_of(client, run_id)
    _require_logged(client, model_uri)
    tags = {
        "test_accuracy": repr(accuracy),
        "test_digest": digest,
        "test_left_out": str(comparison.met if comparison else 0),
        tracking.accuracy_tag(digest): repr(accuracy),
        **tracking.dataset_tags(version),
    }
    found = _version_of(client, name, model_uri) or _create(client, name, model_uri, tags)
    number = str(found.version)
    for key in tags.keys() - {key for key, value in found.tags.items() if tags.get(key) == value}:
        client.set_model_version_tag(name, number, key, tags[key])
    alias, reason = decide(
        accuracy=accuracy,
        test_digest=digest,
        min_accuracy=min_accuracy,
        margin=margin,
        champion=_champion(client, name),
        comparison=comparison,
        model_uri=model_uri,
        classes=list(version.classes),
    )
    _set_alias(client, name, number, alias)
    client.update_model_version(name, number, description=reason)
    _log.info("%s version %s: %s", name, number, reason)
    return RegisterReport(
        name=name,
        version=number,
        alias=alias,
        reason=reason,
        accuracy=accuracy,
        test_digest=digest,
        model_uri=model_uri,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Champion:
    """The registered version that a new model has to beat.

    Args:
        deleted: Its model is no more.
        classes: What it tells apart; None where that cannot be known.
    """

    version: ModelVersion
    deleted: bool = False
    classes: list[str] | None = None

    @property
    def number(self) -> str:
        return str(self.version.version)


def _champion(client: mlflow.MlflowClient, name: str) -> Champion | None:
    version = tracking.champion(client, name)
    if version is None:
        return None
    if logged_model.is_deleted(client, version):
        return Champion(version=version, deleted=True)
    return Champion(version=version, classes=logged_model.classes_of(str(version.source)))


def decide(
    *,
    accuracy: float,
    test_digest: str,
    min_accuracy: float,
    margin: float,
    champion: Champion | None,
    comparison: Comparison | None,
    model_uri: str,
    classes: list[str],
) -> tuple[str, str]:
    """The alias and the reason; touches nothing."""
    if not 0 <= accuracy <= 1:
        return NONE, f"refused: accuracy {accuracy} is no number of 0 to 1; evaluate it again"
    if accuracy < min_accuracy:
        return NONE, f"refused: accuracy {accuracy:.4f} is below min_accuracy {min_accuracy:.4f}"
    if champion is None:
        return CHAMPION, f"champion: the first model, accuracy {accuracy:.4f}"
    if champion.version.source == model_uri:
        return CHAMPION, f"champion: it is already, accuracy {accuracy:.4f}"
    who = f"champion version {champion.number}"
    if champion.deleted:
        return CHAMPION, f"champion: accuracy {accuracy:.4f}; the model of {who} was deleted"
    if champion.classes is not None and champion.classes != classes:
        return CHALLENGER, (
            f"challenger: {who} tells apart {_some(champion.classes)}, this one {_some(classes)}; "
            "no test set measures both: give it the alias champion by hand, or set register.name "
            "to another name"
        )
    return _beside(champion, comparison, accuracy=accuracy, test_digest=test_digest, margin=margin)


def _beside(
    champion: Champion,
    comparison: Comparison | None,
    *,
    accuracy: float,
    test_digest: str,
    margin: float,
) -> tuple[str, str]:
    """The same for a champion of the same classes: who is better on samples it has not met."""
    who, where = f"champion version {champion.number}", ""
    if comparison is not None and comparison.champion == champion.number:  # who still is it
        if comparison.accuracy is None:
            return CHALLENGER, (
                f"challenger: {who} was trained or validated on all {comparison.met} test samples, "
                "so that none compares the two; add test samples that it has not met, or give this "
                "one the alias champion by hand"
            )
        accuracy, test_digest = comparison.accuracy, comparison.digest
        if comparison.met:
            where = (
                f", on {comparison.samples} test samples: {comparison.met} that the champion was "
                "trained or validated on are left out"
            )
        elif comparison.note:
            where = f"; {comparison.note}"
    known = logged_model.accuracy_of(champion.version, test_digest)
    if known is None:
        return CHALLENGER, (
            f"challenger: {who} was not measured on the test samples {test_digest[:16]}; run "
            "evaluate with --champion-of, then register again"
        )
    facts = f"accuracy {accuracy:.4f} against {known:.4f} of {who}, margin {margin:.4f}{where}"
    if accuracy >= known + margin:
        return CHAMPION, f"champion: {facts}"
    return CHALLENGER, f"challenger: {facts}"


def _some(classes: list[str]) -> str:
    """Class names for a sentence; a description in MLflow has no room for a thousand."""
    rest = f", ... {len(classes)} in all" if len(classes) > 8 else ""
    return f"[{', '.join(classes[:8])}{rest}]"


def _digest_of(client: mlflow.MlflowClient, run_id: str) -> str:
    digest = client.get_run(run_id).data.tags.get("test.digest")
    if not digest:
        raise NotEvaluatedError(
            f"run {run_id}: found no tag test.digest, expected the one that evaluate sets; "
            "evaluate the model before registering it"
        )
    return str(digest)


def _require_logged(client: mlflow.MlflowClient, model_uri: str) -> None:
    try:
        client.get_logged_model(tracking.model_id_of(model_uri))
    except MlflowException as error:
        if is_away(error):
            raise
        raise tracking.TrackingError(
            f"{model_uri}: not found in {without_secrets(mlflow.get_tracking_uri())}, expected the "
            "model that train logged; check MLFLOW_TRACKING_URI"
        ) from error


def _version_of(client: mlflow.MlflowClient, name: str, model_uri: str) -> ModelVersion | None:
    """The version that holds this very model, if there is one already."""
    quoted = name.replace("'", "''")
    found: Any = client.search_model_versions(f"name='{quoted}'")
    return next((version for version in found if version.source == model_uri), None)


def _create(
    client: mlflow.MlflowClient, name: str, model_uri: str, tags: dict[str, str]
) -> ModelVersion:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if is_away(error):
            raise
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise tracking.TrackingError(
                f"register.name={name!r}: MLflow refuses it ({error}); set register.name to a name "
                "without '/' and ':'"
            ) from error
    with contextlib.redirect_stderr(io.StringIO()):  # it announces itself there
        made: ModelVersion = mlflow.register_model(
            model_uri, name, await_registration_for=60, tags=tags
        )
    require_answer(made.version)
    return made


def _set_alias(client: mlflow.MlflowClient, name: str, number: str, alias: str) -> None:
    """Give the version this alias and no other of the two; a champion found too weak stays."""
    aliases = client.get_model_version(name, number).aliases
    if alias != NONE and alias not in aliases:
        client.set_registered_model_alias(name, alias, number)
    if alias != CHALLENGER and CHALLENGER in aliases:
        client.delete_registered_model_alias(name, CHALLENGER)
