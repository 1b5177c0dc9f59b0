"""A TorchLoader is a Loader, ahead of time: same batches, same states, whatever was prefetched."""

from __future__ import annotations

import contextlib
import gc
import inspect
import json
import os
import signal
import threading
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tarpon
import tarpon.torch
import torch
from tarpon.torch import Normalize, TorchLoader

from tests.loader.tars import photo, samples, write_tar

FIELDS = {"image": tarpon.RandomResizedCrop(16), "label": tarpon.Int("cls")}
OPTIONS: dict[str, Any] = {"batch_size": 10, "fields": FIELDS, "seed": 3}
STEPS = 10  # of an epoch of 103 samples
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=cuda)]


@pytest.fixture
def make(shards: Path) -> Iterator[Callable[..., TorchLoader]]:
    """A TorchLoader of the shards, on the CPU unless told otherwise; closed at the end."""
    made: list[TorchLoader] = []

    def make(of: Any = shards, **options: Any) -> TorchLoader:
        own = {} if isinstance(of, tarpon.Loader) else OPTIONS
        made.append(TorchLoader(of, **{"device": "cpu"} | own | options))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def same(ours: dict[str, Any], theirs: tarpon.Batch) -> bool:
    return all(
        np.array_equal(ours[name].cpu().numpy(), column)
        for name, column in {**theirs, "indices": theirs.indices, "valid": theirs.valid}.items()
    )


def indices(batches: Any) -> list[list[int]]:
    return [batch["indices"].tolist() for batch in batches]


def settle(loader: TorchLoader) -> None:
    """Wait until the prefetch is full."""
    until(lambda: loader.stats()["prefetched"] >= loader._prefetch)


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.001)


# ---- the stream ------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("prefetch", [1, 2, 30])
@pytest.mark.parametrize("last", ["drop", "pad", "keep"])
def test_batches_and_states_are_the_loaders_at_every_step(
    shards: Path, make: Callable[..., TorchLoader], last: str, prefetch: int, device: str
) -> None:
    ours = make(last=last, prefetch=prefetch, device=device)
    with tarpon.Loader(shards, **OPTIONS, last=last) as theirs:
        assert len(ours) == len(theirs)
        assert ours.num_samples == theirs.num_samples == 103
        assert ours.state_dict() == theirs.state_dict()
        for epoch in range(3):
            assert ours.epoch == epoch
            for a, b in zip(ours, theirs, strict=True):
                assert same(a, b)
                assert a["image"].device == ours.device
                assert ours.state_dict() == theirs.state_dict()
                assert ours.epoch == theirs.epoch == epoch
            assert ours.state_dict() == theirs.state_dict()


def test_what_is_prefetched_is_not_counted_and_crosses_the_epochs_end(
    make: Callable[..., TorchLoader],
) -> None:
    loader = make(prefetch=7)
    epoch = iter(loader)
    for step in range(STEPS):
        next(epoch)
        settle(loader)  # though fewer than 7 are left of this epoch
        state = loader.state_dict()
        assert (state["epoch"], state["position"]) == (0, 10 * (step + 1))
        assert loader.stats()["samples"] == 10 * (step + 1)
    assert next(epoch, None) is None
    assert loader.stats()["prefetched"] == 7  # nothing was thrown away


