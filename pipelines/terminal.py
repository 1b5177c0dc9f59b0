"""What a person sees of a local run: one line per step, then a summary.

On a terminal a running step also shows its latest line of output; elsewhere only finished steps
are written, so logs stay short. Nothing is decided here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from pipelines.local import StepResult

SHOWN = {
    "ingest": ("ok", "quarantined"),
    "profile": ("exact_duplicates", "near_duplicate_pairs"),
    "split": ("counts.train", "counts.val", "counts.test"),
    "plan": ("shards",),
    "pack": ("written", "skipped"),
    "seal": ("version", "samples.train", "samples.val", "samples.test"),
    "train": ("epochs", "val_accuracy"),
    "evaluate": ("accuracy",),
    "register": ("version", "alias"),
}
"""Of each step's summary, what belongs beside its time."""

_NAME_WIDTH = 10


class Terminal:
    """A ``Watcher`` that writes to stderr; stdout is left to the summary."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[line]}"),
            console=self._console,
            transient=True,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def started(self, step: str) -> None:
        """Show the step as running."""
        if self._console.is_terminal:
            self._bars[step] = self._progress.add_task(step.ljust(_NAME_WIDTH), total=None, line="")

    def said(self, step: str, line: str) -> None:
        """Show the newest line of a running step."""
        if step in self._bars and line and not line.startswith(("[KFP Executor", "{", "}", " ")):
            room = max(20, self._console.width - _NAME_WIDTH - 16)
            shown = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line)[:room].replace("[", r"\[")
            self._progress.update(self._bars[step], line=shown)

    def finished(self, result: StepResult) -> None:
        """Write the step's one line."""
        if result.name in self._bars:
            self._progress.remove_task(self._bars.pop(result.name))
        mark = Text("  ok", "green") if result.exit_code == 0 else Text("fail", "bold red")
        line = Text.assemble(
            mark,
            f"  {result.name.ljust(_NAME_WIDTH)} {result.seconds:6.1f} s   ",
            (outcome(result), "dim"),
        )
        line.rstrip()
        self._console.print(line, soft_wrap=True)

    def note(self, text: str) -> None:
        """A remark that is neither progress nor result."""
        self._console.print(Text(f"note: {text}", "yellow"), soft_wrap=True)

    def error(self, text: str) -> None:
        """What went wrong, prominently."""
        self._console.print(Text(f"error: {text}", "bold red"), soft_wrap=True)


def outcome(result: StepResult) -> str:
    """The few numbers of a step's report that say what it did."""
    wanted = SHOWN.get(result.name.partition(".")[0], ())
    found: Mapping[str, Any] = result.metadata
    pairs = [(name.rpartition(".")[2], found[name]) for name in wanted if name in found]
    return ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in pairs)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.4f}"
    return str(value)
