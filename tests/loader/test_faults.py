"""A loader over HTTP while the network breaks in every way of tests/soak/fault_kinds.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import tarpon

from tests.servers.faults import reset, stall
from tests.servers.fixtures import or_skip
from tests.soak.fault_kinds import KINDS, Kind
from tests.soak.faults import SLACK_S, Bench

QUICK = ("reset in a body", "body cut off", "changed object")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with or_skip():
        running = Bench.running(tmp_path_factory.mktemp("faults"))
        bench = running.__enter__()
    yield bench
    running.__exit__(None, None, None)


def trials() -> Iterator[object]:
    for kind in KINDS:
        for seed in range(3):
            marks = [pytest.mark.slow, pytest.mark.sanitized] if seed == 0 else [pytest.mark.slow]
            if kind.name in QUICK and seed == 0:
                marks = []
            yield pytest.param(kind, seed, id=f"{kind.name}-{seed}", marks=marks)


@pytest.mark.parametrize(("kind", "seed"), list(trials()))
def test_a_fault_leaves_no_trace_or_one_error(bench: Bench, kind: Kind, seed: int) -> None:
    outcome = bench.run_trial(kind, seed)
    assert outcome.problem is None, outcome


def test_a_trial_notices_that_nothing_happened(bench: Bench) -> None:
    kind = Kind(name="reset behind the end", fault=lambda *_: reset(1 << 40))
    assert bench.run_trial(kind, 0).problem == "the fault did not happen"


def test_a_trial_notices_another_error(bench: Bench) -> None:
    [gone] = [kind for kind in KINDS if kind.name == "gone"]
    wrong = replace(gone, error=tarpon.CorruptShardError)
    problem = bench.run_trial(wrong, 0).problem
    assert problem is not None
    assert problem.startswith("expected CorruptShardError, got StoreError: http")


@pytest.mark.slow
def test_a_trial_notices_that_it_hangs(bench: Bench) -> None:
    """The loader would give up by itself, but later than the trial waits."""
    timeout_s = 6.0
    kind = Kind(
        name="silence",
        fault=lambda *_: stall(0),
        error=tarpon.LoaderTimeoutError,
        timeout_s=timeout_s,
    )
    outcome = bench.run_trial(kind, 0, slack_s=1 - timeout_s)
    assert outcome.problem == "hangs; its stack is on stderr"
    assert 1 <= outcome.seconds < SLACK_S
