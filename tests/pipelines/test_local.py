"""KFP's local runner as this project uses it, on a graph of four tiny steps."""

# no `from __future__ import annotations`: KFP reads the types of its components as they stand

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import List  # noqa: UP035 - what KFP's type checker knows

import pytest
from kfp import dsl
from kfp.local import executor_input_utils, logging_utils, subprocess_task_handler

from pipelines.local import LocalRun, PipelineFailed, PipelineStopped, StepResult, reason_in

STEP = {"base_image": "any", "install_kfp_package": False}


@dsl.component(**STEP)
def plan(jobs: str) -> List[str]:  # noqa: UP006
    return jobs.split()


@dsl.component(**STEP)
def pack(job: str, part: dsl.Output[dsl.Dataset]):
    import os
    import time
    from pathlib import Path

    import components  # the repository is on the path

    time.sleep(0.1)
    if job == "bad":
        raise ValueError("shard 3: found 2 samples, expected 5; run it again")
    print(f"packing {job} {components.IMAGE != ''}")
    Path(part.path).write_text(f"{job} {os.environ['COLOUR']}")
    part.metadata["job"] = job


@dsl.component(**STEP)
def seal(parts: dsl.Input[List[dsl.Dataset]], whole: dsl.Output[dsl.Dataset]):  # noqa: UP006
    from pathlib import Path

    Path(whole.path).write_text(",".join(Path(part.path).read_text() for part in parts))


