"""Which samples of remote shards to read before their batches are asked for; see core/ahead.h.

One window of the order is in memory, and the next one comes as it drains. Where there are no
windows, samples come in the order of the shards or in none, and as many as 64 MiB hold are read
ahead. Nothing here reads: it only counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from tarpon import _core
from tarpon._arguments import positive
from tarpon._order import WINDOW_BYTES, Order
from tarpon.dataset import Dataset
from tarpon.fields import Field

_WINDOWLESS_BYTES = 64 << 20
_BLOCKS_BYTES = 80 * _core.CACHE_BLOCK  # that come and wait to be written; see core/ahead.h
_SLACK_BYTES = 64 << 20  # for requests that are under way while the window is still full
_PAGE_BYTES = 4096  # what the last bytes of a member may waste
_ASKED = 3  # batches that a loader asks for at once
# After a cold start the plan reaches so many times farther with each batch. With 4 a fast consumer
# waits for the last group, the largest; 2 takes more requests.
_FASTER = 3

Place = tuple[int, int]  # epoch, position at which a global batch starts


def batch_ceiling(buffer_bytes: int | None, held_bytes: int) -> int | None:
    """What is left of `buffer_bytes` for batches; ``None``: no ceiling."""
    if buffer_bytes is None:
        return None
    left = positive("buffer_bytes", buffer_bytes) - held_bytes
    if left < 1:
        raise ValueError(
            f"buffer_bytes={buffer_bytes}, expected more than {held_bytes} for the window of "
            "remote samples, and two batches on top; raise it, lower window_samples, or use more "
            "ranks"
        )
    return left


@dataclass(slots=True, kw_only=True)
class ReadAhead:
    """How far the plan has got.

    Attributes:
        in_blocks: Whether shards are read in the cache's blocks, of which small groups would get
            each several times.
        bytes: Ceiling on what is held of remote shards; 0: nothing is remote.
        most: Samples of all ranks that fit.
        span: Samples of all ranks in one window.
        mean: Bytes of a sample.
        planned: Batches planned since the loader was made.
    """

    in_blocks: bool = False
    bytes: int
    most: int
    span: int
    mean: int
    world_size: int
    planned: int = 0
    _asked: int = 0
    _next: Place | None = None
    _reach: int = _ASKED  # batches that may be planned now
    _each: int = 0  # samples from one batch to the next, as far as an epoch had two

    @property
    def held(self) -> int:
        """Ceiling on all memory for remote shards, the cache's blocks too, in bytes."""
        return self.bytes + (_BLOCKS_BYTES if self.in_blocks else 0)

    @classmethod
    def of(
        cls, dataset: Dataset, order: Order, fields: Mapping[str, Field], *, world_size: int
    ) -> Self:
        if not dataset.is_remote:
            return cls(bytes=0, most=0, span=0, mean=1, world_size=world_size)
        mean = max(dataset.total_bytes // max(order.samples, 1), 1)
        span = span_of(order, mean, world_size)
        return cls(
            in_blocks=dataset.is_cached,
            bytes=window_bytes(span, mean, members=len(fields), world_size=world_size),
            most=span,
            span=span,
            mean=mean,
            world_size=world_size,
        )

    def follow(self, order: Order) -> None:
        """Another order: that of a state. Its window may be larger than what memory is for."""
        self.span = min(span_of(order, self.mean, self.world_size), self.most)

    def forget(self) -> None:
        """Nothing is planned any more."""
        self._next, self._reach, self._asked = None, _ASKED, self.planned

    def asked(self) -> int:
        """One more batch was asked for; its number among the planned."""
        self._asked += 1
        return self._asked - 1

    def groups(
        self, epoch: int, start: int, after: Callable[[int, int], Place]
    ) -> Iterator[list[Place]]:
        """The batches to plan now that the next to be asked for is at `start`, group by group.

        After a cold start just the batches that are asked for, one by one, so that the first does
        not wait for a whole window; then farther with each batch that is taken.
        """
        if self.bytes == 0:
            return
        if self._next is None:
            self._next = (epoch, start)
        # In batches: a global batch apart, but for the last of an epoch, which none comes after.
        first, second = self._next, after(*self._next)
        if second[0] == first[0]:
            self._each = second[1] - first[1]
        window = max(-(-min(self.span, self.most) // (self._each or self.span)), _ASKED)
        if self.in_blocks:
            self._reach = window
        cold, longest = self._reach == _ASKED, window
        while self.planned - self._asked < min(self._reach, window):
            group = [self._next]
            self._next = after(*self._next)
            if self._reach < window:
                longest = 1 if cold else self._reach - (self.planned - self._asked)
                if self._reads_all(longest):
                    longest = window
            while (
                len(group) < longest
                and self._next[0] == group[0][0]
                and self._next[1] // self.span == group[0][1] // self.span
            ):
                group.append(self._next)
                self._next = after(*self._next)
            self.planned += len(group)
            yield group
        self._reach = min(self._reach * _FASTER, window)

    def _reads_all(self, batches: int) -> bool:
        """Whether samples of a window lie so dense in it that the gaps between them are read too:
        then it is read once, for all of its samples.
        """
        return batches * self._each * _core.AHEAD_GAP_LEAST > self.span * self.mean


def window_bytes(span: int, mean: float, *, members: int, world_size: int) -> int:
    """What a rank may hold of remote shards: its share of `span` samples of `mean` bytes, their
    `members` in whole pages, and what is under way besides.
    """
    return math.ceil(-(-span // world_size) * (mean + _PAGE_BYTES * members)) + _SLACK_BYTES


def span_of(order: Order, mean: float, world_size: int) -> int:
    """Samples of one window over all lanes, or about as many as there is memory for."""
    windowless = not order.shuffle or (order.lanes == 1 and order.samples * mean > WINDOW_BYTES)
    if windowless and order.window >= order.samples:
        return min(max(int(_WINDOWLESS_BYTES * world_size / mean), 1), order.samples)
    if order.window >= order.samples:
        return order.samples
    return order.lanes * max(order.window // order.lanes, 1)
