"""Runs the cases of a theme in turn, each in a process of its own, and compares them by rounds.

A round runs every case once. Ratios are taken within a round, where whatever else the machine did
hit both sides, and their median is reported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import ABSENT
from benchmarks.cases import Bar, Case, Rate, Theme
from benchmarks.data import DataSet
from benchmarks.measure import Look, Run
from tests.servers import nginx, process

_ROOT = Path(__file__).resolve().parent.parent
_TIMEOUT_S = 600
# of the maths libraries: nobody's spinning is to be counted as work
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_GREY_LEVELS = 3.0  # peers that draw other boxes see other parts of the images


class PeerError(RuntimeError):
    """A case failed, or did not read the bytes that it was to read."""


class AbsentError(PeerError):
    """A case's peer cannot be imported; the message is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Median, smallest and largest of one figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median=statistics.median(values), low=min(values), high=max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The runs of a theme's cases, round by round; ``runs[case][round]``.

    `absent` says of each case that could not run why its peer cannot be imported.
    """

    theme: Theme
    data: DataSet
    runs: dict[str, list[Run]]
    absent: dict[str, str] = field(default_factory=dict)

    def spread(self, case: str, figure: Callable[[Run], float]) -> Spread:
        return Spread.of([figure(run) for run in self.runs[case]])

    def rate(self, case: str) -> Spread:
        return self.spread(case, lambda run: rate_of(run, self.theme.rate))

    def ratio(self, ours: str, peer: str, *, rate: Rate | None = None) -> Spread:
        """How many times faster `ours` was than `peer`, within each round."""
        pairs = zip(self.runs[ours], self.runs[peer], strict=True)
        rate = rate or self.theme.rate
        return Spread.of([rate_of(a, rate) / rate_of(b, rate) for a, b in pairs])

    def bars(self) -> list[Bar]:
        """Those whose both sides were asked for, also where one is not installed."""
        asked = self.runs.keys() | self.absent.keys()
        return [bar for bar in self.theme.bars if {bar.ours, bar.peer} <= asked]


def rate_of(run: Run, rate: Rate) -> float:
    return run.samples_per_s if rate == "samples_per_s" else run.samples_per_cpu_s


def run_case(case: Case, data: DataSet, *, seconds: float, look: Look) -> Run:
    """One run in a fresh process."""
    asked = {
        "peer": case.peer,
        "settings": case.settings,
        "data": asdict(data),
        "seconds": seconds,
        "look": look,
    }
    env = _ONE_THREAD | case.env
    return Run(**run_module("benchmarks.measure", asked, name=case.name, env=env))


def run_module(module: str, asked: Any, *, name: str, env: Mapping[str, str] = _ONE_THREAD) -> Any:
    """Run a module with one argument of JSON in a fresh process; returns the JSON it prints last.

    Raises:
        AbsentError: It ended with `ABSENT`.
        PeerError: It ended with another status than 0, or not at all; the message carries its
            last lines.
    """
    # some peers leave files in the temporary folder, for others of their kind to find
    with tempfile.TemporaryDirectory(prefix="tarpon-bench-") as scratch:
        try:
            done = subprocess.run(
                [sys.executable, "-m", module, json.dumps(asked)],
                cwd=_ROOT,
                env=os.environ | {"TMPDIR": scratch} | env,
                capture_output=True,
                text=True,
                check=False,
                timeout=_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as error:
            raise PeerError(f"{name}: not done after {_TIMEOUT_S} s, expected a minute") from error
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode == ABSENT:
        raise AbsentError(last)
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-12:])
        raise PeerError(f"{name}: ended with {done.returncode}\n{tail}")
    return json.loads(last)


def prove(theme: Theme, cases: Sequence[Case], data: DataSet) -> dict[str, str]:
    """Let every case make one epoch, and compare what it handed over with what is in the set.

    Returns:
        The cases whose peer is not installed, and why.

    Raises:
        PeerError: Another number of samples, other bytes, other labels, or other pictures.
    """
    greys: dict[str, float] = {}
    absent: dict[str, str] = {}
    for case in cases:
        if case.proof == "none":
            continue
        try:
            run = run_case(case, data, seconds=0, look="check")
        except AbsentError as error:
            absent[case.name] = str(error)
            continue
        found: tuple[int, ...] = (run.samples, run.bytes, run.crc, run.labels)
        copies = case.settings.get("copies", 1)
        facts = (data.samples, data.bytes, data.crc, data.labels)
        expected = tuple(copies * fact % 2**64 for fact in facts)
        if case.proof == "grey":
            found, expected = found[:1], expected[:1]
            greys[case.name] = run.grey
        if found != expected:
            raise PeerError(
                f"{theme.name}/{case.name}: samples, bytes, checksum, labels {found}, expected "
                f"{expected}; it does not read the same bytes as the others"
            )
    for name, grey in greys.items():
        if abs(grey - greys[next(iter(greys))]) > _GREY_LEVELS:
            raise PeerError(f"{theme.name}: mean grey levels {greys}: {name} makes other pictures")
    return absent


@contextlib.contextmanager
def served(data: DataSet) -> Iterator[DataSet]:
    """The set, with the URL of an nginx that serves it meanwhile.

    Raises:
        PeerError: nginx did not start.
    """
    with _nginx(Path(data.root)) as server:
        yield dataclasses.replace(data, url=server.url)


@contextlib.contextmanager
def _nginx(folder: Path) -> Iterator[nginx.WebServer]:
    try:
        with nginx.running(folder) as server:
            yield server
    except process.ServerError as error:
        raise PeerError(str(error)) from error


def check_server() -> None:
    """Raise PeerError where nginx cannot serve a set."""
    with tempfile.TemporaryDirectory() as folder, _nginx(Path(folder)):
        pass


def run_theme(
    theme: Theme,
    data: DataSet,
    *,
    runs: int,
    seconds: float,
    only: str | None = None,
    tick: Callable[[str], None] = lambda _: None,
) -> Result:
    """Every case (whose name contains `only`) `runs` times, A B A B, after the proof.

    `tick` is called before each run with what is about to run.
    """
    cases = [case for case in theme.cases if only is None or only in case.name]
    with served(data) if theme.served else contextlib.nullcontext(data) as data:
        tick("proof")
        absent = prove(theme, cases, data)
        present = [case for case in cases if case.name not in absent]
        made: dict[str, list[Run]] = {case.name: [] for case in present}
        for number in range(runs):
            for case in present:
                tick(f"round {number + 1} of {runs}, {case.name}")
                made[case.name].append(run_case(case, data, seconds=seconds, look=theme.look))
    return Result(theme=theme, data=data, runs=made, absent=absent)
