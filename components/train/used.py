"""What a training really runs with, where its settings say `auto` or may change on the way."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform

import torch
from tarpon.cpus import usable_cpus

from components.train.batches import pick_loader
from components.train.distributed import Ranks
from components.train.model import build_model
from components.train.settings import Settings


def precision(settings: Settings, device: str) -> str:
    """`float32` or `bfloat16`: what `auto` comes to on this device."""
    if settings.precision != "auto":
        return settings.precision
    has = device.startswith("cuda") and torch.cuda.is_bf16_supported()
    return "bfloat16" if has else "float32"


def threads(settings: Settings, ranks: Ranks) -> int:
    """CPU threads of this rank's loader."""
    return settings.threads or ranks.threads or usable_cpus()


def parameters(settings: Settings, classes: int) -> int:
    """How many the network has; none of its memory is taken.

    Raises:
        UnknownModelError: There is no such network.
    """
    with torch.device("meta"):
        network = build_model(settings.model, classes)
    return sum(weight.numel() for weight in network.parameters())


def tags(settings: Settings, *, device: str, ranks: Ranks, parameters: int) -> dict[str, str]:
    """Tags of the run, which unlike its params may change at each start."""
    loader = pick_loader(settings, device)
    found = {
        "device": device,
        "precision": precision(settings, device),
        "loader": loader,
        "processes": ranks.world_size,
        "threads": threads(settings, ranks),
        "parameters": parameters,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tarpon": importlib.metadata.version("tarpon"),
    }
    if loader == "dali":
        found["dali"] = importlib.import_module("nvidia.dali").__version__
    return {f"train.used.{name}": str(value) for name, value in found.items()}
