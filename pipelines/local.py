"""Runs a compiled pipeline on this machine with KFP's local runner, and says what happened.

The graph is the cluster's; only where a step starts differs. All that has to be changed in KFP's
runner for that is in `_patched`, with the reason beside each change. This module knows no step.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from kfp import local
from kfp.local import executor_input_utils, logging_utils, subprocess_task_handler

from components.lifetime import end_with
from components.store import without_secrets

REPOSITORY = Path(__file__).resolve().parents[1]
"""Where `components` and `pipelines` are importable from; steps are started with it on the path."""


class PipelineFailed(RuntimeError):  # noqa: N818 - it reads as what happened
    """A step ended with an error. Carries the step's own words and where its log is."""

    def __init__(self, step: str, reason: str, log: Path) -> None:
        super().__init__(f"{step}: {reason}")
        self.step = step
        self.reason = reason
        self.log = log


class PipelineStopped(KeyboardInterrupt):
    """SIGTERM or Ctrl-C arrived, and the steps that ran have ended since."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}")
        self.number = number


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One task that ran: how long it took and where its output artifacts lie."""

    name: str
    seconds: float
    log: Path
    exit_code: int
    artifacts: Mapping[str, Path]
    metadata: Mapping[str, Any]


class Watcher(Protocol):
    """Told about steps as they happen; calls may come from two threads at once."""

    def started(self, step: str) -> None:
        """A step's process was started."""

    def said(self, step: str, line: str) -> None:
        """A step wrote a line to stdout or stderr."""

    def finished(self, result: StepResult) -> None:
        """A step's process ended, well or not."""