def test_every_state_goes_on_in_either_class(
    shards: Path, make: Callable[..., TorchLoader]
) -> None:
    with tarpon.Loader(shards, **OPTIONS) as theirs:
        whole = [batch.indices.tolist() for _ in range(3) for batch in theirs]
        ours, other = make(), make()
        states = [ours.state_dict()]
        for _ in range(2):
            for _ in ours:
                states.append(json.loads(json.dumps(ours.state_dict())))
        assert len(json.dumps(states[-1])) < 1024
        for taken, state in enumerate(states):
            other.load_state_dict(state)
            assert other.state_dict() == state
            theirs.load_state_dict(state)
            until = (taken // STEPS + 1) * STEPS
            assert indices(other) == whole[taken:until]
            assert other.state_dict()["epoch"] == taken // STEPS + 1
            assert next(iter(theirs)).indices.tolist() == whole[taken]


def test_a_state_moves_between_batch_sizes(shards: Path, make: Callable[..., TorchLoader]) -> None:
    with tarpon.Loader(shards, **OPTIONS | {"batch_size": 20}) as theirs:
        order = [index for batch in theirs for index in batch.indices.tolist()]
    ours, small = make(batch_size=20), make(batch_size=4)
    next(iter(ours))
    small.load_state_dict(ours.state_dict())
    assert indices(small)[:20] == [order[20 + 4 * i : 24 + 4 * i] for i in range(20)]


@pytest.mark.parametrize("steps", [1, 4, STEPS])
def test_after_a_break_the_next_for_gives_what_a_loader_gives(
    shards: Path, make: Callable[..., TorchLoader], steps: int
) -> None:
    ours = make()
    with tarpon.Loader(shards, **OPTIONS) as theirs:
        for _ in range(3):
            for _, (a, b) in zip(range(steps), zip(ours, theirs, strict=True), strict=False):
                assert same(a, b)
            assert ours.state_dict() == theirs.state_dict()
        for a, b in zip(ours, theirs, strict=True):
            assert same(a, b)
        assert ours.state_dict() == theirs.state_dict()


@pytest.mark.parametrize("within", [0, 4, STEPS])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_set_epoch_goes_where_a_loader_goes(
    shards: Path, make: Callable[..., TorchLoader], within: int, epoch: int
) -> None:
    ours = make()
    with tarpon.Loader(shards, **OPTIONS) as theirs:
        for _, _ in zip(range(within), ours, strict=False):
            pass
        ours.set_epoch(np.int64(epoch))  # type: ignore[arg-type]
        theirs.set_epoch(epoch)
        assert json.dumps(ours.state_dict()) == json.dumps(theirs.state_dict())
        for a, b in zip(ours, theirs, strict=True):
            assert same(a, b)
    with pytest.raises(ValueError, match="epoch=-1"):
        ours.set_epoch(-1)
    assert ours.epoch == epoch + 1


def test_set_epoch_to_what_comes_anyway_keeps_what_was_prefetched(
    make: Callable[..., TorchLoader],
) -> None:
    made: list[int] = []
    loader = make(transform=lambda batch: made.append(1) or batch)
    for epoch in range(3):
        loader.set_epoch(epoch)
        for _ in loader:
            pass
    loader.set_epoch(3)
    settle(loader)
    assert len(made) == 3 * STEPS + 2  # each once
    loader.set_epoch(4)
    next(iter(loader))
    settle(loader)
    assert len(made) == 3 * STEPS + 2 + 3


@pytest.mark.parametrize("target", ["same epoch", "other epoch", "state"])
def test_moved_within_a_for_it_does_as_a_loader_does(
    shards: Path, make: Callable[..., TorchLoader], target: str
) -> None:
    def stream(loader: Any) -> Iterator[Any]:
        start = loader.state_dict()
        for number, batch in enumerate(loader):
            yield batch
            if number == 3:
                if target == "state":
                    loader.load_state_dict(start)
                else:
                    loader.set_epoch(0 if target == "same epoch" else 2)
        yield from loader

    with tarpon.Loader(shards, **OPTIONS) as theirs:
        ours = make()
        for a, b in zip(stream(ours), stream(theirs), strict=True):
            assert same(a, b)
        assert ours.state_dict() == theirs.state_dict()


def test_a_ready_loader_goes_on_from_where_it_stands(
    shards: Path, make: Callable[..., TorchLoader]
) -> None:
    with tarpon.Loader(shards, **OPTIONS) as theirs:
        expected = [batch.indices.tolist() for batch in theirs]
    loader = tarpon.Loader(shards, **OPTIONS)
    next(iter(loader))
    ours = make(loader)
    assert indices(ours) == expected[1:]
    ours.close()
    with pytest.raises(ValueError, match="the loader is closed"):
        next(iter(loader))


def test_an_interrupted_take_loses_no_batch(
    shards: Path, make: Callable[..., TorchLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = make()
    with tarpon.Loader(shards, **OPTIONS) as theirs:
        expected = [batch.indices.tolist() for batch in theirs]
    found = [next(iter(ours))["indices"].tolist()]
    assert ours._pump is not None
    ours._pump.take()  # and Ctrl-C before anything was done with it
    assert found + indices(ours) == expected


def test_ctrl_c_while_it_stops_its_thread_is_no_end(
    shards: Path, make: Callable[..., TorchLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = make()
    with tarpon.Loader(shards, **OPTIONS) as theirs:
        expected = [batch.indices.tolist() for batch in theirs]
    found = [next(iter(ours))["indices"].tolist()]
    assert ours._pump is not None
    with monkeypatch.context() as patch:
        patch.setattr(ours._pump._thread, "join", lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            ours.set_epoch(1)
    assert found + indices(ours) == expected


def test_a_thread_that_is_interrupted_blames_no_sample(tmp_path: Path) -> None:
    """What the engine gives after that is of another batch than the one that was asked for."""
    write_tar(tmp_path / "bad.tar", [*samples(range(25)), ("bad.cls", b"x"), ("bad.jpg", b"")])
    options = OPTIONS | {"batch_size": 9, "shuffle": False, "last": "keep"}
    with tarpon.Loader(tmp_path, **options, on_bad_sample="substitute") as loader:
        ask = loader._ask

        def interrupted(epoch: int, start: int) -> None:
            if start == 18:  # the last batch, with the bad sample, comes after it
                loader._interrupt()
            ask(epoch, start)

        loader._ask = interrupted  # type: ignore[method-assign, assignment]
        with pytest.raises(tarpon.TarponError, match="interrupted by another thread"):
            next(iter(loader))
        assert loader.stats()["bad_samples"] == []
        loader._ask = ask  # type: ignore[method-assign]
        loader._resume()
        found = [index for batch in loader for index in batch.indices.tolist()]
        assert found == [*range(25), 0]


# ---- transform -------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_transform_gets_each_batch_once_on_the_device_in_order(
    shards: Path, make: Callable[..., TorchLoader], device: str
) -> None:
    seen: list[list[int]] = []

    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        assert list(batch) == ["image", "label", "indices", "valid"]
        assert {tensor.device.type for tensor in batch.values()} == {device}
        assert not torch.is_grad_enabled()
        seen.append(batch["indices"].tolist())
        return {"pair": (batch["label"] * 2, [batch["image"].float().mean()]), "at": len(seen)}

    loader = make(transform=transform, device=device)
    with tarpon.Loader(shards, **OPTIONS) as theirs:
        for number, (a, b) in enumerate(zip(loader, theirs, strict=True), 1):
            assert a["at"] == number
            assert a["pair"][0].tolist() == (b["label"] * 2).tolist()
            assert a["pair"][1][0].item() == pytest.approx(b["image"].mean())
            assert seen[number - 1] == b.indices.tolist()


@pytest.mark.parametrize("failing", [0, 4, STEPS - 1])
def test_a_failing_transform_surfaces_at_its_batch_and_the_next_for_tries_again(
    shards: Path, make: Callable[..., TorchLoader], failing: int
) -> None:
    with tarpon.Loader(shards, **OPTIONS) as theirs:
        expected = [batch.indices.tolist() for batch in theirs]
    broken = True

    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        if broken and batch["indices"].tolist() == expected[failing]:
            raise ArithmeticError("no number")
        return batch

    loader = make(transform=transform, prefetch=5)
    found = []
    for _ in range(2):
        with pytest.raises(ArithmeticError, match="no number"):
            found.extend(batch["indices"].tolist() for batch in loader)
        assert found == expected[:failing]
        assert loader.state_dict()["position"] == 10 * failing
    broken = False
    assert found + indices(loader) == expected


def test_a_bad_sample_surfaces_at_its_batch_and_set_epoch_moves_on(
    tmp_path: Path, make: Callable[..., TorchLoader]
) -> None:
    write_tar(tmp_path / "bad.tar", [*samples(range(25)), ("bad.cls", b"x"), ("bad.jpg", b"")])
    loader = make(tmp_path, batch_size=5, shuffle=False, last="keep", prefetch=9)
    for _ in range(2):
        found: list[int] = []
        with pytest.raises(tarpon.BadSampleError, match=r"bad\.tar, sample bad"):
            found.extend(index for batch in loader for index in batch["indices"].tolist())
        assert found == list(range(25))
        loader.set_epoch(7)
    assert loader.epoch == 7
    assert next(iter(loader))["indices"].tolist() == list(range(5))


def test_substitutes_are_those_of_a_loader(
    tmp_path: Path, make: Callable[..., TorchLoader]
) -> None:
    write_tar(tmp_path / "bad.tar", [*samples(range(25)), ("bad.cls", b"x"), ("bad.jpg", b"")])
    options = OPTIONS | {"batch_size": 5, "on_bad_sample": "substitute", "last": "keep"}
    ours = make(tmp_path, **options)
    with tarpon.Loader(tmp_path, **options) as theirs:
        assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))
        assert ours.stats()["bad_samples"] == theirs.stats()["bad_samples"] != []


# ---- normalise -------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_normalize_is_numpys_to_the_last_bit(
    shards: Path, make: Callable[..., TorchLoader], dtype: torch.dtype, device: str
) -> None:
    loader = make(transform=Normalize(MEAN, STD, dtype), device=device)
    with tarpon.Loader(shards, **OPTIONS) as theirs:
        for a, b in zip(loader, theirs, strict=True):
            exact = (b["image"] - np.float32(MEAN)) / np.float32(STD)
            assert exact.dtype == np.float32
            image = a["image"]
            assert image.dtype == dtype
            assert image.shape == (10, 3, 16, 16)
            assert image.is_contiguous(memory_format=torch.channels_last)
            rounded = torch.from_numpy(exact).to(dtype).permute(0, 3, 1, 2)
            assert torch.equal(image.cpu(), rounded)
            assert a["label"].tolist() == b["label"].tolist()


def test_normalize_takes_all_its_fields() -> None:
    images = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).reshape(2, 4, 5, 3)
    batch = {"a": images, "b": images + 1, "c": images}
    found = Normalize((1, 2, 3), (4, 4, 4), fields=("a", "b"))(batch)
    assert torch.equal(found["a"][:, 1], (images[..., 1].float() - 2) / 4)
    assert torch.equal(found["b"][:, 1], (images[..., 1].float() - 1) / 4)
    assert found["c"] is images
    assert batch["a"] is images  # nothing was overwritten


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": (1, 1)}, "expected three numbers in both"),
        ({"mean": (1, 2), "std": (3, 4)}, "expected three numbers in both"),
        ({"std": (1, 0, 1)}, "std above 0"),
        ({"mean": (1, float("nan"), 1)}, "finite numbers"),
        ({"dtype": torch.float64}, "dtype=torch.float64, expected one"),
    ],
)
def test_normalize_refuses_what_makes_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Normalize(**{"mean": MEAN, "std": STD} | options)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "'image' is missing, expected a tensor"),
        ([1, 2], "'image' is a list, expected a tensor"),
        (torch.zeros(2, 4, 4, 3), "'image' is torch.float32"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), r"'image' is torch.uint8\[2, 3, 4, 4\]"),
    ],
)
def test_normalize_names_a_field_that_is_no_such_image(image: Any, message: str) -> None:
    batch = {} if image is None else {"image": image}
    with pytest.raises(ValueError, match=message):
        Normalize(MEAN, STD)(batch)


