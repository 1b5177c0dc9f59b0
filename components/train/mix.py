"""Mixup and cutmix: each image of a batch gets a share of another one.

How much, and where, is drawn from (seed, epoch, step) alone: the same after any resume and on every
rank. The partner is the neighbour in this rank's own part of the batch.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import nn

from components.train.settings import Settings


@dataclasses.dataclass(frozen=True, slots=True)
class Targets:
    """The labels of a batch, `int64[B]`, and what was mixed in: `share` of each is its own."""

    label: torch.Tensor
    other: torch.Tensor
    share: float = 1.0

    def chunks(self, count: int) -> list[Targets]:
        """The same in `count` parts of equal size."""
        pairs = zip(self.label.chunk(count), self.other.chunk(count), strict=True)
        return [Targets(label, other, self.share) for label, other in pairs]

    def loss(self, logits: torch.Tensor, smoothing: float) -> torch.Tensor:
        """Mean cross entropy against both labels, weighted by their shares."""
        own = nn.functional.cross_entropy(logits, self.label, label_smoothing=smoothing)
        if self.share == 1.0:
            return own
        other = nn.functional.cross_entropy(logits, self.other, label_smoothing=smoothing)
        return self.share * own + (1 - self.share) * other

    def correct(self, logits: torch.Tensor) -> torch.Tensor:
        """How many are right; a hit on either label counts by its share."""
        found = logits.argmax(1)
        own = (found == self.label).sum()
        if self.share == 1.0:
            return own
        return self.share * own + (1 - self.share) * (found == self.other).sum()


def mix(
    image: torch.Tensor, label: torch.Tensor, settings: Settings, *, epoch: int, step: int
) -> tuple[torch.Tensor, Targets]:
    """Mix a batch as the settings say; `image` is `[B, 3, S, S]` and stays as it is.

    Args:
        epoch, step: Name the draw: equal ones, equal mixtures.
    """
    kinds = {"mixup": settings.mixup_alpha, "cutmix": settings.cutmix_alpha}
    wanted = [kind for kind, alpha in kinds.items() if alpha > 0]
    if not wanted or len(label) < 2:
        return image, Targets(label, label)
    draw = np.random.default_rng([settings.seed, epoch, step])
    kind = wanted[int(draw.integers(len(wanted)))]
    share = float(draw.beta(kinds[kind], kinds[kind]))
    other = label.roll(1)
    if kind == "mixup":
        return torch.lerp(image.roll(1, 0), image, share), Targets(label, other, share)
    top, bottom, left, right = _box(draw, share, *image.shape[2:])
    mixed = image.clone()
    mixed[:, :, top:bottom, left:right] = image.roll(1, 0)[:, :, top:bottom, left:right]
    covered = (bottom - top) * (right - left) / (image.shape[2] * image.shape[3])
    return mixed, Targets(label, other, 1 - covered)


def _box(draw: np.random.Generator, share: float, height: int, width: int) -> list[int]:
    """top, bottom, left, right of a box over `1 - share` of the area, cut off at the edges."""
    edges = []
    for side in (height, width):
        middle, half = int(draw.integers(side)), round(side * (1 - share) ** 0.5 / 2)
        edges += [max(0, middle - half), min(side, middle + half)]
    return edges
