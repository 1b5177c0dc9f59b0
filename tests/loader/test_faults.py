"""A loader over HTTP while the network breaks in every way of tests/soak/fault_kinds.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.fixtures import or_skip
from tests.soak.fault_kinds import KINDS, Kind
from tests.soak.faults import Bench

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
