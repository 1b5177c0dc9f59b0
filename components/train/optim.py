"""How weights move: the optimiser, its learning rate, and their running average."""

from __future__ import annotations

import copy
import inspect
import math
from functools import partial

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
    _leave_dynamo_out()
    # One kernel for all weights, which reads on the device whether the step is to be taken.
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=settings.lr, fused=True)


def _leave_dynamo_out() -> None:
    """Spare a training the import of torch._dynamo, a second or two before its first step.

    Optimisers import it to keep these methods out of compiled code, from which nobody calls them.
    Should a torch to come do that in another way, this does nothing.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = inspect.unwrap(getattr(torch.optim.Optimizer, name))
        setattr(method, "__dynamo_disable", method)  # where torch caches the method kept out


class StepGuard:
    """Whether a step of this training was no number: from it on, no step is taken any more.

    It is told on the device, so that the host need not wait for it. The first bad step, and those
    that were queued behind it before the host heard, leave no trace: neither in the weights, the
    optimiser and its counters, nor in running statistics.

    Args:
        model: Whose running statistics are put back. A forward pass changes them, taken or not.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        by_type: dict[torch.dtype, list[torch.Tensor]] = {}
        for buffer in model.buffers():
            by_type.setdefault(buffer.dtype, []).append(buffer)
        self._groups = list(by_type.values())
        self._step = partial(inspect.unwrap(type(optimizer).step), optimizer)  # without dynamo
        self.flag = torch.zeros((), device=next(model.parameters()).device)
        optimizer.found_inf = self.flag  # type: ignore[attr-defined]  # what a GradScaler sets

    def statistics(self) -> list[torch.Tensor]:
        """A copy of the running statistics, for `step`."""
        return [_flat(group) for group in self._groups]

    @torch.no_grad()
    def step(self, totals: torch.Tensor, before: list[torch.Tensor]) -> None:
        """Take the optimiser's step if `totals` and all those before are finite.

        Args:
            totals: What the step came to, the same on every rank.
            before: The statistics before its forward pass.
        """
        torch.maximum(self.flag, (~totals.isfinite()).any().to(self.flag), out=self.flag)
        self._step()
        for group, old in zip(self._groups, before, strict=True):
            kept = torch.where(self.flag > 0, old, _flat(group)).split([b.numel() for b in group])
            parts = [part.view_as(buffer) for part, buffer in zip(kept, group, strict=True)]
            torch._foreach_copy_(group, parts)


def _flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


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
    def update(self, step: int, refused: torch.Tensor) -> None:
        """Take in the weights after optimiser step number `step`, counted from 1.

        Args:
            refused: 1 on the device where the step was not taken: then nothing is taken in.
        """
        share = (1 - min(self._decay, (1 + step) / (10 + step))) * (1 - refused)
        floats = [(mine, now) for mine, now in self._pairs if mine.is_floating_point()]
        mine, now = (list(side) for side in zip(*floats, strict=True))
        torch._foreach_lerp_(mine, now, [share] * len(mine))
        for counter, value in self._pairs:
            if not counter.is_floating_point():
                counter.copy_(value)