# ---- memory and endings ----------------------------------------------------------------------


def test_on_the_cpu_nothing_is_copied_and_memory_comes_back(
    make: Callable[..., TorchLoader],
) -> None:
    loader = make(prefetch=5)
    batch = next(iter(loader))
    settle(loader)
    kept = batch["image"].clone()
    assert loader.stats()["held_bytes"] >= 6 * kept.nbytes
    loader.set_epoch(8)  # drops what was prefetched
    # Threads finish what they had begun.
    until(lambda: 0 < loader.stats()["held_bytes"] < 2 * kept.nbytes)
    assert torch.equal(batch["image"], kept)
    del batch  # the view was what held the slab
    assert loader.stats()["held_bytes"] == 0
    batch = next(iter(loader))
    kept = batch["image"].clone()
    loader.close()
    gc.collect()
    assert torch.equal(batch["image"], kept)  # survives the loader


def test_a_ceiling_that_holds_two_batches_is_enough(
    shards: Path, make: Callable[..., TorchLoader]
) -> None:
    with tarpon.Loader(shards, **OPTIONS) as theirs:
        expected = [batch.indices.tolist() for _ in range(2) for batch in theirs]
    loader = make(buffer_bytes=2**15, prefetch=4)  # the thread waits for room all the time
    found = []
    for _ in range(2):
        found += [batch["indices"].tolist() for batch in loader]
    assert found == expected
    held = [next(iter(loader)), next(iter(loader))]  # all there is, so that the thread hangs in it
    loader.set_epoch(0)
    del held
    assert indices(loader) == expected[:STEPS]


