"""What to do where a training does not fit into its device's memory: torch names no setting."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from components.train.settings import Settings


class OutOfMemoryError(RuntimeError):
    """The training does not fit into the device's memory; the message says which settings help."""


@contextlib.contextmanager
def explained(explain: Callable[[str], str]) -> Iterator[None]:
    """Raise OutOfMemoryError for torch's error, in the words `explain` makes of its first line."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        known = isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in text
        if isinstance(error, OutOfMemoryError) or not known:
            raise
        raise OutOfMemoryError(explain(text.splitlines()[0])) from error


def step_too_large(settings: Settings, step: int, samples: int, bfloat16: bool, text: str) -> str:
    """Of one that works off `samples` at a time."""
    precision = "" if bfloat16 else ", set train.precision=bfloat16"
    return (
        f"train: step {step} does not fit into the memory of the device ({text}), found {samples} "
        f"samples of {settings.image_size} pixels at a time; raise train.accumulate from "
        f"{settings.accumulate} to work off the same step in more parts, lower train.batch_size or "
        f"train.image_size{precision}"
    )


def network_too_large(settings: Settings, text: str) -> str:
    """Where batches have no part in it."""
    average = f", set train.ema_decay=0 (now {settings.ema_decay:g})" if settings.ema_decay else ""
    adamw = ", set train.optimizer=sgd" if settings.optimizer == "adamw" else ""
    return (
        f"train: train.model={settings.model!r} and its optimiser do not fit into the memory of "
        f"the device ({text}), expected room for the weights and what is kept of each; end what "
        f"else uses that memory, choose a smaller train.model{adamw}{average}"
    )
