"""Measure a logged model on the test split, in the run that trained it.

It reads the test split and the model, never the checkpoints; the run's status stays as it is.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import heapq
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from sklearn.metrics import classification_report, confusion_matrix
from torch import nn

from components import figures, loading, logged_model, manifest, tracking
from components.evaluate.met import met_by
from components.logged_model import ModelMismatchError
from components.manifest import Manifest
from components.patience import is_away, reason, server
from components.progress import track
from components.report import Report
from components.sending import RunGoneError, find_run

_log = logging.getLogger(__name__)

WORST = 24
"""Images in the grid of worst examples."""

FILES = ("report.json", "report.csv", "confusion_matrix.csv", "confusion_matrix.png", "worst.png")
"""What is logged below `test/`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateReport(Report):
    """How good a model is on one test split.

    Args:
        test_digest: Names the test samples and labels that were measured, in whatever dataset
            version they lie: two models compare where it is equal.
        accuracy, loss, macro_f1: Over all test samples.
        classes: Class names, in the order of `confusion` and `per_class`.
        confusion: Counts; rows are true classes, columns predicted ones.
        per_class: precision, recall, f1 and support by class.
        champion_version: The registered champion that was measured as well; an empty string where
            there is none or it cannot be measured, which `champion_note` explains.
        champion_met: Test samples that it was trained or validated on, in an older version of the
            dataset; the two models are compared on the others. `champion_note` says where that
            cannot be known: then they are compared on all.
        champion_accuracy, compared_accuracy: The champion's and this model's on the samples
            compared; None where none are left.
        compared_digest: Names these, as `test_digest` names all.
    """

    run_id: str
    model_uri: str
    dataset_url: str
    dataset_digest: str
    test_digest: str
    samples: int
    accuracy: float
    loss: float
    macro_f1: float
    classes: list[str]
    confusion: list[list[int]]
    per_class: dict[str, dict[str, float]]
    champion_version: str = ""
    champion_accuracy: float | None = None
    champion_note: str = ""
    champion_met: int = 0
    compared_accuracy: float | None = None
    compared_digest: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Scores:
    """What a model said about every test sample, in the order they were read."""

    keys: list[str]
    truth: np.ndarray
    predicted: np.ndarray
    loss: float
    worst: list[tuple[float, int, int, float, np.ndarray]]
    """(loss, true class, predicted class, its probability, image), the largest loss first."""

    @property
    def right(self) -> np.ndarray:
        found: np.ndarray = self.truth == self.predicted
        return found

    def digest(self, version: Manifest, chosen: np.ndarray) -> str:
        """Names the chosen samples and their labels."""
        labels = (version.classes[truth] for truth in self.truth)
        lines = zip(self.keys, labels, chosen, strict=True)
        return manifest.digest(("test", key, label) for key, label, wanted in lines if wanted)


def evaluate(
    dataset_url: str,
    *,
    model_uri: str,
    output: str,
    run_id: str | None = None,
    batch_size: int = 256,
    device: str = "auto",
    device_option: str = "--device",
    threads: int | None = None,
    champion_of: str | None = None,
) -> EvaluateReport:
    """Measure the model and log what was found to its run.

    Args:
        dataset_url: The folder of a dataset version.
        model_uri: The logged model, `models:/m-...`, as the train step reports it.
        output: A local folder for `FILES`.
        run_id: The run that trained it, which gets the figures; None asks MLflow.
        device_option: How whoever chose the device calls that option, for messages.
        champion_of: A registered model: measure its champion on the same samples as well, if it
            has not been already, so that the gate compares like with like: on those that neither
            was trained on.

    Raises:
        EmptySplitError: The test split has no samples.
        ModelMismatchError: The model was trained on other classes, or by another run.
        TrackingError: MLflow has no such model, or its run no more.
    """
    version = manifest.read(dataset_url)
    picked = loading.pick_device(device, cuda=torch.cuda.device_count(), where=device_option)
    client = tracking.connect()
    model_id = tracking.model_id_of(model_uri)
    owner = tracking.patiently(lambda: _run_of(client, model_uri, model_id, run_id))
    scores = _score(version, model_uri, batch_size=batch_size, device=picked, threads=threads)
    report = _report(version, scores, model_uri, owner)
    if champion_of is not None:
        score = functools.partial(
            _score, version, batch_size=batch_size, device=picked, threads=threads
        )
        report = _beside_champion(client, champion_of, version, report, scores, score)
    _write_files(Path(output), version, report, scores)
    measured = report
    tracking.patiently(
        lambda: _log_to_run(client, owner, model_id, version, measured, Path(output))
    )
    _log.info("test accuracy %.4f on %d samples", report.accuracy, report.samples)
    return report


