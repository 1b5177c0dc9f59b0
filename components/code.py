"""Which code this is, for whatever is made to say what made it. Reads git; changes nothing."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import subprocess
from pathlib import Path


@functools.cache
def code_version() -> str:
    """`TARPON_CODE_VERSION` (set in images), else the git commit, else the installed version."""
    if given := os.environ.get("TARPON_CODE_VERSION"):
        return given
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True)
        return found.stdout.strip()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("tarpon")
    return "unknown"


@functools.cache
def code_digest() -> str:
    """sha256 over the components' Python files: it tells apart what `-dirty` does not."""
    here = Path(__file__).parent
    total = hashlib.sha256()
    for file in sorted(here.rglob("*.py")):
        total.update(f"{file.relative_to(here)}\0".encode() + file.read_bytes())
    return total.hexdigest()
