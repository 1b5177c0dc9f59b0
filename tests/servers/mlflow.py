"""A real MLflow server over a SQLite database, for tests that take it away and give it back.

    with mlflow.running(folder) as server:
        ...                # server.url
        server.kill()      # SIGKILL to all of its processes
        server.start()     # the same port and database; seconds

A start takes some five seconds of one core: one server for a module of tests.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.servers.process import START_S, ServerError, end_with_parent, environment, free_ports


class MlflowServer:
    """The hand on one server; it stands still until `start`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (self._port,) = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._folder}/server.db"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        own = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                env=environment() | own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        until = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                text = (self._folder / "server.log").read_text(errors="replace")[-1500:]
                raise ServerError(f"mlflow server: does not answer at {self.url}: {text}")
            time.sleep(0.1)

    def kill(self) -> None:
        """End it and its workers at once; what it committed stays."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{self.url}/health", timeout=5) as reply,
        ):
            return bool(reply.status == 200)
        return False


@contextlib.contextmanager
def running(folder: Path) -> Iterator[MlflowServer]:
    """A started server for the length of a `with`."""
    server = MlflowServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
