"""tarpon itself."""

from __future__ import annotations

from typing import Literal

import tarpon

from benchmarks.data import DataSet
from benchmarks.measure import Epoch, Tally
from benchmarks.members import SEED, SIZE, batch_size


def make(
    data: DataSet,
    *,
    image: Literal["raw", "crop"],
    threads: int,
    shuffle: bool,
    batch: int,
    window: int | Literal["all"] | None = None,
    copies: int = 1,
) -> Epoch:
    """`window`: samples shuffled together; ``None`` is the loader's own choice.

    `copies`: an epoch is so many times the set, under other names: were it no larger than the
    loader's memory, the next epoch would not come over the network.
    """
    field: tarpon.Raw | tarpon.RandomResizedCrop = tarpon.Raw("jpg")
    if image == "crop":
        field = tarpon.RandomResizedCrop(SIZE, ext="jpg")
    loader = tarpon.Loader(
        data.copies(copies),
        batch_size=batch_size(data, batch),
        fields={"image": field, "label": tarpon.Int("cls")},
        shuffle=shuffle,
        seed=SEED,
        window_samples=window,
        threads=threads,
    )
    seen = [0]  # bytes of the network, by the end of the epoch before

    def raw(number: int, tally: Tally) -> None:
        for made in loader:
            images: tarpon.Ragged = made["image"]
            labels = int(made["label"].sum())
            tally.raw(len(images), images.data.nbytes, labels, lambda it=images: it)
        network_bytes = loader.stats()["network_bytes"]
        tally.network_bytes += network_bytes - seen[0]
        seen[0] = network_bytes

    def crop(number: int, tally: Tally) -> None:
        for made in loader:
            images = made["image"]
            tally.pixels(len(images), images.nbytes, lambda it=images: it)

    return raw if image == "raw" else crop
