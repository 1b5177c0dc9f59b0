"""Score every image of some shards with a logged model: Parquet parts, then a summary.

Killed at any instant, the same command goes on after the last whole part and leaves the same
bytes. Any number of processes may share the work; they need not know of one another. Labels are
not read. It writes nothing to MLflow.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import tarpon
from tarpon.fields import IMAGE_EXTENSIONS

from components import logged_model, manifest
from components.loading import EmptySplitError
from components.predict import parts
from components.predict.parts import Plan, Rows
from components.predict.scorer import Scorer
from components.progress import track
from components.report import Report
from components.store import Store

_log = logging.getLogger(__name__)

Indices = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PredictReport(Report):
    """What is in the output folder, and what this process did for it.

    Args:
        output: The folder of the parts.
        model_uri ... samples: As in `parts.Plan`.
        parts: Files in all; `done` of them are there.
        finished: All are, and `summary.json` too.
        bad_samples: Images without scores; their rows say why. Over all parts; 0 until finished.
        predicted: Images by the class that was found in them. Empty until finished.
        scored: Images that this process did, in `seconds`, of which `wait_s` waiting for data.
    """

    output: str
    model_uri: str
    model_name: str
    model_version: str
    model_digest: str
    dataset_fingerprint: str
    samples: int
    parts: int
    done: int
    finished: bool
    bad_samples: int
    predicted: dict[str, int]
    scored: int
    seconds: float
    images_per_s: float
    wait_s: float


def predict(
    shards: str | Sequence[str],
    *,
    model_uri: str,
    output: str,
    batch_size: int = 256,
    part_samples: int = 8192,
    device: str = "auto",
    threads: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    cache_dir: str | None = None,
) -> PredictReport:
    """Score this process's parts; whoever finds all parts there writes the summary.

    Args:
        shards: Whatever `tarpon.open` takes: a shard list, tars, a folder, local or remote.
        model_uri: See `logged_model.load`.
        output: A folder, local or `s3://`, for this model's scores of these shards.
        batch_size: Images the network sees at once.
        part_samples: Rows of a part; rounded up to whole batches.
        threads: Of the loader and of torch, each; None lets each decide.
        rank, world_size: Which share is this process's; default: torchrun's environment, else all.
        cache_dir: A folder to keep what is read of remote shards.

    Raises:
        EmptySplitError: There are no samples.
        OtherJobError: The output folder is another job's.
        DeviceError, ModelMismatchError, TrackingError, StoreError, tarpon.TarponError
    """
    rank, world_size = _place(rank, world_size)
    if batch_size < 1 or part_samples < 1:
        raise ValueError(f"{batch_size=}, {part_samples=}, expected at least 1 of each")
    store = Store(output)
    store.check_writable()
    model = logged_model.load(model_uri)
    score = Scorer(model, device=device, threads=threads)
    dataset = tarpon.open(shards if isinstance(shards, str) else [*shards], cache_dir=cache_dir)
    if len(dataset) == 0:
        raise EmptySplitError(f"{dataset!r}: no samples, expected some to score; check --shards")
    plan = Plan(
        model_uri=model.uri,
        model_name=model.name,
        model_version=model.version,
        model_digest=model.digest,
        classes=model.classes,
        image_size=model.image_size,
        dataset_fingerprint=dataset.fingerprint,
        samples=len(dataset),
        batch_size=batch_size,
        part_samples=-(-part_samples // batch_size) * batch_size,
    ).publish(store)
    done = parts.finished(store, plan)
    mine = [part for part in range(rank, plan.parts, world_size) if part not in done]
    _log.info("%d of %d parts to do on rank %d of %d", len(mine), plan.parts, rank, world_size)
    began = time.monotonic()
    wait_s = _score_parts(store, plan, dataset, score, mine, threads) if mine else 0.0
    took = {
        "scored": sum(end - first for first, end in map(plan.range, mine)),
        "seconds": time.monotonic() - began,
        "wait_s": wait_s,
    }
    return _report(store, plan, took, f".parts/rank-{rank}-of-{world_size}.json")


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Which share of the parts is ours."""
    if (rank is None) != (world_size is None):
        raise ValueError(f"{rank=}, {world_size=}, expected both or neither")
    if rank is None or world_size is None:
        rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < world_size:
        raise ValueError(f"{rank=}, {world_size=}, expected 0 <= rank < world_size")
    return rank, world_size


