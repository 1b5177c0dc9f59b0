"""How far the plan of remote samples reaches: counted, without a network."""

from __future__ import annotations

import pytest
from tarpon._ahead import Place, ReadAhead

BATCH = 256


@pytest.mark.parametrize("samples", [400 * BATCH, 401 * BATCH, 401 * BATCH + 1, 99 * BATCH])
def test_the_plan_reaches_a_window_at_every_batch_of_every_epoch(samples: int) -> None:
    """Also where the last window of an epoch holds a single batch."""
    span = 100 * BATCH
    ahead = ReadAhead(bytes=1, most=span, span=span, mean=1, world_size=1)

    def after(epoch: int, start: int) -> Place:
        return (epoch, start + BATCH) if start + 2 * BATCH <= samples else (epoch + 1, 0)

    asked, taken, reached = (0, 0), 0, []
    while asked[0] < 3:
        for _ in ahead.groups(*asked, after):
            pass
        while ahead.asked() < taken + 2:
            asked = after(*asked)
        asked = after(*asked)
        taken += 1
        reached.append(ahead.planned - taken)
    assert min(reached[5:]) >= 90


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        (110_000, [1, 1, 1, 7, 19, 55]),  # far apart: gaps are not read
        (4_000, [1, 1, 1, 7, 1014]),  # 19 batches would read all of the window
    ],
)
def test_a_window_that_would_be_read_for_a_part_of_it_is_planned_whole(
    mean: int, expected: list[int]
) -> None:
    batch, batches = 64, 1024
    span = batch * batches
    ahead = ReadAhead(bytes=1, most=span, span=span, mean=mean, world_size=1)

    def after(epoch: int, start: int) -> Place:
        return (epoch, start + batch) if start + batch < span else (epoch + 1, 0)

    asked, sizes = (0, 0), []
    while len(sizes) < len(expected):
        sizes += [len(group) for group in ahead.groups(*asked, after)]
        ahead.asked()
        asked = after(*asked)
    assert sizes[: len(expected)] == expected
