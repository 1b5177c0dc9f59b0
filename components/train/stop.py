"""SIGTERM and Ctrl-C: heard between two steps, or at once where nothing is lost by it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, Self

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}
"""What the command answers after it was stopped and has saved."""


class StopRequested(KeyboardInterrupt):
    """SIGTERM or Ctrl-C arrived; what is to be gone on from was written before this was raised.

    Args:
        checkpoint: Its URL; empty where no step was trained yet.
    """

    def __init__(self, signal_name: str, checkpoint: str) -> None:
        on = f" to go on from {checkpoint}" if checkpoint else ""
        super().__init__(f"stopped by {signal_name}; run the same command again{on}")
        self.signal_name = signal_name


class StopSignals:
    """Turns the first SIGTERM or SIGINT into a flag that the loop looks at between steps.

    Where there are no steps, but waits for the tracking server, it raises StopRequested instead:
    from `hear_at_once` until `hear_between_steps`.

    A second SIGTERM changes nothing, the training is stopping. A second Ctrl-C ends the waiting for
    a checkpoint or the tracking server.

    Args:
        patient: So does no second Ctrl-C: torchrun sends signals for each rank that ends, and
            kills by itself what takes too long.

    Outside the main thread, where Python allows no handlers, it hears nothing.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.requested = ""
        self._patient = patient
        self._at_once = False
        self._checkpoint = ""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
            self._hook, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._previous:
            sys.unraisablehook = self._hook

    def hear_at_once(self, checkpoint: str) -> None:
        """Raise StopRequested wherever the main thread is when a signal comes, or came before.

        Args:
            checkpoint: What the same command goes on from then.
        """
        self._checkpoint, self._at_once = checkpoint, True
        if self.requested:
            self._raise()

    def hear_between_steps(self) -> None:
        """Leave it to the loop to look at `requested`."""
        self._at_once = False

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        again = bool(self.requested)
        self.requested = self.requested or signal.Signals(number).name
        if again:
            if number == signal.SIGINT and not self._patient:
                self._raise()
        elif self._at_once:
            self._raise()

    def _on_unraisable(self, what: sys.UnraisableHookArgs) -> None:
        """Try again shortly: Python drops what is raised in `__del__` or in a weak reference's
        callback, of which every import has some."""
        if isinstance(what.exc_value, StopRequested):
            number, self.requested = signal.Signals[self.requested], ""
            threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
        else:
            self._hook(what)

    def _raise(self) -> None:
        raise StopRequested(self.requested, self._checkpoint)
