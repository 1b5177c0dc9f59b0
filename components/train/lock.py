"""Keeps a second process from training into the same folder; it does not know what lies there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

LOCK = "training.lock"

PATIENCE_S = 10.0
"""How long to wait for the one before, which may be ending."""

_HELD = (errno.EAGAIN, errno.EACCES)


class TrainingBusyError(RuntimeError):
    """Another process trains into this folder; the message names it."""


@contextlib.contextmanager
def alone(folder: str) -> Iterator[None]:
    """Hold a training's local folder; the kernel lets go of it however this process ends.

    On S3, and on file systems without locks, nothing is held.

    Raises:
        TrainingBusyError: Another process holds it for longer than PATIENCE_S.
    """
    if folder.startswith("s3://"):
        yield
        return
    descriptor = os.open(Path(folder, LOCK), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _wait_for(descriptor, folder)
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, folder: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD:
                return
            if time.monotonic() > until:
                pid = os.pread(descriptor, 20, 0).decode() or "unknown"
                raise TrainingBusyError(
                    f"{folder}: found process {pid} at work on this very training, expected none; "
                    "wait for it or end it, or choose another output"
                ) from None
            time.sleep(0.1)
        else:
            return
