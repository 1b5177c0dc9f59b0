"""From results to a page of Markdown and a plot beside it."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from benchmarks.cases import Bar
from benchmarks.measure import Run
from benchmarks.runner import Result, Spread

_PACKAGES = (
    "tarpon",
    "webdataset",
    "nvidia-dali-cuda120",
    "torch",
    "pillow",
    "numpy",
    "mosaicml-streaming",
    "litdata",
    "simplejpeg",
    "boto3",
    "s3torchconnector",
    "obstore",
)
_UNITS = {"samples_per_s": "samples/s", "samples_per_cpu_s": "images per CPU s"}
_MIB = 1 << 20


def cpu_model() -> str:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"model name\s*:\s*(.+)", text)
    name = found[1] if found else platform.machine()
    family = re.search(r"cpu family\s*:\s*(\d+)", text)
    number = re.search(r"model\s*:\s*(\d+)", text)
    plain = re.sub(r"\((R|TM)\)", "", name).strip()
    if "@" in plain or not family or not number:
        return plain
    return f"{plain} family {family[1]} model {number[1]}"  # virtual machines hide the name


def default_name() -> str:
    """``<date>-<cpu>.md``."""
    slug = re.sub(r"[^a-z0-9]+", "-", cpu_model().lower()).strip("-")
    return f"{datetime.date.today().isoformat()}-{slug}.md"


def _versions() -> str:
    parts = []
    for package in _PACKAGES:
        try:
            parts.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            parts.append(f"{package} absent")
    return ", ".join([f"Python {platform.python_version()}", *parts])


def _libjpegs() -> str:
    """The loader and the ceiling use the system's libjpeg-turbo, Pillow its own."""
    from PIL import features

    found = sorted(Path("/usr/lib").glob("*/libjpeg.so.*.*"))
    system = found[-1].name if found else "not found"
    return f"system {system} (tarpon and the ceiling), Pillow's {features.version('libjpeg_turbo')}"


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 1:
        return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return f"{value:.3g}"


def _spread(spread: Spread) -> str:
    return f"{_number(spread.median)} ({_number(spread.low)} to {_number(spread.high)})"


def _cases_table(result: Result) -> list[str]:
    theme = result.theme
    per_cpu = theme.rate == "samples_per_cpu_s"
    heads = [
        "case",
        f"{_UNITS[theme.rate]}, median (range)",
        *(["samples/s, median (range)"] if per_cpu else []),
        "MB/s",
        "CPU s per GB" if theme.served else "CPU s per 1,000",
        "peak RSS, MiB",
        f"`{theme.ours}` / it",
    ]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for case in theme.cases:
        if case.name in result.absent:
            why = f"not installed ({result.absent[case.name]}); {case.install}"
            lines.append(_row([f"`{case.name}`: {case.what}", why, *[""] * (len(heads) - 2)]))
        if case.name not in result.runs:
            continue
        ratio = ""
        if theme.ours in result.runs:
            ratio = f"{_number(result.ratio(theme.ours, case.name).median)}x"
        figures: list[Callable[[Run], float]] = [
            lambda run: run.bytes / run.seconds / 1e6,
            _cpu_per_gb if theme.served else lambda run: 1000 / run.samples_per_cpu_s,
            lambda run: run.peak_bytes / _MIB,
        ]
        per_s = _spread(result.spread(case.name, lambda run: run.samples_per_s))
        lines.append(
            _row(
                [
                    f"`{case.name}`: {case.what}",
                    _spread(result.rate(case.name)),
                    *([per_s] if per_cpu else []),
                    *(_number(result.spread(case.name, figure).median) for figure in figures),
                    ratio,
                ]
            )
        )
    return lines


def _cpu_per_gb(run: Run) -> float:
    return run.cpu_s / run.bytes * 1e9


def _network(result: Result) -> list[str]:
    """Of the cases that can tell: whether what they handed over came over the network."""
    shares = [
        f"`{case}` {_spread(result.spread(case, _from_network))}"
        for case, runs in result.runs.items()
        if any(run.network_bytes for run in runs)
    ]
    return ["", f"Bytes from the network per byte of JPEG: {', '.join(shares)}."] if shares else []


def _from_network(run: Run) -> float:
    return run.network_bytes / run.bytes


