"""Checkpoints of one training: whole or absent, the newest few kept, written in the background.

This module does not know what is in one beyond tensors and plain values.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import os
import re
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import torch

from components.store import Store, StoreError, split_url
from components.train.settings import Settings

START = "checkpoint-000000000.pt"
"""Holds no training yet, but its MLflow run: whoever was killed before the next goes on in that."""

_NAME = re.compile(r"^checkpoint-(\d{9})\.pt$")
_log = logging.getLogger(__name__)


SAME = ("model", "optimizer", "batch_size", "seed")
"""Settings that a training shares with the one whose checkpoint it starts from: what is in it would
not fit otherwise, or its step would be another place in the epoch."""


class CheckpointMismatchError(ValueError):
    """A checkpoint of another network or other classes; the message names both."""


@dataclasses.dataclass(slots=True, kw_only=True)
class State:
    """Everything a training needs to go on as if nothing had happened.

    Random numbers are not in it: every step seeds its own from the training's seed and its number.
    Nor is the learning rate, which follows from the step.

    Args:
        run_id: The MLflow run that this training logs to; empty: a new one is to be made.
        settings: `Settings.identity` of the training.
        classes: What the network's outputs mean.
        epoch: The epoch the next step belongs to.
        step: Optimiser steps taken so far, over all epochs.
        sums: What the running epoch has added up so far; empty between epochs.
        history: One row of metrics per finished epoch.
        model, optimizer: Their state dicts.
        average: That of the weights' running average; None without one.
        loader: The train stream's state dict.
        mlflow: What the run had not taken yet: `RunLog.pending`.
    """

    run_id: str
    settings: dict[str, Any]
    classes: list[str]
    epoch: int
    step: int
    sums: dict[str, float]
    history: list[dict[str, float]]
    model: dict[str, Any]
    average: dict[str, Any] | None
    optimizer: dict[str, Any]
    loader: dict[str, Any]
    mlflow: list[str] = dataclasses.field(default_factory=list)

    def require_classes(self, classes: list[str], where: str) -> None:
        """Refuse to go on with other classes than those it was trained on.

        Raises:
            CheckpointMismatchError: Names how many, and the first that differs.
        """
        if self.classes == classes:
            return
        pairs = zip([*self.classes, None], [*classes, None], strict=False)
        mine, other = next(pair for pair in pairs if pair[0] != pair[1])
        raise CheckpointMismatchError(
            f"{where}: found a checkpoint of {len(self.classes)} classes, expected the "
            f"{len(classes)} of the dataset; the first that differs is {mine!r} against {other!r}; "
            "set train.fresh=true to begin again, or choose another output"
        )


class Checkpoints:
    """The checkpoints in one folder, local or on S3, named by the step they were taken after.

    `save` copies and returns; one thread writes, one checkpoint at a time. Leaving the `with`
    block waits for it.

    Args:
        keep: The newest so many stay: should the newest turn out damaged, there is the one before.
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 2) -> None:
        self._store = Store(folder)
        self._keep = keep
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.wait()
        except Exception:
            if kind is None:
                raise
            _log.exception("the last checkpoint was not written")  # beside what ended the training
        finally:
            self._writer.shutdown()

    @property
    def busy(self) -> bool:
        """Whether one is still being written."""
        return self._writing is not None and not self._writing.done()

    def save(self, state: State, *, beside: bool = False) -> str:
        """Have one written, atomically, then drop all but it and those before; returns its URL.

        Tensors are copied before this returns. Waits for the one before, if it is not written yet.

        Args:
            beside: All the others stay.

        Raises:
            StoreError: The one before could not be written.
        """
        self.wait()
        name = f"checkpoint-{state.step:09d}.pt"
        fields = {f.name: _copied(getattr(state, f.name)) for f in dataclasses.fields(state)}
        self._writing = self._writer.submit(self._write, name, fields, drop=not beside)
        return self._store.url(name)

    def wait(self) -> None:
        """Wait for the one being written.

        Raises:
            StoreError: It could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, name: str, fields: dict[str, Any], *, drop: bool) -> None:
        with self._store.open_temp(name) as file:
            torch.save(fields, file)
        if not drop:
            return
        names = self._newest_first()
        # One of a later step was damaged, or it would have been gone on from.
        for other in names[: names.index(name)] + names[names.index(name) + self._keep :]:
            self._store.remove(other)

    def load(self, name: str) -> State:
        """One of them by its name; tensors on the CPU."""
        data = io.BytesIO(self._store.read_bytes(name))
        return State(**torch.load(data, map_location="cpu", weights_only=True))

    def load_newest(self) -> tuple[str, State] | None:
        """The newest one that can be read, and its name; a damaged one is passed over, and said.

        Raises:
            StoreError: The store does not answer.
        """
        for name in self._newest_first():
            try:
                return name, self.load(name)
            except OSError:
                raise
            except Exception as error:  # torch raises half a dozen kinds for a cut-off file
                _log.warning(
                    "%s: cannot be read (%s: %s), expected a checkpoint; using the one before",
                    self._store.url(name),
                    type(error).__name__,
                    str(error).splitlines()[0] if str(error) else "",
                )
        return None

    def newest(self) -> str:
        """The URL of the newest one with a step in it, or an empty string."""
        found = [name for name in self._newest_first() if name != START]
        return self._store.url(found[0]) if found else ""

    def url(self, name: str) -> str:
        """The full URL of one of them."""
        return self._store.url(name)

    def clear(self) -> None:
        """Remove all of them."""
        for name in self._newest_first():
            self._store.remove(name)

    def _newest_first(self) -> list[str]:
        return sorted((name for name in self._store.list() if _NAME.match(name)), reverse=True)


def load(url: str) -> State:
    """One checkpoint by its URL; tensors on the CPU."""
    store, name = split_url(url)
    return Checkpoints(store.root).load(name)


def start_from(url: str, settings: Settings, classes: list[str]) -> State:
    """The state of another training, for one of its own run that goes on there.

    Raises:
        CheckpointMismatchError: It is no checkpoint, or of a training that differs in `SAME`.
        StoreError: It is not there.
    """
    where = f"train.start_from={url}"
    try:
        state = load(url)
    except StoreError:
        raise
    except Exception as error:  # torch raises half a dozen kinds for what is no checkpoint
        raise CheckpointMismatchError(
            f"{where}: cannot be read ({type(error).__name__}), expected a checkpoint of a "
            "training, checkpoint-<step>.pt in its folder"
        ) from error
    state.require_classes(classes, where)
    for key in SAME:
        found, mine = state.settings[key], getattr(settings, key)
        if found != mine:
            raise CheckpointMismatchError(
                f"{where}: found a checkpoint of train.{key}={found!r}, expected {mine!r} as in "
                f"this training; set train.{key}={found}, or train.start_from=null to begin again"
            )
    return dataclasses.replace(state, run_id="", mlflow=[])


def _copied(value: Any) -> Any:
    """The same with every tensor copied to memory that no later step changes."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value