@dataclass(slots=True)
class LocalRun:
    """One run of a pipeline in a folder of its own: artifacts by task, and `logs/<task>.log`.

    SIGTERM and Ctrl-C are passed on to the steps and waited for: a training saves what it has.
    Steps end with this process where it is killed without a word.
    """

    folder: Path
    environment: Mapping[str, str]
    watcher: Watcher
    results: list[StepResult] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _tasks: dict[str, int] = field(default_factory=dict)
    _running: set[subprocess.Popen[str]] = field(default_factory=set)
    _stopped: signal.Signals | None = None

    def execute(self, pipeline: Callable[..., object], **parameters: str) -> list[StepResult]:
        """Run every step; returns the results in the order in which the steps ended.

        Raises:
            PipelineFailed: A step failed, or KFP could not go on after it.
            PipelineStopped: A signal came before the last step was done.
        """
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        runner_log = self.folder / "logs" / "runner.log"
        with (
            _logging_to(runner_log),
            self._patched(),
            self._hearing(signal.SIGTERM, signal.SIGINT),
            warnings.catch_warnings(),
        ):
            # It warns of each setting that means nothing here, and of images without a
            # "python" in their name.
            warnings.filterwarnings("ignore", module=r"kfp\.local")
            local.init(
                runner=local.SubprocessRunner(use_venv=False),
                pipeline_root=str(self.folder),
                workspace_root=str(self.folder / "workspace"),
            )
            try:
                pipeline(**parameters)
            except Exception as error:
                if self._stopped is not None:
                    raise PipelineStopped(self._stopped) from None
                logging.getLogger(__name__).exception("the pipeline failed")
                raise self._failure(error, runner_log) from error
        return self.results

    @contextlib.contextmanager
    def _hearing(self, *numbers: signal.Signals) -> Iterator[None]:
        before = {number: signal.signal(number, self._stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """Tell the steps to end; the run goes on as after a failure once they have.

        A terminal sends Ctrl-C to the steps by itself, others send it to this process alone;
        after one, SIGTERM changes nothing more.
        """
        self._stopped = self._stopped or signal.Signals(number)
        for process in tuple(self._running):
            process.terminate()

    def _failure(self, error: Exception, runner_log: Path) -> PipelineFailed:
        for result in self.results:
            if result.exit_code:
                return PipelineFailed(result.name, reason_in(result.log), result.log)
        return PipelineFailed("local runner", str(error), runner_log)

    @contextlib.contextmanager
    def _patched(self) -> Iterator[None]:
        """KFP's runner with the changes that this graph needs; undone on the way out.

        - Container components are refused, although the command of a step in exec form runs as
          well as any: the check goes.
        - Iterations of a ParallelFor all get the same folder, so two at a time overwrite each
          other's outputs: each task gets its own.
        - A shell stands between this process and Python, and would keep signals for itself: it
          makes way, see `_without_shell`.
        - `python3` is replaced in every argument, also inside the JSON of paths and settings:
          left alone; PATH decides, see `_environment`.
        - Output is printed line by line among the runner's own: it goes to a log per step, and
          the watcher hears it.
        - Logging and `print` are swapped for the whole process around each task, which two
          threads undo in the wrong order: they stay as they are.
        """
        handler = subprocess_task_handler.SubprocessTaskHandler
        changes: list[tuple[Any, str, Any]] = [
            (handler, "validate_not_container_component", lambda self, full_command: None),
            (executor_input_utils, "construct_local_task_root", self._task_root),
            (subprocess_task_handler, "replace_python_executable", lambda command, _: command),
            (subprocess_task_handler, "run_local_subprocess", self._run_step),
            (logging_utils, "local_logger_context", contextlib.nullcontext),
            (logging_utils, "indented_print", contextlib.nullcontext),
            (logging_utils, "print_horizontal_line", lambda: None),
        ]
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
        for owner, name, value in changes:
            setattr(owner, name, value)
        try:
            yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)

    def _task_root(
        self, pipeline_root: str, pipeline_resource_name: str, task_resource_name: str
    ) -> str:
        with self._lock:
            count = self._tasks[task_resource_name] = self._tasks.get(task_resource_name, 0) + 1
        suffix = "" if count == 1 else f".{count}"
        return os.path.join(pipeline_root, f"{task_resource_name}{suffix}")

    def _run_step(self, full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        outputs = _executor_input(full_command)["outputs"]
        output_file = Path(outputs["outputFile"])
        name = output_file.parent.name
        if self._stopped or any(result.exit_code for result in self.results):
            return 1  # a loop would go on with its other jobs
        log = self.folder / "logs" / f"{name}.log"
        begin = time.monotonic()
        self.watcher.started(name)
        exit_code = self._stream(name, full_command, self._environment(env_vars or {}), log)
        result = StepResult(
            name=name,
            seconds=time.monotonic() - begin,
            log=log,
            exit_code=exit_code,
            artifacts=_artifact_paths(outputs, output_file),
            metadata=_metadata(output_file),
        )
        with self._lock:
            self.results.append(result)
        if exit_code == 0 or self._stopped is None:
            self.watcher.finished(result)
        return exit_code

    def _stream(self, name: str, command: list[str], env: dict[str, str], log: Path) -> int:
        with (
            log.open("w", encoding="utf-8") as file,
            subprocess.Popen(
                _without_shell(command),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=env,
                encoding="utf-8",
                errors="replace",
                bufsize=1,
                preexec_fn=partial(end_with, os.getpid()),
            ) as process,
        ):
            assert process.stdout is not None
            self._running.add(process)
            try:
                if self._stopped:  # it came while the process was being started
                    process.terminate()
                for line in map(without_secrets, process.stdout):  # a library's too
                    file.write(line)
                    file.flush()
                    self.watcher.said(name, line.rstrip())
                return process.wait()
            finally:
                self._running.discard(process)
                if process.poll() is None:
                    process.terminate()

    def _environment(self, task: Mapping[str, str]) -> dict[str, str]:
        """The caller's environment, and this interpreter and this code first on the paths."""
        paths = {"PATH": Path(sys.executable).parent, "PYTHONPATH": REPOSITORY}
        found = {
            name: os.pathsep.join(filter(None, (str(first), os.environ.get(name))))
            for name, first in paths.items()
        }
        python = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"}
        return {**os.environ, **found, **python, **self.environment, **task}


def reason_in(log: Path) -> str:
    """What went wrong, in the step's own words: the last exception of its log, or its last line."""
    lines = [line.rstrip() for line in log.read_text(encoding="utf-8").splitlines()]
    starts = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent")]
    if starts:
        rest = lines[starts[-1] + 1 :]
        raised = next((i for i, text in enumerate(rest) if text and text[0] not in " \t"), None)
        if raised is not None:
            message = "\n".join(rest[raised:]).strip()
            # ours and the plain ones say it all in their text; of others the class matters
            return re.sub(
                r"^(?:(?:components|tarpon|pipelines)[\w.]*\.\w+|ValueError|RuntimeError): ",
                "",
                message,
            )
    return next((line for line in reversed(lines) if line.strip()), "it wrote nothing")


def _without_shell(command: list[str]) -> list[str]:
    """The same command, where the shell that KFP writes becomes the Python that it starts."""
    start = "_KFP_RUNTIME=true python3"
    return [part.replace(start, "export _KFP_RUNTIME=true; exec python3") if at == 2 else part
            for at, part in enumerate(command)]  # fmt: skip


def _executor_input(command: list[str]) -> dict[str, Any]:
    for flag in ("--executor_input", "--executor-input"):
        if flag in command:
            found: dict[str, Any] = json.loads(command[command.index(flag) + 1])
            return found
    raise RuntimeError(
        f"local runner: found no executor input in {command[:3]}, expected --executor-input with "
        "dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER; add it to the component's arguments"
    )


def _artifact_paths(outputs: Mapping[str, Any], output_file: Path) -> dict[str, Path]:
    """Where each output artifact lies: as the step announced it, or else as it was told to."""
    found = {**outputs.get("artifacts", {}), **_answer(output_file).get("artifacts", {})}
    return {
        name: Path(value["artifacts"][0]["uri"])
        for name, value in found.items()
        if value["artifacts"]
    }


def _metadata(output_file: Path) -> dict[str, Any]:
    """Every output's metadata in one mapping, as the step announced it."""
    found: dict[str, Any] = {}
    for value in _answer(output_file).get("artifacts", {}).values():
        for artifact in value.get("artifacts", []):
            found |= artifact.get("metadata", {})
    return found


def _answer(output_file: Path) -> dict[str, Any]:
    if not output_file.is_file():
        return {}
    found: dict[str, Any] = json.loads(output_file.read_text(encoding="utf-8"))
    return found


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Send what KFP logs in this process to a file, and nothing of it to the terminal."""
    root = logging.getLogger()
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        handler.close()