def _score_parts(
    store: Store,
    plan: Plan,
    dataset: tarpon.Dataset,
    score: Scorer,
    mine: Sequence[int],
    threads: int | None,
) -> float:
    """Score these parts and write each as it fills; returns the seconds that data was waited for.

    One loader goes over all of them, so that it reads ahead across their ends. A part is whole
    batches, so which images the network sees together is the same for every share.
    """
    indices = np.concatenate([np.arange(*plan.range(part)) for part in mine])
    ends = np.cumsum([end - first for first, end in map(plan.range, mine)])
    rows, at, seen = Rows(), 0, 0
    writing: Future[None] | None = None
    with (
        ThreadPoolExecutor(1, thread_name_prefix="tarpon-parts") as writer,
        _loader(dataset, indices, plan.batch_size, plan.image_size, threads) as loader,
    ):
        batches = _batches(loader, dataset, plan, indices)
        for wanted, images, errors in track(batches, total=len(loader), label="predict"):
            rows.scores.append(score(images))
            rows.errors += errors
            for index in wanted.tolist():
                shard, key, _ = dataset.find(index)
                rows.shards.append(shard.rpartition("/")[2])
                rows.keys.append(key)
            seen += len(wanted)
            if seen == ends[at]:
                if writing is not None:
                    writing.result()  # one at a time; its error is ours
                writing = writer.submit(parts.write, store, plan, mine[at], rows)
                rows, at = Rows(), at + 1
        if writing is not None:
            writing.result()
        return float(loader.stats()["wait_s"])


def _loader(
    dataset: tarpon.Dataset, indices: Indices, batch_size: int, side: int, threads: int | None
) -> tarpon.Loader:
    """These samples in turn, cut as evaluate cuts them; a bad one raises."""
    return tarpon.Loader(
        tarpon.view(dataset, indices),
        batch_size=batch_size,
        fields={"image": tarpon.CenterCrop(side, ext=IMAGE_EXTENSIONS)},
        shuffle=False,
        last="keep",
        threads=threads,
        rank=0,
        world_size=1,
    )


def _batches(
    loader: tarpon.Loader, dataset: tarpon.Dataset, plan: Plan, indices: Indices
) -> Iterator[tuple[Indices, npt.NDArray[np.uint8], list[str | None]]]:
    """Samples, their `uint8[B, S, S, 3]`, and what is wrong with each; a bad one is black."""
    for step in range(len(loader)):
        wanted = indices[step * plan.batch_size :][: plan.batch_size]
        errors: list[str | None] = [None] * len(wanted)
        try:
            images = loader.batch(0, step)["image"]
        except tarpon.BadSampleError:
            images = _one_by_one(dataset, plan, wanted, errors)
        yield wanted, images, errors


def _one_by_one(
    dataset: tarpon.Dataset, plan: Plan, wanted: Indices, errors: list[str | None]
) -> npt.NDArray[np.uint8]:
    """The images of a batch that has a bad one; fills in `errors`.

    The loader's `substitute` would not do: its stand-ins have rows of their own, and where all are
    bad it ends.
    """
    images = np.zeros((len(wanted), plan.image_size, plan.image_size, 3), np.uint8)
    first: tarpon.BadSampleError | None = None
    with _loader(dataset, wanted, 1, plan.image_size, 1) as loader:
        for place in range(len(wanted)):
            try:
                images[place] = loader.batch(0, place)["image"][0]
            except tarpon.BadSampleError as error:
                errors[place] = error.reason or str(error)
                first = first or error
    _log.warning(
        "%d bad samples of a batch get no score: %s", len(wanted) - errors.count(None), first
    )
    return images


def _report(store: Store, plan: Plan, took: dict[str, float], name: str) -> PredictReport:
    """Say what was done; where all parts are there, write the summary."""
    if took["scored"] or not store.exists(name):
        store.write_bytes(name, manifest.dump(took))
    done = len(parts.finished(store, plan))
    finished = done == plan.parts
    counted = parts.totals(store, plan) if finished else {"bad_samples": 0, "predicted": {}}
    seconds = took["seconds"]
    report = PredictReport(
        output=store.root,
        model_uri=plan.model_uri,
        model_name=plan.model_name,
        model_version=plan.model_version,
        model_digest=plan.model_digest,
        dataset_fingerprint=plan.dataset_fingerprint,
        samples=plan.samples,
        parts=plan.parts,
        done=done,
        finished=finished,
        scored=int(took["scored"]),
        seconds=seconds,
        images_per_s=took["scored"] / seconds if seconds > 0 else 0.0,
        wait_s=took["wait_s"],
        **counted,
    )
    if finished:
        if took["scored"] or not store.exists(parts.SUMMARY):
            parts.summarise(store, plan, counted)
        _log.info(
            "%s: %d samples, %d of them bad: column `error` says why",
            store.url(parts.SUMMARY), plan.samples, counted["bad_samples"],
        )  # fmt: skip
    return report