def test_a_pause_longer_than_the_timeout_is_no_failure(make: Callable[..., TorchLoader]) -> None:
    loader = make(buffer_bytes=2**15, prefetch=4, timeout_s=0.05)
    held: list[Any] = []
    while len(held) < 2:
        with contextlib.suppress(tarpon.LoaderTimeoutError):  # on a machine with much to do
            held.append(next(iter(loader)))
    tried = 0
    original = loader._loader._cancel

    def count() -> None:
        nonlocal tried
        tried += 1
        original()

    loader._loader._cancel = count  # type: ignore[method-assign]
    until(lambda: tried >= 3)  # the thread has waited in vain for memory that we hold
    loader._loader._timeout_s = 600
    del held
    assert len(indices(loader)) == STEPS - 2


def test_dropped_without_close_it_leaves_no_thread_and_a_ready_loader(shards: Path) -> None:
    ready = tarpon.Loader(shards, **OPTIONS)
    loader = TorchLoader(ready, device="cpu")
    next(iter(loader))
    settle(loader)
    assert loader._pump is not None
    thread = loader._pump._thread
    assert thread.is_alive()
    del loader
    gc.collect()
    assert not thread.is_alive()
    ready.set_epoch(0)
    with ready, tarpon.Loader(shards, **OPTIONS) as theirs:
        assert [b.indices.tolist() for b in ready] == [b.indices.tolist() for b in theirs]


