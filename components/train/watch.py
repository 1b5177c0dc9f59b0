"""Tells at an interval what the loader did, in the run and in the log, and what to do about it."""

from __future__ import annotations

import logging
import time

from components.diagnosis import diagnose
from components.loader_metrics import loader_metrics
from components.run_log import RunLog
from components.train.batches import Stream

EVERY_S = 60.0

_log = logging.getLogger(__name__)


class LoaderWatch:
    """Looks at a stream's `stats()` every so often, and at the ends of epochs.

    Args:
        threads: Of the loader.
        every_s: Seconds between two looks within an epoch.
    """

    def __init__(
        self, batches: Stream, metrics: RunLog, *, threads: int, every_s: float = EVERY_S
    ) -> None:
        self._batches, self._metrics = batches, metrics
        self._threads, self._every_s = threads, every_s
        self._before = batches.stats()
        self._looked = time.monotonic()
        self._kind = ""

    def look(self, step: int, *, now: bool = False) -> None:
        """Note what happened since the last look, if it is time or has to be `now`.

        The log gets the diagnosis when it is another one than the last.
        """
        elapsed_s = time.monotonic() - self._looked
        if elapsed_s < self._every_s and not now:
            return
        before, after = self._before, self._batches.stats()
        self._before, self._looked = after, time.monotonic()
        self._metrics.add(step, loader_metrics(before, after, elapsed_s=elapsed_s))
        found = diagnose(
            before,
            after,
            seconds=elapsed_s,
            wait_s=after["wait_s"] - before["wait_s"],
            threads=self._threads,
        )
        if found.kind != self._kind:
            _log.info("loader: %s", found.text)
        self._kind = found.kind
