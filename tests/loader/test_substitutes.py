"""Who stands in for bad samples, against the plain rule; and what a long run of them costs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tarpon
from hypothesis import given, settings
from hypothesis import strategies as st
from tarpon._order import Order
from tarpon._substitutes import Substitutes

from tests.loader.tars import write_tar

SAMPLES = 300
FIELDS = {"label": tarpon.Int("cls")}


def stands_in(line: list[int], position: int, lanes: int, bad: set[int]) -> int:
    """The rule itself: the next good one of the lane, round and round; else of the whole line."""
    lane = line[position % lanes :: lanes]
    at = position // lanes
    rest = [*lane[at:], *lane[:at], *line[position + 1 :], *line[:position]]
    return next(sample for sample in rest if sample not in bad)


@settings(deadline=None, max_examples=50)
@given(
    samples=st.integers(2, 90),
    lanes=st.sampled_from([1, 2, 3, 7]),
    batches=st.lists(st.lists(st.integers(0, 89), max_size=40), min_size=1, max_size=4),
    data=st.data(),
)
def test_the_next_good_one_however_the_bad_ones_became_known(
    samples: int, lanes: int, batches: list[list[int]], data: st.DataObject
) -> None:
    order = Order(shuffle=True, seed=3, samples=samples, chunk=2, lanes=lanes, window=20)
    substitutes, error = Substitutes(), tarpon.BadSampleError("bad")
    for found in batches:
        substitutes.errors |= {n: error for n in found if n < samples - 1}  # one is good
        epoch = data.draw(st.sampled_from([0, 0, 1]))
        line = order.samples_at(epoch, np.arange(samples)).tolist()
        positions = np.array(data.draw(st.lists(st.integers(0, 2 * samples), min_size=1)))
        planned, indices = substitutes.lay_out(order, epoch, positions)
        assert planned.tolist() == [line[at % samples] for at in positions]
        bad = {*substitutes.errors}
        assert indices.tolist() == [stands_in(line, at % samples, lanes, bad) for at in positions]


def spoiled(folder: Path, bad: set[int]) -> Path:
    members = [(f"{n:04}.cls", b"no" if n in bad else b"%d" % n) for n in range(SAMPLES)]
    return write_tar(folder / "a.tar", members)


@pytest.mark.parametrize(
    ("first", "order", "ceiling"),
    [
        (50, {"shuffle": False}, None),
        (63, {"shuffle": False}, None),  # one slot of its batch
        (64, {"shuffle": False}, 1 << 20),
        (64, {"lanes": 16, "window_samples": 32}, None),
        (64, {"window_samples": "all"}, 1 << 20),
    ],
)
def test_a_long_run_is_not_read_a_batch_for_each(
    tmp_path: Path,
    first: int,
    order: dict[str, Any],
    ceiling: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = {*range(first, 270)}
    tar = spoiled(tmp_path, bad)
    given = {"batch_size": 16, "fields": FIELDS, "seed": 5, "last": "pad", **order}
    with tarpon.Loader(tar, fields={"any": tarpon.Raw("cls")}, batch_size=16, seed=5, last="pad",
                       **order) as plain:  # fmt: skip
        line = [int(n) for batch in plain for n in batch.indices][:SAMPLES]
        lanes, read = plain.state_dict()["lanes"], plain.stats()["bytes"]
    caplog.set_level(logging.WARNING, "tarpon")
    with tarpon.Loader(tar, on_bad_sample="substitute", buffer_bytes=ceiling, **given) as loader:
        found = np.concatenate([batch.indices for batch in loader]).tolist()
        stats = loader.stats()
    expected = [stands_in(line, at % SAMPLES, lanes, bad) for at in range(len(found))]
    assert found == expected
    assert sorted(int(one["key"]) for one in stats["bad_samples"]) == sorted(bad)
    assert len(caplog.records) == len(bad)
    assert stats["bytes"] < 6 * read
