"""Near duplicates: which 64-bit perceptual hashes lie close together, found without comparing all.

Shared by split, which keeps such samples on one side, and by verify, which checks it from the
shards.  This module knows numbers only: neither images nor catalogs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def near_pairs(hashes: npt.ArrayLike, bits: int) -> tuple[Indices, Indices]:
    """Every pair (i, j), i < j, of positions whose *distinct* hashes differ in at most `bits` bits.

    Pigeonhole: cut 64 bits into `bits + 1` bands, and two hashes that close agree on one band
    whole.  So only hashes that share a band are compared.

    Args:
        hashes: ``uint64[n]``, no value twice (see `clusters` for values that repeat).
        bits: 0 to `rules.MAX_NEAR_DUPLICATE_BITS`, beyond which the bands get too narrow.

    Returns:
        Two ``int64`` arrays of equal length; no pair twice, sorted.
    """
    values = np.asarray(hashes, dtype=np.uint64)
    found = [np.empty((0, 2), np.int64)]
    edges = np.linspace(0, 64, bits + 2).astype(np.int64)
    for low, high in itertools.pairwise(edges.tolist()):
        mask = np.uint64((1 << (high - low)) - 1)
        found.append(_pairs_in_band(values, (values >> np.uint64(low)) & mask, bits))
    pairs = np.unique(np.concatenate(found), axis=0)
    return pairs[:, 0], pairs[:, 1]


def _pairs_in_band(
    values: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64], bits: int
) -> npt.NDArray[np.int64]:
    """Near pairs among the values that share a key: neighbours 1, 2, .. places on in key order."""
    order = np.argsort(keys, kind="stable")
    ordered_keys, ordered = keys[order], values[order]
    found = [np.empty((0, 2), np.int64)]
    left = np.arange(len(values) - 1)
    step = 1
    while left.size:
        left = left[left + step < len(values)]
        left = left[ordered_keys[left] == ordered_keys[left + step]]
        near = left[np.bitwise_count(ordered[left] ^ ordered[left + step]) <= bits]
        pair = np.stack([order[near], order[near + step]], axis=1)
        found.append(np.sort(pair, axis=1))
        step += 1
    return np.concatenate(found)


def clusters(hashes: Iterable[int | None], bits: int | None) -> Indices:
    """For each hash the position of the first member of its cluster; clusters chain near pairs.

    A None hash is alone, and everything is alone when `bits` is None.  Values may repeat.
    """
    listed = list(hashes)
    links = Links(len(listed))
    known = [index for index, value in enumerate(listed) if value is not None]
    if bits is None or not known:
        return links.roots()
    values = np.array([listed[index] for index in known], dtype=np.uint64)
    distinct, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    for index, kind in zip(known, inverse.tolist(), strict=True):
        links.join(index, known[first[kind]])
    for a, b in zip(*(side.tolist() for side in near_pairs(distinct, bits)), strict=True):
        links.join(known[first[a]], known[first[b]])
    return links.roots()


class Links:
    """Things 0..n-1 joined two at a time (union-find); a set is named by its smallest member."""

    __slots__ = ("_parent",)

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, item: int) -> int:
        """The smallest member of the item's set."""
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def join(self, a: int, b: int) -> None:
        """Make the sets of `a` and `b` one."""
        low, high = sorted((self.root(a), self.root(b)))
        self._parent[high] = low

    def roots(self) -> Indices:
        """``int64[n]``: the root of each item."""
        return np.array([self.root(item) for item in range(len(self._parent))], dtype=np.int64)