@dsl.container_component
def train(whole: dsl.Input[dsl.Dataset], model: dsl.Output[dsl.Model]):
    code = (
        "import json, pathlib, sys; task = json.loads(sys.argv[2]); "
        "out = pathlib.Path(task['outputs']['artifacts']['model']['artifacts'][0]['uri']); "
        "out.parent.mkdir(parents=True); out.write_text(sys.executable); "
        "out.with_name('executor_output.json').write_text('{}')"
    )
    return dsl.ContainerSpec(
        image="any",
        command=["python3", "-c", code],
        args=["--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )


@dsl.pipeline(name="tiny")
def tiny(jobs: str):
    with dsl.ParallelFor(items=plan(jobs=jobs).output) as job:
        packed = pack(job=job)
    sealed = seal(parts=dsl.Collected(packed.outputs["part"]))
    sealed.set_display_name("Seal")
    train(whole=sealed.outputs["whole"])


class Watch:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.results: list[StepResult] = []

    def started(self, step: str) -> None:
        self.lines.append(f"started {step}")

    def said(self, step: str, line: str) -> None:
        self.lines.append(line)

    def finished(self, result: StepResult) -> None:
        self.results.append(result)


def run(folder: Path, jobs: str) -> tuple[Watch, dict[str, StepResult]]:
    watch = Watch()
    local = LocalRun(folder=folder, environment={"COLOUR": "red"}, watcher=watch)
    results = local.execute(tiny, jobs=jobs)
    return watch, {result.name: result for result in results}


def test_a_graph_with_a_loop_and_a_container_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    watch, results = run(tmp_path / "python3 run", "a b c")
    assert sorted(results) == ["pack", "pack.2", "pack.3", "plan", "seal", "train"]
    packed = {results[name].metadata["job"] for name in ("pack", "pack.2", "pack.3")}
    assert packed == {"a", "b", "c"}
    assert results["seal"].artifacts["whole"].read_text() == "a red,b red,c red"
    assert (
        Path(results["train"].artifacts["model"].read_text()).parent == Path(sys.executable).parent
    )
    assert "started plan" in watch.lines
    assert "packing b True" in watch.lines
    assert [result.name for result in watch.results] == list(results)
    assert "packing" in results["pack"].log.read_text()
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


ENCODING = r"""
import sys
from pathlib import Path
from pipelines import cli, compose
from pipelines.local import LocalRun

class Watch:
    def said(self, step, line):
        assert line == "gr\u00fcn http://host/", line

folder = Path(sys.argv[1])
cli._save(folder, compose.load(), ["data.source=gr\u00fcn", "data.name=\udcff"])
step = LocalRun(folder=folder, environment={}, watcher=Watch())
code = "print('gr\\u00fcn http://bob:hunter2@host/?sig=hunter2')"
step._stream("x", [sys.executable, "-c", code], step._environment({}), folder / "x.log")
"""


def test_files_and_output_are_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", ENCODING, str(tmp_path)],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, **plain},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    saved = (tmp_path / "overrides.txt").read_bytes()
    assert saved == "data.source=grün\ndata.name=".encode() + b"\xff\n"
    assert (tmp_path / "x.log").read_text(encoding="utf-8") == "grün http://host/\n"


def test_a_failure_is_told_in_the_step_s_own_words(tmp_path: Path) -> None:
    with pytest.raises(PipelineFailed) as caught:
        run(tmp_path, "a bad c d e f g h")
    assert not (tmp_path / "logs" / "pack.8.log").exists()  # the jobs after it are not started
    assert caught.value.reason == "shard 3: found 2 samples, expected 5; run it again"
    assert caught.value.step.startswith("pack")
    assert caught.value.log.is_file()


@dsl.component(**STEP)
def patient():
    import signal
    import sys
    import time

    def save(*_):
        print("saved")
        sys.exit(143)

    signal.signal(signal.SIGTERM, save)
    print("ready", flush=True)
    time.sleep(20)


@dsl.pipeline(name="stopped")
def stopped():
    patient()


class Signals(Watch):
    def said(self, step: str, line: str) -> None:
        super().said(step, line)
        if line == "ready":
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_goes_to_the_step_which_is_waited_for(tmp_path: Path) -> None:
    watch = Signals()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(PipelineStopped, match="stopped by SIGTERM"):
        LocalRun(folder=tmp_path, environment={}, watcher=watch).execute(stopped)
    assert "saved" in watch.lines
    assert watch.results == []  # to be stopped is no failure of the step
    assert signal.getsignal(signal.SIGTERM) is before


KILLED = """
import os, sys
from pathlib import Path
from pipelines.local import LocalRun

class Watch:
    def said(self, step, line):
        os.write(1, line.encode())
        os.kill(os.getpid(), 9)

step = LocalRun(folder=Path(sys.argv[1]), environment={}, watcher=Watch())
code = "import os, time; print(os.getpid(), flush=True); time.sleep(20)"
step._stream("x", [sys.executable, "-c", code], dict(os.environ), step.folder / "x.log")
"""


def test_a_step_ends_with_a_runner_that_is_killed(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == -signal.SIGKILL
    step = Path("/proc", done.stdout.decode(), "stat")
    for _ in range(200):
        # without a parent that asks how it ended it may stay as a zombie
        if not step.exists() or ") Z " in step.read_text():
            return
        time.sleep(0.01)
    pytest.fail("the step lives on")


def test_kfp_is_left_as_it_was(tmp_path: Path) -> None:
    def seams() -> list[object]:
        handler = subprocess_task_handler.SubprocessTaskHandler
        return [
            handler.validate_not_container_component,
            executor_input_utils.construct_local_task_root,
            subprocess_task_handler.run_local_subprocess,
            logging_utils.local_logger_context,
        ]

    before = seams()
    run(tmp_path, "a")
    with pytest.raises(PipelineFailed):
        run(tmp_path / "again", "bad")
    assert seams() == before


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("work\nTraceback (most recent call last):\n  x\ncomponents.store.StoreError: no\n", "no"),
        ("Traceback (most recent call last):\n  x\nKeyError: 'a'\n", "KeyError: 'a'"),
        (
            "Traceback (most recent call last):\n  x\nValueError: one\n\nDuring handling:\n\n"
            "Traceback (most recent call last):\n  y\nRuntimeError: two\nlines\n",
            "two\nlines",
        ),
        ("working\ntrain: stopped by SIGTERM\n\n", "train: stopped by SIGTERM"),
        ("", "it wrote nothing"),
    ],
)
def test_reason_is_the_last_exception_or_the_last_line(
    tmp_path: Path, log: str, reason: str
) -> None:
    file = tmp_path / "step.log"
    file.write_text(log)
    assert reason_in(file) == reason
