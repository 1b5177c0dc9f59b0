"""A trained network as MLflow keeps and serves it."""

from __future__ import annotations

import mlflow.pytorch
import numpy as np
import torch
from mlflow.entities import LoggedModelStatus
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import nn

from components.manifest import Manifest
from components.tracking import TRAINING_TAG
from components.train.model import build_model
from components.train.settings import Settings


def log_model(
    trained: nn.Module, version: Manifest, settings: Settings, *, step: int, key: str
) -> str:
    """Log an exported graph on the CPU that needs none of our code; returns `models:/m-...`.

    It may be called again, in the same run, after a kill or a lost answer: one model is left.

    Input `float32[batch, 3, S, S]`, RGB, 0..255; output `float32[batch, classes]`, logits.
    Requirements are given, not inferred: MLflow would start subprocesses to find them.
    """
    if (logged := _logged_before(key)) is not None:
        return logged
    size, classes = settings.image_size, list(version.classes)
    network = build_model(settings.model, len(classes))  # neither compiled nor channels last
    network.load_state_dict(trained.state_dict())
    network.eval()
    float32 = np.dtype("float32")
    signature = ModelSignature(
        inputs=Schema([TensorSpec(float32, (-1, 3, size, size))]),
        outputs=Schema([TensorSpec(float32, (-1, len(classes)))]),
    )
    about = {
        "classes": classes,
        "image_size": size,
        "input": "float32 NCHW, RGB, 0..255, resized to image_size; normalised by the model",
        "dataset_digest": version.digest,
    }
    info = mlflow.pytorch.log_model(
        network,
        name="model",
        signature=signature,
        input_example=np.zeros((2, 3, size, size), np.float32),
        pip_requirements=[
            f"torch=={torch.__version__.split('+')[0]}",
            f"numpy=={np.__version__}",
        ],
        metadata=about,
        tags={"dataset.digest": version.digest, TRAINING_TAG: key},
        step=step,
    )
    return str(info.model_uri)


def _logged_before(key: str) -> str | None:
    """The finished model that the active run has of this training; others of it are deleted."""
    run = mlflow.active_run()
    assert run is not None
    client = mlflow.MlflowClient()
    models = client.search_logged_models(
        [run.info.experiment_id],
        filter_string=f"source_run_id = '{run.info.run_id}'",
        order_by=[{"field_name": "creation_timestamp", "ascending": False}],
    )
    kept = None
    for model in models:
        if model.tags.get(TRAINING_TAG) != key:
            continue
        if kept is None and model.status == LoggedModelStatus.READY:
            kept = str(model.model_uri)
        else:
            client.delete_logged_model(model.model_id)
    return kept
