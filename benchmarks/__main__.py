"""python -m benchmarks: measure tarpon beside its peers and write a page of results."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import (
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from benchmarks import data, remote, report, scale
from benchmarks.cases import HTTP, THEMES, Theme
from benchmarks.runner import PeerError, Result, check_server, run_theme

_ROOT = Path(__file__).resolve().parent.parent


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small set and short runs")
    parser.add_argument("--runs", type=int, default=5, help="rounds, default 5")
    parser.add_argument(
        "--theme",
        choices=[*(theme.name for theme in THEMES), scale.NAME],
        help="this theme instead of all",
    )
    parser.add_argument("--only", metavar="NAME", help="cases whose name contains NAME")
    parser.add_argument(
        "--output", type=Path, help="the page; default benchmarks/results/<date>-<cpu>.md"
    )
    parser.add_argument(
        "--data", type=Path, default=_ROOT / "build" / "bench-data", help="where images are kept"
    )
    parser.add_argument("--images", type=int, help="size of the set instead of each theme's own")
    asked = parser.parse_args(arguments)
    if asked.runs < 1:
        parser.error(f"--runs {asked.runs}, expected at least 1")
    if asked.images is not None and asked.images < 1:
        parser.error(f"--images {asked.images}, expected at least 1")
    names = {case.name for theme in THEMES for case in theme.cases}
    names |= {case.name for case in scale.CASES} | set(remote.NAMES)
    if asked.only is not None and not any(asked.only in name for name in names):
        parser.error(f"--only {asked.only}: no such case, expected a part of {sorted(names)}")
    return asked


def _chosen(asked: argparse.Namespace) -> list[Theme]:
    return [
        theme
        for theme in THEMES
        if asked.theme in (None, theme.name)
        and (asked.only is None or any(asked.only in case.name for case in theme.cases))
    ]


def _measure_scale(asked: argparse.Namespace, console: Console) -> scale.ScaleResult | None:
    """``None``: not asked for."""
    fits = any(asked.only is None or asked.only in case.name for case in scale.CASES)
    if asked.theme not in (None, scale.NAME) or not fits:
        return None
    size = scale.QUICK if asked.quick else scale.FULL
    with _progress(console) as progress:
        task = progress.add_task(scale.NAME, total=None)
        tick = _ticker(progress, task, scale.NAME, console)
        return scale.run(asked.data, size, runs=asked.runs, only=asked.only, tick=tick)


def _measure_remote(asked: argparse.Namespace, console: Console) -> remote.RemoteResult | None:
    """``None``: not asked for."""
    fits = any(asked.only is None or asked.only in name for name in remote.NAMES)
    if asked.theme not in (None, remote.THEME) or not fits:
        return None
    images = asked.images or (HTTP.images_quick if asked.quick else HTTP.images)
    with _progress(console) as progress:
        task = progress.add_task(f"{remote.THEME}: making {images} images", total=None)
        tick = _ticker(progress, task, remote.THEME, console)
        made = data.make(asked.data, images)
        return remote.run(made, quick=asked.quick, runs=asked.runs, only=asked.only, tick=tick)


def _ticker(progress: Progress, task: TaskID, name: str, console: Console) -> Callable[[str], None]:
    def tick(what: str) -> None:
        progress.update(task, advance=1, description=f"{name}: {what}")
        if not console.is_terminal:
            console.print(f"{name}: {what}", highlight=False)

    return tick


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _measure(asked: argparse.Namespace, console: Console) -> list[Result]:
    results = []
    with _progress(console) as progress:
        for theme in _chosen(asked):
            images = asked.images or (theme.images_quick if asked.quick else theme.images)
            task = progress.add_task(f"{theme.name}: making {images} images", total=None)
            made = data.make(asked.data, images)
            cases = [case for case in theme.cases if asked.only is None or asked.only in case.name]
            progress.update(task, total=asked.runs * len(cases) + 1, completed=-1)
            results.append(
                run_theme(
                    theme,
                    made,
                    runs=asked.runs,
                    seconds=theme.seconds_quick if asked.quick else theme.seconds,
                    only=asked.only,
                    tick=_ticker(progress, task, theme.name, console),
                )
            )
            progress.update(task, advance=1, description=f"{theme.name}: done")
    return results


def main(arguments: list[str] | None = None) -> int:
    asked = _arguments(arguments)
    console = Console(stderr=True)
    before = os.getloadavg()[0]
    try:
        if any(theme.served for theme in _chosen(asked)):
            check_server()  # now, and not after the other themes
        huge = _measure_scale(asked, console)
        results = _measure(asked, console)
        far = _measure_remote(asked, console)
    except PeerError as error:
        console.print(f"benchmarks: {error}", style="red", highlight=False, markup=False)
        return 1
    default = _ROOT / "benchmarks" / "results" / report.default_name()
    output = (asked.output or default).resolve()
    load = (before, os.getloadavg()[0])
    sections = [scale.lines(huge)] if huge else []
    sections += [remote.lines(far)] if far else []
    written = report.write(results, output, runs=asked.runs, load=load, sections=sections)
    print(output.read_text(encoding="utf-8"))
    for path in written:
        console.print(f"wrote {os.path.relpath(path)}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
