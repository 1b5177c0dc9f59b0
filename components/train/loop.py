"""The training loop: batches in, steps, metrics and checkpoints out.

It does not know where the dataset lies, how a model is logged or which run it writes to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from components.progress import track
from components.run_log import RunLog
from components.train import memory
from components.train.batches import Stream
from components.train.checkpoint import Checkpoints, State
from components.train.distributed import Ranks
from components.train.mix import Targets, mix
from components.train.optim import Average, StepGuard, build_optimizer, learning_rate
from components.train.settings import Settings
from components.train.stop import StopRequested, StopSignals
from components.train.watch import LoaderWatch

_log = logging.getLogger(__name__)

NAMED_KEYS = 8
"""How many sample keys of a bad batch an error spells out."""

LAG = {"cpu": 0, "cuda": 1}
"""Steps by which a step's loss is read late: the GPU has the next one in its queue by then."""


class NonFiniteLossError(ArithmeticError):
    """The loss or the gradient became nan or infinite; the message names that batch's samples."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one step came to, read once the device has got there.

    Args:
        totals: Over all ranks: loss times samples, correct, gradient norm times ranks, then how
            many ranks heard SIGTERM, heard SIGINT, and want a checkpoint.
        loss, indices: Of this rank, for the message should they be bad.
        loader: The train stream's state before the step's batch, to go back to then.
    """

    step: int
    lr: float
    totals: torch.Tensor
    done: torch.cuda.Event | None
    loss: torch.Tensor
    indices: torch.Tensor
    loader: dict[str, Any]

    def read(self) -> list[float]:
        """The totals; waits for the device to have come as far."""
        if self.done is not None:
            self.done.synchronize()
        return self.totals.tolist()


