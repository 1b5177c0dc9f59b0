"""Any batch, world, lanes, window and threads: the same epoch, and each sample once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tarpon
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

N = 103
FIELDS = {"label": tarpon.Int("cls")}


def epoch_of(shards: tarpon.Dataset, world: int, **options: Any) -> list[np.ndarray]:
    """Global batches of epoch 1, each as (index, valid) pairs in the order's own order."""
    ranks = [
        tarpon.Loader(shards, fields=FIELDS, rank=rank, world_size=world, **options)
        for rank in range(world)
    ]
    for loader in ranks:
        loader.set_epoch(1)
    by_lane = ranks[0]._order.by_lane(world)
    batches = []
    for parts in zip(*ranks, strict=True):
        for part in parts:
            assert np.array_equal(part["label"], part.indices % 10)
        shares = [np.stack([part.indices, part.valid], axis=1) for part in parts]
        stacked = np.stack(shares, axis=1 if by_lane else 0)
        batches.append(stacked.reshape(-1, 2))
    for loader in ranks:
        loader.close()
    return batches


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batch=st.integers(1, 20),
    world=st.integers(1, 7),
    threads=st.integers(1, 5),
    order=st.fixed_dictionaries(
        {
            "lanes": st.none() | st.integers(1, 20),
            "window_samples": st.none() | st.integers(1, 150),
        }
    )
    | st.just({"window_samples": "all"}),
    last=st.sampled_from(["drop", "pad"]),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_split_is_the_same_epoch_and_holds_each_sample_once(
    shards: Path,
    batch: int,
    world: int,
    threads: int,
    order: dict[str, Any],
    last: str,
    shuffle: bool,
    seed: int,
) -> None:
    total = batch * world
    if last == "drop" and total > N:
        return
    dataset = tarpon.open(shards)
    options = {"last": last, "shuffle": shuffle, "seed": seed, **order}
    found = epoch_of(dataset, world, batch_size=batch, threads=threads, **options)
    alone = epoch_of(dataset, 1, batch_size=total, threads=1, **options)
    assert len(found) == len(alone) == (N // total if last == "drop" else -(-N // total))
    for mine, expected in zip(found, alone, strict=True):
        assert np.array_equal(mine, expected)
    rows = np.concatenate(found)
    seen = rows[rows[:, 1] == 1, 0].tolist()
    assert len(set(seen)) == len(seen) == (len(found) * total if last == "drop" else N)
