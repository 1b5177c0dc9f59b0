"""What a training can be told, checked before anything is read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components import rules

MIN_IMAGE_SIZE = 16

PRECISIONS = ("auto", "float32", "bfloat16")
OPTIMIZERS = ("adamw", "sgd")
LOADERS = ("auto", "tarpon", "dali")
AUGMENTS = ("trivial", "rand", "auto")

HOW = (
    "device",
    "processes",
    "accumulate",
    "compile",
    "threads",
    "checkpoint_every_s",
    "keep_checkpoints",
)
"""Settings of where and how a training runs. What it learns is the same up to rounding (and the
batches that batch normalisation sees), so it may go on from its checkpoints when they change."""


class SettingsError(ValueError):
    """A setting has a value that no training can use; the message names it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to train. The defaults suit about a thousand photographs on two CPU cores.

    `python -m components.train --help` prints what follows; null is None.

    Args:
        epochs: Passes over the train split.
        batch_size: Samples per optimiser step, over all processes and accumulated parts.
        image_size: Side of the square the network sees, in pixels.
        lr: Peak learning rate, reached after the warm-up.
        seed: Fixes the weights at the start, the order of the samples, their crops and mixtures.
        model: `convnet`, or a name of torchvision.models.
        device: `auto`, `cpu`, `cuda` or `cuda:<n>`.
        processes: Processes on this machine, one per device; null: one per visible GPU unless
            the device is numbered, one on the CPU. Under torchrun its ranks count.
        precision: `float32`, `bfloat16` (autocast), or `auto`: bfloat16 on a GPU that has it.
        compile: Compile the network with torch.compile.
        optimizer: `adamw` or `sgd`.
        momentum: Momentum of SGD.
        weight_decay: Weight decay, on matrices and filters only.
        warmup_epochs: Epochs of linear warm-up; may be a fraction.
        cosine: A cosine takes the learning rate to zero after the warm-up; false: it stays.
        label_smoothing: Share of the target spread over the other classes, 0 to below 1.
        ema_decay: Decay of the running average of the weights, which is then what is validated
            and logged; 0: none.
        accumulate: Parts each process works off one after another for one optimiser step.
        clip_norm: Largest norm of the gradient; null: any.
        mixup_alpha, cutmix_alpha: Both images are mixed by a share drawn from Beta(alpha, alpha);
            0: not. With both on, a coin decides at each step.
        augment: `trivial`, `rand` or `auto` augmentation, by DALI only; null: none.
        loader: `tarpon`, `dali`, or `auto`: DALI on a GPU where it can be imported.
        threads: Torch's and the loader's CPU threads each, per process; null leaves the choice.
        checkpoint_every_s: Seconds between checkpoints within an epoch; each epoch ends with one.
        keep_checkpoints: The newest so many are kept.
        start_from: URL of another training's checkpoint, of the same network, optimiser, batch
            size and seed, to begin at; null: from the start.
    """

    epochs: int = 8
    batch_size: int = 64
    image_size: int = 64
    lr: float = 3e-3
    seed: int = 17
    model: str = "convnet"
    device: str = "auto"
    processes: int | None = None
    precision: str = "auto"
    compile: bool = False
    optimizer: str = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.02
    warmup_epochs: float = 1.0
    cosine: bool = True
    label_smoothing: float = 0.05
    ema_decay: float = 0.0
    accumulate: int = 1
    clip_norm: float | None = None
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    augment: str | None = None
    loader: str = "auto"
    threads: int | None = None
    checkpoint_every_s: float = 300.0
    keep_checkpoints: int = 2
    start_from: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            finite = not isinstance(value, float) or math.isfinite(value)
            self._check(field.name, finite, "a finite number")
        for name in ("epochs", "batch_size", "accumulate", "keep_checkpoints"):
            value = getattr(self, name)
            self._check(name, _whole(value) and value >= 1, "a whole number of at least 1")
        for name in ("threads", "processes"):
            value = getattr(self, name)
            self._check(
                name, value is None or (_whole(value) and value >= 1), "at least 1, or null"
            )
        self._check(
            "image_size",
            _whole(self.image_size) and self.image_size >= MIN_IMAGE_SIZE,
            f"a whole number of pixels, at least {MIN_IMAGE_SIZE}",
        )
        self._check("lr", self.lr > 0, "a number above 0")
        for name in ("weight_decay", "warmup_epochs", "mixup_alpha", "cutmix_alpha"):
            value = getattr(self, name)
            self._check(name, value >= 0, "0 or more")
        for name in ("label_smoothing", "ema_decay", "momentum"):
            self._check(name, 0 <= getattr(self, name) < 1, "a number from 0 to below 1")
        self._check(
            "clip_norm", self.clip_norm is None or self.clip_norm > 0, "a norm above 0, or null"
        )
        self._check("checkpoint_every_s", self.checkpoint_every_s > 0, "seconds above 0")
        self._check("start_from", self.start_from != "", "the URL of a checkpoint, or null")
        self._one_of("precision", PRECISIONS)
        self._one_of("optimizer", OPTIMIZERS)
        self._one_of("loader", LOADERS)
        if self.augment is not None:
            self._one_of("augment", AUGMENTS)
            self.require_augmenting(self.loader)
        self._check(
            "processes",
            self.processes in (None, 1) or ":" not in self.device,
            f"1 or null on the one device {self.device!r}",
        )
        self.split(self.processes or 1)

    def _check(self, name: str, fits: bool, expected: str) -> None:
        if not fits:
            found = getattr(self, name)
            raise SettingsError(f"train.{name}={found!r}: expected {expected}")

    def _one_of(self, name: str, known: Sequence[str]) -> None:
        value = getattr(self, name)
        hint = rules.nearest(str(value), known)
        self._check(name, value in known, f"one of {', '.join(known)}{hint}")

    def require_augmenting(self, loader: str) -> None:
        """Refuse `augment` where `loader` cannot do it: only DALI can.

        Raises:
            SettingsError: It would silently be left out.
        """
        if self.augment is not None and loader == "tarpon":
            raise SettingsError(
                f"train.augment={self.augment!r}: found the tarpon loader, expected DALI, which "
                "alone augments; set train.loader=dali (install tarpon[dali-cuda12] or "
                "[dali-cuda13]) or train.augment=null"
            )

    def split(self, processes: int) -> int:
        """Samples of one optimiser step in each of so many processes.

        Raises:
            SettingsError: They cannot be divided evenly.
        """
        parts = processes * self.accumulate
        if self.batch_size % parts:
            raise SettingsError(
                f"train.batch_size={self.batch_size}: expected a multiple of {parts}, "
                f"{processes} processes times train.accumulate={self.accumulate}; use "
                f"{self.batch_size // parts * parts or parts} or change one of the two"
            )
        return self.batch_size // processes

    def identity(self) -> dict[str, Any]:
        """What decides the result: everything but where and how it runs."""
        values = dataclasses.asdict(self)
        for name in HOW:
            del values[name]
        return values


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


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
