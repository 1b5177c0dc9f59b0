"""RandomResizedCrop draws as torchvision's does: the same distribution, fallback and all."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from tarpon import _core

DRAWS = 5000
USUAL = (0.08, 1.0), (3 / 4, 4 / 3)
Ranges = tuple[tuple[float, float], tuple[float, float]]
Box = tuple[float, float, float, float]


def torchvisions(width: int, height: int, ranges: Ranges, rng: np.random.Generator) -> Box:
    """`RandomResizedCrop.get_params` of torchvision, as its documentation has it."""
    (scale, ratio) = ranges
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            return x, y, x + w, y + h
    return fallback(width, height, ratio)


def fallback(width: int, height: int, ratio: tuple[float, float]) -> Box:
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h


def gap(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """The Kolmogorov-Smirnov statistic: how far apart the two distributions are at most."""
    at = np.concatenate([a, b])
    ranks = [np.searchsorted(np.sort(values), at, side="right") / len(values) for values in (a, b)]
    return float(np.abs(ranks[0] - ranks[1]).max())


@pytest.mark.parametrize(
    ("width", "height", "ranges"),
    [
        (640, 480, USUAL),
        (37, 53, USUAL),  # whole pixels matter
        (2000, 100, USUAL),  # most tries do not fit, and now and then none of ten does
        (60, 3000, USUAL),
        (500, 375, ((0.5, 1.0), (0.4, 3.0))),
        (640, 480, ((1.0, 1.0), (1.2, 1.4))),  # fits by luck
        (2, 3, USUAL),
    ],
)
def test_boxes_are_distributed_as_torchvisions(width: int, height: int, ranges: Ranges) -> None:
    rng = np.random.default_rng(5)
    found = np.array(
        [_core.random_box(width, height, *ranges, 0.5, 3, 1, p)[:4] for p in range(DRAWS)]
    )
    expected = np.array([torchvisions(width, height, ranges, rng) for _ in range(DRAWS)])
    most = 1.95 * math.sqrt(2 / DRAWS)  # one pair of equal distributions in a thousand is above
    measures = {}
    for name, boxes in (("found", found), ("expected", expected)):
        x0, y0, x1, y1 = boxes.T
        w, h = x1 - x0, y1 - y0
        measures[name] = {
            "area": w * h,
            "log ratio": np.log(w / h),
            "x": x0,
            "y": y0,
            "x among the places there are": x0 / np.maximum(width - w, 1),
            "y among the places there are": y0 / np.maximum(height - h, 1),
            "x against y": x0 * height + y0 * width,
        }
    for measure in measures["found"]:
        off = gap(measures["found"][measure], measures["expected"][measure])
        assert off < most, measure
    last = fallback(width, height, ranges[1])
    share, other = (float((boxes == last).all(1).mean()) for boxes in (found, expected))
    assert abs(share - other) < 3.3 * math.sqrt(2 * max(other, 1e-3) * (1 - other) / DRAWS) + 1e-9


def test_where_nothing_fits_the_box_is_the_centred_one() -> None:
    for width, height, ratio in ((401, 100, (1.0, 1.0)), (3, 2000, (0.9, 1.1)), (65500, 1, (2, 3))):
        box = _core.random_box(width, height, (1.0, 1.0), ratio, 0.0, 1, 2, 3)[:4]
        assert box == fallback(width, height, ratio)


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_flips_are_as_likely_as_asked_and_know_nothing_of_the_box(probability: float) -> None:
    draws = [_core.random_box(640, 480, *USUAL, probability, 7, 0, p) for p in range(DRAWS)]
    flips = np.array([draw[4] for draw in draws])
    assert (
        abs(flips.mean() - probability)
        < 3.3 * math.sqrt(0.25 / DRAWS) * (0 < probability < 1) + 1e-9
    )
    if 0 < probability < 1:
        areas = np.array([(draw[2] - draw[0]) * (draw[3] - draw[1]) for draw in draws])
        pair = areas[flips], areas[~flips]
        assert gap(*pair) < 1.95 * math.sqrt(sum(1 / len(group) for group in pair))
