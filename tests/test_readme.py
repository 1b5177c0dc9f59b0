"""What the README files say can be typed: commands parse, sessions run, targets and links exist."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import pytest
from tarpon import cli as tarpon_cli

from pipelines import cli, compose
from tests.loader.tars import samples, write_tar

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "loader/README.md",
    "docs/coming-from.md",
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")


def commands(page: str, start: str) -> list[list[str]]:
    """The words of every command that begins so, in a block or between backticks."""
    blocks = [block for lang, block in BLOCK.findall(text(page)) if not lang]
    lines = "".join(blocks).splitlines() + re.findall(r"`([^`]+)`", BLOCK.sub("", text(page)))
    bare = [re.sub(r"^(\$ |[A-Z_]+=\S+ |\.venv/bin/)*", "", line) for line in lines]
    parts = [part for line in bare for part in line.split(" && ")]
    return [shlex.split(part, comments=True) for part in parts if re.match(rf"{start} ", part)]


def test_every_command_of_the_pipelines_composes() -> None:
    found = [words for page in PAGES for words in commands(page, "python -m pipelines")]
    assert len(found) >= 6
    for words in found:
        compose.load(cli._parse(words[3:])[1])


def test_every_command_of_the_loader_parses() -> None:
    found = [words for page in PAGES for words in commands(page, "tarpon")]
    assert found
    for _, verbs, *rest in found:
        for verb in verbs.split("|"):
            sample = ["0"] if verb == "cat" and len(rest) < 2 else []
            assert tarpon_cli._parser().parse_args([verb, *rest, *sample])


@pytest.mark.parametrize("page", PAGES)
def test_targets_and_linked_files_exist(page: str) -> None:
    targets = {word for words in commands(page, "make") for word in words[1:]}
    assert targets <= set(re.findall(r"^([a-z0-9-]+):", text("Makefile"), re.MULTILINE))
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", text(page)):
        assert (ROOT / page).parent.joinpath(link).exists(), link


def what_stays(shown: str) -> str:
    """A value as it is shown, without what depends on the data."""
    shown = re.sub(r"array\(.*?\)|'[0-9a-f]{16,}'|'\.\.\.'", "_", " ".join(shown.split()))
    return re.sub(r"('(?:samples|chunk|window)': )\d+", r"\1_", shown)


@pytest.mark.parametrize("page", ["README.md", "loader/README.md"])
def test_the_python_session_runs(page: str, tmp_path: Path) -> None:
    session = next(block for lang, block in BLOCK.findall(text(page)) if lang == "python")
    shard = write_tar(tmp_path / "a.tar", samples(range(300)))
    session, replaced = re.subn(r'"[^"\s]+(\.tar|\.json)"', repr(str(shard)), session)
    assert replaced == 1
    names: dict[str, object] = {}
    steps = doctest.DocTestParser().get_examples(session)
    for step in steps or [doctest.Example(session, "")]:
        if not step.want:
            exec(step.source, names)
            continue
        found = repr(eval(step.source.strip(), names))
        assert what_stays(found) == what_stays(step.want)
    sizes = re.search(r"uint8\[(\d+), (\d+)", session)  # the loader's page says so in a comment
    assert bool(sizes) != bool(steps)
    if sizes:
        assert names["batch"]["image"].shape[:2] == tuple(map(int, sizes.groups()))
    names["loader"].close()


def test_the_session_with_dali_runs(tmp_path: Path) -> None:
    blocks = [block for lang, block in BLOCK.findall(text("loader/README.md")) if lang == "python"]
    (session,) = [block for block in blocks if "tarpon.dali" in block]
    shard = write_tar(tmp_path / "a.tar", samples(range(300)))
    session = session.replace("photos/v3/train.json", str(shard)).replace("size=224", "size=32")
    session = session.replace("(loader, ", '(loader, device="cpu", ', 1)  # no GPU in CI
    fed: list[tuple[object, object]] = []
    names: dict[str, object] = {"step": lambda *given: fed.append(given)}
    exec(session, names)
    ((images, labels),) = fed
    assert (images.shape, labels.shape) == ((256, 3, 32, 32), (256,))
    assert names["state"]["epoch"] == 1 or names["state"]["position"] == 256
