"""How weights move: the optimiser, its learning rate, and their running average."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from components.train.settings import Settings


def build_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW or SGD; weight decay for matrices and filters, none for biases and normalisation."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in parameters if p.ndim >= 2],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(p.is_cuda for p in parameters)  # one kernel for all weights
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=settings.lr, fused=fused)


def learning_rate(settings: Settings, step: int, epoch_steps: int) -> float:
    """Linear warm-up to `lr`, then a cosine to zero: a pure function, so there is no state."""
    total = settings.epochs * epoch_steps
    warmup = min(settings.warmup_epochs * epoch_steps, total / 2)
    if step < warmup:
        return settings.lr * (step + 1) / (math.ceil(warmup) + 1)
    if not settings.cosine:
        return settings.lr
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


class Average:
    """The exponential running average of a network's weights, a network itself.

    The decay grows to its full value over the first steps, (1 + n) / (10 + n): the random weights
    of the start are soon forgotten. Running statistics of normalisation are averaged as well.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._decay = decay
        self._pairs = list(
            zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
        )

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step number `step`, counted from 1."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        floats = [(mine, now) for mine, now in self._pairs if mine.is_floating_point()]
        mine, now = (list(side) for side in zip(*floats, strict=True))
        torch._foreach_lerp_(mine, now, share)
        for counter, value in self._pairs:
            if not counter.is_floating_point():
                counter.copy_(value)
