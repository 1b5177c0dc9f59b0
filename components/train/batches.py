"""The streams of batches a training reads: which loader makes them, on which device they end.

Every stream yields dicts of tensors on the device: `image`, `float32[B, 3, S, S]` in 0..255,
`label` `int64[B]`, `valid` `bool[B]` and `indices` `int64[B]`. Len, epochs and states are those of
a `tarpon.Loader`. Nothing here knows the network.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import tarpon
import torch
from tarpon.torch import TorchLoader

from components import loading
from components.manifest import Manifest
from components.train.distributed import Ranks
from components.train.settings import Settings


class DaliMissingError(RuntimeError):
    """DALI was asked for and cannot be imported."""


class Stream(Protocol):
    """What the training loop needs of a loader."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Mapping[str, torch.Tensor]]: ...

    def set_epoch(self, epoch: int) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def stats(self) -> dict[str, Any]: ...


def pick_loader(settings: Settings, device: str) -> str:
    """`tarpon` or `dali`: what `auto` comes to on this machine.

    Raises:
        DaliMissingError: `dali` was asked for and is not there.
        SettingsError: Augmentation was asked for, which needs DALI.
    """
    picked = settings.loader
    if picked == "auto":
        picked = "dali" if device.startswith("cuda") and _dali_is_there() else "tarpon"
    if picked == "dali" and not _dali_is_there():
        raise DaliMissingError(
            "train.loader='dali': nvidia.dali cannot be imported, expected NVIDIA DALI; install "
            "tarpon[dali-cuda12] for CUDA 12 or tarpon[dali-cuda13] for CUDA 13, or set "
            "train.loader=tarpon"
        )
    settings.require_augmenting(picked)
    return picked


@contextlib.contextmanager
def train_stream(
    version: Manifest, settings: Settings, *, device: str, ranks: Ranks
) -> Iterator[Stream]:
    """Shuffled, randomly cropped and flipped batches; one batch is this rank's optimiser step.

    The order depends on `batch_size` and `seed` alone: the ranks and the parts of a step share one
    stream, however many there are.
    """
    asked = _asked(settings, device, ranks)
    with (
        loading.train_batches(version, seed=settings.seed, **asked) as loader,
        _on_device(loader, settings, device, ranks, train=True) as stream,
    ):
        yield stream


@contextlib.contextmanager
def val_stream(
    version: Manifest, settings: Settings, *, device: str, ranks: Ranks
) -> Iterator[Stream]:
    """Every sample of the val split once over all ranks; `valid` is false for mere filling."""
    asked = _asked(settings, device, ranks)
    with (
        loading.evaluation_batches(version, "val", last="pad", **asked) as loader,
        _on_device(loader, settings, device, ranks, train=False) as stream,
    ):
        yield stream


def _asked(settings: Settings, device: str, ranks: Ranks) -> dict[str, Any]:
    """What both splits are read with."""
    return {
        "batch_size": settings.split(ranks.world_size),
        "image_size": settings.image_size,
        "threads": settings.threads or ranks.threads,
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        "raw": pick_loader(settings, device) == "dali",
    }


@contextlib.contextmanager
def _on_device(
    loader: tarpon.Loader, settings: Settings, device: str, ranks: Ranks, *, train: bool
) -> Iterator[Stream]:
    if pick_loader(settings, device) == "tarpon":
        with TorchLoader(loader, device=device, transform=_as_fed) as stream:
            yield stream
        return
    dali = importlib.import_module("tarpon.dali")
    pipeline = dali.ImagePipeline(
        loader,
        image="image",
        label="label",
        size=settings.image_size,
        train=train,
        device="gpu" if device.startswith("cuda") else "cpu",
        augment=settings.augment if train else None,
        crops="tarpon",  # the same windows whatever the number of ranks
        num_threads=settings.threads or ranks.threads,
        channels_last=True,
    )
    with contextlib.closing(pipeline):
        yield pipeline


def _as_fed(batch: dict[str, Any]) -> dict[str, Any]:
    """`uint8[B, S, S, 3]` as a network takes it; NHWC stays in memory, which is channels last."""
    return batch | {"image": batch["image"].permute(0, 3, 1, 2).float()}


def _dali_is_there() -> bool:
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # not even its parent package
        return False
