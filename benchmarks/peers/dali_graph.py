"""The graph of `tarpon.dali`, fed by a Loader, from memory, or by DALI's own reader."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import tarpon
import torch
from nvidia.dali import fn, pipeline_def, types
from tarpon import _dali
from tarpon._dali_graph import Plan, encoded, graph
from tarpon.batch import Ragged
from tarpon.dali import ImagePipeline

from benchmarks.data import DataSet
from benchmarks.measure import Epoch, Tally
from benchmarks.members import SEED, SIZE, batch_size, read_images

PREFETCH = 2


def make(
    data: DataSet,
    *,
    source: Literal["tarpon", "memory", "reader"],
    device: Literal["cpu", "gpu"],
    threads: int,
    batch: int,
    crops: Literal["dali", "tarpon", "roi"] = "dali",
    copies: int = 1,
    window: int | None = None,
) -> Epoch:
    """`crops="roi"`: the whole image is decoded, and our window is resized out of it.

    `copies` and `window` are those of `benchmarks.peers.ours`: over HTTP a set that the loader
    holds in memory would not come over the network again.
    """
    if source == "tarpon":
        return _fed_by_tarpon(data, device, threads, batch, crops, copies, window)
    if source == "memory":
        return _fed_from_memory(data, device, threads, batch, crops)
    return _fed_by_reader(data, device, threads, batch, copies)


def _fed_by_tarpon(
    data: DataSet,
    device: Any,
    threads: int,
    batch: int,
    crops: Any,
    copies: int,
    window: int | None,
) -> Epoch:
    loader = tarpon.Loader(
        data.copies(copies),
        batch_size=batch_size(data, batch),
        fields={"jpg": tarpon.Raw("jpg"), "cls": tarpon.Int("cls")},
        seed=SEED,
        threads=threads,
        window_samples=window,
    )
    made = ImagePipeline(
        loader, size=SIZE, device=device, crops=crops, num_threads=threads, prefetch=PREFETCH
    )

    epochs = [0]

    def epoch(number: int, tally: Tally) -> None:
        for tensors in made:
            _take(tensors["image"], tally)
        epochs[0] += 1
        came, least = made.stats()["network_bytes"], epochs[0] * copies * data.bytes
        if data.url is not None and came < least:
            raise SystemExit(f"{came} bytes from the network, expected {least}: what memory held")

    return epoch


def _take(image: torch.Tensor, tally: Tally) -> None:
    size = image.numel() * image.element_size()
    tally.pixels(len(image), size, lambda: image.float().cpu().numpy())


def _plan(device: str, crops: str) -> Plan:
    return Plan(
        size=SIZE,
        resize=None,
        train=crops != "roi",  # evaluation's graph: an image, and a part of it that is resized
        gpu=device == "gpu",
        crops="tarpon" if crops == "roi" else crops,
        dtype="float32",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        channels_last=False,
        operations=None,
        policy=None,
        bins=0,
    )


def _fed_from_memory(data: DataSet, device: str, threads: int, batch: int, crops: str) -> Epoch:
    """Every input of every batch is made before: what is timed is DALI alone."""
    images, per_batch = read_images(data), batch_size(data, batch)
    plan = _plan(device, crops)
    batches = []
    for first in range(0, data.samples, per_batch):
        some = images[first : first + per_batch]
        column = Ragged(
            np.frombuffer(b"".join(some), np.uint8).copy(),
            np.cumsum([0, *map(len, some)], dtype=np.int64),
        )
        front = _dali.FrontCheck()
        front(column)
        draw = {"seed": SEED, "epoch": 0, "positions": np.arange(first, first + per_batch)}
        inputs = plan.arrays(front.sizes, **draw) | {"images": encoded(column)}
        if crops == "roi":
            boxes = _dali.random_windows(front.sizes, **draw)[0].astype(np.float32)
            inputs["start"] = np.ascontiguousarray(boxes[:, 1::-1])
            inputs["extent"] = np.ascontiguousarray(boxes[:, :1:-1])
        batches.append((column, tuple(inputs[name] for name in plan.inputs())))

    pipe = graph(
        plan,
        lambda info: batches[info.iteration % len(batches)][1],
        batch_size=per_batch,
        num_threads=threads,
        device_id=0 if device == "gpu" else None,
        prefetch_queue_depth=PREFETCH,
    )
    return _runs(pipe, data.samples // per_batch, device)


def _runs(pipe: Any, batches: int, device: str) -> Epoch:
    pipe.build()

    def epoch(number: int, tally: Tally) -> None:
        stream = torch.cuda.current_stream() if device == "gpu" else None
        for _ in range(batches):
            _take(torch.from_dlpack(pipe.run(stream)[0].as_tensor()), tally)

    return epoch


def _fed_by_reader(data: DataSet, device: str, threads: int, batch: int, copies: int) -> Epoch:
    per_batch = batch_size(data, batch)

    @pipeline_def(
        batch_size=per_batch,
        num_threads=threads,
        device_id=0 if device == "gpu" else None,
        prefetch_queue_depth=PREFETCH,
        seed=SEED,
    )
    def pipeline() -> tuple[Any, Any]:
        images, labels = fn.readers.webdataset(
            paths=data.copies(copies),
            index_paths=data.indexes * copies,
            ext=["jpg", "cls"],
            missing_component_behavior="error",
            random_shuffle=True,
            initial_fill=1024,
        )
        pixels = fn.decoders.image_random_crop(images, device="mixed" if device == "gpu" else "cpu")
        pixels = fn.resize(pixels, size=(SIZE, SIZE), interp_type=types.INTERP_LINEAR)
        pixels = fn.crop_mirror_normalize(
            pixels, mirror=fn.random.coin_flip(), dtype=types.FLOAT, output_layout="CHW"
        )
        return pixels, labels

    return _runs(pipeline(), copies * data.samples // per_batch, device)
