"""What a training hears of the world: signals, and another process in its folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from components import patience
from components.train import lock
from components.train.stop import StopRequested, StopSignals

ROOT = Path(__file__).resolve().parents[2]


def test_a_second_process_in_a_training_s_folder_is_refused_and_a_dead_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE_S", 0.0)
    code = (
        "import sys, time\n"
        "from components.train import lock\n"
        "with lock.alone(sys.argv[1]): print(flush=True); time.sleep(60)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout is not None
        other.stdout.readline()
        said = f"^{tmp_path}: found process {other.pid} at work on this very training, expected"
        with pytest.raises(lock.TrainingBusyError, match=said), lock.alone(str(tmp_path)):
            pass
        other.kill()
    with lock.alone(str(tmp_path)):
        assert (tmp_path / lock.LOCK).read_text() == str(os.getpid())


# ---- signals ---------------------------------------------------------------------------------


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_ends_the_wait_for_an_absent_tracking_server() -> None:
    def away() -> None:
        raise ConnectionError("refused")

    with StopSignals() as stop:
        stop.hear_at_once("checkpoint-000000007.pt")
        threading.Timer(0.05, send, [signal.SIGTERM]).start()
        with pytest.raises(StopRequested, match=r"by SIGTERM; .* go on from checkpoint-000000007"):
            patience.patiently(away, patience_s=60)
        send(signal.SIGTERM)  # while it stops: nothing more to do
        with pytest.raises(StopRequested, match="by SIGTERM"):
            send(signal.SIGINT)  # somebody does not want to wait


def test_a_signal_that_comes_where_python_drops_exceptions_is_heard_all_the_same() -> None:
    class Dropped:
        def __del__(self) -> None:
            send(signal.SIGTERM)

    with StopSignals() as stop:
        stop.hear_at_once("")
        with pytest.raises(StopRequested):
            time.sleep(0 * id(Dropped()) + 60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_modules_are_imported_is_one_line_and_a_code(number: signal.Signals) -> None:
    """Where it comes Python drops an exception, as it does in an import's weak references."""
    code = (
        "import os, runpy, sys\n"
        "class Dropped:\n"
        f"    def __del__(self): os.kill(os.getpid(), {int(number)})\n"
        "class Launch:\n"
        "    def processes_wanted(settings): Dropped(); sys.exit('unheard')\n"
        "import components.train\n"
        "components.train.launch = Launch\n"
        "sys.argv[1:] = ['--dataset', 'd', '--output', 'o']\n"
        "runpy.run_module('components.train', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    said = f"train: stopped by {number.name}; run the same command again\n"
    assert (done.stderr, done.returncode) == (said, 128 + number)


def test_between_steps_a_signal_is_noted_and_not_forgotten() -> None:
    with StopSignals(patient=True) as stop:
        stop.hear_at_once("")
        stop.hear_between_steps()
        for _ in range(2):
            send(signal.SIGINT)
        assert stop.requested == "SIGINT"
        with pytest.raises(StopRequested, match=r"^stopped by SIGINT; run the same command again$"):
            stop.hear_at_once("")
