"""The bar that `make ci` holds the demo to."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_demo.sh"


@pytest.mark.parametrize(
    ("accuracy", "code"),
    [("1.0000", 0), ("0.9917", 0), ("0.8501", 0), ("0.8500", 1), ("0.1250", 1), ("nan", 1)],
)
def test_the_bar(accuracy: str, code: int) -> None:
    shown = f"shards 3\ntest accuracy {accuracy}\nmodel photos version 1 (champion)\n"
    done = subprocess.run([SCRIPT], input=shown, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stdout.startswith(shown)
    assert bool(done.stderr) == bool(code)


def test_a_demo_that_says_nothing_is_no_success() -> None:
    done = subprocess.run([SCRIPT], input="shards 3\n", capture_output=True, text=True)
    assert done.returncode == 1
    assert "found no line 'test accuracy <share>'" in done.stderr