def _run_of(client: mlflow.MlflowClient, model_uri: str, model_id: str, asked: str | None) -> str:
    """The run that trained the model: no other may get its figures."""
    try:
        found = str(client.get_logged_model(model_id).source_run_id or "")
    except MlflowException as error:
        if is_away(error):
            raise
        raise tracking.TrackingError(
            f"{model_uri}: not found in {server()} ({reason(error)}), expected the model that "
            "train logged; check MLFLOW_TRACKING_URI"
        ) from error
    if asked is not None and asked != found:
        raise ModelMismatchError(
            f"run {asked}: expected the run that trained {model_uri}, which is {found or 'none'}; "
            "leave the run out, or give the model of that run"
        )
    try:
        find_run(client, found)
    except RunGoneError as error:
        raise tracking.TrackingError(
            f"{model_uri}: {error}, expected the run that trained it, to log to; restore it with "
            f"mlflow runs restore --run-id {found}, or train again"
        ) from error
    return found


def _score(
    version: Manifest, model_uri: str, *, batch_size: int, device: str, threads: int | None
) -> _Scores:
    """Run the model over the whole test split."""
    model = logged_model.load(model_uri)
    if model.classes != list(version.classes):
        raise ModelMismatchError(
            f"{model_uri}: was trained on the classes {model.classes}, found "
            f"{list(version.classes)} in {version.url}; evaluate it on a version with its own "
            "classes or train again"
        )
    if threads is not None:
        torch.set_num_threads(threads)
    network = model.network.to(device)
    keys: list[str] = []
    truth, predicted, total = [], [], 0.0
    worst: list[tuple[float, int, int, int, float, np.ndarray]] = []
    with (
        loading.evaluation_batches(
            version, "test", batch_size=batch_size, image_size=model.image_size, threads=threads
        ) as batches,
        torch.inference_mode(),
    ):
        for batch in track(batches, total=len(batches), label="evaluate"):
            label = torch.from_numpy(batch["label"]).to(device)
            image = torch.from_numpy(batch["image"]).to(device).permute(0, 3, 1, 2).float()
            logits = network(image)
            losses = nn.functional.cross_entropy(logits, label, reduction="none").cpu().numpy()
            best = logits.softmax(1).max(1)
            chosen, sure = best.indices.cpu().numpy(), best.values.cpu().numpy()
            for i in np.argsort(-losses)[:WORST]:
                row = (float(losses[i]), len(keys) + int(i), int(batch["label"][i]), int(chosen[i]))
                heapq.heappush(worst, (*row, float(sure[i]), batch["image"][i].copy()))
                if len(worst) > WORST:
                    heapq.heappop(worst)
            keys += batch.sample_keys
            truth.append(np.array(batch["label"]))
            predicted.append(chosen)
            total += float(losses.sum())
    rows = [(loss, true, guess, p, image) for loss, _, true, guess, p, image in worst]
    return _Scores(
        keys=keys,
        truth=np.concatenate(truth),
        predicted=np.concatenate(predicted),
        loss=total / len(keys),
        worst=sorted(rows, key=lambda row: -row[0]),
    )


def _report(version: Manifest, scores: _Scores, model_uri: str, run_id: str) -> EvaluateReport:
    classes = list(version.classes)
    ticks = range(len(classes))
    table: dict[str, Any] = classification_report(
        scores.truth,
        scores.predicted,
        labels=ticks,
        target_names=[str(tick) for tick in ticks],  # names such as 'accuracy' would collide
        output_dict=True,
        zero_division=0,
    )
    names = {"precision": "precision", "recall": "recall", "f1-score": "f1", "support": "support"}
    return EvaluateReport(
        run_id=run_id,
        model_uri=model_uri,
        dataset_url=version.url,
        dataset_digest=version.digest,
        test_digest=scores.digest(version, np.ones(len(scores.keys), bool)),
        samples=len(scores.keys),
        accuracy=float(scores.right.mean()),
        loss=scores.loss,
        macro_f1=float(table["macro avg"]["f1-score"]),
        classes=classes,
        confusion=confusion_matrix(scores.truth, scores.predicted, labels=ticks).tolist(),
        per_class={
            classes[tick]: {ours: float(table[str(tick)][name]) for name, ours in names.items()}
            for tick in ticks
        },
    )


