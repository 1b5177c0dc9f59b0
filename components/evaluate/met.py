"""Which test samples a registered model has met before: those it was trained or validated on.

A champion may come from an older version of the dataset, whose split put samples on other sides.
It looks at keys, which are hashes of the content, so a file that was only renamed is found too; it
reads no image, and near duplicates are not looked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import mlflow
import tarpon
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from components import loading, manifest, tracking
from components.manifest import Manifest, ManifestError
from components.patience import is_away
from components.store import StoreError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """The keys of the samples met; `unknown` says why that cannot be told, else it is empty."""

    keys: frozenset[str] = frozenset()
    unknown: str = ""


def met_by(
    client: mlflow.MlflowClient, model: ModelVersion, version: Manifest, keys: Iterable[str]
) -> Met:
    """Which of `keys`, test samples of `version`, lie in the train or val split of the model's.

    Raises:
        MlflowException, ConnectionError: The tracking server is away.
    """
    tags = _tags_of_run(client, model)
    url, digest = tags.get("dataset.url"), tags.get("dataset.digest")
    if not url or not digest:
        return Met(unknown="its run is gone or names no dataset")
    if digest == version.digest:
        return Met()
    try:
        trained_on = manifest.read(url)
        if trained_on.digest != digest:
            return Met(unknown=f"{url} is not the version any more that it was trained on")
        return Met(keys=frozenset(keys).intersection(_keys(trained_on)))
    except (ManifestError, StoreError, tarpon.TarponError) as error:
        return Met(unknown=str(error))


def _tags_of_run(client: mlflow.MlflowClient, model: ModelVersion) -> dict[str, str]:
    try:
        source, run_id = str(model.source), str(model.run_id or "")
        if source.startswith("models:/m-"):
            run_id = str(client.get_logged_model(tracking.model_id_of(source)).source_run_id or "")
        return dict(client.get_run(run_id).data.tags) if run_id else {}
    except MlflowException as error:
        if is_away(error):
            raise
        return {}


def _keys(version: Manifest) -> Iterator[str]:
    for split in ("train", "val"):
        if loading.split_samples(version, split):
            shards = tarpon.open(version.shards_url(split))
            yield from map(shards.key, range(len(shards)))
