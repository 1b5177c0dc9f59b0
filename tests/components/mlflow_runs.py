"""What a training left in the MLflow database of a test."""

from __future__ import annotations

from pathlib import Path

import mlflow


def client_of(folder: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")


def steps_logged(client: mlflow.MlflowClient, run_id: str, key: str) -> list[int]:
    return [metric.step for metric in client.get_metric_history(run_id, key)]
