"""States: exact at any batch, for any split among ranks, refused if of another run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tarpon

from tests.loader.tars import samples, write_tar
from tests.loader.test_loader import FIELDS, N, labels, merge


@pytest.mark.parametrize(
    "order", [{}, {"window_samples": 20, "lanes": 4}, {"window_samples": "all"}], ids=str
)
def test_resume_at_every_step_gives_the_whole_tail_pixels_too(
    shards: Path, order: dict[str, Any]
) -> None:
    with tarpon.Loader(shards, batch_size=9, fields=FIELDS, seed=7, **order) as loader:
        states, batches = [], []
        for _ in range(2):
            for batch in loader:
                batches.append(batch)
                states.append(json.loads(json.dumps(loader.state_dict())))
    assert len(json.dumps(states[0])) < 1024
    for taken, state in enumerate(states):
        with tarpon.Loader(shards, batch_size=9, fields=FIELDS, seed=7, threads=1) as resumed:
            resumed.load_state_dict(state)
            tail = []
            while len(tail) < len(batches) - taken - 1:
                tail += list(resumed)
        for found, expected in zip(tail, batches[taken + 1 :], strict=True):
            assert (found.epoch, found.step) == (expected.epoch, expected.step)
            assert np.array_equal(found.indices, expected.indices)
            assert np.array_equal(found["image"], expected["image"])


def test_the_batch_size_may_change_on_resume(shards: Path) -> None:
    with tarpon.Loader(shards, batch_size=20, fields=FIELDS, seed=7) as loader:
        order = labels(loader)
        loader.set_epoch(0)
        for _ in loader:
            break
        state = loader.state_dict()
    with tarpon.Loader(shards, batch_size=7, fields=FIELDS, seed=7) as resumed:
        assert resumed.state_dict()["lanes"] == 7
        resumed.load_state_dict(state)
        assert resumed.state_dict()["lanes"] == 20
        assert labels(resumed)[:70] == order[20:90]


def test_the_world_may_change_on_resume_in_the_middle_of_an_epoch(shards: Path) -> None:
    with tarpon.Loader(shards, batch_size=20, fields=FIELDS, seed=7) as loader:
        order = labels(loader)
        loader.set_epoch(0)
        next(iter(loader))
        state = loader.state_dict()
    for world_size in (2, 3):  # 20 lanes: the first can be dealt to the ranks, the second cannot
        parts = []
        for rank in range(world_size):
            with tarpon.Loader(
                shards, batch_size=5, fields=FIELDS, seed=7, rank=rank, world_size=world_size
            ) as resumed:
                resumed.load_state_dict(state)
                parts.append([batch.indices for batch in resumed])
        batches = [
            merge(list(shares), by_lane=world_size == 2) for shares in zip(*parts, strict=True)
        ]
        found = np.concatenate(batches).tolist()
        assert found == order[20 : 20 + len(found)]
        assert len(found) > 70


def test_a_state_of_the_first_order_still_restores(shards: Path) -> None:
    old = {
        "version": 1,
        "order": 1,
        "fingerprint": tarpon.open(shards).fingerprint,
        "samples": N,
        "shuffle": True,
        "seed": 7,
        "epoch": 2,
        "position": 90,
    }
    with tarpon.Loader(shards, batch_size=10, fields=FIELDS, seed=7) as loader:
        loader.load_state_dict(old)
        (batch,) = loader
        assert batch.indices.tolist() == [38, 62, 70, 52, 93, 100, 49, 73, 18, 22]
        assert loader.state_dict() == old | {"version": 2, "epoch": 3, "position": 0}


def test_a_state_of_other_lanes_than_were_asked_for_is_refused(shards: Path) -> None:
    with tarpon.Loader(shards, batch_size=20, fields=FIELDS) as loader:
        state = loader.state_dict()
    for order in ({"lanes": 4}, {"window_samples": 50}, {"window_samples": "all"}):
        with (
            tarpon.Loader(shards, batch_size=20, fields=FIELDS, **order) as other,
            pytest.raises(tarpon.StateMismatchError, match="this loader has"),
        ):
            other.load_state_dict(state)


@pytest.mark.parametrize("world_size", [1, 2])
def test_where_holds_after_a_resume_with_another_batch_size(shards: Path, world_size: int) -> None:
    rank = world_size - 1
    with tarpon.Loader(shards, batch_size=10, fields=FIELDS, seed=3) as loader:
        next(iter(loader))
        state = loader.state_dict()
    with tarpon.Loader(
        shards, batch_size=7, fields=FIELDS, seed=3, rank=rank, world_size=world_size
    ) as resumed:
        resumed.load_state_dict(state)
        for batch in resumed:
            for slot, index in enumerate(batch.indices):
                assert resumed.where(int(index), 0) == (batch.step, rank, slot)
        batch = next(iter(resumed))  # of the next epoch, which begins at its beginning
        assert resumed.where(int(batch.indices[2]), 1) == (0, rank, 2)


def test_a_state_of_something_else_is_refused_naming_both(shards: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "other.tar", samples(range(30)))
    with tarpon.Loader(shards, batch_size=10, fields=FIELDS, seed=3) as loader:
        state = loader.state_dict()
        for key, value in (
            ("seed", 4),
            ("shuffle", False),
            ("fingerprint", "x"),
            ("order", 9),
            ("version", 99),
        ):
            with pytest.raises(tarpon.StateMismatchError, match=f"{key} {value!r}"):
                loader.load_state_dict(state | {key: value})
        with pytest.raises(tarpon.StateMismatchError, match="without"):
            loader.load_state_dict({})
        for wrong in (
            {"position": 104},
            {"position": None},
            {"position": True},
            {"epoch": -1},
            {"epoch": None},
            {"epoch": True},
            {"epoch": 2**64},
        ):
            with pytest.raises(tarpon.StateMismatchError, match="expected a position within"):
                loader.load_state_dict(state | wrong)
        with pytest.raises(tarpon.StateMismatchError, match="without"):
            loader.load_state_dict(None)
    with (
        tarpon.Loader(tmp_path, batch_size=10, fields=FIELDS, seed=3) as other,
        pytest.raises(tarpon.StateMismatchError, match="fingerprint"),
    ):
        other.load_state_dict(state)
