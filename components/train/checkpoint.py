"""Checkpoints of one training: whole or absent, newest two kept.

This module does not know what is in one beyond tensors and plain values.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import os
import re
from typing import Any

import torch

from components.store import Store

KEEP = 2
"""How many are kept: should the newest turn out damaged, there is the one before."""

_NAME = re.compile(r"^checkpoint-(\d{9})\.pt$")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True, kw_only=True)
class State:
    """Everything a training needs to go on as if nothing had happened.

    Args:
        run_id: The MLflow run that this training logs to.
        epoch: The epoch the next step belongs to.
        step: Optimiser steps taken so far, over all epochs.
        sums: What the running epoch has added up so far; empty between epochs.
        history: One row of metrics per finished epoch.
        model, optimizer: Their state dicts.
        loader: The train loader's state dict.
        rng: Torch's random states, by device.
        mlflow: What the run had not taken yet: `RunLog.pending`.
    """

    run_id: str
    epoch: int
    step: int
    sums: dict[str, float]
    history: list[dict[str, float]]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    loader: dict[str, Any]
    rng: dict[str, Any]
    mlflow: list[str] = dataclasses.field(default_factory=list)


class Checkpoints:
    """The checkpoints in one folder, local or on S3, named by the step they were taken after."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._store = Store(folder)

    def save(self, state: State) -> str:
        """Write one atomically, then drop all but the newest `KEEP`; returns its URL."""
        name = f"checkpoint-{state.step:09d}.pt"
        with self._store.open_temp(name) as file:
            torch.save({f.name: getattr(state, f.name) for f in dataclasses.fields(state)}, file)
        for old in self._newest_first()[KEEP:]:
            self._store.remove(old)
        return self._store.url(name)

    def load_newest(self) -> State | None:
        """The newest one that can be read; a damaged one is named in the log and passed over.

        Raises:
            StoreError: The store does not answer.
        """
        for name in self._newest_first():
            data = io.BytesIO(self._store.read_bytes(name))
            try:
                return State(**torch.load(data, map_location="cpu", weights_only=True))
            except Exception as error:  # torch raises half a dozen kinds for a cut-off file
                _log.warning(
                    "%s: cannot be read (%s: %s), expected a checkpoint; using the one before",
                    self._store.url(name),
                    type(error).__name__,
                    str(error).splitlines()[0] if str(error) else "",
                )
        return None

    def newest(self) -> str:
        """The URL of the newest one, or an empty string."""
        found = self._newest_first()
        return self._store.url(found[0]) if found else ""

    def clear(self) -> None:
        """Remove all of them."""
        for name in self._newest_first():
            self._store.remove(name)

    def _newest_first(self) -> list[str]:
        return sorted((name for name in self._store.list() if _NAME.match(name)), reverse=True)


def random_states() -> dict[str, Any]:
    """Torch's random states now."""
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Go back to states taken by `random_states`; a device that is not here is passed over."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
