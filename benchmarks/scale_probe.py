"""One look at a huge dataset, in a process of its own; prints its figures as JSON.

Imports as little as a training process would, since the memory of the whole process counts. What
was handed over is checked after the clock has stopped and the memory has been read.

python -m benchmarks.scale_probe '{"what": "open", "shards": ".../train.json"}'
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tarpon

from benchmarks import ABSENT

BATCH = 256
SEED = 17
THREADS = 2


def _peak_bytes() -> int:
    """Peak resident memory of this process; `getrusage` would include its parent's."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def open_list(asked: dict[str, Any]) -> dict[str, float]:
    began = time.perf_counter()
    samples = len(tarpon.open(asked["shards"]))
    figures = {"open_s": time.perf_counter() - began, "peak_bytes": _peak_bytes()}
    _expect("samples", samples, asked["samples"])
    return figures


def _tars(asked: dict[str, Any]) -> list[str]:
    """The first ``asked["use"]`` tars beside the shard list."""
    found = sorted(Path(asked["shards"]).parent.glob("*.tar"))
    return [str(path) for path in found[: asked["use"]]]


def _loader(asked: dict[str, Any]) -> Any:
    return tarpon.Loader(
        asked["shards"],
        batch_size=BATCH,
        fields={"image": tarpon.Raw("jpg"), "label": tarpon.Int("cls")},
        shuffle=True,
        seed=SEED,
        rank=0,
        world_size=1,
        threads=THREADS,
    )


def state(asked: dict[str, Any]) -> dict[str, Any]:
    """A state of the dataset, at its start."""
    return dict(_loader(asked).state_dict())


def restore(asked: dict[str, Any]) -> dict[str, float]:
    """Go to ``asked["state"]``, JSON that another process wrote, and take one batch."""
    began = time.perf_counter()
    loader = _loader(asked)
    made = time.perf_counter()
    place = json.loads(asked["state"])
    loader.load_state_dict(place)
    batch = next(iter(loader))
    handed = time.perf_counter()
    figures = {
        "restore_s": handed - made,
        "first_s": handed - began,
        "peak_bytes": _peak_bytes(),
        "state_bytes": len(json.dumps(loader.state_dict())),
    }
    _check(batch, place, loader, asked)
    return figures


def _check(batch: Any, place: dict[str, Any], loader: Any, asked: dict[str, Any]) -> None:
    """It is the batch of that place, and its bytes are those that `tarfile` finds in a shard."""
    import tarfile

    step = place["position"] // BATCH
    _expect("epoch and step", (batch.epoch, batch.step), (place["epoch"], step))
    numbers = [int(index) for index in batch.indices]
    _expect("different samples", len(set(numbers)), BATCH)
    for slot in (0, BATCH - 1):
        found = loader.where(numbers[slot], place["epoch"])
        _expect(f"place of slot {slot}", found, (step, 0, slot))
    inside = [number % asked["per_shard"] for number in numbers]
    _expect("labels", batch["label"].tolist(), inside)
    with tarfile.open(_tars(asked)[0]) as tar:
        for slot, number in enumerate(inside):
            key = f"{number:08d}"
            file = tar.extractfile(f"{key}.jpg")
            _expect(f"key of slot {slot}", batch.sample_keys[slot], key)
            _expect(f"bytes of {key}", bytes(batch["image"][slot]), file.read() if file else None)


def _expect(what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise SystemExit(
            f"scale: {what}: {found!r:.200}, expected {expected!r:.200}; the time is worth nothing"
        )


def webdataset(asked: dict[str, Any]) -> dict[str, float]:
    import webdataset as wds

    paths = _tars(asked)
    began = time.perf_counter()
    samples = wds.WebDataset(paths, shardshuffle=len(paths), empty_check=False)
    samples = samples.shuffle(1000).to_tuple("jpg", "cls")
    taken = list(itertools.islice(samples, BATCH))
    figures = {"first_s": time.perf_counter() - began, "peak_bytes": _peak_bytes()}
    _expect("samples", len(taken), BATCH)
    return figures


def dali(asked: dict[str, Any]) -> dict[str, float]:
    from nvidia.dali import fn, pipeline_def

    paths = _tars(asked)
    began = time.perf_counter()

    @pipeline_def(batch_size=BATCH, num_threads=THREADS, device_id=None, seed=SEED)
    def pipeline() -> Any:
        images, labels = fn.readers.webdataset(
            paths=paths,
            index_paths=[path.removesuffix(".tar") + ".idx" for path in paths],
            ext=["jpg", "cls"],
            random_shuffle=True,
            missing_component_behavior="error",
        )
        return images, labels

    built = pipeline()
    built.build()
    images, _labels = built.run()
    figures = {"first_s": time.perf_counter() - began, "peak_bytes": _peak_bytes()}
    _expect("samples", len(images), BATCH)
    return figures


_PROBES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "open": open_list,
    "state": state,
    "restore": restore,
    "webdataset": webdataset,
    "dali": dali,
}


def main() -> None:
    asked = json.loads(sys.argv[1])
    try:
        figures = _PROBES[asked["what"]](asked)
    except ImportError as error:
        print(error, flush=True)
        sys.exit(ABSENT)
    print(json.dumps(figures), flush=True)
    os._exit(0)  # not to wait for a hundred million samples to be freed


if __name__ == "__main__":
    main()
