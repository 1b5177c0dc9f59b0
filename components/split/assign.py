"""Which side each unit goes to: pure arithmetic on counts, no catalog and no hashing.

A *unit* is a set of samples that must stay together.  Units are dealt out largest first, each to
the side that still lacks most of what the unit holds, so that large units shape the sides and
single samples level them out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from components.manifest import SPLITS

Counts = Mapping[str, int]
Quotas = Mapping[str, Sequence[int]]


def quotas_overall(samples: int, fractions: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `samples`, each less than one away from its fraction."""
    return _round(samples, fractions, carried=[0.0] * len(fractions))


def quotas_by_class(sizes: Counts, fractions: Sequence[float]) -> dict[str, list[int]]:
    """Per class whole numbers as in `quotas_overall`, train never 0.

    What rounding takes from a side in one class is owed to it in the next, so that a thousand
    classes of three samples each still fill val and test.
    """
    carried = [0.0] * len(fractions)
    quotas = {}
    for label in sorted(sizes):
        quota = _round(sizes[label], fractions, carried=carried)
        if quota[0] == 0:
            quota[quota.index(max(quota))] -= 1
            quota[0] = 1
        carried = [
            owed + fraction * sizes[label] - given
            for owed, fraction, given in zip(carried, fractions, quota, strict=True)
        ]
        quotas[label] = quota
    return quotas


def _round(count: int, fractions: Sequence[float], *, carried: Sequence[float]) -> list[int]:
    """Largest remainder; a side that wants a whole number gets exactly that."""
    wanted = [fraction * count for fraction in fractions]
    quota = [math.floor(want + 1e-9) for want in wanted]
    remainder = [want - whole for want, whole in zip(wanted, quota, strict=True)]
    seats = sorted(
        (side for side in range(len(fractions)) if fractions[side] > 0),
        key=lambda side: (remainder[side] <= 1e-9, -(remainder[side] + carried[side]), side),
    )
    for side in seats[: count - sum(quota)]:
        quota[side] += 1
    return quota


def deal(units: Sequence[Counts], quotas: Quotas, *, pinned: Mapping[int, int]) -> list[int]:
    """Give every unit a side.

    Args:
        units: Samples per class in each unit, in the order that breaks ties between equal sizes.
        quotas: Samples per side that each class should come to.
        pinned: Units whose side is already decided.

    Returns:
        The side of each unit, an index into `manifest.SPLITS`.
    """
    lacking = {label: list(quota) for label, quota in quotas.items()}
    open_sides = [
        side for side in range(len(SPLITS)) if any(quota[side] for quota in quotas.values())
    ]
    order = sorted(
        range(len(units)), key=lambda index: (index not in pinned, -sum(units[index].values()))
    )
    sides = [0] * len(units)
    for index in order:
        unit = units[index]
        side = pinned.get(index, -1)
        if side < 0:
            side = max(open_sides, key=lambda s: (_want(unit, lacking, s), -s))
        sides[index] = side
        for label, count in unit.items():
            lacking[label][side] -= count
    return sides


def _want(unit: Counts, lacking: Mapping[str, Sequence[int]], side: int) -> int:
    return sum(count * lacking[label][side] for label, count in unit.items())


def fill_empty(
    units: Sequence[Counts],
    sides: list[int],
    fractions: Sequence[float],
    *,
    pinned: Mapping[int, int],
) -> None:
    """Move one unit to each side that should hold something and does not, where one can be spared.

    Coarse units can leave a small side empty although three groups could fill three sides.  A unit
    can be spared when its side keeps another unit of each of its classes; of those the one nearest
    in size to what the side should hold moves.  Changes `sides` in place.
    """
    total = sum(sum(unit.values()) for unit in units)
    for side, fraction in enumerate(fractions):
        if fraction <= 0 or side in sides:
            continue
        held = Counter((sides[index], label) for index, unit in enumerate(units) for label in unit)
        spare = [
            index
            for index, unit in enumerate(units)
            if index not in pinned and all(held[sides[index], label] > 1 for label in unit)
        ]
        if spare:
            goal = fraction * total
            sides[min(spare, key=lambda i: (abs(sum(units[i].values()) - goal), i))] = side
