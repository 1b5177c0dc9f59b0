"""One loader in a process of its own, timed from its making; prints its figures as JSON.

python -m benchmarks.remote_probe '{"what": "first-batch", "shards": "http://.../train.json", ...}'
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import tarpon

from benchmarks.data import LABELS
from benchmarks.members import SEED, SIZE

BATCH = 64
THREADS = 2


def _loader(asked: dict[str, Any]) -> tarpon.Loader:
    return tarpon.Loader(
        asked["shards"],
        batch_size=BATCH,
        fields={"image": tarpon.RandomResizedCrop(SIZE, ext="jpg"), "label": tarpon.Int("cls")},
        seed=SEED,
        rank=0,
        world_size=1,
        last="keep",
        threads=THREADS,
    )


def first_batch(asked: dict[str, Any]) -> dict[str, float]:
    began = time.perf_counter()
    loader = _loader(asked)
    batch = next(iter(loader))
    first_s = time.perf_counter() - began
    requests = loader.stats()["requests"]
    _check(batch, asked)
    return {"first_s": first_s, "requests": requests}


def epoch(asked: dict[str, Any]) -> dict[str, float]:
    """``asked["step_s"]``: how long the consumer keeps each batch before it wants the next."""
    seen = batches = 0
    began = time.perf_counter()
    loader = _loader(asked)
    for batch in loader:
        seen += len(batch["label"])
        batches += 1
        if asked["step_s"]:
            time.sleep(asked["step_s"])
    epoch_s = time.perf_counter() - began
    network_bytes = loader.stats()["network_bytes"]
    _check(batch, asked)
    if seen != asked["samples"]:
        raise SystemExit(f"epoch: {seen} samples, expected {asked['samples']}")
    return {"epoch_s": epoch_s, "batches": batches, "network_bytes": network_bytes}


def _check(batch: tarpon.Batch, asked: dict[str, Any]) -> None:
    """The labels are those of the samples it names, and there is something in the pictures."""
    expected = [int(index) % asked["samples"] % LABELS for index in batch.indices]
    found = batch["label"].tolist()
    if found != expected:
        raise SystemExit(f"labels {found}, expected {expected}; the time is worth nothing")
    spread = batch["image"].std(axis=(1, 2, 3))
    if spread.min() == 0:
        raise SystemExit("a picture of one colour, expected photographs; the time is worth nothing")


_PROBES = {"first-batch": first_batch, "epochs": epoch}


def main() -> None:
    asked = json.loads(sys.argv[1])
    print(json.dumps(_PROBES[asked["what"]](asked)), flush=True)
    os._exit(0)  # not to wait for what was read ahead


if __name__ == "__main__":
    main()
