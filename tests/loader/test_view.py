"""Chosen samples of a dataset: the same tars, other numbers."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tarpon

from tests.loader.tars import photo, samples, write_tar

CHOSEN = [5, 102, 5, 40, 41, 0, 7]


def test_a_view_reads_the_chosen_samples_repeats_and_all(shards: Path) -> None:
    view = tarpon.view(shards, CHOSEN)
    assert len(view) == 7
    assert [view.key(number) for number in range(7)] == [f"{index:05d}" for index in CHOSEN]
    assert [int(sample["cls"]) for sample in view] == [index % 10 for index in CHOSEN]
    assert view[-1]["jpg"] == photo(7) == view[6]["jpg"]
    assert [sample["jpg"] for sample in view[1:3]] == [photo(102), photo(5)]
    assert view.shards == tarpon.open(shards).shards
    assert "a view of 7 samples of <tarpon.Dataset" in repr(view)
    with pytest.raises(IndexError, match="sample 7 of a dataset of 7"):
        view[7]


def test_datasets_and_views_go_to_other_processes(shards: Path) -> None:
    view = tarpon.view(tarpon.open(shards), CHOSEN)
    for one in (view, tarpon.open(shards)):
        again = pickle.loads(pickle.dumps(one))
        assert again.fingerprint == one.fingerprint
        assert repr(again) == repr(one)
        assert again[3] == one[3]


def test_a_view_of_a_view(shards: Path) -> None:
    view = tarpon.view(tarpon.view(tarpon.open(shards), CHOSEN), np.array([6, 1], np.uint8))
    assert [view.key(number) for number in range(2)] == ["00007", "00102"]


def test_a_loader_over_a_view(shards: Path) -> None:
    fields = {"image": tarpon.CenterCrop(16), "raw": tarpon.Raw("jpg"), "label": tarpon.Int("cls")}
    view = tarpon.view(shards, CHOSEN)
    with tarpon.Loader(view, batch_size=3, fields=fields, last="pad", seed=2) as loader:
        seen = []
        for batch in loader:
            for slot, number in enumerate(batch.indices):  # numbers in the view
                index = CHOSEN[number]
                assert batch.sample_keys[slot] == f"{index:05d}"
                assert bytes(batch["raw"][slot]) == photo(index)
                assert batch["label"][slot] == index % 10
            seen += batch.indices[batch.valid].tolist()
        assert sorted(seen) == list(range(7))
        state = loader.state_dict()
    with (
        tarpon.Loader(shards, batch_size=3, fields=fields, seed=2) as other,
        pytest.raises(tarpon.StateMismatchError, match="fingerprint"),
    ):
        other.load_state_dict(state)
    with tarpon.Loader(tarpon.view(shards, CHOSEN), batch_size=3, fields=fields, seed=2) as same:
        same.load_state_dict(state)


def test_what_is_not_a_jpeg_is_found_through_a_view(tmp_path: Path) -> None:
    members = [*samples(range(4)), ("00004.cls", b"4"), ("00004.png", photo(4, format="PNG"))]
    write_tar(tmp_path / "a.tar", members)
    view = tarpon.view(tmp_path, [4, 1, 4])
    fields = {"image": tarpon.CenterCrop(16), "label": tarpon.Int("cls")}
    with tarpon.Loader(view, batch_size=3, fields=fields, shuffle=False) as loader:
        (batch,) = loader
    assert batch["label"].tolist() == [4, 1, 4]
    assert np.array_equal(batch["image"][0], batch["image"][2])
    assert batch["image"][0].any()


def test_bad_samples_are_named_and_replaced_through_a_view(tmp_path: Path) -> None:
    members = [*samples(range(4)), ("00004.cls", b"4"), ("00004.jpg", b"no image")]
    write_tar(tmp_path / "a.tar", members)
    view = tarpon.view(tmp_path, [4, 1, 4, 2])
    fields = {"image": tarpon.CenterCrop(16), "label": tarpon.Int("cls")}
    with (
        tarpon.Loader(view, batch_size=4, fields=fields, shuffle=False) as loader,
        pytest.raises(tarpon.BadSampleError, match="sample 00004"),
    ):
        next(iter(loader))
    with tarpon.Loader(
        view, batch_size=4, fields=fields, shuffle=False, on_bad_sample="substitute"
    ) as loader:
        (batch,) = loader
    assert batch["label"].tolist() == [1, 1, 2, 2]
    assert batch.indices.tolist() == [1, 1, 3, 3]


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([103], "sample 103, one of 1 outside"),
        ([0, -1, 500], "sample -1, one of 2 outside"),
    ],
)
def test_numbers_outside_the_dataset(shards: Path, indices: list[int], message: str) -> None:
    with pytest.raises(IndexError, match=message):
        tarpon.view(shards, indices)


@pytest.mark.parametrize("indices", [[0.5], [[1, 2]], np.zeros(103, bool), ["a"], 3])
def test_what_are_no_numbers(shards: Path, indices: object) -> None:
    with pytest.raises(ValueError, match="expected a list of sample numbers"):
        tarpon.view(shards, indices)


def test_an_empty_view_has_length_0_and_no_loader(shards: Path) -> None:
    view = tarpon.view(shards, [])
    assert len(view) == 0
    with pytest.raises(tarpon.TarponError, match=r"a view of 0 samples .*: no samples"):
        tarpon.Loader(view, batch_size=1)
