"""Which sample stands at which position of an epoch, and which positions are a rank's. See order.h.

Everything here is a pure function of an `Order` and its arguments; nothing is read or remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from tarpon import _core
from tarpon.errors import StateMismatchError

Int64s = npt.NDArray[np.int64]

_MOST_LANES = 64
WINDOW_BYTES = 3 << 29  # 1.5 GiB, what the ranks together hold of remote shards
_WINDOW_SAMPLES = (256, 65_536)
_CHUNK_BYTES = 4 << 20  # one range request
_CHUNK_SAMPLES = 4096
_MOST = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One order of a dataset; every epoch is another permutation of it.

    Attributes:
        version: 2, or 1 for the order of old states, which has no lanes and windows.
        samples: Size of the dataset.
        chunk: Neighbours that stay together until their window mixes them.
        lanes: Parts of the epoch that take turns; see `share`.
        window: Samples that are mixed with one another, over all lanes.
    """

    version: int = _core.ORDER_VERSION
    shuffle: bool
    seed: int
    samples: int
    chunk: int
    lanes: int
    window: int

    @classmethod
    def of(
        cls,
        *,
        samples: int,
        total_bytes: int,
        global_batch: int,
        shuffle: bool,
        seed: int,
        lanes: int | None,
        window_samples: int | Literal["all"] | None,
    ) -> Self:
        """The order for a dataset, from its size and the global batch alone: never the machine."""
        whole = window_samples == "all" or not shuffle
        if whole:
            lanes = 1
        elif lanes is None:
            lanes = _most_lanes(global_batch)
        total_bytes = max(total_bytes, 1)
        if whole:
            window = samples
        elif isinstance(window_samples, int):
            window = min(window_samples, samples)
        else:
            least, most = _WINDOW_SAMPLES
            held = WINDOW_BYTES * samples // total_bytes
            window = min(max(held, least), most, samples)
        near = _CHUNK_BYTES * samples // total_bytes
        chunk = min(max(min(near, window // (4 * lanes)), 1), _CHUNK_SAMPLES)
        return cls(
            shuffle=shuffle, seed=seed, samples=samples, chunk=chunk, lanes=lanes, window=window
        )

    # ---- the permutation -------------------------------------------------------------------------

    def samples_at(self, epoch: int, positions: Int64s) -> Int64s:
        """The samples at `positions`; those past the end wrap round to the same epoch's start."""
        positions = np.ascontiguousarray(positions % self.samples, np.int64)
        return np.frombuffer(_core.order(self._spec, epoch, positions), np.int64).copy()

    def position_of(self, epoch: int, sample: int) -> int:
        return _core.position(self._spec, epoch, sample)

    def onward(self, position: int, start: int, count: int, *, lanes: int) -> Int64s:
        """The positions `start` to `start + count` steps after `position`, round and round in its
        lane of `lanes`; those of one round at most.
        """
        lane, slot = position % lanes, position // lanes
        length = self._lane_length(lane, lanes)
        steps = np.arange(start, min(start + count, length))
        return (slot + steps) % length * lanes + lane

    def steps(self, first: int, second: int, *, lanes: int) -> int:
        """How many steps `second` comes after `first` in the lane of both."""
        return (second - first) // lanes % self._lane_length(first % lanes, lanes)

    def _lane_length(self, lane: int, lanes: int) -> int:
        return self.samples // lanes + (lane < self.samples % lanes)

    # ---- who takes what --------------------------------------------------------------------------

    def by_lane(self, world_size: int) -> bool:
        """Can each rank keep to lanes of its own? Otherwise ranks share every lane."""
        return self.shuffle and self.lanes % world_size == 0

    def share(self, start: int, count: int, rank: int, world_size: int) -> Int64s:
        """The positions of `rank` in the global batch of `count` positions from `start`.

        By lanes: lane l belongs to rank l mod W. Else each rank takes its run of the batch.
        """
        each = count // world_size
        if self.by_lane(world_size):
            return start + (rank - start) % world_size + world_size * np.arange(each)
        return start + rank * each + np.arange(each)

    def owner(
        self, position: int, first: int, global_batch: int, world_size: int
    ) -> tuple[int, int, int]:
        """(step, rank, slot) of `position`: the inverse of `share` for batches from `first` on."""
        step, rest = divmod(position - first, global_batch)
        if not self.by_lane(world_size):
            return step, *divmod(rest, global_batch // world_size)
        return step, position % world_size, rest // world_size

    # ---- state -----------------------------------------------------------------------------------

    def state(self) -> dict[str, int | bool]:
        """What a saved state says of it; old orders say less."""
        state: dict[str, int | bool] = {"order": self.version}
        state |= {key: getattr(self, key) for key in _SAME}
        if self.version > 1:
            state |= {key: getattr(self, key) for key in ("chunk", "lanes", "window")}
        return state

    def restored(self, state: Mapping[str, Any], *, fixed: frozenset[str]) -> Self:
        """The order that `state` was saved in, which must be of this seed, shuffle and size.

        Args:
            fixed: Which of ``lanes`` and ``window`` must agree too, because somebody asked for
                them; the others are taken from the state.
        """
        version = state["order"]
        if type(version) is not int or not 1 <= version <= _core.ORDER_VERSION:
            raise StateMismatchError(
                f"state of order {version!r}, this loader knows 1 to {_core.ORDER_VERSION}; "
                "use the tarpon that saved it, or a newer one"
            )
        if version == 1:
            old = replace(self, version=1, chunk=1, lanes=1, window=self.samples)
        else:
            chunk, lanes, window = (_count(state, key) for key in ("chunk", "lanes", "window"))
            old = replace(self, version=version, chunk=chunk, lanes=lanes, window=window)
        for key in (*_SAME, *sorted(fixed)):
            mine, theirs = getattr(self, key), state[key] if key in _SAME else getattr(old, key)
            if mine != theirs:
                raise StateMismatchError(
                    f"state of {key} {theirs!r}, this loader has {mine!r}; "
                    + (
                        f"build the loader with the same {key}"
                        if key in _SAME
                        else "leave out lanes= and window_samples=, which the state brings along"
                    )
                )
        return old

    @property
    def _spec(self) -> tuple[int, bool, int, int, int, int, int]:
        return (
            self.version,
            self.shuffle,
            self.samples,
            self.chunk,
            self.lanes,
            self.window,
            self.seed,
        )


_SAME = ("samples", "shuffle", "seed")


def _count(state: Mapping[str, Any], key: str) -> int:
    value = state.get(key)
    if type(value) is int and 1 <= value <= _MOST:
        return value
    raise StateMismatchError(
        f"state of {key} {value!r}, expected a whole number from 1 to 2^62; "
        "use a Loader.state_dict() as it was"
    )


def _most_lanes(global_batch: int) -> int:
    return max(lanes for lanes in range(1, _MOST_LANES + 1) if global_batch % lanes == 0)
