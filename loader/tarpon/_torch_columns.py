"""A batch's columns as torch tensors that view the loader's memory. Decides nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from tarpon.batch import Batch, Ragged

_RESERVED = ("indices", "valid")


class RaggedTensor(NamedTuple):
    """Byte strings of different lengths, end to end: what a `tarpon.Ragged` is in torch.

    A named tuple, because that is what ``DataLoader``, pinning and Lightning pass on whole; a
    sequence of ``memoryview`` they would take apart byte by byte.

    Attributes:
        data: ``uint8[total]``.
        offsets: ``int64[B + 1]``; item ``i`` is ``data[offsets[i]:offsets[i + 1]]``.
    """

    data: torch.Tensor
    offsets: torch.Tensor


def to_torch(batch: Batch) -> dict[str, Any]:
    """The batch as a dict that holds tensors. No copy: tensors view the loader's memory.

    Returns:
        Every field under its name: tensors of the arrays' dtype and shape, a ``RaggedTensor``
        for ``Raw``, and the lists of ``Text``, ``Json``, ``Npy`` and ``Image`` as they are. Plus
        ``indices``, ``int64[B]``, and ``valid``, ``bool[B]``, as in the batch.

    Raises:
        ValueError: A field is called ``indices`` or ``valid``.
    """
    refuse_reserved(batch)
    columns: dict[str, Any] = {name: _tensor(column) for name, column in batch.items()}
    return columns | {
        "indices": torch.from_numpy(batch.indices),
        "valid": torch.from_numpy(batch.valid),
    }


def _tensor(column: Any) -> Any:
    if isinstance(column, Ragged):
        return RaggedTensor(torch.from_numpy(column.data), torch.from_numpy(column.offsets))
    return torch.from_numpy(column) if isinstance(column, np.ndarray) else column


def refuse_reserved(names: Iterable[str]) -> None:
    for name in names:
        if name in _RESERVED:
            raise ValueError(
                f"fields: {name!r} is a key that every batch has in torch, expected another name; "
                "rename the field"
            )
