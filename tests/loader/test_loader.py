"""What a loader promises: every sample once, the same for every world size, exact resume."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tarpon

from tests.loader.tars import photo

FIELDS = {"image": tarpon.RandomResizedCrop(16), "label": tarpon.Int("cls")}
N = 103


def labels(loader: tarpon.Loader) -> list[int]:
    return [int(i) for batch in loader for i in batch.indices]


def test_an_epoch_holds_every_sample_once_and_fields_belong_to_their_sample(shards: Path) -> None:
    fields = FIELDS | {"raw": tarpon.Raw("jpg")}
    with tarpon.Loader(shards, batch_size=8, fields=fields, last="pad", seed=1) as loader:
        seen = []
        for step, batch in enumerate(loader):
            assert list(batch) == ["image", "label", "raw"]
            assert (batch.epoch, batch.step) == (0, step)
            assert batch["image"].shape == (8, 16, 16, 3)
            assert batch["label"].dtype == np.int64
            for slot, index in enumerate(batch.indices):
                assert batch.sample_keys[slot] == f"{index:05d}"
                assert batch["label"][slot] == index % 10
                assert bytes(batch["raw"][slot]) == photo(int(index))
            seen += batch.indices[batch.valid].tolist()
        assert len(loader) == step + 1 == 13
        assert sorted(seen) == list(range(N))


def test_epochs_follow_one_another_and_differ(shards: Path) -> None:
    with tarpon.Loader(shards, batch_size=10, fields=FIELDS, seed=1) as loader:
        first, second = labels(loader), labels(loader)
        assert loader.epoch == 2
        loader.set_epoch(0)
        assert labels(loader) == first
    assert first != second
    with tarpon.Loader(shards, batch_size=10, fields=FIELDS, seed=2) as other:
        assert labels(other) != first


def test_without_shuffle_samples_come_as_they_lie(shards: Path) -> None:
    with tarpon.Loader(shards, batch_size=N, fields=FIELDS, shuffle=False) as loader:
        assert labels(loader) == list(range(N))


def test_the_last_batch(shards: Path) -> None:
    sizes = {}
    for last in ("drop", "pad", "keep"):
        with tarpon.Loader(shards, batch_size=50, fields=FIELDS, last=last) as loader:
            sizes[last] = [(len(batch.indices), int(batch.valid.sum())) for batch in loader]
            assert len(sizes[last]) == len(loader)
    assert sizes == {
        "drop": [(50, 50), (50, 50)],
        "pad": [(50, 50), (50, 50), (50, 3)],
        "keep": [(50, 50), (50, 50), (3, 3)],
    }


def merge(parts: list[np.ndarray], *, by_lane: bool) -> np.ndarray:
    """The ranks' shares of a global batch, put back in its order."""
    if not by_lane:
        return np.concatenate(parts)
    return np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize(
    "order", [{}, {"lanes": 5}, {"window_samples": "all"}, {"window_samples": 30}], ids=str
)
@pytest.mark.parametrize("last", ["drop", "pad"])
def test_the_global_batch_is_the_same_for_every_world_size(
    shards: Path, world_size: int, order: dict[str, Any], last: str
) -> None:
    options = {"fields": FIELDS, "seed": 4, "last": last, **order}
    with tarpon.Loader(shards, batch_size=12, **options) as whole:
        expected = [(batch.indices, batch["image"], batch.valid) for batch in whole]
        by_lane = whole._order.by_lane(world_size)
    assert by_lane == (not order or order == {"window_samples": 30})
    ranks = [
        tarpon.Loader(
            shards,
            batch_size=12 // world_size,
            rank=rank,
            world_size=world_size,
            threads=1 + rank,
            **options,
        )
        for rank in range(world_size)
    ]
    steps = 0
    for (indices, images, valid), *parts in zip(expected, *ranks, strict=True):
        for found, wanted in (
            ([part.indices for part in parts], indices),
            ([part["image"] for part in parts], images),
            ([part.valid for part in parts], valid),
        ):
            assert np.array_equal(merge(found, by_lane=by_lane), wanted)
        steps += 1
    assert steps == N // 12 + (last == "pad")
    for loader in ranks:
        loader.close()