class Trainer:
    """One rank of one training, from its start or from a checkpoint to its last epoch.

    Args:
        network: On `device` already, the same weights on every rank.
        batches: This rank's part of the train split; its length is the steps of an epoch.
        validation: Its part of the val split, or None where there is none.
        metrics, checkpoints, watch: None on every rank but the first.
        key_of: The key of a train sample by its index.
        on_first_batch: Called once per training with the very first images and labels, as the
            network is fed them.
        began_s: When the command was started, to say how long the first step took to come.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        settings: Settings,
        device: str,
        precision: str,
        ranks: Ranks,
        batches: Stream,
        validation: Stream | None,
        metrics: RunLog | None,
        checkpoints: Checkpoints | None,
        watch: LoaderWatch | None,
        classes: list[str],
        stop: StopSignals,
        key_of: Callable[[int], str],
        on_first_batch: Callable[[torch.Tensor, torch.Tensor], None],
        began_s: float | None = None,
    ) -> None:
        self._settings, self._ranks, self._stop = settings, ranks, stop
        self._batches, self._validation = batches, validation
        self._metrics, self._checkpoints, self._watch = metrics, checkpoints, watch
        self._classes = classes
        self._key_of, self._on_first_batch = key_of, on_first_batch
        self._began_s = began_s
        self._kind = device.partition(":")[0]
        self._bfloat16 = precision == "bfloat16"
        self._network = network
        self._average = Average(network, settings.ema_decay) if settings.ema_decay else None
        self._optimizer = build_optimizer(network, settings)
        self._guard = StepGuard(network, self._optimizer)
        if settings.compile:
            network.compile()  # in place: names of weights stay, and so do checkpoints
        self._parallel = ranks.parallel(network)
        self._epoch_steps = len(batches)
        self._pending: deque[Outcome] = deque()
        self._wanted = ""  # "save", or the signal that all ranks agreed to stop for
        self.epoch = 0
        self.step = 0
        self.history: list[dict[str, float]] = []
        self._sums = _no_sums()
        self._saved = time.monotonic()

    @property
    def model(self) -> nn.Module:
        """What the training is for: the averaged network where there is one."""
        return self._average.model if self._average else self._network

    def restore(self, state: State) -> None:
        """Go to where a checkpoint was taken."""
        self._network.load_state_dict(state.model)
        if self._average:
            self._average.model.load_state_dict(state.average or state.model)
        groups = [{**group} for group in self._optimizer.param_groups]
        self._optimizer.load_state_dict(state.optimizer)
        for group, asked in zip(self._optimizer.param_groups, groups, strict=True):
            group.update(asked)  # weight decay and the like are those of the settings
        self.epoch, self.step, self.history = state.epoch, state.step, state.history
        self._sums = {**_no_sums(), **state.sums}
        self._batches.load_state_dict(state.loader)
        if self.step == self.epoch * self._epoch_steps:
            self._batches.set_epoch(self.epoch)

    def save_start(self) -> None:
        """Have a checkpoint written of where it begins, with the run to go on in after a kill."""
        if self._checkpoints is not None:
            self._checkpoints.save(self._state(self._batches.state_dict()))

    def fit(self) -> None:
        """Train to the last epoch, with a checkpoint after each.

        Raises:
            NonFiniteLossError: The state before that step is saved, if its weights are numbers.
            OutOfMemoryError: A step does not fit.
            RanksError: Another rank ended.
            StopRequested: A signal came; the state up to it is saved.
        """
        stream = self._stream()
        if self._ranks.first:
            left = self._settings.epochs * self._epoch_steps - self.step
            stream = track(stream, total=left, label="train")
        with self._explained():
            if self.step == (self.epoch + 1) * self._epoch_steps:  # stopped while it validated
                self._end_epoch()
                self._batches.set_epoch(self.epoch)
                self._save()
            for batch, before in stream:
                self._train_on(batch, before)
                ends = self.step % self._epoch_steps == 0
                if self._watch is not None:
                    self._watch.look(self.step, now=ends)
                if ends:
                    self._settle(0)
                    self._end_epoch()
                    self._save()
                elif self._wanted == "save":
                    self._settle(0)
                    self._save()
                if self._must_stop():
                    self._settle(0)
                    self._end_for(self._must_stop())

    def _stream(self) -> Iterator[tuple[Mapping[str, torch.Tensor], dict[str, Any]]]:
        """All batches of all epochs left, each with the stream's state before it.

        The time spent waiting for them is added up.
        """
        for _ in range(self.epoch, self._settings.epochs):
            batches = iter(self._batches)
            while True:
                before, start = self._batches.state_dict(), time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    break
                self._sums["wait_s"] += time.perf_counter() - start
                yield batch, before

    # ---- one step ------------------------------------------------------------------------------

    def _train_on(self, batch: Mapping[str, torch.Tensor], before: dict[str, Any]) -> None:
        start = time.perf_counter()
        settings = self._settings
        torch.manual_seed(step_seed(settings.seed, self.step, self._ranks.rank))
        lr = learning_rate(settings, self.step, self._epoch_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        image, targets = mix(
            batch["image"], batch["label"], settings, epoch=self.epoch, step=self.step
        )
        if self.step == 0:
            self._on_first_batch(image, targets.label)
        self._optimizer.zero_grad(set_to_none=True)
        statistics = self._guard.statistics()
        loss, correct = self._accumulate(image, targets)
        limit = settings.clip_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self._network.parameters(), limit)
        self.step += 1
        totals = self._totals(loss, correct, norm, len(batch["indices"]))
        with memory.explained(partial(memory.network_too_large, settings)):
            self._guard.step(totals, statistics)
        if self._average:
            self._average.update(self.step, self._guard.flag)
        self._note(
            totals, step=self.step, lr=lr, loss=loss, indices=batch["indices"], loader=before
        )
        self._settle(LAG[self._kind])
        self._sums["step_s"] += time.perf_counter() - start

    def _accumulate(
        self, image: torch.Tensor, targets: Targets
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of one step, part by part; mean loss and count of hits on this rank."""
        parts = self._settings.accumulate
        self._parallel.train()
        losses, hits = [], []
        chunks = zip(image.chunk(parts), targets.chunks(parts), strict=True)
        for number, (part, labels) in enumerate(chunks, start=1):
            with contextlib.ExitStack() as stack:
                if self._ranks.world_size > 1 and number < parts:
                    stack.enter_context(self._parallel.no_sync())  # once per step is enough
                logits = forward(self._parallel, part, bfloat16=self._bfloat16)
                loss = labels.loss(logits, self._settings.label_smoothing) / parts
                loss.backward()
            losses.append(loss.detach())
            hits.append(labels.correct(logits.detach()))
        return torch.stack(losses).sum(), torch.stack(hits).sum()

    def _totals(
        self, loss: torch.Tensor, correct: torch.Tensor, norm: torch.Tensor, samples: int
    ) -> torch.Tensor:
        """What the step came to, summed over the ranks: `Outcome.totals`."""
        due = time.monotonic() - self._saved > self._settings.checkpoint_every_s
        saves = self._checkpoints is not None and not self._checkpoints.busy and due
        heard = self._stop.requested
        flags = [heard == "SIGTERM", heard == "SIGINT", saves]
        counts = [torch.full_like(loss, float(flag)) for flag in flags]
        totals = torch.stack([loss * samples, correct.to(loss.dtype), norm, *counts])
        return self._ranks.add(totals, f"what step {self.step} came to on every rank")

    def _note(self, totals: torch.Tensor, **step: Any) -> None:
        """Put what the step came to on its way to the host."""
        done = None
        if self._kind == "cuda":
            totals = totals.to("cpu", non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        self._pending.append(Outcome(totals=totals, done=done, **step))

    def _settle(self, lag: int) -> None:
        """Look at the outcome of all but the newest `lag` steps."""
        while len(self._pending) > lag:
            outcome = self._pending.popleft()
            loss, correct, norm, sigterm, sigint, save = outcome.read()
            samples = len(outcome.indices) * self._ranks.world_size
            norm /= self._ranks.world_size
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise NonFiniteLossError(self._bad_step(outcome, loss / samples, norm))
            sums = self._sums
            sums["loss"] += loss
            sums["correct"] += correct
            sums["samples"] += samples
            self._wanted = "SIGTERM" if sigterm else "SIGINT" if sigint else "save" if save else ""
            if self._metrics is not None:
                values = {"train/step_loss": loss / samples, "train/lr": outcome.lr,
                          "train/grad_norm": norm}  # fmt: skip
                self._metrics.add(outcome.step, values)
            if self._began_s is not None:
                _log.info("first step after %.1f s", time.time() - self._began_s)
                self._began_s = None

    def _bad_step(self, outcome: Outcome, loss: float, norm: float) -> str:
        """Go back to before a step that was refused, and save that; the message for it."""
        mine = (bool(outcome.loss.isfinite()), outcome.indices.tolist())
        ranks = self._ranks.gather(mine, "the samples of a bad step")
        ranks = ranks[self._ranks.rank :] + ranks[: self._ranks.rank]  # its own come first
        bad = [index for finite, indices in ranks for index in indices if not finite]
        bad = bad or [index for _, indices in ranks for index in indices]
        more = f" and {len(bad) - NAMED_KEYS} more" if len(bad) > NAMED_KEYS else ""
        keys = ", ".join(self._key_of(index) for index in bad[:NAMED_KEYS])
        what, value = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
        self.step = outcome.step - 1  # the guard took neither this one nor those queued behind it
        return (
            f"train: the {what} became {value} at step {outcome.step} (epoch {self.epoch + 1}), "
            f"expected a finite number; look at the samples {keys}{more}; "
            f"{self._way_out(outcome.loader)}"
        )

    def _way_out(self, loader: dict[str, Any]) -> str:
        """Save what there is to save; where the last good state is and what to do, on all ranks.

        It takes no other checkpoint's place: finite weights may be beyond all good as well.
        """
        said, url = "", ""
        if self._checkpoints is not None:
            if not self._weights_are_numbers():
                said = "the weights are no numbers any more and are not saved"
            elif self.step:
                said = "that step was not taken, and the state before it is saved"
                self._checkpoints.save(self._state(loader), beside=True)
            else:
                said = "it was the first step"
            self._checkpoints.wait()
            url = self._checkpoints.newest()
        said, url = self._ranks.share((said, url), "where the last good checkpoint is")
        if not url:
            return (
                f"{said}, and there is no checkpoint; lower train.lr or set train.clip_norm, and "
                "begin again"
            )
        return (
            f"{said}; go on with train.start_from={url} and a lower train.lr or a "
            "train.clip_norm, or begin again without it"
        )

    def _weights_are_numbers(self) -> bool:
        finite = [weight.isfinite().all() for weight in self._network.parameters()]
        return bool(torch.stack(finite).all())

    # ---- ends of epochs, checkpoints, stops ------------------------------------------------------

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
            row |= validate(
                self.model,
                self._validation,
                self._ranks,
                bfloat16=self._bfloat16,
                before_each=self._stop_if_asked,
            )
        if self._metrics is not None:
            self._metrics.add(self.step, row)
        self.history.append(row)
        self._sums = _no_sums()
        self.epoch += 1
        _log.info(
            "epoch %d/%d: loss %.3f, val accuracy %s, %.0f images/s, data wait %.1f %%",
            self.epoch, self._settings.epochs, row["train/loss"],
            f"{row['val/accuracy']:.4f}" if "val/accuracy" in row else "-",
            row["train/images_per_s"], row["train/data_wait_percent"],
        )  # fmt: skip

    def _save(self) -> str:
        """Rank 0: have a checkpoint written; returns its URL, on the other ranks nothing.

        Raises:
            NonFiniteLossError: On all ranks: the weights are no numbers, so nothing is written.
        """
        self._wanted, self._saved = "", time.monotonic()
        state = self._batches.state_dict()
        if not self._weights_are_numbers():
            raise NonFiniteLossError(
                f"train: the weights became nan or infinite in step {self.step} (epoch "
                f"{self.epoch + 1}), expected finite numbers; {self._way_out(state)}"
            )
        if self._checkpoints is None:
            return ""
        return self._checkpoints.save(self._state(state))

    def _state(self, loader: dict[str, Any]) -> State:
        assert self._metrics is not None  # rank 0, which alone saves
        return State(
            run_id=self._metrics.run_id,
            settings=self._settings.identity(),
            classes=self._classes,
            epoch=self.epoch,
            step=self.step,
            sums=self._sums,
            history=self.history,
            model=self._network.state_dict(),
            average=self._average.model.state_dict() if self._average else None,
            optimizer=self._optimizer.state_dict(),
            loader=loader,
            mlflow=self._metrics.pending(),
        )

    def _must_stop(self) -> str:
        """The signal to stop for, at the same step on every rank; empty: go on."""
        alone = self._stop.requested if self._ranks.world_size == 1 else ""
        return alone or (self._wanted if self._wanted != "save" else "")

    def _stop_if_asked(self) -> None:
        """Between two batches of the validation; all ranks stop at the same one."""
        heard = [self._stop.requested == name for name in ("SIGTERM", "SIGINT")]
        flags = self._ranks.add(torch.tensor(heard, dtype=torch.float32), "whether to stop")
        if flags.any():
            self._end_for("SIGTERM" if flags[0] else "SIGINT")

    def _end_for(self, signal_name: str) -> None:
        path = self._ranks.share(self._save(), "where the last checkpoint is")
        what = f"write the checkpoint of step {self.step}"
        if self._checkpoints is not None:
            self._checkpoints.wait()
            self._ranks.say_done(what)
        self._ranks.wait_for(what)
        raise StopRequested(signal_name, path)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of torch that a setting or another rank is to blame for, said in our words."""
        try:
            with memory.explained(self._too_large):
                yield
        except RuntimeError as error:
            text = str(error)
            if isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text:
                raise self._ranks.lost(f"the gradients of step {self.step + 1}", error) from error
            raise

    def _too_large(self, text: str) -> str:
        samples = self._settings.split(self._ranks.world_size) // self._settings.accumulate
        return memory.step_too_large(self._settings, self.step + 1, samples, self._bfloat16, text)


def forward(network: nn.Module, image: torch.Tensor, *, bfloat16: bool) -> torch.Tensor:
    """Logits, `float32[B, classes]`, whatever the network calculates in."""
    with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=bfloat16):
        logits: torch.Tensor = network(image)
    return logits.float()


def validate(
    network: nn.Module,
    batches: Stream,
    ranks: Ranks,
    *,
    bfloat16: bool,
    before_each: Callable[[], None],
) -> dict[str, float]:
    """Loss (without label smoothing) and accuracy over one pass, every sample counted once."""
    ranks.share_buffers(network)
    network.eval()
    sums: torch.Tensor | float = 0.0
    with torch.inference_mode():
        for batch in batches:
            before_each()
            logits = forward(network, batch["image"], bfloat16=bfloat16)
            losses = nn.functional.cross_entropy(logits, batch["label"], reduction="none")
            hits = (logits.argmax(1) == batch["label"]).float()
            columns = torch.stack([losses, hits, torch.ones_like(losses)]).double()
            sums = sums + (columns * batch["valid"]).sum(1)
        assert isinstance(sums, torch.Tensor)  # a stream without batches cannot be made
        loss, correct, samples = ranks.add(sums, "the validation's sums").tolist()
    return {"val/loss": loss / samples, "val/accuracy": correct / samples}


def step_seed(seed: int, step: int, rank: int) -> int:
    """Torch's seed for one step on one rank, so that a resumed one draws what it would have."""
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _no_sums() -> dict[str, float]:
    return dict.fromkeys(("loss", "correct", "samples", "step_s", "wait_s"), 0.0)
