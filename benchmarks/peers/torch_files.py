"""torch's DataLoader over one file per image."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, Dataset

from benchmarks.data import DataSet, label_of
from benchmarks.measure import Epoch, Tally
from benchmarks.members import batch_size


class _Files(Dataset[tuple[bytes, int]]):
    def __init__(self, paths: list[str]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        path = self._paths[index]
        with open(path, "rb", buffering=0) as file:
            return file.read(), label_of(path)


def _as_it_is(value: Any) -> Any:
    return value


def make(data: DataSet, *, shuffle: bool, workers: int, batch: int) -> Epoch:
    loader: DataLoader[Any] = DataLoader(
        _Files(data.files),
        batch_size=batch_size(data, batch),
        shuffle=shuffle,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=_as_it_is,
    )

    def epoch(number: int, tally: Tally) -> None:
        for pairs in loader:
            size = sum(len(image) for image, _ in pairs)
            labels = sum(label for _, label in pairs)
            tally.raw(len(pairs), size, labels, lambda it=pairs: (image for image, _ in it))

    return epoch
