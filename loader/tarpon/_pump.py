"""One thread that makes things ahead of the one who takes them, in order. It knows no torch.

What is made, and from what, is the business of `make`; when one fails, those before it still come.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_NUDGE_S = 0.05


class Pump(Generic[T]):
    """Calls `make` in a thread, ahead of `take()`.

    Args:
        make: Called again and again, in the thread only. What it raises, `take()` raises in its
            place; then the pump is over.
        room: Most that is made, or in the making, and not yet taken.
        patient: An error of this class counts only if somebody waited for the result from the
            start; otherwise `make` is called again.
        interrupt: May be called from any thread, to make a `make` that waits return or raise.

    Attributes:
        stopped: Somebody began to stop it.
    """

    def __init__(
        self,
        make: Callable[[], T],
        room: int,
        *,
        patient: type[Exception],
        interrupt: Callable[[], None],
    ) -> None:
        self._make, self._room = make, room
        self._patient, self._interrupt = patient, interrupt
        self._made: deque[T] = deque()
        self._error: BaseException | None = None
        self._awaited = False  # somebody is inside take()
        self._urgent = False  # and waits for what is being made
        self.stopped = False
        self._changed = threading.Condition()
        self._pid = os.getpid()
        # A daemon, so that the end of the program does not wait for who forgot to stop it.
        self._thread = threading.Thread(target=self._run, name="tarpon-pump", daemon=True)
        self._thread.start()

    def take(self) -> T:
        """The oldest thing made and not taken; waits for it. Ctrl-C interrupts the wait.

        Raises:
            RuntimeError: The pump was stopped, by another thread.
            Otherwise what `make` raised.
        """
        with self._changed:
            self._awaited = True
            try:
                while not (self._made or self._error or self.stopped):
                    self._changed.wait()
            finally:
                self._awaited = False
            if self._made:
                self._changed.notify_all()
                return self._made.popleft()
            raise self._error or RuntimeError("the pump was stopped")

    def ready(self) -> int:
        """How many are made and not taken."""
        return len(self._made)

    def stop(self) -> None:
        """Drop what was made, and return when the thread has ended. Safe to call again."""
        if os.getpid() != self._pid:
            return  # a child after fork() has no such thread, and maybe a lock that nobody holds
        with self._changed:
            self.stopped = True
            self._changed.notify_all()
        if threading.current_thread() is self._thread:
            return  # garbage was collected there; it ends after this `make`
        while self._thread.is_alive():
            self._made.clear()  # memory that `make` may wait for
            with contextlib.suppress(Exception):
                self._interrupt()
            self._thread.join(_NUDGE_S)  # again: it may have begun to wait only now
        self._made.clear()

    def _run(self) -> None:
        while self._wait_for_room():
            try:
                made = self._make()
            except BaseException as error:
                if isinstance(error, self._patient) and not self._urgent:
                    continue
                self._fail(error)
                return
            with self._changed:
                self._made.append(made)
                self._changed.notify_all()
            del made  # whoever takes it is the only one to hold it

    def _wait_for_room(self) -> bool:
        with self._changed:
            while not self.stopped and len(self._made) >= self._room:
                self._changed.wait()
            # Who was served already, and has not woken up yet, does not wait for the next one.
            self._urgent = self._awaited and not self._made
            return not self.stopped

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()
