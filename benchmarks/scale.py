"""A dataset of 100 million samples in 10,000 shards: what it takes to open it and to restore.

The figures are absolute, and so are their bars. The shards are one real tar and its index, linked
10,000 times; what is measured is in `benchmarks.scale_probe`, a fresh process each time.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tarpon
from PIL import Image

from benchmarks.runner import AbsentError, PeerError, run_module
from benchmarks.scale_probe import BATCH, SEED

NAME = "scale"
_RECIPE = 1
_PICTURES = 10
_EPOCHS = 1000  # a restore may fall into any of so many


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """`dali_shards`: DALI reads every index before its first batch, minutes for all of them."""

    shards: int
    per_shard: int
    dali_shards: int

    @property
    def samples(self) -> int:
        return self.shards * self.per_shard


FULL = Size(shards=10_000, per_shard=10_000, dali_shards=200)
QUICK = Size(shards=20, per_shard=500, dali_shards=20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of a case; it must stay below `most` in every process, where that is given."""

    name: str
    what: str
    unit: str
    most: float | None = None

    def reached(self, values: Sequence[float]) -> bool:
        return self.most is None or max(values) < self.most


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleCase:
    """One thing to do in a fresh process; `what` may name ``{shards}`` and ``{dali_shards}``."""

    name: str
    what: str
    figures: tuple[Figure, ...]


_PEAK = Figure(name="peak_bytes", what="peak memory of the process", unit="MB")

