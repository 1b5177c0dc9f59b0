"""The order of an epoch, spelt out in plain Python: what order.h says, and nothing clever."""

from __future__ import annotations

import math

from tarpon._order import Order

MASK = 2**64 - 1
ODD = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def permute(size: int, state: int, x: int) -> int:
    """feistel.c in ten lines of Python."""
    columns = math.isqrt(size - 1) + 1
    rows = -(-size // columns)
    keys = [mix((state + (i + 1) * ODD) & MASK) for i in range(8)]
    while True:
        row, column = divmod(x, columns)
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            row = (row + (mix((column + even) & MASK) * rows >> 64)) % rows
            column = (column + (mix((row + odd) & MASK) * columns >> 64)) % columns
        x = row * columns + column
        if x < size:
            return x


def fold(*values: int) -> int:
    state = values[0]
    for value in values[1:]:
        state = mix(state ^ mix((value + ODD) & MASK))
    return state


def model(order: Order, epoch: int) -> list[int]:
    """The whole epoch, spelt out: chunks, line, lanes, windows, one of each lane in turn."""
    samples = list(range(order.samples))
    if order.version == 1:
        state = mix((order.seed + ODD) & MASK) ^ mix(~epoch & MASK)
        return [permute(order.samples, state, p) for p in samples]
    chunks = [samples[at : at + order.chunk] for at in range(0, order.samples, order.chunk)]
    state = fold(2, order.seed, epoch)
    line = [i for c in range(len(chunks)) for i in chunks[permute(len(chunks), fold(state, 0), c)]]
    size, more = divmod(order.samples, order.lanes)
    lanes, each = [], max(1, order.window // order.lanes)
    for number in range(order.lanes):
        start = number * size + min(number, more)
        lane = line[start : start + size + (number < more)]
        windows = [lane[at : at + each] for at in range(0, len(lane), each)]
        keys = [fold(state, 1, number, window) for window in range(len(windows))]
        lanes.append(
            [
                w[permute(len(w), k, x)]
                for w, k in zip(windows, keys, strict=True)
                for x in range(len(w))
            ]
        )
    return [lanes[p % order.lanes][p // order.lanes] for p in samples]
