"""What a training can be told, checked before anything is read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

MIN_IMAGE_SIZE = 16


class SettingsError(ValueError):
    """A setting has a value that no training can use; the message names it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to train. The defaults suit about a thousand photographs on two CPU cores.

    Args:
        epochs: Passes over the train split.
        batch_size: Samples per step.
        image_size: Side of the square the network sees, in pixels.
        lr: Peak learning rate of AdamW, reached after the warm-up; a cosine takes it to zero.
        seed: Fixes the weights at the start, the order of the samples and their crops.
        model: `convnet`, or a name of torchvision.models.
        device: `auto`, `cpu`, `cuda` or `cuda:<n>`.
        weight_decay: AdamW's, on weight matrices and filters only.
        warmup_epochs: Epochs of linear warm-up; may be a fraction.
        label_smoothing: Share of the target spread over the other classes, 0 to below 1.
        threads: Torch's and the loader's CPU threads each; None leaves the choice to them.
        checkpoint_every_s: Seconds between checkpoints within an epoch; each epoch ends with one.
    """

    epochs: int = 8
    batch_size: int = 64
    image_size: int = 64
    lr: float = 3e-3
    seed: int = 17
    model: str = "convnet"
    device: str = "auto"
    weight_decay: float = 0.02
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.05
    threads: int | None = None
    checkpoint_every_s: float = 300.0

    def __post_init__(self) -> None:
        def check(name: str, fits: bool, expected: str) -> None:
            if not fits:
                found = getattr(self, name)
                raise SettingsError(f"train.{name}={found!r}: expected {expected}")

        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            check(name, isinstance(value, int) and value >= 1, "a whole number of at least 1")
        check(
            "image_size",
            isinstance(self.image_size, int) and self.image_size >= MIN_IMAGE_SIZE,
            f"a whole number of pixels, at least {MIN_IMAGE_SIZE}",
        )
        check("lr", self.lr > 0, "a number above 0")
        check("weight_decay", self.weight_decay >= 0, "0 or more")
        check("warmup_epochs", self.warmup_epochs >= 0, "0 or more")
        check("label_smoothing", 0 <= self.label_smoothing < 1, "a number from 0 to below 1")
        check("threads", self.threads is None or self.threads >= 1, "at least 1, or null")
        check("checkpoint_every_s", self.checkpoint_every_s > 0, "seconds above 0")

    def identity(self) -> dict[str, Any]:
        """What decides the result: everything but where it runs and how often it is saved."""
        values = dataclasses.asdict(self)
        for name in ("device", "threads", "checkpoint_every_s"):
            del values[name]
        return values


def training_key(settings: Settings, *, digest: str, experiment: str) -> str:
    """The name of one training, 16 hex digits: same data, settings and code, same key.

    A checkpoint is only ever continued under the key it was written for. The code that counts is
    this step's own, so that an edited network is not taken for a finished one.
    """
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        code.update(file.read_bytes())
    parts = [settings.identity(), digest, experiment, code.hexdigest()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
