"""The machine's load beside a run's metrics: CPU, memory, disk, network, and GPUs where there are.

What is measured, and its names (`system/gpu_0_utilization_percentage`), are MLflow's own, so its
page of system metrics shows them. MLflow's own thread is not used: it asks the server before every
sample and ends for good the first time that it is away.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import warnings
from types import TracebackType
from typing import Any, Self

from components.run_log import RunLog

EVERY_S = 10.0

_log = logging.getLogger(__name__)


class SystemMetrics:
    """Samples the machine for the length of a `with` and notes it in a RunLog.

    All GPUs that the driver shows are measured, so one rank of a machine is enough. On several
    machines set MLFLOW_SYSTEM_METRICS_NODE_ID, which becomes a part of the names.
    """

    def __init__(self, log: RunLog, *, every_s: float = EVERY_S) -> None:
        self._run_log = log
        self._every_s = every_s
        self._stop = threading.Event()
        self._monitors = _monitors()
        node = os.environ.get("MLFLOW_SYSTEM_METRICS_NODE_ID")
        self._prefix = f"system/{node}/" if node else "system/"
        self._thread = threading.Thread(target=self._work, name="system-metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def sample(self) -> dict[str, float]:
        """One sample now, by metric name."""
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found |= {self._prefix + k: float(v) for k, v in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return found

    def _work(self) -> None:
        """A sample every so often and one at the end, which is all that a short run has."""
        try:
            self.sample()  # psutil tells the load since this thread's call before; the first says 0
            ended = False
            while not ended:
                ended = self._stop.wait(self._every_s)
                self._run_log.add_sampled(self.sample())
        except Exception as error:  # a driver that went away is no reason to stop a training
            _log.warning("system metrics end here: %s: %s", type(error).__name__, error)


def _monitors() -> list[Any]:
    """MLflow's monitors of what this machine has; none without psutil."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a GPU library warns that it has moved
        try:
            from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
            from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
            from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
            from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
        except ImportError as error:
            _log.warning("no system metrics: %s; install psutil and nvidia-ml-py", error)
            return []
        found: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with contextlib.suppress(Exception):  # no GPU, no driver or no nvidia-ml-py
            found.append(GPUMonitor())
    return found
