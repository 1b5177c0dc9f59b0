"""Starts one process per device under torchrun's elastic agent, and answers with their exit code.

The agent runs in this process, so there is no second launcher to lose a signal in: SIGTERM and
Ctrl-C go to every rank, the ranks save and end, and the code they end with is the command's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import uuid
from collections.abc import Mapping
from types import FrameType
from typing import Any

from components.lifetime import end_with
from components.train.settings import Settings
from components.train.stop import EXIT_CODES

LAUNCHER = "TARPON_TRAIN_LAUNCHER_PID"


def processes_wanted(settings: Settings) -> int:
    """How many processes to start on this machine; 1: this one does the work itself."""
    if "RANK" in os.environ or settings.processes == 1:
        return 1  # torchrun has started this one already, or one is enough
    if settings.processes is not None:
        return settings.processes
    if settings.device == "cpu" or ":" in settings.device:
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def launch(arguments: list[str], processes: int) -> int:
    """Run this command once per rank with the same arguments; returns its exit code.

    One of 130 and 143 after a signal, once all ranks have saved; else 128 + n where signal n ended
    a rank, else the code of the first rank that failed.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we say it ourselves
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each rank sets its own share
    os.environ[LAUNCHER] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle="SIGQUIT",  # a rank's exit code is lost where the agent hears the others
    )
    before = {n: signal.signal(n, _pass_on) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        elastic_launch(config, sys.executable)("-m", "components.train", *arguments)
    except ChildFailedError as error:
        return _exit_code(error.failures)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def die_with_launcher() -> None:
    """Have the kernel end this rank when its launcher ends, be it by `kill -9`.

    Otherwise it would go on training, beside the ranks of the next attempt.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # a parent of 1 proves nothing: in a container that is the launcher itself
        end_with(int(os.environ.get(LAUNCHER) or os.getppid()))


def _pass_on(number: int, _frame: FrameType | None) -> None:
    import psutil

    ranks = psutil.Process().children()
    if not ranks:  # none was started yet, so there is nothing to save
        raise SystemExit(128 + number)
    for rank in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.send_signal(number)


def _exit_code(failures: Mapping[int, Any]) -> int:
    """The code to answer with; ranks that the agent ended because of another do not count."""
    stopped = {*EXIT_CODES.values(), -signal.SIGTERM, -signal.SIGINT}
    failed = {rank: it.exitcode for rank, it in failures.items() if it.exitcode not in stopped}
    if not failed:
        code = max(it.exitcode for it in failures.values())
        return int(code) if code > 0 else 128 - int(code)  # before a rank could listen
    # One that was killed before one that failed, maybe only because the other was gone.
    rank, code = min(failed.items(), key=lambda item: (item[1] > 0, item[0]))
    if code < 0:
        name = signal.Signals(-code).name
        sys.stderr.write(
            f"train: rank {rank} was ended by {name}, expected it to train to the end; run the "
            "same command again to go on from the last checkpoint (SIGKILL: memory, most often)\n"
        )
        return 128 - code
    return int(code)