def _beside_champion(
    client: mlflow.MlflowClient,
    name: str,
    version: Manifest,
    report: EvaluateReport,
    scores: _Scores,
    score: Callable[[str], _Scores],
) -> EvaluateReport:
    """The report with both models' accuracy on the test samples that neither has met."""
    champion = tracking.patiently(lambda: tracking.champion(client, name))
    if champion is None or champion.source == report.model_uri:
        return report
    met = tracking.patiently(lambda: met_by(client, champion, version, scores.keys))
    chosen = np.array([key not in met.keys for key in scores.keys])
    who = f"champion version {champion.version}"
    report = dataclasses.replace(
        report, champion_version=str(champion.version), champion_met=int((~chosen).sum())
    )
    if met.unknown:
        note = f"{who} may have been trained on some of the test samples: {met.unknown}"
        _log.warning("%s; it is compared on all of them", note)
        report = dataclasses.replace(report, champion_note=note)
    if report.champion_met:
        _log.warning(
            "%s was trained or validated on %d of the %d test samples: left out in comparing it",
            who, report.champion_met, report.samples,
        )  # fmt: skip
    if not chosen.any():
        return report
    digest = scores.digest(version, chosen)
    report = dataclasses.replace(
        report,
        compared_accuracy=float(scores.right[chosen].mean()),
        compared_digest=digest,
        champion_accuracy=logged_model.accuracy_of(champion, digest),
    )
    if report.champion_accuracy is not None:
        return report
    return _measure_champion(client, champion, report, chosen, score)


def _measure_champion(
    client: mlflow.MlflowClient,
    champion: ModelVersion,
    report: EvaluateReport,
    chosen: np.ndarray,
    score: Callable[[str], _Scores],
) -> EvaluateReport:
    """Measure a champion that never met these test samples; its version keeps the result."""
    number, name = report.champion_version, champion.name
    _log.info("measuring the champion, version %s of %r, on the same samples", number, name)
    try:
        scores = score(str(champion.source))
    except (ModelMismatchError, tracking.TrackingError) as error:
        return dataclasses.replace(
            report,
            champion_version="",
            champion_note=str(error),
            champion_met=0,
            compared_accuracy=None,
            compared_digest="",
        )
    accuracy = float(scores.right[chosen].mean())
    tag = tracking.accuracy_tag(report.compared_digest)
    tracking.patiently(lambda: client.set_model_version_tag(name, number, tag, repr(accuracy)))
    return dataclasses.replace(report, champion_accuracy=accuracy)


def _write_files(folder: Path, version: Manifest, report: EvaluateReport, scores: _Scores) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    report.write(folder / "report.json")
    (folder / "report.csv").write_text(_csv(_per_class(report)), encoding="utf-8")
    (folder / "confusion_matrix.csv").write_text(_csv(_confusion(report)), encoding="utf-8")
    title = f"test accuracy {report.accuracy:.4f}, {version.name} {version.version}"
    confusion = figures.confusion(np.array(report.confusion), report.classes, title=title)
    confusion.savefig(folder / "confusion_matrix.png", dpi=100)
    captions = [
        f"{report.classes[true]}\n{report.classes[guess]} {p:.2f}"
        for _, true, guess, p, _ in scores.worst
    ]
    images = np.stack([image for *_, image in scores.worst])
    worst = figures.image_grid(images, captions, title="largest loss: true class, answer")
    worst.savefig(folder / "worst.png", dpi=100)


def _csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _per_class(report: EvaluateReport) -> Iterator[Sequence[object]]:
    yield "class", "precision", "recall", "f1", "support"
    for name, row in report.per_class.items():
        numbers = [f"{row[column]:.4f}" for column in ("precision", "recall", "f1")]
        yield name, *numbers, int(row["support"])


def _confusion(report: EvaluateReport) -> Iterator[Sequence[object]]:
    yield "true class", *report.classes
    for name, counts in zip(report.classes, report.confusion, strict=True):
        yield name, *counts


def _log_to_run(
    client: mlflow.MlflowClient,
    run_id: str,
    model_id: str,
    version: Manifest,
    report: EvaluateReport,
    folder: Path,
) -> None:
    """Inputs, metrics linked to model and dataset, and the files; a second time adds nothing.

    Through the client, not the fluent API: that would open the run again and decide its status.
    """
    tracking.log_dataset(client, run_id, version, "test", report.samples)
    for name in FILES:
        client.log_artifact(run_id, str(folder / name), "test")
    metrics = {"accuracy": report.accuracy, "loss": report.loss, "macro_f1": report.macro_f1}
    run = client.get_run(run_id).data
    same = run.tags.get("test.digest") == report.test_digest
    data = tracking.dataset_input(version, "test")
    for name, value in metrics.items():
        if same and run.metrics.get(f"test/{name}") == value:
            continue
        client.log_metric(
            run_id,
            f"test/{name}",
            value,
            step=0,
            model_id=model_id,
            dataset_name=data.name,
            dataset_digest=data.digest,
        )
    client.set_tag(run_id, "test.digest", report.test_digest)