def test_close_is_final_and_keeps_the_figures(make: Callable[..., TorchLoader]) -> None:
    with make() as loader:
        batch = next(iter(loader))
        epoch = iter(loader)
        next(epoch)
    loader.close()
    assert loader.stats()["samples"] == 20
    assert loader.stats()["samples_per_s"] > 0
    assert loader.stats()["wait_s"] > 0
    assert batch["label"].shape == (10,)
    for use in (lambda: next(iter(loader)), lambda: next(epoch)):
        with pytest.raises(ValueError, match="the loader is closed"):
            use()
    assert repr(loader) == (
        "<tarpon.torch.TorchLoader on cpu, 103 samples, 10 batches, epoch 0, prefetch 2>"
    )


def test_closed_by_another_thread_whoever_waits_is_told(make: Callable[..., TorchLoader]) -> None:
    go, told = threading.Event(), []
    loader = make(transform=lambda batch: go.wait(60) and batch["none"])

    def consume() -> None:
        try:
            next(iter(loader))
        except Exception as error:
            told.append(str(error))

    waits = threading.Thread(target=consume, daemon=True)
    waits.start()
    until(lambda: loader._pump is not None and loader._pump._awaited)
    assert loader._pump is not None
    pump = loader._pump
    closes = threading.Thread(target=loader.close)
    closes.start()
    until(lambda: pump.stopped)
    go.set()
    for thread in (closes, waits):
        thread.join(20)
    assert told == ["the loader is closed"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_in_a_forked_child_it_says_so(make: Callable[..., TorchLoader]) -> None:
    loader = make()
    next(iter(loader))
    if (child := os.fork()) == 0:
        code = 1
        try:
            with pytest.raises(RuntimeError, match="made before fork"):
                next(iter(loader))
            loader.close()  # does not hang
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


# ---- arguments -------------------------------------------------------------------------------


def test_the_options_are_a_loaders() -> None:
    theirs = dict(inspect.signature(tarpon.Loader).parameters)
    del theirs["shards"]
    ours = typing.get_type_hints(tarpon.torch.LoaderOptions)
    hints = typing.get_type_hints(tarpon.Loader.__init__)
    assert ours == {name: hints[name] for name in theirs}
    with pytest.raises(TypeError, match="unexpected keyword argument 'batchsize'"):
        TorchLoader("none.tar", batchsize=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:77", "device='cuda:77': torch .*sees .*CUDA device"),
        (77, "device=77: torch .*sees .*CUDA device"),
        ("meta", "device='meta': a meta device, expected 'cpu', 'cuda' or 'cuda:N'"),
        ("gpu", "device='gpu': no such device in torch"),
    ],
)
def test_a_device_that_is_absent_or_of_another_kind_is_refused(
    shards: Path, device: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TorchLoader(shards, device=device, **OPTIONS)


def test_without_a_device_it_is_the_one_that_is_there(shards: Path) -> None:
    with TorchLoader(shards, **OPTIONS) as loader:
        assert loader.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
        assert next(iter(loader))["image"].device == loader.device


def test_bad_arguments_are_named(shards: Path) -> None:
    with tarpon.Loader(shards, **OPTIONS) as loader:
        with pytest.raises(ValueError, match="seed, threads beside a ready Loader"):
            TorchLoader(loader, device="cpu", seed=3, threads=1)
        with pytest.raises(ValueError, match="prefetch=0, expected a whole number"):
            TorchLoader(loader, device="cpu", prefetch=0)
    with pytest.raises(ValueError, match="'valid' is a key that every batch has"):
        TorchLoader(shards, device="cpu", batch_size=5, fields={"valid": tarpon.Int("cls")})


def test_a_state_of_another_dataset_moves_nothing(
    shards: Path, tmp_path: Path, make: Callable[..., TorchLoader]
) -> None:
    with tarpon.Loader(shards, **OPTIONS) as theirs:
        expected = [batch.indices.tolist() for batch in theirs]
    ours = make()
    next(iter(ours))
    write_tar(tmp_path / "other.tar", samples(range(50)))
    with tarpon.Loader(tmp_path, **OPTIONS) as other:
        foreign = other.state_dict()
    with pytest.raises(tarpon.StateMismatchError, match="fingerprint"):
        ours.load_state_dict(foreign)
    assert indices(ours) == expected[1:]


# ---- on CUDA only ----------------------------------------------------------------------------


@cuda
def test_bytes_of_any_length_and_lists_come_too(make: Callable[..., TorchLoader]) -> None:
    fields = {"raw": tarpon.Raw("jpg"), "text": tarpon.Text("cls"), "label": tarpon.Int("cls")}
    for batch in make(fields=fields, device="cuda"):
        raw, ends = batch["raw"].data.cpu().numpy(), batch["raw"].offsets.tolist()
        assert batch["raw"].data.is_cuda
        assert batch["text"] == [str(label) for label in batch["label"].tolist()]
        for slot, index in enumerate(batch["indices"].tolist()):
            assert raw[ends[slot] : ends[slot + 1]].tobytes() == photo(index)


@cuda
def test_a_slow_gpu_never_sees_a_batch_overwritten_or_too_early(
    shards: Path, make: Callable[..., TorchLoader]
) -> None:
    """The consumer's stream lags behind by queued sleeps while batches are dropped and made."""

    def slow(batch: dict[str, Any]) -> dict[str, Any]:
        torch.cuda._sleep(2_000_000)  # on the copy stream, before what the event stands for
        return batch | {"image": batch["image"] + 0}

    loader = make(device="cuda", transform=slow, prefetch=3)
    sums, expected = [], []
    with tarpon.Loader(shards, **OPTIONS) as theirs:
        for _ in range(5):
            for a, b in zip(loader, theirs, strict=True):
                torch.cuda._sleep(5_000_000)
                sums.append(a["image"].sum())  # queued; `a` is dropped long before it runs
                expected.append(int(b["image"].sum(dtype=np.int64)))
    assert [int(one) for one in sums] == expected


@cuda
def test_on_the_gpu_slabs_are_free_as_soon_as_they_are_staged(
    make: Callable[..., TorchLoader],
) -> None:
    loader = make(device="cuda", prefetch=3)
    held = list(loader)
    settle(loader)
    gc.collect()
    assert loader.stats()["held_bytes"] == 0
    assert len(held) == STEPS
