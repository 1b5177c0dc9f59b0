"""What torch users are promised: tensors without a copy, one stream for any number of workers."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tarpon
import tarpon.torch
import torch
from torch.distributed.checkpoint.stateful import Stateful
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.stateful import Stateful as TorchdataStateful

from tests.loader.tars import photo, samples, write_tar

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata 0.11
]
FIELDS = {"image": tarpon.RandomResizedCrop(16), "label": tarpon.Int("cls")}
N = 103


def make(shards: Path | tarpon.Dataset, **options: Any) -> tarpon.torch.IterableDataset:
    return tarpon.torch.IterableDataset(
        shards, **{"batch_size": 10, "fields": FIELDS, "seed": 3} | options
    )


def epochs(shards: Path | tarpon.Dataset, count: int, **options: Any) -> list[list[tarpon.Batch]]:
    """What a Loader hands over in the first epochs: what everything here is compared with."""
    with tarpon.Loader(
        shards, **{"batch_size": 10, "fields": FIELDS, "seed": 3} | options
    ) as loader:
        return [list(loader) for _ in range(count)]


def indices(batches: Any) -> list[list[int]]:
    return [
        (batch.indices if isinstance(batch, tarpon.Batch) else batch["indices"]).tolist()
        for batch in batches
    ]


# ---- tensors ---------------------------------------------------------------------------------


def test_to_torch_views_the_batch_and_copies_nothing(shards: Path) -> None:
    fields = FIELDS | {
        "half": tarpon.CenterCrop(8, dtype="float16", layout="NCHW"),
        "score": tarpon.Float("cls"),
        "raw": tarpon.Raw("jpg"),
        "text": tarpon.Text("cls"),
    }
    with tarpon.Loader(shards, batch_size=10, fields=fields) as loader:
        batch = next(iter(loader))
    columns = tarpon.torch.to_torch(batch)
    assert list(columns) == [*fields, "indices", "valid"]
    for name in ("image", "label", "half", "score"):
        assert np.array_equal(columns[name].numpy(), batch[name])
        assert np.shares_memory(columns[name].numpy(), batch[name])
    assert columns["image"].dtype == torch.uint8
    assert columns["half"].dtype == torch.float16
    assert columns["half"].shape == (10, 3, 8, 8)
    assert columns["score"].dtype == torch.float64
    assert columns["indices"].dtype == torch.int64
    assert columns["valid"].dtype == torch.bool
    assert columns["text"] is batch["text"]
    raw = columns["raw"]
    assert isinstance(raw, tarpon.torch.RaggedTensor)
    assert np.shares_memory(raw.data.numpy(), batch["raw"].data)
    ends = raw.offsets.tolist()
    for slot, index in enumerate(columns["indices"].tolist()):
        assert raw.data[ends[slot] : ends[slot + 1]].numpy().tobytes() == photo(index)


def test_every_kind_of_column_comes_whole_out_of_a_worker(shards: Path) -> None:
    fields = FIELDS | {
        "raw": tarpon.Raw("jpg"),
        "whole": tarpon.Image(),
        "text": tarpon.Text("cls"),
    }
    dataset = make(shards, fields=fields)
    loader = DataLoader(dataset, batch_size=None, num_workers=1)
    for found, expected in zip(loader, dataset, strict=True):
        assert list(found) == list(expected)
        for name in ("image", "label", "indices", "valid"):
            assert torch.equal(found[name], expected[name])
        assert all(map(torch.equal, found["raw"], expected["raw"]))
        assert isinstance(found["raw"], tarpon.torch.RaggedTensor)
        assert found["text"] == expected["text"]
        assert all(map(np.array_equal, found["whole"], expected["whole"]))


@pytest.mark.parametrize("name", ["indices", "valid"])
def test_a_field_may_not_hide_what_every_batch_has(shards: Path, name: str) -> None:
    fields = {name: tarpon.Int("cls")}
    with pytest.raises(ValueError, match=f"{name!r} is a key that every batch has"):
        make(shards, fields=fields)
    with (
        tarpon.Loader(shards, batch_size=10, fields=fields) as loader,
        pytest.raises(ValueError, match="rename the field"),
    ):
        tarpon.torch.to_torch(next(iter(loader)))


# ---- the stream ------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("persistent", [False, True])
def test_the_stream_is_the_loaders_for_any_number_of_workers(
    shards: Path, workers: int, persistent: bool
) -> None:
    dataset = make(shards, last="pad")
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        persistent_workers=persistent and workers > 0,
    )
    assert len(loader) == len(dataset) == 11
    for expected in epochs(shards, 3, last="pad"):
        seen: list[int] = []
        for batch, of_loader in zip(loader, expected, strict=True):
            assert np.array_equal(batch["indices"], of_loader.indices)
            assert np.array_equal(batch["image"], of_loader["image"])
            assert np.array_equal(batch["label"], of_loader["label"])
            seen += batch["indices"][batch["valid"]].tolist()
        assert sorted(seen) == list(range(N))


def test_a_process_group_that_comes_up_late_is_noticed(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make(shards)
    next(iter(dataset))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="rank 0 of 1, this process is now rank 1 of 2"):
        next(iter(dataset))


def test_more_workers_than_steps_and_a_short_last_batch(shards: Path) -> None:
    (expected,) = epochs(shards, 1, batch_size=60, last="keep")
    dataset = make(shards, batch_size=60, last="keep")
    found = list(DataLoader(dataset, batch_size=None, num_workers=3))
    assert [len(batch["label"]) for batch in found] == [60, 43]
    assert indices(found) == indices(expected)


@pytest.mark.slow
def test_spawned_workers_keep_the_rank_of_the_process_that_starts_them(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda *_: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    loader = DataLoader(
        make(shards), batch_size=None, num_workers=2, multiprocessing_context="spawn"
    )
    assert len(loader) == N // 20
    for expected in epochs(shards, 2, rank=1, world_size=2):
        assert indices(loader) == indices(expected)


def test_without_workers_a_break_leaves_the_rest_and_with_them_the_next_epoch(
    shards: Path,
) -> None:
    first, second = map(indices, epochs(shards, 2))
    for workers, expected in ((0, first[3:]), (2, second)):
        loader = DataLoader(make(shards), batch_size=None, num_workers=workers)
        assert indices(itertools.islice(loader, 3)) == first[:3]
        assert indices(loader) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_set_epoch_reaches_the_next_for(shards: Path, workers: int) -> None:
    expected = list(map(indices, epochs(shards, 7)))
    dataset = make(shards)
    loader = DataLoader(
        dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0
    )
    for epoch in (5, 6, 2):
        if epoch != 6:  # follows by itself
            dataset.set_epoch(epoch)
        assert indices(loader) == expected[epoch]
    with pytest.raises(ValueError, match="epoch=-1, expected 0 or more"):
        dataset.set_epoch(-1)


# ---- options ---------------------------------------------------------------------------------


def in_which_process(batch: dict[str, Any]) -> tuple[int, list[int]]:
    return os.getpid(), batch["indices"].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_transform_gets_the_whole_batch_where_it_is_made(shards: Path, workers: int) -> None:
    loader = DataLoader(
        make(shards, transform=in_which_process), batch_size=None, num_workers=workers
    )
    processes, found = zip(*loader, strict=True)
    assert list(found) == indices(epochs(shards, 1)[0])
    assert (os.getpid() in processes) == (workers == 0)
    assert len(set(processes)) == max(1, workers)


def test_workers_share_the_threads_of_one_loader(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int | None] = []
    original = tarpon.torch.Loader

    def spy(*arguments: Any, **options: Any) -> tarpon.Loader:
        made.append(options["threads"])
        return original(*arguments, **options)

    monkeypatch.setattr(tarpon.torch, "Loader", spy)
    monkeypatch.setattr(tarpon.torch, "default_threads", lambda: 9)
    dataset = make(shards, transform=lambda _: list(made))
    assert next(iter(dataset))[-1] is None  # the Loader's own default
    for workers, threads in ((2, 4), (3, 3)):
        loader = DataLoader(make(shards, transform=lambda _: list(made)), None, num_workers=workers)
        assert next(iter(loader))[-1] == threads
    loader = DataLoader(
        make(shards, transform=lambda _: list(made), threads=7), batch_size=None, num_workers=2
    )
    assert next(iter(loader))[-1] == 7


def test_it_takes_what_a_loader_takes() -> None:
    ours = dict(inspect.signature(tarpon.torch.IterableDataset).parameters)
    assert ours.pop("transform").default is None
    assert ours == dict(inspect.signature(tarpon.Loader).parameters)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_option_reaches_the_loader(shards: Path, workers: int) -> None:
    options = {
        "shards": [shards / "train-000000.tar", shards / "train-000002.tar"],
        "batch_size": 6,
        "fields": {"image": tarpon.RandomResizedCrop(12)},
        "shuffle": False,
        "seed": 8,
        "rank": 1,
        "world_size": 2,
        "lanes": 1,
        "window_samples": "all",
        "last": "pad",
        "on_bad_sample": "substitute",
        "threads": 1,
        "buffer_bytes": 2**20,
        "timeout_s": 50,
    }
    with tarpon.Loader(**options) as loader:
        expected = list(loader)
    dataset = tarpon.torch.IterableDataset(**options)
    found = list(DataLoader(dataset, batch_size=None, num_workers=workers))
    assert indices(found) == indices(expected)
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_the_loader_arrive(shards: Path, tmp_path: Path, workers: int) -> None:
    write_tar(tmp_path / "bad.tar", [*samples(range(20)), ("bad.cls", b"x"), ("bad.jpg", b"")])
    loader = DataLoader(make(tmp_path, batch_size=21), batch_size=None, num_workers=workers)
    with pytest.raises(tarpon.BadSampleError, match=r"bad\.tar, sample bad"):
        list(loader)
    with pytest.raises(ValueError, match="batch_size=0, expected a whole number"):
        len(make(shards, batch_size=0))
    loader = DataLoader(make(shards / "none.tar"), batch_size=None, num_workers=workers)
    with pytest.raises(tarpon.StoreError, match=r"none\.tar"):
        list(loader)


# ---- state -----------------------------------------------------------------------------------


def test_state_without_workers_is_the_loaders_own(shards: Path) -> None:
    options = {"batch_size": 10, "fields": FIELDS, "seed": 3}
    dataset = make(shards)
    with tarpon.Loader(shards, **options) as loader:
        assert dataset.state_dict() == loader.state_dict()
        for _ in range(2):
            for ours, theirs in zip(dataset, loader, strict=True):
                assert np.array_equal(ours["indices"], theirs.indices)
                assert dataset.state_dict() == loader.state_dict()
        dataset.set_epoch(1)
        next(iter(dataset))
        loader.load_state_dict(dataset.state_dict())
        assert next(iter(loader)).step == 1


@pytest.mark.parametrize("workers", [0, 1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_loaders_state_goes_on_at_every_step(shards: Path, workers: int) -> None:
    first, second, third = map(indices, epochs(shards, 3))
    whole = first + second
    with tarpon.Loader(shards, batch_size=10, fields=FIELDS, seed=3) as loader:
        states = [loader.state_dict() for _ in range(2) for _ in loader]
    for taken in (0, 3, 8, 9, 10, 18, 19):
        dataset = make(shards)
        dataset.load_state_dict(json.loads(json.dumps(states[taken])))
        assert dataset.state_dict()["seed"] == 3
        loader = DataLoader(dataset, batch_size=None, num_workers=workers)
        tail = indices(loader)
        if taken < 9:
            tail += indices(loader)
        assert tail == (whole[taken + 1 :] or third), taken


def run(loader: StatefulDataLoader[Any], until: int) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """(indices, state after it) of the first batches, over as many epochs as it takes."""
    while True:
        for batch in loader:
            yield batch["indices"].tolist(), loader.state_dict()
            until -= 1
            if until == 0:
                return


@pytest.mark.parametrize(
    ("workers", "persistent"),
    [
        (0, False),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in ((2, False), (2, True), (3, False))
        ),
    ],
)
def test_stateful_dataloader_resumes_at_every_step(
    shards: Path, workers: int, persistent: bool
) -> None:
    options = {"batch_size": None, "num_workers": workers, "persistent_workers": persistent}
    whole = [step for epoch in epochs(shards, 4) for step in indices(epoch)]
    steps = list(run(StatefulDataLoader(make(shards), **options), 20))
    assert [found for found, _ in steps] == whole[:20]
    for taken in (0, 1, 2, 4, 7, 8, 9, 10, 13, 19):
        resumed = StatefulDataLoader(make(shards), **options)
        resumed.load_state_dict(steps[taken][1])
        tail = [found for found, _ in run(resumed, 14)]
        assert tail == whole[taken + 1 : taken + 15], taken


def test_a_state_taken_between_epochs(shards: Path) -> None:
    first, second = map(indices, epochs(shards, 2))
    for workers in (0, 2):
        loader = StatefulDataLoader(make(shards), batch_size=None, num_workers=workers)
        assert indices(loader) == first
        resumed = StatefulDataLoader(make(shards), batch_size=None, num_workers=workers)
        resumed.load_state_dict(loader.state_dict())
        assert indices(resumed) == second


def test_beside_workers_the_state_is_refused_not_guessed(shards: Path) -> None:
    dataset = make(shards)
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    dataset.state_dict()
    next(iter(loader))
    with pytest.raises(RuntimeError, match="does not know which of their batches"):
        dataset.state_dict()
    dataset.set_epoch(4)
    assert dataset.state_dict()["epoch"] == 4


def test_a_position_between_two_steps(shards: Path) -> None:
    with tarpon.Loader(shards, batch_size=15, fields=FIELDS, seed=3) as loader:
        next(iter(loader))
        state = loader.state_dict()
        rest = [index for step in indices(loader) for index in step]
    dataset = make(shards)
    dataset.load_state_dict(state)
    with pytest.raises(tarpon.StateMismatchError, match="position 15 with 10 samples per step"):
        list(DataLoader(dataset, batch_size=None, num_workers=2))
    dataset.load_state_dict(state)
    assert [index for step in indices(dataset) for index in step][:75] == rest


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_the_order_of_a_loaded_state_holds_in_every_process(
    shards: Path, workers: int, persistent: bool
) -> None:
    other = {"lanes": 1, "window_samples": 20}
    whole = [step for epoch in epochs(shards, 3, **other) for step in indices(epoch)]
    with tarpon.Loader(shards, batch_size=10, fields=FIELDS, seed=3, **other) as loader:
        next(iter(loader))
        state = loader.state_dict()
    dataset = make(shards)
    loader = DataLoader(
        dataset, batch_size=None, num_workers=workers, persistent_workers=persistent
    )
    assert indices(loader) == indices(epochs(shards, 1)[0]) != whole[:10]
    dataset.load_state_dict(state)
    assert indices(loader) + indices(loader) == whole[1:20]
    dataset.set_epoch(2)
    assert dataset.state_dict() == state | {"epoch": 2, "position": 0}
    assert indices(loader) == whole[20:]


def test_a_workers_state_is_for_the_same_steps(shards: Path) -> None:
    ((_, state),) = run(StatefulDataLoader(make(shards), batch_size=None, num_workers=2), 1)
    resumed = StatefulDataLoader(make(shards, batch_size=5), batch_size=None, num_workers=2)
    resumed.load_state_dict(state)
    with pytest.raises(tarpon.StateMismatchError, match="samples_per_step 10, this process has 5"):
        list(resumed)


def test_an_opened_dataset_or_a_view_works_in_workers_and_elsewhere(shards: Path) -> None:
    view = tarpon.view(shards, np.arange(50).repeat(2))
    (expected,) = epochs(view, 1)
    for workers in (0, 2):
        loader = DataLoader(make(view), batch_size=None, num_workers=workers)
        assert indices(loader) == indices(expected)
    assert indices(pickle.loads(pickle.dumps(make(view)))) == indices(expected)


def test_a_state_of_something_else_is_refused(shards: Path) -> None:
    state = make(shards, seed=4).state_dict()
    with pytest.raises(tarpon.StateMismatchError, match="seed 4, this loader has 3"):
        make(shards).load_state_dict(state)


def test_a_loader_is_what_others_call_stateful(shards: Path) -> None:
    with tarpon.Loader(shards, batch_size=10, fields=FIELDS, seed=3) as loader:
        for it in (loader, make(shards)):
            assert isinstance(it, Stateful)
            assert isinstance(it, TorchdataStateful)
