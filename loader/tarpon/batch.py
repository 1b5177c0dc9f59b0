"""What a loader hands over: a mapping of field to array, with where each sample came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Ragged(Sequence[memoryview]):
    """Byte strings of different lengths, end to end.

    Attributes:
        data: ``uint8[total]``.
        offsets: ``int64[B + 1]``; item ``i`` is ``data[offsets[i]:offsets[i + 1]]``.
    """

    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> memoryview: ...
    @overload
    def __getitem__(self, index: slice) -> list[memoryview]: ...
    def __getitem__(self, index: int | slice) -> memoryview | list[memoryview]:
        """A view of item `index`; no copy."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return self.data[self.offsets[number] : self.offsets[number + 1]].data


class Batch(Mapping[str, Any]):
    """Fields by name. Arrays view one pooled slab, which lives as long as any of them does.

    Attributes:
        sample_keys: The samples' keys.
        indices: ``int64[B]``, each sample's number in the dataset.
        valid: ``bool[B]``; ``False`` marks a repeat that only fills up the last batch. A
            substitute for a bad sample is valid.
        epoch: The epoch this batch belongs to.
        step: Its number in the epoch.
    """

    __slots__ = ("_fields", "epoch", "indices", "sample_keys", "step", "valid")

    def __init__(
        self,
        fields: dict[str, Any],
        *,
        sample_keys: list[str],
        indices: npt.NDArray[np.int64],
        valid: npt.NDArray[np.bool_],
        epoch: int,
        step: int,
    ) -> None:
        self._fields = fields
        self.sample_keys = sample_keys
        self.indices = indices
        self.valid = valid
        self.epoch = epoch
        self.step = step

    def __getitem__(self, name: str) -> Any:
        try:
            return self._fields[name]
        except KeyError:
            raise KeyError(f"no field {name!r}; this batch has {sorted(self._fields)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        fields = ", ".join(self._fields)
        place = f"epoch {self.epoch} step {self.step}"
        return f"<tarpon.Batch {place}: {len(self.indices)} x ({fields})>"
