"""The last lines of a run: commands that work where one stands, and no secrets."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import summary


def test_no_password_of_the_server_is_shown() -> None:
    assert summary.mlflow_line("http://bob:hunter2@host/?sig=hunter2") == "MLflow http://host/"
    shown = summary.mlflow_line("postgresql://bob:hunter2@host/runs")
    assert "postgresql://host/runs" in shown
    assert "credentials, which are not shown" in shown
    assert "hunter2" not in shown


@pytest.mark.parametrize("inside", [True, False])
def test_commands_work_from_the_folder_one_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    """Whether or not a virtual environment is active, and with a space in its path."""
    bin_folder = tmp_path / "my env" / "bin"
    bin_folder.mkdir(parents=True)
    for name in ("python", "mlflow"):
        (bin_folder / name).write_text(f"#!/bin/sh\necho {name} $#\n")
        (bin_folder / name).chmod(0o755)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path if inside else elsewhere)
    monkeypatch.setattr(sys, "executable", str(bin_folder / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    line = summary.mlflow_line("sqlite:////a b/mlflow.db")
    command = line.removeprefix("open MLflow with: ")
    assert command.startswith("'my env/bin/mlflow' " if inside else f"'{bin_folder}/mlflow' ")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.stdout == "mlflow 3\n", done.stderr

    monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")  # now it is active
    assert shlex.split(summary.mlflow_line("sqlite:///x"))[3] == "mlflow"
    assert summary._command("python") == "python"


def test_a_python_that_only_links_to_the_same_one_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The python of a venv is a link to the system's, which knows none of its packages."""
    real = shutil.which("true")
    assert real is not None
    for folder in ("venv", "system"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "python").symlink_to(real)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "system"))
    assert summary._command("python") == "venv/python"