CASES = (
    ScaleCase(
        name="open",
        what="tarpon.open(train.json) and its length",
        figures=(Figure(name="open_s", what="time", unit="s", most=2.0), _PEAK),
    ),
    ScaleCase(
        name="restore",
        what="tarpon.Loader, shuffled, at a random place of a random epoch",
        figures=(
            Figure(name="restore_s", what="load_state_dict to first batch", unit="ms", most=0.3),
            Figure(name="first_s", what="Loader() to first batch", unit="s"),
            Figure(name="peak_bytes", what=_PEAK.what, unit="MB", most=300e6),
            Figure(name="state_bytes", what="state as JSON", unit="B", most=1000),
        ),
    ),
    ScaleCase(
        name="webdataset",
        what="webdataset, shuffled shards and a buffer of 1,000; it cannot restore",
        figures=(Figure(name="first_s", what="to the first 256 samples", unit="s"), _PEAK),
    ),
    ScaleCase(
        name="dali",
        what="DALI fn.readers.webdataset, {dali_shards} of the shards, shuffled",
        figures=(Figure(name="first_s", what="to the first batch", unit="s"), _PEAK),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleResult:
    """``values[case][figure]`` has a number per round; `absent` as in `runner.Result`."""

    size: Size
    values: dict[str, dict[str, list[float]]]
    absent: dict[str, str] = field(default_factory=dict)


def make(folder: Path, size: Size) -> Path:
    """The shard list of the dataset below `folder`, made when it is not there yet."""
    root = folder / f"scale-{size.shards}x{size.per_shard}-recipe{_RECIPE}"
    if not root.exists():
        temporary = root.with_suffix(f".{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write(temporary, size)
        temporary.rename(root)
    return root / "train.json"


def _write(root: Path, size: Size) -> None:
    import webdataset as wds  # as in benchmarks.data

    names = [f"train-{number:06d}" for number in range(size.shards)]
    first = root / f"{names[0]}.tar"
    pictures = [_thumbnail(number) for number in range(_PICTURES)]
    with wds.TarWriter(str(first), mtime=0) as tar:
        for number in range(size.per_shard):
            label = str(number).encode()
            picture = pictures[number % _PICTURES]
            tar.write({"__key__": f"{number:08d}", "jpg": picture, "cls": label})
    tarpon.index(str(first))
    for name in names[1:]:
        for suffix in (".tar", ".idx"):
            try:
                os.link(first.with_suffix(suffix), root / f"{name}{suffix}")
            except OSError as error:
                raise PeerError(
                    f"{root}: {error.strerror}, expected a file system that allows {size.shards:,} "
                    "hard links to a file; name a folder on another one with --data"
                ) from error
    entry = {"nsamples": size.per_shard, "filesize": first.stat().st_size}
    shards = [{"url": f"{name}.tar", **entry} for name in names]
    (root / "train.json").write_text(
        json.dumps({"wids_version": 1, "shardlist": shards}), encoding="utf-8"
    )


def _thumbnail(number: int) -> bytes:
    rng = random.Random(number)
    buffer = io.BytesIO()
    noise = Image.frombytes("RGB", (8, 8), rng.randbytes(8 * 8 * 3))
    noise.resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def run(
    folder: Path,
    size: Size,
    *,
    runs: int,
    only: str | None = None,
    tick: Callable[[str], None] = lambda _: None,
) -> ScaleResult:
    """Every case (whose name contains `only`) `runs` times, in turn, each in a fresh process.

    `tick` is called before each with what is about to run.

    Raises:
        PeerError: A process failed, or was handed other samples than those of its place.
    """
    cases = [case for case in CASES if only is None or only in case.name]
    tick("making the shards")
    asked: dict[str, Any] = {
        "shards": str(make(folder, size)),
        "samples": size.samples,
        "per_shard": size.per_shard,
    }
    start: dict[str, Any] = {}
    if any(case.name == "restore" for case in cases):
        tick("a state to restore")
        start = run_module("benchmarks.scale_probe", {**asked, "what": "state"}, name="state")
    rng = random.Random(SEED)
    values: dict[str, dict[str, list[float]]] = {}
    absent: dict[str, str] = {}
    for number in range(runs):
        # what a loader says after that many epochs and batches; see Loader.state_dict
        place = {
            "epoch": rng.randrange(_EPOCHS),
            "position": rng.randrange(size.samples // BATCH) * BATCH,
        }
        for case in cases:
            tick(f"round {number + 1} of {runs}, {case.name}")
            use = size.dali_shards if case.name == "dali" else size.shards
            probe = {**asked, "what": case.name, "use": use, "state": json.dumps(start | place)}
            try:
                found = run_module("benchmarks.scale_probe", probe, name=f"{NAME}/{case.name}")
            except AbsentError as error:
                absent[case.name] = str(error)
                continue
            made = values.setdefault(case.name, {figure.name: [] for figure in case.figures})
            for figure in case.figures:
                made[figure.name].append(found[figure.name])
    return ScaleResult(size=size, values=values, absent=absent)


def lines(result: ScaleResult) -> list[str]:
    """The section of the page."""
    size = result.size
    out = [
        f"## {size.samples:,} samples in {size.shards:,} shards: opening and restoring",
        "",
        f"One real tar of {size.per_shard:,} small samples and its index, hard-linked "
        f"{size.shards:,} times, so reading an index never waits for a disk. Every time is taken "
        "in a fresh process, after the imports and before anything else; the batch is checked "
        "against the tar afterwards. A bar must hold in the worst process.",
        "",
        "| case | figure | median | worst | bar |  |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case in CASES:
        name = f"`{case.name}`: {case.what.format(dali_shards=size.dali_shards)}"
        if case.name in result.absent:
            out.append(f"| {name} | not installed ({result.absent[case.name]}); make setup |||||")
        for figure in case.figures if case.name in result.values else ():
            values = result.values[case.name][figure.name]
            bar = "" if figure.most is None else f"< {_amount(figure.most, figure.unit)}"
            met = "reached" if figure.reached(values) else "**missed**"
            cells = [
                name,
                figure.what,
                _amount(statistics.median(values), figure.unit),
                _amount(max(values), figure.unit),
                bar,
                met if bar else "",
            ]
            out.append(f"| {' | '.join(cells)} |")
    return out


def _amount(value: float, unit: str) -> str:
    """Seconds and bytes in a unit that people read."""
    scale = {"s": 1.0, "ms": 1e3, "MB": 1e-6, "B": 1.0}[unit]
    return f"{value * scale:,.0f} {unit}" if value * scale >= 10 else f"{value * scale:.2g} {unit}"
