"""The order of an epoch, against a plain Python model of it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tarpon import _core

MASK = 2**64 - 1
ODD = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def model(samples: int, seed: int, epoch: int, position: int) -> int:
    """order.c in ten lines of Python."""
    columns = math.isqrt(samples - 1) + 1
    rows = -(-samples // columns)
    state = mix((seed + ODD) & MASK) ^ mix(~epoch & MASK)
    keys = [mix((state + (i + 1) * ODD) & MASK) for i in range(8)]
    while True:
        row, column = divmod(position, columns)
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            row = (row + (mix((column + even) & MASK) * rows >> 64)) % rows
            column = (column + (mix((row + odd) & MASK) * columns >> 64)) % columns
        position = row * columns + column
        if position < samples:
            return position


def order(samples: int, seed: int, epoch: int) -> list[int]:
    return np.frombuffer(_core.order(samples, True, seed, epoch, 0, samples), np.int64).tolist()


# Frozen: whoever changes this list changes everybody's order, and takes a new ORDER_VERSION.
GOLDEN = [3, 5, 7, 11, 4, 6, 8, 0, 9, 10, 2, 1]


def test_the_order_of_twelve_samples_is_frozen() -> None:
    assert _core.ORDER_VERSION == 1
    assert order(12, 17, 3) == GOLDEN


@pytest.mark.parametrize("samples", [1, 2, 3, 5, 16, 17, 97, 256, 257, 1021])
def test_every_epoch_is_a_permutation_and_the_model_agrees(samples: int) -> None:
    found = order(samples, 5, 2)
    assert sorted(found) == list(range(samples))
    assert found == [model(samples, 5, 2, position) for position in range(samples)]


@settings(deadline=None, max_examples=100)
@given(
    samples=st.integers(1, 2**40),
    seed=st.integers(0, MASK),
    epoch=st.integers(0, 2**32),
    data=st.data(),
)
def test_any_position_of_any_dataset(
    samples: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, samples - 1))
    sample = int(np.frombuffer(_core.order(samples, True, seed, epoch, position, 1), np.int64)[0])
    assert sample == model(samples, seed, epoch, position)
    assert _core.position(samples, True, seed, epoch, sample) == position


def test_neighbours_scatter() -> None:
    found = np.array(order(10_000, 0, 0))
    distance = np.abs(np.diff(found))
    assert abs(distance.mean() - 10_000 / 3) < 150  # of a uniform permutation
    assert (distance == 1).sum() < 10


def test_positions_outside_the_epoch_are_refused() -> None:
    with pytest.raises(ValueError, match="outside the epoch"):
        _core.order(10, True, 0, 0, 9, 2)
    with pytest.raises(IndexError, match="outside the dataset"):
        _core.position(10, True, 0, 0, 10)
