"""Imports go down only: pipelines -> components -> tarpon -> _core -> core/*.c (DESIGN, 1)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "loader" / "core"
FLOORS = {"tarpon": 0, "components": 1, "pipelines": 2}
ONLY_IN = {
    "kfp": r"pipelines/.*|components/\w+/component\.py",
    "hydra": r"pipelines/.*",
    "omegaconf": r"pipelines/.*",
    "nvidia": r"loader/tarpon/(dali|_dali_graph)\.py",
    "torch": r"loader/tarpon/(torch|dali|_torch_\w+)\.py|components/(train|evaluate|predict)/.*",
}
C_FLOORS = [
    {"status", "alloc", "copy", "thread"},
    {
        "rng",
        "feistel",
        "order",
        "tar",
        "index",
        "pages",
        "slab",
        "source",
        "cache",
        "http",
        "pieces",
    }
    | {"crop", "jpeg", "resize"},
    {"lookup", "dataset", "ahead", "batch"},
    {"engine"},
    {"module"},
]


def imports(source: str, package: str) -> Iterator[str]:
    """Every module a file imports, absolute, wherever in the file the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, node.module or ""]).rstrip(".") if node.level else node.module
            yield from (f"{base}.{name.name}" for name in node.names)


def python_faults(path: str, source: str) -> list[str]:
    """The forbidden imports of one file; ``path`` is relative to the repository."""
    parts = Path(path.removeprefix("loader/")).with_suffix("").parts
    floor, step = parts[0], parts[1] if len(parts) > 2 else None
    faults = []
    for name in imports(source, ".".join(parts[:-1])):
        top, *rest = name.split(".")
        where = ONLY_IN.get(top)
        upward = FLOORS.get(top, -1) > FLOORS[floor]
        sideways = (
            floor == top == "components"
            and rest
            and (ROOT / "components" / rest[0]).is_dir()
            and rest[0] != step
        )
        if upward or sideways or (where and not re.fullmatch(where, path)):
            faults.append(f"{path} imports {name}")
    return faults


def c_floor(module: str) -> int:
    """The floor of a module; ``tar_header`` is a part of ``tar`` and stands on its floor."""
    for floor, modules in enumerate(C_FLOORS):
        if module in modules or module.partition("_")[0] in modules:
            return floor
    raise AssertionError(f"{module}: on no floor yet; put it on one in C_FLOORS")


def c_faults(name: str, source: str) -> list[str]:
    """The upward includes of one C file; modules of one floor may include each other."""
    included = re.findall(r'^\s*#\s*include\s+"(?:\.\./)?(\w+)\.h"', source, re.MULTILINE)
    mine = c_floor(Path(name).stem)
    return [f"{name} includes {it}.h" for it in included if c_floor(it) > mine]


def python_files() -> list[str]:
    found = [
        p
        for top in ("components", "pipelines", "loader/tarpon")
        for p in ROOT.glob(f"{top}/**/*.py")
    ]
    return sorted(p.relative_to(ROOT).as_posix() for p in found)


@pytest.mark.parametrize("path", python_files())
def test_python_imports_go_down(path: str) -> None:
    assert python_faults(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("file", sorted(CORE.glob("*.[ch]")), ids=lambda file: file.name)
def test_c_includes_go_down(file: Path) -> None:
    assert c_faults(file.name, file.read_text(encoding="utf-8")) == []


def test_only_the_module_knows_python() -> None:
    knowing = [f.name for f in CORE.glob("*.[ch]") if "<Python.h>" in f.read_text(encoding="utf-8")]
    assert knowing == ["module.h"]
    users = [f.name for f in CORE.glob("*.c") if '"module.h"' in f.read_text(encoding="utf-8")]
    assert users == [f.name for f in CORE.glob("module*.c")]


def test_every_floor_was_looked_at() -> None:
    files = python_files()
    for top in ("components/", "pipelines/", "loader/tarpon/"):
        assert sum(path.startswith(top) for path in files) >= 3, top
    for name in ("status", "tar", "index", "jpeg", "engine", "module"):
        assert (CORE / f"{name}.c").is_file(), name


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("components/train/run.py", "def f():\n    import kfp\n"),
        ("components/train/run.py", "from components import split"),
        ("components/train/run.py", "from components.split.run import split"),
        ("components/train/run.py", "from ..split import run"),
        ("components/train/run.py", "from pipelines import config"),
        ("components/split/run.py", "import torch.nn"),
        ("components/split/component.py", "from hydra import compose"),
        ("loader/tarpon/loader.py", "from components.store import Store"),
        ("loader/tarpon/loader.py", "import torch"),
    ],
)
def test_python_faults_are_found(path: str, source: str) -> None:
    assert len(python_faults(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("components/train/run.py", "import torch\nfrom components.train import loop"),
        ("components/train/run.py", "from components.store import Store\nimport tarpon"),
        ("components/train/run.py", "from . import loop\nfrom .loop import Trainer"),
        ("components/train/component.py", "from kfp import dsl"),
        ("pipelines/cli.py", "import hydra\nimport kfp\nfrom components import store"),
    ],
)
def test_what_is_allowed_is_allowed(path: str, source: str) -> None:
    assert python_faults(path, source) == []


def test_c_faults_are_found() -> None:
    assert c_faults("tar.c", '#include "engine.h"\n#include "status.h"') == [
        "tar.c includes engine.h"
    ]
