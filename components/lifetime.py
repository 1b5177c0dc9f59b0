"""A child process that does not outlive its parent, however that one ends."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def end_with(parent: int) -> None:
    """In a child: have the kernel kill this process when its parent ends, be it by `kill -9`.

    Args:
        parent: Process id of who is expected to be the parent; one that has ended already is
            noticed here.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
