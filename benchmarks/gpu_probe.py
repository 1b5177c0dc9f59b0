"""Training steps in a process of its own, of real pictures and of one synthetic batch; prints JSON.

python -m benchmarks.gpu_probe '{"shards": [...], "device": "cpu", "batch": 32, ...}'
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import tarpon
import torch
from tarpon.dali import ImagePipeline

from benchmarks.data import LABELS
from benchmarks.members import SEED
from components.train.model import build_model

_WARM = 3  # steps that are not timed

Batch = dict[str, torch.Tensor]


def _trainer(asked: dict[str, Any]) -> Callable[[Batch], None]:
    device = torch.device("cuda" if asked["device"] == "gpu" else "cpu")
    model = build_model(asked["model"], LABELS).to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    loss_of = torch.nn.CrossEntropyLoss()

    def step(batch: Batch) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=asked["device"] == "gpu"):
            loss = loss_of(model(batch["image"]), batch["label"])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return step


def _finish(asked: dict[str, Any]) -> None:
    if asked["device"] == "gpu":
        torch.cuda.synchronize()


def main() -> None:
    asked = json.loads(sys.argv[1])
    if asked["device"] == "cpu":
        torch.set_num_threads(1)  # the other core decodes, as a GPU leaves the CPUs to it
    loader = tarpon.Loader(
        asked["shards"],
        batch_size=asked["batch"],
        fields={"jpg": tarpon.Raw("jpg"), "cls": tarpon.Int("cls")},
        seed=SEED,
        threads=asked["threads"],
    )
    fed = ImagePipeline(
        loader,
        size=asked["size"],
        device=asked["device"],
        num_threads=asked["threads"],
        channels_last=True,
    )
    step = _trainer(asked)

    def batches() -> Any:
        while True:
            yield from fed

    stream = batches()
    for _ in range(_WARM):
        step(next(stream))
    _finish(asked)
    waited, began = fed.stats()["wait_s"], time.perf_counter()
    for _ in range(asked["steps"]):
        step(next(stream))
    _finish(asked)
    real_s = time.perf_counter() - began
    wait_s = fed.stats()["wait_s"] - waited
    still = {name: tensor.clone() for name, tensor in next(stream).items()}
    fed.close()
    for _ in range(_WARM):
        step(still)
    _finish(asked)
    began = time.perf_counter()
    for _ in range(asked["steps"]):
        step(still)
    _finish(asked)
    synthetic_s = time.perf_counter() - began
    steps = asked["steps"]
    print(
        json.dumps(
            {
                "real_s": real_s / steps,
                "synthetic_s": synthetic_s / steps,
                "wait_s": wait_s / steps,
            }
        ),
        flush=True,
    )
    os._exit(0)


if __name__ == "__main__":
    main()