def test_ranks_that_share_lanes_say_once_what_would_avoid_it(
    shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for rank in range(3):
        tarpon.Loader(shards, batch_size=4, lanes=4, fields=FIELDS, rank=rank, world_size=3).close()
    tarpon.Loader(shards, batch_size=4, lanes=63, fields=FIELDS, rank=0, world_size=3).close()
    tarpon.Loader(
        shards, batch_size=4, window_samples="all", fields=FIELDS, rank=0, world_size=3
    ).close()
    (record,) = caplog.records
    assert "lanes=4 cannot be dealt to 3 ranks" in record.getMessage()
    assert "lanes=63 would avoid it" in record.getMessage()


def test_a_world_larger_than_the_dataset_pads_or_says_so(shards: Path) -> None:
    options = {"batch_size": 2, "fields": FIELDS, "world_size": 60}
    with pytest.raises(ValueError, match="on 60 ranks takes 120 samples, the dataset has 103"):
        tarpon.Loader(shards, rank=0, **options)
    seen = []
    for rank in range(60):
        with tarpon.Loader(shards, rank=rank, last="pad", threads=1, **options) as loader:
            (batch,) = loader
            seen += batch.indices[batch.valid].tolist()
    assert sorted(seen) == list(range(N))


def test_break_goes_on_where_it_stopped(shards: Path) -> None:
    with tarpon.Loader(shards, batch_size=10, fields=FIELDS, seed=3) as loader:
        whole = labels(loader)
        loader.set_epoch(0)
        head = []
        for batch in loader:
            head += batch.indices.tolist()
            if len(head) == 40:
                break
        assert loader.epoch == 0
        assert head + labels(loader) == whole
        assert loader.epoch == 1


def test_batch_is_a_pure_function_and_where_its_inverse(shards: Path) -> None:
    with tarpon.Loader(shards, batch_size=5, fields=FIELDS, seed=3, rank=1, world_size=2) as loader:
        iterator = iter(loader)
        next(iterator)
        batch = loader.batch(4, 7)
        again = loader.batch(4, 7)
        assert np.array_equal(batch.indices, again.indices)
        assert np.array_equal(batch["image"], again["image"])
        for slot, index in enumerate(batch.indices):
            assert loader.where(int(index), 4) == (7, 1, slot)
        assert next(iterator).step == 1  # asking moved nothing
        found = [loader.where(index, 0) for index in range(N)]
        assert found.count(None) == N % 10
        with pytest.raises(IndexError, match="step 10 of an epoch of 10 batches"):
            loader.batch(0, 10)


def test_numbers_of_numpy_are_numbers(shards: Path) -> None:
    with tarpon.Loader(
        shards,
        batch_size=np.int32(10),
        fields=FIELDS,
        seed=np.int64(3),
        lanes=np.int64(5),
        window_samples=np.uint16(50),
        rank=np.int64(0),
        world_size=np.int64(2),
    ) as loader:
        batch = next(iter(loader))
        index = batch.indices[4]
        assert loader.where(index, np.int64(0)) == (0, 0, 4)
        assert loader.batch(np.int64(0), np.int64(1)).step == 1
        json.dumps(loader.state_dict())
        assert loader.dataset.key(index) == batch.sample_keys[4]
        assert loader.dataset[index]["cls"] == b"%d" % (index % 10)
        with pytest.raises(IndexError, match="sample 103 of a dataset of 103 samples"):
            loader.where(103, 0)


def test_two_threads_at_once_are_told_so(shards: Path) -> None:
    fields = {"image": tarpon.CenterCrop(64)}
    with tarpon.Loader(shards, batch_size=10, fields=fields, buffer_bytes=260_000) as loader:
        held = [loader.batch(0, 0), loader.batch(0, 1)]  # the next one has no room
        waiting = threading.Thread(target=lambda: [held.append(loader.batch(0, 2))])
        waiting.start()
        while not loader._using.locked():
            time.sleep(0.001)
        with pytest.raises(RuntimeError, match="two threads take batches from one loader at once"):
            loader.batch(0, 3)
        del held[:2]
        gc.collect()
        waiting.join(20)
        assert [batch.step for batch in held] == [2]
        assert loader.batch(0, 3).step == 3  # one after the other is fine


def test_batches_that_no_machine_holds_are_refused(shards: Path) -> None:
    with pytest.raises(ValueError, match=r"batch_size=1000000000 makes batches of .* GiB"):
        tarpon.Loader(shards, batch_size=10**9, fields=FIELDS, last="pad")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda loader: loader.where(2**64, 0), "index=18446744073709551616, expected a whole"),
        (lambda loader: loader.where(3, -1), "epoch=-1, expected a whole number from 0"),
        (lambda loader: loader.batch(-1, 0), "epoch=-1, expected"),
        (lambda loader: loader.batch(2**70, 0), "epoch=1180591620717411303424, expected"),
        (lambda loader: loader.batch(0, 2.0), "step=2.0, expected a whole number"),
        (lambda loader: loader.batch(0, 1, every=0), "every=0, expected"),
        (lambda loader: loader.set_epoch(-1), "epoch=-1, expected"),
        (lambda loader: loader.set_epoch(1.5), "epoch=1.5, expected"),
    ],
)
def test_numbers_that_are_none(shards: Path, ask: Any, message: str) -> None:
    with (
        tarpon.Loader(shards, batch_size=10, fields=FIELDS) as loader,
        pytest.raises(ValueError, match=message),
    ):
        ask(loader)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_reads_a_dataset_whose_loader_runs_in_the_parent(shards: Path) -> None:
    dataset = tarpon.open(shards)
    view = tarpon.view(dataset, [3, 1])
    with tarpon.Loader(dataset, batch_size=10, fields={"raw": tarpon.Raw("jpg")}) as loader:
        batches = (batch for _ in range(1000) for batch in loader)
        for _ in range(40):  # a lock that a thread of the parent held would hang the child
            next(batches)
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                right = dataset[5]["jpg"] == photo(5) and view[0]["cls"] == b"3"
                os._exit(0 if right else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_asking_for_every_third_batch_reads_ahead_of_it(shards: Path) -> None:
    with tarpon.Loader(shards, batch_size=5, fields=FIELDS, seed=3) as loader:
        expected = {e: [b.indices.tolist() for b in loader] for e in (0, 1)}
    with tarpon.Loader(shards, batch_size=5, fields=FIELDS, seed=3) as loader:
        wanted = [(epoch, step) for epoch in (0, 1) for step in range(1, 20, 3)]
        for epoch, step in wanted:
            batch = loader.batch(epoch, step, every=3)
            assert batch.indices.tolist() == expected[epoch][step]
        for _ in range(100):
            if loader.stats()["samples"] == 5 * len(wanted):
                break
            time.sleep(0.01)
        decoded = loader._engine.stats()["samples"]
    assert decoded <= 5 * (len(wanted) + 2)  # two ahead of the last


def test_views_outlive_the_loader_and_are_never_overwritten(shards: Path) -> None:
    loader = tarpon.Loader(shards, batch_size=10, fields=FIELDS, seed=3)
    kept = [batch["image"] for batch in loader]
    copies = [array.copy() for array in kept]
    labels(loader)  # another epoch goes through the pool
    loader.close()
    loader.close()
    del loader
    gc.collect()
    for array, copy in zip(kept, copies, strict=True):
        assert np.array_equal(array, copy)


def test_a_closed_loader_says_so(shards: Path) -> None:
    loader = tarpon.Loader(shards, batch_size=10, fields=FIELDS)
    loader.close()
    with pytest.raises(ValueError, match="closed"):
        next(iter(loader))


def test_stopping_half_way_leaves_no_thread(shards: Path) -> None:
    before = len(os.listdir("/proc/self/task"))
    for _ in range(20):
        loader = tarpon.Loader(shards, batch_size=10, fields=FIELDS, threads=4)
        next(iter(loader))
        del loader
    gc.collect()
    assert len(os.listdir("/proc/self/task")) <= before + 1


def test_a_full_buffer_pauses_reading_and_times_out_naming_it(shards: Path) -> None:
    one = 10 * 64 * 64 * 3
    fields = {"image": tarpon.CenterCrop(64)}
    with tarpon.Loader(
        shards, batch_size=10, fields=fields, buffer_bytes=2 * one + 70_000, timeout_s=0.2
    ) as loader:
        iterator = iter(loader)
        held = [next(iterator), next(iterator)]
        with pytest.raises(tarpon.LoaderTimeoutError, match="buffer_bytes is full"):
            next(iterator)
        assert loader.stats()["held_bytes"] <= 2 * one + 70_000
        del held
        gc.collect()
        assert sum(1 for _ in loader) == 8  # two were handed over


def test_a_buffer_below_one_batch_says_what_it_needs(shards: Path) -> None:
    with (
        tarpon.Loader(
            shards, batch_size=10, fields={"image": tarpon.CenterCrop(64)}, buffer_bytes=1000
        ) as loader,
        pytest.raises(ValueError, match="cannot hold two batches of 122880 bytes") as error,
    ):
        next(iter(loader))
    needed = int(str(error.value).split("at least ")[1].split()[0])
    with tarpon.Loader(
        shards, batch_size=10, fields={"image": tarpon.CenterCrop(64)}, buffer_bytes=needed
    ) as loader:
        assert sum(1 for _ in loader) == 10


def test_ctrl_c_interrupts_a_wait(shards: Path) -> None:
    fields = {"image": tarpon.CenterCrop(64)}
    with tarpon.Loader(shards, batch_size=10, fields=fields, buffer_bytes=260_000) as loader:
        iterator = iter(loader)
        held = [next(iterator), next(iterator)]
        main = threading.get_ident()
        timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            next(iterator)
        assert time.monotonic() - start < 5
        timer.join()
        del held


def test_close_from_another_thread_ends_a_wait(shards: Path) -> None:
    fields = {"image": tarpon.CenterCrop(64)}
    loader = tarpon.Loader(shards, batch_size=10, fields=fields, buffer_bytes=260_000)
    iterator = iter(loader)
    held = [next(iterator), next(iterator)]
    timer = threading.Timer(0.3, loader.close)
    timer.start()
    with pytest.raises(ValueError, match="closed"):
        next(iterator)
    timer.join()
    assert len(held) == 2


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_after_fork_the_child_gets_a_clear_error(shards: Path) -> None:
    with tarpon.Loader(shards, batch_size=10, fields=FIELDS) as loader:
        iterator = iter(loader)
        next(iterator)
        child = os.fork()
        if child == 0:
            refused = 0
            for used in (iterator, iter(loader)):
                try:
                    next(used)
                except RuntimeError as error:
                    refused += "made before fork()" in str(error)
            os._exit(0 if refused == 2 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(labels(loader)) > 0  # the parent goes on


def test_after_any_error_batches_and_indices_still_belong_together(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarpon.Loader(shards, batch_size=10, fields=FIELDS, shuffle=False) as loader:
        with monkeypatch.context() as patched:
            patched.setattr(loader._decoder, "columns", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                next(iter(loader))
        for step, batch in enumerate(loader):
            assert batch.indices.tolist() == list(range(10 * step, 10 * step + 10))
            assert batch.sample_keys == [f"{index:05d}" for index in batch.indices]
            assert np.array_equal(batch["label"], batch.indices % 10)


def test_rank_and_world_size_come_from_torchrun(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with tarpon.Loader(shards, batch_size=10, fields=FIELDS) as loader:
        assert "rank 1 of 2" in repr(loader)
        assert len(loader) == N // 20
        monkeypatch.setenv("RANK", "0")
        for use in (lambda: next(iter(loader)), lambda: loader.batch(0, 0)):
            with pytest.raises(RuntimeError, match="rank 1 of 2, this process is now rank 0 of 2"):
                use()
    with tarpon.Loader(shards, batch_size=10, fields=FIELDS, rank=1, world_size=2) as told:
        next(iter(told))
    monkeypatch.delenv("RANK")
    with pytest.raises(ValueError, match="WORLD_SIZE=2 without RANK in the environment, expected"):
        tarpon.Loader(shards, batch_size=10, fields=FIELDS)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ValueError, match="RANK=1 alone in the environment, expected"):
        tarpon.Loader(shards, batch_size=10, fields=FIELDS)
    monkeypatch.setenv("RANK", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK=x, WORLD_SIZE=2: expected whole numbers"):
        tarpon.Loader(shards, batch_size=10, fields=FIELDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0, expected a whole number of at least 1"),
        ({"batch_size": 104}, "takes 104 samples, the dataset has 103"),
        ({"batch_size": 60, "rank": 0, "world_size": 2}, "takes 120 samples"),
        ({"rank": 2, "world_size": 2}, "rank=2, world_size=2"),
        ({"rank": 0}, "expected both or neither"),
        ({"last": "wrap"}, "last='wrap', expected one of 'drop', 'pad', 'keep'"),
        ({"last": "keep", "rank": 0, "world_size": 2}, "use last='pad' or 'drop'"),
        ({"on_bad_sample": "skip"}, "expected one of 'raise', 'substitute'"),
        ({"threads": 0}, "threads=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1.5}, "seed=1.5, expected a whole number"),
        ({"lanes": 0}, "lanes=0, expected a whole number of at least 1"),
        ({"window_samples": "some"}, "window_samples='some', expected a number or 'all'"),
        ({"window_samples": 0}, "window_samples=0"),
        ({"window_samples": "all", "lanes": 2}, "lanes=2 with window_samples='all'"),
        ({"timeout_s": 0}, "timeout_s=0, expected seconds above 0"),
        ({"buffer_bytes": "1G"}, "buffer_bytes='1G', expected a whole number"),
        ({"fields": {"x": "jpg"}}, "expected a field such as"),
        ({"fields": {"x": tarpon.Raw}}, "expected a field such as"),
        ({"fields": ["jpg"]}, "expected a dict such as"),
        ({"fields": {}}, "expected a dict such as"),
        ({"store": 1}, "expected a tarpon.Store"),
        ({"cache_bytes": 1}, "without cache_dir"),
        ({"cache_dir": "x", "cache_bytes": 0}, "at least 1"),
    ],
)
def test_wrong_arguments(shards: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tarpon.Loader(shards, **{"batch_size": 10, "fields": FIELDS} | arguments)


def test_stats_add_up(shards: Path) -> None:
    with tarpon.Loader(shards, batch_size=10, fields={"raw": tarpon.Raw("jpg")}) as loader:
        total = sum(len(batch["raw"].data) for batch in loader)
        stats = loader.stats()
    closed = loader.stats()  # those of the moment it was closed
    assert (closed["samples"], closed["bad_samples"]) == (100, [])
    assert closed["bytes"] >= stats["bytes"]
    assert stats["samples"] == 100
    assert stats["bytes"] >= total > 0
    assert stats["samples_per_s"] > 0
    assert stats["bad_samples"] == []
