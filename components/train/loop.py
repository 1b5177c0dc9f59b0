"""The training loop: batches in, steps, metrics and checkpoints out.

It does not know where the dataset lies, how a model is logged or which run it writes to.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, Self

import tarpon
import torch
from torch import nn

from components.progress import track
from components.run_log import RunLog
from components.train.checkpoint import Checkpoints, State, random_states, set_random_states
from components.train.settings import Settings

_log = logging.getLogger(__name__)

NAMED_KEYS = 8
"""How many sample keys of a bad batch an error spells out."""


class NonFiniteLossError(ArithmeticError):
    """The loss became nan or infinite; the message names the samples of that batch."""


class StopRequested(KeyboardInterrupt):
    """SIGTERM or Ctrl-C arrived; a checkpoint was written before this was raised."""

    def __init__(self, signal_name: str, checkpoint: str) -> None:
        super().__init__(f"stopped by {signal_name}; run the same command again to go on from "
                         f"{checkpoint}")  # fmt: skip
        self.signal_name = signal_name


class StopSignals:
    """Turns the first SIGTERM or SIGINT into a flag that the loop looks at between steps.

    A second one interrupts at once. Outside the main thread, where Python allows no handlers,
    it does nothing.
    """

    def __init__(self) -> None:
        self.requested = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name


class Trainer:
    """One training on one device, from its start or from a checkpoint to its last epoch.

    Args:
        model: On `device` already.
        batches: The train split; its length is the steps of an epoch.
        validation: The val split, or None where there is none.
        on_first_batch: Called once per training with the very first batch, before its step.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        settings: Settings,
        device: str,
        batches: tarpon.Loader,
        validation: tarpon.Loader | None,
        metrics: RunLog,
        checkpoints: Checkpoints,
        run_id: str,
        stop: StopSignals,
        on_first_batch: Callable[[tarpon.Batch], None],
    ) -> None:
        self._model = model
        self._settings = settings
        self._device = device
        self._batches = batches
        self._validation = validation
        self._metrics = metrics
        self._checkpoints = checkpoints
        self._run_id = run_id
        self._stop = stop
        self._on_first_batch = on_first_batch
        self._optimizer = _adamw(model, settings)
        self._epoch_steps = len(batches)
        self.epoch = 0
        self.step = 0
        self.history: list[dict[str, float]] = []
        self._sums = _no_sums()
        self._saved = time.monotonic()

    @property
    def model(self) -> nn.Module:
        """The network, trained as far as `step`."""
        return self._model

    def restore(self, state: State) -> None:
        """Go to where a checkpoint was taken."""
        self._model.load_state_dict(state.model)
        self._optimizer.load_state_dict(state.optimizer)
        set_random_states(state.rng)
        self.epoch, self.step, self.history = state.epoch, state.step, state.history
        self._sums = {**_no_sums(), **state.sums}
        self._batches.load_state_dict(state.loader)
        if self.step == self.epoch * self._epoch_steps:
            self._batches.set_epoch(self.epoch)

    def fit(self) -> None:
        """Train to the last epoch, with a checkpoint after each.

        Raises:
            NonFiniteLossError: Nothing is saved then: the last checkpoint is the last good state.
            StopRequested: A signal came; the state up to it is saved.
        """
        left = self._settings.epochs * self._epoch_steps - self.step
        for batch in track(self._stream(), total=left, label="train"):
            if self.step == 0:
                self._on_first_batch(batch)
            self._train_on(batch)
            if self.step % self._epoch_steps == 0:
                self._end_epoch()
                self._save()
            elif time.monotonic() - self._saved > self._settings.checkpoint_every_s:
                self._save()
            if self._stop.requested:
                raise StopRequested(self._stop.requested, self._save())

    def _stream(self) -> Iterator[tarpon.Batch]:
        """All batches of all epochs left; the time spent waiting for each is added up."""
        for _ in range(self.epoch, self._settings.epochs):
            batches = iter(self._batches)
            while True:
                start = time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    break
                self._sums["wait_s"] += time.perf_counter() - start
                yield batch

    def _train_on(self, batch: tarpon.Batch) -> None:
        start = time.perf_counter()
        lr = learning_rate(self._settings, self.step, self._epoch_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._model.train()
        image, label = to_device(batch, self._device)
        logits = self._model(image)
        loss = nn.functional.cross_entropy(
            logits, label, label_smoothing=self._settings.label_smoothing
        )
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteLossError(_bad_loss(value, self.step, self.epoch, batch))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self.step += 1
        self._metrics.add(self.step, {"train/step_loss": value, "train/lr": lr})
        sums = self._sums
        sums["loss"] += value * len(label)
        sums["correct"] += (logits.argmax(1) == label).sum().item()
        sums["samples"] += len(label)
        sums["step_s"] += time.perf_counter() - start

    def _end_epoch(self) -> None:
        sums = self._sums
        spent_s = sums["step_s"] + sums["wait_s"]
        row = {
            "epoch": float(self.epoch + 1),
            "train/loss": sums["loss"] / sums["samples"],
            "train/accuracy": sums["correct"] / sums["samples"],
            "train/images_per_s": sums["samples"] / spent_s,
            "train/data_wait_percent": 100 * sums["wait_s"] / spent_s,
        }
        if self._validation is not None:
            row |= validate(self._model, self._validation, self._device)
        self._metrics.add(self.step, row)
        self.history.append(row)
        self._sums = _no_sums()
        self.epoch += 1
        _log.info(
            "epoch %d/%d: loss %.3f, val accuracy %s, %.0f images/s, data wait %.0f %%",
            self.epoch, self._settings.epochs, row["train/loss"],
            f"{row['val/accuracy']:.4f}" if "val/accuracy" in row else "-",
            row["train/images_per_s"], row["train/data_wait_percent"],
        )  # fmt: skip

    def _save(self) -> str:
        path = self._checkpoints.save(
            State(
                run_id=self._run_id,
                epoch=self.epoch,
                step=self.step,
                sums=self._sums,
                history=self.history,
                model=self._model.state_dict(),
                optimizer=self._optimizer.state_dict(),
                loader=self._batches.state_dict(),
                rng=random_states(),
                mlflow=self._metrics.pending(),
            )
        )
        self._saved = time.monotonic()
        return path


def validate(model: nn.Module, batches: tarpon.Loader, device: str) -> dict[str, float]:
    """Loss (without label smoothing) and accuracy over one pass."""
    loss = correct = samples = 0.0
    model.eval()
    with torch.inference_mode():
        for batch in batches:
            image, label = to_device(batch, device)
            logits = model(image)
            loss += nn.functional.cross_entropy(logits, label, reduction="sum").item()
            correct += (logits.argmax(1) == label).sum().item()
            samples += len(label)
    return {"val/loss": loss / samples, "val/accuracy": correct / samples}


def to_device(batch: Mapping[str, Any], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch as the network wants it: `float32[B, 3, S, S]` 0..255, channels last, and labels."""
    image = torch.from_numpy(batch["image"]).to(device).permute(0, 3, 1, 2).float()
    return image, torch.from_numpy(batch["label"]).to(device)


def learning_rate(settings: Settings, step: int, epoch_steps: int) -> float:
    """Linear warm-up to `lr`, then a cosine to zero: a pure function, so there is no state."""
    total = settings.epochs * epoch_steps
    warmup = min(settings.warmup_epochs * epoch_steps, total / 2)
    if step < warmup:
        return settings.lr * (step + 1) / (math.ceil(warmup) + 1)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def _adamw(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """Weight decay for matrices and filters; none for biases and normalisation."""
    weights = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": weights, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr)


def _no_sums() -> dict[str, float]:
    return dict.fromkeys(("loss", "correct", "samples", "step_s", "wait_s"), 0.0)


def _bad_loss(value: float, step: int, epoch: int, batch: tarpon.Batch) -> str:
    keys = list(batch.sample_keys)
    more = f" and {len(keys) - NAMED_KEYS} more" if len(keys) > NAMED_KEYS else ""
    return (
        f"train: the loss became {value} at step {step} (epoch {epoch + 1}), expected a finite "
        f"number; sample keys {', '.join(keys[:NAMED_KEYS])}{more}; lower train.lr or look at "
        "these samples; the last checkpoint is kept"
    )
