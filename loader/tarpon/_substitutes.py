"""The samples known to be bad, and which others stand in for them: the next good ones of their
lanes, and where a lane has none, of the whole epoch.

Nothing here reads a sample. What is remembered beside the bad ones only saves looking again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise, starmap

import numpy as np

from tarpon._decode import Ask
from tarpon._order import Int64s, Order
from tarpon.errors import BadSampleError

_AT_ONCE = 64  # places of a lane looked at together; each time twice as many


@dataclass(slots=True, kw_only=True)
class _Run:
    """Places of one lane, one after the other, that hold bad samples only.

    Attributes:
        first: Position of the first.
        length: How many; more may follow.
    """

    order: Order
    epoch: int
    first: int
    length: int = 1


@dataclass(slots=True)
class Substitutes:
    """The bad samples of one loader.

    Attributes:
        errors: What is wrong with each, by its number in the dataset.
        since: How many batches were planned when that was found.
    """

    errors: dict[int, BadSampleError] = field(default_factory=dict)
    since: dict[int, int] = field(default_factory=dict)
    _runs: dict[tuple[int, int], _Run] = field(default_factory=dict)  # the last one of each lane

    def lay_out(self, order: Order, epoch: int, positions: Int64s) -> tuple[Int64s, Int64s]:
        """What stands at `positions`, and what to take."""
        planned = order.samples_at(epoch, positions)
        if not self.errors:
            return planned, planned
        indices = planned.copy()
        for slot, sample in enumerate(planned.tolist()):
            if sample in self.errors:
                indices[slot] = self.next_ones(order, epoch, int(positions[slot]), 1)[0]
        return planned, indices

    def trial(self, order: Order, ask: Ask, bad: Iterable[int], most: int) -> Ask:
        """About `most` samples that may stand in for those in the `bad` slots, only to be looked
        at; what stands in those slots already is known to be bad.
        """
        places = {int(ask.indices[slot]): int(ask.positions[slot]) for slot in bad}
        each = max(most // len(places), 1)
        runs = [self.next_ones(order, ask.epoch, place, each) for place in places.values()]
        lengths = [*map(len, runs)]
        positions = np.repeat([*places.values()], lengths)
        return replace(
            ask,
            indices=np.concatenate(runs),
            positions=positions,
            valid=positions < order.samples,
            tries=tuple(starmap(range, pairwise(accumulate(lengths, initial=0)))),
        )

    def next_ones(self, order: Order, epoch: int, position: int, count: int) -> list[int]:
        """Up to `count` samples not known to be bad that may stand in for the bad one at
        `position`, the first that may first; at least one.

        A long run of bad samples is walked once, not for each of them.

        Raises:
            BadSampleError: All samples are bad.
        """
        for lanes in (order.lanes, 1):
            run = self._run(order, epoch, position % order.samples, lanes)
            at_once = max(count, _AT_ONCE)
            while len(there := order.onward(run.first, run.length, at_once, lanes=lanes)) > 0:
                samples = order.samples_at(epoch, there).tolist()
                unknown = [sample for sample in samples if sample not in self.errors]
                if unknown:
                    run.length += samples.index(unknown[0])
                    return unknown[:count]
                run.length += len(samples)
                at_once *= 2
        first = next(iter(self.errors.values()))
        raise BadSampleError(f"all {order.samples} samples are bad, the first one: {first}")

    def _run(self, order: Order, epoch: int, position: int, lanes: int) -> _Run:
        """The bad samples around the one at `position`, as far as is known."""
        run = self._runs.get((lanes, position % lanes))
        if (
            run is None
            or (run.order, run.epoch) != (order, epoch)
            or order.steps(run.first, position, lanes=lanes) >= run.length
        ):
            run = _Run(order=order, epoch=epoch, first=position)
            self._runs[lanes, position % lanes] = run
        return run


def in_turn(tries: Iterable[range], bad: Mapping[int, BadSampleError]) -> dict[int, BadSampleError]:
    """Of the samples in these slots, which were tried together, those that would have been tried
    one after the other: of each range the bad ones before the first good one.
    """
    found: dict[int, BadSampleError] = {}
    for slots in tries:
        for slot in slots:
            if slot not in bad:
                break
            found[slot] = bad[slot]
    return found
