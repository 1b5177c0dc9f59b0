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