def _met(result: Result, bar: Bar) -> str:
    if result.theme.served and result.spread(bar.ours, _from_network).median < 1:
        return "**void**: not all of it came over the network"
    ratio = result.ratio(bar.ours, bar.peer, rate=bar.rate)
    return "reached" if ratio.median >= bar.least else "**missed**"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _bars_table(result: Result) -> list[str]:
    """The bars of the design; per CPU second beside them, which other work disturbs less."""
    if not result.bars():
        return []
    heads = ["ratio", "measured, median (range)", "bar", "", "the same per CPU second"]
    lines = ["", _row(heads), _row(["---"] * len(heads))]
    for bar in result.bars():
        name, least = f"`{bar.ours}` / `{bar.peer}`", f">= {bar.least:g}"
        if bar.rate == "samples_per_cpu_s" != result.theme.rate:
            least += " per CPU second"
        if not {bar.ours, bar.peer} <= result.runs.keys():
            lines.append(_row([name, "not installed", least, "**not measured**", ""]))
            continue
        cells = [
            name,
            _spread(result.ratio(bar.ours, bar.peer, rate=bar.rate)),
            least,
            _met(result, bar),
            _number(result.ratio(bar.ours, bar.peer, rate="samples_per_cpu_s").median),
        ]
        lines.append(_row(cells))
    return lines


def markdown(
    results: Sequence[Result],
    *,
    runs: int,
    load: Sequence[float],
    plot: str | None,
    sections: Sequence[Sequence[str]] = (),
) -> str:
    """The whole page.

    `load` is the machine's load average before and after; `sections` are what is not a theme.
    """
    cores = len(os.sched_getaffinity(0))
    lines = [
        "# Benchmarks",
        "",
        f"- {datetime.date.today().isoformat()}, {cpu_model()}, {cores} cores, Linux "
        f"{'.'.join(platform.release().split('.')[:2])}",
        f"- {_versions()}",
        f"- libjpeg-turbo: {_libjpegs()}",
        f"- Load average {load[0]:.1f} before and {load[1]:.1f} after; above {cores} the machine "
        "was shared with other work, and ratios count for more than rates.",
        f"- {runs} rounds; in each every case runs once, in a process of its own, for whole "
        "epochs after one that warms up. Ratios are taken within a round; figures are medians.",
        "- Before the rounds each case makes one epoch, whose checksums must be those of the set.",
        "- CPU seconds are user and system, of the process and its children. RSS counts pages of "
        "mapped files, and pages shared between processes once each.",
        "- Made by `python -m benchmarks`.",
    ]
    if plot is not None:
        lines += ["", f"![rates]({plot})"]
    for result in results:
        data, theme = result.data, result.theme
        lines += [
            "",
            f"## {theme.title}",
            "",
            f"{data.samples:,} JPEGs of {data.bytes / data.samples / 1000:.0f} kB and "
            f"{data.width:.0f} x {data.height:.0f} pixels on average. {theme.note}",
            "",
            *_cases_table(result),
            *_network(result),
            *_bars_table(result),
        ]
    for section in sections:
        lines += ["", *section]
    return "\n".join(lines) + "\n"


def draw(results: Sequence[Result], path: Path) -> None:
    """One panel per theme: a bar per case, with the range over the rounds."""
    counts = [len(result.runs) for result in results]
    with matplotlib.rc_context({"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": "tarpon"}):
        figure = Figure(figsize=(8, 0.9 * len(results) + 0.24 * sum(counts)), layout="constrained")
        panels = figure.subplots(len(results), 1, squeeze=False, height_ratios=counts)[:, 0]
        for panel, result in zip(panels, results, strict=True):
            names = list(result.runs)
            rates = [result.rate(name) for name in names]
            errors = [
                [rate.median - rate.low for rate in rates],
                [rate.high - rate.median for rate in rates],
            ]
            colours = ["#1b6ca8" if name.startswith("tarpon") else "#b8b8b8" for name in names]
            panel.barh(names, [rate.median for rate in rates], xerr=errors, color=colours)
            panel.invert_yaxis()
            panel.set_title(result.theme.title, loc="left")
            panel.set_xlabel(_UNITS[result.theme.rate])
            panel.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})


def write(
    results: Sequence[Result],
    output: Path,
    *,
    runs: int,
    load: Sequence[float],
    sections: Sequence[Sequence[str]] = (),
) -> list[Path]:
    """Write the page to `output`, and beside it the plot of what ran; returns the files written."""
    output.parent.mkdir(parents=True, exist_ok=True)
    drawn = [result for result in results if result.runs]
    plot = output.with_suffix(".svg") if drawn else None
    if plot is not None:
        draw(drawn, plot)
    name = plot.name if plot is not None else None
    page = markdown(results, runs=runs, load=load, plot=name, sections=sections)
    output.write_text(page, encoding="utf-8")
    return [output] if plot is None else [output, plot]
