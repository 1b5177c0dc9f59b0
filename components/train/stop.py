"""SIGTERM and Ctrl-C, heard between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}
"""What the command answers after it was stopped and has saved."""


class StopRequested(KeyboardInterrupt):
    """SIGTERM or Ctrl-C arrived; a checkpoint was written before this was raised."""

    def __init__(self, signal_name: str, checkpoint: str) -> None:
        super().__init__(f"stopped by {signal_name}; run the same command again to go on from "
                         f"{checkpoint}")  # fmt: skip
        self.signal_name = signal_name


class StopSignals:
    """Turns the first SIGTERM or SIGINT into a flag that the loop looks at between steps.

    Args:
        patient: A second one changes nothing: torchrun sends one for each rank that ends, and
            kills by itself what takes too long. Otherwise a second one interrupts at once.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.requested = ""
        self._patient = patient
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
        if self.requested and not self._patient:
            raise KeyboardInterrupt
        self.requested = self.requested or signal.Signals(number).name
