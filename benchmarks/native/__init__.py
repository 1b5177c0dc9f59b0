"""The ceilings' few lines of C, compiled when they are wanted."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from pathlib import Path


def load(name: str, folder: Path, *libraries: str) -> ctypes.CDLL:
    """Compile ``<name>.c`` into `folder` unless that very text is there already, and load it."""
    source = Path(__file__).with_name(f"{name}.c")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    library = folder / f"{name}-{digest}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = library.with_suffix(f".{os.getpid()}.tmp")
        flags = ["-std=c11", "-O3", "-Wall", "-Wextra", "-fPIC", "-shared", "-pthread"]
        links = [f"-l{library}" for library in libraries]
        command = ["cc", *flags, str(source), "-o", str(temporary), *links]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{source.name}: cc failed; make setup installs it\n{done.stderr}")
        temporary.replace(library)
    return ctypes.CDLL(str(library))
