"""An MLflow database per test, and one small training that tests may look at but not change."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

SETTINGS = {"epochs": 4, "batch_size": 8, "image_size": 16, "lr": 0.01, "threads": 1}
STEPS = 16  # 4 epochs of 36 // 8 batches


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A finished training: where it is and what it reported."""

    folder: Path
    dataset_url: str
    report: object

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing in them; making one takes seconds."""
    import mlflow

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}")
    client.search_experiments()
    return path


@pytest.fixture
def tracking(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A tracking store of its own for one test; yields its URI."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    with point_at(uri, monkeypatch):
        yield uri


@contextlib.contextmanager
def point_at(uri: str, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make a tracking server the one that steps use, and afterwards the one of before."""
    import mlflow

    patch.setenv("MLFLOW_TRACKING_URI", uri)
    patch.delenv("MLFLOW_RUN_ID", raising=False)
    before = mlflow.get_tracking_uri()
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


@pytest.fixture(scope="session")
def trained(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One training of four epochs, never interrupted."""
    from components.train import run
    from components.train.settings import Settings
    from tests.components import blobs

    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(empty_database, folder / "mlflow.db")
    url = blobs.publish(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        config = {"train": asdict(Settings(**SETTINGS)), "overrides": ["train.epochs=4"]}
        report = run.train(url, output=str(folder / "checkpoints"), config=config, **SETTINGS)
    return Trained(folder=folder, dataset_url=url, report=report)


@pytest.fixture
def copy_of_trained(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """The finished training with a database and checkpoints that this test may change.

    Artifacts stay with the original: the database names them by their absolute path.
    """
    shutil.copy(trained.folder / "mlflow.db", tmp_path / "mlflow.db")
    shutil.copytree(trained.folder / "checkpoints", tmp_path / "checkpoints")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    return Trained(folder=tmp_path, dataset_url=trained.dataset_url, report=trained.report)


@pytest.fixture
def unlogged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the model's export and the pictures, which take longer than such a training."""
    from components.train import run

    monkeypatch.setattr(run._Training, "_log_model", lambda *_: "models:/m-none")
    monkeypatch.setattr(run._Training, "_log_samples", lambda *_: None)
