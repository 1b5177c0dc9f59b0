"""The order of an epoch, against a plain Python model of it, and how well it mixes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tarpon
from hypothesis import given, settings
from hypothesis import strategies as st
from tarpon import _core
from tarpon._order import Order

from tests.loader.order_model import MASK, model


def make(samples: int, chunk: int = 4, lanes: int = 2, window: int = 6, **more: Any) -> Order:
    spec = {"samples": samples, "chunk": chunk, "lanes": lanes, "window": window} | more
    return Order(**{"shuffle": True, "seed": 17} | spec)


def epoch_of(order: Order, epoch: int) -> list[int]:
    return order.samples_at(epoch, np.arange(order.samples)).tolist()


# Frozen: whoever changes these lists changes everybody's order, and takes a new ORDER_VERSION.
GOLDEN = [0, 10, 1, 11, 2, 4, 9, 7, 8, 5, 3, 6]
GOLDEN_1 = [3, 5, 7, 11, 4, 6, 8, 0, 9, 10, 2, 1]


def test_the_order_of_twelve_samples_is_frozen() -> None:
    assert _core.ORDER_VERSION == 2
    assert epoch_of(make(12), 3) == GOLDEN
    assert epoch_of(make(12, version=1), 3) == GOLDEN_1


@pytest.mark.parametrize("samples", [1, 2, 3, 5, 16, 17, 97, 256, 257, 1021])
@pytest.mark.parametrize(
    "shape",
    [{}, {"version": 1}, {"chunk": 7, "lanes": 3, "window": 50}, {"lanes": 1, "window": 10**6}],
    ids=str,
)
def test_every_epoch_is_a_permutation_and_the_model_agrees(
    samples: int, shape: dict[str, int]
) -> None:
    order = make(samples, **shape)
    found = epoch_of(order, 2)
    assert sorted(found) == list(range(samples))
    assert found == model(order, 2)
    assert [order.position_of(2, sample) for sample in found] == list(range(samples))


shapes = st.builds(
    make,
    samples=st.integers(1, 400) | st.sampled_from([509, 512, 513, 1021, 4096, 4097, 65537]),
    chunk=st.integers(1, 100),
    lanes=st.integers(1, 70),
    window=st.integers(1, 2000),
    seed=st.integers(0, MASK),
)


@settings(deadline=None, max_examples=150)
@given(order=shapes, epoch=st.integers(0, 2**40))
def test_any_order_is_a_permutation(order: Order, epoch: int) -> None:
    found = epoch_of(order, epoch)
    assert np.array_equal(np.sort(found), np.arange(order.samples))
    if order.samples <= 400:
        assert found == model(order, epoch)


@settings(deadline=None, max_examples=100)
@given(
    samples=st.integers(1, 2**62),
    shape=st.tuples(*[st.integers(1, 2**62) | st.integers(1, 10_000)] * 3),
    epoch=st.integers(0, 2**32),
    data=st.data(),
)
def test_any_position_of_any_dataset_and_back(
    samples: int, shape: tuple[int, int, int], epoch: int, data: st.DataObject
) -> None:
    order = make(samples, *shape)
    position = data.draw(st.integers(0, samples - 1))
    (sample,) = order.samples_at(epoch, np.array([position]))
    assert order.position_of(epoch, int(sample)) == position


@settings(deadline=None, max_examples=200)
@given(order=shapes, batch=st.integers(1, 9), world=st.integers(1, 12), data=st.data())
def test_ranks_share_every_global_batch_and_know_where(
    order: Order, batch: int, world: int, data: st.DataObject
) -> None:
    total = batch * world
    step = data.draw(st.integers(0, 20))
    start = step * total + data.draw(st.sampled_from([0, 0, 1, total // 2]))
    shares = [order.share(start, total, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(shares)) == list(range(start, start + total))
    for rank, share in enumerate(shares):
        assert len(share) == batch
        if order.lanes % world == 0:
            assert set(share % order.lanes % world) == {rank}
        first = start - step * total
        assert [order.owner(int(p), first, total, world) for p in share] == [
            (step, rank, slot) for slot in range(batch)
        ]


@settings(deadline=None, max_examples=100)
@given(order=shapes, data=st.data())
def test_a_lane_goes_round(order: Order, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, order.samples - 1))
    lanes = data.draw(st.sampled_from([order.lanes, 1]))
    found: list[int] = []
    while len(more := order.onward(position, len(found), 7, lanes=lanes)) > 0:
        found += more.tolist()
    lane = range(position % lanes, order.samples, lanes)
    at = lane.index(position)
    assert found == [*lane[at:], *lane[:at]]
    assert [order.steps(position, there, lanes=lanes) for there in found] == [*range(len(lane))]


def of(**changed: Any) -> Order:
    asked = {
        "samples": 1_281_167,
        "total_bytes": 1_281_167 * 110_000,
        "global_batch": 256,
        "shuffle": True,
        "seed": 0,
        "lanes": None,
        "window_samples": None,
    }
    return Order.of(**asked | changed)


def test_defaults_follow_from_the_dataset_and_the_global_batch() -> None:
    order = of()
    assert (order.lanes, order.window, order.chunk) == (64, 14_641, 38)
    assert [of(global_batch=g).lanes for g in (1, 7, 60, 96, 130, 4096)] == [1, 7, 60, 48, 26, 64]
    tiny = of(total_bytes=1_281_167 * 700)
    assert (tiny.window, tiny.chunk) == (65_536, 256)
    huge = of(total_bytes=1_281_167 * 10**9)
    assert (huge.window, huge.chunk) == (256, 1)
    small = of(samples=100, total_bytes=100 * 110_000)
    assert (small.window, small.chunk) == (100, 1)
    whole = of(window_samples="all")
    assert (whole.lanes, whole.window) == (1, 1_281_167)
    asked = of(lanes=8, window_samples=1000)
    assert (asked.lanes, asked.window, asked.chunk) == (8, 1000, 31)
    plain = of(shuffle=False, lanes=8)
    assert (plain.lanes, plain.window) == (1, 1_281_167)


def test_one_window_scatters_neighbours_over_everything() -> None:
    found = np.array(epoch_of(of(samples=10_000, window_samples="all"), 0))
    distance = np.abs(np.diff(found))
    assert abs(distance.mean() - 10_000 / 3) < 150  # of a uniform permutation
    assert (distance == 1).sum() < 10


def test_what_is_outside_is_refused() -> None:
    with pytest.raises(IndexError, match="a position outside the epoch"):
        _core.order(make(10)._spec, 0, np.array([9, 10]))
    with pytest.raises(IndexError, match="outside the dataset"):
        make(10).position_of(0, 10)
    with pytest.raises(ValueError, match="lanes=0, expected 1 to 2\\^62"):
        make(10, lanes=0).position_of(0, 1)
    with pytest.raises(ValueError, match="order version 3, expected 1 to 2"):
        make(10, version=3).position_of(0, 1)


def test_a_state_says_what_order_it_is_of() -> None:
    order = make(100)
    assert order.restored(order.state(), fixed=frozenset()) == order
    other = make(100, chunk=9, lanes=5, window=30)
    assert order.restored(other.state(), fixed=frozenset()) == other
    old = make(100, version=1, chunk=1, lanes=1, window=100)
    assert order.restored(old.state(), fixed=frozenset()) == old
    assert "lanes" not in old.state()
    for state in (other.state(), old.state()):
        with pytest.raises(tarpon.StateMismatchError, match=r"lanes \d, this loader has 2"):
            order.restored(state, fixed=frozenset({"lanes"}))
    whole = make(100, lanes=1, window=100)  # as the first order was
    assert whole.restored(old.state(), fixed=frozenset({"lanes", "window"})) == old
    for wrong in ({"order": 9}, {"order": True}, {"chunk": 0}, {"window": "all"}, {"lanes": 2**63}):
        with pytest.raises(tarpon.StateMismatchError, match="state of"):
            order.restored(order.state() | wrong, fixed=frozenset())
