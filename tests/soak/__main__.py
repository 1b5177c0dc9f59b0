"""The long proofs, and a dated page of what came of them: docs/soak/<date>.md.

    make soak                                                   # an hour and a half on 2 cores
    SOAK_FUZZ_SECONDS=60 SOAK_CYCLES=500 SOAK_FAULTS=2 make soak    # a trial

Fuzzing (SOAK_FUZZ_SECONDS over all targets), random cycles of the loader (SOAK_CYCLES over two
processes, seeds from SOAK_SEED), faults of the network (SOAK_FAULTS of each kind), trainings killed
SOAK_KILLS times, and half as often with two ranks, valgrind's memcheck over the C tests that match
SOAK_VALGRIND. Every part runs, whatever the others found.
Exit status 1: something was found; the page names it.
"""

from __future__ import annotations

import glob
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "soak"  # crash inputs and logs
PROCESSES = 2
CRASHES_MOST = 20  # of one target, then it is left alone
FUZZ_SECONDS = int(os.environ.get("SOAK_FUZZ_SECONDS", "3600"))
CYCLES = int(os.environ.get("SOAK_CYCLES", "200000"))
FAULTS = int(os.environ.get("SOAK_FAULTS", "100"))
KILLS = int(os.environ.get("SOAK_KILLS", "20"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
VALGRIND = os.environ.get("SOAK_VALGRIND", "test_*")  # "" runs none


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part's rows of a table, and what it found."""

    title: str
    heading: tuple[str, ...]
    rows: list[tuple[object, ...]]
    findings: list[str]


def say(line: str) -> None:
    print(f"soak: {time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def shown(command: list[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, **options)


# ---- fuzzing -------------------------------------------------------------------------------------


def fuzz(target: Path, seconds: int) -> tuple[tuple[object, ...], list[str]]:
    """Run one target, again after each crash until the time is up; its row, and the crashes."""
    name = target.name.removeprefix("fuzz_")
    grown, committed = ROOT / "build/corpus" / name, ROOT / "loader/core/fuzz/corpus" / name
    grown.mkdir(parents=True, exist_ok=True)
    began, runs, coverage, findings, last = time.monotonic(), 0, "?", list[str](), ""
    while (left := seconds - (time.monotonic() - began)) > 0.5 and len(findings) < CRASHES_MOST:
        run = shown(
            [
                target,
                f"-max_total_time={max(1, round(left))}",
                "-print_final_stats=1",
                f"-artifact_prefix={KEPT}/{name}-",
                grown,
                committed,
            ]
        )
        runs += int((re.findall(r"number_of_executed_units:\s*(\d+)", run.stderr) or [0])[-1])
        coverage = (re.findall(r"cov: (\d+) ft: (\d+)", run.stderr) or [(coverage, "?")])[-1][0]
        if run.returncode == 0:
            break
        log = KEPT / f"{name}-{len(findings)}.log"
        log.write_text(run.stderr)
        written = re.findall(r"Test unit written to (\S+)", run.stderr)
        kept = [Path(path).relative_to(ROOT) for path in written] or ["no input"]
        summary = (re.findall(r"SUMMARY: (.*)", run.stderr) or ["no summary"])[-1]
        findings.append(f"{target.name}: {summary}; `{kept[0]}`, `{log.relative_to(ROOT)}`")
        say(findings[-1])
        if run.stderr == last:  # ends before it starts
            break
        last = run.stderr
    took = time.monotonic() - began
    say(f"{target.name}: {runs} executions in {took:.0f} s, {len(findings)} findings")
    row = (target.name, f"{took:.0f}", runs, coverage, len(list(grown.iterdir())), len(findings))
    return row, findings


def fuzzing() -> Part:
    subprocess.run(["scripts/fuzz.sh", "build"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    targets = [path for path in sorted(ROOT.glob("build/fuzz/fuzz_*")) if os.access(path, os.X_OK)]
    targets = [path for path in targets if path.is_file()]
    each = max(1, FUZZ_SECONDS // len(targets))
    say(f"fuzzing {', '.join(path.name for path in targets)}, {each} s each")
    with ThreadPoolExecutor(PROCESSES) as pool:
        done = list(pool.map(lambda target: fuzz(target, each), targets))
    return Part(
        title="Fuzzing: libFuzzer with ASan and UBSan",
        heading=("target", "seconds", "executions", "edges", "corpus", "findings"),
        rows=[row for row, _ in done],
        findings=[finding for _, findings in done for finding in findings],
    )


# ---- cycles of the loader ------------------------------------------------------------------------


def some_cycles(number: int) -> tuple[tuple[object, ...], list[str]]:
    seed, count = SEED + number, max(1, CYCLES // PROCESSES)
    log = KEPT / f"cycles-{seed}.log"
    with log.open("w") as errors:  # a cycle that hangs ends the process, with its stacks in the log
        run = subprocess.run(
            [sys.executable, "-m", "tests.soak.cycles", f"--seed={seed}", f"--cycles={count}"],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    if run.returncode != 0:
        lines = log.read_text().splitlines()
        why = f"cycles, seed {seed}: exit status {run.returncode}, {' / '.join(lines[-2:])}"
        say(why)
        return (seed, count, "?", "?", "?", "?"), [f"{why}; `{log.relative_to(ROOT)}`"]
    report = json.loads(run.stdout)
    memory = ", ".join(str(value) for value in report["rss_mib"])
    ways = ", ".join(f"{value} {key}" for key, value in report["ways"].items())
    threads = f"{report['threads'][0]} to {report['threads'][-1]}"
    files = f"{report['files'][0]} to {report['files'][-1]}"
    return (seed, count, report["seconds"], threads, files, memory, ways), []


def cycles() -> Part:
    say(f"{CYCLES} cycles in {PROCESSES} processes, seeds from {SEED}; build/soak/cycles-*.log")
    with ThreadPoolExecutor(PROCESSES) as pool:
        done = list(pool.map(some_cycles, range(PROCESSES)))
    return Part(
        title="Random cycles: open, read, leave a loader",
        heading=("seed", "cycles", "seconds", "threads", "files", "RSS, MiB", "ways"),
        rows=[row for row, _ in done],
        findings=[finding for _, findings in done for finding in findings],
    )


# ---- faults of the network -----------------------------------------------------------------------


def some_faults(number: int) -> tuple[dict[str, Any], list[str]]:
    """Half of the trials of each kind: what the process reported, and what it found."""
    count = max(1, FAULTS // PROCESSES)
    seed = SEED + number * count
    log = KEPT / f"faults-{seed}.log"
    with log.open("w") as errors:
        run = subprocess.run(
            [sys.executable, "-m", "tests.soak.faults", f"--seed={seed}", f"--trials={count}"],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    if run.returncode != 0:
        last = (log.read_text().splitlines() or ["nothing on stderr"])[-1]
        why = f"faults, seed {seed}: exit status {run.returncode}, {last}"
        return {}, [f"{why}; `{log.relative_to(ROOT)}`"]
    report = json.loads(run.stdout)
    findings = [problem for kind in report["kinds"].values() for problem in kind["problems"]]
    return report["kinds"], findings


def faults() -> Part:
    say(f"{FAULTS} trials of each kind of fault; build/soak/faults-*.log")
    with ThreadPoolExecutor(PROCESSES) as pool:
        done = list(pool.map(some_faults, range(PROCESSES)))
    rows: list[tuple[object, ...]] = []
    for name in next((kinds for kinds, _ in done if kinds), {}):
        halves = [kinds[name] for kinds, _ in done if kinds]
        seconds = [each for half in halves for each in half["seconds"]]
        rows.append(
            (
                name,
                halves[0]["expected"],
                len(seconds),
                sum(half["fired"] for half in halves),
                f"{statistics.median(seconds):.2f}",
                max(seconds),
                sum(len(half["problems"]) for half in halves),
            )
        )
    return Part(
        title="Faults of the network, each seen by the proxy's counters",
        heading=("fault", "expected", "trials", "faults", "median, s", "longest, s", "findings"),
        rows=rows,
        findings=[finding for _, findings in done for finding in findings],
    )


# ---- trainings ---------------------------------------------------------------------------------


def killed(processes: int, kills: int) -> tuple[tuple[object, ...], list[str]]:
    """Trainings with so many ranks and kills: a row of the table, and what it found."""
    given = [f"--seed={SEED}", f"--kills={kills}", f"--processes={processes}"]
    run = shown([sys.executable, "-m", "tests.soak.training", *given])
    if run.returncode != 0:
        log = KEPT / f"training-{processes}.log"
        log.write_text(run.stderr)
        last = (run.stderr.splitlines() or ["nothing on stderr"])[-1]
        why = f"training, {processes} ranks, seed {SEED}: {last}; `{log.relative_to(ROOT)}`"
        say(why)
        return (processes, kills, "?", "?", "?"), [why]
    report = json.loads(run.stdout)
    row = (processes, *(report[key] for key in ("kills", "trainings", "attempts", "seconds")))
    return row, []


def trainings() -> Part:
    say(f"{KILLS} kills of trainings with one rank, {-(-KILLS // 2)} with two")
    done = [killed(1, KILLS), killed(2, -(-KILLS // 2))]
    return Part(
        title="Trainings killed at random moments, the same bits at the end",
        heading=("ranks", "kills", "trainings", "attempts", "seconds"),
        rows=[row for row, _ in done],
        findings=[finding for _, findings in done for finding in findings],
    )


# ---- valgrind ------------------------------------------------------------------------------------


def memcheck(test: str) -> tuple[tuple[object, ...], list[str]]:
    began = time.monotonic()
    run = shown(
        ["valgrind", "-q", "--error-exitcode=99", "--num-callers=20", test],
        # Memcheck does not follow libjpeg-turbo's SIMD code; without, every byte of it is known.
        env={**os.environ, "JSIMD_FORCENONE": "1"},
    )
    name = Path(test).name
    findings = []
    if run.returncode != 0:
        log = KEPT / f"memcheck-{name}.log"
        log.write_text(run.stderr)
        findings = [f"memcheck, {name}: exit status {run.returncode}; `{log.relative_to(ROOT)}`"]
    say(f"memcheck {name}: {time.monotonic() - began:.0f} s, {len(findings)} findings")
    return (name, f"{time.monotonic() - began:.0f}", len(findings)), findings


def valgrind() -> Part:
    subprocess.run(
        ["scripts/test_core.sh", "build/core-plain", ""],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    tests = sorted(glob.glob(str(ROOT / "build/core-plain" / VALGRIND)))
    tests = [test for test in tests if os.path.isfile(test) and os.access(test, os.X_OK)]
    with ThreadPoolExecutor(PROCESSES) as pool:
        done = list(pool.map(memcheck, tests))
    return Part(
        title="Memcheck over the C tests",
        heading=("test", "seconds", "findings"),
        rows=[row for row, _ in done],
        findings=[finding for _, findings in done for finding in findings],
    )


# ---- the page ------------------------------------------------------------------------------------


def first_line(*command: str) -> str:
    try:
        return shown(list(command)).stdout.splitlines()[0]
    except (FileNotFoundError, IndexError):  # it is not installed, and its part was not asked for
        return f"no {command[0]}"


def cpu() -> str:
    text = Path("/proc/cpuinfo").read_text()
    return (re.findall(r"model name\s*: (.*)", text) or [platform.machine()])[0]


def table(part: Part) -> str:
    lines = [part.heading, ("---",) * len(part.heading), *part.rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def page(parts: list[Part], began: datetime) -> str:
    took = (datetime.now(UTC) - began).total_seconds() / 60
    commit = first_line("git", "rev-parse", "--short=12", "HEAD")
    dirty = " and changes not committed" if shown(["git", "status", "--porcelain"]).stdout else ""
    findings = [f"- {finding}" for part in parts for finding in part.findings]
    return "\n\n".join(
        [
            f"# Soak of {began:%Y-%m-%d}",
            f"Commit {commit}{dirty}, {took:.0f} minutes on {os.cpu_count()} CPUs ({cpu()}). "
            f"SOAK_FUZZ_SECONDS={FUZZ_SECONDS} SOAK_CYCLES={CYCLES} SOAK_SEED={SEED} "
            f"SOAK_FAULTS={FAULTS} SOAK_KILLS={KILLS} SOAK_VALGRIND='{VALGRIND}'. "
            f"Python {platform.python_version()}, "
            f"{first_line('clang', '--version')}, {first_line('gcc', '--version')}, "
            f"{first_line('valgrind', '--version')}, Linux {platform.release()}.",
            "**Findings:** " + ("none" if not findings else "\n\n" + "\n".join(findings)),
            *(f"## {part.title}\n\n{table(part)}" for part in parts if part.rows),
        ]
    )


def main() -> int:
    if len(sys.argv) > 1:
        print(__doc__)
        return 0 if sys.argv[1] in ("-h", "--help") else 2
    KEPT.mkdir(parents=True, exist_ok=True)
    began = datetime.now(UTC)
    chosen = [
        (FUZZ_SECONDS, fuzzing),
        (CYCLES, cycles),
        (FAULTS, faults),
        (KILLS, trainings),
        (VALGRIND, valgrind),
    ]
    parts = [run() for length, run in chosen if length]
    folder = ROOT / "docs" / "soak"
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{began:%Y-%m-%d}.md"
    out.write_text(page(parts, began) + "\n")
    found = sum(len(part.findings) for part in parts)
    say(f"{found} findings; {out.relative_to(ROOT)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
